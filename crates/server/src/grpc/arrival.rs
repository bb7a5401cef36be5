//! How long a request may take to arrive.
//!
//! A call whose message comes byte by byte, or never, holds a place among the calls that may run at once. So a call of one
//! message has a time for that to be there. Of a stream of messages the first has the same time, where it is read.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use baichuan_engine::RequestId;
use bytes::Bytes;
use http_body::{Body as _, Frame, SizeHint};
use tokio::time::{Sleep, sleep};
use tonic::Status;
use tonic::body::Body;

use super::meta::failure;
use crate::app::App;
use crate::error::ApiError;

/// Methods whose callers say more than one message.
const STREAMS: [&str; 2] = ["/EmbedStream", "/ServerReflectionInfo"];

/// The body of a call to `path`, to be there within `time` where it is one message.
pub(super) fn in_time(body: Body, path: &str, time: Duration, app: &Arc<App>, id: &RequestId) -> Body {
    if body.is_end_stream() || STREAMS.iter().any(|method| path.ends_with(method)) {
        return body;
    }
    Body::new(InTime {
        body,
        time,
        late: Box::pin(sleep(time)),
        app: app.clone(),
        id: id.clone(),
    })
}

struct InTime {
    body: Body,
    time: Duration,
    late: Pin<Box<Sleep>>,
    app: Arc<App>,
    id: RequestId,
}

impl http_body::Body for InTime {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = &mut *self;
        if let Poll::Ready(frame) = Pin::new(&mut this.body).poll_frame(cx) {
            return Poll::Ready(frame);
        }
        std::task::ready!(this.late.as_mut().poll(cx));
        let error = ApiError::NotArrived { time: this.time };
        Poll::Ready(Some(Err(failure(&this.app, &this.id, &error))))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
