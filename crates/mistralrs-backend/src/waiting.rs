//! Who waits, and whose turn it is: the tenant's that has had least for its weight; inside it, the lowest priority
//! number's, then the oldest's.

use std::collections::BTreeMap;

use baichuan_engine::TenantId;
use baichuan_engine::request::Request;
use baichuan_engine::shares::Shares;

use crate::driver::Job;

/// Requests that wait for their turn.
#[derive(Default)]
pub(crate) struct Waiting {
    /// By when they came.
    jobs: BTreeMap<u64, Job>,
    arrivals: u64,
    shares: Shares,
}

impl Waiting {
    /// A request comes.
    pub(crate) fn push(&mut self, job: Job) {
        let account = *job.request.account();
        self.shares.enter(account.tenant, account.weight);
        self.jobs.insert(self.arrivals, job);
        self.arrivals += 1;
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.jobs.is_empty()
    }

    /// Takes out those whose streams were dropped.
    pub(crate) fn take_gone(&mut self) -> Vec<Job> {
        let gone: Vec<Job> = self
            .jobs
            .extract_if(.., |_, job| job.sink.is_closed())
            .map(|(_, job)| job)
            .collect();
        for job in &gone {
            self.shares.leave(job.request.account().tenant);
        }
        gone
    }

    /// Takes out all.
    pub(crate) fn take_all(&mut self) -> Vec<Job> {
        let all: Vec<Job> = std::mem::take(&mut self.jobs).into_values().collect();
        for job in &all {
            self.shares.leave(job.request.account().tenant);
        }
        all
    }

    /// Takes out whose turn it is, and counts its prompt for its tenant. [`Self::ended`] must follow.
    pub(crate) fn next(&mut self) -> Option<Job> {
        self.shares.settle();
        let turn = |(came, job): &(&u64, &Job)| {
            let tenant = job.request.account().tenant;
            (self.shares.settled(tenant), priority(&job.request), **came)
        };
        let came = *self.jobs.iter().min_by_key(turn)?.0;
        let job = self.jobs.remove(&came)?;
        self.shares
            .charge(job.request.account().tenant, job.request.tokens().len());
        Some(job)
    }

    /// A tenant's request has ended, and had so many tokens beside its prompt.
    pub(crate) fn ended(&mut self, tenant: TenantId, tokens: usize) {
        self.shares.charge(tenant, tokens);
        self.shares.leave(tenant);
    }
}

fn priority(request: &Request) -> i32 {
    match request {
        Request::Generate(request) => request.priority,
        Request::Embed(request) => request.priority,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use baichuan_engine::queue::Queue;
    use baichuan_engine::request::{Account, EmbedRequest, Pooling};
    use baichuan_engine::{EventSink, EventStream, RequestId};

    use super::*;

    /// A request of one token of a tenant of weight 1, and its stream.
    fn job(name: &str, tenant: u32, priority: i32) -> (Job, EventStream) {
        let account = Account {
            tenant: TenantId(tenant),
            ..Account::default()
        };
        let place = Queue::new(9, 9).enter(&account, 1, 0.0).unwrap();
        let (sink, stream) = EventSink::channel(1);
        let request = Request::Embed(EmbedRequest {
            id: RequestId::new(name),
            tokens: vec![1],
            pooling: Pooling::Last,
            priority,
            account,
            deadline: None,
            arrived: Instant::now(),
        });
        let span = tracing::Span::none();
        let job = Job {
            request,
            sink,
            place,
            span,
        };
        (job, stream)
    }

    /// The order in which they run, one after another, each for `tokens` beside its prompt.
    fn order(jobs: Vec<Job>, tokens: usize) -> Vec<String> {
        let mut waiting = Waiting::default();
        jobs.into_iter().for_each(|job| waiting.push(job));
        let mut names = Vec::new();
        while let Some(job) = waiting.next() {
            names.push(job.request.id().to_string());
            waiting.ended(job.request.account().tenant, tokens);
        }
        names
    }

    #[test]
    fn the_more_urgent_goes_first_and_else_the_older() {
        let (jobs, _streams): (Vec<_>, Vec<_>) = [("a", 0), ("b", 0), ("c", -1), ("d", 1), ("e", 0)]
            .map(|(name, priority)| job(name, 0, priority))
            .into_iter()
            .unzip();
        assert_eq!(order(jobs, 5), ["c", "a", "b", "e", "d"]);
    }

    #[test]
    fn a_tenant_that_floods_the_queue_does_not_keep_others_waiting() {
        let (jobs, _streams): (Vec<_>, Vec<_>) =
            [("a1", 1), ("a2", 1), ("a3", 1), ("a4", 1), ("b1", 2), ("b2", 2)]
                .map(|(name, tenant)| job(name, tenant, 0))
                .into_iter()
                .unzip();
        assert_eq!(order(jobs, 5), ["a1", "b1", "a2", "b2", "a3", "a4"]);
    }

    #[test]
    fn who_has_gone_is_taken_out() {
        let mut waiting = Waiting::default();
        let ((first, stream), (second, _kept)) = (job("gone", 0, 0), job("kept", 0, 0));
        waiting.push(first);
        waiting.push(second);
        drop(stream);
        assert_eq!(waiting.take_gone().len(), 1);
        assert_eq!(waiting.next().unwrap().request.id().to_string(), "kept");
        assert!(waiting.is_empty());
    }
}
