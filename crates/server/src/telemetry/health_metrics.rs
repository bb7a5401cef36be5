//! The health of the server and of each model, and its tasks, as they are when `/metrics` is asked for.

use std::fmt;
use std::sync::Arc;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::gauge::ConstGauge;
use tokio::runtime::Handle;
use tokio::sync::watch;

use super::names;
use crate::health::State;
use crate::models::Models;

/// Reads what was last published of the server.
#[derive(Debug)]
pub(super) struct HealthMetrics {
    state: watch::Receiver<State>,
    models: Arc<Models>,
}

impl HealthMetrics {
    pub(super) fn new(state: watch::Receiver<State>, models: Arc<Models>) -> Self {
        Self { state, models }
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
        let help = "Whether a model is loaded and its engine runs";
        let mut family = encoder.encode_descriptor(names::MODEL_READY, help, None, MetricType::Gauge)?;
        for model in self.models.iter() {
            let labels = [("model_name", model.name())];
            ConstGauge::new(u64::from(model.is_ready())).encode(family.encode_family(&labels)?)?;
        }
        // Whoever asks does so on the runtime that serves.
        if let Ok(runtime) = Handle::try_current() {
            let gauge = ConstGauge::new(runtime.metrics().num_alive_tasks() as u64);
            let help = "Tasks of the process's runtime that have not ended";
            gauge.encode(encoder.encode_descriptor(names::TASKS, help, None, MetricType::Gauge)?)?;
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
        let models = Arc::new(Models::new(["m".to_owned()], "m"));
        let mut registry = Registry::default();
        registry.register_collector(Box::new(HealthMetrics::new(state, models)));
        let read = || {
            let mut text = String::new();
            text::encode(&mut text, &registry).unwrap();
            text
        };
        assert!(read().contains("baichuan_ready 0\n"));
        assert!(read().contains("baichuan_model_ready{model_name=\"m\"} 0\n"));
        published.send_replace(State {
            live: true,
            ready: true,
        });
        assert!(read().contains("baichuan_live 1\n") && read().contains("baichuan_ready 1\n"));
    }
}
