//! The configuration as it is written: every key optional, unknown keys refused.
//!
//! Field names here are the configuration's keys, and their comments become `docs/CONFIG.md` ([`super::reference`]): a
//! key without one fails a test. A default that is no constant of [`super::Config`] is told by `x-default`.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use baichuan_engine::{CacheDtype, DeviceChoice, DeviceMap, Dtype, IsqType};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::telemetry::TracesSampler;
use super::units::{Human, Limit};

pub(crate) mod identity;

use identity::{RawAuth, RawReload, RawTenant, RawTls};

/// The whole configuration.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct RawConfig {
    /// Served name of the model that requests without one get.
    #[schemars(extend("x-default" = "the first model"))]
    pub(crate) default_model: Option<String>,
    /// Folder in which the default checkpoint's folder is looked for first, when no model is configured.
    #[schemars(extend("x-default" = "`models/` beside the working directory and the program, and above them"))]
    pub(crate) models_dir: Option<PathBuf>,
    /// Addresses.
    pub(crate) listen: RawListen,
    /// The one model, or what overrides the one entry of `models`.
    #[serde(skip_serializing_if = "RawModel::is_empty")]
    pub(crate) model: RawModel,
    /// Several models; the first is the default. One alone may be written as `[model]`, with the same keys, and so are
    /// they named elsewhere (`--set model.threads=8`, `BAICHUAN_MODEL__THREADS=8`).
    pub(crate) models: Vec<RawModel>,
    /// For every model's engine.
    pub(crate) engine: RawEngine,
    /// The gRPC transport.
    pub(crate) grpc: RawGrpc,
    /// What a call may ask of the server.
    pub(crate) requests: RawRequests,
    /// How the server ends.
    pub(crate) shutdown: RawShutdown,
    /// Logs.
    pub(crate) log: RawLog,
    /// Traces and metrics over OTLP/gRPC, and how much of requests may be in them.
    pub(crate) telemetry: RawTelemetry,
    /// TLS of the gRPC listeners.
    pub(crate) tls: RawTls,
    /// How callers prove who they are.
    pub(crate) auth: RawAuth,
    /// What tenants have that do not say otherwise.
    #[serde(skip_serializing_if = "RawTenant::is_empty")]
    pub(crate) tenant_defaults: RawTenant,
    /// Tenants by name.
    pub(crate) tenants: BTreeMap<String, RawTenant>,
    /// Files that are read again when they change.
    pub(crate) reload: RawReload,
}

/// Addresses.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct RawListen {
    /// `HOST:PORT` of the gRPC services; port 0 takes a free one, which the log names.
    pub(crate) grpc: Option<String>,
    /// `HOST:PORT` of `/metrics`, `/livez` and `/readyz` over HTTP; `"off"`: not served.
    pub(crate) admin: Option<String>,
    /// `HOST:PORT` of `AdminService`, over gRPC; `"off"`: not served.
    pub(crate) admin_grpc: Option<String>,
}

