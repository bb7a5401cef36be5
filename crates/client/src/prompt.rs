//! Short ways to write prompts and inputs.

use baichuan_proto::v1;
use v1::embed_input::Input;
use v1::generate_request::Prompt;

/// A prompt of plain text.
pub fn text(text: impl Into<String>) -> Prompt {
    Prompt::Text(text.into())
}

/// A prompt that is tokenised already.
pub fn token_ids(ids: impl Into<Vec<u32>>) -> Prompt {
    Prompt::TokenIds(v1::TokenIds { ids: ids.into() })
}

/// A conversation whose next message the model writes.
pub fn chat(messages: impl IntoIterator<Item = v1::ChatMessage>) -> Prompt {
    Prompt::Chat(conversation(messages))
}

/// A conversation whose next message the model writes, as [`v1::TokenizeRequest`] takes it.
pub fn conversation(messages: impl IntoIterator<Item = v1::ChatMessage>) -> v1::Chat {
    v1::Chat {
        messages: messages.into_iter().collect(),
        add_generation_prompt: None,
        continue_final_message: None,
    }
}

/// One message of a conversation; roles are what the checkpoint's template knows.
pub fn message(role: impl Into<String>, content: impl Into<String>) -> v1::ChatMessage {
    v1::ChatMessage {
        role: role.into(),
        content: content.into(),
    }
}

/// Text to embed.
pub fn embed_text(text: impl Into<String>) -> v1::EmbedInput {
    v1::EmbedInput {
        input: Some(Input::Text(text.into())),
    }
}

/// Tokens to embed.
pub fn embed_tokens(ids: impl Into<Vec<u32>>) -> v1::EmbedInput {
    v1::EmbedInput {
        input: Some(Input::TokenIds(v1::TokenIds { ids: ids.into() })),
    }
}
