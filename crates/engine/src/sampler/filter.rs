//! Temperature, the filters, and the draw.

use crate::ids::TokenId;
use crate::request::SamplingParams;

/// What narrows the choice down, and how far it strays from the likeliest token.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Filters {
    pub(crate) temperature: f32,
    pub(crate) top_k: u32,
    pub(crate) typical_p: f32,
    pub(crate) top_p: f32,
    pub(crate) min_p: f32,
}

impl Filters {
    pub(super) fn of(params: &SamplingParams) -> Self {
        Self {
            temperature: params.temperature,
            top_k: params.top_k,
            typical_p: params.typical_p,
            top_p: params.top_p,
            min_p: params.min_p,
        }
    }
}

/// A token that may be drawn, and how likely it is among those that are left.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Candidate {
    pub(super) id: TokenId,
    pub(super) probability: f64,
}

/// What the filters leave of a row of adjusted logits, likeliest first unless every filter is off.
pub(super) fn candidates(params: &Filters, logits: &[f32]) -> Vec<Candidate> {
    let mut kept: Vec<(TokenId, f32)> = logits
        .iter()
        .enumerate()
        .filter(|(_, logit)| **logit > f32::NEG_INFINITY)
        .map(|(id, logit)| (id as TokenId, *logit))
        .collect();
    let falling = |a: &(TokenId, f32), b: &(TokenId, f32)| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0));

    let top_k = params.top_k as usize;
    if top_k > 0 && top_k < kept.len() {
        kept.select_nth_unstable_by(top_k - 1, falling);
        kept.truncate(top_k);
    }
    let filters = top_k > 0 || params.typical_p < 1.0 || params.top_p < 1.0 || params.min_p > 0.0;
    if filters {
        kept.sort_unstable_by(falling);
    }
    let mut candidates = softmax(&kept, f64::from(params.temperature));
    if params.typical_p < 1.0 {
        keep_typical(&mut candidates, f64::from(params.typical_p));
    }
    if params.top_p < 1.0 {
        keep_mass(&mut candidates, f64::from(params.top_p));
    }
    if params.min_p > 0.0 {
        let least = candidates.first().map_or(0.0, |c| c.probability) * f64::from(params.min_p);
        candidates.retain(|c| c.probability >= least);
    }
    candidates
}

/// The candidate at which the probabilities, added up, reach `draw` of their sum; `draw` is in [0, 1).
pub(super) fn pick(candidates: &[Candidate], draw: f64) -> Option<TokenId> {
    let total: f64 = candidates.iter().map(|c| c.probability).sum();
    let mut left = draw * total;
    for candidate in candidates {
        left -= candidate.probability;
        if left < 0.0 {
            return Some(candidate.id);
        }
    }
    candidates.last().map(|c| c.id)
}

fn softmax(kept: &[(TokenId, f32)], temperature: f64) -> Vec<Candidate> {
    let max = kept
        .iter()
        .fold(f32::NEG_INFINITY, |max, (_, logit)| max.max(*logit));
    let weight = |logit: f32| (f64::from(logit - max) / temperature).exp();
    let total: f64 = kept.iter().map(|(_, logit)| weight(*logit)).sum();
    kept.iter()
        .map(|(id, logit)| Candidate {
            id: *id,
            probability: weight(*logit) / total,
        })
        .collect()
}

/// Keeps the first of `candidates` whose probabilities reach `mass`, at least one.
fn keep_mass(candidates: &mut Vec<Candidate>, mass: f64) {
    let total: f64 = candidates.iter().map(|c| c.probability).sum();
    let mut sum = 0.0;
    let n = candidates.iter().take_while(|c| {
        let wanted = sum < mass * total;
        sum += c.probability;
        wanted
    });
    let n = n.count().max(1);
    candidates.truncate(n);
}

/// Locally typical sampling (Meister et al. 2022): the tokens whose surprise is nearest the entropy.
fn keep_typical(candidates: &mut Vec<Candidate>, mass: f64) {
    let surprise = |c: &Candidate| -c.probability.max(f64::MIN_POSITIVE).ln();
    let entropy: f64 = candidates.iter().map(|c| c.probability * surprise(c)).sum();
    let distance = |c: &Candidate| (surprise(c) - entropy).abs();
    candidates.sort_by(|a, b| distance(a).total_cmp(&distance(b)).then(a.id.cmp(&b.id)));
    keep_mass(candidates, mass);
    candidates.sort_by(|a, b| b.probability.total_cmp(&a.probability).then(a.id.cmp(&b.id)));
}
