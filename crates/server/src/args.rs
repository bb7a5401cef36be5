//! The command line, and which configuration keys its flags set.

use std::path::PathBuf;
use std::time::Duration;

use baichuan_engine::IsqType;
use baichuan_server::config::{Flag, Inputs, LogFormat};
use clap::{Args, Parser, Subcommand, ValueEnum};

/// A gRPC inference server for Baichuan-M1.
#[derive(Debug, Parser)]
#[command(name = "baichuan-server", version)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Serve models over gRPC.
    Serve(Settings),
    /// Print the configuration in force as a configuration file; fail if anything in it is wrong.
    CheckConfig(Settings),
    /// Print what every key of the configuration means, as docs/CONFIG.md has it.
    ConfigReference,
    /// Print the entry of a bearer token for auth.tokens, with its hash in place of itself.
    HashToken(HashToken),
    /// Write a checkpoint with quantised weights, which loads in seconds.
    Quantize(Quantize),
    /// Start a server on the default model and use it as a client would: chat, embed, tokenise.
    Demo(Settings),
    /// Ask a running server for its health; succeed if it serves.
    Health(Health),
}

/// What a configuration is made of. Later layers win: file, BAICHUAN_* environment, flags, --set.
#[derive(Args, Debug, Default)]
pub(crate) struct Settings {
    /// Configuration file (TOML) [env: BAICHUAN_CONFIG].
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Folder of the checkpoint to serve.
    #[arg(long, value_name = "DIR")]
    pub(crate) model: Option<PathBuf>,
    /// Name to serve it under; else its folder's name.
    #[arg(long, value_name = "NAME")]
    model_name: Option<String>,
    /// Address of the gRPC services.
    #[arg(long, value_name = "HOST:PORT")]
    listen: Option<String>,
    /// Address of /metrics, /livez and /readyz; "off" for none.
    #[arg(long, value_name = "HOST:PORT")]
    admin_listen: Option<String>,
    /// Element type of the weights in memory; else as in the checkpoint.
    #[arg(long, value_parser = ["f32", "f16", "bf16"])]
    dtype: Option<String>,
    /// Type to quantise the weights to as they are loaded, e.g. Q8_0, Q4_0, Q4K, Q6K; else they stay as they are.
    #[arg(long, value_name = "TYPE")]
    isq: Option<String>,
    /// Where the model runs: auto, cpu, cuda, cuda:ORDINAL or metal; else auto.
    #[arg(long, value_name = "DEVICE")]
    device: Option<String>,
    /// How layers are spread: auto, or layers per GPU like "0:20;1:20", the rest on the host; else all on one device.
    #[arg(long, value_name = "MAP")]
    device_map: Option<String>,
    /// Topology file of mistral.rs: quantisation and device of single layers.
    #[arg(long, value_name = "FILE")]
    topology: Option<PathBuf>,
    /// How a log line looks.
    #[arg(long, value_name = "FORMAT")]
    log_format: Option<LogFormat>,
    /// Any key of the configuration, e.g. --set engine.max_sequences=8.
    #[arg(long, value_name = "KEY=VALUE", value_parser = assignment)]
    set: Vec<(String, String)>,
}

/// A bearer token and whose it is.
#[derive(Args, Debug)]
pub(crate) struct HashToken {
    /// What the token is called in logs.
    #[arg(long)]
    pub(crate) name: String,
    /// Tenant of who has it.
    #[arg(long)]
    pub(crate) tenant: String,
    /// Make a new token and write it to standard error; else one line of standard input is the token.
    #[arg(long)]
    pub(crate) generate: bool,
}

/// What to quantise, and to what.
#[derive(Args, Debug)]
pub(crate) struct Quantize {
    /// Folder of the checkpoint.
    #[arg(long, value_name = "DIR")]
    pub(crate) model: PathBuf,
    /// Type to quantise its weights to, e.g. Q8_0, Q4_0, Q4K, Q6K.
    #[arg(long, value_name = "TYPE")]
    pub(crate) isq: IsqType,
    /// Folder to write to; made if it is not there, and empty if it is.
    #[arg(long, value_name = "DIR")]
    pub(crate) out: PathBuf,
    /// Plugin that does it; else the only one that accepts the checkpoint.
    #[arg(long, value_name = "NAME")]
    pub(crate) plugin: Option<String>,
    /// Compute threads; else one per physical core.
    #[arg(long, value_name = "N")]
    pub(crate) threads: Option<usize>,
}

