//! One split of the keys for the queries of one unit, tile by tile, and the merging of splits.

use std::ops::Range;

use super::rows::{InPlace, Padded};
use super::source::Source;
use super::tile::TileOfKeys;
use super::{Attention, SPLIT, TILE, Unit};
use crate::buffer::Buffer;
use crate::element::Element;
use crate::kv::{Coded, HeadRows, Plain};
use crate::level::Kernel;
use crate::simd::{LANES, Simd};
use crate::threads::Threads;

/// A softmax over some keys, not yet divided: for each query row the largest score, the sum of
/// `e^(score - largest)`, and the sum of the values so weighted. Rows of values are padded to whole vectors.
pub(super) struct State {
    pub(super) largest: Vec<f32>,
    pub(super) sum: Vec<f32>,
    pub(super) weighted: Buffer<f32>,
    pub(super) width: usize,
}

impl State {
    pub(super) fn new(n_rows: usize, width: usize) -> Self {
        let (largest, sum) = (vec![f32::NEG_INFINITY; n_rows], vec![0.0; n_rows]);
        Self {
            largest,
            sum,
            weighted: Buffer::zeroed(n_rows * width),
            width,
        }
    }

    /// Back to no keys.
    pub(super) fn reset(&mut self) {
        self.largest.fill(f32::NEG_INFINITY);
        self.sum.fill(0.0);
        self.weighted.fill(0.0);
    }

    /// A row's sum of weights and weighted sum.
    pub(super) fn row(&self, row: usize) -> (f32, &[f32]) {
        (self.sum[row], &self.weighted[row * self.width..][..self.width])
    }
}

/// Brings the keys of `part`, which come after those of `total`, into it.
pub(super) struct Merge<'a> {
    pub(super) total: &'a mut State,
    pub(super) part: &'a State,
}

impl Kernel for Merge<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Merge { total, part } = self;
        let width = total.width;
        for row in 0..total.sum.len() {
            if part.sum[row] == 0.0 {
                continue; // no key of the split is visible to this query
            }
            let values = total.weighted[row * width..][..width].chunks_exact_mut(LANES);
            let added = part.weighted[row * width..][..width].chunks_exact(LANES);
            if total.sum[row] == 0.0 {
                (total.largest[row], total.sum[row]) = (part.largest[row], part.sum[row]);
                values
                    .zip(added)
                    .for_each(|(total, part)| total.copy_from_slice(part));
                continue;
            }
            let largest = total.largest[row].max(part.largest[row]);
            let keep = s.exp(s.splat(total.largest[row] - largest));
            let gain = s.exp(s.splat(part.largest[row] - largest));
            for (total, part) in values.zip(added) {
                // SAFETY: both chunks have sixteen values.
                unsafe {
                    let gained = s.mul(s.load(part.as_ptr()), gain);
                    s.store(total.as_mut_ptr(), s.fma(s.load(total.as_ptr()), keep, gained));
                }
            }
            let sums = s.fma(s.splat(total.sum[row]), keep, s.mul(s.splat(part.sum[row]), gain));
            total.largest[row] = largest;
            total.sum[row] = s.reduce_max(sums);
        }
    }
}

/// Rows that attention can read.
pub(super) trait Readable: HeadRows {
    /// Computes those of the keys in `seen`, which are of one split, for one unit, into a state of no keys.
    fn compute(
        threads: &Threads,
        attention: &Attention<'_>,
        source: &Source<'_, Self>,
        unit: &Unit<'_>,
        seen: Range<usize>,
        state: &mut State,
    );
}

impl<E: Element> Readable for Plain<E> {
    fn compute(
        threads: &Threads,
        attention: &Attention<'_>,
        source: &Source<'_, Self>,
        unit: &Unit<'_>,
        seen: Range<usize>,
        state: &mut State,
    ) {
        // Widening a tile pays when many queries read it; one token's are faster with the rows as they lie.
        if unit.tokens.len() == 1 && state.width == source.shape.head_dim {
            in_place(threads, attention, source, unit, seen, state);
        } else {
            widened(threads, attention, source, unit, seen, state);
        }
    }
}

impl Readable for Coded {
    fn compute(
        threads: &Threads,
        attention: &Attention<'_>,
        source: &Source<'_, Self>,
        unit: &Unit<'_>,
        seen: Range<usize>,
        state: &mut State,
    ) {
        super::coded::compute(threads, attention, source, unit, seen, state);
    }
}

