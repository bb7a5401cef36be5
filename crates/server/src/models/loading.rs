//! Loads the configured models, one after another, each on a blocking thread.
//!
//! One at a time, so that each sees how much memory the ones before have left.

use std::sync::Arc;
use std::time::Instant;

use baichuan_engine::{Backend, Checkpoint, LoadError, LoadProgress, LoadRequest, Registry};

use crate::config::ModelConfig;
use crate::models::Models;
use crate::server::ServeError;

/// Learns how far a model's loading is.
pub trait LoadObserver: Send + Sync {
    /// Called as loading of `model` goes on, from any thread.
    fn progress(&self, model: &str, progress: LoadProgress);
    /// `model` is loaded or has failed.
    fn ended(&self, model: &str);
}

/// Loads what is configured into `models`.
///
/// # Errors
/// The first model that cannot be loaded.
pub(crate) async fn load_all(
    models: &Models,
    configs: &[ModelConfig],
    registry: &Registry,
    observer: Arc<dyn LoadObserver>,
) -> Result<(), ServeError> {
    // The one call of this sets it.
    let _ = models.registry.set(registry.clone());
    for (model, config) in models.iter().zip(configs) {
        let backend = load_blocking(config.clone(), registry.clone(), observer.clone(), ()).await?;
        // Each model is loaded once: the cell is empty.
        let _ = model.backend.set(backend);
    }
    Ok(())
}

/// Loads one model on a blocking thread, which nothing stops: `held` is let go of when it has ended.
///
/// # Errors
/// Why it cannot be loaded.
pub(super) async fn load_blocking(
    config: ModelConfig,
    registry: Registry,
    observer: Arc<dyn LoadObserver>,
    held: impl Send + 'static,
) -> Result<Arc<dyn Backend>, ServeError> {
    let started = Instant::now();
    let name = config.name.clone();
    tracing::info!(model = name, path = %config.path.display(), "loading");
    let outcome = tokio::task::spawn_blocking(move || {
        let _held = held;
        let outcome = load_one(&config, &registry, observer.as_ref());
        observer.ended(&config.name);
        outcome
    })
    .await;
    let backend = match outcome {
        Ok(Ok(backend)) => backend,
        Ok(Err(source)) => return Err(ServeError::Load { model: name, source }),
        Err(_) => return Err(ServeError::LoadPanicked { model: name }),
    };
    let info = backend.info();
    tracing::info!(
        model = name,
        architecture = info.architecture,
        plugin = info.plugin,
        parameters = info.parameters,
        dtype = info.dtype,
        device = info.device,
        max_context = info.max_context,
        seconds = started.elapsed().as_secs_f64(),
        "loaded"
    );
    Ok(backend)
}

fn load_one(
    config: &ModelConfig,
    registry: &Registry,
    observer: &dyn LoadObserver,
) -> Result<Arc<dyn Backend>, LoadError> {
    let checkpoint = Checkpoint::open(&config.path)?;
    let plugin = registry.pick(config.plugin.as_deref(), &checkpoint)?;
    plugin.load(&LoadRequest {
        name: &config.name,
        checkpoint: &checkpoint,
        dtype: config.dtype,
        cache_dtype: config.cache_dtype,
        isq: config.isq,
        adapters: &config.adapters,
        threads: config.threads,
        placement: &config.placement,
        random_weights: config.random_weights,
        engine: &config.engine,
        progress: &|progress| observer.progress(&config.name, progress),
    })
}
