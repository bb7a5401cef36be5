//! Text in and out of token ids. (The types' bodies land with the tokenizer.)

/// Why text could not be handled.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct TextError(String);

/// Text to token ids and back.
#[derive(Debug)]
pub struct Tokenizer(());

/// Renders conversations.
#[derive(Debug)]
pub struct ChatTemplate(());
