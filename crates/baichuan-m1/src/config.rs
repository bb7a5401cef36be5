//! The checkpoint's `config.json`, read and made valid.
//!
//! [`BaichuanConfig`] holds what the forward pass needs, in its own terms: one [`LayerShape`] per layer instead of
//! two sets of head counts and a list of indices. Whatever it accepts is consistent; what the tensors have to say
//! (their shapes against these numbers) is for [`crate::weights`] to check.

mod error;
mod quantization;
mod raw;

use std::path::Path;

pub use error::ConfigError;
pub use quantization::Quantization;
use raw::RawConfig;

/// The architecture name that this crate answers to.
pub const ARCHITECTURE: &str = "BaichuanM1ForCausalLM";

/// Upper bounds far above any real model, so that an absurd number is refused before anything is sized by it.
const MAX_SIZE: usize = 1 << 20;
const MAX_VOCAB: usize = 1 << 24;
const MAX_LAYERS: usize = 4096;
const MAX_POSITIONS: usize = 1 << 24;
const MAX_CONV_WINDOW: usize = 64;

/// A valid Baichuan-M1 configuration.
#[derive(Debug, Clone, PartialEq)]
pub struct BaichuanConfig {
    /// Rows of the embedding and of the head.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width inside the feed-forward part.
    pub intermediate_size: usize,
    /// Most positions of a sequence, prompt and answer together.
    pub max_positions: usize,
    /// Base of the rotary angles.
    pub rope_theta: f64,
    /// Added to the variance in every RMSNorm.
    pub rms_norm_eps: f64,
    /// Taps of the convolution over K and V; 1 is a plain scaling, the published model has 2.
    pub conv_window: usize,
    /// Whether the head is the embedding.
    pub tie_word_embeddings: bool,
    /// First token of a text, where the model wants one.
    pub bos_token_id: Option<u32>,
    /// Tokens that end an answer.
    pub eos_token_ids: Vec<u32>,
    /// How matrices lie on disk; absent: as plain numbers.
    pub quantization: Option<Quantization>,
    /// The layers from the first to the last.
    pub layers: Vec<LayerShape>,
}

/// Which keys a layer's queries see.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Span {
    /// Every key up to the query's own.
    Global,
    /// The last `window` keys, the query's own included.
    Sliding {
        /// Keys in sight of one query, at least 1.
        window: usize,
    },
}

/// The attention geometry of one layer. The two kinds of layer differ in all of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct LayerShape {
    /// Which keys are seen.
    pub span: Span,
    /// Query heads.
    pub n_heads: usize,
    /// Key and value heads; divides `n_heads`.
    pub n_kv_heads: usize,
    /// Width of a head, even; `n_heads · head_dim` is the hidden size.
    pub head_dim: usize,
}

impl LayerShape {
    /// Width of the keys (or of the values) of one token.
    pub fn kv_width(&self) -> usize {
        self.n_kv_heads * self.head_dim
    }

    /// Width of all queries of one token.
    pub fn q_width(&self) -> usize {
        self.n_heads * self.head_dim
    }
}

impl BaichuanConfig {
    /// Reads and validates `config.json` in the folder `dir`.
    pub fn from_dir(dir: &Path) -> Result<Self, ConfigError> {
        let file = dir.join("config.json");
        let text =
            std::fs::read_to_string(&file).map_err(|source| ConfigError::Unreadable { file, source })?;
        Self::from_json(&text)
    }

    /// Validates the text of a `config.json`.
    pub fn from_json(text: &str) -> Result<Self, ConfigError> {
        let mut deserializer = serde_json::Deserializer::from_str(text);
        let raw: RawConfig =
            serde_path_to_error::deserialize(&mut deserializer).map_err(|error| ConfigError::Malformed {
                key: error.path().to_string(),
                source: error.into_inner(),
            })?;
        raw.try_into()
    }
}

impl TryFrom<RawConfig> for BaichuanConfig {
    type Error = ConfigError;

