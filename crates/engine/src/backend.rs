//! The seam between the server and a source of tokens and embeddings.

use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Instant;

use async_trait::async_trait;
use tokio::sync::{mpsc, oneshot, watch};

use crate::error::{RequestError, SubmitError};
use crate::event::{Delta, Event};
use crate::grammar::Grammars;
use crate::ids::TokenId;
use crate::request::{Pooling, Request, RequestLimits, SamplingOptions};
use crate::stats::EngineStats;
use crate::text::{ChatTemplate, Tokenizer};

/// A source of tokens and embeddings: the server's only view of a model.
#[async_trait]
pub trait Backend: Send + Sync {
    /// Names, limits and features, fixed at load.
    fn info(&self) -> &BackendInfo;

    /// Takes a request or refuses it, at once. Dropping the stream cancels the request.
    fn submit(&self, request: Request) -> Result<EventStream, SubmitError>;

    /// Load and health, as they change. The sender is gone when the backend is dead.
    fn stats(&self) -> watch::Receiver<EngineStats>;

    /// Admits no more and returns when everything admitted has ended.
    async fn drain(&self);
}

/// What is fixed of a backend once its model is loaded.
#[derive(Clone, Debug)]
pub struct BackendInfo {
    /// Served name.
    pub name: String,
    /// The plugin that loaded it.
    pub plugin: &'static str,
    /// As in the checkpoint's config.json.
    pub architecture: String,
    /// Number of weights.
    pub parameters: u64,
    /// Element type of the weights in memory.
    pub dtype: String,
    /// Of the weights, `none` where there is none.
    pub quantization: String,
    /// Where it runs.
    pub device: String,
    /// Width of the logits.
    pub vocab_size: usize,
    /// Width of an embedding.
    pub hidden_size: usize,
    /// Longest prompt and completion accepted, together, in tokens.
    pub max_context: usize,
    /// Whether it completes prompts.
    pub generates: bool,
    /// Whether it makes vectors of inputs.
    pub embeds: bool,
    /// What [`Pooling`] suits the model.
    pub default_pooling: Pooling,
    /// What the checkpoint says of sampling.
    pub default_sampling: SamplingOptions,
    /// Completion length when the request says nothing; absent: what the context leaves.
    pub default_max_tokens: Option<u32>,
    /// What a request may ask for.
    pub limits: RequestLimits,
    /// Tokens that end a completion.
    pub eos_token_ids: Vec<TokenId>,
    /// First token of a prompt, where the model has one.
    pub bos_token_id: Option<TokenId>,
    /// Padding, where the model has one.
    pub pad_token_id: Option<TokenId>,
    /// Text to tokens and back.
    pub tokenizer: Tokenizer,
    /// Compiles what completions must look like.
    pub grammars: Grammars,
    /// Absent: no chat.
    pub chat_template: Option<ChatTemplate>,
    /// Weights digest, quantisation and build.
    pub fingerprint: String,
}

/// The events of one request. Dropping it cancels the request.
#[derive(Debug)]
pub struct EventStream {
    events: mpsc::Receiver<Event>,
    ends: Arc<Ends>,
    stuck: Option<watch::Receiver<bool>>,
    ended: bool,
}

/// What a stream's ends share: how it ended, at either, and what is not in the channel.
#[derive(Debug, Default)]
struct Ends {
    failure: OnceLock<RequestError>,
    dropped_at: OnceLock<Instant>,
    untold: Mutex<Vec<Delta>>,
}

impl Ends {
    /// Pieces of completions, at most one of each: they wait for others, or nobody took them.
    fn untold(&self) -> MutexGuard<'_, Vec<Delta>> {
        self.untold.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Waits until an engine's thread says that it has drained. One that died or is `stuck` has nothing left to do either.
pub async fn until_drained(said: oneshot::Receiver<()>, mut stuck: watch::Receiver<bool>) {
    tokio::select! {
        _ = said => {}
        Ok(_) = stuck.wait_for(|stuck| *stuck) => {}
    }
}

impl EventStream {
    /// Ends the stream with [`RequestError::EngineStopped`] when `stuck` becomes true, for the engine cannot.
    pub fn unless(mut self, stuck: watch::Receiver<bool>) -> Self {
        self.stuck = Some(stuck);
        self
    }

