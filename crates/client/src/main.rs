//! The program `baichuan`: everything a server can do, from a terminal.
//!
//! Ctrl-C ends the call on the server too. Exit codes: 0 done, 1 the server refused, failed or is not healthy,
//! 2 wrong usage, 130 interrupted.

use std::process::ExitCode;

use clap::Parser;

mod args;
mod commands;
mod failure;
mod input;
mod json;
mod output;

#[tokio::main]
async fn main() -> ExitCode {
    let cli = args::Cli::parse();
    match commands::run(&cli).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            failure.report(cli.json);
            failure.exit_code()
        }
    }
}
