//! The client: one method per RPC.

use std::time::Duration;

use baichuan_proto::v1;
use futures::{Stream, StreamExt};
use tonic::IntoRequest;
use tonic::codegen::InterceptedService;
use tonic::transport::Channel;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;
use v1::admin_service_client::AdminServiceClient;
use v1::control_service_client::ControlServiceClient;
use v1::inference_service_client::InferenceServiceClient;
use v1::model_service_client::ModelServiceClient;

use crate::connect::{ConnectOptions, Identity};
use crate::embedding::EmbedStream;
use crate::error::Error;
use crate::generation::Generation;
use crate::health::{Health, HealthWatch};
use crate::resume::Resuming;

pub(crate) type Transport = InterceptedService<Channel, Identity>;

/// A connection to a server. Cheap to clone; clones share the connection, which is made anew when it breaks.
///
/// Methods take a message, or a [`tonic::Request`] around it to set `grpc-timeout` and other metadata.
#[derive(Clone, Debug)]
pub struct Client {
    transport: Transport,
    max_message_bytes: usize,
}

impl Client {
    /// The service whose health is readiness: warm, not draining, engine alive.
    pub const READINESS: &'static str = "baichuan.v1.InferenceService";

    /// Connects, and fails if nobody answers.
    pub async fn connect(options: &ConnectOptions) -> Result<Self, Error> {
        Self::over(options.connect().await?, options)
    }

    /// A client that connects at its first call.
    pub fn connect_lazy(options: &ConnectOptions) -> Result<Self, Error> {
        Self::over(options.connect_lazy()?, options)
    }

    fn over(channel: Channel, options: &ConnectOptions) -> Result<Self, Error> {
        Ok(Self {
            transport: InterceptedService::new(channel, options.identity()?),
            max_message_bytes: options.max_message_bytes,
        })
    }

    /// Completes a prompt; returns when the server has taken the request.
    pub async fn generate(
        &self,
        request: impl IntoRequest<v1::GenerateRequest>,
    ) -> Result<Generation, Error> {
        let response = self.inference().generate(request).await?;
        Ok(Generation::of(response))
    }

    /// Completes a prompt by a stream that outlives its connection: when that breaks, the stream is taken up again from
    /// the token after the last one received. Attempts go on for `patience` from a loss; a stream that breaks again before
    /// anything new came, and within that time, is the same loss.
    ///
    /// The server keeps such a stream for its `requests.resume_window`. Where it is kept no more, or its server has ended, the
    /// request is made again with the same seed on the server that answers, and only what had not been received is
    /// yielded. A request without a name or a seed gets one.
    ///
    /// # Errors
    /// As [`Self::generate`]; that of the connection where nobody answered within `patience`; later
    /// [`Error::Protocol`] where the request, made again, yields something else than before, as it may with other weights.
    pub async fn generate_resumable(
        &self,
        request: v1::GenerateRequest,
        patience: Duration,
    ) -> Result<Generation, Error> {
        Resuming::begin(self.clone(), request, patience).await
    }

    /// Completes a prompt in one answer. Dropping the future cancels the request.
    pub async fn generate_unary(
        &self,
        request: impl IntoRequest<v1::GenerateRequest>,
    ) -> Result<v1::GenerateUnaryResponse, Error> {
        let request = request.into_request().map(|request| v1::GenerateUnaryRequest {
            request: Some(request),
        });
        Ok(self.inference().generate_unary(request).await?.into_inner())
    }

    /// Turns inputs into vectors; see [`crate::values`] for their numbers.
    pub async fn embed(
        &self,
        request: impl IntoRequest<v1::EmbedRequest>,
    ) -> Result<v1::EmbedResponse, Error> {
        Ok(self.inference().embed(request).await?.into_inner())
    }

    /// Turns a stream of numbered inputs into vectors.
    ///
    /// `options` speaks for all of them and has no `inputs` of its own; the numbers must be distinct. Inputs are
    /// read as the server takes them.
    pub async fn embed_stream(
        &self,
        options: v1::EmbedRequest,
        inputs: impl Stream<Item = (u32, v1::EmbedInput)> + Send + 'static,
    ) -> Result<EmbedStream, Error> {
        let mut options = Some(options);
        let messages = inputs.map(move |(index, input)| v1::EmbedStreamRequest {
            index,
            input: Some(input),
            options: options.take(),
        });
        let response = self.inference().embed_stream(messages).await?;
        Ok(EmbedStream::new(response.into_inner()))
    }

    /// Text or chat to token ids.
    pub async fn tokenize(
        &self,
        request: impl IntoRequest<v1::TokenizeRequest>,
    ) -> Result<v1::TokenizeResponse, Error> {
        Ok(self.inference().tokenize(request).await?.into_inner())
    }

