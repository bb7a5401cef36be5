//! Each operation against plain arithmetic, at every level of this CPU.

use half::{bf16, f16};

use super::{LANES, Simd};
use crate::level::Kernel;
use crate::threads::all_for_tests;

/// Applies a function of one vector to sixteen numbers.
struct Map<'a> {
    op: Op,
    x: &'a [f32; LANES],
}

enum Op {
    Exp,
    ReduceAdd,
    ReduceMax,
    Bf16,
    F16,
    FirstThree,
}

impl Kernel for Map<'_> {
    type Output = [f32; LANES];

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> [f32; LANES] {
        let mut out = [0.0; LANES];
        // SAFETY: every array here has sixteen values.
        unsafe {
            let x = s.load(self.x.as_ptr());
            let y = match self.op {
                Op::Exp => s.exp(x),
                Op::ReduceAdd => s.splat(s.reduce_add(x)),
                Op::ReduceMax => s.splat(s.reduce_max(x)),
                Op::Bf16 => s.load_bf16(self.x.map(bf16::from_f32).as_ptr()),
                Op::F16 => s.load_f16(self.x.map(f16::from_f32).as_ptr()),
                Op::FirstThree => s.load_first(self.x.as_ptr(), 3),
            };
            s.store(out.as_mut_ptr(), y);
        }
        out
    }
}

fn each_level(op: fn() -> Op, x: [f32; LANES], check: impl Fn([f32; LANES])) {
    for threads in all_for_tests() {
        check(threads.run(Map { op: op(), x: &x }));
    }
}

#[test]
fn exp_is_within_two_units_in_the_last_place() {
    for start in -90..88 {
        let x = std::array::from_fn(|i| start as f32 + i as f32 / 16.0);
        each_level(
            || Op::Exp,
            x,
            |y| {
                for (x, y) in x.iter().zip(y) {
                    let exact = f64::from(*x).exp();
                    let error = (f64::from(y) - exact).abs();
                    assert!(
                        error <= exact * 2.5e-7 || (*x < -87.29 && y == 0.0),
                        "exp({x}) = {y}, not {exact}"
                    );
                }
            },
        );
    }
}

#[test]
fn exp_of_minus_infinity_is_zero_and_of_nan_is_nan() {
    let mut x = [f32::NEG_INFINITY; LANES];
    x[3] = f32::NAN;
    x[5] = 0.0;
    each_level(
        || Op::Exp,
        x,
        |y| {
            assert_eq!((y[0], y[5]), (0.0, 1.0));
            assert!(y[3].is_nan());
        },
    );
}

#[test]
fn reductions_see_all_lanes() {
    let x = std::array::from_fn(|i| ((i * 7) % 16) as f32 - 3.0);
    each_level(|| Op::ReduceAdd, x, |y| assert_eq!(y[0], 72.0));
    each_level(|| Op::ReduceMax, x, |y| assert_eq!(y[0], 12.0));
}

#[test]
fn half_floats_load_exactly() {
    let odd = [
        0.0,
        -0.0,
        1.5,
        -2.25,
        6.0e-8,
        -3.1e-6,
        65504.0,
        f32::INFINITY,
        f32::NEG_INFINITY,
        0.1,
    ];
    let x = std::array::from_fn(|i| odd[i % odd.len()]);
    each_level(
        || Op::F16,
        x,
        |y| {
            assert_eq!(
                y.map(f32::to_bits),
                x.map(|x| f16::from_f32(x).to_f32().to_bits())
            )
        },
    );
    each_level(
        || Op::Bf16,
        x,
        |y| {
            assert_eq!(
                y.map(f32::to_bits),
                x.map(|x| bf16::from_f32(x).to_f32().to_bits())
            )
        },
    );
}

#[test]
fn a_short_load_leaves_zeros() {
    each_level(
        || Op::FirstThree,
        [2.0; LANES],
        |y| assert_eq!(y, std::array::from_fn(|i| if i < 3 { 2.0 } else { 0.0 })),
    );
}
