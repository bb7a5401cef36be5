//! Writes checkpoints with random weights in the hub's layout.
//!
//! They have the shapes of the real thing and say nothing sensible: for demonstrations, tests and measurements
//! without a download. The same [`Recipe`] writes the same bytes on every machine. Weights are drawn chunk by
//! chunk and go straight to disk, so the size of a checkpoint is not bounded by memory.

mod presets;
mod tensors;
mod tokenizer;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use baichuan_engine::Dtype;
use serde_json::json;

use crate::config::{BaichuanConfig, ConfigError};
use crate::layout;

pub use presets::Preset;

/// What to write.
#[derive(Debug, Clone)]
pub struct Recipe {
    /// The shapes.
    pub preset: Preset,
    /// Type of the weights on disk.
    pub dtype: Dtype,
    /// Seed of all weights.
    pub seed: u64,
    /// Number of safetensors files; more than one comes with an index.
    pub shards: usize,
    /// Sliding window in tokens; absent: the preset's.
    pub window: Option<usize>,
    /// The layers that slide; absent: the preset's.
    pub sliding_layers: Option<Vec<usize>>,
    /// Taps of the convolution; absent: 2.
    pub conv_window: Option<usize>,
}

/// Why a checkpoint was not written.
#[derive(Debug, thiserror::Error)]
pub enum RandomError {
    /// The recipe describes no valid model.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// More files than tensors, or none.
    #[error("{shards} shards for {tensors} tensors")]
    Shards {
        /// The number asked for.
        shards: usize,
        /// How many tensors there are.
        tensors: usize,
    },
    /// The folder or a file in it cannot be written.
    #[error("{path}: {source}", path = .path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

impl Recipe {
    /// A preset as it stands: one file of bf16, seed 0.
    pub fn new(preset: Preset) -> Self {
        Self {
            preset,
            dtype: Dtype::Bf16,
            seed: 0,
            shards: 1,
            window: None,
            sliding_layers: None,
            conv_window: None,
        }
    }

    /// Writes the checkpoint into the folder `dir`, which is made if it is not there.
    ///
    /// `progress` is called with bytes of weights written so far and in all.
    pub fn write(&self, dir: &Path, progress: &dyn Fn(u64, u64)) -> Result<(), RandomError> {
        let config_json = self.config_json();
        let config = BaichuanConfig::from_json(&config_json.to_string())?;
        let tensors = layout::all(&config).len();
        if self.shards == 0 || self.shards > tensors {
            return Err(RandomError::Shards {
                shards: self.shards,
                tensors,
            });
        }
        self.write_description(dir)?;
        tensors::write(self, &config, dir, progress)
    }

    /// Writes everything but the weights: for models whose weights are drawn where they are used.
    pub fn write_description(&self, dir: &Path) -> Result<(), RandomError> {
        let config_json = self.config_json();
        let config = BaichuanConfig::from_json(&config_json.to_string())?;
        let io_at = |path: &Path| {
            let path = path.to_owned();
            move |source| RandomError::Io { path, source }
        };
        fs::create_dir_all(dir).map_err(io_at(dir))?;
        let write = |name: &str, bytes: &[u8]| {
            let path = dir.join(name);
            fs::write(&path, bytes).map_err(io_at(&path))
        };
        let generation = json!({
            "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "do_sample": true,
            "temperature": 0.3, "top_k": 5, "top_p": 0.85, "repetition_penalty": 1.05,
        });
        write("config.json", format!("{config_json:#}\n").as_bytes())?;
        write("generation_config.json", format!("{generation:#}\n").as_bytes())?;
        write("tokenizer.model", &tokenizer::model())?;
        write(
            "tokenizer_config.json",
            format!("{:#}\n", tokenizer::config(config.max_positions)).as_bytes(),
        )
    }

    fn config_json(&self) -> serde_json::Value {
        let mut config = self.preset.config();
        config["torch_dtype"] = torch_name(self.dtype).into();
        if let Some(window) = self.window {
            config["sliding_window"] = window.into();
        }
        if let Some(layers) = &self.sliding_layers {
            config["sliding_window_layers"] = layers.as_slice().into();
        }
        if let Some(taps) = self.conv_window {
            config["conv_window"] = taps.into();
        }
        config
    }
}

/// As `torch_dtype` spells it.
fn torch_name(dtype: Dtype) -> &'static str {
    match dtype {
        Dtype::F32 => "float32",
        Dtype::F16 => "float16",
        Dtype::Bf16 => "bfloat16",
    }
}

#[cfg(test)]
mod tests;
