//! One generation, from its request to its last message; streaming and unary calls are two readers of it.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use baichuan_engine::event::{Delta, Event, Finished, Prefilled, PromptInfo, Timings, Usage};
use baichuan_engine::request::{GenerateRequest, Request};
use baichuan_engine::{Backend, EventStream, RequestId};
use baichuan_proto::v1;
use baichuan_proto::v1::generate_response::Event as WireEvent;

use super::admission;
use super::convert::events::{self, End};
use super::convert::{clamp, generate, operation, prompt};
use super::meta::Meta;
use crate::app::App;
use crate::calls::{Call, Interrupt};
use crate::error::{ApiError, Phase, Unavailable};
use crate::identity::tenant::{Running, Tenant};
use crate::telemetry::gen_ai::{Operation, Outcome};
use crate::telemetry::metrics::{EndLabel, ModelMetrics, observe, observe_traced};

/// A generation that runs. Dropping it cancels it.
pub(super) struct Generation {
    app: Arc<App>,
    call: Call,
    tenant: Arc<Tenant>,
    _running: Arc<Running>,
    backend: Arc<dyn Backend>,
    metrics: Arc<ModelMetrics>,
    trace: Operation,
    /// Absent when the call was interrupted before it was submitted.
    events: Option<EventStream>,
    interrupted: Option<Interrupt>,
    seed: u64,
    return_token_ids: bool,
    tokenize: Duration,
    prompt: Option<PromptInfo>,
    prompt_tokens: usize,
    /// When the first token of all was chosen.
    first_token: Option<Instant>,
    completions: Vec<Completion>,
    /// Told so far, of all completions.
    n_told: u64,
    pending: VecDeque<Result<WireEvent, ApiError>>,
    /// Why it failed, if it did.
    failure: Option<&'static str>,
    ended: bool,
}

/// What is known of one completion so far.
#[derive(Clone, Default)]
struct Completion {
    n_tokens: usize,
    first_token: Option<Instant>,
    last_token: Option<Instant>,
    ended: Option<EndLabel>,
}

/// Takes a request up: checks it, tokenises its prompt, submits it.
pub(super) async fn start(
    app: &Arc<App>,
    id: &RequestId,
    meta: &Meta,
    request: v1::GenerateRequest,
) -> Result<Generation, ApiError> {
    let limit = meta.limit(app, request.time_limit_ms);
    let mut call = meta.begin(app, id, &request.request_id, limit)?;
    let id = &call.id.clone();
    let tenant = meta.identity()?.tenant.clone();
    let running = meta.running(app)?;
    let backend = meta.backend(app, &request.model)?;
    let name = &backend.info().name;
    let mut trace = operation::of_generate(meta.trace(), &request, name, id, call.arrived);
    let submitted = submit(app, id, &mut call, &tenant, &backend, request).await;
    let submitted = submitted.inspect_err(|error| trace.end(&Outcome::failed(error.kind())))?;
    Ok(Generation {
        app: app.clone(),
        call,
        tenant,
        _running: running,
        metrics: app.metrics.model(name),
        trace,
        events: submitted.events,
        interrupted: submitted.interrupted,
        seed: submitted.seed,
        return_token_ids: submitted.return_token_ids,
        tokenize: submitted.tokenize,
        prompt: None,
        prompt_tokens: submitted.prompt_tokens,
        first_token: None,
        completions: vec![Completion::default(); submitted.n as usize],
        n_told: 0,
        pending: VecDeque::new(),
        failure: None,
        ended: false,
        backend,
    })
}

/// A request that is with its backend, or was interrupted on the way.
struct Submitted {
    events: Option<EventStream>,
    interrupted: Option<Interrupt>,
    seed: u64,
    n: u32,
    return_token_ids: bool,
    tokenize: Duration,
    prompt_tokens: usize,
}

