//! Makes a copy of a tokenizer that cannot see markup in a text.
//!
//! Markup tokens get a text that nobody can guess, in the added tokens and in the model, and merges that
//! would build them are dropped. They keep their ids, so every other token keeps its id too.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use crate::text::TextError;
use crate::text::files::Json;

/// New texts of the tokens to hide, by their own.
type Aliases = BTreeMap<String, String>;

/// The file's value with all of `markup` hidden.
pub(super) fn without_markup(json: &Json, markup: &BTreeSet<String>) -> Result<Value, TextError> {
    let alias = |text: &String| {
        (
            text.clone(),
            format!("\u{FDD0}{:032x}\u{FDD1}", rand::random::<u128>()),
        )
    };
    let aliases: Aliases = markup.iter().map(alias).collect();
    let mut value = json.value.clone();
    for token in value
        .get_mut("added_tokens")
        .and_then(Value::as_array_mut)
        .into_iter()
        .flatten()
    {
        hide(token.get_mut("content"), &aliases);
    }
    let Some(Value::Object(model)) = value.get_mut("model") else {
        return Err(json.error("model", "is not an object"));
    };
    hide(model.get_mut("unk_token"), &aliases);
    match model.get_mut("vocab") {
        Some(Value::Object(vocab)) => {
            for (text, alias) in &aliases {
                if let Some(id) = vocab.remove(text) {
                    vocab.insert(alias.clone(), id);
                }
            }
        }
        Some(Value::Array(pieces)) => pieces
            .iter_mut()
            .for_each(|piece| hide(piece.get_mut(0), &aliases)),
        _ => return Err(json.error("model.vocab", "is neither an object nor a list")),
    }
    if let Some(Value::Array(merges)) = model.get_mut("merges") {
        merges.retain(|merge| !touches(merge, markup));
    }
    Ok(value)
}

fn hide(text: Option<&mut Value>, aliases: &Aliases) {
    let Some(Value::String(text)) = text else { return };
    if let Some(alias) = aliases.get(text) {
        text.clone_from(alias);
    }
}

/// Whether a merge (`"a b"` or `["a", "b"]`) takes or makes one of `markup`.
fn touches(merge: &Value, markup: &BTreeSet<String>) -> bool {
    let (left, right) = match merge {
        Value::String(both) => both.split_once(' ').unwrap_or((both, "")),
        Value::Array(both) => match both.as_slice() {
            [Value::String(left), Value::String(right)] => (left.as_str(), right.as_str()),
            _ => return false,
        },
        _ => return false,
    };
    markup.contains(left) || markup.contains(right) || markup.contains(&format!("{left}{right}"))
}
