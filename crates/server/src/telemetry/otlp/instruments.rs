//! The conventions' metrics: how long calls and operations take.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use opentelemetry::KeyValue;
use opentelemetry::metrics::{Histogram, Meter, MeterProvider};
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::metrics::data::ResourceMetrics;
use opentelemetry_sdk::metrics::exporter::PushMetricExporter;
use opentelemetry_sdk::metrics::{SdkMeterProvider, Temporality};

use super::counts::ExportCounts;
use crate::telemetry::semconv;

/// Takes measurements. Every attribute's value comes from a closed set.
#[derive(Debug)]
pub(crate) struct Instruments {
    pub(crate) rpc_duration: Histogram<f64>,
    pub(crate) request_duration: Histogram<f64>,
    pub(crate) time_to_first_token: Histogram<f64>,
    pub(crate) time_per_output_token: Histogram<f64>,
}

impl Instruments {
    pub(super) fn new(provider: &SdkMeterProvider) -> Self {
        let meter = provider.meter(semconv::SCOPE);
        Self {
            rpc_duration: seconds(
                &meter,
                semconv::RPC_DURATION,
                "Duration of a call",
                &semconv::RPC_DURATION_BUCKETS,
            ),
            request_duration: seconds(
                &meter,
                semconv::REQUEST_DURATION,
                "Time from a request's arrival to its last token or vector",
                &semconv::REQUEST_DURATION_BUCKETS,
            ),
            time_to_first_token: seconds(
                &meter,
                semconv::TIME_TO_FIRST_TOKEN,
                "Time from a request's arrival to its first token",
                &semconv::TIME_TO_FIRST_TOKEN_BUCKETS,
            ),
            time_per_output_token: seconds(
                &meter,
                semconv::TIME_PER_OUTPUT_TOKEN,
                "Mean time between tokens after the first",
                &semconv::TIME_PER_OUTPUT_TOKEN_BUCKETS,
            ),
        }
    }
}

fn seconds(meter: &Meter, name: &'static str, help: &'static str, buckets: &[f64]) -> Histogram<f64> {
    meter
        .f64_histogram(name)
        .with_description(help)
        .with_unit("s")
        .with_boundaries(buckets.to_vec())
        .build()
}

/// One measurement of a time.
pub(crate) fn record(histogram: &Histogram<f64>, time: Duration, attributes: &[KeyValue]) {
    histogram.record(time.as_secs_f64(), attributes);
}

/// An exporter whose failures are counted.
pub(super) struct Counted<E> {
    exporter: E,
    counts: ExportCounts,
    failing: AtomicBool,
}

impl<E> Counted<E> {
    pub(super) fn new(exporter: E, counts: ExportCounts) -> Self {
        Self {
            exporter,
            counts,
            failing: AtomicBool::new(false),
        }
    }
}

impl<E: PushMetricExporter> PushMetricExporter for Counted<E> {
    async fn export(&self, metrics: &ResourceMetrics) -> OTelSdkResult {
        let exported = self.exporter.export(metrics).await;
        if exported.is_err() {
            self.counts.metrics_failed();
        }
        // Once as it begins and once as it ends, not with every export.
        match (self.failing.swap(exported.is_err(), Ordering::Relaxed), &exported) {
            (false, Err(error)) => tracing::warn!(%error, "metrics cannot be sent over OTLP"),
            (true, Ok(())) => tracing::info!("metrics are sent over OTLP again"),
            _ => {}
        }
        exported
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.exporter.force_flush()
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.exporter.shutdown_with_timeout(timeout)
    }

    fn temporality(&self) -> Temporality {
        self.exporter.temporality()
    }
}
