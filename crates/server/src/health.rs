//! Whether the server lives and is ready, and who learns of it.
//!
//! The service name `""` is liveness: no engine has died. `baichuan.v1.InferenceService` is readiness: every model is
//! loaded and warm, none has died, and the server does not drain.

use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::{Mutex, watch};
use tonic_health::ServingStatus;
use tonic_health::pb::health_server::{Health as HealthApi, HealthServer};
use tonic_health::server::{HealthReporter, HealthService};

use crate::models::Models;

/// The gRPC service whose health is the server's readiness.
pub const READINESS_SERVICE: &str = "baichuan.v1.InferenceService";

/// What is told of the server.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct State {
    /// No engine has died.
    pub(crate) live: bool,
    /// Requests would be served.
    pub(crate) ready: bool,
}

/// Publishes [`State`] to the gRPC health service and to the admin listener.
#[derive(Debug)]
pub(crate) struct Health {
    reporter: HealthReporter,
    state: watch::Sender<State>,
    /// The server is about to end.
    withdrawn: AtomicBool,
    turn: Mutex<()>,
}

impl Health {
    /// Live and not ready.
    pub(crate) async fn new() -> Self {
        let reporter = HealthReporter::new();
        reporter.set_service_status("", ServingStatus::Serving).await;
        reporter
            .set_service_status(READINESS_SERVICE, ServingStatus::NotServing)
            .await;
        let state = State {
            live: true,
            ready: false,
        };
        Self {
            reporter,
            state: watch::Sender::new(state),
            withdrawn: AtomicBool::new(false),
            turn: Mutex::new(()),
        }
    }

    /// The gRPC service. Its Watch goes on with every change.
    pub(crate) fn service(&self) -> HealthServer<impl HealthApi> {
        HealthServer::new(HealthService::from_health_reporter(self.reporter.clone()))
    }

    /// What is published, now and later.
    pub(crate) fn subscribe(&self) -> watch::Receiver<State> {
        self.state.subscribe()
    }

    /// What was published last.
    pub(crate) fn state(&self) -> State {
        *self.state.borrow()
    }

    /// Not ready any more, for good, whatever comes.
    pub(crate) async fn withdraw(&self, models: &Models) {
        self.withdrawn.store(true, Ordering::Relaxed);
        self.refresh(models, true).await;
    }

    /// Derives the state anew and publishes it where it changed.
    pub(crate) async fn refresh(&self, models: &Models, draining: bool) {
        let _turn = self.turn.lock().await;
        let live = !models.any_dead();
        let draining = draining || self.withdrawn.load(Ordering::Relaxed);
        let now = State {
            live,
            ready: live && models.all_ready() && !draining,
        };
        let before = self.state.send_replace(now);
        for (service, before, now) in [
            (READINESS_SERVICE, before.ready, now.ready),
            ("", before.live, now.live),
        ] {
            if before != now {
                let status = match now {
                    true => ServingStatus::Serving,
                    false => ServingStatus::NotServing,
                };
                self.reporter.set_service_status(service, status).await;
            }
        }
        if before.ready != now.ready {
            tracing::info!(ready = now.ready, live = now.live, draining, "readiness changed");
        }
    }
}
