//! How the server is told to end: first to drain, then, if told again, at once. And how it is told to look at its
//! files again.

use std::sync::Arc;

use tokio::sync::{Notify, watch};

/// How far the end has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Stage {
    Run,
    Drain,
    Now,
}

/// Tells the server to end.
#[derive(Clone, Debug)]
pub struct Trigger {
    stage: watch::Sender<Stage>,
    reload: Arc<Notify>,
}

/// Learns that the server shall end.
#[derive(Clone, Debug)]
pub struct Shutdown {
    stage: watch::Receiver<Stage>,
    reload: Arc<Notify>,
}

/// A trigger and what it triggers. A trigger that is dropped never fires.
pub fn channel() -> (Trigger, Shutdown) {
    let (tx, rx) = watch::channel(Stage::Run);
    let reload = Arc::new(Notify::new());
    let trigger = Trigger {
        stage: tx,
        reload: reload.clone(),
    };
    (trigger, Shutdown { stage: rx, reload })
}

impl Trigger {
    /// Finish what runs, then end. Asked for the second time: end now.
    pub fn ask(&self) {
        self.stage.send_modify(|stage| {
            *stage = match stage {
                Stage::Run => Stage::Drain,
                Stage::Drain | Stage::Now => Stage::Now,
            }
        });
    }

    /// Look at certificates, tokens and keys again, now.
    pub fn reload(&self) {
        self.reload.notify_one();
    }

    /// Turns SIGTERM and SIGINT into [`Self::ask`], SIGHUP into [`Self::reload`]. Never returns.
    ///
    /// # Errors
    /// When the system does not let signals be handled.
    #[cfg(unix)]
    pub async fn ask_on_signals(&self) -> std::io::Result<std::convert::Infallible> {
        use tokio::signal::unix::{SignalKind, signal};
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut hangup = signal(SignalKind::hangup())?;
        loop {
            let name = tokio::select! {
                _ = hangup.recv() => {
                    tracing::info!(signal = "SIGHUP", "asked to look at files again");
                    self.reload();
                    continue;
                }
                _ = terminate.recv() => "SIGTERM",
                _ = interrupt.recv() => "SIGINT",
            };
            tracing::info!(signal = name, "asked to end");
            self.ask();
        }
    }

    /// Turns Ctrl-C into [`Self::ask`]. Never returns.
    ///
    /// # Errors
    /// When the system does not let signals be handled.
    #[cfg(not(unix))]
    pub async fn ask_on_signals(&self) -> std::io::Result<std::convert::Infallible> {
        loop {
            tokio::signal::ctrl_c().await?;
            tracing::info!(signal = "Ctrl-C", "asked to end");
            self.ask();
        }
    }
}

impl Shutdown {
    /// Returns when the server shall drain.
    pub async fn asked(&mut self) {
        self.reached(Stage::Drain).await;
    }

    /// Returns when the server shall end at once.
    pub async fn insisted(&mut self) {
        self.reached(Stage::Now).await;
    }

    /// Returns when files shall be looked at again; each wish is for one that waits.
    pub(crate) async fn reload_asked(&self) {
        self.reload.notified().await;
    }

    async fn reached(&mut self, stage: Stage) {
        if self.stage.wait_for(|now| *now >= stage).await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}
