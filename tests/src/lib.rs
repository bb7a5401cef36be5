//! What the tests of client-visible behaviour share: servers on a port of their own, models, requests, waiting.
//!
//! [`TestServer`] is the whole server in this process, reached over TCP by the real client. Where the model does
//! not matter it is [`Fake`], which checks the engine's books at every step; where it does, [`checkpoint::tiny_m1`].

mod authority;
pub mod checkpoint;
mod collector;
mod fake;
mod neighbour;
pub mod peer;
mod program;
mod request;
mod scrape;
mod server;
pub mod soak;
mod wait;
mod wire;

pub use authority::{Authority, Provider, base64_url, seconds_from_now};
pub use collector::{Collector, attribute};
pub use fake::{Fake, Gate, greedy};
pub use neighbour::Neighbour;
pub use program::{ServerProcess, program, signal};
pub use request::{LETTERS, chat, from_token, generate, kept, refusal, text, tokens};
pub use scrape::scrape;
pub use server::{Setup, TestServer};
pub use wait::{held, until_gone, until_idle, until_load, until_ready, within};
pub use wire::Wire;
