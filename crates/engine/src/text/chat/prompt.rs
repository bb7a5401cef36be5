//! From messages to ids, with what a message says kept apart from what the template says.
//!
//! A message that spells out a role token must not open a turn. The rendered text no longer tells who wrote
//! what, so messages that spell markup are rendered a second time with a stand-in for their text. Where
//! putting the texts back gives the first rendering again, the stand-ins have shown where the messages are.

use std::collections::HashMap;

use super::{ChatTemplate, Message, RenderOptions};
use crate::text::{EncodeOptions, Markup, TextError, Tokenizer};

/// Around a stand-in: a character that Unicode keeps for internal use.
const MARK: char = '\u{FDD0}';
/// Length of a stand-in: 128 random bits in hexadecimal between two marks.
const STAND_IN_BYTES: usize = 32 + 2 * MARK.len_utf8();

impl Tokenizer {
    /// Renders `messages` and encodes the prompt. Special tokens are the template's: those that a message
    /// spells out become plain characters.
    ///
    /// If the template looks into the messages of the assistant (to cut their reasoning off, say) and they
    /// spell markup, it is taken as such; no stranger writes those.
    ///
    /// # Errors
    /// Those of [`ChatTemplate::render`] and [`Tokenizer::encode`]; [`TextError::Messages`] if a message spells
    /// markup and the template rewrites that message.
    pub fn encode_chat(
        &self,
        template: &ChatTemplate,
        messages: &[Message],
        options: &RenderOptions,
    ) -> Result<Vec<u32>, TextError> {
        let prompt = template.render(messages, options)?;
        let mut spelling = Vec::new();
        for (index, message) in messages.iter().enumerate() {
            if self.spells_markup(&message.content)? {
                spelling.push(index);
            }
        }
        if spelling.is_empty() {
            return self.encode(&prompt, EncodeOptions::RENDERED);
        }
        let strangers: Vec<usize> = spelling
            .iter()
            .copied()
            .filter(|&index| messages[index].role != "assistant")
            .collect();
        let parts = match find(template, messages, options, &spelling, &prompt) {
            Some(parts) => Some(parts),
            None => find(template, messages, options, &strangers, &prompt),
        };
        let Some(parts) = parts else {
            let problem = format!(
                "messages[{}].content spells a special token in a place where the chat template rewrites it",
                spelling[0]
            );
            return Err(TextError::Messages { problem });
        };
        self.encode_parts(&parts)
    }

    /// Whether a text would become other ids if its markup were parsed.
    fn spells_markup(&self, text: &str) -> Result<bool, TextError> {
        let parsed = self.encode(text, EncodeOptions::RENDERED)?;
        if !parsed.iter().any(|&id| self.is_markup(id)) {
            return Ok(false);
        }
        let literal = EncodeOptions {
            add_special_tokens: false,
            markup: Markup::Literal,
        };
        Ok(parsed != self.encode(text, literal)?)
    }
}

/// Cuts `prompt` at the texts of the messages at `indices`; `None` if the template does more with
/// one of them than to write it.
fn find(
    template: &ChatTemplate,
    messages: &[Message],
    options: &RenderOptions,
    indices: &[usize],
    prompt: &str,
) -> Option<Vec<(Markup, String)>> {
    let mut disguised = messages.to_vec();
    let mut stand_ins = HashMap::with_capacity(indices.len());
    for &index in indices {
        let content = &messages[index].content;
        let text = content.trim();
        let stand_in = format!("{MARK}{:032x}{MARK}", rand::random::<u128>());
        disguised[index].content = content.replacen(text, &stand_in, 1);
        stand_ins.insert(stand_in, text);
    }
    let rendered = template.render(&disguised, options).ok()?;

    let mut parts = Vec::new();
    let (mut done, mut at) = (0, 0);
    while let Some(found) = rendered[at..].find(MARK) {
        let start = at + found;
        at = start + MARK.len_utf8();
        let end = start + STAND_IN_BYTES;
        if let Some(text) = rendered.get(start..end).and_then(|here| stand_ins.get(here)) {
            parts.push((Markup::Parse, rendered[done..start].to_owned()));
            parts.push((Markup::Literal, (*text).to_owned()));
            (done, at) = (end, end);
        }
    }
    parts.push((Markup::Parse, rendered[done..].to_owned()));
    let restored: String = parts.iter().map(|(_, text)| text.as_str()).collect();
    (restored == prompt).then_some(parts)
}
