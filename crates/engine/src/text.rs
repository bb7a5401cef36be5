//! Text in and out of token ids: everything a checkpoint says about text.
//!
//! * [`Tokenizer`]: text → ids → text, from `tokenizer.json` or from a SentencePiece `tokenizer.model`.
//! * [`Detokenizer`]: ids → text one at a time, whole characters only, for streams.
//! * [`ChatTemplate`]: messages → the prompt the checkpoint was trained on.
//! * [`GenerationDefaults`]: what `generation_config.json` says about sampling.
//! * [`CheckpointText`]: all of them, read from one directory.
//!
//! No tensors, no network types, no environment. A checkpoint's files are data from outside: whatever is in
//! them ends in a value or in a [`TextError`] that names the file and the key.

mod added;
mod chat;
mod checkpoint;
mod detokenizer;
mod error;
mod files;
mod generation;
mod guard;
mod hub;
mod sentencepiece;
mod special;
mod tokenizer;
mod utf8;
mod vocab;

pub use chat::{ChatTemplate, Message, RenderOptions};
pub use checkpoint::CheckpointText;
pub use detokenizer::Detokenizer;
pub use error::TextError;
pub use generation::GenerationDefaults;
pub use special::SpecialTokens;
pub use tokenizer::{EncodeOptions, Markup, Tokenizer};
