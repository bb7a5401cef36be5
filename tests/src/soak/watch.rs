//! What the server's process holds, seen from outside: memory, files, tasks, calls without an end.

use std::fmt;
use std::time::Duration;

use crate::scrape::scrape;

use super::process::Process;

/// Of memory, seen so often.
const EVERY: Duration = Duration::from_millis(500);
/// What ends by itself has so long to do so.
const SETTLES_WITHIN: Duration = Duration::from_secs(30);

/// What may not be more after than before.
#[derive(Debug)]
pub(super) struct Held {
    /// Calls begun and not ended, by the server's own count.
    calls: i64,
    /// Tasks of its runtime.
    tasks: i64,
    /// Open files and sockets.
    files: i64,
}

impl Held {
    async fn of(server: &Process) -> Self {
        let page = scrape(server.admin.parse().expect("an address")).await;
        let sum = |name: &str| -> i64 {
            let samples = page.lines().filter_map(|line| line.strip_prefix(name));
            let of_name = samples.filter(|rest| rest.starts_with(['{', ' ']));
            let values = of_name.filter_map(|rest| {
                rest.rsplit_once("} ")
                    .map_or(rest.trim().split(' ').next(), |(_, value)| {
                        value.split(' ').next()
                    })
            });
            values.filter_map(|value| value.parse::<f64>().ok()).sum::<f64>() as i64
        };
        let files = std::fs::read_dir(format!("/proc/{}/fd", server.pid())).map_or(0, Iterator::count);
        Self {
            calls: sum("grpc_server_started_total") - sum("grpc_server_handled_total"),
            tasks: sum("baichuan_tasks"),
            files: files as i64,
        }
    }

    pub(super) fn fault(&self, before: &Self) -> Option<String> {
        let more = self.calls > before.calls || self.tasks > before.tasks || self.files > before.files;
        more.then(|| format!("left behind: {self:?}, before {before:?}"))
    }
}

/// What is held once nothing of it ends by itself any more.
pub(super) async fn settled(server: &Process) -> Held {
    let mut least = Held::of(server).await;
    let mut unchanged = 0;
    while unchanged < 4 {
        tokio::time::sleep(EVERY).await;
        let now = Held::of(server).await;
        unchanged = if now.fault(&least).is_none() && least.fault(&now).is_none() {
            unchanged + 1
        } else {
            0
        };
        least = now;
    }
    least
}

/// What is held once it is no more than `before`; or after a while all the same.
pub(super) async fn until_as(before: &Held, server: &Process) -> Held {
    let until = tokio::time::Instant::now() + SETTLES_WITHIN;
    loop {
        let now = Held::of(server).await;
        if now.fault(before).is_none() || tokio::time::Instant::now() > until {
            return now;
        }
        tokio::time::sleep(EVERY).await;
    }
}

/// Resident memory in the course of a soak, in KiB.
pub(super) struct Memory(Vec<u64>);

/// Looks at a process's memory for so long.
pub(super) async fn memory(pid: u32, time: Duration) -> Memory {
    let mut samples = Vec::new();
    let mut ticks = tokio::time::interval(EVERY);
    for _ in 0..time.as_millis() / EVERY.as_millis() {
        ticks.tick().await;
        samples.extend(resident(pid));
    }
    Memory(samples)
}

fn resident(pid: u32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find(|line| line.starts_with("VmRSS:"))?;
    line.split_whitespace().nth(1)?.parse().ok()
}

impl Memory {
    /// Means of ten equal parts of the time.
    fn tenths(&self) -> Vec<u64> {
        let size = (self.0.len() / 10).max(1);
        let parts = self.0.chunks(size).take(10);
        parts
            .map(|part| part.iter().sum::<u64>() / part.len() as u64)
            .collect()
    }

    /// The last tenth against the second; the first is for pools and buffers to fill.
    fn change(&self) -> f64 {
        let tenths = self.tenths();
        match (tenths.get(1), tenths.last()) {
            (Some(early), Some(late)) => *late as f64 / (*early as f64).max(1.0) - 1.0,
            _ => 0.0,
        }
    }

    /// By more than 5 % either way; in a run too short for that to mean anything, grown by more than half.
    pub(super) fn fault(&self, strict: bool) -> Option<String> {
        let flat = if strict {
            self.change().abs() <= 0.05
        } else {
            self.change() <= 0.5
        };
        (!flat).then(|| format!("memory is not flat: {self}"))
    }
}

impl fmt::Display for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let tenths: Vec<String> = self
            .tenths()
            .iter()
            .map(|kib| format!("{:.1}", *kib as f64 / 1024.0))
            .collect();
        write!(
            f,
            "{:+.1} % from the second tenth of the time to the last; tenths in MiB: {}",
            self.change() * 100.0,
            tenths.join(" ")
        )
    }
}
