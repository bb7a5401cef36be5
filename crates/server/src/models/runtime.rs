//! Adds a model to a running server, and takes one away; the others notice nothing.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use baichuan_engine::LoadProgress;
use tokio::runtime::Handle;

use super::loading::{LoadObserver, load_blocking};
use super::{Model, Models, watch};
use crate::app::App;
use crate::config::ModelConfig;
use crate::error::{ApiError, Unavailable};
use crate::server::ServeError;

/// How often it is looked whether a model that was taken away is still in somebody's hands.
const RELEASE_TICK: Duration = Duration::from_millis(10);

/// Loads a model and serves it. Requests to it are refused with UNAVAILABLE until it is loaded.
///
/// # Errors
/// The name is taken, or the model cannot be loaded: then all is as before.
pub(crate) async fn load(app: &Arc<App>, config: ModelConfig) -> Result<Arc<Model>, ApiError> {
    let models = &app.models;
    let turn = Arc::new(models.turn.clone().lock_owned().await);
    let Some(registry) = models.registry.get().cloned() else {
        return Err(ApiError::Unavailable(Unavailable::Loading(
            models.default.clone(),
        )));
    };
    if models.iter().any(|m| m.name == config.name) {
        let message = format!("a model called {:?} is served already", config.name);
        return Err(ApiError::invalid("config.name", message));
    }
    let model = Arc::new(Model::to_come(config.name.clone(), true));
    models.change(|served| served.push(model.clone()));
    // However this ends, cancelled included: a model that is not loaded is not listed.
    let listed = Listed {
        models,
        model: &model,
    };
    let on_failure = config.engine.on_failure;
    // What loads goes on when the caller goes, and keeps its turn until then: never two at once.
    let loaded = load_blocking(config, registry, Arc::new(Unobserved), turn.clone()).await;
    let backend = loaded.map_err(|error| match error {
        ServeError::LoadPanicked { .. } => ApiError::Internal {
            cause: error.to_string(),
        },
        _ => ApiError::invalid("config", error.to_string()),
    })?;
    let _ = model.backend.set(backend); // nobody else sets it
    drop(listed);
    models.watch(watch(Arc::downgrade(app), Arc::downgrade(&model), on_failure));
    app.refresh_health().await;
    Ok(model)
}

/// Takes a model away: new requests do not find it, running ones finish, then its memory is given back.
///
/// # Errors
/// There is no such model, or it is the default one, or it has not been loaded yet.
pub(crate) async fn unload(app: &Arc<App>, name: &str) -> Result<(), ApiError> {
    let models = &app.models;
    let turn = models.turn.lock().await;
    if name.is_empty() || name == models.default {
        return Err(ApiError::invalid("model", "the default model cannot be unloaded"));
    }
    let model = models.find(name)?;
    let backend = model.loaded()?;
    models.change(|served| served.retain(|m| m.name != name));
    // Streams of inputs take no more of them.
    model.leaving.cancel();
    drop(model);
    app.refresh_health().await;
    drop(turn);
    tracing::info!(model = name, "unloading");
    // On a thread of its own, to the end, even if the caller goes: engines are joined as they are dropped.
    let handle = Handle::current();
    let unloaded = tokio::task::spawn_blocking(move || {
        // A call that holds it may submit more; the last one to let go of it has ended.
        while Arc::strong_count(&backend) > 1 {
            std::thread::sleep(RELEASE_TICK);
        }
        handle.block_on(backend.drain());
        drop(backend);
    });
    unloaded.await.map_err(|e| ApiError::Internal {
        cause: format!("unloading failed: {e}"),
    })?;
    tracing::info!(model = name, "unloaded");
    Ok(())
}

impl Models {
    /// Has a watcher of a model that came later run as long as it does.
    fn watch(&self, watcher: impl Future<Output = ()> + Send + 'static) {
        let mut watchers = self.watchers.lock().unwrap_or_else(PoisonError::into_inner);
        watchers.spawn(watcher);
        while watchers.try_join_next().is_some() {}
    }

    fn change(&self, edit: impl FnOnce(&mut Vec<Arc<Model>>)) {
        let mut served = self.served.write().unwrap_or_else(PoisonError::into_inner);
        edit(Arc::make_mut(&mut served));
    }
}

/// A model that loads; dropped without a backend, it leaves the list.
struct Listed<'a> {
    models: &'a Models,
    model: &'a Arc<Model>,
}

impl Drop for Listed<'_> {
    fn drop(&mut self) {
        if self.model.backend.get().is_none() {
            self.models
                .change(|served| served.retain(|m| !Arc::ptr_eq(m, self.model)));
        }
    }
}

/// Sees nothing.
struct Unobserved;

impl LoadObserver for Unobserved {
    fn progress(&self, _: &str, _: LoadProgress) {}
    fn ended(&self, _: &str) {}
}
