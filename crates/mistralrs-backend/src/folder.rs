//! What a checkpoint's folder holds, and the same laid out as mistralrs-core looks for it.
//!
//! mistralrs-core finds files by their names and reads what it can; here everything is decided beforehand: which
//! weights, which settings, and nothing that it would use behind our back, such as chat templates.

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

use baichuan_engine::request::Pooling;
use baichuan_engine::{Checkpoint, LoadError};
use candle_core::quantized::gguf_file;
use mistralrs_core::{EmbeddingLoaderType, NormalLoaderType};
use serde_json::{Value, json};
use tempfile::TempDir;

/// Largest header of a safetensors file.
const MAX_HEADER_BYTES: u64 = 100 << 20;
/// Where mistralrs-core keeps what a UQFF file leaves out.
const UQFF_RESIDUAL: &str = "residual.safetensors";

/// What a model is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// It generates.
    Text,
    /// It embeds.
    Embedding,
}

/// How the weights are stored; names are files of the laid-out folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Weights {
    Safetensors,
    Gguf(Vec<String>),
    Uqff(Vec<String>),
}

/// How an embedding model makes one vector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct EmbeddingHead {
    pub(crate) pooling: Pooling,
    /// mistralrs-core's mean is the sum: it has yet to be divided.
    pub(crate) mean_is_sum: bool,
    /// Width of the vector, where another layer follows the pooling.
    pub(crate) dimensions: Option<usize>,
}

/// A laid-out folder; it goes when this is dropped, which the loaded weights survive.
pub(crate) struct Folder {
    dir: TempDir,
    pub(crate) kind: Kind,
    pub(crate) weights: Weights,
    pub(crate) head: Option<EmbeddingHead>,
    /// Number of weights; 0 where the format does not tell.
    pub(crate) parameters: u64,
    /// Of the weights' files.
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
    /// Lays `checkpoint` out.
    ///
    /// # Errors
    /// What is missing, stored twice, or of a kind that mistralrs-core would run wrongly, by file and key.
    pub(crate) fn lay_out(checkpoint: &Checkpoint) -> Result<Self, LoadError> {
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
        let files = found.files();
        let parameters = files
            .iter()
            .map(|file| n_weights(file))
            .sum::<Result<u64, LoadError>>()?;
        let digest = digest(&files)?;
        let weights = found.lay_out(dir.path())?;
        Ok(Self {
            dir,
            kind,
            weights,
            head,
            parameters,
            digest,
        })
    }

    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
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

/// Weights found in a folder, in the order in which they are read.
enum Found {
    Safetensors(Vec<PathBuf>),
    Gguf(Vec<PathBuf>),
    Uqff { files: Vec<PathBuf>, residual: PathBuf },
}

impl Found {
    fn in_folder(source: &Path) -> Result<Self, LoadError> {
        let mut names: Vec<String> = Vec::new();
        for entry in fs::read_dir(source).map_err(|e| io(source.into(), e))? {
            let entry = entry.map_err(|e| io(source.into(), e))?;
            if entry.path().is_file()
                && let Ok(name) = entry.file_name().into_string()
            {
                names.push(name);
            }
        }
        names.sort_unstable();
        let with = |wanted: &dyn Fn(&str) -> bool| -> Vec<PathBuf> {
            let wanted = names.iter().filter(|name| wanted(name));
            wanted.map(|name| source.join(name)).collect()
        };
        let plain = with(&|n| n.starts_with("model") && n.ends_with(".safetensors"));
        let gguf = with(&|n| n.ends_with(".gguf"));
        let uqff = with(&|n| n.ends_with(".uqff"));
        let kinds = [("safetensors", &plain), ("GGUF", &gguf), ("UQFF", &uqff)];
        let there: Vec<&str> = kinds.iter().filter(|k| !k.1.is_empty()).map(|k| k.0).collect();
        match there[..] {
            [] => Err(invalid(
                source.into(),
                "holds no weights: model*.safetensors, *.gguf or *.uqff".into(),
            )),
            [_, _, ..] => Err(invalid(
                source.into(),
                format!("holds weights as {}: keep one", there.join(" and as ")),
            )),
            ["safetensors"] => Ok(Self::Safetensors(plain)),
            ["GGUF"] => match gguf.len() > 1 && !gguf.iter().all(|file| is_shard(file)) {
                true => Err(invalid(
                    source.into(),
                    "holds several GGUF files that are no shards of one: keep one".into(),
                )),
                false => Ok(Self::Gguf(gguf)),
            },
            [_] => {
                let residual = source.join(UQFF_RESIDUAL);
                match residual.is_file() {
                    true => Ok(Self::Uqff {
                        files: uqff,
                        residual,
                    }),
                    false => Err(invalid(residual, "is missing beside the UQFF files".into())),
                }
            }
        }
    }

    fn files(&self) -> Vec<PathBuf> {
        match self {
            Self::Safetensors(files) | Self::Gguf(files) => files.clone(),
            Self::Uqff { files, residual } => files.iter().chain([residual]).cloned().collect(),
        }
    }

