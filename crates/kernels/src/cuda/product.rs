//! Products with weight matrices: own kernels for few rows of sixteen bits ([`super::few`]) and for some tens ([`super::narrow`]),
//! cuBLASLt ([`super::blas`]) for all else.

use super::blas::{Numbers, Shape};
use super::error::GpuError;
use super::narrow::{Becomes, Narrow, Numbers as Multiplied};
use super::quantized::Rounded;
use super::{Device, Few, FewRows, QuantFormat, QuantMatrix, Span};
use crate::ElementType;

/// Rows up to which a quantised matrix is read anew for every few rows: to write it out and read that takes longer.
const FEW_READINGS_ROWS: usize = 64;

/// The same where kernels for some tens of rows read it.
const NARROW_READINGS_ROWS: usize = 384;

/// What becomes of a product.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Output {
    /// Stored in the weights' type. Of many rows, what is beyond f16 is infinite, which readers take for its largest number.
    Store,
    /// Stored as f32.
    StoreF32,
    /// Added to what is there, f32.
    AddF32,
}

/// The matrix of a product.
#[derive(Clone, Copy)]
pub enum Weights<'a> {
    /// Numbers of the product's type.
    Plain(Span<'a>),
    /// Quantised; for activations of sixteen bits.
    Quantized {
        /// The matrix.
        matrix: &'a QuantMatrix,
        /// Where many rows are multiplied, room for the matrix in their type, or for [`Weights::rounded_bytes`].
        scratch: Span<'a>,
    },
}

/// `y[row] = matrix · x[row]` for rows of activations.
#[derive(Clone, Copy)]
pub struct Product<'a> {
    /// Type of matrix and activations.
    pub element: ElementType,
    /// `[n_out][n_in]`, or gates and ups, `[2 · n_out][n_in]`, for [`Device::multiply_swiglu`].
    pub matrix: Weights<'a>,
    /// Width of the result.
    pub n_out: usize,
    /// Width of the activations.
    pub n_in: usize,
}

impl Weights<'_> {
    /// Bytes of `n_rows` rows of activations as an FP8 matrix is multiplied with.
    pub fn rounded_bytes(n_rows: usize, n_in: usize) -> usize {
        n_rows * (n_in + 4)
    }
}

impl<'a> Product<'a> {
    /// Products of as many rows as a kernel does, or fewer.
    fn slices(
        self,
        n_rows: usize,
        x: Span<'a>,
        y: Span<'a>,
        output: Output,
    ) -> impl Iterator<Item = FewRows<'a>> {
        let at_once = self.few_rows();
        (0..n_rows).step_by(at_once.max(1)).map(move |first| FewRows {
            product: self,
            n_rows: at_once.min(n_rows - first),
            x: Few::Plain(x.after(first * self.n_in * 2)),
            y: y.after(first * self.n_out * output.size(self.element)),
        })
    }
}

/// Activations of a product with any number of rows, `[n_rows][n_in]`.
#[derive(Clone, Copy)]
pub enum Rows<'a> {
    /// In the product's type.
    Plain(Span<'a>),
    /// In eight bits, where that product has them: what [`Device::rms_norm_for`] and [`Device::multiply_swiglu`] made.
    Rounded,
}

impl Device {
    /// `y[row] = matrix · x[row]`; `y`: `[n_rows][n_out]`.
    ///
    /// # Panics
    /// If `x` is rounded and this product takes it plain.
    pub fn multiply(
        &self,
        p: &Product<'_>,
        x: Rows<'_>,
        y: Span<'_>,
        n_rows: usize,
        output: Output,
    ) -> Result<(), GpuError> {
        if let Some((matrix, rounded)) = self.rounded(p, n_rows) {
            if let Rows::Plain(x) = x {
                self.round_rows(p.element, x, &rounded)?;
            }
            return self.multiply_rounded(p, matrix, &rounded, y, output);
        }
        let Rows::Plain(x) = x else {
            panic!("a product of {n_rows} rows takes them as they are");
        };
        if let Some(matrix) = self.narrow_matrix(p, n_rows, Becomes::Plain(output)) {
            return self.multiply_in_tiles(p, matrix, x, y, n_rows, Becomes::Plain(output));
        }
        match p.matrix {
            Weights::Plain(_) if n_rows <= p.few_rows() => p
                .slices(n_rows, x, y, output)
                .try_for_each(|few| self.multiply_few(&few, output)),
            Weights::Plain(matrix) => self.multiply_many(p, matrix, x, y, n_rows, output),
            // Of f32 results there are many (the head's): no room for such a matrix.
            Weights::Quantized { .. } if n_rows <= FEW_READINGS_ROWS || output == Output::StoreF32 => p
                .slices(n_rows, x, y, output)
                .try_for_each(|few| self.multiply_few(&few, output)),
            Weights::Quantized { matrix, scratch } => {
                matrix.dequantize(self, p.element, scratch)?;
                self.multiply_many(p, scratch, x, y, n_rows, output)
            }
        }
    }

