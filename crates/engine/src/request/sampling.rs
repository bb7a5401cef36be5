//! How the next token is chosen: what may be asked, and what is left once checked.

use super::{LogitBias, RequestLimits};
use crate::error::Violations;
use crate::ids::TokenId;
use crate::text::GenerationDefaults;

/// What a client or a checkpoint says of sampling; absent fields mean somebody else's default.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SamplingOptions {
    /// Softmax temperature; 0 is greedy.
    pub temperature: Option<f32>,
    /// Nucleus: the smallest set whose probability reaches this.
    pub top_p: Option<f32>,
    /// Only the k likeliest; 0 is off.
    pub top_k: Option<u32>,
    /// Only tokens at least this many times as likely as the likeliest.
    pub min_p: Option<f32>,
    /// Locally typical sampling's mass.
    pub typical_p: Option<f32>,
    /// Divides positive and multiplies negative logits of seen tokens.
    pub repetition_penalty: Option<f32>,
    /// Subtracted once from logits of generated tokens.
    pub presence_penalty: Option<f32>,
    /// Subtracted per occurrence from logits of generated tokens.
    pub frequency_penalty: Option<f32>,
    /// Added to logits.
    pub logit_bias: LogitBias,
    /// When not empty, nothing else can be chosen.
    pub allowed_token_ids: Vec<TokenId>,
    /// Can never be chosen.
    pub bad_token_ids: Vec<TokenId>,
    /// Of the random draws.
    pub seed: Option<u64>,
    /// Completions of the one prompt.
    pub n: Option<u32>,
}

impl From<&GenerationDefaults> for SamplingOptions {
    /// What a checkpoint says.
    fn from(checkpoint: &GenerationDefaults) -> Self {
        Self {
            temperature: checkpoint.temperature,
            top_p: checkpoint.top_p,
            top_k: checkpoint.top_k,
            min_p: checkpoint.min_p,
            typical_p: checkpoint.typical_p,
            repetition_penalty: checkpoint.repetition_penalty,
            ..Self::default()
        }
    }
}

impl SamplingOptions {
    /// Fills what is absent here from `defaults`; lists are taken from here alone.
    pub fn or(self, defaults: &Self) -> Self {
        Self {
            temperature: self.temperature.or(defaults.temperature),
            top_p: self.top_p.or(defaults.top_p),
            top_k: self.top_k.or(defaults.top_k),
            min_p: self.min_p.or(defaults.min_p),
            typical_p: self.typical_p.or(defaults.typical_p),
            repetition_penalty: self.repetition_penalty.or(defaults.repetition_penalty),
            presence_penalty: self.presence_penalty.or(defaults.presence_penalty),
            frequency_penalty: self.frequency_penalty.or(defaults.frequency_penalty),
            seed: self.seed.or(defaults.seed),
            n: self.n.or(defaults.n),
            ..self
        }
    }

