//! Attention over paged and ring caches: tensor core kernels for sixteen bits and common head widths, a plain one for all.

use super::device::{Grid, arguments};
use super::error::GpuError;
use super::tensor::TensorMap;
use super::{ConvLayer, Device, Span, Step};
use crate::ElementType;

/// One layer's cache: `[blocks][k, v][n_kv_heads][block_tokens][head_dim]`.
#[derive(Clone, Copy)]
pub struct CacheShape<'a> {
    /// Keys and values.
    pub data: Span<'a>,
    /// Rows of a block.
    pub block_tokens: usize,
    /// Key and value heads.
    pub n_kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Length of a sequence's ring, a multiple of `block_tokens`, and keys a query sees; none: paged, and all.
    pub ring: Option<(usize, usize)>,
}

/// Mirrors `Cache` in common.cuh.
#[repr(C)]
pub(super) struct Raw {
    data: u64,
    block_tokens: i32,
    n_kv: i32,
    head_dim: i32,
    ring_rows: i32,
    window: i32,
}

impl CacheShape<'_> {
    pub(super) fn raw(&self) -> Raw {
        let (ring_rows, window) = self.ring.unwrap_or((0, 0));
        Raw {
            data: self.data.ptr(),
            block_tokens: self.block_tokens as i32,
            n_kv: self.n_kv_heads as i32,
            head_dim: self.head_dim as i32,
            ring_rows: ring_rows as i32,
            window: window as i32,
        }
    }
}

/// One layer's attention in one step.
#[derive(Clone, Copy)]
pub struct Attention<'a> {
    /// Type of queries, keys and values.
    pub element: ElementType,
    /// Where cached keys and values are.
    pub cache: CacheShape<'a>,
    /// Queries, keys and values, and what comes before attention.
    pub conv: ConvLayer<'a>,
    /// `[rows][n_heads][head_dim]`.
    pub out: Span<'a>,
    /// For partial results, see [`Attention::scratch_bytes`]; zeros at first, and used for nothing else.
    pub scratch: Span<'a>,
}

/// Which of chunks' rows attention is wanted of.
#[derive(Clone, Copy, Debug)]
pub enum Chunks {
    /// All of them.
    Whole {
        /// No chunk is longer.
        longest: usize,
    },
    /// Each chunk's last row; what becomes of the others is not said.
    Ends,
}

/// Blocks that keep every multiprocessor of a large GPU busy twice over. More of them are later to start and to join.
const BLOCKS_WANTED: usize = 528;
const MAX_SPLITS: usize = 64;
/// Scratch begins with counters, one for each head of each sequence.
const COUNTERS: usize = 16 << 10;
const PREFILL_QUERIES: usize = 128;
const PREFILL_KEYS: usize = 64;

fn splits(n_entries: usize, n_kv_heads: usize) -> usize {
    BLOCKS_WANTED
        .div_ceil((n_entries * n_kv_heads).max(1))
        .clamp(1, MAX_SPLITS)
}

impl Attention<'_> {
    /// Bytes of scratch that suffice for steps of up to `n_entries` sequences: counters, sums and norms of every part.
    pub fn scratch_bytes(n_entries: usize, n_heads: usize, n_kv_heads: usize, head_dim: usize) -> usize {
        let parts = (1..=n_entries).map(|n| n * splits(n, n_kv_heads) * n_heads * (head_dim * 4 + 8));
        COUNTERS * 4 + parts.max().unwrap_or(0)
    }

    /// Whether the tensor core kernels do it.
    fn is_fast(&self) -> bool {
        self.element.is_sixteen_bits()
            && matches!(self.cache.head_dim, 64 | 128 | 256)
            && self.cache.block_tokens.is_multiple_of(16)
            && self.conv.n_heads / self.cache.n_kv_heads <= 16
    }

    fn row_width(&self) -> usize {
        (self.conv.n_heads + 2 * self.cache.n_kv_heads) * self.cache.head_dim
    }
}

impl Device {
    /// The step's first `n_entries` rows, which are entries of one token each: convolution, RoPE, cache writes as in
    /// [`Device::conv_rope`], and attention.
    pub fn attend_decode(&self, step: Step, n_entries: usize, a: &Attention<'_>) -> Result<(), GpuError> {
        if n_entries == 0 {
            return Ok(());
        }
        if !a.is_fast() {
            self.conv_rope(a.element, step, (0, n_entries), &a.cache, &a.conv)?;
            return self.attend_any(step, 0, n_entries, a);
        }
        let (d, n_heads) = (a.cache.head_dim, a.conv.n_heads);
        let n_splits = splits(n_entries, a.cache.n_kv_heads);
        let lines = n_entries * n_heads * n_splits;
        assert!(
            n_entries * a.cache.n_kv_heads <= COUNTERS,
            "{n_entries} sequences"
        );
        let counters = a.scratch.holding(COUNTERS * 4 + lines * (d * 4 + 8), 1);
        let sums = counters + COUNTERS as u64 * 4;
        let norms = sums + (lines * d * 4) as u64;
        let out = a.out.holding(n_entries * n_heads * d, 2);
        let scale = scale_log2(d);
        let (kernel, stages) = match d {
            64 => ("attend_decode_64", 6),
            128 => ("attend_decode_128", 4),
            _ => ("attend_decode_256", 3),
        };
        let grid = Grid {
            blocks: [n_splits, a.cache.n_kv_heads, n_entries],
            threads: 128,
            // Four warps' stages of 16 keys or values; afterwards four warps' sums of 16 rows in f32.
            shared_bytes: (4 * 16 * d * (stages * 2).max(4)) as u32,
        };
        let (cache, conv) = (a.cache.raw(), a.conv.raw(a.element, &a.cache, n_entries));
        // SAFETY: parameter types as in attention_decode.cu; sizes checked above, tables by the step's maker.
        unsafe {
            self.launch_for(
                a.element,
                kernel,
                &grid,
                arguments![step, cache, conv, out, sums, norms, counters, scale],
            )
        }
    }

