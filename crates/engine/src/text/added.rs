//! Cuts a text at tokens that are matched before the model sees the text.

use std::ops::Range;

use aho_corasick::{AhoCorasick, MatchKind};

use super::TextError;
use super::special::DeclaredToken;
use super::tokenizer::Markup;
use super::vocab::Vocab;

/// A stretch of text for the model, or a token found in between.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Part<'a> {
    Text(&'a str),
    Token(u32),
}

/// Tokens found by their spelling; the longest of those at one place wins.
#[derive(Debug)]
pub(super) struct AddedTokens {
    all: Option<Matcher>,
    plain: Option<Matcher>,
}

#[derive(Debug)]
struct Matcher {
    automaton: AhoCorasick,
    tokens: Vec<Rule>,
}

/// How one token is matched.
#[derive(Debug, Clone)]
struct Rule {
    id: u32,
    text: String,
    lstrip: bool,
    rstrip: bool,
    single_word: bool,
}

#[derive(Debug, Default)]
pub(super) struct Builder {
    rules: Vec<Rule>,
}

impl Builder {
    pub(super) fn push(&mut self, token: &DeclaredToken) {
        self.rules.push(Rule {
            id: token.id,
            text: token.text.clone(),
            lstrip: token.lstrip,
            rstrip: token.rstrip,
            single_word: token.single_word,
        });
    }

    pub(super) fn push_control(&mut self, id: u32, text: &str) {
        self.rules.push(Rule {
            id,
            text: text.to_owned(),
            lstrip: false,
            rstrip: false,
            single_word: false,
        });
    }

    pub(super) fn build(self, vocab: &Vocab) -> Result<AddedTokens, TextError> {
        let is_plain = |rule: &&Rule| !vocab.get(rule.id).is_some_and(|token| token.markup);
        let plain = self.rules.iter().filter(is_plain).cloned().collect();
        Ok(AddedTokens {
            plain: Matcher::new(plain)?,
            all: Matcher::new(self.rules)?,
        })
    }
}

impl AddedTokens {
    pub(super) fn builder() -> Builder {
        Builder::default()
    }

    /// The parts of `text` in order, each with the byte it starts at. No text part is empty.
    pub(super) fn split<'a>(&self, text: &'a str, markup: Markup) -> Vec<(usize, Part<'a>)> {
        let matcher = match markup {
            Markup::Parse => &self.all,
            Markup::Literal => &self.plain,
        };
        let mut parts = Vec::new();
        let mut done = 0;
        for (range, id) in matcher.iter().flat_map(|matcher| matcher.find(text)) {
            let start = range.start.max(done);
            if start > done {
                parts.push((done, Part::Text(&text[done..start])));
            }
            parts.push((start, Part::Token(id)));
            done = range.end.max(done);
        }
        if done < text.len() {
            parts.push((done, Part::Text(&text[done..])));
        }
        parts
    }
}

impl Matcher {
    fn new(tokens: Vec<Rule>) -> Result<Option<Self>, TextError> {
        if tokens.is_empty() {
            return Ok(None);
        }
        let automaton = AhoCorasick::builder()
            .match_kind(MatchKind::LeftmostLongest)
            .build(tokens.iter().map(|token| &token.text))
            .map_err(|error| TextError::Encode {
                problem: format!("too many added tokens: {error}"),
            })?;
        Ok(Some(Self { automaton, tokens }))
    }

    /// The tokens in `text`, each with the bytes it takes along.
    fn find<'a>(&'a self, text: &'a str) -> impl Iterator<Item = (Range<usize>, u32)> + 'a {
        self.automaton.find_iter(text).filter_map(move |found| {
            let rule = &self.tokens[found.pattern()];
            let (before, after) = (&text[..found.start()], &text[found.end()..]);
            let inside_word =
                before.chars().next_back().is_some_and(is_word) || after.chars().next().is_some_and(is_word);
            if rule.single_word && inside_word {
                return None;
            }
            let start = if rule.lstrip {
                before.trim_end().len()
            } else {
                found.start()
            };
            let end = if rule.rstrip {
                text.len() - after.trim_start().len()
            } else {
                found.end()
            };
            Some((start..end, rule.id))
        })
    }
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}
