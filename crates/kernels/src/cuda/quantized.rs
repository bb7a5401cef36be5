//! Matrices in small integers on the device: ggml's numbers in the order that gemv_quant.cu reads them.

use super::device::{Grid, arguments};
use super::error::GpuError;
use super::{Buffer, Device, Span};
use crate::GgmlFormat;

/// Inputs whose scales lie together.
const CHUNK: usize = 128;

/// A matrix `[n_out][n_in]` in one of ggml's formats.
///
/// Q8_0 takes 8.5 bits a weight. Q4_0 and Q4_K take 5: scale and minimum of each 32 weights are f16 here, where
/// Q4_K has six bits and shared factors; the product of the two is rounded to f16.
pub struct QuantMatrix {
    format: GgmlFormat,
    codes: Buffer,
    scales: Buffer,
    n_out: usize,
    n_in: usize,
}

/// How codes are kept.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Codes {
    /// Signed bytes; a scale for 32.
    Bytes,
    /// Nibbles; scale and minimum for 32.
    Nibbles,
}

impl QuantMatrix {
    /// Of its weights.
    pub fn format(&self) -> GgmlFormat {
        self.format
    }

    /// Whether there are kernels for the format and rows of `n_in` weights.
    pub fn suits(format: GgmlFormat, n_in: usize) -> bool {
        match format {
            GgmlFormat::Q8_0 | GgmlFormat::Q4_0 => n_in.is_multiple_of(CHUNK),
            GgmlFormat::Q4K => n_in.is_multiple_of(256),
            GgmlFormat::Q6K => false,
        }
    }

    /// Bytes that 32 weights take, scales included.
    pub fn bytes_of_32(format: GgmlFormat) -> usize {
        let (codes, scales) = bytes(format);
        codes + scales
    }

    /// A matrix of zeros.
    ///
    /// # Panics
    /// If the format does not [suit](Self::suits).
    pub fn zeros(
        device: &Device,
        format: GgmlFormat,
        (n_out, n_in): (usize, usize),
        what: &'static str,
    ) -> Result<Self, GpuError> {
        assert!(Self::suits(format, n_in), "{format:?} of rows of {n_in}");
        let blocks = n_out * n_in / 32;
        let (code_bytes, scale_bytes) = bytes(format);
        Ok(Self {
            format,
            codes: Buffer::zeros(device, blocks * code_bytes, what)?,
            scales: Buffer::zeros(device, blocks * scale_bytes, what)?,
            n_out,
            n_in,
        })
    }

    /// Sets rows from `first` on to ggml's blocks of whole rows ([`GgmlFormat::encode`]), and waits for it.
    pub fn set_rows(&self, device: &Device, first: usize, blocks: &[u8]) -> Result<(), GpuError> {
        let n_rows = blocks.len() / self.format.row_bytes(self.n_in);
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
        let format: i32 = match self.format {
            GgmlFormat::Q8_0 => 0,
            GgmlFormat::Q4_0 => 1,
            GgmlFormat::Q4K | GgmlFormat::Q6K => 2,
        };
        // SAFETY: parameter types as in gemv_quant.cu; rows are within the matrix, blocks as long as they are.
        unsafe {
            device.launch(
                "arrange",
                &grid,
                arguments![from, codes, scales, rows, n_in, first, n_out, format],
            )?;
        }
        device.synchronize()
    }

    /// Fills with random codes of one scale, so that numbers have about this deviation (and, of nibbles, mean zero).
    pub fn randomise(&self, device: &Device, seed: u64, deviation: f32) -> Result<(), GpuError> {
        let half = |x: f32| u32::from(half::f16::from_f32(x).to_bits());
        // Deviations of a whole number drawn from -128..=127 and from 0..=15.
        let scale = match codes(self.format) {
            Codes::Bytes => half(deviation / 73.9) * 0x1_0001,
            Codes::Nibbles => half(deviation / 4.61) | half(deviation / 4.61 * 7.5) << 16,
        };
        let grid = Grid {
            blocks: [2048, 1, 1],
            threads: 256,
            shared_bytes: 0,
        };
        let (to, n) = (self.codes.all().ptr(), self.codes.n_bytes() / 4);
        let (scales, n_scales) = (self.scales.all().ptr(), self.scales.n_bytes() / 4);
        // SAFETY: parameter types as in gemv_quant.cu; both buffers are whole words.
        unsafe {
            device.launch(
                "random_codes",
                &grid,
                arguments![to, n, scales, n_scales, scale, seed],
            )
        }
    }

    /// Size in bytes.
    pub fn n_bytes(&self) -> usize {
        self.codes.n_bytes() + self.scales.n_bytes()
    }

    pub(super) fn codes(&self) -> Codes {
        codes(self.format)
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

    /// All of it as bf16, `[n_out][n_in]`.
    pub(super) fn dequantize(&self, device: &Device, to: Span<'_>) -> Result<(), GpuError> {
        let kernel = match self.codes() {
            Codes::Bytes => "dequantize_bytes",
            Codes::Nibbles => "dequantize_nibbles",
        };
        let grid = Grid {
            blocks: [8 * device.n_multiprocessors, 1, 1],
            threads: 256,
            shared_bytes: 0,
        };
        let to = to.holding(self.n_out * self.n_in, 2);
        let (codes, scales) = (self.codes.all().ptr(), self.scales.all().ptr());
        let (n_out, n_in) = (self.n_out as i32, self.n_in as i32);
        // SAFETY: parameter types as in gemv_quant.cu; sizes checked above.
        unsafe { device.launch(kernel, &grid, arguments![codes, scales, to, n_out, n_in]) }
    }
}

/// Of 32 weights: bytes of codes and of scales.
fn bytes(format: GgmlFormat) -> (usize, usize) {
    match codes(format) {
        Codes::Bytes => (32, 2),
        Codes::Nibbles => (16, 4),
    }
}

fn codes(format: GgmlFormat) -> Codes {
    match format {
        GgmlFormat::Q8_0 => Codes::Bytes,
        GgmlFormat::Q4_0 | GgmlFormat::Q4K | GgmlFormat::Q6K => Codes::Nibbles,
    }
}
