//! A chat template and a conversation: rendered within its budget, or refused.
//!
//! An input is a byte of options, the template, and after NULs role and content of one message after another.

use std::time::SystemTime;

use baichuan_engine::testing::byte_tokenizer;
use baichuan_engine::text::{ChatTemplate, Message, RenderOptions, SpecialTokens, Tokenizer};
use libfuzzer_sys::Corpus;

/// Above any prompt that a render may make of so small an input.
const MAX_PROMPT: usize = 4 << 20;

thread_local! {
    static TOKENIZER: Tokenizer = byte_tokenizer().expect("a tokenizer");
}

pub(crate) fn feed(input: &[u8]) -> Corpus {
    let Some((flags, rest)) = input.split_first() else {
        return Corpus::Reject;
    };
    let Ok(text) = std::str::from_utf8(rest) else {
        return Corpus::Reject;
    };
    let mut parts = text.split('\0');
    let source = parts.next().unwrap_or_default();
    let said: Vec<&str> = parts.collect();
    let messages: Vec<Message> = match said.is_empty() {
        true => vec![
            Message::new("system", "Be brief."),
            Message::new("user", "What is 心 ? {{ x }}"),
        ],
        false => said
            .chunks(2)
            .map(|pair| Message::new(pair[0], pair.get(1).copied().unwrap_or_default()))
            .collect(),
    };
    let options = RenderOptions {
        add_generation_prompt: flags & 1 == 1,
        continue_final_message: flags & 2 == 2,
        now: SystemTime::UNIX_EPOCH,
    };
    let Ok(template) = ChatTemplate::new("fuzz", source, SpecialTokens::default()) else {
        return Corpus::Keep;
    };
    if let Ok(prompt) = template.render(&messages, &options) {
        assert!(prompt.len() <= MAX_PROMPT, "a prompt of {} bytes", prompt.len());
    }
    TOKENIZER.with(|tokenizer| drop(tokenizer.encode_chat(&template, &messages, &options)));
    Corpus::Keep
}
