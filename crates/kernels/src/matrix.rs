//! A weight matrix, in whatever format it is stored: the one way to a linear layer.

use half::{bf16, f16};

use crate::dense::Dense;
use crate::threads::Threads;

/// How a matrix stores its weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Format {
    /// 32-bit floats.
    F32,
    /// bfloat16.
    Bf16,
    /// 16-bit IEEE floats.
    F16,
}

/// A `[rows, cols]` weight, `[out, in]` of a linear layer, packed for the kernels that read it.
#[derive(Debug)]
pub struct Matrix(Storage);

#[derive(Debug)]
enum Storage {
    F32(Dense<f32>),
    Bf16(Dense<bf16>),
    F16(Dense<f16>),
}

/// Evaluates `$body` with `$w` bound to the storage, whatever its type.
macro_rules! each {
    ($matrix:expr, $w:ident => $body:expr) => {
        match &$matrix.0 {
            Storage::F32($w) => $body,
            Storage::Bf16($w) => $body,
            Storage::F16($w) => $body,
        }
    };
}

impl Matrix {
    /// Packs row-major f32 weights.
    ///
    /// # Panics
    /// If `data` does not hold `rows × cols` values, or there are none.
    pub fn from_f32(threads: &Threads, rows: usize, cols: usize, data: &[f32]) -> Self {
        check_shape(rows, cols, data.len());
        Self(Storage::F32(Dense::pack(threads, rows, cols, data)))
    }

    /// Packs row-major bf16 weights.
    ///
    /// # Panics
    /// If `data` does not hold `rows × cols` values, or there are none.
    pub fn from_bf16(threads: &Threads, rows: usize, cols: usize, data: &[bf16]) -> Self {
        check_shape(rows, cols, data.len());
        Self(Storage::Bf16(Dense::pack(threads, rows, cols, data)))
    }

    /// Packs row-major f16 weights.
    ///
    /// # Panics
    /// If `data` does not hold `rows × cols` values, or there are none.
    pub fn from_f16(threads: &Threads, rows: usize, cols: usize, data: &[f16]) -> Self {
        check_shape(rows, cols, data.len());
        Self(Storage::F16(Dense::pack(threads, rows, cols, data)))
    }

    /// Number of rows: features out.
    pub fn rows(&self) -> usize {
        each!(self, w => w.rows)
    }

    /// Number of columns: features in.
    pub fn cols(&self) -> usize {
        each!(self, w => w.cols)
    }

    /// How the weights are stored.
    pub fn format(&self) -> Format {
        match &self.0 {
            Storage::F32(_) => Format::F32,
            Storage::Bf16(_) => Format::Bf16,
            Storage::F16(_) => Format::F16,
        }
    }

    /// Memory held, in bytes.
    pub fn bytes(&self) -> usize {
        each!(self, w => w.bytes())
    }

    /// `out[i, r] = Σ_c x[i, c] · w[r, c]`, with `x` `[m, cols]` and `out` `[m, rows]`.
    ///
    /// A row of `out` depends on its row of `x` alone: not on `m`, not on the number of threads.
    ///
    /// # Panics
    /// If `x` is not whole rows, or `out` not as many.
    pub fn matmul(&self, threads: &Threads, x: &[f32], out: &mut [f32]) {
        let (rows, cols) = (self.rows(), self.cols());
        let is_whole = x.len().is_multiple_of(cols) && x.len() / cols * rows == out.len();
        assert!(
            is_whole,
            "x of {} and out of {} values for a [{rows}, {cols}] weight",
            x.len(),
            out.len()
        );
        if !x.is_empty() {
            each!(self, w => w.matmul(threads, x, out));
        }
    }

    /// One row of the weight as f32, into `out` of `cols` values: an embedding's lookup.
    ///
    /// # Panics
    /// If there is no such row or `out` has another length.
    pub fn dequantize_row(&self, row: usize, out: &mut [f32]) {
        assert!(row < self.rows(), "row {row} of {}", self.rows());
        assert_eq!(
            out.len(),
            self.cols(),
            "a row has as many values as the weight has columns"
        );
        each!(self, w => w.dequantize_row(row, out));
    }

    /// All weights as row-major f32.
    pub fn dequantize(&self) -> Vec<f32> {
        let mut out = vec![0.0; self.rows() * self.cols()];
        for (row, out) in out.chunks_exact_mut(self.cols()).enumerate() {
            self.dequantize_row(row, out);
        }
        out
    }
}

fn check_shape(rows: usize, cols: usize, len: usize) {
    assert!(rows > 0 && cols > 0, "a [{rows}, {cols}] weight has no values");
    assert_eq!(
        rows.checked_mul(cols),
        Some(len),
        "{len} values for a [{rows}, {cols}] weight"
    );
}

#[cfg(test)]
pub(crate) mod tests;
