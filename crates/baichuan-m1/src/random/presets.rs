//! The shapes that random checkpoints come in.

use serde_json::{Value, json};

/// A named set of shapes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Preset {
    /// 0.6 million parameters, a window of 16: for tests and demonstrations.
    Tiny,
    /// 0.85 billion parameters, the proportions of the published model: for measurements on a CPU.
    Bench,
    /// The published 14.5 billion.
    Full,
}

impl Preset {
    /// Every preset.
    pub const ALL: [Self; 3] = [Self::Tiny, Self::Bench, Self::Full];

    /// As on command lines.
    pub fn name(self) -> &'static str {
        match self {
            Self::Tiny => "tiny",
            Self::Bench => "bench",
            Self::Full => "full",
        }
    }

    /// The preset of this name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|preset| preset.name() == name)
    }

    /// A whole `config.json`, less the type of the weights.
    pub(super) fn config(self) -> Value {
        let mut config = match self {
            Self::Tiny => json!({
                "vocab_size": 512, "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 4,
                "num_attention_heads": 2, "num_key_value_heads": 1,
                "num_swa_attention_heads": 4, "num_swa_key_value_heads": 2,
                "sliding_window": 16,
            }),
            Self::Bench => json!({
                "vocab_size": 32_000, "hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 16,
                "num_attention_heads": 8, "num_key_value_heads": 2,
                "num_swa_attention_heads": 16, "num_swa_key_value_heads": 4,
                "sliding_window": 8192,
            }),
            Self::Full => json!({
                "vocab_size": 133_120, "hidden_size": 5120, "intermediate_size": 17_408, "num_hidden_layers": 40,
                "num_attention_heads": 20, "num_key_value_heads": 2,
                "num_swa_attention_heads": 40, "num_swa_key_value_heads": 8,
                "sliding_window": 8192,
            }),
        };
        let common = json!({
            "architectures": [crate::config::ARCHITECTURE], "model_type": "baichuan_m1", "hidden_act": "silu",
            "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "initializer_range": 0.02,
            "max_position_embeddings": 32_768, "model_max_length": 32_768,
            "rms_norm_eps": 1e-6, "rope_theta": 1_000_000.0, "conv_window": 2,
            "tie_word_embeddings": false, "attention_dropout": 0.0, "use_cache": true,
        });
        for (key, value) in common.as_object().into_iter().flatten() {
            config[key] = value.clone();
        }
        let n_layers = config["num_hidden_layers"].as_u64().unwrap_or_default();
        config["sliding_window_layers"] = (1..n_layers).step_by(2).collect();
        config
    }
}
