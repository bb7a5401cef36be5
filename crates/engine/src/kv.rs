//! Cache accounting: who holds which block, ring and slot. No tensors.

mod plan;

pub use plan::{CachePlan, CacheSpec};