    /// The next event; `None` after the terminal one.
    ///
    /// A backend that vanished without a terminal event ends the stream with
    /// [`RequestError::EngineStopped`].
    pub async fn next(&mut self) -> Option<Event> {
        if self.ended {
            return None;
        }
        let stuck = async {
            let is_stuck = match &mut self.stuck {
                Some(stuck) => stuck.wait_for(|stuck| *stuck).await.is_ok(),
                None => false,
            };
            if !is_stuck {
                std::future::pending().await
            }
        };
        tokio::select! {
            biased;
            event = self.events.recv() => match event {
                Some(event) => Some(event),
                None => {
                    self.ended = true;
                    self.ends.failure.get().cloned().map(Event::Failed)
                }
            },
            () = stuck => {
                self.ended = true;
                Some(Event::Failed(RequestError::EngineStopped))
            }
        }
    }
}

impl EventStream {
    /// Cancels the request. Returns all that has come of it and was not read, pieces that waited for others included.
    pub fn cancel(mut self) -> Vec<Event> {
        let _ = self.ends.dropped_at.set(Instant::now());
        // While this is held nothing is told: it was before, and is in the channel, or stays untold.
        let mut untold = self.ends.untold();
        self.events.close();
        let mut unread: Vec<Event> = std::iter::from_fn(|| self.events.try_recv().ok()).collect();
        unread.extend(untold.drain(..).map(Event::Delta));
        drop(untold);
        unread
    }
}

impl Drop for EventStream {
    fn drop(&mut self) {
        // Before the channel closes, by which the engine notices.
        let _ = self.ends.dropped_at.set(Instant::now());
    }
}

/// The sending end of an [`EventStream`]. Never waits.
///
/// Dropped without [`EventSink::finish`], it ends the stream with [`RequestError::EngineStopped`]: so a request
/// whose engine panics still ends in one terminal event.
#[derive(Debug)]
pub struct EventSink {
    events: mpsc::Sender<Event>,
    ends: Arc<Ends>,
    finished: bool,
}

/// Nobody takes events any more: the client has gone or fell too far behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Closed;

impl EventSink {
    /// A sink and its stream, with room for `capacity` unread events.
    pub fn channel(capacity: usize) -> (Self, EventStream) {
        let (tx, rx) = mpsc::channel(capacity);
        let ends = Arc::new(Ends::default());
        let sink = Self {
            events: tx,
            ends: ends.clone(),
            finished: false,
        };
        let stream = EventStream {
            events: rx,
            ends,
            stuck: None,
            ended: false,
        };
        (sink, stream)
    }

    /// Hands over an event. A reader that fell too far behind is cut off with [`RequestError::SlowClient`].
    pub fn send(&self, event: Event) -> Result<(), Closed> {
        match self.try_send(event) {
            None => Ok(()),
            Some(_) => Err(Closed),
        }
    }

    /// Gives the event back where nobody takes it.
    fn try_send(&self, event: Event) -> Option<Event> {
        match self.events.try_send(event) {
            Ok(()) => None,
            Err(mpsc::error::TrySendError::Closed(event)) => Some(event),
            Err(mpsc::error::TrySendError::Full(event)) => {
                self.set_failure(RequestError::SlowClient {
                    pending: self.events.max_capacity(),
                });
                Some(event)
            }
        }
    }

    /// Hands over a piece of a completion. Unless it is `due`, it waits for the completion's next, and goes with that.
    ///
    /// # Errors
    /// As [`Self::send`]; whoever cancels the stream gets the piece nevertheless.
    pub fn tell(&self, delta: Delta, due: bool) -> Result<(), Closed> {
        let mut untold = self.ends.untold();
        let waiting = untold.iter().position(|waiting| waiting.index == delta.index);
        let delta = match waiting.map(|at| untold.swap_remove(at)) {
            Some(mut waiting) => {
                waiting.append(delta);
                waiting
            }
            None => delta,
        };
        if !due {
            untold.push(delta);
            return Ok(());
        }
        match self.try_send(Event::Delta(delta)) {
            None => Ok(()),
            Some(event) => {
                if let Event::Delta(delta) = event {
                    untold.push(delta);
                }
                Err(Closed)
            }
        }
    }

