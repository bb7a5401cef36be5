//! Notices a step that does not end: its thread cannot say so itself.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::sync::watch;

use crate::stats::{EngineHealth, EngineStats};

const IDLE: u64 = 0;
const STUCK: u64 = u64::MAX;

/// Looks this often within the time that a step may take.
const LOOKS: u32 = 8;

/// What a worker does, as its watchdog sees it.
#[derive(Debug)]
pub(crate) struct Pulse {
    epoch: Instant,
    /// [`IDLE`], [`STUCK`], or when the running step began: nanoseconds after `epoch`, and one.
    busy: AtomicU64,
    stuck: watch::Sender<bool>,
}

impl Pulse {
    pub(crate) fn new() -> Self {
        Self {
            epoch: Instant::now(),
            busy: AtomicU64::new(IDLE),
            stuck: watch::Sender::new(false),
        }
    }

    /// A step begins.
    pub(crate) fn begin(&self) {
        self.busy.store(self.now(), Ordering::Relaxed);
    }

    /// It has ended. Whether it was given up meanwhile: streams have ended, whatever it brought.
    pub(crate) fn end(&self) -> bool {
        self.busy.swap(IDLE, Ordering::Relaxed) == STUCK
    }

    /// Requests can be taken again.
    pub(crate) fn revive(&self) {
        self.stuck.send_replace(false);
    }

    /// Whether the running step was given up.
    pub(crate) fn is_stuck(&self) -> bool {
        *self.stuck.borrow()
    }

    /// Becomes true when the running step is given up.
    pub(crate) fn subscribe(&self) -> watch::Receiver<bool> {
        self.stuck.subscribe()
    }

    fn now(&self) -> u64 {
        u64::try_from(self.epoch.elapsed().as_nanos()).map_or(STUCK - 1, |nanos| nanos + 1)
    }

    /// Gives the running step up if it has taken more than `timeout`.
    fn give_up_after(&self, timeout: Duration) -> bool {
        let began = self.busy.load(Ordering::Relaxed);
        if began == IDLE || began == STUCK {
            return false;
        }
        let taken = Duration::from_nanos(self.now().saturating_sub(began));
        // At once for who revives it: that is either before, and nothing is given up, or after.
        taken > timeout
            && self.stuck.send_if_modified(|stuck| {
                let given_up = self
                    .busy
                    .compare_exchange(began, STUCK, Ordering::Relaxed, Ordering::Relaxed)
                    .is_ok();
                *stuck |= given_up;
                given_up
            })
    }
}

/// The thread that watches a worker. Dropping it ends and joins it.
#[derive(Debug)]
pub(crate) struct Watchdog {
    end: Option<mpsc::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Watchdog {
    /// Watches the worker of the engine called `name`. The statistics are the worker's: they end when it does.
    pub(crate) fn start(
        name: &str,
        timeout: Duration,
        pulse: Arc<Pulse>,
        stats: Weak<watch::Sender<EngineStats>>,
    ) -> std::io::Result<Self> {
        let (end, ended) = mpsc::channel();
        let watch = move || {
            let wait = (timeout / LOOKS).max(Duration::from_millis(1));
            while ended.recv_timeout(wait) == Err(RecvTimeoutError::Timeout) {
                if pulse.give_up_after(timeout) {
                    tracing::error!(
                        ?timeout,
                        "a step takes too long: the engine is stuck; its requests end"
                    );
                    if let Some(stats) = stats.upgrade() {
                        stats.send_modify(|stats| stats.health = EngineHealth::Stuck);
                    }
                }
            }
        };
        let thread = std::thread::Builder::new()
            .name(format!("watch-{name}"))
            .spawn(watch)?;
        Ok(Self {
            end: Some(end),
            thread: Some(thread),
        })
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        self.end = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join(); // it does nothing that panics
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_is_given_up_once_and_learns_it_at_its_end() {
        let pulse = Pulse::new();
        assert!(!pulse.give_up_after(Duration::ZERO), "nothing runs");
        pulse.begin();
        assert!(!pulse.give_up_after(Duration::from_secs(3600)));
        while !pulse.give_up_after(Duration::ZERO) {}
        assert!(!pulse.give_up_after(Duration::ZERO), "it is given up already");
        assert!(pulse.is_stuck());
        assert!(pulse.end());
        pulse.revive();
        pulse.begin();
        assert!(!pulse.end() && !pulse.is_stuck());
    }
}
