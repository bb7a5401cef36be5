//! All that is known of Baichuan-M1: configuration, weights, convolution, hybrid attention, caches.
//!
//! Baichuan-M1 (arXiv 2502.12671) is a decoder for medicine with 14.5 billion parameters. Two things set it apart.
//!
//! # A convolution over keys and values
//!
//! Before attention sees them, each key and value is mixed with the one before it. So every single layer can copy
//! from context, which takes a plain transformer two. `conv` has the formula and the reason; what it costs
//! here is one raw key/value row per layer and sequence that must be carried from step to step.
//!
//! # Hybrid attention
//!
//! Every second layer sees only the last `sliding_window` tokens, and the two kinds of layer do not even have the
//! same heads:
//!
//! | published model | global | sliding |
//! |---|---|---|
//! | a query at `i` sees | `j ≤ i` | `i − 8192 < j ≤ i` |
//! | query heads × width | 20 × 256 | 40 × 128 |
//! | key/value heads | 2 | 8 |
//! | keys and values of a token | 1024 numbers | 2048 numbers |
//! | kept | every token, in pages | the last window, in a ring of blocks |
//!
//! Few wide heads look far, many narrow ones look near. The state of a sequence therefore has three parts: pages
//! that grow, a ring that stops growing, and a slot that never grows. Rows of the two kinds differ in width, so they
//! come from two pools. Which layer is of which kind is read from the checkpoint and follows no assumed pattern.
//!
//! Softmax does not care in what order keys come, and keys are rotated before they are stored: so a ring needs no
//! unrolling. A prompt's chunk attends to the ring before it overwrites it, so that a ring as long as the window is
//! long enough.
//!
//! # How it computes
//!
//! A step of the engine mixes chunks of prompts with single tokens of running answers. All of them are rows of one
//! matrix; only convolution and attention know which belong together. Linear layers are mistral.rs's
//! [`QuantMethod`](mistralrs_quant::QuantMethod), whoever implements them. Arithmetic is f32 whatever weights and
//! caches are stored as, and **a row's result is the same to the bit in any company and any chunking**: products
//! and attention guarantee it, everything else works row by row.
//!
//! # Reading order
//!
//! [`config`] and [`layout`] say what a model is, [`weights`] what is on disk, `load` makes one of the other.
//! `model` → `layer` → `attention` is the forward pass; `conv`, `rope` and `cache` are its parts, `step` what they
//! share. [`plugin()`] is what a server registers. [`random`] writes checkpoints for tests and measurements.

#[cfg(all(feature = "cuda", feature = "metal"))]
compile_error!(
    "one program is for NVIDIA's GPUs or for Apple's: take one of the features `cuda` and `metal`"
);

mod attention;
mod cache;
pub mod config;
mod conv;
#[cfg(feature = "cuda")]
pub mod cuda;
#[cfg(any(test, feature = "cuda"))]
mod device_map;
mod formats;
mod host;
mod layer;
pub mod layout;
mod linear;
mod load;
mod model;
mod place;
mod plugin;
mod quantize;
pub mod random;
mod rope;
mod step;
#[cfg(any(test, feature = "metal"))]
mod tensors;
pub mod weights;

pub use linear::HostLinear;
pub use load::{LoadOptions, Loaded, load};
pub use model::BaichuanM1;
pub use plugin::plugin;
