//! The calls that run: their names, their ends, and the gate that closes when the server drains.
//!
//! Whatever a call does, it does it inside [`Call::run`], so that deadline, Abort and the server's end stop it
//! alike.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use baichuan_engine::RequestId;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;

use crate::error::ApiError;

/// A call's name: whose it is, for owners do not see each other's, and what they call it.
type Name = (Arc<str>, RequestId);

/// All running calls.
#[derive(Debug, Default)]
pub(crate) struct Calls {
    running: Mutex<HashMap<Name, CancellationToken>>,
    tracker: TaskTracker,
    draining: CancellationToken,
    ended: CancellationToken,
}

/// Why a call stops before its work is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Interrupt {
    /// Its time is up.
    Deadline,
    /// Abort named it.
    Aborted,
    /// The server ends.
    ServerEnds,
}

/// Why a call is not taken up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BeginError {
    /// The server drains.
    Draining,
    /// A running call of the owner has the name.
    NameTaken,
}

/// A call that runs. Dropping it gives its name free.
pub(crate) struct Call {
    /// Its name.
    pub(crate) id: RequestId,
    owner: Arc<str>,
    /// When it reached the server.
    pub(crate) arrived: Instant,
    /// Until when it may take.
    pub(crate) deadline: Option<Instant>,
    abort: CancellationToken,
    interrupt: Pin<Box<dyn Future<Output = Interrupt> + Send>>,
    calls: Arc<Calls>,
    _running: TaskTrackerToken,
}

impl Calls {
    /// Takes a call of `owner` up. `limit` is how long it may take, from now.
    ///
    /// # Errors
    /// The server drains, or a running call of the owner has the name already.
    pub(crate) fn begin(
        self: &Arc<Self>,
        owner: &Arc<str>,
        id: RequestId,
        limit: Option<Duration>,
    ) -> Result<Call, BeginError> {
        // Counted before the gate is looked at: who drains either sees this call or makes it turn back.
        let running = self.tracker.token();
        if self.is_draining() {
            return Err(BeginError::Draining);
        }
        let abort = CancellationToken::new();
        match self.running().entry((owner.clone(), id.clone())) {
            Entry::Occupied(_) => return Err(BeginError::NameTaken),
            Entry::Vacant(free) => free.insert(abort.clone()),
        };
        let deadline = limit.and_then(|limit| tokio::time::Instant::now().checked_add(limit));
        Ok(Call {
            id,
            owner: owner.clone(),
            arrived: Instant::now(),
            deadline: deadline.map(tokio::time::Instant::into_std),
            interrupt: Box::pin(interrupt(abort.clone(), self.ended.clone(), deadline)),
            abort,
            calls: self.clone(),
            _running: running,
        })
    }

    /// Ends the call named `id` of `owner`, or, for the operator, of whomever.
    ///
    /// # Errors
    /// No such call runs.
    pub(crate) fn abort(&self, owner: Option<&str>, id: &str) -> Result<(), ApiError> {
        let mut found = false;
        for ((of, name), abort) in self.running().iter() {
            if name.as_str() == id && owner.is_none_or(|owner| owner == &**of) {
                abort.cancel();
                found = true;
            }
        }
        match found {
            true => Ok(()),
            false => Err(ApiError::UnknownRequest { id: id.into() }),
        }
    }

    /// Takes up no more calls.
    pub(crate) fn drain(&self) {
        self.draining.cancel();
    }

    /// Whether no more calls are taken up.
    pub(crate) fn is_draining(&self) -> bool {
        self.draining.is_cancelled()
    }

    /// Returns when no call runs and none is held. Only after [`Self::drain`] does that stay so.
    pub(crate) async fn idle(&self) {
        self.tracker.close();
        self.tracker.wait().await;
    }

    /// Calls that run.
    pub(crate) fn n_running(&self) -> usize {
        self.running().len()
    }

    /// Keeps [`Self::idle`] from returning while it lives, without being a call.
    pub(crate) fn hold(&self) -> TaskTrackerToken {
        self.tracker.token()
    }

    /// Cancelled by [`Self::end`].
    pub(crate) fn ended(&self) -> CancellationToken {
        self.ended.clone()
    }

    /// Stops every call that still runs.
    pub(crate) fn end(&self) {
        self.ended.cancel();
    }

    fn running(&self) -> MutexGuard<'_, HashMap<Name, CancellationToken>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What stops a call, and why.
async fn interrupt(
    abort: CancellationToken,
    ended: CancellationToken,
    deadline: Option<tokio::time::Instant>,
) -> Interrupt {
    let time_is_up = async {
        match deadline {
            Some(deadline) => tokio::time::sleep_until(deadline).await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        () = abort.cancelled() => Interrupt::Aborted,
        () = ended.cancelled() => Interrupt::ServerEnds,
        () = time_is_up => Interrupt::Deadline,
    }
}

impl Call {
    /// It may take no longer than until `deadline`.
    pub(crate) fn shorten(&mut self, deadline: Instant) {
        if self.deadline.is_some_and(|own| own <= deadline) {
            return;
        }
        self.deadline = Some(deadline);
        let interrupt = interrupt(
            self.abort.clone(),
            self.calls.ended.clone(),
            Some(deadline.into()),
        );
        self.interrupt = Box::pin(interrupt);
    }

    /// Does a piece of the call's work, unless it is interrupted first; then dropping `work` cancels it.
    pub(crate) async fn run<T>(&mut self, work: impl Future<Output = T>) -> Result<T, Interrupt> {
        tokio::select! {
            biased;
            interrupt = &mut self.interrupt => {
                // A finished future must not be polled again.
                self.interrupt = Box::pin(std::future::ready(interrupt));
                Err(interrupt)
            }
            done = work => Ok(done),
        }
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        let name = (self.owner.clone(), self.id.clone());
        self.calls.running().remove(&name);
    }
}
