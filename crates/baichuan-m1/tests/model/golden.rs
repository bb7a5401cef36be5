//! The golden data of `tests/golden`.

use std::fs;
use std::path::{Path, PathBuf};

use safetensors::SafeTensors;

/// Every golden checkpoint.
pub(crate) const CASES: [&str; 9] = [
    "alternating",
    "all_sliding",
    "all_global",
    "equal_heads",
    "tied_head",
    "bf16_shards",
    "conv_1",
    "conv_3",
    "conv_4",
];

/// The folder of a golden checkpoint.
pub(crate) fn folder(case: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../tests/golden")
        .join(case)
}

/// A prompt and what the reference makes of it.
pub(crate) struct Golden {
    pub(crate) tokens: Vec<u32>,
    /// One row per token.
    pub(crate) logits: Vec<f32>,
    /// One row per token, after the final norm.
    pub(crate) hidden: Vec<f32>,
    /// The greedy continuation.
    pub(crate) greedy: Vec<u32>,
}

/// All prompts of a case, by length 1, 2, W − 1, W, W + 1 and 3W + 5.
pub(crate) fn prompts(case: &str) -> Vec<Golden> {
    let bytes = fs::read(folder(case).join("golden.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let read = |name: String| tensors.tensor(&name).unwrap().data().as_chunks::<4>().0.to_vec();
    let numbers = |name| read(name).into_iter().map(u32::from_le_bytes).collect();
    let floats = |name| read(name).into_iter().map(f32::from_le_bytes).collect();
    let prompt = |n| Golden {
        tokens: numbers(format!("p{n}.tokens")),
        logits: floats(format!("p{n}.logits")),
        hidden: floats(format!("p{n}.hidden")),
        greedy: numbers(format!("p{n}.greedy")),
    };
    (0..tensors.len() / 4).map(prompt).collect()
}
