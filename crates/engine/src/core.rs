//! One step after another: schedule → forward → sample → emit. Synchronous; the clock is passed in.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Instant;

use crate::backend::EventSink;
use crate::completion::{Answer, Completion, Vocabulary};
use crate::config::EngineConfig;
use crate::error::RequestError;
use crate::event::{Embedded, Event, Prefilled, Timings};
use crate::ids::{SeqId, TenantId, TokenId};
use crate::kv::SequenceCache;
use crate::model::{CausalLm, Rows, StepOutput};
use crate::pooler::Pooler;
use crate::queue::{Place, Queue};
use crate::rate::RateMeter;
use crate::request::{GenerateRequest, Request};
use crate::scheduler::{Plan, PlanItem, Scheduler, Standing, StepLimits};
use crate::stats::{EngineHealth, EngineStats, Measured, PoolStats, TenantLoad, Totals};

use self::state::{Group, Sequence, Work, gather_prompt_logprobs};

mod faults;
mod state;
#[cfg(test)]
mod tests;

/// Logits of a prompt's tokens come to the host in chunks of at most this size.
const MAX_PROMPT_LOGITS_BYTES: usize = 64 << 20;

/// A request on its way in.
#[derive(Debug)]
pub(crate) struct Job {
    pub(crate) request: Request,
    pub(crate) sink: EventSink,
    pub(crate) place: Place,
    /// What its log lines are written in.
    pub(crate) span: tracing::Span,
}

/// An engine's whole state but its thread.
pub(crate) struct EngineCore<M> {
    model: M,
    vocabulary: Vocabulary,
    limits: StepLimits,
    scheduler: Scheduler,
    scrub_freed: bool,
    groups: BTreeMap<u64, Group>,
    sequences: BTreeMap<SeqId, Sequence>,
    next_group: u64,
    next_seq: u64,
    queue: Queue,
    n_unadmitted: usize,
    totals: Totals,
    measured: Measured,
    decode_rate: RateMeter,
    prefill_rate: RateMeter,
    decode_step_rate: RateMeter,
    failures_in_a_row: u32,
    panicked: bool,
    clock: Box<dyn Fn() -> Instant + Send>,
}

impl<M: CausalLm> EngineCore<M> {
    pub(crate) fn new(
        model: M,
        vocabulary: Vocabulary,
        config: &EngineConfig,
        queue: Queue,
        clock: impl Fn() -> Instant + Send + 'static,
    ) -> Self {
        let limits = StepLimits {
            max_step_tokens: config.max_step_tokens,
            prefill_chunk_tokens: config.prefill_chunk_tokens,
        };
        Self {
            scheduler: Scheduler::new(limits, model.spec().cache),
            limits,
            model,
            vocabulary,
            scrub_freed: config.scrub_freed,
            groups: BTreeMap::new(),
            sequences: BTreeMap::new(),
            next_group: 0,
            next_seq: 0,
            queue,
            n_unadmitted: 0,
            totals: Totals::default(),
            measured: Measured::default(),
            decode_rate: RateMeter::default(),
            prefill_rate: RateMeter::default(),
            decode_step_rate: RateMeter::default(),
            failures_in_a_row: 0,
            panicked: false,
            clock: Box::new(clock),
        }
    }

    /// Whether there is nothing to do.
    pub(crate) fn is_idle(&self) -> bool {
        self.groups.is_empty()
    }

    /// Takes a request in; it waits until there is memory for it.
    pub(crate) fn submit(&mut self, job: Job) {
        let Job {
            request,
            sink,
            place,
            span,
        } = job;
        let id = request.id().clone();
        let first = self.next_seq_id();
        let mut max_chunk = usize::MAX;
        let account = *request.account();
        let (arrived, priority) = match &request {
            Request::Embed(embed) => (embed.arrived, embed.priority),
            Request::Generate(generate) => (generate.arrived, generate.priority),
        };
        let (tokens, work) = match request {
            Request::Embed(embed) => (embed.tokens, Work::Embed(Pooler::new(embed.pooling))),
            Request::Generate(request) => {
                let request: Arc<GenerateRequest> = Arc::from(request);
                if request.output.prompt_logprobs.is_some() {
                    max_chunk = (MAX_PROMPT_LOGITS_BYTES / 4 / self.model.spec().vocab_size).max(1);
                }
                let work = Work::Generate {
                    completion: Box::new(Completion::new(request.clone(), 0, &self.vocabulary)),
                    siblings: (1..request.sampling.n).map(|_| self.next_seq_id()).collect(),
                    prompt_logprobs: request.output.prompt_logprobs.map(|_| Vec::new()),
                    request: request.clone(),
                };
                (request.prompt.clone(), work)
            }
        };
        let group = self.next_group;
        self.next_group += 1;
        self.totals.requests += 1;
        self.n_unadmitted += 1;
        let standing = Standing {
            tenant: account.tenant,
            weight: account.weight,
            priority,
        };
        self.scheduler.add(first, standing, tokens.len(), max_chunk);
        self.sequences.insert(first, Sequence { group, tokens, work });
        let sequences = vec![first];
        self.groups.insert(
            group,
            Group {
                id,
                sink,
                span,
                place: Some(place),
                arrived,
                admitted: None,
                sequences,
            },
        );
    }

