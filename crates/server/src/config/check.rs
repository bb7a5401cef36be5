//! From the raw configuration to [`Config`]: defaults filled in, every bound and contradiction checked.

use std::path::PathBuf;
use std::time::Duration;

use super::raw::{RawConfig, RawEngine, RawGrpc, RawListen, RawLog, RawModel, RawRequests, RawShutdown};
use super::units::{Human, Limit};
use super::{
    Config, GrpcConfig, ListenConfig, LogConfig, ModelConfig, RequestsConfig, ShutdownConfig, is_address,
};

mod engine;
mod identity;
mod models;
mod telemetry;

const DEFAULT_GRPC_ADDRESS: &str = "127.0.0.1:50051";
/// Certificates are renewed days before they end; a token that must go at once has SIGHUP.
const DEFAULT_RELOAD_INTERVAL: Duration = Duration::from_secs(10);
const DEFAULT_ADMIN_ADDRESS: &str = "127.0.0.1:9464";
/// HTTP/2's own bounds (RFC 9113, 6.5.2).
const MAX_WINDOW_BYTES: u32 = (1 << 31) - 1;
const FRAME_BYTES: std::ops::RangeInclusive<u32> = 1 << 14..=(1 << 24) - 1;

/// What is wrong, and the keys it may be about: the first that was written somewhere is blamed.
pub(super) struct Finding {
    pub(super) keys: Vec<String>,
    pub(super) message: String,
}

#[derive(Default)]
struct Findings(Vec<Finding>);

impl Findings {
    fn that(&mut self, holds: bool, keys: &[&str], message: impl FnOnce() -> String) {
        if !holds {
            let keys = keys.iter().map(ToString::to_string).collect();
            let message = message();
            self.0.push(Finding { keys, message });
        }
    }

    fn at_least_one(&mut self, key: &str, value: usize) {
        self.that(value >= 1, &[key], || "must be at least 1, got 0".into());
    }

    fn not_zero(&mut self, key: &str, value: Duration) {
        self.that(!value.is_zero(), &[key], || "must be more than 0".into());
    }
}

/// Makes the typed configuration, or says everything that is wrong. `default_model_path` is what to serve when no
/// model is configured.
pub(super) fn check(
    raw: RawConfig,
    default_model_path: Option<PathBuf>,
    must_exist: bool,
) -> Result<Config, Vec<Finding>> {
    let mut findings = Findings::default();
    let models = models::models(&raw, default_model_path, must_exist, &mut findings);
    let default_model = raw
        .default_model
        .or_else(|| models.first().map(|m| m.name.clone()))
        .unwrap_or_default();
    let known = models.is_empty() || models.iter().any(|m| m.name == default_model);
    findings.that(known, &["default_model"], || {
        let names: Vec<_> = models.iter().map(|m| m.name.as_str()).collect();
        format!("{default_model:?} is not among the models: {}", names.join(", "))
    });
    let listen = listen(raw.listen, &mut findings);
    let tls = identity::tls(raw.tls, &mut findings);
    let auth = identity::auth(raw.auth, &mut findings);
    let tenants = identity::tenants(
        raw.tenants,
        &raw.tenant_defaults,
        &listen,
        tls.as_ref(),
        &auth,
        &mut findings,
    );
    identity::anonymity(&listen, &auth, &tenants, &mut findings);
    let reload_interval = raw.reload.interval.map_or(DEFAULT_RELOAD_INTERVAL, |t| t.0);
    findings.not_zero("reload.interval", reload_interval);
    let config = Config {
        default_model,
        models,
        listen,
        tls,
        auth,
        tenants,
        reload_interval,
        grpc: grpc(raw.grpc, &mut findings),
        requests: requests(raw.requests, &mut findings),
        shutdown: shutdown(raw.shutdown, &mut findings),
        log: log(raw.log, &mut findings),
        telemetry: telemetry::telemetry(raw.telemetry, &mut findings),
    };
    if findings.0.is_empty() {
        Ok(config)
    } else {
        Err(findings.0)
    }
}

/// Whether a model is configured.
pub(super) fn names_a_model(raw: &RawConfig) -> bool {
    !raw.models.is_empty() || raw.model.path.is_some()
}

/// Makes one model's typed configuration; `key` is what is in front of its keys.
pub(super) fn model(key: &str, raw: RawModel, common: &RawEngine) -> Result<ModelConfig, Vec<Finding>> {
    let mut findings = Findings::default();
    let model = models::one_model(key, raw, common, true, &mut findings);
    model.filter(|_| findings.0.is_empty()).ok_or(findings.0)
}

