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

/// How often it is looked whether a model that was taken away is still in somebody's hands.
const RELEASE_TICK: Duration = Duration::from_millis(10);

/// Loads a model and serves it. Requests to it are refused with UNAVAILABLE until it is loaded.
///
/// # Errors
/// The name is taken, or the model cannot be loaded: then all is as before.
pub(crate) async fn load(app: &Arc<App>, config: ModelConfig) -> Result<Arc<Model>, ApiError> {
    let models = &app.models;
    let mut watchers = models.turn.lock().await;
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
    let loaded = load_blocking(config, registry, Arc::new(Unobserved)).await;
    let backend = loaded.map_err(|e| ApiError::invalid("config", e.to_string()))?;
    let _ = model.backend.set(backend); // nobody else sets it
    drop(listed);
    watchers.spawn(watch(Arc::downgrade(app), Arc::downgrade(&model), on_failure));
    while watchers.try_join_next().is_some() {}
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
    let backend = models.backend(name)?;
    models.change(|served| served.retain(|m| m.name != name));
    app.refresh_health().await;
    drop(turn);
    tracing::info!(model = name, "unloading");
    // On a thread of its own, to the end, even if the caller goes: engines are joined as they are dropped.
    let handle = Handle::current();
    let unloaded = tokio::task::spawn_blocking(move || {
        handle.block_on(backend.drain());
        // Whoever has just read a last message still holds it.
        while Arc::strong_count(&backend) > 1 {
            std::thread::sleep(RELEASE_TICK);
        }
        drop(backend);
    });
    unloaded.await.map_err(|e| ApiError::Internal {
        cause: format!("unloading failed: {e}"),
    })?;
    tracing::info!(model = name, "unloaded");
    Ok(())
}

impl Models {
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
