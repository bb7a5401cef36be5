//! The server's health, as it is when `/metrics` is asked for.

use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::gauge::ConstGauge;
use tokio::sync::watch;

use super::names;
use crate::health::State;

/// Reads what was last published of the server.
#[derive(Debug)]
pub(super) struct HealthMetrics {
    state: watch::Receiver<State>,
}

impl HealthMetrics {
    pub(super) fn new(state: watch::Receiver<State>) -> Self {
        Self { state }
    }
}

impl Collector for HealthMetrics {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), fmt::Error> {
        let State { live, ready } = *self.state.borrow();
        for (name, help, holds) in [
            (names::LIVE, "Whether no engine has died", live),
            (names::READY, "Whether requests would be served", ready),
        ] {
            let gauge = ConstGauge::new(u64::from(holds));
            gauge.encode(encoder.encode_descriptor(name, help, None, MetricType::Gauge)?)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use prometheus_client::encoding::text;
    use prometheus_client::registry::Registry;

    use super::*;

    #[test]
    fn what_was_published_last_is_what_is_read() {
        let (published, state) = watch::channel(State::default());
        let mut registry = Registry::default();
        registry.register_collector(Box::new(HealthMetrics::new(state)));
        let read = || {
            let mut text = String::new();
            text::encode(&mut text, &registry).unwrap();
            text
        };
        assert!(read().contains("baichuan_ready 0\n"));
        published.send_replace(State {
            live: true,
            ready: true,
        });
        assert!(read().contains("baichuan_live 1\n") && read().contains("baichuan_ready 1\n"));
    }
}
