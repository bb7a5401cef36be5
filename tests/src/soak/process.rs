//! The server as a process of its own, with what is looked at from outside.

use std::process::Stdio;
use std::time::Duration;

use baichuan_client::{Client, ConnectOptions};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::task::JoinHandle;

use super::Plan;
use crate::program::{ADMIN, GRPC, address, signal};
use crate::wait::{until_ready, within};

/// A server that runs.
pub(super) struct Process {
    /// Where its gRPC listens.
    pub(super) grpc: String,
    /// Where `/metrics` is.
    pub(super) admin: String,
    child: Child,
    /// Lines of its log that tell of something wrong.
    bad_lines: JoinHandle<Vec<String>>,
}

impl Process {
    /// Starts it and waits until it is ready.
    pub(super) async fn start(plan: &Plan, max_wait: Option<Duration>) -> Self {
        let program = plan.server.as_os_str();
        let mut command = match &plan.cores {
            Some(cores) => {
                let mut command = Command::new("taskset");
                command.arg("-c").arg(cores).arg(program);
                command
            }
            None => Command::new(program),
        };
        command
            .args(["serve", "--log-format", "json", "--model"])
            .arg(&plan.model);
        if let Some(threads) = plan.threads() {
            command.arg("--set").arg(format!("model.threads={threads}"));
        }
        let max_wait = max_wait.map_or("off".into(), |wait| format!("{}us", wait.as_micros()));
        for (key, value) in [
            ("listen.grpc", "127.0.0.1:0"),
            ("listen.admin", "127.0.0.1:0"),
            ("engine.max_sequences", &plan.sequences.to_string()),
            ("engine.max_wait", &max_wait),
            // Small, so that who stops reading is noticed.
            ("engine.event_buffer", "64"),
            ("grpc.max_send_buffer_bytes", "16384"),
            ("grpc.max_decoding_message_bytes", "262144"),
            ("grpc.handshake_timeout", "2s"),
            ("grpc.request_timeout", "5s"),
        ] {
            command.arg("--set").arg(format!("{key}={value}"));
        }
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap_or_else(|error| panic!("{}: {error}", plan.server.display()));
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let grpc = within("the address of gRPC", address(&mut lines, GRPC)).await;
        let admin = within("the address of /metrics", address(&mut lines, ADMIN)).await;
        let bad_lines = tokio::spawn(async move {
            let mut bad = Vec::new();
            while let Ok(Some(line)) = lines.next_line().await {
                if line.contains("\"ERROR\"") || line.contains("panicked") {
                    bad.push(line);
                }
            }
            bad
        });
        let process = Self {
            grpc,
            admin,
            child,
            bad_lines,
        };
        until_ready(&process.client().await).await;
        process
    }

    /// A connection to it.
    pub(super) async fn client(&self) -> Client {
        Client::connect(&ConnectOptions::new(&self.grpc)).await.unwrap()
    }

    pub(super) fn pid(&self) -> u32 {
        self.child.id().expect("it has not been waited for")
    }

    /// Ends it by SIGTERM: what was wrong with that, and lines of its log that tell of something wrong.
    pub(super) async fn end(mut self) -> (Option<String>, Vec<String>) {
        if let Ok(Some(status)) = self.child.try_wait() {
            return (
                Some(format!("the server ended by itself: {status}")),
                self.bad_lines.await.unwrap(),
            );
        }
        signal(self.pid(), "TERM").await;
        let status = within("the server's end", self.child.wait()).await.unwrap();
        let wrong = (!status.success()).then(|| format!("the server did not end well: {status}"));
        (wrong, self.bad_lines.await.unwrap())
    }
}
