//! How many requests, and of how many tokens, may wait, in all and of one tenant. Counted at the door, where clients are
//! refused.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::error::SubmitError;
use crate::ids::TenantId;
use crate::pace::{self, Pace};
use crate::rate::RateMeter;
use crate::request::{Account, Request};
use crate::stats::EngineStats;

/// What is said when nothing is known yet.
const UNKNOWN: Duration = Duration::from_secs(1);
/// Sooner makes no difference, later nobody believes.
const LEAST: Duration = Duration::from_millis(50);
const MOST: Duration = Duration::from_secs(60);
/// Share of the newest gap in the mean gap between departures.
const NEWEST: f64 = 0.2;
/// Standard deviations above the mean.
const ALL_BUT_ONE_IN_A_HUNDRED: f64 = 2.33;

/// Counts what waits between the door and admission.
#[derive(Clone, Debug)]
pub struct Queue(Arc<Counts>);

#[derive(Debug)]
struct Counts {
    max_requests: usize,
    max_tokens: usize,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    all: Waiting,
    tenants: BTreeMap<TenantId, Waiting>,
    /// When somebody last left while others waited.
    left: Option<Instant>,
    /// Mean seconds between departures while somebody waited; absent until two have left.
    gap: Option<f64>,
    /// Departures per second while somebody waited, over a longer time: `gap` follows each one.
    pace: RateMeter,
}

/// What waits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Waiting {
    /// Requests.
    pub requests: usize,
    /// Tokens of their prompts.
    pub tokens: usize,
}

/// A place in the queue. Dropping it, at admission or cancellation, leaves the queue.
#[derive(Debug)]
pub struct Place {
    counts: Arc<Counts>,
    tenant: TenantId,
    tokens: usize,
}

impl Queue {
    /// A queue of at most so many requests and prompt tokens.
    pub fn new(max_requests: usize, max_tokens: usize) -> Self {
        Self(Arc::new(Counts {
            max_requests,
            max_tokens,
            state: Mutex::default(),
        }))
    }

    /// What waits in all.
    pub fn waiting(&self) -> Waiting {
        self.0.state().all
    }

    /// Requests that wait.
    pub fn requests(&self) -> usize {
        self.waiting().requests
    }

    /// Prompt tokens that wait.
    pub fn tokens(&self) -> usize {
        self.waiting().tokens
    }

    /// What waits of a tenant.
    pub fn waiting_of(&self, tenant: TenantId) -> Waiting {
        self.0.state().tenants.get(&tenant).copied().unwrap_or_default()
    }

    /// What waits of each tenant that has something waiting.
    pub fn tenants(&self) -> BTreeMap<TenantId, Waiting> {
        self.0.state().tenants.clone()
    }

    /// A place for `request`, or the refusal: its deadline cannot be met, it may wait longer than `max_wait`, or too much
    /// waits already. `stats` say how fast the engine has been lately.
    pub fn admit(
        &self,
        request: &Request,
        stats: &EngineStats,
        max_wait: Option<Duration>,
    ) -> Result<Place, SubmitError> {
        let (account, pace) = (request.account(), Pace::of(stats));
        pace.check_deadline(request, self.waiting_of(account.tenant))?;
        if let Some(limit) = max_wait {
            self.check_wait(account, pace::room(stats), limit)?;
        }
        self.enter(account, request.tokens().len(), pace.prefill_rate)
    }

    /// Refuses who may wait longer than `limit`, which one in a hundred will, by how fast others left the queue lately,
    /// `room` of those that wait having a place at the model already. Turns between tenants count: who has nothing waiting
    /// waits for one of each.
    fn check_wait(&self, account: &Account, room: usize, limit: Duration) -> Result<(), SubmitError> {
        let state = self.0.state();
        let own = state.tenants.get(&account.tenant).copied().unwrap_or_default();
        let tenants = state.tenants.len() + usize::from(own.requests == 0);
        let before = state.all.requests.min((own.requests + 1) * tenants - 1);
        let wait = state.until_left((before + 1).saturating_sub(room));
        if wait <= limit {
            return Ok(());
        }
        Err(SubmitError::WaitTooLong {
            waiting: state.all.requests,
            wait,
            limit,
            retry_after: (wait - limit).clamp(LEAST, MOST),
        })
    }

