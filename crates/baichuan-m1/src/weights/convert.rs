//! Numbers as stored, turned into numbers as kept, and refused when they are not numbers.

use baichuan_engine::Dtype;
use half::{bf16, f16};
use rayon::prelude::*;

use super::WeightsError;
use super::file::StoredTensor;

/// A type that weights are stored in and kept in.
pub trait Element: Copy + Default + Send + Sync {
    /// Its name.
    const DTYPE: Dtype;
    /// Nearest value, ties to even.
    fn from_f32(x: f32) -> Self;
    /// Exact.
    fn to_f32(self) -> f32;
    /// Whether it is neither NaN nor infinite.
    fn is_finite(self) -> bool;
    /// Reads `out.len()` values, little-endian.
    fn read(bytes: &[u8], out: &mut [Self]);
}

macro_rules! element {
    ($type:ty, $dtype:expr, $from_f32:expr, $to_f32:expr) => {
        impl Element for $type {
            const DTYPE: Dtype = $dtype;

            fn from_f32(x: f32) -> Self {
                $from_f32(x)
            }

            fn to_f32(self) -> f32 {
                $to_f32(self)
            }

            fn is_finite(self) -> bool {
                <$type>::is_finite(self)
            }

            fn read(bytes: &[u8], out: &mut [Self]) {
                for (out, &bytes) in out.iter_mut().zip(bytes.as_chunks().0) {
                    *out = <$type>::from_le_bytes(bytes);
                }
            }
        }
    };
}

element!(f32, Dtype::F32, |x| x, |x| x);
element!(f16, Dtype::F16, f16::from_f32, f16::to_f32);
element!(bf16, Dtype::Bf16, bf16::from_f32, bf16::to_f32);

/// The values of a tensor in one of the types that weights are kept in, row-major.
#[derive(Debug, Clone, PartialEq)]
pub enum Values {
    /// 32-bit IEEE.
    F32(Vec<f32>),
    /// 16-bit IEEE.
    F16(Vec<f16>),
    /// The upper half of a 32-bit IEEE number.
    Bf16(Vec<bf16>),
}

/// A tensor of a checkpoint, not read yet.
#[derive(Clone, Copy)]
pub struct Stored<'a>(StoredTensor<'a>);

/// So many bytes of a file are let go of at once when they were read: else a large tensor is in memory twice for a while.
const PIECE_BYTES: usize = 1 << 20;
/// So many bytes are hashed at once, on all threads.
const HASHED_BYTES: usize = 16 << 20;

/// Keeps a vector's length in one norm from dividing by zero, as the published head does.
const NORM_EPS: f32 = 1e-7;

impl<'a> Stored<'a> {
    pub(super) fn new(tensor: StoredTensor<'a>) -> Self {
        Self(tensor)
    }

