//! How many requests, and of how many tokens, may wait. Counted at the door, where clients are refused.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crate::error::SubmitError;

/// Counts what waits between the door and admission.
#[derive(Clone, Debug)]
pub struct Queue(Arc<Counts>);

#[derive(Debug)]
struct Counts {
    requests: AtomicUsize,
    tokens: AtomicUsize,
    max_requests: usize,
    max_tokens: usize,
}

/// A place in the queue. Dropping it, at admission or cancellation, leaves the queue.
#[derive(Debug)]
pub struct Place {
    counts: Arc<Counts>,
    tokens: usize,
}

impl Queue {
    /// A queue of at most so many requests and prompt tokens.
    pub fn new(max_requests: usize, max_tokens: usize) -> Self {
        Self(Arc::new(Counts {
            requests: AtomicUsize::new(0),
            tokens: AtomicUsize::new(0),
            max_requests,
            max_tokens,
        }))
    }

    /// Requests that wait.
    pub fn requests(&self) -> usize {
        self.0.requests.load(Ordering::Relaxed)
    }

    /// Prompt tokens that wait.
    pub fn tokens(&self) -> usize {
        self.0.tokens.load(Ordering::Relaxed)
    }

    /// A place for a prompt of `tokens`, or the refusal. An empty queue takes a prompt of any length.
    ///
    /// `prefill_rate`, tokens per second lately, tells the refused when room is likely.
    pub fn enter(&self, tokens: usize, prefill_rate: f64) -> Result<Place, SubmitError> {
        let counts = &self.0;
        let place = Place {
            counts: counts.clone(),
            tokens,
        };
        let waiting = counts.requests.fetch_add(1, Ordering::Relaxed);
        let waiting_tokens = counts.tokens.fetch_add(tokens, Ordering::Relaxed);
        let retry_after = |tokens: usize| {
            let seconds = if prefill_rate > 0.0 {
                tokens as f64 / prefill_rate
            } else {
                1.0
            };
            Duration::from_secs_f64(seconds.clamp(0.05, 60.0))
        };
        if waiting >= counts.max_requests {
            let per_request = waiting_tokens / waiting.max(1);
            let limit = counts.max_requests;
            return Err(SubmitError::QueueFull {
                waiting,
                limit,
                retry_after: retry_after(per_request),
            });
        }
        if waiting > 0 && waiting_tokens + tokens > counts.max_tokens {
            let excess = waiting_tokens + tokens - counts.max_tokens;
            let limit = counts.max_tokens;
            return Err(SubmitError::TokenBudget {
                waiting_tokens,
                limit,
                retry_after: retry_after(excess),
            });
        }
        Ok(place)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.counts.requests.fetch_sub(1, Ordering::Relaxed);
        self.counts.tokens.fetch_sub(self.tokens, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_queue_refuses_until_somebody_leaves() {
        let queue = Queue::new(2, 100);
        let first = queue.enter(10, 0.0).unwrap();
        let _second = queue.enter(10, 0.0).unwrap();
        let refused = queue.enter(10, 20.0);
        assert!(
            matches!(refused, Err(SubmitError::QueueFull { waiting: 2, limit: 2, retry_after }) if retry_after.as_millis() == 500)
        );
        drop(first);
        assert_eq!((queue.requests(), queue.tokens()), (1, 10));
        queue.enter(10, 0.0).unwrap();
    }

    #[test]
    fn a_long_prompt_is_refused_behind_others_but_not_alone() {
        let queue = Queue::new(10, 100);
        drop(queue.enter(1000, 0.0).unwrap());
        let _short = queue.enter(60, 0.0).unwrap();
        assert!(matches!(
            queue.enter(50, 10.0),
            Err(SubmitError::TokenBudget { waiting_tokens: 60, limit: 100, retry_after }) if retry_after.as_secs() == 1
        ));
        assert_eq!((queue.requests(), queue.tokens()), (1, 60));
    }
}
