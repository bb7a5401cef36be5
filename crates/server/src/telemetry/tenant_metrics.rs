//! What tenants use, read when `/metrics` is asked for. Label values are configured tenants: there are no others.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use baichuan_engine::TenantId;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;

use super::names;
use crate::identity::tenant::Tenants;
use crate::models::Models;

/// Reads tenants' quotas and what engines say of them.
#[derive(Debug)]
pub(super) struct TenantMetrics {
    tenants: Arc<Tenants>,
    models: Arc<Models>,
}

impl TenantMetrics {
    pub(super) fn new(tenants: Arc<Tenants>, models: Arc<Models>) -> Self {
        Self { tenants, models }
    }

    /// Running and waiting, over all models.
    fn loads(&self) -> BTreeMap<TenantId, (usize, usize)> {
        let mut loads: BTreeMap<TenantId, (usize, usize)> = BTreeMap::new();
        for backend in self.models.iter().filter_map(|m| m.backend()) {
            for load in &backend.stats().borrow().tenants {
                let sum = loads.entry(load.tenant).or_default();
                *sum = (sum.0 + load.running, sum.1 + load.waiting);
            }
        }
        loads
    }
}

impl Collector for TenantMetrics {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), fmt::Error> {
        let loads = self.loads();
        type Pick = fn((usize, usize)) -> usize;
        let gauges: [(&str, &str, Pick); 2] = [
            (
                names::TENANT_RUNNING,
                "Sequences of a tenant that hold cache memory",
                |l| l.0,
            ),
            (
                names::TENANT_WAITING,
                "Requests of a tenant that wait for it",
                |l| l.1,
            ),
        ];
        for (name, help, pick) in gauges {
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            for tenant in self.tenants.iter() {
                let load = loads.get(&tenant.id()).copied().unwrap_or_default();
                let labels = [("tenant", tenant.name())];
                ConstGauge::new(pick(load) as u64).encode(family.encode_family(&labels)?)?;
            }
        }
        let help = "Tokens of a tenant, of prompts and of completions";
        let mut family = encoder.encode_descriptor(names::TENANT_TOKENS, help, None, MetricType::Counter)?;
        for tenant in self.tenants.iter() {
            let used = tenant.tokens_used();
            for (kind, tokens) in [("prompt", used.0), ("completion", used.1)] {
                let labels = [("tenant", tenant.name()), ("kind", kind)];
                ConstCounter::new(tokens).encode(family.encode_family(&labels)?)?;
            }
        }
        let help = "Share of its tokens per minute that a tenant has used; above 1 while it is in debt";
        let mut family =
            encoder.encode_descriptor(names::TENANT_QUOTA_USED, help, None, MetricType::Gauge)?;
        for tenant in self.tenants.iter() {
            if let Some(used) = tenant.token_quota_used() {
                let labels = [("tenant", tenant.name())];
                ConstGauge::new(used).encode(family.encode_family(&labels)?)?;
            }
        }
        Ok(())
    }
}
