//! Text to token ids and back, without the model.

use std::sync::Arc;

use baichuan_engine::RequestId;
use baichuan_engine::text::EncodeOptions;
use baichuan_proto::v1;

use super::convert::prompt::{self, Prompt};
use super::convert::{Findings, clamp, text_error};
use super::embed::interrupted;
use super::meta::{Meta, check_request_id};
use crate::app::App;
use crate::error::{ApiError, Phase};

/// Answers a `Tokenize`.
pub(super) async fn tokenize(
    app: &Arc<App>,
    id: &RequestId,
    meta: &Meta,
    request: v1::TokenizeRequest,
) -> Result<v1::TokenizeResponse, ApiError> {
    use v1::tokenize_request::Input;
    let mut call = app
        .calls
        .begin(&meta.identity()?.owner, id.clone(), meta.limit(app, None))?;
    let backend = meta.backend(app, &request.model)?;
    let info = backend.info();
    let mut findings = Findings::default();
    check_request_id("request_id", &request.request_id, &mut findings.0);
    let input = match request.input {
        None => {
            findings.that(false, "input", || "one of text and chat must be set".into());
            None
        }
        Some(Input::Text(text)) => {
            let options = EncodeOptions {
                add_special_tokens: request.add_special_tokens.unwrap_or(true),
                ..EncodeOptions::PROMPT
            };
            // An empty text has tokens where the tokenizer adds some.
            Some(Prompt::Text { text, options })
        }
        Some(Input::Chat(chat)) => {
            findings.that(request.add_special_tokens.is_none(), "add_special_tokens", || {
                "is for text: a chat's special tokens are its template's".into()
            });
            prompt::of_chat(chat, info, &mut findings)?
        }
    };
    findings.done()?;
    let Some(input) = input else {
        return Err(ApiError::invalid("input", "must be set"));
    };
    let (tokenizer, return_tokens) = (info.tokenizer.clone(), request.return_tokens.unwrap_or(false));
    let work = app.text.run(move || {
        let rendered = input.rendered()?;
        let token_ids = input.encode(&tokenizer, "")?;
        let text_of = |id: &u32| tokenizer.token_text(*id).unwrap_or_default().to_owned();
        let tokens = match return_tokens {
            true => token_ids.iter().map(text_of).collect(),
            false => Vec::new(),
        };
        Ok::<_, ApiError>((token_ids, tokens, rendered))
    });
    let done = call.run(work).await;
    let (token_ids, tokens, rendered) =
        done.map_err(|i| interrupted(i, Phase::Queued, Default::default()))???;
    Ok(v1::TokenizeResponse {
        token_ids,
        tokens,
        max_context: clamp(info.max_context),
        rendered,
        model: info.name.clone(),
    })
}

/// Answers a `Detokenize`.
pub(super) async fn detokenize(
    app: &Arc<App>,
    id: &RequestId,
    meta: &Meta,
    request: v1::DetokenizeRequest,
) -> Result<v1::DetokenizeResponse, ApiError> {
    let mut call = app
        .calls
        .begin(&meta.identity()?.owner, id.clone(), meta.limit(app, None))?;
    let backend = meta.backend(app, &request.model)?;
    let info = backend.info();
    let mut findings = Findings::default();
    check_request_id("request_id", &request.request_id, &mut findings.0);
    let n_tokens = info.tokenizer.vocab_size();
    if let Some(at) = request.token_ids.iter().position(|id| *id as usize >= n_tokens) {
        findings.that(false, &format!("token_ids[{at}]"), || {
            format!(
                "token id {} is not in the vocabulary of {n_tokens}",
                request.token_ids[at]
            )
        });
    }
    findings.done()?;
    let (tokenizer, skip) = (
        info.tokenizer.clone(),
        request.skip_special_tokens.unwrap_or(true),
    );
    let work = app.text.run(move || tokenizer.decode(&request.token_ids, skip));
    let done = call.run(work).await;
    let decoded = done.map_err(|i| interrupted(i, Phase::Queued, Default::default()))??;
    Ok(v1::DetokenizeResponse {
        text: decoded.map_err(|e| text_error(&e, "token_ids"))?,
        model: info.name.clone(),
    })
}
