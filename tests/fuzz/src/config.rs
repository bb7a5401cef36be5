//! What an operator writes: the configuration, the file of tokens, the keys of JSON Web Tokens.
//!
//! The first byte of an input says which of them the rest is.

use std::path::PathBuf;

use baichuan_server::check_files;
use baichuan_server::config::{Config, Inputs, load};
use libfuzzer_sys::Corpus;
use tempfile::TempDir;

use crate::serving::scratch;

thread_local! {
    static DIR: TempDir = scratch();
}

pub(crate) fn feed(input: &[u8]) -> Corpus {
    let Some((which, bytes)) = input.split_first() else {
        return Corpus::Reject;
    };
    match which % 4 {
        0 => tokens(bytes),
        1 => keys(bytes),
        _ => configuration(bytes),
    }
    Corpus::Keep
}

fn written(name: &str, bytes: &[u8]) -> PathBuf {
    let path = DIR.with(|dir| dir.path().join(name));
    std::fs::write(&path, bytes).expect("a file");
    path
}

fn loaded(bytes: &[u8]) -> Option<Config> {
    let file = written("server.toml", bytes);
    let inputs = Inputs {
        file: Some(file),
        ..Inputs::default()
    };
    load(&inputs).ok()
}

/// A configuration that is taken can be printed, and means the same when it is read again.
fn configuration(bytes: &[u8]) {
    let Some(config) = loaded(bytes) else { return };
    let printed = config.to_toml().expect("a configuration can be printed");
    let again =
        loaded(printed.as_bytes()).unwrap_or_else(|| panic!("what is printed cannot be read:\n{printed}"));
    assert_eq!(config, again, "printed as\n{printed}");
}

fn tokens(bytes: &[u8]) {
    let file = written("tokens.toml", bytes);
    read_with(&format!("[auth]\ntokens = {file:?}\n"));
}

fn keys(bytes: &[u8]) {
    let file = written("keys.json", bytes);
    read_with(&format!(
        "[auth.jwt]\njwks = {file:?}\nissuers = ['i']\naudiences = ['a']\n"
    ));
}

/// Reads the files that such an identity names.
fn read_with(identity: &str) {
    let text = format!("{identity}[tenants.clinic]\nweight = 1\n[model]\nname = 'm'\npath = '/'\n");
    let config =
        loaded(text.as_bytes()).unwrap_or_else(|| panic!("a good configuration is refused:\n{text}"));
    let _ = check_files(&config);
}