    /// A place for a prompt of `tokens`, or the refusal. Who has nothing waiting may bring a prompt of any length.
    ///
    /// `prefill_rate`, tokens per second lately, tells the refused when room is likely.
    pub fn enter(&self, account: &Account, tokens: usize, prefill_rate: f64) -> Result<Place, SubmitError> {
        let counts = &self.0;
        let mut state = counts.state();
        let own = state.tenants.get(&account.tenant).copied().unwrap_or_default();
        let retry_after =
            |in_front: Waiting, excess_tokens: usize| state.until_room(in_front, excess_tokens, prefill_rate);
        let (all, max) = (
            state.all,
            Waiting {
                requests: counts.max_requests,
                tokens: counts.max_tokens,
            },
        );
        let bound = |of_all: usize| ((of_all as f64 * account.queue_share) as usize).clamp(1, of_all);
        let own_max = Waiting {
            requests: bound(max.requests),
            tokens: bound(max.tokens),
        };
        let own_excess = (own.tokens + tokens).saturating_sub(own_max.tokens);
        if account.queue_share < 1.0
            && (own.requests >= own_max.requests || (own.requests > 0 && own_excess > 0))
        {
            return Err(SubmitError::TenantShare {
                waiting: own.requests,
                limit: own_max.requests,
                waiting_tokens: own.tokens,
                token_limit: own_max.tokens,
                retry_after: retry_after(own, own_excess),
            });
        }
        if all.requests >= max.requests {
            return Err(SubmitError::QueueFull {
                waiting: all.requests,
                limit: max.requests,
                retry_after: retry_after(all, 0),
            });
        }
        let excess = (all.tokens + tokens).saturating_sub(max.tokens);
        if all.requests > 0 && excess > 0 {
            return Err(SubmitError::TokenBudget {
                waiting_tokens: all.tokens,
                limit: max.tokens,
                retry_after: retry_after(all, excess),
            });
        }
        if all.requests == 0 {
            // How long the queue was empty is not how long it takes to leave it.
            state.left = None;
        }
        state.all.add(tokens);
        state.tenants.entry(account.tenant).or_default().add(tokens);
        Ok(Place {
            counts: counts.clone(),
            tenant: account.tenant,
            tokens,
        })
    }
}

impl Counts {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// When enough of what is in front will have left: by how fast requests leave, and how fast prompts are computed.
    fn until_room(&self, in_front: Waiting, excess_tokens: usize, prefill_rate: f64) -> Duration {
        // Of what is in front, one request has to leave, or as many as hold the tokens that are too many.
        let per_request = (in_front.tokens / in_front.requests.max(1)).max(1);
        let departures = excess_tokens.div_ceil(per_request).max(1) as f64;
        // Others leave between those that count.
        let share = in_front.requests.max(1) as f64 / self.all.requests.max(1) as f64;
        let by_departures = self.gap.map(|gap| gap * departures / share);
        let tokens = excess_tokens.max(per_request) as f64;
        let by_tokens = (prefill_rate > 0.0).then(|| tokens / prefill_rate);
        let seconds = match (by_departures, by_tokens) {
            (Some(one), Some(other)) => one.max(other),
            (one, other) => one.or(other).unwrap_or(UNKNOWN.as_secs_f64()),
        };
        Duration::from_secs_f64(seconds.clamp(LEAST.as_secs_f64(), MOST.as_secs_f64()))
    }

