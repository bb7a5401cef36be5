//! `AdminService`: for the operator, served only when enabled.

use std::sync::Arc;

use baichuan_proto::v1;
use baichuan_proto::v1::admin_service_server::AdminService;
use tonic::{Request, Response, Status};

use super::convert::clamp;
use super::meta::{Meta, answer};
use super::models::describe;
use crate::app::App;
use crate::error::ApiError;

/// The service.
pub(super) struct Admin(pub(super) Arc<App>);

#[async_trait::async_trait]
impl AdminService for Admin {
    async fn drain(&self, request: Request<v1::DrainRequest>) -> Result<Response<v1::DrainResponse>, Status> {
        let app = &self.0;
        let id = Meta::of(&request).request_id("");
        tracing::info!(request_id = %id, "asked to drain");
        app.drain().await;
        if request.get_ref().wait.unwrap_or(false) {
            app.calls.idle().await;
        }
        let running = clamp(app.calls.n_running());
        answer(app, &id, Ok(v1::DrainResponse { running }))
    }

    async fn load_model(
        &self,
        request: Request<v1::LoadModelRequest>,
    ) -> Result<Response<v1::LoadModelResponse>, Status> {
        let app = &self.0;
        let id = Meta::of(&request).request_id("");
        let loaded = async {
            let config = app.config.model_entry(&request.get_ref().config)?;
            crate::models::load(app, config).await
        };
        let response = loaded.await.map(|model| v1::LoadModelResponse {
            model: Some(describe(app, &model)),
        });
        answer(app, &id, response)
    }

    async fn unload_model(
        &self,
        request: Request<v1::UnloadModelRequest>,
    ) -> Result<Response<v1::UnloadModelResponse>, Status> {
        let id = Meta::of(&request).request_id("");
        let unloaded = crate::models::unload(&self.0, &request.get_ref().model).await;
        answer(&self.0, &id, unloaded.map(|()| v1::UnloadModelResponse {}))
    }

    async fn set_log_filter(
        &self,
        request: Request<v1::SetLogFilterRequest>,
    ) -> Result<Response<v1::SetLogFilterResponse>, Status> {
        let id = Meta::of(&request).request_id("");
        let filter = request.into_inner().filter;
        let set = match &self.0.log_filter {
            Some(log) => log.set(&filter).map_err(|e| ApiError::invalid("filter", e)),
            None => Err(ApiError::Unsupported {
                field: "filter".into(),
                feature: "changing the log filter".into(),
            }),
        };
        if set.is_ok() {
            tracing::info!(request_id = %id, filter, "log filter changed");
        }
        let response = set.map(|previous| v1::SetLogFilterResponse { previous });
        answer(&self.0, &id, response)
    }
}
