//! `tokenizer.json` and its companions: whatever loads can be used.
//!
//! An input is `tokenizer.json`, after a NUL `tokenizer_config.json`, after another `generation_config.json`.

use baichuan_engine::Grammars;
use baichuan_engine::text::{CheckpointText, EncodeOptions, Tokenizer};
use libfuzzer_sys::Corpus;
use tempfile::TempDir;

use crate::serving::scratch;

thread_local! {
    static DIR: TempDir = scratch();
}

const FILES: [&str; 3] = [
    "tokenizer.json",
    "tokenizer_config.json",
    "generation_config.json",
];

/// Texts with markup, characters of every width, spaces in all places, and bytes that are no text's.
const TEXTS: [&str; 5] = [
    "",
    "What is 心 <C_A>\u{0}?",
    "  two  spaces \n\t<s>ab</s> ",
    "\u{1F600}\u{301}e\u{301}ａｂ\u{FDD0}",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaabababababab",
];

pub(crate) fn feed(input: &[u8]) -> Corpus {
    DIR.with(|dir| {
        let mut parts = input.splitn(FILES.len(), |byte| *byte == 0);
        for name in FILES {
            let path = dir.path().join(name);
            match parts.next() {
                Some(bytes) if !bytes.is_empty() => std::fs::write(path, bytes).expect("a file"),
                _ => drop(std::fs::remove_file(path)),
            }
        }
        if let Ok(text) = CheckpointText::from_dir(dir.path(), None) {
            use_it(&text.tokenizer);
        }
    });
    Corpus::Keep
}

/// Does all that a server does with a tokenizer.
pub(crate) fn use_it(tokenizer: &Tokenizer) {
    for text in TEXTS {
        for options in [
            EncodeOptions::PROMPT,
            EncodeOptions::RENDERED,
            EncodeOptions::UNTRUSTED,
        ] {
            let Ok(ids) = tokenizer.encode(text, options) else {
                continue;
            };
            for skip in [true, false] {
                // A file can make its tokenizer write ids that it has no token for: an error, when they are read.
                let Ok(whole) = tokenizer.decode(&ids, skip) else {
                    continue;
                };
                let mut piecewise = String::new();
                let mut detokenizer = tokenizer.detokenizer(skip);
                for id in &ids {
                    piecewise += detokenizer.push(*id).expect("own ids are known");
                }
                piecewise += detokenizer.finish();
                assert_eq!(whole, piecewise, "a stream says what the whole says");
            }
        }
    }
    let n = tokenizer.vocab_size().min(512) as u32;
    for id in 0..n {
        let _ = tokenizer.token_bytes(id);
        let _ = tokenizer.decode(&[id, n - 1 - id], false);
    }
    assert!(tokenizer.decode(&[u32::MAX], false).is_err());
    let eos = tokenizer.token_id("</s>").unwrap_or(0);
    drop(Grammars::new(tokenizer, &[eos]));
}
