//! A generation's request: every field checked, defaults filled in.

use baichuan_engine::request::{
    OutputOptions, SamplingOptions, SamplingParams, StoppingOptions, StoppingParams,
};
use baichuan_engine::{BackendInfo, StructuredOutput};
use baichuan_proto::v1;

use super::prompt::{self, Prompt};
use super::{Findings, check_time_limit};
use crate::error::ApiError;
use crate::grpc::meta::check_request_id;

/// A valid request, not yet tokenised.
pub(in crate::grpc) struct Generate {
    pub(in crate::grpc) prompt: Prompt,
    pub(in crate::grpc) sampling: SamplingParams,
    pub(in crate::grpc) stopping: StoppingParams,
    pub(in crate::grpc) output: OutputOptions,
    /// What the text must look like, not yet compiled.
    pub(in crate::grpc) structured_output: Option<StructuredOutput>,
    /// Keep only so many last tokens of the prompt.
    pub(in crate::grpc) truncate: Option<usize>,
    pub(in crate::grpc) priority: i32,
}

/// Checks a request against the model it is for. `seed` is used where the request has none.
pub(in crate::grpc) fn check(
    request: v1::GenerateRequest,
    info: &BackendInfo,
    seed: u64,
) -> Result<Generate, ApiError> {
    let mut findings = Findings::default();
    check_request_id("request_id", &request.request_id, &mut findings.0);
    check_time_limit(request.time_limit_ms, &mut findings);
    findings.that(
        request.truncate_prompt_tokens != Some(0),
        "truncate_prompt_tokens",
        || "must be at least 1, got 0".into(),
    );
    let prompt = prompt::of_generate(request.prompt, info, &mut findings)?;
    let asked = sampling(request.sampling.unwrap_or_default());
    let sampling = findings.keep(asked.or(&info.default_sampling).validate(&info.limits, seed));
    let mut asked = stopping(request.stopping.unwrap_or_default());
    if asked.max_tokens.is_none() {
        asked.max_tokens = info.default_max_tokens;
    }
    let ignores_eos = asked.ignore_eos == Some(true);
    let n = sampling.as_ref().map_or(1, SamplingParams::n);
    let stopping = findings.keep(asked.validate(&info.limits, n));
    let output = findings.keep(output(request.output.unwrap_or_default()).validate());
    let structured_output = structured(request.structured_output, &mut findings);
    findings.that(
        structured_output.is_none() || !ignores_eos,
        "stopping.ignore_eos",
        || "excludes structured_output, whose end is an end-of-sequence token".into(),
    );
    let (Some(prompt), Some(sampling), Some(stopping), Some(output), true) =
        (prompt, sampling, stopping, output, findings.0.is_empty())
    else {
        return Err(ApiError::Invalid(findings.0));
    };
    Ok(Generate {
        prompt,
        sampling,
        stopping,
        output,
        structured_output,
        truncate: request.truncate_prompt_tokens.map(|n| n as usize),
        priority: request.priority.unwrap_or(0),
    })
}

fn structured(wire: Option<v1::StructuredOutput>, findings: &mut Findings) -> Option<StructuredOutput> {
    use v1::structured_output::Constraint;
    let Some(constraint) = wire?.constraint else {
        findings.that(false, "structured_output", || {
            "one of json_schema, regex, grammar and choice must be set".into()
        });
        return None;
    };
    let wish = match constraint {
        Constraint::JsonSchema(schema) => StructuredOutput::JsonSchema(schema),
        Constraint::Regex(expression) => StructuredOutput::Regex(expression),
        Constraint::Grammar(grammar) => StructuredOutput::Grammar(grammar),
        Constraint::Choice(choice) => StructuredOutput::Choice(choice.texts),
    };
    findings.keep(wish.validate())
}

fn sampling(wire: v1::SamplingParams) -> SamplingOptions {
    SamplingOptions {
        temperature: wire.temperature,
        top_p: wire.top_p,
        top_k: wire.top_k,
        min_p: wire.min_p,
        typical_p: wire.typical_p,
        repetition_penalty: wire.repetition_penalty,
        presence_penalty: wire.presence_penalty,
        frequency_penalty: wire.frequency_penalty,
        logit_bias: wire.logit_bias.into_iter().collect(),
        allowed_token_ids: wire.allowed_token_ids,
        bad_token_ids: wire.bad_token_ids,
        seed: wire.seed,
        n: wire.n,
    }
}

fn stopping(wire: v1::StoppingParams) -> StoppingOptions {
    StoppingOptions {
        max_tokens: wire.max_tokens,
        min_tokens: wire.min_tokens,
        stop: wire.stop,
        stop_token_ids: wire.stop_token_ids,
        include_stop_str_in_output: wire.include_stop_str_in_output,
        ignore_eos: wire.ignore_eos,
    }
}

fn output(wire: v1::OutputOptions) -> OutputOptions {
    let default = OutputOptions::default();
    OutputOptions {
        logprobs: wire.logprobs,
        prompt_logprobs: wire.prompt_logprobs,
        token_ids: wire.return_token_ids.unwrap_or(default.token_ids),
        text: wire.return_text.unwrap_or(default.text),
        skip_special_tokens: wire.skip_special_tokens.unwrap_or(default.skip_special_tokens),
        stream_interval: wire.stream_interval.unwrap_or(default.stream_interval),
    }
}

#[cfg(test)]
mod tests;
