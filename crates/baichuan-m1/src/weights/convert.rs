//! Numbers as stored, turned into numbers as kept, and refused when they are not numbers.

use baichuan_engine::Dtype;
use half::{bf16, f16};
use rayon::prelude::*;

use super::WeightsError;
use super::file::StoredTensor;

/// A type that weights are kept in.
pub trait Element: Copy + Default + Send + Sync {
    /// Nearest value, ties to even.
    fn from_f32(x: f32) -> Self;
    /// Exact.
    fn to_f32(self) -> f32;
}

impl Element for f32 {
    fn from_f32(x: f32) -> f32 {
        x
    }

    fn to_f32(self) -> f32 {
        self
    }
}

impl Element for bf16 {
    fn from_f32(x: f32) -> bf16 {
        bf16::from_f32(x)
    }

    fn to_f32(self) -> f32 {
        self.to_f32()
    }
}

impl Element for f16 {
    fn from_f32(x: f32) -> f16 {
        f16::from_f32(x)
    }

    fn to_f32(self) -> f32 {
        self.to_f32()
    }
}

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

    /// All values in row-major order. A value that is, or becomes, NaN or infinite is an error.
    pub fn to_vec<T: Element>(&self) -> Result<Vec<T>, WeightsError> {
        self.convert_rows(|_| {})
    }

    /// As [`Self::to_vec`], in a type known at run time.
    pub fn values(&self, dtype: Dtype) -> Result<Values, WeightsError> {
        self.convert(dtype, |_| {})
    }

    /// As [`Self::values`], each row divided by its L2 norm: in f32, then rounded to the type on disk, as the
    /// model's authors do with their output head when they load it.
    pub fn normalised(&self, dtype: Dtype) -> Result<Values, WeightsError> {
        let round = match self.dtype() {
            Dtype::F16 => |x| f16::from_f32(x).to_f32(),
            Dtype::Bf16 => |x| bf16::from_f32(x).to_f32(),
            Dtype::F32 => |x| x,
        };
        self.convert(dtype, |row| {
            let norm = row.iter().map(|x| x * x).sum::<f32>().sqrt() + NORM_EPS;
            row.iter_mut().for_each(|x| *x = round(*x / norm));
        })
    }

    fn convert(&self, dtype: Dtype, change: impl Fn(&mut [f32]) + Sync) -> Result<Values, WeightsError> {
        Ok(match dtype {
            Dtype::F32 => Values::F32(self.convert_rows(change)?),
            Dtype::F16 => Values::F16(self.convert_rows(change)?),
            Dtype::Bf16 => Values::Bf16(self.convert_rows(change)?),
        })
    }

    /// Reads row by row, in parallel: bytes to f32, through `change`, to `T`.
    fn convert_rows<T: Element>(&self, change: impl Fn(&mut [f32]) + Sync) -> Result<Vec<T>, WeightsError> {
        let tensor = &self.0;
        let width = tensor.shape.last().copied().unwrap_or(1).max(1);
        let dtype = self.dtype();
        let element_bytes = dtype.bytes();
        let mut values = vec![T::default(); tensor.bytes.len() / element_bytes];
        let rows = tensor
            .bytes
            .par_chunks(width * element_bytes)
            .zip(values.par_chunks_mut(width))
            .enumerate();
        rows.try_for_each_init(
            || vec![0.0; width],
            |row, (number, (bytes, out))| {
                read(dtype, bytes, row);
                change(row);
                for (out, &mut x) in out.iter_mut().zip(row) {
                    *out = T::from_f32(x);
                }
                match out.iter().position(|x| !x.to_f32().is_finite()) {
                    None => Ok(()),
                    Some(column) => Err(WeightsError::NotFinite {
                        file: tensor.file.to_owned(),
                        tensor: tensor.name.to_owned(),
                        element: number * width + column,
                        value: out[column].to_f32(),
                    }),
                }
            },
        )?;
        Ok(values)
    }
}

/// One row's little-endian bytes as f32; exact for all three types.
fn read(dtype: Dtype, bytes: &[u8], row: &mut [f32]) {
    match dtype {
        Dtype::F16 => fill(row, bytes, |b| f16::from_le_bytes(b).to_f32()),
        Dtype::Bf16 => fill(row, bytes, |b| bf16::from_le_bytes(b).to_f32()),
        Dtype::F32 => fill(row, bytes, f32::from_le_bytes),
    }
}

fn fill<const N: usize>(row: &mut [f32], bytes: &[u8], decode: impl Fn([u8; N]) -> f32) {
    for (x, &bytes) in row.iter_mut().zip(bytes.as_chunks::<N>().0) {
        *x = decode(bytes);
    }
}
