//! How long a response may wait for its reader.
//!
//! A client that takes nothing of a response holds all that belongs to it, for as long as it likes: HTTP/2's flow control
//! stops the sender, and has no time. So a response goes out in pieces that tell when they have left, its end waits until
//! all of them have, and a call of which no piece leaves for `grpc.send_timeout` is dropped: that resets its stream, and
//! the transport forgets what it had buffered of it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::{Buf, Bytes};
use hyper::rt::Executor;
use tokio::time::{Instant, sleep, sleep_until};

/// Most bytes of a piece: what a reader has to take within the time.
pub(super) const PIECE_BYTES: usize = 16 << 10;

tokio::task_local! {
    /// Of the call that this task carries.
    static OUTBOX: Arc<Outbox>;
}

/// Runs the calls of a connection, each in a task of its own, until it ends or its reader takes nothing for too long.
#[derive(Clone, Debug)]
pub(super) struct Carrier {
    timeout: Duration,
}

impl Carrier {
    pub(super) fn new(timeout: Duration) -> Self {
        Self { timeout }
    }
}

impl<F: Future<Output = ()> + Send + 'static> Executor<F> for Carrier {
    fn execute(&self, call: F) {
        let (outbox, timeout) = (Arc::<Outbox>::default(), self.timeout);
        let carried = outbox.clone();
        tokio::spawn(OUTBOX.scope(carried, async move {
            tokio::select! {
                () = call => {}
                () = outbox.stalls(timeout) => {}
            }
        }));
    }
}

/// What of one call's response is with the transport.
#[derive(Debug, Default)]
pub(super) struct Outbox(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    pieces: usize,
    /// Since when no piece has left, while there are any.
    since: Option<Instant>,
    stalled: bool,
    /// Who waits for all to have left.
    waker: Option<Waker>,
}

/// A piece of a response. The transport drops it when it has been written, or will not be.
#[derive(Debug)]
pub(crate) struct Piece {
    bytes: Bytes,
    outbox: Arc<Outbox>,
}

impl Outbox {
    /// The running call's.
    pub(super) fn current() -> Arc<Self> {
        OUTBOX.try_with(Arc::clone).unwrap_or_default()
    }

    /// A piece that goes to the transport.
    pub(super) fn piece(self: &Arc<Self>, bytes: Bytes) -> Piece {
        let mut state = self.state();
        state.pieces += 1;
        state.since.get_or_insert_with(Instant::now);
        drop(state);
        Piece {
            bytes,
            outbox: self.clone(),
        }
    }

    /// Ready when every piece has left.
    pub(super) fn poll_empty(&self, cx: &Context<'_>) -> Poll<()> {
        let mut state = self.state();
        if state.pieces == 0 {
            return Poll::Ready(());
        }
        state.waker = Some(cx.waker().clone());
        Poll::Pending
    }

    /// Whether every piece has left.
    pub(super) fn is_empty(&self) -> bool {
        self.state().pieces == 0
    }

    /// Whether the call is dropped because its reader took nothing for too long.
    pub(super) fn has_stalled(&self) -> bool {
        self.state().stalled
    }

    /// Returns when no piece has left for so long, though there are some.
    async fn stalls(&self, timeout: Duration) {
        loop {
            let since = self.state().since;
            match since {
                // It cannot be so sooner.
                None => sleep(timeout).await,
                Some(since) if since.elapsed() < timeout => sleep_until(since + timeout).await,
                Some(_) => {
                    self.state().stalled = true;
                    return;
                }
            }
        }
    }

    fn left(&self) {
        let mut state = self.state();
        state.pieces -= 1;
        let is_empty = state.pieces == 0;
        state.since = (!is_empty).then(Instant::now);
        let waker = if is_empty { state.waker.take() } else { None };
        drop(state);
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Piece {
    fn drop(&mut self) {
        self.outbox.left();
    }
}

impl Buf for Piece {
    fn remaining(&self) -> usize {
        self.bytes.remaining()
    }

    fn chunk(&self) -> &[u8] {
        self.bytes.chunk()
    }

    fn advance(&mut self, n: usize) {
        self.bytes.advance(n);
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    const TIMEOUT: Duration = Duration::from_secs(60);

    fn is_empty(outbox: &Outbox) -> bool {
        let context = Context::from_waker(Waker::noop());
        outbox.poll_empty(&context).is_ready()
    }

    #[tokio::test(start_paused = true)]
    async fn a_response_stalls_when_no_piece_leaves_for_the_whole_time() {
        let outbox = Arc::<Outbox>::default();
        let mut stalls = Box::pin(outbox.stalls(TIMEOUT));
        // Nothing to take: that may last.
        tokio::time::timeout(TIMEOUT * 3, &mut stalls).await.unwrap_err();
        let mut pieces: Vec<Piece> = (0..4).map(|_| outbox.piece(Bytes::from_static(b"x"))).collect();
        // One leaves now and then: that may last longer than the time.
        while pieces.len() > 1 {
            tokio::time::timeout(TIMEOUT - Duration::from_secs(1), &mut stalls)
                .await
                .unwrap_err();
            pieces.pop();
        }
        assert!(!is_empty(&outbox) && !outbox.has_stalled());
        let before = Instant::now();
        stalls.await;
        assert_eq!(before.elapsed(), TIMEOUT);
        assert!(outbox.has_stalled());
        drop(pieces);
        assert!(is_empty(&outbox));
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_that_stalls_is_dropped_and_others_go_on() {
        struct Told(tokio::sync::mpsc::UnboundedSender<&'static str>, &'static str);
        impl Drop for Told {
            fn drop(&mut self) {
                self.0.send(self.1).unwrap();
            }
        }
        let (told, mut tell) = tokio::sync::mpsc::unbounded_channel();
        let carrier = Carrier::new(TIMEOUT);
        for (name, says_something) in [("waits for its reader", true), ("waits for its model", false)] {
            let held = Told(told.clone(), name);
            carrier.execute(async move {
                let _held = held;
                let piece = Outbox::current().piece(Bytes::from_static(b"x"));
                let _unread = says_something.then_some(piece);
                std::future::pending::<()>().await;
            });
        }
        assert_eq!(tell.recv().await, Some("waits for its reader"));
        tokio::time::sleep(TIMEOUT * 3).await;
        assert_eq!(tell.recv().now_or_never(), None);
    }
}
