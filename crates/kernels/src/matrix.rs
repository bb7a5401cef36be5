//! A weight matrix, in whatever format it is stored: the one way to a linear layer.

use half::{bf16, f16};

use crate::dense::Dense;
use crate::element::{Element, ElementType};
use crate::quant::blocks::{Affine, AffineRows, Blocks};
use crate::quant::{GgmlFormat, Quantized};
use crate::simd::LANES;
use crate::threads::Threads;

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

/// Why bytes are not the weight they are said to be.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum MatrixError {
    /// A dimension is zero.
    #[error("a [{rows}, {cols}] weight has no values")]
    Empty {
        /// Rows asked for.
        rows: usize,
        /// Columns asked for.
        cols: usize,
    },
    /// Rows are not whole blocks.
    #[error("{cols} columns are not whole blocks of {block}")]
    Ragged {
        /// Columns asked for.
        cols: usize,
        /// Columns of a block or group.
        block: usize,
    },
    /// There are more or fewer bytes than the shape needs.
    #[error("{what} has {got} bytes, its shape needs {expected}")]
    Length {
        /// Which operand: `weight`, `scales` or `biases`.
        what: &'static str,
        /// Bytes given.
        got: usize,
        /// Bytes of the shape.
        expected: usize,
    },
    /// No kernel reads groups of this size.
    #[error("groups of {group} columns: only 32, 64 and 128 are supported")]
    Group {
        /// Columns of a group.
        group: usize,
    },
}

/// A weight as MLX quantises it: `scale · code + bias`, codes of four bits; tensors as little-endian bytes.
#[derive(Clone, Copy, Debug)]
pub struct Affine4<'a> {
    /// Columns that share a scale and a bias: 32, 64 or 128.
    pub group: usize,
    /// `.weight`: `[rows, cols / 8]` of u32, the first column in the lowest four bits.
    pub codes: &'a [u8],
    /// `.scales`: `[rows, cols / group]`.
    pub scales: &'a [u8],
    /// `.biases`: `[rows, cols / group]`.
    pub biases: &'a [u8],
    /// Type of scales and biases.
    pub element: ElementType,
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
    /// Packs row-major f32 weights.
    ///
    /// # Panics
    /// If `data` does not hold `rows × cols` values, or there are none.
    pub fn from_f32(threads: &Threads, rows: usize, cols: usize, data: &[f32]) -> Self {
        Self::plain(
            Storage::F32(pack_slice(threads, rows, cols, data)),
            ElementType::F32,
        )
    }

    /// Packs row-major bf16 weights.
    ///
    /// # Panics
    /// If `data` does not hold `rows × cols` values, or there are none.
    pub fn from_bf16(threads: &Threads, rows: usize, cols: usize, data: &[bf16]) -> Self {
        Self::plain(
            Storage::Bf16(pack_slice(threads, rows, cols, data)),
            ElementType::Bf16,
        )
    }

    /// Packs row-major f16 weights.
    ///
    /// # Panics
    /// If `data` does not hold `rows × cols` values, or there are none.
    pub fn from_f16(threads: &Threads, rows: usize, cols: usize, data: &[f16]) -> Self {
        Self::plain(
            Storage::F16(pack_slice(threads, rows, cols, data)),
            ElementType::F16,
        )
    }

    /// Packs row-major weights from a file's little-endian bytes, at any alignment.
    pub fn from_le_bytes(
        threads: &Threads,
        element: ElementType,
        rows: usize,
        cols: usize,
        bytes: &[u8],
    ) -> Result<Self, MatrixError> {
        check_bytes("weight", bytes, (rows, cols), element.size())?;
        let storage = match element {
            ElementType::F32 => Storage::F32(pack_bytes(threads, rows, cols, bytes)),
            ElementType::Bf16 => Storage::Bf16(pack_bytes(threads, rows, cols, bytes)),
            ElementType::F16 => Storage::F16(pack_bytes(threads, rows, cols, bytes)),
        };
        Ok(Self::plain(storage, element))
    }

    /// Quantises rows as `source(row, values)` yields them, `cols` values each, on all threads; a few rows a thread are
    /// held at a time. See [`GgmlFormat::encode`] for the rounding. Any number of columns will do: the last block is
    /// filled up with zeros.
    ///
    /// # Panics
    /// If there are no values.
    pub fn quantize(
        threads: &Threads,
        format: GgmlFormat,
        rows: usize,
        cols: usize,
        source: impl Fn(usize, &mut [f32]) + Sync + Send,
    ) -> Self {
        assert!(rows > 0 && cols > 0, "a [{rows}, {cols}] weight has no values");
        let quantized = Quantized::pack_ggml(threads, (rows, cols), format, |row, blocks| {
            let mut values = vec![0.0; cols];
            source(row, &mut values);
            format.encode_row(threads, &values, blocks);
        });
        Self {
            storage: Storage::Quantized(quantized),
            format: Format::Ggml(format),
        }
    }

    /// Packs ggml's blocks, row by row as in a GGUF file.
    pub fn from_ggml(
        threads: &Threads,
        format: GgmlFormat,
        rows: usize,
        cols: usize,
        blocks: &[u8],
    ) -> Result<Self, MatrixError> {
        let row_bytes = format.row_bytes(cols);
        check_whole(cols, format.block_cols())?;
        check_bytes("weight", blocks, (rows, row_bytes), 1)?;
        let quantized = Quantized::pack_ggml(threads, (rows, cols), format, |row, to| {
            to.copy_from_slice(&blocks[row * row_bytes..][..row_bytes]);
        });
        Ok(Self {
            storage: Storage::Quantized(quantized),
            format: Format::Ggml(format),
        })
    }

    /// Packs a weight that MLX quantised.
    pub fn from_affine4(
        threads: &Threads,
        rows: usize,
        cols: usize,
        affine: &Affine4<'_>,
    ) -> Result<Self, MatrixError> {
        let group = affine.group;
        if ![32, 64, 128].contains(&group) {
            return Err(MatrixError::Group { group });
        }
        check_whole(cols, group)?;
        check_bytes("weight", affine.codes, (rows, cols / 2), 1)?;
        check_bytes(
            "scales",
            affine.scales,
            (rows, cols / group),
            affine.element.size(),
        )?;
        check_bytes(
            "biases",
            affine.biases,
            (rows, cols / group),
            affine.element.size(),
        )?;
        let quantized = match affine.element {
            ElementType::F32 => pack_affine::<f32>(threads, rows, cols, affine),
            ElementType::Bf16 => pack_affine::<bf16>(threads, rows, cols, affine),
            ElementType::F16 => pack_affine::<f16>(threads, rows, cols, affine),
        };
        Ok(Self {
            storage: Storage::Quantized(quantized),
            format: Format::Affine4 { group },
        })
    }

    fn plain(storage: Storage, element: ElementType) -> Self {
        Self {
            storage,
            format: Format::Plain(element),
        }
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
        self.format
    }

    /// Memory held, in bytes.
    pub fn bytes(&self) -> usize {
        each!(self, w => w.bytes())
    }

    /// `out[i, r] = Σ_c x[i, c] · w[r, c]`, with `x` `[m, cols]` and `out` `[m, rows]`.
    ///
    /// A row of `out` depends on its row of `x` alone: not on `m`, not on the number of threads.
    ///
    /// Quantised weights are multiplied as whole numbers, which rounds `x`: 32 columns share a step of 1/127 of their
    /// largest magnitude. The result differs from that of the dequantised weights by at most
    /// `Σ_blocks (max |x| / 254) · Σ_columns |w|`, besides f32's own rounding.
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

