//! Which vector instructions to use, found out once at run time.

use crate::simd::Simd;

/// An instruction set the kernels are compiled for. Ordered: a higher level is faster.
///
/// All levels but [`Level::Portable`] give the same bits: sums keep one order and use fused multiply–add. (The exception:
/// sums of products with weights in bf16 on their way below the normal numbers, which [`Level::Avx512Bf16`] takes for 0.)
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Level {
    /// Plain Rust, on any CPU.
    Portable,
    /// AArch64 with Advanced SIMD.
    Neon,
    /// x86-64 with AVX2, FMA and F16C.
    Avx2,
    /// x86-64 with AVX-512 F, BW, VL, DQ and VNNI, besides all of [`Level::Avx2`].
    Avx512,
    /// [`Level::Avx512`] and AVX-512 BF16.
    Avx512Bf16,
}

impl Level {
    /// Every level, lowest first.
    pub const ALL: [Level; 5] = [
        Level::Portable,
        Level::Neon,
        Level::Avx2,
        Level::Avx512,
        Level::Avx512Bf16,
    ];

    /// The best level of this CPU.
    pub fn detect() -> Level {
        Level::ALL
            .into_iter()
            .rev()
            .find(|level| level.is_available())
            .unwrap_or(Level::Portable)
    }

    /// Whether this CPU has the level's instructions, and the binary the kernels for them.
    pub fn is_available(self) -> bool {
        match self {
            Level::Portable => true,
            Level::Neon => cfg!(target_arch = "aarch64"),
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => {
                is_x86_feature_detected!("avx2")
                    && is_x86_feature_detected!("fma")
                    && is_x86_feature_detected!("f16c")
            }
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 => {
                Level::Avx2.is_available()
                    && is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512vl")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512vnni")
            }
            #[cfg(target_arch = "x86_64")]
            Level::Avx512Bf16 => Level::Avx512.is_available() && is_x86_feature_detected!("avx512bf16"),
            #[cfg(not(target_arch = "x86_64"))]
            Level::Avx2 | Level::Avx512 | Level::Avx512Bf16 => false,
        }
    }

    /// Runs `kernel` compiled for this level.
    ///
    /// # Safety
    /// The level [is available](Level::is_available).
    #[inline]
    unsafe fn run<K: Kernel>(self, kernel: K) -> K::Output {
        match self {
            Level::Portable => kernel.run(crate::simd::Portable),
            #[cfg(target_arch = "aarch64")]
            Level::Neon => {
                // SAFETY: Advanced SIMD is part of every AArch64 CPU that Rust's targets name.
                unsafe { neon(kernel) }
            }
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => {
                // SAFETY: the caller says that the level is available.
                unsafe { avx2(kernel) }
            }
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 => {
                // SAFETY: the caller says that the level is available.
                unsafe { avx512(kernel) }
            }
            #[cfg(target_arch = "x86_64")]
            Level::Avx512Bf16 => {
                // SAFETY: the caller says that the level is available.
                unsafe { avx512_bf16(kernel) }
            }
            #[cfg(not(all(target_arch = "x86_64", target_arch = "aarch64")))]
            #[allow(
                unreachable_patterns,
                reason = "which levels lack kernels depends on the architecture"
            )]
            _ => unreachable!("level {self:?} has no kernels on this architecture"),
        }
    }
}

/// A level that this CPU was found to have.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cpu(Level);

impl Cpu {
    pub(crate) fn new(level: Level) -> Option<Self> {
        level.is_available().then_some(Self(level))
    }

    pub(crate) fn level(self) -> Level {
        self.0
    }

    /// Runs `kernel` on the calling thread, compiled for the level.
    #[inline]
    pub(crate) fn run<K: Kernel>(self, kernel: K) -> K::Output {
        // SAFETY: `new` found the level available.
        unsafe { self.0.run(kernel) }
    }
}

/// A piece of work written once for all levels. `run` must be `#[inline(always)]`, and so must everything it calls
/// that touches vectors: they take on the instruction set of the function they end up in.
pub(crate) trait Kernel {
    type Output;
    fn run<S: Simd>(self, simd: S) -> Self::Output;
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
fn avx2<K: Kernel>(kernel: K) -> K::Output {
    // SAFETY: this function's features are the token's.
    kernel.run(unsafe { crate::simd::Avx2::new() })
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
fn avx512<K: Kernel>(kernel: K) -> K::Output {
    // SAFETY: this function's features are the token's.
    kernel.run(unsafe { crate::simd::Avx512::<false>::new() })
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512bf16")]
fn avx512_bf16<K: Kernel>(kernel: K) -> K::Output {
    // SAFETY: this function's features are the token's.
    kernel.run(unsafe { crate::simd::Avx512::<true>::new() })
}

#[cfg(target_arch = "aarch64")]
#[target_feature(enable = "neon")]
fn neon<K: Kernel>(kernel: K) -> K::Output {
    // SAFETY: this function's features are the token's.
    kernel.run(unsafe { crate::simd::Neon::new() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_detected_level_is_the_best_available_one() {
        let detected = Level::detect();
        assert!(detected.is_available());
        assert!(
            Level::ALL
                .into_iter()
                .filter(|level| level.is_available())
                .all(|level| level <= detected)
        );
    }
}
