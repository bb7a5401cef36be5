//! Cache accounting: who holds which block, ring and slot. No tensors.

mod accounts;
mod plan;
mod pool;

pub(crate) use accounts::{CacheAccounts, ForkCopy, SequenceCache};
pub use plan::{CachePlan, CacheSpec};
pub(crate) use pool::Pool;