    /// Within what time so many leave, but for one case in a hundred; no time where nothing is known.
    ///
    /// They leave as answers end, so hardly one after the other: as in a Poisson process, the time that `n` take has a
    /// standard deviation of `√n` mean gaps.
    fn until_left(&self, requests: usize) -> Duration {
        let rate = self.pace.per_second();
        let gaps = requests as f64 + ALL_BUT_ONE_IN_A_HUNDRED * (requests as f64).sqrt();
        let seconds = if rate > 0.0 { gaps / rate } else { 0.0 };
        Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX)
    }

    fn somebody_left(&mut self, now: Instant) {
        if let Some(before) = self.left {
            let gap = now.saturating_duration_since(before);
            self.pace.record(1, gap);
            let gap = gap.as_secs_f64();
            self.gap = Some(self.gap.map_or(gap, |mean| mean + NEWEST * (gap - mean)));
        }
        self.left = (self.all.requests > 0).then_some(now);
    }
}

impl Waiting {
    fn add(&mut self, tokens: usize) {
        self.requests += 1;
        self.tokens += tokens;
    }

    fn remove(&mut self, tokens: usize) {
        self.requests -= 1;
        self.tokens -= tokens;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut state = self.counts.state();
        state.all.remove(self.tokens);
        if let Some(own) = state.tenants.get_mut(&self.tenant) {
            own.remove(self.tokens);
            if own.requests == 0 {
                state.tenants.remove(&self.tenant);
            }
        }
        state.somebody_left(Instant::now());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(tenant: u32, queue_share: f64) -> Account {
        Account {
            tenant: TenantId(tenant),
            queue_share,
            ..Account::default()
        }
    }

    #[test]
    fn a_full_queue_refuses_until_somebody_leaves() {
        let queue = Queue::new(2, 100);
        let anybody = Account::default();
        let first = queue.enter(&anybody, 10, 0.0).unwrap();
        let _second = queue.enter(&anybody, 10, 0.0).unwrap();
        let refused = queue.enter(&anybody, 10, 20.0);
        assert!(
            matches!(refused, Err(SubmitError::QueueFull { waiting: 2, limit: 2, retry_after }) if retry_after.as_millis() == 500)
        );
        drop(first);
        assert_eq!(
            queue.waiting(),
            Waiting {
                requests: 1,
                tokens: 10
            }
        );
        queue.enter(&anybody, 10, 0.0).unwrap();
    }

    #[test]
    fn a_long_prompt_is_refused_behind_others_but_not_alone() {
        let queue = Queue::new(10, 100);
        let anybody = Account::default();
        drop(queue.enter(&anybody, 1000, 0.0).unwrap());
        let _short = queue.enter(&anybody, 60, 0.0).unwrap();
        assert!(matches!(
            queue.enter(&anybody, 50, 10.0),
            Err(SubmitError::TokenBudget { waiting_tokens: 60, limit: 100, retry_after }) if retry_after.as_secs() == 6
        ));
        assert_eq!(
            queue.waiting(),
            Waiting {
                requests: 1,
                tokens: 60
            }
        );
    }

    #[test]
    fn a_tenant_that_fills_its_share_leaves_the_rest_to_others() {
        let queue = Queue::new(8, 1000);
        let mut places: Vec<Place> = (0..4)
            .map(|_| queue.enter(&of(1, 0.5), 10, 0.0).unwrap())
            .collect();
        let refused = queue.enter(&of(1, 0.5), 10, 0.0);
        assert!(matches!(
            refused,
            Err(SubmitError::TenantShare {
                waiting: 4,
                limit: 4,
                ..
            })
        ));
        places.extend((0..4).map(|_| queue.enter(&of(2, 0.5), 10, 0.0).unwrap()));
        assert!(matches!(
            queue.enter(&of(3, 0.5), 10, 0.0),
            Err(SubmitError::QueueFull { .. })
        ));
        places.clear();
        assert!(queue.tenants().is_empty());
        // By tokens too, but a single prompt of any length is taken.
        let _long = queue.enter(&of(1, 0.5), 900, 0.0).unwrap();
        let refused = queue.enter(&of(1, 0.5), 1, 0.0);
        assert!(matches!(
            refused,
            Err(SubmitError::TenantShare {
                waiting_tokens: 900,
                token_limit: 500,
                ..
            })
        ));
        queue.enter(&of(2, 0.5), 100, 0.0).unwrap();
    }

    #[test]
    fn who_would_wait_too_long_is_refused_unless_there_is_room_or_it_is_their_turn() {
        let queue = Queue::new(100, 10_000);
        let second = Duration::from_secs(1);
        let places: Vec<Place> = (0..8)
            .map(|_| queue.enter(&of(1, 1.0), 10, 0.0).unwrap())
            .collect();
        // Nothing is known of how fast they leave.
        queue.check_wait(&of(1, 1.0), 0, second).unwrap();
        queue.0.state().pace.record(4, second);
        // Nine take 2.25 s in the mean, and one time in a hundred 4 s.
        assert!(matches!(
            queue.check_wait(&of(1, 1.0), 0, second),
            Err(SubmitError::WaitTooLong { waiting: 8, wait, retry_after, .. })
                if wait.as_millis() == 3997 && retry_after.as_millis() == 2997
        ));
        // Eight of the nine are as good as gone.
        queue.check_wait(&of(1, 1.0), 8, second).unwrap();
        assert!(queue.check_wait(&of(1, 1.0), 7, second).is_err());
        // One of the other tenant's leaves before this one's first.
        queue.check_wait(&of(2, 1.0), 0, second * 3 / 2).unwrap();
        assert!(queue.check_wait(&of(2, 1.0), 0, second).is_err());
        drop(places);
        queue.check_wait(&of(1, 1.0), 0, second).unwrap();
    }

    #[test]
    fn who_is_refused_is_told_to_wait_as_long_as_leaving_takes() {
        let waiting = Waiting {
            requests: 4,
            tokens: 400,
        };
        let state = |gap| State {
            all: waiting,
            gap,
            ..State::default()
        };
        assert_eq!(state(None).until_room(waiting, 0, 0.0), UNKNOWN);
        assert_eq!(
            state(Some(0.5)).until_room(waiting, 0, 0.0),
            Duration::from_millis(500)
        );
        // Two of the four have to leave.
        assert_eq!(
            state(Some(0.5)).until_room(waiting, 150, 0.0),
            Duration::from_secs(1)
        );
        // Prompts are computed slower than that.
        assert_eq!(
            state(Some(0.5)).until_room(waiting, 150, 10.0),
            Duration::from_secs(15)
        );
        // One of this tenant's leaves for every four.
        let own = Waiting {
            requests: 1,
            tokens: 100,
        };
        assert_eq!(state(Some(0.5)).until_room(own, 0, 0.0), Duration::from_secs(2));
        assert_eq!(state(Some(1e9)).until_room(waiting, 0, 0.0), MOST);
        assert_eq!(state(Some(0.0)).until_room(waiting, 0, 0.0), LEAST);
    }

    #[test]
    fn the_pace_of_leaving_is_that_of_a_queue_that_is_not_empty() {
        let mut state = State {
            all: Waiting {
                requests: 3,
                tokens: 3,
            },
            ..State::default()
        };
        let start = Instant::now();
        let at = |milliseconds| start + Duration::from_millis(milliseconds);
        state.somebody_left(at(0));
        assert_eq!(state.gap, None);
        state.somebody_left(at(100));
        assert!((state.gap.unwrap() - 0.1).abs() < 1e-9);
        state.somebody_left(at(600));
        assert!((state.gap.unwrap() - 0.18).abs() < 1e-9);
        state.all.requests = 0;
        state.somebody_left(at(700));
        state.somebody_left(at(99_000));
        assert!(state.gap.unwrap() < 0.2);
    }
}
