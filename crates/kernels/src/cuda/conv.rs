//! Between the W_pack product and attention: convolution over K and V, RoPE, writes to the caches.

use super::attention::CacheShape;
use super::device::{Grid, arguments};
use super::error::GpuError;
use super::{Device, Span, Step};
use crate::ElementType;

/// A layer's buffers of the convolution and its neighbours.
#[derive(Clone, Copy)]
pub struct ConvLayer<'a> {
    /// `[rows][(n_heads + 2 · n_kv_heads) · head_dim]`, what W_pack made: queries are rotated in place.
    pub packed: Span<'a>,
    /// `[rows][k, v][n_kv_heads][head_dim]`: convolved keys, rotated, and values of chunks.
    pub fresh: Span<'a>,
    /// `[slots][taps - 1][k, v][n_kv_heads][head_dim]`: the raw rows before an entry's first.
    pub carry: Span<'a>,
    /// `[k, v][n_kv_heads][taps]` f32, oldest token first.
    pub taps: Span<'a>,
    /// Of [`Device::rope_table`], for this head width.
    pub angles: Span<'a>,
    /// Query heads.
    pub n_heads: usize,
    /// Taps of the convolution.
    pub n_taps: usize,
}

/// Mirrors `ConvLayer` in common.cuh.
#[repr(C)]
pub(super) struct Raw {
    packed: u64,
    fresh: u64,
    carry: u64,
    taps: u64,
    angles: u64,
    n_heads: i32,
    n_taps: i32,
}

impl ConvLayer<'_> {
    pub(super) fn raw(&self, element: ElementType, cache: &CacheShape<'_>, n_rows: usize) -> Raw {
        let kv_width = cache.n_kv_heads * cache.head_dim;
        let width = self.n_heads * cache.head_dim + 2 * kv_width;
        Raw {
            packed: self.packed.holding(n_rows * width, element.size()),
            fresh: self.fresh.holding(n_rows * 2 * kv_width, element.size()),
            carry: self.carry.ptr(),
            taps: self.taps.holding(2 * cache.n_kv_heads * self.n_taps, 4),
            angles: self.angles.ptr(),
            n_heads: self.n_heads as i32,
            n_taps: self.n_taps as i32,
        }
    }
}

impl Device {
    /// Of rows from `first_row` on: rotates queries in place, convolves keys and values and rotates the keys. An entry
    /// of one token writes them to its cache and shifts its carried rows; a chunk's go to `fresh` until
    /// [`Device::commit`].
    pub fn conv_rope(
        &self,
        element: ElementType,
        step: Step,
        (first_row, n_rows): (usize, usize),
        cache: &CacheShape<'_>,
        layer: &ConvLayer<'_>,
    ) -> Result<(), GpuError> {
        let grid = Grid {
            blocks: [n_rows - first_row, 1, 1],
            threads: 256,
            shared_bytes: 0,
        };
        let kernel = match element.is_sixteen_bits() && cache.head_dim.is_multiple_of(16) {
            true => "conv_rope_8",
            false => "conv_rope",
        };
        let (cache, layer) = (cache.raw(), layer.raw(element, cache, n_rows));
        let first_row = first_row as i32;
        // SAFETY: parameter types as in conv.cu; sizes checked above, blocks, slots and positions by the step's maker.
        unsafe { self.launch_for(element, kernel, &grid, arguments![step, cache, layer, first_row]) }
    }

    /// After a chunk's attention: its keys and values to the cache, its last raw rows to the carry. Rows from
    /// `first_row` on are chunks.
    pub fn commit(
        &self,
        element: ElementType,
        step: Step,
        (first_row, n_rows): (usize, usize),
        cache: &CacheShape<'_>,
        layer: &ConvLayer<'_>,
    ) -> Result<(), GpuError> {
        let grid = Grid {
            blocks: [n_rows - first_row, 1, 1],
            threads: 256,
            shared_bytes: 0,
        };
        let kernel = match element.is_sixteen_bits() && cache.head_dim.is_multiple_of(8) {
            true => "commit_8",
            false => "commit",
        };
        let (cache, layer) = (cache.raw(), layer.raw(element, cache, n_rows));
        let first_row = first_row as i32;
        // SAFETY: as in `conv_rope`.
        unsafe { self.launch_for(element, kernel, &grid, arguments![step, cache, layer, first_row]) }
    }
}
