//! The thread that owns a model: takes requests in, steps, publishes its load.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, TryRecvError};

use tokio::sync::{oneshot, watch};

use crate::core::{EngineCore, Job};
use crate::model::CausalLm;
use crate::stats::EngineStats;

/// What the worker is told.
#[derive(Debug)]
pub(crate) enum Command {
    /// Take a request in.
    Submit(Box<Job>),
    /// Answer when nothing is left to do.
    Drain(oneshot::Sender<()>),
}

/// Runs until every sender of `inbox` is gone, or the model fails at every step; what then still runs ends with it.
///
/// A panic in a step drops the core: every request's sink ends its stream, and `stats` has no sender any more.
pub(crate) fn run<M: CausalLm>(
    mut core: EngineCore<M>,
    inbox: &Receiver<Command>,
    stats: &watch::Sender<EngineStats>,
    draining: &Arc<AtomicBool>,
) {
    let mut drained: Vec<oneshot::Sender<()>> = Vec::new();
    loop {
        stats.send_replace(core.stats(draining.load(Ordering::Relaxed)));
        if core.is_idle() {
            for waiter in drained.drain(..) {
                let _ = waiter.send(()); // whoever gave up waiting needs no answer
            }
            match inbox.recv() {
                Ok(command) => take(command, &mut core, &mut drained),
                Err(_) => return,
            }
        }
        loop {
            match inbox.try_recv() {
                Ok(command) => take(command, &mut core, &mut drained),
                Err(TryRecvError::Empty) => break,
                Err(TryRecvError::Disconnected) => return,
            }
        }
        core.step();
        if core.is_broken() {
            tracing::error!("every step fails; the engine gives up");
            return;
        }
    }
}

fn take<M: CausalLm>(command: Command, core: &mut EngineCore<M>, drained: &mut Vec<oneshot::Sender<()>>) {
    match command {
        Command::Submit(job) => core.submit(*job),
        Command::Drain(waiter) => drained.push(waiter),
    }
}
