//! The formats: how blocks lie in a file, in a packed record, and what a kernel reads.
//!
//! | format | block | a weight is | bits, file | bits, packed |
//! |---|---|---|---|---|
//! | Q8_0 | 32 | `d · q`, q from -128 to 127 | 8.5 | 8.5 |
//! | Q4_0 | 32 | `d · (q - 8)`, q from 0 to 15 | 4.5 | 4.5 |
//! | Q4_K | 8 × 32 | `d · s · q - dmin · m`, q from 0 to 15, s and m from 0 to 63 | 4.5 | 4.625 |
//! | Q6_K | 16 × 16 | `d · s · (q - 32)`, q from 0 to 63, s from -128 to 127 | 6.5625 | 6.5625 |
//! | affine | 32, 64, 128 | `s · q + b`, q from 0 to 15 | 4 + 32/block | the same |
//!
//! The first four are ggml's, d and dmin in f16; the last is MLX's, s and b in bf16 or f16.

mod affine;
mod q4_0;
mod q4_k;
mod q6_k;
mod q8_0;

use std::fmt::Debug;

use crate::buffer::Buffer;
use crate::level::{Cpu, Kernel};
use crate::simd::{LANES, Simd};

pub(crate) use self::affine::{Affine, AffineRows};
pub(crate) use self::q4_0::Q4_0;
pub(crate) use self::q4_k::Q4K;
pub(crate) use self::q6_k::Q6K;
pub(crate) use self::q8_0::Q8_0;

use super::X_BLOCK;
use super::stream::{Stream, StreamOf};

/// What the kernel does with a block's codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Codes from 0 to 15, `scale · code + min`, 32 columns.
    Nibbles,
    /// Codes from 0 to 15, `scale · (code - 8)`, 32 columns.
    Centred,
    /// Signed bytes, `scale · code`, 32 columns.
    Bytes32,
    /// Signed bytes, `scale · code`, 16 columns.
    Bytes16,
}

impl Kind {
    /// Columns that share a scale.
    pub(super) fn block(self) -> usize {
        match self {
            Kind::Nibbles | Kind::Centred | Kind::Bytes32 => 32,
            Kind::Bytes16 => 16,
        }
    }
}

/// A format of records: columns of sixteen rows, packed. Blocks are counted from the start of a record.
pub(crate) trait Record: Debug + Send + Sync {
    /// What becomes of a block's codes.
    const KIND: Kind;
    /// Whether codes lie in the record as bytes already, at its start.
    const CODES_IN_PLACE: bool = false;
    /// What the blocks of a record share, in registers.
    type Head<S: Simd>: Copy;

    /// Columns of a record, a multiple of 32.
    fn cols(&self) -> usize;
    /// Bytes of a record.
    fn record_bytes(&self) -> usize;
    /// # Safety
    /// `record` is valid for reading a record.
    unsafe fn head<S: Simd>(&self, s: S, record: *const u8) -> Self::Head<S>;
    /// A block's scale and, for nibbles, its minimum.
    ///
    /// # Safety
    /// `record` is valid for reading a record, and `block` one of it.
    unsafe fn scale<S: Simd>(
        &self,
        s: S,
        record: *const u8,
        head: Self::Head<S>,
        block: usize,
    ) -> (S::V, S::V);
    /// A block's sums of products with `M` rows of `x`, `[group of 4 columns][M][4]`, whose sums are `x_sums`.
    ///
    /// # Safety
    /// As for [`Record::scale`]; `x` and `x_sums` are valid for reading so many values.
    unsafe fn dot<S: Simd, const M: usize>(
        &self,
        s: S,
        record: *const u8,
        block: usize,
        x: *const i8,
        x_sums: *const i32,
    ) -> [S::I; M];
    /// Spreads the codes of 32 columns over bytes, unless they are in place: `[group of 4 columns][16][4]`.
    fn spread(&self, record: &[u8], columns: usize, to: &mut [u8]);
}

