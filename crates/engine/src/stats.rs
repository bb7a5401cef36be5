//! An engine's load and health, as it publishes them after every step.

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
    /// Tokens decoded per second over the last seconds.
    pub decode_rate: f64,
    /// Prompt tokens computed per second over the last seconds.
    pub prefill_rate: f64,
    /// Whether new requests are refused because the engine drains.
    pub draining: bool,
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
    /// Sequences paused to make room.
    pub preemptions: u64,
    /// Steps run.
    pub steps: u64,
    /// Sequences freed because nobody read their stream any more.
    pub cancelled: u64,
}
