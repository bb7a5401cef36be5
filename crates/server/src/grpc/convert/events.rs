//! A backend's events as messages.

use std::time::Duration;

use baichuan_engine::event::{FinishReason, Timings, TokenLogprobs, Usage};
use baichuan_proto::v1;

use super::clamp;
use crate::telemetry::metrics::EndLabel;

/// Why a completion ended: the engine's own reasons and the server's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::grpc) enum End {
    Engine(FinishReason),
    TimeLimit,
    Aborted,
}

/// What of an end goes into a message.
pub(in crate::grpc) struct WireEnd {
    pub(in crate::grpc) reason: v1::FinishReason,
    pub(in crate::grpc) matched: Option<v1::finish::Matched>,
    pub(in crate::grpc) label: EndLabel,
}

impl End {
    pub(in crate::grpc) fn on_wire(&self) -> WireEnd {
        use v1::finish::Matched;
        let (reason, matched, label) = match self {
            Self::Engine(FinishReason::Eos(id)) => (
                v1::FinishReason::Stop,
                Some(Matched::EosTokenId(*id)),
                EndLabel::Stop,
            ),
            Self::Engine(FinishReason::StopToken(id)) => (
                v1::FinishReason::Stop,
                Some(Matched::StopTokenId(*id)),
                EndLabel::Stop,
            ),
            Self::Engine(FinishReason::StopString(s)) => (
                v1::FinishReason::Stop,
                Some(Matched::StopString(s.clone())),
                EndLabel::Stop,
            ),
            Self::Engine(FinishReason::Length) => (v1::FinishReason::Length, None, EndLabel::Length),
            Self::Engine(FinishReason::ContextFull) => {
                (v1::FinishReason::ContextFull, None, EndLabel::ContextFull)
            }
            Self::TimeLimit => (v1::FinishReason::TimeLimit, None, EndLabel::TimeLimit),
            Self::Aborted => (v1::FinishReason::Aborted, None, EndLabel::Aborted),
        };
        WireEnd {
            reason,
            matched,
            label,
        }
    }
}

/// The same match, as `Choice` has it.
pub(in crate::grpc) fn choice_matched(matched: v1::finish::Matched) -> v1::choice::Matched {
    match matched {
        v1::finish::Matched::StopString(s) => v1::choice::Matched::StopString(s),
        v1::finish::Matched::StopTokenId(id) => v1::choice::Matched::StopTokenId(id),
        v1::finish::Matched::EosTokenId(id) => v1::choice::Matched::EosTokenId(id),
    }
}

pub(in crate::grpc) fn logprobs(places: Vec<TokenLogprobs>) -> Vec<v1::TokenLogprob> {
    let places = places.into_iter().map(|place| v1::TokenLogprob {
        token_id: place.token.id,
        logprob: place.token.logprob,
        text: place.token.text,
        top: place
            .top
            .into_iter()
            .map(|top| v1::TopLogprob {
                token_id: top.id,
                logprob: top.logprob,
                text: top.text,
            })
            .collect(),
    });
    places.collect()
}

pub(in crate::grpc) fn usage(usage: Usage) -> v1::Usage {
    v1::Usage {
        prompt_tokens: clamp(usage.prompt_tokens),
        completion_tokens: clamp(usage.completion_tokens),
        total_tokens: clamp(usage.prompt_tokens + usage.completion_tokens),
        cached_tokens: clamp(usage.cached_tokens),
    }
}

/// `tokenize` is the part of the time before admission that went into tokenisation.
pub(in crate::grpc) fn timings(
    timings: &Timings,
    tokenize: Duration,
    completion_tokens: usize,
) -> v1::Timings {
    v1::Timings {
        queue_ms: millis(timings.queue.saturating_sub(tokenize)),
        tokenize_ms: millis(tokenize),
        prefill_ms: millis(timings.prefill),
        decode_ms: millis(timings.decode),
        time_to_first_token_ms: millis(timings.time_to_first_token),
        time_per_output_token_ms: millis(timings.time_per_output_token(completion_tokens)),
        total_ms: millis(timings.total),
    }
}

pub(in crate::grpc) fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}
