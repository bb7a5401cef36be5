//! A whole generation in one message.

use std::time::Duration;

use baichuan_proto::v1;
use baichuan_proto::v1::generate_response::Event;
use prost::Message;

use super::convert::events::choice_matched;
use super::generate::Generation;
use crate::error::ApiError;

/// Reads a generation to its end, unless its message gets longer than `max_bytes`.
pub(super) async fn collect(
    mut generation: Generation,
    max_bytes: usize,
) -> Result<v1::GenerateUnaryResponse, ApiError> {
    let mut response = v1::GenerateUnaryResponse {
        request_id: generation.id().to_string(),
        model: generation.model().to_owned(),
        system_fingerprint: generation.fingerprint().to_owned(),
        ..v1::GenerateUnaryResponse::default()
    };
    let mut usage = v1::Usage::default();
    let mut longest = Duration::ZERO;
    // The least that the message will have: what is gathered, without the fields around it.
    let mut n_bytes = 0;
    while let Some(event) = generation.next().await {
        match event? {
            Event::PromptInfo(info) => {
                response.seed = info.seed;
                n_bytes += encoded(&info.prompt_logprobs);
                response.prompt_logprobs = info.prompt_logprobs;
            }
            Event::Delta(delta) => {
                n_bytes += delta.text.len() + delta.token_ids.len() + encoded(&delta.logprobs);
                let choice = choice(&mut response.choices, delta.index);
                choice.text.push_str(&delta.text);
                choice.token_ids.extend(delta.token_ids);
                choice.logprobs.extend(delta.logprobs);
            }
            Event::Finish(finish) => {
                let choice = choice(&mut response.choices, finish.index);
                choice.finish_reason = finish.finish_reason;
                choice.matched = finish.matched.map(choice_matched);
                choice.preemptions = finish.preemptions;
                let of_one = finish.usage.unwrap_or_default();
                usage.prompt_tokens = of_one.prompt_tokens;
                usage.cached_tokens = of_one.cached_tokens;
                usage.completion_tokens = usage.completion_tokens.saturating_add(of_one.completion_tokens);
                // The call took as long as its last completion.
                let timings = finish.timings.unwrap_or_default();
                let total = Duration::from_secs_f64(timings.total_ms.max(0.0) / 1e3);
                if response.timings.is_none() || total >= longest {
                    longest = total;
                    response.timings = Some(timings);
                }
            }
        }
        if n_bytes > max_bytes {
            return Err(generation.end_with(ApiError::answer_too_large(max_bytes)));
        }
    }
    usage.total_tokens = usage.prompt_tokens.saturating_add(usage.completion_tokens);
    response.usage = Some(usage);
    match response.encoded_len() <= max_bytes {
        true => Ok(response),
        false => Err(ApiError::answer_too_large(max_bytes)),
    }
}

fn encoded(logprobs: &[v1::TokenLogprob]) -> usize {
    logprobs.iter().map(Message::encoded_len).sum()
}

/// The choice numbered `index`; completions begin in any order.
fn choice(choices: &mut Vec<v1::Choice>, index: u32) -> &mut v1::Choice {
    let at = match choices.binary_search_by_key(&index, |c| c.index) {
        Ok(at) => at,
        Err(at) => {
            let choice = v1::Choice {
                index,
                ..v1::Choice::default()
            };
            choices.insert(at, choice);
            at
        }
    };
    &mut choices[at]
}
