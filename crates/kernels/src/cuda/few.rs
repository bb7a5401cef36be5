//! Products with few rows of activations, bf16 or f16, where the matrix's way out of memory is all that counts.
//!
//! The norms between these products have no kernel of their own: see [`PendingNorm`].

use super::device::{Grid, arguments};
use super::error::GpuError;
use super::quantized::Codes;
use super::{Device, Output, Product, Span, Weights};
use crate::ElementType;

/// Rows up to which the kernels of gemv.cu are used: above, what activations take from the way between caches and
/// multiprocessors is more than cuBLASLt's larger tiles lose.
const FEW_ROWS: usize = 16;
/// The same of nibbles, where kernels for some tens of rows ([`super::narrow`]) take codes apart with less work.
const FEW_ROWS_OF_NIBBLES: usize = 8;
/// Outputs a block makes at a time.
const TILE_ROWS: usize = 48;

/// A norm whose division is left to the product that reads it.
///
/// `x / rms(x) · weight` is `(x · weight) / rms(x)`, and a product can be divided as well as its factor. So whoever
/// makes the residual stream writes `x · weight` too, and its sums of squares. That is for bf16 alone: the residual
/// stream is f32, and what it may be times the weight is beyond f16, which ends at 65504.
#[derive(Clone, Copy)]
pub struct PendingNorm<'a> {
    /// `x · weight`, `[rows][width]`, in bf16.
    pub scaled: Span<'a>,
    /// f32, `[rows]` times [`Device::norm_parts`].
    pub squares: Span<'a>,
    /// Added to the mean of squares.
    pub eps: f32,
}

/// A product with few rows of activations.
#[derive(Clone, Copy)]
pub struct FewRows<'a> {
    /// The matrix.
    pub product: Product<'a>,
    /// Rows of activations.
    pub n_rows: usize,
    /// What is multiplied, `[n_rows][n_in]`.
    pub x: Few<'a>,
    /// The result, `[n_rows][n_out]`.
    pub y: Span<'a>,
}

