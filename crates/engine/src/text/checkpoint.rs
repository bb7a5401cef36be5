//! Everything about text in one checkpoint.

use std::path::Path;

use super::{ChatTemplate, GenerationDefaults, SpecialTokens, TextError, Tokenizer};

/// The tokenizer, the chat template and the sampling defaults of a checkpoint.
#[derive(Debug, Clone)]
pub struct CheckpointText {
    /// Text to ids and back.
    pub tokenizer: Tokenizer,
    /// How the checkpoint wants its messages.
    pub chat_template: Option<ChatTemplate>,
    /// How it wants to be sampled.
    pub generation: GenerationDefaults,
}

impl CheckpointText {
    /// Reads them from `dir`. `default_chat_template` is the source used where the checkpoint has no template:
    /// what the model's plugin knows.
    ///
    /// # Errors
    /// The first of the errors of [`Tokenizer::from_dir`], [`ChatTemplate::from_dir`] and
    /// [`GenerationDefaults::from_dir`].
    pub fn from_dir(dir: impl AsRef<Path>, default_chat_template: Option<&str>) -> Result<Self, TextError> {
        let dir = dir.as_ref();
        let tokenizer = Tokenizer::from_dir(dir)?;
        let chat_template = match (ChatTemplate::from_dir(dir)?, default_chat_template) {
            (Some(template), _) => Some(template),
            (None, Some(source)) => Some(ChatTemplate::new(
                "default chat template",
                source,
                SpecialTokens::from_dir(dir)?,
            )?),
            (None, None) => None,
        };
        Ok(Self {
            tokenizer,
            chat_template,
            generation: GenerationDefaults::from_dir(dir)?,
        })
    }

    /// The chat template.
    ///
    /// # Errors
    /// [`TextError::ChatUnavailable`] if there is none.
    pub fn chat(&self) -> Result<&ChatTemplate, TextError> {
        self.chat_template
            .as_ref()
            .ok_or_else(|| TextError::ChatUnavailable {
                reason: "the checkpoint has no chat template and the model no default".to_owned(),
            })
    }
}
