//! Compute on one NVIDIA GPU: device memory, a stream, and the kernels that a transformer's step is made of.
//!
//! Rust here checks sizes and launches; arithmetic is in the `.cu` files beside it. Work is issued in order to one
//! stream and runs when the device gets to it: only [`Device::synchronize`] and downloads wait for it.
//!
//! Buffers hold bytes; a [`Span`] is a part of one, and each operation states the numbers it expects there and
//! panics when a span is too short for them, as slices do. What lies in device memory itself is not looked at:
//! token ids, positions and block ids of a [`StepTables`] must be in range, which whoever makes them checks.
//!
//! Read in this order: [`Device`], [`Buffer`], [`StepTables`], [`Product`], [`QuantMatrix`], [`PendingNorm`], [`ConvLayer`], [`CacheShape`].

mod attention;
mod blas;
mod conv;
mod device;
mod error;
mod few;
mod graph;
mod memory;
mod modules;
mod narrow;
mod product;
mod quantized;
mod rows;
mod sample;
mod step;
mod tensor;

pub use attention::{Attention, CacheShape, Chunks};
pub use conv::ConvLayer;
pub use device::Device;
pub use error::GpuError;
pub use few::{Few, FewRows, PendingNorm};
pub use graph::Graph;
pub use memory::{Buffer, Pinned, Span};
pub use product::{Output, Product, Rows, Weights};
pub use quantized::{QuantFormat, QuantMatrix};
pub use sample::{Choice, ChoiceBuffer, Choices};
pub use step::{Step, StepBuffer, StepTables};
