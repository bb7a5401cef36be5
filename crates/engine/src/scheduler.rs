//! Decides which sequences run in the next step.
//!
//! Pure bookkeeping: lengths, ranks and cache memory; no tokens, no tensors, no channels, no clock.
//! [`crate::core`] carries out the plan.
//!
//! Decodes go first, then prompts under way, then new ones, each in order of rank: priority, then age. When
//! memory runs out, the lowest rank is preempted: it gives everything back and is computed again from its
//! tokens. As the highest rank is never preempted and any one sequence fits the pools, something always advances.

use std::collections::{BTreeMap, BTreeSet};

use crate::ids::SeqId;
use crate::kv::{CacheAccounts, CachePlan, ForkCopy, SequenceCache};

#[cfg(test)]
mod tests;

/// Who goes first: the lower priority number, then the older.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Rank {
    priority: i32,
    id: SeqId,
}

/// A sequence as the scheduler sees it.
#[derive(Debug)]
struct Progress {
    rank: Rank,
    /// Tokens known: prompt and generated.
    len: usize,
    /// Of these, how many are cached.
    computed: usize,
    /// New tokens in a step at most.
    chunk: usize,
    /// Whether it was preempted since it last ran; such a one comes back only when it fits whole.
    preempted: bool,
    cache: Option<SequenceCache>,
}

/// One sequence's part of a planned step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PlanItem {
    pub(crate) id: SeqId,
    /// Position of the first token to compute.
    pub(crate) start: usize,
    /// How many to compute.
    pub(crate) n_tokens: usize,
    /// Whether all known tokens are then computed.
    pub(crate) completes: bool,
}

/// A step to carry out.
#[derive(Debug, Default)]
pub(crate) struct Plan {
    /// What to compute.
    pub(crate) items: Vec<PlanItem>,
    /// Of these, who starts from nothing: their slots must be reset.
    pub(crate) admitted: Vec<SeqId>,
    /// Who was preempted.
    pub(crate) preempted: Vec<SeqId>,
}

impl Plan {
    /// Tokens to compute over all items.
    pub(crate) fn n_tokens(&self) -> usize {
        self.items.iter().map(|item| item.n_tokens).sum()
    }
}

/// Steps without a failure after which steps that were made smaller grow again.
const GOOD_STEPS_TO_GROW: u32 = 256;

/// Bounds of a step.
#[derive(Clone, Copy, Debug)]
pub(crate) struct StepLimits {
    pub(crate) max_step_tokens: usize,
    pub(crate) prefill_chunk_tokens: usize,
}

/// Who runs and who waits.
#[derive(Debug)]
pub(crate) struct Scheduler {
    limits: StepLimits,
    accounts: CacheAccounts,
    sequences: BTreeMap<SeqId, Progress>,
    running: BTreeSet<Rank>,
    waiting: BTreeSet<Rank>,
    /// Who was part of a failed step and has not been computed since.
    suspects: BTreeSet<Rank>,
    /// Tokens of a step at most, for now: less than the limit after a step ran out of memory.
    step_tokens: usize,
    /// Steps carried out since `step_tokens` last changed.
    good_steps: u32,
    window_rows_peak: usize,
}

impl Scheduler {
    pub(crate) fn new(limits: StepLimits, plan: CachePlan) -> Self {
        Self {
            limits,
            accounts: CacheAccounts::new(plan),
            sequences: BTreeMap::new(),
            running: BTreeSet::new(),
            waiting: BTreeSet::new(),
            suspects: BTreeSet::new(),
            step_tokens: limits.max_step_tokens,
            good_steps: 0,
            window_rows_peak: 0,
        }
    }

    pub(crate) fn accounts(&self) -> &CacheAccounts {
        &self.accounts
    }

    pub(crate) fn n_running(&self) -> usize {
        self.running.len()
    }

    pub(crate) fn n_waiting(&self) -> usize {
        self.waiting.len()
    }

    /// The most rows that any sequence has held in one sliding layer.
    pub(crate) fn window_rows_peak(&self) -> usize {
        self.window_rows_peak
    }

    /// What a sequence holds, while it runs.
    pub(crate) fn cache(&self, id: SeqId) -> Option<&SequenceCache> {
        self.sequences.get(&id)?.cache.as_ref()
    }

    /// A new sequence of `len` tokens, which waits. `max_chunk` bounds its part of a step.
    pub(crate) fn add(&mut self, id: SeqId, priority: i32, len: usize, max_chunk: usize) {
        let rank = Rank { priority, id };
        let chunk = max_chunk.min(self.limits.prefill_chunk_tokens);
        self.sequences.insert(
            id,
            Progress {
                rank,
                len,
                computed: 0,
                chunk,
                preempted: false,
                cache: None,
            },
        );
        self.waiting.insert(rank);
    }

