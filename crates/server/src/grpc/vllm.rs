//! `vllm.grpc.engine.VllmEngine`: the default model for the routers of the field, served only when enabled.
//!
//! A facade: each request becomes one of `baichuan.v1` and takes its way, so limits, deadlines, identity, metrics and
//! the gate that closes on draining are the same ones. What this server lacks is refused by the field's name.

use std::sync::Arc;

use baichuan_engine::{Backend, RequestId};
use baichuan_proto::smg::grpc::common;
use baichuan_proto::vllm::grpc::engine as pb;
use baichuan_proto::vllm::grpc::engine::vllm_engine_server::VllmEngine;
use futures::stream::{self, BoxStream, StreamExt};
use tokio::sync::OnceCell;
use tonic::{Request, Response, Status};

use super::convert::vllm::{describe, reply::Reply, request};
use super::generate::Generation;
use super::meta::{Meta, answer, failure};
use super::{admission, embed, generate};
use crate::app::App;
use crate::build_info;
use crate::error::ApiError;
use crate::identity::tenant::Tenant;

mod archive;

/// The service.
pub(super) struct Facade(Arc<App>, Archive);

/// The tokenizer's files, packed when first asked for.
type Archive = OnceCell<Vec<common::GetTokenizerChunk>>;

type Messages<T> = BoxStream<'static, Result<T, Status>>;

impl Facade {
    pub(super) fn new(app: Arc<App>) -> Self {
        Self(app, Archive::new())
    }

    fn backend(&self) -> Result<Arc<dyn Backend>, ApiError> {
        self.0.models.backend("")
    }

    async fn generation(
        &self,
        id: &RequestId,
        meta: &Meta,
        request: pb::GenerateRequest,
    ) -> Result<(RequestId, Messages<pb::GenerateResponse>), ApiError> {
        // One place of the context is for the first token generated.
        let max_prompt = self.backend()?.info().max_context.saturating_sub(1);
        let (request, reply) = request::generate(request, max_prompt)?;
        let generation = generate::start(&self.0, id, meta, request).await;
        let generation = generation.map_err(request::renamed)?;
        let id = generation.id().clone();
        Ok((id.clone(), messages(self.0.clone(), id, generation, reply)))
    }

    fn health(&self) -> Result<pb::HealthCheckResponse, ApiError> {
        // Not there yet is another thing than not well: routers take a worker up at its first answer.
        self.backend()?;
        let app = &self.0;
        let healthy = app.health.state().ready;
        let message = match healthy {
            true => "ready",
            false if app.models.any_dead() => "an engine has stopped",
            false => "not ready: loading or draining",
        };
        Ok(pb::HealthCheckResponse {
            healthy,
            message: message.to_owned(),
        })
    }

    fn checkpoint(&self) -> Result<&std::path::Path, ApiError> {
        let name = self.0.models.default_name();
        let config = self.0.config.models.iter().find(|m| m.name == name);
        config
            .map(|m| m.path.as_path())
            .ok_or_else(|| ApiError::Internal {
                cause: format!("the default model {name:?} is not configured"),
            })
    }

    async fn model_info(&self, meta: &Meta) -> Result<pb::GetModelInfoResponse, ApiError> {
        meta.model(&self.0, "")?;
        let (backend, dir) = (self.backend()?, self.checkpoint()?);
        // Absent where the checkpoint is one file.
        let config = tokio::fs::read(dir.join("config.json")).await.unwrap_or_default();
        Ok(describe::model(backend.info(), dir, &config))
    }

    /// What the default model's entry says of the type of keys and values, in the interface's own words.
    fn kv_cache_dtype(&self) -> String {
        let name = self.0.models.default_name();
        let config = self.0.config.models.iter().find(|m| m.name == name);
        let said = config.and_then(|m| m.cache_dtype);
        said.map_or("auto", |dtype| dtype.name()).to_owned()
    }

    fn server_info(&self) -> Result<pb::GetServerInfoResponse, ApiError> {
        let app = &self.0;
        let backend = self.backend()?;
        let stats = backend.stats();
        let stats = stats.borrow();
        Ok(pb::GetServerInfoResponse {
            active_requests: super::convert::clamp(app.calls.n_running()),
            is_paused: app.calls.is_draining(),
            uptime_seconds: app.started.elapsed().as_secs_f64(),
            kv_cache_dtype: self.kv_cache_dtype(),
            ..describe::server(backend.info(), &stats)
        })
    }

    fn loads(&self, request: &pb::GetLoadsRequest) -> Result<pb::GetLoadsResponse, ApiError> {
        request::check_rank("dp_rank", request.dp_rank)?;
        let load = describe::load(&self.backend()?.stats().borrow());
        Ok(pb::GetLoadsResponse {
            timestamp: humantime::format_rfc3339(std::time::SystemTime::now()).to_string(),
            version: build_info::VERSION.to_owned(),
            dp_rank_count: 1,
            loads: vec![load],
        })
    }

    async fn tokenizer(&self, meta: &Meta) -> Result<Messages<common::GetTokenizerChunk>, ApiError> {
        meta.model(&self.0, "")?;
        let tenant = &meta.identity()?.tenant;
        let charge = admission::charge(&self.0, tenant, 1, 0)?;
        let pieces = self.1.get_or_try_init(|| self.packed(tenant)).await;
        charge.settle(&pieces, (0, 0));
        let pieces = pieces?.clone();
        Ok(stream::iter(pieces).map(Ok).boxed())
    }

