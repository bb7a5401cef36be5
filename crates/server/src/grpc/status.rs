//! From an error to a gRPC status with `google.rpc` details. The only place where the two meet.

use std::collections::HashMap;
use std::time::Duration;

use baichuan_engine::event::Usage;
use baichuan_engine::{RequestId, Violations};
use tonic::metadata::MetadataMap;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

use crate::error::{ApiError, Denied, Exhausted, NotResumable, Unavailable, Unproven};

/// Domain of every `ErrorInfo`.
pub(crate) const DOMAIN: &str = "baichuan.v1";
/// Metadata that names a request.
pub(crate) const REQUEST_ID: &str = "x-request-id";
const PUSHBACK: &str = "grpc-retry-pushback-ms";

/// Messages and details travel in trailers, and clients bound those, some to 8 KiB. So each text in them is bounded, …
const MAX_MESSAGE_BYTES: usize = 1024;
/// … those of metadata more so, …
const MAX_METADATA_BYTES: usize = 256;
/// … and so are the violations of a request together.
const MAX_VIOLATIONS_BYTES: usize = 3072;

/// The status of a failed call named `id`.
pub(crate) fn status(error: &ApiError, id: &RequestId) -> Status {
    let mut details = ErrorDetails::new();
    let mut metadata = MetadataMap::new();
    let mut message = error.to_string();
    let code = match error {
        ApiError::Invalid(violations) => {
            list(violations, &mut details);
            Code::InvalidArgument
        }
        ApiError::UnknownModel { name, .. } => {
            inform(&mut details, "MODEL_NOT_FOUND", [("model", name.clone())]);
            Code::NotFound
        }
        ApiError::UnknownRequest { id } => {
            inform(&mut details, "REQUEST_NOT_FOUND", [("request_id", id.clone())]);
            Code::NotFound
        }
        ApiError::NotResumable(why) => not_resumable(why, &message, &mut details),
        ApiError::Exhausted {
            reason, retry_after, ..
        } => {
            inform(&mut details, exhausted(*reason), []);
            match retry_after {
                Some(delay) => {
                    details.set_retry_info(Some(*delay));
                    push_back(&mut metadata, &delay.as_millis().to_string());
                }
                // Negative: trying again would fail again.
                None => push_back(&mut metadata, "-1"),
            }
            Code::ResourceExhausted
        }
        ApiError::Unavailable(what) => {
            let (reason, delay) = unavailable(what);
            inform(&mut details, reason, []);
            details.set_retry_info(Some(delay));
            Code::Unavailable
        }
        ApiError::DeadlineExceeded { usage, .. } => {
            inform(&mut details, "DEADLINE_EXCEEDED", usage_metadata(usage));
            Code::DeadlineExceeded
        }
        ApiError::NotArrived { .. } => {
            inform(&mut details, "REQUEST_NOT_ARRIVED", []);
            Code::DeadlineExceeded
        }
        ApiError::DeadlineUnreachable { needs, left } => {
            let milliseconds = |time: &Duration| time.as_millis().to_string();
            let [prompt, completion, total, cached] = usage_metadata(&Usage::default());
            let metadata = [
                ("needs_ms", milliseconds(needs)),
                ("left_ms", milliseconds(left)),
                prompt,
                completion,
                total,
                cached,
            ];
            inform(&mut details, "DEADLINE_UNREACHABLE", metadata);
            Code::DeadlineExceeded
        }
        ApiError::Aborted => {
            inform(&mut details, "ABORTED", []);
            Code::Cancelled
        }
        ApiError::Unauthenticated(reason) => {
            let reason = match reason {
                Unproven::Missing => "CREDENTIALS_MISSING",
                Unproven::NotAccepted => "CREDENTIALS_NOT_ACCEPTED",
            };
            inform(&mut details, reason, []);
            Code::Unauthenticated
        }
        ApiError::Denied(what) => {
            let reason = match what {
                Denied::Service(_) => "SERVICE_NOT_ALLOWED",
                Denied::Model(_) | Denied::DefaultModel => "MODEL_NOT_ALLOWED",
                Denied::Tenant => "TENANT_NOT_SERVED",
            };
            inform(&mut details, reason, []);
            Code::PermissionDenied
        }
        ApiError::Unsupported { field, feature } => {
            let metadata = [("field", field.to_string()), ("feature", feature.clone())];
            inform(&mut details, "UNSUPPORTED_FEATURE", metadata);
            Code::Unimplemented
        }
        ApiError::Internal { .. } => {
            message = format!("internal error in request {id}");
            Code::Internal
        }
    };
    name(&mut metadata, id);
    truncate(&mut message, MAX_MESSAGE_BYTES);
    Status::with_error_details_and_metadata(code, message, details, metadata)
}

