//! Vectors of a stream of inputs: out of order, each failing alone, no more in work than configured.
//!
//! Back-pressure runs through: an input is read when there is room to work on it, and there is room when an answer was
//! taken.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use baichuan_engine::event::Usage;
use baichuan_engine::{Backend, RequestId};
use baichuan_proto::v1;
use futures::stream::{self, BoxStream, StreamExt};
use tonic::{Status, Streaming};

use super::admission;
use super::convert::embed::{self, Options};
use super::convert::{Findings, events, model, operation, prompt};
use super::embed::{By, Progress, interrupted, one};
use super::meta::{Meta, failure};
use super::response::transport_error;
use crate::app::App;
use crate::calls::Call;
use crate::error::{ApiError, Phase, Unavailable};
use crate::identity::tenant::Tenant;
use crate::telemetry::gen_ai::{Operation, Outcome};

/// What all inputs of a stream share.
struct Shared {
    app: Arc<App>,
    id: RequestId,
    backend: Arc<dyn Backend>,
    tenant: Arc<Tenant>,
    /// Of the whole stream.
    deadline: Option<Instant>,
    /// As the first message has them, and checked.
    asked: v1::EmbedRequest,
    options: Options,
    /// Per input.
    time_limit: Option<Duration>,
}

/// Reads the first message, which sets the stream up, and answers with the stream of vectors and its name.
pub(super) async fn embed_stream(
    app: &Arc<App>,
    meta: &Meta,
    mut requests: Streaming<v1::EmbedStreamRequest>,
) -> (
    RequestId,
    Result<BoxStream<'static, Result<v1::EmbedStreamResponse, Status>>, ApiError>,
) {
    // There is no call before that, whose time could end it: only its place among those that may run.
    let (began, time) = (Instant::now(), meta.time_to_arrive(app));
    let arrived = tokio::time::timeout(time, requests.message()).await;
    let Ok(arrived) = arrived else {
        return (meta.request_id(""), Err(ApiError::NotArrived { time }));
    };
    let first = match arrived {
        Ok(Some(first)) => first,
        Ok(None) => {
            let nothing = ApiError::invalid("options", "the stream ended before its first message");
            return (meta.request_id(""), Err(nothing));
        }
        Err(status) => return (meta.request_id(""), Err(reading(&status))),
    };
    let own = first.options.as_ref().map_or("", |o| o.request_id.as_str());
    let id = meta.request_id(own);
    let limit = meta
        .limit(app, None)
        .map(|limit| limit.saturating_sub(began.elapsed()));
    match start(app, &id, meta, limit, first, requests) {
        Ok((id, stream)) => (id, Ok(stream)),
        Err(error) => (id, Err(error)),
    }
}

fn start(
    app: &Arc<App>,
    id: &RequestId,
    meta: &Meta,
    limit: Option<Duration>,
    mut first: v1::EmbedStreamRequest,
    requests: Streaming<v1::EmbedStreamRequest>,
) -> Result<
    (
        RequestId,
        BoxStream<'static, Result<v1::EmbedStreamResponse, Status>>,
    ),
    ApiError,
