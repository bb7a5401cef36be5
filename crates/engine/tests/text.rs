//! Text in and out of ids, against golden data of the reference libraries (`fixtures/text/make.py`).

#[path = "text/chat.rs"]
mod chat;
#[path = "text/hub.rs"]
mod hub;
#[path = "text/loading.rs"]
mod loading;
#[path = "text/sentencepiece.rs"]
mod sentencepiece;
#[path = "text/support.rs"]
mod support;
