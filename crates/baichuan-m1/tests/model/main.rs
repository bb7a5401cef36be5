//! Tests of a whole model: against golden data, against itself, against bad checkpoints.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod batching;
mod chunking;
mod driver;
mod golden;
mod loading;
mod memory;
mod parity;
mod plugin;
mod quantised;
mod rewrite;
mod topology;
