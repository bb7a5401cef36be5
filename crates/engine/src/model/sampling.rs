//! How a token is chosen of a row of logits, as a model that does so itself is told, and as the host does it.

use crate::error::StepError;
use crate::ids::TokenId;
use crate::sampler::{self, Filters};

/// A token that penalties apply to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    /// The token.
    pub id: TokenId,
    /// How often it was generated; 0: it is in the prompt only.
    pub generated: u32,
}

/// How one token is to be chosen. [`Sampling::choose`] is the definition: a model that chooses tokens itself
/// ([`super::ModelSpec::samples`]) answers what it answers, up to rounding.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampling<'a> {
    /// Softmax temperature; 0 is greedy.
    pub temperature: f32,
    /// Only the k likeliest; 0 is off.
    pub top_k: u32,
    /// Of those the fewest that reach this share of their probability; 1 is off.
    pub top_p: f32,
    /// Of those the ones at least this many times as likely as the likeliest; 0 is off.
    pub min_p: f32,
    /// Divides positive and multiplies negative logits of [`Self::seen`]; 1 is off.
    pub repetition_penalty: f32,
    /// Subtracted from logits of tokens generated.
    pub presence_penalty: f32,
    /// Subtracted from logits of tokens generated, each time they were.
    pub frequency_penalty: f32,
    /// What penalties apply to, each token once; empty where there are none.
    pub seen: &'a [Seen],
    /// Cannot be chosen; fewer than the vocabulary has.
    pub forbidden: &'a [TokenId],
    /// Where among what is left the token lies, in [0, 1): in order of falling probability, or of ids where nothing
    /// is filtered.
    pub draw: f64,
}

impl Sampling<'_> {
    /// The likeliest token, and no more.
    pub const GREEDY: Self = Self {
        temperature: 0.0,
        top_k: 0,
        top_p: 1.0,
        min_p: 0.0,
        repetition_penalty: 1.0,
        presence_penalty: 0.0,
        frequency_penalty: 0.0,
        seen: &[],
        forbidden: &[],
        draw: 0.0,
    };

    /// Whether the answer is the likeliest token of the row as it is.
    pub fn is_plain_greedy(&self) -> bool {
        self.temperature == 0.0 && self.seen.is_empty() && self.forbidden.is_empty()
    }

    /// Chooses a token of a row of logits.
    ///
    /// # Errors
    /// [`StepError::NotFinite`] if a logit is not a number, or nothing is possible.
    pub fn choose(&self, logits: &[f32]) -> Result<TokenId, StepError> {
        if !logits.iter().all(|logit| logit.is_finite()) {
            return Err(StepError::NotFinite);
        }
        let mut logits = logits.to_vec();
        let penalties = [
            self.repetition_penalty,
            self.presence_penalty,
            self.frequency_penalty,
        ];
        sampler::penalise(&mut logits, penalties, self.seen);
        for id in self.forbidden {
            logits[*id as usize] = f32::NEG_INFINITY;
        }
        let filters = Filters {
            temperature: self.temperature,
            top_k: self.top_k,
            typical_p: 1.0,
            top_p: self.top_p,
            min_p: self.min_p,
        };
        sampler::pick(&filters, &logits, || self.draw).ok_or(StepError::NotFinite)
    }
}
