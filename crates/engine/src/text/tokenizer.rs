//! Text to ids and back, whichever file the checkpoint's tokenizer is in.

use std::path::Path;
use std::sync::Arc;

use super::added::{AddedTokens, Part};
use super::detokenizer::{Detokenizer, Spelling};
use super::hub::{self, Hub};
use super::sentencepiece::{self, SentencePiece};
use super::special::{CONFIG, TokenizerConfig};
use super::vocab::{Kind, Token, Vocab, looks_like_markup};
use super::{SpecialTokens, TextError};

/// The files a tokenizer can be made of, best first.
const FILES: [&str; 2] = [hub::FILE, sentencepiece::FILE];

/// How tokens are read that someone spelled out in a text: `<s>`, role tokens, any token added by hand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Markup {
    /// As the tokens they name. For prompts whose author may use them, such as rendered templates.
    Parse,
    /// As the characters they are written with. For text from strangers.
    ///
    /// Tokens added for single characters, plain words or runs of whitespace are still used: they say nothing
    /// beyond their text.
    Literal,
}

/// How a text is encoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EncodeOptions {
    /// Adds the tokens that the checkpoint wants around a text (begin, end), if it wants any.
    pub add_special_tokens: bool,
    /// How tokens spelled out in the text are read.
    pub markup: Markup,
}

impl EncodeOptions {
    /// For a prompt written by someone who may use markup.
    pub const PROMPT: Self = Self {
        add_special_tokens: true,
        markup: Markup::Parse,
    };
    /// For text rendered by a chat template, which writes all special tokens itself.
    pub const RENDERED: Self = Self {
        add_special_tokens: false,
        markup: Markup::Parse,
    };
    /// For text from strangers: it may mention markup but never use it.
    pub const UNTRUSTED: Self = Self {
        add_special_tokens: true,
        markup: Markup::Literal,
    };
}

/// The tokenizer of one checkpoint. Clones share it.
#[derive(Debug, Clone)]
pub struct Tokenizer {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    vocab: Vocab,
    model: Model,
    spelling: Spelling,
    special: SpecialTokens,
    /// Tokens put before and after a text on request. `None`: the model does it itself.
    around: Option<Around>,
}

#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Around {
    pub(super) bos: Option<u32>,
    pub(super) eos: Option<u32>,
}

#[derive(Debug)]
enum Model {
    SentencePiece(Box<WithAdded>),
    Hub(Box<Hub>),
}

/// A SentencePiece model and the tokens that are found before it sees a text.
#[derive(Debug)]
struct WithAdded {
    model: SentencePiece,
    added: AddedTokens,
    /// The model's space mark goes before the text's first character only, not behind every added token.
    dummy_prefix_once: bool,
}

impl Tokenizer {
    /// Reads the tokenizer of the checkpoint in `dir`.
    ///
    /// Takes `tokenizer.json`, else `tokenizer.model`; honours `tokenizer_config.json`,
    /// `special_tokens_map.json` and `added_tokens.json` where they are.
    ///
    /// # Errors
    /// [`TextError::NoTokenizer`] if there is neither file, else an error that names file and key.
    pub fn from_dir(dir: impl AsRef<Path>) -> Result<Self, TextError> {
        let dir = dir.as_ref();
        let config = TokenizerConfig::from_dir(dir)?;
        let inner = if let Some((hub, vocab, spelling)) = Hub::from_dir(dir, &config)? {
            let explicit = config.add_bos.is_some() || config.add_eos.is_some();
            let around = explicit.then(|| around(dir, &config, &vocab)).transpose()?;
            let model = Model::Hub(Box::new(hub));
            Inner {
                vocab,
                model,
                spelling: Spelling::Hub(spelling),
                special: config.special,
                around,
            }
        } else if let Some((model, mut vocab, spelling)) = SentencePiece::from_dir(dir)? {
            let added = add_declared(&config, &mut vocab)?;
            let around = Some(around(dir, &config, &vocab)?);
            let dummy_prefix_once = config.legacy == Some(false);
            let model = Model::SentencePiece(Box::new(WithAdded {
                model,
                added,
                dummy_prefix_once,
            }));
            Inner {
                vocab,
                model,
                spelling: Spelling::SentencePiece(spelling),
                special: config.special,
                around,
            }
        } else {
            return Err(TextError::NoTokenizer {
                dir: dir.to_owned(),
                looked_for: &FILES,
            });
        };
        Ok(Self {
            inner: Arc::new(inner),
        })
    }

