//! What the core keeps of each request and each sequence.

use std::sync::Arc;
use std::time::Instant;

use crate::backend::EventSink;
use crate::completion::{Completion, Vocabulary};
use crate::event::{Event, PromptInfo, TokenLogprobs};
use crate::ids::{RequestId, SeqId, TokenId};
use crate::model::{ModelSpec, Rows, Wants};
use crate::pooler::Pooler;
use crate::queue::Place;
use crate::request::GenerateRequest;
use crate::scheduler::PlanItem;

/// A request that was taken in: one input, or one prompt and its completions.
pub(super) struct Group {
    pub(super) id: RequestId,
    pub(super) sink: EventSink,
    /// What its log lines are written in: its caller's.
    pub(super) span: tracing::Span,
    /// Given up at admission.
    pub(super) place: Option<Place>,
    pub(super) arrived: Instant,
    pub(super) admitted: Option<Instant>,
    /// Its sequences that have not ended.
    pub(super) sequences: Vec<SeqId>,
}

/// A sequence's tokens, and what becomes of what the model says of them.
pub(super) struct Sequence {
    pub(super) group: u64,
    pub(super) tokens: Vec<TokenId>,
    pub(super) work: Work,
}

pub(super) enum Work {
    Generate {
        request: Arc<GenerateRequest>,
        completion: Box<Completion>,
        /// Completions that begin when this one's prompt is computed.
        siblings: Vec<SeqId>,
        /// Of the prompt's tokens from the second on, while they are asked for.
        prompt_logprobs: Option<Vec<TokenLogprobs>>,
    },
    Embed(Pooler),
}

impl Group {
    pub(super) fn prompt_event(&self, prompt_tokens: usize, prompt_logprobs: Vec<TokenLogprobs>) -> Event {
        let queue = self
            .admitted
            .map_or_else(Default::default, |at| at.saturating_duration_since(self.arrived));
        Event::Prompt(PromptInfo {
            prompt_tokens,
            cached_tokens: 0,
            queue,
            prompt_logprobs,
        })
    }
}

impl Sequence {
    /// What is needed of the model for an item of this sequence.
    pub(super) fn wants(&self, item: &PlanItem, spec: &ModelSpec) -> Wants<'_> {
        match &self.work {
            Work::Embed(pooler) => pooler
                .wants(item.start, item.completes)
                .map_or(Wants::Nothing, Wants::Hidden),
            Work::Generate {
                prompt_logprobs: Some(_),
                ..
            } => Wants::AllLogits,
            Work::Generate { .. } if !item.completes => Wants::Nothing,
            // One row of logits serves all completions that begin here.
            Work::Generate { siblings, .. } if !spec.samples || !siblings.is_empty() => Wants::LastLogits,
            Work::Generate { completion, .. } => completion
                .sampling(spec.vocab_size)
                .map_or(Wants::LastLogits, Wants::Sample),
        }
    }
}

/// Takes what rows of logits say of the prompt's tokens behind them, each once.
pub(super) fn gather_prompt_logprobs(
    gathered: &mut Vec<TokenLogprobs>,
    prompt: &[TokenId],
    item: &PlanItem,
    rows: &Rows,
    n: u32,
    vocabulary: &Vocabulary,
) {
    for (position, logits) in (item.start..).zip(rows.iter()) {
        let is_next = position == gathered.len();
        if let (true, Some(token)) = (is_next, prompt.get(position + 1)) {
            gathered.push(vocabulary.describe(logits, *token, n));
        }
    }
}
