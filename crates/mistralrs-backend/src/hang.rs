//! Notices an engine that does not come back from running its model, and that it has come back after all.

use std::time::{Duration, Instant};

use tokio::sync::watch;

/// How an engine's passes over its model come along.
pub(crate) struct Hang {
    /// Longest that one may take; absent: for ever.
    timeout: Option<Duration>,
    passes: u64,
    /// When the engine was last seen without anything to do, or back from a pass.
    since: Instant,
    stuck: watch::Sender<bool>,
}

impl Hang {
    /// Tells `stuck` when a pass takes more than `timeout`, and when it has ended.
    pub(crate) fn new(timeout: Option<Duration>, stuck: watch::Sender<bool>) -> Self {
        Self {
            timeout,
            passes: 0,
            since: Instant::now(),
            stuck,
        }
    }

    pub(crate) fn is_stuck(&self) -> bool {
        *self.stuck.borrow()
    }

    /// Looks at an engine that has made so many passes. Whether it is stuck since now.
    pub(crate) fn look(&mut self, passes: u64, is_busy: bool, now: Instant) -> bool {
        let came_back = passes != self.passes;
        self.passes = passes;
        if came_back || (!is_busy && !self.is_stuck()) {
            self.since = now;
        }
        if came_back && self.stuck.send_if_modified(std::mem::take) {
            tracing::warn!("mistral.rs's engine goes on");
        }
        let too_long = |timeout| now.saturating_duration_since(self.since) > timeout;
        if self.is_stuck() || !self.timeout.is_some_and(too_long) {
            return false;
        }
        tracing::error!(timeout = ?self.timeout, "a step takes too long: mistral.rs's engine is stuck; its requests end");
        self.stuck.send_replace(true);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pass_that_takes_too_long_is_told_once_and_its_end_too() {
        let (sender, stuck) = watch::channel(false);
        let mut hang = Hang::new(Some(Duration::from_secs(10)), sender);
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        assert!(!hang.look(0, false, at(100)), "nothing to do is no hang");
        assert!(!hang.look(0, true, at(105)));
        assert!(!hang.look(1, true, at(111)), "it came back");
        assert!(!hang.look(1, true, at(121)));
        assert!(hang.look(1, true, at(122)) && *stuck.borrow());
        assert!(!hang.look(1, false, at(300)), "told already");
        assert!(!hang.look(2, false, at(400)) && !*stuck.borrow());
        assert!(!hang.look(2, true, at(405)));
    }

    #[test]
    fn without_a_limit_it_may_take_for_ever() {
        let mut hang = Hang::new(None, watch::Sender::new(false));
        assert!(!hang.look(0, true, Instant::now() + Duration::from_secs(1 << 30)));
    }
}
