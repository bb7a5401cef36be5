//! What was sent over OTLP and what did not get through.

use std::fmt;

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;

use crate::telemetry::names;

/// Counters of the sending, shared by those who send and `/metrics`.
#[derive(Clone, Debug, Default)]
pub(crate) struct ExportCounts {
    exported: Counter,
    dropped: Family<DropLabel, Counter>,
    failed_metrics: Counter,
}

/// Why a span was dropped.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub(super) enum Dropped {
    /// Too many waited already.
    QueueFull,
    /// The collector did not take it in time.
    ExportFailed,
    /// The server ended first.
    Shutdown,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct DropLabel {
    reason: Dropped,
}

impl EncodeLabelValue for Dropped {
    fn encode(&self, encoder: &mut LabelValueEncoder) -> Result<(), fmt::Error> {
        let text = match self {
            Self::QueueFull => "queue_full",
            Self::ExportFailed => "export_failed",
            Self::Shutdown => "shutdown",
        };
        EncodeLabelValue::encode(&text, encoder)
    }
}

impl ExportCounts {
    /// Shows them in `/metrics`.
    pub(crate) fn register(&self, registry: &mut Registry) {
        // There from the start, at zero: a rate of what appears with its first drop would miss that drop.
        for reason in [Dropped::QueueFull, Dropped::ExportFailed, Dropped::Shutdown] {
            self.dropped(reason, 0);
        }
        registry.register(
            names::SPANS_EXPORTED,
            "Spans that a collector took",
            self.exported.clone(),
        );
        registry.register(
            names::SPANS_DROPPED,
            "Spans that no collector got",
            self.dropped.clone(),
        );
        registry.register(
            names::METRIC_EXPORTS_FAILED,
            "Exports of metrics over OTLP that failed",
            self.failed_metrics.clone(),
        );
    }

    pub(super) fn exported(&self, spans: usize) {
        self.exported.inc_by(spans as u64);
    }

    pub(super) fn dropped(&self, reason: Dropped, spans: usize) {
        self.dropped
            .get_or_create(&DropLabel { reason })
            .inc_by(spans as u64);
    }

    pub(super) fn metrics_failed(&self) {
        self.failed_metrics.inc();
    }

    #[cfg(test)]
    pub(super) fn read(&self, reason: Dropped) -> (u64, u64) {
        let dropped = self.dropped.get_or_create(&DropLabel { reason }).get();
        (self.exported.get(), dropped)
    }
}
