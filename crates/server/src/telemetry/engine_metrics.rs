//! What engines publish of themselves, read when `/metrics` is asked for.

use std::fmt;
use std::sync::Arc;

use baichuan_engine::stats::{EngineStats, Histogram, PoolStats};
use baichuan_engine::{Backend, BackendInfo};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, MetricEncoder, NoLabelSet};
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

impl<'a> Snapshot<'a> {
    fn of(backend: &'a Arc<dyn Backend>) -> Self {
        let info = backend.info();
        Self {
            name: &info.name,
            info,
            stats: backend.stats().borrow().clone(),
        }
    }
}

impl EngineMetrics {
    pub(super) fn new(models: Arc<Models>) -> Self {
        Self { models }
    }
}

impl Collector for EngineMetrics {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), fmt::Error> {
        let backends: Vec<Arc<dyn Backend>> = self.models.iter().filter_map(|m| m.backend()).collect();
        let snapshots: Vec<Snapshot<'_>> = backends.iter().map(Snapshot::of).collect();

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
        let counters: [(&str, &str, Count); 8] = [
            (names::PROMPT_TOKENS, "Prompt tokens of admitted requests", |s| {
                s.totals.prompt_tokens
            }),
            (names::GENERATION_TOKENS, "Tokens generated", |s| {
                s.totals.generated_tokens
            }),
            (
                names::PREFIX_QUERIES,
                "Prompt tokens looked up in a cache of prefixes",
                |s| s.totals.prefix_queried_tokens,
            ),
            (names::PREFIX_HITS, "Prompt tokens found there", |s| {
                s.totals.prefix_hit_tokens
            }),
            (names::PREEMPTIONS, "Sequences paused to make room", |s| {
                s.totals.preemptions
            }),
            (names::FAILED_STEPS, "Steps that failed or panicked", |s| {
                s.totals.failed_steps
            }),
            (
                names::OUT_OF_MEMORY,
                "Steps that ran out of memory and were taken in smaller parts",
                |s| s.totals.out_of_memory,
            ),
            (
                names::RESTARTS,
                "Times the model was made anew after it failed",
                |s| s.totals.restarts,
            ),
        ];
        for (name, help, read) in counters {
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            for s in &snapshots {
                let labels = [("model_name", s.name)];
                ConstCounter::new(read(&s.stats)).encode(family.encode_family(&labels)?)?;
            }
        }

        encode_measured(&mut encoder, &snapshots)?;

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

/// What the engines measured of their steps.
fn encode_measured(
    encoder: &mut DescriptorEncoder<'_>,
    snapshots: &[Snapshot<'_>],
) -> Result<(), fmt::Error> {
    type Read = fn(&EngineStats) -> &Histogram;
    let plain: [(&str, &str, Read); 2] = [
        (names::STEP_TOKENS, "Tokens of a step", |s| {
            &s.measured.step_tokens
        }),
        (
            names::CANCEL_TO_FREE,
            "From a stream's being dropped until all that its request held is free",
            |s| &s.measured.cancel_to_free,
        ),
    ];
    for (name, help, read) in plain {
        let mut family = encoder.encode_descriptor(name, help, None, MetricType::Histogram)?;
        for s in snapshots {
            let labels = [("model_name", s.name)];
            encode_histogram(family.encode_family(&labels)?, read(&s.stats))?;
        }
    }
    let mut family = encoder.encode_descriptor(
        names::STEP_SECONDS,
        "Time of a step, by what it did",
        None,
        MetricType::Histogram,
    )?;
    for s in snapshots {
        let measured = &s.stats.measured;
        for (phase, histogram) in [
            ("prefill", &measured.prefill_steps),
            ("decode", &measured.decode_steps),
            ("mixed", &measured.mixed_steps),
        ] {
            let labels = [("model_name", s.name), ("phase", phase)];
            encode_histogram(family.encode_family(&labels)?, histogram)?;
        }
    }
    Ok(())
}

fn encode_histogram(mut encoder: MetricEncoder<'_>, histogram: &Histogram) -> Result<(), fmt::Error> {
    let buckets: Vec<(f64, u64)> = histogram.buckets().collect();
    encoder.encode_histogram::<NoLabelSet>(histogram.sum(), histogram.count(), &buckets, None)
}

/// Share of a pool in use; a pool of nothing is empty.
fn usage(pool: PoolStats) -> f64 {
    if pool.total == 0 {
        return 0.0;
    }
    pool.used as f64 / pool.total as f64
}
