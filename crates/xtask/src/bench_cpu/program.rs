//! The server as a child process, and the client's `bench` against it.

use std::ffi::OsString;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use serde_json::Value;

use super::{CacheNumbers, Numbers};

/// A model of any size that fits this machine is loaded by then.
const LOAD_TIMEOUT: Duration = Duration::from_secs(600);

/// The programs under measurement.
pub(crate) struct Programs {
    server: PathBuf,
    client: PathBuf,
}

/// A server that serves.
pub(crate) struct Server {
    child: Child,
    client: PathBuf,
    address: String,
    /// From its start to its being ready.
    pub(crate) load_seconds: f64,
}

/// What is asked of it.
pub(crate) struct Load {
    pub(crate) streams: u32,
    pub(crate) prompt_tokens: u32,
    pub(crate) max_tokens: u32,
}

/// What came of it, medians over all requests.
pub(crate) struct Answer {
    pub(crate) first_token_ms: f64,
    /// 0 for answers of one token.
    pub(crate) between_tokens_ms: f64,
}

/// Tokens that [`Programs::serve`]'s server has room for: one long sequence and some short ones.
pub(super) fn cache_tokens(context: u32, streams: u32) -> u32 {
    context + 64 + streams * 256
}

impl Programs {
    pub(crate) fn new(dir: &Path) -> anyhow::Result<Self> {
        let program = |name: &str| {
            let path = std::path::absolute(dir.join(name))?;
            ensure!(path.is_file(), "{} is not there: cargo build-m1", path.display());
            Ok(path)
        };
        Ok(Self {
            server: program("baichuan-server")?,
            client: program("baichuan")?,
        })
    }

    /// Starts a server of one model, keys and values as the checkpoint's weights if not otherwise, and waits until it serves.
    pub(crate) fn serve(
        &self,
        model: &Path,
        (numbers, cache): (Numbers, Option<CacheNumbers>),
        context: u32,
        streams: u32,
    ) -> anyhow::Result<Server> {
        let context_tokens = cache_tokens(context, streams);
        let mut arguments: Vec<OsString> = vec!["--model".into(), model.into()];
        for set in [
            format!("engine.max_context={}", context + 64),
            format!("engine.max_sequences={}", streams.max(1)),
            format!("engine.cache.context_tokens={context_tokens}"),
        ] {
            arguments.extend(["--set".into(), set.into()]);
        }
        if let Some(cache) = cache {
            arguments.extend(["--set".into(), format!("model.cache_dtype={}", cache.name).into()]);
        }
        if let Numbers::Ggml(format) = numbers {
            arguments.extend(["--isq".into(), format.name().into()]);
        }
        self.start(&arguments)
    }

    /// Starts a server with these arguments and waits until it serves.
    pub(crate) fn start(&self, arguments: &[OsString]) -> anyhow::Result<Server> {
        let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string();
        let mut command = Command::new(&self.server);
        command.args(["serve", "--listen", &address, "--admin-listen", "off"]);
        command.args(["--set", "log.filter=warn"]).args(arguments);
        let started = Instant::now();
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn();
        let mut server = Server {
            child: child.with_context(|| format!("cannot run {}", self.server.display()))?,
            client: self.client.clone(),
            address,
            load_seconds: 0.0,
        };
        loop {
            if let Some(status) = server.child.try_wait()? {
                bail!("the server ended with {status} before it served");
            }
            let health = Command::new(&self.server)
                .args(["health", "--server", &server.address, "--timeout", "1s"])
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .status()?;
            if health.success() {
                server.load_seconds = started.elapsed().as_secs_f64();
                return Ok(server);
            }
            ensure!(
                started.elapsed() < LOAD_TIMEOUT,
                "the server does not come to serve"
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Server {
    pub(crate) fn load(&self, load: &Load) -> anyhow::Result<Answer> {
        self.load_of("", load)
    }

    /// [`Self::load`] of one model of several.
    pub(crate) fn load_of(&self, model: &str, load: &Load) -> anyhow::Result<Answer> {
        let output = self.bench(model, load).output()?;
        ensure!(
            output.status.success(),
            "the client's bench ended with {}",
            output.status
        );
        let report: Value =
            serde_json::from_slice(&output.stdout).context("what bench printed is not JSON")?;
        let median = |of: &str| report[of]["p50"].as_f64();
        Ok(Answer {
            first_token_ms: median("first_token_ms").context("no request came to a first token")?,
            between_tokens_ms: median("between_tokens_ms").unwrap_or(0.0),
        })
    }

    /// The client's bench as a process of its own, for a load in the background.
    pub(crate) fn bench(&self, model: &str, load: &Load) -> Command {
        let streams = load.streams.to_string();
        let mut command = Command::new(&self.client);
        command
            .args(["--server", &self.address, "--json", "bench", "--warmup", "0"])
            .args(["--concurrency", &streams, "--requests", &streams])
            .args(["--prompt-tokens", &load.prompt_tokens.to_string()])
            .args(["--max-tokens", &load.max_tokens.to_string()])
            .stderr(Stdio::inherit());
        if !model.is_empty() {
            command.args(["--model", model]);
        }
        command
    }

    /// The most memory that the server held so far, pages of files that it maps included.
    pub(crate) fn peak_bytes(&self) -> anyhow::Result<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kib = peak.and_then(|rest| rest.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok());
        Ok(kib.context("the system does not tell the peak")? << 10)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It has nothing to finish.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
