//! Each operation against plain arithmetic, at every level of this CPU.

use half::{bf16, f16};

use super::{LANES, Simd, WIDE};
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

/// Products of bytes with numbers of sixteen bits.
struct WholeNumbers<'a> {
    bytes: [&'a [i8; WIDE]; 2],
    numbers: &'a [i16; WIDE],
}

impl Kernel for WholeNumbers<'_> {
    /// The sums of products of each row of bytes with all numbers, and each column's sum of products with the first two.
    type Output = ([i32; 2], [f32; WIDE]);

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> Self::Output {
        let mut columns = [0.0; WIDE];
        // SAFETY: every array here has thirty-two values.
        unsafe {
            let [a, b] = [self.bytes[0], self.bytes[1]].map(|bytes| s.widen_i8(bytes.as_ptr()));
            let numbers = s.load_i16(self.numbers.as_ptr());
            let rows = [a, b].map(|row| s.add_pairs(s.no_ints(), numbers, row));
            let pair = s.splat_pair(self.numbers.as_ptr());
            let sums = s.zip(a, b).map(|pairs| s.add_pairs(s.no_ints(), pairs, pair));
            for (i, sums) in s.in_order(sums).into_iter().enumerate() {
                s.store(columns.as_mut_ptr().add(i * LANES), s.to_float(sums));
            }
            (s.reduce_ints(rows), columns)
        }
    }
}

#[test]
fn whole_numbers_are_added_exactly_and_in_order() {
    let bytes = [3, 11].map(|seed| std::array::from_fn(|i| ((i * 37 + seed * 71) % 255) as u8 as i8));
    let numbers = std::array::from_fn(|i| ((i * 7919 + 32_000) % 65_535) as i32 - 32_767).map(|x| x as i16);
    let product = |byte: i8, number: i16| i32::from(byte) * i32::from(number);
    let rows = bytes.map(|row: [i8; WIDE]| row.iter().zip(numbers).map(|(&byte, x)| product(byte, x)).sum());
    for threads in all_for_tests() {
        let (of_rows, of_columns) = threads.run(WholeNumbers {
            bytes: [&bytes[0], &bytes[1]],
            numbers: &numbers,
        });
        assert_eq!(of_rows, rows);
        for (i, sum) in of_columns.into_iter().enumerate() {
            let expected = product(bytes[0][i], numbers[0]) + product(bytes[1][i], numbers[1]);
            assert_eq!(sum, expected as f32, "column {i} at {:?}", threads.level());
        }
    }
}

struct Rounded<'a>(&'a [f32; LANES]);

impl Kernel for Rounded<'_> {
    type Output = [i16; LANES];

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> [i16; LANES] {
        let mut out = [0; LANES];
        // SAFETY: both arrays have sixteen values.
        unsafe { s.store_i16(out.as_mut_ptr(), s.load(self.0.as_ptr())) };
        out
    }
}

#[test]
fn lanes_are_rounded_to_the_nearest_whole_number_and_ties_to_even() {
    let x = [
        0.0, -0.4, 0.5, 1.5, -0.5, -1.5, 2.5, 126.51, -127.0, 32767.0, -32767.0, 32766.5, 1e-40, 255.5,
        1000.49, -3.5,
    ];
    let expected = x.map(|x: f32| x.round_ties_even() as i16);
    for threads in all_for_tests() {
        assert_eq!(threads.run(Rounded(&x)), expected, "{:?}", threads.level());
    }
}
