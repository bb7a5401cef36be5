//! Text to token ids and back, without the model.

use std::sync::Arc;

use baichuan_engine::RequestId;
use baichuan_engine::event::Usage;
use baichuan_engine::text::EncodeOptions;
use baichuan_proto::v1;

use super::admission;
use super::convert::prompt::{self, Prompt};
use super::convert::{Findings, clamp, text_error};
use super::embed::interrupted;
use super::meta::{Meta, check_request_id};
use crate::app::App;
use crate::calls::Call;
use crate::error::{ApiError, Phase};
use crate::identity::tenant::Tenant;

/// Answers a `Tokenize`.
pub(super) async fn tokenize(
    app: &Arc<App>,
    id: &RequestId,
    meta: &Meta,
    request: v1::TokenizeRequest,
) -> Result<v1::TokenizeResponse, ApiError> {
    use v1::tokenize_request::Input;
    let mut call = meta.begin(app, id, &request.request_id, meta.limit(app, None))?;
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
            prompt::check_bytes(text.len(), "text", info, &mut findings);
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
    let tenant = &meta.identity()?.tenant;
    let (token_ids, tokens, rendered) = worked(app, &mut call, tenant, move || {
        let rendered = input.rendered()?;
        let token_ids = input.encode(&tokenizer, "")?;
        let text_of = |id: &u32| tokenizer.token_text(*id).unwrap_or_default().to_owned();
        let tokens = match return_tokens {
            true => token_ids.iter().map(text_of).collect(),
            false => Vec::new(),
        };
        Ok((token_ids, tokens, rendered))
    })
    .await?;
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
    let mut call = meta.begin(app, id, &request.request_id, meta.limit(app, None))?;
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
    let written = |id: &u32| info.tokenizer.token_text(*id).map_or(0, str::len);
    let n_bytes = request.token_ids.iter().map(written).sum();
    prompt::check_bytes(n_bytes, "token_ids", info, &mut findings);
    findings.done()?;
    let (tokenizer, skip) = (
        info.tokenizer.clone(),
        request.skip_special_tokens.unwrap_or(true),
    );
    let tenant = &meta.identity()?.tenant;
    let text = worked(app, &mut call, tenant, move || {
        let decoded = tokenizer.decode(&request.token_ids, skip);
        decoded.map_err(|e| text_error(&e, "token_ids"))
    })
    .await?;
    Ok(v1::DetokenizeResponse {
        text,
        model: info.name.clone(),
    })
}

/// What became of a call's text, which is one of its tenant's requests.
async fn worked<T: Send + 'static>(
    app: &Arc<App>,
    call: &mut Call,
    tenant: &Arc<Tenant>,
    work: impl FnOnce() -> Result<T, ApiError> + Send + 'static,
) -> Result<T, ApiError> {
    let charge = admission::charge(app, tenant, 1, 0)?;
    let done = call.run(app.text.run(tenant.account(), work)).await;
    let done = match done {
        Ok(done) => done.flatten(),
        Err(interrupt) => Err(interrupted(interrupt, Phase::Queued, Usage::default())),
    };
    charge.settle(&done, (0, 0));
    done
}
