//! The gRPC face: services, transport, and what every call passes through.
//!
//! [`serve`] takes connections, [`pipeline`] what each call meets before and behind its service, [`status`] turns errors
//! into statuses, [`convert`] is where the wire's types end. The rest is one file per group of methods.

use std::sync::Arc;

use baichuan_proto::v1::admin_service_server::AdminServiceServer;
use baichuan_proto::v1::control_service_server::ControlServiceServer;
use baichuan_proto::v1::inference_service_server::InferenceServiceServer;
use baichuan_proto::v1::model_service_server::ModelServiceServer;
use baichuan_proto::vllm::grpc::engine::vllm_engine_server::VllmEngineServer;
use baichuan_proto::{FILE_DESCRIPTOR_SET, ROUTERS_FILE_DESCRIPTOR_SET};
use tonic::codec::CompressionEncoding::Gzip;
use tonic::service::Routes;

use crate::app::App;
use crate::config::Service;
use crate::identity::tenant::Group;

mod admin;
mod admission;
mod arrival;
mod control;
mod convert;
mod embed;
mod embed_stream;
mod generate;
mod generate_unary;
mod inference;
mod lifeline;
mod meta;
mod models;
pub(crate) mod pipeline;
mod response;
pub(crate) mod resume;
mod sending;
pub(crate) mod serve;
pub(crate) mod status;
mod text;
mod vllm;

pub(crate) use meta::is_request_id;

/// What is served where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Face {
    /// To applications, routers and whoever watches.
    Public,
    /// To the operator, on an address of its own.
    Admin,
}

impl Face {
    /// Whether it has the methods of a group.
    pub(crate) fn serves(self, group: Group) -> bool {
        match group {
            Group::Health | Group::Reflection => true,
            Group::Service(Service::AdminService) => self == Self::Admin,
            Group::Service(_) => self == Self::Public,
        }
    }
}

/// The services of a face, each with its limits. Compressed requests are accepted; responses are compressed for callers that
/// accept it.
pub(crate) fn routes(app: &Arc<App>, face: Face) -> Result<Routes, tonic_reflection::server::Error> {
    let (decode, encode) = (
        app.config.grpc.max_decoding_message_bytes,
        app.config.grpc.max_encoding_message_bytes,
    );
    macro_rules! limited {
        ($server:expr) => {
            $server
                .max_decoding_message_size(decode)
                .max_encoding_message_size(encode)
                .accept_compressed(Gzip)
                .send_compressed(Gzip)
        };
    }
    let mut routes = Routes::builder();
    routes.add_service(limited!(app.health.service()));
    let facade = face == Face::Public && app.config.grpc.vllm_facade;
    match face {
        Face::Public => routes
            .add_service(limited!(InferenceServiceServer::new(inference::Inference(
                app.clone()
            ))))
            .add_service(limited!(ModelServiceServer::new(models::ModelList(app.clone()))))
            .add_service(limited!(ControlServiceServer::new(control::Control(app.clone())))),
        Face::Admin => routes.add_service(limited!(AdminServiceServer::new(admin::Admin(app.clone())))),
    };
    if facade {
        // Never compressed, whatever a caller accepts: llm-d reads the messages on their way and knows plain ones only.
        let service = VllmEngineServer::new(vllm::Facade::new(app.clone()))
            .max_decoding_message_size(decode)
            .max_encoding_message_size(encode)
            .accept_compressed(Gzip);
        routes.add_service(service);
    }
    if app.config.grpc.reflection {
        let reflection = || {
            let builder = tonic_reflection::server::Builder::configure()
                .register_encoded_file_descriptor_set(FILE_DESCRIPTOR_SET)
                .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET);
            match facade {
                true => builder.register_encoded_file_descriptor_set(ROUTERS_FILE_DESCRIPTOR_SET),
                false => builder,
            }
        };
        routes
            .add_service(limited!(reflection().build_v1()?))
            .add_service(limited!(reflection().build_v1alpha()?));
    }
    Ok(routes.routes().prepare())
}
