//! How the server is set up: typed, complete, checked.
//!
//! Text becomes a raw configuration (unknown keys refused, each value remembering where it was written), and that
//! becomes [`Config`] or a list of [`Problem`]s. Layers, each over the one before: defaults, file, environment, flags,
//! `--set`. The environment is read in `config/load.rs` and nowhere else.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use baichuan_engine::{CacheDtype, Dtype, EngineConfig, IsqType, Placement};

mod check;
mod effective;
mod entry;
mod identity;
mod load;
mod locate;
mod otel_env;
mod raw;
mod reference;
mod telemetry;
#[cfg(test)]
mod tests;
mod units;

pub use identity::{
    ANONYMOUS, AuthConfig, ClientAuth, JwtAlgorithm, JwtConfig, OTHER, Service, TenantConfig, TlsConfig,
};
pub use load::{Flag, Inputs, load};
pub use locate::{DEFAULT_MODEL_DIR, Places};
pub use raw::{LogFormat, Resume};
pub use reference::reference;
pub use telemetry::{Pattern, TelemetryConfig, TracesSampler};

/// The server's whole setup.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Served name of the model that requests without one get; one of [`Self::models`].
    pub default_model: String,
    /// Addresses.
    pub listen: ListenConfig,
    /// What is served, at least one, names distinct.
    pub models: Vec<ModelConfig>,
    /// The gRPC transport.
    pub grpc: GrpcConfig,
    /// What a call may ask of the server.
    pub requests: RequestsConfig,
    /// How the server ends.
    pub shutdown: ShutdownConfig,
    /// Logs.
    pub log: LogConfig,
    /// Traces and metrics over OTLP.
    pub telemetry: TelemetryConfig,
    /// Encryption of the gRPC listeners; absent: none.
    pub tls: Option<TlsConfig>,
    /// How callers prove who they are.
    pub auth: AuthConfig,
    /// Who there is, names distinct. The anonymous tenant is among them where there may be one.
    pub tenants: Vec<TenantConfig>,
    /// How often certificates, tokens and keys are looked at for changes.
    pub reload_interval: Duration,
}

/// Addresses, each `HOST:PORT`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListenConfig {
    /// Of the gRPC services.
    pub grpc: String,
    /// Of `/metrics`, `/livez` and `/readyz`; absent: not served.
    pub admin: Option<String>,
    /// Of `AdminService`; absent: not served.
    pub admin_grpc: Option<String>,
}

/// One served model.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelConfig {
    /// Name in requests.
    pub name: String,
    /// Folder of the checkpoint, in the hub's layout.
    pub path: PathBuf,
    /// The plugin that runs it; absent: the only one that accepts the checkpoint.
    pub plugin: Option<String>,
    /// Element type of the weights in memory; absent: as in the checkpoint.
    pub dtype: Option<Dtype>,
    /// Element type of cached keys and values; absent: what suits the device.
    pub cache_dtype: Option<CacheDtype>,
    /// What weights are quantised to as they are loaded; absent: nothing.
    pub isq: Option<IsqType>,
    /// Folders of adapters that are added to the weights.
    pub adapters: Vec<PathBuf>,
    /// Compute threads; absent: one per physical core.
    pub threads: Option<usize>,
    /// Which devices.
    pub placement: Placement,
    /// The file of the placement's topology.
    pub topology: Option<PathBuf>,
    /// Draw the weights from this seed instead of reading them: for measurements.
    pub random_weights: Option<u64>,
    /// Scheduling and memory.
    pub engine: EngineConfig,
}

/// Limits of the gRPC transport, all of them in force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GrpcConfig {
    /// Largest message accepted.
    pub max_decoding_message_bytes: usize,
    /// Largest message sent.
    pub max_encoding_message_bytes: usize,
    /// Connections at once; more are closed as they come.
    pub max_connections: usize,
    /// Calls of one connection at once.
    pub max_concurrent_streams: u32,
    /// Calls to `InferenceService` at once, over all connections; more are refused.
    pub max_concurrent_calls: usize,
    /// HTTP/2 flow-control window of a call.
    pub initial_stream_window_bytes: u32,
    /// HTTP/2 flow-control window of a connection.
    pub initial_connection_window_bytes: u32,
    /// Largest HTTP/2 frame accepted.
    pub max_frame_bytes: u32,
    /// Largest header list accepted.
    pub max_header_list_bytes: u32,
    /// Bytes of one call that may wait to be sent.
    pub max_send_buffer_bytes: usize,
    /// Calls reset by the client before the server saw them, beyond which the connection is closed.
    pub max_pending_accept_reset_streams: usize,
    /// Calls reset for the client's protocol errors, beyond which the connection is closed.
    pub max_local_error_reset_streams: usize,
    /// Time a new connection has to complete the HTTP/2 preface.
    pub handshake_timeout: Duration,
    /// Time that the message of a call has to arrive.
    pub request_timeout: Duration,
    /// Time that a client may take nothing of a response that waits for it.
    pub send_timeout: Duration,
    /// How often a connection is pinged.
    pub keepalive_interval: Duration,
    /// Time a ping may stay unanswered.
    pub keepalive_timeout: Duration,
    /// Age, ± 10 %, at which a connection is asked to go; absent: never.
    pub max_connection_age: Option<Duration>,
    /// Time an aged connection has to finish its calls.
    pub max_connection_age_grace: Duration,
    /// Serve reflection.
    pub reflection: bool,
    /// Serve the default model by `vllm.grpc.engine.VllmEngine` too, for the routers of the field.
    pub vllm_facade: bool,
}