fn listen(raw: RawListen, findings: &mut Findings) -> ListenConfig {
    let grpc = raw.grpc.unwrap_or_else(|| DEFAULT_GRPC_ADDRESS.into());
    let admin = raw.admin.unwrap_or_else(|| DEFAULT_ADMIN_ADDRESS.into());
    findings.that(is_address(&grpc), &["listen.grpc"], || {
        format!("must be HOST:PORT, got {grpc:?}")
    });
    let optional = |key: &str, address: String, others: &[(&str, &String)], findings: &mut Findings| {
        let address = (address != "off").then_some(address)?;
        findings.that(is_address(&address), &[key], || {
            format!("must be HOST:PORT or \"off\", got {address:?}")
        });
        for (other_key, other) in others {
            let same = *other == &address && !address.ends_with(":0");
            findings.that(!same, &[key, other_key], || {
                format!("both listeners are told to take {address}")
            });
        }
        Some(address)
    };
    let admin = optional("listen.admin", admin, &[("listen.grpc", &grpc)], findings);
    let admin_grpc = raw.admin_grpc.unwrap_or_else(|| "off".into());
    let taken: Vec<_> = [("listen.grpc", Some(&grpc)), ("listen.admin", admin.as_ref())]
        .into_iter()
        .filter_map(|(key, address)| Some((key, address?)))
        .collect();
    let admin_grpc = optional("listen.admin_grpc", admin_grpc, &taken, findings);
    ListenConfig {
        grpc,
        admin,
        admin_grpc,
    }
}

fn grpc(raw: RawGrpc, findings: &mut Findings) -> GrpcConfig {
    let d = GrpcConfig::default();
    let time = |given: Option<Human<Duration>>, default: Duration| given.map_or(default, |t| t.0);
    let grpc = GrpcConfig {
        max_decoding_message_bytes: raw
            .max_decoding_message_bytes
            .unwrap_or(d.max_decoding_message_bytes),
        max_encoding_message_bytes: raw
            .max_encoding_message_bytes
            .unwrap_or(d.max_encoding_message_bytes),
        max_connections: raw.max_connections.unwrap_or(d.max_connections),
        max_concurrent_streams: raw.max_concurrent_streams.unwrap_or(d.max_concurrent_streams),
        max_concurrent_calls: raw.max_concurrent_calls.unwrap_or(d.max_concurrent_calls),
        initial_stream_window_bytes: raw
            .initial_stream_window_bytes
            .unwrap_or(d.initial_stream_window_bytes),
        initial_connection_window_bytes: raw
            .initial_connection_window_bytes
            .unwrap_or(d.initial_connection_window_bytes),
        max_frame_bytes: raw.max_frame_bytes.unwrap_or(d.max_frame_bytes),
        max_header_list_bytes: raw.max_header_list_bytes.unwrap_or(d.max_header_list_bytes),
        max_send_buffer_bytes: raw.max_send_buffer_bytes.unwrap_or(d.max_send_buffer_bytes),
        max_pending_accept_reset_streams: raw
            .max_pending_accept_reset_streams
            .unwrap_or(d.max_pending_accept_reset_streams),
        max_local_error_reset_streams: raw
            .max_local_error_reset_streams
            .unwrap_or(d.max_local_error_reset_streams),
        handshake_timeout: time(raw.handshake_timeout, d.handshake_timeout),
        request_timeout: time(raw.request_timeout, d.request_timeout),
        send_timeout: time(raw.send_timeout, d.send_timeout),
        keepalive_interval: time(raw.keepalive_interval, d.keepalive_interval),
        keepalive_timeout: time(raw.keepalive_timeout, d.keepalive_timeout),
        max_connection_age: raw.max_connection_age.unwrap_or(Limit(d.max_connection_age)).0,
        max_connection_age_grace: time(raw.max_connection_age_grace, d.max_connection_age_grace),
        reflection: raw.reflection.unwrap_or(d.reflection),
        vllm_facade: raw.vllm_facade.unwrap_or(d.vllm_facade),
    };
    findings.at_least_one("grpc.max_decoding_message_bytes", grpc.max_decoding_message_bytes);
    findings.at_least_one("grpc.max_encoding_message_bytes", grpc.max_encoding_message_bytes);
    findings.at_least_one("grpc.max_connections", grpc.max_connections);
    findings.at_least_one(
        "grpc.max_concurrent_streams",
        grpc.max_concurrent_streams as usize,
    );
    findings.at_least_one("grpc.max_concurrent_calls", grpc.max_concurrent_calls);
    findings.at_least_one("grpc.max_header_list_bytes", grpc.max_header_list_bytes as usize);
    findings.at_least_one("grpc.max_send_buffer_bytes", grpc.max_send_buffer_bytes);
    for (key, window) in [
        (
            "grpc.initial_stream_window_bytes",
            grpc.initial_stream_window_bytes,
        ),
        (
            "grpc.initial_connection_window_bytes",
            grpc.initial_connection_window_bytes,
        ),
    ] {
        findings.that((1..=MAX_WINDOW_BYTES).contains(&window), &[key], || {
            format!("must be between 1 and {MAX_WINDOW_BYTES}, got {window}")
        });
    }
    let frame = grpc.max_frame_bytes;
    findings.that(FRAME_BYTES.contains(&frame), &["grpc.max_frame_bytes"], || {
        format!(
            "must be between {} and {}, got {frame}",
            FRAME_BYTES.start(),
            FRAME_BYTES.end()
        )
    });
    findings.not_zero("grpc.handshake_timeout", grpc.handshake_timeout);
    findings.not_zero("grpc.request_timeout", grpc.request_timeout);
    findings.not_zero("grpc.send_timeout", grpc.send_timeout);
    findings.not_zero("grpc.keepalive_interval", grpc.keepalive_interval);
    findings.not_zero("grpc.keepalive_timeout", grpc.keepalive_timeout);
    if let Some(age) = grpc.max_connection_age {
        findings.not_zero("grpc.max_connection_age", age);
    }
    grpc
}

