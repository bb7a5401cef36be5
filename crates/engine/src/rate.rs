//! How fast something has gone lately.

use std::time::Duration;

/// Over how long the past is forgotten.
const MEMORY: Duration = Duration::from_secs(5);

/// An exponentially forgetting mean of amount per busy second.
#[derive(Clone, Copy, Debug, Default)]
pub struct RateMeter {
    amount: f64,
    seconds: f64,
}

impl RateMeter {
    /// `amount` was done in `elapsed`.
    pub fn record(&mut self, amount: usize, elapsed: Duration) {
        let keep = (-elapsed.as_secs_f64() / MEMORY.as_secs_f64()).exp();
        self.amount = self.amount * keep + amount as f64;
        self.seconds = self.seconds * keep + elapsed.as_secs_f64();
    }

    /// Per second; 0 before anything was done.
    pub fn per_second(&self) -> f64 {
        if self.seconds > 0.0 {
            self.amount / self.seconds
        } else {
            0.0
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_follows_a_change_and_forgets_the_past() {
        let mut meter = RateMeter::default();
        assert_eq!(meter.per_second(), 0.0);
        for _ in 0..100 {
            meter.record(10, Duration::from_millis(100));
        }
        assert!((meter.per_second() - 100.0).abs() < 1e-6);
        for _ in 0..500 {
            meter.record(2, Duration::from_millis(100));
        }
        assert!((meter.per_second() - 20.0).abs() < 0.1);
    }
}
