//! A soak: many clients ask for three times what a server can do, and half of them misbehave.
//!
//! First the server's capacity is measured: as many good clients as it runs sequences, so that every place is taken and
//! nobody waits. Then a fresh server, which may let a request wait for half of the time to first token seen at capacity, is
//! visited for as long as asked. What it promises under that is judged by [`Verdict::faults`].

mod process;
mod report;
mod visitor;
mod watch;

use std::fmt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use baichuan_client::{Client, ConnectOptions};
use futures::future::join_all;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::task::JoinSet;

use crate::wait::{held, until_idle};
use process::Process;
use report::Report;
use visitor::{Kind, Visitor};

/// What is soaked, and how.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The program `baichuan-server`.
    pub server: PathBuf,
    /// Folder of the checkpoint that it serves.
    pub model: PathBuf,
    /// The cores that it runs on, as `taskset` names them; absent: all.
    pub cores: Option<String>,
    /// Of the overload; measuring capacity takes a twentieth of it besides, and three seconds at least.
    pub time: Duration,
    /// Clients, each with a connection of its own.
    pub clients: usize,
    /// `engine.max_sequences`.
    pub sequences: usize,
    /// Tokens of a whole answer.
    pub max_tokens: u32,
    /// How many times as much is asked for as can be done.
    pub overload: f64,
    /// Whether times and memory are judged too: not on a machine that does other things, nor in a run of seconds.
    pub strict: bool,
}

impl Default for Plan {
    fn default() -> Self {
        Self {
            server: PathBuf::new(),
            model: PathBuf::new(),
            cores: None,
            time: Duration::from_secs(1200),
            clients: 200,
            sequences: 32,
            max_tokens: 48,
            overload: 3.0,
            strict: true,
        }
    }
}

impl Plan {
    /// Of the model's arithmetic: half of the cores named; the rest is for connections and texts.
    fn threads(&self) -> Option<usize> {
        let n_cores = self
            .cores
            .as_ref()?
            .split(',')
            .map(|part| match part.split_once('-') {
                Some((first, last)) => {
                    let (first, last): (usize, usize) =
                        (first.parse().unwrap_or(0), last.parse().unwrap_or(0));
                    last.saturating_sub(first) + 1
                }
                None => 1,
            });
        Some((n_cores.sum::<usize>() / 2).max(1))
    }
}

/// What came of a soak.
pub struct Verdict {
    lines: Vec<String>,
    /// What is not as promised.
    pub faults: Vec<String>,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for line in &self.lines {
            writeln!(f, "{line}")?;
        }
        for fault in &self.faults {
            writeln!(f, "FAULT: {fault}")?;
        }
        match self.faults.len() {
            0 => write!(f, "everything as promised"),
            n => write!(f, "{n} faults"),
        }
    }
}

/// Soaks a server.
///
/// # Panics
/// When the server cannot be started, or does not answer at all.
pub async fn run(plan: &Plan) -> Verdict {
    let mut lines = Vec::new();
    let measuring = (plan.time / 20).max(Duration::from_secs(3));
    let (at_capacity, per_second) = capacity(plan, measuring).await;
    lines.push(format!(
        "capacity: {per_second:.1} requests/s of {} tokens, {} clients for {measuring:?}: {at_capacity}",
        plan.max_tokens, plan.sequences
    ));
    let first_token = at_capacity.first_token.p99();
    let max_wait = (first_token / 2).max(Duration::from_millis(1));

    let server = Process::start(plan, Some(max_wait)).await;
    let client = server.client().await;
    // It learns how fast it is, and takes what memory it takes for good.
    let clients = connected(&server.grpc, plan.clients).await;
    good(plan, &clients, measuring).await;
    until_idle(&client, "").await;
    drop(clients);
    let before = watch::settled(&server).await;

    let watching = tokio::spawn(watch::memory(server.pid(), plan.time));
    let began = Instant::now();
    let soaked = overload(plan, &server, per_second).await;
    let lasted = began.elapsed();
    let memory = watching.await.expect("watching does not fail");
    let load = until_idle(&client, "").await;
    let after = watch::until_as(&before, &server).await;
    let asked = soaked.asked as f64 / lasted.as_secs_f64() / per_second;
    lines.push(format!(
        "overload: {} clients for {lasted:?}, {asked:.2} times capacity asked for, engine.max_wait {max_wait:?}: {soaked}",
        plan.clients
    ));
    lines.push(format!("memory: {memory}"));
    lines.push(format!(
        "held before: {before:?}; after: {after:?}; pools and places: {}",
        held(&load)
    ));

    let mut faults = soaked.faults(plan.strict.then_some(2 * first_token));
    faults.extend(memory.fault(plan.strict));
    faults.extend(after.fault(&before));
    if asked < 0.9 * plan.overload && plan.strict {
        faults.push(format!("only {asked:.2} times capacity was asked for"));
    }
    if held(&load) > 0 {
        faults.push(format!("still held: {load:?}"));
    }
    drop(client);
    let (end, bad_lines) = server.end().await;
    faults.extend(end);
    faults.extend(
        bad_lines
            .into_iter()
            .map(|line| format!("in the server's log: {line}")),
    );
    Verdict { lines, faults }
}

