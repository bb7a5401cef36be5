//! Where the row of a position is: in the cache, or among the rows not yet written.

use std::ops::Range;

use crate::buffer::Buffer;
use crate::element::Element;
use crate::kv::{KeysValues, KvShape, round_into};
use crate::threads::{Shared, Threads};

use super::{Layout, Span, TILE, Unit};

/// The cache, and new rows beside it.
pub(super) struct Source<'a, E> {
    pub(super) shape: KvShape,
    pub(super) cache: &'a KeysValues<E>,
    pub(super) fresh: Option<&'a Fresh<E>>,
}

/// New rows of all spans, rounded to the cache's type.
pub(super) struct Fresh<E> {
    k: Buffer<E>,
    v: Buffer<E>,
}

impl<E: Element> Fresh<E> {
    pub(super) fn round(threads: &Threads, k: &[f32], v: &[f32]) -> Self {
        const VALUES_PER_TASK: usize = 1 << 14;
        let rounded = |from: &[f32]| {
            let mut to = Buffer::<E>::zeroed(from.len());
            let shared = Shared::new(&mut to);
            threads.for_each(from.len().div_ceil(VALUES_PER_TASK), |task| {
                let start = task * VALUES_PER_TASK;
                let from = &from[start..from.len().min(start + VALUES_PER_TASK)];
                // SAFETY: each task has a range of its own.
                let to = unsafe { std::slice::from_raw_parts_mut(shared.ptr().add(start), from.len()) };
                round_into(from, to);
            });
            to
        };
        Self {
            k: rounded(k),
            v: rounded(v),
        }
    }
}

impl<E: Element> Source<'_, E> {
    /// The key and the value row of a position that the unit's queries see, for its head: `head_dim` values each.
    pub(super) fn row(&self, unit: &Unit<'_>, position: usize) -> (&[E], &[E]) {
        let head_dim = self.shape.head_dim;
        match (self.fresh, unit.span.layout) {
            (Some(fresh), Layout::Ring { .. }) if position >= unit.span.start => {
                let row = unit.first_row + position - unit.span.start;
                let start = row * self.shape.row_len() + unit.kv_head * head_dim;
                (&fresh.k[start..][..head_dim], &fresh.v[start..][..head_dim])
            }
            _ => {
                let (block, row) = place(&self.shape, unit.span, position);
                let start = self.shape.offset(block, unit.kv_head, row);
                (
                    &self.cache.k[start..][..head_dim],
                    &self.cache.v[start..][..head_dim],
                )
            }
        }
    }
}

/// Keys and values of a tile, a row for each of its places.
pub(super) type TileOf<'a, E> = ([&'a [E]; TILE], [&'a [E]; TILE]);

impl<E: Element> Source<'_, E> {
    /// The rows of a tile's `positions`, each at its place in the tile; nothing in the other places.
    pub(super) fn tile(&self, unit: &Unit<'_>, positions: Range<usize>) -> TileOf<'_, E> {
        let mut rows: TileOf<'_, E> = ([&[]; TILE], [&[]; TILE]);
        let mut position = positions.start;
        while position < positions.end {
            let (k, v) = self.run(unit, position..positions.end);
            let of_head = k
                .chunks_exact(self.shape.head_dim)
                .zip(v.chunks_exact(self.shape.head_dim));
            for (k, v) in of_head {
                (rows.0[position % TILE], rows.1[position % TILE]) = (k, v);
                position += 1;
            }
        }
        rows
    }

    /// As [`Self::row`] of the first of `positions`, with the rows of those after it as far as they follow in memory.
    fn run(&self, unit: &Unit<'_>, positions: Range<usize>) -> (&[E], &[E]) {
        let first = positions.start;
        let limit = match unit.span.layout {
            Layout::Paged => positions.end,
            // A fresh row is among those of other heads.
            Layout::Ring { .. } if first >= unit.span.start => return self.row(unit, first),
            Layout::Ring { rows, .. } => positions
                .end
                .min(unit.span.start)
                .min(first + rows - first % rows),
        };
        let (block, row) = place(&self.shape, unit.span, first);
        let n_rows = (limit - first).min(self.shape.block_tokens - row);
        let start = self.shape.offset(block, unit.kv_head, row);
        let len = n_rows * self.shape.head_dim;
        (&self.cache.k[start..][..len], &self.cache.v[start..][..len])
    }
}

/// Block of the cache and row of the block that a position has.
pub(super) fn place(shape: &KvShape, span: &Span<'_>, position: usize) -> (usize, usize) {
    let row = match span.layout {
        Layout::Paged => position,
        Layout::Ring { rows, .. } => position % rows,
    };
    (
        span.blocks[row / shape.block_tokens] as usize,
        row % shape.block_tokens,
    )
}
