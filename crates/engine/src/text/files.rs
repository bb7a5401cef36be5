//! Reads a checkpoint's JSON files, and the keys in them, with errors that name both.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::TextError;

/// The bytes of `dir/name`, or `None` if there is no such file.
pub(super) fn read(dir: &Path, name: &str) -> Result<Option<(PathBuf, Vec<u8>)>, TextError> {
    let file = dir.join(name);
    match fs::read(&file) {
        Ok(bytes) => Ok(Some((file, bytes))),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(source) => Err(TextError::Read { file, source }),
    }
}

/// The text of `dir/name`, or `None` if there is no such file.
pub(super) fn read_text(dir: &Path, name: &str) -> Result<Option<(PathBuf, String)>, TextError> {
    let Some((file, bytes)) = read(dir, name)? else {
        return Ok(None);
    };
    match String::from_utf8(bytes) {
        Ok(text) => Ok(Some((file, text))),
        Err(error) => Err(TextError::Read {
            file,
            source: std::io::Error::new(ErrorKind::InvalidData, error.utf8_error()),
        }),
    }
}

/// One JSON object of a file, and the way to it.
#[derive(Clone)]
pub(super) struct Json {
    pub(super) file: PathBuf,
    prefix: String,
    pub(super) value: Value,
}

impl Json {
    /// The object in `dir/name`, or `None` if there is no such file.
    pub(super) fn read(dir: &Path, name: &str) -> Result<Option<Self>, TextError> {
        let Some((file, bytes)) = read(dir, name)? else {
            return Ok(None);
        };
        let value = match serde_json::from_slice(&bytes) {
            Ok(value @ Value::Object(_)) => value,
            Ok(other) => {
                return Err(TextError::tokenizer(
                    &file,
                    format!("holds {}, not an object", kind(&other)),
                ));
            }
            Err(source) => return Err(TextError::Json { file, source }),
        };
        Ok(Some(Self {
            file,
            prefix: String::new(),
            value,
        }))
    }

    /// The value of `key`; `null` counts as absent.
    pub(super) fn get(&self, key: &str) -> Option<&Value> {
        self.value.get(key).filter(|value| !value.is_null())
    }

    /// A value inside this one, for errors to name it by its whole path.
    pub(super) fn child(&self, key: &str, value: &Value) -> Self {
        Self {
            file: self.file.clone(),
            prefix: format!("{}{key}.", self.prefix),
            value: value.clone(),
        }
    }

    pub(super) fn error(&self, key: &str, problem: impl Into<String>) -> TextError {
        TextError::field(&self.file, format!("{}{key}", self.prefix), problem)
    }

    pub(super) fn bool(&self, key: &str) -> Result<Option<bool>, TextError> {
        self.get(key)
            .map(|value| {
                value
                    .as_bool()
                    .ok_or_else(|| self.mismatch(key, value, "a boolean"))
            })
            .transpose()
    }

    pub(super) fn str(&self, key: &str) -> Result<Option<&str>, TextError> {
        self.get(key)
            .map(|value| {
                value
                    .as_str()
                    .ok_or_else(|| self.mismatch(key, value, "a string"))
            })
            .transpose()
    }

    pub(super) fn f64(&self, key: &str) -> Result<Option<f64>, TextError> {
        self.get(key)
            .map(|value| {
                value
                    .as_f64()
                    .ok_or_else(|| self.mismatch(key, value, "a number"))
            })
            .transpose()
    }

    pub(super) fn i64(&self, key: &str) -> Result<Option<i64>, TextError> {
        self.get(key)
            .map(|value| {
                value
                    .as_i64()
                    .ok_or_else(|| self.mismatch(key, value, "an integer"))
            })
            .transpose()
    }

    pub(super) fn mismatch(&self, key: &str, value: &Value, wanted: &str) -> TextError {
        self.error(key, format!("is {}, not {wanted}", kind(value)))
    }
}

/// What a JSON value is, in words, with the value itself where it is short.
pub(super) fn kind(value: &Value) -> String {
    match value {
        Value::Null => "null".to_owned(),
        Value::Bool(value) => format!("the boolean {value}"),
        Value::Number(value) => format!("the number {value}"),
        Value::String(value) if value.chars().count() <= 40 => format!("the string {value:?}"),
        Value::String(_) => "a string".to_owned(),
        Value::Array(_) => "a list".to_owned(),
        Value::Object(_) => "an object".to_owned(),
    }
}