/// What good clients see when every place is taken and nobody waits; and requests per second.
async fn capacity(plan: &Plan, time: Duration) -> (Report, f64) {
    let server = Process::start(plan, None).await;
    let clients = connected(&server.grpc, plan.sequences).await;
    good(plan, &clients, time / 4).await;
    let began = Instant::now();
    let report = good(plan, &clients, time).await;
    let per_second = report.first_token.len() as f64 / began.elapsed().as_secs_f64();
    drop(clients);
    server.end().await;
    (report, per_second)
}

async fn connected(address: &str, n: usize) -> Vec<Client> {
    let options = ConnectOptions::new(address);
    let connecting = (0..n).map(|_| Client::connect(&options));
    let clients = join_all(connecting).await.into_iter();
    clients
        .map(|client| client.expect("a server takes connections"))
        .collect()
}

/// As many good visits at once as there are sequences, for so long.
async fn good(plan: &Plan, clients: &[Client], time: Duration) -> Report {
    let until = Instant::now() + time;
    let visits = clients
        .iter()
        .take(plan.sequences)
        .enumerate()
        .map(async |(number, client)| {
            let mut random = StdRng::seed_from_u64(number as u64);
            let mut report = Report::default();
            while Instant::now() < until {
                let visitor = Visitor::new(client.clone(), "", plan.max_tokens, &mut random);
                report.add(visitor.visit(Kind::Good).await);
            }
            report
        });
    join_all(visits)
        .await
        .into_iter()
        .fold(Report::default(), Report::with)
}

/// Each client makes its visits at times drawn at random, whether or not those before have ended.
async fn overload(plan: &Plan, server: &Process, per_second: f64) -> Report {
    let until = tokio::time::Instant::now() + plan.time;
    // Visits that ask for nothing that could be done come on top.
    let rate = plan.overload * per_second / Kind::SHARE_THAT_ASKS / plan.clients as f64;
    let clients = connected(&server.grpc, plan.clients).await;
    let mut visiting = JoinSet::new();
    for (number, client) in clients.into_iter().enumerate() {
        let (address, max_tokens) = (server.grpc.clone(), plan.max_tokens);
        visiting.spawn(async move {
            let mut random = StdRng::seed_from_u64(1000 + number as u64);
            let (mut report, mut visits) = (Report::default(), JoinSet::new());
            loop {
                let pause = -random.random_range(f64::EPSILON..1.0).ln() / rate;
                let next = tokio::time::Instant::now() + Duration::from_secs_f64(pause);
                if next > until {
                    break;
                }
                tokio::time::sleep_until(next).await;
                let kind = Kind::draw(&mut random);
                let visitor = Visitor::new(client.clone(), &address, max_tokens, &mut random);
                visits.spawn(visitor.visit(kind));
                while let Some(visit) = visits.try_join_next() {
                    report.take(visit);
                }
            }
            while let Some(visit) = visits.join_next().await {
                report.take(visit);
            }
            report
        });
    }
    let mut report = Report::default();
    while let Some(one) = visiting.join_next().await {
        report.take(one);
    }
    report
}
