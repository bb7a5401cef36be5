//! The served models: name → backend, and the state of each.

use std::sync::{Arc, OnceLock};

use baichuan_engine::Backend;
use baichuan_engine::stats::EngineHealth;

use crate::calls::Calls;
use crate::error::{ApiError, Unavailable};

mod loading;

pub use loading::LoadObserver;
pub(crate) use loading::load_all;

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

/// All served models, in the order of the configuration.
#[derive(Debug)]
pub(crate) struct Models {
    default: usize,
    models: Vec<Model>,
}

/// One served model.
pub(crate) struct Model {
    name: String,
    backend: OnceLock<Arc<dyn Backend>>,
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
        let models: Vec<Model> = names
            .into_iter()
            .map(|name| Model {
                name,
                backend: OnceLock::new(),
            })
            .collect();
        Self {
            default: models.iter().position(|m| m.name == default).unwrap_or(0),
            models,
        }
    }

    /// In the order of the configuration.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Model> {
        self.models.iter()
    }

    /// Name of the model that requests without one get.
    pub(crate) fn default_name(&self) -> &str {
        self.models.get(self.default).map_or("", |m| &m.name)
    }

    /// The model called `name`, or the default one for an empty name.
    pub(crate) fn find(&self, name: &str) -> Result<&Model, ApiError> {
        let found = match name {
            "" => self.models.get(self.default),
            _ => self.models.iter().find(|m| m.name == name),
        };
        found.ok_or_else(|| ApiError::UnknownModel {
            name: name.into(),
            served: self.models.iter().map(|m| m.name.clone()).collect(),
        })
    }

    /// The loaded backend of the model called `name`.
    pub(crate) fn backend(&self, name: &str) -> Result<&Arc<dyn Backend>, ApiError> {
        let model = self.find(name)?;
        model
            .backend()
            .ok_or_else(|| ApiError::Unavailable(Unavailable::Loading(model.name.clone())))
    }

    /// Whether every model is loaded and alive.
    pub(crate) fn all_ready(&self) -> bool {
        self.models.iter().all(|m| m.condition() == Condition::Running)
    }

    /// Whether the engine of a loaded model has died or is stuck.
    pub(crate) fn any_dead(&self) -> bool {
        self.models.iter().any(|m| m.condition() == Condition::Failed)
    }
}

impl Model {
    /// Name in requests.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Absent while it loads.
    pub(crate) fn backend(&self) -> Option<&Arc<dyn Backend>> {
        self.backend.get()
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
