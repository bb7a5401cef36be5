//! What is counted of streams that outlive their connection.

use std::fmt;
use std::sync::Arc;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;

use super::names;
use crate::grpc::resume::Streams;

/// What becomes of them.
#[derive(Debug, Default)]
pub(crate) struct StreamMetrics {
    pub(crate) lost: Counter,
    pub(crate) resumed: Counter,
    pub(crate) expired: Counter,
}

impl StreamMetrics {
    pub(super) fn register(registry: &mut Registry, streams: Arc<Streams>) -> Self {
        let metrics = Self::default();
        for (name, help, counter) in [
            (
                names::STREAMS_LOST,
                "Connections lost under a stream that can be taken up",
                &metrics.lost,
            ),
            (names::STREAMS_RESUMED, "Streams taken up again", &metrics.resumed),
            (
                names::STREAMS_EXPIRED,
                "Running streams that nobody took up in time",
                &metrics.expired,
            ),
        ] {
            registry.register(name, help, counter.clone());
        }
        registry.register_collector(Box::new(Kept(streams)));
        metrics
    }
}

/// Counts them when `/metrics` is asked for.
#[derive(Debug)]
struct Kept(Arc<Streams>);

impl Collector for Kept {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), fmt::Error> {
        let gauge = ConstGauge::new(self.0.len() as u64);
        let help = "Streams that can be taken up, read or not";
        gauge.encode(encoder.encode_descriptor(names::STREAMS_KEPT, help, None, MetricType::Gauge)?)
    }
}
