//! The server's life: open the ports, load the models, serve, drain, end.

use std::sync::Arc;
use std::time::{Duration, Instant};

use baichuan_engine::{LoadError, LoadProgress, Registry};
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use crate::admin_http;
use crate::app::App;
use crate::config::{Config, ListenConfig};
use crate::grpc::Face;
use crate::grpc::pipeline::Pipeline;
use crate::grpc::serve::{Stop, serve};
use crate::identity::Authenticator;
use crate::models::{LoadObserver, load_all, watch};
use crate::reload;
use crate::shutdown::Shutdown;
use crate::systemd;
use crate::telemetry::otlp::Otlp;
use crate::telemetry::{LogFilter, OtlpError};
use crate::tls;

/// Time connections have to close by themselves when nothing runs on them any more.
const CLOSE_GRACE: Duration = Duration::from_secs(1);

/// Why the server cannot serve.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// An address cannot be listened on.
    #[error("{key} {address}: {source}")]
    Bind {
        /// Key of the configuration.
        key: &'static str,
        /// The address.
        address: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// A model cannot be loaded.
    #[error("model {model:?}: {source}")]
    Load {
        /// Its served name.
        model: String,
        /// Why.
        source: LoadError,
    },
    /// A bug in a plugin.
    #[error("model {model:?}: its plugin panicked while loading")]
    LoadPanicked {
        /// Its served name.
        model: String,
    },
    /// Certificates, tokens or keys cannot be used.
    #[error("{0}")]
    Identity(String),
    /// A model failed for good, and `engine.on_failure` says to end then.
    #[error("model {model:?}: its engine has failed, and engine.on_failure is \"exit\"")]
    EngineFailed {
        /// Its served name.
        model: String,
    },
    /// The descriptors compiled in cannot be used.
    #[error("reflection: {0}")]
    Reflection(#[from] tonic_reflection::server::Error),
    /// Traces and metrics cannot be sent.
    #[error(transparent)]
    Telemetry(#[from] OtlpError),
    /// Calls still ran when the time to end was up.
    #[error("{running} calls had to be cut off when shutdown.hard_timeout passed")]
    HardTimeout {
        /// How many.
        running: usize,
    },
}

/// Sockets that listen already.
#[derive(Debug)]
pub struct Listeners {
    /// For gRPC.
    pub grpc: TcpListener,
    /// For `/metrics`, `/livez` and `/readyz`; absent: not served.
    pub admin: Option<TcpListener>,
    /// For `AdminService`; absent: not served.
    pub admin_grpc: Option<TcpListener>,
}

impl Listeners {
    /// Listens on the configured addresses.
    ///
    /// # Errors
    /// [`ServeError::Bind`] with the key and the address.
    pub async fn bind(config: &ListenConfig) -> Result<Self, ServeError> {
        let bind = async |key, address: &str| {
            TcpListener::bind(address)
                .await
                .map_err(|source| ServeError::Bind {
                    key,
                    address: address.to_owned(),
                    source,
                })
        };
        let grpc = bind("listen.grpc", &config.grpc).await?;
        let admin = match &config.admin {
            Some(address) => Some(bind("listen.admin", address).await?),
            None => None,
        };
        let admin_grpc = match &config.admin_grpc {
            Some(address) => Some(bind("listen.admin_grpc", address).await?),
            None => None,
        };
        Ok(Self {
            grpc,
            admin,
            admin_grpc,
        })
    }
}

/// A server about to run.
pub struct Server {
    config: Config,
    registry: Registry,
    log_filter: Option<LogFilter>,
    observer: Arc<dyn LoadObserver>,
}

/// Reads the files of certificates, tokens and keys that a configuration names, as a server of it would.
///
/// # Errors
/// [`ServeError::Identity`] with the file and what is wrong with it.
pub fn check_files(config: &Config) -> Result<(), ServeError> {
    let tls = config.tls.as_ref().map(tls::open).transpose();
    tls.and_then(|_| Authenticator::open(config))
        .map(drop)
        .map_err(ServeError::Identity)
}

/// Serves until told to end: [`Server`] with nothing but the necessary.
///
/// # Errors
/// As [`Server::run`].
pub async fn run(
    config: Config,
    registry: Registry,
    listeners: Listeners,
    shutdown: Shutdown,
) -> Result<(), ServeError> {
    Server::new(config, registry).run(listeners, shutdown).await
}

impl Server {
    /// A server of these models.
    pub fn new(config: Config, registry: Registry) -> Self {
        Self {
            config,
            registry,
            log_filter: None,
            observer: Arc::new(Unobserved),
        }
    }

    /// Lets `AdminService.SetLogFilter` change the logs.
    pub fn log_filter(self, filter: LogFilter) -> Self {
        Self {
            log_filter: Some(filter),
            ..self
        }
    }

    /// Shows how far loading is.
    pub fn observer(self, observer: Arc<dyn LoadObserver>) -> Self {
        Self { observer, ..self }
    }

    /// Serves until `shutdown` asks for the end and running calls have finished, or it insists.
    ///
    /// The ports answer from the start; calls are refused with UNAVAILABLE until their model is loaded.
    ///
    /// # Errors
    /// A model that cannot be loaded, or calls that had to be cut off at the hard timeout.
    pub async fn run(self, listeners: Listeners, mut shutdown: Shutdown) -> Result<(), ServeError> {
        let otlp = Otlp::new(&self.config.telemetry)?;
        let app = App::new(self.config, otlp, self.log_filter)
            .await
            .map_err(ServeError::Identity)?;
        let stop = Stop::default();
        let mut tasks = JoinSet::new();
        let faces = [
            (Some(listeners.grpc), Face::Public, "gRPC listens"),
            (listeners.admin_grpc, Face::Admin, "AdminService listens"),
        ];
        for (listener, face, told) in faces {
            let Some(listener) = listener else { continue };
            if let Ok(address) = listener.local_addr() {
                tracing::info!(%address, tls = app.tls.is_some(), "{told}");
            }
            let pipeline = Pipeline::new(app.clone(), face, crate::grpc::routes(&app, face)?);
            let (config, tls) = (app.config.grpc.clone(), app.tls.clone());
            tasks.spawn(serve(listener, config, tls, pipeline, stop.clone()));
        }
        if let Some(listener) = listeners.admin {
            if let Ok(address) = listener.local_addr() {
                tracing::info!(%address, "/metrics, /livez and /readyz listen");
            }
            tasks.spawn(admin_http::serve(listener, app.clone(), stop.now.clone()));
        }

        let mut watchers = JoinSet::new();
        let mut asked_early = shutdown.clone();
        let outcome = tokio::select! {
            loaded = load_all(&app.models, &app.config.models, &self.registry, self.observer) => loaded,
            () = asked_early.asked() => Ok(()),
        };
        if outcome.is_ok() {
            for (model, config) in app.models.iter().zip(&app.config.models) {
                let (app, model) = (Arc::downgrade(&app), Arc::downgrade(&model));
                watchers.spawn(watch(app, model, config.engine.on_failure));
            }
            app.refresh_health().await;
            let files = app.files();
            if !files.is_empty() {
                let interval = app.config.reload_interval;
                let (metrics, stop) = (app.metrics.clone(), stop.now.clone());
                watchers.spawn(reload::watch(files, interval, metrics, shutdown.clone(), stop));
            }
            systemd::ready();
            watchers.spawn(systemd::watchdog(app.health.subscribe(), stop.now.clone()));
        }
        let outcome = match outcome {
            Ok(()) => tokio::select! {
                () = shutdown.asked() => end(&app, &stop, &mut shutdown, &mut tasks).await,
                model = app.models.failed() => {
                    tell_and_close(&app, &stop, &mut tasks).await;
                    Err(ServeError::EngineFailed { model })
                }
            },
            Err(failed) => Err(failed),
        };
        stop.now.cancel();
        while tasks.join_next().await.is_some() {}
        app.calls.end();
        app.streams.ended().await;
        watchers.shutdown().await;
        let patience = match &outcome {
            // A collector that takes nothing in the time of a batch will not take the last ones.
            Ok(End::Orderly { left }) => app.config.telemetry.otlp_timeout.min(*left),
            Ok(End::Insisted) | Err(_) => CLOSE_GRACE,
        };
        app.otlp.shutdown(patience).await;
        // Joins the engines' threads. One that is stuck holds up its own thread here and not the server's end.
        let joined = tokio::task::spawn_blocking(move || drop(app));
        match outcome {
            Ok(End::Orderly { .. }) => {
                let _ = joined.await;
                tracing::info!("ended");
                Ok(())
            }
            Ok(End::Insisted) => Ok(()),
            Err(error) => Err(error),
        }
    }
}

/// How the server was brought to its end.
enum End {
    Orderly {
        /// Of `hard_timeout`.
        left: Duration,
    },
    Insisted,
}

/// Drains within the configured times; `shutdown` insisting cuts that short.
async fn end(
    app: &Arc<App>,
    stop: &Stop,
    shutdown: &mut Shutdown,
    tasks: &mut JoinSet<()>,
) -> Result<End, ServeError> {
    let times = &app.config.shutdown;
    let began = Instant::now();
    let orderly = async {
        tracing::info!(running = app.calls.n_running(), "draining");
        systemd::stopping();
        app.health.withdraw(&app.models).await;
        tokio::time::sleep(times.drain_delay).await;
        app.drain().await;
        if tokio::time::timeout(times.drain_timeout, app.calls.idle())
            .await
            .is_err()
        {
            tracing::warn!(
                running = app.calls.n_running(),
                "drain_timeout passed: ending what still runs"
            );
        }
        app.calls.end();
        app.calls.idle().await;
        for backend in app.models.iter().filter_map(|m| m.backend()) {
            backend.drain().await;
        }
        stop.gently.cancel();
        let closed = async { while tasks.join_next().await.is_some() {} };
        // Streams without an end, such as health watches, are closed with their connections.
        let _ = tokio::time::timeout(CLOSE_GRACE, closed).await;
        stop.now.cancel();
    };
    tokio::select! {
        () = orderly => Ok(End::Orderly {
            left: times.hard_timeout.saturating_sub(began.elapsed()),
        }),
        () = shutdown.insisted() => {
            tracing::warn!(running = app.calls.n_running(), "told to end at once");
            tell_and_close(app, stop, tasks).await;
            Ok(End::Insisted)
        }
        () = tokio::time::sleep(times.hard_timeout) => Err(ServeError::HardTimeout {
            running: app.calls.n_running(),
        }),
    }
}

/// Ends at once; what runs is told so, as far as it listens.
async fn tell_and_close(app: &Arc<App>, stop: &Stop, tasks: &mut JoinSet<()>) {
    app.calls.drain();
    app.calls.end();
    let told = async {
        app.calls.idle().await;
        stop.gently.cancel();
        while tasks.join_next().await.is_some() {}
    };
    let _ = tokio::time::timeout(CLOSE_GRACE, told).await;
}

/// Sees nothing.
struct Unobserved;

impl LoadObserver for Unobserved {
    fn progress(&self, _: &str, _: LoadProgress) {}
    fn ended(&self, _: &str) {}
}