    /// Links the files under names that mistralrs-core takes.
    fn lay_out(self, to: &Path) -> Result<Weights, LoadError> {
        match self {
            Self::Safetensors(files) => {
                let n = files.len();
                for (i, file) in files.iter().enumerate() {
                    let name = match n {
                        1 => "model.safetensors".to_owned(),
                        _ => format!("model-{:05}-of-{n:05}.safetensors", i + 1),
                    };
                    link(file, &to.join(name))?;
                }
                Ok(Weights::Safetensors)
            }
            Self::Gguf(files) => Ok(Weights::Gguf(numbered(&files, to, "gguf")?)),
            Self::Uqff { files, residual } => {
                link(&residual, &to.join(UQFF_RESIDUAL))?;
                Ok(Weights::Uqff(numbered(&files, to, "uqff")?))
            }
        }
    }
}

/// Links files as `weights-0`, `weights-1` and on.
fn numbered(files: &[PathBuf], to: &Path, extension: &str) -> Result<Vec<String>, LoadError> {
    let mut names = Vec::new();
    for (i, file) in files.iter().enumerate() {
        let name = format!("weights-{i}.{extension}");
        link(file, &to.join(&name))?;
        names.push(name);
    }
    Ok(names)
}

/// Whether a file is called like one of several that belong together: `…-00001-of-00003.gguf`.
fn is_shard(file: &Path) -> bool {
    let stem = file.file_stem().and_then(|s| s.to_str()).unwrap_or_default();
    let number = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    stem.rsplit_once("-of-").is_some_and(|(front, count)| {
        number(count) && front.rsplit_once('-').is_some_and(|(_, at)| number(at))
    })
}

/// Lays out sentence-transformers' modules without the normalisation, which is the server's.
fn embedding_modules(source: &Path, to: &Path) -> Result<EmbeddingHead, LoadError> {
    let path = source.join("modules.json");
    let modules = read(&path)?;
    let mut kept = Vec::new();
    let mut pooling = None;
    let mut dimensions = None;
    for module in modules.as_array().map(Vec::as_slice).unwrap_or_default() {
        let kind = module["type"].as_str().unwrap_or_default();
        let kind = kind.rsplit('.').next().unwrap_or_default();
        let folder = module["path"].as_str().unwrap_or_default();
        match kind {
            "Normalize" => continue,
            "Pooling" => {
                let path = source.join(folder).join("config.json");
                pooling = Some(pooling_of(&path, &read(&path)?)?);
            }
            "Dense" => {
                let path = source.join(folder).join("config.json");
                let dense = read(&path)?;
                if dense["bias"] != false {
                    return Err(invalid(
                        path,
                        "bias: mistral.rs's mean cannot be followed by a bias".into(),
                    ));
                }
                dimensions = dense["out_features"]
                    .as_u64()
                    .and_then(|n| usize::try_from(n).ok());
            }
            "Transformer" => {}
            other => {
                return Err(invalid(
                    path,
                    format!("module {other:?} is not known to mistral.rs"),
                ));
            }
        }
        if !folder.is_empty() {
            let folder_to = to.join(folder);
            if let Some(parent) = folder_to.parent() {
                fs::create_dir_all(parent).map_err(|e| io(parent.into(), e))?;
            }
            link(&source.join(folder), &folder_to)?;
        }
        kept.push(module.clone());
    }
    write(&to.join("modules.json"), &Value::Array(kept))?;
    let Some(pooling) = pooling else {
        return Err(invalid(path, "lists no pooling".into()));
    };
    Ok(EmbeddingHead {
        pooling,
        mean_is_sum: pooling == Pooling::Mean,
        dimensions,
    })
}

/// The one mode of pooling that is on.
fn pooling_of(path: &Path, config: &Value) -> Result<Pooling, LoadError> {
    let on = |key: &str| config[key] == true;
    let others = [
        "pooling_mode_cls_token",
        "pooling_mode_max_tokens",
        "pooling_mode_mean_sqrt_len_tokens",
        "pooling_mode_weightedmean_tokens",
    ];
    let other = others.iter().find(|key| on(key));
    match (
        on("pooling_mode_lasttoken"),
        on("pooling_mode_mean_tokens"),
        other,
    ) {
        (true, false, None) => Ok(Pooling::Last),
        (false, true, None) => Ok(Pooling::Mean),
        (.., Some(key)) => Err(invalid(
            path.into(),
            format!("{key}: mistral.rs does not have it"),
        )),
        _ => Err(invalid(
            path.into(),
            "exactly one of pooling_mode_lasttoken and pooling_mode_mean_tokens must be true".into(),
        )),
    }
}

/// How many weights a file holds; 0 for a format that does not tell.
fn n_weights(path: &Path) -> Result<u64, LoadError> {
    let mut file = File::open(path).map_err(|e| io(path.into(), e))?;
    match path.extension().and_then(|e| e.to_str()) {
        Some("safetensors") => {
            let mut length = [0; 8];
            file.read_exact(&mut length).map_err(|e| io(path.into(), e))?;
            let length = u64::from_le_bytes(length);
            if length > MAX_HEADER_BYTES {
                return Err(invalid(path.into(), format!("has a header of {length} bytes")));
            }
            let mut header = Vec::new();
            file.take(length)
                .read_to_end(&mut header)
                .map_err(|e| io(path.into(), e))?;
            let header: Value =
                serde_json::from_slice(&header).map_err(|e| invalid(path.into(), format!("header: {e}")))?;
            let tensors = header.as_object().into_iter().flatten();
            let weights = tensors
                .filter(|(name, _)| *name != "__metadata__")
                .map(|(_, tensor)| {
                    let shape = tensor["shape"].as_array().into_iter().flatten();
                    shape.filter_map(Value::as_u64).product::<u64>()
                });
            Ok(weights.sum())
        }
        Some("gguf") => {
            let content =
                gguf_file::Content::read(&mut file).map_err(|e| invalid(path.into(), e.to_string()))?;
            let tensors = content.tensor_infos.values();
            Ok(tensors.map(|tensor| tensor.shape.elem_count() as u64).sum())
        }
        _ => Ok(0),
    }
}

/// Of all bytes of all files, in order.
fn digest(files: &[PathBuf]) -> Result<blake3::Hash, LoadError> {
    let mut hasher = blake3::Hasher::new();
    for file in files {
        hasher.update_mmap_rayon(file).map_err(|e| io(file.clone(), e))?;
    }
    Ok(hasher.finalize())
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
