//! What every call passes through: it is named, counted, known to be somebody's who may make it, let in while there is
//! room, and its end is seen. In this order.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use baichuan_engine::RequestId;
use http::header::AUTHORIZATION;
use http::{HeaderMap, Request, Response};
use hyper::body::Incoming;
use tokio::sync::Semaphore;
use tonic::body::Body;
use tonic::service::Routes;
use tower::Service;
use tracing::Instrument;

use super::lifeline::Lifeline;
use super::meta::{failure, is_request_id, new_request_id, timeout};
use super::response::{Held, Watched, repair, watch};
use super::status::REQUEST_ID;
use super::{Face, admission, arrival};
use crate::app::App;
use crate::error::{ApiError, Exhausted};
use crate::identity::Identity;
use crate::telemetry::call_trace::CallTrace;
use crate::telemetry::metrics::Metrics;
use crate::telemetry::rpc_metrics::StartedRpc;
use crate::tls::Peer;

/// Beginnings of paths under the limits on calls; health, control and reflection answer whatever is going on.
const LIMITED: [&str; 4] = [
    "/baichuan.v1.InferenceService/",
    "/vllm.grpc.engine.VllmEngine/Generate",
    "/vllm.grpc.engine.VllmEngine/Embed",
    "/vllm.grpc.engine.VllmEngine/GetTokenizer",
];

/// The one method whose response asks how it ended, and whose call is not one of its tenant's until its request is known:
/// it may read on in one that runs.
const GENERATE: &str = "/baichuan.v1.InferenceService/Generate";

/// The way of every call to the services and back.
#[derive(Clone)]
pub(crate) struct Pipeline {
    app: Arc<App>,
    face: Face,
    routes: Routes,
    room: Arc<Semaphore>,
}

impl Pipeline {
    pub(crate) fn new(app: Arc<App>, face: Face, routes: Routes) -> Self {
        let room = app.config.grpc.max_concurrent_calls.min(Semaphore::MAX_PERMITS);
        Self {
            app,
            face,
            routes,
            room: Arc::new(Semaphore::new(room)),
        }
    }

    /// What the server counts.
    pub(crate) fn metrics(&self) -> &Metrics {
        &self.app.metrics
    }

    /// Carries one call of `peer`.
    pub(crate) async fn call(
        mut self,
        request: Request<Incoming>,
        peer: Arc<Peer>,
    ) -> Result<Response<Watched>, Infallible> {
        let mut request = match request.uri().path() {
            GENERATE => {
                let (parts, body) = request.into_parts();
                let (body, lifeline) = Lifeline::of(body);
                let mut request = Request::from_parts(parts, body);
                request.extensions_mut().insert(lifeline);
                request
            }
            _ => request.map(Body::new),
        };
        let id = name(request.headers_mut());
        let time = self.app.config.grpc.request_timeout;
        let time = timeout(request.headers()).map_or(time, |asked| asked.min(time));
        let path = request.uri().path().to_owned();
        let mut request = request.map(|body| arrival::in_time(body, &path, time, &self.app, &id));
        let mut rpc = self.app.metrics.rpc.start(request.uri().path(), |method| {
            CallTrace::begin(&self.app.otlp, method, request.headers())
        });
        let span = rpc.trace().log_span();
        request.extensions_mut().insert(rpc.trace().clone());
        let held = match self
            .admit(&mut request, &peer, &mut rpc)
            .and_then(|()| self.hold(&mut request))
        {
            Ok(held) => held,
            Err(error) => {
                let status = span.in_scope(|| failure(&self.app, &id, &error));
                let nothing = Held::default();
                return Ok(watch(status.into_http(), &self.app, id, rpc, span, nothing));
            }
        };
        let Ok(mut response) = self.routes.call(request).instrument(span.clone()).await;
        repair(response.headers_mut(), &self.app, &id);
        echo(response.headers_mut(), &id);
        Ok(watch(response, &self.app, id, rpc, span, held))
    }

    /// Finds out who calls, where this face wants to know.
    fn admit(&self, request: &mut Request<Body>, peer: &Peer, rpc: &mut StartedRpc) -> Result<(), ApiError> {
        let auth = &self.app.auth;
        let identity = auth.admit(self.face, request.uri().path(), request.headers(), peer)?;
        // Nothing behind this point has a use for it.
        request.headers_mut().remove(AUTHORIZATION);
        if let Some(identity) = identity {
            rpc.is_of(identity.tenant.name());
            request.extensions_mut().insert(identity);
        }
        Ok(())
    }

    /// Gives a call its places among those that may run at once, where its method is under limits.
    fn hold(&self, request: &mut Request<Body>) -> Result<Held, ApiError> {
        let path = request.uri().path();
        if !LIMITED.iter().any(|beginning| path.starts_with(beginning)) {
            return Ok(Held::default());
        }
        let is_counted_later = path == GENERATE;
        let room = self
            .room
            .clone()
            .try_acquire_owned()
            .map_err(|_| ApiError::Exhausted {
                reason: Exhausted::Queue,
                message: format!("{} calls run already", self.app.config.grpc.max_concurrent_calls),
                retry_after: Some(Duration::from_secs(1)),
            })?;
        let running = match request.extensions().get::<Identity>() {
            Some(identity) if !is_counted_later => Some(admission::begin(&self.app, &identity.tenant)?),
            _ => None,
        };
        if let Some(running) = &running {
            request.extensions_mut().insert(running.clone());
        }
        Ok(Held {
            _room: Some(room),
            _running: running,
        })
    }
}

/// Gives a call without a good name a new one.
fn name(headers: &mut HeaderMap) -> RequestId {
    let given = headers.get(REQUEST_ID).and_then(|v| v.to_str().ok());
    if let Some(id) = given.filter(|id| is_request_id(id)) {
        return RequestId::new(id);
    }
    let id = new_request_id();
    if let Ok(value) = id.as_str().parse() {
        headers.insert(REQUEST_ID, value);
    }
    id
}

/// Names the call in its response where the service did not.
fn echo(headers: &mut HeaderMap, id: &RequestId) {
    if !headers.contains_key(REQUEST_ID)
        && let Ok(value) = id.as_str().parse()
    {
        headers.insert(REQUEST_ID, value);
    }
}
