//! `ModelService`: what is served.

use std::sync::Arc;

use baichuan_proto::v1;
use baichuan_proto::v1::model_service_server::ModelService;
use tonic::{Request, Response, Status};

use super::convert::model;
use super::meta::{Meta, answer};
use crate::app::App;
use crate::models::Model;

/// The service.
pub(super) struct ModelList(pub(super) Arc<App>);

impl ModelList {
    fn describe(&self, served: &Model) -> v1::Model {
        describe(&self.0, served)
    }
}

/// A model as clients see it.
pub(super) fn describe(app: &App, served: &Model) -> v1::Model {
    let is_default = served.name() == app.models.default_name();
    let backend = served.backend();
    let info = backend.as_ref().map(|b| b.info());
    model::model(served.name(), is_default, served.state(&app.calls), info)
}

#[async_trait::async_trait]
impl ModelService for ModelList {
    async fn list_models(
        &self,
        request: Request<v1::ListModelsRequest>,
    ) -> Result<Response<v1::ListModelsResponse>, Status> {
        let meta = Meta::of(&request);
        let models = meta.identity().map(|caller| {
            let seen = self.0.models.iter().filter(|m| caller.tenant.may_use(m.name()));
            v1::ListModelsResponse {
                models: seen.map(|m| self.describe(&m)).collect(),
            }
        });
        answer(&self.0, &meta.request_id(""), models)
    }

    async fn get_model(
        &self,
        request: Request<v1::GetModelRequest>,
    ) -> Result<Response<v1::GetModelResponse>, Status> {
        let meta = Meta::of(&request);
        let found = meta.model(&self.0, &request.get_ref().model);
        let response = found.map(|m| v1::GetModelResponse {
            model: Some(self.describe(&m)),
        });
        answer(&self.0, &meta.request_id(""), response)
    }
}
