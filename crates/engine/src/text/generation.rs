//! What `generation_config.json` says about sampling: the values used where a request is silent.

use std::path::Path;

use serde_json::Value;

use super::TextError;
use super::files::Json;

const FILE: &str = "generation_config.json";

/// The checkpoint's own sampling defaults. `None`, or no ids: the checkpoint does not say.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct GenerationDefaults {
    /// ≥ 0, where 0 is greedy: what `do_sample: false` becomes.
    pub temperature: Option<f32>,
    /// In (0, 1].
    pub top_p: Option<f32>,
    /// 0 is off.
    pub top_k: Option<u32>,
    /// In [0, 1].
    pub min_p: Option<f32>,
    /// In (0, 1].
    pub typical_p: Option<f32>,
    /// > 0, where 1 is off.
    pub repetition_penalty: Option<f32>,
    /// ≥ 1.
    pub max_new_tokens: Option<u32>,
    /// Begins a sequence.
    pub bos_token_id: Option<u32>,
    /// Any of them ends a sequence.
    pub eos_token_ids: Vec<u32>,
    /// Fills unused places.
    pub pad_token_id: Option<u32>,
}

impl GenerationDefaults {
    /// Reads the file in `dir`; without it, nothing is set.
    ///
    /// # Errors
    /// A [`TextError`] that names file and key if a value has the wrong type or is out of range.
    pub fn from_dir(dir: impl AsRef<Path>) -> Result<Self, TextError> {
        let Some(json) = Json::read(dir.as_ref(), FILE)? else {
            return Ok(Self::default());
        };
        let greedy = json.bool("do_sample")? == Some(false);
        let temperature = number(&json, "temperature", |x| x >= 0.0, "at least 0")?;
        Ok(Self {
            temperature: if greedy { Some(0.0) } else { temperature },
            top_p: number(&json, "top_p", |x| x > 0.0 && x <= 1.0, "in (0, 1]")?,
            top_k: top_k(&json)?,
            min_p: number(&json, "min_p", |x| (0.0..=1.0).contains(&x), "in [0, 1]")?,
            typical_p: number(&json, "typical_p", |x| x > 0.0 && x <= 1.0, "in (0, 1]")?,
            repetition_penalty: number(
                &json,
                "repetition_penalty",
                |x| (0.01..=100.0).contains(&x),
                "in [0.01, 100]",
            )?,
            max_new_tokens: max_new_tokens(&json)?,
            bos_token_id: single_id(&json, "bos_token_id")?,
            eos_token_ids: ids(&json, "eos_token_id")?,
            pad_token_id: single_id(&json, "pad_token_id")?,
        })
    }

    /// That every id of the file in `dir` is one of the model's `vocab_size`.
    ///
    /// # Errors
    /// [`TextError::Field`] naming the first that is not.
    pub fn check_ids(&self, dir: impl AsRef<Path>, vocab_size: usize) -> Result<(), TextError> {
        let keys = [
            ("bos_token_id", self.bos_token_id.as_slice()),
            ("eos_token_id", self.eos_token_ids.as_slice()),
            ("pad_token_id", self.pad_token_id.as_slice()),
        ];
        for (key, ids) in keys {
            if let Some(id) = ids.iter().find(|id| **id as usize >= vocab_size) {
                let problem = format!("holds {id}, the vocabulary has {vocab_size} ids");
                return Err(TextError::field(&dir.as_ref().join(FILE), key, problem));
            }
        }
        Ok(())
    }
}

fn number(json: &Json, key: &str, in_range: fn(f32) -> bool, range: &str) -> Result<Option<f32>, TextError> {
    let Some(value) = json.f64(key)? else {
        return Ok(None);
    };
    let narrow = value as f32;
    if !narrow.is_finite() || !in_range(narrow) {
        return Err(json.error(key, format!("is {value:?}, must be {range}")));
    }
    Ok(Some(narrow))
}

fn top_k(json: &Json) -> Result<Option<u32>, TextError> {
    match json.i64("top_k")? {
        None => Ok(None),
        Some(-1) => Ok(Some(0)),
        Some(value) => match u32::try_from(value) {
            Ok(value) => Ok(Some(value)),
            Err(_) => Err(json.error(
                "top_k",
                format!("is {value}, must be a count, or 0 or -1 for none"),
            )),
        },
    }
}

fn max_new_tokens(json: &Json) -> Result<Option<u32>, TextError> {
    let Some(value) = json.i64("max_new_tokens")? else {
        return Ok(None);
    };
    match u32::try_from(value) {
        Ok(value) if value > 0 => Ok(Some(value)),
        _ => Err(json.error("max_new_tokens", format!("is {value}, must be at least 1"))),
    }
}

/// One id or a list of them.
fn ids(json: &Json, key: &str) -> Result<Vec<u32>, TextError> {
    let values = match json.get(key) {
        None => return Ok(Vec::new()),
        Some(Value::Array(values)) => values.as_slice(),
        Some(value) => std::slice::from_ref(value),
    };
    values
        .iter()
        .map(|value| {
            let id = value.as_u64().and_then(|id| u32::try_from(id).ok());
            id.ok_or_else(|| json.mismatch(key, value, "a token id"))
        })
        .collect()
}

fn single_id(json: &Json, key: &str) -> Result<Option<u32>, TextError> {
    match ids(json, key)?.as_slice() {
        [] => Ok(None),
        [id] => Ok(Some(*id)),
        several => Err(json.error(key, format!("holds {} ids, must be one", several.len()))),
    }
}
