//! The admin listener: `/metrics`, `/livez`, `/readyz` over HTTP/1.

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::app::App;
use crate::telemetry::exposition::Format;

/// Serves until stopped.
pub(crate) async fn serve(listener: TcpListener, app: Arc<App>, stop: CancellationToken) {
    let router = Router::new()
        .route("/livez", get(livez))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .with_state(app);
    tokio::select! {
        served = axum::serve(listener, router).into_future() => {
            if let Err(error) = served {
                tracing::error!(%error, "the admin listener failed");
            }
        }
        () = stop.cancelled() => {}
    }
}

async fn livez(State(app): State<Arc<App>>) -> impl IntoResponse {
    match app.health.state().live {
        true => (StatusCode::OK, "live\n"),
        false => (StatusCode::SERVICE_UNAVAILABLE, "an engine has stopped\n"),
    }
}

async fn readyz(State(app): State<Arc<App>>) -> impl IntoResponse {
    match app.health.state().ready {
        true => (StatusCode::OK, "ready\n"),
        false => (StatusCode::SERVICE_UNAVAILABLE, "not ready\n"),
    }
}

async fn metrics(State(app): State<Arc<App>>, headers: HeaderMap) -> impl IntoResponse {
    let accept = headers.get(header::ACCEPT).and_then(|v| v.to_str().ok());
    let format = Format::accepted(accept);
    let content_type = [(header::CONTENT_TYPE, format.content_type())];
    match app.metrics.encode(format) {
        Ok(text) => (StatusCode::OK, content_type, text),
        Err(error) => {
            tracing::error!(%error, "metrics cannot be written");
            (StatusCode::INTERNAL_SERVER_ERROR, content_type, String::new())
        }
    }
}
