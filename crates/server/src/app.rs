//! What everything that serves shares.

use std::sync::Arc;
use std::time::{Instant, SystemTime};

use crate::calls::Calls;
use crate::config::Config;
use crate::grpc::resume::Streams;
use crate::health::Health;
use crate::identity::Authenticator;
use crate::models::Models;
use crate::reload::{Reload, Watched};
use crate::telemetry::LogFilter;
use crate::telemetry::metrics::Metrics;
use crate::telemetry::otlp::Otlp;
use crate::text_pool::TextPool;
use crate::tls::{self, Tls};

/// The server's parts.
#[derive(Debug)]
pub(crate) struct App {
    pub(crate) config: Config,
    pub(crate) models: Arc<Models>,
    pub(crate) calls: Arc<Calls>,
    pub(crate) streams: Arc<Streams>,
    pub(crate) health: Health,
    pub(crate) text: TextPool,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) auth: Authenticator,
    /// Absent: what is said on the gRPC listeners can be read on its way.
    pub(crate) tls: Option<Arc<Watched<Tls>>>,
    pub(crate) otlp: Arc<Otlp>,
    pub(crate) log_filter: Option<LogFilter>,
    pub(crate) started_at: SystemTime,
    pub(crate) started: Instant,
}

impl App {
    /// All parts in place, no model loaded.
    ///
    /// # Errors
    /// A file of certificates, tokens or keys that cannot be used.
    pub(crate) async fn new(
        config: Config,
        otlp: Otlp,
        log_filter: Option<LogFilter>,
    ) -> Result<Arc<Self>, String> {
        let tls = config.tls.as_ref().map(tls::open).transpose()?.map(Arc::new);
        let auth = Authenticator::open(&config)?;
        let names = config.models.iter().map(|m| m.name.clone());
        let models = Arc::new(Models::new(names, &config.default_model));
        let health = Health::new().await;
        let streams = Arc::new(Streams::new(&config.requests));
        Ok(Arc::new(Self {
            calls: Arc::default(),
            text: TextPool::new(&config.requests),
            metrics: Arc::new(Metrics::new(
                &models,
                health.subscribe(),
                auth.tenants().clone(),
                tls.clone(),
                streams.clone(),
                &otlp.counts,
            )),
            streams,
            auth,
            tls,
            otlp: Arc::new(otlp),
            health,
            models,
            log_filter,
            started_at: SystemTime::now(),
            started: Instant::now(),
            config,
        }))
    }

    /// Files that may change while the server runs.
    pub(crate) fn files(&self) -> Vec<Arc<dyn Reload>> {
        let tls = self.tls.iter().map(|tls| tls.clone() as Arc<dyn Reload>);
        tls.chain(self.auth.files()).collect()
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
