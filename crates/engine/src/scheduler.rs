//! Decides which sequences run in the next step.
//!
//! Pure bookkeeping: lengths, ranks and cache memory; no tokens, no tensors, no channels, no clock.
//! [`crate::core`] carries out the plan.
//!
//! Decodes go first. What is left of a step goes to the tenant that has had least for its weight ([`crate::shares`]), token by
//! token; inside a tenant prompts under way go before new ones, each in order of rank: priority, then age. When memory
//! runs out, the lowest rank of the tenant that has had most is preempted: it gives everything back and is computed
//! again from its tokens. As who comes first is never preempted and any one sequence fits the pools, something always
//! advances. A tenant with nothing running need not wait for the end of others' long completions: one that has had more
//! and has several running gives one of them up.

use std::collections::{BTreeMap, BTreeSet};

use crate::ids::{SeqId, TenantId};
use crate::kv::{CacheAccounts, CachePlan, ForkCopy, SequenceCache};
use crate::shares::Shares;

#[cfg(test)]
mod tests;

/// Who goes first inside a tenant: the lower priority number, then the older. Tenants stand in no order here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Rank {
    tenant: TenantId,
    priority: i32,
    id: SeqId,
}

/// Whose a sequence is and how urgent to them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Standing {
    pub(crate) tenant: TenantId,
    pub(crate) weight: u32,
    pub(crate) priority: i32,
}

/// Of what the engine does on its own account.
impl Default for Standing {
    fn default() -> Self {
        Self {
            tenant: TenantId::default(),
            weight: 1,
            priority: 0,
        }
    }
}

/// A sequence as the scheduler sees it.
#[derive(Debug)]
struct Progress {
    rank: Rank,
    standing: Standing,
    /// Tokens known: prompt and generated.
    len: usize,
    /// Of these, how many are cached.
    computed: usize,
    /// Up to here its tenant was charged: what is computed again costs it nothing.
    charged: usize,
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
    shares: Shares,
    sequences: BTreeMap<SeqId, Progress>,
    running: BTreeSet<Rank>,
    waiting: BTreeSet<Rank>,
    /// Who was part of a failed step and has not been computed since.
    suspects: BTreeSet<Rank>,
    /// Tokens of the next step at most: less than the limit while a step that ran out of memory is not long ago.
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
            shares: Shares::default(),
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

