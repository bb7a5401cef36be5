//! Qwen2, Qwen3, Qwen3-Embedding and EmbeddingGemma through mistral.rs: numbers, formats and the contract of a backend. The
//! checkpoints are tiny and random; what they must say is `transformers`' word, written by
//! `crates/xtask/python/families.py`.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod contract;
mod formats;
mod limits;
mod loading;
mod parity;
mod support;
mod topology;
