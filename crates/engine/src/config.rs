//! How an engine is set up, typed and complete.

use std::time::Duration;

use crate::error::LoadError;
use crate::request::RequestLimits;

/// Longer than the slowest step of a large model on few CPU cores.
const DEFAULT_STEP_TIMEOUT: Duration = Duration::from_secs(600);

/// How an engine schedules and what memory it may use.
#[derive(Clone, Debug, PartialEq)]
pub struct EngineConfig {
    /// New tokens of a step at most, decodes and prefill chunks together.
    pub max_step_tokens: usize,
    /// New tokens of one prompt in a step at most: how long a prompt may hold up running streams.
    pub prefill_chunk_tokens: usize,
    /// Sequences that may hold memory at once.
    pub max_sequences: usize,
    /// Requests that may wait.
    pub max_waiting: usize,
    /// Prompt tokens that may wait.
    pub max_waiting_tokens: usize,
    /// Longest wait of all requests but one in a hundred, by how fast others left the queue lately; absent: however long.
    pub max_wait: Option<Duration>,
    /// Events kept for a client that does not read.
    pub event_buffer: usize,
    /// Caps the model's own context, in tokens; absent: the model's.
    pub max_context: Option<usize>,
    /// Memory for keys and values.
    pub cache: CacheConfig,
    /// What a request may ask for.
    pub limits: RequestLimits,
    /// Overwrite freed cache memory.
    pub scrub_freed: bool,
    /// What happens when the model fails.
    pub on_failure: OnFailure,
    /// Longest that a step may take before the engine counts as stuck; absent: for ever.
    pub step_timeout: Option<Duration>,
}

/// What happens when the model fails: panics, or fails at every step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnFailure {
    /// It is made anew, once; if it soon fails again, the engine is dead and the process lives on without it.
    #[default]
    Restart,
    /// The engine is dead, and whoever runs it should end the process.
    Exit,
}

impl Default for EngineConfig {
    fn default() -> Self {
        Self {
            max_step_tokens: 512,
            prefill_chunk_tokens: 256,
            max_sequences: 64,
            max_waiting: 1024,
            max_waiting_tokens: 1 << 20,
            max_wait: None,
            event_buffer: 1024,
            max_context: None,
            cache: CacheConfig::default(),
            limits: RequestLimits::default(),
            scrub_freed: false,
            on_failure: OnFailure::default(),
            step_timeout: Some(DEFAULT_STEP_TIMEOUT),
        }
    }
}

impl EngineConfig {
    /// Checks what no single value shows; the error names the key.
    pub fn validate(&self) -> Result<(), LoadError> {
        let refuse = |key, message: String| Err(LoadError::Unsupported { key, message });
        for (key, value) in [
            ("max_sequences", self.max_sequences),
            ("prefill_chunk_tokens", self.prefill_chunk_tokens),
            ("max_waiting", self.max_waiting),
            ("max_waiting_tokens", self.max_waiting_tokens),
            ("event_buffer", self.event_buffer),
            ("cache.block_tokens", self.cache.block_tokens),
        ] {
            if value == 0 {
                return refuse(key, "must be at least 1, got 0".into());
            }
        }
        if self.max_step_tokens < self.max_sequences {
            let (tokens, sequences) = (self.max_step_tokens, self.max_sequences);
            return refuse(
                "max_step_tokens",
                format!(
                    "must be at least max_sequences ({sequences}), or decodes would not fit a step; got {tokens}"
                ),
            );
        }
        if self.max_wait.is_some_and(|wait| wait.is_zero()) {
            return refuse("max_wait", "must be more than 0".into());
        }
        if self.step_timeout.is_some_and(|timeout| timeout.is_zero()) {
            return refuse("step_timeout", "must be more than 0".into());
        }
        if self.max_context.is_some_and(|max| max < 2) {
            return refuse("max_context", "must be at least 2 tokens".into());
        }
        let share_holds = |share: f64| share > 0.0 && share <= 1.0;
        let must = |share: f64| format!("a share of memory must be above 0 and at most 1, got {share}");
        if let CacheBudget::Utilization(share) = self.cache.budget
            && !share_holds(share)
        {
            return refuse("cache.budget", must(share));
        }
        let share = self.cache.gpu_memory_utilization;
        if !share_holds(share) {
            return refuse("cache.gpu_memory_utilization", must(share));
        }
        Ok(())
    }
}

/// Memory for keys and values.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CacheConfig {
    /// Rows of a block, in tokens.
    pub block_tokens: usize,
    /// How much in all.
    pub budget: CacheBudget,
    /// On GPUs, instead of [`CacheBudget::Utilization`]: share of the whole device memory that weights, a step's
    /// tensors and caches may take together.
    pub gpu_memory_utilization: f64,
}

impl Default for CacheConfig {
    fn default() -> Self {
        Self {
            block_tokens: 16,
            budget: CacheBudget::Utilization(0.25),
            gpu_memory_utilization: 0.9,
        }
    }
}

/// How much memory caches may use. Never more than all sequences at full context need.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum CacheBudget {
    /// So many bytes.
    Bytes(u64),
    /// This share of the host memory that is free once weights are loaded; on GPUs
    /// [`CacheConfig::gpu_memory_utilization`] counts instead.
    Utilization(f64),
    /// Enough for this many tokens over all sequences, in either pool.
    ContextTokens(usize),
    /// Exactly so many blocks, for tests and measurements.
    Blocks {
        /// Of the global pool.
        global: usize,
        /// Of the window pool.
        window: usize,
    },
}