/// Computes the keys of one split for one unit, into a state of no keys.
pub(super) fn compute<R: Readable>(
    threads: &Threads,
    attention: &Attention<'_>,
    source: &Source<'_, R>,
    unit: &Unit<'_>,
    split: usize,
    state: &mut State,
) {
    let (first, last) = (unit.visible(unit.tokens.start), unit.visible(unit.tokens.end - 1));
    let seen = first.start.max(split * SPLIT)..last.end.min((split + 1) * SPLIT);
    R::compute(threads, attention, source, unit, seen, state);
}

/// The positions of a tile that are among `seen`.
pub(super) fn of_tile(seen: &Range<usize>, tile: usize) -> Range<usize> {
    seen.start.max(tile * TILE)..seen.end.min((tile + 1) * TILE)
}

/// Tile by tile, keys and values read in the cache itself, those of the next tile asked for meanwhile.
fn in_place<E: Element>(
    threads: &Threads,
    attention: &Attention<'_>,
    source: &Source<'_, Plain<E>>,
    unit: &Unit<'_>,
    seen: Range<usize>,
    state: &mut State,
) {
    let group = attention.q_heads / source.shape.kv_heads;
    let start = unit.query(attention, &source.shape, unit.tokens.start);
    let queries = &attention.q[start..][..group * source.shape.head_dim];
    let visible = unit.visible(unit.tokens.start);
    let mut scores = Buffer::zeroed(group * TILE);
    let mut rows = source.tile(unit, of_tile(&seen, seen.start / TILE));
    for tile in seen.start / TILE..seen.end.div_ceil(TILE) {
        // Of the next split too: whoever is here goes on there.
        let next = match of_tile(&visible, tile + 1) {
            positions if positions.is_empty() => rows,
            positions => source.tile(unit, positions),
        };
        threads.run(TileOfKeys {
            unit,
            tile,
            queries,
            k: InPlace {
                rows: &rows.0,
                ahead: &next.0,
            },
            v: InPlace {
                rows: &rows.1,
                ahead: &next.1,
            },
            scale: attention.scale,
            scores: &mut scores,
            state,
        });
        rows = next;
    }
}

/// Tile by tile, each widened to f32 once for all queries of the unit.
fn widened<E: Element>(
    threads: &Threads,
    attention: &Attention<'_>,
    source: &Source<'_, Plain<E>>,
    unit: &Unit<'_>,
    seen: Range<usize>,
    state: &mut State,
) {
    let (head_dim, width) = (source.shape.head_dim, state.width);
    let group = attention.q_heads / source.shape.kv_heads;
    let mut queries = Buffer::<f32>::zeroed(unit.n_rows(attention, &source.shape) * width);
    for (i, token) in unit.tokens.clone().enumerate() {
        let q = &attention.q[unit.query(attention, &source.shape, token)..][..group * head_dim];
        let padded = queries[i * group * width..].chunks_exact_mut(width);
        q.chunks_exact(head_dim)
            .zip(padded)
            .for_each(|(q, to)| to[..head_dim].copy_from_slice(q));
    }
    let (mut k, mut v) = (Buffer::zeroed(TILE * width), Buffer::zeroed(TILE * width));
    let mut scores = Buffer::zeroed(group * TILE);
    for tile in seen.start / TILE..seen.end.div_ceil(TILE) {
        threads.run(Widen {
            source,
            unit,
            positions: of_tile(&seen, tile),
            tile,
            k: &mut k,
            v: &mut v,
        });
        threads.run(TileOfKeys {
            unit,
            tile,
            queries: &queries,
            k: Padded { rows: &k, width },
            v: Padded { rows: &v, width },
            scale: attention.scale,
            scores: &mut scores,
            state,
        });
    }
}

/// A tile's keys and values as f32, in rows padded to whole vectors.
struct Widen<'a, E> {
    source: &'a Source<'a, Plain<E>>,
    unit: &'a Unit<'a>,
    positions: Range<usize>,
    tile: usize,
    k: &'a mut [f32],
    v: &'a mut [f32],
}

impl<E: Element> Kernel for Widen<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let width = self.k.len() / TILE;
        for position in self.positions {
            let (k, v) = self.source.row(self.unit, position);
            let to = (position - self.tile * TILE) * width;
            for (from, to) in [(k, &mut self.k[to..][..width]), (v, &mut self.v[to..][..width])] {
                let whole = from.len() / LANES * LANES;
                for i in (0..whole).step_by(LANES) {
                    // SAFETY: sixteen values from `i` on are in both.
                    unsafe { s.store(to.as_mut_ptr().add(i), E::load(s, from.as_ptr().add(i))) };
                }
                to[whole..]
                    .iter_mut()
                    .zip(&from[whole..])
                    .for_each(|(to, from)| *to = from.to_f32());
            }
        }
    }
}
