//! The served models: name → backend, and the state of each.
//!
//! Those of the configuration are there from the start; `runtime` adds others and takes any but the default one away.

use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock};

use baichuan_engine::stats::EngineHealth;
use baichuan_engine::{Backend, Registry};
use tokio::sync::watch as watch_channel;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::calls::Calls;
use crate::error::{ApiError, Unavailable};

mod loading;
mod runtime;
mod watch;

pub use loading::LoadObserver;
pub(crate) use loading::load_all;
pub(crate) use runtime::{load, unload};
pub(crate) use watch::watch;

/// Whether a model answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ModelState {
    Loading,
    Ready,
    Draining,
    Failed,
}

/// How a model's engine is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Condition {
    Loading,
    Running,
    /// Its model is being made anew.
    Recovering,
    /// It has died, or a step does not end.
    Failed,
}

/// All served models: first those of the configuration, in its order, then those loaded since.
pub(crate) struct Models {
    default: String,
    /// A new list replaces the old one; who reads keeps what it has.
    served: RwLock<Arc<Vec<Arc<Model>>>>,
    /// What may be loaded; known once the configured models are being loaded.
    registry: OnceLock<Registry>,
    /// Who loads or unloads: one at a time.
    turn: Arc<tokio::sync::Mutex<()>>,
    /// Of models that came later.
    watchers: Mutex<JoinSet<()>>,
    /// The first one that failed and shall end the process.
    failed: watch_channel::Sender<Option<String>>,
}

impl std::fmt::Debug for Models {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

/// One served model.
pub(crate) struct Model {
    name: String,
    /// While it loads, the server is as ready as without it.
    at_runtime: bool,
    backend: OnceLock<Arc<dyn Backend>>,
    /// Cancelled when it is being unloaded.
    leaving: CancellationToken,
}

impl std::fmt::Debug for Model {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Model")
            .field("name", &self.name)
            .field("loaded", &self.backend.get().is_some())
            .finish()
    }
}

impl Models {
    /// Names of models to come; `default` is one of them.
    pub(crate) fn new(names: impl IntoIterator<Item = String>, default: &str) -> Self {
        let models = names
            .into_iter()
            .map(|name| Arc::new(Model::to_come(name, false)));
        let models: Vec<_> = models.collect();
        let is_there = models.iter().any(|m| m.name == default);
        let first = models.first().map_or("", |m| m.name.as_str());
        Self {
            default: if is_there { default } else { first }.to_owned(),
            served: RwLock::new(Arc::new(models)),
            registry: OnceLock::new(),
            turn: Arc::default(),
            watchers: Mutex::default(),
            failed: watch_channel::Sender::new(None),
        }
    }

    /// As they are now, in their order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = Arc<Model>> {
        let served = self.served.read().unwrap_or_else(PoisonError::into_inner).clone();
        (0..served.len()).map(move |i| served[i].clone())
    }

    /// Name of the model that requests without one get.
    pub(crate) fn default_name(&self) -> &str {
        &self.default
    }

    /// The model called `name`, or the default one for an empty name.
    pub(crate) fn find(&self, name: &str) -> Result<Arc<Model>, ApiError> {
        let wanted = if name.is_empty() { &self.default } else { name };
        let found = self.iter().find(|m| m.name == wanted);
        found.ok_or_else(|| ApiError::UnknownModel {
            name: name.into(),
            served: self.iter().map(|m| m.name.clone()).collect(),
        })
    }

    /// The loaded backend of the model called `name`.
    pub(crate) fn backend(&self, name: &str) -> Result<Arc<dyn Backend>, ApiError> {
        self.find(name)?.loaded()
    }

    /// The model called `name` failed, and the process shall end for it.
    fn fail(&self, name: &str) {
        self.failed.send_if_modified(|failed| {
            let is_first = failed.is_none();
            failed.get_or_insert_with(|| name.to_owned());
            is_first
        });
    }

    /// Returns the model that failed and shall end the process.
    pub(crate) async fn failed(&self) -> String {
        let mut failed = self.failed.subscribe();
        let name = failed
            .wait_for(Option::is_some)
            .await
            .ok()
            .and_then(|name| name.clone());
        match name {
            Some(name) => name,
            // The sender is this one's own.
            None => std::future::pending().await,
        }
    }

    /// Whether every model is loaded and alive; one that is being added may still load.
    pub(crate) fn all_ready(&self) -> bool {
        let is_ready = |m: Arc<Model>| match m.condition() {
            Condition::Running => true,
            Condition::Loading => m.at_runtime,
            Condition::Recovering | Condition::Failed => false,
        };
        self.iter().all(is_ready)
    }

    /// Whether the engine of a loaded model has died or is stuck.
    pub(crate) fn any_dead(&self) -> bool {
        self.iter().any(|m| m.condition() == Condition::Failed)
    }
}

impl Model {
    fn to_come(name: String, at_runtime: bool) -> Self {
        Self {
            name,
            at_runtime,
            backend: OnceLock::new(),
            leaving: CancellationToken::new(),
        }
    }

    /// Name in requests.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Absent while it loads.
    pub(crate) fn backend(&self) -> Option<Arc<dyn Backend>> {
        self.backend.get().cloned()
    }

    /// Its backend.
    ///
    /// # Errors
    /// It is loading.
    pub(crate) fn loaded(&self) -> Result<Arc<dyn Backend>, ApiError> {
        let loading = || ApiError::Unavailable(Unavailable::Loading(self.name.clone()));
        self.backend().ok_or_else(loading)
    }

    /// Cancelled when it is being unloaded: calls that run finish, and begin nothing more.
    pub(crate) fn leaving(&self) -> CancellationToken {
        self.leaving.clone()
    }

    /// Whether it answers.
    pub(crate) fn state(&self, calls: &Calls) -> ModelState {
        match self.condition() {
            Condition::Loading | Condition::Recovering => ModelState::Loading,
            Condition::Failed => ModelState::Failed,
            Condition::Running if calls.is_draining() => ModelState::Draining,
            Condition::Running => ModelState::Ready,
        }
    }

    /// Whether its engine runs.
    pub(crate) fn is_ready(&self) -> bool {
        self.condition() == Condition::Running
    }

    fn condition(&self) -> Condition {
        let Some(backend) = self.backend.get() else {
            return Condition::Loading;
        };
        let stats = backend.stats();
        // An engine that died has dropped the sender.
        let died = stats.has_changed().is_err();
        match stats.borrow().health {
            _ if died => Condition::Failed,
            EngineHealth::Stuck => Condition::Failed,
            EngineHealth::Recovering => Condition::Recovering,
            EngineHealth::Running => Condition::Running,
        }
    }
}
