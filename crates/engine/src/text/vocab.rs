//! The table of tokens: what each id spells, and what kind of token it is.

use std::collections::HashMap;

/// Ids from here on are refused: a table of them would not fit into memory.
pub(super) const MAX_TOKENS: u32 = 1 << 22;

/// What a token stands for when ids become text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// A piece of text, by the tokenizer's rules of spelling.
    Piece,
    /// A piece that the model never splits or merges.
    Symbol,
    /// A piece that the model never writes.
    Unused,
    /// Text to be taken as it is written: a token added on top of the model.
    Added,
    /// One byte of a character that has no piece of its own.
    Byte(u8),
    /// Steers the model and stands for no text.
    Control,
    /// Stands for text the vocabulary cannot express.
    Unknown,
}

#[derive(Debug, Clone)]
pub(super) struct Token {
    pub(super) text: Box<str>,
    pub(super) kind: Kind,
    /// Left out of decoded text on request.
    pub(super) special: bool,
    /// Written out in a text, it could pass for an instruction of the prompt's author.
    pub(super) markup: bool,
}

/// All tokens by id, and ids by text.
#[derive(Debug, Default)]
pub(super) struct Vocab {
    tokens: Vec<Option<Token>>,
    ids: HashMap<Box<str>, u32>,
}

impl Vocab {
    /// Puts a token at `id`; what was there loses its id but keeps its text as another way to ask for it.
    pub(super) fn insert(&mut self, id: u32, token: Token) {
        let index = id as usize;
        if self.tokens.len() <= index {
            self.tokens.resize(index + 1, None);
        }
        self.ids.insert(token.text.clone(), id);
        self.tokens[index] = Some(token);
    }

    pub(super) fn get(&self, id: u32) -> Option<&Token> {
        self.tokens.get(id as usize)?.as_ref()
    }

    pub(super) fn id(&self, text: &str) -> Option<u32> {
        self.ids.get(text).copied()
    }

    /// One more than the largest id.
    pub(super) fn len(&self) -> usize {
        self.tokens.len()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (u32, &Token)> {
        (0..)
            .zip(&self.tokens)
            .filter_map(|(id, token)| Some((id, token.as_ref()?)))
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Token> {
        self.tokens.iter_mut().flatten()
    }
}

/// Whether a token's text is markup: something a reader of text would not write by accident.
///
/// A single character, a run of whitespace or a plain word is text, whatever its type in the model;
/// anything else that was made a token by hand, such as `<C_A>` or `[INST]`, is markup.
pub(super) fn looks_like_markup(text: &str) -> bool {
    let several = text.chars().nth(1).is_some();
    several
        && !text
            .chars()
            .all(|c| c.is_alphanumeric() || c.is_whitespace() || c == '\u{2581}')
}
