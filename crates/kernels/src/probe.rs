//! What this machine can do at most: the floors that kernels are measured against.
//!
//! Machines are shared and their clocks change, so measure a floor in the same run as the kernel, and more than once.

use std::time::Instant;

use crate::buffer::Buffer;
use crate::level::Kernel;
use crate::simd::{LANES, Simd};
use crate::threads::Threads;

/// Memory to read: larger than any cache, and already in place.
#[derive(Debug)]
pub struct Bandwidth {
    values: Buffer<f32>,
}

impl Bandwidth {
    /// Sets `bytes` of memory aside; take several times the last-level cache.
    pub fn new(bytes: usize) -> Self {
        let mut values =
            Buffer::zeroed_in_large_pages((bytes / size_of::<f32>()).next_multiple_of(4 * LANES));
        // Pages that were never written are all the same page of zeros.
        values.fill(1.0);
        Self { values }
    }

    /// Reads all of it on all threads, front to back and then in four streams a thread, as the kernels do: 10^9 bytes a
    /// second, the better of both.
    pub fn read_gb_s(&self, threads: &Threads) -> f64 {
        self.read::<1>(threads).max(self.read::<4>(threads))
    }

    fn read<const STREAMS: usize>(&self, threads: &Threads) -> f64 {
        const PART: usize = 1 << 18;
        let start = Instant::now();
        threads.for_each(self.values.len().div_ceil(PART), |part| {
            let end = self.values.len().min((part + 1) * PART);
            std::hint::black_box(threads.run(Sum::<STREAMS> {
                values: &self.values[part * PART..end],
            }));
        });
        size_of_val::<[f32]>(&self.values) as f64 / start.elapsed().as_secs_f64() / 1e9
    }
}

struct Sum<'a, const STREAMS: usize> {
    values: &'a [f32],
}

impl<const STREAMS: usize> Kernel for Sum<'_, STREAMS> {
    type Output = f32;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> f32 {
        const AHEAD: usize = 4096;
        let mut sums = [s.splat(0.0); 4];
        let len = self.values.len() / STREAMS;
        for start in (0..len / (4 * LANES) * (4 * LANES)).step_by(4 * LANES) {
            for stream in 0..STREAMS {
                for i in 0..4 {
                    let place = self.values[stream * len + start + i * LANES..][..LANES].as_ptr();
                    // SAFETY: the slice holds sixteen values.
                    unsafe { sums[i] = s.add(sums[i], s.load(place)) };
                    s.prefetch(place.wrapping_byte_add(AHEAD).cast());
                }
            }
        }
        s.reduce_add(s.add(s.add(sums[0], sums[1]), s.add(sums[2], sums[3])))
    }
}

/// Fused multiply–adds of f32 on all threads, in registers alone: 10^9 operations a second, two for each.
pub fn fused_gflop_s(threads: &Threads) -> f64 {
    const ROUNDS: usize = 2_000_000;
    let start = Instant::now();
    let per_thread = threads.run(FusedChains { rounds: 0 }).1;
    threads.for_each(threads.count(), |_| {
        std::hint::black_box(threads.run(FusedChains { rounds: ROUNDS }));
    });
    (2 * threads.count() * ROUNDS * per_thread * LANES) as f64 / start.elapsed().as_secs_f64() / 1e9
}

struct FusedChains {
    rounds: usize,
}

impl Kernel for FusedChains {
    /// A value, so that nothing is optimised away, and vectors a round.
    type Output = (f32, usize);

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> (f32, usize) {
        const CHAINS: usize = 6;
        let mut sums = [s.splat(1.0); CHAINS];
        let (a, b) = (
            s.splat(std::hint::black_box(0.999)),
            s.splat(std::hint::black_box(0.001)),
        );
        for _ in 0..self.rounds {
            for sum in &mut sums {
                *sum = s.fma(*sum, a, b);
            }
        }
        let mut total = s.splat(0.0);
        for sum in sums {
            total = s.add(total, sum);
        }
        (s.reduce_add(total), CHAINS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::threads::all_for_tests;

    #[test]
    fn the_probes_measure_something() {
        for threads in all_for_tests() {
            assert!(Bandwidth::new(1 << 20).read_gb_s(&threads) > 0.0);
        }
        assert!(fused_gflop_s(&Threads::new(1).unwrap()) > 0.0);
    }
}
