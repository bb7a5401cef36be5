//! How a command ends badly, what is said of it and with which exit code.

use std::io;
use std::process::ExitCode;

use baichuan_client::Error;
use serde_json::json;

use crate::output;

/// Why a command did not do what it was asked to.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    /// The command line or an input file is wrong.
    #[error("{0}")]
    Usage(String),
    /// The server cannot be reached, refused or failed.
    #[error("{0}")]
    Server(#[source] Error),
    /// The server did its part, and the outcome is not a success.
    #[error("{0}")]
    Outcome(String),
    /// The output could not be written.
    #[error("cannot write the output: {0}")]
    Output(#[from] io::Error),
    /// Ctrl-C.
    #[error("interrupted")]
    Interrupted,
    /// A bug in this program.
    #[error("{0:#}")]
    Bug(#[from] anyhow::Error),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        match error {
            Error::Option { option, message } => Self::Usage(format!("--{option}: {message}")),
            error => Self::Server(error),
        }
    }
}

impl Failure {
    /// Whether the server has refused or ended the request, and so knows that it is over.
    pub(crate) fn is_the_servers_word(&self) -> bool {
        matches!(self, Self::Server(error) if error.refusal().is_some())
    }

    /// Writes it to stderr, as a line or as a JSON object.
    pub(crate) fn report(&self, as_json: bool) {
        match self {
            // Who closed the pipe has what it wanted.
            Self::Output(e) if e.kind() == io::ErrorKind::BrokenPipe => {}
            _ if as_json => output::note(json!({ "error": self.to_json() })),
            _ => output::note(format_args!("baichuan: {self}")),
        }
    }

    /// 0 for a pipe closed by its reader, 2 for wrong usage, 130 for Ctrl-C, 1 for the rest.
    pub(crate) fn exit_code(&self) -> ExitCode {
        match self {
            Self::Output(e) if e.kind() == io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
            Self::Usage(_) => ExitCode::from(2),
            Self::Interrupted => ExitCode::from(130),
            Self::Server(_) | Self::Outcome(_) | Self::Output(_) | Self::Bug(_) => ExitCode::from(1),
        }
    }

    fn to_json(&self) -> serde_json::Value {
        let Self::Server(error) = self else {
            return json!({ "message": self.to_string() });
        };
        let Some(refusal) = error.refusal() else {
            return json!({ "message": error.to_string() });
        };
        let violation =
            |v: &baichuan_client::FieldViolation| json!({ "field": v.field, "description": v.description });
        json!({
            "code": format!("{:?}", refusal.code),
            "message": refusal.message,
            "field_violations": refusal.violations.iter().map(violation).collect::<Vec<_>>(),
            "reason": refusal.reason,
            "metadata": refusal.metadata,
            "retry_delay_ms": refusal.retry_delay.map(|d| d.as_millis()),
            "request_id": refusal.request_id,
        })
    }
}
