//! The command line.

use std::path::PathBuf;

use baichuan_client::{ConnectOptions, TlsOptions};
use clap::{Parser, Subcommand};

use crate::commands::{abort, bench, chat, embed, generate, health, load, models, tokenize};

mod generation;

pub(crate) use generation::{GenerationArgs, RoutingArgs};

/// Talks to a baichuan-serve server.
#[derive(Debug, Parser)]
#[command(name = "baichuan", version, about, max_term_width = 100)]
pub(crate) struct Cli {
    /// Address of the server: HOST:PORT, http://HOST:PORT or https://HOST:PORT.
    #[arg(
        long,
        global = true,
        env = "BAICHUAN_SERVER",
        default_value = "127.0.0.1:50051"
    )]
    pub(crate) server: String,
    /// Sent as `authorization: Bearer …`.
    #[arg(long, global = true, env = "BAICHUAN_TOKEN", hide_env_values = true)]
    pub(crate) token: Option<String>,
    /// Encrypt, and believe whom this file's certificates (PEM) signed; https:// alone believes whom the system does.
    #[arg(long, global = true, value_name = "FILE", env = "BAICHUAN_TLS_CA")]
    pub(crate) tls_ca: Option<PathBuf>,
    /// Certificate to show to the server, PEM.
    #[arg(
        long,
        global = true,
        value_name = "FILE",
        env = "BAICHUAN_TLS_CERT",
        requires = "tls_key"
    )]
    pub(crate) tls_cert: Option<PathBuf>,
    /// Its private key, PEM.
    #[arg(
        long,
        global = true,
        value_name = "FILE",
        env = "BAICHUAN_TLS_KEY",
        requires = "tls_cert"
    )]
    pub(crate) tls_key: Option<PathBuf>,
    /// Name that the server's certificate must have, where it is not the address's.
    #[arg(long, global = true, value_name = "NAME", env = "BAICHUAN_TLS_SERVER_NAME")]
    pub(crate) tls_server_name: Option<String>,
    /// Write JSON, one object per line; errors too, to stderr.
    #[arg(long, global = true)]
    pub(crate) json: bool,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Complete a text.
    Generate(generate::Args),
    /// Talk to the model: one message, or a conversation when stdin is a terminal.
    Chat(chat::Args),
    /// Turn texts into vectors.
    Embed(embed::Args),
    /// Turn text into token ids, or ids into text.
    Tokenize(tokenize::Args),
    /// List the served models, or show one.
    Models(models::Args),
    /// Say what runs on the server.
    Info,
    /// Ask whether the server is alive and ready.
    Health(health::Args),
    /// Show how loaded each model is.
    Load(load::Args),
    /// End a running request by its id.
    Abort(abort::Args),
    /// Measure throughput and latency.
    Bench(bench::Args),
}

impl Cli {
    /// How to reach the server.
    pub(crate) fn connection(&self) -> ConnectOptions {
        let tls = TlsOptions {
            ca: self.tls_ca.clone(),
            cert: self.tls_cert.clone(),
            key: self.tls_key.clone(),
            server_name: self.tls_server_name.clone(),
        };
        ConnectOptions {
            token: self.token.clone(),
            tls: (tls != TlsOptions::default()).then_some(tls),
            ..ConnectOptions::new(&self.server)
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