/// One model.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct RawModel {
    /// Name in requests: 1 to 128 printable ASCII characters.
    #[schemars(extend("x-default" = "the name of its folder"))]
    pub(crate) name: Option<String>,
    /// Folder of the checkpoint, in the hub's layout.
    #[schemars(extend("x-default" = "the default checkpoint, where only one model is served"))]
    pub(crate) path: Option<PathBuf>,
    /// The plugin that runs it.
    #[schemars(extend("x-default" = "the only one that accepts the checkpoint"))]
    pub(crate) plugin: Option<String>,
    /// Element type of the weights in memory.
    #[schemars(extend("x-default" = "as in the checkpoint"))]
    #[schemars(with = "Option<super::reference::DtypeText>")]
    pub(crate) dtype: Option<Dtype>,
    /// What cached keys and values are kept as. `int8`, for Baichuan-M1 on CPUs: whole numbers from -127 to 127, and for each
    /// head of each token what one of them stands for, half of the memory of sixteen bits.
    #[schemars(extend("x-default" = "as the checkpoint's weights"))]
    #[schemars(with = "Option<super::reference::CacheDtypeText>")]
    pub(crate) cache_dtype: Option<CacheDtype>,
    /// What weights are quantised to as they are loaded: a type of mistral.rs, such as `"Q4K"`, or a number of bits.
    /// Baichuan-M1 has Q8_0, Q6K, Q4K and Q4_0 on CPUs, FP8 besides on NVIDIA GPUs, AFQ2 to AFQ8 on Apple's; a type that the
    /// device lacks is an error.
    #[schemars(with = "Option<String>", extend("x-default" = "not at all"))]
    pub(crate) isq: Option<IsqType>,
    /// Folders of LoRA adapters, as PEFT writes them, that are added to the weights as they are loaded.
    #[schemars(extend("x-default" = "none"))]
    pub(crate) adapters: Option<Vec<PathBuf>>,
    /// Compute threads.
    #[schemars(extend("x-default" = "one per physical core"))]
    pub(crate) threads: Option<usize>,
    /// Where it runs: `"auto"`, `"cpu"`, `"cuda"`, `"cuda:1"`, `"metal"`; `auto` is the first GPU that the build can use, or
    /// else the host.
    #[schemars(with = "Option<String>", extend("x-default" = "`\"auto\"`"))]
    pub(crate) device: Option<DeviceChoice>,
    /// How its layers are spread: `"single"`, all on that device; `"auto"`, by free memory; or layers per GPU as in
    /// `"0:20;1:20"`, the rest on the host.
    #[schemars(with = "Option<String>", extend("x-default" = "`\"single\"`"))]
    pub(crate) device_map: Option<DeviceMap>,
    /// A topology file of mistral.rs: what single layers and tensors are quantised to, and on which devices layers live.
    #[schemars(extend("x-default" = "all layers alike"))]
    pub(crate) topology: Option<PathBuf>,
    /// For measurements on GPUs: draw the weights from this seed on the device; the folder needs no weights.
    #[schemars(extend("x-default" = "weights are read"))]
    pub(crate) random_weights: Option<u64>,
    /// Overrides of the common `engine` settings.
    pub(crate) engine: RawEngine,
}

impl RawModel {
    /// Whether nothing at all was said.
    pub(crate) fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// This model with what `over` says in place of its own.
    pub(crate) fn overridden_by(self, over: Self) -> Self {
        Self {
            name: over.name.or(self.name),
            path: over.path.or(self.path),
            plugin: over.plugin.or(self.plugin),
            dtype: over.dtype.or(self.dtype),
            cache_dtype: over.cache_dtype.or(self.cache_dtype),
            isq: over.isq.or(self.isq),
            adapters: over.adapters.or(self.adapters),
            threads: over.threads.or(self.threads),
            device: over.device.or(self.device),
            device_map: over.device_map.or(self.device_map),
            topology: over.topology.or(self.topology),
            random_weights: over.random_weights.or(self.random_weights),
            engine: self.engine.overridden_by(&over.engine),
        }
    }
}

/// Scheduling and memory.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct RawEngine {
    /// New tokens of a step at most, decodes and prefill chunks together; at least `max_sequences`.
    pub(crate) max_step_tokens: Option<usize>,
    /// New tokens of one prompt in a step at most: how long a prompt may hold up running streams.
    #[schemars(extend("x-default" = "256, or `max_step_tokens` where that is less"))]
    pub(crate) prefill_chunk_tokens: Option<usize>,
    /// Sequences that may hold memory at once.
    pub(crate) max_sequences: Option<usize>,
    /// Requests that may wait; more are refused with `QUEUE_FULL`.
    pub(crate) max_waiting: Option<usize>,
    /// Prompt tokens that may wait; more are refused with `TOKEN_BUDGET`.
    pub(crate) max_waiting_tokens: Option<usize>,
    /// Longest wait of all requests but one in a hundred, by how fast others left the queue lately; who may wait longer is
    /// refused with `QUEUE_FULL`. `off`: however long.
    pub(crate) max_wait: Option<Limit<Duration>>,
    /// Events kept for a client that does not read; then it is cut off with `SLOW_CLIENT`.
    pub(crate) event_buffer: Option<usize>,
    /// Caps the model's own context, in tokens, prompt and completion together.
    #[schemars(extend("x-default" = "the model's"))]
    pub(crate) max_context: Option<usize>,
    /// Overwrite cache memory as it is freed.
    pub(crate) scrub_freed: Option<bool>,
    /// What happens when the model panics or fails at every step: `restart` makes it anew, once in ten minutes; `exit`
    /// ends the process with an error.
    pub(crate) on_failure: Option<RawOnFailure>,
    /// Longest that a step may take before its requests end and the server is not ready; `off`: for ever.
    pub(crate) step_timeout: Option<Limit<Duration>>,
    pub(crate) cache: RawCache,
    pub(crate) limits: RawLimits,
}

