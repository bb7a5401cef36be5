//! What is counted and timed of requests. Every label value comes from a closed set: a configured model, an enum.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::exemplar::HistogramWithExemplars;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Metric, Registry};
use tokio::sync::watch;

use super::call_trace::TraceLabels;
use super::engine_metrics::EngineMetrics;
use super::health_metrics::HealthMetrics;
use super::otlp::ExportCounts;
use super::rpc_metrics::RpcMetrics;
use super::stream_metrics::StreamMetrics;
use super::tenant_metrics::TenantMetrics;
use super::tls_metrics::TlsMetrics;
use super::{exposition, names};
use crate::build_info;
use crate::error::{ApiError, Exhausted, NotResumable, Phase};
use crate::grpc::resume::Streams;
use crate::grpc::status::exhausted;
use crate::health::State;
use crate::identity::tenant::Tenants;
use crate::models::Models;
use crate::reload::Watched;
use crate::tls::Tls;

const FIRST_TOKEN_BUCKETS: [f64; 22] = [
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0,
    80.0, 160.0, 640.0, 2560.0,
];
const TOKEN_BUCKETS: [f64; 21] = [
    0.001, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0,
    20.0, 40.0, 80.0,
];
const REQUEST_BUCKETS: [f64; 24] = [
    0.005, 0.05, 0.1, 0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0,
    120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0,
];
const COUNT_BUCKETS: [f64; 18] = [
    1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1e3, 2e3, 5e3, 1e4, 2e4, 5e4, 1e5, 2e5, 5e5,
];

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct ModelLabel {
    model_name: String,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct EndLabels {
    model_name: String,
    finished_reason: EndLabel,
}

/// Why a completion ended, as a label.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub(crate) enum EndLabel {
    Stop,
    Length,
    ContextFull,
    TimeLimit,
    Aborted,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct ReasonLabel {
    reason: RejectLabel,
}

#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
enum RejectLabel {
    Invalid,
    NotFound,
    QueueFull,
    TokenBudget,
    TenantQuota,
    MessageSize,
    Unavailable,
    Unsupported,
    Unauthenticated,
    Denied,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct PhaseLabel {
    phase: Phase,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct TenantReasonLabels {
    tenant: String,
    reason: String,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct ReloadLabels {
    what: &'static str,
    outcome: &'static str,
}

/// Says how the values of a closed set are written in labels.
macro_rules! label_value {
    ($set:ident { $($value:ident => $text:literal,)* }) => {
        impl $set {
            /// As it is written in labels.
            pub(crate) fn text(self) -> &'static str {
                match self {
                    $(Self::$value => $text,)*
                }
            }
        }

        impl EncodeLabelValue for $set {
            fn encode(&self, encoder: &mut LabelValueEncoder) -> Result<(), fmt::Error> {
                EncodeLabelValue::encode(&self.text(), encoder)
            }
        }
    };
}

label_value!(EndLabel {
    Stop => "stop",
    Length => "length",
    ContextFull => "context_full",
    TimeLimit => "time_limit",
    Aborted => "abort",
});

label_value!(RejectLabel {
    Invalid => "invalid",
    NotFound => "not_found",
    QueueFull => "queue_full",
    TokenBudget => "token_budget",
    TenantQuota => "tenant_quota",
    MessageSize => "message_size",
    Unavailable => "unavailable",
    Unsupported => "unsupported",
    Unauthenticated => "unauthenticated",
    Denied => "denied",
});

label_value!(Phase {
    Queued => "queued",
    Prefill => "prefill",
    Decode => "decode",
});

/// Everything that `/metrics` shows.
pub(crate) struct Metrics {
    registry: Registry,
    rejected: Family<ReasonLabel, Counter>,
    cancelled: Family<PhaseLabel, Counter>,
    deadline_exceeded: Family<PhaseLabel, Counter>,
    reloads: Family<ReloadLabels, Counter>,
    tenant_rejected: Family<TenantReasonLabels, Counter>,
    pub(crate) handshake_failures: Counter,
    pub(crate) streams: StreamMetrics,
    /// By name, made when a model is first asked for.
    models: Mutex<BTreeMap<String, Arc<ModelMetrics>>>,
    of_model: Box<dyn Fn(&str) -> ModelMetrics + Send + Sync>,
    pub(crate) rpc: RpcMetrics,
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}

/// What is counted and timed of one model's requests.
#[derive(Clone, Debug)]
pub(crate) struct ModelMetrics {
    model_name: String,
    ended: Family<EndLabels, Counter>,
    pub(crate) first_token: TracedHistogram,
    pub(crate) inter_token: Histogram,
    pub(crate) per_output_token: Histogram,
    pub(crate) e2e: TracedHistogram,
    pub(crate) queue: Histogram,
    pub(crate) prefill: Histogram,
    pub(crate) decode: Histogram,
    pub(crate) prompt_tokens: Histogram,
    pub(crate) generation_tokens: Histogram,
    pub(crate) embed_requests: Counter,
    pub(crate) embed_inputs: Counter,
    pub(crate) embed_input_tokens: Histogram,
}

impl ModelMetrics {
    /// A completion ended.
    pub(crate) fn ended(&self, reason: EndLabel) {
        let labels = EndLabels {
            model_name: self.model_name.clone(),
            finished_reason: reason,
        };
        self.ended.get_or_create(&labels).inc();
    }
}

type Histograms = Family<ModelLabel, Histogram, fn() -> Histogram>;
type TracedHistograms = Family<ModelLabel, TracedHistogram, fn() -> TracedHistogram>;

/// A histogram whose buckets name a trace each.
pub(crate) type TracedHistogram = HistogramWithExemplars<TraceLabels>;

impl Metrics {
    /// Metrics of these models, all at zero, and of the server's health.
    pub(crate) fn new(
        models: &Arc<Models>,
        health: watch::Receiver<State>,
        tenants: Arc<Tenants>,
        tls: Option<Arc<Watched<Tls>>>,
        streams: Arc<Streams>,
        exports: &ExportCounts,
    ) -> Self {
        let mut registry = Registry::default();
        let r = &mut registry;
        let ended = register(r, names::SUCCESS, "Completions ended", Family::default());
        let times = |r: &mut Registry, name, help| -> Histograms {
            register(
                r,
                name,
                help,
                Family::new_with_constructor(|| Histogram::new(REQUEST_BUCKETS)),
            )
        };
        let tokens = |r: &mut Registry, name, help| -> Histograms {
            register(
                r,
                name,
                help,
                Family::new_with_constructor(|| Histogram::new(TOKEN_BUCKETS)),
            )
        };
        let counts = |r: &mut Registry, name, help| -> Histograms {
            register(
                r,
                name,
                help,
                Family::new_with_constructor(|| Histogram::new(COUNT_BUCKETS)),
            )
        };
        let first_token: TracedHistograms = register(
            r,
            names::TIME_TO_FIRST_TOKEN,
            "From arrival to the first token",
            Family::new_with_constructor(|| HistogramWithExemplars::new(FIRST_TOKEN_BUCKETS.into_iter())),
        );
        let inter_token = tokens(r, names::INTER_TOKEN, "Between tokens of a completion");
        let per_output_token = tokens(
            r,
            names::TIME_PER_OUTPUT_TOKEN,
            "Mean time between tokens of a completion",
        );
        let e2e: TracedHistograms = register(
            r,
            names::E2E,
            "From arrival to the end",
            Family::new_with_constructor(|| HistogramWithExemplars::new(REQUEST_BUCKETS.into_iter())),
        );
        let queue = times(r, names::QUEUE_TIME, "From arrival to admission");
        let prefill = times(r, names::PREFILL_TIME, "From admission to the first token");
        let decode = times(r, names::DECODE_TIME, "From the first token to the last");
        let prompt_tokens = counts(r, names::REQUEST_PROMPT_TOKENS, "Prompt tokens of a request");
        let generation_tokens = counts(r, names::REQUEST_GENERATION_TOKENS, "Tokens of a completion");
        let embed_input_tokens = counts(r, names::EMBED_INPUT_TOKENS, "Tokens of an embedded input");
        let embed_requests: Family<ModelLabel, Counter> = register(
            r,
            names::EMBED_REQUESTS,
            "Embed calls and streams",
            Family::default(),
        );
        let embed_inputs: Family<ModelLabel, Counter> =
            register(r, names::EMBED_INPUTS, "Inputs embedded", Family::default());
        let rejected = register(r, names::REJECTED, "Requests refused", Family::default());
        let cancelled = register(
            r,
            names::CANCELLED,
            "Requests whose caller went away",
            Family::default(),
        );
        let deadline_exceeded = register(
            r,
            names::DEADLINE_EXCEEDED,
            "Requests whose time was up",
            Family::default(),
        );
        let reloads = register(
            r,
            names::RELOADS,
            "Changed files taken up, or not",
            Family::default(),
        );
        let tenant_rejected = register(
            r,
            names::TENANT_REJECTED,
            "Requests of a tenant refused",
            Family::default(),
        );
        let handshake_failures = register(
            r,
            names::HANDSHAKE_FAILURES,
            "TLS handshakes that failed",
            Counter::default(),
        );
        let build: Family<Vec<(&str, &str)>, Gauge> = Family::default();
        build
            .get_or_create(&vec![
                ("version", build_info::VERSION),
                ("git_commit", build_info::GIT_COMMIT),
            ])
            .set(1);
        register(r, names::BUILD_INFO, "What this program is", build);
        let rpc = RpcMetrics::register(r);
        let streams = StreamMetrics::register(r, streams);
        r.register_collector(Box::new(EngineMetrics::new(models.clone())));
        r.register_collector(Box::new(HealthMetrics::new(health, models.clone())));
        r.register_collector(Box::new(TenantMetrics::new(tenants, models.clone())));
        if let Some(tls) = tls {
            r.register_collector(Box::new(TlsMetrics::new(tls)));
        }
        exports.register(r);

        let of_model = move |name: &str| {
            let label = ModelLabel {
                model_name: name.into(),
            };
            let histogram = |family: &Histograms| family.get_or_create_owned(&label);
            ModelMetrics {
                model_name: name.into(),
                ended: ended.clone(),
                first_token: first_token.get_or_create_owned(&label),
                inter_token: histogram(&inter_token),
                per_output_token: histogram(&per_output_token),
                e2e: e2e.get_or_create_owned(&label),
                queue: histogram(&queue),
                prefill: histogram(&prefill),
                decode: histogram(&decode),
                prompt_tokens: histogram(&prompt_tokens),
                generation_tokens: histogram(&generation_tokens),
                embed_input_tokens: histogram(&embed_input_tokens),
                embed_requests: embed_requests.get_or_create_owned(&label),
                embed_inputs: embed_inputs.get_or_create_owned(&label),
            }
        };
        let models = models
            .iter()
            .map(|m| (m.name().to_owned(), Arc::new(of_model(m.name()))))
            .collect::<BTreeMap<_, _>>();
        Self {
            registry,
            rejected,
            cancelled,
            deadline_exceeded,
            reloads,
            tenant_rejected,
            handshake_failures,
            streams,
            models: Mutex::new(models),
            of_model: Box::new(of_model),
            rpc,
        }
    }

    /// Of a served model.
    pub(crate) fn model(&self, name: &str) -> Arc<ModelMetrics> {
        let mut models = self.models.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(metrics) = models.get(name) {
            return metrics.clone();
        }
        let metrics = Arc::new((self.of_model)(name));
        models.insert(name.to_owned(), metrics.clone());
        metrics
    }

    /// A call ended with an error.
    pub(crate) fn failed(&self, error: &ApiError) {
        let reject = match error {
            ApiError::Invalid(_) => RejectLabel::Invalid,
            ApiError::UnknownModel { .. } | ApiError::UnknownRequest { .. } => RejectLabel::NotFound,
            ApiError::NotResumable(why) => match why {
                NotResumable::Unknown { .. } => RejectLabel::NotFound,
                NotResumable::Ahead { .. } | NotResumable::Forgotten { .. } => RejectLabel::Invalid,
                NotResumable::Elsewhere => return,
            },
            ApiError::Unavailable(_) => RejectLabel::Unavailable,
            ApiError::Unsupported { .. } => RejectLabel::Unsupported,
            ApiError::Unauthenticated(_) => RejectLabel::Unauthenticated,
            ApiError::Denied(_) => RejectLabel::Denied,
            ApiError::Exhausted { reason, .. } => match reason {
                Exhausted::Queue => RejectLabel::QueueFull,
                Exhausted::TokenBudget => RejectLabel::TokenBudget,
                Exhausted::TenantQuota => RejectLabel::TenantQuota,
                Exhausted::MessageSize => RejectLabel::MessageSize,
                // It was taken, and ended: its caller went away in its own manner.
                Exhausted::SlowClient => return self.cancelled(Phase::Decode),
            },
            ApiError::DeadlineUnreachable { .. } | ApiError::NotArrived { .. } => {
                let phase = Phase::Queued;
                self.deadline_exceeded.get_or_create(&PhaseLabel { phase }).inc();
                return;
            }
            ApiError::DeadlineExceeded { phase, .. } => {
                self.deadline_exceeded
                    .get_or_create(&PhaseLabel { phase: *phase })
                    .inc();
                return;
            }
            ApiError::Aborted | ApiError::Internal { .. } => return,
        };
        self.rejected.get_or_create(&ReasonLabel { reason: reject }).inc();
    }

    /// A call's caller went away.
    pub(crate) fn cancelled(&self, phase: Phase) {
        self.cancelled.get_or_create(&PhaseLabel { phase }).inc();
    }

    /// A request of a configured tenant was refused.
    pub(crate) fn tenant_rejected(&self, tenant: &str, error: &ApiError) {
        let reason = match error {
            ApiError::Exhausted { reason, .. } => exhausted(*reason).to_ascii_lowercase(),
            ApiError::DeadlineUnreachable { .. } => "deadline_unreachable".to_owned(),
            _ => "unavailable".to_owned(),
        };
        let labels = TenantReasonLabels {
            tenant: tenant.to_owned(),
            reason,
        };
        self.tenant_rejected.get_or_create(&labels).inc();
    }

    /// Changed files were taken up, or could not be.
    pub(crate) fn reloaded(&self, what: &'static str, taken_up: bool) {
        let outcome = if taken_up { "ok" } else { "failed" };
        self.reloads.get_or_create(&ReloadLabels { what, outcome }).inc();
    }

    /// Everything, as text.
    pub(crate) fn encode(&self, format: exposition::Format) -> Result<String, fmt::Error> {
        exposition::encode(&self.registry, format)
    }
}

fn register<M: Metric + Clone>(registry: &mut Registry, name: &str, help: &str, metric: M) -> M {
    registry.register(name, help, metric.clone());
    metric
}

/// Seconds, as Prometheus counts time, with where to find the trace behind them.
pub(crate) fn observe_traced(histogram: &TracedHistogram, time: Duration, trace: Option<TraceLabels>) {
    histogram.observe(time.as_secs_f64(), trace, None);
}

/// Seconds, as Prometheus counts time.
pub(crate) fn observe(histogram: &Histogram, time: Duration) {
    histogram.observe(time.as_secs_f64());
}

#[cfg(test)]
mod tests;