fn requests(raw: RawRequests, findings: &mut Findings) -> RequestsConfig {
    let default = RequestsConfig::default();
    let requests = RequestsConfig {
        text_threads: raw.text_threads.unwrap_or(default.text_threads),
        text_queue: raw.text_queue.unwrap_or(default.text_queue),
        max_embed_inputs: raw.max_embed_inputs.unwrap_or(default.max_embed_inputs),
        embed_in_flight: raw.embed_in_flight.unwrap_or(default.embed_in_flight),
        max_time: raw.max_time.unwrap_or(Limit(default.max_time)).0,
        resume: raw.resume.unwrap_or_default(),
        resume_window: raw.resume_window.map_or(default.resume_window, |t| t.0),
        resume_buffer_bytes: raw.resume_buffer_bytes.unwrap_or(default.resume_buffer_bytes),
        resume_streams: raw.resume_streams.unwrap_or(default.resume_streams),
    };
    findings.not_zero("requests.resume_window", requests.resume_window);
    findings.at_least_one("requests.resume_buffer_bytes", requests.resume_buffer_bytes);
    findings.at_least_one("requests.resume_streams", requests.resume_streams);
    findings.at_least_one("requests.text_threads", requests.text_threads);
    findings.at_least_one("requests.text_queue", requests.text_queue);
    findings.at_least_one("requests.max_embed_inputs", requests.max_embed_inputs);
    findings.at_least_one("requests.embed_in_flight", requests.embed_in_flight);
    if let Some(time) = requests.max_time {
        findings.not_zero("requests.max_time", time);
    }
    requests
}

fn shutdown(raw: RawShutdown, findings: &mut Findings) -> ShutdownConfig {
    let default = ShutdownConfig::default();
    let drain_delay = raw.drain_delay.map_or(default.drain_delay, |t| t.0);
    let drain_timeout = raw.drain_timeout.map_or(default.drain_timeout, |t| t.0);
    let orderly = drain_delay.saturating_add(drain_timeout);
    // Unset, it leaves an orderly end room to close connections.
    let roomy = orderly.saturating_add(default.hard_timeout - default.drain_timeout);
    let hard_timeout = raw.hard_timeout.map_or(roomy, |t| t.0);
    findings.that(orderly <= hard_timeout, &["shutdown.hard_timeout"], || {
        format!(
            "must be at least drain_delay + drain_timeout ({}), got {}",
            Human(orderly),
            Human(hard_timeout)
        )
    });
    ShutdownConfig {
        drain_delay,
        drain_timeout,
        hard_timeout,
    }
}

fn log(raw: RawLog, findings: &mut Findings) -> LogConfig {
    let default = LogConfig::default();
    let filter = raw.filter.unwrap_or(default.filter);
    let parsed = tracing_subscriber::EnvFilter::builder().parse(&filter);
    findings.that(parsed.is_ok(), &["log.filter"], || {
        let reason = parsed.err().map(|e| e.to_string()).unwrap_or_default();
        format!("{filter:?} is not a log filter: {reason}")
    });
    LogConfig {
        filter,
        format: raw.format.unwrap_or_default(),
    }
}