    fn next_seq_id(&mut self) -> SeqId {
        self.next_seq += 1;
        SeqId(self.next_seq)
    }

    /// One step. Does nothing when there is nothing to do.
    pub(crate) fn step(&mut self) {
        self.drop_cancelled();
        let began = (self.clock)();
        let (model, scrub) = (&mut self.model, self.scrub_freed);
        let plan = self.scheduler.plan(|cache| scrub_if(scrub, model, cache));
        self.note_preempted(&plan.preempted);
        self.admit(&plan.admitted, began);
        if plan.items.is_empty() {
            return;
        }
        let result = self.forward(&plan);
        let now = (self.clock)();
        self.totals.steps += 1;
        match result {
            Ok(output) => {
                self.failures_in_a_row = 0;
                self.scheduler.commit(&plan);
                self.record_pace(&plan, now - began);
                let StepOutput { entries, chosen } = output;
                let chosen = chosen.into_iter().chain(std::iter::repeat(None));
                for ((item, rows), chosen) in plan.items.iter().zip(entries).zip(chosen) {
                    self.tell_prefilled(item, began, now);
                    self.take_output(item, rows, chosen, now);
                }
            }
            Err(failure) => self.step_failed(&plan, failure),
        }
    }

    /// Frees the sequences whose clients have gone.
    fn drop_cancelled(&mut self) {
        let gone: Vec<u64> = self
            .groups
            .iter()
            .filter(|(_, g)| g.sink.is_closed())
            .map(|(id, _)| *id)
            .collect();
        for group in gone {
            self.totals.cancelled += 1;
            self.end_group(group);
        }
    }

    /// Frees all that a request holds and returns it, for its last event.
    fn end_group(&mut self, id: u64) -> Option<Group> {
        let group = self.groups.remove(&id)?;
        self.n_unadmitted -= usize::from(group.admitted.is_none());
        for seq in &group.sequences {
            self.end_sequence(*seq);
        }
        if let Some(gone) = group.sink.dropped_at() {
            let waited = (self.clock)().saturating_duration_since(gone);
            self.measured.cancel_to_free.observe(waited.as_secs_f64());
        }
        Some(group)
    }

    fn end_sequence(&mut self, id: SeqId) {
        self.sequences.remove(&id);
        let (model, scrub) = (&mut self.model, self.scrub_freed);
        self.scheduler.remove(id, |cache| scrub_if(scrub, model, cache));
    }

    /// Ends the whole request of a sequence with an error.
    fn fail_sequence(&mut self, id: SeqId, error: &RequestError) {
        let Some(group) = self.sequences.get(&id).map(|s| s.group) else {
            return;
        };
        if let Some(group) = self.end_group(group) {
            let cause = error.to_log();
            group
                .span
                .in_scope(|| tracing::warn!(request_id = %group.id, cause, "a request failed"));
            group.sink.fail(error.clone());
        }
    }

    fn note_preempted(&mut self, preempted: &[SeqId]) {
        for id in preempted {
            self.totals.preemptions += 1;
            match self.sequences.get_mut(id).map(|s| &mut s.work) {
                Some(Work::Generate { completion, .. }) => completion.preemptions += 1,
                Some(Work::Embed(pooler)) => pooler.reset(),
                None => {}
            }
        }
    }

    /// Resets the slots of those who start from nothing, and tells clients who come for the first time.
    fn admit(&mut self, admitted: &[SeqId], now: Instant) {
        for id in admitted {
            if let Some(cache) = self.scheduler.cache(*id) {
                self.model.reset_slot(cache.slot());
            }
            let Some(sequence) = self.sequences.get(id) else {
                continue;
            };
            let Some(group) = self.groups.get_mut(&sequence.group) else {
                continue;
            };
            if group.admitted.is_some() {
                continue;
            }
            group.admitted = Some(now);
            group.place = None;
            self.n_unadmitted -= 1;
            self.totals.prompt_tokens += sequence.tokens.len() as u64;
            if let Work::Generate {
                prompt_logprobs: None,
                ..
            } = &sequence.work
            {
                // Whoever does not listen any more is noticed at the next step.
                let _ = group
                    .sink
                    .send(group.prompt_event(sequence.tokens.len(), Vec::new()));
            }
        }
    }

