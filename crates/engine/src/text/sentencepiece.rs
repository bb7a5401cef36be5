//! Tokenizers in SentencePiece's own file, `tokenizer.model`: byte pair encoding with or without byte fallback.
//!
//! Follows the SentencePiece library step for step (normaliser, user-defined symbols, merging by score, byte
//! fallback, fusing of unknown text), so that ids equal its ids. The unigram, word and char algorithms are refused.

mod hub_file;
mod merge;
mod normalizer;
pub(super) mod proto;
mod symbols;

use std::collections::HashMap;
use std::path::Path;

use prost::Message;

pub(super) use self::hub_file::hub_file;
use self::merge::merge;
use self::normalizer::Normalizer;
use self::proto::{ModelProto, ModelType, NormalizerSpec, Piece, PieceType, TrainerSpec};
use self::symbols::Symbols;
use super::tokenizer::Markup;
use super::vocab::{Kind, Token, Vocab, looks_like_markup};
use super::{TextError, files};

/// The visible stand-in for a space in pieces, U+2581.
pub(super) const SPACE: &str = "\u{2581}";

pub(super) const FILE: &str = "tokenizer.model";

/// What stands for unknown text when ids are decoded, unless the model says otherwise.
const UNKNOWN_SURFACE: &str = " \u{2047} ";

/// A model that encodes.
#[derive(Debug)]
pub(super) struct SentencePiece {
    normalizer: Normalizer,
    pieces: HashMap<Box<[u8]>, MergePiece>,
    unknown: u32,
    bytes: Option<Box<[u32; 256]>>,
    /// All user-defined symbols.
    symbols: Symbols,
    /// Those that are plain text.
    plain_symbols: Symbols,
}

/// A piece as merging sees it.
#[derive(Debug, Clone, Copy)]
pub(super) struct MergePiece {
    id: u32,
    score: f32,
    unused: bool,
    /// A user-defined symbol that is markup: only found whole, never merged from parts.
    markup: bool,
}

/// How pieces become text again.
#[derive(Debug, Clone)]
pub(super) struct Spelling {
    /// A space mark at the start of the text stands for no space.
    pub(super) strips_first_space: bool,
    /// And so do all that follow it.
    pub(super) strips_all_first_spaces: bool,
    /// What an unknown token reads as.
    pub(super) unknown: String,
}

impl SentencePiece {
    /// The model in `dir`, its tokens and its spelling; `None` if the file is absent.
    pub(super) fn from_dir(dir: &Path) -> Result<Option<(Self, Vocab, Spelling)>, TextError> {
        let Some((file, bytes)) = files::read(dir, FILE)? else {
            return Ok(None);
        };
        let model = ModelProto::decode(bytes.as_slice())
            .map_err(|error| TextError::tokenizer(&file, format!("not a SentencePiece model: {error}")))?;
        Self::new(&file, &model).map(Some)
    }

    fn new(file: &Path, model: &ModelProto) -> Result<(Self, Vocab, Spelling), TextError> {
        let trainer = model.trainer_spec.clone().unwrap_or_default();
        let spec = model.normalizer_spec.clone().unwrap_or_default();
        check_algorithm(file, &trainer, model.denormalizer_spec.as_ref())?;
        let normalizer = Normalizer::new(&spec, trainer.treat_whitespace_as_suffix.unwrap_or(false))
            .map_err(|problem| TextError::field(file, "normalizer_spec.precompiled_charsmap", problem))?;

        let mut table = PieceTable::default();
        for (index, piece) in model.pieces.iter().enumerate() {
            let id = u32::try_from(index).map_err(|_| TextError::tokenizer(file, "has too many pieces"))?;
            table
                .add(id, piece)
                .map_err(|problem| TextError::field(file, format!("pieces.{id}"), problem))?;
        }
        let unknown = table
            .unknown
            .ok_or_else(|| TextError::field(file, "pieces", "holds no unknown piece"))?;
        let bytes = table.bytes(trainer.byte_fallback.unwrap_or(false));
        let bytes = bytes.map_err(|problem| TextError::field(file, "pieces", problem))?;
        let symbols = |all: bool| {
            let symbols = table
                .user_defined
                .iter()
                .filter(|text| all || !looks_like_markup(text));
            Symbols::new(symbols.map(String::as_str))
                .map_err(|error| TextError::field(file, "pieces", format!("holds too many symbols: {error}")))
        };
        let spelling = Spelling {
            strips_first_space: normalizer.add_dummy_prefix || normalizer.remove_extra_whitespaces,
            strips_all_first_spaces: normalizer.remove_extra_whitespaces,
            unknown: trainer.unk_surface.unwrap_or_else(|| UNKNOWN_SURFACE.to_owned()),
        };
        let model = Self {
            symbols: symbols(true)?,
            plain_symbols: symbols(false)?,
            normalizer,
            pieces: table.pieces,
            unknown,
            bytes,
        };
        Ok((model, table.vocab, spelling))
    }

