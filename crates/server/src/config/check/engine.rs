//! Scheduling and memory of one model.

use baichuan_engine::request::RequestLimits;
use baichuan_engine::{CacheBudget, CacheConfig, EngineConfig, OnFailure};

use super::Findings;
use crate::config::raw::{RawCache, RawEngine, RawOnFailure};
use crate::config::units::Limit;

/// `own` is the key of the model's own overrides, e.g. `models[0].engine`; `raw` is already merged.
pub(super) fn engine(own: &str, raw: RawEngine, findings: &mut Findings) -> EngineConfig {
    let default = EngineConfig::default();
    let max_step_tokens = raw.max_step_tokens.unwrap_or(default.max_step_tokens);
    let limits = RequestLimits {
        max_n: raw.limits.max_n.unwrap_or(default.limits.max_n),
        max_total_tokens: raw
            .limits
            .max_total_tokens
            .unwrap_or(default.limits.max_total_tokens),
        max_stop_strings: raw
            .limits
            .max_stop_strings
            .unwrap_or(default.limits.max_stop_strings),
        max_stop_bytes: raw.limits.max_stop_bytes.unwrap_or(default.limits.max_stop_bytes),
        max_token_list: raw.limits.max_token_list.unwrap_or(default.limits.max_token_list),
        max_messages: raw.limits.max_messages.unwrap_or(default.limits.max_messages),
        max_text_bytes: raw.limits.max_text_bytes.unwrap_or(default.limits.max_text_bytes),
    };
    let engine = EngineConfig {
        max_step_tokens,
        // An unset chunk follows a small step.
        prefill_chunk_tokens: raw
            .prefill_chunk_tokens
            .unwrap_or(default.prefill_chunk_tokens.min(max_step_tokens)),
        max_sequences: raw.max_sequences.unwrap_or(default.max_sequences),
        max_waiting: raw.max_waiting.unwrap_or(default.max_waiting),
        max_waiting_tokens: raw.max_waiting_tokens.unwrap_or(default.max_waiting_tokens),
        event_buffer: raw.event_buffer.unwrap_or(default.event_buffer),
        max_context: raw.max_context,
        cache: cache(own, &raw.cache, findings),
        limits,
        scrub_freed: raw.scrub_freed.unwrap_or(default.scrub_freed),
        on_failure: raw.on_failure.map_or(default.on_failure, |raw| match raw {
            RawOnFailure::Restart => OnFailure::Restart,
            RawOnFailure::Exit => OnFailure::Exit,
        }),
        max_wait: raw.max_wait.unwrap_or(Limit(default.max_wait)).0,
        step_timeout: raw.step_timeout.unwrap_or(Limit(default.step_timeout)).0,
    };
    for (key, time) in [
        ("max_wait", engine.max_wait),
        ("step_timeout", engine.step_timeout),
    ] {
        let keys = [format!("{own}.{key}"), format!("engine.{key}")];
        let lasts = time.is_none_or(|time| !time.is_zero());
        findings.that(lasts, &[&keys[0], &keys[1]], || "must be more than 0".into());
    }
    let mut at_least_one = |key: &str, value: usize| {
        let keys = [format!("{own}.{key}"), format!("engine.{key}")];
        findings.that(value >= 1, &[&keys[0], &keys[1]], || {
            "must be at least 1, got 0".into()
        });
    };
    at_least_one("max_step_tokens", engine.max_step_tokens);
    at_least_one("prefill_chunk_tokens", engine.prefill_chunk_tokens);
    at_least_one("max_sequences", engine.max_sequences);
    at_least_one("max_waiting", engine.max_waiting);
    at_least_one("max_waiting_tokens", engine.max_waiting_tokens);
    at_least_one("event_buffer", engine.event_buffer);
    at_least_one("limits.max_n", engine.limits.max_n as usize);
    at_least_one("limits.max_messages", engine.limits.max_messages);
    at_least_one("limits.max_text_bytes", engine.limits.max_text_bytes);
    let context = engine.max_context.unwrap_or(usize::MAX);
    let keys = [format!("{own}.max_context"), "engine.max_context".into()];
    findings.that(context >= 2, &[&keys[0], &keys[1]], || {
        format!("must be at least 2, got {context}")
    });
    let (chunk, step) = (engine.prefill_chunk_tokens, engine.max_step_tokens);
    let keys = [
        format!("{own}.prefill_chunk_tokens"),
        "engine.prefill_chunk_tokens".into(),
    ];
    findings.that(chunk <= step, &[&keys[0], &keys[1]], || {
        format!("must be at most max_step_tokens ({step}), got {chunk}")
    });
    let sequences = engine.max_sequences;
    let keys = [
        format!("{own}.max_step_tokens"),
        "engine.max_step_tokens".into(),
        format!("{own}.max_sequences"),
        "engine.max_sequences".into(),
    ];
    let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
    findings.that(sequences <= step, &keys, || {
        format!("a step of {step} tokens (max_step_tokens) must hold one of each of {sequences} sequences (max_sequences)")
    });
    engine
}

