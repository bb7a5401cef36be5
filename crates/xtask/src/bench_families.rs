//! Another family through mistral.rs beside Baichuan-M1, on this machine's processor, through the real server: a Llama of
//! the very matrices of a random Baichuan-M1, so that both have the same work to do but for the convolution. And what
//! one costs the other when a server has both.

mod same_matrices;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::Stdio;

use anyhow::{Context, ensure};
use baichuan_kernels::GgmlFormat;

use crate::bench_cpu::Numbers;
use crate::bench_cpu::program::{Load, Programs, Server};
use crate::bench_cpu::report::median;

/// Names in the server of both.
const M1: &str = "m1";
const OTHER: &str = "other";
/// Longest sequence of a measurement, in tokens.
const CONTEXT: u32 = 1024;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Folder of a Baichuan-M1 in bf16; made with `make-model --preset bench`.
    #[arg(long, default_value = "target/models/bench")]
    model: PathBuf,
    /// Folder of the Llama of the same matrices; written if it is not there.
    #[arg(long, default_value = "target/models/bench-llama")]
    other: PathBuf,
    /// Folder of the programs, built with --release and both plugins.
    #[arg(long, default_value = "target/release")]
    programs: PathBuf,
    /// What the weights are: bf16, as in the files, or formats to quantise them to at load.
    #[arg(long, value_delimiter = ',', default_value = "bf16,Q8_0")]
    formats: Vec<Numbers>,
    /// Rounds of which medians are taken.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Tokens decoded in a round, behind a prompt of 32.
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u32).range(2..))]
    decode: u32,
    /// Tokens of the prompt whose speed is measured.
    #[arg(long, default_value_t = 512, value_parser = clap::value_parser!(u32).range(1..960))]
    prompt: u32,
    /// Only measure what the models cost each other in one server.
    #[arg(long)]
    only_together: bool,
}

/// What was measured of one model.
#[derive(Default)]
struct Figures {
    load_seconds: f64,
    decode: Vec<f64>,
    prefill: Vec<f64>,
    peak_mib: f64,
}

/// Measures and prints tables.
#[expect(clippy::print_stdout, reason = "the tables are this command's output")]
pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    if !args.other.join("config.json").is_file() {
        same_matrices::write(&args.model, &args.other)?;
        eprintln!("wrote {}", args.other.display());
    }
    let programs = Programs::new(&args.programs)?;
    if !args.only_together {
        println!(
            "| | decode, tok/s | prompt of {}, tok/s | peak memory, MiB | load, s |",
            args.prompt
        );
        println!("|---|---|---|---|---|");
        for &numbers in &args.formats {
            for (name, model) in [
                ("Baichuan-M1, engine here", &args.model),
                ("Llama, mistral.rs", &args.other),
            ] {
                let server = programs.serve(model, (numbers, None), CONTEXT, 1)?;
                let figures =
                    measure(args, &server).with_context(|| format!("{name}, {}", numbers.name()))?;
                println!(
                    "| {name}, {} | {:.2} | {:.1} | {:.0} | {:.1} |",
                    numbers.name(),
                    median(&figures.decode),
                    median(&figures.prefill),
                    figures.peak_mib,
                    figures.load_seconds
                );
            }
        }
    }
    let both = both(&programs, args)?;
    let decode = |model| tok_s(&both, model, args.decode);
    let idle = decode(M1)?;
    // Both ask for all cores: half of them is each one's share.
    let endless = Load {
        streams: 1,
        prompt_tokens: 32,
        max_tokens: CONTEXT - 64,
    };
    let mut busy = both.bench(OTHER, &endless).stdout(Stdio::null()).spawn()?;
    let together = decode(M1);
    let went_on = busy.try_wait()?.is_none();
    let _ = busy.kill(); // it may have ended just now
    busy.wait()?;
    let together = together?;
    ensure!(went_on, "the other model had ended before it was measured beside");
    println!(
        "\nBaichuan-M1 {}, tok/s: {idle:.2} with the other loaded, {together:.2} ({:.2} of it) while that decodes too",
        GgmlFormat::Q8_0.name(),
        together / idle
    );
    Ok(())
}

fn measure(args: &Args, server: &Server) -> anyhow::Result<Figures> {
    let mut figures = Figures {
        load_seconds: server.load_seconds,
        ..Figures::default()
    };
    for _ in 0..args.rounds {
        figures.decode.push(tok_s(server, "", args.decode)?);
        let prompt = Load {
            streams: 1,
            prompt_tokens: args.prompt,
            max_tokens: 1,
        };
        let first_token_ms = server.load(&prompt)?.first_token_ms;
        figures
            .prefill
            .push(f64::from(args.prompt) * 1e3 / first_token_ms);
    }
    figures.peak_mib = server.peak_bytes()? as f64 / f64::from(1 << 20);
    Ok(figures)
}

/// Tokens per second of one stream.
fn tok_s(server: &Server, model: &str, tokens: u32) -> anyhow::Result<f64> {
    let one = Load {
        streams: 1,
        prompt_tokens: 32,
        max_tokens: tokens,
    };
    Ok(1e3 / server.load_of(model, &one)?.between_tokens_ms)
}

/// A server of both models, quantised to Q8_0.
fn both(programs: &Programs, args: &Args) -> anyhow::Result<Server> {
    let entry = |name, path: &PathBuf| -> anyhow::Result<String> {
        let path = std::path::absolute(path)?;
        let isq = GgmlFormat::Q8_0.name();
        Ok(format!(
            "[[models]]\nname = {name:?}\npath = {path:?}\nisq = {isq:?}\n"
        ))
    };
    let config = tempfile::NamedTempFile::new()?;
    std::fs::write(
        config.path(),
        entry(M1, &args.model)? + &entry(OTHER, &args.other)?,
    )?;
    let mut arguments: Vec<OsString> = vec!["--config".into(), config.path().into()];
    for set in [
        format!("engine.max_context={CONTEXT}"),
        format!("engine.cache.context_tokens={}", 2 * CONTEXT),
    ] {
        arguments.extend(["--set".into(), set.into()]);
    }
    programs.start(&arguments)
}
