//! A SentencePiece model written as the `tokenizer.json` that means the same, for programs that read nothing else.

use std::collections::HashMap;
use std::path::Path;

use prost::Message;
use serde_json::{Value, json};
use tokenizers::normalizers::Precompiled;

use super::super::special::TokenizerConfig;
use super::super::tokenizer::Around;
use super::super::vocab::{Kind, Vocab};
use super::super::{TextError, files, hub};
use super::proto::{ModelProto, NormalizerSpec, PieceType};
use super::{FILE, SPACE};

/// What a checkpoint's `tokenizer.json` would hold, had it one: the same ids for every text that may use markup.
///
/// `None` if there is such a file, if there is no `tokenizer.model`, or if that one does what the other format
/// cannot say: a space put before a text (`add_dummy_prefix`) or dropped around it, unused pieces, token ids with gaps.
///
/// # Errors
/// A model that is broken.
pub(in crate::text) fn hub_file(
    dir: &Path,
    config: &TokenizerConfig,
    vocab: &Vocab,
    around: Around,
) -> Result<Option<String>, TextError> {
    if files::read(dir, hub::FILE)?.is_some() {
        return Ok(None);
    }
    let Some((file, bytes)) = files::read(dir, FILE)? else {
        return Ok(None);
    };
    let model = ModelProto::decode(bytes.as_slice())
        .map_err(|error| TextError::tokenizer(&file, format!("not a SentencePiece model: {error}")))?;
    if !is_sayable(&model) {
        return Ok(None);
    }
    let spec = model.normalizer_spec.clone().unwrap_or_default();
    let normalizer = normalizer(&spec)
        .map_err(|problem| TextError::field(&file, "normalizer_spec.precompiled_charsmap", problem))?;
    let tokenizer = json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": added_tokens(vocab, config),
        "normalizer": normalizer,
        "pre_tokenizer": null,
        "post_processor": post_processor(vocab, around),
        "decoder": decoder(),
        "model": pieces(&model),
    })
    .to_string();
    // Whoever reads it numbers added tokens on from the model's own.
    let read: tokenizers::Tokenizer = tokenizer.parse().map_err(|error| {
        TextError::tokenizer(&file, format!("cannot be written as {}: {error}", hub::FILE))
    })?;
    let is_same = vocab
        .iter()
        .all(|(id, token)| read.token_to_id(&token.text) == Some(id));
    Ok(is_same.then_some(tokenizer))
}

/// The other format treats the text between two added tokens as a text of its own, so that it cannot put or drop a space
/// at the start and the end of the whole.
fn is_sayable(model: &ModelProto) -> bool {
    let spec = model.normalizer_spec.clone().unwrap_or_default();
    let touches_ends = spec.add_dummy_prefix.unwrap_or(true) || spec.remove_extra_whitespaces.unwrap_or(true);
    let has_unused = model.pieces.iter().any(|piece| piece.kind() == PieceType::Unused);
    !touches_ends && !has_unused
}

/// A merge for every piece that two shorter ones make, the best piece first: SentencePiece looks at the score of what
/// comes out of a merge.
fn pieces(model: &ModelProto) -> Value {
    let kind = |id: u32| model.pieces[id as usize].kind();
    let ids: HashMap<&str, u32> = (0..)
        .zip(&model.pieces)
        .map(|(id, piece)| (&*piece.piece, id))
        .collect();
    let part = |text: &str| ids.get(text).copied().filter(|&id| kind(id) == PieceType::Normal);
    let mut merges = Vec::new();
    for piece in model
        .pieces
        .iter()
        .filter(|piece| piece.kind() == PieceType::Normal)
    {
        for (cut, _) in piece.piece.char_indices().skip(1) {
            let (left, right) = piece.piece.split_at(cut);
            if let (Some(left_id), Some(right_id)) = (part(left), part(right)) {
                merges.push((piece.score, (left_id, right_id), [left, right]));
            }
        }
    }
    merges.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
    let merges: Vec<_> = merges.into_iter().map(|(.., pair)| pair).collect();
    let unknown = model
        .pieces
        .iter()
        .find(|piece| piece.kind() == PieceType::Unknown);
    let trainer = model.trainer_spec.as_ref();
    json!({
        "type": "BPE",
        "dropout": null,
        "unk_token": unknown.map(|piece| &piece.piece),
        "continuing_subword_prefix": null,
        "end_of_word_suffix": null,
        "fuse_unk": true,
        "byte_fallback": trainer.and_then(|trainer| trainer.byte_fallback).unwrap_or(false),
        "ignore_merges": false,
        "vocab": ids,
        "merges": merges,
    })
}

/// `Err` holds what is wrong with the compiled rules.
fn normalizer(spec: &NormalizerSpec) -> Result<Value, String> {
    let mut steps = Vec::new();
    if let Some(rules) = spec
        .precompiled_charsmap
        .as_deref()
        .filter(|rules| !rules.is_empty())
    {
        let rules = Precompiled::from(rules).map_err(|error| error.to_string())?;
        steps.push(serde_json::to_value(rules).map_err(|error| error.to_string())?);
    }
    if spec.escape_whitespaces.unwrap_or(true) {
        steps.push(json!({"type": "Replace", "pattern": {"String": " "}, "content": SPACE}));
    }
    Ok(json!({"type": "Sequence", "normalizers": steps}))
}

fn decoder() -> Value {
    json!({"type": "Sequence", "decoders": [
        {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]})
}

/// All tokens that are found before the model sees a text.
fn added_tokens(vocab: &Vocab, config: &TokenizerConfig) -> Vec<Value> {
    let found_first = |kind| matches!(kind, Kind::Control | Kind::Symbol | Kind::Added);
    let tokens = vocab.iter().filter(|(_, token)| found_first(token.kind));
    tokens
        .map(|(id, token)| {
            let declared = config.declared.iter().find(|declared| declared.id == id);
            json!({
                "id": id,
                "content": token.text,
                "single_word": declared.is_some_and(|declared| declared.single_word),
                "lstrip": declared.is_some_and(|declared| declared.lstrip),
                "rstrip": declared.is_some_and(|declared| declared.rstrip),
                "normalized": declared.is_some_and(|declared| declared.normalized),
                "special": token.special || token.kind == Kind::Control,
            })
        })
        .collect()
}

/// The tokens that are put around a text on request; nothing if there are none.
fn post_processor(vocab: &Vocab, around: Around) -> Value {
    let token = |id: Option<u32>| id.and_then(|id| Some((id, &vocab.get(id)?.text)));
    let (bos, eos) = (token(around.bos), token(around.eos));
    if bos.is_none() && eos.is_none() {
        return Value::Null;
    }
    let special = |(_, text): (u32, _)| json!({"SpecialToken": {"id": text, "type_id": 0}});
    let sequence = |name: &str| json!({"Sequence": {"id": name, "type_id": 0}});
    let single: Vec<_> = [bos.map(special), Some(sequence("A")), eos.map(special)]
        .into_iter()
        .flatten()
        .collect();
    let pair: Vec<_> = single.iter().cloned().chain([sequence("B")]).collect();
    let tokens: serde_json::Map<_, _> = [bos, eos]
        .into_iter()
        .flatten()
        .map(|(id, text)| {
            (
                text.to_string(),
                json!({"id": text, "ids": [id], "tokens": [text]}),
            )
        })
        .collect();
    json!({"type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": tokens})
}