/// Whom to ask.
#[derive(Args, Debug)]
pub(crate) struct Health {
    /// Address of the gRPC services.
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:50051")]
    pub(crate) server: String,
    /// Whose health: "" is liveness, the default is readiness.
    #[arg(long, default_value = baichuan_server::READINESS_SERVICE)]
    pub(crate) service: String,
    /// Encrypt, and believe whom this file's certificates (PEM) signed.
    #[arg(long, value_name = "FILE")]
    pub(crate) tls_ca: Option<PathBuf>,
    /// Certificate to show to the server, PEM.
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    pub(crate) tls_cert: Option<PathBuf>,
    /// Its private key, PEM.
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    pub(crate) tls_key: Option<PathBuf>,
    /// Name that the server's certificate must have, where it is not the address's.
    #[arg(long, value_name = "NAME")]
    pub(crate) tls_server_name: Option<String>,
    /// How long to wait for the answer.
    #[arg(long, value_name = "DURATION", default_value = "2s", value_parser = humantime::parse_duration)]
    pub(crate) timeout: Duration,
}

fn assignment(text: &str) -> Result<(String, String), String> {
    text.split_once('=')
        .map(|(key, value)| (key.trim().to_owned(), value.trim().to_owned()))
        .ok_or_else(|| "must be KEY=VALUE".to_owned())
}

impl Settings {
    /// The layers of the configuration, with this process's environment.
    pub(crate) fn inputs(&self) -> Inputs {
        let path = |path: &PathBuf| path.display().to_string();
        let format = |format: LogFormat| Some(format.to_possible_value()?.get_name().to_owned());
        let flags = [
            ("--model", "model.path", self.model.as_ref().map(path)),
            ("--model-name", "model.name", self.model_name.clone()),
            ("--listen", "listen.grpc", self.listen.clone()),
            ("--admin-listen", "listen.admin", self.admin_listen.clone()),
            ("--dtype", "model.dtype", self.dtype.clone()),
            ("--isq", "model.isq", self.isq.clone()),
            ("--device", "model.device", self.device.clone()),
            ("--device-map", "model.device_map", self.device_map.clone()),
            ("--topology", "model.topology", self.topology.as_ref().map(path)),
            ("--log-format", "log.format", self.log_format.and_then(format)),
        ];
        let own = flags.into_iter().filter_map(|(name, key, value)| {
            Some(Flag {
                name: name.to_owned(),
                key: key.to_owned(),
                // Quoted: these are text, whatever they look like.
                value: toml::Value::String(value?).to_string(),
            })
        });
        let set = self.set.iter().map(|(key, value)| Flag {
            name: format!("--set {key}"),
            key: key.clone(),
            value: value.clone(),
        });
        Inputs::from_process(self.config.clone(), own.chain(set).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(words: &[&str]) -> Settings {
        let words = ["baichuan-server", "serve"].iter().chain(words);
        match Arguments::parse_from(words).command {
            Command::Serve(settings) => settings,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_flag_sets_its_key_and_set_comes_last() {
        let settings = parse(&[
            "--set",
            "listen.grpc=h:2",
            "--listen",
            "h:1",
            "--log-format",
            "json",
            "--model",
            "7",
            "--isq",
            "4",
        ]);
        let flags = settings.inputs().flags;
        let flags: Vec<(&str, &str, &str)> = flags
            .iter()
            .map(|f| (f.name.as_str(), f.key.as_str(), f.value.as_str()))
            .collect();
        assert_eq!(
            flags,
            [
                ("--model", "model.path", "\"7\""),
                ("--listen", "listen.grpc", "\"h:1\""),
                ("--isq", "model.isq", "\"4\""),
                ("--log-format", "log.format", "\"json\""),
                ("--set listen.grpc", "listen.grpc", "h:2"),
            ]
        );
    }

    #[test]
    fn a_set_without_a_value_is_refused() {
        assert!(Arguments::try_parse_from(["baichuan-server", "serve", "--set", "engine"]).is_err());
    }
}
