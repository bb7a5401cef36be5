//! What layers keep per sequence, and how many blocks and slots the memory allows.

use crate::config::{CacheBudget, EngineConfig};
use crate::error::LoadError;

/// Something that a layer keeps for each sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CacheSpec {
    /// Keys and values of every token.
    Paged {
        /// Of one token.
        bytes_per_token: usize,
    },
    /// Keys and values of the last `window` tokens.
    Rotating {
        /// Tokens a query sees, itself included.
        window: usize,
        /// Of one token.
        bytes_per_token: usize,
    },
    /// Something whose size does not grow.
    State {
        /// Of one sequence.
        bytes: usize,
    },
}

/// How many blocks and slots a model's caches have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CachePlan {
    /// Rows of a block, in tokens, in both pools.
    pub block_tokens: usize,
    /// Blocks of the pool for layers that see everything; 0 without such layers.
    pub global_blocks: usize,
    /// Blocks of the pool for layers that see a window; 0 without such layers.
    pub window_blocks: usize,
    /// Tokens a query of a sliding layer sees, itself included; 0 without such layers.
    pub window_tokens: usize,
    /// Length of a sequence's ring: the window rounded up to whole blocks; 0 without sliding layers.
    pub window_rows: usize,
    /// Sequences that can hold state at once.
    pub slots: usize,
    /// Size of a global block over all layers.
    pub global_block_bytes: u64,
    /// Size of a window block over all layers.
    pub window_block_bytes: u64,
    /// Size of a slot over all layers.
    pub slot_bytes: u64,
}

impl CachePlan {
    /// Divides the memory allowed between the two pools, so that they run out together on sequences of a
    /// quarter of the context, and each holds at least one sequence of full length.
    ///
    /// `max_context` is the longest sequence, in tokens; `free_bytes` what [`CacheBudget::Utilization`] is a share of.
    pub fn new(
        layers: &[CacheSpec],
        config: &EngineConfig,
        max_context: usize,
        free_bytes: u64,
    ) -> Result<Self, LoadError> {
        let block_tokens = config.cache.block_tokens;
        let (mut paged, mut rotating, mut slot_bytes, mut window_tokens) = (0, 0, 0, 0);
        for layer in layers {
            match *layer {
                CacheSpec::Paged { bytes_per_token } => paged += bytes_per_token,
                CacheSpec::Rotating {
                    window,
                    bytes_per_token,
                } => {
                    rotating += bytes_per_token;
                    window_tokens = window_tokens.max(window);
                }
                CacheSpec::State { bytes } => slot_bytes += bytes,
            }
        }
        let global_block_bytes = (paged * block_tokens) as u64;
        let window_block_bytes = (rotating * block_tokens) as u64;
        let ring_blocks = window_tokens.div_ceil(block_tokens);
        let slots = config.max_sequences;
        let blocks_of = |tokens: usize| {
            let blocks = tokens.min(max_context).div_ceil(block_tokens);
            let global = if paged > 0 { blocks } else { 0 };
            let window = if rotating > 0 { blocks.min(ring_blocks) } else { 0 };
            (global, window)
        };
        let bytes_of = |(global, window): (usize, usize)| {
            let global = (global as u64).saturating_mul(global_block_bytes);
            global.saturating_add((window as u64).saturating_mul(window_block_bytes))
        };

        let full = blocks_of(max_context);
        let most = (full.0.saturating_mul(slots), full.1.saturating_mul(slots));
        let slots_bytes = (slot_bytes as u64).saturating_mul(slots as u64);
        let spend = |allowed: u64| {
            let needed_bytes = slots_bytes.saturating_add(bytes_of(full));
            if allowed < needed_bytes {
                return Err(LoadError::OutOfMemory {
                    what: "the caches",
                    needed_bytes,
                    available_bytes: allowed,
                    hint: "raise the cache budget, or lower max_context or max_sequences".into(),
                });
            }
            let left = allowed - needed_bytes;
            let typical = blocks_of(max_context.div_ceil(4));
            let sequences = left / bytes_of(typical).max(1);
            let share = |full: usize, typical: usize, most: usize| {
                full.saturating_add(
                    usize::try_from(sequences)
                        .unwrap_or(usize::MAX)
                        .saturating_mul(typical),
                )
                .min(most)
            };
            let window = share(full.1, typical.1, most.1);
            // What the window pool cannot use, because no more sequences can run, serves longer contexts.
            let left = allowed - slots_bytes - window as u64 * window_block_bytes;
            let global = left
                .checked_div(global_block_bytes)
                .map_or(0, |b| (b as usize).min(most.0));
            Ok((global, window))
        };
        let (global_blocks, window_blocks) = match config.cache.budget {
            CacheBudget::Bytes(bytes) => spend(bytes)?,
            CacheBudget::Utilization(share) => spend((free_bytes as f64 * share) as u64)?,
            CacheBudget::ContextTokens(tokens) => {
                let blocks = tokens.div_ceil(block_tokens);
                let want = |full: usize, most: usize| blocks.max(full).min(most);
                (want(full.0, most.0), want(full.1, most.1))
            }
            CacheBudget::Blocks { global, window } => (
                if paged > 0 { global } else { 0 },
                if rotating > 0 { window } else { 0 },
            ),
        };
        Ok(Self {
            block_tokens,
            global_blocks,
            window_blocks,
            window_tokens,
            window_rows: ring_blocks * block_tokens,
            slots,
            global_block_bytes,
            window_block_bytes,
            slot_bytes: slot_bytes as u64,
        })
    }

