//! Quantised matrices on the device, in the order that gemv_quant.cu reads them.

use super::device::{Grid, arguments};
use super::error::GpuError;
use super::{Buffer, Device, Span};
use crate::{ElementType, GgmlFormat};

/// Inputs whose scales lie together.
const CHUNK: usize = 128;

/// What a matrix on the device is quantised to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum QuantFormat {
    /// One of ggml's: small integers.
    Ggml(GgmlFormat),
    /// Floats of eight bits (E4M3), over a factor for each row that makes its largest number 448, the type's largest.
    Fp8,
}

impl QuantFormat {
    /// As mistral.rs spells it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ggml(format) => format.name(),
            Self::Fp8 => "FP8",
        }
    }

    /// Whether there are kernels for rows of `n_in` weights.
    pub fn suits(self, n_in: usize) -> bool {
        match self {
            Self::Ggml(GgmlFormat::Q8_0 | GgmlFormat::Q4_0) => n_in.is_multiple_of(CHUNK),
            Self::Fp8 => n_in.is_multiple_of(CHUNK) && n_in <= ROUNDED_WIDTH,
            Self::Ggml(GgmlFormat::Q4K | GgmlFormat::Q6K) => n_in.is_multiple_of(256),
        }
    }

    /// Bytes of a matrix, factors and all.
    pub fn bytes(self, n_out: usize, n_in: usize) -> usize {
        let (codes, scales) = self.codes().bytes(n_out, n_in);
        codes + scales
    }

    fn codes(self) -> Codes {
        match self {
            Self::Ggml(GgmlFormat::Q8_0) => Codes::Bytes,
            Self::Ggml(GgmlFormat::Q4_0 | GgmlFormat::Q4K) => Codes::Nibbles,
            Self::Ggml(GgmlFormat::Q6K) => Codes::Sixes,
            Self::Fp8 => Codes::Floats,
        }
    }
}

/// How codes are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Codes {
    /// Signed bytes; a scale for 32.
    Bytes,
    /// Nibbles; scale and minimum for 32.
    Nibbles,
    /// Six bits, in two parts; a scale for 16.
    Sixes,
    /// Floats of eight bits; a factor for each row.
    Floats,
}

impl Codes {
    /// Bytes that a row has of a chunk of 128 inputs, in codes and beside them.
    pub(super) fn chunk_bytes(self) -> (usize, usize) {
        match self {
            Self::Bytes => (128, 8),
            Self::Nibbles => (64, 16),
            Self::Sixes => (64, 48),
            Self::Floats => (128, 0),
        }
    }

    /// Bytes of codes, and of what lies beside them, of a matrix.
    fn bytes(self, n_out: usize, n_in: usize) -> (usize, usize) {
        let blocks = n_out * n_in / 32;
        match self {
            Self::Bytes => (blocks * 32, blocks * 2),
            Self::Nibbles => (blocks * 16, blocks * 4),
            // Two bits of each code, and scales.
            Self::Sixes => (blocks * 16, blocks * (8 + 4)),
            Self::Floats => (blocks * 32, n_out * 4),
        }
    }
}

/// A matrix `[n_out][n_in]` in one of the formats.
///
/// Q8_0 takes 8.5 bits a weight, FP8 8, Q6_K 7, Q4_0 and Q4_K 5: scales and minima are f16 here, of each 32 weights or 16,
/// where Q4_K and Q6_K have smaller ones and shared factors; the product of the two is rounded to f16.
pub struct QuantMatrix {
    format: QuantFormat,
    codes: Buffer,
    scales: Buffer,
    n_out: usize,
    n_in: usize,
}

impl QuantMatrix {
    /// Of its weights.
    pub fn format(&self) -> QuantFormat {
        self.format
    }

    /// A matrix of zeros.
    ///
    /// # Panics
    /// If the format does not [suit](QuantFormat::suits).
    pub fn zeros(
        device: &Device,
        format: QuantFormat,
        (n_out, n_in): (usize, usize),
        what: &'static str,
    ) -> Result<Self, GpuError> {
        assert!(format.suits(n_in), "{format:?} of rows of {n_in}");
        let (code_bytes, scale_bytes) = format.codes().bytes(n_out, n_in);
        Ok(Self {
            format,
            codes: Buffer::zeros(device, code_bytes, what)?,
            scales: Buffer::zeros(device, scale_bytes, what)?,
            n_out,
            n_in,
        })
    }

