//! A response's body: goes out in pieces, sees how the call ends, and holds what the call holds until all of it has left.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use baichuan_engine::RequestId;
use bytes::Bytes;
use http::{HeaderMap, Response};
use http_body::Frame;
use tokio::sync::OwnedSemaphorePermit;
use tonic::body::Body;
use tonic::{Code, Status};
use tracing::Span;

use super::meta::failure;
use super::sending::{Outbox, PIECE_BYTES, Piece};
use crate::app::App;
use crate::error::{ApiError, Exhausted};
use crate::identity::tenant::Running;
use crate::telemetry::rpc_metrics::StartedRpc;

/// What a call holds until its response has left.
#[derive(Default)]
pub(super) struct Held {
    /// Its place among all calls.
    pub(super) _room: Option<OwnedSemaphorePermit>,
    /// Its place among its tenant's.
    pub(super) _running: Option<Arc<Running>>,
}

/// A response's body.
pub(crate) struct Watched {
    body: Body,
    /// Of what the body said last, what has not gone out yet.
    rest: Bytes,
    /// The body's end, with its trailers if it has any.
    end: Option<Option<HeaderMap>>,
    outbox: Arc<Outbox>,
    rpc: Option<StartedRpc>,
    /// What its log lines are written in.
    span: Span,
    app: Arc<App>,
    id: RequestId,
    /// Until its end goes out.
    held: Held,
}

/// Watches over a response on its way.
pub(super) fn watch(
    response: Response<Body>,
    app: &Arc<App>,
    id: RequestId,
    rpc: StartedRpc,
    span: Span,
    held: Held,
) -> Response<Watched> {
    let (parts, body) = response.into_parts();
    let mut watched = Watched {
        body,
        rest: Bytes::new(),
        end: None,
        outbox: Outbox::current(),
        rpc: Some(rpc),
        span,
        app: app.clone(),
        id,
        held,
    };
    // An error before the first message is told in the headers; there are no trailers then.
    watched.span.in_scope(|| see(&mut watched.rpc, &parts.headers));
    Response::from_parts(parts, watched)
}

/// Ends a call whose status is in these headers.
fn see(rpc: &mut Option<StartedRpc>, headers: &HeaderMap) {
    if let Some(status) = Status::from_header_map(headers)
        && let Some(rpc) = rpc.take()
    {
        rpc.end(status.code());
    }
}

/// Gives the errors of the protocol library, raised before a service sees the call or when it has answered, the codes
/// that gRPC and this server's contract have for them.
pub(super) fn repair(headers: &mut HeaderMap, app: &App, id: &RequestId) {
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

/// The server's own error for one that the protocol library raised while it read or wrote a message.
pub(super) fn transport_error(status: &Status) -> Option<ApiError> {
    let message = status.message();
    let unreadable = [
        "failed to decode Protobuf message",
        "Error decompressing",
        "Unexpected EOF decoding stream",
        "protocol error: received message with",
    ];
    match status.code() {
        Code::Internal if unreadable.iter().any(|words| message.starts_with(words)) => {
            Some(ApiError::invalid("", format!("not a valid message: {message}")))
        }
        Code::OutOfRange | Code::ResourceExhausted
            if message.contains("message length too large") || message.starts_with("Error decompressing") =>
        {
            Some(ApiError::Exhausted {
                reason: Exhausted::MessageSize,
                message: message.to_owned(),
                retry_after: None,
            })
        }
        _ => None,
    }
}

impl http_body::Body for Watched {
    type Data = Piece;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Piece>, Status>>> {
        let this = &mut *self;
        let _in_call = this.span.enter();
        loop {
            if !this.rest.is_empty() {
                let n = this.rest.len().min(PIECE_BYTES);
                let piece = this.outbox.piece(this.rest.split_to(n));
                return Poll::Ready(Some(Ok(Frame::data(piece))));
            }
            if let Some(trailers) = &mut this.end {
                // What the transport has once a body has ended, it keeps for as long as its reader likes.
                ready!(this.outbox.poll_empty(cx));
                let trailers = trailers.take();
                // Before the last word: who makes the next call when it comes finds room.
                this.body = Body::empty();
                this.held = Held::default();
                if let Some(trailers) = &trailers {
                    see(&mut this.rpc, trailers);
                }
                return Poll::Ready(trailers.map(|trailers| Ok(Frame::trailers(trailers))));
            }
            match ready!(Pin::new(&mut this.body).poll_frame(cx)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => this.rest = data,
                    Err(frame) => {
                        if let Ok(mut trailers) = frame.into_trailers() {
                            repair(&mut trailers, &this.app, &this.id);
                            this.end = Some(Some(trailers));
                        }
                    }
                },
                Some(Err(status)) => return Poll::Ready(Some(Err(status))),
                None => this.end = Some(None),
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.end.is_none() && self.outbox.is_empty() && self.body.is_end_stream()
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        let _in_call = self.span.enter();
        if self.outbox.has_stalled() {
            tracing::debug!(request_id = %self.id, "call reset: its client took nothing for grpc.send_timeout");
            if let Some(rpc) = self.rpc.take() {
                rpc.end(Code::ResourceExhausted);
            }
        } else if let Some(Some(trailers)) = &self.end {
            // It was answered; its caller did not wait for the last word.
            see(&mut self.rpc, trailers);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_of_the_protocol_library_get_codes_that_say_whose_fault_they_are() {
        let of = |code, message: &str| {
            let error = transport_error(&Status::new(code, message))?;
            Some(super::super::status::status(&error, &RequestId::new("r")).code())
        };
        for (code, message, expected) in [
            (
                Code::Internal,
                "failed to decode Protobuf message: invalid wire type",
                Some(Code::InvalidArgument),
            ),
            (
                Code::Internal,
                "Error decompressing: corrupt deflate stream, while sending request",
                Some(Code::InvalidArgument),
            ),
            (
                Code::Internal,
                "Unexpected EOF decoding stream.",
                Some(Code::InvalidArgument),
            ),
            (
                Code::Internal,
                "protocol error: received message with invalid compression flag: 7",
                Some(Code::InvalidArgument),
            ),
            (
                Code::OutOfRange,
                "Error, encoded message length too large: found 2 bytes, the limit is: 1 bytes",
                Some(Code::ResourceExhausted),
            ),
            (
                Code::ResourceExhausted,
                "Error decompressing: size limit, of 1 bytes, exceeded while decompressing message",
                Some(Code::ResourceExhausted),
            ),
            (Code::Internal, "internal error in request r", None),
            (
                Code::OutOfRange,
                "resume_from_token: must be at most 3, the tokens told so far",
                None,
            ),
        ] {
            assert_eq!(of(code, message), expected, "{message}");
        }
    }
}
