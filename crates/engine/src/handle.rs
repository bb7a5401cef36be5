//! What the rest of the process holds of an engine.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use tokio::sync::{oneshot, watch};

use crate::backend::{Backend, BackendInfo, EventSink, EventStream, until_drained};
use crate::completion::Vocabulary;
use crate::config::EngineConfig;
use crate::core::{EngineCore, Job};
use crate::error::{LoadError, SubmitError};
use crate::model::CausalLm;
use crate::queue::Queue;
use crate::request::Request;
use crate::stats::EngineStats;
use crate::watchdog::{Pulse, Watchdog};
use crate::worker::{Command, Worker};

/// A running engine. The last clone to go ends it, with whatever still runs, and joins its thread.
#[derive(Clone)]
pub struct EngineHandle(Arc<Inner>);

struct Inner {
    info: BackendInfo,
    /// `None` only while the handle is being dropped.
    inbox: Option<mpsc::Sender<Command>>,
    stats: watch::Receiver<EngineStats>,
    queue: Queue,
    draining: Arc<AtomicBool>,
    max_wait: Option<Duration>,
    event_buffer: usize,
    pulse: Arc<Pulse>,
    thread: Mutex<Option<JoinHandle<()>>>,
    /// Absent: steps may take for ever.
    _watchdog: Option<Watchdog>,
}

impl EngineHandle {
    /// Warms a model up and starts the thread that owns it.
    ///
    /// `vocab_size`, `hidden_size` and `max_context` of `info` are taken from the model and its cache plan.
    pub fn start(
        model: impl CausalLm + 'static,
        mut info: BackendInfo,
        config: &EngineConfig,
    ) -> Result<Self, LoadError> {
        config.validate()?;
        let spec = model.spec();
        let context = spec.max_context.min(config.max_context.unwrap_or(usize::MAX));
        info.vocab_size = spec.vocab_size;
        info.hidden_size = spec.hidden_size;
        info.max_context = spec.cache.longest_sequence(context);
        let vocabulary = Vocabulary {
            tokenizer: info.tokenizer.clone(),
            eos_token_ids: info.eos_token_ids.clone(),
            max_context: info.max_context,
        };
        let queue = Queue::new(config.max_waiting, config.max_waiting_tokens);
        let mut core = EngineCore::new(model, vocabulary, config, queue.clone(), Instant::now);
        core.warm_up()?;

        let draining = Arc::new(AtomicBool::new(false));
        let pulse = Arc::new(Pulse::new());
        let (stats_tx, stats) = watch::channel(core.stats(false));
        let stats_tx = Arc::new(stats_tx);
        let no_thread = |e| LoadError::Compute(format!("cannot start the engine's thread: {e}"));
        let watchdog = config
            .step_timeout
            .map(|timeout| Watchdog::start(&info.name, timeout, pulse.clone(), Arc::downgrade(&stats_tx)))
            .transpose()
            .map_err(no_thread)?;
        let (inbox, commands) = mpsc::channel();
        let worker = Worker {
            inbox: commands,
            stats: stats_tx,
            draining: draining.clone(),
            pulse: pulse.clone(),
            on_failure: config.on_failure,
        };
        let thread = std::thread::Builder::new()
            .name(format!("engine-{}", info.name))
            .spawn(move || worker.run(core))
            .map_err(no_thread)?;
        Ok(Self(Arc::new(Inner {
            info,
            inbox: Some(inbox),
            stats,
            queue,
            draining,
            max_wait: config.max_wait,
            event_buffer: config.event_buffer,
            pulse,
            thread: Mutex::new(Some(thread)),
            _watchdog: watchdog,
        })))
    }

    fn send(&self, command: Command) -> Result<(), SubmitError> {
        let inbox = self.0.inbox.as_ref().ok_or(SubmitError::Dead)?;
        inbox.send(command).map_err(|_| SubmitError::Dead)
    }
}

#[async_trait]
impl Backend for EngineHandle {
    fn info(&self) -> &BackendInfo {
        &self.0.info
    }

    fn submit(&self, request: Request) -> Result<EventStream, SubmitError> {
        let inner = &self.0;
        if inner.draining.load(Ordering::Relaxed) {
            return Err(SubmitError::Draining);
        }
        if inner.pulse.is_stuck() {
            return Err(SubmitError::Dead);
        }
        let (vocab_size, max_context) = (inner.info.vocab_size, inner.info.max_context);
        match &request {
            Request::Generate(generate) => generate.check_against(vocab_size, max_context)?,
            Request::Embed(embed) => embed.check_against(vocab_size, max_context)?,
        }
        let place = inner
            .queue
            .admit(&request, &inner.stats.borrow(), inner.max_wait)?;
        let (sink, stream) = EventSink::channel(inner.event_buffer);
        self.send(Command::Submit(Box::new(Job {
            request,
            sink,
            place,
            span: tracing::Span::current(),
        })))?;
        Ok(stream.unless(inner.pulse.subscribe()))
    }

    fn stats(&self) -> watch::Receiver<EngineStats> {
        self.0.stats.clone()
    }

    async fn drain(&self) {
        self.0.draining.store(true, Ordering::Relaxed);
        let (tx, rx) = oneshot::channel();
        if self.send(Command::Drain(tx)).is_err() {
            return;
        }
        until_drained(rx, self.0.pulse.subscribe()).await;
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.inbox = None;
        let thread = self.thread.get_mut().ok().and_then(Option::take);
        // A thread that is stuck cannot be joined: it ends with the process.
        if let Some(thread) = thread.filter(|_| !self.pulse.is_stuck()) {
            let _ = thread.join(); // its panics are caught and logged inside
        }
    }
}
