//! Publishes how a model's engine is, as long as the model is served.

use std::sync::{Arc, Weak};

use baichuan_engine::OnFailure;
use baichuan_engine::stats::EngineHealth;

use super::Model;
use crate::app::App;

/// Publishes an engine's health until it has died; then, or when it is stuck, the process ends where `on_failure` says
/// so. Knows the model weakly: it may be unloaded meanwhile.
pub(crate) async fn watch(app: Weak<App>, model: Weak<Model>, on_failure: OnFailure) {
    let Some(backend) = model.upgrade().and_then(|m| m.backend()) else {
        return;
    };
    let name = backend.info().name.clone();
    let mut stats = backend.stats();
    drop(backend);
    let mut health = EngineHealth::Running;
    // An engine that died has dropped the sender.
    while let Ok(now) = stats.wait_for(|s| s.health != health).await.map(|s| s.health) {
        health = now;
        let Some(app) = app.upgrade() else { return };
        tracing::warn!(model = name, ?health, "the engine's health changed");
        app.refresh_health().await;
        if health == EngineHealth::Stuck && on_failure == OnFailure::Exit {
            return app.models.fail(&name);
        }
    }
    // Silent where the model was unloaded, or the server ends.
    let (Some(app), Some(model)) = (app.upgrade(), model.upgrade()) else {
        return;
    };
    if !app.models.iter().any(|served| Arc::ptr_eq(&served, &model)) {
        return;
    }
    tracing::error!(model = name, "the engine has stopped");
    app.refresh_health().await;
    if on_failure == OnFailure::Exit {
        app.models.fail(&name);
    }
}
