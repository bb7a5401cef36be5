//! Temperature, the filters, and the draw.
//!
//! Likelihoods are whole numbers, so that sums do not depend on the order of additions, and a share of equally likely
//! tokens ends where it should and not where rounding has it. Kernels that choose on a device count alike.

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

/// The likeliest token's mass; the sum over a vocabulary of millions stays below 2^63.
const UNIT: f64 = (1u64 << 40) as f64;

/// A token that may be drawn, and how likely it is against the likeliest of its row, in parts of [`UNIT`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Candidate {
    pub(super) id: TokenId,
    pub(super) mass: u64,
}

/// What the filters leave of a row of adjusted logits, likeliest first unless every filter is off.
pub(super) fn candidates(params: &Filters, logits: &[f32]) -> Vec<Candidate> {
    let mut kept: Vec<(TokenId, f32)> = logits
        .iter()
        .enumerate()
        .filter(|(_, logit)| **logit > f32::NEG_INFINITY)
        .map(|(id, logit)| (id as TokenId, *logit))
        .collect();
    // Both zeros are one.
    let falling =
        |a: &(TokenId, f32), b: &(TokenId, f32)| (b.1 + 0.0).total_cmp(&(a.1 + 0.0)).then(a.0.cmp(&b.0));

    let top_k = params.top_k as usize;
    if top_k > 0 && top_k < kept.len() {
        kept.select_nth_unstable_by(top_k - 1, falling);
        kept.truncate(top_k);
    }
    let filters = top_k > 0 || params.typical_p < 1.0 || params.top_p < 1.0 || params.min_p > 0.0;
    if filters {
        kept.sort_unstable_by(falling);
    }
    let mut candidates = weigh(&kept, f64::from(params.temperature));
    if params.typical_p < 1.0 {
        keep_typical(&mut candidates, f64::from(params.typical_p));
    }
    if params.top_p < 1.0 {
        keep_share(&mut candidates, f64::from(params.top_p));
    }
    if params.min_p > 0.0 {
        let likeliest = candidates.first().map_or(0, |c| c.mass);
        let least = (likeliest as f64 * f64::from(params.min_p)).ceil() as u64;
        candidates.retain(|c| c.mass >= least);
    }
    candidates
}

/// The candidate at which the masses, added up, pass `draw` of their sum; `draw` is in [0, 1).
pub(super) fn pick(candidates: &[Candidate], draw: f64) -> Option<TokenId> {
    let total = sum(candidates);
    let goal = ((draw * total as f64) as u64 + 1).min(total);
    candidates.get(reaching(candidates, goal)).map(|c| c.id)
}

fn sum(candidates: &[Candidate]) -> u64 {
    candidates.iter().map(|c| c.mass).sum()
}

/// The place of the first candidate at which the masses, added up, are `goal` or more.
fn reaching(candidates: &[Candidate], goal: u64) -> usize {
    let mut through = 0;
    let is_short = |c: &&Candidate| {
        through += c.mass;
        through < goal
    };
    candidates.iter().take_while(is_short).count()
}

fn weigh(kept: &[(TokenId, f32)], temperature: f64) -> Vec<Candidate> {
    let max = kept
        .iter()
        .fold(f32::NEG_INFINITY, |max, (_, logit)| max.max(*logit));
    let mass = |logit: f32| ((f64::from(logit - max) / temperature).exp() * UNIT) as u64;
    let candidate = |&(id, logit): &(TokenId, f32)| Candidate {
        id,
        mass: mass(logit),
    };
    kept.iter().map(candidate).collect()
}

/// Keeps the first of `candidates` whose masses reach `share` of the sum, at least one.
fn keep_share(candidates: &mut Vec<Candidate>, share: f64) {
    let total = sum(candidates);
    let goal = ((share * total as f64).ceil() as u64).clamp(1, total.max(1));
    candidates.truncate(reaching(candidates, goal) + 1);
}

/// Locally typical sampling (Meister et al. 2022): the tokens whose surprise is nearest the entropy.
fn keep_typical(candidates: &mut Vec<Candidate>, share: f64) {
    let total = sum(candidates) as f64;
    let probability = |c: &Candidate| c.mass as f64 / total;
    let surprise = |c: &Candidate| -probability(c).max(f64::MIN_POSITIVE).ln();
    let entropy: f64 = candidates.iter().map(|c| probability(c) * surprise(c)).sum();
    let distance = |c: &Candidate| (surprise(c) - entropy).abs();
    candidates.sort_by(|a, b| distance(a).total_cmp(&distance(b)).then(a.id.cmp(&b.id)));
    keep_share(candidates, share);
    candidates.sort_by(|a, b| b.mass.cmp(&a.mass).then(a.id.cmp(&b.id)));
}
