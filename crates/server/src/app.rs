//! What everything that serves shares.

use std::sync::Arc;
use std::time::{Instant, SystemTime};

use crate::calls::Calls;
use crate::config::Config;
use crate::health::Health;
use crate::models::Models;
use crate::telemetry::LogFilter;
use crate::telemetry::metrics::Metrics;
use crate::text_pool::TextPool;

/// The server's parts.
#[derive(Debug)]
pub(crate) struct App {
    pub(crate) config: Config,
    pub(crate) models: Arc<Models>,
    pub(crate) calls: Arc<Calls>,
    pub(crate) health: Health,
    pub(crate) text: TextPool,
    pub(crate) metrics: Metrics,
    pub(crate) log_filter: Option<LogFilter>,
    pub(crate) started_at: SystemTime,
    pub(crate) started: Instant,
}

impl App {
    /// All parts in place, no model loaded.
    pub(crate) async fn new(config: Config, log_filter: Option<LogFilter>) -> Arc<Self> {
        let names = config.models.iter().map(|m| m.name.clone());
        let models = Arc::new(Models::new(names, &config.default_model));
        let health = Health::new().await;
        Arc::new(Self {
            calls: Arc::default(),
            text: TextPool::new(&config.requests),
            metrics: Metrics::new(&models, health.subscribe()),
            health,
            models,
            log_filter,
            started_at: SystemTime::now(),
            started: Instant::now(),
            config,
        })
    }

    /// Publishes health as it is now.
    pub(crate) async fn refresh_health(&self) {
        self.health.refresh(&self.models, self.calls.is_draining()).await;
    }

    /// Takes up no more calls and says so.
    pub(crate) async fn drain(&self) {
        self.calls.drain();
        self.refresh_health().await;
    }
}
