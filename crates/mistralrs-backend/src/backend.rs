//! What the rest of the process holds of an engine.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use async_trait::async_trait;
use baichuan_engine::backend::until_drained;
use baichuan_engine::queue::Queue;
use baichuan_engine::request::{EmbedRequest, GenerateRequest, Request};
use baichuan_engine::stats::EngineStats;
use baichuan_engine::{Backend, BackendInfo, EventSink, EventStream, SubmitError, Violation};
use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::{oneshot, watch};

use crate::driver::{Command, Job};
use crate::folder::Kind;

/// A running engine. Dropping it ends it, with whatever still runs, and joins its thread.
pub(crate) struct MistralRsBackend {
    pub(crate) info: BackendInfo,
    pub(crate) kind: Kind,
    /// `None` only while it is being dropped.
    pub(crate) inbox: Option<UnboundedSender<Command>>,
    pub(crate) stats: watch::Receiver<EngineStats>,
    pub(crate) queue: Queue,
    pub(crate) max_wait: Option<Duration>,
    pub(crate) draining: Arc<AtomicBool>,
    pub(crate) event_buffer: usize,
    /// Whether the engine does not come back from its model.
    pub(crate) stuck: watch::Receiver<bool>,
    pub(crate) thread: Mutex<Option<JoinHandle<()>>>,
}

impl MistralRsBackend {
    pub(crate) fn send(&self, command: Command) -> Result<(), SubmitError> {
        let inbox = self.inbox.as_ref().ok_or(SubmitError::Dead)?;
        inbox.send(command).map_err(|_| SubmitError::Dead)
    }

    fn check_generate(&self, request: &GenerateRequest) -> Result<(), SubmitError> {
        if self.kind == Kind::Embedding {
            return unsupported("model", "generation");
        }
        if request.output.prompt_logprobs.is_some() {
            return unsupported("output.prompt_logprobs", "log-probabilities of the prompt");
        }
        Ok(request.check_against(self.info.vocab_size, self.info.max_context)?)
    }

    fn check_embed(&self, request: &EmbedRequest) -> Result<(), SubmitError> {
        if self.kind == Kind::Text {
            return unsupported("model", "embedding");
        }
        if request.pooling != self.info.default_pooling {
            return unsupported("pooling", "pooling other than the model's own");
        }
        request.check_against(self.info.vocab_size, self.info.max_context)?;
        // Of a single token mistralrs-core makes no attention mask, and panics.
        if request.tokens.len() < 2 {
            let message = "the model embeds inputs of 2 tokens and more, got 1";
            return Err(SubmitError::Invalid(Violation::new("inputs", message).into()));
        }
        Ok(())
    }
}

fn unsupported(field: &'static str, feature: &'static str) -> Result<(), SubmitError> {
    Err(SubmitError::Unsupported { field, feature })
}

#[async_trait]
impl Backend for MistralRsBackend {
    fn info(&self) -> &BackendInfo {
        &self.info
    }

    fn submit(&self, request: Request) -> Result<EventStream, SubmitError> {
        if self.draining.load(Ordering::Relaxed) {
            return Err(SubmitError::Draining);
        }
        if *self.stuck.borrow() {
            return Err(SubmitError::Dead);
        }
        match &request {
            Request::Generate(request) => self.check_generate(request)?,
            Request::Embed(request) => self.check_embed(request)?,
        }
        let place = self.queue.admit(&request, &self.stats.borrow(), self.max_wait)?;
        let (sink, stream) = EventSink::channel(self.event_buffer);
        self.send(Command::Submit(Box::new(Job {
            request,
            sink,
            place,
            span: tracing::Span::current(),
        })))?;
        Ok(stream.unless(self.stuck.clone()))
    }

    fn stats(&self) -> watch::Receiver<EngineStats> {
        self.stats.clone()
    }

    async fn drain(&self) {
        self.draining.store(true, Ordering::Relaxed);
        let (tx, rx) = oneshot::channel();
        if self.send(Command::Drain(tx)).is_err() {
            return;
        }
        until_drained(rx, self.stuck.clone()).await;
    }
}

impl Drop for MistralRsBackend {
    fn drop(&mut self) {
        self.inbox = None;
        let thread = self.thread.get_mut().ok().and_then(Option::take);
        // One that is stuck cannot be joined: it ends with the process.
        if let Some(thread) = thread.filter(|_| !*self.stuck.borrow()) {
            let _ = thread.join(); // its panics are caught and logged inside
        }
    }
}
