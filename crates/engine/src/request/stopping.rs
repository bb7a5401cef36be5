//! When completions end: what may be asked, and what is left once checked.

use super::RequestLimits;
use crate::error::Violations;
use crate::ids::TokenId;

/// What a client says of stopping.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StoppingOptions {
    /// Tokens generated at most; absent: what the context leaves.
    pub max_tokens: Option<u32>,
    /// No end before this many tokens.
    pub min_tokens: Option<u32>,
    /// Strings that end the completion.
    pub stop: Vec<String>,
    /// Tokens that end the completion.
    pub stop_token_ids: Vec<TokenId>,
    /// Whether the text ends with the stop string that matched.
    pub include_stop_str_in_output: Option<bool>,
    /// Whether end-of-sequence tokens end nothing.
    pub ignore_eos: Option<bool>,
}

impl StoppingOptions {
    /// Checks every bound; `n` is the number of completions, which share `max_total_tokens`.
    pub fn validate(self, limits: &RequestLimits, n: u32) -> Result<StoppingParams, Violations> {
        let params = StoppingParams {
            max_tokens: self.max_tokens,
            min_tokens: self.min_tokens.unwrap_or(0),
            stop: self.stop,
            stop_token_ids: self.stop_token_ids,
            include_stop_str_in_output: self.include_stop_str_in_output.unwrap_or(false),
            ignore_eos: self.ignore_eos.unwrap_or(false),
        };
        let p = &params;
        let mut check = Violations::default();
        if let Some(max) = p.max_tokens {
            check.that(max >= 1, "stopping.max_tokens", || {
                "must be at least 1, got 0".into()
            });
            let total = u64::from(n) * u64::from(max);
            check.that(total <= limits.max_total_tokens, "stopping.max_tokens", || {
                format!(
                    "n × max_tokens is {total}, the limit is {}",
                    limits.max_total_tokens
                )
            });
            check.that(p.min_tokens <= max, "stopping.min_tokens", || {
                format!("must be at most max_tokens ({max}), got {}", p.min_tokens)
            });
        }
        let (len, max) = (p.stop.len(), limits.max_stop_strings);
        check.that(len <= max, "stopping.stop", || {
            format!("must have at most {max} strings, got {len}")
        });
        for (i, stop) in p.stop.iter().enumerate().take(max) {
            let field = format!("stopping.stop[{i}]");
            check.that(!stop.is_empty(), &field, || "must not be empty".into());
            let (len, max) = (stop.len(), limits.max_stop_bytes);
            check.that(len <= max, &field, || {
                format!("must be at most {max} bytes, got {len}")
            });
        }
        let (len, max) = (p.stop_token_ids.len(), limits.max_token_list);
        check.that(len <= max, "stopping.stop_token_ids", || {
            format!("must have at most {max} entries, got {len}")
        });
        check.or(params)
    }
}

impl StoppingParams {
    /// Checks the total of `n` completions where only the context bounds them: it leaves each `left` tokens.
    pub fn check_left(&self, limits: &RequestLimits, n: u32, left: usize) -> Result<(), Violations> {
        let mut check = Violations::default();
        let (total, max) = (u64::from(n).saturating_mul(left as u64), limits.max_total_tokens);
        let is_within = self.max_tokens.is_some() || total <= max;
        check.that(is_within, "stopping.max_tokens", || {
            format!("must be set: n times what the context leaves is {total}, the limit is {max}")
        });
        check.or(())
    }
}

/// When completions end: complete and within bounds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoppingParams {
    pub(crate) max_tokens: Option<u32>,
    pub(crate) min_tokens: u32,
    pub(crate) stop: Vec<String>,
    pub(crate) stop_token_ids: Vec<TokenId>,
    pub(crate) include_stop_str_in_output: bool,
    pub(crate) ignore_eos: bool,
}
