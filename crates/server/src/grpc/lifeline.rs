//! Tells a caller who ended a call from one whose connection broke.
//!
//! Either way the response is dropped. But the body of the request, which has been read to its end long before, still
//! knows: a reset of the stream (RST_STREAM) leaves that end as it was, the loss of the connection makes an error of it.

use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use http_body::{Body as _, Frame, SizeHint};
use hyper::body::Incoming;
use tonic::body::Body;

/// What a call's response asks when it is dropped.
#[derive(Clone, Debug, Default)]
pub(super) struct Lifeline(Arc<Mutex<Option<Incoming>>>);

impl Lifeline {
    /// A request's body for whoever reads it, and what later tells how the call ended.
    pub(super) fn of(body: Incoming) -> (Body, Self) {
        let lifeline = Self::default();
        let read = Read {
            body: Some(body),
            home: lifeline.clone(),
        };
        (Body::new(read), lifeline)
    }

    /// Whether the call's connection is gone, and nobody ended the call before that. Only after the request was read.
    pub(super) fn is_cut(&self) -> bool {
        let mut slot = self.slot();
        let Some(body) = slot.as_mut() else { return false };
        let mut context = Context::from_waker(Waker::noop());
        loop {
            match Pin::new(&mut *body).poll_frame(&mut context) {
                Poll::Ready(Some(Ok(_))) => {}
                Poll::Ready(Some(Err(_))) => return true,
                Poll::Ready(None) | Poll::Pending => return false,
            }
        }
    }

    fn slot(&self) -> MutexGuard<'_, Option<Incoming>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A body that, once read, goes back to its lifeline.
struct Read {
    /// Absent only while it is being dropped.
    body: Option<Incoming>,
    home: Lifeline,
}

impl http_body::Body for Read {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        match &mut self.body {
            Some(body) => Pin::new(body).poll_frame(cx),
            None => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(Incoming::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body
            .as_ref()
            .map_or_else(SizeHint::default, Incoming::size_hint)
    }
}

impl Drop for Read {
    fn drop(&mut self) {
        *self.home.slot() = self.body.take();
    }
}
