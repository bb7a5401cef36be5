//! Text in and out of ids, against golden data of the reference libraries (`fixtures/text/make.py`).

#[path = "text/chat.rs"]
mod chat;
#[path = "text/configuration.rs"]
mod configuration;
#[path = "text/detokenizer.rs"]
mod detokenizer;
#[path = "text/hub.rs"]
mod hub;
#[path = "text/loading.rs"]
mod loading;
#[path = "text/prompt.rs"]
mod prompt;
#[path = "text/sentencepiece.rs"]
mod sentencepiece;
#[path = "text/support.rs"]
mod support;
