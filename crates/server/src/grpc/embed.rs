//! Vectors of one to many inputs, all or none.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use baichuan_engine::event::{Embedded, Event, Timings, Usage};
use baichuan_engine::request::{EmbedRequest, Request};
use baichuan_engine::{Backend, EventStream, RequestId, SubmitError};
use baichuan_proto::v1;
use futures::stream::{self, StreamExt, TryStreamExt};

use super::admission;
use super::convert::embed::{self, Input, Options};
use super::convert::{Findings, clamp, events, model, operation, prompt};
use super::meta::Meta;
use crate::app::App;
use crate::calls::Interrupt;
use crate::error::{ApiError, Phase, Unavailable};
use crate::identity::tenant::Tenant;
use crate::telemetry::gen_ai::Outcome;

/// Whose an input is, and its times.
pub(super) struct By {
    pub(super) tenant: Arc<Tenant>,
    pub(super) arrived: Instant,
    pub(super) deadline: Option<Instant>,
    pub(super) progress: Arc<Progress>,
}

/// How far a call's inputs have come, for who learns of its end before they do.
#[derive(Debug, Default)]
pub(super) struct Progress {
    is_admitted: AtomicBool,
    tokens: AtomicUsize,
    taken_inputs: AtomicUsize,
    taken_tokens: AtomicUsize,
}

impl Progress {
    /// An input holds memory, and so many more of its tokens were computed.
    fn computed(&self, tokens: usize) {
        self.is_admitted.store(true, Ordering::Relaxed);
        self.tokens.fetch_add(tokens, Ordering::Relaxed);
    }

    /// The model took an input of so many tokens.
    fn taken(&self, tokens: usize) {
        self.taken_inputs.fetch_add(1, Ordering::Relaxed);
        self.taken_tokens.fetch_add(tokens, Ordering::Relaxed);
    }

    /// Inputs that the model took, and their tokens: computed or not, they are not refused any more.
    pub(super) fn all_taken(&self) -> (usize, usize) {
        let read = |counter: &AtomicUsize| counter.load(Ordering::Relaxed);
        (read(&self.taken_inputs), read(&self.taken_tokens))
    }

    /// Tokens computed so far.
    pub(super) fn usage(&self) -> Usage {
        Usage {
            prompt_tokens: self.tokens.load(Ordering::Relaxed),
            ..Usage::default()
        }
    }

    /// Whether it still waits.
    pub(super) fn phase(&self) -> Phase {
        match self.is_admitted.load(Ordering::Relaxed) {
            true => Phase::Prefill,
            false => Phase::Queued,
        }
    }
}

/// Answers an `Embed`.
pub(super) async fn embed(
    app: &Arc<App>,
    id: &RequestId,
    meta: &Meta,
    request: v1::EmbedRequest,
) -> Result<v1::EmbedResponse, ApiError> {
    let limit = meta.limit(app, request.time_limit_ms);
    let mut call = meta.begin(app, id, &request.request_id, limit)?;
    let backend = meta.backend(app, &request.model)?;
    let by = By {
        tenant: meta.identity()?.tenant.clone(),
        arrived: call.arrived,
        deadline: call.deadline,
        progress: Arc::default(),
    };
    let (name, inputs) = (&backend.info().name, request.inputs.len());
    let mut trace = operation::of_embed(meta.trace(), Some(inputs), name, id, by.arrived);
    let work = embed_all(app, id, &backend, &by, request);
    let outcome = call.run(work).await;
    let outcome = outcome.unwrap_or_else(|interrupt| {
        let (phase, usage) = (by.progress.phase(), by.progress.usage());
        Err(interrupted(interrupt, phase, usage))
    });
    match &outcome {
        Ok(response) => {
            let timings = response.timings.unwrap_or_default();
            let queue_ms = timings.queue_ms + timings.tokenize_ms;
            trace.admitted(Duration::from_secs_f64(queue_ms.max(0.0) / 1e3));
            trace.end(&Outcome {
                input_tokens: response.usage.unwrap_or_default().prompt_tokens as usize,
                ..Outcome::default()
            });
        }
        Err(error) => trace.end(&Outcome::failed(error.kind())),
    }
    outcome
}

/// The error of a call without a stream of messages to say it in.
pub(super) fn interrupted(interrupt: Interrupt, phase: Phase, usage: Usage) -> ApiError {
    match interrupt {
        Interrupt::Deadline => ApiError::DeadlineExceeded { phase, usage },
        Interrupt::Aborted => ApiError::Aborted,
        Interrupt::ServerEnds => ApiError::Unavailable(Unavailable::Ended),
    }
}

