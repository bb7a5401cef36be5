//! The ways to a weight: from numbers, from blocks, from tensors of MLX, from a file of packed ones.

use half::{bf16, f16};

use super::{Format, Matrix, Storage};
use crate::dense::{Dense, Weight};
use crate::element::{Element, ElementType};
use crate::mapped::MappedBytes;
use crate::quant::blocks::{Affine, AffineRows, Blocks};
use crate::quant::{GgmlFormat, Quantized};
use crate::simd::LANES;
use crate::threads::Threads;

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
    /// Weights that are to follow each other differ in how they are quantised.
    #[error(
        "weights stacked in one have groups of {first} and of {other} columns, or numbers of different types"
    )]
    Unlike {
        /// Columns of a group of the first.
        first: usize,
        /// Columns of a group of the one that differs.
        other: usize,
    },
    /// Packed bytes do not start at a multiple of [`Matrix::PACKED_ALIGN`].
    #[error("packed weights start at a multiple of {} bytes", Matrix::PACKED_ALIGN)]
    Misaligned,
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

    /// Packs rows as `source(row, values)` yields them, `cols` values each, rounded to `element`; on all threads, a row
    /// each is held at a time.
    ///
    /// # Panics
    /// If there are no values.
    pub fn round(
        threads: &Threads,
        element: ElementType,
        rows: usize,
        cols: usize,
        source: impl Fn(usize, &mut [f32]) + Sync + Send,
    ) -> Self {
        let storage = match element {
            ElementType::F32 => Storage::F32(pack_source(threads, rows, cols, source)),
            ElementType::Bf16 => Storage::Bf16(pack_source(threads, rows, cols, source)),
            ElementType::F16 => Storage::F16(pack_source(threads, rows, cols, source)),
        };
        Self::plain(storage, element)
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

    /// What the place of packed bytes in a file must be a multiple of.
    pub const PACKED_ALIGN: usize = 64;

    /// A weight in the layout of [`Matrix::packed`], read where it lies in a file.
    pub fn from_packed(
        threads: &Threads,
        format: GgmlFormat,
        rows: usize,
        cols: usize,
        bytes: MappedBytes,
    ) -> Result<Self, MatrixError> {
        let expected = Self::packed_bytes(format, rows, cols);
        if rows == 0 || cols == 0 {
            return Err(MatrixError::Empty { rows, cols });
        }
        if bytes.len() != expected {
            let got = bytes.len();
            return Err(MatrixError::Length {
                what: "weight",
                got,
                expected,
            });
        }
        if !bytes.as_ptr().addr().is_multiple_of(Self::PACKED_ALIGN) {
            return Err(MatrixError::Misaligned);
        }
        Ok(Self {
            storage: Storage::Quantized(Quantized::mapped(threads, (rows, cols), format, bytes)),
            format: Format::Ggml(format),
        })
    }

    /// Bytes of a weight of this shape in the layout of [`Matrix::packed`].
    pub fn packed_bytes(format: GgmlFormat, rows: usize, cols: usize) -> usize {
        Quantized::len(&*format.blocks(), (rows, cols))
    }

    /// Packs weights that MLX quantised, as many rows each, one below the other: `rows` in all.
    pub fn from_affine4(
        threads: &Threads,
        rows: usize,
        cols: usize,
        parts: &[Affine4<'_>],
    ) -> Result<Self, MatrixError> {
        let Some(Affine4 { group, element, .. }) = parts.first().copied() else {
            return Err(MatrixError::Empty { rows: 0, cols });
        };
        if ![32, 64, 128].contains(&group) {
            return Err(MatrixError::Group { group });
        }
        check_whole(cols, group)?;
        let part_rows = rows / parts.len();
        for part in parts {
            if part.group != group || part.element != element {
                let (first, other) = (group, part.group);
                return Err(MatrixError::Unlike { first, other });
            }
            check_bytes("weight", part.codes, (part_rows, cols / 2), 1)?;
            let numbers = (part_rows, cols / group);
            check_bytes("scales", part.scales, numbers, element.size())?;
            check_bytes("biases", part.biases, numbers, element.size())?;
        }
        let quantized = match element {
            ElementType::F32 => pack_affine::<f32>(threads, (part_rows, cols), parts),
            ElementType::Bf16 => pack_affine::<bf16>(threads, (part_rows, cols), parts),
            ElementType::F16 => pack_affine::<f16>(threads, (part_rows, cols), parts),
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
}

fn pack_slice<E: Weight>(threads: &Threads, rows: usize, cols: usize, data: &[E]) -> Dense<E> {
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

fn pack_bytes<E: Weight>(threads: &Threads, rows: usize, cols: usize, bytes: &[u8]) -> Dense<E> {
    let row_bytes = cols * size_of::<E>();
    Dense::pack(threads, (rows, cols), |row| {
        bytes[row * row_bytes..][..row_bytes]
            .chunks_exact(size_of::<E>())
            .map(E::from_le_bytes)
    })
}

fn pack_source<E: Weight>(
    threads: &Threads,
    rows: usize,
    cols: usize,
    source: impl Fn(usize, &mut [f32]) + Sync + Send,
) -> Dense<E> {
    assert!(rows > 0 && cols > 0, "a [{rows}, {cols}] weight has no values");
    Dense::pack(threads, (rows, cols), |row| {
        let mut values = vec![0.0; cols];
        source(row, &mut values);
        values.into_iter().map(E::from_f32)
    })
}

fn pack_affine<E: Element>(
    threads: &Threads,
    (part_rows, cols): (usize, usize),
    parts: &[Affine4<'_>],
) -> Quantized {
    let group = parts.first().map_or(32, |part| part.group);
    let blocks = Affine::<E>::new(group);
    let boxed: Box<dyn Blocks> = Box::new(Affine::<E>::new(group));
    let rows = part_rows * parts.len();
    Quantized::pack(threads, (rows, cols), boxed, |panel, records| {
        for row in panel * LANES..rows.min((panel + 1) * LANES) {
            let Affine4 {
                codes,
                scales,
                biases,
                ..
            } = parts[row / part_rows];
            let from = AffineRows {
                codes,
                scales,
                biases,
            };
            blocks.pack_row(&from, (row % part_rows, row % LANES), cols, records);
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
