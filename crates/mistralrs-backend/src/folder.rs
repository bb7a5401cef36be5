//! What a checkpoint's folder holds, and the same laid out as mistralrs-core looks for it.
//!
//! mistralrs-core finds files by their names and reads what it can; here everything is decided beforehand: which
//! weights, which settings, and nothing that it would use behind our back, such as chat templates.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use baichuan_engine::{Checkpoint, LoadError};
use mistralrs_core::{EmbeddingLoaderType, NormalLoaderType};
use serde_json::{Value, json};
use tempfile::TempDir;

mod embedding;
mod gguf;
mod weights;

pub(crate) use embedding::EmbeddingHead;
use embedding::embedding_modules;
use weights::{Found, digest, shapes};
pub(crate) use weights::{UQFF_RESIDUAL, Weights};

/// EmbeddingGemma's architecture in config.json.
const EMBEDDING_GEMMA: &str = "Gemma3TextModel";

/// What a model is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// It generates.
    Text,
    /// It embeds.
    Embedding,
}

/// A laid-out folder; it goes when this is dropped, which the loaded weights survive.
pub(crate) struct Folder {
    dir: TempDir,
    pub(crate) kind: Kind,
    pub(crate) weights: Weights,
    pub(crate) head: Option<EmbeddingHead>,
    /// Of the weights, by name; a UQFF file's own, which are packed, are missing.
    pub(crate) shapes: BTreeMap<String, Vec<usize>>,
    /// Of the configuration and the weights' files.
    pub(crate) digest: blake3::Hash,
}

/// What the checkpoint is for; `None` if mistralrs-core does not run its architecture.
pub(crate) fn kind(checkpoint: &Checkpoint) -> Option<Kind> {
    let architecture = checkpoint.architecture();
    let embeds = EmbeddingLoaderType::from_causal_lm_name(architecture).is_ok();
    let generates = NormalLoaderType::from_causal_lm_name(architecture).is_ok();
    // Sentence-transformers' list of modules says what a checkpoint of an architecture that does both is for.
    if embeds && checkpoint.dir().join("modules.json").is_file() {
        return Some(Kind::Embedding);
    }
    generates.then_some(Kind::Text)
}

impl Folder {
    /// Lays `checkpoint` out, its weights to be quantised as they are loaded if `isq` says so.
    ///
    /// # Errors
    /// What is missing, stored twice, or of a kind that mistralrs-core would run wrongly, by file and key.
    pub(crate) fn lay_out(checkpoint: &Checkpoint, isq: bool) -> Result<Self, LoadError> {
        let source = checkpoint.dir();
        let Some(kind) = kind(checkpoint) else {
            let message = format!(
                "mistral.rs does not run architecture {:?}",
                checkpoint.architecture()
            );
            return Err(invalid(source.join("config.json"), message));
        };
        let dir = tempfile::Builder::new()
            .prefix("baichuan-mistralrs-")
            .tempdir()
            .map_err(|e| io(std::env::temp_dir(), e))?;
        let config = config(checkpoint)?;
        write(&dir.path().join("config.json"), &config)?;
        let tokenizer = source.join("tokenizer.json");
        if !tokenizer.is_file() {
            return Err(invalid(tokenizer, "is missing: mistral.rs needs it".into()));
        }
        link(&tokenizer, &dir.path().join("tokenizer.json"))?;
        let head = match kind {
            Kind::Text => None,
            Kind::Embedding => Some(embedding_modules(source, dir.path())?),
        };
        let found = Found::in_folder(source)?;
        check(checkpoint, kind, &found, isq)?;
        let files = found.files();
        let shapes = shapes(&files)?;
        let digest = digest(&config, &files)?;
        let weights = found.lay_out(dir.path())?;
        Ok(Self {
            dir,
            kind,
            weights,
            head,
            shapes,
            digest,
        })
    }

    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Number of weights; of a UQFF checkpoint, of those that are not packed.
    pub(crate) fn parameters(&self) -> u64 {
        let sizes = self.shapes.values().map(|shape| {
            let sizes = shape.iter().map(|size| *size as u64);
            sizes.fold(1, u64::saturating_mul)
        });
        sizes.fold(0, u64::saturating_add)
    }
}

