//! The seam at which tokens are chosen: a logits processor that leaves mistralrs-core's sampler one token to take.
//!
//! mistralrs-core calls [`Steer::apply`] with a completion's row of logits, on its own thread. The engine's
//! [`Completion`] chooses from that row and its events go straight to the client; mistralrs-core gets a row in which
//! only the chosen token is possible. When the completion has ended, its response channel is closed here, so that
//! mistralrs-core gives the sequence up with the very step that ended it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Instant;

use baichuan_engine::completion::{Answer, Completion, Vocabulary};
use baichuan_engine::event::{Event, Prefilled};
use baichuan_engine::{EventSink, RequestError, TokenId};
use candle_core::{Device, Result, Tensor};
use mistralrs_core::{CustomLogitsProcessor, Response};
use tokio::sync::mpsc::Receiver;

use crate::generate::Context as Shared;
use crate::meter::Meter;

/// One completion under way.
pub(crate) struct Steer {
    vocabulary: Arc<Vocabulary>,
    meter: Arc<Meter>,
    /// What mistralrs-core is fed when nothing more is to be said: some token that reads as text, since it tells a
    /// closed channel only where it has text to send.
    filler: TokenId,
    state: Mutex<State>,
    #[cfg(test)]
    name: String,
}

struct State {
    completion: Completion,
    sink: Option<EventSink>,
    responses: Receiver<Response>,
    prompt_tokens: usize,
    is_first: bool,
    admitted: Instant,
    last: Instant,
    /// None while it goes on.
    end: Option<End>,
    n_tokens: usize,
}

/// How a completion ended.
#[derive(Debug)]
pub(crate) enum End {
    /// Its last event was sent.
    Finished,
    /// Its client has gone, or does not read.
    Gone,
    /// It cannot go on.
    Failed(RequestError),
}

/// What is needed to begin.
pub(crate) struct Start {
    pub(crate) completion: Completion,
    pub(crate) sink: EventSink,
    pub(crate) responses: Receiver<Response>,
    pub(crate) prompt_tokens: usize,
    /// Of the request's completions: its prompt has not been computed for another yet.
    pub(crate) is_first: bool,
    /// When the request was.
    pub(crate) admitted: Instant,
}

impl Steer {
    pub(crate) fn new(shared: &Shared, start: Start, #[cfg(test)] name: String) -> Self {
        Self {
            vocabulary: shared.vocabulary.clone(),
            meter: shared.meter.clone(),
            filler: shared.filler,
            #[cfg(test)]
            name,
            state: Mutex::new(State {
                completion: start.completion,
                sink: Some(start.sink),
                responses: start.responses,
                prompt_tokens: start.prompt_tokens,
                is_first: start.is_first,
                admitted: start.admitted,
                last: Instant::now(),
                end: None,
                n_tokens: 0,
            }),
        }
    }

    /// What mistralrs-core answers; `None` when it has nothing more to say.
    pub(crate) fn poll_response(&self, context: &mut Context<'_>) -> Poll<Option<Response>> {
        self.state().responses.poll_recv(context)
    }

    /// Ends the completion from outside.
    pub(crate) fn stop(&self, end: End) {
        self.state().stop(end);
    }

    /// The end, the sink for who goes on with it, and how many tokens there were; no end: mistralrs-core's engine has
    /// gone.
    pub(crate) fn take_end(&self) -> (Option<End>, Option<EventSink>, usize) {
        let mut state = self.state();
        (state.end.take(), state.sink.take(), state.n_tokens)
    }

    /// A panic in between leaves a state that is only looked at for its end.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn choose(&self, logits: &[f32]) -> TokenId {
        let mut state = self.state();
        let state = &mut *state;
        if state.end.is_some() {
            return self.filler;
        }
        // One message per token, of which nothing is needed: kept from piling up while the driver is busy.
        while state.responses.try_recv().is_ok() {}
        let now = Instant::now();
        let accepted = match state
            .completion
            .accept(Answer::Logits(logits), &self.vocabulary, now)
        {
            Ok(accepted) => accepted,
            Err(error) => {
                state.stop(End::Failed(error));
                return self.filler;
            }
        };
        let elapsed = now - state.last;
        match state.n_tokens {
            0 => {
                self.meter.prefilled(state.prompt_tokens, elapsed);
                state.tell_prefilled(now);
            }
            _ => self.meter.decoded(elapsed),
        }
        state.n_tokens += 1;
        state.last = now;
        let Some(sink) = &state.sink else {
            return self.filler;
        };
        let mut sent = sink.tell(accepted.delta, accepted.due);
        let finished = accepted.finish.is_some();
        if let Some(reason) = accepted.finish {
            let report = state.completion.finished(reason, state.admitted, now);
            sent = sent.and_then(|()| sink.send(Event::Finished(report)));
        }
        match (sent, finished) {
            (Err(_), _) => state.stop(End::Gone),
            (Ok(()), true) => state.stop(End::Finished),
            (Ok(()), false) => {}
        }
        accepted.token
    }
}

impl State {
    /// The first end counts.
    fn stop(&mut self, end: End) {
        self.end.get_or_insert(end);
        self.responses.close();
    }

    /// Tells the client that its prompt is computed, which mistralrs-core does in one step.
    fn tell_prefilled(&self, now: Instant) {
        if let (true, Some(sink)) = (self.is_first, &self.sink) {
            sink.offer(Event::Prefilled(Prefilled {
                began: self.admitted,
                ended: now,
                start: 0,
                tokens: self.prompt_tokens,
                is_last: true,
            }));
        }
    }
}

impl CustomLogitsProcessor for Steer {
    fn apply(&self, logits: &Tensor, _: &[u32]) -> Result<Tensor> {
        self.meter.passed();
        #[cfg(test)]
        crate::tests::strike(&self.name);
        let logits: Vec<f32> = logits.to_vec1()?;
        let token = self.choose(&logits);
        let mut only = vec![f32::NEG_INFINITY; logits.len()];
        if let Some(logit) = only.get_mut(token as usize) {
            *logit = 0.0;
        }
        Tensor::from_vec(only, logits.len(), &Device::Cpu)
    }
}
