//! What traces say of a request: what was asked, and its content where the operator wants it.

use std::time::Instant;

use baichuan_engine::RequestId;
use baichuan_proto::v1;
use v1::generate_request::Prompt;

use crate::telemetry::call_trace::CallTrace;
use crate::telemetry::gen_ai::{Kind, Operation};
use crate::telemetry::semconv;

/// The operation of a `Generate`.
pub(in crate::grpc) fn of_generate(
    call: &CallTrace,
    request: &v1::GenerateRequest,
    model: &str,
    id: &RequestId,
    arrived: Instant,
) -> Operation {
    let kind = match request.prompt {
        Some(Prompt::Chat(_)) => Kind::Chat,
        Some(Prompt::Text(_) | Prompt::TokenIds(_)) | None => Kind::TextCompletion,
    };
    let mut operation = Operation::begin(call.clone(), kind, model, id.as_str(), arrived);
    if !operation.is_recorded() {
        return operation;
    }
    if let Some(sampling) = &request.sampling {
        for (name, value) in [
            (semconv::TEMPERATURE, sampling.temperature),
            (semconv::TOP_P, sampling.top_p),
            (semconv::PRESENCE_PENALTY, sampling.presence_penalty),
            (semconv::FREQUENCY_PENALTY, sampling.frequency_penalty),
        ] {
            if let Some(value) = value {
                operation.attribute(name, f64::from(value));
            }
        }
        for (name, value) in [
            (semconv::TOP_K, sampling.top_k.map(i64::from)),
            (
                semconv::SEED,
                sampling.seed.and_then(|seed| i64::try_from(seed).ok()),
            ),
            (semconv::CHOICES, sampling.n.filter(|n| *n != 1).map(i64::from)),
        ] {
            if let Some(value) = value {
                operation.attribute(name, value);
            }
        }
    }
    if let Some(max) = request.stopping.as_ref().and_then(|stopping| stopping.max_tokens) {
        operation.attribute(semconv::MAX_TOKENS, i64::from(max));
    }
    if let Some(content) = &mut operation.content {
        content.asked(match &request.prompt {
            Some(Prompt::Text(text)) => vec![("user".into(), text.clone())],
            Some(Prompt::Chat(chat)) => {
                let messages = chat.messages.iter();
                messages.map(|m| (m.role.clone(), m.content.clone())).collect()
            }
            Some(Prompt::TokenIds(_)) | None => Vec::new(),
        });
    }
    operation
}

/// The operation of an `Embed` of so many inputs, or of an `EmbedStream`.
pub(in crate::grpc) fn of_embed(
    call: &CallTrace,
    inputs: Option<usize>,
    model: &str,
    id: &RequestId,
    arrived: Instant,
) -> Operation {
    let mut operation = Operation::begin(call.clone(), Kind::Embeddings, model, id.as_str(), arrived);
    if let Some(inputs) = inputs.and_then(|inputs| i64::try_from(inputs).ok()) {
        operation.attribute(semconv::INPUTS, inputs);
    }
    operation
}
