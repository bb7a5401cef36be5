//! Logs to standard error, with a filter that can be changed while the server runs, and the progress bars above them.

use std::io::{self, IsTerminal, Write};
use std::sync::{Arc, Mutex, PoisonError};

use indicatif::MultiProgress;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::fmt::format::JsonFields;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::reload;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, Registry};

use super::json_lines::JsonLines;
use crate::config::{LogConfig, LogFormat};

/// Standard error, shared by log lines and progress bars so that neither tears the other apart.
#[derive(Clone, Debug, Default)]
pub struct Terminal {
    bars: MultiProgress,
}

impl Terminal {
    /// Where bars are drawn.
    pub fn bars(&self) -> &MultiProgress {
        &self.bars
    }

    /// Whether somebody may be looking.
    pub fn is_watched() -> bool {
        io::stderr().is_terminal()
    }
}

impl Write for Terminal {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.bars.suspend(|| io::stderr().write(line))
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

impl<'a> MakeWriter<'a> for Terminal {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

/// Why there are no logs.
#[derive(Debug, thiserror::Error)]
pub enum LogSetupError {
    /// The filter cannot be read.
    #[error("log.filter: {0}")]
    Filter(String),
    /// The process has a log already.
    #[error("logs are set up already: {0}")]
    Twice(String),
}

/// Changes what is logged.
#[derive(Clone)]
pub struct LogFilter {
    handle: reload::Handle<EnvFilter, Registry>,
    current: Arc<Mutex<String>>,
}

impl std::fmt::Debug for LogFilter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LogFilter").finish_non_exhaustive()
    }
}

impl LogFilter {
    /// Puts `filter` in force and returns the one before.
    ///
    /// # Errors
    /// What is wrong with the filter.
    pub fn set(&self, filter: &str) -> Result<String, String> {
        let parsed = EnvFilter::builder().parse(filter).map_err(|e| e.to_string())?;
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        self.handle.reload(parsed).map_err(|e| e.to_string())?;
        Ok(std::mem::replace(&mut current, filter.to_owned()))
    }
}

/// Starts logging for the whole process.
///
/// # Errors
/// A bad filter, or a process that logs already.
pub fn init(config: &LogConfig, terminal: &Terminal) -> Result<LogFilter, LogSetupError> {
    let filter = EnvFilter::builder()
        .parse(&config.filter)
        .map_err(|e| LogSetupError::Filter(e.to_string()))?;
    let (filter, handle) = reload::Layer::new(filter);
    let lines = tracing_subscriber::fmt::layer().with_writer(terminal.clone());
    let lines = match config.format {
        LogFormat::Text => lines.with_ansi(Terminal::is_watched()).with_target(false).boxed(),
        LogFormat::Json => lines
            .fmt_fields(JsonFields::new())
            .event_format(JsonLines)
            .boxed(),
    };
    tracing_subscriber::registry()
        .with(filter)
        .with(lines)
        .try_init()
        .map_err(|e| LogSetupError::Twice(e.to_string()))?;
    Ok(LogFilter {
        handle,
        current: Arc::new(Mutex::new(config.filter.clone())),
    })
}
