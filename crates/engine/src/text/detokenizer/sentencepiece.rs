//! How SentencePiece writes: space marks become spaces, byte pieces characters, the first space goes.

use crate::text::sentencepiece::{SPACE, Spelling};
use crate::text::utf8::{Broken, Utf8Stream};
use crate::text::vocab::{Kind, Token};

/// The state between two tokens.
#[derive(Debug, Clone, Default)]
pub(super) struct SentencePieceWriter {
    bytes: Utf8Stream,
    /// Something has been written.
    started: bool,
    /// A space at the front of the next piece is text, not the mark of the beginning.
    past_start: bool,
    /// The last token lost its space to the beginning.
    lost_space: bool,
}

impl SentencePieceWriter {
    pub(super) fn push(&mut self, spelling: &Spelling, token: &Token, skipped: bool, out: &mut String) {
        if let Kind::Byte(byte) = token.kind {
            self.bytes.push(&[byte], Broken::EachByte, out);
            self.started |= !out.is_empty();
            return;
        }
        self.bytes.flush(Broken::EachByte, out);
        self.started |= !out.is_empty();
        self.past_start |= self.started || self.lost_space;
        self.lost_space = false;
        if skipped {
            return;
        }
        match token.kind {
            Kind::Control | Kind::Added => out.push_str(&token.text),
            Kind::Unknown => out.push_str(&spelling.unknown),
            Kind::Piece | Kind::Symbol | Kind::Unused | Kind::Byte(_) => {
                let strips = spelling.strips_first_space && !self.past_start;
                let stripped = token.text.strip_prefix(SPACE).filter(|_| strips);
                self.lost_space = stripped.is_some() && !spelling.strips_all_first_spaces;
                for (index, text) in stripped.unwrap_or(&token.text).split(SPACE).enumerate() {
                    if index > 0 {
                        out.push(' ');
                    }
                    out.push_str(text);
                }
            }
        }
        self.started |= !out.is_empty();
    }

    pub(super) fn finish(&mut self, out: &mut String) {
        self.bytes.flush(Broken::EachByte, out);
    }
}
