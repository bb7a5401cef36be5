//! What visitors saw, and what of it must not be.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use tokio::task::JoinError;

/// Longest that most refusals may take to come.
const REFUSED_WITHIN: Duration = Duration::from_millis(50);
/// Faults of one kind that are told one by one.
const TOLD: usize = 10;

/// Times, to be looked at in order.
#[derive(Default)]
pub(super) struct Times(Vec<Duration>);

impl Times {
    pub(super) fn push(&mut self, time: Duration) {
        self.0.push(time);
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    pub(super) fn p99(&self) -> Duration {
        self.at(0.99)
    }

    fn at(&self, share: f64) -> Duration {
        let mut sorted = self.0.clone();
        sorted.sort_unstable();
        let last = sorted.len().saturating_sub(1);
        let place = (last as f64 * share).round() as usize;
        sorted.get(place).copied().unwrap_or_default()
    }
}

impl fmt::Display for Times {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let milliseconds = |share| self.at(share).as_secs_f64() * 1e3;
        write!(
            f,
            "p50 {:.1} ms, p99 {:.1} ms, most {:.1} ms of {}",
            milliseconds(0.5),
            milliseconds(0.99),
            milliseconds(1.0),
            self.len()
        )
    }
}

/// What visitors saw.
#[derive(Default)]
pub(super) struct Report {
    /// Visits that asked for something that can be done.
    pub(super) asked: u64,
    /// How visits ended.
    ends: BTreeMap<String, u64>,
    /// Of accepted requests: from the call to the first token.
    pub(super) first_token: Times,
    /// From the call to a refusal for lack of room.
    pub(super) refused: Times,
    wrong: Vec<String>,
}

impl Report {
    /// How a visit ended.
    pub(super) fn end(&mut self, how: impl Into<String>) {
        *self.ends.entry(how.into()).or_default() += 1;
    }

    /// What must not be.
    pub(super) fn wrong(&mut self, what: impl Into<String>) {
        self.wrong.push(what.into());
    }

    pub(super) fn add(&mut self, other: Self) {
        self.asked += other.asked;
        for (how, n) in other.ends {
            *self.ends.entry(how).or_default() += n;
        }
        self.first_token.0.extend(other.first_token.0);
        self.refused.0.extend(other.refused.0);
        self.wrong.extend(other.wrong);
    }

    pub(super) fn with(mut self, other: Self) -> Self {
        self.add(other);
        self
    }

    /// Adds what a task saw.
    pub(super) fn take(&mut self, task: Result<Self, JoinError>) {
        match task {
            Ok(other) => self.add(other),
            Err(error) => self.wrong(format!("a client: {error}")),
        }
    }

    /// What is not as promised; times and that the overload was one too, if the longest time to first token is given.
    pub(super) fn faults(&self, first_token_within: Option<Duration>) -> Vec<String> {
        let mut faults: Vec<String> = self.wrong.iter().take(TOLD).cloned().collect();
        if self.wrong.len() > TOLD {
            faults.push(format!("and {} more like these", self.wrong.len() - TOLD));
        }
        if self.first_token.len() == 0 {
            faults.push("nobody was served".into());
        }
        if let Some(limit) = first_token_within {
            if self.refused.len() == 0 {
                faults.push("nobody was refused".into());
            }
            if self.first_token.p99() > limit {
                faults.push(format!("first token, limit {limit:?}: {}", self.first_token));
            }
            if self.refused.p99() >= REFUSED_WITHIN {
                faults.push(format!("refusals, limit {REFUSED_WITHIN:?}: {}", self.refused));
            }
        }
        faults
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "first token {}", self.first_token)?;
        if self.refused.len() > 0 {
            write!(f, "; refusals {}", self.refused)?;
        }
        write!(f, "; visits {:?}", self.ends)
    }
}
