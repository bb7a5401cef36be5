//! Requests in mistralrs-core's terms, and what comes back of them.

use std::future::poll_fn;
use std::sync::Arc;
use std::time::Instant;

use baichuan_engine::completion::{Completion, Vocabulary};
use baichuan_engine::event::{Embedded, Event, Prefilled, PromptInfo, Timings};
use baichuan_engine::request::{EmbedRequest, GenerateRequest};
use baichuan_engine::{EventSink, RequestError, TokenId};
use mistralrs_core::{Constraint, NormalRequest, Request, RequestMessage, Response, SamplingParams};
use tokio::sync::mpsc::{Sender, channel};

use crate::meter::Meter;
use crate::steer::{End, Start, Steer};

/// Responses that may wait. They are taken at every token, so only a burst at the end ever needs room.
const RESPONSES: usize = 64;

/// What requests to one engine share.
pub(crate) struct Context {
    /// Where mistralrs-core takes requests.
    pub(crate) engine: Sender<Request>,
    pub(crate) vocabulary: Arc<Vocabulary>,
    pub(crate) meter: Arc<Meter>,
    pub(crate) filler: TokenId,
    /// What is left to do to an embedding that mistralrs-core pooled.
    pub(crate) mean_is_sum: bool,
}

/// Generates all completions of a request, one after another. Returns their tokens.
pub(crate) async fn generate(context: &Context, request: GenerateRequest, sink: EventSink) -> usize {
    let admitted = Instant::now();
    let prompt_tokens = request.prompt.len();
    context.meter.admitted(prompt_tokens);
    let prompt = PromptInfo {
        prompt_tokens,
        cached_tokens: 0,
        queue: admitted.saturating_duration_since(request.arrived),
        prompt_logprobs: Vec::new(),
    };
    if sink.send(Event::Prompt(prompt)).is_err() {
        context.meter.cancelled(sink.dropped_at());
        return 0;
    }
    let request = Arc::new(request);
    let mut sink = sink;
    let mut tokens = 0;
    for index in 0..request.sampling.n() {
        let (end, rest, n_tokens) = complete(context, &request, index, admitted, sink).await;
        tokens += n_tokens;
        match (end, rest) {
            (Some(End::Finished), Some(next)) => sink = next,
            (Some(End::Gone), rest) => {
                context.meter.cancelled(rest.and_then(|sink| sink.dropped_at()));
                return tokens;
            }
            (Some(End::Failed(error)), Some(sink)) => {
                tracing::warn!(id = %request.id, cause = error.to_log(), "a request failed");
                context.meter.failed();
                sink.fail(error);
                return tokens;
            }
            // The sink was dropped: the stream ends with the engine's end.
            (None | Some(_), _) => return tokens,
        }
    }
    sink.finish();
    tokens
}

async fn complete(
    context: &Context,
    request: &Arc<GenerateRequest>,
    index: u32,
    admitted: Instant,
    sink: EventSink,
) -> (Option<End>, Option<EventSink>, usize) {
    let (sender, responses) = channel(RESPONSES);
    let completion = Completion::new(request.clone(), index, &context.vocabulary);
    let watch = sink.watch();
    let steer = Arc::new(Steer::new(
        context,
        Start {
            completion,
            sink,
            responses,
            prompt_tokens: request.prompt.len(),
            is_first: index == 0,
            admitted,
        },
        #[cfg(test)]
        request.id.to_string(),
    ));
    let wish = NormalRequest {
        // Greedy: of the row that is left to it there is one token to take.
        sampling_params: SamplingParams {
            temperature: Some(0.0),
            ..SamplingParams::neutral()
        },
        is_streaming: true,
        logits_processors: Some(vec![steer.clone()]),
        ..plain(RequestMessage::CompletionTokens(request.prompt.clone()), sender)
    };
    if context
        .engine
        .send(Request::Normal(Box::new(wish)))
        .await
        .is_err()
    {
        return (None, None, 0);
    }
    let mut gone = std::pin::pin!(watch.closed());
    let mut listening = true;
    loop {
        let response = tokio::select! {
            biased;
            response = poll_fn(|cx| steer.poll_response(cx)) => response,
            () = &mut gone, if listening => {
                // mistralrs-core learns of it at its next token.
                steer.stop(End::Gone);
                listening = false;
                continue;
            }
            // What mistralrs-core held of the request may outlive its thread.
            () = context.engine.closed() => None,
        };
        match response {
            None => break,
            Some(response) => {
                if let Some(message) = failure(response) {
                    steer.stop(End::Failed(RequestError::StepFailed(message)));
                }
            }
        }
    }
    steer.take_end()
}

/// Has one input embedded.
pub(crate) async fn embed(context: &Context, request: EmbedRequest, sink: EventSink) {
    let admitted = Instant::now();
    let tokens = request.tokens.len();
    context.meter.admitted(tokens);
    let (sender, mut responses) = channel(1);
    let wish = plain(
        RequestMessage::EmbeddingTokens {
            prompt: request.tokens,
        },
        sender,
    );
    if context
        .engine
        .send(Request::Normal(Box::new(wish)))
        .await
        .is_err()
    {
        return;
    }
    let answer = tokio::select! {
        biased;
        answer = responses.recv() => answer,
        () = context.engine.closed() => None,
    };
    let answer = match answer {
        None => return,
        Some(Response::Embeddings { embeddings, .. }) => Ok(embeddings),
        Some(other) => Err(failure(other).unwrap_or_else(|| "mistral.rs answered otherwise".into())),
    };
    let now = Instant::now();
    context.meter.passed();
    match answer {
        Err(message) => {
            tracing::warn!(id = %request.id, message, "a request failed");
            context.meter.failed();
            sink.fail(RequestError::StepFailed(message));
        }
        Ok(mut values) => {
            context.meter.embedded(tokens, now - admitted);
            sink.offer(Event::Prefilled(Prefilled {
                began: admitted,
                ended: now,
                start: 0,
                tokens,
                is_last: true,
            }));
            if context.mean_is_sum {
                values.iter_mut().for_each(|value| *value /= tokens as f32);
            }
            let embedded = Embedded {
                values,
                tokens,
                timings: Timings {
                    queue: admitted.saturating_duration_since(request.arrived),
                    prefill: now - admitted,
                    total: now.saturating_duration_since(request.arrived),
                    ..Timings::default()
                },
            };
            match sink.send(Event::Embedded(embedded)) {
                Ok(()) => sink.finish(),
                Err(_) => context.meter.cancelled(sink.dropped_at()),
            }
        }
    }
}

/// A request with everything off.
fn plain(messages: RequestMessage, response: Sender<Response>) -> NormalRequest {
    NormalRequest {
        messages,
        sampling_params: SamplingParams::neutral(),
        response,
        return_logprobs: false,
        is_streaming: false,
        id: 0,
        constraint: Constraint::None,
        suffix: None,
        tools: None,
        tool_choice: None,
        logits_processors: None,
        return_raw_logits: false,
        web_search_options: None,
        model_id: None,
        truncate_sequence: false,
    }
}

/// What went wrong, if anything did. Answers themselves hold text and are not shown.
fn failure(response: Response) -> Option<String> {
    match response {
        Response::InternalError(error) | Response::ValidationError(error) => Some(error.to_string()),
        Response::ModelError(message, _) | Response::CompletionModelError(message, _) => Some(message),
        _ => None,
    }
}
