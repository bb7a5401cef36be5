//! How much of something a tenant may use per time: a bucket that fills at a steady rate and may be overdrawn.
//!
//! Overdrawn, because what a completion costs is known only when it has been generated, and because what is larger than
//! the bucket must be possible too: it takes a full bucket, and then nothing goes until the debt is paid.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// A bucket.
#[derive(Debug)]
pub(super) struct Bucket {
    per_second: f64,
    capacity: f64,
    state: Mutex<Level>,
}

#[derive(Debug)]
struct Level {
    level: f64,
    at: Instant,
}

impl Bucket {
    /// A full one.
    pub(super) fn new(per_second: f64, capacity: f64, now: Instant) -> Self {
        Self {
            per_second,
            capacity,
            state: Mutex::new(Level {
                level: capacity,
                at: now,
            }),
        }
    }

    /// Takes an amount, or says when it will be there.
    pub(super) fn take(&self, amount: f64, now: Instant) -> Result<(), Duration> {
        let mut state = self.filled(now);
        let wanted = amount.min(self.capacity);
        if state.level >= wanted {
            state.level -= amount;
            return Ok(());
        }
        let seconds = (wanted - state.level) / self.per_second;
        Err(Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX))
    }

    /// Takes what was used already, whether it is there or not; a negative amount is put back.
    pub(super) fn spend(&self, amount: f64, now: Instant) {
        let mut state = self.filled(now);
        state.level = (state.level - amount).min(self.capacity);
    }

    /// How much of it is used, from 0 to 1, and above where it is overdrawn.
    pub(super) fn used(&self, now: Instant) -> f64 {
        1.0 - self.filled(now).level / self.capacity
    }

    fn filled(&self, now: Instant) -> MutexGuard<'_, Level> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let elapsed = now.saturating_duration_since(state.at).as_secs_f64();
        state.level = (state.level + elapsed * self.per_second).min(self.capacity);
        state.at = state.at.max(now);
        state
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_gives_what_it_holds_and_says_when_there_is_more() {
        let start = Instant::now();
        let at = |seconds: f64| start + Duration::from_secs_f64(seconds);
        let bucket = Bucket::new(10.0, 20.0, start);
        assert_eq!(bucket.take(15.0, at(0.0)), Ok(()));
        assert_eq!(bucket.take(15.0, at(0.0)), Err(Duration::from_secs(1)));
        assert_eq!(bucket.take(5.0, at(0.0)), Ok(()));
        assert_eq!(bucket.take(10.0, at(1.0)), Ok(()));
        assert_eq!(bucket.used(at(1.0)), 1.0);
        assert_eq!(bucket.used(at(100.0)), 0.0);
    }

    #[test]
    fn what_is_larger_than_it_takes_a_full_one_and_leaves_a_debt() {
        let start = Instant::now();
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        let bucket = Bucket::new(10.0, 20.0, start);
        assert_eq!(bucket.take(50.0, at(0)), Ok(()));
        assert_eq!(bucket.take(1.0, at(0)), Err(Duration::from_millis(3100)));
        assert_eq!(bucket.used(at(0)), 2.5);
        assert_eq!(bucket.take(50.0, at(4)), Err(Duration::from_secs(1)));
        assert_eq!(bucket.take(50.0, at(5)), Ok(()));
    }

    #[test]
    fn what_was_used_already_is_taken_and_what_was_not_is_put_back() {
        let start = Instant::now();
        let bucket = Bucket::new(1.0, 10.0, start);
        bucket.spend(25.0, start);
        assert_eq!(bucket.take(1.0, start), Err(Duration::from_secs(16)));
        bucket.spend(-25.0, start);
        assert_eq!(bucket.take(10.0, start), Ok(()));
        bucket.spend(-1000.0, start);
        assert_eq!(bucket.used(start), 0.0);
    }
}
