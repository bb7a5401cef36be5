//! What operators see of the server: logs, metrics, traces.

pub(crate) mod call_trace;
#[cfg(test)]
mod captured;
pub(crate) mod content;
pub(crate) mod engine_metrics;
pub(crate) mod exposition;
pub(crate) mod gen_ai;
pub(crate) mod health_metrics;
mod json_lines;
pub(crate) mod logging;
pub(crate) mod metrics;
pub(crate) mod names;
pub(crate) mod otlp;
mod panics;
pub(crate) mod rpc_metrics;
pub(crate) mod semconv;
pub(crate) mod stream_metrics;
mod tenant_metrics;
pub(crate) mod tls_metrics;

pub use logging::{LogFilter, LogSetupError, Terminal, init};
pub use otlp::OtlpError;
pub use panics::hide_words_of_panics;