    /// Name on disk.
    pub fn name(&self) -> &'a str {
        self.0.name
    }

    /// Values of a row.
    pub(super) fn width(&self) -> usize {
        self.0.shape.last().copied().unwrap_or(1)
    }

    /// Values as they are on disk, little-endian.
    pub fn bytes(&self) -> &'a [u8] {
        self.0.bytes
    }

    /// The type on disk.
    pub fn dtype(&self) -> Dtype {
        match self.0.dtype {
            safetensors::Dtype::F16 => Dtype::F16,
            safetensors::Dtype::BF16 => Dtype::Bf16,
            _ => Dtype::F32,
        }
    }

    /// Adds name, type and bytes to a checkpoint's digest, and lets go of the bytes.
    pub(crate) fn hash(&self, digest: &mut blake3::Hasher) {
        digest.update(self.name().as_bytes());
        digest.update(&[0, self.dtype() as u8]);
        let mut start = 0;
        for bytes in self.bytes().chunks(HASHED_BYTES) {
            digest.update_rayon(bytes);
            self.0.forget(start..start + bytes.len());
            start += bytes.len();
        }
    }

    /// All values in row-major order. A value that is, or becomes, NaN or infinite is an error.
    pub fn to_vec<T: Element>(&self) -> Result<Vec<T>, WeightsError> {
        match self.dtype() {
            dtype if dtype == T::DTYPE => self.by_rows(T::read),
            Dtype::F32 => self.by_rows(|bytes, out| convert::<f32, T>(bytes, out, |_| {})),
            Dtype::F16 => self.by_rows(|bytes, out| convert::<f16, T>(bytes, out, |_| {})),
            Dtype::Bf16 => self.by_rows(|bytes, out| convert::<bf16, T>(bytes, out, |_| {})),
        }
    }

    /// As [`Self::to_vec`], in a type known at run time.
    pub fn values(&self, dtype: Dtype) -> Result<Values, WeightsError> {
        Ok(match dtype {
            Dtype::F32 => Values::F32(self.to_vec()?),
            Dtype::F16 => Values::F16(self.to_vec()?),
            Dtype::Bf16 => Values::Bf16(self.to_vec()?),
        })
    }

    /// As [`Self::values`], each row divided by its L2 norm: in f32, then rounded to the type on disk, as the
    /// model's authors do with their output head when they load it.
    pub fn normalised(&self, dtype: Dtype) -> Result<Values, WeightsError> {
        Ok(match dtype {
            Dtype::F32 => Values::F32(self.rows_normalised()?),
            Dtype::F16 => Values::F16(self.rows_normalised()?),
            Dtype::Bf16 => Values::Bf16(self.rows_normalised()?),
        })
    }

    /// One row of a matrix as f32, rounded to `dtype`, of length one before that if `normalised`: as [`Self::values`]
    /// and [`Self::normalised`] give it. For rows that are read once and in order, more or less: lets go of those before.
    pub fn row(
        &self,
        row: usize,
        dtype: Dtype,
        normalised: bool,
        out: &mut [f32],
    ) -> Result<(), WeightsError> {
        let row_bytes = out.len() * self.dtype().bytes();
        let (start, end) = (row * row_bytes, (row + 1) * row_bytes);
        let bytes = &self.0.bytes[start..end];
        match self.dtype() {
            Dtype::F32 => read_row::<f32>(bytes, normalised, out),
            Dtype::F16 => read_row::<f16>(bytes, normalised, out),
            Dtype::Bf16 => read_row::<bf16>(bytes, normalised, out),
        }
        let piece = |byte: usize| byte / PIECE_BYTES * PIECE_BYTES;
        if piece(start) < piece(end) {
            self.0.forget(piece(start)..piece(end));
        }
        match dtype {
            Dtype::F32 => {}
            dtype if dtype == self.dtype() => {}
            Dtype::F16 => round_row::<f16>(out),
            Dtype::Bf16 => round_row::<bf16>(out),
        }
        let Some(column) = out.iter().position(|x| !x.is_finite()) else {
            return Ok(());
        };
        Err(WeightsError::NotFinite {
            file: self.0.file.to_owned(),
            tensor: self.0.name.to_owned(),
            element: row * out.len() + column,
            value: out[column],
        })
    }

    fn rows_normalised<T: Element>(&self) -> Result<Vec<T>, WeightsError> {
        match self.dtype() {
            Dtype::F32 => self.by_rows(|bytes, out| convert::<f32, T>(bytes, out, normalise::<f32>)),
            Dtype::F16 => self.by_rows(|bytes, out| convert::<f16, T>(bytes, out, normalise::<f16>)),
            Dtype::Bf16 => self.by_rows(|bytes, out| convert::<bf16, T>(bytes, out, normalise::<bf16>)),
        }
    }

    /// Reads row by row, in parallel: `read` makes values of a row's bytes.
    fn by_rows<T: Element>(&self, read: impl Fn(&[u8], &mut [T]) + Sync) -> Result<Vec<T>, WeightsError> {
        let tensor = &self.0;
        let width = tensor.shape.last().copied().unwrap_or(1).max(1);
        let element_bytes = self.dtype().bytes();
        let mut values = vec![T::default(); tensor.bytes.len() / element_bytes];
        let rows = tensor
            .bytes
            .par_chunks(width * element_bytes)
            .zip(values.par_chunks_mut(width));
        rows.enumerate().try_for_each(|(row, (bytes, out))| {
            read(bytes, out);
            if out.iter().all(|x| x.is_finite()) {
                return Ok(());
            }
            let column = out.iter().position(|x| !x.is_finite()).unwrap_or_default();
            Err(WeightsError::NotFinite {
                file: tensor.file.to_owned(),
                tensor: tensor.name.to_owned(),
                element: row * width + column,
                value: out[column].to_f32(),
            })
        })?;
        Ok(values)
    }
}

/// A row of type `S` on disk, through f32 and `change`, to type `T`.
fn convert<S: Element, T: Element>(bytes: &[u8], out: &mut [T], change: impl Fn(&mut [f32])) {
    let mut stored = vec![S::default(); out.len()];
    S::read(bytes, &mut stored);
    let mut row: Vec<f32> = stored.into_iter().map(S::to_f32).collect();
    change(&mut row);
    for (out, x) in out.iter_mut().zip(row) {
        *out = T::from_f32(x);
    }
}

/// A row of type `S` on disk as f32.
fn read_row<S: Element>(bytes: &[u8], normalised: bool, out: &mut [f32]) {
    for (out, bytes) in out.iter_mut().zip(bytes.chunks_exact(S::DTYPE.bytes())) {
        let mut stored = [S::default()];
        S::read(bytes, &mut stored);
        *out = stored[0].to_f32();
    }
    if normalised {
        normalise::<S>(out);
    }
}

fn round_row<T: Element>(row: &mut [f32]) {
    row.iter_mut().for_each(|x| *x = T::from_f32(*x).to_f32());
}

/// Divides a row by its L2 norm and rounds it to type `S`.
fn normalise<S: Element>(row: &mut [f32]) {
    let norm = row.iter().map(|x| x * x).sum::<f32>().sqrt() + NORM_EPS;
    row.iter_mut().for_each(|x| *x = S::from_f32(*x / norm).to_f32());
}
