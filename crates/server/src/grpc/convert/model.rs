//! Models and their load as messages.

use baichuan_engine::BackendInfo;
use baichuan_engine::request::{Pooling, SamplingOptions};
use baichuan_engine::stats::{EngineStats, PoolStats};
use baichuan_proto::v1;

use super::clamp;
use crate::models::ModelState;

/// A served model; while it loads only its name and state are known.
pub(in crate::grpc) fn model(
    name: &str,
    is_default: bool,
    state: ModelState,
    info: Option<&BackendInfo>,
) -> v1::Model {
    let state = match state {
        ModelState::Loading => v1::ModelState::Loading,
        ModelState::Ready => v1::ModelState::Ready,
        ModelState::Draining => v1::ModelState::Draining,
        ModelState::Failed => v1::ModelState::Failed,
    };
    let named = v1::Model {
        name: name.to_owned(),
        is_default,
        state: state.into(),
        ..v1::Model::default()
    };
    let Some(info) = info else {
        return named;
    };
    v1::Model {
        architecture: info.architecture.clone(),
        plugin: info.plugin.to_owned(),
        parameters: info.parameters,
        dtype: info.dtype.clone(),
        quantization: info.quantization.clone(),
        device: info.device.clone(),
        vocab_size: clamp(info.vocab_size),
        hidden_size: clamp(info.hidden_size),
        max_context: clamp(info.max_context),
        supports_generate: info.generates,
        supports_embed: info.embeds,
        supports_chat: info.chat_template.is_some(),
        default_pooling: pooling(info.default_pooling).into(),
        default_sampling: Some(sampling(&info.default_sampling)),
        eos_token_ids: info.eos_token_ids.clone(),
        bos_token_id: info.bos_token_id,
        pad_token_id: info.pad_token_id,
        system_fingerprint: info.fingerprint.clone(),
        max_n: info.limits.max_n,
        ..named
    }
}

pub(in crate::grpc) fn pooling(pooling: Pooling) -> v1::Pooling {
    match pooling {
        Pooling::Last => v1::Pooling::Last,
        Pooling::Mean => v1::Pooling::Mean,
        Pooling::WeightedMean => v1::Pooling::WeightedMean,
        Pooling::First => v1::Pooling::First,
        Pooling::None => v1::Pooling::None,
    }
}

fn sampling(options: &SamplingOptions) -> v1::SamplingParams {
    v1::SamplingParams {
        temperature: options.temperature,
        top_p: options.top_p,
        top_k: options.top_k,
        min_p: options.min_p,
        typical_p: options.typical_p,
        repetition_penalty: options.repetition_penalty,
        presence_penalty: options.presence_penalty,
        frequency_penalty: options.frequency_penalty,
        logit_bias: options.logit_bias.iter().map(|(id, bias)| (*id, *bias)).collect(),
        allowed_token_ids: options.allowed_token_ids.clone(),
        bad_token_ids: options.bad_token_ids.clone(),
        seed: options.seed,
        n: options.n,
    }
}

/// One engine's state.
pub(in crate::grpc) fn load(model: &str, stats: &EngineStats) -> v1::ModelLoad {
    v1::ModelLoad {
        model: model.to_owned(),
        running: clamp(stats.running),
        waiting: clamp(stats.waiting),
        waiting_tokens: stats.waiting_tokens as u64,
        pools: vec![pool("global", stats.global), pool("window", stats.window)],
        slots_used: clamp(stats.slots_used),
        slots_total: clamp(stats.slots_total),
        window_rows_peak: stats.window_rows_peak as u64,
        window_tokens: stats.window_tokens as u64,
        step_tokens_limit: clamp(stats.max_step_tokens),
        prompt_tokens_total: stats.totals.prompt_tokens,
        generated_tokens_total: stats.totals.generated_tokens,
        preemptions_total: stats.totals.preemptions,
        requests_total: stats.totals.requests,
        steps_total: stats.totals.steps,
        decode_tokens_per_second: stats.decode_rate,
        prefill_tokens_per_second: stats.prefill_rate,
    }
}

fn pool(name: &str, stats: PoolStats) -> v1::PoolLoad {
    v1::PoolLoad {
        pool: name.to_owned(),
        blocks_used: stats.used as u64,
        blocks_total: stats.total as u64,
        block_tokens: clamp(stats.block_tokens),
        block_bytes: stats.block_bytes,
    }
}
