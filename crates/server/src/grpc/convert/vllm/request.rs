//! The routers' requests as `baichuan.v1` has them; bounds are checked there, absences here.

use baichuan_proto::v1;
use baichuan_proto::vllm::grpc::engine as pb;

use super::reply::Reply;
use crate::error::ApiError;
use crate::grpc::convert::{Findings, clamp};

/// A generation's request, and what will make its replies.
///
/// `max_prompt`: tokens of the longest prompt that the model takes.
pub(in crate::grpc) fn generate(
    request: pb::GenerateRequest,
    max_prompt: usize,
) -> Result<(v1::GenerateRequest, Reply), ApiError> {
    refuse_lacking(&request)?;
    let mut findings = Findings::default();
    let params = request.sampling_params.unwrap_or_default();
    let truncate = match params.truncate_prompt_tokens {
        // As many as the model takes.
        Some(-1) => Some(clamp(max_prompt)),
        asked => unsigned("sampling_params.truncate_prompt_tokens", asked, &mut findings),
    };
    let first_token = match &request.input {
        Some(pb::generate_request::Input::Tokenized(ids)) => {
            let ids = &ids.input_ids;
            let n_cut = truncate.map_or(0, |keep| ids.len().saturating_sub(keep as usize));
            ids.get(n_cut).copied()
        }
        _ => None,
    };
    findings.that(
        params.prompt_logprobs.is_none() || first_token.is_some(),
        "sampling_params.prompt_logprobs",
        || "needs a prompt in tokenized".into(),
    );
    let reply = Reply::new(request.stream, params.prompt_logprobs.and(first_token));
    let output = v1::OutputOptions {
        logprobs: unsigned("sampling_params.logprobs", params.logprobs, &mut findings),
        prompt_logprobs: unsigned(
            "sampling_params.prompt_logprobs",
            params.prompt_logprobs,
            &mut findings,
        ),
        return_token_ids: Some(true),
        return_text: Some(false),
        skip_special_tokens: Some(params.skip_special_tokens),
        stream_interval: None,
    };
    // Named is the least of them alone, as of a list the first.
    if let Some(id) = params.logit_bias.keys().copied().min().filter(|id| *id < 0) {
        unsigned(
            &format!("sampling_params.logit_bias[{id}]"),
            Some(id),
            &mut findings,
        );
    }
    let logit_bias = params
        .logit_bias
        .iter()
        .filter_map(|(id, bias)| u32::try_from(*id).ok().map(|id| (id, *bias)))
        .collect();
    let sampling = v1::SamplingParams {
        temperature: params.temperature,
        top_p: unless_zero(params.top_p),
        top_k: Some(params.top_k),
        min_p: Some(params.min_p),
        repetition_penalty: unless_zero(params.repetition_penalty),
        presence_penalty: Some(params.presence_penalty),
        frequency_penalty: Some(params.frequency_penalty),
        logit_bias,
        seed: params
            .seed
            .filter(|seed| *seed != -1)
            .map(|seed| u64::from(seed.cast_unsigned())),
        n: (params.n != 0).then_some(params.n),
        ..v1::SamplingParams::default()
    };
    let stopping = v1::StoppingParams {
        max_tokens: params.max_tokens,
        min_tokens: Some(params.min_tokens),
        stop: params.stop,
        stop_token_ids: params.stop_token_ids,
        include_stop_str_in_output: Some(params.include_stop_str_in_output),
        ignore_eos: Some(params.ignore_eos),
    };
    findings.done()?;
    let own = v1::GenerateRequest {
        request_id: request.request_id,
        prompt: request.input.map(prompt),
        sampling: Some(sampling),
        stopping: Some(stopping),
        output: Some(output),
        truncate_prompt_tokens: truncate,
        structured_output: params.constraint.and_then(structured),
        ..v1::GenerateRequest::default()
    };
    Ok((own, reply))
}

/// An embedding's request: one input, pooled as the model wants it, of length 1.
pub(in crate::grpc) fn embed(request: pb::EmbedRequest) -> Result<v1::EmbedRequest, ApiError> {
    let Some(tokenized) = request.tokenized else {
        return Err(ApiError::invalid("tokenized", "must be set"));
    };
    let ids = v1::TokenIds {
        ids: tokenized.input_ids,
    };
    Ok(v1::EmbedRequest {
        request_id: request.request_id,
        inputs: vec![v1::EmbedInput {
            input: Some(v1::embed_input::Input::TokenIds(ids)),
        }],
        ..v1::EmbedRequest::default()
    })
}