    /// One plan of several that each hold some of a model's layers in memory of their own: a block is one block in all
    /// of them, so the least number counts. None of none.
    pub fn joined(plans: &[Self]) -> Option<Self> {
        let mut joined = *plans.first()?;
        let least = |a: usize, b: usize| match (a, b) {
            (0, blocks) | (blocks, 0) => blocks,
            (a, b) => a.min(b),
        };
        for plan in &plans[1..] {
            joined.global_blocks = least(joined.global_blocks, plan.global_blocks);
            joined.window_blocks = least(joined.window_blocks, plan.window_blocks);
            joined.window_tokens = joined.window_tokens.max(plan.window_tokens);
            joined.window_rows = joined.window_rows.max(plan.window_rows);
            joined.slots = joined.slots.min(plan.slots);
            joined.global_block_bytes += plan.global_block_bytes;
            joined.window_block_bytes += plan.window_block_bytes;
            joined.slot_bytes += plan.slot_bytes;
        }
        Some(joined)
    }

    /// Memory of all caches; the largest number where it cannot be counted.
    pub fn bytes(&self) -> u64 {
        let parts = [
            (self.global_blocks, self.global_block_bytes),
            (self.window_blocks, self.window_block_bytes),
            (self.slots, self.slot_bytes),
        ];
        parts.iter().fold(0, |sum: u64, (n, bytes)| {
            sum.saturating_add((*n as u64).saturating_mul(*bytes))
        })
    }

    /// That the caches fit, whatever budget was asked for.
    ///
    /// # Errors
    /// [`LoadError::OutOfMemory`] if they take more than `available_bytes`.
    pub fn fits(&self, available_bytes: u64) -> Result<(), LoadError> {
        let needed_bytes = self.bytes();
        if needed_bytes <= available_bytes {
            return Ok(());
        }
        Err(LoadError::OutOfMemory {
            what: "the caches",
            needed_bytes,
            available_bytes,
            hint: "lower the cache budget or max_sequences".into(),
        })
    }

    /// Global blocks of a sequence of `tokens`.
    pub fn global_blocks_for(&self, tokens: usize) -> usize {
        if self.global_block_bytes == 0 {
            0
        } else {
            tokens.div_ceil(self.block_tokens)
        }
    }

    /// Window blocks of a sequence of `tokens`.
    pub fn window_blocks_for(&self, tokens: usize) -> usize {
        tokens.min(self.window_rows).div_ceil(self.block_tokens)
    }

    /// Longest sequence that the pools can hold, alone, up to `max_context`.
    pub fn longest_sequence(&self, max_context: usize) -> usize {
        let by_global = if self.global_block_bytes == 0 {
            usize::MAX
        } else {
            self.global_blocks * self.block_tokens
        };
        let window_capacity = self.window_blocks * self.block_tokens;
        let by_window = if window_capacity >= self.window_rows {
            usize::MAX
        } else {
            window_capacity
        };
        max_context.min(by_global).min(by_window)
    }
}
