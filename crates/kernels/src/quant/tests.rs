//! Quantised weights: encoding, packing, and products against f64.

use half::{bf16, f16};

use super::GgmlFormat;
use crate::matrix::tests::{SHAPES, noise, reference};
use crate::threads::{Threads, all_for_tests};
use crate::{Affine4, ElementType, Level, MappedFile, Matrix, MatrixError};

fn quantized(threads: &Threads, format: GgmlFormat, rows: usize, cols: usize) -> (Matrix, Vec<f32>) {
    let w = noise(11, rows * cols);
    let matrix = Matrix::quantize(threads, format, rows, cols, |row, values| {
        values.copy_from_slice(&w[row * cols..][..cols]);
    });
    (matrix, w)
}

/// Tensors of an affine weight with any codes, and the weight they stand for.
struct AffineTensors {
    codes: Vec<u8>,
    scales: Vec<u8>,
    biases: Vec<u8>,
    element: ElementType,
    group: usize,
    values: Vec<f32>,
}

impl AffineTensors {
    fn new(rows: usize, cols: usize, group: usize, element: ElementType) -> Self {
        let bytes = |x: f32| match element {
            ElementType::F32 => (x, x.to_le_bytes().to_vec()),
            ElementType::Bf16 => (
                bf16::from_f32(x).to_f32(),
                bf16::from_f32(x).to_le_bytes().to_vec(),
            ),
            ElementType::F16 => (f16::from_f32(x).to_f32(), f16::from_f32(x).to_le_bytes().to_vec()),
        };
        let n_groups = rows * cols / group;
        let scales: Vec<_> = noise(2, n_groups).into_iter().map(bytes).collect();
        let biases: Vec<_> = noise(3, n_groups).into_iter().map(bytes).collect();
        let codes: Vec<u8> = noise(4, rows * cols / 2)
            .iter()
            .map(|x| (x * 128.0) as i8 as u8)
            .collect();
        let value = |i: usize| {
            let word = u32::from_le_bytes(std::array::from_fn(|byte| codes[i / 8 * 4 + byte]));
            let code = (word >> (4 * (i % 8)) & 15) as f32;
            scales[i / group].0 * code + biases[i / group].0
        };
        let values = (0..rows * cols).map(value).collect();
        let join = |numbers: &[(f32, Vec<u8>)]| numbers.iter().flat_map(|(_, bytes)| bytes.clone()).collect();
        Self {
            scales: join(&scales),
            biases: join(&biases),
            values,
            codes,
            element,
            group,
        }
    }

    fn affine(&self) -> Affine4<'_> {
        let Self {
            codes,
            scales,
            biases,
            element,
            group,
            ..
        } = self;
        Affine4 {
            codes,
            scales,
            biases,
            element: *element,
            group: *group,
        }
    }
}

/// Weights of every quantised format; shapes not of whole groups only where the format allows.
fn matrices(threads: &Threads, rows: usize, cols: usize) -> Vec<Matrix> {
    let mut all: Vec<Matrix> = GgmlFormat::ALL
        .into_iter()
        .map(|format| quantized(threads, format, rows, cols).0)
        .collect();
    for group in [32, 64, 128]
        .into_iter()
        .filter(|group| cols.is_multiple_of(*group))
    {
        for element in [ElementType::F32, ElementType::Bf16, ElementType::F16] {
            let tensors = AffineTensors::new(rows, cols, group, element);
            all.push(Matrix::from_affine4(threads, rows, cols, &[tensors.affine()]).unwrap());
        }
    }
    all
}

/// Most that rounding `x` can change each product, by the bound in the module's documentation.
fn rounding_bound(w: &[f32], x: &[f32], cols: usize) -> Vec<f64> {
    let bound = |w: &[f32], x: &[f32]| -> f64 {
        let blocks = w.chunks(32).zip(x.chunks(32));
        let of_block = |(w, x): (&[f32], &[f32])| {
            let largest = x.iter().fold(0.0_f32, |largest, x| x.abs().max(largest));
            f64::from(largest) / 254.0 * w.iter().map(|w| f64::from(w.abs())).sum::<f64>()
        };
        blocks.map(of_block).sum()
    };
    x.chunks_exact(cols)
        .flat_map(|x| w.chunks_exact(cols).map(move |w| bound(w, x)))
        .collect()
}

