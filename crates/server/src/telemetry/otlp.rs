//! Traces and metrics over OTLP/gRPC: set up from the configuration, flushed at the end.
//!
//! Nothing here waits for a collector but the two that send: a task with a bounded queue of spans ([`spans`]), and the
//! SDK's own thread for metrics. What does not get through is counted ([`ExportCounts`]).

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use opentelemetry::KeyValue;
use opentelemetry::trace::TracerProvider;
use opentelemetry_otlp::{MetricExporter, SpanExporter, WithExportConfig, WithTonicConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::metrics::{PeriodicReader, SdkMeterProvider};
use opentelemetry_sdk::trace::{Sampler, SdkTracer, SdkTracerProvider, SpanExporter as _};
use tonic::transport::ClientTlsConfig;

use super::semconv;
use crate::build_info;
use crate::config::{Pattern, TelemetryConfig, TracesSampler};

pub(crate) use counts::ExportCounts;
use instruments::Counted;
pub(crate) use instruments::Instruments;
use spans::SpanSender;

mod counts;
pub(crate) mod instruments;
mod spans;

/// Why nothing can be sent.
#[derive(Debug, thiserror::Error)]
#[error("telemetry: {0}")]
pub struct OtlpError(#[from] opentelemetry_otlp::ExporterBuildError);

/// What is sent over OTLP, as far as anything is.
#[derive(Debug, Default)]
pub(crate) struct Otlp {
    /// Makes spans; absent: traces go nowhere.
    pub(crate) tracer: Option<SdkTracer>,
    /// Takes measurements; absent: metrics go nowhere.
    pub(crate) instruments: Option<Instruments>,
    /// What did not get through.
    pub(crate) counts: ExportCounts,
    /// Members of the caller's baggage that become attributes.
    pub(crate) baggage_attributes: Vec<String>,
    /// What is blotted out of captured content; absent: nothing is captured.
    pub(crate) capture: Option<Vec<Pattern>>,
    meters: Option<SdkMeterProvider>,
    sender: Mutex<Option<SpanSender>>,
}

impl Otlp {
    /// As configured; inside a runtime, which will do the sending.
    ///
    /// # Errors
    /// An endpoint that no client can be made for.
    pub(crate) fn new(config: &TelemetryConfig) -> Result<Self, OtlpError> {
        let resource = resource(config);
        let counts = ExportCounts::default();
        let (mut tracer, mut sender) = (None, None);
        if let Some(endpoint) = &config.traces_endpoint {
            let builder = SpanExporter::builder()
                .with_tonic()
                .with_endpoint(endpoint)
                .with_timeout(config.otlp_timeout);
            let mut exporter = match tls(endpoint) {
                Some(tls) => builder.with_tls_config(tls).build()?,
                None => builder.build()?,
            };
            exporter.set_resource(&resource);
            let (queue, sending) = spans::start(exporter, config, counts.clone());
            let provider = SdkTracerProvider::builder()
                .with_span_processor(queue)
                .with_sampler(sampler(config))
                .with_resource(resource.clone())
                .build();
            tracer = Some(provider.tracer(semconv::SCOPE));
            sender = Some(sending);
            tracing::info!(endpoint, "traces are sent over OTLP");
        }
        let (mut instruments, mut meters) = (None, None);
        if let Some(endpoint) = &config.metrics_endpoint {
            let builder = MetricExporter::builder()
                .with_tonic()
                .with_endpoint(endpoint)
                .with_timeout(config.otlp_timeout);
            let exporter = match tls(endpoint) {
                Some(tls) => builder.with_tls_config(tls).build()?,
                None => builder.build()?,
            };
            let reader = PeriodicReader::builder(Counted::new(exporter, counts.clone()))
                .with_interval(config.metrics_interval)
                .build();
            let provider = SdkMeterProvider::builder()
                .with_reader(reader)
                .with_resource(resource)
                .build();
            instruments = Some(Instruments::new(&provider));
            meters = Some(provider);
            tracing::info!(endpoint, "metrics are sent over OTLP");
        }
        Ok(Self {
            tracer,
            instruments,
            counts,
            baggage_attributes: config.baggage_attributes.clone(),
            capture: config.capture_content.then(|| config.redact.clone()),
            meters,
            sender: Mutex::new(sender),
        })
    }

    /// Sends what waits, for `limit` at most; what is left then is dropped and counted.
    pub(crate) async fn shutdown(&self, limit: Duration) {
        let sender = self.sender.lock().unwrap_or_else(PoisonError::into_inner).take();
        let meters = self.meters.clone();
        let spans = async {
            if let Some(sender) = sender {
                sender.finish(limit).await;
            }
        };
        let metrics = async {
            let Some(meters) = meters else { return };
            // It waits for its thread, which waits for the collector.
            let flushed = tokio::task::spawn_blocking(move || meters.shutdown());
            match tokio::time::timeout(limit, flushed).await {
                Ok(Ok(Ok(()))) => {}
                _ => tracing::warn!("the last metrics were not sent over OTLP"),
            }
        };
        tokio::join!(spans, metrics);
    }
}

/// With the system's roots, for who speaks TLS.
fn tls(endpoint: &str) -> Option<ClientTlsConfig> {
    endpoint
        .starts_with("https://")
        .then(|| ClientTlsConfig::new().with_native_roots())
}

fn resource(config: &TelemetryConfig) -> Resource {
    let own = [
        KeyValue::new("service.name", config.service_name.clone()),
        KeyValue::new("service.version", build_info::VERSION),
        KeyValue::new("service.instance.id", uuid::Uuid::now_v7().to_string()),
        KeyValue::new("telemetry.sdk.language", "rust"),
        KeyValue::new("telemetry.sdk.name", "opentelemetry"),
    ];
    let given = config.resource_attributes.iter();
    let given = given.map(|(key, value)| KeyValue::new(key.clone(), value.clone()));
    // What is given wins.
    Resource::builder_empty()
        .with_attributes(own)
        .with_attributes(given)
        .build()
}

fn sampler(config: &TelemetryConfig) -> Sampler {
    let share = Sampler::TraceIdRatioBased(config.traces_sampler_arg);
    match config.traces_sampler {
        TracesSampler::AlwaysOn => Sampler::AlwaysOn,
        TracesSampler::AlwaysOff => Sampler::AlwaysOff,
        TracesSampler::Traceidratio => share,
        TracesSampler::ParentbasedAlwaysOn => Sampler::ParentBased(Box::new(Sampler::AlwaysOn)),
        TracesSampler::ParentbasedAlwaysOff => Sampler::ParentBased(Box::new(Sampler::AlwaysOff)),
        TracesSampler::ParentbasedTraceidratio => Sampler::ParentBased(Box::new(share)),
    }
}