/// A [`Record`] whose type is known at run time.
pub(crate) trait Blocks: Debug + Send + Sync {
    fn kind(&self) -> Kind;
    /// Columns of a record, a multiple of 32.
    fn cols(&self) -> usize;
    /// Bytes of a record.
    fn record_bytes(&self) -> usize;
    /// Where codes can be read in the record itself: they start it, and this many bytes later the next record does.
    fn codes_stride(&self) -> Option<usize>;
    /// Unpacks whole records: codes (unless they are read in place), scales, and mins of nibbles.
    fn unpack(&self, cpu: Cpu, records: &[u8], to: &mut Unpacked);
    /// Multiplies panels with one tile of rows, blocks unpacked in registers.
    fn stream(&self, cpu: Cpu, job: &Stream<'_>);
}

impl<R: Record> Blocks for R {
    fn kind(&self) -> Kind {
        R::KIND
    }

    fn cols(&self) -> usize {
        Record::cols(self)
    }

    fn record_bytes(&self) -> usize {
        Record::record_bytes(self)
    }

    fn codes_stride(&self) -> Option<usize> {
        R::CODES_IN_PLACE.then_some(Record::record_bytes(self))
    }

    fn unpack(&self, cpu: Cpu, records: &[u8], to: &mut Unpacked) {
        cpu.run(Unpack {
            blocks: self,
            records,
            to,
        });
    }

    fn stream(&self, cpu: Cpu, job: &Stream<'_>) {
        cpu.run(StreamOf { blocks: self, job });
    }
}

struct Unpack<'a, R> {
    blocks: &'a R,
    records: &'a [u8],
    to: &'a mut Unpacked,
}

impl<R: Record> Kernel for Unpack<'_, R> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (record_bytes, cols) = (Record::record_bytes(self.blocks), Record::cols(self.blocks));
        let n_blocks = cols / R::KIND.block();
        for (i, record) in self.records.chunks_exact(record_bytes).enumerate() {
            if !R::CODES_IN_PLACE {
                let codes = self.to.codes[i * cols * LANES..][..cols * LANES].chunks_exact_mut(BLOCK_CODES);
                for (columns, codes) in codes.enumerate() {
                    self.blocks.spread(record, columns, codes);
                }
            }
            // SAFETY: the slice is a whole record.
            let head = unsafe { self.blocks.head(s, record.as_ptr()) };
            for block in 0..n_blocks {
                let place = (i * n_blocks + block) * LANES;
                // SAFETY: the slice is a whole record, and slices below hold sixteen values.
                unsafe {
                    let (scale, min) = self.blocks.scale(s, record.as_ptr(), head, block);
                    s.store(self.to.scales[place..][..LANES].as_mut_ptr(), scale);
                    if R::KIND == Kind::Nibbles {
                        s.store(self.to.mins[place..][..LANES].as_mut_ptr(), min);
                    }
                }
            }
        }
    }
}

/// A format whose blocks can be packed from ggml's.
pub(crate) trait GgmlBlocks: Blocks {
    /// Bytes of a block of one row, of as many columns as a record.
    fn block_bytes(&self) -> usize;
    /// Packs one row's block into its lane of a zeroed record.
    fn pack(&self, block: &[u8], lane: usize, record: &mut [u8]);
}

/// Room for some columns of a panel.
pub(crate) struct Unpacked {
    /// `[block of 32][group of 4 columns][16][4]`
    codes: Buffer<u8>,
    /// `[block of 32 or 16][16]`
    scales: Buffer<f32>,
    /// `[block of 32][16]`, for nibbles
    mins: Buffer<f32>,
}

/// What a kernel reads.
pub(crate) struct View<'a> {
    pub(super) kind: Kind,
    codes: &'a [u8],
    /// From one block's codes to the next's.
    pub(super) stride: usize,
    pub(super) scales: &'a [f32],
    pub(super) mins: &'a [f32],
    /// Blocks of 32 columns.
    pub(super) n_blocks: usize,
}

/// Bytes of a block's codes for sixteen rows.
const BLOCK_CODES: usize = X_BLOCK * LANES;

impl View<'_> {
    /// The codes, long enough for this many blocks.
    pub(super) fn codes(&self, n_blocks: usize) -> &[u8] {
        assert!(n_blocks == 0 || self.codes.len() >= (n_blocks - 1) * self.stride + BLOCK_CODES);
        self.codes
    }
}