    /// Attention of chunks: entries from `first_entry` on, rows from `first_row` on. Each row sees the cache before
    /// its chunk and the chunk up to itself.
    pub fn attend_prefill(
        &self,
        step: Step,
        (first_entry, n_entries): (usize, usize),
        (first_row, n_rows): (usize, usize),
        chunks: Chunks,
        a: &Attention<'_>,
    ) -> Result<(), GpuError> {
        if n_entries == first_entry {
            return Ok(());
        }
        if !a.is_fast() {
            return self.attend_any(step, first_row, n_rows, a);
        }
        let d = a.cache.head_dim;
        let (tiles, ends_only) = match chunks {
            Chunks::Whole { longest } => (longest.div_ceil(PREFILL_QUERIES), 0),
            Chunks::Ends => (1, 1),
        };
        let n_chunks = n_entries - first_entry;
        let q = a.conv.packed.holding(n_rows * a.row_width(), 2);
        let fresh = a.conv.fresh.holding(n_rows * 2 * a.cache.n_kv_heads * d, 2);
        let out = a.out.holding(n_rows * a.conv.n_heads * d, 2);
        let (stride, n_heads, scale) = (a.row_width() as i32, a.conv.n_heads as i32, scale_log2(d));
        let (cache, first_entry) = (a.cache.raw(), first_entry as i32);
        if self.has_wgmma() {
            // As attention_wgmma.cu: queries, two stages of keys and values, barriers; aligned by hand.
            let (kernel, keys) = match d {
                64 => ("attend_wgmma_64", 128),
                128 => ("attend_wgmma_128", 128),
                _ => ("attend_wgmma_256", 64),
            };
            let grid = Grid {
                blocks: [a.conv.n_heads, tiles, n_chunks],
                threads: 384,
                shared_bytes: (1024 + (PREFILL_QUERIES + 4 * keys) * d * 2 + 128) as u32,
            };
            let lines = TensorMap::new(a.element, a.cache.data, d, a.cache.data.n_bytes() / (2 * d))?;
            let fresh = TensorMap::new(a.element, a.conv.fresh, 2 * a.cache.n_kv_heads * d, n_rows)?;
            // SAFETY: parameter types as in attention_wgmma.cu; sizes checked above, tables by the step's maker.
            return unsafe {
                self.launch_for(
                    a.element,
                    kernel,
                    &grid,
                    arguments![
                        step,
                        cache,
                        q,
                        stride,
                        lines,
                        fresh,
                        out,
                        n_heads,
                        scale,
                        first_entry,
                        ends_only
                    ],
                )
            };
        }
        let kernel = match d {
            64 => "attend_prefill_64",
            128 => "attend_prefill_128",
            _ => "attend_prefill_256",
        };
        let grid = Grid {
            blocks: [tiles, a.conv.n_heads, n_chunks],
            threads: 256,
            shared_bytes: ((PREFILL_QUERIES + 4 * PREFILL_KEYS) * d * 2) as u32,
        };
        // SAFETY: parameter types as in attention_prefill.cu; sizes checked above, tables by the step's maker.
        unsafe {
            self.launch_for(
                a.element,
                kernel,
                &grid,
                arguments![
                    step,
                    cache,
                    q,
                    stride,
                    fresh,
                    out,
                    n_heads,
                    scale,
                    first_entry,
                    ends_only
                ],
            )
        }
    }

    fn attend_any(
        &self,
        step: Step,
        first_row: usize,
        n_rows: usize,
        a: &Attention<'_>,
    ) -> Result<(), GpuError> {
        let d = a.cache.head_dim;
        let size = a.element.size();
        let grid = Grid {
            blocks: [n_rows - first_row, a.conv.n_heads, 1],
            threads: 128,
            shared_bytes: (2 * d * 4) as u32,
        };
        let q = a.conv.packed.holding(n_rows * a.row_width(), size);
        let fresh = a.conv.fresh.holding(n_rows * 2 * a.cache.n_kv_heads * d, size);
        let out = a.out.holding(n_rows * a.conv.n_heads * d, size);
        let (stride, n_heads, scale) = (
            a.row_width() as i32,
            a.conv.n_heads as i32,
            1.0 / (d as f32).sqrt(),
        );
        let (cache, first_row) = (a.cache.raw(), first_row as i32);
        // SAFETY: parameter types as in attention_any.cu; sizes checked above, tables by the step's maker.
        unsafe {
            self.launch_for(
                a.element,
                "attend_any",
                &grid,
                arguments![step, cache, q, stride, fresh, out, n_heads, scale, first_row],
            )
        }
    }
}

/// 1 / √d, for powers of two instead of e.
fn scale_log2(head_dim: usize) -> f32 {
    std::f32::consts::LOG2_E / (head_dim as f32).sqrt()
}