/// What goes together and what does not.
fn check(checkpoint: &Checkpoint, kind: Kind, found: &Found, isq: bool) -> Result<(), LoadError> {
    let format = found.format();
    let unsupported = |message: String| Err(LoadError::Unsupported { key: "isq", message });
    match (kind, found) {
        (_, Found::Gguf(_) | Found::Uqff { .. }) if isq => {
            unsupported(format!("{format} weights are quantised already"))
        }
        (Kind::Embedding, Found::Gguf(_) | Found::Uqff { .. }) => Err(invalid(
            checkpoint.dir().into(),
            format!("holds weights as {format}: embedding models are loaded from safetensors"),
        )),
        // It looks for their names as they are inside another model, and would leave all as they are.
        (Kind::Embedding, _) if isq && checkpoint.architecture() == EMBEDDING_GEMMA => {
            unsupported("mistral.rs does not quantise EmbeddingGemma".into())
        }
        _ => Ok(()),
    }
}

/// The checkpoint's config.json, as mistralrs-core 0.8 must read it.
fn config(checkpoint: &Checkpoint) -> Result<Value, LoadError> {
    let mut config = checkpoint.config().clone();
    // It slides wherever a window is named, whether it is in use or not.
    let slides = config["use_sliding_window"].as_bool();
    if checkpoint.architecture() == "Qwen2ForCausalLM" {
        if slides == Some(true) {
            let message = "use_sliding_window: mistral.rs has no sliding layers among others in Qwen2".into();
            return Err(invalid(checkpoint.dir().join("config.json"), message));
        }
        config["sliding_window"] = Value::Null;
    }
    if checkpoint.architecture() == EMBEDDING_GEMMA {
        bidirectional_windows(checkpoint, &mut config)?;
    }
    // Newer configurations keep this in a group of its own.
    if config["rope_theta"].is_null()
        && let theta @ Value::Number(_) = config["rope_parameters"]["rope_theta"].clone()
    {
        config["rope_theta"] = theta;
    }
    if config["architectures"]
        .as_array()
        .is_none_or(|list| list.len() != 1)
    {
        config["architectures"] = json!([checkpoint.architecture()]);
    }
    Ok(config)
}

/// EmbeddingGemma's windows as mistralrs-core understands them: it takes the number for the reach to either side, and
/// which layers have one from a period.
fn bidirectional_windows(checkpoint: &Checkpoint, config: &mut Value) -> Result<(), LoadError> {
    let refuse = |message: &str| Err(invalid(checkpoint.dir().join("config.json"), message.to_owned()));
    if config["use_bidirectional_attention"] != true {
        return refuse("use_bidirectional_attention: mistral.rs embeds by Gemma 3 only where it is true");
    }
    let Some(window) = config["sliding_window"].as_u64() else {
        return refuse("sliding_window: must be a whole number");
    };
    // The reference halves it when it reads the file; its bound is exclusive, as mistralrs-core's is.
    config["sliding_window"] = json!(window / 2 + 1);
    let named = ["sliding_window_pattern", "_sliding_window_pattern"];
    let named = named.iter().find_map(|key| config[*key].as_u64());
    let Some(layers) = config["layer_types"].as_array() else {
        config["sliding_window_pattern"] = json!(named.unwrap_or(6));
        return Ok(());
    };
    let is_full: Vec<bool> = layers.iter().map(|layer| layer == "full_attention").collect();
    let first_full = is_full.iter().position(|is_full| *is_full);
    let period = first_full.map_or(is_full.len() + 1, |at| at + 1);
    if is_full
        .iter()
        .enumerate()
        .any(|(at, is_full)| *is_full != ((at + 1) % period == 0))
    {
        return refuse("layer_types: mistral.rs has every n-th layer full and the others sliding");
    }
    config["sliding_window_pattern"] = json!(period);
    Ok(())
}

fn read(path: &Path) -> Result<Value, LoadError> {
    let text = fs::read(path).map_err(|e| io(path.into(), e))?;
    serde_json::from_slice(&text).map_err(|e| invalid(path.into(), e.to_string()))
}

fn write(path: &Path, value: &Value) -> Result<(), LoadError> {
    fs::write(path, value.to_string()).map_err(|e| io(path.into(), e))
}

/// Makes `to` another name of `from`.
fn link(from: &Path, to: &Path) -> Result<(), LoadError> {
    let from = fs::canonicalize(from).map_err(|e| io(from.into(), e))?;
    #[cfg(unix)]
    let linked = std::os::unix::fs::symlink(&from, to);
    #[cfg(windows)]
    let linked = match from.is_dir() {
        true => std::os::windows::fs::symlink_dir(&from, to),
        false => std::os::windows::fs::symlink_file(&from, to),
    };
    linked.map_err(|e| io(to.into(), e))
}

fn io(path: PathBuf, source: std::io::Error) -> LoadError {
    LoadError::Io { path, source }
}

fn invalid(path: PathBuf, message: String) -> LoadError {
    LoadError::Invalid { path, message }
}
