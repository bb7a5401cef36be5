//! The thread that owns a running mistralrs-core engine: lets requests in, one at a time on CPUs, and publishes load.
//!
//! mistralrs-core's batched decode on CPUs gives every row the last row's attention, so there its batch is never more
//! than one sequence: the rest waits in [`Waiting`].

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use baichuan_engine::queue::{Place, Queue};
use baichuan_engine::request::Request;
use baichuan_engine::stats::{EngineHealth, EngineStats, TenantLoad};
use baichuan_engine::{EventSink, TenantId};
use mistralrs_core::MistralRs;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::sync::{oneshot, watch};
use tokio::task::{Id, JoinSet};
use tracing::Instrument;

use crate::generate::{Context, embed, generate};
use crate::hang::Hang;
use crate::waiting::Waiting;

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
    /// In which the request was submitted: what is logged of it belongs there.
    pub(crate) span: tracing::Span,
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

/// Whose each running request is; a request's task yields the tokens that it had beside its prompt.
#[derive(Default)]
struct Running {
    tasks: JoinSet<usize>,
    tenants: HashMap<Id, TenantId>,
}

impl Running {
    fn start(&mut self, context: Arc<Context>, job: Job) {
        let (tenant, span) = (job.request.account().tenant, job.span.clone());
        let task = self.tasks.spawn(run_one(context, job).instrument(span));
        self.tenants.insert(task.id(), tenant);
    }

    /// The next to end: whose it was, and its tokens. Never, while none runs.
    async fn next(&mut self) -> (TenantId, usize) {
        let (id, tokens) = match self.tasks.join_next_with_id().await {
            Some(Ok(ended)) => ended,
            Some(Err(error)) => {
                tracing::error!("a request's task panicked");
                (error.id(), 0)
            }
            None => std::future::pending().await,
        };
        (self.tenants.remove(&id).unwrap_or_default(), tokens)
    }
}

impl Driver {
    /// Load and counters, now.
    pub(crate) fn stats(&self, running: impl Iterator<Item = TenantId>) -> EngineStats {
        let load = |tenant| TenantLoad {
            tenant,
            running: 0,
            waiting: 0,
            waiting_tokens: 0,
        };
        let mut tenants: HashMap<TenantId, TenantLoad> = HashMap::new();
        for (tenant, waits) in self.queue.tenants() {
            let own = tenants.entry(tenant).or_insert_with(|| load(tenant));
            (own.waiting, own.waiting_tokens) = (waits.requests, waits.tokens);
        }
        let mut n_running = 0;
        for tenant in running {
            n_running += 1;
            tenants.entry(tenant).or_insert_with(|| load(tenant)).running += 1;
        }
        let waiting = self.queue.waiting();
        let mut tenants: Vec<_> = tenants.into_values().collect();
        tenants.sort_unstable_by_key(|load| load.tenant);
        EngineStats {
            running: n_running,
            waiting: waiting.requests,
            waiting_tokens: waiting.tokens,
            slots_used: n_running,
            slots_total: self.max_running,
            tenants,
            draining: self.draining.load(Ordering::Relaxed),
            ..self.context.meter.stats(n_running)
        }
    }

    /// Runs until the inbox's sender or mistralrs-core's engine is gone; what then still runs ends with it.
    pub(crate) async fn run(
        self,
        mut hang: Hang,
        stats: watch::Sender<EngineStats>,
        // The last to come is the first to go: who sees the statistics end can submit no more.
        mut inbox: UnboundedReceiver<Command>,
    ) {
        let meter = &self.context.meter;
        let mut waiting = Waiting::default();
        let mut running = Running::default();
        let mut drained: Vec<oneshot::Sender<()>> = Vec::new();
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            if hang.look(meter.passes(), !running.tasks.is_empty(), Instant::now()) {
                drop(waiting.take_all());
            }
            for job in waiting.take_gone() {
                meter.cancelled(job.sink.dropped_at());
            }
            while running.tasks.len() < self.max_running
                && !hang.is_stuck()
                && let Some(job) = waiting.next()
            {
                running.start(self.context.clone(), job);
            }
            stats.send_replace(EngineStats {
                health: match hang.is_stuck() {
                    true => EngineHealth::Stuck,
                    false => EngineHealth::Running,
                },
                ..self.stats(running.tenants.values().copied())
            });
            let is_idle = running.tasks.is_empty() && waiting.is_empty();
            if is_idle {
                for waiter in drained.drain(..) {
                    let _ = waiter.send(()); // whoever gave up waiting needs no answer
                }
            }
            tokio::select! {
                command = inbox.recv() => match command {
                    Some(Command::Submit(job)) => {
                        meter.taken();
                        waiting.push(*job);
                    }
                    Some(Command::Drain(waiter)) => drained.push(waiter),
                    None => break,
                },
                (tenant, tokens) = running.next() => waiting.ended(tenant, tokens),
                () = self.context.engine.closed() => {
                    tracing::error!("mistral.rs's engine has ended; its requests end, and no more are taken");
                    // Each sees it too, and drops its sink.
                    while running.tasks.join_next().await.is_some() {}
                    return;
                }
                _ = tick.tick(), if !is_idle || hang.is_stuck() => {}
            }
        }
        running.tasks.shutdown().await;
        let ended = self.context.engine.clone();
        drop(self.engine);
        if tokio::time::timeout(END_GRACE, ended.closed()).await.is_err() {
            tracing::warn!("mistral.rs's engine has not ended in time");
        }
    }
}

async fn run_one(context: Arc<Context>, job: Job) -> usize {
    let Job {
        request,
        sink,
        place,
        span: _,
    } = job;
    drop(place);
    match request {
        Request::Generate(request) => generate(&context, *request, sink).await,
        Request::Embed(request) => {
            embed(&context, request, sink).await;
            0
        }
    }
}
