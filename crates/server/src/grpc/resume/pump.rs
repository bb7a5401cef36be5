//! Carries a generation's messages onto its stream, while there is somebody to read them or may be again.

use std::sync::Arc;
use std::time::Duration;

use baichuan_engine::RequestId;
use tokio_util::sync::CancellationToken;
use tokio_util::task::task_tracker::TaskTrackerToken;

use super::stream::{Orders, Stream};
use super::tape::Full;
use crate::grpc::generate::Generation;
use crate::telemetry::metrics::Metrics;

/// Owns a generation until it ends or nobody wants it, and the stream for as long as it may be taken up.
pub(super) struct Pump {
    pub(super) stream: Arc<Stream>,
    pub(super) id: RequestId,
    pub(super) window: Duration,
    pub(super) metrics: Arc<Metrics>,
    /// The server's end.
    pub(super) ended: CancellationToken,
}

/// Why pumping stopped.
#[derive(PartialEq, Eq)]
enum Stop {
    /// The generation ended.
    Ended,
    /// Whoever could have wanted the rest ended the call, or did not come back.
    Unwanted,
}

impl Pump {
    /// Runs until the stream is to be forgotten. `running` keeps a draining server waiting for who may come back.
    pub(super) async fn run(self, mut generation: Generation, running: TaskTrackerToken) {
        let stopped = self.carry(&mut generation).await;
        // Frees what the request holds, if it still does.
        drop(generation);
        if stopped == Stop::Ended {
            self.linger(running).await;
        }
    }

    async fn carry(&self, generation: &mut Generation) -> Stop {
        let mut changes = self.stream.changes();
        loop {
            changes.borrow_and_update();
            let orders = self.stream.orders();
            if orders.give_up {
                return Stop::Unwanted;
            }
            if let Some(deadline) = orders.deadline {
                generation.shorten(deadline);
            }
            let news = loop {
                tokio::select! {
                    biased;
                    _ = changes.changed() => break None,
                    () = self.window_is_over(&orders) => {
                        if self.stream.expire() {
                            self.metrics.streams.expired.inc();
                            return Stop::Unwanted;
                        }
                        break None;
                    }
                    message = generation.next() => match message {
                        Some(Ok(event)) => match self.stream.push(event) {
                            Ok(()) => {}
                            Err(Full) => break Some(Some(generation.cut_off())),
                        },
                        Some(Err(error)) => break Some(Some(error)),
                        None => break Some(None),
                    },
                }
            };
            let Some(end) = news else { continue };
            // Counted here, once, however many readers learn of it.
            if let Some(error) = &end {
                self.metrics.failed(error);
                error.log(&self.id);
            }
            self.stream.end(end);
            return Stop::Ended;
        }
    }

    /// Keeps what was told for who has lost the end of it.
    async fn linger(&self, running: TaskTrackerToken) {
        let mut changes = self.stream.changes();
        let mut running = Some(running);
        loop {
            changes.borrow_and_update();
            let orders = self.stream.orders();
            if orders.give_up {
                return;
            }
            if orders.is_read {
                drop(running.take());
            }
            tokio::select! {
                _ = changes.changed() => {}
                () = self.ended.cancelled() => return,
                () = self.window_is_over(&orders) => if self.stream.expire() { return },
            }
        }
    }

    async fn window_is_over(&self, orders: &Orders) {
        match orders.left.and_then(|left| left.checked_add(self.window)) {
            Some(end) => tokio::time::sleep_until(end.into()).await,
            None => std::future::pending().await,
        }
    }
}

impl Drop for Pump {
    fn drop(&mut self) {
        self.stream.close();
    }
}