    /// What the `tokenizer.json` of the checkpoint in `dir` would hold, had it one: it gives the ids that this
    /// tokenizer gives a text that may use markup. For programs that do not read `tokenizer.model`.
    ///
    /// `None` if the checkpoint has that file, or neither, or if its `tokenizer.model` does what the other format cannot
    /// say: a space put before a text (`add_dummy_prefix`) or dropped around it, unused pieces, token ids with gaps.
    ///
    /// # Errors
    /// A file that is broken, named.
    pub fn as_tokenizer_json(dir: impl AsRef<Path>) -> Result<Option<String>, TextError> {
        let dir = dir.as_ref();
        let config = TokenizerConfig::from_dir(dir)?;
        let tokenizer = Self::from_dir(dir)?;
        let inner = &tokenizer.inner;
        sentencepiece::hub_file(dir, &config, &inner.vocab, inner.around.unwrap_or_default())
    }

    /// The ids of `text`.
    ///
    /// # Errors
    /// [`TextError::Encode`] if the tokenizer has no way to express the text as asked.
    pub fn encode(&self, text: &str, options: EncodeOptions) -> Result<Vec<u32>, TextError> {
        let inner = &*self.inner;
        let around = match (options.add_special_tokens, inner.around) {
            (true, Some(around)) => around,
            _ => Around::default(),
        };
        let mut ids: Vec<u32> = around.bos.into_iter().collect();
        let by_model = options.add_special_tokens && inner.around.is_none();
        self.encode_part(text, options.markup, true, by_model, &mut ids)?;
        ids.extend(around.eos);
        Ok(ids)
    }

    /// The ids of a text in parts, each with its own way of reading markup and no tokens around the whole.
    pub(super) fn encode_parts(&self, parts: &[(Markup, String)]) -> Result<Vec<u32>, TextError> {
        let mut ids = Vec::new();
        for (index, (markup, text)) in parts.iter().enumerate() {
            self.encode_part(text, *markup, index == 0, false, &mut ids)?;
        }
        Ok(ids)
    }

    /// Adds the ids of one part; `first`: nothing is in front of it.
    fn encode_part(
        &self,
        text: &str,
        markup: Markup,
        first: bool,
        special_by_model: bool,
        ids: &mut Vec<u32>,
    ) -> Result<(), TextError> {
        match &self.inner.model {
            Model::Hub(hub) => hub.encode(text, markup, special_by_model, ids)?,
            Model::SentencePiece(with_added) => {
                let WithAdded {
                    model,
                    added,
                    dummy_prefix_once,
                } = &**with_added;
                for (start, part) in added.split(text, markup) {
                    match part {
                        Part::Token(id) => ids.push(id),
                        Part::Text(text) => {
                            let dummy_prefix = if start == 0 { first } else { !dummy_prefix_once };
                            model.encode(text, markup, dummy_prefix, ids);
                        }
                    }
                }
            }
        }
        Ok(())
    }

    /// The text of `ids`: what a [`Detokenizer`] makes of them one by one.
    ///
    /// Bytes that are no character become U+FFFD, everything else is exact. With `skip_special_tokens` the
    /// tokens that steer the model are left out.
    ///
    /// # Errors
    /// [`TextError::UnknownId`] for an id outside the vocabulary.
    pub fn decode(&self, ids: &[u32], skip_special_tokens: bool) -> Result<String, TextError> {
        let mut detokenizer = self.detokenizer(skip_special_tokens);
        let mut text = String::with_capacity(ids.len() * 4);
        for &id in ids {
            text.push_str(detokenizer.push(id)?);
        }
        text.push_str(detokenizer.finish());
        Ok(text)
    }

    /// A decoder for one stream of ids.
    pub fn detokenizer(&self, skip_special_tokens: bool) -> Detokenizer {
        Detokenizer::new(self.clone(), skip_special_tokens)
    }

    /// The token as the vocabulary writes it (`▁Hello`, `<0x0A>`), which is not the text it decodes to.
    pub fn token_text(&self, id: u32) -> Option<&str> {
        self.inner.vocab.get(id).map(|token| &*token.text)
    }