/// What is told of a stream that cannot be taken up.
fn not_resumable(why: &NotResumable, message: &str, details: &mut ErrorDetails) -> Code {
    let field = "resume_from_token";
    match why {
        NotResumable::Unknown { id } => {
            inform(details, "STREAM_NOT_FOUND", [("request_id", id.clone())]);
            Code::NotFound
        }
        NotResumable::Ahead { told, .. } => {
            inform(details, "TOKENS_NOT_TOLD", [("tokens", told.to_string())]);
            details.add_bad_request_violation(field, message);
            Code::OutOfRange
        }
        NotResumable::Forgotten { oldest, .. } => {
            inform(details, "TOKENS_FORGOTTEN", [("oldest", oldest.to_string())]);
            details.add_bad_request_violation(field, message);
            Code::FailedPrecondition
        }
        NotResumable::Elsewhere => {
            inform(details, "STREAM_TAKEN_UP", []);
            Code::Aborted
        }
    }
}

/// Names a request in metadata.
pub(crate) fn name(metadata: &mut MetadataMap, id: &RequestId) {
    if let Ok(value) = id.as_str().parse() {
        metadata.insert(REQUEST_ID, value);
    }
}

/// The reason in the `ErrorInfo` of a lack of room.
pub(crate) fn exhausted(reason: Exhausted) -> &'static str {
    match reason {
        Exhausted::Queue => "QUEUE_FULL",
        Exhausted::TokenBudget => "TOKEN_BUDGET",
        Exhausted::TenantQuota => "TENANT_QUOTA",
        Exhausted::SlowClient => "SLOW_CLIENT",
        Exhausted::MessageSize => "MESSAGE_TOO_LARGE",
    }
}

/// The reason in the `ErrorInfo` of an absence, and when to try again.
pub(crate) fn unavailable(what: &Unavailable) -> (&'static str, Duration) {
    match what {
        Unavailable::Loading(_) => ("MODEL_LOADING", Duration::from_secs(1)),
        Unavailable::Unloading(_) => ("MODEL_UNLOADING", Duration::from_secs(1)),
        Unavailable::Draining => ("DRAINING", Duration::from_secs(1)),
        Unavailable::Ended => ("SERVER_ENDED", Duration::from_secs(1)),
        Unavailable::EngineStopped => ("ENGINE_STOPPED", Duration::from_secs(5)),
    }
}

fn list(violations: &Violations, details: &mut ErrorDetails) {
    let listed = violations.listed();
    let max = (MAX_VIOLATIONS_BYTES / listed.len().max(1)).min(MAX_MESSAGE_BYTES);
    for violation in listed {
        let mut message = violation.message.clone();
        truncate(&mut message, max);
        details.add_bad_request_violation(violation.field.clone(), message);
    }
    let more = violations.n_more();
    if more > 0 {
        details.add_bad_request_violation("", format!("{more} more violations"));
    }
}

fn inform<const N: usize>(details: &mut ErrorDetails, reason: &str, metadata: [(&str, String); N]) {
    let bounded = metadata.map(|(key, mut value)| {
        truncate(&mut value, MAX_METADATA_BYTES);
        (key.to_owned(), value)
    });
    let metadata: HashMap<String, String> = bounded.into_iter().collect();
    details.set_error_info(reason, DOMAIN, metadata);
}

