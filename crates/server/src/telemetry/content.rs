//! Prompts and completions for spans: only where the operator turned it on, and redacted.

use opentelemetry::KeyValue;
use serde_json::{Value, json};

use super::semconv;
use crate::config::Pattern;

/// Longest text kept of one message, in bytes.
const MAX_TEXT_BYTES: usize = 64 << 10;
const REDACTED: &str = "[REDACTED]";

/// What one generation is about.
#[derive(Debug)]
pub(crate) struct Content {
    redact: Vec<Pattern>,
    input: Vec<(String, String)>,
    output: Vec<String>,
}

impl Content {
    pub(super) fn new(redact: &[Pattern]) -> Self {
        Self {
            redact: redact.to_vec(),
            input: Vec::new(),
            output: Vec::new(),
        }
    }

    /// The messages of the prompt, each with its role.
    pub(crate) fn asked(&mut self, messages: Vec<(String, String)>) {
        self.input = messages;
        for (_, text) in &mut self.input {
            cut(text);
        }
    }

    /// A completion grew.
    pub(crate) fn answered(&mut self, index: usize, text: &str) {
        if self.output.len() <= index {
            self.output.resize(index + 1, String::new());
        }
        let output = &mut self.output[index];
        if output.len() < MAX_TEXT_BYTES {
            output.push_str(text);
            cut(output);
        }
    }

    /// As attributes of the operation's span.
    pub(super) fn attributes(self, finish_reasons: &[&str]) -> [KeyValue; 2] {
        let part = |text: &str| json!([{ "type": "text", "content": self.redacted(text) }]);
        let input: Vec<Value> = self
            .input
            .iter()
            .map(|(role, text)| json!({ "role": role, "parts": part(text) }))
            .collect();
        let output: Vec<Value> = self
            .output
            .iter()
            .enumerate()
            .map(|(i, text)| {
                let reason = finish_reasons.get(i).copied().unwrap_or("error");
                json!({ "role": "assistant", "parts": part(text), "finish_reason": reason })
            })
            .collect();
        [
            KeyValue::new(semconv::INPUT_MESSAGES, Value::from(input).to_string()),
            KeyValue::new(semconv::OUTPUT_MESSAGES, Value::from(output).to_string()),
        ]
    }

    fn redacted(&self, text: &str) -> String {
        self.redact.iter().fold(text.to_owned(), |text, pattern| {
            pattern.0.replace_all(&text, REDACTED).into_owned()
        })
    }
}

/// Cuts a text to what is kept, between characters.
fn cut(text: &mut String) {
    if text.len() > MAX_TEXT_BYTES {
        text.truncate(text.floor_char_boundary(MAX_TEXT_BYTES));
    }
}

#[cfg(test)]
mod tests {
    use regex::Regex;

    use super::*;

    #[test]
    fn what_a_pattern_matches_is_blotted_out_even_across_messages() {
        let mut content = Content::new(&[Pattern(Regex::new(r"\d{3}-\d{4}").unwrap())]);
        content.asked(vec![("user".into(), "I am 555-1234.".into())]);
        for piece in ["Call 55", "5-99", "99 now"] {
            content.answered(0, piece);
        }
        let [input, output] = content.attributes(&["stop"]);
        let (input, output) = (
            input.value.as_str().into_owned(),
            output.value.as_str().into_owned(),
        );
        let input: Value = serde_json::from_str(&input).unwrap();
        assert_eq!(
            input,
            json!([{ "role": "user", "parts": [{ "type": "text", "content": "I am [REDACTED]." }] }])
        );
        assert!(output.contains("Call [REDACTED] now") && output.contains(r#""finish_reason":"stop""#));
    }

    #[test]
    fn a_long_text_is_cut_between_characters() {
        let mut content = Content::new(&[]);
        content.answered(1, &"é".repeat(MAX_TEXT_BYTES));
        content.answered(1, "more");
        assert_eq!(content.output[1].len(), MAX_TEXT_BYTES);
        assert_eq!(content.output[0], "");
    }
}
