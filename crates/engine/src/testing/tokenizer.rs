//! A tokenizer without a vocabulary file: one token per byte.

use serde_json::json;

use super::{BOS, EOS, VOCAB_SIZE};
use crate::error::LoadError;
use crate::text::Tokenizer;

/// Bytes are tokens 0 to 255; `<s>`, `</s>`, `<B_SYS>`, `<C_Q>` and `<C_A>` follow.
pub fn byte_tokenizer() -> Result<Tokenizer, LoadError> {
    let mut vocab: serde_json::Map<_, _> = (0..256)
        .map(|byte| (format!("<0x{byte:02X}>"), json!(byte)))
        .collect();
    let mut added = Vec::new();
    let named = [
        (BOS, "<s>"),
        (EOS, "</s>"),
        (258, "<B_SYS>"),
        (259, "<C_Q>"),
        (260, "<C_A>"),
    ];
    let rest = (261..VOCAB_SIZE as u32).map(|id| (id, format!("<reserved_{id}>")));
    for (id, text) in named
        .into_iter()
        .map(|(id, text)| (id, text.to_owned()))
        .chain(rest)
    {
        vocab.insert(text.clone(), json!(id));
        added.push(json!({
            "id": id, "content": text, "special": true, "single_word": false,
            "lstrip": false, "rstrip": false, "normalized": false,
        }));
    }
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added,
        "normalizer": null, "pre_tokenizer": null, "post_processor": null,
        "decoder": {"type": "Sequence", "decoders": [{"type": "ByteFallback"}, {"type": "Fuse"}]},
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": true, "ignore_merges": false,
            "vocab": vocab, "merges": [],
        },
    });
    let dir = tempfile::tempdir().map_err(io)?;
    std::fs::write(dir.path().join("tokenizer.json"), tokenizer.to_string()).map_err(io)?;
    Ok(Tokenizer::from_dir(dir.path())?)
}

fn io(source: std::io::Error) -> LoadError {
    LoadError::Io {
        path: "tokenizer.json".into(),
        source,
    }
}
