//! The server of baichuan-serve: configuration, composition, gRPC services, limits, telemetry, health, shutdown.
//!
//! It knows models as [`baichuan_engine::Backend`]s and never a tensor. [`Server`] (or plain [`run`]) takes a
//! [`config::Config`], a [`baichuan_engine::Registry`] of plugins, sockets that listen already and a
//! [`shutdown::Shutdown`]; the binary `baichuan-server` is a command line around it.
//!
//! In reading order: [`config`]; `server`, the life from start to end; `app`, what is shared; `identity`, who calls and
//! what they may use; `grpc`, the services;
//! `calls`, how anything that runs is stopped; [`telemetry`].

mod admin_http;
mod app;
mod build_info;
mod calls;
pub mod config;
mod error;
mod grpc;
mod health;
mod identity;
mod models;
mod reload;
mod server;
pub mod shutdown;
mod systemd;
pub mod telemetry;
mod text_pool;
mod tls;

pub use health::READINESS_SERVICE;
pub use identity::{fresh_token, token_entry};
pub use models::LoadObserver;
pub use server::{Listeners, ServeError, Server, check_files, run};