impl RawEngine {
    /// These settings with what `over` says in place of their own.
    pub(crate) fn overridden_by(&self, over: &Self) -> Self {
        Self {
            max_step_tokens: over.max_step_tokens.or(self.max_step_tokens),
            prefill_chunk_tokens: over.prefill_chunk_tokens.or(self.prefill_chunk_tokens),
            max_sequences: over.max_sequences.or(self.max_sequences),
            max_waiting: over.max_waiting.or(self.max_waiting),
            max_waiting_tokens: over.max_waiting_tokens.or(self.max_waiting_tokens),
            event_buffer: over.event_buffer.or(self.event_buffer),
            max_context: over.max_context.or(self.max_context),
            scrub_freed: over.scrub_freed.or(self.scrub_freed),
            on_failure: over.on_failure.or(self.on_failure),
            max_wait: over.max_wait.or(self.max_wait),
            step_timeout: over.step_timeout.or(self.step_timeout),
            cache: self.cache.overridden_by(&over.cache),
            limits: self.limits.overridden_by(&over.limits),
        }
    }
}

/// Memory for keys and values. The budget is one of `bytes`, `utilization`, `context_tokens`, or both block counts.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct RawCache {
    /// Rows of a block, in tokens: a power of two up to 1024.
    pub(crate) block_tokens: Option<usize>,
    /// Budget: so many bytes for both pools.
    #[schemars(extend("x-default" = "none: `utilization` counts, on GPUs `gpu_memory_utilization`"))]
    pub(crate) bytes: Option<u64>,
    /// Budget on hosts: this share of the memory that is free once the weights are loaded, above 0 and at most 1.
    pub(crate) utilization: Option<f64>,
    /// Budget on GPUs: this share of the whole device memory for weights, a step's tensors and caches together, above
    /// 0 and at most 1.
    pub(crate) gpu_memory_utilization: Option<f64>,
    /// Budget: enough for this many tokens over all sequences, in either pool.
    #[schemars(extend("x-default" = "none: `utilization` counts, on GPUs `gpu_memory_utilization`"))]
    pub(crate) context_tokens: Option<usize>,
    /// Budget: exactly so many blocks in the global pool; needs `window_blocks`.
    #[schemars(extend("x-default" = "none: `utilization` counts, on GPUs `gpu_memory_utilization`"))]
    pub(crate) global_blocks: Option<usize>,
    /// Budget: exactly so many blocks in the window pool; needs `global_blocks`.
    #[schemars(extend("x-default" = "none: `utilization` counts, on GPUs `gpu_memory_utilization`"))]
    pub(crate) window_blocks: Option<usize>,
}

impl RawCache {
    /// Whether a budget is given, well or badly.
    pub(crate) fn names_a_budget(&self) -> bool {
        self.utilization.is_some() || self.names_an_amount()
    }

    /// Whether the budget is one that counts on any device.
    fn names_an_amount(&self) -> bool {
        self.bytes.is_some()
            || self.context_tokens.is_some()
            || self.global_blocks.is_some()
            || self.window_blocks.is_some()
    }

    /// A budget in `over` replaces the whole budget, for two kinds of budget contradict each other.
    fn overridden_by(&self, over: &Self) -> Self {
        let share_replaces = over.gpu_memory_utilization.is_some() && self.names_an_amount();
        let budget = if over.names_a_budget() || share_replaces {
            over
        } else {
            self
        };
        let inherited = self.gpu_memory_utilization.filter(|_| !over.names_an_amount());
        Self {
            block_tokens: over.block_tokens.or(self.block_tokens),
            gpu_memory_utilization: over.gpu_memory_utilization.or(inherited),
            ..budget.clone()
        }
    }
}

/// What a request may ask for, whatever the model.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct RawLimits {
    /// Completions of one request.
    pub(crate) max_n: Option<u32>,
    /// Completions of one request together, in tokens: their number times `max_tokens`, or times what the context leaves
    /// for them where neither the request nor the model says how long they may be.
    pub(crate) max_total_tokens: Option<u64>,
    /// Stop strings of one request.
    pub(crate) max_stop_strings: Option<usize>,
    /// Length of one stop string, in bytes.
    pub(crate) max_stop_bytes: Option<usize>,
    /// Length of each list of tokens in a request's sampling parameters.
    pub(crate) max_token_list: Option<usize>,
    /// Messages of one chat.
    pub(crate) max_messages: Option<usize>,
    /// Length of one text, in bytes: of a prompt, an input, the messages of a chat together, or what the tokens of one
    /// `Detokenize` are written as.
    pub(crate) max_text_bytes: Option<usize>,
}

