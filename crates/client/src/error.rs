//! What can go wrong, with the server's `google.rpc` details decoded.

use std::collections::HashMap;
use std::time::Duration;

use tonic::{Code, Status};
use tonic_types::StatusExt;

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An option of the connection cannot be used.
    #[error("{option}: {message}")]
    Option {
        /// Field of [`crate::ConnectOptions`].
        option: &'static str,
        /// What is wrong with it.
        message: String,
    },
    /// Nobody answers at the address.
    #[error("cannot connect to {server}: {reason}")]
    Connect {
        /// The address.
        server: String,
        /// Innermost cause.
        reason: String,
    },
    /// A field of the request is bad, contradicts another or what the server has, or the prompt is too long.
    #[error("{0}")]
    InvalidArgument(Box<Refusal>),
    /// No such model or request.
    #[error("{0}")]
    NotFound(Box<Refusal>),
    /// No room at the moment, or this client reads too slowly: [`Refusal::retry_delay`] says when to try again.
    #[error("{0}")]
    ResourceExhausted(Box<Refusal>),
    /// Loading, draining or dead; or the connection broke.
    #[error("{0}")]
    Unavailable(Box<Refusal>),
    /// The deadline passed.
    #[error("{0}")]
    DeadlineExceeded(Box<Refusal>),
    /// The token is missing or wrong, or does not allow this.
    #[error("{0}")]
    Denied(Box<Refusal>),
    /// This server or model lacks the feature.
    #[error("{0}")]
    Unimplemented(Box<Refusal>),
    /// The call was cancelled, or another has taken its stream up.
    #[error("{0}")]
    Cancelled(Box<Refusal>),
    /// Any other code; a bug somewhere.
    #[error("{0}")]
    Internal(Box<Refusal>),
    /// The server answered what the protocol does not allow.
    #[error("the server broke the protocol: {0}")]
    Protocol(&'static str),
}

/// What the server said when it refused a request or ended a stream.
#[derive(Clone, Debug)]
pub struct Refusal {
    /// The gRPC status code.
    pub code: Code,
    /// For people.
    pub message: String,
    /// Fields that are wrong, from `google.rpc.BadRequest`.
    pub violations: Vec<FieldViolation>,
    /// Cause for programs, from `google.rpc.ErrorInfo`, e.g. `QUEUE_FULL`.
    pub reason: Option<String>,
    /// Who defines `reason`.
    pub domain: Option<String>,
    /// More of `google.rpc.ErrorInfo`.
    pub metadata: HashMap<String, String>,
    /// How long to wait before trying again, from `google.rpc.RetryInfo`.
    pub retry_delay: Option<Duration>,
    /// The same from the trailer `grpc-retry-pushback-ms`, which gRPC libraries obey.
    pub retry_pushback: Option<Duration>,
    /// The request as the server's log knows it, from the trailer `x-request-id`.
    pub request_id: Option<String>,
}

/// A field of a request that cannot be accepted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldViolation {
    /// Path as in the proto, e.g. `sampling.top_p`.
    pub field: String,
    /// What is wrong with it.
    pub description: String,
}

impl Error {
    /// The server's words, where it spoke.
    pub fn refusal(&self) -> Option<&Refusal> {
        match self {
            Self::InvalidArgument(r)
            | Self::NotFound(r)
            | Self::ResourceExhausted(r)
            | Self::Unavailable(r)
            | Self::DeadlineExceeded(r)
            | Self::Denied(r)
            | Self::Unimplemented(r)
            | Self::Cancelled(r)
            | Self::Internal(r) => Some(r),
            Self::Option { .. } | Self::Connect { .. } | Self::Protocol(_) => None,
        }
    }

    /// The gRPC status code, where the server gave one.
    pub fn code(&self) -> Option<Code> {
        self.refusal().map(|r| r.code)
    }
}

impl From<Status> for Error {
    fn from(status: Status) -> Self {
        let refusal = Box::new(Refusal::new(&status));
        match status.code() {
            Code::InvalidArgument | Code::OutOfRange | Code::FailedPrecondition => {
                Self::InvalidArgument(refusal)
            }
            Code::NotFound => Self::NotFound(refusal),
            Code::ResourceExhausted => Self::ResourceExhausted(refusal),
            Code::Unavailable => Self::Unavailable(refusal),
            Code::DeadlineExceeded => Self::DeadlineExceeded(refusal),
            Code::Unauthenticated | Code::PermissionDenied => Self::Denied(refusal),
            Code::Unimplemented => Self::Unimplemented(refusal),
            Code::Cancelled | Code::Aborted => Self::Cancelled(refusal),
            Code::Ok | Code::Unknown | Code::AlreadyExists | Code::Internal | Code::DataLoss => {
                Self::Internal(refusal)
            }
        }
    }
}

