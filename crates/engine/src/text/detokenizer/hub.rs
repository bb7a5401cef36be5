//! How the decoders of a `tokenizer.json` write, as one pass over a stream.

use crate::text::utf8::{Broken, Utf8Stream};

/// A decoder chain, brought into the order in which a stream can run it.
#[derive(Debug, Default)]
pub(crate) struct HubSpelling {
    /// A space between tokens: what a tokenizer without decoder asks for.
    pub(crate) spaced: bool,
    /// Changes to each token, in order.
    pub(crate) per_token: Vec<PerToken>,
    pub(crate) bytes: Bytes,
    /// Characters taken off the whole text.
    pub(crate) strip: Option<Strip>,
}

impl HubSpelling {
    /// What a token adds to a text that others have begun.
    pub(crate) fn bytes_of(&self, token: &str) -> Vec<u8> {
        let mut text = token.to_owned();
        for step in &self.per_token {
            text = step.apply(&text, false);
        }
        match (self.bytes, byte_of(&text)) {
            (Bytes::Level, _) => level_bytes(&text),
            (Bytes::Fallback, Some(byte)) => vec![byte],
            (Bytes::Fallback | Bytes::Never, _) if self.spaced => format!(" {text}").into_bytes(),
            (Bytes::Fallback | Bytes::Never, _) => text.into_bytes(),
        }
    }
}

/// A change to one token.
#[derive(Debug)]
pub(crate) enum PerToken {
    Replace {
        pattern: String,
        content: String,
    },
    /// `replacement` becomes a space, or nothing in the first token if `drop_first`.
    Metaspace {
        replacement: char,
        drop_first: bool,
    },
    Strip(Strip),
}

/// Up to so many of one character, off the start and off the end.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Strip {
    pub(crate) content: char,
    pub(crate) start: usize,
    pub(crate) stop: usize,
}

/// Which tokens are bytes.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Bytes {
    /// None.
    #[default]
    Never,
    /// Those written `<0x0A>`.
    Fallback,
    /// All: each character of a token stands for one.
    Level,
}

/// The state between two tokens.
#[derive(Debug, Clone)]
pub(super) struct HubWriter {
    first: bool,
    bytes: Utf8Stream,
    /// How many characters the strip may still take off the start.
    strip_start: usize,
    /// Characters at the end of the text that the strip takes if nothing follows.
    held: usize,
}

impl HubWriter {
    pub(super) fn new(spelling: &HubSpelling) -> Self {
        let strip_start = spelling.strip.map_or(0, |strip| strip.start);
        Self {
            first: true,
            bytes: Utf8Stream::default(),
            strip_start,
            held: 0,
        }
    }

    pub(super) fn push(&mut self, spelling: &HubSpelling, token: &str, out: &mut String) {
        let first = std::mem::replace(&mut self.first, false);
        let mut text = String::new();
        let token = match spelling.per_token.as_slice() {
            [] => token,
            steps => {
                text.push_str(token);
                for step in steps {
                    text = step.apply(&text, first);
                }
                &text
            }
        };
        let mut written = String::new();
        match (spelling.bytes, byte_of(token)) {
            (Bytes::Level, _) => self
                .bytes
                .push(&level_bytes(token), Broken::EachPrefix, &mut written),
            (Bytes::Fallback, Some(byte)) => self.bytes.push(&[byte], Broken::EachByte, &mut written),
            (Bytes::Fallback | Bytes::Never, _) => {
                self.bytes.flush(Broken::EachByte, &mut written);
                if spelling.spaced && !first {
                    written.push(' ');
                }
                written.push_str(token);
            }
        }
        self.strip(spelling, &written, out);
    }

    pub(super) fn finish(&mut self, spelling: &HubSpelling, out: &mut String) {
        let broken = match spelling.bytes {
            Bytes::Level => Broken::EachPrefix,
            Bytes::Fallback | Bytes::Never => Broken::EachByte,
        };
        let mut written = String::new();
        self.bytes.flush(broken, &mut written);
        self.strip(spelling, &written, out);
    }

