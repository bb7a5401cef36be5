//! How the server is told to end: first to drain, then, if told again, at once.

use tokio::sync::watch;

/// How far the end has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Stage {
    Run,
    Drain,
    Now,
}

/// Tells the server to end.
#[derive(Clone, Debug)]
pub struct Trigger(watch::Sender<Stage>);

/// Learns that the server shall end.
#[derive(Clone, Debug)]
pub struct Shutdown(watch::Receiver<Stage>);

/// A trigger and what it triggers. A trigger that is dropped never fires.
pub fn channel() -> (Trigger, Shutdown) {
    let (tx, rx) = watch::channel(Stage::Run);
    (Trigger(tx), Shutdown(rx))
}

impl Trigger {
    /// Finish what runs, then end. Asked for the second time: end now.
    pub fn ask(&self) {
        self.0.send_modify(|stage| {
            *stage = match stage {
                Stage::Run => Stage::Drain,
                Stage::Drain | Stage::Now => Stage::Now,
            }
        });
    }

    /// Turns SIGTERM and SIGINT into [`Self::ask`]. Never returns.
    ///
    /// # Errors
    /// When the system does not let signals be handled.
    #[cfg(unix)]
    pub async fn ask_on_signals(&self) -> std::io::Result<std::convert::Infallible> {
        use tokio::signal::unix::{SignalKind, signal};
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        loop {
            let name = tokio::select! {
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

    async fn reached(&mut self, stage: Stage) {
        if self.0.wait_for(|now| *now >= stage).await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}
