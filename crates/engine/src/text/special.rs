//! What `tokenizer_config.json` and its older companions say about special and added tokens.
//!
//! `tokenizer_config.json` wins over `special_tokens_map.json` and `added_tokens.json`, which older
//! checkpoints have instead of some of its keys.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::TextError;
use super::files::{Json, kind};
use super::vocab::MAX_TOKENS;

pub(super) const CONFIG: &str = "tokenizer_config.json";
const MAP: &str = "special_tokens_map.json";
const ADDED: &str = "added_tokens.json";
/// The keys that name one token each.
const ROLES: [&str; 7] = [
    "bos_token",
    "eos_token",
    "unk_token",
    "pad_token",
    "sep_token",
    "cls_token",
    "mask_token",
];

/// The named special tokens of a checkpoint (`bos_token`, `eos_token`, …), as its chat template sees them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SpecialTokens {
    named: BTreeMap<String, String>,
}

impl SpecialTokens {
    /// Reads the special tokens of the checkpoint in `dir`; none of the files is required.
    pub fn from_dir(dir: &Path) -> Result<Self, TextError> {
        Ok(TokenizerConfig::from_dir(dir)?.special)
    }

    /// The text of one, by its key (`bos_token`).
    pub fn get(&self, key: &str) -> Option<&str> {
        self.named.get(key).map(String::as_str)
    }

    /// All of them: key and text.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.named.iter().map(|(key, text)| (key.as_str(), text.as_str()))
    }
}

/// A token that the configuration declares by id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct DeclaredToken {
    pub(super) id: u32,
    pub(super) text: String,
    /// Left out of decoded text on request.
    pub(super) special: bool,
    /// Takes the whitespace before it, or after it, along.
    pub(super) lstrip: bool,
    pub(super) rstrip: bool,
    pub(super) single_word: bool,
    /// Matched in normalised text instead of the raw one.
    pub(super) normalized: bool,
    /// Where it is declared, for errors.
    pub(super) file: PathBuf,
    pub(super) key: String,
}

/// The parts of the tokenizer's configuration that change ids or text.
#[derive(Debug, Clone, Default)]
pub(super) struct TokenizerConfig {
    pub(super) add_bos: Option<bool>,
    pub(super) add_eos: Option<bool>,
    /// Hugging Face's switch: `false` puts the leading space mark only before the text's first character.
    pub(super) legacy: Option<bool>,
    pub(super) special: SpecialTokens,
    /// Texts of all tokens that are special, named or not.
    pub(super) special_texts: BTreeSet<String>,
    pub(super) declared: Vec<DeclaredToken>,
}

impl TokenizerConfig {
    pub(super) fn from_dir(dir: &Path) -> Result<Self, TextError> {
        let mut config = Self::default();
        if let Some(json) = Json::read(dir, CONFIG)? {
            config.add_bos = json.bool("add_bos_token")?;
            config.add_eos = json.bool("add_eos_token")?;
            config.legacy = json.bool("legacy")?;
            config.read_named(&json)?;
            config.read_declared(&json)?;
        }
        if let Some(json) = Json::read(dir, MAP)? {
            config.read_named(&json)?;
        }
        if let Some(json) = Json::read(dir, ADDED)? {
            config.read_added(&json)?;
        }
        for token in &mut config.declared {
            token.special |= config.special_texts.contains(&token.text);
        }
        config.declared.sort_by_key(|token| token.id);
        if let Some(pair) = config.declared.windows(2).find(|pair| pair[0].id == pair[1].id) {
            let second = &pair[1];
            return Err(TextError::field(
                &second.file,
                &second.key,
                format!("gives token id {} a second text, {:?}", second.id, second.text),
            ));
        }
        Ok(config)
    }

    fn read_named(&mut self, json: &Json) -> Result<(), TextError> {
        for key in ROLES {
            let Some(value) = json.get(key) else { continue };
            let text = token_text(json, key, value)?;
            self.special_texts.insert(text.clone());
            self.special.named.entry(key.to_owned()).or_insert(text);
        }
        match json.get("additional_special_tokens") {
            None => {}
            Some(Value::Array(tokens)) => {
                for (index, value) in tokens.iter().enumerate() {
                    let text = token_text(json, &format!("additional_special_tokens.{index}"), value)?;
                    self.special_texts.insert(text);
                }
            }
            Some(other) => return Err(json.mismatch("additional_special_tokens", other, "a list")),
        }
        Ok(())
    }

    fn read_declared(&mut self, json: &Json) -> Result<(), TextError> {
        let tokens = match json.get("added_tokens_decoder") {
            None => return Ok(()),
            Some(Value::Object(tokens)) => tokens,
            Some(other) => return Err(json.mismatch("added_tokens_decoder", other, "an object")),
        };
        for (id, value) in tokens {
            let key = format!("added_tokens_decoder.{id}");
            let id = id.parse().ok().filter(|&id| id < MAX_TOKENS);
            let id = id.ok_or_else(|| {
                json.error(&key, format!("has a key that is no token id below {MAX_TOKENS}"))
            })?;
            let token = json.child(&key, value);
            let text = token
                .str("content")?
                .ok_or_else(|| token.error("content", "is missing"))?;
            if text.is_empty() {
                return Err(token.error("content", "is empty"));
            }
            let special = token.bool("special")?.unwrap_or(false);
            if special {
                self.special_texts.insert(text.to_owned());
            }
            self.declared.push(DeclaredToken {
                id,
                text: text.to_owned(),
                special,
                lstrip: token.bool("lstrip")?.unwrap_or(false),
                rstrip: token.bool("rstrip")?.unwrap_or(false),
                single_word: token.bool("single_word")?.unwrap_or(false),
                normalized: token.bool("normalized")?.unwrap_or(!special),
                file: json.file.clone(),
                key,
            });
        }
        Ok(())
    }

    fn read_added(&mut self, json: &Json) -> Result<(), TextError> {
        let Value::Object(tokens) = &json.value else {
            return Ok(());
        };
        for (text, id) in tokens {
            let id = id
                .as_u64()
                .and_then(|id| u32::try_from(id).ok())
                .filter(|&id| id < MAX_TOKENS);
            let id = id.ok_or_else(|| json.error(text, format!("is no token id below {MAX_TOKENS}")))?;
            if text.is_empty() {
                return Err(json.error(text, "is an empty token"));
            }
            if self.declared.iter().any(|token| token.id == id) {
                continue;
            }
            self.declared.push(DeclaredToken {
                id,
                text: text.clone(),
                special: false,
                lstrip: false,
                rstrip: false,
                single_word: false,
                normalized: true,
                file: json.file.clone(),
                key: text.clone(),
            });
        }
        Ok(())
    }
}

/// A token is written as its text, or as an object with `content`.
fn token_text(json: &Json, key: &str, value: &Value) -> Result<String, TextError> {
    let text = match value {
        Value::String(text) => text,
        Value::Object(token) => match token.get("content") {
            Some(Value::String(text)) => text,
            Some(other) => {
                return Err(json.error(
                    &format!("{key}.content"),
                    format!("is {}, not a string", kind(other)),
                ));
            }
            None => return Err(json.error(&format!("{key}.content"), "is missing")),
        },
        other => return Err(json.mismatch(key, other, "a token")),
    };
    if text.is_empty() {
        return Err(json.error(key, "is an empty token"));
    }
    Ok(text.clone())
}
