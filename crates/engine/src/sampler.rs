//! A row of logits → a token: the host path.
//!
//! Order: bias and allow/deny lists, penalties, then, unless greedy, temperature, top-k, typical, top-p and min-p,
//! and one draw. The draw depends on the request's seed, the completion's index and the token's number alone: not
//! on the batch, and not on a preemption in between. Ties go to the lower token id.

use std::collections::{HashMap, HashSet};

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::error::StepError;
use crate::ids::TokenId;
use crate::request::SamplingParams;

mod filter;
mod logprobs;

pub(crate) use logprobs::top_logprobs;

/// ChaCha words reserved for one token's draw: one block.
const WORDS_PER_TOKEN: u128 = 16;

/// One completion's sampling state.
#[derive(Debug)]
pub(crate) struct Sampler {
    rng: ChaCha8Rng,
    /// Tokens of the prompt, for the repetition penalty.
    prompt: HashSet<TokenId>,
    /// How often each token was generated.
    generated: HashMap<TokenId, u32>,
    n_generated: u64,
}

impl Sampler {
    /// For completion `index` of a prompt.
    pub(crate) fn new(params: &SamplingParams, index: u32, prompt: &[TokenId]) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(params.seed);
        rng.set_stream(u64::from(index));
        let prompt = if params.repetition_penalty == 1.0 {
            HashSet::new()
        } else {
            prompt.iter().copied().collect()
        };
        Self {
            rng,
            prompt,
            generated: HashMap::new(),
            n_generated: 0,
        }
    }

    /// Chooses the next token from a row of logits. `forbidden` can not be chosen this time.
    pub(crate) fn sample(
        &mut self,
        params: &SamplingParams,
        logits: &[f32],
        forbidden: &[TokenId],
    ) -> Result<TokenId, StepError> {
        if !logits.iter().all(|l| l.is_finite()) {
            return Err(StepError::NotFinite);
        }
        let adjusted = self.adjust(params, logits, forbidden);
        let token = if params.temperature == 0.0 {
            argmax(&adjusted)
        } else {
            self.rng
                .set_word_pos(u128::from(self.n_generated) * WORDS_PER_TOKEN);
            let draw: f64 = self.rng.random();
            let candidates = filter::candidates(params, &adjusted);
            filter::pick(&candidates, draw)
        };
        let token = token.ok_or(StepError::NotFinite)?;
        *self.generated.entry(token).or_insert(0) += 1;
        self.n_generated += 1;
        Ok(token)
    }

    /// The logits with everything but temperature and filters applied; what cannot be chosen is −∞.
    fn adjust(&self, params: &SamplingParams, logits: &[f32], forbidden: &[TokenId]) -> Vec<f32> {
        let mut out = if params.allowed_token_ids.is_empty() {
            logits.to_vec()
        } else {
            let mut only = vec![f32::NEG_INFINITY; logits.len()];
            for id in &params.allowed_token_ids {
                only[*id as usize] = logits[*id as usize];
            }
            only
        };
        if params.repetition_penalty != 1.0 {
            let seen = self
                .prompt
                .iter()
                .chain(self.generated.keys().filter(|t| !self.prompt.contains(t)));
            for id in seen {
                let logit = &mut out[*id as usize];
                *logit = if *logit > 0.0 {
                    *logit / params.repetition_penalty
                } else {
                    *logit * params.repetition_penalty
                };
            }
        }
        if params.presence_penalty != 0.0 || params.frequency_penalty != 0.0 {
            for (id, count) in &self.generated {
                out[*id as usize] -= params.presence_penalty + params.frequency_penalty * *count as f32;
            }
        }
        for (id, bias) in &params.logit_bias {
            out[*id as usize] += bias;
        }
        for id in params.bad_token_ids.iter().chain(forbidden) {
            out[*id as usize] = f32::NEG_INFINITY;
        }
        // Where only what may not end the completion is left, nothing else is possible: forbid it no longer.
        if out.iter().all(|l| *l == f32::NEG_INFINITY) {
            let allowed = &params.allowed_token_ids;
            let may = |id: TokenId| {
                (allowed.is_empty() || allowed.contains(&id)) && !params.bad_token_ids.contains(&id)
            };
            for id in forbidden.iter().filter(|id| may(**id)) {
                out[*id as usize] = logits[*id as usize];
            }
        }
        out
    }
}

/// The largest, the first of equals; none if nothing is possible.
fn argmax(logits: &[f32]) -> Option<TokenId> {
    let mut best = (None, f32::NEG_INFINITY);
    for (id, logit) in logits.iter().enumerate() {
        if *logit > best.1 {
            best = (Some(id as TokenId), *logit);
        }
    }
    best.0
}

#[cfg(test)]
mod tests;
