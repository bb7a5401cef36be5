//! Log-probabilities under the model alone.

use crate::ids::TokenId;

/// The natural-log probability of `token` and of the `n` likeliest tokens, in falling order.
///
/// `logits` is one row, before any sampling parameter.
pub(crate) fn top_logprobs(logits: &[f32], token: TokenId, n: u32) -> (f32, Vec<(TokenId, f32)>) {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let total: f64 = logits.iter().map(|l| f64::from(l - max).exp()).sum();
    let log_total = total.ln();
    let logprob = |id: TokenId| (f64::from(logits[id as usize] - max) - log_total) as f32;

    let n = (n as usize).min(logits.len());
    let mut ids: Vec<TokenId> = if n == 0 {
        Vec::new()
    } else {
        (0..logits.len() as TokenId).collect()
    };
    let falling =
        |a: &TokenId, b: &TokenId| logits[*b as usize].total_cmp(&logits[*a as usize]).then(a.cmp(b));
    if n > 0 && n < ids.len() {
        ids.select_nth_unstable_by(n - 1, falling);
        ids.truncate(n);
    }
    ids.sort_unstable_by(falling);
    (
        logprob(token),
        ids.into_iter().map(|id| (id, logprob(id))).collect(),
    )
}
