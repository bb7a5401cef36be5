//! Spans on their way out: a bounded queue, and a task that sends them in batches.
//!
//! The SDK's own batch processor drops as well, but does not say how many.

use std::time::Duration;

use opentelemetry::Context;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{Span, SpanData, SpanExporter, SpanProcessor};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::counts::{Dropped, ExportCounts};
use crate::config::TelemetryConfig;

/// Takes ended spans, never waiting.
#[derive(Debug)]
pub(super) struct SpanQueue {
    queue: mpsc::Sender<SpanData>,
    counts: ExportCounts,
}

/// Sends what is in the queue, until told to finish.
#[derive(Debug)]
pub(super) struct SpanSender {
    finish: CancellationToken,
    task: JoinHandle<()>,
}

/// How the sender works.
#[derive(Clone, Copy)]
struct Pace {
    batch: usize,
    delay: Duration,
    timeout: Duration,
}

/// A queue, and the task that empties it into `exporter`.
pub(super) fn start(
    exporter: impl SpanExporter + 'static,
    config: &TelemetryConfig,
    counts: ExportCounts,
) -> (SpanQueue, SpanSender) {
    let (queue, ended) = mpsc::channel(config.span_queue);
    let finish = CancellationToken::new();
    let pace = Pace {
        batch: config.span_batch,
        delay: config.span_delay,
        timeout: config.otlp_timeout,
    };
    let task = tokio::spawn(send(exporter, ended, pace, finish.clone(), counts.clone()));
    (SpanQueue { queue, counts }, SpanSender { finish, task })
}

impl SpanProcessor for SpanQueue {
    fn on_start(&self, _: &mut Span, _: &Context) {}

    fn on_end(&self, span: SpanData) {
        if !span.span_context.is_sampled() {
            return;
        }
        match self.queue.try_send(span) {
            Ok(()) => {}
            Err(mpsc::error::TrySendError::Full(_)) => self.counts.dropped(Dropped::QueueFull, 1),
            Err(mpsc::error::TrySendError::Closed(_)) => self.counts.dropped(Dropped::Shutdown, 1),
        }
    }

    // The owner of the sender flushes: it can wait without holding up a thread.
    fn force_flush(&self) -> OTelSdkResult {
        Ok(())
    }

    fn shutdown_with_timeout(&self, _: Duration) -> OTelSdkResult {
        Ok(())
    }
}

impl SpanSender {
    /// Sends what waits, for `limit` at most.
    pub(super) async fn finish(mut self, limit: Duration) {
        self.finish.cancel();
        if tokio::time::timeout(limit, &mut self.task).await.is_err() {
            self.task.abort();
            tracing::warn!("the last spans were not sent over OTLP");
        }
    }
}

async fn send(
    exporter: impl SpanExporter,
    mut ended: mpsc::Receiver<SpanData>,
    pace: Pace,
    finish: CancellationToken,
    counts: ExportCounts,
) {
    let mut failing = false;
    loop {
        let mut batch = Vec::new();
        tokio::select! {
            n_spans = ended.recv_many(&mut batch, pace.batch) => {
                if n_spans == 0 {
                    return;
                }
            }
            () = finish.cancelled(), if !ended.is_closed() => {
                ended.close();
                continue;
            }
        }
        // A few more may come; not when nothing more will.
        let fill = async {
            while batch.len() < pace.batch {
                let room = pace.batch - batch.len();
                if ended.recv_many(&mut batch, room).await == 0 {
                    return;
                }
            }
        };
        tokio::select! {
            () = fill => {}
            () = tokio::time::sleep(pace.delay) => {}
            () = finish.cancelled() => {}
        }
        let n_spans = batch.len();
        let sent = tokio::time::timeout(pace.timeout, exporter.export(batch)).await;
        let failure = match sent {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(error.to_string()),
            Err(_) => Some(format!("no answer within {:?}", pace.timeout)),
        };
        match &failure {
            None => counts.exported(n_spans),
            Some(_) => counts.dropped(Dropped::ExportFailed, n_spans),
        }
        // Once as it begins and once as it ends, not with every batch.
        match (failing, &failure) {
            (false, Some(error)) => tracing::warn!(error, "spans cannot be sent over OTLP"),
            (true, None) => tracing::info!("spans are sent over OTLP again"),
            _ => {}
        }
        failing = failure.is_some();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use opentelemetry::trace::{Span as _, Tracer, TracerProvider};
    use opentelemetry_sdk::error::OTelSdkError;
    use opentelemetry_sdk::trace::{SdkTracer, SdkTracerProvider};
    use tokio::sync::Semaphore;

    use super::*;

    /// A collector that takes a batch for every permit, or refuses.
    #[derive(Debug)]
    struct Collector {
        permits: Arc<Semaphore>,
        refuses: bool,
        batches: Arc<Mutex<Vec<usize>>>,
    }

    impl SpanExporter for Collector {
        async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
            self.permits.acquire().await.unwrap().forget();
            self.batches.lock().unwrap().push(batch.len());
            match self.refuses {
                true => Err(OTelSdkError::InternalFailure("no".into())),
                false => Ok(()),
            }
        }
    }

    struct Bench {
        tracer: SdkTracer,
        sender: SpanSender,
        counts: ExportCounts,
        permits: Arc<Semaphore>,
        batches: Arc<Mutex<Vec<usize>>>,
    }

    fn bench(span_queue: usize, span_batch: usize, refuses: bool) -> Bench {
        let config = TelemetryConfig {
            span_queue,
            span_batch,
            ..TelemetryConfig::default()
        };
        let counts = ExportCounts::default();
        let (permits, batches) = (Arc::new(Semaphore::new(0)), Arc::default());
        let collector = Collector {
            permits: permits.clone(),
            refuses,
            batches: Arc::clone(&batches),
        };
        let (queue, sender) = start(collector, &config, counts.clone());
        let provider = SdkTracerProvider::builder().with_span_processor(queue).build();
        Bench {
            tracer: provider.tracer("test"),
            sender,
            counts,
            permits,
            batches,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn spans_are_sent_in_batches_and_the_rest_at_the_end() {
        let bench = bench(100, 4, false);
        bench.permits.add_permits(100);
        for _ in 0..10 {
            bench.tracer.start("span").end();
        }
        bench.sender.finish(Duration::from_secs(1)).await;
        let batches = bench.batches.lock().unwrap().clone();
        assert_eq!(batches.iter().sum::<usize>(), 10, "{batches:?}");
        assert!(batches.iter().all(|n| *n <= 4), "{batches:?}");
        assert_eq!(bench.counts.read(Dropped::QueueFull), (10, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn a_stuck_collector_holds_nobody_up_and_what_has_no_room_is_counted() {
        let bench = bench(5, 1, false);
        for _ in 0..100 {
            bench.tracer.start("span").end();
        }
        let (exported, dropped) = bench.counts.read(Dropped::QueueFull);
        assert_eq!((exported, dropped), (0, 95));
        // It ends in time though nobody takes anything.
        bench.sender.finish(Duration::from_secs(1)).await;
        assert_eq!(bench.counts.read(Dropped::QueueFull), (0, 95));
    }

    #[tokio::test(start_paused = true)]
    async fn what_a_collector_refuses_is_counted() {
        let bench = bench(100, 50, true);
        bench.permits.add_permits(100);
        for _ in 0..7 {
            bench.tracer.start("span").end();
        }
        bench.sender.finish(Duration::from_secs(1)).await;
        assert_eq!(bench.counts.read(Dropped::ExportFailed), (0, 7));
    }
}
