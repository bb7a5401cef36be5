//! Between the wire's types and the engine's: the wire's end here.

use baichuan_engine::Violations;
use baichuan_engine::text::TextError;

use crate::error::ApiError;

pub(super) mod embed;
pub(super) mod events;
pub(super) mod generate;
pub(super) mod model;
pub(super) mod operation;
pub(super) mod prompt;
pub(super) mod vllm;

/// Gathers violations over a whole request.
#[derive(Default)]
pub(super) struct Findings(pub(super) Violations);

impl Findings {
    pub(super) fn that(&mut self, holds: bool, field: &str, message: impl FnOnce() -> String) {
        self.0.that(holds, field, message);
    }

    /// The value of a part's check, with its violations kept.
    pub(super) fn keep<T>(&mut self, part: Result<T, Violations>) -> Option<T> {
        part.map_err(|violations| self.0.append(violations)).ok()
    }

    /// An error if there is any violation.
    pub(super) fn done(self) -> Result<(), ApiError> {
        self.0.or(()).map_err(ApiError::Invalid)
    }
}

/// A limit of zero time makes no sense.
pub(super) fn check_time_limit(time_limit_ms: Option<u32>, findings: &mut Findings) {
    findings.that(time_limit_ms != Some(0), "time_limit_ms", || {
        "must be at least 1, got 0".into()
    });
}

/// What went wrong with a text: the client's doing names `field`, anything else is a bug or a bad checkpoint.
pub(super) fn text_error(error: &TextError, field: &str) -> ApiError {
    let message = error.to_string();
    match error {
        TextError::UnknownRole { index, .. } => ApiError::invalid(format!("{field}[{index}].role"), message),
        TextError::ChatUnavailable { .. } => ApiError::Unsupported {
            field: "chat".into(),
            feature: "chat".into(),
        },
        // Its own words name a file of the checkpoint.
        TextError::TemplateLimit { limit, .. } => ApiError::invalid(
            field,
            format!("the chat template takes more than {limit} for them"),
        ),
        _ if error.is_callers_fault() => ApiError::invalid(field, message),
        _ => ApiError::Internal { cause: message },
    }
}

/// Numbers on the wire are 32 bits wide; more is "as many as that".
pub(super) fn clamp(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_template_that_takes_too_much_for_some_messages_is_their_fault_and_no_file_is_named() {
        let error = TextError::TemplateLimit {
            template: "/models/m/chat_template.jinja".into(),
            limit: "4000000 steps".into(),
        };
        let ApiError::Invalid(violations) = text_error(&error, "chat.messages") else {
            panic!("not the caller's fault");
        };
        let violation = &violations.listed()[0];
        assert_eq!(violation.field, "chat.messages");
        assert!(
            violation.message.contains("4000000 steps") && !violation.message.contains("/models"),
            "{violation:?}"
        );
    }
}
