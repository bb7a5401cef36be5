//! The thread that owns a model: takes requests in, steps, publishes its load, makes the model anew when it fails.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, TryRecvError};
use std::time::{Duration, Instant};

use tokio::sync::{oneshot, watch};

use crate::config::OnFailure;
use crate::core::{EngineCore, Job};
use crate::model::CausalLm;
use crate::stats::{EngineHealth, EngineStats};
use crate::watchdog::Pulse;

/// A model that fails again within this time of its restart is given up.
const RESTART_MEMORY: Duration = Duration::from_secs(600);

/// What the worker is told.
#[derive(Debug)]
pub(crate) enum Command {
    /// Take a request in.
    Submit(Box<Job>),
    /// Answer when nothing is left to do.
    Drain(oneshot::Sender<()>),
}

/// What the thread shares with its handle.
pub(crate) struct Worker {
    pub(crate) inbox: Receiver<Command>,
    /// The only strong one: when the thread ends, so do the statistics.
    pub(crate) stats: Arc<watch::Sender<EngineStats>>,
    pub(crate) draining: Arc<AtomicBool>,
    pub(crate) pulse: Arc<Pulse>,
    pub(crate) on_failure: OnFailure,
}

/// Why the worker stopped taking steps.
enum Stop {
    /// Every sender of the inbox is gone.
    Closed,
    /// It is the model that fails.
    Broken,
    /// A step took so long that its requests were ended.
    Stuck,
}

impl Worker {
    /// Runs until every sender of the inbox is gone, or the model fails and is not made anew. What then still runs
    /// or waits ends with it: its sinks end their streams, and the statistics have no sender any more.
    pub(crate) fn run<M: CausalLm>(self, mut core: EngineCore<M>) {
        let mut drained = Vec::new();
        let mut restarted_at: Option<Instant> = None;
        loop {
            match catch_unwind(AssertUnwindSafe(|| self.serve(&mut core, &mut drained))) {
                Ok(Stop::Closed) => return,
                Ok(Stop::Broken) => tracing::error!("the model fails"),
                Ok(Stop::Stuck) => {
                    tracing::error!("the step that took too long has ended");
                    core.fail_all();
                    self.refuse_waiting(&mut drained);
                }
                Err(_) => {
                    tracing::error!("the engine's thread panicked; all its requests end");
                    self.pulse.end();
                    core.fail_all();
                }
            }
            let again = restarted_at.is_some_and(|at| at.elapsed() < RESTART_MEMORY);
            if self.on_failure == OnFailure::Exit || again {
                tracing::error!("the engine gives up; its requests end, and no more are taken");
                return;
            }
            self.publish(&core, EngineHealth::Recovering);
            self.pulse.begin();
            let recovered = catch_unwind(AssertUnwindSafe(|| core.recover()));
            let given_up = self.pulse.end();
            match recovered {
                Ok(Ok(())) if !given_up => tracing::warn!("the model was made anew"),
                Ok(Ok(())) => return tracing::error!("the model took too long to be made anew: given up"),
                Ok(Err(error)) => return tracing::error!(%error, "the model cannot be made anew: given up"),
                Err(_) => return tracing::error!("the model panicked while it was made anew: given up"),
            }
            restarted_at = Some(Instant::now());
            self.pulse.revive();
        }
    }

    fn serve<M: CausalLm>(&self, core: &mut EngineCore<M>, drained: &mut Vec<oneshot::Sender<()>>) -> Stop {
        loop {
            self.publish(core, EngineHealth::Running);
            if core.is_idle() {
                for waiter in drained.drain(..) {
                    let _ = waiter.send(()); // whoever gave up waiting needs no answer
                }
                match self.inbox.recv() {
                    Ok(command) => take(command, core, drained),
                    Err(_) => return Stop::Closed,
                }
            }
            loop {
                match self.inbox.try_recv() {
                    Ok(command) => take(command, core, drained),
                    Err(TryRecvError::Empty) => break,
                    Err(TryRecvError::Disconnected) => return Stop::Closed,
                }
            }
            self.pulse.begin();
            core.step();
            if self.pulse.end() {
                return Stop::Stuck;
            }
            if core.is_broken() {
                return Stop::Broken;
            }
        }
    }

    /// Drops the requests in the inbox: their streams have ended.
    fn refuse_waiting(&self, drained: &mut Vec<oneshot::Sender<()>>) {
        while let Ok(command) = self.inbox.try_recv() {
            if let Command::Drain(waiter) = command {
                drained.push(waiter);
            }
        }
    }

    fn publish<M: CausalLm>(&self, core: &EngineCore<M>, health: EngineHealth) {
        self.stats.send_replace(EngineStats {
            health,
            ..core.stats(self.draining.load(Ordering::Relaxed))
        });
    }
}

fn take<M: CausalLm>(command: Command, core: &mut EngineCore<M>, drained: &mut Vec<oneshot::Sender<()>>) {
    match command {
        Command::Submit(job) => core.submit(*job),
        Command::Drain(waiter) => drained.push(waiter),
    }
}
