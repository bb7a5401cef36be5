//! The programs as users run them.

use std::process::{ExitStatus, Stdio};

use baichuan_client::{Client, ConnectOptions};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStderr, Command};
use tokio::task::JoinHandle;

use crate::wait::within;

/// The built program `name`, from the folder this test was built into; a command without this process's settings.
///
/// # Panics
/// When it is not there: `cargo test --workspace` builds it, `cargo test -p e2e` alone does not.
pub fn program(name: &str) -> Command {
    let test = std::env::current_exe().unwrap();
    let profile = test
        .ancestors()
        .nth(2)
        .expect("a test lies in target/PROFILE/deps");
    let program = profile.join(format!("{name}{}", std::env::consts::EXE_SUFFIX));
    assert!(
        program.is_file(),
        "{} is not built: run `cargo test --workspace`, or `cargo build --workspace --bins` first",
        program.display()
    );
    let mut command = Command::new(program);
    for (variable, _) in std::env::vars_os() {
        let name = variable.to_string_lossy();
        if name.starts_with("BAICHUAN_") || name.starts_with("OTEL_") {
            command.env_remove(&variable);
        }
    }
    command.kill_on_drop(true);
    command
}

/// Sends a signal to a process by its id.
pub async fn signal(process: u32, name: &str) {
    let sent = Command::new("kill")
        .args([&format!("-{name}"), &process.to_string()])
        .status();
    assert!(
        sent.await.unwrap().success(),
        "{name} cannot be sent to {process}"
    );
}

/// `baichuan-server serve` as a process of its own.
pub struct ServerProcess {
    /// Connected.
    pub client: Client,
    /// Where it listens: `HOST:PORT`.
    pub address: String,
    child: Child,
    log: JoinHandle<Vec<String>>,
}

impl ServerProcess {
    /// Starts it with these arguments on a free port. It listens, and may not be ready yet.
    ///
    /// # Panics
    /// When it ends before it listens.
    pub async fn start(arguments: &[&str]) -> Self {
        Self::start_in(&[], arguments).await
    }

    /// [`Self::start`] with these variables in its environment.
    ///
    /// # Panics
    /// When it ends before it listens.
    pub async fn start_in(environment: &[(&str, &str)], arguments: &[&str]) -> Self {
        let own = [
            "serve",
            "--listen",
            "127.0.0.1:0",
            "--admin-listen",
            "off",
            "--log-format",
            "json",
        ];
        let mut child = program("baichuan-server")
            .args(own)
            .args(arguments)
            .envs(environment.iter().copied())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let address = within("the server's address in its log", address(&mut lines)).await;
        let log = tokio::spawn(async move {
            let mut rest = Vec::new();
            while let Ok(Some(line)) = lines.next_line().await {
                rest.push(line);
            }
            rest
        });
        let client = Client::connect(&ConnectOptions::new(&address)).await.unwrap();
        Self {
            client,
            address,
            child,
            log,
        }
    }

    /// Sends it a signal, e.g. `TERM`.
    pub async fn signal(&self, name: &str) {
        signal(self.child.id().expect("it runs"), name).await;
    }

    /// Waits until it has ended: how, and the lines of its log since it listened.
    pub async fn ended(mut self) -> (ExitStatus, Vec<String>) {
        drop(self.client);
        let status = within("the process's end", self.child.wait()).await.unwrap();
        (status, self.log.await.unwrap())
    }
}

async fn address(lines: &mut Lines<BufReader<ChildStderr>>) -> String {
    let mut before = Vec::new();
    while let Some(line) = lines.next_line().await.unwrap() {
        if line.contains("gRPC listens") {
            let event: Value = serde_json::from_str(&line).unwrap();
            let fields = event.get("fields").unwrap_or(&event);
            return fields["address"]
                .as_str()
                .expect("the event has the address")
                .into();
        }
        before.push(line);
    }
    panic!("the server ended before it listened: {before:?}");
}
