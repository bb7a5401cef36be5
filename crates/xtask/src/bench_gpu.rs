//! Measures the server on a GPU as clients see it: the published shapes, weights drawn on the device, requests over
//! gRPC, times between messages. The memory's read bandwidth is measured in the same run, before the server starts.

use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use baichuan_m1::config::BaichuanConfig;
use baichuan_m1::layout::{self, Role};
use baichuan_m1::random::{Preset, Recipe};
use serde_json::Value;

/// A server that draws 14.5 billion weights and records its graphs is ready within this.
const READY_WITHIN: Duration = Duration::from_secs(180);

#[derive(clap::Args)]
pub(crate) struct Args {
    /// The server, built with its feature `cuda`; by default beside this program.
    #[arg(long)]
    server: Option<PathBuf>,
    /// The client; by default beside this program.
    #[arg(long)]
    client: Option<PathBuf>,
    /// Which GPU.
    #[arg(long, default_value_t = 0)]
    ordinal: usize,
    /// Shapes of the model.
    #[arg(long, default_value = "full", value_parser = crate::make_model::presets())]
    preset: Preset,
    /// Further configuration of the server, e.g. model.isq=Q8_0.
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// What to measure, e.g. d32 or p2048; by default everything.
    rows: Vec<String>,
}

/// Name, sequences, prompt, tokens generated.
const DECODES: [(&str, usize, usize, usize); 8] = [
    ("d1", 1, 128, 128),
    ("d4", 4, 128, 128),
    ("d8", 8, 128, 128),
    ("d32", 32, 128, 128),
    ("d64", 64, 128, 128),
    ("d128", 128, 128, 128),
    ("d256", 256, 128, 128),
    ("d32long", 32, 7936, 128),
];
/// Name and prompt.
const PREFILLS: [(&str, usize); 3] = [("p512", 512), ("p2048", 2048), ("p8192", 8192)];

pub(crate) fn run(args: Args) -> anyhow::Result<()> {
    let (gpu, bandwidth) = baichuan_m1::cuda::bandwidth::measure(args.ordinal)?;
    let folder = tempfile::tempdir()?;
    let recipe = Recipe::new(args.preset);
    recipe.write_description(folder.path())?;
    let config = BaichuanConfig::from_dir(folder.path())?;
    let bits = bits_of_weight(&args.set);
    let weights = weight_bytes(&config) / 16.0 * bits;
    line(format_args!(
        "{gpu}: reads {:.2} TB/s; weights but the embedding {:.2} GB, {bits} bits each, {:.2} ms to read",
        bandwidth / 1e12,
        weights / 1e9,
        weights / bandwidth * 1e3
    ));
    let server = Server::start(&args, folder.path())?;
    line(format_args!(
        "server ready in {:.1} s",
        server.loaded_in.as_secs_f64()
    ));
    let wanted = |name: &str| args.rows.is_empty() || args.rows.iter().any(|row| row == name);
    line(format_args!(
        "{:8} {:>9} {:>10} {:>10} {:>13} {:>12}",
        "row", "ms/step", "p95", "tok/s", "of bandwidth", "first token"
    ));
    for (name, n, prompt, generated) in DECODES.into_iter().filter(|row| wanted(row.0)) {
        let report = server.bench(n, n, prompt, generated)?;
        let (ms, p95) = (
            number(&report, "between_tokens_ms", "p50")?,
            number(&report, "between_tokens_ms", "p95")?,
        );
        let context = prompt + generated / 2;
        let floor = (weights + n as f64 * kv_bytes(&config, context)) / bandwidth * 1e3;
        line(format_args!(
            "{name:8} {ms:9.2} {p95:10.2} {:10.0} {:11.0} % {:10.0} ms",
            n as f64 / ms * 1e3,
            floor / ms * 100.0,
            number(&report, "first_token_ms", "p50")?
        ));
    }
    for (name, prompt) in PREFILLS.into_iter().filter(|row| wanted(row.0)) {
        let report = server.bench(1, 4, prompt, 1)?;
        let ms = number(&report, "first_token_ms", "p50")?;
        line(format_args!(
            "{name:8} {ms:9.1} {:10.1} {:10.0} prompt tok/s, products alone {:.0} TFLOP/s",
            number(&report, "first_token_ms", "p95")?,
            prompt as f64 / ms * 1e3,
            weight_bytes(&config) * prompt as f64 / ms / 1e9
        ));
    }
    Ok(())
}

#[expect(clippy::print_stdout, reason = "the table is this command's output")]
fn line(text: std::fmt::Arguments<'_>) {
    println!("{text}");
}

