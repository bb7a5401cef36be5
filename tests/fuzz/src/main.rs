//! What strangers and operators feed the server, under libFuzzer: one program, one surface by the variable `SURFACE`.
//!
//! `run.sh` builds and runs it. Findings are: a panic that nobody catches, in a server any panic at all; an input that takes
//! more time or memory than the limit; and whatever a surface asserts of its answers.
#![no_main]

mod config;
mod http2;
mod protobuf;
mod safetensors;
mod sentencepiece;
mod serving;
mod template;
mod tokenizer;

use std::sync::OnceLock;

use libfuzzer_sys::{Corpus, fuzz_target};

/// Feeds one input; whether it is worth keeping for what it covers.
type Surface = fn(&[u8]) -> Corpus;

const SURFACES: [(&str, Surface); 7] = [
    ("config", config::feed),
    ("http2", http2::feed),
    ("protobuf", protobuf::feed),
    ("safetensors", safetensors::feed),
    ("sentencepiece", sentencepiece::feed),
    ("template", template::feed),
    ("tokenizer", tokenizer::feed),
];

static SURFACE: OnceLock<Surface> = OnceLock::new();

fn chosen() -> Surface {
    let name = std::env::var("SURFACE").unwrap_or_default();
    let found = SURFACES.iter().find(|(known, _)| *known == name);
    let Some((_, feed)) = found else {
        let known = SURFACES.map(|(name, _)| name).join(" ");
        eprintln!("SURFACE must be one of: {known}; got {name:?}");
        std::process::exit(2);
    };
    *feed
}

/// Surfaces that are a running server: there a panic is caught by the runtime, and must end the process where it is seen.
const SERVED: [&str; 2] = ["http2", "protobuf"];

fn begin() {
    SURFACE.get_or_init(chosen);
    let served = std::env::var("SURFACE").is_ok_and(|name| SERVED.contains(&name.as_str()));
    if !served {
        // Elsewhere one that is caught is an error like others, and one that is not ends the process by itself.
        drop(std::panic::take_hook());
    }
}

fuzz_target!(init: begin(), |input: &[u8]| -> Corpus {
    SURFACE.get_or_init(chosen)(input)
});