    fn try_from(raw: RawConfig) -> Result<Self, ConfigError> {
        raw.refuse_what_would_change_the_model()?;
        let vocab_size = within("vocab_size", raw.vocab_size, MAX_VOCAB)?;
        let hidden_size = within("hidden_size", raw.hidden_size, MAX_SIZE)?;
        let intermediate_size = within("intermediate_size", raw.intermediate_size, MAX_SIZE)?;
        let max_positions = match (raw.max_position_embeddings, raw.model_max_length) {
            (None, length @ Some(_)) => within("model_max_length", length, MAX_POSITIONS)?,
            (length, _) => within("max_position_embeddings", length, MAX_POSITIONS)?,
        };
        let token_id = |key, id: i64| match u32::try_from(id) {
            Ok(token) if (token as usize) < vocab_size => Ok(token),
            _ => Err(ConfigError::OutOfRange {
                key,
                got: id,
                min: 0,
                max: vocab_size as i64 - 1,
            }),
        };
        let bos_token_id = raw
            .bos_token_id
            .map(|id| token_id("bos_token_id", id))
            .transpose()?;
        let eos = raw
            .eos_token_id
            .as_ref()
            .map(raw::TokenIds::as_slice)
            .unwrap_or_default();
        Ok(Self {
            vocab_size,
            hidden_size,
            intermediate_size,
            max_positions,
            rope_theta: positive("rope_theta", raw.rope_theta)?,
            rms_norm_eps: positive("rms_norm_eps", raw.rms_norm_eps)?,
            conv_window: within("conv_window", raw.conv_window, MAX_CONV_WINDOW)?,
            tie_word_embeddings: raw.tie_word_embeddings.unwrap_or(false),
            bos_token_id,
            eos_token_ids: eos
                .iter()
                .map(|&id| token_id("eos_token_id", id))
                .collect::<Result<_, _>>()?,
            quantization: Quantization::of(&raw)?,
            layers: layer_shapes(&raw, hidden_size)?,
        })
    }
}

/// The geometry of every layer, from the two sets of head counts and the list of sliding layers.
fn layer_shapes(raw: &RawConfig, hidden_size: usize) -> Result<Vec<LayerShape>, ConfigError> {
    let n_layers = within("num_hidden_layers", raw.num_hidden_layers, MAX_LAYERS)?;
    let listed = raw.sliding_window_layers.as_ref().ok_or(ConfigError::Missing {
        key: "sliding_window_layers",
    })?;
    let mut sliding = vec![false; n_layers];
    for &layer in listed {
        let flag = usize::try_from(layer)
            .ok()
            .and_then(|layer| sliding.get_mut(layer));
        match flag {
            None => return Err(ConfigError::LayerOutOfRange { layer, n_layers }),
            Some(true) => return Err(ConfigError::LayerTwice { layer }),
            Some(flag) => *flag = true,
        }
    }
    let heads = |key, n_heads, kv_key, n_kv_heads, span| {
        let n_heads = within(key, n_heads, MAX_SIZE)?;
        let n_kv_heads = within(kv_key, n_kv_heads, MAX_SIZE)?;
        divides(key, n_heads, "hidden_size", hidden_size)?;
        divides(kv_key, n_kv_heads, key, n_heads)?;
        let head_dim = hidden_size / n_heads;
        match head_dim % 2 {
            0 => Ok(LayerShape {
                span,
                n_heads,
                n_kv_heads,
                head_dim,
            }),
            _ => Err(ConfigError::OddHead {
                key,
                n_heads,
                hidden_size,
                head_dim,
            }),
        }
    };
    let global = heads(
        "num_attention_heads",
        raw.num_attention_heads,
        "num_key_value_heads",
        raw.num_key_value_heads,
        Span::Global,
    )?;
    if listed.is_empty() {
        return Ok(vec![global; n_layers]);
    }
    let span = Span::Sliding {
        window: within("sliding_window", raw.sliding_window, MAX_POSITIONS)?,
    };
    let swa = heads(
        "num_swa_attention_heads",
        raw.num_swa_attention_heads.or(raw.num_attention_heads),
        "num_swa_key_value_heads",
        raw.num_swa_key_value_heads.or(raw.num_key_value_heads),
        span,
    )?;
    Ok(sliding
        .into_iter()
        .map(|sliding| if sliding { swa } else { global })
        .collect())
}

/// A size between 1 and `max`.
fn within(key: &'static str, got: Option<i64>, max: usize) -> Result<usize, ConfigError> {
    let got = got.ok_or(ConfigError::Missing { key })?;
    match usize::try_from(got) {
        Ok(size) if (1..=max).contains(&size) => Ok(size),
        _ => Err(ConfigError::OutOfRange {
            key,
            got,
            min: 1,
            max: max as i64,
        }),
    }
}

fn positive(key: &'static str, got: Option<f64>) -> Result<f64, ConfigError> {
    match got.ok_or(ConfigError::Missing { key })? {
        value if value.is_finite() && value > 0.0 => Ok(value),
        got => Err(ConfigError::NotPositive { key, got }),
    }
}

fn divides(key: &'static str, divisor: usize, of: &'static str, value: usize) -> Result<(), ConfigError> {
    if value.is_multiple_of(divisor) {
        return Ok(());
    }
    Err(ConfigError::Indivisible {
        key,
        divisor,
        of,
        value,
    })
}

#[cfg(test)]
mod tests;
