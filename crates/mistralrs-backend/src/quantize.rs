//! Writes a checkpoint of quantised weights: mistral.rs's UQFF.

use std::fs;
use std::path::{Path, PathBuf};

use baichuan_engine::{Checkpoint, LoadError, LoadProgress, QuantizeRequest};

use crate::folder::{Folder, Kind, UQFF_RESIDUAL, Weights};
use crate::load::{isq_type, write_uqff};

/// What weights are called: not copied.
const WEIGHT_FILES: [&str; 7] = ["safetensors", "bin", "gguf", "pt", "pth", "h5", "uqff"];

/// Quantises `request`'s checkpoint on the host and writes it to its folder, beside copies of its other files. It counts
/// as a checkpoint once its config.json is there, which comes last.
///
/// # Errors
/// What cannot be quantised, by key; a folder that is not empty; what mistralrs-core says.
pub(crate) fn quantize(request: &QuantizeRequest<'_>) -> Result<(), LoadError> {
    if request.threads.is_some() {
        return Err(LoadError::Unsupported {
            key: "threads",
            message: "mistral.rs takes all cores; RAYON_NUM_THREADS sets how many".into(),
        });
    }
    let isq = isq_type(request.isq, &candle_core::Device::Cpu)?;
    let folder = Folder::lay_out(request.checkpoint, true)?;
    if folder.kind == Kind::Embedding || folder.weights != Weights::Safetensors {
        return Err(LoadError::Unsupported {
            key: "isq",
            message: "only models that generate are written as UQFF, from safetensors".into(),
        });
    }
    let out = request.out;
    fs::create_dir_all(out).map_err(at(out))?;
    if fs::read_dir(out).map_err(at(out))?.next().is_some() {
        return Err(LoadError::Invalid {
            path: out.to_owned(),
            message: "the folder to write to is not empty".into(),
        });
    }
    let stage = |done| LoadProgress {
        stage: "weights",
        done,
        total: 1,
    };
    (request.progress)(stage(0));
    // Among them are files that mistralrs-core writes anew and we would rather copy.
    let written = tempfile::Builder::new()
        .prefix(".unfinished-")
        .tempdir_in(out)
        .map_err(at(out))?;
    let name = format!("{}.uqff", request.isq.name().to_lowercase());
    write_uqff(&folder, isq, written.path().join(name))?;
    for file in files(written.path())? {
        if extension_of(&file) == "uqff" || file.ends_with(UQFF_RESIDUAL) {
            let to = out.join(file.file_name().unwrap_or_default());
            fs::rename(&file, &to).map_err(at(&to))?;
        }
    }
    drop(written);
    (request.progress)(stage(1));
    copy_others(request.checkpoint, out)
}

/// Copies what is neither weights nor config.json, and then config.json.
fn copy_others(checkpoint: &Checkpoint, out: &Path) -> Result<(), LoadError> {
    for file in files(checkpoint.dir())? {
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        let is_weights = WEIGHT_FILES.contains(&extension_of(&file)) || name.ends_with(".index.json");
        if !is_weights && name != "config.json" {
            let to = out.join(&*name);
            fs::copy(&file, &to).map_err(at(&to))?;
        }
    }
    let config = out.join("config.json");
    fs::write(&config, format!("{:#}\n", checkpoint.config())).map_err(at(&config))
}

fn extension_of(file: &Path) -> &str {
    file.extension().and_then(|e| e.to_str()).unwrap_or_default()
}

/// The files of a folder, not those in folders inside it.
fn files(dir: &Path) -> Result<Vec<PathBuf>, LoadError> {
    let mut files = Vec::new();
    for entry in fs::read_dir(dir).map_err(at(dir))? {
        let path = entry.map_err(at(dir))?.path();
        if path.is_file() {
            files.push(path);
        }
    }
    Ok(files)
}

fn at(path: &Path) -> impl FnOnce(std::io::Error) -> LoadError {
    let path = path.to_owned();
    move |source| LoadError::Io { path, source }
}
