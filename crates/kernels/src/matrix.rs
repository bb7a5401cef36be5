//! A weight matrix, in whatever format it is stored: the one way to a linear layer.

mod make;

use std::mem::MaybeUninit;

use half::{bf16, f16};

use crate::dense::Dense;
use crate::element::ElementType;
use crate::quant::{GgmlFormat, Quantized};
use crate::threads::Threads;

pub use self::make::{Affine4, MatrixError};

/// How a matrix stores its weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Format {
    /// Plain numbers; products are computed in f32.
    Plain(ElementType),
    /// A block format of ggml; a product rounds its input to bytes, see [`Matrix::matmul`].
    Ggml(GgmlFormat),
    /// MLX's groups of four-bit codes with a scale and a bias; a product rounds its input as for ggml's.
    Affine4 {
        /// Columns of a group.
        group: usize,
    },
}

/// A `[rows, cols]` weight, `[out, in]` of a linear layer, packed for the kernels that read it.
#[derive(Debug)]
pub struct Matrix {
    storage: Storage,
    format: Format,
}

#[derive(Debug)]
enum Storage {
    F32(Dense<f32>),
    Bf16(Dense<bf16>),
    F16(Dense<f16>),
    Quantized(Quantized),
}

/// Evaluates `$body` with `$w` bound to the storage, whatever its type.
macro_rules! each {
    ($matrix:expr, $w:ident => $body:expr) => {
        match &$matrix.storage {
            Storage::F32($w) => $body,
            Storage::Bf16($w) => $body,
            Storage::F16($w) => $body,
            Storage::Quantized($w) => $body,
        }
    };
}

impl Matrix {
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
        self.format
    }

    /// Memory held, in bytes.
    pub fn bytes(&self) -> usize {
        each!(self, w => w.bytes())
    }

    /// The weight as its kernels read it: panels of sixteen rows, see `quant`. The same on every machine, and what
    /// [`Matrix::from_packed`] takes; none for formats that a file is not written in.
    pub fn packed(&self) -> Option<&[u8]> {
        match (&self.storage, self.format) {
            (Storage::Quantized(w), Format::Ggml(_)) => Some(w.records()),
            _ => None,
        }
    }

    /// [`Self::matmul`] into memory of its own, which nobody fills with zeros first: `[m, rows]`.
    ///
    /// # Panics
    /// If `x` is not whole rows.
    pub fn product(&self, threads: &Threads, x: &[f32]) -> Vec<f32> {
        let len = x.len() / self.cols() * self.rows();
        let mut out = Vec::with_capacity(len);
        self.write_product(threads, x, &mut out.spare_capacity_mut()[..len]);
        // SAFETY: as many values have room, and the product has written each.
        unsafe { out.set_len(len) };
        out
    }

    /// `out[i, r] = Σ_c x[i, c] · w[r, c]`, with `x` `[m, cols]` and `out` `[m, rows]`.
    ///
    /// A row of `out` depends on its row of `x` alone: not on `m`, not on the number of threads.
    ///
    /// Weights in bf16 are multiplied with `x` rounded to bf16, which moves the result by at most `Σ |x| · |w| / 256`.
    ///
    /// Quantised weights are multiplied as whole numbers, which rounds `x`: 32 columns share a step of 1/127 of their
    /// largest magnitude. The result differs from that of the dequantised weights by at most
    /// `Σ_blocks (max |x| / 254) · Σ_columns |w|`, besides f32's own rounding.
    ///
    /// # Panics
    /// If `x` is not whole rows, or `out` not as many.
    pub fn matmul(&self, threads: &Threads, x: &[f32], out: &mut [f32]) {
        // SAFETY: the types are of one size, and what is written here is numbers.
        let out = unsafe { std::slice::from_raw_parts_mut(out.as_mut_ptr().cast(), out.len()) };
        self.write_product(threads, x, out);
    }

    /// Writes every value of `out`.
    fn write_product(&self, threads: &Threads, x: &[f32], out: &mut [MaybeUninit<f32>]) {
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

#[cfg(test)]
pub(crate) mod tests;
