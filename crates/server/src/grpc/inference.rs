//! `InferenceService`: each method names its call and hands it to the file it is in.

use std::sync::Arc;

use baichuan_engine::RequestId;
use baichuan_proto::v1;
use baichuan_proto::v1::inference_service_server::InferenceService;
use futures::stream::{self, BoxStream, StreamExt};
use tonic::{Request, Response, Status, Streaming};

use super::generate::Generation;
use super::lifeline::Lifeline;
use super::meta::{Meta, answer, failure};
use super::resume::Reader;
use super::{embed, embed_stream, generate, generate_unary, resume, text};
use crate::app::App;
use crate::error::ApiError;

/// The service.
pub(super) struct Inference(pub(super) Arc<App>);

#[async_trait::async_trait]
impl InferenceService for Inference {
    type GenerateStream = BoxStream<'static, Result<v1::GenerateResponse, Status>>;
    type EmbedStreamStream = BoxStream<'static, Result<v1::EmbedStreamResponse, Status>>;

    async fn generate(
        &self,
        request: Request<v1::GenerateRequest>,
    ) -> Result<Response<Self::GenerateStream>, Status> {
        let meta = Meta::of(&request);
        let lifeline = request.extensions().get::<Lifeline>().cloned();
        let request = request.into_inner();
        let id = meta.request_id(&request.request_id);
        if resume::is_wanted(&self.0, &request) {
            let lifeline = lifeline.unwrap_or_default();
            let reader = resume::open(&self.0, &id, &meta, lifeline, request).await;
            let id = reader.as_ref().map_or(id, |reader| reader.id().clone());
            return answer(&self.0, &id, reader.map(Reader::messages));
        }
        let started = generate::start(&self.0, &id, &meta, request).await;
        let id = started.as_ref().map_or(id, |generation| generation.id().clone());
        answer(
            &self.0,
            &id,
            started.map(|g| messages(self.0.clone(), id.clone(), g)),
        )
    }

    async fn generate_unary(
        &self,
        request: Request<v1::GenerateUnaryRequest>,
    ) -> Result<Response<v1::GenerateUnaryResponse>, Status> {
        let meta = Meta::of(&request);
        let Some(request) = request.into_inner().request else {
            let id = meta.request_id("");
            return answer(&self.0, &id, Err(ApiError::invalid("request", "must be set")));
        };
        let id = meta.request_id(&request.request_id);
        if request.resume_from_token.is_some() {
            let only = "only streams of Generate can be taken up, not unary calls";
            return answer(
                &self.0,
                &id,
                Err(ApiError::invalid("request.resume_from_token", only)),
            );
        }
        let collected = async {
            let generation = generate::start(&self.0, &id, &meta, request).await;
            let max_bytes = self.0.config.grpc.max_encoding_message_bytes;
            generate_unary::collect(generation?, max_bytes).await
        };
        let collected = collected.await.map_err(in_request);
        let id = collected
            .as_ref()
            .map_or(id, |response| RequestId::new(response.request_id.as_str()));
        answer(&self.0, &id, collected)
    }

    async fn embed(&self, request: Request<v1::EmbedRequest>) -> Result<Response<v1::EmbedResponse>, Status> {
        let meta = Meta::of(&request);
        let request = request.into_inner();
        let id = meta.request_id(&request.request_id);
        answer(&self.0, &id, embed::embed(&self.0, &id, &meta, request).await)
    }

    async fn embed_stream(
        &self,
        request: Request<Streaming<v1::EmbedStreamRequest>>,
    ) -> Result<Response<Self::EmbedStreamStream>, Status> {
        let meta = Meta::of(&request);
        let (id, stream) = embed_stream::embed_stream(&self.0, &meta, request.into_inner()).await;
        answer(&self.0, &id, stream)
    }

    async fn tokenize(
        &self,
        request: Request<v1::TokenizeRequest>,
    ) -> Result<Response<v1::TokenizeResponse>, Status> {
        let meta = Meta::of(&request);
        let request = request.into_inner();
        let id = meta.request_id(&request.request_id);
        answer(&self.0, &id, text::tokenize(&self.0, &id, &meta, request).await)
    }

    async fn detokenize(
        &self,
        request: Request<v1::DetokenizeRequest>,
    ) -> Result<Response<v1::DetokenizeResponse>, Status> {
        let meta = Meta::of(&request);
        let request = request.into_inner();
        let id = meta.request_id(&request.request_id);
        answer(&self.0, &id, text::detokenize(&self.0, &id, &meta, request).await)
    }
}

/// A generation as the stream of its messages.
fn messages(
    app: Arc<App>,
    id: RequestId,
    generation: Generation,
) -> BoxStream<'static, Result<v1::GenerateResponse, Status>> {
    stream::unfold((app, id, generation), async |(app, id, mut generation)| {
        let message = match generation.next().await? {
            Ok(event) => Ok(v1::GenerateResponse { event: Some(event) }),
            Err(error) => Err(failure(&app, &id, &error)),
        };
        Some((message, (app, id, generation)))
    })
    .boxed()
}

/// What is wrong with a request that lies in the field `request`.
fn in_request(error: ApiError) -> ApiError {
    match error {
        ApiError::Invalid(mut violations) => {
            for violation in violations.listed_mut() {
                violation.field.insert_str(0, "request.");
            }
            ApiError::Invalid(violations)
        }
        ApiError::Unsupported { field, feature } => ApiError::Unsupported {
            field: format!("request.{field}").into(),
            feature,
        },
        other => other,
    }
}
