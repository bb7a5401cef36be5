//! A row of logits → a token: the host path.
//!
//! Order: the allow list, penalties, bias, what a grammar or the deny list forbids, then, unless greedy, temperature,
//! top-k, typical, top-p and min-p, and one draw. The draw depends on the request's seed, the completion's index and the token's number alone: not
//! on the batch, and not on a preemption in between. Ties go to the lower token id.

use std::collections::HashMap;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::error::StepError;
use crate::grammar::Mask;
use crate::ids::TokenId;
use crate::model::{Sampling, Seen};
use crate::request::SamplingParams;

mod filter;
mod logprobs;

pub(crate) use filter::Filters;
pub(crate) use logprobs::top_logprobs;

/// ChaCha words reserved for one token's draw: one block.
const WORDS_PER_TOKEN: u128 = 16;

/// One completion's sampling state.
#[derive(Debug)]
pub(crate) struct Sampler {
    rng: ChaCha8Rng,
    /// What penalties apply to, each token once: of the prompt, for the repetition penalty, and generated ones.
    /// Empty if there are no penalties.
    seen: Vec<Seen>,
    /// Where in `seen` a token is.
    places: HashMap<TokenId, usize>,
    has_penalties: bool,
    n_generated: u64,
}

impl Sampler {
    /// For completion `index` of a prompt.
    pub(crate) fn new(params: &SamplingParams, index: u32, prompt: &[TokenId]) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(params.seed);
        rng.set_stream(u64::from(index));
        let repetition = params.repetition_penalty != 1.0;
        let mut sampler = Self {
            rng,
            seen: Vec::new(),
            places: HashMap::new(),
            has_penalties: repetition || params.presence_penalty != 0.0 || params.frequency_penalty != 0.0,
            n_generated: 0,
        };
        if repetition {
            for id in prompt {
                sampler.see(*id);
            }
        }
        sampler
    }

    fn see(&mut self, id: TokenId) -> &mut Seen {
        let place = *self.places.entry(id).or_insert_with(|| {
            self.seen.push(Seen { id, generated: 0 });
            self.seen.len() - 1
        });
        &mut self.seen[place]
    }

    /// Chooses the next token from a row of logits; none if nothing is possible.
    ///
    /// `forbidden` can not be chosen this time, nor what a `mask` does not allow.
    pub(crate) fn sample(
        &mut self,
        params: &SamplingParams,
        logits: &[f32],
        forbidden: &[TokenId],
        mask: Option<&Mask>,
    ) -> Result<Option<TokenId>, StepError> {
        if !logits.iter().all(|l| l.is_finite()) {
            return Err(StepError::NotFinite);
        }
        let adjusted = self.adjust(params, logits, forbidden, mask);
        let token = pick(&Filters::of(params), &adjusted, || self.draw());
        if let Some(token) = token {
            self.note(token);
        }
        Ok(token)
    }

    /// The next token as a model is asked for it that chooses itself; none if only the host can: bias, lists of
    /// allowed tokens, typical sampling.
    pub(crate) fn sampling<'a>(
        &'a self,
        params: &SamplingParams,
        forbidden: &'a [TokenId],
    ) -> Option<Sampling<'a>> {
        let host_only =
            params.typical_p < 1.0 || !params.logit_bias.is_empty() || !params.allowed_token_ids.is_empty();
        (!host_only).then(|| Sampling {
            temperature: params.temperature,
            top_k: params.top_k,
            top_p: params.top_p,
            min_p: params.min_p,
            repetition_penalty: params.repetition_penalty,
            presence_penalty: params.presence_penalty,
            frequency_penalty: params.frequency_penalty,
            seen: &self.seen,
            forbidden,
            draw: if params.temperature == 0.0 {
                0.0
            } else {
                self.draw()
            },
        })
    }

    /// Takes the token that was chosen.
    pub(crate) fn note(&mut self, token: TokenId) {
        if self.has_penalties {
            self.see(token).generated += 1;
        }
        self.n_generated += 1;
    }

    /// The next token's draw, in [0, 1).
    fn draw(&self) -> f64 {
        let mut rng = self.rng.clone();
        rng.set_word_pos(u128::from(self.n_generated) * WORDS_PER_TOKEN);
        rng.random()
    }

    /// The logits with everything but temperature and filters applied; what cannot be chosen is −∞.
    fn adjust(
        &self,
        params: &SamplingParams,
        logits: &[f32],
        forbidden: &[TokenId],
        mask: Option<&Mask>,
    ) -> Vec<f32> {
        let mut out = if params.allowed_token_ids.is_empty() {
            logits.to_vec()
        } else {
            let mut only = vec![f32::NEG_INFINITY; logits.len()];
            for id in &params.allowed_token_ids {
                only[*id as usize] = logits[*id as usize];
            }
            only
        };
        let penalties = [
            params.repetition_penalty,
            params.presence_penalty,
            params.frequency_penalty,
        ];
        penalise(&mut out, penalties, &self.seen);
        for (id, bias) in &params.logit_bias {
            out[*id as usize] += bias;
        }
        if let Some(mask) = mask {
            for (id, logit) in (0..).zip(&mut out) {
                if !mask.allows(id) {
                    *logit = f32::NEG_INFINITY;
                }
            }
        }
        for id in params.bad_token_ids.iter().chain(forbidden) {
            out[*id as usize] = f32::NEG_INFINITY;
        }
        // Where only what may not end the completion is left, nothing else is possible: forbid it no longer.
        if out.iter().all(|l| *l == f32::NEG_INFINITY) {
            let allowed = &params.allowed_token_ids;
            let may = |id: TokenId| {
                (allowed.is_empty() || allowed.contains(&id))
                    && !params.bad_token_ids.contains(&id)
                    && mask.is_none_or(|mask| mask.allows(id))
            };
            for id in forbidden.iter().filter(|id| may(**id)) {
                out[*id as usize] = logits[*id as usize];
            }
        }
        out
    }
}

/// Applies repetition, presence and frequency penalty to the tokens seen.
pub(crate) fn penalise(logits: &mut [f32], [repetition, presence, frequency]: [f32; 3], seen: &[Seen]) {
    for Seen { id, generated } in seen {
        let logit = &mut logits[*id as usize];
        *logit = if *logit > 0.0 {
            *logit / repetition
        } else {
            *logit * repetition
        };
        if *generated > 0 {
            *logit -= presence + frequency * *generated as f32;
        }
    }
}

/// The token chosen of a row of adjusted logits; `draw` is asked unless the choice is greedy. None if nothing is
/// possible.
pub(crate) fn pick(filters: &Filters, logits: &[f32], draw: impl FnOnce() -> f64) -> Option<TokenId> {
    if filters.temperature == 0.0 {
        return argmax(logits);
    }
    filter::pick(&filter::candidates(filters, logits), draw())
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
