//! Soaks a server: three times what it can do, from clients of whom half misbehave, for as long as asked.
//!
//! docs/reliability.md has what came of the longest runs.

#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "it reports to its terminal"
)]

use std::process::ExitCode;
use std::time::Duration;

use e2e::soak::{Plan, run};

const USAGE: &str = "usage: soak SERVER MODEL SECONDS [CORES]

SERVER is a built baichuan-server, MODEL a checkpoint's folder. The server runs on CORES alone, as taskset names them (0-3);
run this program on others. Ends with an error when anything was not as docs/reliability.md promises.";

#[tokio::main]
async fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let (server, model, seconds, cores) = match words[..] {
        [server, model, seconds] => (server, model, seconds, None),
        [server, model, seconds, cores] => (server, model, seconds, Some(cores.to_owned())),
        _ => return usage(),
    };
    let Ok(seconds) = seconds.parse() else {
        return usage();
    };
    let plan = Plan {
        server: server.into(),
        model: model.into(),
        cores,
        time: Duration::from_secs(seconds),
        ..Plan::default()
    };
    let verdict = run(&plan).await;
    println!("{verdict}");
    match verdict.faults.is_empty() {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    }
}

fn usage() -> ExitCode {
    eprintln!("{USAGE}");
    ExitCode::from(2)
}