    /// Sets rows from `first` on to ggml's blocks of whole rows ([`GgmlFormat::encode`]), and waits for it.
    ///
    /// # Panics
    /// If the format is not ggml's, or the matrix has no such rows.
    pub fn set_rows(&self, device: &Device, first: usize, blocks: &[u8]) -> Result<(), GpuError> {
        let QuantFormat::Ggml(ggml) = self.format else {
            panic!("{:?} has no blocks", self.format);
        };
        let n_rows = blocks.len() / ggml.row_bytes(self.n_in);
        assert!(
            first + n_rows <= self.n_out,
            "rows {first}..+{n_rows} of {}",
            self.n_out
        );
        let staged = Buffer::of(device, blocks, "quantised rows on their way")?;
        let grid = Grid {
            blocks: [1024, 1, 1],
            threads: 256,
            shared_bytes: 0,
        };
        let (from, codes, scales) = (
            staged.all().ptr(),
            self.codes.all().ptr(),
            self.scales.all().ptr(),
        );
        let (rows, n_in, first, n_out) = (n_rows as i32, self.n_in as i32, first as i32, self.n_out as i32);
        let format: i32 = match ggml {
            GgmlFormat::Q8_0 => 0,
            GgmlFormat::Q4_0 => 1,
            GgmlFormat::Q4K => 2,
            GgmlFormat::Q6K => 3,
        };
        // SAFETY: parameter types as in codes.cu; rows are within the matrix, blocks as long as they are.
        unsafe {
            device.launch(
                "arrange",
                &grid,
                arguments![from, codes, scales, rows, n_in, first, n_out, format],
            )?;
        }
        device.synchronize()
    }

    /// Sets all rows to those of `from`, of sixteen bits, rounded on the device.
    ///
    /// # Panics
    /// If the format is not FP8: ggml's are encoded on the host.
    pub fn round(&self, device: &Device, element: ElementType, from: Span<'_>) -> Result<(), GpuError> {
        assert_eq!(self.format, QuantFormat::Fp8, "rounded on the device");
        let to = Rounded {
            codes: self.codes.all(),
            factors: self.scales.all(),
            n_rows: self.n_out,
            width: self.n_in,
        };
        device.round_rows(element, from, &to)
    }

    /// Fills with random codes of one scale, so that numbers have about this deviation (and, but for bytes, mean zero).
    ///
    /// # Panics
    /// If the format is FP8, whose codes are not equally far apart: round random numbers.
    pub fn randomise(&self, device: &Device, seed: u64, deviation: f32) -> Result<(), GpuError> {
        let half = |x: f32| u32::from(half::f16::from_f32(x).to_bits());
        // Deviations of a whole number drawn from -128..=127, from 0..=15 and from -32..=31. Of so many words beside the
        // codes the first few are codes, too.
        let (scale, period, n_random) = match self.codes() {
            Codes::Bytes => (half(deviation / 73.9) * 0x1_0001, 1, 0),
            Codes::Nibbles => (half(deviation / 4.61) | half(deviation / 4.61 * 7.5) << 16, 1, 0),
            Codes::Sixes => (half(deviation / 18.5) * 0x1_0001, 12, 8),
            Codes::Floats => panic!("random floats of eight bits"),
        };
        let (period, n_random): (i32, i32) = (period, n_random);
        let grid = Grid {
            blocks: [2048, 1, 1],
            threads: 256,
            shared_bytes: 0,
        };
        let (to, n) = (self.codes.all().ptr(), self.codes.n_bytes() / 4);
        let (scales, n_scales) = (self.scales.all().ptr(), self.scales.n_bytes() / 4);
        // SAFETY: parameter types as in codes.cu; both buffers are whole words.
        unsafe {
            device.launch(
                "random_codes",
                &grid,
                arguments![to, n, scales, n_scales, period, n_random, scale, seed],
            )
        }
    }

    /// Size in bytes.
    pub fn n_bytes(&self) -> usize {
        self.codes.n_bytes() + self.scales.n_bytes()
    }

    pub(super) fn codes(&self) -> Codes {
        self.format.codes()
    }

    /// Addresses of codes and scales, after a check of the shape.
    pub(super) fn holding(&self, n_out: usize, n_in: usize) -> (u64, u64) {
        assert!(
            (self.n_out, self.n_in) == (n_out, n_in),
            "a matrix [{}][{}] as [{n_out}][{n_in}]",
            self.n_out,
            self.n_in
        );
        (self.codes.all().ptr(), self.scales.all().ptr())
    }