    /// The norm of rows of `x` ([`Device::rms_norm`]) as the product `next` with `padded_rows` rows takes them; `y`: room for
    /// them in its type.
    pub fn rms_norm_for<'a>(
        &self,
        (next, padded_rows): (&Product<'_>, usize),
        x: Span<'_>,
        weight: Span<'_>,
        y: Span<'a>,
        n_rows: usize,
        eps: f32,
    ) -> Result<Rows<'a>, GpuError> {
        if let Some((_, rounded)) = self.rounded(next, padded_rows) {
            self.rms_norm_rounded(next.element, x, weight, &rounded, n_rows, eps)?;
            return Ok(Rows::Rounded);
        }
        self.rms_norm(next.element, x, weight, y, None, None, (n_rows, next.n_in), eps)?;
        Ok(Rows::Plain(y))
    }

    /// Where a product has its activations in eight bits, if it does: with FP8 matrices, more rows than a block's warps share, in
    /// multiples of sixteen as cuBLASLt takes them, on Hopper alone.
    fn rounded<'a>(&self, p: &Product<'a>, n_rows: usize) -> Option<(&'a QuantMatrix, Rounded<'a>)> {
        let Weights::Quantized { matrix, scratch } = p.matrix else {
            return None;
        };
        let is_whole =
            p.n_out.is_multiple_of(16) && n_rows.is_multiple_of(16) && n_rows > self.best_few_rows(p);
        let does = matrix.format() == QuantFormat::Fp8 && self.has_wgmma() && is_whole;
        does.then(|| {
            let rounded = Rounded {
                codes: scratch,
                factors: scratch.after(n_rows * p.n_in),
                n_rows,
                width: p.n_in,
            };
            (matrix, rounded)
        })
    }

    /// The matrix as own kernels for some tens of rows take it, if they do this product: more rows than those for few multiply.
    fn narrow_matrix(&self, p: &Product<'_>, n_rows: usize, becomes: Becomes) -> Option<NarrowMatrix> {
        if n_rows <= self.best_few_rows(p) {
            return None;
        }
        let n_out = becomes.sizes(p.element).0 * p.n_out;
        match p.matrix {
            Weights::Plain(matrix) => {
                let does = p.element.is_sixteen_bits() && self.suits_narrow(n_rows, p.n_in * 2);
                does.then(|| NarrowMatrix {
                    address: matrix.holding(n_out * p.n_in, 2),
                    numbers: Multiplied::Halves,
                    at_once: n_rows,
                })
            }
            Weights::Quantized { matrix, .. } => {
                let at_once = self.narrow_codes_rows(matrix.codes(), p.n_out)?;
                // Of the head's results there are too many for what else there is for more rows.
                let is_head = becomes == Becomes::Plain(Output::StoreF32);
                (n_rows <= NARROW_READINGS_ROWS || is_head).then(|| {
                    let (address, beside) = matrix.holding(n_out, p.n_in);
                    NarrowMatrix {
                        address,
                        numbers: Multiplied::Codes(matrix.codes(), beside),
                        at_once,
                    }
                })
            }
        }
    }

    /// By own kernels for some tens of rows; `y`: `[n_rows][n_out]`.
    fn multiply_in_tiles(
        &self,
        p: &Product<'_>,
        matrix: NarrowMatrix,
        x: Span<'_>,
        y: Span<'_>,
        n_rows: usize,
        becomes: Becomes,
    ) -> Result<(), GpuError> {
        let (_, result_bytes) = becomes.sizes(p.element);
        (0..n_rows).step_by(matrix.at_once).try_for_each(|first| {
            let n_rows = matrix.at_once.min(n_rows - first);
            let (x, y) = (
                x.after(first * p.n_in * 2),
                y.after(first * p.n_out * result_bytes),
            );
            let operands = [
                matrix.address,
                x.holding(n_rows * p.n_in, 2),
                y.holding(n_rows * p.n_out, result_bytes),
            ];
            let narrow = Narrow::of(p, n_rows, becomes, operands, matrix.numbers);
            // SAFETY: sizes were checked above and in `narrow_matrix`; the matrix is of weights.
            unsafe { self.multiply_narrow(&narrow) }
        })
    }

    /// By cuBLASLt, in the weights' type.
    fn multiply_many(
        &self,
        p: &Product<'_>,
        matrix: Span<'_>,
        x: Span<'_>,
        y: Span<'_>,
        n_rows: usize,
        output: Output,
    ) -> Result<(), GpuError> {
        let matrix = matrix.holding(p.n_out * p.n_in, p.element.size());
        let x = x.holding(n_rows * p.n_in, p.element.size());
        let y = y.holding(n_rows * p.n_out, output.size(p.element));
        let shape = Shape::of(p, n_rows, Numbers::Plain(p.element), output);
        // SAFETY: sizes were checked above.
        unsafe { self.multiply_by_blas(shape, [matrix, x, y], None) }
    }

    /// Eight bits on both sides.
    fn multiply_rounded(
        &self,
        p: &Product<'_>,
        matrix: &QuantMatrix,
        x: &Rounded<'_>,
        y: Span<'_>,
        output: Output,
    ) -> Result<(), GpuError> {
        let y = y.holding(x.n_rows * p.n_out, output.size(p.element));
        let (codes, matrix_factors) = matrix.holding(p.n_out, p.n_in);
        let (x_codes, x_factors) = (
            x.codes.holding(x.n_rows * p.n_in, 1),
            x.factors.holding(x.n_rows, 4),
        );
        if self.suits_narrow(x.n_rows, p.n_in) {
            let operands = [codes, x_codes, y];
            let numbers = Multiplied::Eighths([matrix_factors, x_factors]);
            let narrow = Narrow::of(p, x.n_rows, Becomes::Plain(output), operands, numbers);
            // SAFETY: sizes were checked above; the matrix is of weights.
            return unsafe { self.multiply_narrow(&narrow) };
        }
        let shape = Shape::of(p, x.n_rows, Numbers::Fp8(p.element), output);
        // SAFETY: sizes were checked above; an FP8 matrix has a factor for each row.
        unsafe { self.multiply_by_blas(shape, [codes, x_codes, y], Some([matrix_factors, x_factors])) }
    }

    /// silu(gates · `x[row]`) · (ups · `x[row]`), `[n_rows][n_out]`, as the product `next` takes it; `act`: room for it in
    /// the product's type, `scratch` for twice that.
    pub fn multiply_swiglu<'a>(
        &self,
        p: &Product<'_>,
        x: Rows<'_>,
        scratch: Span<'_>,
        act: Span<'a>,
        (next, n_rows): (&Product<'_>, usize),
    ) -> Result<Rows<'a>, GpuError> {
        let both = Product {
            n_out: 2 * p.n_out,
            ..*p
        };
        if let Rows::Plain(x) = x
            && let Some(matrix) = self.narrow_matrix(p, n_rows, Becomes::SwiGlu)
            && self.rounded(next, n_rows).is_none()
        {
            self.multiply_in_tiles(p, matrix, x, act, n_rows, Becomes::SwiGlu)?;
            return Ok(Rows::Plain(act));
        }
        let few = match p.matrix {
            Weights::Plain(_) => p.few_rows(),
            Weights::Quantized { .. } => FEW_READINGS_ROWS,
        };
        if let Rows::Plain(x) = x
            && n_rows <= few
            && self.rounded(&both, n_rows).is_none()
        {
            p.slices(n_rows, x, act, Output::Store)
                .try_for_each(|few| self.swiglu_few(&few))?;
            return Ok(Rows::Plain(act));
        }
        self.multiply(&both, x, scratch, n_rows, Output::Store)?;
        if let Some((_, rounded)) = self.rounded(next, n_rows) {
            self.swiglu_rounded(next.element, scratch, &rounded)?;
            return Ok(Rows::Rounded);
        }
        self.swiglu(p.element, scratch, act, n_rows, p.n_out)?;
        Ok(Rows::Plain(act))
    }
}

/// A matrix as own kernels for some tens of rows take it.
struct NarrowMatrix {
    address: u64,
    numbers: Multiplied,
    /// Rows of activations that share a reading of it.
    at_once: usize,
}

impl Becomes {
    /// Matrices that are multiplied with, and bytes of a result.
    fn sizes(self, element: ElementType) -> (usize, usize) {
        match self {
            Self::Plain(output) => (1, output.size(element)),
            Self::SwiGlu => (2, 2),
        }
    }
}

impl Output {
    pub(super) fn size(self, element: ElementType) -> usize {
        match self {
            Output::Store => element.size(),
            Output::StoreF32 | Output::AddF32 => 4,
        }
    }
}
