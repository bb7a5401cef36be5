//! What sentence-transformers' modules of an embedding model say, and the same laid out for mistralrs-core.

use std::fs;
use std::path::Path;

use baichuan_engine::LoadError;
use baichuan_engine::request::Pooling;
use serde_json::Value;

use super::{invalid, io, link, read, write};

/// How an embedding model makes one vector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct EmbeddingHead {
    pub(crate) pooling: Pooling,
    /// mistralrs-core's mean is the sum: it has yet to be divided.
    pub(crate) mean_is_sum: bool,
    /// Width of the vector, where another layer follows the pooling.
    pub(crate) dimensions: Option<usize>,
}

/// Lays out sentence-transformers' modules without the normalisation, which is the server's.
pub(super) fn embedding_modules(source: &Path, to: &Path) -> Result<EmbeddingHead, LoadError> {
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