impl Unpacked {
    pub(crate) fn new(blocks: &dyn Blocks, cols: usize) -> Self {
        let n_blocks = cols / X_BLOCK;
        let in_place = blocks.codes_stride().is_some();
        let has_mins = blocks.kind() == Kind::Nibbles;
        Self {
            codes: Buffer::zeroed(if in_place { 0 } else { n_blocks * BLOCK_CODES }),
            scales: Buffer::zeroed(cols / blocks.kind().block() * LANES),
            mins: Buffer::zeroed(if has_mins { n_blocks * LANES } else { 0 }),
        }
    }

    /// What was unpacked last, from these records.
    pub(crate) fn view<'a>(&'a self, blocks: &dyn Blocks, records: &'a [u8]) -> View<'a> {
        let n_blocks = records.len() / blocks.record_bytes() * blocks.cols() / X_BLOCK;
        let (codes, stride) = match blocks.codes_stride() {
            Some(stride) => (records, stride),
            None => (&*self.codes, BLOCK_CODES),
        };
        View {
            kind: blocks.kind(),
            codes,
            stride,
            scales: &self.scales,
            mins: &self.mins,
            n_blocks,
        }
    }

    /// One weight of what was unpacked last.
    pub(crate) fn value(&self, blocks: &dyn Blocks, records: &[u8], col: usize, lane: usize) -> f32 {
        let view = self.view(blocks, records);
        let code = view.codes[col / X_BLOCK * view.stride + code_place(col % X_BLOCK, lane)];
        let scale = view.scales[col / view.kind.block() * LANES + lane];
        match view.kind {
            Kind::Nibbles => scale * f32::from(code) + view.mins[col / X_BLOCK * LANES + lane],
            Kind::Centred => scale * (f32::from(code) - f32::from(CENTRE)),
            Kind::Bytes32 | Kind::Bytes16 => scale * f32::from(code as i8),
        }
    }
}

/// Where a code lies among those of a block: `[group of 4 columns][16][4]`.
fn code_place(col: usize, lane: usize) -> usize {
    (col / 4 * LANES + lane) * 4 + col % 4
}

/// The code that stands for zero in [`Kind::Centred`].
const CENTRE: u8 = 8;

/// What sums of products with codes start with so that they come to those with `code - CENTRE`.
///
/// # Safety
/// `x_sums`, the sums of each row's `x`, is valid for reading `M` values.
#[inline(always)]
pub(super) unsafe fn centred<const M: usize>(x_sums: *const i32) -> [i32; M] {
    let mut start = [0; M];
    for i in 0..M {
        // SAFETY: passed on to the caller.
        start[i] = unsafe { -i32::from(CENTRE) * *x_sums.add(i) };
    }
    start
}

/// Bytes of a block's nibbles for sixteen rows: columns 0–15 in the lower halves, 16–31 in the upper.
const BLOCK_NIBBLES: usize = BLOCK_CODES / 2;

/// Stores one row's 32 nibbles, given as ggml has them: byte `i` holds columns `i` and `16 + i`.
fn pack_nibbles(bytes: &[u8; 16], lane: usize, to: &mut [u8]) {
    for (group, bytes) in bytes.chunks_exact(4).enumerate() {
        to[code_place(group * 4, lane)..][..4].copy_from_slice(bytes);
    }
}

/// Spreads a block's nibbles over bytes.
#[inline(always)]
fn spread_nibbles(from: &[u8], to: &mut [u8]) {
    let (lower, upper) = to[..BLOCK_CODES].split_at_mut(BLOCK_NIBBLES);
    for ((byte, lower), upper) in from[..BLOCK_NIBBLES].iter().zip(lower).zip(upper) {
        *lower = byte & 15;
        *upper = byte >> 4;
    }
}

/// Two bytes as an f16.
fn read_f16(bytes: &[u8]) -> half::f16 {
    half::f16::from_le_bytes([bytes[0], bytes[1]])
}

/// Stores a lane of sixteen 16-bit numbers.
fn put_u16(to: &mut [u8], lane: usize, bits: u16) {
    to[2 * lane..][..2].copy_from_slice(&bits.to_ne_bytes());
}
