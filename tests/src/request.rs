//! Requests as most tests want them, and what is looked at in their answers.

use baichuan_client::{Error, Refusal, prompt, v1};

/// The bytes `a` to `z` as token ids of the fake model: completions of these alone are plain text.
pub const LETTERS: std::ops::RangeInclusive<u32> = b'a' as u32..=b'z' as u32;

/// A greedy completion of `max_tokens` whatever the model would say, with its token ids.
pub fn generate(prompt: v1::generate_request::Prompt, max_tokens: u32) -> v1::GenerateRequest {
    v1::GenerateRequest {
        prompt: Some(prompt),
        sampling: Some(v1::SamplingParams {
            temperature: Some(0.0),
            ..Default::default()
        }),
        stopping: Some(v1::StoppingParams {
            max_tokens: Some(max_tokens),
            ignore_eos: Some(true),
            ..Default::default()
        }),
        output: Some(v1::OutputOptions {
            return_token_ids: Some(true),
            ..Default::default()
        }),
        ..Default::default()
    }
}

/// [`generate`] for a text.
pub fn text(text: &str, max_tokens: u32) -> v1::GenerateRequest {
    generate(prompt::text(text), max_tokens)
}

/// [`generate`] for token ids.
pub fn tokens(ids: &[u32], max_tokens: u32) -> v1::GenerateRequest {
    generate(prompt::token_ids(ids), max_tokens)
}

/// [`generate`] for a conversation of one message.
pub fn chat(message: &str, max_tokens: u32) -> v1::GenerateRequest {
    generate(prompt::chat([prompt::message("user", message)]), max_tokens)
}

/// [`text`], to be kept under the name `id` when its connection breaks.
pub fn kept(id: &str, max_tokens: u32) -> v1::GenerateRequest {
    v1::GenerateRequest {
        request_id: id.into(),
        resume_from_token: Some(0),
        ..text("Go on", max_tokens)
    }
}

/// Takes the kept stream of `id` up from `token`.
pub fn from_token(id: &str, token: u64) -> v1::GenerateRequest {
    v1::GenerateRequest {
        request_id: id.into(),
        resume_from_token: Some(token),
        ..Default::default()
    }
}

/// What the server said when it refused.
///
/// # Panics
/// When it did not refuse, or the error is none of the server's.
pub fn refusal<T: std::fmt::Debug>(outcome: Result<T, Error>) -> Refusal {
    let error = outcome.expect_err("the server must refuse");
    error
        .refusal()
        .unwrap_or_else(|| panic!("not the server's words: {error}"))
        .clone()
}