    fn record_pace(&mut self, plan: &Plan, elapsed: std::time::Duration) {
        let is_decode = |item: &&PlanItem| {
            self.sequences.get(&item.id).is_some_and(|s| match &s.work {
                Work::Generate { request, .. } => item.n_tokens == 1 && item.start >= request.prompt.len(),
                Work::Embed(_) => false,
            })
        };
        let decoded = plan.items.iter().filter(is_decode).count();
        let total: usize = plan.items.iter().map(|item| item.n_tokens).sum();
        let prefilled = total - decoded;
        if decoded > 0 {
            self.decode_rate.record(decoded, elapsed);
            self.decode_step_rate.record(1, elapsed);
        }
        if prefilled > 0 {
            self.prefill_rate.record(prefilled, elapsed);
        }
        let seconds = match (decoded > 0, prefilled > 0) {
            (true, true) => &mut self.measured.mixed_steps,
            (true, false) => &mut self.measured.decode_steps,
            (false, _) => &mut self.measured.prefill_steps,
        };
        seconds.observe(elapsed.as_secs_f64());
        self.measured.step_tokens.observe(total as f64);
    }

    /// Tells a client of a computed part of its prompt.
    fn tell_prefilled(&self, item: &PlanItem, began: Instant, ended: Instant) {
        let Some(sequence) = self.sequences.get(&item.id) else {
            return;
        };
        let is_decode = match &sequence.work {
            Work::Generate { request, .. } => item.n_tokens == 1 && item.start >= request.prompt.len(),
            Work::Embed(_) => false,
        };
        if let (false, Some(group)) = (is_decode, self.groups.get(&sequence.group)) {
            group.sink.offer(Event::Prefilled(Prefilled {
                began,
                ended,
                start: item.start,
                tokens: item.n_tokens,
                is_last: item.completes,
            }));
        }
    }

    /// Makes events of what the model answered to one item.
    fn take_output(&mut self, item: &PlanItem, rows: Rows, chosen: Option<TokenId>, now: Instant) {
        let Some(sequence) = self.sequences.get_mut(&item.id) else {
            return;
        };
        let Some(group) = self.groups.get_mut(&sequence.group) else {
            return;
        };
        match &mut sequence.work {
            Work::Embed(pooler) => {
                pooler.push(item.n_tokens, rows);
                if item.completes {
                    let values = pooler.finish();
                    let tokens = sequence.tokens.len();
                    let group = sequence.group;
                    self.finish_embedding(group, values, tokens, now);
                }
            }
            Work::Generate {
                request,
                prompt_logprobs,
                siblings,
                ..
            } => {
                if let Some(gathered) = prompt_logprobs {
                    let n = request.output.prompt_logprobs.unwrap_or(0);
                    gather_prompt_logprobs(gathered, &request.prompt, item, &rows, n, &self.vocabulary);
                }
                if !item.completes {
                    return;
                }
                if let Some(gathered) = prompt_logprobs.take() {
                    let _ = group
                        .sink
                        .send(group.prompt_event(request.prompt.len(), gathered));
                }
                let siblings = std::mem::take(siblings);
                let group = sequence.group;
                let answer = || rows.last().map_or(Answer::Chosen(chosen), Answer::Logits);
                for (sibling, index) in siblings.into_iter().zip(1..) {
                    self.fork(item.id, sibling, index);
                    self.take_token(group, sibling, answer(), now);
                }
                self.take_token(group, item.id, answer(), now);
            }
        }
    }

    fn finish_embedding(&mut self, group: u64, values: Vec<f32>, tokens: usize, now: Instant) {
        let Some(group) = self.end_group(group) else {
            return;
        };
        let admitted = group.admitted.unwrap_or(now);
        let timings = Timings {
            queue: admitted.saturating_duration_since(group.arrived),
            prefill: now.saturating_duration_since(admitted),
            total: now.saturating_duration_since(group.arrived),
            ..Timings::default()
        };
        if group
            .sink
            .send(Event::Embedded(Embedded {
                values,
                tokens,
                timings,
            }))
            .is_ok()
        {
            group.sink.finish();
        }
    }

