//! The programs as users run them.

use std::net::SocketAddr;
use std::process::{ExitStatus, Stdio};

use baichuan_client::{Client, ConnectOptions};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStderr, Command};
use tokio::task::JoinHandle;

use crate::wait::within;

/// What the server's log says of each port, in the order in which it does.
pub(crate) const GRPC: &str = "gRPC listens";
const ADMIN_GRPC: &str = "AdminService listens";
pub(crate) const ADMIN: &str = "/metrics, /livez and /readyz listen";

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
    // The shell's own: `kill` as a program is not on every machine.
    let sent = Command::new("sh")
        .args(["-c", &format!("kill -{name} {process}")])
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
    /// Where `/metrics` is, if it was started by [`Self::start_with_ports`].
    pub admin: Option<SocketAddr>,
    /// Where AdminService is, likewise.
    pub admin_grpc: Option<SocketAddr>,
    child: Child,
    log: JoinHandle<Vec<String>>,
}

impl ServerProcess {
    /// Starts it with these arguments on a free port. It listens, and may not be ready yet.
    ///
    /// # Panics
    /// When it ends before it listens.
    pub async fn start(arguments: &[&str]) -> Self {
        Self::start_as(&[], arguments, ConnectOptions::new).await
    }

    /// [`Self::start`] with these variables in its environment, and a client that connects in its own way to the address it
    /// is given.
    ///
    /// # Panics
    /// When it ends before it listens, or the client does not connect.
    pub async fn start_as(
        environment: &[(&str, &str)],
        arguments: &[&str],
        caller: impl FnOnce(String) -> ConnectOptions,
    ) -> Self {
        let arguments = [&["--admin-listen", "off"], arguments].concat();
        Self::launch(environment, &arguments, &[GRPC], caller).await
    }

    /// [`Self::start`] with ports for the operator: metrics and AdminService.
    ///
    /// # Panics
    /// When it ends before it listens.
    pub async fn start_with_ports(arguments: &[&str]) -> Self {
        Self::start_with_ports_in(&[], arguments).await
    }

    /// [`Self::start_with_ports`] with these variables in its environment.
    ///
    /// # Panics
    /// When it ends before it listens.
    pub async fn start_with_ports_in(environment: &[(&str, &str)], arguments: &[&str]) -> Self {
        let any = "127.0.0.1:0";
        let own = ["--admin-listen", any, "--set", "listen.admin_grpc=127.0.0.1:0"];
        let arguments = [&own, arguments].concat();
        let told = [GRPC, ADMIN_GRPC, ADMIN];
        Self::launch(environment, &arguments, &told, ConnectOptions::new).await
    }

    /// Starts it and waits until its log has told where it listens, in this order.
    async fn launch(
        environment: &[(&str, &str)],
        arguments: &[&str],
        told: &[&str],
        caller: impl FnOnce(String) -> ConnectOptions,
    ) -> Self {
        let own = ["serve", "--listen", "127.0.0.1:0", "--log-format", "json"];
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
        let mut addresses = Vec::new();
        for message in told {
            addresses.push(within("the server's address in its log", address(&mut lines, message)).await);
        }
        let port = |at: usize| addresses.get(at).map(|address: &String| address.parse().unwrap());
        let (admin_grpc, admin) = (port(1), port(2));
        let address = addresses.swap_remove(0);
        let log = tokio::spawn(async move {
            let mut rest = Vec::new();
            while let Ok(Some(line)) = lines.next_line().await {
                rest.push(line);
            }
            rest
        });
        let client = Client::connect(&caller(address.clone())).await.unwrap();
        Self {
            client,
            address,
            admin,
            admin_grpc,
            child,
            log,
        }
    }

    /// A connection to AdminService.
    pub async fn operator(&self) -> Client {
        let address = self.admin_grpc.expect("it was started with ports");
        Client::connect(&ConnectOptions::new(address.to_string()))
            .await
            .unwrap()
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

/// The address in the first line of a server's log that has `message`.
pub(crate) async fn address(lines: &mut Lines<BufReader<ChildStderr>>, message: &str) -> String {
    let mut before = Vec::new();
    while let Some(line) = lines.next_line().await.unwrap() {
        if line.contains(message) {
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