    /// Sequences of each tenant that hold memory.
    pub(crate) fn running_by_tenant(&self) -> BTreeMap<TenantId, usize> {
        let mut counts = BTreeMap::new();
        for rank in &self.running {
            *counts.entry(rank.tenant).or_default() += 1;
        }
        counts
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
    pub(crate) fn add(&mut self, id: SeqId, standing: Standing, len: usize, max_chunk: usize) {
        let rank = Rank {
            tenant: standing.tenant,
            priority: standing.priority,
            id,
        };
        self.shares.enter(standing.tenant, standing.weight);
        let chunk = max_chunk.min(self.limits.prefill_chunk_tokens);
        self.sequences.insert(
            id,
            Progress {
                rank,
                standing,
                len,
                computed: 0,
                charged: 0,
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
        let (standing, len, computed, chunk) = (parent.standing, parent.len, parent.computed, parent.chunk);
        let forked = parent
            .cache
            .as_ref()
            .and_then(|cache| self.accounts.fork(cache, computed));
        self.add(child, standing, len, chunk);
        let (cache, copy) = forked?;
        let progress = self.sequences.get_mut(&child)?;
        progress.cache = Some(cache);
        progress.computed = computed;
        progress.charged = computed;
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
        self.shares.leave(progress.rank.tenant);
        if let Some(cache) = progress.cache {
            scrub(&cache);
            self.accounts.close(cache);
        }
    }

    /// Plans a step and takes the memory it needs. `scrub` sees what preempted sequences give back.
    pub(crate) fn plan(&mut self, mut scrub: impl FnMut(&SequenceCache)) -> Plan {
        let mut plan = Plan::default();
        self.shares.settle();
        if let Some(suspect) = self.suspects.first().copied() {
            self.plan_alone(suspect, &mut plan, &mut scrub);
            return plan;
        }
        let (decodes, mut under_way): (Vec<Rank>, Vec<Rank>) = {
            let is_decode = |r: &Rank| {
                let p = &self.sequences[&r.id];
                p.len - p.computed == 1
            };
            let mut running: Vec<Rank> = self.running.iter().copied().collect();
            running.sort_by_key(|rank| self.turn(rank));
            running.into_iter().partition(is_decode)
        };
        for rank in decodes {
            self.extend(rank, &mut plan, &mut scrub);
        }

        let (mut may_admit, mut any_prompt) = (true, false);
        loop {
            let waiting = self
                .next_waiting()
                .filter(|_| may_admit && plan.preempted.is_empty());
            if self.budget(&plan) == 0 {
                // As many decodes as a step holds: only then does nobody's prompt get a turn.
                if let Some(rank) = waiting.filter(|_| !any_prompt)
                    && self.make_way(rank, &mut plan, &mut scrub)
                {
                    self.begin(rank, &mut plan);
                }
                break;
            }
            let next = (0..under_way.len()).min_by_key(|at| self.turn_so_far(&under_way[*at]));
            match (next, waiting) {
                (Some(at), waiting)
                    if waiting.is_none_or(|rank| {
                        self.shares.time(under_way[at].tenant) <= self.shares.time(rank.tenant)
                    }) =>
                {
                    let rank = under_way.swap_remove(at);
                    any_prompt |= self.extend(rank, &mut plan, &mut scrub);
                }
                (_, Some(rank)) => {
                    let began = self.begin(rank, &mut plan)
                        || (self.make_way(rank, &mut plan, &mut scrub) && self.begin(rank, &mut plan));
                    any_prompt |= began;
                    may_admit = began;
                }
                (_, None) => break,
            }
        }
        plan
    }

    /// Tokens that a step has left.
    fn budget(&self, plan: &Plan) -> usize {
        self.step_tokens.saturating_sub(plan.n_tokens())
    }

    /// When it is a sequence's turn, as things stood when the step began to be planned.
    fn turn(&self, rank: &Rank) -> (u64, Rank) {
        (self.shares.settled(rank.tenant), *rank)
    }

    /// The same, with what the step has already cost its tenant.
    fn turn_so_far(&self, rank: &Rank) -> (u64, Rank) {
        (self.shares.time(rank.tenant), *rank)
    }

    /// The first of those who wait, of the tenant whose turn it is.
    fn next_waiting(&self) -> Option<Rank> {
        let mut firsts: Vec<Rank> = Vec::new();
        let mut from = Some(TenantId(0));
        while let Some(tenant) = from {
            let least = Rank {
                tenant,
                priority: i32::MIN,
                id: SeqId(0),
            };
            let first = self.waiting.range(least..).next().copied();
            from = first.and_then(|rank| rank.tenant.0.checked_add(1)).map(TenantId);
            firsts.extend(first);
        }
        firsts.into_iter().min_by_key(|rank| self.turn_so_far(rank))
    }

    /// Plans the next part of a running sequence, if there is room; whether it did.
    fn extend(&mut self, rank: Rank, plan: &mut Plan, scrub: &mut impl FnMut(&SequenceCache)) -> bool {
        let budget = self.budget(plan);
        if budget == 0 || !self.running.contains(&rank) {
            return false; // preempted for the sake of one before it
        }
        let progress = &self.sequences[&rank.id];
        let n_tokens = (progress.len - progress.computed).min(progress.chunk).min(budget);
        let end = progress.computed + n_tokens;
        let has_room = self.make_room(rank, end, plan, scrub);
        if has_room {
            self.push_item(rank.id, n_tokens, plan);
        }
        has_room
    }

    /// Plans the first part of a waiting sequence, if there is room; whether it did.
    fn begin(&mut self, rank: Rank, plan: &mut Plan) -> bool {
        let progress = &self.sequences[&rank.id];
        let n_tokens = progress.len.min(progress.chunk).min(self.budget(plan));
        let comes_back_whole =
            !progress.preempted || self.running.is_empty() || self.accounts.fits(progress.len, 1);
        let begins = n_tokens > 0 && comes_back_whole && self.admit(rank, n_tokens, plan);
        if begins {
            self.push_item(rank.id, n_tokens, plan);
        }
        begins
    }

    /// Preempts one sequence for a tenant that has none running: of a tenant that has had more, and has several. What
    /// has to be computed again for it is on the account of who came.
    fn make_way(&mut self, rank: Rank, plan: &mut Plan, scrub: &mut impl FnMut(&SequenceCache)) -> bool {
        let running = self.running_by_tenant();
        if running.contains_key(&rank.tenant) {
            return false;
        }
        let had = self.shares.time(rank.tenant);
        let gives = |other: &&Rank| running[&other.tenant] > 1 && self.shares.time(other.tenant) > had;
        let last = self
            .running
            .iter()
            .filter(gives)
            .max_by_key(|other| self.turn(other))
            .copied();
        let Some(other) = last else {
            return false;
        };
        let lost = self.sequences[&other.id].computed;
        self.preempt(other, plan, scrub);
        self.shares.charge(rank.tenant, lost);
        true
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
            let others = self.running.iter().filter(|other| **other != rank);
            let last = others.max_by_key(|other| self.turn(other)).copied();
            let Some(other) = last else { return };
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
        let fresh = (start + n_tokens).saturating_sub(progress.charged);
        self.shares.charge(progress.rank.tenant, fresh);
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

    /// Grows a running sequence to `tokens`, preempting who comes after it as needed, at last itself.
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
            let last = self.running.iter().max_by_key(|other| self.turn(other)).copied();
            let Some(last) = last else {
                return false;
            };
            self.preempt(last, plan, scrub);
            if last == rank {
                return false;
            }
        }
    }

    fn preempt(&mut self, rank: Rank, plan: &mut Plan, scrub: &mut impl FnMut(&SequenceCache)) {
        self.running.remove(&rank);
        self.waiting.insert(rank);
        plan.preempted.push(rank.id);
        plan.admitted.retain(|id| *id != rank.id);
        if let Some(progress) = self.sequences.get_mut(&rank.id) {
            for item in plan.items.extract_if(.., |item| item.id == rank.id) {
                let fresh = (item.start + item.n_tokens).saturating_sub(progress.charged);
                self.shares.refund(rank.tenant, fresh);
            }
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
                progress.charged = progress.charged.max(progress.computed);
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
