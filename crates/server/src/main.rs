//! The binary `baichuan-server`: command line, logs, runtime, signals.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use args::{Arguments, Command, Settings};
use baichuan_client::{Client, ConnectOptions, Health, TlsOptions};
use baichuan_engine::{Checkpoint, QuantizeRequest, Registry};
use baichuan_server::config::{Config, LogConfig, load};
use baichuan_server::telemetry::{self, Terminal};
use baichuan_server::{Listeners, LoadObserver, Server, shutdown};
use clap::Parser;
use progress::Progress;

mod args;
mod demo;
mod progress;

/// Threads that outlive the server, such as one that loads a model, get this long.
const LEFTOVER_GRACE: Duration = Duration::from_secs(1);

fn main() -> ExitCode {
    telemetry::hide_words_of_panics();
    let arguments = Arguments::parse();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(&error.into()),
    };
    let outcome = runtime.block_on(run(arguments.command));
    runtime.shutdown_timeout(LEFTOVER_GRACE);
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&error),
    }
}

/// To standard error, whatever the state of the logs.
fn fail(error: &anyhow::Error) -> ExitCode {
    let mut message = error.to_string();
    for cause in error.chain().skip(1).map(ToString::to_string) {
        // Many an error's message ends with its cause already.
        if !message.ends_with(&cause) {
            message = format!("{message}: {cause}");
        }
    }
    eprintln!("baichuan-server: {message}");
    ExitCode::FAILURE
}

async fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Serve(settings) => serve(load(&settings.inputs())?).await,
        Command::CheckConfig(settings) => check_config(&settings),
        Command::ConfigReference => config_reference(),
        Command::HashToken(token) => hash_token(&token),
        Command::Quantize(what) => tokio::task::spawn_blocking(move || quantize(&what)).await?,
        Command::Demo(settings) => demo::demo(&settings).await,
        Command::Health(health) => probe(&health).await,
    }
}

/// The plugins this program is composed of.
fn registry() -> Registry {
    let registry = Registry::new();
    #[cfg(feature = "baichuan-m1")]
    let registry = registry.with(baichuan_m1::plugin());
    #[cfg(feature = "mistralrs")]
    let registry = registry.with(mistralrs_backend::plugin());
    registry
}

async fn serve(config: Config) -> anyhow::Result<()> {
    let terminal = Terminal::default();
    let filter = telemetry::init(&config.log, &terminal)?;
    let listeners = Listeners::bind(&config.listen).await?;
    let (trigger, shutdown) = shutdown::channel();
    let server = Server::new(config, registry())
        .log_filter(filter)
        .observer(Arc::new(Progress::new(terminal, Terminal::is_watched())));
    tokio::select! {
        ended = server.run(listeners, shutdown) => Ok(ended?),
        failed = trigger.ask_on_signals() => match failed {
            Ok(never) => match never {},
            Err(error) => Err(error).context("cannot handle signals"),
        },
    }
}

fn quantize(what: &args::Quantize) -> anyhow::Result<()> {
    let terminal = Terminal::default();
    telemetry::init(&LogConfig::default(), &terminal)?;
    let progress = Progress::new(terminal, Terminal::is_watched());
    let name = what.out.display().to_string();
    let checkpoint = Checkpoint::open(&what.model)?;
    let plugin = registry().pick(what.plugin.as_deref(), &checkpoint)?;
    let outcome = plugin.quantize(&QuantizeRequest {
        checkpoint: &checkpoint,
        isq: what.isq,
        out: &what.out,
        threads: what.threads,
        progress: &|done| progress.progress(&name, done),
    });
    progress.ended(&name);
    Ok(outcome?)
}

#[expect(clippy::print_stdout, reason = "the configuration is this command's output")]
fn check_config(settings: &Settings) -> anyhow::Result<()> {
    let config = load(&settings.inputs())?;
    baichuan_server::check_files(&config)?;
    print!("{}", config.to_toml()?);
    Ok(())
}

#[expect(clippy::print_stdout, reason = "the reference is this command's output")]
fn config_reference() -> anyhow::Result<()> {
    print!("{}", baichuan_server::config::reference()?);
    Ok(())
}

/// The entry goes to standard output, for a file; a new token to standard error, for its user, and nowhere else.
#[expect(clippy::print_stdout, reason = "the entry is this command's output")]
fn hash_token(asked: &args::HashToken) -> anyhow::Result<()> {
    let token = if asked.generate {
        let token = baichuan_server::fresh_token().map_err(anyhow::Error::msg)?;
        eprintln!("{token}");
        token
    } else {
        let mut line = String::new();
        std::io::stdin()
            .read_line(&mut line)
            .context("cannot read the token from standard input")?;
        line.trim().to_owned()
    };
    let entry =
        baichuan_server::token_entry(&token, &asked.name, &asked.tenant).map_err(anyhow::Error::msg)?;
    print!("{entry}");
    Ok(())
}

#[expect(clippy::print_stdout, reason = "the answer is this command's output")]
async fn probe(health: &args::Health) -> anyhow::Result<()> {
    let mut options = ConnectOptions::new(&health.server);
    options.connect_timeout = health.timeout;
    let tls = TlsOptions {
        ca: health.tls_ca.clone(),
        cert: health.tls_cert.clone(),
        key: health.tls_key.clone(),
        server_name: health.tls_server_name.clone(),
    };
    options.tls = (tls != TlsOptions::default()).then_some(tls);
    let asked = async { Client::connect(&options).await?.health(&health.service).await };
    let answer = tokio::time::timeout(health.timeout, asked)
        .await
        .with_context(|| format!("{} did not answer within {:?}", health.server, health.timeout))??;
    println!("{answer:?}");
    anyhow::ensure!(answer == Health::Serving, "{} does not serve", health.server);
    Ok(())
}
