//! What systemd is told, where it started the server (`Type=notify`); nothing anywhere else.

use std::time::Duration;

use sd_notify::NotifyState;
use tokio_util::sync::CancellationToken;

use crate::health::State;
use tokio::sync::watch;

/// The server answers and its models are loaded.
pub(crate) fn ready() {
    tell(&[NotifyState::Ready, NotifyState::Status("serving")]);
}

/// The server goes.
pub(crate) fn stopping() {
    tell(&[NotifyState::Stopping, NotifyState::Status("draining")]);
}

/// SIGHUP is being obeyed, if it was one.
pub(crate) fn reloading(asked: bool) {
    if asked && let Ok(now) = NotifyState::monotonic_usec_now() {
        tell(&[NotifyState::Reloading, now]);
    }
}

/// SIGHUP has been obeyed.
pub(crate) fn reloaded(asked: bool) {
    if asked {
        tell(&[NotifyState::Ready]);
    }
}

/// Says that the server lives, while it does: as often as systemd wants to hear it (`WatchdogSec=`).
///
/// An engine that died or a runtime that is stuck is not life: then systemd ends the process.
pub(crate) async fn watchdog(health: watch::Receiver<State>, stop: CancellationToken) {
    let Some(patience) = sd_notify::watchdog_enabled() else {
        return;
    };
    let mut beat = tokio::time::interval((patience / 2).max(Duration::from_millis(1)));
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = beat.tick() => {}
        }
        if health.borrow().live {
            tell(&[NotifyState::Watchdog]);
        }
    }
}

fn tell(what: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(what) {
        tracing::warn!(%error, "systemd cannot be told");
    }
}
