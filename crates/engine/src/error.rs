//! The engine's errors, each variant something that a caller treats differently.

use std::path::PathBuf;
use std::time::Duration;

use crate::text::TextError;

mod violations;

pub use violations::{MAX_VIOLATIONS, Violations};

/// A field of a request that cannot be accepted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Path as on the wire, e.g. `sampling.top_p`.
    pub field: String,
    /// What is wrong with it, with the value in it.
    pub message: String,
}

impl Violation {
    /// Names a field and what is wrong with it.
    pub fn new(field: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            field: field.into(),
            message: message.into(),
        }
    }
}

/// Why a backend did not take a request.
#[derive(Debug, thiserror::Error)]
pub enum SubmitError {
    /// The request does not fit this model.
    #[error(transparent)]
    Invalid(#[from] Violations),
    /// The model or build lacks a feature the request needs.
    #[error("{field}: {feature} is not supported by this model")]
    Unsupported {
        /// Path of the field that asks for it.
        field: &'static str,
        /// What is lacking.
        feature: &'static str,
    },
    /// As many requests wait as may.
    #[error("{waiting} requests wait already, the limit is {limit}")]
    QueueFull {
        /// Requests that wait.
        waiting: usize,
        /// How many may.
        limit: usize,
        /// When room is likely.
        retry_after: Duration,
    },
    /// The prompts that wait hold as many tokens as they may.
    #[error("{waiting_tokens} prompt tokens wait already, the limit is {limit}")]
    TokenBudget {
        /// Tokens of the prompts that wait.
        waiting_tokens: usize,
        /// How many may.
        limit: usize,
        /// When room is likely.
        retry_after: Duration,
    },
    /// As much of the request's tenant waits as may.
    #[error(
        "{waiting} requests with {waiting_tokens} prompt tokens of this tenant wait already, its share of the queue is \
         {limit} requests and {token_limit} tokens"
    )]
    TenantShare {
        /// Requests of the tenant that wait.
        waiting: usize,
        /// How many may.
        limit: usize,
        /// Tokens of their prompts.
        waiting_tokens: usize,
        /// How many may.
        token_limit: usize,
        /// When room is likely.
        retry_after: Duration,
    },
    /// The request would wait longer than any may.
    #[error("{waiting} requests wait already, one more would wait {wait:?}, the limit is {limit:?}")]
    WaitTooLong {
        /// Requests that wait.
        waiting: usize,
        /// How long one more would, by how fast they left lately.
        wait: Duration,
        /// How long it may.
        limit: Duration,
        /// When the wait is likely no longer than that.
        retry_after: Duration,
    },
    /// The request cannot be done in time, even if all goes much faster than lately.
    #[error("needs at least {needs:?} by recent rates, {left:?} are left")]
    DeadlineUnreachable {
        /// How long it takes at least.
        needs: Duration,
        /// Until its deadline.
        left: Duration,
    },
    /// The backend is shutting down and takes nothing new.
    #[error("the model is draining")]
    Draining,
    /// The backend's engine has died.
    #[error("the model's engine has stopped")]
    Dead,
}

/// Why an admitted request ended without finishing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// The client let more events pile up than are kept for it.
    #[error("the client does not read its stream: {pending} events are waiting")]
    SlowClient {
        /// Events that wait to be read.
        pending: usize,
    },
    /// The model failed in a step this request was part of.
    #[error("the model failed: {0}")]
    StepFailed(String),
    /// What the completion must look like leaves nothing to go on with, or takes more work than allowed.
    #[error("{field}: {message}")]
    Grammar {
        /// The wish's field.
        field: &'static str,
        /// What is the matter.
        message: String,
    },
    /// The engine ended before the request did.
    #[error("the model's engine has stopped")]
    EngineStopped,
}

impl RequestError {
    /// What may be logged of it: the words of a grammar's parser may quote what was asked for.
    pub fn to_log(&self) -> String {
        match self {
            Self::Grammar { field, .. } => {
                format!("{field} leaves nothing to go on with, or takes too much work")
            }
            Self::SlowClient { .. } | Self::StepFailed(_) | Self::EngineStopped => self.to_string(),
        }
    }
}

/// Why a step failed.
#[derive(Debug, thiserror::Error)]
pub enum StepError {
    /// Device or host memory ran out.
    #[error("out of memory: {0}")]
    OutOfMemory(String),
    /// The model produced values that are not numbers.
    #[error("the model produced NaN or infinite values")]
    NotFinite,
    /// Anything else, in the words of the library below.
    #[error("{0}")]
    Compute(String),
}

/// Why a checkpoint could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// A file could not be read.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file is there and cannot be understood or does not fit the others.
    #[error("{path}: {message}")]
    Invalid {
        /// The file.
        path: PathBuf,
        /// What is wrong, naming the key or tensor.
        message: String,
    },
    /// Tokenizer, chat template or generation defaults.
    #[error(transparent)]
    Text(#[from] TextError),
    /// No registered plugin accepts the checkpoint.
    #[error("{path}: no plugin accepts architecture {architecture:?}; registered: {plugins}")]
    NoPlugin {
        /// The checkpoint.
        path: PathBuf,
        /// From its config.json.
        architecture: String,
        /// Names of the registered plugins.
        plugins: String,
    },
    /// Several plugins accept the checkpoint and none was named.
    #[error(
        "{path}: several plugins accept architecture {architecture:?}: {plugins}; name one in the configuration"
    )]
    Ambiguous {
        /// The checkpoint.
        path: PathBuf,
        /// From its config.json.
        architecture: String,
        /// Names of those that accept.
        plugins: String,
    },
    /// The configuration names a plugin that is not registered.
    #[error("there is no plugin {name:?}; registered: {plugins}")]
    UnknownPlugin {
        /// The name asked for.
        name: String,
        /// Names of the registered plugins.
        plugins: String,
    },
    /// The configuration asks for what this model or build cannot do.
    #[error("{key}: {message}")]
    Unsupported {
        /// The configuration key.
        key: &'static str,
        /// Why it cannot be.
        message: String,
    },
    /// Weights, a step's tensors or caches do not fit the memory that is free or allowed for them.
    #[error(
        "{what} need at least {needed_bytes} bytes, {available_bytes} are available, {} are missing: {hint}",
        needed_bytes.saturating_sub(*available_bytes)
    )]
    OutOfMemory {
        /// What does not fit, e.g. `the caches`.
        what: &'static str,
        /// The least that would do.
        needed_bytes: u64,
        /// What the configuration or the machine allows.
        available_bytes: u64,
        /// What to change.
        hint: String,
    },
    /// The library below failed.
    #[error("{0}")]
    Compute(String),
    /// The first forward, before readiness, failed.
    #[error("warm-up failed: {0}")]
    WarmUp(#[from] StepError),
}
