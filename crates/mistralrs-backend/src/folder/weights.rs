//! A checkpoint's weights: which files, of which format, holding what.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Read, Seek};
use std::path::{Path, PathBuf};

use baichuan_engine::LoadError;
use candle_core::quantized::gguf_file;
use serde_json::Value;

use super::{gguf, invalid, io, link};

/// Largest header of a safetensors file.
const MAX_HEADER_BYTES: u64 = 100 << 20;
/// Where mistralrs-core keeps what a UQFF file leaves out.
pub(crate) const UQFF_RESIDUAL: &str = "residual.safetensors";
/// What mistralrs-core runs of GGUF files, by `general.architecture`.
const GGUF_ARCHITECTURES: [&str; 8] = [
    "llama",
    "mistral3",
    "phi2",
    "phi3",
    "qwen2",
    "qwen3",
    "qwen3moe",
    "starcoder2",
];

/// How the weights are stored; names are files of the laid-out folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Weights {
    Safetensors,
    Gguf(Vec<String>),
    Uqff(Vec<String>),
}

/// Weights found in a folder, in the order in which they are read.
pub(super) enum Found {
    Safetensors(Vec<PathBuf>),
    Gguf(Vec<PathBuf>),
    Uqff { files: Vec<PathBuf>, residual: PathBuf },
}

impl Found {
    /// What the weights are stored as.
    pub(super) fn format(&self) -> &'static str {
        match self {
            Self::Safetensors(_) => "safetensors",
            Self::Gguf(_) => "GGUF",
            Self::Uqff { .. } => "UQFF",
        }
    }

    pub(super) fn in_folder(source: &Path) -> Result<Self, LoadError> {
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

    pub(super) fn files(&self) -> Vec<PathBuf> {
        match self {
            Self::Safetensors(files) | Self::Gguf(files) => files.clone(),
            Self::Uqff { files, residual } => files.iter().chain([residual]).cloned().collect(),
        }
    }

    /// Links the files under names that mistralrs-core takes.
    pub(super) fn lay_out(self, to: &Path) -> Result<Weights, LoadError> {
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

/// The shapes of all weights, by name; none of a UQFF file's own, which are packed.
///
/// # Errors
/// A header that cannot be read, or a GGUF file of an architecture that mistralrs-core does not run.
pub(super) fn shapes(files: &[PathBuf]) -> Result<BTreeMap<String, Vec<usize>>, LoadError> {
    let mut all = BTreeMap::new();
    for path in files {
        let extension = path.extension().and_then(|e| e.to_str());
        match extension {
            Some("safetensors") => all.extend(safetensors_shapes(path)?),
            Some("gguf") => all.extend(gguf_shapes(path)?),
            _ => {}
        }
    }
    Ok(all)
}

fn safetensors_shapes(path: &Path) -> Result<BTreeMap<String, Vec<usize>>, LoadError> {
    let mut file = File::open(path).map_err(|e| io(path.into(), e))?;
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
    let header: BTreeMap<String, Value> =
        serde_json::from_slice(&header).map_err(|e| invalid(path.into(), format!("header: {e}")))?;
    let tensors = header.into_iter().filter(|(name, _)| name != "__metadata__");
    let shape = |tensor: &Value| {
        let dims = tensor["shape"].as_array().into_iter().flatten();
        let dims = dims.filter_map(|n| usize::try_from(n.as_u64()?).ok());
        dims.collect::<Vec<usize>>()
    };
    Ok(tensors.map(|(name, tensor)| (name, shape(&tensor))).collect())
}

fn gguf_shapes(path: &Path) -> Result<BTreeMap<String, Vec<usize>>, LoadError> {
    let mut file = File::open(path).map_err(|e| io(path.into(), e))?;
    gguf::check(&file).map_err(|e| invalid(path.into(), e.to_string()))?;
    file.rewind().map_err(|e| io(path.into(), e))?;
    let content = gguf_file::Content::read(&mut file).map_err(|e| invalid(path.into(), e.to_string()))?;
    // Only the first of several shards says.
    if let Some(architecture) = content.metadata.get("general.architecture") {
        let architecture = architecture
            .to_string()
            .map_err(|e| invalid(path.into(), e.to_string()))?;
        if !GGUF_ARCHITECTURES.contains(&architecture.as_str()) {
            let known = GGUF_ARCHITECTURES.join(", ");
            let message =
                format!("general.architecture: mistral.rs runs {known} of GGUF, got {architecture:?}");
            return Err(invalid(path.into(), message));
        }
    }
    let tensors = content.tensor_infos.into_iter();
    Ok(tensors
        .map(|(name, tensor)| (name, tensor.shape.into_dims()))
        .collect())
}

/// Of the configuration and all bytes of all files, in order.
pub(super) fn digest(config: &Value, files: &[PathBuf]) -> Result<blake3::Hash, LoadError> {
    let mut hasher = blake3::Hasher::new();
    hasher.update(config.to_string().as_bytes());
    for file in files {
        hasher.update_mmap_rayon(file).map_err(|e| io(file.clone(), e))?;
    }
    Ok(hasher.finalize())
}