    /// Checks every bound. What is still absent is off; an absent seed becomes `drawn_seed`.
    pub fn validate(self, limits: &RequestLimits, drawn_seed: u64) -> Result<SamplingParams, Violations> {
        let params = SamplingParams {
            temperature: self.temperature.unwrap_or(1.0),
            top_p: self.top_p.unwrap_or(1.0),
            top_k: self.top_k.unwrap_or(0),
            min_p: self.min_p.unwrap_or(0.0),
            typical_p: self.typical_p.unwrap_or(1.0),
            repetition_penalty: self.repetition_penalty.unwrap_or(1.0),
            presence_penalty: self.presence_penalty.unwrap_or(0.0),
            frequency_penalty: self.frequency_penalty.unwrap_or(0.0),
            logit_bias: self.logit_bias,
            allowed_token_ids: self.allowed_token_ids,
            bad_token_ids: self.bad_token_ids,
            seed: self.seed.unwrap_or(drawn_seed),
            n: self.n.unwrap_or(1),
        };
        let p = &params;
        let mut check = Violations::default();
        let mut number = |field: &str, value: f32, holds: bool, bounds: &str| {
            check.that(value.is_finite() && holds, field, || {
                format!("must be {bounds}, got {value}")
            });
        };
        number(
            "sampling.temperature",
            p.temperature,
            p.temperature >= 0.0,
            "a finite number, at least 0",
        );
        number(
            "sampling.top_p",
            p.top_p,
            p.top_p > 0.0 && p.top_p <= 1.0,
            "above 0 and at most 1",
        );
        number(
            "sampling.min_p",
            p.min_p,
            (0.0..=1.0).contains(&p.min_p),
            "between 0 and 1",
        );
        number(
            "sampling.typical_p",
            p.typical_p,
            p.typical_p > 0.0 && p.typical_p <= 1.0,
            "above 0 and at most 1",
        );
        // Beyond these a finite logit could become an infinite one.
        number(
            "sampling.repetition_penalty",
            p.repetition_penalty,
            (0.01..=100.0).contains(&p.repetition_penalty),
            "between 0.01 and 100",
        );
        for (field, value) in [
            ("sampling.presence_penalty", p.presence_penalty),
            ("sampling.frequency_penalty", p.frequency_penalty),
        ] {
            number(field, value, (-2.0..=2.0).contains(&value), "between -2 and 2");
        }
        let max = limits.max_token_list;
        for (id, bias) in p.logit_bias.iter().take(max) {
            let holds = (-100.0..=100.0).contains(bias);
            number(
                &format!("sampling.logit_bias[{id}]"),
                *bias,
                holds,
                "between -100 and 100",
            );
        }
        for (field, len) in [
            ("sampling.logit_bias", p.logit_bias.len()),
            ("sampling.allowed_token_ids", p.allowed_token_ids.len()),
            ("sampling.bad_token_ids", p.bad_token_ids.len()),
        ] {
            check.that(len <= max, field, || {
                format!("must have at most {max} entries, got {len}")
            });
        }
        // Longer lists are refused already, and each is looked through for each entry of the other.
        let (allowed, bad) = (&p.allowed_token_ids, &p.bad_token_ids);
        let is_short = allowed.len() <= max && bad.len() <= max;
        let nothing_left = is_short && !allowed.is_empty() && allowed.iter().all(|id| bad.contains(id));
        check.that(!nothing_left, "sampling.allowed_token_ids", || {
            "all of them are in bad_token_ids".into()
        });
        let (n, max_n) = (p.n, limits.max_n);
        check.that(n >= 1 && n <= max_n, "sampling.n", || {
            format!("must be between 1 and {max_n}, got {n}")
        });
        check.or(params)
    }
}

/// How the next token is chosen: complete and within bounds.
#[derive(Clone, Debug, PartialEq)]
pub struct SamplingParams {
    pub(crate) temperature: f32,
    pub(crate) top_p: f32,
    pub(crate) top_k: u32,
    pub(crate) min_p: f32,
    pub(crate) typical_p: f32,
    pub(crate) repetition_penalty: f32,
    pub(crate) presence_penalty: f32,
    pub(crate) frequency_penalty: f32,
    pub(crate) logit_bias: LogitBias,
    pub(crate) allowed_token_ids: Vec<TokenId>,
    pub(crate) bad_token_ids: Vec<TokenId>,
    pub(crate) seed: u64,
    pub(crate) n: u32,
}

impl SamplingParams {
    /// The seed in use.
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// Completions of the one prompt.
    pub fn n(&self) -> u32 {
        self.n
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Comparing each entry of one with each of the other would take hours.
    #[test]
    fn lists_that_are_too_long_are_refused_without_being_looked_through() {
        let n = 1 << 20;
        let options = SamplingOptions {
            allowed_token_ids: vec![2; n],
            bad_token_ids: [vec![1; n], vec![2]].concat(),
            ..SamplingOptions::default()
        };
        let refused = options.validate(&RequestLimits::default(), 0).unwrap_err();
        let fields: Vec<&str> = refused.listed().iter().map(|v| v.field.as_str()).collect();
        assert_eq!(fields, ["sampling.allowed_token_ids", "sampling.bad_token_ids"]);
    }

    #[test]
    fn a_repetition_penalty_leaves_finite_numbers_finite() {
        for (penalty, holds) in [
            (0.01, true),
            (1.0, true),
            (100.0, true),
            (0.0, false),
            (1e-38, false),
            (3e38, false),
            (f32::NAN, false),
        ] {
            let options = SamplingOptions {
                repetition_penalty: Some(penalty),
                ..SamplingOptions::default()
            };
            let outcome = options.validate(&RequestLimits::default(), 0);
            assert_eq!(outcome.is_ok(), holds, "{penalty}");
        }
    }
}
