//! Products of every format against a plain sum in f64, and against each other.

use super::*;
use crate::threads::all_for_tests;

/// Numbers from -1 to 1 that look random, the same for the same seed.
pub(crate) fn noise(seed: u32, len: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(2_654_435_761) | 1;
    let next = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        (state >> 8) as f32 / 8_388_608.0 - 1.0
    };
    std::iter::repeat_with(next).take(len).collect()
}

fn matrices(threads: &Threads, rows: usize, cols: usize) -> Vec<Matrix> {
    let w = noise(7, rows * cols);
    vec![
        Matrix::from_f32(threads, rows, cols, &w),
        Matrix::from_bf16(
            threads,
            rows,
            cols,
            &w.iter().map(|&x| bf16::from_f32(x)).collect::<Vec<_>>(),
        ),
        Matrix::from_f16(
            threads,
            rows,
            cols,
            &w.iter().map(|&x| f16::from_f32(x)).collect::<Vec<_>>(),
        ),
    ]
}

/// The product in f64, and the sum of the products' magnitudes, which rounding errors are proportional to.
pub(crate) fn reference(w: &[f32], x: &[f32], cols: usize) -> Vec<(f64, f64)> {
    let rows_of_x = x.chunks_exact(cols);
    let products = rows_of_x.flat_map(|x| {
        w.chunks_exact(cols).map(move |w| {
            let terms = w.iter().zip(x).map(|(&w, &x)| f64::from(w) * f64::from(x));
            terms.fold((0.0, 0.0), |(sum, size), term| (sum + term, size + term.abs()))
        })
    });
    products.collect()
}

pub(crate) const SHAPES: [(usize, usize); 12] = [
    (1, 1),
    (1, 300),
    (300, 1),
    (16, 256),
    (17, 257),
    (15, 255),
    (63, 64),
    (65, 31),
    (64, 513),
    (130, 96),
    (5, 7),
    (160, 1000),
];

#[test]
fn products_are_those_of_plain_arithmetic() {
    for threads in all_for_tests() {
        for (rows, cols) in SHAPES {
            for matrix in matrices(&threads, rows, cols) {
                let w = matrix.dequantize();
                for m in [1, 2, 3, 5, 6, 7, 12, 13, 29] {
                    let x = noise(m as u32, m * cols);
                    let mut out = vec![f32::NAN; m * rows];
                    matrix.matmul(&threads, &x, &mut out);
                    let format = matrix.format();
                    let is_bf16 = format == Format::Plain(ElementType::Bf16);
                    for (got, (sum, size)) in out.iter().zip(reference(&w, &x, cols)) {
                        let error = (f64::from(*got) - sum).abs();
                        let bound = if is_bf16 { 1.0 / 256.0 } else { 1e-6 };
                        let what = format!("{format:?} [{rows}, {cols}] × {m}: {got}, not {sum}");
                        assert!(error <= bound * size + 1e-30, "{what}");
                    }
                    if !is_bf16 {
                        continue;
                    }
                    // Nothing is lost but what rounding the input loses.
                    let rounded: Vec<f32> = x.iter().map(|&x| bf16::from_f32(x).to_f32()).collect();
                    for (got, (sum, size)) in out.iter().zip(reference(&w, &rounded, cols)) {
                        assert!((f64::from(*got) - sum).abs() <= 1e-6 * size + 1e-30);
                    }
                }
            }
        }
    }
}

#[test]
fn a_row_is_the_same_to_the_bit_alone_in_company_and_on_any_threads() {
    for (rows, cols) in SHAPES {
        let m = 200;
        let x = noise(3, m * cols);
        for level in crate::Level::ALL.into_iter().filter(|level| level.is_available()) {
            let [one, two] = [1, 2].map(|n| Threads::with_level(n, level).unwrap());
            for matrix in matrices(&one, rows, cols) {
                let mut alone = vec![0.0; m * rows];
                for (x, out) in x.chunks_exact(cols).zip(alone.chunks_exact_mut(rows)) {
                    matrix.matmul(&one, x, out);
                }
                for threads in [&one, &two] {
                    for company in [2, 4, 7, 8, 25, 200] {
                        let mut out = vec![0.0; m * rows];
                        for (x, out) in x.chunks(company * cols).zip(out.chunks_mut(company * rows)) {
                            matrix.matmul(threads, x, out);
                        }
                        let same = out.iter().zip(&alone).all(|(a, b)| a.to_bits() == b.to_bits());
                        assert!(
                            same,
                            "{:?} [{rows}, {cols}], {company} rows, {level:?}",
                            matrix.format()
                        );
                    }
                }
            }
        }
    }
}