fn usage_metadata(usage: &Usage) -> [(&'static str, String); 4] {
    [
        ("prompt_tokens", usage.prompt_tokens.to_string()),
        ("completion_tokens", usage.completion_tokens.to_string()),
        (
            "total_tokens",
            (usage.prompt_tokens + usage.completion_tokens).to_string(),
        ),
        ("cached_tokens", usage.cached_tokens.to_string()),
    ]
}

fn push_back(metadata: &mut MetadataMap, milliseconds: &str) {
    if let Ok(value) = milliseconds.parse() {
        metadata.insert(PUSHBACK, value);
    }
}

fn truncate(message: &mut String, max_bytes: usize) {
    if message.len() > max_bytes {
        let end = message.floor_char_boundary(max_bytes);
        message.truncate(end);
        message.push('…');
    }
}

#[cfg(test)]
mod tests {
    use baichuan_engine::Violation;

    use super::*;
    use crate::error::Phase;

    fn status_of(error: ApiError) -> Status {
        status(&error, &RequestId::new("r-1"))
    }

    #[test]
    fn every_error_has_its_code_its_reason_and_its_request() {
        let exhausted = |reason| ApiError::Exhausted {
            reason,
            message: "m".into(),
            retry_after: Some(Duration::from_millis(1500)),
        };
        let unavailable = ApiError::Unavailable;
        for (error, code, reason) in [
            (
                ApiError::UnknownModel {
                    name: "m".into(),
                    served: vec![],
                },
                Code::NotFound,
                "MODEL_NOT_FOUND",
            ),
            (
                ApiError::UnknownRequest { id: "i".into() },
                Code::NotFound,
                "REQUEST_NOT_FOUND",
            ),
            (exhausted(Exhausted::Queue), Code::ResourceExhausted, "QUEUE_FULL"),
            (
                exhausted(Exhausted::TokenBudget),
                Code::ResourceExhausted,
                "TOKEN_BUDGET",
            ),
            (
                exhausted(Exhausted::TenantQuota),
                Code::ResourceExhausted,
                "TENANT_QUOTA",
            ),
            (
                ApiError::NotArrived {
                    time: Duration::from_secs(1),
                },
                Code::DeadlineExceeded,
                "REQUEST_NOT_ARRIVED",
            ),
            (
                ApiError::DeadlineUnreachable {
                    needs: Duration::from_secs(2),
                    left: Duration::from_secs(1),
                },
                Code::DeadlineExceeded,
                "DEADLINE_UNREACHABLE",
            ),
            (
                exhausted(Exhausted::SlowClient),
                Code::ResourceExhausted,
                "SLOW_CLIENT",
            ),
            (
                exhausted(Exhausted::MessageSize),
                Code::ResourceExhausted,
                "MESSAGE_TOO_LARGE",
            ),
            (
                unavailable(Unavailable::Loading("m".into())),
                Code::Unavailable,
                "MODEL_LOADING",
            ),
            (
                unavailable(Unavailable::Unloading("m".into())),
                Code::Unavailable,
                "MODEL_UNLOADING",
            ),
            (unavailable(Unavailable::Draining), Code::Unavailable, "DRAINING"),
            (unavailable(Unavailable::Ended), Code::Unavailable, "SERVER_ENDED"),
            (
                unavailable(Unavailable::EngineStopped),
                Code::Unavailable,
                "ENGINE_STOPPED",
            ),
            (ApiError::Aborted, Code::Cancelled, "ABORTED"),
            (
                ApiError::Unauthenticated(Unproven::Missing),
                Code::Unauthenticated,
                "CREDENTIALS_MISSING",
            ),
            (
                ApiError::Unauthenticated(Unproven::NotAccepted),
                Code::Unauthenticated,
                "CREDENTIALS_NOT_ACCEPTED",
            ),
            (
                ApiError::Denied(Denied::Model("m".into())),
                Code::PermissionDenied,
                "MODEL_NOT_ALLOWED",
            ),
            (
                ApiError::Denied(Denied::Tenant),
                Code::PermissionDenied,
                "TENANT_NOT_SERVED",
            ),
            (
                ApiError::Unsupported {
                    field: "chat".into(),
                    feature: "chat".into(),
                },
                Code::Unimplemented,
                "UNSUPPORTED_FEATURE",
            ),
        ] {
            let status = status_of(error);
            let details = status.get_error_details();
            let info = details.error_info().unwrap();
            assert_eq!((status.code(), info.reason.as_str()), (code, reason));
            assert_eq!(info.domain, "baichuan.v1");
            assert_eq!(status.metadata().get("x-request-id").unwrap(), "r-1");
            let retried = matches!(code, Code::ResourceExhausted | Code::Unavailable);
            assert_eq!(details.retry_info().is_some(), retried, "{reason}");
        }
    }

    #[test]
    fn a_lack_of_room_pushes_retries_back_as_long_as_it_says() {
        let error = |retry_after| ApiError::Exhausted {
            reason: Exhausted::Queue,
            message: "full".into(),
            retry_after,
        };
        let status = status_of(error(Some(Duration::from_millis(1500))));
        let delay = status.get_error_details().retry_info().unwrap().retry_delay;
        assert_eq!(delay, Some(Duration::from_millis(1500)));
        assert_eq!(status.metadata().get("grpc-retry-pushback-ms").unwrap(), "1500");
        let never = status_of(error(None));
        assert_eq!(never.metadata().get("grpc-retry-pushback-ms").unwrap(), "-1");
    }

    #[test]
    fn a_missed_deadline_tells_the_usage_so_far() {
        let usage = Usage {
            prompt_tokens: 3,
            completion_tokens: 4,
            cached_tokens: 1,
        };
        let status = status_of(ApiError::DeadlineExceeded {
            phase: Phase::Decode,
            usage,
        });
        assert_eq!(status.code(), Code::DeadlineExceeded);
        let metadata = status.get_error_details().error_info().unwrap().metadata.clone();
        for (key, value) in [
            ("prompt_tokens", "3"),
            ("completion_tokens", "4"),
            ("total_tokens", "7"),
            ("cached_tokens", "1"),
        ] {
            assert_eq!(metadata[key], value, "{key}");
        }
    }

    #[test]
    fn all_violations_are_listed_up_to_what_trailers_hold() {
        let violations = (0..25)
            .map(|i| Violation::new(format!("f[{i}]"), "x".repeat(5000)))
            .collect();
        let status = status_of(ApiError::Invalid(violations));
        assert_eq!(status.code(), Code::InvalidArgument);
        let listed = status
            .get_error_details()
            .bad_request()
            .unwrap()
            .field_violations
            .clone();
        assert_eq!((listed.len(), listed[19].field.as_str()), (21, "f[19]"));
        assert_eq!(listed[20].description, "5 more violations");
        assert!(status.message().len() < 1100 && status.details().len() < 4500);
    }

    #[test]
    fn whatever_a_caller_calls_things_trailers_are_short() {
        let long = || "€".repeat(1 << 20);
        for error in [
            ApiError::UnknownModel {
                name: long(),
                served: vec![long()],
            },
            ApiError::UnknownRequest { id: long() },
            ApiError::NotResumable(NotResumable::Unknown { id: long() }),
            ApiError::Denied(Denied::Model(long())),
            ApiError::invalid("f", long()),
        ] {
            let status = status_of(error);
            assert!(!status.message().is_empty());
            assert!(
                status.message().len() < 1100 && status.details().len() < 2200,
                "{status:?}"
            );
        }
    }

    #[test]
    fn an_internal_error_keeps_its_cause_to_itself() {
        let status = status_of(ApiError::Internal {
            cause: "the prompt was: secret".into(),
        });
        assert_eq!(status.code(), Code::Internal);
        assert_eq!(status.message(), "internal error in request r-1");
        assert!(status.get_error_details().error_info().is_none());
    }
}
