//! The seam between the server and a family of models: recognise a checkpoint, make a [`Backend`] of it.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::Value;

use crate::backend::Backend;
use crate::config::EngineConfig;
use crate::error::LoadError;
use crate::isq::IsqType;
use crate::placement::Placement;

/// Recognises a checkpoint and makes a backend of it.
pub trait ModelPlugin: Send + Sync {
    /// The name in the configuration, e.g. `baichuan-m1`.
    fn name(&self) -> &'static str;

    /// Whether this plugin runs the checkpoint. Reads its config.json, never its weights.
    fn accepts(&self, checkpoint: &Checkpoint) -> bool;

    /// Loads weights and tokenizer and starts an engine, which is warm when this returns.
    ///
    /// Blocks for as long as that takes.
    fn load(&self, request: &LoadRequest<'_>) -> Result<Arc<dyn Backend>, LoadError>;

    /// Writes a checkpoint with quantised weights, which [`ModelPlugin::load`] then loads as it loads any other.
    ///
    /// # Errors
    /// By default that the plugin cannot.
    fn quantize(&self, request: &QuantizeRequest<'_>) -> Result<(), LoadError> {
        let (plugin, isq) = (self.name(), request.isq);
        Err(LoadError::Unsupported {
            key: "isq",
            message: format!("{isq}: the plugin {plugin} writes no quantised checkpoints"),
        })
    }
}

/// How to quantise a checkpoint.
pub struct QuantizeRequest<'a> {
    /// What to quantise.
    pub checkpoint: &'a Checkpoint,
    /// To what.
    pub isq: IsqType,
    /// Folder to write to: made if it is not there, and empty if it is.
    pub out: &'a Path,
    /// Compute threads; absent: one per physical core.
    pub threads: Option<usize>,
    /// Called as it goes on, from any thread.
    pub progress: &'a (dyn Fn(LoadProgress) + Sync),
}

/// A checkpoint's folder, in the hub's layout, and its config.json.
#[derive(Clone, Debug)]
pub struct Checkpoint {
    dir: PathBuf,
    config: Value,
}

impl Checkpoint {
    /// Opens a folder and reads its config.json.
    pub fn open(dir: impl Into<PathBuf>) -> Result<Self, LoadError> {
        let dir = dir.into();
        let path = dir.join("config.json");
        let text = std::fs::read(&path).map_err(|source| LoadError::Io {
            path: path.clone(),
            source,
        })?;
        let config: Value = serde_json::from_slice(&text).map_err(|e| LoadError::Invalid {
            path: path.clone(),
            message: e.to_string(),
        })?;
        if !config.is_object() {
            return Err(LoadError::Invalid {
                path,
                message: "must be a JSON object".into(),
            });
        }
        Ok(Self { dir, config })
    }

    /// The folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The whole config.json, an object.
    pub fn config(&self) -> &Value {
        &self.config
    }

    /// Its first `architectures` entry, else its `model_type`, else empty.
    pub fn architecture(&self) -> &str {
        self.config["architectures"][0]
            .as_str()
            .or_else(|| self.config["model_type"].as_str())
            .unwrap_or_default()
    }
}

/// Element type of weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Deserialize, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Dtype {
    /// 32-bit IEEE.
    F32,
    /// 16-bit IEEE.
    F16,
    /// Upper half of a 32-bit IEEE number.
    Bf16,
}

impl Dtype {
    /// Size of an element.
    pub fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
        }
    }

    /// As in the configuration: `f32`, `f16` or `bf16`.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
        }
    }
}

/// What cached keys and values are kept as.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Deserialize, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum CacheDtype {
    /// 32-bit IEEE.
    F32,
    /// 16-bit IEEE.
    F16,
    /// Upper half of a 32-bit IEEE number.
    Bf16,
    /// Whole numbers of eight bits, and for each head of each token what one of them stands for.
    Int8,
}

impl CacheDtype {
    /// As in the configuration: `f32`, `f16`, `bf16` or `int8`.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
            Self::Int8 => "int8",
        }
    }
}

impl From<Dtype> for CacheDtype {
    fn from(dtype: Dtype) -> Self {
        match dtype {
            Dtype::F32 => Self::F32,
            Dtype::F16 => Self::F16,
            Dtype::Bf16 => Self::Bf16,
        }
    }
}

/// How to load a checkpoint.
pub struct LoadRequest<'a> {
    /// Name the model is served under.
    pub name: &'a str,
    /// What to load.
    pub checkpoint: &'a Checkpoint,
    /// Element type of the weights in memory; absent: as in the checkpoint.
    pub dtype: Option<Dtype>,
    /// What cached keys and values are kept as; absent: what suits the device. What a plugin or device has no kernels for is
    /// an error.
    pub cache_dtype: Option<CacheDtype>,
    /// What to quantise weights to as they are loaded; absent: nothing. Types that a plugin or device has no kernels for
    /// are an error.
    pub isq: Option<IsqType>,
    /// Folders of adapters that are added to the weights as they are loaded, in order.
    pub adapters: &'a [PathBuf],
    /// Compute threads; absent: one per physical core.
    pub threads: Option<usize>,
    /// Which devices.
    pub placement: &'a Placement,
    /// Draw the weights from this seed instead of reading them: for measurements.
    pub random_weights: Option<u64>,
    /// For the engine that will drive the model.
    pub engine: &'a EngineConfig,
    /// Called as loading goes on, from any thread.
    pub progress: &'a (dyn Fn(LoadProgress) + Sync),
}

/// How far loading is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoadProgress {
    /// What is being done, e.g. `weights`.
    pub stage: &'static str,
    /// Bytes done.
    pub done: u64,
    /// Bytes in all.
    pub total: u64,
}
