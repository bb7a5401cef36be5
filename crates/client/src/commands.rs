//! The commands: each turns its flags into calls and the answers into text or JSON.

use std::future::Future;

use baichuan_client::Client;

use crate::args::{Cli, Command};
use crate::failure::Failure;
use crate::{json, output};

pub(crate) mod abort;
pub(crate) mod bench;
pub(crate) mod chat;
pub(crate) mod embed;
pub(crate) mod generate;
pub(crate) mod health;
pub(crate) mod load;
pub(crate) mod models;
pub(crate) mod tokenize;

/// Does what the command line says.
pub(crate) async fn run(cli: &Cli) -> Result<(), Failure> {
    match &cli.command {
        Command::Generate(args) => generate::run(cli, args).await,
        // These two listen to Ctrl-C themselves: it ends an answer, of a conversation too, which it does not end.
        Command::Chat(args) => chat::run(cli, args).await,
        Command::Embed(args) => interruptible(embed::run(cli, args)).await,
        Command::Tokenize(args) => interruptible(tokenize::run(cli, args)).await,
        Command::Models(args) => interruptible(models::run(cli, args)).await,
        Command::Info => interruptible(info(cli)).await,
        Command::Health(args) => interruptible(health::run(cli, args)).await,
        Command::Load(args) => interruptible(load::run(cli, args)).await,
        Command::Abort(args) => interruptible(abort::run(cli, args)).await,
        Command::Bench(args) => interruptible(bench::run(cli, args)).await,
    }
}

/// Runs `work` until it ends or Ctrl-C is pressed. Dropping it then ends its calls on the server.
async fn interruptible<T>(work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    tokio::select! {
        // The work first: while it reads stdin, Ctrl-C must still be the system's own.
        biased;
        outcome = work => outcome,
        pressed = tokio::signal::ctrl_c() => {
            pressed?;
            Err(Failure::Interrupted)
        }
    }
}

async fn info(cli: &Cli) -> Result<(), Failure> {
    let info = Client::connect(&cli.connection()).await?.server_info().await?;
    if cli.json {
        output::json(&json::of("GetServerInfoResponse", &info)?)?;
        return Ok(());
    }
    let state = match (info.draining, info.ready) {
        (true, _) => "draining",
        (false, true) => "ready",
        (false, false) => "not ready",
    };
    for (what, value) in [
        ("version", format!("{} ({})", info.version, info.git_commit)),
        ("state", state.into()),
        ("uptime", format!("{:.0} s", info.uptime_seconds)),
        ("models", info.models.join(", ")),
        ("default model", info.default_model),
        ("features", info.features.join(", ")),
        ("cpu", info.cpu),
    ] {
        output::line(format_args!("{what:<14}{value}"))?;
    }
    Ok(())
}
