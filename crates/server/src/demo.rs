//! `demo`: a server and its client in one process, over a real socket, on whatever model there is.

use std::io::{self, Write};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context;
use baichuan_client::{Client, ConnectOptions, Event, Health, prompt, v1};
use baichuan_server::config::{Config, ConfigError, Flag, load};
use baichuan_server::telemetry::{self, Terminal};
use baichuan_server::{Listeners, Server, shutdown};

use crate::args::Settings;
use crate::progress::Progress;

/// Two that belong together and one that does not.
const SENTENCES: [&str; 3] = [
    "inflammation of the liver",
    "inflammation of the kidney",
    "a flowering plant with yellow petals",
];
const QUESTION: &str = "What is appendicitis?";

/// Runs the whole tour and ends.
pub(crate) async fn demo(settings: &Settings) -> anyhow::Result<()> {
    let mut out = io::stdout();
    let (config, noise) = configure(settings, &mut out)?;
    let terminal = Terminal::default();
    telemetry::init(&config.log, &terminal)?;
    let listeners = Listeners::bind(&config.listen).await?;
    let address = listeners.grpc.local_addr()?;
    let (trigger, shutdown) = shutdown::channel();
    let server = Server::new(config, crate::registry())
        .observer(Arc::new(Progress::new(terminal, Terminal::is_watched())));
    let mut server = std::pin::pin!(server.run(listeners, shutdown));
    tokio::select! {
        ended = &mut server => {
            ended?;
            anyhow::bail!("the server ended before the demonstration did");
        }
        toured = tour(address, noise.is_some(), &mut out) => toured?,
        failed = trigger.ask_on_signals() => match failed.context("cannot handle signals")? {},
    }
    trigger.ask();
    server.await?;
    writeln!(
        out,
        "\nThe server has drained and ended. To keep one running: baichuan-server serve"
    )?;
    Ok(())
}

/// The user's configuration on a free port of this machine; with a checkpoint of noise where there is none.
fn configure(
    settings: &Settings,
    out: &mut impl Write,
) -> anyhow::Result<(Config, Option<tempfile::TempDir>)> {
    let mut inputs = settings.inputs();
    let flag = |key: &str, value: &str| Flag {
        name: "demo".to_owned(),
        key: key.to_owned(),
        value: toml::Value::String(value.to_owned()).to_string(),
    };
    let own = [
        ("listen.grpc", "127.0.0.1:0"),
        ("listen.admin", "off"),
        ("log.filter", "warn"),
    ];
    let own = own.map(|(key, value)| flag(key, value));
    inputs.flags.splice(0..0, own);
    match load(&inputs) {
        Err(ConfigError::NoModel { searched }) => {
            writeln!(out, "There is no trained model in any of these places:")?;
            for place in &searched {
                writeln!(out, "  {}", place.display())?;
            }
            writeln!(
                out,
                "Making a tiny one of random weights instead: its text will be noise.\n"
            )?;
            let dir = tempfile::tempdir().context("cannot make a folder for a checkpoint")?;
            let path = make_noise(dir.path().join("baichuan-m1-noise"))?;
            inputs.flags.push(flag("model.path", &path.display().to_string()));
            Ok((load(&inputs)?, Some(dir)))
        }
        loaded => Ok((loaded?, None)),
    }
}

#[cfg(feature = "baichuan-m1")]
fn make_noise(dir: PathBuf) -> anyhow::Result<PathBuf> {
    use baichuan_m1::random::{Preset, Recipe};
    Recipe::new(Preset::Tiny).write(&dir, &|_, _| {})?;
    Ok(dir)
}

#[cfg(not(feature = "baichuan-m1"))]
fn make_noise(_: PathBuf) -> anyhow::Result<PathBuf> {
    anyhow::bail!("this program is built without the feature baichuan-m1: name a checkpoint with --model")
}

