//! Counters, rates and histograms of an engine, written where tokens come to be.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use baichuan_engine::rate::RateMeter;
use baichuan_engine::stats::{EngineStats, Measured, Totals};

/// What an engine has done so far.
#[derive(Debug, Default)]
pub(crate) struct Meter(Mutex<State>);

#[derive(Clone, Copy, Debug, Default)]
struct State {
    totals: Totals,
    measured: Measured,
    /// Tokens of one sequence.
    decode: RateMeter,
    prefill: RateMeter,
    /// Times that the model was run, for whomever.
    passes: u64,
}

impl Meter {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is counted, as an engine of `running` sequences publishes it.
    pub(crate) fn stats(&self, running: usize) -> EngineStats {
        let state = *self.state();
        let decode_step_rate = state.decode.per_second();
        EngineStats {
            totals: state.totals,
            measured: state.measured,
            decode_step_rate,
            // Sequences that run at once keep pace with each other.
            decode_rate: decode_step_rate * running.max(1) as f64,
            prefill_rate: state.prefill.per_second(),
            ..EngineStats::default()
        }
    }

    /// A request was taken.
    pub(crate) fn taken(&self) {
        self.state().totals.requests += 1;
    }

    /// A request of so many prompt tokens was let in.
    pub(crate) fn admitted(&self, prompt_tokens: usize) {
        self.state().totals.prompt_tokens += prompt_tokens as u64;
    }

    /// The model came back, with whatever.
    pub(crate) fn passed(&self) {
        self.state().passes += 1;
    }

    /// How often it did.
    pub(crate) fn passes(&self) -> u64 {
        self.state().passes
    }

    /// A prompt was computed and its first token chosen.
    pub(crate) fn prefilled(&self, tokens: usize, elapsed: Duration) {
        let mut state = self.state();
        state.totals.generated_tokens += 1;
        state.computed_prompt(tokens, elapsed);
    }

    /// An input was embedded.
    pub(crate) fn embedded(&self, tokens: usize, elapsed: Duration) {
        self.state().computed_prompt(tokens, elapsed);
    }

    /// A token was chosen, not the first.
    pub(crate) fn decoded(&self, elapsed: Duration) {
        let mut state = self.state();
        state.totals.steps += 1;
        state.totals.generated_tokens += 1;
        state.decode.record(1, elapsed);
        state.measured.decode_steps.observe(elapsed.as_secs_f64());
        state.measured.step_tokens.observe(1.0);
    }

    /// A request ended because nobody read it any more, since `dropped_at` if its stream was dropped.
    pub(crate) fn cancelled(&self, dropped_at: Option<Instant>) {
        let mut state = self.state();
        state.totals.cancelled += 1;
        if let Some(gone) = dropped_at {
            let waited = gone.elapsed().as_secs_f64();
            state.measured.cancel_to_free.observe(waited);
        }
    }

    /// A step failed, and its request with it.
    pub(crate) fn failed(&self) {
        self.state().totals.failed_steps += 1;
    }

    /// Forgets everything, after warm-up.
    pub(crate) fn reset(&self) {
        *self.state() = State::default();
    }
}

impl State {
    fn computed_prompt(&mut self, tokens: usize, elapsed: Duration) {
        self.totals.steps += 1;
        self.prefill.record(tokens, elapsed);
        self.measured.prefill_steps.observe(elapsed.as_secs_f64());
        self.measured.step_tokens.observe(tokens as f64);
    }
}
