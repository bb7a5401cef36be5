//! The thread that owns a running mistralrs-core engine: lets requests in, one at a time on CPUs, and publishes load.
//!
//! mistralrs-core's batched decode on CPUs gives every row the last row's attention, so there its batch is never more
//! than one sequence: the rest waits here, lowest priority number and oldest first.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use baichuan_engine::EventSink;
use baichuan_engine::queue::{Place, Queue};
use baichuan_engine::rate::RateMeter;
use baichuan_engine::request::Request;
use baichuan_engine::stats::{EngineStats, Totals};
use mistralrs_core::MistralRs;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinSet;

use crate::generate::{Context, embed, generate};

/// While something goes on: how often load is published and clients that left the queue are noticed.
const TICK: Duration = Duration::from_millis(20);
/// How long mistralrs-core's thread may take to end.
const END_GRACE: Duration = Duration::from_secs(5);

/// What the thread is told.
pub(crate) enum Command {
    /// Take a request in.
    Submit(Box<Job>),
    /// Answer when nothing is left to do.
    Drain(oneshot::Sender<()>),
}

/// A request on its way in.
pub(crate) struct Job {
    pub(crate) request: Request,
    pub(crate) sink: EventSink,
    pub(crate) place: Place,
}

/// Counters and rates, written where tokens come to be.
#[derive(Default)]
pub(crate) struct Meter(Mutex<Measured>);

#[derive(Clone, Copy, Default)]
struct Measured {
    totals: Totals,
    decode: RateMeter,
    prefill: RateMeter,
}

impl Meter {
    fn measured(&self) -> MutexGuard<'_, Measured> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn admitted(&self, prompt_tokens: usize) {
        let mut measured = self.measured();
        measured.totals.prompt_tokens += prompt_tokens as u64;
    }

    pub(crate) fn prefilled(&self, tokens: usize, elapsed: Duration) {
        let mut measured = self.measured();
        measured.totals.steps += 1;
        measured.totals.generated_tokens += 1;
        measured.prefill.record(tokens, elapsed);
    }

    pub(crate) fn embedded(&self, tokens: usize, elapsed: Duration) {
        let mut measured = self.measured();
        measured.totals.steps += 1;
        measured.prefill.record(tokens, elapsed);
    }

    pub(crate) fn decoded(&self, elapsed: Duration) {
        let mut measured = self.measured();
        measured.totals.steps += 1;
        measured.totals.generated_tokens += 1;
        measured.decode.record(1, elapsed);
    }

    /// Forgets everything, after warm-up.
    pub(crate) fn reset(&self) {
        *self.measured() = Measured::default();
    }

    pub(crate) fn cancelled(&self) {
        self.measured().totals.cancelled += 1;
    }
}

/// An engine and all that is kept of its requests.
pub(crate) struct Driver {
    pub(crate) context: Arc<Context>,
    /// Keeps mistralrs-core's thread going.
    pub(crate) engine: Arc<MistralRs>,
    pub(crate) queue: Queue,
    pub(crate) draining: Arc<AtomicBool>,
    /// Requests that run at once.
    pub(crate) max_running: usize,
}

impl Driver {
    /// Load and counters, now.
    pub(crate) fn stats(&self, running: usize) -> EngineStats {
        let measured = *self.context.meter.measured();
        EngineStats {
            running,
            waiting: self.queue.requests(),
            waiting_tokens: self.queue.tokens(),
            slots_used: running,
            slots_total: self.max_running,
            totals: measured.totals,
            decode_rate: measured.decode.per_second(),
            prefill_rate: measured.prefill.per_second(),
            draining: self.draining.load(Ordering::Relaxed),
            ..EngineStats::default()
        }
    }

    /// Runs until the inbox's sender or mistralrs-core's engine is gone; what then still runs ends with it.
    pub(crate) async fn run(
        self,
        stats: watch::Sender<EngineStats>,
        // The last to come is the first to go: who sees the statistics end can submit no more.
        mut inbox: UnboundedReceiver<Command>,
    ) {
        let mut waiting: BTreeMap<(i32, u64), Job> = BTreeMap::new();
        let mut arrivals = 0;
        let mut drained: Vec<oneshot::Sender<()>> = Vec::new();
        let mut running: JoinSet<()> = JoinSet::new();
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            waiting.retain(|_, job| {
                let gone = job.sink.is_closed();
                if gone {
                    self.context.meter.cancelled();
                }
                !gone
            });
            while running.len() < self.max_running
                && let Some((_, job)) = waiting.pop_first()
            {
                running.spawn(run_one(self.context.clone(), job));
            }
            stats.send_replace(self.stats(running.len()));
            let is_idle = running.is_empty() && waiting.is_empty();
            if is_idle {
                for waiter in drained.drain(..) {
                    let _ = waiter.send(()); // whoever gave up waiting needs no answer
                }
            }
            tokio::select! {
                command = inbox.recv() => match command {
                    Some(Command::Submit(job)) => {
                        self.context.meter.measured().totals.requests += 1;
                        let priority = match &job.request {
                            Request::Generate(request) => request.priority,
                            Request::Embed(request) => request.priority,
                        };
                        waiting.insert((priority, arrivals), *job);
                        arrivals += 1;
                    }
                    Some(Command::Drain(waiter)) => drained.push(waiter),
                    None => break,
                },
                Some(ended) = running.join_next(), if !running.is_empty() => {
                    if ended.is_err() {
                        tracing::error!("a request's task panicked");
                    }
                }
                () = self.context.engine.closed() => {
                    tracing::error!("mistral.rs's engine has ended; its requests end, and no more are taken");
                    // Each sees it too, and drops its sink.
                    while running.join_next().await.is_some() {}
                    return;
                }
                _ = tick.tick(), if !is_idle => {}
            }
        }
        running.shutdown().await;
        let ended = self.context.engine.clone();
        drop(self.engine);
        if tokio::time::timeout(END_GRACE, ended.closed()).await.is_err() {
            tracing::warn!("mistral.rs's engine has not ended in time");
        }
    }
}

async fn run_one(context: Arc<Context>, job: Job) {
    let Job { request, sink, place } = job;
    drop(place);
    match request {
        Request::Generate(request) => generate(&context, *request, sink).await,
        Request::Embed(request) => embed(&context, request, sink).await,
    }
}
