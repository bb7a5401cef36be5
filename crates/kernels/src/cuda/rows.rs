//! Kernels that work row by row.

use super::device::{Grid, arguments};
use super::error::GpuError;
use super::{Device, Span, Step};
use crate::ElementType;

impl Device {
    /// `x[row]` = row `token[row]` of `table` `[vocab][width]`, in f32; zeros for padding.
    pub fn embed(
        &self,
        element: ElementType,
        step: Step,
        n_rows: usize,
        table: Span<'_>,
        x: Span<'_>,
        width: usize,
    ) -> Result<(), GpuError> {
        let grid = Grid {
            blocks: [n_rows, 1, 1],
            threads: 256,
            shared_bytes: 0,
        };
        let (table, x, width) = (table.ptr(), x.holding(n_rows * width, 4), width as i32);
        // SAFETY: parameter types as in rows.cu; sizes checked above, token ids by whoever made the step.
        unsafe { self.launch_for(element, "embed", &grid, arguments![step, table, x, width]) }
    }

    /// `y[i]` = row `rows[i]` of `x` (f32), over its root mean square, times `weight`; without `rows`, row `i`.
    /// `y_f32`: the same unrounded.
    #[allow(clippy::too_many_arguments)]
    pub fn rms_norm(
        &self,
        element: ElementType,
        x: Span<'_>,
        weight: Span<'_>,
        y: Span<'_>,
        y_f32: Option<Span<'_>>,
        rows: Option<Span<'_>>,
        (n_rows, width): (usize, usize),
        eps: f32,
    ) -> Result<(), GpuError> {
        let grid = Grid {
            blocks: [n_rows, 1, 1],
            threads: if width >= 4096 { 512 } else { 256 },
            shared_bytes: 0,
        };
        let x = if rows.is_some() {
            x.ptr()
        } else {
            x.holding(n_rows * width, 4)
        };
        let weight = weight.holding(width, element.size());
        let y = y.holding(n_rows * width, element.size());
        let y_f32 = y_f32.map_or(0, |y| y.holding(n_rows * width, 4));
        let rows = rows.map_or(0, |rows| rows.holding(n_rows, 4));
        let width = width as i32;
        // SAFETY: parameter types as in rows.cu; sizes checked above.
        unsafe {
            self.launch_for(
                element,
                "rms_norm",
                &grid,
                arguments![x, weight, y, y_f32, rows, width, eps],
            )
        }
    }

    /// `act[row]` = silu(first half of `gate_up[row]`) times its second half, each `width` wide.
    pub fn swiglu(
        &self,
        element: ElementType,
        gate_up: Span<'_>,
        act: Span<'_>,
        n_rows: usize,
        width: usize,
    ) -> Result<(), GpuError> {
        let vectors = element.is_sixteen_bits() && width.is_multiple_of(8);
        let grid = Grid {
            blocks: [(if vectors { width / 8 } else { width }).div_ceil(256), n_rows, 1],
            threads: 256,
            shared_bytes: 0,
        };
        let gate_up = gate_up.holding(2 * n_rows * width, element.size());
        let act = act.holding(n_rows * width, element.size());
        let width = width as i32;
        // SAFETY: parameter types as in rows.cu; sizes checked above.
        unsafe { self.launch_for(element, "swiglu", &grid, arguments![gate_up, act, width]) }
    }

    /// `chosen[row]` (i32) = the first index of the largest of `logits[row]`; -1 where one is NaN or infinite.
    pub fn argmax(
        &self,
        logits: Span<'_>,
        chosen: Span<'_>,
        n_rows: usize,
        vocab: usize,
    ) -> Result<(), GpuError> {
        let grid = Grid {
            blocks: [n_rows, 1, 1],
            threads: 1024,
            shared_bytes: 0,
        };
        let (logits, chosen) = (logits.holding(n_rows * vocab, 4), chosen.holding(n_rows, 4));
        let vocab = vocab as i32;
        // SAFETY: parameter types as in plain.cu; sizes checked above.
        unsafe { self.launch("argmax", &grid, arguments![logits, chosen, vocab]) }
    }

