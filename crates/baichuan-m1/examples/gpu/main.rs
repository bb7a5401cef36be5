//! Checks and measures the model on a GPU: `gpu golden DIR`, `gpu range`, `gpu sample [VOCABULARY…]`, `gpu agree`,
//! `gpu agree-full`, `gpu mixed`, `gpu products`, `gpu quant [ROWS…]`; `gpu all DIR` for all of these but `agree-full`;
//! `gpu speed [--dtype bf16|f16] [--isq FORMAT] [ROW…]`, `gpu product-speed [--isq FORMAT] ROWS…`.
//!
//! Needs no checkpoint but the golden ones of `tests/golden`: larger weights are drawn on the device. Exits with an
//! error at the first check that fails.

mod agree;
mod golden;
mod mixed;
mod product_speed;
mod products;
mod quant;
mod range;
mod sample;
mod sequences;
mod speed;

use std::io::Write;

use baichuan_engine::config::{CacheBudget, CacheConfig};
use baichuan_engine::{Dtype, EngineConfig, Topology};
use baichuan_kernels::cuda::QuantFormat;
use baichuan_m1::config::BaichuanConfig;
use baichuan_m1::cuda::{CudaModel, CudaOptions, Source};

pub(crate) type Outcome<T = ()> = Result<T, Box<dyn std::error::Error>>;

fn main() -> Outcome {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["golden", dir] => golden::check(dir.as_ref()),
        ["range"] => range::check(),
        ["sample", vocabularies @ ..] => sample::check(vocabularies),
        ["agree"] => agree::small(),
        ["agree-full"] => agree::full(),
        ["mixed"] => mixed::check(),
        ["quant", rows @ ..] => quant::check(rows),
        ["products"] => products::check(),
        ["all", dir] => {
            range::check()?;
            products::check()?;
            quant::check(&[])?;
            golden::check(dir.as_ref())?;
            agree::small()?;
            mixed::check()?;
            sample::check(&[])
        }
        ["speed", rest @ ..] => {
            let (dtype, rest) = match rest {
                ["--dtype", "f16", rest @ ..] => (Dtype::F16, rest),
                ["--dtype", "bf16", rest @ ..] | rest => (Dtype::Bf16, rest),
            };
            match rest {
                ["--isq", format, rows @ ..] => speed::measure(rows, dtype, Some(quant::format(format)?)),
                rows => speed::measure(rows, dtype, None),
            }
        }
        ["product-speed", "--isq", format, rows @ ..] => {
            product_speed::measure(rows, Some(quant::format(format)?))
        }
        ["product-speed", rows @ ..] => product_speed::measure(rows, None),
        _ => Err(USAGE.into()),
    }
}

const USAGE: &str = "usage: gpu golden DIR | range | sample [VOCABULARY…] | agree | agree-full | mixed | products | quant [ROWS…] | \
    all DIR | speed [--dtype bf16|f16] [--isq FORMAT] [ROW…] | product-speed [--isq FORMAT] ROWS…";

/// A line on standard output, at once.
pub(crate) fn say(line: std::fmt::Arguments<'_>) -> Outcome {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}")?;
    Ok(out.flush()?)
}

/// Room for `sequences` of `tokens` each.
pub(crate) fn engine(sequences: usize, tokens: usize, window: usize, max_step_tokens: usize) -> EngineConfig {
    let block_tokens = 16;
    EngineConfig {
        max_step_tokens: max_step_tokens.max(sequences),
        max_sequences: sequences,
        cache: CacheConfig {
            block_tokens,
            budget: CacheBudget::Blocks {
                global: sequences * tokens.div_ceil(block_tokens),
                window: sequences * window.min(tokens).div_ceil(block_tokens),
            },
            ..CacheConfig::default()
        },
        ..EngineConfig::default()
    }
}

/// A model on the first GPU.
pub(crate) fn open(
    config: &BaichuanConfig,
    source: Source<'_>,
    dtype: Dtype,
    engine: &EngineConfig,
) -> Outcome<CudaModel> {
    open_quantised(config, source, dtype, None, engine)
}

/// The same with weights quantised.
pub(crate) fn open_quantised(
    config: &BaichuanConfig,
    source: Source<'_>,
    dtype: Dtype,
    isq: Option<QuantFormat>,
    engine: &EngineConfig,
) -> Outcome<CudaModel> {
    let options = CudaOptions {
        ordinal: 0,
        dtype,
        isq,
        topology: &Topology::default(),
        engine,
        progress: &|_| {},
    };
    Ok(CudaModel::load(config, source, &options)?)
}

/// A configuration of the published model's kind.
pub(crate) fn config(
    layers: usize,
    hidden: usize,
    inner: usize,
    vocab: usize,
    window: usize,
) -> Outcome<BaichuanConfig> {
    let sliding: Vec<usize> = (1..layers).step_by(2).collect();
    let text = format!(
        r#"{{"architectures": ["BaichuanM1ForCausalLM"], "model_type": "baichuan_m1", "hidden_act": "silu",
        "vocab_size": {vocab}, "hidden_size": {hidden}, "intermediate_size": {inner}, "num_hidden_layers": {layers},
        "num_attention_heads": {global}, "num_key_value_heads": {global_kv},
        "num_swa_attention_heads": {swa}, "num_swa_key_value_heads": {swa_kv},
        "sliding_window": {window}, "sliding_window_layers": {sliding:?}, "conv_window": 2,
        "max_position_embeddings": 32768, "rms_norm_eps": 1e-6, "rope_theta": 1000000.0,
        "bos_token_id": 1, "eos_token_id": 2, "tie_word_embeddings": false}}"#,
        global = hidden / 256,
        global_kv = if hidden == 5120 { 2 } else { 1 },
        swa = hidden / 128,
        swa_kv = if hidden == 5120 { 8 } else { 2 },
    );
    Ok(BaichuanConfig::from_json(&text)?)
}

/// The published 14.5 billion, with this many layers.
pub(crate) fn published(layers: usize) -> Outcome<BaichuanConfig> {
    config(layers, 5120, 17_408, 133_120, 8192)
}