fn cache(own: &str, raw: &RawCache, findings: &mut Findings) -> CacheConfig {
    let default = CacheConfig::default();
    let block_tokens = raw.block_tokens.unwrap_or(default.block_tokens);
    let keys = |key: &str| [format!("{own}.cache.{key}"), format!("engine.cache.{key}")];
    let mut that = |holds: bool, key: &str, message: String| {
        let keys = keys(key);
        findings.that(holds, &[&keys[0], &keys[1]], || message);
    };
    let block_holds = block_tokens.is_power_of_two() && (1..=1024).contains(&block_tokens);
    that(
        block_holds,
        "block_tokens",
        format!("must be a power of two up to 1024, got {block_tokens}"),
    );
    let budgets = [
        ("bytes", raw.bytes.map(CacheBudget::Bytes)),
        ("utilization", raw.utilization.map(CacheBudget::Utilization)),
        (
            "context_tokens",
            raw.context_tokens.map(CacheBudget::ContextTokens),
        ),
        (
            "global_blocks",
            raw.global_blocks
                .or(raw.window_blocks)
                .map(|_| CacheBudget::Blocks {
                    global: raw.global_blocks.unwrap_or(0),
                    window: raw.window_blocks.unwrap_or(0),
                }),
        ),
    ];
    let given: Vec<(&str, CacheBudget)> = budgets.into_iter().filter_map(|(k, b)| Some((k, b?))).collect();
    if let [(first, _), (second, _), ..] = given[..] {
        that(false, second, format!("contradicts {first}: give one budget"));
    }
    let share = raw.gpu_memory_utilization;
    if let (Some((amount, _)), Some(_)) = (given.iter().find(|(key, _)| *key != "utilization"), share) {
        that(
            false,
            "gpu_memory_utilization",
            format!("contradicts {amount}: give one budget"),
        );
    }
    let gpu_memory_utilization = share.unwrap_or(default.gpu_memory_utilization);
    that(
        gpu_memory_utilization > 0.0 && gpu_memory_utilization <= 1.0,
        "gpu_memory_utilization",
        format!("must be above 0 and at most 1, got {gpu_memory_utilization}"),
    );
    let both_blocks = raw.global_blocks.is_some() == raw.window_blocks.is_some();
    let (given_blocks, other) = match raw.global_blocks {
        Some(_) => ("global_blocks", "window_blocks"),
        None => ("window_blocks", "global_blocks"),
    };
    that(both_blocks, given_blocks, format!("needs {other} beside it"));
    let budget = given.first().map_or(default.budget, |(_, budget)| *budget);
    match budget {
        CacheBudget::Bytes(bytes) => that(bytes > 0, "bytes", "must be more than 0".into()),
        CacheBudget::Utilization(share) => that(
            share > 0.0 && share <= 1.0,
            "utilization",
            format!("must be above 0 and at most 1, got {share}"),
        ),
        CacheBudget::ContextTokens(tokens) => {
            that(tokens > 0, "context_tokens", "must be more than 0".into())
        }
        CacheBudget::Blocks { .. } => {}
    }
    CacheConfig {
        block_tokens,
        budget,
        gpu_memory_utilization,
    }
}
