//! `ControlService`: what runs here, how loaded it is, and the end of a single request.

use std::sync::Arc;

use baichuan_engine::Violations;
use baichuan_proto::v1;
use baichuan_proto::v1::control_service_server::ControlService;
use tonic::{Request, Response, Status};

use super::convert::model;
use super::meta::{Meta, answer, check_request_id};
use crate::app::App;
use crate::build_info;
use crate::error::ApiError;

/// The service.
pub(super) struct Control(pub(super) Arc<App>);

impl Control {
    fn load(&self, meta: &Meta, model: &str) -> Result<v1::GetLoadResponse, ApiError> {
        let (models, tenant) = (&self.0.models, &meta.identity()?.tenant);
        let asked: Vec<_> = match model {
            "" => models.iter().filter(|m| tenant.may_use(m.name())).collect(),
            name => vec![meta.model(&self.0, name)?],
        };
        let loads = asked.into_iter().filter_map(|m| {
            let stats = m.backend()?.stats();
            let load = model::load(m.name(), &stats.borrow());
            Some(load)
        });
        Ok(v1::GetLoadResponse {
            models: loads.collect(),
        })
    }
}

#[async_trait::async_trait]
impl ControlService for Control {
    async fn get_server_info(
        &self,
        request: Request<v1::GetServerInfoRequest>,
    ) -> Result<Response<v1::GetServerInfoResponse>, Status> {
        let app = &self.0;
        let meta = Meta::of(&request);
        let id = meta.request_id("");
        let may_use = |name: &str| meta.identity().is_ok_and(|i| i.tenant.may_use(name));
        let info = v1::GetServerInfoResponse {
            version: build_info::VERSION.to_owned(),
            git_commit: build_info::GIT_COMMIT.to_owned(),
            started_at: Some(app.started_at.into()),
            uptime_seconds: app.started.elapsed().as_secs_f64(),
            ready: app.health.state().ready,
            draining: app.calls.is_draining(),
            default_model: Some(app.models.default_name())
                .filter(|name| may_use(name))
                .unwrap_or_default()
                .to_owned(),
            models: app
                .models
                .iter()
                .map(|m| m.name().to_owned())
                .filter(|name| may_use(name))
                .collect(),
            features: build_info::features(),
            cpu: build_info::cpu(),
            max_decoding_message_bytes: app.config.grpc.max_decoding_message_bytes as u64,
            max_encoding_message_bytes: app.config.grpc.max_encoding_message_bytes as u64,
        };
        answer(app, &id, Ok(info))
    }

    async fn get_load(
        &self,
        request: Request<v1::GetLoadRequest>,
    ) -> Result<Response<v1::GetLoadResponse>, Status> {
        let meta = Meta::of(&request);
        let load = self.load(&meta, &request.get_ref().model);
        answer(&self.0, &meta.request_id(""), load)
    }

    async fn abort(&self, request: Request<v1::AbortRequest>) -> Result<Response<v1::AbortResponse>, Status> {
        let meta = Meta::of(&request);
        let id = meta.request_id("");
        let request_id = request.into_inner().request_id;
        let mut violations = Violations::default();
        violations.that(!request_id.is_empty(), "request_id", || {
            "must not be empty".into()
        });
        check_request_id("request_id", &request_id, &mut violations);
        let aborted = violations.or(()).map_err(ApiError::Invalid).and_then(|()| {
            let caller = meta.identity()?;
            let owner = (!caller.tenant.is_operator()).then_some(&*caller.owner);
            self.0.calls.abort(owner, &request_id)
        });
        answer(&self.0, &id, aborted.map(|()| v1::AbortResponse { request_id }))
    }
}
