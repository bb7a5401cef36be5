//! `config.json` as written: every key optional, every number as wide as JSON has it.
//!
//! Keys that do not bear on the forward pass (dropout, initialisers, library versions) are not listed and are
//! ignored, as the hub's files are full of them. Keys that would change the arithmetic are listed to be refused.

use serde::Deserialize;
use serde_json::Value;

use super::ConfigError;

#[derive(Debug, Deserialize)]
pub(super) struct RawConfig {
    pub vocab_size: Option<i64>,
    pub hidden_size: Option<i64>,
    pub intermediate_size: Option<i64>,
    pub num_hidden_layers: Option<i64>,
    pub num_attention_heads: Option<i64>,
    pub num_key_value_heads: Option<i64>,
    pub num_swa_attention_heads: Option<i64>,
    pub num_swa_key_value_heads: Option<i64>,
    pub sliding_window: Option<i64>,
    pub sliding_window_layers: Option<Vec<i64>>,
    pub conv_window: Option<i64>,
    pub max_position_embeddings: Option<i64>,
    pub model_max_length: Option<i64>,
    pub rope_theta: Option<f64>,
    pub rms_norm_eps: Option<f64>,
    pub tie_word_embeddings: Option<bool>,
    pub bos_token_id: Option<i64>,
    pub eos_token_id: Option<TokenIds>,
    architectures: Option<Vec<String>>,
    hidden_act: Option<String>,
    rope_scaling: Option<Value>,
    pub quantization_config: Option<Value>,
    pub quantization: Option<Value>,
}

/// One token id or a list of them.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
pub(super) enum TokenIds {
    One(i64),
    Many(Vec<i64>),
}

impl TokenIds {
    pub(super) fn as_slice(&self) -> &[i64] {
        match self {
            Self::One(id) => std::slice::from_ref(id),
            Self::Many(ids) => ids,
        }
    }
}

impl RawConfig {
    /// Refuses settings that this crate would otherwise silently compute without.
    pub(super) fn refuse_what_would_change_the_model(&self) -> Result<(), ConfigError> {
        let refuse = |key, got, supported| Err(ConfigError::Unsupported { key, got, supported });
        match self.architectures.as_deref() {
            None => return Err(ConfigError::Missing { key: "architectures" }),
            Some([name]) if name == super::ARCHITECTURE => {}
            Some(names) => {
                return refuse(
                    "architectures",
                    format!("{names:?}"),
                    "[\"BaichuanM1ForCausalLM\"]",
                );
            }
        }
        if let Some(act) = self.hidden_act.as_deref().filter(|act| *act != "silu") {
            return refuse("hidden_act", format!("{act:?}"), "\"silu\"");
        }
        match &self.rope_scaling {
            Some(value) => refuse("rope_scaling", value.to_string(), "an unset value"),
            None => Ok(()),
        }
    }
}
