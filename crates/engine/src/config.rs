//! How an engine is set up, typed and complete.

use crate::request::RequestLimits;

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
}

impl Default for EngineConfig {
    fn default() -> Self {
        Self {
            max_step_tokens: 512,
            prefill_chunk_tokens: 256,
            max_sequences: 64,
            max_waiting: 1024,
            max_waiting_tokens: 1 << 20,
            event_buffer: 1024,
            max_context: None,
            cache: CacheConfig::default(),
            limits: RequestLimits::default(),
            scrub_freed: false,
        }
    }
}

/// Memory for keys and values.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CacheConfig {
    /// Rows of a block, in tokens.
    pub block_tokens: usize,
    /// How much in all.
    pub budget: CacheBudget,
}

impl Default for CacheConfig {
    fn default() -> Self {
        Self {
            block_tokens: 16,
            budget: CacheBudget::Utilization(0.25),
        }
    }
}

/// How much memory caches may use. Never more than all sequences at full context need.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum CacheBudget {
    /// So many bytes.
    Bytes(u64),
    /// This share of the memory that is free once weights are loaded.
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