impl RawLimits {
    fn overridden_by(&self, over: &Self) -> Self {
        Self {
            max_n: over.max_n.or(self.max_n),
            max_total_tokens: over.max_total_tokens.or(self.max_total_tokens),
            max_stop_strings: over.max_stop_strings.or(self.max_stop_strings),
            max_stop_bytes: over.max_stop_bytes.or(self.max_stop_bytes),
            max_token_list: over.max_token_list.or(self.max_token_list),
            max_messages: over.max_messages.or(self.max_messages),
            max_text_bytes: over.max_text_bytes.or(self.max_text_bytes),
        }
    }
}

/// The gRPC transport.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct RawGrpc {
    /// Largest message accepted.
    pub(crate) max_decoding_message_bytes: Option<usize>,
    /// Largest message sent.
    pub(crate) max_encoding_message_bytes: Option<usize>,
    /// Connections at once; more are closed as they come.
    pub(crate) max_connections: Option<usize>,
    /// Calls of one connection at once.
    pub(crate) max_concurrent_streams: Option<u32>,
    /// Calls to `InferenceService` at once, over all connections; more are refused.
    pub(crate) max_concurrent_calls: Option<usize>,
    /// HTTP/2 flow-control window of a call.
    pub(crate) initial_stream_window_bytes: Option<u32>,
    /// HTTP/2 flow-control window of a connection.
    pub(crate) initial_connection_window_bytes: Option<u32>,
    /// Largest HTTP/2 frame accepted.
    pub(crate) max_frame_bytes: Option<u32>,
    /// Largest header list accepted.
    pub(crate) max_header_list_bytes: Option<u32>,
    /// Bytes of one call that may wait to be sent.
    pub(crate) max_send_buffer_bytes: Option<usize>,
    /// Calls reset by the client before the server saw them, beyond which the connection is closed.
    pub(crate) max_pending_accept_reset_streams: Option<usize>,
    /// Calls reset for the client's protocol errors, beyond which the connection is closed.
    pub(crate) max_local_error_reset_streams: Option<usize>,
    /// Time a new connection has to complete the HTTP/2 preface.
    pub(crate) handshake_timeout: Option<Human<Duration>>,
    /// Time that the message of a call has to arrive, or the first one of a stream of messages.
    pub(crate) request_timeout: Option<Human<Duration>>,
    /// Time that a client may take nothing (no 16 KiB) of a response that waits for it; then the call is reset. More than
    /// `keepalive_interval` and `keepalive_timeout` together, or streams that could be taken up again end with it.
    pub(crate) send_timeout: Option<Human<Duration>>,
    /// How often a connection is pinged.
    pub(crate) keepalive_interval: Option<Human<Duration>>,
    /// Time a ping may stay unanswered.
    pub(crate) keepalive_timeout: Option<Human<Duration>>,
    /// Age, ± 10 %, at which a connection is asked to go.
    pub(crate) max_connection_age: Option<Limit<Duration>>,
    /// Time an aged connection has to finish its calls.
    pub(crate) max_connection_age_grace: Option<Human<Duration>>,
    /// Serve gRPC reflection, v1 and v1alpha.
    pub(crate) reflection: Option<bool>,
    /// Serve the default model by `vllm.grpc.engine.VllmEngine` too, for routers such as SMG and llm-d.
    pub(crate) vllm_facade: Option<bool>,
}

/// What a call may ask of the server.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct RawRequests {
    /// Threads that render chats and tokenise.
    #[schemars(extend("x-default" = "one per core"))]
    pub(crate) text_threads: Option<usize>,
    /// Texts that may wait for one of them.
    pub(crate) text_queue: Option<usize>,
    /// Inputs of one `Embed`.
    pub(crate) max_embed_inputs: Option<usize>,
    /// Inputs of one `Embed` or `EmbedStream` in work at once.
    pub(crate) embed_in_flight: Option<usize>,
    /// Longest a call may take, whatever it asks for; `"off"`: as long as it asks for.
    pub(crate) max_time: Option<Limit<Duration>>,
    /// Which streams of `Generate` outlive the loss of their connection, to be taken up again: `asked`, those whose
    /// request has `resume_from_token`; `always`, all; `off`, none.
    pub(crate) resume: Option<Resume>,
    /// How long such a stream is kept, and generated, while nobody reads it; how long its end is kept.
    pub(crate) resume_window: Option<Human<Duration>>,
    /// Bytes of messages kept for each; who has not read so much ends the request.
    pub(crate) resume_buffer_bytes: Option<usize>,
    /// Such streams at once, of one tenant its `queue_share` of them; more are refused.
    pub(crate) resume_streams: Option<usize>,
}