    /// A copy of a running sequence, which runs too if there is room and else waits to compute for itself.
    pub(crate) fn fork(&mut self, parent: SeqId, child: SeqId) -> Option<ForkCopy> {
        let parent = &self.sequences[&parent];
        let (priority, len, computed, chunk) =
            (parent.rank.priority, parent.len, parent.computed, parent.chunk);
        let forked = parent
            .cache
            .as_ref()
            .and_then(|cache| self.accounts.fork(cache, computed));
        self.add(child, priority, len, chunk);
        let (cache, copy) = forked?;
        let progress = self.sequences.get_mut(&child)?;
        progress.cache = Some(cache);
        progress.computed = computed;
        self.waiting.remove(&progress.rank);
        self.running.insert(progress.rank);
        Some(copy)
    }

    /// A sequence has got one more token.
    pub(crate) fn push_token(&mut self, id: SeqId) {
        if let Some(progress) = self.sequences.get_mut(&id) {
            progress.len += 1;
        }
    }

    /// Forgets a sequence; what it held is free at once. `scrub` sees it first.
    pub(crate) fn remove(&mut self, id: SeqId, scrub: impl FnOnce(&SequenceCache)) {
        let Some(progress) = self.sequences.remove(&id) else {
            return;
        };
        self.running.remove(&progress.rank);
        self.waiting.remove(&progress.rank);
        self.suspects.remove(&progress.rank);
        if let Some(cache) = progress.cache {
            scrub(&cache);
            self.accounts.close(cache);
        }
    }

    /// Plans a step and takes the memory it needs. `scrub` sees what preempted sequences give back.
    pub(crate) fn plan(&mut self, mut scrub: impl FnMut(&SequenceCache)) -> Plan {
        let mut plan = Plan::default();
        if let Some(suspect) = self.suspects.first().copied() {
            self.plan_alone(suspect, &mut plan, &mut scrub);
            return plan;
        }
        let mut budget = self.step_tokens;

        let decodes_then_prefills = {
            let is_decode = |r: &&Rank| {
                let p = &self.sequences[&r.id];
                p.len - p.computed == 1
            };
            let (decodes, prefills): (Vec<_>, Vec<_>) = self.running.iter().partition(is_decode);
            decodes
                .into_iter()
                .chain(prefills)
                .copied()
                .collect::<Vec<Rank>>()
        };
        for rank in decodes_then_prefills {
            if budget == 0 {
                break;
            }
            if !self.running.contains(&rank) {
                continue; // preempted for the sake of one before it
            }
            let progress = &self.sequences[&rank.id];
            let n_tokens = (progress.len - progress.computed).min(progress.chunk).min(budget);
            let end = progress.computed + n_tokens;
            if self.make_room(rank, end, &mut plan, &mut scrub) {
                budget -= n_tokens;
                self.push_item(rank.id, n_tokens, &mut plan);
            }
        }

        while budget > 0 && plan.preempted.is_empty() {
            let Some(rank) = self.waiting.first().copied() else {
                break;
            };
            let progress = &self.sequences[&rank.id];
            let n_tokens = progress.len.min(progress.chunk).min(budget);
            if progress.preempted && !self.running.is_empty() && !self.accounts.fits(progress.len, 1) {
                break;
            }
            if !self.admit(rank, n_tokens, &mut plan) {
                break;
            }
            budget -= n_tokens;
            self.push_item(rank.id, n_tokens, &mut plan);
        }
        plan
    }

    /// Gives a waiting sequence a slot, and memory for its first tokens, if there is any.
    fn admit(&mut self, rank: Rank, n_tokens: usize, plan: &mut Plan) -> bool {
        let Some(progress) = self.sequences.get_mut(&rank.id) else {
            return false;
        };
        let Some(cache) = self.accounts.open(n_tokens) else {
            return false;
        };
        progress.cache = Some(cache);
        progress.preempted = false;
        self.waiting.remove(&rank);
        self.running.insert(rank);
        plan.admitted.push(rank.id);
        true
    }

    /// Plans a step of one sequence, whatever its rank; the others make room for it.
    fn plan_alone(&mut self, rank: Rank, plan: &mut Plan, scrub: &mut impl FnMut(&SequenceCache)) {
        let progress = &self.sequences[&rank.id];
        let budget = progress.chunk.min(self.step_tokens);
        let n_tokens = (progress.len - progress.computed).min(budget);
        let end = progress.computed + n_tokens;
        loop {
            let progress = self.sequences.get_mut(&rank.id);
            let has_room = match progress.and_then(|p| p.cache.as_mut()) {
                Some(cache) => self.accounts.grow(cache, end),
                None => self.admit(rank, n_tokens, plan),
            };
            if has_room {
                return self.push_item(rank.id, n_tokens, plan);
            }
            let lowest_other = self.running.iter().rev().find(|other| **other != rank).copied();
            let Some(other) = lowest_other else { return };
            self.preempt(other, plan, scrub);
        }
    }