/// There is one rank, numbered 0.
pub(in crate::grpc) fn check_rank(field: &str, rank: Option<i32>) -> Result<(), ApiError> {
    match rank {
        None | Some(0) => Ok(()),
        Some(rank) => Err(ApiError::invalid(
            field,
            format!("there is one rank, numbered 0, got {rank}"),
        )),
    }
}

/// What is wrong with an own request under the names that its sender knows.
pub(in crate::grpc) fn renamed(error: ApiError) -> ApiError {
    match error {
        ApiError::Invalid(mut violations) => {
            let fields = violations.listed_mut().iter_mut();
            fields.for_each(|violation| rename(&mut violation.field));
            ApiError::Invalid(violations)
        }
        ApiError::Unsupported { field, feature } => {
            let mut field = field.into_owned();
            rename(&mut field);
            ApiError::Unsupported {
                field: field.into(),
                feature,
            }
        }
        other => other,
    }
}

fn rename(field: &mut String) {
    const NAMES: [(&str, &str); 9] = [
        ("structured_output.choice.texts", "sampling_params.choice.choices"),
        ("structured_output.", "sampling_params."),
        ("sampling.", "sampling_params."),
        ("stopping.", "sampling_params."),
        ("output.", "sampling_params."),
        ("truncate_prompt_tokens", "sampling_params.truncate_prompt_tokens"),
        ("token_ids.ids", "tokenized.input_ids"),
        ("inputs[0].token_ids.ids", "tokenized.input_ids"),
        ("prompt", "input"),
    ];
    for (own, theirs) in NAMES {
        if let Some(rest) = field.strip_prefix(own) {
            *field = format!("{theirs}{rest}");
            return;
        }
    }
}

/// What no backend here can do.
fn refuse_lacking(request: &pb::GenerateRequest) -> Result<(), ApiError> {
    let lacking = |field: &'static str, feature: &str| {
        Err(ApiError::Unsupported {
            field: field.into(),
            feature: feature.into(),
        })
    };
    const MEDIA: &str = "input other than text";
    const TRANSFER: &str = "prefill and decode on different workers";
    if request.mm_inputs.is_some() {
        return lacking("mm_inputs", MEDIA);
    }
    if !request.extra_mm_inputs.is_empty() {
        return lacking("extra_mm_inputs", MEDIA);
    }
    if request.media_refs.is_some() {
        return lacking("media_refs", MEDIA);
    }
    if request.kv_transfer_params.is_some() {
        return lacking("kv_transfer_params", TRANSFER);
    }
    if request.kv_transfer_params_json.is_some() {
        return lacking("kv_transfer_params_json", TRANSFER);
    }
    let constraint = request
        .sampling_params
        .as_ref()
        .and_then(|params| params.constraint.as_ref());
    if let Some(pb::sampling_params::Constraint::StructuralTag(_)) = constraint {
        return lacking("sampling_params.structural_tag", "output constrained by tags");
    }
    check_rank("data_parallel_rank", request.data_parallel_rank)
}

/// What the text must look like. A structural tag is refused above.
fn structured(constraint: pb::sampling_params::Constraint) -> Option<v1::StructuredOutput> {
    use pb::sampling_params::Constraint as Theirs;
    use v1::structured_output::{Choice, Constraint};
    let own = match constraint {
        Theirs::JsonSchema(schema) => Constraint::JsonSchema(schema),
        Theirs::JsonObject(true) => Constraint::JsonSchema(r#"{"type":"object"}"#.to_owned()),
        Theirs::Regex(expression) => Constraint::Regex(expression),
        Theirs::Grammar(grammar) => Constraint::Grammar(grammar),
        Theirs::Choice(choice) => Constraint::Choice(Choice {
            texts: choice.choices,
        }),
        Theirs::JsonObject(false) | Theirs::StructuralTag(_) => return None,
    };
    Some(v1::StructuredOutput {
        constraint: Some(own),
    })
}

fn prompt(input: pb::generate_request::Input) -> v1::generate_request::Prompt {
    match input {
        pb::generate_request::Input::Tokenized(tokenized) => {
            v1::generate_request::Prompt::TokenIds(v1::TokenIds {
                ids: tokenized.input_ids,
            })
        }
        pb::generate_request::Input::Text(text) => v1::generate_request::Prompt::Text(text),
    }
}

/// A number that the wire could carry with a sign.
fn unsigned(field: &str, value: Option<i32>, findings: &mut Findings) -> Option<u32> {
    let value = value?;
    findings.that(value >= 0, field, || format!("must not be negative, got {value}"));
    u32::try_from(value).ok()
}

/// Zero stands for "not said".
fn unless_zero(value: f32) -> Option<f32> {
    (value != 0.0).then_some(value)
}

#[cfg(test)]
mod tests;
