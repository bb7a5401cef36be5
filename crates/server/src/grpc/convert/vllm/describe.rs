//! The default model, the server and its load, as routers ask for them.

use std::path::Path;

use baichuan_engine::BackendInfo;
use baichuan_engine::request::SamplingOptions;
use baichuan_engine::stats::{EngineStats, PoolStats};
use baichuan_proto::v1;
use baichuan_proto::vllm::grpc::engine as pb;
use serde_json::{Map, Number, Value};

use crate::error::ApiError;
use crate::grpc::convert::clamp;

/// The model of the checkpoint in `dir`, whose `config.json` holds `config`.
pub(in crate::grpc) fn model(info: &BackendInfo, dir: &Path, config: &[u8]) -> pb::GetModelInfoResponse {
    let config: Value = serde_json::from_slice(config).unwrap_or_default();
    // Whole, or a router could take a relative one for a name in a hub.
    let dir = std::path::absolute(dir).unwrap_or_else(|_| dir.to_owned());
    let path = dir.display().to_string();
    pb::GetModelInfoResponse {
        model_path: path.clone(),
        is_generation: info.generates,
        max_context_length: clamp(info.max_context),
        vocab_size: clamp(info.vocab_size),
        supports_vision: false,
        served_model_name: info.name.clone(),
        tokenizer_path: path,
        model_type: config["model_type"].as_str().unwrap_or_default().to_owned(),
        architectures: vec![info.architecture.clone()],
        eos_token_ids: info.eos_token_ids.iter().map(|id| id.cast_signed()).collect(),
        pad_token_id: info.pad_token_id.unwrap_or(0).cast_signed(),
        bos_token_id: info.bos_token_id.unwrap_or(0).cast_signed(),
        // One place of the context is for the first token generated.
        max_req_input_len: signed(info.max_context.saturating_sub(1)),
        default_sampling_params_json: defaults(&info.default_sampling),
    }
}

/// What of the server is true of its default model.
pub(in crate::grpc) fn server(info: &BackendInfo, stats: &EngineStats) -> pb::GetServerInfoResponse {
    pb::GetServerInfoResponse {
        server_type: "baichuan-serve".to_owned(),
        data_parallel_size: 1,
        block_size: signed(whole_contexts(stats).block_tokens),
        model_dtype: info.dtype.clone(),
        max_num_seqs: signed(stats.slots_total),
        constrained_decoding_start: "first_token".to_owned(),
        ..pb::GetServerInfoResponse::default()
    }
}

/// An engine's load.
pub(in crate::grpc) fn load(stats: &EngineStats) -> pb::SchedulerLoad {
    let pool = whole_contexts(stats);
    pb::SchedulerLoad {
        dp_rank: 0,
        num_running_reqs: signed(stats.running),
        num_waiting_reqs: signed(stats.waiting),
        num_total_reqs: signed(stats.running + stats.waiting),
        num_used_tokens: signed(pool.used * pool.block_tokens),
        max_total_num_tokens: signed(pool.total * pool.block_tokens),
        token_usage: share(stats.global.used, stats.global.total)
            .max(share(stats.window.used, stats.window.total)),
        gen_throughput: stats.decode_rate,
        cache_hit_rate: 0.0,
        utilization: share(stats.running, stats.slots_total),
        max_running_requests: signed(stats.slots_total),
        num_waiting_uncached_tokens: signed(stats.waiting_tokens),
    }
}

/// The one vector of an answer.
pub(in crate::grpc) fn embedding(response: v1::EmbedResponse) -> Result<pb::EmbedResponse, ApiError> {
    let Some(embedding) = response.embeddings.into_iter().next() else {
        return Err(ApiError::Internal {
            cause: "an embedding of one input has none".into(),
        });
    };
    Ok(pb::EmbedResponse {
        embedding: embedding.values,
        prompt_tokens: embedding.tokens,
        embedding_dim: embedding.dimensions,
    })
}

/// The pool in which a sequence holds all of its context: the window's only where no layer sees more.
fn whole_contexts(stats: &EngineStats) -> PoolStats {
    match stats.global.total {
        0 => stats.window,
        _ => stats.global,
    }
}

/// What of a checkpoint's defaults this interface knows.
fn defaults(options: &SamplingOptions) -> String {
    let numbers = [
        ("temperature", options.temperature),
        ("top_p", options.top_p),
        ("min_p", options.min_p),
        ("repetition_penalty", options.repetition_penalty),
    ];
    let mut known: Map<String, Value> = numbers
        .into_iter()
        .filter_map(|(name, value)| Some((name.to_owned(), decimal(value?)?.into())))
        .collect();
    known.extend(options.top_k.map(|k| ("top_k".to_owned(), k.into())));
    match known.is_empty() {
        true => String::new(),
        false => Value::Object(known).to_string(),
    }
}

/// A number as it was written: 0.7 and not 0.699999988079071.
fn decimal(value: f32) -> Option<Number> {
    Number::from_f64(value.to_string().parse().ok()?)
}

fn share(used: usize, total: usize) -> f64 {
    match total {
        0 => 0.0,
        _ => used as f64 / total as f64,
    }
}

fn signed(n: usize) -> i32 {
    i32::try_from(n).unwrap_or(i32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_the_numbers_of_the_checkpoint() {
        let options = SamplingOptions {
            temperature: Some(0.7),
            top_k: Some(20),
            repetition_penalty: Some(1.05),
            ..SamplingOptions::default()
        };
        let known: Value = serde_json::from_str(&defaults(&options)).unwrap();
        assert_eq!(
            known,
            serde_json::json!({"temperature": 0.7, "top_k": 20, "repetition_penalty": 1.05})
        );
        assert_eq!(defaults(&SamplingOptions::default()), "");
    }

    #[test]
    fn the_load_is_that_of_the_pool_of_contexts_and_the_usage_that_of_the_fuller_one() {
        let pool = |used, total, block_tokens| PoolStats {
            used,
            total,
            block_tokens,
            block_bytes: 1,
        };
        let stats = EngineStats {
            running: 3,
            waiting: 2,
            waiting_tokens: 70,
            global: pool(4, 16, 32),
            window: pool(3, 4, 8),
            slots_total: 6,
            decode_rate: 12.5,
            ..EngineStats::default()
        };
        let load = load(&stats);
        assert_eq!((load.num_used_tokens, load.max_total_num_tokens), (128, 512));
        assert_eq!((load.token_usage, load.utilization), (0.75, 0.5));
        assert_eq!(
            (load.num_running_reqs, load.num_waiting_reqs, load.num_total_reqs),
            (3, 2, 5)
        );
        assert_eq!(
            (load.num_waiting_uncached_tokens, load.max_running_requests),
            (70, 6)
        );
        let only_windows = EngineStats {
            global: pool(0, 0, 0),
            ..stats
        };
        assert_eq!(super::load(&only_windows).max_total_num_tokens, 32);
    }
}