    /// Token ids to text.
    pub async fn detokenize(
        &self,
        request: impl IntoRequest<v1::DetokenizeRequest>,
    ) -> Result<v1::DetokenizeResponse, Error> {
        Ok(self.inference().detokenize(request).await?.into_inner())
    }

    /// What is served; the first is the default.
    pub async fn models(&self) -> Result<Vec<v1::Model>, Error> {
        let response = self.model_service().list_models(v1::ListModelsRequest {}).await?;
        Ok(response.into_inner().models)
    }

    /// One served model; an empty name is the default one's.
    pub async fn model(&self, name: impl Into<String>) -> Result<v1::Model, Error> {
        let request = v1::GetModelRequest { model: name.into() };
        let response = self.model_service().get_model(request).await?;
        response
            .into_inner()
            .model
            .ok_or(Error::Protocol("a GetModelResponse without a model"))
    }

    /// What runs there.
    pub async fn server_info(&self) -> Result<v1::GetServerInfoResponse, Error> {
        let response = self
            .control()
            .get_server_info(v1::GetServerInfoRequest {})
            .await?;
        Ok(response.into_inner())
    }

    /// How loaded each model is now; an empty name means all models.
    pub async fn load(&self, model: impl Into<String>) -> Result<Vec<v1::ModelLoad>, Error> {
        let request = v1::GetLoadRequest { model: model.into() };
        Ok(self.control().get_load(request).await?.into_inner().models)
    }

    /// Ends a running request by its name.
    pub async fn abort(&self, request_id: impl Into<String>) -> Result<(), Error> {
        let request = v1::AbortRequest {
            request_id: request_id.into(),
        };
        self.control().abort(request).await?;
        Ok(())
    }

    /// Stops admission; with `wait`, returns only when nothing runs. Returns the number of running sequences.
    /// Needs a server that enables its AdminService.
    pub async fn drain(&self, wait: bool) -> Result<u32, Error> {
        let request = v1::DrainRequest { wait: Some(wait) };
        Ok(self.admin().drain(request).await?.into_inner().running)
    }

    /// Changes what the server logs and returns the filter that was in force. Needs its AdminService.
    pub async fn set_log_filter(&self, filter: impl Into<String>) -> Result<String, Error> {
        let request = v1::SetLogFilterRequest {
            filter: filter.into(),
        };
        let response = self.admin().set_log_filter(request).await?;
        Ok(response.into_inner().previous)
    }

    /// A service's health now; `""` is the server's liveness, [`Self::READINESS`] its readiness.
    pub async fn health(&self, service: impl Into<String>) -> Result<Health, Error> {
        let request = HealthCheckRequest {
            service: service.into(),
        };
        Ok(self.health_service().check(request).await?.into_inner().into())
    }

    /// A service's health now and at every change.
    pub async fn watch_health(&self, service: impl Into<String>) -> Result<HealthWatch, Error> {
        let request = HealthCheckRequest {
            service: service.into(),
        };
        let response = self.health_service().watch(request).await?;
        Ok(HealthWatch(response.into_inner()))
    }

    pub(crate) fn inference(&self) -> InferenceServiceClient<Transport> {
        InferenceServiceClient::new(self.transport.clone())
            .max_decoding_message_size(self.max_message_bytes)
            .max_encoding_message_size(self.max_message_bytes)
    }

    fn model_service(&self) -> ModelServiceClient<Transport> {
        ModelServiceClient::new(self.transport.clone()).max_decoding_message_size(self.max_message_bytes)
    }

    fn control(&self) -> ControlServiceClient<Transport> {
        ControlServiceClient::new(self.transport.clone()).max_decoding_message_size(self.max_message_bytes)
    }

    /// Has one more model loaded; `config` is an entry of the server's `[[models]]`, in TOML. Answers when it is warm.
    pub async fn load_model(&self, config: impl Into<String>) -> Result<v1::Model, Error> {
        let request = v1::LoadModelRequest {
            config: config.into(),
        };
        let response = self.admin().load_model(request).await?.into_inner();
        response
            .model
            .ok_or(Error::Protocol("a LoadModelResponse without a model"))
    }

    /// Has a model taken away; answers when what ran on it has finished.
    pub async fn unload_model(&self, model: impl Into<String>) -> Result<(), Error> {
        let request = v1::UnloadModelRequest { model: model.into() };
        self.admin().unload_model(request).await?;
        Ok(())
    }

    fn admin(&self) -> AdminServiceClient<Transport> {
        AdminServiceClient::new(self.transport.clone())
    }

    fn health_service(&self) -> HealthClient<Transport> {
        HealthClient::new(self.transport.clone())
    }
}
