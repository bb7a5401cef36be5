//! Why a call fails, as one closed list.
//!
//! `grpc/status.rs` is where each becomes a gRPC status with its details.

use std::borrow::Cow;
use std::time::Duration;

use baichuan_engine::event::Usage;
use baichuan_engine::{RequestError, RequestId, SubmitError, Violation, Violations};

use crate::config::Service;

/// Room comes with the client's own reading; this keeps it from coming back at once.
const SLOW_CLIENT_DELAY: Duration = Duration::from_secs(1);

/// Why a call fails.
#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum ApiError {
    /// Fields that cannot be accepted.
    #[error(transparent)]
    Invalid(#[from] Violations),
    /// The server does not serve the model.
    #[error("there is no model {name:?}; served: {}", .served.join(", "))]
    UnknownModel { name: String, served: Vec<String> },
    /// Abort of a request that does not run.
    #[error("no request {id:?} is running")]
    UnknownRequest { id: String },
    /// A stream that cannot be taken up, or not there.
    #[error("{0}")]
    NotResumable(NotResumable),
    /// Too much is going on.
    #[error("{message}")]
    Exhausted {
        reason: Exhausted,
        message: String,
        retry_after: Option<Duration>,
    },
    /// The server or the model does not serve just now.
    #[error("{0}")]
    Unavailable(Unavailable),
    /// The call's time is up.
    #[error(
        "the time limit passed {phase}, with {} prompt and {} completion tokens so far",
        .usage.prompt_tokens, .usage.completion_tokens
    )]
    DeadlineExceeded { phase: Phase, usage: Usage },
    /// The call's message took too long to come.
    #[error("the request did not arrive within {time:?}")]
    NotArrived { time: Duration },
    /// The call's time is too short for what it asks, whatever happens.
    #[error("the request needs at least {needs:?} by recent rates, {left:?} of its time are left")]
    DeadlineUnreachable { needs: Duration, left: Duration },
    /// The caller ended the call by Abort and its method has no other way to say so.
    #[error("the request was aborted")]
    Aborted,
    /// The caller did not prove who they are.
    #[error("{0}")]
    Unauthenticated(Unproven),
    /// The caller's tenant is not allowed what is asked for.
    #[error("{0}")]
    Denied(Denied),
    /// The model or build lacks what is asked for.
    #[error("{field}: {feature} is not supported by this model")]
    Unsupported {
        field: Cow<'static, str>,
        feature: String,
    },
    /// The model failed, or a bug. The cause goes to the log.
    #[error("internal error")]
    Internal { cause: String },
}

/// What there is too much of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Exhausted {
    Queue,
    TokenBudget,
    TenantQuota,
    SlowClient,
    MessageSize,
}

/// Why a stream cannot be taken up, or not where its caller wants to go on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NotResumable {
    /// There is none, or it is another tenant's: no caller can tell which.
    #[error("resume_from_token: there is no stream of a request {id:?} to take up")]
    Unknown { id: String },
    #[error("resume_from_token: must be at most {told}, the tokens told so far; got {asked}")]
    Ahead { asked: u64, told: u64 },
    #[error(
        "resume_from_token: what follows the first {asked} tokens is kept no more, only what follows {oldest}"
    )]
    Forgotten { asked: u64, oldest: u64 },
    /// Another call has taken it up.
    #[error("another call has taken the stream up")]
    Elsewhere,
}

/// What is not there just now.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Unavailable {
    #[error("model {0:?} is loading")]
    Loading(String),
    #[error("model {0:?} is being unloaded")]
    Unloading(String),
    #[error("the server is draining")]
    Draining,
    #[error("the server ended before the request did")]
    Ended,
    #[error("the model's engine has stopped")]
    EngineStopped,
}

/// Why nobody knows who calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub(crate) enum Unproven {
    #[error("a bearer token or a client certificate is needed")]
    Missing,
    #[error("the token is not accepted")]
    NotAccepted,
}

/// What a tenant is not allowed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Denied {
    #[error("this tenant may not call {0:?}")]
    Service(Service),
    #[error("this tenant may not use model {0:?}")]
    Model(String),
    #[error("this tenant may not use the default model: name another")]
    DefaultModel,
    #[error("the tenant that the token names is not served here")]
    Tenant,
}

/// How far a request had come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Phase {
    Queued,
    Prefill,
    Decode,
}

