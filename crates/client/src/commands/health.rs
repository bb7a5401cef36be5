//! `baichuan health`: alive and ready? Exits 0 only if so, and so serves as a probe.

use baichuan_client::{Client, Health};
use serde_json::json;

use crate::args::Cli;
use crate::failure::Failure;
use crate::output;

/// Flags of `health`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The service to ask about; an empty name asks whether the server is alive.
    #[arg(long, default_value = Client::READINESS)]
    service: String,
    /// Print every change until interrupted.
    #[arg(long)]
    watch: bool,
}

/// Prints the state; anything but serving is a failure.
pub(crate) async fn run(cli: &Cli, args: &Args) -> Result<(), Failure> {
    let client = Client::connect(&cli.connection()).await?;
    if args.watch {
        let mut watch = client.watch_health(&args.service).await?;
        while let Some(health) = watch.next().await? {
            print(health, cli.json)?;
        }
        return Err(Failure::Outcome("the server ended the watch".into()));
    }
    let health = client.health(&args.service).await?;
    print(health, cli.json)?;
    match health {
        Health::Serving => Ok(()),
        _ => Err(Failure::Outcome(format!(
            "{:?} is {}",
            args.service,
            name(health)
        ))),
    }
}

fn print(health: Health, as_json: bool) -> std::io::Result<()> {
    if as_json {
        output::json(&json!({ "status": name(health) }))
    } else {
        output::line(name(health))
    }
}

fn name(health: Health) -> &'static str {
    match health {
        Health::Serving => "SERVING",
        Health::NotServing => "NOT_SERVING",
        Health::Unknown => "UNKNOWN",
        Health::ServiceUnknown => "SERVICE_UNKNOWN",
    }
}