> {
    let options = first.options.take().unwrap_or_default();
    let call = meta.begin(app, id, &options.request_id, limit)?;
    let id = &call.id.clone();
    let tenant = meta.identity()?.tenant.clone();
    let model = meta.model(app, &options.model)?;
    let (backend, leaving) = (model.loaded()?, model.leaving());
    let mut findings = Findings::default();
    let checked = embed::check_options(&options, backend.info(), &mut findings);
    findings.that(options.inputs.is_empty(), "inputs", || {
        "must be empty in the options of a stream".into()
    });
    if !findings.0.is_empty() {
        for violation in findings.0.listed_mut() {
            violation.field.insert_str(0, "options.");
        }
        findings.done()?;
    }
    app.metrics.model(&backend.info().name).embed_requests.inc();
    let shared = Arc::new(Shared {
        app: app.clone(),
        id: id.clone(),
        backend,
        tenant,
        deadline: call.deadline,
        options: checked,
        time_limit: options.time_limit_ms.map(|ms| Duration::from_millis(ms.into())),
        asked: options,
    });

    let in_flight = app.config.requests.embed_in_flight;
    // When its model is unloaded no more inputs are read; those in work are answered, and then the stream ends.
    let is_stopped = Arc::new(AtomicBool::new(false));
    let unloading = {
        let (is_stopped, name) = (Arc::clone(&is_stopped), shared.backend.info().name.clone());
        async move {
            let unloading = || Err(ApiError::Unavailable(Unavailable::Unloading(name)));
            is_stopped.load(Ordering::Relaxed).then(unloading)
        }
    };
    let stop = async move {
        leaving.cancelled_owned().await;
        is_stopped.store(true, Ordering::Relaxed);
    };
    let requests = requests.take_until(stop);
    let works = stream::once(async { Ok(first) }).chain(requests).map({
        let shared = shared.clone();
        move |request| answer(shared.clone(), request)
    });
    let answers = works.buffer_unordered(in_flight);
    let answers = answers
        .chain(stream::once(unloading).filter_map(std::future::ready))
        .boxed();
    let name = &shared.backend.info().name;
    let mut trace = operation::of_embed(meta.trace(), None, name, id, call.arrived);
    trace.admitted(Duration::ZERO);
    let ongoing = Ongoing {
        answers,
        trace,
        tokens: 0,
        shared,
        call,
    };
    Ok((id.clone(), stream::unfold(Some(ongoing), next).boxed()))
}

type Answers = BoxStream<'static, Result<v1::EmbedStreamResponse, ApiError>>;

/// A stream that goes on.
struct Ongoing {
    answers: Answers,
    trace: Operation,
    /// Of the inputs embedded so far.
    tokens: usize,
    shared: Arc<Shared>,
    call: Call,
}

/// The next answer, or what ends the stream.
async fn next(
    ongoing: Option<Ongoing>,
) -> Option<(Result<v1::EmbedStreamResponse, Status>, Option<Ongoing>)> {
    let mut ongoing = ongoing?;
    let mut outcome = Outcome {
        input_tokens: ongoing.tokens,
        ..Outcome::default()
    };
    let error = match ongoing.call.run(ongoing.answers.next()).await {
        Ok(None) => {
            ongoing.trace.end(&outcome);
            return None;
        }
        Ok(Some(Ok(answer))) => {
            ongoing.tokens += answer.usage.unwrap_or_default().prompt_tokens as usize;
            return Some((Ok(answer), Some(ongoing)));
        }
        Ok(Some(Err(error))) => error,
        Err(interrupt) => {
            let usage = Usage {
                prompt_tokens: ongoing.tokens,
                ..Usage::default()
            };
            interrupted(interrupt, Phase::Prefill, usage)
        }
    };
    outcome.error = Some(error.kind());
    ongoing.trace.end(&outcome);
    Some((
        Err(failure(&ongoing.shared.app, &ongoing.shared.id, &error)),
        None,
    ))
}

/// One input's answer; an error ends the stream.
async fn answer(
    shared: Arc<Shared>,
    request: Result<v1::EmbedStreamRequest, Status>,
) -> Result<v1::EmbedStreamResponse, ApiError> {
    let request = request.map_err(|status| reading(&status))?;
    let index = request.index;
    let limit = shared.time_limit;
    let progress = Arc::<Progress>::default();
    let work = embed_one(&shared, request, progress.clone());
    let outcome = match limit {
        Some(limit) => tokio::time::timeout(limit, work).await.unwrap_or_else(|_| {
            let (phase, usage) = (progress.phase(), progress.usage());
            Err(ApiError::DeadlineExceeded { phase, usage })
        }),
        None => work.await,
    };
    let info = shared.backend.info();
    let (result, tokens) = match outcome {
        Ok((embedding, tokens)) => (v1::embed_stream_response::Result::Embedding(embedding), tokens),
        Err(error) => {
            // Nothing that comes later could fare better: the stream as a whole is over.
            if matches!(error, ApiError::Unavailable(_)) {
                return Err(error);
            }
            (
                v1::embed_stream_response::Result::Error(item_error(&shared, &error)),
                progress.usage().prompt_tokens,
            )
        }
    };
    let usage = Usage {
        prompt_tokens: tokens,
        ..Usage::default()
    };
    Ok(v1::EmbedStreamResponse {
        index,
        result: Some(result),
        usage: Some(events::usage(usage)),
        model: info.name.clone(),
        pooling: model::pooling(shared.options.pooling).into(),
        normalized: shared.options.normalize,
        system_fingerprint: info.fingerprint.clone(),
    })
}