#[test]
fn products_differ_from_plain_arithmetic_by_no_more_than_the_stated_bound() {
    for threads in all_for_tests() {
        for (rows, cols) in SHAPES.into_iter().chain([(40, 1536), (24, 256)]) {
            for matrix in matrices(&threads, rows, cols) {
                let w = matrix.dequantize();
                for m in [1, 2, 3, 4, 5, 9, 21] {
                    let x = noise(m as u32, m * cols);
                    let mut out = vec![f32::NAN; m * rows];
                    matrix.matmul(&threads, &x, &mut out);
                    let expected = reference(&w, &x, cols)
                        .into_iter()
                        .zip(rounding_bound(&w, &x, cols));
                    for (got, ((sum, size), bound)) in out.iter().zip(expected) {
                        let error = (f64::from(*got) - sum).abs();
                        let what = format!("{:?} [{rows}, {cols}] × {m}", matrix.format());
                        assert!(
                            error <= 1.001 * bound + 1e-5 * size,
                            "{what}: {got}, not {sum} ± {bound}"
                        );
                    }
                }
            }
        }
    }
}

/// Inputs that bytes hold exactly leave no rounding but f32's, so a wrong code, scale or sum shows at once.
#[test]
fn products_with_whole_numbers_are_exact() {
    for threads in all_for_tests() {
        for (rows, cols) in [(17, 256), (33, 1280), (16, 2560)] {
            for matrix in matrices(&threads, rows, cols) {
                let w = matrix.dequantize();
                for m in [1, 6] {
                    // Each block of 32 has a 127, so its step is one.
                    let whole = |(i, x): (usize, f32)| if i % 32 == 5 { 127.0 } else { (x * 127.0).round() };
                    let x: Vec<f32> = noise(8, m * cols).into_iter().enumerate().map(whole).collect();
                    let mut out = vec![f32::NAN; m * rows];
                    matrix.matmul(&threads, &x, &mut out);
                    for (got, (sum, size)) in out.iter().zip(reference(&w, &x, cols)) {
                        let error = (f64::from(*got) - sum).abs();
                        assert!(
                            error <= 3e-6 * size,
                            "{:?} [{rows}, {cols}]: {got}, not {sum}",
                            matrix.format()
                        );
                    }
                }
            }
        }
    }
}