async fn submit(
    app: &Arc<App>,
    id: &RequestId,
    call: &mut Call,
    tenant: &Arc<Tenant>,
    backend: &Arc<dyn Backend>,
    request: v1::GenerateRequest,
) -> Result<Submitted, ApiError> {
    let info = backend.info();
    let valid = generate::check(request, info, rand::random())?;
    let (sampling, output) = (valid.sampling, valid.output);
    let (seed, n) = (sampling.seed(), sampling.n());
    let field = valid.prompt.field("");
    let tokenizer = info.tokenizer.clone();
    let started = Instant::now();
    let (grammars, wish) = (info.grammars.clone(), valid.structured_output);
    let encoding = app.text.run(tenant.account(), move || {
        let grammar = wish.map(|wish| grammars.compile(wish)).transpose()?;
        Ok::<_, ApiError>((valid.prompt.encode(&tokenizer, "")?, grammar))
    });
    let encoded = call.run(encoding).await;
    let tokenize = started.elapsed();
    let (events, interrupted, prompt_tokens) = match encoded {
        Err(interrupt) => (None, Some(interrupt), 0),
        Ok(encoded) => {
            let (mut tokens, grammar) = encoded??;
            if let Some(keep) = valid.truncate {
                tokens.drain(..tokens.len().saturating_sub(keep));
            }
            // One place of the context is for the first token generated.
            prompt::check_length(&tokens, &field, info.max_context.saturating_sub(1))?;
            let prompt_tokens = tokens.len();
            let left = info.max_context.saturating_sub(prompt_tokens);
            valid.stopping.check_left(&info.limits, n, left)?;
            let request = Request::Generate(Box::new(GenerateRequest {
                id: id.clone(),
                prompt: tokens,
                sampling,
                stopping: valid.stopping,
                output,
                grammar,
                priority: valid.priority,
                arrived: call.arrived,
                account: tenant.account(),
                deadline: call.deadline,
            }));
            let charge = admission::charge(app, tenant, 1, prompt_tokens)?;
            let submitted = backend.submit(request).map_err(ApiError::from);
            charge.settle(&submitted, (0, 0));
            (Some(submitted?), None, prompt_tokens)
        }
    };
    Ok(Submitted {
        events,
        interrupted,
        seed,
        n,
        return_token_ids: output.token_ids,
        tokenize,
        prompt_tokens,
    })
}

impl Generation {
    /// Its model's served name.
    pub(super) fn model(&self) -> &str {
        &self.backend.info().name
    }

    /// Of weights and build.
    pub(super) fn fingerprint(&self) -> &str {
        &self.backend.info().fingerprint
    }

    /// Its request's name.
    pub(super) fn id(&self) -> &RequestId {
        &self.call.id
    }

    /// The next message, or the error that ends the call; `None` at the end.
    pub(super) async fn next(&mut self) -> Option<Result<WireEvent, ApiError>> {
        loop {
            if let Some(message) = self.pending.pop_front() {
                return Some(message);
            }
            if self.ended {
                return None;
            }
            let news = match (self.interrupted, &mut self.events) {
                (Some(interrupt), _) => Err(interrupt),
                (None, Some(events)) => self.call.run(events.next()).await,
                (None, None) => Ok(None),
            };
            match news {
                Err(interrupt) => self.interrupt(interrupt),
                Ok(None) => self.ended = true,
                Ok(Some(event)) => self.take(event),
            }
        }
    }

    fn take(&mut self, event: Event) {
        match event {
            Event::Prompt(info) => self.admitted(info),
            Event::Prefilled(part) => self.prefilled(&part),
            Event::Delta(delta) => self.grown(delta),
            Event::Finished(finished) => self.finished(finished),
            Event::Failed(error) => self.fail(error.into()),
            Event::Embedded(_) => self.fail(ApiError::Internal {
                cause: "a backend answered a generation with an embedding".into(),
            }),
        }
    }

    fn admitted(&mut self, info: PromptInfo) {
        let wire = v1::PromptInfo {
            request_id: self.id().to_string(),
            model: self.model().to_owned(),
            prompt_tokens: clamp(info.prompt_tokens),
            cached_tokens: clamp(info.cached_tokens),
            queue_ms: events::millis(info.queue.saturating_sub(self.tokenize)),
            seed: self.seed,
            prompt_logprobs: events::logprobs(info.prompt_logprobs.clone()),
        };
        observe(&self.metrics.queue, info.queue);
        self.metrics.prompt_tokens.observe(info.prompt_tokens as f64);
        self.trace.admitted(info.queue);
        self.prompt = Some(PromptInfo {
            prompt_logprobs: Vec::new(),
            ..info
        });
        self.pending.push_back(Ok(WireEvent::PromptInfo(wire)));
    }

