//! What becomes of requests when a step fails, and of the model when it is the model that fails.
//!
//! A step that fails with an error costs nobody anything: its requests are computed again, each alone, and only
//! the one that fails alone is refused. A step that runs out of memory is taken in smaller parts. A step that
//! panics ends its requests, for nobody knows whose fault it was; the model is then made anew before it goes on.

use std::panic::{AssertUnwindSafe, catch_unwind};

use super::{EngineCore, scrub_if};
use crate::error::{RequestError, StepError};
use crate::ids::SeqId;
use crate::model::{CausalLm, Rows, StepBatch, StepEntry, StepOutput, Wants};
use crate::scheduler::{Plan, Scheduler, Standing};

/// Failed steps, with none between that did not fail, after which it is the model. Two are one bad request.
const MAX_FAILURES_IN_A_ROW: u32 = 8;

/// How a step failed.
pub(super) enum Failure {
    Error(StepError),
    /// What the model keeps cannot be relied on any more.
    Panicked,
}

impl From<StepError> for Failure {
    fn from(error: StepError) -> Self {
        Self::Error(error)
    }
}

impl<M: CausalLm> EngineCore<M> {
    /// Whether it is the model that fails, not a request: no step may be taken before [`Self::recover`].
    pub(crate) fn is_broken(&self) -> bool {
        self.panicked || self.failures_in_a_row >= MAX_FAILURES_IN_A_ROW
    }

    /// What the model answers to a plan, one entry per item.
    pub(super) fn forward(&mut self, plan: &Plan) -> Result<StepOutput, Failure> {
        let mut entries = Vec::with_capacity(plan.items.len());
        for item in &plan.items {
            let (Some(sequence), Some(cache)) = (self.sequences.get(&item.id), self.scheduler.cache(item.id))
            else {
                let message = format!("{:?} was planned without memory", item.id);
                return Err(StepError::Compute(message).into());
            };
            entries.push(StepEntry {
                slot: cache.slot(),
                tokens: &sequence.tokens[item.start..item.start + item.n_tokens],
                start: item.start,
                global: cache.global(),
                window: cache.window(),
                wants: sequence.wants(item, self.model.spec()),
            });
        }
        let batch = StepBatch { entries: &entries };
        // A model that panicked is not used again before it has recovered.
        let output = catch_unwind(AssertUnwindSafe(|| self.model.forward(&batch)));
        let output = output.map_err(|_| Failure::Panicked)??;
        let (got, wanted) = (output.entries.len(), plan.items.len());
        if got != wanted {
            let message = format!("the model answered {got} of {wanted} entries");
            return Err(StepError::Compute(message).into());
        }
        Ok(output)
    }

    /// Deals with the requests of a step that failed.
    pub(super) fn step_failed(&mut self, plan: &Plan, failure: Failure) {
        self.totals.failed_steps += 1;
        match failure {
            Failure::Panicked => self.end_panicked(plan),
            Failure::Error(StepError::OutOfMemory(message)) if plan.n_tokens() > 1 => {
                self.relieve(plan, &message);
            }
            Failure::Error(error) => self.isolate(plan, &error),
        }
    }

    /// The requests of a step that panicked end; the others are computed again once the model has recovered.
    fn end_panicked(&mut self, plan: &Plan) {
        tracing::error!(sequences = plan.items.len(), "a step panicked; its requests end");
        self.panicked = true;
        for item in &plan.items {
            self.fail_sequence(item.id, &RequestError::EngineStopped);
        }
    }

    /// Out of memory: the step's sequences are computed again, in steps of half its size.
    fn relieve(&mut self, plan: &Plan, message: &str) {
        let tokens = plan.n_tokens();
        tracing::warn!(
            message,
            tokens,
            "a step ran out of memory: smaller steps for a while"
        );
        self.totals.out_of_memory += 1;
        self.scheduler.shrink_steps(tokens / 2);
        self.give_back(plan.items.iter().map(|item| item.id));
    }

    /// Whoever failed alone, for the second time, is refused; the others are computed again, each alone, so that
    /// one request cannot harm another.
    fn isolate(&mut self, plan: &Plan, error: &StepError) {
        tracing::error!(%error, sequences = plan.items.len(), "a step failed");
        self.failures_in_a_row += 1;
        if let [item] = plan.items[..]
            && self.scheduler.is_suspect(item.id)
        {
            self.fail_sequence(item.id, &RequestError::StepFailed(error.to_string()));
            return;
        }
        self.scheduler.suspect(plan);
        self.give_back(plan.items.iter().map(|item| item.id));
    }

    fn give_back(&mut self, ids: impl IntoIterator<Item = SeqId>) {
        let (model, scrub) = (&mut self.model, self.scrub_freed);
        let preempted = self
            .scheduler
            .give_back(ids, |cache| scrub_if(scrub, model, cache));
        self.note_preempted(&preempted);
    }

    /// Makes the model as if it had just been loaded. Requests that are still here are computed again.
    pub(crate) fn recover(&mut self) -> Result<(), StepError> {
        let all: Vec<SeqId> = self.sequences.keys().copied().collect();
        self.give_back(all);
        self.model.recover()?;
        self.warm_up()?;
        self.failures_in_a_row = 0;
        self.panicked = false;
        self.totals.restarts += 1;
        Ok(())
    }

    /// Ends every request, and forgets all that is known of them; it may be in any state.
    pub(crate) fn fail_all(&mut self) {
        self.sequences.clear();
        // Dropped without a terminal event, a sink ends its stream with `EngineStopped`.
        self.groups.clear();
        self.n_unadmitted = 0;
        self.scheduler = Scheduler::new(self.limits, self.model.spec().cache);
        self.panicked = true;
    }

    /// Runs two tokens and a third through the model, as a request would, and forgets them.
    ///
    /// No sequence may hold memory meanwhile.
    pub(crate) fn warm_up(&mut self) -> Result<(), StepError> {
        let mut scheduler = Scheduler::new(self.limits, self.model.spec().cache);
        let token = self.vocabulary.eos_token_ids.first().copied().unwrap_or(0);
        let id = SeqId(u64::MAX);
        scheduler.add(id, Standing::default(), 2, 2);
        for tokens in [vec![token; 2], vec![token]] {
            let plan = scheduler.plan(|_| {});
            let Some(cache) = scheduler.cache(id) else {
                break;
            };
            let start = plan.items.first().map_or(0, |item| item.start);
            if start == 0 {
                self.model.reset_slot(cache.slot());
            }
            let entry = StepEntry {
                slot: cache.slot(),
                tokens: &tokens,
                start,
                global: cache.global(),
                window: cache.window(),
                wants: Wants::AllLogits,
            };
            let output = self.model.forward(&StepBatch { entries: &[entry] })?;
            let mut logits = output.entries.iter().flat_map(Rows::iter).flatten();
            if !logits.all(|logit| logit.is_finite()) {
                return Err(StepError::NotFinite);
            }
            scheduler.commit(&plan);
            scheduler.push_token(id);
        }
        let (model, scrub) = (&mut self.model, self.scrub_freed);
        scheduler.remove(id, |cache| scrub_if(scrub, model, cache));
        Ok(())
    }
}