    /// `to[i]` = row `rows[i]` of `from`, rows of `row_bytes`, a multiple of 16.
    pub fn gather_rows(
        &self,
        from: Span<'_>,
        to: Span<'_>,
        rows: Span<'_>,
        row_bytes: usize,
    ) -> Result<(), GpuError> {
        self.move_rows([from, to], rows, row_bytes, 0)
    }

    /// Row `rows[i]` of `to` = `from[i]`: the way back of [`Device::gather_rows`].
    pub fn scatter_rows(
        &self,
        from: Span<'_>,
        to: Span<'_>,
        rows: Span<'_>,
        row_bytes: usize,
    ) -> Result<(), GpuError> {
        self.move_rows([from, to], rows, row_bytes, 1)
    }

    fn move_rows(
        &self,
        [from, to]: [Span<'_>; 2],
        rows: Span<'_>,
        row_bytes: usize,
        back: i32,
    ) -> Result<(), GpuError> {
        assert!(row_bytes.is_multiple_of(16), "rows of {row_bytes} bytes");
        let n_rows = rows.n_bytes() / 4;
        let dense = if back == 1 { from } else { to };
        dense.holding(n_rows, row_bytes);
        let grid = Grid {
            blocks: [n_rows, 1, 1],
            threads: 256,
            shared_bytes: 0,
        };
        let (from, to, rows, width) = (from.ptr(), to.ptr(), rows.ptr(), (row_bytes / 16) as i32);
        // SAFETY: parameter types as in plain.cu; the dense side was checked, row numbers by the step's maker.
        unsafe { self.launch("move_rows", &grid, arguments![from, to, rows, width, back]) }
    }

    /// Cosines and sines of `position · theta^(-i / half)` as pairs of f32, `[positions][half]`; angles in f64.
    pub fn rope_table(
        &self,
        table: Span<'_>,
        positions: usize,
        half: usize,
        theta: f64,
    ) -> Result<(), GpuError> {
        let grid = Grid {
            blocks: [positions, 1, 1],
            threads: half.next_multiple_of(32).min(256),
            shared_bytes: 0,
        };
        let (table, half) = (table.holding(positions * half, 8), half as i32);
        // SAFETY: parameter types as in plain.cu; sizes checked above.
        unsafe { self.launch("rope_table", &grid, arguments![table, half, theta]) }
    }

    /// Fills with roughly normal numbers; number `n` depends on `seed` and `n` only.
    pub fn random(
        &self,
        element: ElementType,
        to: Span<'_>,
        seed: u64,
        mean: f32,
        deviation: f32,
    ) -> Result<(), GpuError> {
        let grid = Grid {
            blocks: [2048, 1, 1],
            threads: 256,
            shared_bytes: 0,
        };
        let (n, to) = (to.n_bytes() / element.size(), to.ptr());
        // SAFETY: parameter types as in rows.cu; `n` values lie in the span.
        unsafe {
            self.launch_for(
                element,
                "random_fill",
                &grid,
                arguments![to, n, seed, mean, deviation],
            )
        }
    }

    /// Reads all of `from` once; nothing comes of it. What the memory's read bandwidth is measured with.
    pub fn read_all(&self, from: Span<'_>, sink: Span<'_>) -> Result<(), GpuError> {
        let grid = Grid {
            blocks: [132 * 8, 1, 1],
            threads: 256,
            shared_bytes: 0,
        };
        let (n, from, sink) = (from.n_bytes() / 16, from.ptr(), sink.holding(1, 4));
        // SAFETY: parameter types as in plain.cu; `n` vectors lie in the span.
        unsafe { self.launch("read_all", &grid, arguments![from, n, sink]) }
    }
}
