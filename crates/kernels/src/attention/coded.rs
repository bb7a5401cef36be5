//! Keys and values in eight bits, read where they lie: products of whole numbers, which add up alike in any order.
//!
//! Queries are rounded to sixteen bits, and so are the weights of a tile's values, each times its value's step: by at most
//! 1/65534 of the largest among a head's numbers, or among the tile's weights. One token and many run the same code.

mod tile;

use std::ops::Range;

use half::bf16;

use self::tile::TileOfCodes;
use super::part::{State, of_tile};
use super::source::Source;
use super::{Attention, TILE, Unit};
use crate::buffer::Buffer;
use crate::kv::{Coded, KeysValues};
use crate::level::Kernel;
use crate::simd::{LANES, Simd};
use crate::threads::Threads;

/// The largest code of sixteen bits.
const MOST: f32 = 32767.0;

/// Computes the keys of one split for one unit, into a state of no keys.
pub(super) fn compute(
    threads: &Threads,
    attention: &Attention<'_>,
    source: &Source<'_, Coded>,
    unit: &Unit<'_>,
    seen: Range<usize>,
    state: &mut State,
) {
    let group = attention.q_heads / source.shape.kv_heads;
    let visible = unit.visible(unit.tokens.start).start..unit.visible(unit.tokens.end - 1).end;
    let mut queries = Queries::zeroed(unit.n_rows(attention, &source.shape), state.width);
    for (i, token) in unit.tokens.clone().enumerate() {
        let start = unit.query(attention, &source.shape, token);
        threads.run(EncodeQueries {
            from: &attention.q[start..][..group * source.shape.head_dim],
            head_dim: source.shape.head_dim,
            scale: attention.scale,
            first_row: i * group,
            to: &mut queries,
        });
    }
    let (mut scores, mut weights) = (Buffer::zeroed(group * TILE), Buffer::zeroed(group * TILE));
    let mut factors = vec![0.0; group];
    let mut rows = Tile::new(source, unit, of_tile(&seen, seen.start / TILE));
    for tile in seen.start / TILE..seen.end.div_ceil(TILE) {
        // Of the next split too: whoever is here goes on there.
        let next = match of_tile(&visible, tile + 1) {
            positions if positions.is_empty() => rows,
            positions => Tile::new(source, unit, positions),
        };
        threads.run(TileOfCodes {
            unit,
            tile,
            queries: &queries,
            rows: &rows,
            ahead: &next,
            scores: &mut scores,
            weights: &mut weights,
            factors: &mut factors,
            state,
        });
        rows = next;
    }
}

/// Query rows in sixteen bits.
struct Queries {
    /// `[rows, width]`, zeros after a row's `head_dim`.
    codes: Buffer<i16>,
    /// What a row's codes stand for, times the scale of scores.
    steps: Vec<f32>,
    width: usize,
}

impl Queries {
    fn zeroed(n_rows: usize, width: usize) -> Self {
        Self {
            codes: Buffer::zeroed(n_rows * width),
            steps: vec![0.0; n_rows],
            width,
        }
    }
}

/// A step of codes up to `most` for numbers up to `largest`, and codes per number: none where it would be infinite, or a
/// number is not finite.
#[inline(always)]
fn step_of(largest: f32, most: f32) -> (f32, f32) {
    let per_step = most / largest;
    (largest / most, if per_step.is_finite() { per_step } else { 0.0 })
}

/// Rounds query heads of a token.
struct EncodeQueries<'a> {
    /// `[heads, head_dim]`
    from: &'a [f32],
    head_dim: usize,
    scale: f32,
    first_row: usize,
    to: &'a mut Queries,
}

impl Kernel for EncodeQueries<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Queries {
            codes,
            steps: of_rows,
            width,
        } = self.to;
        // A sum of `width` products with codes of eight bits fits 32.
        let most = MOST.min((i32::MAX / (127 * *width as i32)) as f32);
        for (head, from) in self.from.chunks_exact(self.head_dim).enumerate() {
            let row = self.first_row + head;
            // Compared as bits, a NaN is larger than any number.
            let largest = from
                .iter()
                .fold(0, |largest, x| (x.to_bits() & 0x7fff_ffff).max(largest));
            let (step, per_step) = step_of(f32::from_bits(largest), most);
            of_rows[row] = step * self.scale;
            let per_step = s.splat(per_step);
            for (from, to) in from
                .chunks(LANES)
                .zip(codes[row * *width..][..*width].chunks_exact_mut(LANES))
            {
                // SAFETY: as many values as the chunk has, at most sixteen; room for sixteen.
                unsafe {
                    let x = s.load_first(from.as_ptr(), from.len());
                    s.store_i16(to.as_mut_ptr(), s.mul(x, per_step));
                }
            }
        }
    }
}

/// The rows of a tile, one for each place; in places that no query sees, the row of another.
#[derive(Clone, Copy)]
struct Tile<'a>([(&'a KeysValues<Coded>, usize); TILE]);

impl<'a> Tile<'a> {
    fn new(source: &Source<'a, Coded>, unit: &Unit<'_>, positions: Range<usize>) -> Self {
        let (store, rows) = source.run(unit, positions.clone());
        let mut tile = Self([(store, rows.start); TILE]);
        let mut position = positions.start;
        while position < positions.end {
            let (store, rows) = source.run(unit, position..positions.end);
            let places = &mut tile.0[position % TILE..][..rows.len()];
            position += rows.len();
            places
                .iter_mut()
                .zip(rows)
                .for_each(|(place, row)| *place = (store, row));
        }
        tile
    }

    /// The rows of keys, or those of values.
    #[inline(always)]
    fn rows<const VALUES: bool>(&self) -> Rows<'_, VALUES> {
        Rows(&self.0)
    }
}

/// Rows of keys, or of values.
#[derive(Clone, Copy)]
struct Rows<'a, const VALUES: bool>(&'a [(&'a KeysValues<Coded>, usize); TILE]);

impl<const VALUES: bool> Rows<'_, VALUES> {
    #[inline(always)]
    fn at(&self, place: usize) -> (&Coded, usize) {
        let (store, row) = self.0[place];
        (if VALUES { &store.v } else { &store.k }, row)
    }

    /// The codes of a place's row, whole vectors.
    #[inline(always)]
    fn codes(&self, place: usize) -> *const i8 {
        let (rows, row) = self.at(place);
        rows.codes(row)
    }

    /// Where a place's step is.
    #[inline(always)]
    fn step(&self, place: usize) -> *const bf16 {
        let (rows, row) = self.at(place);
        rows.step(row)
    }

    /// The steps of `keys`, zero elsewhere.
    #[inline(always)]
    fn steps<S: Simd>(&self, s: S, keys: Range<usize>) -> [S::V; TILE / LANES] {
        let mut steps = [bf16::ZERO; TILE];
        for (place, step) in steps.iter_mut().enumerate() {
            // SAFETY: the row is one of its store's.
            *step = unsafe { *self.step(place) };
        }
        steps[..keys.start].fill(bf16::ZERO);
        steps[keys.end..].fill(bf16::ZERO);
        // SAFETY: sixteen values from there on are in the array.
        std::array::from_fn(|i| unsafe { s.load_bf16(steps.as_ptr().add(i * LANES)) })
    }
}