impl Default for GrpcConfig {
    fn default() -> Self {
        Self {
            max_decoding_message_bytes: 32 << 20,
            max_encoding_message_bytes: 32 << 20,
            max_connections: 1024,
            max_concurrent_streams: 256,
            max_concurrent_calls: 4096,
            initial_stream_window_bytes: 1 << 20,
            initial_connection_window_bytes: 4 << 20,
            max_frame_bytes: 16 << 10,
            max_header_list_bytes: 16 << 10,
            max_send_buffer_bytes: 1 << 20,
            max_pending_accept_reset_streams: 32,
            max_local_error_reset_streams: 1024,
            handshake_timeout: Duration::from_secs(10),
            request_timeout: Duration::from_secs(60),
            send_timeout: Duration::from_secs(60),
            keepalive_interval: Duration::from_secs(30),
            keepalive_timeout: Duration::from_secs(20),
            max_connection_age: None,
            max_connection_age_grace: Duration::from_secs(600),
            reflection: true,
            vllm_facade: false,
        }
    }
}

/// What a call may ask of the server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestsConfig {
    /// Threads that render chats and tokenise.
    pub text_threads: usize,
    /// Texts that may wait for one of them.
    pub text_queue: usize,
    /// Inputs of one `Embed`.
    pub max_embed_inputs: usize,
    /// Inputs of one `Embed` or `EmbedStream` in work at once.
    pub embed_in_flight: usize,
    /// Longest a call may take, whatever it asks for; absent: as long as it asks for.
    pub max_time: Option<Duration>,
    /// Which streams of `Generate` outlive their connection.
    pub resume: Resume,
    /// How long one is kept while nobody reads it.
    pub resume_window: Duration,
    /// Bytes of its messages that are kept.
    pub resume_buffer_bytes: usize,
    /// Streams kept at once.
    pub resume_streams: usize,
}

impl Default for RequestsConfig {
    fn default() -> Self {
        Self {
            text_threads: std::thread::available_parallelism().map_or(1, |n| n.get()),
            text_queue: 1024,
            max_embed_inputs: 2048,
            embed_in_flight: 64,
            max_time: None,
            resume: Resume::Asked,
            resume_window: Duration::from_secs(30),
            resume_buffer_bytes: 1 << 20,
            resume_streams: 256,
        }
    }
}

/// How the server ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShutdownConfig {
    /// From not ready to refusing new calls, for balancers to notice.
    pub drain_delay: Duration,
    /// Time running calls have to finish.
    pub drain_timeout: Duration,
    /// From the signal to the end, whatever happens.
    pub hard_timeout: Duration,
}

impl Default for ShutdownConfig {
    fn default() -> Self {
        Self {
            drain_delay: Duration::ZERO,
            drain_timeout: Duration::from_secs(30),
            hard_timeout: Duration::from_secs(60),
        }
    }
}

/// Logs, to standard error.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogConfig {
    /// What is logged, as `RUST_LOG` spells it.
    pub filter: String,
    /// How a line looks.
    pub format: LogFormat,
}

impl Default for LogConfig {
    fn default() -> Self {
        Self {
            filter: "info".into(),
            format: LogFormat::Text,
        }
    }
}

/// A key of the configuration that cannot be accepted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The key, e.g. `models[1].engine.max_sequences`.
    pub key: String,
    /// What is wrong, with the value in it.
    pub message: String,
    /// Where it was written: a file, a variable or a flag.
    pub origin: String,
}

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {} ({})", self.key, self.message, self.origin)
    }
}

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The configuration file cannot be read.
    #[error("{path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The configuration file is not TOML.
    #[error("{path}: {message}")]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Line and reason.
        message: String,
    },
    /// Keys that cannot be accepted; never empty.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
    Problems(Vec<Problem>),
    /// No model is configured and the default one is not there.
    #[error(
        "no model is configured (--model, [model] or [[models]]) and there is no default one; looked for {}",
        .searched.iter().map(|p| p.display().to_string()).collect::<Vec<_>>().join(", ")
    )]
    NoModel {
        /// Folders that would have been taken, in order.
        searched: Vec<PathBuf>,
    },
}

/// Whether `text` is `HOST:PORT`.
fn is_address(text: &str) -> bool {
    let named = |text: &str| {
        text.rsplit_once(':').is_some_and(|(host, port)| {
            let host_is_name = !host.is_empty()
                && host
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'.');
            host_is_name && port.parse::<u16>().is_ok()
        })
    };
    text.parse::<SocketAddr>().is_ok() || named(text)
}
