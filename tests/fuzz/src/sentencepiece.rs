//! `tokenizer.model`: whatever loads can be used.
//!
//! The first byte of an input chooses a `tokenizer_config.json`, the rest is the model.

use baichuan_engine::text::CheckpointText;
use libfuzzer_sys::Corpus;
use tempfile::TempDir;

use crate::serving::scratch;
use crate::tokenizer::use_it;

thread_local! {
    static DIR: TempDir = scratch();
}

const CONFIGS: [&str; 4] = [
    "{}",
    r#"{"legacy": false, "add_bos_token": true, "bos_token": "<s>"}"#,
    r#"{"add_eos_token": true, "eos_token": "</s>", "legacy": true}"#,
    r#"{"added_tokens_decoder": {"9": {"content": "<C_A>", "special": true}}}"#,
];

pub(crate) fn feed(input: &[u8]) -> Corpus {
    let Some((which, model)) = input.split_first() else {
        return Corpus::Reject;
    };
    DIR.with(|dir| {
        let config = CONFIGS[usize::from(*which) % CONFIGS.len()];
        std::fs::write(dir.path().join("tokenizer_config.json"), config).expect("a file");
        std::fs::write(dir.path().join("tokenizer.model"), model).expect("a file");
        if let Ok(text) = CheckpointText::from_dir(dir.path(), None) {
            use_it(&text.tokenizer);
        }
    });
    Corpus::Keep
}