    /// The first token is chosen when the last part of the prompt is computed; its message may wait for others.
    fn prefilled(&mut self, part: &Prefilled) {
        self.trace.prefilled(part.ended, part.start, part.tokens);
        if part.is_last {
            self.first_token(part.ended);
        }
    }

    /// The first token of all was chosen.
    fn first_token(&mut self, at: Instant) {
        if self.first_token.is_some() {
            return;
        }
        self.first_token = Some(at);
        self.trace.first_token(at);
        let to_first = at.saturating_duration_since(self.call.arrived);
        observe_traced(&self.metrics.first_token, to_first, self.trace.call().exemplar());
    }

    /// So many tokens were generated, told or not.
    fn generated(&mut self, index: u32, n_new: usize) {
        self.tenant.used_completion(n_new);
        if let Some(completion) = self.completions.get_mut(index as usize) {
            completion.n_tokens += n_new;
        }
    }

    fn grown(&mut self, delta: Delta) {
        let n_new = delta.token_ids.len();
        self.generated(delta.index, n_new);
        self.n_told += n_new as u64;
        if self.first_token.is_none() {
            self.first_token(delta.at);
        }
        if let Some(completion) = self.completions.get_mut(delta.index as usize) {
            // A message of several tokens stands for as many steps.
            let (since, gaps) = match completion.last_token {
                Some(last) => (last, n_new),
                None => (self.first_token.unwrap_or(delta.at), n_new.saturating_sub(1)),
            };
            let gap = delta.at.saturating_duration_since(since) / clamp(gaps.max(1));
            (0..gaps).for_each(|_| observe(&self.metrics.inter_token, gap));
            completion.first_token.get_or_insert(delta.at);
            completion.last_token = Some(delta.at);
        }
        if let Some(content) = &mut self.trace.content {
            content.answered(delta.index as usize, &delta.text);
        }
        self.pending.push_back(Ok(WireEvent::Delta(v1::Delta {
            index: delta.index,
            text: delta.text,
            token_ids: if self.return_token_ids {
                delta.token_ids
            } else {
                Vec::new()
            },
            logprobs: events::logprobs(delta.logprobs),
            tokens_so_far: self.n_told,
        })));
    }

    fn finished(&mut self, finished: Finished) {
        let n_tokens = finished.usage.completion_tokens;
        let timings = &finished.timings;
        observe_traced(&self.metrics.e2e, timings.total, self.trace.call().exemplar());
        observe(&self.metrics.prefill, timings.prefill);
        observe(&self.metrics.decode, timings.decode);
        observe(
            &self.metrics.per_output_token,
            timings.time_per_output_token(n_tokens),
        );
        self.metrics.generation_tokens.observe(n_tokens as f64);
        let end = End::Engine(finished.reason);
        self.end_completion(
            finished.index,
            &end,
            finished.usage,
            &finished.timings,
            finished.preemptions,
        );
        self.ended = self.completions.iter().all(|c| c.ended.is_some());
    }

    fn end_completion(&mut self, index: u32, end: &End, usage: Usage, timings: &Timings, preemptions: u32) {
        let wire = end.on_wire();
        if let Some(completion) = self.completions.get_mut(index as usize) {
            completion.ended = Some(wire.label);
        }
        self.metrics.ended(wire.label);
        self.pending.push_back(Ok(WireEvent::Finish(v1::Finish {
            index,
            finish_reason: wire.reason.into(),
            matched: wire.matched,
            usage: Some(events::usage(usage)),
            timings: Some(events::timings(timings, self.tokenize, usage.completion_tokens)),
            preemptions,
            system_fingerprint: self.fingerprint().to_owned(),
        })));
    }

