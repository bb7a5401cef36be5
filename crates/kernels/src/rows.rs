//! Row kernels between the products: normalisation, gate, residual.

use crate::level::Kernel;
use crate::simd::{LANES, Simd};
use crate::threads::{Shared, Threads};

/// Values a task should hold for starting it to be worth while.
const VALUES_PER_TASK: usize = 1 << 15;

/// `out[i] = x[i] / √(mean(x[i]²) + eps) · weight`, for each row `i` of `weight.len()` values. The mean is taken in f32.
///
/// # Panics
/// If `x` is not whole rows or `out` not of its length.
pub fn rms_norm(threads: &Threads, x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    let width = weight.len();
    assert!(
        width > 0 && x.len().is_multiple_of(width),
        "x of {} values in rows of {width}",
        x.len()
    );
    assert_eq!(x.len(), out.len(), "out has the shape of x");
    let n_rows = x.len() / width;
    let rows_per_task = VALUES_PER_TASK.div_ceil(width);
    let shared = Shared::new(out);
    threads.for_each(n_rows.div_ceil(rows_per_task), |task| {
        for row in task * rows_per_task..n_rows.min((task + 1) * rows_per_task) {
            // SAFETY: each row of `out` belongs to one task.
            let out = unsafe { std::slice::from_raw_parts_mut(shared.ptr().add(row * width), width) };
            threads.run(RmsNorm {
                x: &x[row * width..][..width],
                weight,
                eps,
                out,
            });
        }
    });
}

/// `out = silu(gate) · up`, element by element, with `silu(g) = g / (1 + e^-g)`. A row of `gate_up` holds `width` gates
/// and then as many ups; a row of `out` has `width` values.
///
/// # Panics
/// If `gate_up` is not whole rows, or `out` not as many.
pub fn swiglu(threads: &Threads, gate_up: &[f32], width: usize, out: &mut [f32]) {
    assert!(
        width > 0 && out.len().is_multiple_of(width) && gate_up.len() == 2 * out.len(),
        "gate_up of {} and out of {} values in rows of {width}",
        gate_up.len(),
        out.len()
    );
    let (n_rows, rows_per_task) = (out.len() / width, VALUES_PER_TASK.div_ceil(width));
    let shared = Shared::new(out);
    threads.for_each(n_rows.div_ceil(rows_per_task), |task| {
        for row in task * rows_per_task..n_rows.min((task + 1) * rows_per_task) {
            // SAFETY: each row of `out` belongs to one task.
            let out = unsafe { std::slice::from_raw_parts_mut(shared.ptr().add(row * width), width) };
            let (gate, up) = gate_up[row * 2 * width..][..2 * width].split_at(width);
            threads.run(SwiGlu { gate, up, out });
        }
    });
}

/// `x += y`, element by element: the residual.
///
/// # Panics
/// If the lengths differ.
pub fn add(threads: &Threads, x: &mut [f32], y: &[f32]) {
    assert_eq!(x.len(), y.len(), "x and y have one shape");
    let shared = Shared::new(x);
    threads.for_each(y.len().div_ceil(VALUES_PER_TASK), |task| {
        let y = &y[task * VALUES_PER_TASK..][..VALUES_PER_TASK.min(y.len() - task * VALUES_PER_TASK)];
        // SAFETY: each task has a range of its own.
        let x = unsafe { std::slice::from_raw_parts_mut(shared.ptr().add(task * VALUES_PER_TASK), y.len()) };
        x.iter_mut().zip(y).for_each(|(x, y)| *x += y);
    });
}

struct RmsNorm<'a> {
    x: &'a [f32],
    weight: &'a [f32],
    eps: f32,
    out: &'a mut [f32],
}