async fn embed_all(
    app: &Arc<App>,
    id: &RequestId,
    backend: &Arc<dyn Backend>,
    by: &By,
    request: v1::EmbedRequest,
) -> Result<v1::EmbedResponse, ApiError> {
    let info = backend.info();
    let mut findings = Findings::default();
    let options = embed::check_options(&request, info, &mut findings);
    let (n, max) = (request.inputs.len(), app.config.requests.max_embed_inputs);
    findings.that((1..=max).contains(&n), "inputs", || {
        format!("must be between 1 and {max}, got {n}")
    });
    let prompts: Vec<_> = request
        .inputs
        .into_iter()
        .take(max)
        .enumerate()
        .filter_map(|(i, input)| {
            embed::check_input(Some(input), &format!("inputs[{i}]"), info, &mut findings)
        })
        .collect();
    findings.done()?;

    let started = Instant::now();
    let tokenizer = info.tokenizer.clone();
    let max_context = info.max_context;
    let inputs: Vec<Input> = app
        .text
        .run(by.tenant.account(), move || {
            let encode = |(i, input): (usize, prompt::Prompt)| {
                let at = format!("inputs[{i}].");
                let field = input.field(&at);
                let input = options.cut(input.encode(&tokenizer, &at)?);
                prompt::check_length(&input.tokens, &field, max_context)?;
                Ok(input)
            };
            prompts
                .into_iter()
                .enumerate()
                .map(encode)
                .collect::<Result<_, ApiError>>()
        })
        .await??;
    let tokenize = started.elapsed();
    let (n_bytes, max_bytes) = (
        inputs.iter().map(|i| options.n_bytes(i)).sum::<usize>() + embed::max_rest_bytes(id, info),
        app.config.grpc.max_encoding_message_bytes,
    );
    if n_bytes > max_bytes {
        let message =
            format!("the answer would have up to {n_bytes} bytes, a message has at most {max_bytes}");
        return Err(ApiError::invalid("inputs", message));
    }

    let prompt_tokens = inputs.iter().map(|i| i.tokens.len()).sum();
    let charge = admission::charge(app, &by.tenant, inputs.len(), prompt_tokens)?;
    let truncated: Vec<bool> = inputs.iter().map(|i| i.truncated).collect();
    let embedded: Result<Vec<Embedded>, ApiError> = stream::iter(inputs.into_iter().enumerate())
        .map(|(i, input)| {
            let id = RequestId::new(format!("{id}[{i}]"));
            one(app, backend, id, input, &options, by)
        })
        .buffered(app.config.requests.embed_in_flight)
        .try_collect()
        .await;
    charge.settle(&embedded, by.progress.all_taken());
    let embedded = embedded?;

    app.metrics.model(&info.name).embed_requests.inc();
    let timings = whole(embedded.iter().map(|e| &e.timings), by.arrived.elapsed());
    let embeddings = embedded
        .iter()
        .zip(truncated)
        .enumerate()
        .map(|(i, (e, truncated))| options.encode(clamp(i), &e.values, e.tokens, truncated));
    let usage = Usage {
        prompt_tokens,
        ..Usage::default()
    };
    Ok(v1::EmbedResponse {
        request_id: id.to_string(),
        model: info.name.clone(),
        embeddings: embeddings.collect(),
        usage: Some(events::usage(usage)),
        timings: Some(events::timings(&timings, tokenize, 0)),
        pooling: model::pooling(options.pooling).into(),
        normalized: options.normalize,
        system_fingerprint: info.fingerprint.clone(),
    })
}

/// Has one input embedded.
pub(super) async fn one(
    app: &App,
    backend: &Arc<dyn Backend>,
    id: RequestId,
    input: Input,
    options: &Options,
    by: &By,
) -> Result<Embedded, ApiError> {
    let n_tokens = input.tokens.len();
    let mut events = submit(backend, id, input, options, by)?;
    by.progress.taken(n_tokens);
    let mut n_computed = 0;
    let mut computed = |until: usize| {
        // A part may be computed twice, after a pause, and is counted once.
        by.progress.computed(until.saturating_sub(n_computed));
        n_computed = n_computed.max(until);
    };
    loop {
        match events.next().await {
            Some(Event::Embedded(embedded)) => {
                computed(n_tokens);
                let metrics = app.metrics.model(&backend.info().name);
                metrics.embed_inputs.inc();
                metrics.embed_input_tokens.observe(n_tokens as f64);
                return Ok(embedded);
            }
            Some(Event::Failed(error)) => return Err(error.into()),
            Some(Event::Prompt(_)) => computed(0),
            Some(Event::Prefilled(part)) => computed(part.start + part.tokens),
            Some(Event::Delta(_) | Event::Finished(_)) | None => {
                return Err(ApiError::Internal {
                    cause: "a backend did not answer an embedding with a vector".into(),
                });
            }
        }
    }
}

fn submit(
    backend: &Arc<dyn Backend>,
    id: RequestId,
    input: Input,
    options: &Options,
    by: &By,
) -> Result<EventStream, SubmitError> {
    backend.submit(Request::Embed(EmbedRequest {
        id,
        tokens: input.tokens,
        pooling: options.pooling,
        priority: options.priority,
        arrived: by.arrived,
        account: by.tenant.account(),
        deadline: by.deadline,
    }))
}

/// The times of a whole call: the shortest wait, the longest work.
fn whole<'a>(parts: impl Iterator<Item = &'a Timings>, total: Duration) -> Timings {
    let (mut queue, mut prefill) = (None::<Duration>, Duration::ZERO);
    for part in parts {
        queue = Some(queue.map_or(part.queue, |q| q.min(part.queue)));
        prefill = prefill.max(part.queue + part.prefill);
    }
    let queue = queue.unwrap_or_default();
    Timings {
        queue,
        prefill: prefill.saturating_sub(queue),
        total,
        ..Timings::default()
    }
}