#[test]
fn a_row_is_the_same_to_the_bit_alone_in_company_and_on_any_threads() {
    for (rows, cols) in [(1, 32), (17, 257), (130, 96), (33, 2816)] {
        let m = 200;
        let x = noise(3, m * cols);
        for level in Level::ALL.into_iter().filter(|level| level.is_available()) {
            let [one, two] = [1, 2].map(|n| Threads::with_level(n, level).unwrap());
            for matrix in matrices(&one, rows, cols) {
                let mut alone = vec![0.0; m * rows];
                for (x, out) in x.chunks_exact(cols).zip(alone.chunks_exact_mut(rows)) {
                    matrix.matmul(&one, x, out);
                }
                for (threads, company) in [(&one, 2), (&two, 7), (&one, 13), (&two, 200)] {
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

#[test]
fn levels_with_fused_arithmetic_agree_to_the_bit() {
    let levels: Vec<Threads> = [Level::Neon, Level::Avx2, Level::Avx512, Level::Avx512Bf16]
        .into_iter()
        .filter_map(|level| Threads::with_level(1, level).ok())
        .collect();
    for (rows, cols) in [(17, 256), (33, 1280)] {
        let x = noise(3, 5 * cols);
        let products = levels.iter().map(|threads| {
            let of = |matrix: &Matrix| {
                let mut out = vec![0.0; 5 * rows];
                matrix.matmul(threads, &x, &mut out);
                out.into_iter().map(f32::to_bits).collect::<Vec<_>>()
            };
            matrices(threads, rows, cols).iter().map(of).collect::<Vec<_>>()
        });
        let products: Vec<_> = products.collect();
        assert!(products.windows(2).all(|pair| pair[0] == pair[1]));
    }
}

#[test]
fn encoding_is_as_near_as_the_format_allows() {
    // Root mean square error over that of the numbers, for numbers spread evenly from -1 to 1.
    for (format, most) in [
        (GgmlFormat::Q8_0, 0.005),
        (GgmlFormat::Q4_0, 0.075),
        (GgmlFormat::Q4K, 0.07),
        (GgmlFormat::Q6K, 0.02),
    ] {
        let threads = Threads::new(2).unwrap();
        let (matrix, w) = quantized(&threads, format, 24, 768);
        let square = |x: f32| f64::from(x).powi(2);
        let error: f64 = matrix
            .dequantize()
            .iter()
            .zip(&w)
            .map(|(a, b)| square(a - b))
            .sum();
        let relative = (error / w.iter().map(|w| square(*w)).sum::<f64>()).sqrt();
        assert!(relative < most && relative > most / 3.0, "{format:?}: {relative}");
    }
}

/// The reference of the two simple formats, written down once more from their definition.
#[test]
fn q8_0_and_q4_0_encode_as_the_reference_does() {
    let threads = Threads::new(1).unwrap();
    let mut x = noise(6, 32 * 200);
    x[..32].fill(0.0);
    // Halves, and two numbers of one magnitude.
    x[32..64]
        .iter_mut()
        .enumerate()
        .for_each(|(i, x)| *x = (i as f32 - 16.0) / 2.0);
    x[32 + 31] = 8.0;
    for (row, block) in x.chunks_exact(32).enumerate() {
        let mut got = vec![0; 34];
        GgmlFormat::Q8_0.encode(&threads, 32, block, &mut got);
        let d = block.iter().fold(0.0_f32, |m, x| m.max(x.abs())) / 127.0;
        let id = if d != 0.0 { 1.0 / d } else { 0.0 };
        let mut expected = f16::from_f32(d).to_le_bytes().to_vec();
        expected.extend(block.iter().map(|x| (x * id).round() as i8 as u8));
        assert_eq!(got, expected, "Q8_0 block {row}");

        let mut got = vec![0; 18];
        GgmlFormat::Q4_0.encode(&threads, 32, block, &mut got);
        let mut largest = 0.0_f32;
        for x in block {
            if largest.abs() < x.abs() {
                largest = *x;
            }
        }
        let d = largest / -8.0;
        let id = if d != 0.0 { 1.0 / d } else { 0.0 };
        let code = |x: f32| std::cmp::min(15, (x * id + 8.5) as i8) as u8;
        let mut expected = f16::from_f32(d).to_le_bytes().to_vec();
        expected.extend((0..16).map(|i| code(block[i]) | code(block[i + 16]) << 4));
        assert_eq!(got, expected, "Q4_0 block {row}");
    }
}

/// ggml's own way to numbers from blocks of any bytes, written down from the layout.
fn decode(format: GgmlFormat, block: &[u8]) -> Vec<f32> {
    let half = |at: usize| f16::from_le_bytes([block[at], block[at + 1]]).to_f32();
    match format {
        GgmlFormat::Q8_0 => block[2..].iter().map(|&q| half(0) * f32::from(q as i8)).collect(),
        GgmlFormat::Q4_0 => {
            let value = |q: u8| half(0) * (f32::from(q) - 8.0);
            let lower = block[2..].iter().map(|q| value(q & 15));
            lower.chain(block[2..].iter().map(|q| value(q >> 4))).collect()
        }
        GgmlFormat::Q4K => {
            let s = &block[4..16];
            let scale = |j: usize| match j {
                0..4 => (s[j] & 63, s[j + 4] & 63),
                _ => (
                    (s[j + 4] & 0xf) | ((s[j - 4] >> 6) << 4),
                    (s[j + 4] >> 4) | ((s[j] >> 6) << 4),
                ),
            };
            let mut values = Vec::new();
            for (pair, qs) in block[16..].chunks_exact(32).enumerate() {
                for upper in [false, true] {
                    let (sc, m) = scale(2 * pair + usize::from(upper));
                    let (d, m) = (half(0) * f32::from(sc), half(2) * f32::from(m));
                    values.extend(
                        qs.iter()
                            .map(|q| d * f32::from(if upper { q >> 4 } else { q & 0xf }) - m),
                    );
                }
            }
            values
        }
        GgmlFormat::Q6K => {
            let mut values = vec![0.0; 256];
            for n in 0..2 {
                let (ql, qh, sc) = (&block[64 * n..], &block[128 + 32 * n..], &block[192 + 8 * n..]);
                for l in 0..32 {
                    let codes = [
                        (ql[l] & 0xf) | ((qh[l] & 3) << 4),
                        (ql[l + 32] & 0xf) | (((qh[l] >> 2) & 3) << 4),
                        (ql[l] >> 4) | (((qh[l] >> 4) & 3) << 4),
                        (ql[l + 32] >> 4) | (((qh[l] >> 6) & 3) << 4),
                    ];
                    for (i, code) in codes.into_iter().enumerate() {
                        let scale = half(208) * f32::from(sc[l / 16 + 2 * i] as i8);
                        values[128 * n + 32 * i + l] = scale * (f32::from(code) - 32.0);
                    }
                }
            }
            values
        }
    }
}

#[test]
fn blocks_from_a_file_dequantize_as_their_layout_says() {
    for threads in all_for_tests() {
        for format in GgmlFormat::ALL {
            let (rows, cols) = (19, 512);
            let mut blocks: Vec<u8> = noise(5, rows * format.row_bytes(cols))
                .iter()
                .map(|x| (x * 128.0) as i8 as u8)
                .collect();
            // Any bytes will do as codes, but factors are to be numbers.
            let factors: &[usize] = match format {
                GgmlFormat::Q8_0 | GgmlFormat::Q4_0 => &[0],
                GgmlFormat::Q4K => &[0, 2],
                GgmlFormat::Q6K => &[208],
            };
            for (i, block) in blocks.chunks_exact_mut(format.block_bytes()).enumerate() {
                for &at in factors {
                    block[at..at + 2]
                        .copy_from_slice(&f16::from_f32((i % 7) as f32 / 8.0 - 0.3).to_le_bytes());
                }
            }
            let expected: Vec<f32> = blocks
                .chunks_exact(format.block_bytes())
                .flat_map(|block| decode(format, block))
                .collect();
            let matrix = Matrix::from_ggml(&threads, format, rows, cols, &blocks).unwrap();
            for (i, (got, expected)) in matrix.dequantize().iter().zip(&expected).enumerate() {
                assert!(
                    (got - expected).abs() <= 1e-6 * expected.abs().max(8.0),
                    "{format:?} {i}: {got}, {expected}"
                );
            }
            // Codes of any value, -128 too, multiply as they should.
            let x = noise(9, 3 * cols);
            let mut out = vec![0.0; 3 * rows];
            matrix.matmul(&threads, &x, &mut out);
            let bounds = reference(&expected, &x, cols)
                .into_iter()
                .zip(rounding_bound(&expected, &x, cols));
            for (got, ((sum, size), bound)) in out.iter().zip(bounds) {
                let error = (f64::from(*got) - sum).abs();
                assert!(
                    error <= 1.001 * bound + 1e-5 * size,
                    "{format:?}: {got}, not {sum} ± {bound}"
                );
            }
        }
    }
}

#[test]
fn affine_weights_dequantize_as_their_tensors_say() {
    let threads = Threads::new(2).unwrap();
    for group in [32, 64, 128] {
        for element in [ElementType::F32, ElementType::Bf16, ElementType::F16] {
            let tensors = AffineTensors::new(35, 384, group, element);
            let matrix = Matrix::from_affine4(&threads, 35, 384, &[tensors.affine()]).unwrap();
            for (got, expected) in matrix.dequantize().iter().zip(&tensors.values) {
                assert!(
                    (got - expected).abs() <= 1e-6,
                    "{group} {element:?}: {got}, not {expected}"
                );
            }
        }
    }
}

#[test]
fn packed_weights_are_no_larger_than_the_formats_say() {
    let threads = Threads::new(2).unwrap();
    let bits = |matrix: &Matrix| matrix.bytes() as f64 * 8.0 / (64.0 * 1024.0);
    for (format, expected) in [
        (GgmlFormat::Q8_0, 8.5),
        (GgmlFormat::Q4_0, 4.5),
        (GgmlFormat::Q4K, 4.625),
        (GgmlFormat::Q6K, 6.5625),
    ] {
        assert_eq!(
            bits(&quantized(&threads, format, 64, 1024).0),
            expected,
            "{format:?}"
        );
    }
    let tensors = AffineTensors::new(64, 1024, 64, ElementType::Bf16);
    assert_eq!(
        bits(&Matrix::from_affine4(&threads, 64, 1024, &[tensors.affine()]).unwrap()),
        4.5
    );
}

#[test]
fn a_number_that_is_not_finite_is_not_lost() {
    for threads in all_for_tests() {
        for format in GgmlFormat::ALL {
            let matrix = Matrix::quantize(&threads, format, 2, 64, |row, values| {
                values.fill(1.0);
                values[40] = if row == 0 { f32::NAN } else { 1.0 };
            });
            let mut out = [0.0; 2];
            matrix.matmul(&threads, &[1.0; 64], &mut out);
            assert!(out[0].is_nan() && out[1].is_finite(), "{format:?}: {out:?}");
            let mut x = [1.0; 64];
            x[3] = f32::NAN;
            matrix.matmul(&threads, &x, &mut out);
            assert!(out[1].is_nan(), "{format:?}: {out:?}");
        }
    }
}

#[test]
fn bytes_that_do_not_fit_the_shape_are_refused_by_name() {
    let threads = Threads::new(1).unwrap();
    let from_ggml = |rows, cols, len| {
        Matrix::from_ggml(&threads, GgmlFormat::Q4K, rows, cols, &vec![0; len])
            .map(|m| m.rows())
            .unwrap_err()
    };
    assert_eq!(
        from_ggml(2, 300, 288),
        MatrixError::Ragged {
            cols: 300,
            block: 256
        }
    );
    assert_eq!(
        from_ggml(2, 256, 287),
        MatrixError::Length {
            what: "weight",
            got: 287,
            expected: 288
        }
    );
    assert_eq!(from_ggml(0, 256, 0), MatrixError::Empty { rows: 0, cols: 144 });

    let mut tensors = AffineTensors::new(4, 128, 64, ElementType::Bf16);
    tensors.biases.pop();
    let error = Matrix::from_affine4(&threads, 4, 128, &[tensors.affine()]).unwrap_err();
    assert_eq!(
        error,
        MatrixError::Length {
            what: "biases",
            got: 15,
            expected: 16
        }
    );
    let error = Matrix::from_affine4(
        &threads,
        4,
        128,
        &[Affine4 {
            group: 16,
            ..tensors.affine()
        }],
    )
    .unwrap_err();
    assert_eq!(error, MatrixError::Group { group: 16 });
    let tensors = AffineTensors::new(4, 128, 64, ElementType::Bf16);
    let other = AffineTensors::new(4, 128, 32, ElementType::Bf16);
    let error = Matrix::from_affine4(&threads, 8, 128, &[tensors.affine(), other.affine()]).unwrap_err();
    assert_eq!(error, MatrixError::Unlike { first: 64, other: 32 });
}

#[test]
fn weights_stacked_in_one_compute_as_they_do_apart() {
    for threads in all_for_tests() {
        // Seven rows: a panel has rows of both.
        let (first, second) = (
            AffineTensors::new(7, 128, 64, ElementType::F16),
            AffineTensors::new(7, 128, 64, ElementType::F16),
        );
        let x = noise(5, 3 * 128);
        let multiply = |parts: &[Affine4<'_>]| {
            let rows = 7 * parts.len();
            let mut out = vec![0.0; 3 * rows];
            let matrix = Matrix::from_affine4(&threads, rows, 128, parts).unwrap();
            matrix.matmul(&threads, &x, &mut out);
            out
        };
        let (one, other) = (multiply(&[first.affine()]), multiply(&[second.affine()]));
        let apart: Vec<f32> = (0..3)
            .flat_map(|i| [&one[7 * i..][..7], &other[7 * i..][..7]].concat())
            .collect();
        assert_eq!(multiply(&[first.affine(), second.affine()]), apart);
    }
}

#[test]
fn packed_weights_read_from_a_file_as_they_were() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("packed");
    for threads in all_for_tests() {
        for format in GgmlFormat::ALL {
            let (matrix, _) = quantized(&threads, format, 37, 300);
            std::fs::write(&path, matrix.packed().unwrap()).unwrap();
            let file = MappedFile::open(&path).unwrap();
            assert_eq!(file.len(), Matrix::packed_bytes(format, 37, 300));
            let open = |rows, range| Matrix::from_packed(&threads, format, rows, 300, file.slice(range));
            let mapped = open(37, 0..file.len()).unwrap();
            assert_eq!(mapped.dequantize(), matrix.dequantize());
            let x = noise(8, 2 * 300);
            let (mut out, mut expected) = (vec![0.0; 74], vec![0.0; 74]);
            mapped.matmul(&threads, &x, &mut out);
            matrix.matmul(&threads, &x, &mut expected);
            assert_eq!(out, expected);

            let expected = Matrix::packed_bytes(format, 37, 300);
            let short = MatrixError::Length {
                what: "weight",
                got: expected - 1,
                expected,
            };
            assert_eq!(open(37, 0..file.len() - 1).unwrap_err(), short);
            let fewer = Matrix::packed_bytes(format, 16, 300);
            assert_eq!(open(16, 2..2 + fewer).unwrap_err(), MatrixError::Misaligned);
        }
    }
}