/// Activations of a product with few rows.
#[derive(Clone, Copy)]
pub enum Few<'a> {
    /// As they are.
    Plain(Span<'a>),
    /// After this norm.
    Normed(PendingNorm<'a>),
}

/// Mirrors `Gemv` in gemv.cuh.
#[repr(C)]
struct Raw {
    matrix: u64,
    scales: u64,
    x: u64,
    y: u64,
    n_out: i32,
    n_in: i32,
    n_rows: i32,
    squares: u64,
    n_squares: i32,
    eps: f32,
    norm_weight: u64,
    scaled: u64,
    sums: u64,
}

/// Kernels of one format and size.
struct Kernels {
    most_rows: usize,
    warps: usize,
    stages: usize,
    /// Inputs of a chunk, and bytes that a row of the matrix has of it: codes and scales.
    chunk: usize,
    row_bytes: usize,
    /// Names by what becomes of the product.
    store: &'static str,
    store_f32: &'static str,
    add: &'static str,
    swiglu: &'static str,
}

macro_rules! kernels {
    ($prefix:literal, $chunk:literal inputs in $row_bytes:literal bytes,
     $($rows:literal: $warps:literal warps, $stages:literal stages;)+) => {
        [$(Kernels {
            most_rows: $rows,
            warps: $warps,
            stages: $stages,
            chunk: $chunk,
            row_bytes: $row_bytes,
            store: concat!($prefix, "store_", $rows),
            store_f32: concat!($prefix, "store_f32_", $rows),
            add: concat!($prefix, "add_", $rows),
            swiglu: concat!($prefix, "swiglu_", $rows),
        }),+]
    };
}

/// As instantiated in gemv.cu.
const PLAIN: [Kernels; 2] = kernels! {
    "gemv_", 64 inputs in 128 bytes,
    8: 8 warps, 3 stages;
    16: 8 warps, 3 stages;
};
/// As instantiated in gemv_quant.cu.
const BYTES: [Kernels; 3] = kernels! {
    "gemv_bytes_", 128 inputs in 136 bytes,
    8: 10 warps, 2 stages;
    16: 8 warps, 2 stages;
    32: 4 warps, 3 stages;
};
/// Likewise.
const NIBBLES: [Kernels; 2] = kernels! {
    "gemv_nibbles_", 128 inputs in 80 bytes,
    8: 8 warps, 3 stages;
    16: 8 warps, 3 stages;
};

/// Likewise.
const SIXES: [Kernels; 2] = kernels! {
    "gemv_sixes_", 128 inputs in 112 bytes,
    8: 8 warps, 3 stages;
    16: 8 warps, 2 stages;
};
/// Likewise.
const FLOATS: [Kernels; 3] = kernels! {
    "gemv_floats_", 128 inputs in 128 bytes,
    8: 8 warps, 3 stages;
    16: 8 warps, 2 stages;
    32: 4 warps, 3 stages;
};

impl Kernels {
    /// Those for a matrix, by the most rows they take.
    fn all(matrix: &Weights<'_>) -> &'static [Self] {
        match matrix {
            Weights::Plain(_) => &PLAIN,
            Weights::Quantized { matrix, .. } => match matrix.codes() {
                Codes::Bytes => &BYTES,
                Codes::Nibbles => &NIBBLES,
                Codes::Sixes => &SIXES,
                Codes::Floats => &FLOATS,
            },
        }
    }

    fn of(p: &FewRows<'_>) -> &'static Self {
        let kernels = Self::all(&p.product.matrix);
        let found = kernels.iter().find(|kernels| kernels.most_rows >= p.n_rows);
        found.unwrap_or(&kernels[kernels.len() - 1])
    }

    /// Of a block: warps' stages of matrix rows and activations, then their partial sums.
    fn shared_bytes(&self) -> u32 {
        let stages = self.stages * (TILE_ROWS * self.row_bytes + self.most_rows * self.chunk * 2);
        let sums = self.most_rows * (TILE_ROWS + 4) * 4;
        (self.warps * (stages + sums)) as u32
    }
}

impl Product<'_> {
    /// Rows that one of these kernels multiplies at most.
    pub(super) fn few_rows(&self) -> usize {
        let most = Kernels::all(&self.matrix)
            .last()
            .map_or(0, |kernels| kernels.most_rows);
        if self.has_few() { most } else { 0 }
    }

    fn has_few(&self) -> bool {
        self.element.is_sixteen_bits() && self.n_in.is_multiple_of(8)
    }
}

impl Device {
    /// Whether [`Device::multiply_few`] and its like do this product for so many rows, [norms](PendingNorm) included.
    pub fn suits_few(&self, p: &Product<'_>, n_rows: usize) -> bool {
        p.has_few() && p.element == ElementType::Bf16 && n_rows <= self.best_few_rows(p)
    }

    /// Rows up to which these kernels are the fastest.
    pub(super) fn best_few_rows(&self, p: &Product<'_>) -> usize {
        match p.matrix {
            Weights::Quantized { matrix, .. }
                if matrix.codes() == Codes::Nibbles
                    && self.narrow_codes_rows(Codes::Nibbles, p.n_out).is_some() =>
            {
                FEW_ROWS_OF_NIBBLES
            }
            _ => FEW_ROWS,
        }
    }

    /// Parts that sums of squares come in, see [`PendingNorm`].
    pub fn norm_parts(&self) -> usize {
        self.n_multiprocessors
    }

    /// `y[row] = matrix · x[row]`.
    pub fn multiply_few(&self, p: &FewRows<'_>, output: Output) -> Result<(), GpuError> {
        let kernels = Kernels::of(p);
        let kernel = match output {
            Output::Store => kernels.store,
            Output::StoreF32 => kernels.store_f32,
            Output::AddF32 => kernels.add,
        };
        self.few(kernel, kernels, p, 1, output, None)
    }

    /// `y[row] += matrix · x[row]`, f32, and of the sum what the norm of this weight needs.
    pub fn add_few(
        &self,
        p: &FewRows<'_>,
        next_weight: Span<'_>,
        next: &PendingNorm<'_>,
    ) -> Result<(), GpuError> {
        let kernels = Kernels::of(p);
        self.few(
            kernels.add,
            kernels,
            p,
            1,
            Output::AddF32,
            Some((next_weight, next)),
        )
    }

    /// `y[row]` = silu(gates · `x[row]`) · (ups · `x[row]`).
    pub fn swiglu_few(&self, p: &FewRows<'_>) -> Result<(), GpuError> {
        let kernels = Kernels::of(p);
        self.few(kernels.swiglu, kernels, p, 2, Output::Store, None)
    }

    fn few(
        &self,
        kernel: &'static str,
        kernels: &Kernels,
        p: &FewRows<'_>,
        n_matrices: usize,
        output: Output,
        next: Option<(Span<'_>, &PendingNorm<'_>)>,
    ) -> Result<(), GpuError> {
        let (n_out, n_in, n_rows) = (p.product.n_out, p.product.n_in, p.n_rows);
        assert!(n_rows <= p.product.few_rows(), "{n_rows} rows of {n_in} inputs");
        let has_norm = next.is_some() || matches!(p.x, Few::Normed(_));
        assert!(
            !has_norm || p.product.element == ElementType::Bf16,
            "a norm pending in {:?}",
            p.product.element
        );
        let parts = self.norm_parts();
        let (x, squares, eps) = match p.x {
            Few::Plain(x) => (x, 0, 0.0),
            Few::Normed(norm) => (norm.scaled, norm.squares.holding(n_rows * parts, 4), norm.eps),
        };
        let (norm_weight, scaled, sums) = match next {
            None => (0, 0, 0),
            Some((weight, next)) => (
                weight.holding(n_out, 2),
                next.scaled.holding(n_rows * n_out, 2),
                next.squares.holding(n_rows * parts, 4),
            ),
        };
        let (matrix, scales) = match p.product.matrix {
            Weights::Plain(matrix) => (matrix.holding(n_matrices * n_out * n_in, 2), 0),
            Weights::Quantized { matrix, .. } => matrix.holding(n_matrices * n_out, n_in),
        };
        let raw = Raw {
            matrix,
            scales,
            x: x.holding(n_rows * n_in, 2),
            y: p.y.holding(n_rows * n_out, output.size(p.product.element)),
            n_out: n_out as i32,
            n_in: n_in as i32,
            n_rows: n_rows as i32,
            squares,
            n_squares: parts as i32,
            eps,
            norm_weight,
            scaled,
            sums,
        };
        let grid = Grid {
            blocks: [parts, 1, 1],
            threads: kernels.warps * 32,
            shared_bytes: kernels.shared_bytes(),
        };
        // SAFETY: the parameter is as in gemv.cuh; sizes checked above.
        unsafe { self.launch_for(p.product.element, kernel, &grid, arguments![raw]) }
    }
}