    /// Hands over an event that may be missed: where there is no room for it, it is forgotten.
    pub fn offer(&self, event: Event) {
        // Full or closed: whoever sends what counts will notice.
        let _ = self.events.try_send(event);
    }

    /// Ends the stream: its last event was sent.
    pub fn finish(mut self) {
        self.finished = true;
    }

    /// Ends the stream with `error`, behind what is already in it.
    pub fn fail(self, error: RequestError) {
        self.set_failure(error);
    }

    /// Whether the stream was dropped.
    pub fn is_closed(&self) -> bool {
        self.events.is_closed()
    }

    /// Tells when the stream is dropped, for who gives the sink away. The stream does not end while it lives.
    pub fn watch(&self) -> ClosedWatch {
        ClosedWatch(self.events.clone())
    }

    /// When the stream was dropped, if it was.
    pub fn dropped_at(&self) -> Option<Instant> {
        self.ends.dropped_at.get().copied()
    }

    /// The first failure counts.
    fn set_failure(&self, error: RequestError) {
        let _ = self.ends.failure.set(error);
    }
}

/// Learns that a stream was dropped.
#[derive(Debug)]
pub struct ClosedWatch(mpsc::Sender<Event>);

impl ClosedWatch {
    /// Returns when nobody reads any more.
    pub async fn closed(&self) {
        self.0.closed().await;
    }
}

impl Drop for EventSink {
    fn drop(&mut self) {
        if !self.finished {
            self.set_failure(RequestError::EngineStopped);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn piece(index: u32, token: TokenId) -> Delta {
        Delta {
            at: Instant::now(),
            index,
            text: token.to_string(),
            token_ids: vec![token],
            logprobs: Vec::new(),
        }
    }

    fn told(event: &Event) -> (u32, &str, &[TokenId]) {
        match event {
            Event::Delta(delta) => (delta.index, &delta.text, &delta.token_ids),
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn pieces_wait_for_the_one_that_is_due_of_the_same_completion() {
        let (sink, mut stream) = EventSink::channel(8);
        sink.tell(piece(0, 1), false).unwrap();
        sink.tell(piece(1, 7), false).unwrap();
        sink.tell(piece(0, 2), true).unwrap();
        sink.tell(piece(0, 3), true).unwrap();
        assert_eq!(told(&stream.next().await.unwrap()), (0, "12", &[1, 2][..]));
        assert_eq!(told(&stream.next().await.unwrap()), (0, "3", &[3][..]));
        assert_eq!(told(&stream.cancel()[0]), (1, "7", &[7][..]));
    }

    #[test]
    fn who_cancels_gets_what_was_not_read_and_what_waited() {
        let (sink, stream) = EventSink::channel(8);
        sink.tell(piece(0, 1), true).unwrap();
        sink.tell(piece(0, 2), false).unwrap();
        let unread = stream.cancel();
        assert_eq!(
            unread.iter().map(told).collect::<Vec<_>>(),
            [(0, "1", &[1][..]), (0, "2", &[2][..])]
        );
        assert!(sink.is_closed() && sink.dropped_at().is_some());
        assert_eq!(sink.tell(piece(0, 3), true), Err(Closed));
    }

    #[tokio::test]
    async fn the_piece_for_which_there_was_no_room_is_not_lost_either() {
        let (sink, mut stream) = EventSink::channel(1);
        sink.tell(piece(0, 1), true).unwrap();
        assert_eq!(sink.tell(piece(0, 2), true), Err(Closed));
        drop(sink);
        assert_eq!(told(&stream.next().await.unwrap()), (0, "1", &[1][..]));
        let failed = stream.next().await;
        assert_eq!(
            failed,
            Some(Event::Failed(RequestError::SlowClient { pending: 1 }))
        );
        assert_eq!(told(&stream.cancel()[0]), (0, "2", &[2][..]));
    }
}
