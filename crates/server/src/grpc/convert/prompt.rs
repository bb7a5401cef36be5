//! Prompts and inputs: what may be one, and how it becomes token ids.

use baichuan_engine::text::{ChatTemplate, EncodeOptions, Message, RenderOptions, Tokenizer};
use baichuan_engine::{BackendInfo, TokenId};
use baichuan_proto::v1;

use super::{Findings, text_error};
use crate::error::ApiError;

/// Something that becomes token ids.
pub(in crate::grpc) enum Prompt {
    Text {
        text: String,
        options: EncodeOptions,
    },
    Ids(Vec<TokenId>),
    Chat {
        messages: Vec<Message>,
        options: RenderOptions,
        template: ChatTemplate,
    },
}

impl Prompt {
    /// The field that the prompt came in, for violations found later. `at` is what is in front of it.
    pub(in crate::grpc) fn field(&self, at: &str) -> String {
        let name = match self {
            Self::Text { .. } => "text",
            Self::Ids(_) => "token_ids.ids",
            Self::Chat { .. } => "chat.messages",
        };
        format!("{at}{name}")
    }

    /// A conversation as its template renders it; empty for anything else. Takes time: for a blocking thread.
    pub(in crate::grpc) fn rendered(&self) -> Result<String, ApiError> {
        match self {
            Self::Chat {
                messages,
                options,
                template,
            } => template
                .render(messages, options)
                .map_err(|e| text_error(&e, &self.field(""))),
            Self::Text { .. } | Self::Ids(_) => Ok(String::new()),
        }
    }

    /// Its token ids. Takes time: for a blocking thread.
    pub(in crate::grpc) fn encode(self, tokenizer: &Tokenizer, at: &str) -> Result<Vec<TokenId>, ApiError> {
        let field = self.field(at);
        let encoded = match self {
            Self::Ids(ids) => return Ok(ids),
            Self::Text { text, options } => tokenizer.encode(&text, options),
            Self::Chat {
                messages,
                options,
                template,
            } => tokenizer.encode_chat(&template, &messages, &options),
        };
        encoded.map_err(|e| text_error(&e, &field))
    }
}

/// Checks the `prompt` of a generation.
pub(in crate::grpc) fn of_generate(
    prompt: Option<v1::generate_request::Prompt>,
    info: &BackendInfo,
    findings: &mut Findings,
) -> Result<Option<Prompt>, ApiError> {
    use v1::generate_request::Prompt as Wire;
    Ok(match prompt {
        None => {
            findings.that(false, "prompt", || {
                "one of text, token_ids and chat must be set".into()
            });
            None
        }
        Some(Wire::Text(text)) => Some(of_text(text, "", EncodeOptions::PROMPT, info, findings)),
        Some(Wire::TokenIds(ids)) => Some(of_ids(ids.ids, "token_ids.ids", info, findings)),
        Some(Wire::Chat(chat)) => of_chat(chat, info, findings)?,
    })
}

/// Checks a text. `at` is what is in front of its field's name.
pub(in crate::grpc) fn of_text(
    text: String,
    at: &str,
    options: EncodeOptions,
    info: &BackendInfo,
    findings: &mut Findings,
) -> Prompt {
    let field = format!("{at}text");
    findings.that(!text.is_empty(), &field, || "must not be empty".into());
    check_bytes(text.len(), &field, info, findings);
    Prompt::Text { text, options }
}

/// Checks how long a text is.
pub(in crate::grpc) fn check_bytes(n_bytes: usize, field: &str, info: &BackendInfo, findings: &mut Findings) {
    let max = info.limits.max_text_bytes;
    findings.that(n_bytes <= max, field, || {
        format!("must have at most {max} bytes, got {n_bytes}")
    });
}

/// Checks token ids against the vocabulary.
pub(in crate::grpc) fn of_ids(
    ids: Vec<TokenId>,
    field: &str,
    info: &BackendInfo,
    findings: &mut Findings,
) -> Prompt {
    findings.that(!ids.is_empty(), field, || "must not be empty".into());
    let unknown = ids.iter().position(|id| *id as usize >= info.vocab_size);
    if let Some(at) = unknown {
        findings.that(false, &format!("{field}[{at}]"), || {
            format!(
                "token id {} is not in the vocabulary of {}",
                ids[at], info.vocab_size
            )
        });
    }
    Prompt::Ids(ids)
}

/// Checks a conversation; `None` where a violation was found.
pub(in crate::grpc) fn of_chat(
    chat: v1::Chat,
    info: &BackendInfo,
    findings: &mut Findings,
) -> Result<Option<Prompt>, ApiError> {
    let Some(template) = info.chat_template.clone() else {
        return Err(ApiError::Unsupported {
            field: "chat".into(),
            feature: "chat".into(),
        });
    };
    let continue_final_message = chat.continue_final_message.unwrap_or(false);
    let add_generation_prompt = chat.add_generation_prompt.unwrap_or(!continue_final_message);
    findings.that(
        !(continue_final_message && add_generation_prompt),
        "chat.continue_final_message",
        || "excludes add_generation_prompt".into(),
    );
    let (n_messages, max) = (chat.messages.len(), info.limits.max_messages);
    findings.that((1..=max).contains(&n_messages), "chat.messages", || {
        format!("must have 1 to {max} messages, got {n_messages}")
    });
    if n_messages > max {
        return Ok(None);
    }
    for (i, message) in chat.messages.iter().enumerate() {
        findings.that(
            !message.role.is_empty(),
            &format!("chat.messages[{i}].role"),
            || "must not be empty".into(),
        );
    }
    let n_bytes = chat.messages.iter().map(|m| m.role.len() + m.content.len()).sum();
    check_bytes(n_bytes, "chat.messages", info, findings);
    let messages = chat.messages.into_iter().map(|m| Message::new(m.role, m.content));
    Ok(Some(Prompt::Chat {
        messages: messages.collect(),
        options: RenderOptions {
            add_generation_prompt,
            continue_final_message,
            ..RenderOptions::default()
        },
        template,
    }))
}

/// Checks the length of what became token ids of it; `max` is what the model accepts.
pub(in crate::grpc) fn check_length(tokens: &[TokenId], field: &str, max: usize) -> Result<(), ApiError> {
    if tokens.is_empty() {
        return Err(ApiError::invalid(field, "has no tokens"));
    }
    if tokens.len() > max {
        let message = format!("prompt has {} tokens, the model accepts {max}", tokens.len());
        return Err(ApiError::invalid(field, message));
    }
    Ok(())
}
