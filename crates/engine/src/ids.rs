//! The engine's identifiers, as types.

use std::fmt;
use std::sync::Arc;

use bytemuck::{Pod, Zeroable};

/// A token's number in the model's vocabulary.
pub type TokenId = u32;

/// What a request is called by its client, in logs and in traces.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RequestId(Arc<str>);

impl RequestId {
    /// Wraps a client's or the server's own name for a request.
    pub fn new(id: impl Into<Arc<str>>) -> Self {
        Self(id.into())
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A sequence's number; grows in order of arrival and is never used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SeqId(pub u64);

/// A place for the state that a sequence keeps whatever its length.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SlotId(pub u32);

/// A block of one of the two cache pools.
///
/// A slice of these is a slice of `u32` for kernels: see [`BlockId::as_u32s`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Pod, Zeroable)]
#[repr(transparent)]
pub struct BlockId(pub u32);

impl BlockId {
    /// The same ids as plain numbers, in place.
    pub fn as_u32s(ids: &[BlockId]) -> &[u32] {
        bytemuck::cast_slice(ids)
    }
}

/// Whose requests share a place in the queue and turns of the engine. Small numbers, given by who uses the engine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TenantId(pub u32);