/// How the server ends.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct RawShutdown {
    /// From not ready to refusing new calls, for balancers to notice.
    pub(crate) drain_delay: Option<Human<Duration>>,
    /// Time running calls have to finish.
    pub(crate) drain_timeout: Option<Human<Duration>>,
    /// From the signal to the end, whatever happens; at least `drain_delay` and `drain_timeout` together.
    #[schemars(extend("x-default" = "30 s more than `drain_delay` and `drain_timeout`"))]
    pub(crate) hard_timeout: Option<Human<Duration>>,
}

/// Logs.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct RawLog {
    /// What is logged, as `RUST_LOG` spells it.
    pub(crate) filter: Option<String>,
    /// How a line looks.
    pub(crate) format: Option<LogFormat>,
}

/// Traces and metrics over OTLP/gRPC, and how much of requests may be in them.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct RawTelemetry {
    /// `http://HOST:PORT` or `https://HOST:PORT` of a collector; `"off"`: nothing is made and nothing sent
    /// [`OTEL_EXPORTER_OTLP_ENDPOINT`].
    #[schemars(extend("x-default" = "`\"off\"`"))]
    pub(crate) otlp_endpoint: Option<String>,
    /// Where spans go, if elsewhere [`OTEL_EXPORTER_OTLP_TRACES_ENDPOINT`; `OTEL_TRACES_EXPORTER=none`].
    #[schemars(extend("x-default" = "`otlp_endpoint`"))]
    pub(crate) otlp_traces_endpoint: Option<String>,
    /// Where metrics go, if elsewhere [`OTEL_EXPORTER_OTLP_METRICS_ENDPOINT`; `OTEL_METRICS_EXPORTER=none`].
    #[schemars(extend("x-default" = "`otlp_endpoint`"))]
    pub(crate) otlp_metrics_endpoint: Option<String>,
    /// Time a collector has to take a batch; then it is dropped and counted [`OTEL_EXPORTER_OTLP_TIMEOUT`].
    pub(crate) otlp_timeout: Option<Human<Duration>>,
    /// `service.name` of the resource [`OTEL_SERVICE_NAME`].
    pub(crate) service_name: Option<String>,
    /// Further attributes of the resource [`OTEL_RESOURCE_ATTRIBUTES`].
    pub(crate) resource_attributes: Option<BTreeMap<String, String>>,
    /// Which traces are recorded; `parentbased_*`: as the caller decided, if it did [`OTEL_TRACES_SAMPLER`].
    pub(crate) traces_sampler: Option<TracesSampler>,
    /// Share of traces recorded by `traceidratio` and `parentbased_traceidratio` [`OTEL_TRACES_SAMPLER_ARG`].
    pub(crate) traces_sampler_arg: Option<f64>,
    /// Ended spans that may wait to be sent; more are dropped and counted [`OTEL_BSP_MAX_QUEUE_SIZE`].
    pub(crate) span_queue: Option<usize>,
    /// Spans sent together at most [`OTEL_BSP_MAX_EXPORT_BATCH_SIZE`].
    pub(crate) span_batch: Option<usize>,
    /// Longest an ended span waits for others [`OTEL_BSP_SCHEDULE_DELAY`].
    pub(crate) span_delay: Option<Human<Duration>>,
    /// How often metrics are sent [`OTEL_METRIC_EXPORT_INTERVAL`].
    pub(crate) metrics_interval: Option<Human<Duration>>,
    /// Members of the caller's baggage that become attributes `baggage.NAME` of the call's span, at most 16.
    pub(crate) baggage_attributes: Option<Vec<String>>,
    /// Put prompts and completions, redacted, into spans. They are medical texts: think before you turn it on.
    pub(crate) capture_content: Option<bool>,
    /// Regular expressions; what they match is `[REDACTED]` in captured content.
    pub(crate) redact: Option<Vec<String>>,
}

/// What happens when a model fails.
#[derive(Clone, Copy, Debug, Deserialize, JsonSchema, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum RawOnFailure {
    /// It is made anew, once.
    Restart,
    /// The process ends.
    Exit,
}

/// Which streams outlive the loss of their connection.
#[derive(Clone, Copy, Debug, Default, Deserialize, JsonSchema, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Resume {
    /// None.
    Off,
    /// Those whose request asks for it.
    #[default]
    Asked,
    /// All.
    Always,
}

/// How a log line looks.
#[derive(Clone, Copy, Debug, Default, Deserialize, JsonSchema, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One object a line.
    Json,
}