impl Refusal {
    fn new(status: &Status) -> Self {
        let details = status.get_error_details();
        let trailer = |name: &str| status.metadata().get(name)?.to_str().ok();
        let info = details.error_info();
        Self {
            code: status.code(),
            message: status.message().into(),
            violations: details
                .bad_request()
                .map(|bad| bad.field_violations.iter().map(FieldViolation::from).collect())
                .unwrap_or_default(),
            reason: info.map(|i| i.reason.clone()),
            domain: info.map(|i| i.domain.clone()),
            metadata: info.map(|i| i.metadata.clone()).unwrap_or_default(),
            retry_delay: details.retry_info().and_then(|retry| retry.retry_delay),
            retry_pushback: trailer("grpc-retry-pushback-ms")
                .and_then(|ms| ms.parse().ok())
                .map(Duration::from_millis),
            request_id: trailer("x-request-id").map(String::from),
        }
    }
}

impl From<&tonic_types::FieldViolation> for FieldViolation {
    fn from(violation: &tonic_types::FieldViolation) -> Self {
        Self {
            field: violation.field.clone(),
            description: violation.description.clone(),
        }
    }
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}: {}", self.code, self.message)?;
        // A message that lists the fields already need not be followed by them.
        for violation in &self.violations {
            if !self.message.contains(&violation.field) {
                write!(f, "; {}: {}", violation.field, violation.description)?;
            }
        }
        if let Some(reason) = &self.reason {
            write!(f, " ({reason})")?;
        }
        if let Some(delay) = self.retry_delay {
            write!(f, ", try again in {:.1} s", delay.as_secs_f64())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use tonic_types::ErrorDetails;

    use super::*;

    #[test]
    fn a_bad_request_names_every_field() {
        let mut details = ErrorDetails::new();
        details.add_bad_request_violation("sampling.top_p", "must be at most 1, got 1.7");
        details.add_bad_request_violation("sampling.n", "must be at least 1, got 0");
        let error = Error::from(Status::with_error_details(
            Code::InvalidArgument,
            "2 fields",
            details,
        ));
        let Error::InvalidArgument(refusal) = &error else {
            panic!("{error:?}")
        };
        let fields: Vec<_> = refusal.violations.iter().map(|v| v.field.as_str()).collect();
        assert_eq!(fields, ["sampling.top_p", "sampling.n"]);
        assert!(
            error
                .to_string()
                .contains("sampling.top_p: must be at most 1, got 1.7")
        );
    }

    #[test]
    fn a_full_queue_says_why_and_when_to_come_back() {
        let mut details = ErrorDetails::with_retry_info(Some(Duration::from_millis(1500)));
        details.set_error_info("QUEUE_FULL", "baichuan.v1", [("waiting".into(), "8".into())]);
        let mut status = Status::with_error_details(Code::ResourceExhausted, "8 requests wait", details);
        status
            .metadata_mut()
            .insert("grpc-retry-pushback-ms", "1500".parse().unwrap());
        let error = Error::from(status);
        let Error::ResourceExhausted(refusal) = &error else {
            panic!("{error:?}")
        };
        assert_eq!(refusal.reason.as_deref(), Some("QUEUE_FULL"));
        assert_eq!(refusal.domain.as_deref(), Some("baichuan.v1"));
        assert_eq!(refusal.metadata["waiting"], "8");
        assert_eq!(refusal.retry_delay, Some(Duration::from_millis(1500)));
        assert_eq!(refusal.retry_pushback, refusal.retry_delay);
        assert_eq!(
            error.to_string(),
            "ResourceExhausted: 8 requests wait (QUEUE_FULL), try again in 1.5 s"
        );
    }

    #[test]
    fn every_code_has_its_variant_and_keeps_its_words() {
        for code in (0..=16).map(Code::from_i32) {
            let error = Error::from(Status::new(code, "words"));
            let refusal = error.refusal().expect("a status always has words");
            assert_eq!((refusal.code, refusal.message.as_str()), (code, "words"));
            assert_eq!(error.code(), Some(code));
        }
    }
}
