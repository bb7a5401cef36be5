//! The server's certificate, as it is when `/metrics` is asked for.

use std::fmt;
use std::sync::Arc;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::gauge::ConstGauge;

use super::names;
use crate::reload::Watched;
use crate::tls::Tls;

/// Reads when the certificate in use ends.
#[derive(Debug)]
pub(super) struct TlsMetrics {
    tls: Arc<Watched<Tls>>,
}

impl TlsMetrics {
    pub(super) fn new(tls: Arc<Watched<Tls>>) -> Self {
        Self { tls }
    }
}

impl Collector for TlsMetrics {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), fmt::Error> {
        let gauge = ConstGauge::new(self.tls.current().not_after);
        let help = "When the server's certificate ends";
        gauge.encode(encoder.encode_descriptor(names::CERTIFICATE_END, help, None, MetricType::Gauge)?)
    }
}