    /// All of it as numbers of sixteen bits, `[n_out][n_in]`.
    pub(super) fn dequantize(
        &self,
        device: &Device,
        element: ElementType,
        to: Span<'_>,
    ) -> Result<(), GpuError> {
        let kernel = match self.codes() {
            Codes::Bytes => "dequantize_bytes",
            Codes::Nibbles => "dequantize_nibbles",
            Codes::Sixes => "dequantize_sixes",
            Codes::Floats => "dequantize_floats",
        };
        let grid = Grid {
            blocks: [8 * device.n_multiprocessors, 1, 1],
            threads: 256,
            shared_bytes: 0,
        };
        let to = to.holding(self.n_out * self.n_in, 2);
        let (codes, scales) = (self.codes.all().ptr(), self.scales.all().ptr());
        let (n_out, n_in) = (self.n_out as i32, self.n_in as i32);
        // SAFETY: parameter types as in quantized.cu; sizes checked above.
        unsafe { device.launch_for(element, kernel, &grid, arguments![codes, scales, to, n_out, n_in]) }
    }
}

/// Rows of floats of eight bits, `[n_rows][width]`, and a factor of each, f32. Within a row they are in the order that
/// matrices have them: the same for every matrix, so that products of two such rows need not know it.
#[derive(Clone, Copy)]
pub(super) struct Rounded<'a> {
    pub(super) codes: Span<'a>,
    pub(super) factors: Span<'a>,
    pub(super) n_rows: usize,
    pub(super) width: usize,
}

/// Widest row that is rounded: what the threads of a block keep.
pub(super) const ROUNDED_WIDTH: usize = 3 * 16 * ROUNDING_THREADS;
const ROUNDING_THREADS: usize = 512;

impl Rounded<'_> {
    /// A block for each of the first `n_rows` rows, and the addresses.
    fn launch(&self, n_rows: usize) -> (Grid, u64, u64) {
        assert!(
            n_rows <= self.n_rows && self.width.is_multiple_of(32) && self.width <= ROUNDED_WIDTH,
            "{n_rows} rows of {}",
            self.width
        );
        let grid = Grid {
            blocks: [n_rows, 1, 1],
            threads: (self.width / 16).next_multiple_of(32).min(ROUNDING_THREADS),
            shared_bytes: 0,
        };
        let codes = self.codes.holding(self.n_rows * self.width, 1);
        (grid, codes, self.factors.holding(self.n_rows, 4))
    }
}

impl Device {
    /// Rows of sixteen bits, `[n_rows][width]`, rounded.
    pub(super) fn round_rows(
        &self,
        element: ElementType,
        from: Span<'_>,
        to: &Rounded<'_>,
    ) -> Result<(), GpuError> {
        let (grid, codes, factors) = to.launch(to.n_rows);
        let (from, width) = (from.holding(to.n_rows * to.width, 2), to.width as i32);
        // SAFETY: parameter types as in quantized.cu; sizes checked above.
        unsafe {
            self.launch_for(
                element,
                "round_rows",
                &grid,
                arguments![from, codes, factors, width],
            )
        }
    }

    /// The first `n_rows` rows of `x`, f32, after their norm ([`Device::rms_norm`]), rounded.
    pub(super) fn rms_norm_rounded(
        &self,
        element: ElementType,
        x: Span<'_>,
        weight: Span<'_>,
        to: &Rounded<'_>,
        n_rows: usize,
        eps: f32,
    ) -> Result<(), GpuError> {
        let (grid, codes, factors) = to.launch(n_rows);
        let (x, weight) = (x.holding(n_rows * to.width, 4), weight.holding(to.width, 2));
        let width = to.width as i32;
        // SAFETY: parameter types as in quantized.cu; sizes checked above.
        unsafe {
            self.launch_for(
                element,
                "rms_norm_rounded",
                &grid,
                arguments![x, weight, codes, factors, width, eps],
            )
        }
    }

    /// Rows of gates and ups after SwiGLU ([`Device::swiglu`]), rounded.
    pub(super) fn swiglu_rounded(
        &self,
        element: ElementType,
        gate_up: Span<'_>,
        to: &Rounded<'_>,
    ) -> Result<(), GpuError> {
        let (grid, codes, factors) = to.launch(to.n_rows);
        let (gate_up, width) = (gate_up.holding(to.n_rows * 2 * to.width, 2), to.width as i32);
        // SAFETY: parameter types as in quantized.cu; sizes checked above.
        unsafe {
            self.launch_for(
                element,
                "swiglu_rounded",
                &grid,
                arguments![gate_up, codes, factors, width],
            )
        }
    }
}