    /// The bytes the token adds to a text that others have begun; `None` for one that stands for no text, or that
    /// a text must not be able to name.
    pub fn token_bytes(&self, id: u32) -> Option<Vec<u8>> {
        let token = self.inner.vocab.get(id)?;
        if token.special || matches!(token.kind, Kind::Control | Kind::Unknown | Kind::Unused) {
            return None;
        }
        Some(match &self.inner.spelling {
            Spelling::Hub(spelling) => spelling.bytes_of(&token.text),
            Spelling::SentencePiece(_) => match token.kind {
                Kind::Byte(byte) => vec![byte],
                Kind::Added => token.text.as_bytes().to_vec(),
                _ => token.text.replace(sentencepiece::SPACE, " ").into_bytes(),
            },
        })
    }

    /// The id of a token as the vocabulary writes it (`<C_A>`).
    pub fn token_id(&self, text: &str) -> Option<u32> {
        self.inner.vocab.id(text)
    }

    /// One more than the largest id, added tokens included. Ids below it may be unused.
    pub fn vocab_size(&self) -> usize {
        self.inner.vocab.len()
    }

    /// Whether decoding leaves the token out on request.
    pub fn is_special(&self, id: u32) -> bool {
        self.inner.vocab.get(id).is_some_and(|token| token.special)
    }

    /// Whether the token, spelled out in a text, is taken for itself only under [`Markup::Parse`].
    pub fn is_markup(&self, id: u32) -> bool {
        self.inner.vocab.get(id).is_some_and(|token| token.markup)
    }

    /// The named special tokens of the checkpoint.
    pub fn special_tokens(&self) -> &SpecialTokens {
        &self.inner.special
    }

    pub(super) fn token(&self, id: u32) -> Result<&Token, TextError> {
        let vocab = &self.inner.vocab;
        vocab.get(id).ok_or(TextError::UnknownId {
            id,
            vocab_size: vocab.len(),
        })
    }

    pub(super) fn spelling(&self) -> &Spelling {
        &self.inner.spelling
    }
}

/// The tokens to be put around a text, by `add_bos_token` and `add_eos_token`.
fn around(dir: &Path, config: &TokenizerConfig, vocab: &Vocab) -> Result<Around, TextError> {
    let find = |wanted: Option<bool>, switch: &str, name: &str| {
        if wanted != Some(true) {
            return Ok(None);
        }
        let file = dir.join(CONFIG);
        let Some(text) = config.special.get(name) else {
            return Err(TextError::field(
                &file,
                switch,
                format!("is true, but no `{name}` is named"),
            ));
        };
        match vocab.id(text) {
            Some(id) => Ok(Some(id)),
            None => Err(TextError::field(
                &file,
                name,
                format!("is {text:?}, which is not in the vocabulary"),
            )),
        }
    };
    Ok(Around {
        bos: find(config.add_bos, "add_bos_token", "bos_token")?,
        eos: find(config.add_eos, "add_eos_token", "eos_token")?,
    })
}

/// Puts the tokens that the configuration declares on top of a SentencePiece model.
///
/// Control pieces count as declared: a text that may use markup can spell them.
fn add_declared(config: &TokenizerConfig, vocab: &mut Vocab) -> Result<AddedTokens, TextError> {
    let mut added = AddedTokens::builder();
    for token in &config.declared {
        let known = vocab.get(token.id);
        let in_model = known.is_some_and(|known| *known.text == *token.text);
        let is_text = known.is_some_and(|known| matches!(known.kind, Kind::Piece | Kind::Byte(_)));
        let matched_by_model = in_model && known.is_some_and(|known| known.kind == Kind::Symbol);
        if is_text && !in_model {
            return Err(TextError::field(
                &token.file,
                &token.key,
                format!(
                    "is {:?}, but the model has a piece of text at this id",
                    token.text
                ),
            ));
        }
        if let Some(other) = vocab.id(&token.text).filter(|&id| id != token.id) {
            return Err(TextError::field(
                &token.file,
                &token.key,
                format!("is {:?}, which the model has at id {other}", token.text),
            ));
        }
        if !in_model {
            let markup = token.special || looks_like_markup(&token.text);
            let text = token.text.as_str().into();
            vocab.insert(
                token.id,
                Token {
                    text,
                    kind: Kind::Added,
                    special: token.special,
                    markup,
                },
            );
        }
        if !matched_by_model {
            added.push(token);
        }
    }
    for token in vocab.iter_mut() {
        token.special |= config.special_texts.contains(&*token.text);
        token.markup |= token.special;
    }
    for (id, token) in vocab.iter() {
        if token.kind == Kind::Control && !config.declared.iter().any(|declared| declared.id == id) {
            added.push_control(id, &token.text);
        }
    }
    added.build(vocab)
}
