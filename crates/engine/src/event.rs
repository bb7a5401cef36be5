//! What a backend tells of a request as it goes on.

use std::time::{Duration, Instant};

use crate::error::RequestError;
use crate::ids::TokenId;

/// One piece of news of a request.
///
/// A generation yields [`Event::Prompt`] once, then deltas and one [`Event::Finished`] per completion; an embedding
/// yields [`Event::Embedded`] once. [`Event::Prefilled`] may come between them, and [`Event::Failed`] at any time. The stream ends after the last
/// completion's end, the embedding, or the failure: the one terminal event.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// The request was admitted.
    Prompt(PromptInfo),
    /// A step computed a part of the prompt. Left out where the reader has no room for it, and by backends that do
    /// not see steps: good for showing, not for counting.
    Prefilled(Prefilled),
    /// A piece of a completion.
    Delta(Delta),
    /// The end of a completion.
    Finished(Finished),
    /// The vector of an input.
    Embedded(Embedded),
    /// The request ended without finishing.
    Failed(RequestError),
}

/// What is known of the prompt before the first token.
#[derive(Clone, Debug, PartialEq)]
pub struct PromptInfo {
    /// Length of the prompt.
    pub prompt_tokens: usize,
    /// Of these, how many were cached.
    pub cached_tokens: usize,
    /// From arrival to admission.
    pub queue: Duration,
    /// Of the prompt's tokens but the first, when asked for.
    pub prompt_logprobs: Vec<TokenLogprobs>,
}

/// A part of a prompt, or of what is computed again after a pause, that one step computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prefilled {
    /// When the step began.
    pub began: Instant,
    /// When it ended.
    pub ended: Instant,
    /// Position of its first token.
    pub start: usize,
    /// Its length in tokens.
    pub tokens: usize,
    /// Whether it was the last part: the first token was chosen at its end.
    pub is_last: bool,
}

/// A piece of a completion.
#[derive(Clone, Debug, PartialEq)]
pub struct Delta {
    /// When the step that chose its last token ended.
    pub at: Instant,
    /// Which completion.
    pub index: u32,
    /// Whole characters; never a part of a stop string.
    pub text: String,
    /// The tokens since the last delta, whether or not their text is out yet.
    pub token_ids: Vec<TokenId>,
    /// One per token, when asked for.
    pub logprobs: Vec<TokenLogprobs>,
}

impl Delta {
    /// Takes the piece of the same completion that comes next.
    pub(crate) fn append(&mut self, next: Self) {
        self.at = next.at;
        self.text.push_str(&next.text);
        self.token_ids.extend(next.token_ids);
        self.logprobs.extend(next.logprobs);
    }
}

/// A token's log-probability and the likeliest tokens at its place.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenLogprobs {
    /// The token, with its natural-log probability under the model alone, before any sampling parameter.
    pub token: TokenLogprob,
    /// The likeliest, in falling order.
    pub top: Vec<TokenLogprob>,
}

/// A token and its natural-log probability.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenLogprob {
    /// The token.
    pub id: TokenId,
    /// Its log-probability.
    pub logprob: f32,
    /// Its text by itself; replacement characters where it is a part of a character.
    pub text: String,
}

/// The end of a completion.
#[derive(Clone, Debug, PartialEq)]
pub struct Finished {
    /// Which completion.
    pub index: u32,
    /// Why.
    pub reason: FinishReason,
    /// Tokens.
    pub usage: Usage,
    /// Time.
    pub timings: Timings,
    /// How often it was paused to make room and recomputed.
    pub preemptions: u32,
}

/// Why a completion ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FinishReason {
    /// An end-of-sequence token of the checkpoint.
    Eos(TokenId),
    /// A stop token of the request.
    StopToken(TokenId),
    /// A stop string of the request.
    StopString(String),
    /// `max_tokens` reached.
    Length,
    /// The context is full.
    ContextFull,
}

/// Tokens consumed and produced.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Of the prompt.
    pub prompt_tokens: usize,
    /// Generated.
    pub completion_tokens: usize,
    /// Of the prompt, cached.
    pub cached_tokens: usize,
}

/// Where a completion's time went.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timings {
    /// From arrival to admission.
    pub queue: Duration,
    /// From admission to the end of the prompt's last step.
    pub prefill: Duration,
    /// From the first token to the last.
    pub decode: Duration,
    /// From arrival to the first token.
    pub time_to_first_token: Duration,
    /// From arrival to the end.
    pub total: Duration,
}

impl Timings {
    /// Mean time between tokens; zero with fewer than two.
    pub fn time_per_output_token(&self, completion_tokens: usize) -> Duration {
        let gaps = u32::try_from(completion_tokens.saturating_sub(1)).unwrap_or(u32::MAX);
        self.decode.checked_div(gaps).unwrap_or_default()
    }
}

/// The vector of an input.
#[derive(Clone, Debug, PartialEq)]
pub struct Embedded {
    /// One vector of `hidden_size`; without pooling one per token, one after another.
    pub values: Vec<f32>,
    /// Tokens of the input.
    pub tokens: usize,
    /// Time; there is no decode.
    pub timings: Timings,
}