impl std::fmt::Display for Phase {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Queued => "in the queue",
            Self::Prefill => "in prefill",
            Self::Decode => "in decode",
        })
    }
}

impl ApiError {
    /// One field that cannot be accepted.
    pub(crate) fn invalid(field: impl Into<String>, message: impl Into<String>) -> Self {
        Self::Invalid(Violation::new(field, message).into())
    }

    /// The caller does not read what it is told.
    pub(crate) fn slow_client(message: impl Into<String>) -> Self {
        Self::Exhausted {
            reason: Exhausted::SlowClient,
            message: message.into(),
            retry_after: Some(SLOW_CLIENT_DELAY),
        }
    }

    /// The answer does not fit into a message.
    pub(crate) fn answer_too_large(max_bytes: usize) -> Self {
        Self::Exhausted {
            reason: Exhausted::MessageSize,
            message: format!("the answer has more than {max_bytes} bytes (grpc.max_encoding_message_bytes)"),
            retry_after: None,
        }
    }

    /// Whether the request was not taken at all, for no fault of its own.
    pub(crate) fn is_refusal(&self) -> bool {
        match self {
            Self::Exhausted { reason, .. } => *reason != Exhausted::SlowClient,
            Self::Unavailable(what) => *what != Unavailable::Ended,
            Self::DeadlineUnreachable { .. } => true,
            _ => false,
        }
    }

    /// What kind it is, for traces.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Self::Invalid(_) => "invalid",
            Self::UnknownModel { .. } | Self::UnknownRequest { .. } => "not_found",
            Self::NotResumable(_) => "not_resumable",
            Self::Exhausted { reason, .. } => match reason {
                Exhausted::Queue => "queue_full",
                Exhausted::TokenBudget => "token_budget",
                Exhausted::TenantQuota => "tenant_quota",
                Exhausted::SlowClient => "slow_client",
                Exhausted::MessageSize => "message_size",
            },
            Self::Unavailable(_) => "unavailable",
            Self::DeadlineExceeded { .. } => "deadline_exceeded",
            Self::NotArrived { .. } => "not_arrived",
            Self::DeadlineUnreachable { .. } => "deadline_unreachable",
            Self::Unauthenticated(_) => "unauthenticated",
            Self::Denied(_) => "permission_denied",
            Self::Aborted => "aborted",
            Self::Unsupported { .. } => "unsupported",
            Self::Internal { .. } => "internal",
        }
    }

    /// Writes the cause of an internal error to the log, once.
    pub(crate) fn log(&self, id: &RequestId) {
        if let Self::Internal { cause } = self {
            tracing::error!(request_id = %id, cause, "internal error");
        }
    }
}

impl From<SubmitError> for ApiError {
    fn from(error: SubmitError) -> Self {
        let message = error.to_string();
        match error {
            SubmitError::Invalid(violations) => Self::Invalid(violations),
            SubmitError::Unsupported { field, feature } => Self::Unsupported {
                field: field.into(),
                feature: feature.into(),
            },
            SubmitError::QueueFull { retry_after, .. } | SubmitError::WaitTooLong { retry_after, .. } => {
                Self::Exhausted {
                    reason: Exhausted::Queue,
                    message,
                    retry_after: Some(retry_after),
                }
            }
            SubmitError::TokenBudget { retry_after, .. } => Self::Exhausted {
                reason: Exhausted::TokenBudget,
                message,
                retry_after: Some(retry_after),
            },
            SubmitError::TenantShare { retry_after, .. } => Self::Exhausted {
                reason: Exhausted::TenantQuota,
                message,
                retry_after: Some(retry_after),
            },
            SubmitError::DeadlineUnreachable { needs, left } => Self::DeadlineUnreachable { needs, left },
            SubmitError::Draining => Self::Unavailable(Unavailable::Draining),
            SubmitError::Dead => Self::Unavailable(Unavailable::EngineStopped),
        }
    }
}

impl From<RequestError> for ApiError {
    fn from(error: RequestError) -> Self {
        let message = error.to_string();
        match error {
            RequestError::SlowClient { .. } => Self::slow_client(message),
            RequestError::Grammar { field, message } => Self::invalid(field, message),
            RequestError::StepFailed(_) => Self::Internal { cause: message },
            RequestError::EngineStopped => Self::Unavailable(Unavailable::EngineStopped),
        }
    }
}
