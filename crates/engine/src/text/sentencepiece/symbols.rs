//! Finds the user-defined symbols of a model at the front of a text.

use aho_corasick::{AhoCorasick, Anchored, Input, MatchKind, StartKind};

/// A set of symbols that are never split.
#[derive(Debug, Clone)]
pub(super) struct Symbols {
    automaton: Option<AhoCorasick>,
}

impl Symbols {
    pub(super) fn new<'a>(
        symbols: impl IntoIterator<Item = &'a str>,
    ) -> Result<Self, aho_corasick::BuildError> {
        let symbols: Vec<&str> = symbols.into_iter().collect();
        if symbols.is_empty() {
            return Ok(Self { automaton: None });
        }
        let automaton = AhoCorasick::builder()
            .match_kind(MatchKind::LeftmostLongest)
            .start_kind(StartKind::Anchored)
            .build(symbols)?;
        Ok(Self {
            automaton: Some(automaton),
        })
    }

    /// Length in bytes of the longest symbol that `text` has at `start`.
    pub(super) fn match_at(&self, text: &[u8], start: usize) -> Option<usize> {
        let input = Input::new(text).range(start..).anchored(Anchored::Yes);
        Some(self.automaton.as_ref()?.find(input)?.len())
    }
}

/// Length of the character that starts with `lead`, as SentencePiece counts: a stray byte is one of its own.
pub(super) fn char_len(lead: u8) -> usize {
    match lead {
        0x00..=0xBF => 1,
        0xC0..=0xDF => 2,
        0xE0..=0xEF => 3,
        0xF0..=0xFF => 4,
    }
}
