//! The configuration in force, written as a configuration file: every key, nothing left to a default.

use baichuan_engine::{CacheBudget, EngineConfig, OnFailure};

use super::raw::identity::{RawReload, RawTenant};
use super::raw::{
    RawCache, RawConfig, RawEngine, RawGrpc, RawLimits, RawListen, RawLog, RawModel, RawOnFailure,
    RawRequests, RawShutdown, RawTelemetry,
};
use super::units::{Human, Limit};
use super::{Config, ModelConfig, TelemetryConfig};

mod identity;

impl Config {
    /// The configuration as TOML that reads back as the same configuration.
    pub fn to_toml(&self) -> Result<String, toml::ser::Error> {
        toml::to_string(&self.to_raw())
    }

    pub(super) fn to_raw(&self) -> RawConfig {
        let (grpc, requests, shutdown) = (&self.grpc, &self.requests, &self.shutdown);
        RawConfig {
            default_model: Some(self.default_model.clone()),
            models_dir: None,
            listen: RawListen {
                grpc: Some(self.listen.grpc.clone()),
                admin: Some(self.listen.admin.clone().unwrap_or_else(|| "off".into())),
                admin_grpc: Some(self.listen.admin_grpc.clone().unwrap_or_else(|| "off".into())),
            },
            model: RawModel::default(),
            models: self.models.iter().map(raw_model).collect(),
            engine: RawEngine::default(),
            grpc: RawGrpc {
                max_decoding_message_bytes: Some(grpc.max_decoding_message_bytes),
                max_encoding_message_bytes: Some(grpc.max_encoding_message_bytes),
                max_connections: Some(grpc.max_connections),
                max_concurrent_streams: Some(grpc.max_concurrent_streams),
                max_concurrent_calls: Some(grpc.max_concurrent_calls),
                initial_stream_window_bytes: Some(grpc.initial_stream_window_bytes),
                initial_connection_window_bytes: Some(grpc.initial_connection_window_bytes),
                max_frame_bytes: Some(grpc.max_frame_bytes),
                max_header_list_bytes: Some(grpc.max_header_list_bytes),
                max_send_buffer_bytes: Some(grpc.max_send_buffer_bytes),
                max_pending_accept_reset_streams: Some(grpc.max_pending_accept_reset_streams),
                max_local_error_reset_streams: Some(grpc.max_local_error_reset_streams),
                handshake_timeout: Some(Human(grpc.handshake_timeout)),
                request_timeout: Some(Human(grpc.request_timeout)),
                send_timeout: Some(Human(grpc.send_timeout)),
                keepalive_interval: Some(Human(grpc.keepalive_interval)),
                keepalive_timeout: Some(Human(grpc.keepalive_timeout)),
                max_connection_age: Some(Limit(grpc.max_connection_age)),
                max_connection_age_grace: Some(Human(grpc.max_connection_age_grace)),
                reflection: Some(grpc.reflection),
                vllm_facade: Some(grpc.vllm_facade),
            },
            requests: RawRequests {
                text_threads: Some(requests.text_threads),
                text_queue: Some(requests.text_queue),
                max_embed_inputs: Some(requests.max_embed_inputs),
                embed_in_flight: Some(requests.embed_in_flight),
                max_time: Some(Limit(requests.max_time)),
                resume: Some(requests.resume),
                resume_window: Some(Human(requests.resume_window)),
                resume_buffer_bytes: Some(requests.resume_buffer_bytes),
                resume_streams: Some(requests.resume_streams),
            },
            shutdown: RawShutdown {
                drain_delay: Some(Human(shutdown.drain_delay)),
                drain_timeout: Some(Human(shutdown.drain_timeout)),
                hard_timeout: Some(Human(shutdown.hard_timeout)),
            },
            log: RawLog {
                filter: Some(self.log.filter.clone()),
                format: Some(self.log.format),
            },
            telemetry: raw_telemetry(&self.telemetry),
            tls: identity::tls(self.tls.as_ref()),
            auth: identity::auth(&self.auth),
            tenant_defaults: RawTenant::default(),
            tenants: identity::tenants(&self.tenants),
            reload: RawReload {
                interval: Some(Human(self.reload_interval)),
            },
        }
    }
}