    fn interrupt(&mut self, interrupt: Interrupt) {
        let end = match interrupt {
            Interrupt::Deadline => End::TimeLimit,
            Interrupt::Aborted => End::Aborted,
            Interrupt::ServerEnds => return self.fail(ApiError::Unavailable(Unavailable::Ended)),
        };
        // Before the last messages are read: the engine frees what the request held. What it did until now is told.
        let unread = self.events.take().map(EventStream::cancel).unwrap_or_default();
        unread.into_iter().for_each(|event| self.take(event));
        if self.ended {
            return;
        }
        let phase = self.phase();
        let usage_of_all = self.usage(self.completions.iter().map(|c| c.n_tokens).sum());
        for index in 0..self.completions.len() {
            let completion = self.completions[index].clone();
            if completion.ended.is_none() {
                let usage = self.usage(completion.n_tokens);
                self.end_completion(clamp(index), &end, usage, &self.timings(&completion), 0);
            }
        }
        self.ended = true;
        if interrupt == Interrupt::Deadline {
            let error = ApiError::DeadlineExceeded {
                phase,
                usage: usage_of_all,
            };
            self.failure = Some(error.kind());
            self.pending.push_back(Err(error));
        } else {
            self.failure = Some(ApiError::Aborted.kind());
            self.app.metrics.cancelled(phase);
        }
    }

    /// It may take no longer than until `deadline`.
    pub(super) fn shorten(&mut self, deadline: Instant) {
        self.call.shorten(deadline);
    }

    /// Ends it for a caller who does not read, or has been away for too much of it.
    pub(super) fn cut_off(&mut self) -> ApiError {
        self.end_with(ApiError::slow_client(
            "the stream's buffer is full of what was not read (requests.resume_buffer_bytes)",
        ))
    }

    /// Ends it for a reason of its reader's.
    pub(super) fn end_with(&mut self, error: ApiError) -> ApiError {
        self.cancel();
        self.ended = true;
        self.pending.clear();
        self.failure = Some(error.kind());
        error
    }

    /// Has the engine free what the request holds. What is not told any more was generated and counts.
    fn cancel(&mut self) {
        let unread = self.events.take().map(EventStream::cancel);
        for event in unread.into_iter().flatten() {
            if let Event::Delta(delta) = event {
                self.generated(delta.index, delta.token_ids.len());
            }
        }
    }

    fn fail(&mut self, error: ApiError) {
        self.cancel();
        self.ended = true;
        self.failure = Some(error.kind());
        self.pending.push_back(Err(error));
    }

    /// How far the request has come.
    pub(super) fn phase(&self) -> Phase {
        if self.completions.iter().any(|c| c.first_token.is_some()) {
            Phase::Decode
        } else if self.prompt.is_some() {
            Phase::Prefill
        } else {
            Phase::Queued
        }
    }

    fn usage(&self, completion_tokens: usize) -> Usage {
        Usage {
            prompt_tokens: self.prompt_tokens,
            completion_tokens,
            cached_tokens: self.prompt.as_ref().map_or(0, |p| p.cached_tokens),
        }
    }

    /// The times of a completion that ends now, unfinished.
    fn timings(&self, completion: &Completion) -> Timings {
        let total = self.call.arrived.elapsed();
        let queue = self.prompt.as_ref().map_or(total, |p| p.queue);
        let to_first = completion
            .first_token
            .map(|at| at.saturating_duration_since(self.call.arrived));
        Timings {
            queue,
            prefill: to_first.unwrap_or(total).saturating_sub(queue),
            decode: match (completion.first_token, completion.last_token) {
                (Some(first), Some(last)) => last.saturating_duration_since(first),
                _ => Duration::ZERO,
            },
            time_to_first_token: to_first.unwrap_or_default(),
            total,
        }
    }
}

impl Drop for Generation {
    fn drop(&mut self) {
        self.cancel();
        if !self.ended {
            self.app.metrics.cancelled(self.phase());
            self.failure = Some(Outcome::CANCELLED);
        }
        let usage = self.usage(self.completions.iter().map(|c| c.n_tokens).sum());
        let ends = self.completions.iter().filter_map(|c| c.ended);
        self.trace.end(&Outcome {
            input_tokens: usage.prompt_tokens,
            output_tokens: usage.completion_tokens,
            cached_tokens: usage.cached_tokens,
            finish_reasons: ends.map(EndLabel::text).collect(),
            error: self.failure,
        });
    }
}
