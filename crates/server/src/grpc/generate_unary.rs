//! A whole generation in one message.

use std::time::Duration;

use baichuan_proto::v1;
use baichuan_proto::v1::generate_response::Event;

use super::convert::events::choice_matched;
use super::generate::Generation;
use crate::error::ApiError;

/// Reads a generation to its end.
pub(super) async fn collect(mut generation: Generation) -> Result<v1::GenerateUnaryResponse, ApiError> {
    let mut response = v1::GenerateUnaryResponse {
        request_id: generation.id().to_string(),
        model: generation.model().to_owned(),
        system_fingerprint: generation.fingerprint().to_owned(),
        ..v1::GenerateUnaryResponse::default()
    };
    let mut usage = v1::Usage::default();
    let mut longest = Duration::ZERO;
    while let Some(event) = generation.next().await {
        match event? {
            Event::PromptInfo(info) => {
                response.seed = info.seed;
                response.prompt_logprobs = info.prompt_logprobs;
            }
            Event::Delta(delta) => {
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
    }
    usage.total_tokens = usage.prompt_tokens.saturating_add(usage.completion_tokens);
    response.usage = Some(usage);
    Ok(response)
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
