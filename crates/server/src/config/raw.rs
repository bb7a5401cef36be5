//! The configuration as it is written: every key optional, unknown keys refused.
//!
//! Field names here are the configuration's keys; `docs/CONFIG.md` and [`super::Config`] say what they mean.

use std::path::PathBuf;
use std::time::Duration;

use baichuan_engine::{DeviceChoice, DeviceMap, Dtype, IsqType};
use serde::{Deserialize, Serialize};

use super::units::{Human, Limit};

/// The whole configuration.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct RawConfig {
    /// Served name of the model that requests without one get.
    pub(crate) default_model: Option<String>,
    /// Where the default checkpoint's folder is looked for first.
    pub(crate) models_dir: Option<PathBuf>,
    /// Addresses.
    pub(crate) listen: RawListen,
    /// The one model, or what overrides the one entry of `models`.
    #[serde(skip_serializing_if = "RawModel::is_empty")]
    pub(crate) model: RawModel,
    /// Several models; the first is the default.
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
    /// For the operator.
    pub(crate) admin: RawAdmin,
}

/// Addresses.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct RawListen {
    pub(crate) grpc: Option<String>,
    pub(crate) admin: Option<String>,
}

/// One model.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct RawModel {
    pub(crate) name: Option<String>,
    pub(crate) path: Option<PathBuf>,
    pub(crate) plugin: Option<String>,
    pub(crate) dtype: Option<Dtype>,
    pub(crate) cache_dtype: Option<Dtype>,
    pub(crate) isq: Option<IsqType>,
    pub(crate) threads: Option<usize>,
    pub(crate) device: Option<DeviceChoice>,
    pub(crate) device_map: Option<DeviceMap>,
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
            threads: over.threads.or(self.threads),
            device: over.device.or(self.device),
            device_map: over.device_map.or(self.device_map),
            engine: self.engine.overridden_by(&over.engine),
        }
    }
}

/// Scheduling and memory.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct RawEngine {
    pub(crate) max_step_tokens: Option<usize>,
    pub(crate) prefill_chunk_tokens: Option<usize>,
    pub(crate) max_sequences: Option<usize>,
    pub(crate) max_waiting: Option<usize>,
    pub(crate) max_waiting_tokens: Option<usize>,
    pub(crate) event_buffer: Option<usize>,
    pub(crate) max_context: Option<usize>,
    pub(crate) scrub_freed: Option<bool>,
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
            cache: self.cache.overridden_by(&over.cache),
            limits: self.limits.overridden_by(&over.limits),
        }
    }
}

/// Memory for keys and values. The budget is one of `bytes`, `utilization`, `context_tokens`, or both block counts.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct RawCache {
    pub(crate) block_tokens: Option<usize>,
    pub(crate) bytes: Option<u64>,
    pub(crate) utilization: Option<f64>,
    pub(crate) context_tokens: Option<usize>,
    pub(crate) global_blocks: Option<usize>,
    pub(crate) window_blocks: Option<usize>,
}

impl RawCache {
    /// Whether a budget is given, well or badly.
    pub(crate) fn names_a_budget(&self) -> bool {
        self.bytes.is_some()
            || self.utilization.is_some()
            || self.context_tokens.is_some()
            || self.global_blocks.is_some()
            || self.window_blocks.is_some()
    }

    /// A budget in `over` replaces the whole budget, for two kinds of budget contradict each other.
    fn overridden_by(&self, over: &Self) -> Self {
        let budget = if over.names_a_budget() { over } else { self };
        Self {
            block_tokens: over.block_tokens.or(self.block_tokens),
            ..budget.clone()
        }
    }
}

/// What a request may ask for, whatever the model.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct RawLimits {
    pub(crate) max_n: Option<u32>,
    pub(crate) max_total_tokens: Option<u64>,
    pub(crate) max_stop_strings: Option<usize>,
    pub(crate) max_stop_bytes: Option<usize>,
    pub(crate) max_token_list: Option<usize>,
}

impl RawLimits {
    fn overridden_by(&self, over: &Self) -> Self {
        Self {
            max_n: over.max_n.or(self.max_n),
            max_total_tokens: over.max_total_tokens.or(self.max_total_tokens),
            max_stop_strings: over.max_stop_strings.or(self.max_stop_strings),
            max_stop_bytes: over.max_stop_bytes.or(self.max_stop_bytes),
            max_token_list: over.max_token_list.or(self.max_token_list),
        }
    }
}

/// The gRPC transport.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct RawGrpc {
    pub(crate) max_decoding_message_bytes: Option<usize>,
    pub(crate) max_encoding_message_bytes: Option<usize>,
    pub(crate) max_connections: Option<usize>,
    pub(crate) max_concurrent_streams: Option<u32>,
    pub(crate) max_concurrent_calls: Option<usize>,
    pub(crate) initial_stream_window_bytes: Option<u32>,
    pub(crate) initial_connection_window_bytes: Option<u32>,
    pub(crate) max_frame_bytes: Option<u32>,
    pub(crate) max_header_list_bytes: Option<u32>,
    pub(crate) max_send_buffer_bytes: Option<usize>,
    pub(crate) max_pending_accept_reset_streams: Option<usize>,
    pub(crate) max_local_error_reset_streams: Option<usize>,
    pub(crate) handshake_timeout: Option<Human<Duration>>,
    pub(crate) keepalive_interval: Option<Human<Duration>>,
    pub(crate) keepalive_timeout: Option<Human<Duration>>,
    pub(crate) max_connection_age: Option<Limit<Duration>>,
    pub(crate) max_connection_age_grace: Option<Human<Duration>>,
    pub(crate) reflection: Option<bool>,
}

/// What a call may ask of the server.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct RawRequests {
    pub(crate) text_threads: Option<usize>,
    pub(crate) text_queue: Option<usize>,
    pub(crate) max_embed_inputs: Option<usize>,
    pub(crate) embed_in_flight: Option<usize>,
    pub(crate) max_time: Option<Limit<Duration>>,
}

/// How the server ends.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct RawShutdown {
    pub(crate) drain_delay: Option<Human<Duration>>,
    pub(crate) drain_timeout: Option<Human<Duration>>,
    pub(crate) hard_timeout: Option<Human<Duration>>,
}

/// Logs.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct RawLog {
    pub(crate) filter: Option<String>,
    pub(crate) format: Option<LogFormat>,
}

/// For the operator.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct RawAdmin {
    pub(crate) grpc: Option<bool>,
}

/// How a log line looks.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One object a line.
    Json,
}
