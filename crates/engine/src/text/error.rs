//! What can go wrong with text: files of a checkpoint that cannot be used, and requests that cannot be met.

use std::path::{Path, PathBuf};

/// A failure to read a checkpoint's text files, or to encode, decode or render.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TextError {
    /// The directory holds none of the files a tokenizer can be made of.
    #[error("no tokenizer in {}: looked for {}", .dir.display(), .looked_for.join(", "))]
    NoTokenizer {
        /// The checkpoint's directory.
        dir: PathBuf,
        /// The file names that would have been accepted.
        looked_for: &'static [&'static str],
    },
    /// A file is there and cannot be read.
    #[error("cannot read {}: {source}", .file.display())]
    Read {
        /// The file.
        file: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// A file is not JSON.
    #[error("{}: not valid JSON: {source}", .file.display())]
    Json {
        /// The file.
        file: PathBuf,
        /// Where and why the parser stopped.
        source: serde_json::Error,
    },
    /// A key of a JSON file, or a field of a SentencePiece model, holds something that cannot be used.
    #[error("{}: `{key}` {problem}", .file.display())]
    Field {
        /// The file.
        file: PathBuf,
        /// The key, as a path with dots.
        key: String,
        /// What is wrong with its value, the value included.
        problem: String,
    },
    /// A tokenizer file as a whole cannot be used.
    #[error("{}: {problem}", .file.display())]
    Tokenizer {
        /// The file.
        file: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// The tokenizer is of a kind this engine does not run.
    #[error("{}: {kind} is not supported, {supported} is", .file.display())]
    Unsupported {
        /// The file.
        file: PathBuf,
        /// What the file asks for.
        kind: String,
        /// What would have been accepted.
        supported: &'static str,
    },
    /// An id that no token has.
    #[error("token id {id} is not in the vocabulary of {vocab_size} tokens")]
    UnknownId {
        /// The id asked for.
        id: u32,
        /// One more than the largest id.
        vocab_size: usize,
    },
    /// The text cannot be expressed in ids.
    #[error("cannot encode the text: {problem}")]
    Encode {
        /// Why.
        problem: String,
    },
    /// The checkpoint has no chat template, and its plugin offers none.
    #[error("chat is not available: {reason}")]
    ChatUnavailable {
        /// Why.
        reason: String,
    },
    /// A chat template that does not compile, or fails while it runs.
    #[error("chat template {template}, line {line}: {problem}")]
    Template {
        /// The file the template is from, or the name it was given.
        template: String,
        /// Line in the template, from 1; 0 where none is known.
        line: usize,
        /// What the template engine said.
        problem: String,
    },
    /// The template itself refused the messages, by `raise_exception`.
    #[error("the chat template refuses these messages: {message}")]
    TemplateRefused {
        /// The template's own words.
        message: String,
    },
    /// The template worked or wrote more than any honest template does for such messages.
    #[error("chat template {template} exceeds its limit of {limit}")]
    TemplateLimit {
        /// The file the template is from, or the name it was given.
        template: String,
        /// The limit, with its unit.
        limit: String,
    },
    /// A message has a role that the template does not know.
    #[error("messages[{index}].role `{role}` is unknown to the chat template, known are {}", .known.join(", "))]
    UnknownRole {
        /// Position of the message.
        index: usize,
        /// Its role.
        role: String,
        /// The roles that would have been accepted.
        known: Vec<String>,
    },
    /// The messages cannot be rendered as asked.
    #[error("messages: {problem}")]
    Messages {
        /// What is wrong with them.
        problem: String,
    },
}

impl TextError {
    /// Whether the messages or the text of a request caused this, not the checkpoint or a bug.
    pub fn is_callers_fault(&self) -> bool {
        match self {
            Self::UnknownId { .. }
            | Self::Encode { .. }
            | Self::TemplateRefused { .. }
            | Self::TemplateLimit { .. }
            | Self::UnknownRole { .. }
            | Self::Messages { .. } => true,
            Self::NoTokenizer { .. }
            | Self::Read { .. }
            | Self::Json { .. }
            | Self::Field { .. }
            | Self::Tokenizer { .. }
            | Self::Unsupported { .. }
            | Self::ChatUnavailable { .. }
            | Self::Template { .. } => false,
        }
    }

    pub(super) fn field(file: &Path, key: impl Into<String>, problem: impl Into<String>) -> Self {
        Self::Field {
            file: file.to_owned(),
            key: key.into(),
            problem: problem.into(),
        }
    }

    pub(super) fn tokenizer(file: &Path, problem: impl Into<String>) -> Self {
        Self::Tokenizer {
            file: file.to_owned(),
            problem: problem.into(),
        }
    }
}
