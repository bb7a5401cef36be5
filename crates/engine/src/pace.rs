//! What an engine can do by how fast it has been lately, and what it certainly cannot.

use std::time::{Duration, Instant};

use crate::error::SubmitError;
use crate::queue::Waiting;
use crate::request::Request;
use crate::stats::{EngineStats, PoolStats};

/// How many times faster than lately things may go before a refusal was wrong.
const MARGIN: f64 = 2.0;

/// How many more sequences an engine has room for, if they are like those that run. A pool of no blocks bounds nothing.
pub(crate) fn room(stats: &EngineStats) -> usize {
    let slots = stats.slots_total.saturating_sub(stats.slots_used);
    let blocks = |pool: &PoolStats| match (pool.total, stats.slots_used) {
        (0, _) | (_, 0) => slots,
        (total, n) => total.saturating_sub(pool.used) * n / pool.used.max(1),
    };
    slots.min(blocks(&stats.global)).min(blocks(&stats.window))
}

/// How fast an engine has been over the last seconds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pace {
    /// Prompt tokens per second.
    pub(crate) prefill_rate: f64,
    /// Tokens of one sequence per second.
    decode_step_rate: f64,
}

impl Pace {
    /// By what an engine publishes.
    pub(crate) fn of(stats: &EngineStats) -> Self {
        Self {
            prefill_rate: stats.prefill_rate,
            decode_step_rate: stats.decode_step_rate,
        }
    }

    /// Refuses what cannot be done by its deadline even if all goes twice as fast as lately: its own prompt,
    /// the tokens it must have, and what waits before it of its own tenant. What others wait for is left out, as turns
    /// between tenants may fall either way, and so is what its tenant waits for where it is more urgent than usual.
    ///
    /// # Errors
    /// [`SubmitError::DeadlineUnreachable`], with what it needs and what is left.
    pub(crate) fn check_deadline(&self, request: &Request, own: Waiting) -> Result<(), SubmitError> {
        let Some(deadline) = request.deadline() else {
            return Ok(());
        };
        let (priority, must_decode) = match request {
            Request::Generate(r) => (r.priority, r.stopping.min_tokens),
            Request::Embed(r) => (r.priority, 0),
        };
        let before = if priority < 0 { 0 } else { own.tokens };
        let prompts = over(before + request.tokens().len(), self.prefill_rate);
        let needs = (prompts + over(must_decode as usize, self.decode_step_rate)) / MARGIN;
        let needs = Duration::try_from_secs_f64(needs).unwrap_or(Duration::MAX);
        let left = deadline.saturating_duration_since(Instant::now());
        match needs > left {
            true => Err(SubmitError::DeadlineUnreachable { needs, left }),
            false => Ok(()),
        }
    }
}

/// Seconds that an amount takes; none where nothing is known.
fn over(amount: usize, rate: f64) -> f64 {
    if rate > 0.0 { amount as f64 / rate } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::RequestId;
    use crate::request::{Account, EmbedRequest, Pooling};

    #[test]
    fn there_is_room_for_as_many_as_slots_and_both_pools_hold() {
        let pool = |used, total| PoolStats {
            used,
            total,
            ..PoolStats::default()
        };
        let mut stats = EngineStats {
            slots_total: 10,
            ..EngineStats::default()
        };
        assert_eq!(room(&stats), 10);
        stats.slots_used = 4;
        assert_eq!(room(&stats), 6);
        (stats.slots_used, stats.global, stats.window) = (4, pool(40, 100), pool(8, 100));
        assert_eq!(room(&stats), 6);
        stats.global = pool(80, 100);
        assert_eq!(room(&stats), 1);
        stats.window = pool(100, 100);
        assert_eq!(room(&stats), 0);
    }

    fn embed(tokens: usize, priority: i32, left: Option<Duration>) -> Request {
        Request::Embed(EmbedRequest {
            id: RequestId::new("r"),
            tokens: vec![1; tokens],
            pooling: Pooling::Last,
            priority,
            arrived: Instant::now(),
            account: Account::default(),
            deadline: left.map(|left| Instant::now() + left),
        })
    }

    #[test]
    fn only_what_cannot_be_done_at_twice_the_pace_is_refused() {
        let pace = Pace {
            prefill_rate: 100.0,
            decode_step_rate: 10.0,
        };
        let minute = Some(Duration::from_secs(60));
        let waiting = |tokens| Waiting { requests: 1, tokens };
        for (request, own, refused) in [
            (embed(1000, 0, minute), waiting(0), false),
            (embed(11_000, 0, minute), waiting(0), false),
            (embed(13_000, 0, minute), waiting(0), true),
            (embed(1000, 0, minute), waiting(12_000), true),
            (embed(1000, -1, minute), waiting(12_000), false),
            (embed(100_000, 0, None), waiting(100_000), false),
            (embed(1, 0, Some(Duration::ZERO)), waiting(0), true),
        ] {
            let outcome = pace.check_deadline(&request, own);
            assert_eq!(
                outcome.is_err(),
                refused,
                "{} tokens behind {own:?}: {outcome:?}",
                request.tokens().len()
            );
        }
    }

    #[test]
    fn who_has_not_run_yet_refuses_nothing() {
        let pace = Pace {
            prefill_rate: 0.0,
            decode_step_rate: 0.0,
        };
        let request = embed(1_000_000, 0, Some(Duration::from_millis(1)));
        assert!(pace.check_deadline(&request, Waiting::default()).is_ok());
    }
}