/// What a client does with a server.
async fn tour(address: SocketAddr, noise: bool, out: &mut impl Write) -> anyhow::Result<()> {
    writeln!(
        out,
        "Server on {address}; the client below talks gRPC to it over TCP."
    )?;
    let client = Client::connect(&ConnectOptions::new(address.to_string())).await?;
    let mut health = client.watch_health(Client::READINESS).await?;
    while health.next().await?.context("the server hung up")? != Health::Serving {}

    let info = client.server_info().await?;
    let model = client.model("").await?;
    heading(out, "GetServerInfo, GetModel")?;
    writeln!(
        out,
        "server   {} ({}) on {}",
        info.version, info.git_commit, info.cpu
    )?;
    writeln!(
        out,
        "model    {}: {}, {} parameters in {} on {}, context {}",
        model.name, model.architecture, model.parameters, model.dtype, model.device, model.max_context
    )?;

    heading(out, "Generate, streamed")?;
    if noise {
        writeln!(out, "(random weights: what follows is noise)")?;
    }
    chat(&client, out).await?;

    heading(out, "Embed")?;
    similarities(&client, out).await?;

    heading(out, "Tokenize")?;
    let request = v1::TokenizeRequest {
        input: Some(v1::tokenize_request::Input::Text(QUESTION.to_owned())),
        return_tokens: Some(true),
        ..Default::default()
    };
    let tokenized = client.tokenize(request).await?;
    let tokens = tokenized.tokens.iter().zip(&tokenized.token_ids);
    let tokens: Vec<String> = tokens.map(|(text, id)| format!("{text}={id}")).collect();
    writeln!(out, "{QUESTION:?} → {}", tokens.join(" "))?;

    let load = client.load("").await?;
    heading(out, "GetLoad")?;
    for load in load {
        writeln!(
            out,
            "{}: {} requests, {} prompt tokens, {} generated tokens, {} steps",
            load.model,
            load.requests_total,
            load.prompt_tokens_total,
            load.generated_tokens_total,
            load.steps_total
        )?;
    }
    Ok(())
}

fn heading(out: &mut impl Write, title: &str) -> io::Result<()> {
    writeln!(out, "\n── {title} ──")
}

async fn chat(client: &Client, out: &mut impl Write) -> anyhow::Result<()> {
    let request = v1::GenerateRequest {
        prompt: Some(prompt::chat([prompt::message("user", QUESTION)])),
        sampling: Some(v1::SamplingParams {
            temperature: Some(0.0),
            ..Default::default()
        }),
        stopping: Some(v1::StoppingParams {
            max_tokens: Some(64),
            ..Default::default()
        }),
        ..Default::default()
    };
    write!(out, "user       {QUESTION}\nassistant  ")?;
    let mut generation = client.generate(request).await?;
    while let Some(event) = generation.next().await? {
        match event {
            Event::PromptInfo(_) => {}
            Event::Delta(delta) => {
                write!(out, "{}", delta.text.replace('\n', "\n           "))?;
                out.flush()?;
            }
            Event::Finish(finish) => {
                let (usage, timings) = (
                    finish.usage.unwrap_or_default(),
                    finish.timings.unwrap_or_default(),
                );
                writeln!(
                    out,
                    "\n           {} prompt tokens, {} generated; first token after {:.1} ms, {:.1} ms in all",
                    usage.prompt_tokens,
                    usage.completion_tokens,
                    timings.time_to_first_token_ms,
                    timings.total_ms
                )?;
            }
        }
    }
    Ok(())
}

async fn similarities(client: &Client, out: &mut impl Write) -> anyhow::Result<()> {
    let request = v1::EmbedRequest {
        inputs: SENTENCES.map(prompt::embed_text).to_vec(),
        pooling: v1::Pooling::Mean.into(),
        ..Default::default()
    };
    let response = client.embed(request).await?;
    let vectors: Vec<Vec<f32>> = response
        .embeddings
        .iter()
        .map(baichuan_client::values)
        .collect::<Result<_, _>>()?;
    let dimensions = vectors.first().map_or(0, Vec::len);
    writeln!(
        out,
        "cosine similarities of {} vectors of {dimensions} dimensions:",
        vectors.len()
    )?;
    for (i, sentence) in SENTENCES.iter().enumerate() {
        let row = vectors.iter().map(|other| {
            let dot: f32 = vectors[i].iter().zip(other).map(|(a, b)| a * b).sum();
            format!("{dot:6.3}")
        });
        writeln!(out, "{}  {sentence}", row.collect::<Vec<_>>().join(" "))?;
    }
    Ok(())
}