async fn embed_one(
    shared: &Arc<Shared>,
    request: v1::EmbedStreamRequest,
    progress: Arc<Progress>,
) -> Result<(v1::Embedding, usize), ApiError> {
    let arrived = Instant::now();
    let (app, options, info) = (&shared.app, shared.options, shared.backend.info());
    let mut findings = Findings::default();
    let is_same = request.options.is_none_or(|options| options == shared.asked);
    findings.that(is_same, "options", || {
        "must be those of the stream's first message, or absent".into()
    });
    let prompt = embed::check_input(request.input, "input", info, &mut findings);
    findings.done()?;
    let Some(prompt) = prompt else {
        return Err(ApiError::invalid("input", "must be set"));
    };
    let field = prompt.field("input.");
    let tokenizer = info.tokenizer.clone();
    let input = app
        .text
        .run(shared.tenant.account(), move || {
            prompt
                .encode(&tokenizer, "input.")
                .map(|tokens| options.cut(tokens))
        })
        .await??;
    prompt::check_length(&input.tokens, &field, info.max_context)?;
    let (n_bytes, max_bytes) = (
        options.n_bytes(&input) + embed::max_rest_bytes(&shared.id, info),
        app.config.grpc.max_encoding_message_bytes,
    );
    if n_bytes > max_bytes {
        let message =
            format!("the answer would have up to {n_bytes} bytes, a message has at most {max_bytes}");
        return Err(ApiError::invalid(field, message));
    }
    let truncated = input.truncated;
    let id = RequestId::new(format!("{}[{}]", shared.id, request.index));
    let own_deadline = shared.time_limit.and_then(|limit| arrived.checked_add(limit));
    let by = By {
        tenant: shared.tenant.clone(),
        arrived,
        deadline: [own_deadline, shared.deadline].into_iter().flatten().min(),
        progress,
    };
    let charge = admission::charge(app, &by.tenant, 1, input.tokens.len())?;
    let embedded = one(app, &shared.backend, id, input, &options, &by).await;
    charge.settle(&embedded, by.progress.all_taken());
    let embedded = embedded?;
    let embedding = options.encode(request.index, &embedded.values, embedded.tokens, truncated);
    Ok((embedding, embedded.tokens))
}

/// An input's failure, told in the stream, with the same code and reason as a call's.
fn item_error(shared: &Shared, error: &ApiError) -> v1::EmbedError {
    use tonic_types::StatusExt;
    let status = failure(&shared.app, &shared.id, error);
    let details = status.get_error_details();
    let delay = match error {
        ApiError::Exhausted { retry_after, .. } => *retry_after,
        _ => None,
    };
    v1::EmbedError {
        code: status.code().into(),
        message: status.message().to_owned(),
        reason: details.error_info().map(|i| i.reason.clone()).unwrap_or_default(),
        retry_delay_ms: delay.map(|d| u64::try_from(d.as_millis()).unwrap_or(u64::MAX)),
    }
}

/// Why the next message could not be read.
fn reading(status: &Status) -> ApiError {
    transport_error(status).unwrap_or_else(|| match status.code() {
        tonic::Code::Cancelled => ApiError::Aborted,
        _ => ApiError::invalid("", format!("cannot read the stream: {}", status.message())),
    })
}
