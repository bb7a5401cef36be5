//! Who holds which global blocks, window blocks and slot.

use super::{CachePlan, pool::Pool};
use crate::ids::{BlockId, SlotId};
use crate::model::{CacheCopy, Freed};

/// What one sequence holds. Made and ended only by [`CacheAccounts`].
#[derive(Debug)]
pub(crate) struct SequenceCache {
    slot: SlotId,
    global: Vec<BlockId>,
    window: Vec<BlockId>,
}

impl SequenceCache {
    pub(crate) fn slot(&self) -> SlotId {
        self.slot
    }

    pub(crate) fn global(&self) -> &[BlockId] {
        &self.global
    }

    pub(crate) fn window(&self) -> &[BlockId] {
        &self.window
    }

    pub(crate) fn as_freed(&self) -> Freed<'_> {
        Freed {
            slot: self.slot,
            global: &self.global,
            window: &self.window,
        }
    }
}

/// From which blocks to which a sequence's state is to be copied.
#[derive(Debug)]
pub(crate) struct ForkCopy {
    slot: (SlotId, SlotId),
    global: Vec<(BlockId, BlockId)>,
    window: Vec<(BlockId, BlockId)>,
}

impl ForkCopy {
    pub(crate) fn as_copy(&self) -> CacheCopy<'_> {
        CacheCopy {
            slot: self.slot,
            global: &self.global,
            window: &self.window,
        }
    }
}

/// The two pools and the slots.
#[derive(Debug)]
pub(crate) struct CacheAccounts {
    plan: CachePlan,
    global: Pool,
    window: Pool,
    slots: Pool,
}

impl CacheAccounts {
    pub(crate) fn new(plan: CachePlan) -> Self {
        Self {
            plan,
            global: Pool::new(plan.global_blocks),
            window: Pool::new(plan.window_blocks),
            slots: Pool::new(plan.slots),
        }
    }

    pub(crate) fn plan(&self) -> &CachePlan {
        &self.plan
    }

    pub(crate) fn global(&self) -> &Pool {
        &self.global
    }

    pub(crate) fn window(&self) -> &Pool {
        &self.window
    }

    pub(crate) fn slots(&self) -> &Pool {
        &self.slots
    }

    /// Whether a new sequence of `tokens`, and `spare` more blocks, would fit.
    pub(crate) fn fits(&self, tokens: usize, spare: usize) -> bool {
        let global = self.plan.global_blocks_for(tokens);
        let window = self.plan.window_blocks_for(tokens);
        let spare = |needed: usize| if needed > 0 { spare } else { 0 };
        self.slots.n_free() > 0
            && self.global.n_free() >= global + spare(global)
            && self.window.n_free() >= window + spare(window)
    }

    /// Room for a new sequence of `tokens`, or nothing.
    pub(crate) fn open(&mut self, tokens: usize) -> Option<SequenceCache> {
        if !self.fits(tokens, 0) {
            return None;
        }
        let slot = SlotId(self.slots.take(1)?.next()?);
        let mut cache = SequenceCache {
            slot,
            global: Vec::new(),
            window: Vec::new(),
        };
        let grown = self.grow(&mut cache, tokens);
        debug_assert!(grown, "what fits can be taken");
        Some(cache)
    }

    /// Room for the sequence to have `tokens`; all of it or, with `false`, nothing.
    pub(crate) fn grow(&mut self, cache: &mut SequenceCache, tokens: usize) -> bool {
        let global = self
            .plan
            .global_blocks_for(tokens)
            .saturating_sub(cache.global.len());
        let window = self
            .plan
            .window_blocks_for(tokens)
            .saturating_sub(cache.window.len());
        if self.global.n_free() < global || self.window.n_free() < window {
            return false;
        }
        cache
            .global
            .extend(self.global.take(global).into_iter().flatten().map(BlockId));
        cache
            .window
            .extend(self.window.take(window).into_iter().flatten().map(BlockId));
        true
    }

    /// Room for a copy of a sequence, or nothing.
    pub(crate) fn fork(
        &mut self,
        parent: &SequenceCache,
        tokens: usize,
    ) -> Option<(SequenceCache, ForkCopy)> {
        let child = self.open(tokens)?;
        let copy = ForkCopy {
            slot: (parent.slot, child.slot),
            global: parent
                .global
                .iter()
                .copied()
                .zip(child.global.iter().copied())
                .collect(),
            window: parent
                .window
                .iter()
                .copied()
                .zip(child.window.iter().copied())
                .collect(),
        };
        Some((child, copy))
    }

    /// Blocks, ring and slot, freed together.
    pub(crate) fn close(&mut self, cache: SequenceCache) {
        self.global.give_back(cache.global.into_iter().map(|b| b.0));
        self.window.give_back(cache.window.into_iter().map(|b| b.0));
        self.slots.give_back([cache.slot.0]);
    }

    #[cfg(test)]
    /// Checks that every block and slot is in exactly one of `held` or free.
    pub(crate) fn check_integrity<'a>(
        &self,
        held: impl Iterator<Item = &'a SequenceCache> + Clone,
    ) -> Result<(), String> {
        self.global.check_integrity(
            "global block",
            held.clone().flat_map(|c| c.global.iter().map(|b| b.0)),
        )?;
        self.window.check_integrity(
            "window block",
            held.clone().flat_map(|c| c.window.iter().map(|b| b.0)),
        )?;
        self.slots.check_integrity("slot", held.map(|c| c.slot.0))
    }
}