    /// A step failed. Its sequences are to be computed each alone, until it is known whose fault it was.
    pub(crate) fn suspect(&mut self, failed: &Plan) {
        for item in &failed.items {
            if let Some(progress) = self.sequences.get(&item.id) {
                self.suspects.insert(progress.rank);
            }
        }
    }

    /// Sequences give back what they hold, to be computed again; returns those that held something. `scrub` sees it
    /// first.
    pub(crate) fn give_back(
        &mut self,
        ids: impl IntoIterator<Item = SeqId>,
        mut scrub: impl FnMut(&SequenceCache),
    ) -> Vec<SeqId> {
        let mut preempted = Plan::default();
        for id in ids {
            if let Some(progress) = self.sequences.get(&id)
                && progress.cache.is_some()
            {
                self.preempt(progress.rank, &mut preempted, &mut scrub);
            }
        }
        preempted.preempted
    }

    /// Steps have at most so many tokens until a good number of them were carried out; then twice as many, and so
    /// on up to the limit.
    pub(crate) fn shrink_steps(&mut self, tokens: usize) {
        self.step_tokens = tokens.clamp(1, self.step_tokens);
        self.good_steps = 0;
    }

    /// Whether a sequence was part of a failed step and has not been computed since.
    pub(crate) fn is_suspect(&self, id: SeqId) -> bool {
        self.sequences
            .get(&id)
            .is_some_and(|p| self.suspects.contains(&p.rank))
    }

    fn push_item(&mut self, id: SeqId, n_tokens: usize, plan: &mut Plan) {
        let progress = &self.sequences[&id];
        let start = progress.computed;
        let completes = start + n_tokens == progress.len;
        plan.items.push(PlanItem {
            id,
            start,
            n_tokens,
            completes,
        });
        if let Some(cache) = &progress.cache {
            let held = cache.window().len() * self.accounts.plan().block_tokens;
            self.window_rows_peak = self
                .window_rows_peak
                .max(held.min(self.accounts.plan().window_rows));
        }
    }

    /// Grows a running sequence to `tokens`, preempting lower ranks as needed, at last itself.
    fn make_room(
        &mut self,
        rank: Rank,
        tokens: usize,
        plan: &mut Plan,
        scrub: &mut impl FnMut(&SequenceCache),
    ) -> bool {
        loop {
            let Some(progress) = self.sequences.get_mut(&rank.id) else {
                return false;
            };
            let Some(cache) = progress.cache.as_mut() else {
                return false;
            };
            if self.accounts.grow(cache, tokens) {
                return true;
            }
            let Some(lowest) = self.running.last().copied() else {
                return false;
            };
            self.preempt(lowest, plan, scrub);
            if lowest == rank {
                return false;
            }
        }
    }

    fn preempt(&mut self, rank: Rank, plan: &mut Plan, scrub: &mut impl FnMut(&SequenceCache)) {
        self.running.remove(&rank);
        self.waiting.insert(rank);
        plan.preempted.push(rank.id);
        plan.items.retain(|item| item.id != rank.id);
        if let Some(progress) = self.sequences.get_mut(&rank.id) {
            progress.computed = 0;
            progress.preempted = true;
            if let Some(cache) = progress.cache.take() {
                scrub(&cache);
                self.accounts.close(cache);
            }
        }
    }

    /// The step was carried out.
    pub(crate) fn commit(&mut self, plan: &Plan) {
        if self.step_tokens < self.limits.max_step_tokens {
            self.good_steps += 1;
            if self.good_steps >= GOOD_STEPS_TO_GROW {
                self.step_tokens = (2 * self.step_tokens).min(self.limits.max_step_tokens);
                self.good_steps = 0;
            }
        }
        for item in &plan.items {
            if let Some(progress) = self.sequences.get_mut(&item.id) {
                progress.computed = item.start + item.n_tokens;
                if item.completes {
                    self.suspects.remove(&progress.rank);
                }
            }
        }
    }

    #[cfg(test)]
    /// Checks that every block and slot has exactly one owner, and that no sequence holds more than it needs.
    pub(crate) fn check_integrity(&self) -> Result<(), String> {
        self.accounts
            .check_integrity(self.sequences.values().filter_map(|p| p.cache.as_ref()))?;
        for progress in self.sequences.values() {
            let runs = self.running.contains(&progress.rank);
            let waits = self.waiting.contains(&progress.rank);
            if runs == waits || runs != progress.cache.is_some() {
                return Err(format!(
                    "{:?} both runs and waits, or neither, or holds memory out of turn",
                    progress.rank
                ));
            }
            let plan = self.accounts.plan();
            if let Some(cache) = &progress.cache
                && (cache.window().len() > plan.window_blocks_for(plan.window_rows)
                    || cache.global().len() > plan.global_blocks_for(progress.len))
            {
                return Err(format!(
                    "{:?} holds more blocks than its length needs",
                    progress.rank
                ));
            }
        }
        Ok(())
    }
}