    async fn packed(&self, tenant: &Tenant) -> Result<Vec<common::GetTokenizerChunk>, ApiError> {
        let dir = self.checkpoint()?.to_owned();
        let template = self.backend()?.info().chat_template.clone();
        let packing = self
            .0
            .text
            .run(tenant.account(), move || archive::pack(&dir, template.as_ref()));
        packing.await?.map_err(|error| ApiError::Internal {
            cause: format!("the tokenizer's files cannot be packed: {error}"),
        })
    }
}

#[async_trait::async_trait]
impl VllmEngine for Facade {
    type GenerateStream = Messages<pb::GenerateResponse>;
    type GetTokenizerStream = Messages<common::GetTokenizerChunk>;
    type SubscribeKvEventsStream = Messages<common::KvEventBatch>;

    async fn generate(
        &self,
        request: Request<pb::GenerateRequest>,
    ) -> Result<Response<Self::GenerateStream>, Status> {
        let meta = Meta::of(&request);
        let request = request.into_inner();
        let id = meta.request_id(&request.request_id);
        match self.generation(&id, &meta, request).await {
            Ok((id, messages)) => answer(&self.0, &id, Ok(messages)),
            Err(error) => answer(&self.0, &id, Err(error)),
        }
    }

    async fn embed(&self, request: Request<pb::EmbedRequest>) -> Result<Response<pb::EmbedResponse>, Status> {
        let meta = Meta::of(&request);
        let request = request.into_inner();
        let id = meta.request_id(&request.request_id);
        let embedded = async {
            let response = embed::embed(&self.0, &id, &meta, request::embed(request)?).await;
            describe::embedding(response.map_err(request::renamed)?)
        };
        answer(&self.0, &id, embedded.await)
    }

    async fn health_check(
        &self,
        request: Request<pb::HealthCheckRequest>,
    ) -> Result<Response<pb::HealthCheckResponse>, Status> {
        let id = Meta::of(&request).request_id("");
        answer(&self.0, &id, self.health())
    }

    async fn flush_cache(
        &self,
        request: Request<common::FlushCacheRequest>,
    ) -> Result<Response<common::FlushCacheResponse>, Status> {
        let id = Meta::of(&request).request_id("");
        let response = common::FlushCacheResponse {
            success: true,
            message: "nothing is cached beyond a request's end".to_owned(),
        };
        answer(&self.0, &id, Ok(response))
    }

    async fn abort(&self, request: Request<pb::AbortRequest>) -> Result<Response<pb::AbortResponse>, Status> {
        let meta = Meta::of(&request);
        let id = meta.request_id("");
        let caller = match meta.identity() {
            Ok(caller) => caller,
            Err(error) => return answer(&self.0, &id, Err(error)),
        };
        for named in &request.get_ref().request_ids {
            // A router aborts what it no longer reads, whether or not it has ended.
            let _ = self.0.calls.abort(Some(&caller.owner), named);
        }
        answer(&self.0, &id, Ok(pb::AbortResponse {}))
    }

    async fn get_model_info(
        &self,
        request: Request<pb::GetModelInfoRequest>,
    ) -> Result<Response<pb::GetModelInfoResponse>, Status> {
        let meta = Meta::of(&request);
        let info = self.model_info(&meta).await;
        answer(&self.0, &meta.request_id(""), info)
    }

    async fn get_server_info(
        &self,
        request: Request<pb::GetServerInfoRequest>,
    ) -> Result<Response<pb::GetServerInfoResponse>, Status> {
        let meta = Meta::of(&request);
        let info = meta.model(&self.0, "").and_then(|_| self.server_info());
        answer(&self.0, &meta.request_id(""), info)
    }

    async fn get_loads(
        &self,
        request: Request<pb::GetLoadsRequest>,
    ) -> Result<Response<pb::GetLoadsResponse>, Status> {
        let meta = Meta::of(&request);
        let loads = meta
            .model(&self.0, "")
            .and_then(|_| self.loads(request.get_ref()));
        answer(&self.0, &meta.request_id(""), loads)
    }

    async fn get_tokenizer(
        &self,
        request: Request<common::GetTokenizerRequest>,
    ) -> Result<Response<Self::GetTokenizerStream>, Status> {
        let meta = Meta::of(&request);
        let id = meta.request_id("");
        answer(&self.0, &id, self.tokenizer(&meta).await)
    }

    async fn subscribe_kv_events(
        &self,
        request: Request<common::SubscribeKvEventsRequest>,
    ) -> Result<Response<Self::SubscribeKvEventsStream>, Status> {
        let id = Meta::of(&request).request_id("");
        let lacking = ApiError::Unsupported {
            field: "SubscribeKvEvents".into(),
            feature: "a prefix cache".into(),
        };
        answer(&self.0, &id, Err(lacking))
    }
}

/// A generation as the stream of its messages.
fn messages(
    app: Arc<App>,
    id: RequestId,
    generation: Generation,
    reply: Reply,
) -> Messages<pb::GenerateResponse> {
    stream::unfold(
        (app, id, generation, reply),
        async |(app, id, mut generation, mut reply)| {
            loop {
                let max_bytes = app.config.grpc.max_encoding_message_bytes;
                let message = match generation.next().await? {
                    Ok(event) => match reply.take(event) {
                        Some(message) => Ok(message),
                        None if reply.n_bytes() > max_bytes => {
                            let error = generation.end_with(ApiError::answer_too_large(max_bytes));
                            Err(failure(&app, &id, &error))
                        }
                        None => continue,
                    },
                    Err(error) => Err(failure(&app, &id, &request::renamed(error))),
                };
                return Some((message, (app, id, generation, reply)));
            }
        },
    )
    .boxed()
}
