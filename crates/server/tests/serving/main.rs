//! The server over real sockets and the fake model, one group of behaviours a file.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

mod admin;
mod embed;
mod facade;
mod generate;
mod health;
mod limits;
mod llm_d;
mod shutdown;
mod support;
mod text;
mod transport;
