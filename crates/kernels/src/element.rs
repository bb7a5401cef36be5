//! The number types that weights and caches are stored in. Arithmetic is always in f32.

use half::{bf16, f16};

use crate::buffer::Plain;
use crate::simd::Simd;

/// A storage type, named at run time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ElementType {
    /// 32-bit IEEE float.
    F32,
    /// The upper half of an f32.
    Bf16,
    /// 16-bit IEEE float.
    F16,
}

impl ElementType {
    /// Bytes of one value.
    pub fn size(self) -> usize {
        match self {
            ElementType::F32 => 4,
            ElementType::Bf16 | ElementType::F16 => 2,
        }
    }

    /// Whether tensor cores multiply it.
    #[cfg(feature = "cuda")]
    pub(crate) fn is_sixteen_bits(self) -> bool {
        matches!(self, ElementType::Bf16 | ElementType::F16)
    }
}

/// A storage type, known at compile time.
pub(crate) trait Element: Plain + std::fmt::Debug {
    const NAN: Self;
    fn to_f32(self) -> f32;
    /// Nearest value, ties to even; of f16 its largest instead of infinity.
    fn from_f32(x: f32) -> Self;
    /// The value of as many bytes as it has.
    fn from_le_bytes(bytes: &[u8]) -> Self;
    /// Sixteen values from `ptr`, as f32.
    ///
    /// # Safety
    /// `ptr` is valid for reading sixteen values.
    unsafe fn load<S: Simd>(simd: S, ptr: *const Self) -> S::V;
}

impl Element for f32 {
    const NAN: f32 = f32::NAN;

    fn to_f32(self) -> f32 {
        self
    }

    fn from_f32(x: f32) -> f32 {
        x
    }

    fn from_le_bytes(bytes: &[u8]) -> f32 {
        f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
    }

    #[inline(always)]
    unsafe fn load<S: Simd>(simd: S, ptr: *const f32) -> S::V {
        // SAFETY: passed on to the caller.
        unsafe { simd.load(ptr) }
    }
}

impl Element for bf16 {
    const NAN: bf16 = bf16::NAN;

    fn to_f32(self) -> f32 {
        bf16::to_f32(self)
    }

    fn from_f32(x: f32) -> bf16 {
        bf16::from_f32(x)
    }

    fn from_le_bytes(bytes: &[u8]) -> bf16 {
        bf16::from_le_bytes([bytes[0], bytes[1]])
    }

    #[inline(always)]
    unsafe fn load<S: Simd>(simd: S, ptr: *const bf16) -> S::V {
        // SAFETY: passed on to the caller.
        unsafe { simd.load_bf16(ptr) }
    }
}

impl Element for f16 {
    const NAN: f16 = f16::NAN;

    fn to_f32(self) -> f32 {
        f16::to_f32(self)
    }

    fn from_f32(x: f32) -> f16 {
        f16::from_f32(x.clamp(f16::MIN.to_f32(), f16::MAX.to_f32()))
    }

    fn from_le_bytes(bytes: &[u8]) -> f16 {
        f16::from_le_bytes([bytes[0], bytes[1]])
    }

    #[inline(always)]
    unsafe fn load<S: Simd>(simd: S, ptr: *const f16) -> S::V {
        // SAFETY: passed on to the caller.
        unsafe { simd.load_f16(ptr) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_beyond_f16_becomes_its_largest_number_and_nan_stays_nan() {
        let stored = |x: f32| Element::to_f32(<f16 as Element>::from_f32(x));
        assert_eq!(stored(65_504.0), 65_504.0);
        assert_eq!(stored(65_520.0), 65_504.0);
        assert_eq!(stored(-1e30), -65_504.0);
        assert_eq!(stored(f32::INFINITY), 65_504.0);
        assert_eq!(stored(1.5), 1.5);
        assert!(stored(f32::NAN).is_nan());
    }
}
