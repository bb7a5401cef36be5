//! The rows of one tile of keys, or of values, as the arithmetic reads them.

use super::TILE;
use crate::element::Element;
use crate::simd::{LANES, Simd};

/// Rows of a tile, vector by vector as f32.
pub(super) trait TileRows {
    /// Sixteen values of a row.
    ///
    /// # Safety
    /// `row` is one of the tile's that some query sees, and `i` the start of a whole vector of it.
    unsafe fn load<S: Simd>(&self, s: S, row: usize, i: usize) -> S::V;

    /// Asks memory for what the next tile has at the place of `row`, `n` values from `i` on, so that it is there when it
    /// is read. A few lines between some arithmetic: more at once would make loads wait.
    #[inline(always)]
    fn ask_ahead<S: Simd>(&self, _s: S, _row: usize, _i: usize, _n: usize) {}
}

/// Rows of f32, padded to whole vectors: `[TILE, width]`.
pub(super) struct Padded<'a> {
    pub(super) rows: &'a [f32],
    pub(super) width: usize,
}

impl TileRows for Padded<'_> {
    #[inline(always)]
    unsafe fn load<S: Simd>(&self, s: S, row: usize, i: usize) -> S::V {
        debug_assert!(row * self.width + i + LANES <= self.rows.len());
        // SAFETY: the row is of the tile, says the caller, and the vector of the row.
        unsafe { s.load(self.rows.as_ptr().add(row * self.width + i)) }
    }
}

/// Rows where the cache has them, and those of the tile after them.
pub(super) struct InPlace<'a, E> {
    pub(super) rows: &'a [&'a [E]; TILE],
    pub(super) ahead: &'a [&'a [E]; TILE],
}

impl<E: Element> TileRows for InPlace<'_, E> {
    #[inline(always)]
    unsafe fn load<S: Simd>(&self, s: S, row: usize, i: usize) -> S::V {
        debug_assert!(i + LANES <= self.rows[row].len());
        // SAFETY: as above; the array has a row for each place of the tile.
        unsafe { E::load(s, self.rows.get_unchecked(row).as_ptr().add(i)) }
    }

    #[inline(always)]
    fn ask_ahead<S: Simd>(&self, s: S, row: usize, i: usize, n: usize) {
        const LINE: usize = 64;
        let row = self.ahead[row].as_ptr().cast::<u8>();
        let (start, end) = (i * size_of::<E>(), (i + n) * size_of::<E>());
        for line in (start.next_multiple_of(LINE)..end).step_by(LINE) {
            s.prefetch(row.wrapping_add(line));
        }
    }
}
