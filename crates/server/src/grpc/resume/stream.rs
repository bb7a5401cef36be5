//! A stream that outlives its connection: its tape, who reads it, and what its pump is to do.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use baichuan_engine::TenantId;
use baichuan_proto::v1;
use tokio::sync::watch;
use v1::generate_response::Event;

use super::tape::{Full, Tape};
use crate::error::{ApiError, NotResumable};

/// One stream. The pump writes it, one reader at a time reads it.
#[derive(Debug)]
pub(super) struct Stream {
    /// Digest of the request that it answers.
    pub(super) contents: [u8; 32],
    /// Whose share of streams it takes.
    pub(super) tenant: TenantId,
    state: Mutex<State>,
    /// There is something for the reader.
    news: watch::Sender<()>,
    /// There is something for the pump.
    orders: watch::Sender<()>,
}

#[derive(Debug)]
struct State {
    tape: Tape,
    /// That it ended, and with which error.
    end: Option<Option<ApiError>>,
    /// Number of the newest reader.
    reader: u64,
    /// Number of the message that the newest reader wants next.
    unread: u64,
    /// Since when nobody reads.
    left: Option<Instant>,
    /// Nobody will come back, or may.
    given_up: bool,
    /// The least of all its callers'.
    deadline: Option<Instant>,
}

/// What the pump is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Orders {
    /// Forget it all.
    pub(super) give_up: bool,
    /// Since when nobody reads.
    pub(super) left: Option<Instant>,
    /// Until when it may take.
    pub(super) deadline: Option<Instant>,
    /// All there is has been read.
    pub(super) is_read: bool,
}

/// What there is for a reader.
pub(super) enum Found {
    Message(v1::GenerateResponse),
    /// Nothing yet.
    Nothing,
    /// The end of the stream, for all its readers.
    End(Option<ApiError>),
    /// This reader's end alone.
    Failed(ApiError),
}

impl Stream {
    /// A stream with its first reader, number 0.
    pub(super) fn new(contents: [u8; 32], tenant: TenantId, limit: usize) -> Self {
        Self {
            contents,
            tenant,
            state: Mutex::new(State {
                tape: Tape::new(limit),
                end: None,
                reader: 0,
                unread: 0,
                left: None,
                given_up: false,
                deadline: None,
            }),
            news: watch::Sender::new(()),
            orders: watch::Sender::new(()),
        }
    }

    /// Tells of news for readers.
    pub(super) fn news(&self) -> watch::Receiver<()> {
        self.news.subscribe()
    }

    /// Tells of changed orders.
    pub(super) fn changes(&self) -> watch::Receiver<()> {
        self.orders.subscribe()
    }

    /// What the pump is to do now.
    pub(super) fn orders(&self) -> Orders {
        let state = self.state();
        Orders {
            give_up: state.given_up,
            left: state.left,
            deadline: state.deadline,
            is_read: state.end.is_some() && state.unread >= state.tape.end(),
        }
    }

    /// Adds a message.
    pub(super) fn push(&self, event: Event) -> Result<(), Full> {
        let mut state = self.state();
        let unread = state.unread;
        let pushed = state.tape.push(event, unread);
        drop(state);
        self.news.send_replace(());
        pushed
    }

    /// Nothing follows.
    pub(super) fn end(&self, error: Option<ApiError>) {
        self.state().end.get_or_insert(error);
        self.news.send_replace(());
    }

    /// Since when it has been nobody's: it has ended and no one reads it.
    pub(super) fn idle_since(&self) -> Option<Instant> {
        let state = self.state();
        state.left.filter(|_| state.end.is_some())
    }

    /// Gives it up if nobody reads it; whether it is given up.
    pub(super) fn expire(&self) -> bool {
        let mut state = self.state();
        state.given_up |= state.left.is_some();
        state.given_up
    }

    /// Its pump is no more: nothing comes any more, whatever the reason.
    pub(super) fn close(&self) {
        self.end(Some(ApiError::Internal {
            cause: "a stream's pump stopped before its end".into(),
        }));
        self.state().given_up = true;
    }

    /// Forgets it all.
    pub(super) fn give_up(&self) {
        self.state().given_up = true;
        self.orders.send_replace(());
    }

    /// A new reader, who has `token` tokens; an old one that still reads ends. Returns the reader's number and the
    /// message that it begins with; nothing where the stream is given up.
    pub(super) fn attach(&self, token: u64, limit: Option<Duration>) -> Result<Option<(u64, u64)>, ApiError> {
        let mut state = self.state();
        if state.given_up {
            return Ok(None);
        }
        let next = state.tape.find(token)?;
        state.reader += 1;
        state.unread = next;
        state.left = None;
        let own = limit.and_then(|limit| Instant::now().checked_add(limit));
        state.deadline = [state.deadline, own].into_iter().flatten().min();
        let reader = state.reader;
        drop(state);
        self.news.send_replace(());
        self.orders.send_replace(());
        Ok(Some((reader, next)))
    }

    /// What there is for `reader` at message `number`.
    pub(super) fn read(&self, reader: u64, number: u64) -> Found {
        let mut state = self.state();
        if state.reader != reader {
            return Found::Failed(ApiError::NotResumable(NotResumable::Elsewhere));
        }
        match state.tape.get(number) {
            Some(Ok(message)) => {
                state.unread = number + 1;
                Found::Message(message)
            }
            Some(Err(error)) => Found::Failed(error),
            None => state.end.clone().map_or(Found::Nothing, Found::End),
        }
    }

    /// `reader` has gone; where it does not come back, nobody will.
    pub(super) fn left(&self, reader: u64, comes_back: bool) {
        let mut state = self.state();
        if state.reader != reader {
            return;
        }
        state.left = Some(Instant::now());
        state.given_up |= !comes_back;
        drop(state);
        self.orders.send_replace(());
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