#[test]
fn levels_with_fused_arithmetic_agree_to_the_bit() {
    let levels: Vec<Threads> = crate::Level::ALL
        .into_iter()
        .filter(|&level| level != crate::Level::Portable)
        .filter_map(|level| Threads::with_level(1, level).ok())
        .collect();
    for (rows, cols) in SHAPES {
        for m in [1, 5, 8, 31] {
            let x = noise(9, m * cols);
            let products = levels.iter().map(|threads| {
                let of = |matrix: &Matrix| {
                    let mut out = vec![0.0; m * rows];
                    matrix.matmul(threads, &x, &mut out);
                    out.into_iter().map(f32::to_bits).collect::<Vec<_>>()
                };
                matrices(threads, rows, cols).iter().map(of).collect::<Vec<_>>()
            });
            let products: Vec<_> = products.collect();
            assert!(
                products.windows(2).all(|pair| pair[0] == pair[1]),
                "[{rows}, {cols}] × {m}"
            );
        }
    }
}

#[test]
fn numbers_that_bf16_has_no_normal_of_are_zero_and_what_is_not_finite_stays_so() {
    for threads in all_for_tests() {
        let tiny = bf16::from_bits(1);
        let weight = Matrix::from_bf16(&threads, 1, 3, &[tiny, bf16::ONE, bf16::ONE]);
        for m in [1, 20] {
            let product = |x: [f32; 3]| {
                let mut out = vec![0.0; m];
                weight.matmul(&threads, &x.repeat(m), &mut out);
                out
            };
            assert_eq!(product([1e30, 0.0, 1e-40]), vec![0.0; m]);
            assert!(product([0.0, f32::NAN, 0.0]).iter().all(|x| x.is_nan()));
            assert_eq!(product([0.0, 0.0, f32::INFINITY]), vec![f32::INFINITY; m]);
        }
    }
}

#[test]
fn dequantize_returns_what_was_packed() {
    let threads = Threads::new(2).unwrap();
    let w = noise(1, 33 * 19);
    assert_eq!(Matrix::from_f32(&threads, 33, 19, &w).dequantize(), w);
}

#[test]
#[should_panic(expected = "7 values for a [2, 3] weight")]
fn a_weight_of_the_wrong_length_is_refused() {
    Matrix::from_f32(&Threads::new(1).unwrap(), 2, 3, &[0.0; 7]);
}

#[test]
#[should_panic(expected = "x of 5 and out of 2 values for a [2, 3] weight")]
fn an_input_of_the_wrong_length_is_refused() {
    let threads = Threads::new(1).unwrap();
    Matrix::from_f32(&threads, 2, 3, &[0.0; 6]).matmul(&threads, &[0.0; 5], &mut [0.0; 2]);
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig { cases: 200, failure_persistence: None, ..Default::default() })]

    /// Shapes nobody chose: a last row depends on its input alone, and is the product but for what is said to be rounded.
    #[test]
    fn a_product_of_any_shape_is_right_and_the_same_in_company(
        (rows, cols, m) in (1_usize..80, 1_usize..700, 1_usize..30),
        (level, n_threads) in (0_usize..crate::Level::ALL.len(), 1_usize..3),
        seed in 1_u32..1_000_000,
    ) {
        let level = crate::Level::ALL[level];
        if !level.is_available() {
            return Ok(());
        }
        let threads = Threads::with_level(n_threads, level).unwrap();
        let (w, x) = (noise(seed, rows * cols), noise(seed + 1, m * cols));
        let quantized = GgmlFormat::ALL.into_iter().map(|format| {
            Matrix::quantize(&threads, format, rows, cols, |row, values| {
                values.copy_from_slice(&w[row * cols..][..cols]);
            })
        });
        for matrix in matrices(&threads, rows, cols).into_iter().chain(quantized) {
            let mut alone = vec![f32::NAN; rows];
            let out = matrix.product(&threads, &x);
            matrix.matmul(&threads, &x[(m - 1) * cols..], &mut alone);
            let last = &out[(m - 1) * rows..];
            proptest::prop_assert!(last.iter().zip(&alone).all(|(a, b)| a.to_bits() == b.to_bits()));
            // No format rounds an input by more than 1/254 of the largest of 32, which are at most one here.
            let w = matrix.dequantize();
            let sizes = w.chunks_exact(cols).map(|w| w.iter().map(|w| f64::from(w.abs())).sum::<f64>());
            let exact = reference(&w, &x[(m - 1) * cols..], cols);
            for ((got, (sum, _)), size) in last.iter().zip(exact).zip(sizes) {
                proptest::prop_assert!((f64::from(*got) - sum).abs() <= size / 240.0 + 1e-6, "{got}, not {sum}");
            }
        }
    }
}