    /// Passes `text` on, less what the strip takes off.
    fn strip(&mut self, spelling: &HubSpelling, text: &str, out: &mut String) {
        let Some(strip) = spelling.strip else {
            return out.push_str(text);
        };
        let mut text = text;
        while self.strip_start > 0 && !text.is_empty() {
            match text.strip_prefix(strip.content) {
                Some(rest) => {
                    text = rest;
                    self.strip_start -= 1;
                }
                None => self.strip_start = 0,
            }
        }
        let body = text.trim_end_matches(strip.content);
        let n_trailing = text[body.len()..].chars().count();
        let n_before = if body.is_empty() { self.held } else { 0 };
        if !body.is_empty() {
            out.extend(std::iter::repeat_n(strip.content, self.held));
            out.push_str(body);
        }
        let n_loose = n_before + n_trailing;
        self.held = n_loose.min(strip.stop);
        out.extend(std::iter::repeat_n(strip.content, n_loose - self.held));
    }
}

impl PerToken {
    fn apply(&self, token: &str, first: bool) -> String {
        match self {
            Self::Replace { pattern, content } => token.replace(pattern, content),
            Self::Metaspace {
                replacement,
                drop_first,
            } => {
                let space = if first && *drop_first { "" } else { " " };
                token.replace(*replacement, space)
            }
            Self::Strip(strip) => strip.apply(token).to_owned(),
        }
    }
}

impl Strip {
    fn apply<'a>(&self, text: &'a str) -> &'a str {
        let mut text = text;
        for _ in 0..self.start {
            text = text.strip_prefix(self.content).unwrap_or(text);
        }
        for _ in 0..self.stop {
            text = text.strip_suffix(self.content).unwrap_or(text);
        }
        text
    }
}

/// The byte that a token such as `<0x0a>` stands for.
fn byte_of(token: &str) -> Option<u8> {
    let digits = token.strip_prefix("<0x")?.strip_suffix('>')?;
    if digits.len() != 2 {
        return None;
    }
    u8::from_str_radix(digits, 16).ok()
}

/// The bytes that a byte-level token stands for; a token that holds any other character stands for itself.
fn level_bytes(token: &str) -> Vec<u8> {
    let bytes: Option<Vec<u8>> = token.chars().map(level_byte).collect();
    bytes.unwrap_or_else(|| token.as_bytes().to_vec())
}

/// Byte-level alphabets write printable Latin-1 bytes as themselves, and the others, in order, as U+0100 and on.
fn level_byte(c: char) -> Option<u8> {
    match u32::from(c) {
        code @ (0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF) => u8::try_from(code).ok(),
        code @ 0x100..=0x120 => u8::try_from(code - 0x100).ok(),
        code @ 0x121..=0x142 => u8::try_from(code - 0x121 + 0x7F).ok(),
        0x143 => Some(0xAD),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn write(spelling: &HubSpelling, tokens: &[String]) -> String {
        let mut writer = HubWriter::new(spelling);
        let mut out = String::new();
        tokens
            .iter()
            .for_each(|token| writer.push(spelling, token, &mut out));
        writer.finish(spelling, &mut out);
        out
    }

    proptest! {
        #[test]
        fn a_stream_is_stripped_like_the_whole_text(
            tokens in prop::collection::vec("[ a]{0,3}", 0..6), start in 0..4_usize, stop in 0..4_usize
        ) {
            let strip = Strip { content: ' ', start, stop };
            let spelling = HubSpelling { strip: Some(strip), ..HubSpelling::default() };
            let whole = tokens.concat();
            prop_assert_eq!(write(&spelling, &tokens), strip.apply(&whole));
        }
    }

    #[test]
    fn every_byte_has_a_character_of_its_own_in_a_byte_level_alphabet() {
        let chars = (0..=0x143).filter_map(char::from_u32);
        let mut bytes: Vec<u8> = chars.filter_map(level_byte).collect();
        bytes.sort_unstable();
        assert_eq!(bytes, (0..=u8::MAX).collect::<Vec<_>>());
    }
}
