//! What every call passes through: it is named, counted, known to be somebody's who may make it, let in while there is
//! room, and its end is seen. In this order.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use baichuan_engine::RequestId;
use bytes::Bytes;
use http::header::AUTHORIZATION;
use http::{HeaderMap, Request, Response};
use http_body::Frame;
use hyper::body::Incoming;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tonic::body::Body;
use tonic::service::Routes;
use tonic::{Code, Status};
use tower::Service;
use tracing::{Instrument, Span};

use super::lifeline::Lifeline;
use super::meta::{failure, is_request_id, new_request_id, timeout};
use super::status::REQUEST_ID;
use super::{Face, arrival};
use crate::app::App;
use crate::error::{ApiError, Exhausted};
use crate::telemetry::call_trace::CallTrace;
use crate::telemetry::metrics::Metrics;
use crate::telemetry::rpc_metrics::StartedRpc;
use crate::tls::Peer;

/// Beginnings of paths under the limit on calls; health, control and reflection answer whatever is going on.
const LIMITED: [&str; 3] = [
    "/baichuan.v1.InferenceService/",
    "/vllm.grpc.engine.VllmEngine/Generate",
    "/vllm.grpc.engine.VllmEngine/Embed",
];

/// The one method whose response asks how it ended.
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
        match self
            .app
            .auth
            .admit(self.face, request.uri().path(), request.headers(), &peer)
        {
            Ok(identity) => {
                // Nothing behind this point has a use for it.
                request.headers_mut().remove(AUTHORIZATION);
                if let Some(identity) = identity {
                    rpc.is_of(identity.tenant.name());
                    request.extensions_mut().insert(identity);
                }
            }
            Err(error) => {
                let status = span.in_scope(|| failure(&self.app, &id, &error));
                return Ok(watch(status.into_http(), rpc, span, None));
            }
        }
        let is_limited = LIMITED
            .iter()
            .any(|beginning| request.uri().path().starts_with(beginning));
        let room = if is_limited {
            match self.room.clone().try_acquire_owned() {
                Ok(room) => Some(room),
                Err(_) => return Ok(watch(self.full(&id).into_http(), rpc, span, None)),
            }
        } else {
            None
        };
        let Ok(mut response) = self.routes.call(request).instrument(span.clone()).await;
        repair(response.headers_mut(), &self.app, &id);
        echo(response.headers_mut(), &id);
        Ok(watch(response, rpc, span, room))
    }

    fn full(&self, id: &RequestId) -> Status {
        let limit = self.app.config.grpc.max_concurrent_calls;
        let error = ApiError::Exhausted {
            reason: Exhausted::Queue,
            message: format!("{limit} calls run already"),
            retry_after: Some(Duration::from_secs(1)),
        };
        failure(&self.app, id, &error)
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

/// Gives the errors of the protocol library, raised before a service sees the call, the codes that gRPC and this
/// server's contract have for them.
fn repair(headers: &mut HeaderMap, app: &App, id: &RequestId) {
    let Some(status) = Status::from_header_map(headers) else {
        return;
    };
    if let Some(error) = transport_error(&status) {
        let mut better = HeaderMap::new();
        if failure(app, id, &error).add_header(&mut better).is_ok() {
            headers.extend(better);
        }
    }
}

/// The server's own error for one that the protocol library raised while it read a message.
pub(super) fn transport_error(status: &Status) -> Option<ApiError> {
    let message = status.message();
    match status.code() {
        Code::Internal if message.starts_with("failed to decode Protobuf message") => {
            Some(ApiError::invalid("", format!("not a valid message: {message}")))
        }
        Code::OutOfRange if message.contains("message length too large") => Some(ApiError::Exhausted {
            reason: Exhausted::MessageSize,
            message: message.to_owned(),
            retry_after: None,
        }),
        _ => None,
    }
}

fn watch(
    response: Response<Body>,
    rpc: StartedRpc,
    span: Span,
    room: Option<OwnedSemaphorePermit>,
) -> Response<Watched> {
    let (parts, body) = response.into_parts();
    let mut watched = Watched {
        body,
        rpc: Some(rpc),
        span,
        _room: room,
    };
    // An error before the first message is told in the headers; there are no trailers then.
    watched.span.in_scope(|| see(&mut watched.rpc, &parts.headers));
    Response::from_parts(parts, watched)
}

/// A response's body, which sees how the call ends.
pub(crate) struct Watched {
    body: Body,
    rpc: Option<StartedRpc>,
    /// What its log lines are written in.
    span: Span,
    _room: Option<OwnedSemaphorePermit>,
}

/// Ends a call whose status is in these headers.
fn see(rpc: &mut Option<StartedRpc>, headers: &HeaderMap) {
    if let Some(status) = Status::from_header_map(headers)
        && let Some(rpc) = rpc.take()
    {
        rpc.end(status.code());
    }
}

impl http_body::Body for Watched {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = &mut *self;
        let _in_call = this.span.enter();
        let frame = Pin::new(&mut this.body).poll_frame(cx);
        if let Poll::Ready(Some(Ok(frame))) = &frame
            && let Some(trailers) = frame.trailers_ref()
        {
            see(&mut this.rpc, trailers);
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> http_body::SizeHint {
        self.body.size_hint()
    }
}
