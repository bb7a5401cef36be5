//! An engine's load and health, as it publishes them after every step.

use crate::ids::TenantId;

/// A snapshot of an engine.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct EngineStats {
    /// Sequences that hold cache memory.
    pub running: usize,
    /// Sequences that wait for it.
    pub waiting: usize,
    /// Tokens of the prompts that wait.
    pub waiting_tokens: usize,
    /// Keys and values of layers that see everything.
    pub global: PoolStats,
    /// Keys and values of layers that see a window.
    pub window: PoolStats,
    /// State slots in use.
    pub slots_used: usize,
    /// State slots in all.
    pub slots_total: usize,
    /// The window, in tokens; 0 when no layer slides.
    pub window_tokens: usize,
    /// Rows of one sequence in one sliding layer: the most any sequence has held.
    pub window_rows_peak: usize,
    /// Tokens of a step at most.
    pub max_step_tokens: usize,
    /// Since start.
    pub totals: Totals,
    /// Since start.
    pub measured: Measured,
    /// Tenants that have something running or waiting.
    pub tenants: Vec<TenantLoad>,
    /// Tokens decoded per second over the last seconds, of all sequences together.
    pub decode_rate: f64,
    /// Steps per second that decoded: the pace of one sequence.
    pub decode_step_rate: f64,
    /// Prompt tokens computed per second over the last seconds.
    pub prefill_rate: f64,
    /// Whether new requests are refused because the engine drains.
    pub draining: bool,
    /// Whether steps are taken.
    pub health: EngineHealth,
}

/// Whether an engine takes steps. One that has given up publishes no statistics any more.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum EngineHealth {
    /// It does.
    #[default]
    Running,
    /// The model failed and is being made anew; requests wait.
    Recovering,
    /// A step has taken longer than any may; requests have ended and none are taken.
    Stuck,
}

/// What one tenant has in an engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TenantLoad {
    /// Who.
    pub tenant: TenantId,
    /// Sequences that hold cache memory.
    pub running: usize,
    /// Requests that wait for it.
    pub waiting: usize,
    /// Tokens of the prompts that wait.
    pub waiting_tokens: usize,
}

/// One pool of blocks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PoolStats {
    /// Blocks in some sequence's table.
    pub used: usize,
    /// Blocks in all.
    pub total: usize,
    /// Rows of a block, in tokens.
    pub block_tokens: usize,
    /// Size of a block over all layers.
    pub block_bytes: u64,
}

/// Counters since start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Requests taken.
    pub requests: u64,
    /// Prompt tokens of admitted requests.
    pub prompt_tokens: u64,
    /// Tokens generated.
    pub generated_tokens: u64,
    /// Prompt tokens looked up in a cache of prefixes; none where the backend has no such cache.
    pub prefix_queried_tokens: u64,
    /// Of these, how many were there.
    pub prefix_hit_tokens: u64,
    /// Sequences paused to make room.
    pub preemptions: u64,
    /// Steps run.
    pub steps: u64,
    /// Sequences freed because nobody read their stream any more.
    pub cancelled: u64,
    /// Steps that failed or panicked.
    pub failed_steps: u64,
    /// Of these, steps that ran out of memory and were taken in smaller parts.
    pub out_of_memory: u64,
    /// Times the model was made anew after it failed.
    pub restarts: u64,
}

/// What is measured of steps.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Measured {
    /// Seconds of steps that only decoded.
    pub decode_steps: Histogram,
    /// Seconds of steps that only computed prompts.
    pub prefill_steps: Histogram,
    /// Seconds of steps that did both.
    pub mixed_steps: Histogram,
    /// Tokens of a step.
    pub step_tokens: Histogram,
    /// Seconds from a stream's being dropped until all that its request held was free.
    pub cancel_to_free: Histogram,
}

impl Default for Measured {
    fn default() -> Self {
        let seconds = Histogram::new(&SECONDS);
        Self {
            decode_steps: seconds,
            prefill_steps: seconds,
            mixed_steps: seconds,
            step_tokens: Histogram::new(&TOKENS),
            cancel_to_free: seconds,
        }
    }
}

const N_BOUNDS: usize = 15;
const SECONDS: [f64; N_BOUNDS] = [
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0,
];
const TOKENS: [f64; N_BOUNDS] = [
    1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0, 8192.0, 16384.0,
];

/// Observations, counted by size.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Histogram {
    bounds: &'static [f64; N_BOUNDS],
    /// Of each bucket alone; the last holds what is above all bounds.
    counts: [u64; N_BOUNDS + 1],
    sum: f64,
}

impl Histogram {
    fn new(bounds: &'static [f64; N_BOUNDS]) -> Self {
        Self {
            bounds,
            counts: [0; N_BOUNDS + 1],
            sum: 0.0,
        }
    }

    /// Counts `value`.
    pub fn observe(&mut self, value: f64) {
        let bucket = self.bounds.partition_point(|bound| *bound < value);
        self.counts[bucket] += 1;
        self.sum += value;
    }

    /// Each bucket's upper bound, the last one infinite, and the observations in that bucket alone.
    pub fn buckets(&self) -> impl Iterator<Item = (f64, u64)> {
        let bounds = self.bounds.iter().copied().chain([f64::INFINITY]);
        bounds.zip(self.counts)
    }

    /// Sum of all observations.
    pub fn sum(&self) -> f64 {
        self.sum
    }

    /// How many there were.
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_observation_counts_in_the_first_bucket_that_holds_it() {
        let mut histogram = Histogram::new(&TOKENS);
        for value in [1.0, 1.5, 2.0, 1e9] {
            histogram.observe(value);
        }
        let buckets: Vec<_> = histogram.buckets().collect();
        assert_eq!(buckets[..2], [(1.0, 1), (2.0, 2)]);
        assert_eq!(buckets[N_BOUNDS], (f64::INFINITY, 1));
        assert_eq!((histogram.count(), histogram.sum()), (4, 1e9 + 4.5));
    }
}
