//! ggml's formats by name, and how a file holds them.

use super::blocks::{GgmlBlocks, Q4_0, Q4K, Q6K, Q8_0};
use super::encode;
use crate::level::Kernel;
use crate::simd::Simd;
use crate::threads::{Shared, Threads};

/// A block format of ggml, as GGUF files hold it. See [`Matrix::quantize`](crate::Matrix::quantize).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(non_camel_case_types, reason = "the formats' own names")]
pub enum GgmlFormat {
    /// Blocks of 32: signed bytes and a scale, 8.5 bits a weight.
    Q8_0,
    /// Blocks of 32: nibbles and a scale, 4.5 bits a weight.
    Q4_0,
    /// Blocks of 256 in 8 parts: nibbles, scales and minima, 4.5 bits a weight (4.625 once packed).
    Q4K,
    /// Blocks of 256 in 16 parts: six-bit codes and scales, 6.5625 bits a weight.
    Q6K,
}

impl GgmlFormat {
    /// All of them.
    pub const ALL: [GgmlFormat; 4] = [
        GgmlFormat::Q8_0,
        GgmlFormat::Q4_0,
        GgmlFormat::Q4K,
        GgmlFormat::Q6K,
    ];

    /// As mistral.rs spells it.
    pub fn name(self) -> &'static str {
        match self {
            GgmlFormat::Q8_0 => "Q8_0",
            GgmlFormat::Q4_0 => "Q4_0",
            GgmlFormat::Q4K => "Q4K",
            GgmlFormat::Q6K => "Q6K",
        }
    }

    /// The format of this [`GgmlFormat::name`].
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|format| format.name() == name)
    }

    /// Columns of a block.
    pub fn block_cols(self) -> usize {
        self.blocks().cols()
    }

    /// Bytes of a block in a file.
    pub fn block_bytes(self) -> usize {
        self.blocks().block_bytes()
    }

    /// Bytes of a row of `cols` columns in a file, the last block filled up with zeros.
    pub fn row_bytes(self, cols: usize) -> usize {
        cols.div_ceil(self.block_cols()) * self.block_bytes()
    }

    /// Quantises rows of `cols` columns to blocks, as a file has them; `out` is [`GgmlFormat::row_bytes`] a row.
    ///
    /// Q8_0 and Q4_0 round as ggml's reference does, to the bit. Q4_K and Q6_K search the scales that leave the least
    /// weighted squared error, as ggml does, but on their own grid. A block with a number that is not finite becomes
    /// NaN.
    ///
    /// # Panics
    /// If `x` is not whole rows, or `out` of another length than they need.
    pub fn encode(self, threads: &Threads, cols: usize, x: &[f32], out: &mut [u8]) {
        let row_bytes = self.row_bytes(cols);
        let is_whole = cols > 0 && x.len().is_multiple_of(cols) && out.len() == x.len() / cols * row_bytes;
        assert!(
            is_whole,
            "x of {} values in rows of {cols}, out of {} bytes",
            x.len(),
            out.len()
        );
        let shared = Shared::new(out);
        threads.for_each(x.len() / cols, |row| {
            // SAFETY: each row is a part of its own of `out`.
            let out = unsafe { std::slice::from_raw_parts_mut(shared.ptr().add(row * row_bytes), row_bytes) };
            self.encode_row(threads, &x[row * cols..][..cols], out);
        });
    }

    /// One row, on the calling thread.
    pub(crate) fn encode_row(self, threads: &Threads, x: &[f32], out: &mut [u8]) {
        threads.run(EncodeRow { format: self, x, out });
    }

    pub(crate) fn blocks(self) -> Box<dyn GgmlBlocks> {
        match self {
            GgmlFormat::Q8_0 => Box::new(Q8_0),
            GgmlFormat::Q4_0 => Box::new(Q4_0),
            GgmlFormat::Q4K => Box::new(Q4K),
            GgmlFormat::Q6K => Box::new(Q6K),
        }
    }
}

struct EncodeRow<'a> {
    format: GgmlFormat,
    x: &'a [f32],
    out: &'a mut [u8],
}

impl Kernel for EncodeRow<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        match self.format {
            GgmlFormat::Q8_0 => each_block(self.x, self.out, encode::q8_0),
            GgmlFormat::Q4_0 => each_block(self.x, self.out, encode::q4_0),
            GgmlFormat::Q4K => each_block(self.x, self.out, encode::q4_k),
            GgmlFormat::Q6K => each_block(self.x, self.out, encode::q6_k),
        }
    }
}

/// Encodes blocks of `N` columns in `B` bytes, the last filled up with zeros.
#[inline(always)]
fn each_block<const N: usize, const B: usize>(
    x: &[f32],
    out: &mut [u8],
    encode: impl Fn(&[f32; N]) -> [u8; B],
) {
    for (x, out) in x.chunks(N).zip(out.chunks_exact_mut(B)) {
        let mut block = [0.0; N];
        block[..x.len()].copy_from_slice(x);
        out.copy_from_slice(&encode(&block));
    }
}