    /// Begins completion `index` of a prompt that `parent` has just computed.
    fn fork(&mut self, parent: SeqId, child: SeqId, index: u32) {
        let Some(sequence) = self.sequences.get(&parent) else {
            return;
        };
        let Work::Generate { request, .. } = &sequence.work else {
            return;
        };
        let work = Work::Generate {
            completion: Box::new(Completion::new(request.clone(), index, &self.vocabulary)),
            request: request.clone(),
            siblings: Vec::new(),
            prompt_logprobs: None,
        };
        let child_sequence = Sequence {
            group: sequence.group,
            tokens: sequence.tokens.clone(),
            work,
        };
        if let Some(group) = self.groups.get_mut(&sequence.group) {
            group.sequences.push(child);
        }
        self.sequences.insert(child, child_sequence);
        let Some(copy) = self.scheduler.fork(parent, child) else {
            return; // no room now: it waits, and computes the prompt for itself
        };
        if let Err(error) = self.model.copy(&copy.as_copy()) {
            tracing::warn!(%error, "a cache could not be copied: its sequence computes its prompt for itself");
            let (model, scrub) = (&mut self.model, self.scrub_freed);
            let preempted = self
                .scheduler
                .give_back([child], |cache| scrub_if(scrub, model, cache));
            self.note_preempted(&preempted);
        }
    }

    /// Takes a sequence's next token and tells its client.
    fn take_token(&mut self, group_id: u64, id: SeqId, answer: Answer<'_>, now: Instant) {
        let Some(sequence) = self.sequences.get_mut(&id) else {
            return;
        };
        let Some(group) = self.groups.get_mut(&group_id) else {
            return;
        };
        let Work::Generate { completion, .. } = &mut sequence.work else {
            return;
        };
        let accepted = match completion.accept(answer, &self.vocabulary, now) {
            Ok(accepted) => accepted,
            Err(error) => return self.fail_sequence(id, &error),
        };
        self.totals.generated_tokens += 1;
        let mut sent = group.sink.tell(accepted.delta, accepted.due);
        let Some(reason) = accepted.finish else {
            sequence.tokens.push(accepted.token);
            self.scheduler.push_token(id);
            if sent.is_err() {
                self.end_group(group_id);
            }
            return;
        };
        let finished = completion.finished(reason, group.admitted.unwrap_or(now), now);
        sent = sent.and_then(|()| group.sink.send(Event::Finished(finished)));
        group.sequences.retain(|seq| *seq != id);
        let was_last = group.sequences.is_empty();
        self.end_sequence(id);
        if (was_last || sent.is_err())
            && let Some(group) = self.end_group(group_id)
            && sent.is_ok()
        {
            group.sink.finish();
        }
    }

    fn tenants(&self) -> Vec<TenantLoad> {
        let (running, waiting) = (self.scheduler.running_by_tenant(), self.queue.tenants());
        let all: BTreeSet<TenantId> = running.keys().chain(waiting.keys()).copied().collect();
        let load = |tenant: TenantId| {
            let waits = waiting.get(&tenant).copied().unwrap_or_default();
            TenantLoad {
                tenant,
                running: running.get(&tenant).copied().unwrap_or_default(),
                waiting: waits.requests,
                waiting_tokens: waits.tokens,
            }
        };
        all.into_iter().map(load).collect()
    }

    /// Load and counters, now.
    pub(crate) fn stats(&self, draining: bool) -> EngineStats {
        let accounts = self.scheduler.accounts();
        let plan = accounts.plan();
        let queued = self.queue.waiting();
        let pool = |pool: &crate::kv::Pool, block_bytes| PoolStats {
            used: pool.n_used(),
            total: pool.total(),
            block_tokens: plan.block_tokens,
            block_bytes,
        };
        EngineStats {
            running: self.scheduler.n_running(),
            waiting: queued.requests + self.scheduler.n_waiting().saturating_sub(self.n_unadmitted),
            waiting_tokens: queued.tokens,
            tenants: self.tenants(),
            global: pool(accounts.global(), plan.global_block_bytes),
            window: pool(accounts.window(), plan.window_block_bytes),
            slots_used: accounts.slots().n_used(),
            slots_total: accounts.slots().total(),
            window_tokens: plan.window_tokens,
            window_rows_peak: self.scheduler.window_rows_peak(),
            max_step_tokens: self.limits.max_step_tokens,
            totals: self.totals,
            measured: self.measured,
            decode_rate: self.decode_rate.per_second(),
            prefill_rate: self.prefill_rate.per_second(),
            decode_step_rate: self.decode_step_rate.per_second(),
            draining,
            health: EngineHealth::Running,
        }
    }
}

fn scrub_if<M: CausalLm>(scrub: bool, model: &mut M, cache: &SequenceCache) {
    if scrub {
        model.scrub(&cache.as_freed());
    }
}
