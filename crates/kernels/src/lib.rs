//! Compute that the tensor libraries lack, for CPUs (and in `cuda`, a feature, for NVIDIA GPUs): products with weights kept in their storage type, attention
//! in place over paged and ring caches, and the row kernels between them.
//!
//! Plain slices in, plain slices out: this crate knows no model, no request and no tensor library.
//!
//! Two promises hold for every kernel here:
//!
//! - **A row's result does not depend on its company.** It is the same to the bit whatever number of rows share
//!   the call, however a prompt is cut into chunks, and on however many threads the call runs. Sums over a
//!   weight's columns run in one fixed order, attention walks keys in tiles at fixed absolute positions.
//! - **One binary runs everywhere.** The instruction set is picked when [`Threads`] is made, see [`Level`].
//!
//! Read in this order: [`Threads`], [`Matrix`], [`KvCache`], [`attend`], then the row kernels.

mod attention;
mod buffer;
#[cfg(feature = "cuda")]
pub mod cuda;
mod dense;
mod element;
mod gang;
mod kv;
mod level;
mod mapped;
mod matrix;
pub mod probe;
mod quant;
mod rows;
mod simd;
mod threads;

pub use attention::{Attention, Layout, Span, attend};
pub use element::ElementType;
pub use kv::{KvCache, KvFormat, KvShape};
pub use level::Level;
pub use mapped::{MappedBytes, MappedFile};
pub use matrix::{Affine4, Format, Matrix, MatrixError};
pub use quant::GgmlFormat;
pub use rows::{add, rms_norm, swiglu};
pub use threads::{Threads, ThreadsError};
