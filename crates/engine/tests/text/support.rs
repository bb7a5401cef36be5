//! Checkpoints to test with.

use std::fs;
use std::path::{Path, PathBuf};

use baichuan_engine::text::{TextError, Tokenizer};
use serde_json::Value;
use tempfile::TempDir;

/// A file of the golden data.
pub(crate) fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures/text")
        .join(name)
}

/// Golden data in JSON.
pub(crate) fn golden(name: &str) -> Value {
    let bytes = fs::read(fixture(name)).expect("the fixture is committed");
    serde_json::from_slice(&bytes).expect("the fixture is JSON")
}

/// A checkpoint's directory, made file by file.
pub(crate) struct Checkpoint {
    dir: TempDir,
}

impl Checkpoint {
    pub(crate) fn new() -> Self {
        Self {
            dir: TempDir::new().expect("a temporary directory"),
        }
    }

    /// With a file of this name and content.
    pub(crate) fn with(self, name: &str, content: impl AsRef<[u8]>) -> Self {
        fs::write(self.dir.path().join(name), content).expect("the directory is writable");
        self
    }

    /// With one of the golden models as its `tokenizer.model`.
    pub(crate) fn with_model(self, name: &str) -> Self {
        let model = fs::read(fixture(name)).expect("the fixture is committed");
        self.with("tokenizer.model", model)
    }

    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }

    pub(crate) fn tokenizer(&self) -> Tokenizer {
        Tokenizer::from_dir(self.path()).expect("the tokenizer loads")
    }

    /// What loading the tokenizer says is wrong.
    pub(crate) fn error(&self) -> TextError {
        Tokenizer::from_dir(self.path()).expect_err("the tokenizer does not load")
    }
}

/// A list of ids in JSON.
pub(crate) fn ids(value: &Value) -> Vec<u32> {
    serde_json::from_value(value.clone()).expect("a list of ids")
}