    /// Adds the ids of `text` to `ids`. `dummy_prefix` allows the space mark that the model may want in front.
    pub(super) fn encode(&self, text: &str, markup: Markup, dummy_prefix: bool, ids: &mut Vec<u32>) {
        let symbols = match markup {
            Markup::Parse => &self.symbols,
            Markup::Literal => &self.plain_symbols,
        };
        let text = self.normalizer.normalize(text, symbols, dummy_prefix);
        let mut after_unknown = false;
        for range in merge(self, &text, symbols) {
            let piece = &text[range];
            if let Some(known) = self.pieces.get(piece).filter(|known| !known.unused) {
                ids.push(known.id);
                after_unknown = false;
                continue;
            }
            match &self.bytes {
                Some(bytes) => ids.extend(piece.iter().map(|&byte| bytes[byte as usize])),
                None if after_unknown => {}
                None => ids.push(self.unknown),
            }
            after_unknown = true;
        }
    }

    /// The piece that two neighbours with this text together may merge into.
    fn mergeable(&self, text: &[u8]) -> Option<MergePiece> {
        self.pieces.get(text).copied().filter(|piece| !piece.markup)
    }
}

fn check_algorithm(
    file: &Path,
    trainer: &TrainerSpec,
    denormalizer: Option<&NormalizerSpec>,
) -> Result<(), TextError> {
    let unsupported = |kind: String| {
        Err(TextError::Unsupported {
            file: file.to_owned(),
            kind,
            supported: "a BPE model without denormaliser",
        })
    };
    let number = trainer.model_type.unwrap_or(ModelType::Unigram as i32);
    match ModelType::try_from(number) {
        Ok(ModelType::Bpe) => {}
        Ok(other) => return unsupported(format!("SentencePiece model type {other:?}")),
        Err(_) => return unsupported(format!("SentencePiece model type {number}")),
    }
    let denormalizes = denormalizer.and_then(|spec| spec.precompiled_charsmap.as_ref());
    if denormalizes.is_some_and(|map| !map.is_empty()) {
        return unsupported("a SentencePiece denormaliser".to_owned());
    }
    Ok(())
}

/// Collects the pieces of a model and checks them.
#[derive(Default)]
struct PieceTable {
    vocab: Vocab,
    pieces: HashMap<Box<[u8]>, MergePiece>,
    user_defined: Vec<String>,
    unknown: Option<u32>,
    byte_ids: HashMap<u8, u32>,
}

impl PieceTable {
    fn add(&mut self, id: u32, piece: &Piece) -> Result<(), String> {
        let text = &piece.piece;
        let number = piece.kind.unwrap_or(PieceType::Normal as i32);
        let kind = PieceType::try_from(number).map_err(|_| format!("has the unknown type {number}"))?;
        if text.is_empty() {
            return Err("is empty".to_owned());
        }
        if !piece.score.is_finite() {
            return Err(format!("{text:?} has the score {}", piece.score));
        }
        if let Some(first) = self.vocab.id(text) {
            return Err(format!("{text:?} is already piece {first}"));
        }
        let markup = kind == PieceType::UserDefined && looks_like_markup(text);
        let token_kind = match kind {
            PieceType::Normal => Kind::Piece,
            PieceType::Unused => Kind::Unused,
            PieceType::UserDefined => {
                self.user_defined.push(text.clone());
                Kind::Symbol
            }
            PieceType::Control => Kind::Control,
            PieceType::Unknown => {
                if let Some(first) = self.unknown.replace(id) {
                    return Err(format!("is a second unknown piece, the first is {first}"));
                }
                Kind::Unknown
            }
            PieceType::Byte => {
                let byte = byte_of(text).ok_or_else(|| format!("{text:?} is no byte"))?;
                self.byte_ids.insert(byte, id);
                Kind::Byte(byte)
            }
        };
        if matches!(token_kind, Kind::Piece | Kind::Symbol | Kind::Unused) {
            let merge_piece = MergePiece {
                id,
                score: piece.score,
                unused: kind == PieceType::Unused,
                markup,
            };
            self.pieces.insert(text.as_bytes().into(), merge_piece);
        }
        let is_control = token_kind == Kind::Control;
        let token = Token {
            text: text.as_str().into(),
            kind: token_kind,
            special: is_control,
            markup: markup || is_control,
        };
        self.vocab.insert(id, token);
        Ok(())
    }

    /// Ids of all bytes, if the model falls back to them.
    fn bytes(&self, byte_fallback: bool) -> Result<Option<Box<[u32; 256]>>, String> {
        if !byte_fallback {
            return match self.byte_ids.len() {
                0 => Ok(None),
                n => Err(format!(
                    "holds {n} byte pieces although `trainer_spec.byte_fallback` is false"
                )),
            };
        }
        let mut ids = Box::new([0; 256]);
        for byte in 0..=u8::MAX {
            let id = self.byte_ids.get(&byte).ok_or_else(|| {
                format!("has no piece <0x{byte:02X}> although `trainer_spec.byte_fallback` is true")
            })?;
            ids[byte as usize] = *id;
        }
        Ok(Some(ids))
    }
}

/// The byte that a piece such as `<0x0A>` stands for.
pub(super) fn byte_of(piece: &str) -> Option<u8> {
    let digits = piece.strip_prefix("<0x")?.strip_suffix('>')?;
    let upper_hex = digits.len() == 2
        && digits
            .bytes()
            .all(|b| b.is_ascii_digit() || (b'A'..=b'F').contains(&b));
    if !upper_hex {
        return None;
    }
    u8::from_str_radix(digits, 16).ok()
}