fn pack_slice<E: Element>(threads: &Threads, rows: usize, cols: usize, data: &[E]) -> Dense<E> {
    assert!(rows > 0 && cols > 0, "a [{rows}, {cols}] weight has no values");
    assert_eq!(
        rows.checked_mul(cols),
        Some(data.len()),
        "{} values for a [{rows}, {cols}] weight",
        data.len()
    );
    Dense::pack(threads, (rows, cols), |row| {
        data[row * cols..][..cols].iter().copied()
    })
}

fn pack_bytes<E: Element>(threads: &Threads, rows: usize, cols: usize, bytes: &[u8]) -> Dense<E> {
    let row_bytes = cols * size_of::<E>();
    Dense::pack(threads, (rows, cols), |row| {
        bytes[row * row_bytes..][..row_bytes]
            .chunks_exact(size_of::<E>())
            .map(E::from_le_bytes)
    })
}

fn pack_affine<E: Element>(threads: &Threads, rows: usize, cols: usize, affine: &Affine4<'_>) -> Quantized {
    let from = AffineRows {
        codes: affine.codes,
        scales: affine.scales,
        biases: affine.biases,
    };
    let blocks = Affine::<E>::new(affine.group);
    let boxed: Box<dyn Blocks> = Box::new(Affine::<E>::new(affine.group));
    Quantized::pack(threads, (rows, cols), boxed, |panel, records| {
        for row in panel * LANES..rows.min((panel + 1) * LANES) {
            blocks.pack_row(&from, row, cols, records);
        }
    })
}

fn check_bytes(
    what: &'static str,
    bytes: &[u8],
    (rows, cols): (usize, usize),
    size: usize,
) -> Result<(), MatrixError> {
    if rows == 0 || cols == 0 {
        return Err(MatrixError::Empty { rows, cols });
    }
    let expected = rows.saturating_mul(cols).saturating_mul(size);
    if bytes.len() != expected {
        return Err(MatrixError::Length {
            what,
            got: bytes.len(),
            expected,
        });
    }
    Ok(())
}

fn check_whole(cols: usize, block: usize) -> Result<(), MatrixError> {
    if cols.is_multiple_of(block) {
        Ok(())
    } else {
        Err(MatrixError::Ragged { cols, block })
    }
}

#[cfg(test)]
pub(crate) mod tests;
