//! Ids to text, one at a time.

mod hub;
mod sentencepiece;

use self::hub::HubWriter;
use self::sentencepiece::SentencePieceWriter;
use super::{TextError, Tokenizer};

pub(super) use self::hub::{Bytes, HubSpelling, PerToken, Strip};

/// How the tokens of a vocabulary become text.
#[derive(Debug)]
pub(super) enum Spelling {
    SentencePiece(super::sentencepiece::Spelling),
    Hub(HubSpelling),
}

/// Turns the ids of one sequence into text as they come.
///
/// Gives out whole characters only: the bytes of one that takes several tokens are held back until it is
/// complete. Everything pushed plus [`finish`](Self::finish) is the text that [`Tokenizer::decode`] gives for
/// all ids at once. The work per token does not grow with the sequence.
#[derive(Debug, Clone)]
pub struct Detokenizer {
    tokenizer: Tokenizer,
    skip_special_tokens: bool,
    writer: Writer,
    out: String,
}

#[derive(Debug, Clone)]
enum Writer {
    SentencePiece(SentencePieceWriter),
    Hub(HubWriter),
}

impl Detokenizer {
    pub(super) fn new(tokenizer: Tokenizer, skip_special_tokens: bool) -> Self {
        let writer = Writer::new(tokenizer.spelling());
        Self {
            tokenizer,
            skip_special_tokens,
            writer,
            out: String::new(),
        }
    }

    /// The text that is complete now that `id` follows the ids before: often a word, empty while a
    /// character is incomplete or a special token is skipped.
    ///
    /// # Errors
    /// [`TextError::UnknownId`] for an id outside the vocabulary, which leaves the state as it was.
    pub fn push(&mut self, id: u32) -> Result<&str, TextError> {
        self.out.clear();
        let token = self.tokenizer.token(id)?;
        let skipped = self.skip_special_tokens && token.special;
        match (&mut self.writer, self.tokenizer.spelling()) {
            (Writer::SentencePiece(writer), Spelling::SentencePiece(spelling)) => {
                writer.push(spelling, token, skipped, &mut self.out);
            }
            (Writer::Hub(writer), Spelling::Hub(spelling)) => {
                if !skipped {
                    writer.push(spelling, &token.text, &mut self.out);
                }
            }
            _ => debug_assert!(false, "a writer of another tokenizer"),
        }
        Ok(&self.out)
    }

    /// The rest of the text, now that no id follows; an incomplete character becomes U+FFFD.
    /// The next push starts a new text.
    pub fn finish(&mut self) -> &str {
        self.out.clear();
        match (&mut self.writer, self.tokenizer.spelling()) {
            (Writer::SentencePiece(writer), _) => writer.finish(&mut self.out),
            (Writer::Hub(writer), Spelling::Hub(spelling)) => writer.finish(spelling, &mut self.out),
            _ => debug_assert!(false, "a writer of another tokenizer"),
        }
        self.writer = Writer::new(self.tokenizer.spelling());
        &self.out
    }
}

impl Writer {
    fn new(spelling: &Spelling) -> Self {
        match spelling {
            Spelling::SentencePiece(_) => Self::SentencePiece(SentencePieceWriter::default()),
            Spelling::Hub(spelling) => Self::Hub(HubWriter::new(spelling)),
        }
    }
}
