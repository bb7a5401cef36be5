//! What can be wrong with a `config.json`.

use std::path::PathBuf;

/// Why a `config.json` was refused. Every message names the key and the values at odds.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The file is absent or cannot be read.
    #[error("cannot read {file}: {source}", file = .file.display())]
    Unreadable {
        /// The path tried.
        file: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// Not JSON, a value of the wrong type, or a key given twice.
    #[error("config.json: `{key}`: {source}")]
    Malformed {
        /// Where in the document, `.` for the whole of it.
        key: String,
        /// What the parser said.
        source: serde_json::Error,
    },
    /// A key without which the model is not defined.
    #[error("config.json: `{key}` is missing")]
    Missing {
        /// The key.
        key: &'static str,
    },
    /// A size that is negative, zero or absurd, or a token id outside the vocabulary.
    #[error("config.json: `{key}` is {got}, it must be between {min} and {max}")]
    OutOfRange {
        /// The key.
        key: &'static str,
        /// Its value.
        got: i64,
        /// Least value.
        min: i64,
        /// Greatest value.
        max: i64,
    },
    /// A number that must be finite and above zero.
    #[error("config.json: `{key}` is {got}, it must be a finite number above 0")]
    NotPositive {
        /// The key.
        key: &'static str,
        /// Its value.
        got: f64,
    },
    /// One count must divide the other.
    #[error("config.json: `{key}` = {divisor} does not divide `{of}` = {value}")]
    Indivisible {
        /// The key of the divisor.
        key: &'static str,
        /// Its value.
        divisor: usize,
        /// The key of what is divided.
        of: &'static str,
        /// Its value.
        value: usize,
    },
    /// Rotary positions pair the two halves of a head, so its width must be even.
    #[error(
        "config.json: `{key}` = {n_heads} gives heads of odd width {head_dim} at `hidden_size` = {hidden_size}"
    )]
    OddHead {
        /// The key of the head count.
        key: &'static str,
        /// Its value.
        n_heads: usize,
        /// The hidden size.
        hidden_size: usize,
        /// Their quotient.
        head_dim: usize,
    },
    /// `sliding_window_layers` lists a layer that does not exist.
    #[error("config.json: `sliding_window_layers` lists layer {layer}, the model has layers 0 to {last}", last = n_layers - 1)]
    LayerOutOfRange {
        /// The index listed.
        layer: i64,
        /// `num_hidden_layers`.
        n_layers: usize,
    },
    /// `sliding_window_layers` lists a layer more than once.
    #[error("config.json: `sliding_window_layers` lists layer {layer} twice")]
    LayerTwice {
        /// The index listed.
        layer: i64,
    },
    /// A setting under which the model would compute something this crate does not.
    #[error("config.json: `{key}` is {got}, only {supported} is supported")]
    Unsupported {
        /// The key.
        key: &'static str,
        /// Its value.
        got: String,
        /// What it must be.
        supported: &'static str,
    },
}
