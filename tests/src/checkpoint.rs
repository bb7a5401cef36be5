//! Checkpoints of the real model, tiny and random, made once per process.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use baichuan_engine::Dtype;
use baichuan_m1::random::{Preset, Recipe};
use tempfile::TempDir;

/// A Baichuan-M1 of 0.6 million parameters in f32, window 16; sliding and global layers alternate.
pub fn tiny_m1() -> &'static Path {
    static DIR: OnceLock<TempDir> = OnceLock::new();
    DIR.get_or_init(|| {
        let dir = tempfile::tempdir().unwrap();
        let recipe = Recipe {
            dtype: Dtype::F32,
            ..Recipe::new(Preset::Tiny)
        };
        recipe.write(dir.path(), &|_, _| {}).unwrap();
        dir
    })
    .path()
}

/// The root of the repository.
pub fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}