/// Bits that a weight takes on the device: of bf16, or of the type that the server quantises all of them to.
fn bits_of_weight(settings: &[String]) -> f64 {
    let isq = settings
        .iter()
        .find_map(|setting| setting.strip_prefix("model.isq="));
    match isq.map(|isq| isq.trim_matches('"')) {
        Some("Q8_0" | "8") => 8.5,
        Some("FP8") => 8.0,
        Some("Q6K" | "6") => 7.0,
        Some("Q4K" | "Q4_0" | "4") => 5.0,
        _ => 16.0,
    }
}

/// Bytes of bf16 weights that a step of one token reads.
fn weight_bytes(config: &BaichuanConfig) -> f64 {
    let read = layout::all(config)
        .into_iter()
        .filter(|spec| spec.role != Role::Embedding);
    read.map(|spec| spec.n_elements() as f64 * 2.0).sum()
}

/// Bytes of bf16 keys and values that a token at this place reads.
fn kv_bytes(config: &BaichuanConfig, context: usize) -> f64 {
    let of_layer = |layer: &baichuan_m1::config::LayerShape| {
        let tokens = match layer.span {
            baichuan_m1::config::Span::Global => context,
            baichuan_m1::config::Span::Sliding { window } => context.min(window),
        };
        (tokens * 2 * layer.kv_width() * 2) as f64
    };
    config.layers.iter().map(of_layer).sum()
}

fn number(report: &Value, latency: &str, quantile: &str) -> anyhow::Result<f64> {
    report[latency][quantile]
        .as_f64()
        .with_context(|| format!("the client reported no {latency}.{quantile}: {report}"))
}

/// A running server; ended when dropped.
struct Server {
    child: Child,
    client: PathBuf,
    address: String,
    loaded_in: Duration,
}

impl Server {
    fn start(args: &Args, folder: &std::path::Path) -> anyhow::Result<Self> {
        let beside =
            |name: &str| -> anyhow::Result<PathBuf> { Ok(std::env::current_exe()?.with_file_name(name)) };
        let program = args
            .server
            .clone()
            .map_or_else(|| beside("baichuan-server"), Ok)?;
        let client = args.client.clone().map_or_else(|| beside("baichuan"), Ok)?;
        // Free when asked for; nobody else is likely to take it in the meantime.
        let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string();
        let mut command = Command::new(&program);
        command
            .args(["serve", "--admin-listen", "off", "--listen", &address, "--model"])
            .arg(folder)
            .args(["--device", &format!("cuda:{}", args.ordinal)])
            .env("BAICHUAN_LOG__FILTER", "warn")
            .stdin(Stdio::null());
        let settings = [
            "model.random_weights=1",
            "engine.max_sequences=256",
            "engine.max_step_tokens=8192",
            "engine.prefill_chunk_tokens=8192",
        ];
        for setting in settings.into_iter().chain(args.set.iter().map(String::as_str)) {
            command.args(["--set", setting]);
        }
        let begun = Instant::now();
        let child = command
            .spawn()
            .with_context(|| format!("cannot start {}", program.display()))?;
        let mut server = Self {
            child,
            client,
            address,
            loaded_in: Duration::ZERO,
        };
        loop {
            if let Some(status) = server.child.try_wait()? {
                bail!("the server ended with {status}");
            }
            ensure!(
                begun.elapsed() < READY_WITHIN,
                "the server is not ready after {READY_WITHIN:?}"
            );
            let mut health = Command::new(&program);
            health.args(["health", "--server", &server.address]);
            health.stdout(Stdio::null()).stderr(Stdio::null());
            if health.status()?.success() {
                server.loaded_in = begun.elapsed();
                return Ok(server);
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// The client's report of `requests` requests, so many at a time.
    fn bench(
        &self,
        concurrency: usize,
        requests: usize,
        prompt: usize,
        generated: usize,
    ) -> anyhow::Result<Value> {
        let output = Command::new(&self.client)
            .args(["--server", &self.address, "--json", "bench"])
            .args(["--concurrency", &concurrency.to_string()])
            .args(["--requests", &requests.to_string()])
            .args(["--prompt-tokens", &prompt.to_string()])
            .args(["--max-tokens", &generated.to_string()])
            .stderr(Stdio::inherit())
            .output()
            .with_context(|| format!("cannot start {}", self.client.display()))?;
        ensure!(output.status.success(), "the client ended with {}", output.status);
        let report: Value = serde_json::from_slice(&output.stdout).context("the client's report")?;
        ensure!(
            report["succeeded"].as_u64() == Some(requests as u64),
            "requests failed: {report}"
        );
        Ok(report)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
