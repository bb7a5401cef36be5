//! What engines publish of themselves, read when `/metrics` is asked for.

use std::fmt;
use std::sync::Arc;

use baichuan_engine::BackendInfo;
use baichuan_engine::stats::{EngineStats, PoolStats};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;

use super::names;
use crate::models::Models;

/// Reads the statistics of all loaded models.
#[derive(Debug)]
pub(super) struct EngineMetrics {
    models: Arc<Models>,
}

struct Snapshot<'a> {
    name: &'a str,
    info: &'a BackendInfo,
    stats: EngineStats,
}

impl EngineMetrics {
    pub(super) fn new(models: Arc<Models>) -> Self {
        Self { models }
    }
}

impl Collector for EngineMetrics {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), fmt::Error> {
        let snapshots: Vec<Snapshot<'_>> = self
            .models
            .iter()
            .filter_map(|model| {
                let backend = model.backend()?;
                Some(Snapshot {
                    name: model.name(),
                    info: backend.info(),
                    stats: backend.stats().borrow().clone(),
                })
            })
            .collect();

        type Read = fn(&EngineStats) -> f64;
        let gauges: [(&str, &str, Read); 3] = [
            (names::RUNNING, "Sequences that hold cache memory", |s| {
                s.running as f64
            }),
            (names::WAITING, "Sequences that wait for cache memory", |s| {
                s.waiting as f64
            }),
            (
                names::CACHE_USAGE,
                "Share of cache memory in use, of the fuller pool",
                |s| usage(s.global).max(usage(s.window)),
            ),
        ];
        for (name, help, read) in gauges {
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            for s in &snapshots {
                let labels = [("model_name", s.name)];
                ConstGauge::new(read(&s.stats)).encode(family.encode_family(&labels)?)?;
            }
        }

        type Count = fn(&EngineStats) -> u64;
        let counters: [(&str, &str, Count); 3] = [
            (names::PROMPT_TOKENS, "Prompt tokens of admitted requests", |s| {
                s.totals.prompt_tokens
            }),
            (names::GENERATION_TOKENS, "Tokens generated", |s| {
                s.totals.generated_tokens
            }),
            (names::PREEMPTIONS, "Sequences paused to make room", |s| {
                s.totals.preemptions
            }),
        ];
        for (name, help, read) in counters {
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            for s in &snapshots {
                let labels = [("model_name", s.name)];
                ConstCounter::new(read(&s.stats)).encode(family.encode_family(&labels)?)?;
            }
        }

        type Blocks = fn(PoolStats) -> usize;
        let pools: [(&str, &str, Blocks); 2] = [
            (names::POOL_USED, "Blocks in some sequence's table", |p| p.used),
            (names::POOL_TOTAL, "Blocks in all", |p| p.total),
        ];
        for (name, help, read) in pools {
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            for s in &snapshots {
                for (pool, stats) in [("global", s.stats.global), ("window", s.stats.window)] {
                    let labels = [("model_name", s.name), ("pool", pool)];
                    ConstGauge::new(read(stats) as u64).encode(family.encode_family(&labels)?)?;
                }
            }
        }

        let mut family = encoder.encode_descriptor(
            names::CACHE_CONFIG,
            "How the cache is set up",
            None,
            MetricType::Gauge,
        )?;
        for s in &snapshots {
            let (blocks, block_tokens) = (
                s.stats.global.total.to_string(),
                s.stats.global.block_tokens.to_string(),
            );
            let window_blocks = s.stats.window.total.to_string();
            let labels = [
                ("model_name", s.name),
                ("block_size", &block_tokens),
                ("num_gpu_blocks", &blocks),
                ("num_window_blocks", &window_blocks),
            ];
            ConstGauge::new(1u64).encode(family.encode_family(&labels)?)?;
        }

        let mut family =
            encoder.encode_descriptor(names::MODEL_INFO, "What a model is", None, MetricType::Gauge)?;
        for s in &snapshots {
            let context = s.info.max_context.to_string();
            let labels = [
                ("model_name", s.name),
                ("architecture", &s.info.architecture),
                ("plugin", s.info.plugin),
                ("dtype", &s.info.dtype),
                ("quantization", &s.info.quantization),
                ("device", &s.info.device),
                ("max_context", &context),
                ("system_fingerprint", &s.info.fingerprint),
            ];
            ConstGauge::new(1u64).encode(family.encode_family(&labels)?)?;
        }
        Ok(())
    }
}

/// Share of a pool in use; a pool of nothing is empty.
fn usage(pool: PoolStats) -> f64 {
    if pool.total == 0 {
        return 0.0;
    }
    pool.used as f64 / pool.total as f64
}
