//! Typed client for baichuan-serve.
//!
//! Requests are the messages of [`v1`], as on the wire; answers come back unwrapped, streams as typed events,
//! and refusals as an [`Error`] whose `google.rpc` details are decoded. Dropping a [`Generation`] or an
//! [`EmbedStream`] cancels it on the server. This crate knows the protocol and nothing of the engine.
//!
//! ```no_run
//! # async fn example() -> Result<(), baichuan_client::Error> {
//! use baichuan_client::{Client, ConnectOptions, Event, prompt, v1};
//!
//! let client = Client::connect(&ConnectOptions::new("127.0.0.1:50051")).await?;
//! let request = v1::GenerateRequest { prompt: Some(prompt::text("Aspirin is")), ..Default::default() };
//! let mut generation = client.generate(request).await?;
//! while let Some(event) = generation.next().await? {
//!     if let Event::Delta(delta) = event {
//!         println!("{}", delta.text);
//!     }
//! }
//! # Ok(())
//! # }
//! ```

mod client;
mod connect;
mod embedding;
mod error;
mod generation;
pub mod prompt;
mod resume;

pub use baichuan_proto::v1;
pub use client::Client;
pub use connect::{ConnectOptions, TlsOptions};
pub use embedding::{EmbedFailure, EmbedStream, Embedded, values};
pub use error::{Error, FieldViolation, Refusal};
pub use generation::{Choice, Completion, Event, Generation};
pub use health::{Health, HealthWatch};
pub use resume::new_request_id;

mod health;
