//! One call's view of a stream: from the message it wants on, until the end or until another call takes over.

use std::sync::Arc;

use baichuan_engine::RequestId;
use baichuan_proto::v1;
use futures::stream::{self, BoxStream, StreamExt};
use tokio::sync::watch;
use tokio_util::task::task_tracker::TaskTrackerToken;
use tonic::Status;

use super::stream::{Found, Stream};
use crate::app::App;
use crate::grpc::lifeline::Lifeline;
use crate::grpc::meta::failure;
use crate::grpc::status;

/// Reads a stream. Dropping it before the end cancels the request, unless its connection broke.
pub(in crate::grpc) struct Reader {
    app: Arc<App>,
    id: RequestId,
    stream: Arc<Stream>,
    number: u64,
    /// Number of the message that comes next.
    next: u64,
    news: watch::Receiver<()>,
    lifeline: Lifeline,
    /// A draining server waits for it.
    _running: TaskTrackerToken,
    is_done: bool,
}

impl Reader {
    /// The reader numbered `number`, who begins with message `next`.
    pub(super) fn new(
        app: &Arc<App>,
        id: &RequestId,
        stream: Arc<Stream>,
        (number, next): (u64, u64),
        lifeline: Lifeline,
    ) -> Self {
        Self {
            app: app.clone(),
            id: id.clone(),
            number,
            next,
            news: stream.news(),
            stream,
            lifeline,
            _running: app.calls.hold(),
            is_done: false,
        }
    }

    /// Its stream's name.
    pub(in crate::grpc) fn id(&self) -> &RequestId {
        &self.id
    }

    /// Its messages, as a method answers them.
    pub(in crate::grpc) fn messages(self) -> BoxStream<'static, Result<v1::GenerateResponse, Status>> {
        stream::unfold(self, async |mut reader| {
            let message = reader.message().await?;
            Some((message, reader))
        })
        .boxed()
    }

    async fn message(&mut self) -> Option<Result<v1::GenerateResponse, Status>> {
        while !self.is_done {
            self.news.borrow_and_update();
            match self.stream.read(self.number, self.next) {
                Found::Message(message) => {
                    self.next += 1;
                    return Some(Ok(message));
                }
                Found::Nothing => {
                    // The sender lives as long as the stream, of which this has a part.
                    let _ = self.news.changed().await;
                }
                Found::End(error) => {
                    self.is_done = true;
                    // Whoever wrote it has counted it.
                    return error.map(|error| Err(status::status(&error, &self.id)));
                }
                Found::Failed(error) => {
                    self.is_done = true;
                    return Some(Err(failure(&self.app, &self.id, &error)));
                }
            }
        }
        None
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        let is_cut = !self.is_done && self.lifeline.is_cut();
        if is_cut {
            tracing::debug!(request_id = %self.id, "connection lost: the stream waits to be taken up");
            self.app.metrics.streams.lost.inc();
        }
        self.stream.left(self.number, self.is_done || is_cut);
    }
}
