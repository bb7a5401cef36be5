//! Where the row of a position is: in the cache, or among the rows not yet written.

use std::ops::Range;

use crate::element::Element;
use crate::kv::{HeadRows, KeysValues, KvShape, Plain};
use crate::threads::Threads;

use super::{Layout, Span, TILE, Unit, write_row};

/// The cache, and new rows beside it.
pub(super) struct Source<'a, R> {
    pub(super) shape: KvShape,
    pub(super) cache: &'a KeysValues<R>,
    /// New rows of all spans, rounded as the cache's are: `[tokens, kv_heads]`.
    pub(super) fresh: Option<&'a KeysValues<R>>,
}

/// Rows of `head_dim` numbers each, rounded.
pub(super) fn fresh<R: HeadRows>(threads: &Threads, head_dim: usize, k: &[f32], v: &[f32]) -> KeysValues<R> {
    const VALUES_PER_TASK: usize = 1 << 14;
    let n_rows = k.len() / head_dim;
    let rows_per_task = VALUES_PER_TASK.div_ceil(head_dim);
    let mut rounded = KeysValues::<R>::zeroed(n_rows, head_dim);
    let (keys, values) = (rounded.k.writer(), rounded.v.writer());
    threads.for_each(n_rows.div_ceil(rows_per_task), |task| {
        for row in task * rows_per_task..n_rows.min((task + 1) * rows_per_task) {
            let from = row * head_dim..(row + 1) * head_dim;
            // SAFETY: there are as many rows, and each task has its own.
            unsafe {
                write_row(threads, &keys, row, &k[from.clone()]);
                write_row(threads, &values, row, &v[from]);
            }
        }
    });
    drop((keys, values));
    rounded
}

impl<'a, R: HeadRows> Source<'a, R> {
    /// The rows of the first of `positions`, which the unit's queries see, and of those after it as far as they follow in
    /// memory, for the unit's head.
    pub(super) fn run(&self, unit: &Unit<'_>, positions: Range<usize>) -> (&'a KeysValues<R>, Range<usize>) {
        let first = positions.start;
        let limit = match (self.fresh, unit.span.layout) {
            (_, Layout::Paged) => positions.end,
            (Some(fresh), Layout::Ring { .. }) if first >= unit.span.start => {
                // A fresh row is among those of other heads.
                let token = unit.first_row + first - unit.span.start;
                let row = token * self.shape.kv_heads + unit.kv_head;
                return (fresh, row..row + 1);
            }
            (_, Layout::Ring { rows, .. }) => positions
                .end
                .min(unit.span.start)
                .min(first + rows - first % rows),
        };
        let (block, row) = place(&self.shape, unit.span, first);
        let n_rows = (limit - first).min(self.shape.block_tokens - row);
        let row = self.shape.head_row(block, unit.kv_head, row);
        (self.cache, row..row + n_rows)
    }
}

/// Keys and values of a tile, a row for each of its places.
pub(super) type TileOf<'a, E> = ([&'a [E]; TILE], [&'a [E]; TILE]);

impl<'a, E: Element> Source<'a, Plain<E>> {
    /// The key and the value row of a position that the unit's queries see, for its head: `head_dim` values each.
    pub(super) fn row(&self, unit: &Unit<'_>, position: usize) -> (&'a [E], &'a [E]) {
        let (store, rows) = self.run(unit, position..position + 1);
        (store.k.slice(rows.clone()), store.v.slice(rows))
    }

    /// The rows of a tile's `positions`, each at its place in the tile; nothing in the other places.
    pub(super) fn tile(&self, unit: &Unit<'_>, positions: Range<usize>) -> TileOf<'a, E> {
        let mut tile: TileOf<'_, E> = ([&[]; TILE], [&[]; TILE]);
        let mut position = positions.start;
        while position < positions.end {
            let (store, rows) = self.run(unit, position..positions.end);
            let of_head = (store.k.slice(rows.clone()).chunks_exact(self.shape.head_dim))
                .zip(store.v.slice(rows).chunks_exact(self.shape.head_dim));
            for (k, v) in of_head {
                (tile.0[position % TILE], tile.1[position % TILE]) = (k, v);
                position += 1;
            }
        }
        tile
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
