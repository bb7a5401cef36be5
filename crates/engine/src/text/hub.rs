//! Tokenizers in Hugging Face's file, `tokenizer.json`, run by the `tokenizers` crate.
//!
//! What that crate would do silently is undone or refused here: truncation and padding are switched off, and an
//! added token that ends up with another id than the file says is an error.

mod decoder;
mod literal;

use std::collections::BTreeSet;
use std::path::Path;

use serde_json::{Value, json};

use super::TextError;
use super::detokenizer::HubSpelling;
use super::files::{Json, kind};
use super::guard::{PANICKED, guarded};
use super::special::TokenizerConfig;
use super::tokenizer::Markup;
use super::vocab::{Kind, MAX_TOKENS, Token, Vocab, looks_like_markup};

pub(super) const FILE: &str = "tokenizer.json";

/// A tokenizer, twice: once as the file has it, once blind to markup.
#[derive(Debug)]
pub(super) struct Hub {
    parse: tokenizers::Tokenizer,
    literal: tokenizers::Tokenizer,
}

impl Hub {
    /// The tokenizer in `dir`, its tokens and its spelling; `None` if the file is absent.
    pub(super) fn from_dir(
        dir: &Path,
        config: &TokenizerConfig,
    ) -> Result<Option<(Self, Vocab, HubSpelling)>, TextError> {
        let Some(mut json) = Json::read(dir, FILE)? else {
            return Ok(None);
        };
        let spelling = decoder::spelling(&json)?;
        merge_declared(&mut json, config)?;
        let markup: BTreeSet<String> = markup_texts(&json, config);
        let literal = literal::without_markup(&json, &markup)?;
        let Json { file, value, .. } = json;
        let added = value["added_tokens"].clone();
        let mut parse = build(&file, value)?;
        let literal = build(&file, literal)?;
        check_added_ids(&file, &parse, &added)?;
        let missing: Vec<_> = config
            .special_texts
            .iter()
            .filter(|text| parse.token_to_id(text).is_some())
            .map(|text| tokenizers::AddedToken::from(text.clone(), true))
            .collect();
        parse.add_special_tokens(&missing);
        let vocab = vocab(&file, &parse, &markup)?;
        Ok(Some((Self { parse, literal }, vocab, spelling)))
    }

    /// Adds the ids of `text` to `ids`, with the tokens around it that the file's post-processor adds if
    /// `add_special_tokens`.
    pub(super) fn encode(
        &self,
        text: &str,
        markup: Markup,
        add_special_tokens: bool,
        ids: &mut Vec<u32>,
    ) -> Result<(), TextError> {
        let tokenizer = match markup {
            Markup::Parse => &self.parse,
            Markup::Literal => &self.literal,
        };
        let encoded = guarded(|| tokenizer.encode_fast(text, add_special_tokens));
        let problem = match encoded {
            Some(Ok(encoding)) => {
                ids.extend_from_slice(encoding.get_ids());
                return Ok(());
            }
            Some(Err(error)) => error.to_string(),
            None => PANICKED.to_owned(),
        };
        Err(TextError::Encode { problem })
    }
}

fn build(file: &Path, value: Value) -> Result<tokenizers::Tokenizer, TextError> {
    let built = guarded(|| serde_json::from_value::<tokenizers::Tokenizer>(value));
    let built = built.ok_or_else(|| TextError::tokenizer(file, PANICKED))?;
    let mut tokenizer = built.map_err(|error| TextError::tokenizer(file, error.to_string()))?;
    tokenizer.with_padding(None);
    tokenizer
        .with_truncation(None)
        .map_err(|error| TextError::tokenizer(file, error.to_string()))?;
    // What the file gets wrong about tokens around a text shows at the first text, and shall not wait for a caller's.
    match guarded(|| tokenizer.encode_fast("a", true)) {
        None => Err(TextError::tokenizer(file, PANICKED)),
        Some(_) => Ok(tokenizer),
    }
}

/// Adds the tokens that `tokenizer_config.json` declares and `tokenizer.json` lacks.
fn merge_declared(json: &mut Json, config: &TokenizerConfig) -> Result<(), TextError> {
    let mut added = match json.get("added_tokens") {
        None => Vec::new(),
        Some(Value::Array(added)) => added.clone(),
        Some(other) => return Err(json.mismatch("added_tokens", other, "a list")),
    };
    for (index, token) in added.iter_mut().enumerate() {
        let key = format!("added_tokens.{index}");
        let id = token["id"].as_u64().filter(|&id| id < u64::from(MAX_TOKENS));
        let id = id.ok_or_else(|| json.error(&key, format!("has no `id` below {MAX_TOKENS}")))?;
        let Some(text) = token["content"].as_str().map(str::to_owned) else {
            return Err(json.error(
                &format!("{key}.content"),
                format!("is {}, not a string", kind(&token["content"])),
            ));
        };
        if let Some(declared) = config
            .declared
            .iter()
            .find(|declared| u64::from(declared.id) == id)
            && declared.text != text
        {
            let problem = format!("is {:?}, but {FILE} has {text:?} at this id", declared.text);
            return Err(TextError::field(&declared.file, &declared.key, problem));
        }
        if config.special_texts.contains(&text) {
            token["special"] = Value::Bool(true);
        }
    }
    for token in &config.declared {
        if added.iter().all(|known| known["id"] != token.id) {
            added.push(json!({
                "id": token.id,
                "content": token.text,
                "single_word": token.single_word,
                "lstrip": token.lstrip,
                "rstrip": token.rstrip,
                "normalized": token.normalized,
                "special": token.special,
            }));
        }
    }
    added.sort_by_key(|token| token["id"].as_u64());
    json.value["added_tokens"] = Value::Array(added);
    Ok(())
}

/// The texts of all tokens that a stranger's text must not be able to use.
fn markup_texts(json: &Json, config: &TokenizerConfig) -> BTreeSet<String> {
    let added = json.value["added_tokens"].as_array();
    let added = added.into_iter().flatten().filter_map(|token| {
        let text = token["content"].as_str()?;
        let markup = token["special"] == true || looks_like_markup(text);
        markup.then(|| text.to_owned())
    });
    added.chain(config.special_texts.iter().cloned()).collect()
}

fn check_added_ids(file: &Path, tokenizer: &tokenizers::Tokenizer, added: &Value) -> Result<(), TextError> {
    for (index, token) in added.as_array().into_iter().flatten().enumerate() {
        let text = token["content"].as_str().unwrap_or_default();
        let id = tokenizer.token_to_id(text);
        if id.map(u64::from) != token["id"].as_u64() {
            let problem = format!("gives {text:?} the id {}, it can only be {id:?}", token["id"]);
            return Err(TextError::field(file, format!("added_tokens.{index}"), problem));
        }
    }
    Ok(())
}

fn vocab(
    file: &Path,
    tokenizer: &tokenizers::Tokenizer,
    markup: &BTreeSet<String>,
) -> Result<Vocab, TextError> {
    let added = tokenizer.get_added_tokens_decoder();
    let mut vocab = Vocab::default();
    for (text, id) in tokenizer.get_vocab(true) {
        if id >= MAX_TOKENS {
            return Err(TextError::tokenizer(
                file,
                format!("gives {text:?} the id {id}, ids end at {MAX_TOKENS}"),
            ));
        }
        let special = added.get(&id).is_some_and(|token| token.special);
        let markup = markup.contains(&text);
        vocab.insert(
            id,
            Token {
                text: text.into(),
                kind: Kind::Piece,
                special,
                markup,
            },
        );
    }
    Ok(vocab)
}