fn raw_telemetry(telemetry: &TelemetryConfig) -> RawTelemetry {
    let endpoint = |endpoint: &Option<String>| Some(endpoint.clone().unwrap_or_else(|| "off".into()));
    RawTelemetry {
        otlp_endpoint: None,
        otlp_traces_endpoint: endpoint(&telemetry.traces_endpoint),
        otlp_metrics_endpoint: endpoint(&telemetry.metrics_endpoint),
        otlp_timeout: Some(Human(telemetry.otlp_timeout)),
        service_name: Some(telemetry.service_name.clone()),
        resource_attributes: Some(telemetry.resource_attributes.clone()),
        traces_sampler: Some(telemetry.traces_sampler),
        traces_sampler_arg: Some(telemetry.traces_sampler_arg),
        span_queue: Some(telemetry.span_queue),
        span_batch: Some(telemetry.span_batch),
        span_delay: Some(Human(telemetry.span_delay)),
        metrics_interval: Some(Human(telemetry.metrics_interval)),
        baggage_attributes: Some(telemetry.baggage_attributes.clone()),
        capture_content: Some(telemetry.capture_content),
        redact: Some(telemetry.redact.iter().map(|p| p.0.as_str().to_owned()).collect()),
    }
}

fn raw_model(model: &ModelConfig) -> RawModel {
    RawModel {
        name: Some(model.name.clone()),
        path: Some(model.path.clone()),
        plugin: model.plugin.clone(),
        dtype: model.dtype,
        cache_dtype: model.cache_dtype,
        isq: model.isq,
        adapters: (!model.adapters.is_empty()).then(|| model.adapters.clone()),
        threads: model.threads,
        device: Some(model.placement.device),
        device_map: Some(model.placement.map.clone()),
        topology: model.topology.clone(),
        random_weights: model.random_weights,
        engine: raw_engine(&model.engine),
    }
}

pub(super) fn raw_engine(engine: &EngineConfig) -> RawEngine {
    let limits = &engine.limits;
    RawEngine {
        max_step_tokens: Some(engine.max_step_tokens),
        prefill_chunk_tokens: Some(engine.prefill_chunk_tokens),
        max_sequences: Some(engine.max_sequences),
        max_waiting: Some(engine.max_waiting),
        max_waiting_tokens: Some(engine.max_waiting_tokens),
        event_buffer: Some(engine.event_buffer),
        max_context: engine.max_context,
        scrub_freed: Some(engine.scrub_freed),
        on_failure: Some(match engine.on_failure {
            OnFailure::Restart => RawOnFailure::Restart,
            OnFailure::Exit => RawOnFailure::Exit,
        }),
        max_wait: Some(Limit(engine.max_wait)),
        step_timeout: Some(Limit(engine.step_timeout)),
        cache: raw_cache(engine),
        limits: RawLimits {
            max_n: Some(limits.max_n),
            max_total_tokens: Some(limits.max_total_tokens),
            max_stop_strings: Some(limits.max_stop_strings),
            max_stop_bytes: Some(limits.max_stop_bytes),
            max_token_list: Some(limits.max_token_list),
            max_messages: Some(limits.max_messages),
            max_text_bytes: Some(limits.max_text_bytes),
        },
    }
}

fn raw_cache(engine: &EngineConfig) -> RawCache {
    let mut cache = RawCache {
        block_tokens: Some(engine.cache.block_tokens),
        ..RawCache::default()
    };
    match engine.cache.budget {
        CacheBudget::Bytes(bytes) => cache.bytes = Some(bytes),
        CacheBudget::Utilization(share) => {
            cache.utilization = Some(share);
            cache.gpu_memory_utilization = Some(engine.cache.gpu_memory_utilization);
        }
        CacheBudget::ContextTokens(tokens) => cache.context_tokens = Some(tokens),
        CacheBudget::Blocks { global, window } => {
            cache.global_blocks = Some(global);
            cache.window_blocks = Some(window);
        }
    }
    cache
}