impl Kernel for RmsNorm<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        const CHAINS: usize = 4;
        let mut sums = [s.splat(0.0); CHAINS];
        let chunks = self.x.chunks_exact(CHAINS * LANES);
        for (i, chunk) in chunks.remainder().chunks(LANES).enumerate() {
            // SAFETY: the chunk has as many values as are read.
            let x = unsafe { s.load_first(chunk.as_ptr(), chunk.len()) };
            sums[i] = s.fma(x, x, sums[i]);
        }
        for chunk in chunks {
            for i in 0..CHAINS {
                // SAFETY: the chunk has four times sixteen values.
                let x = unsafe { s.load(chunk.as_ptr().add(i * LANES)) };
                sums[i] = s.fma(x, x, sums[i]);
            }
        }
        let sum = s.add(s.add(sums[0], sums[1]), s.add(sums[2], sums[3]));
        let mean = s.reduce_add(sum) / self.x.len() as f32;
        let scale = 1.0 / (mean + self.eps).sqrt();
        for ((out, x), weight) in self.out.iter_mut().zip(self.x).zip(self.weight) {
            *out = x * scale * weight;
        }
    }
}

struct SwiGlu<'a> {
    gate: &'a [f32],
    up: &'a [f32],
    out: &'a mut [f32],
}

impl Kernel for SwiGlu<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let one = s.splat(1.0);
        for ((gate, up), out) in self
            .gate
            .chunks(LANES)
            .zip(self.up.chunks(LANES))
            .zip(self.out.chunks_mut(LANES))
        {
            let n = gate.len();
            // SAFETY: the three chunks have `n` values.
            unsafe {
                let g = if n == LANES {
                    s.load(gate.as_ptr())
                } else {
                    s.load_first(gate.as_ptr(), n)
                };
                let u = if n == LANES {
                    s.load(up.as_ptr())
                } else {
                    s.load_first(up.as_ptr(), n)
                };
                let e = s.exp(s.sub(s.splat(0.0), g));
                let y = s.mul(s.div(g, s.add(one, e)), u);
                if n == LANES {
                    s.store(out.as_mut_ptr(), y)
                } else {
                    s.store_first(out.as_mut_ptr(), y, n)
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::matrix::tests::noise;
    use crate::threads::all_for_tests;

    #[test]
    fn rms_norm_is_that_of_plain_arithmetic_at_any_width() {
        for threads in all_for_tests() {
            for width in [1, 7, 16, 63, 64, 65, 200] {
                let (x, weight) = (noise(1, 700 * width), noise(2, width));
                let mut out = vec![0.0; x.len()];
                rms_norm(&threads, &x, &weight, 1e-5, &mut out);
                for (x, out) in x.chunks_exact(width).zip(out.chunks_exact(width)) {
                    let mean = x.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>() / width as f64;
                    for i in 0..width {
                        let exact = f64::from(x[i]) / (mean + 1e-5).sqrt() * f64::from(weight[i]);
                        assert!((f64::from(out[i]) - exact).abs() <= 1e-6 * exact.abs());
                    }
                }
            }
        }
    }

    #[test]
    fn swiglu_is_that_of_plain_arithmetic_far_from_zero_too() {
        for threads in all_for_tests() {
            for (rows, width) in [(1, 1), (3, 15), (1, 16), (2, 50), (40, 1000), (1, 40_000)] {
                let mut gate_up = noise(4, 2 * rows * width);
                for row in gate_up.chunks_exact_mut(2 * width) {
                    row[..width].iter_mut().for_each(|gate| *gate *= 120.0);
                }
                let mut out = vec![f32::NAN; rows * width];
                swiglu(&threads, &gate_up, width, &mut out);
                for (i, out) in out.into_iter().enumerate() {
                    let row = &gate_up[i / width * 2 * width..][..2 * width];
                    let (g, up) = (f64::from(row[i % width]), f64::from(row[width + i % width]));
                    let exact = g / (1.0 + (-g).exp()) * up;
                    assert!(
                        (f64::from(out) - exact).abs() <= 1e-6 * exact.abs() + 1e-36,
                        "silu({g})"
                    );
                }
            }
        }
    }

    #[test]
    fn add_adds() {
        let threads = Threads::new(2).unwrap();
        let (mut x, y) = (vec![1.0; 70_000], noise(6, 70_000));
        add(&threads, &mut x, &y);
        assert!(x.iter().zip(&y).all(|(x, y)| *x == 1.0 + y));
    }
}
