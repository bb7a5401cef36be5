//! What operators see of the server: logs and metrics.

pub(crate) mod engine_metrics;
pub(crate) mod exposition;
pub(crate) mod health_metrics;
pub(crate) mod logging;
pub(crate) mod metrics;
pub(crate) mod names;
pub(crate) mod rpc_metrics;
pub(crate) mod tenant_metrics;
pub(crate) mod tls_metrics;

pub use logging::{LogFilter, LogSetupError, Terminal, init};
