//! Products with quantised matrices on the device against the same numbers multiplied on the host.

use baichuan_kernels::cuda::{Buffer, Device, Output, Product, QuantMatrix, Weights};
use baichuan_kernels::{ElementType, GgmlFormat, Matrix, Threads};

use crate::{Outcome, say};

/// Outputs and inputs; more outputs than a GPU has multiprocessors, and no multiple of anything.
const SHAPE: (usize, usize) = (1003, 1280);
const ROWS: [usize; 6] = [1, 5, 8, 16, 33, 100];

/// A format by mistral.rs's name.
pub(crate) fn format(name: &str) -> Outcome<GgmlFormat> {
    match name {
        "Q8_0" => Ok(GgmlFormat::Q8_0),
        "Q4_0" => Ok(GgmlFormat::Q4_0),
        "Q4K" => Ok(GgmlFormat::Q4K),
        _ => Err(format!("{name} has no kernels on GPUs here").into()),
    }
}

/// Every format, for few rows and many: within rounding of the dequantised weights' product.
pub(crate) fn check() -> Outcome {
    let device = Device::open(0)?;
    let threads = Threads::physical()?;
    for format in [GgmlFormat::Q8_0, GgmlFormat::Q4_0, GgmlFormat::Q4K] {
        let (n_out, n_in) = SHAPE;
        let numbers = numbers(n_out * n_in, 1);
        let mut blocks = vec![0; n_out * format.row_bytes(n_in)];
        format.encode(&threads, n_in, &numbers, &mut blocks);
        let matrix = QuantMatrix::zeros(&device, format, SHAPE, "a check")?;
        let half = n_out / 2;
        let (low, high) = blocks.split_at(half * format.row_bytes(n_in));
        matrix.set_rows(&device, 0, low)?;
        matrix.set_rows(&device, half, high)?;
        let exact = Matrix::from_ggml(&threads, format, n_out, n_in, &blocks)?.dequantize();
        let scratch = Buffer::zeros(&device, n_out * n_in * 2, "a check")?;
        for n_rows in ROWS {
            let x: Vec<half::bf16> = self::numbers(n_rows * n_in, 7)
                .into_iter()
                .map(half::bf16::from_f32)
                .collect();
            let on_device = Buffer::of(&device, &x, "a check")?;
            let y = Buffer::zeros(&device, n_rows * n_out * 4, "a check")?;
            let product = Product {
                element: ElementType::Bf16,
                matrix: Weights::Quantized {
                    matrix: &matrix,
                    scratch: scratch.all(),
                },
                n_out,
                n_in,
            };
            device.multiply(&product, on_device.all(), y.all(), n_rows, Output::AddF32)?;
            let y: Vec<f32> = y.all().download(&device, n_rows * n_out)?;
            let (mut error, mut size) = (0.0, 0.0);
            for (x, y) in x.chunks(n_in).zip(y.chunks(n_out)) {
                for (weights, y) in exact.chunks(n_in).zip(y) {
                    let sum: f64 = weights
                        .iter()
                        .zip(x)
                        .map(|(w, x)| f64::from(*w) * x.to_f64())
                        .sum();
                    error += (f64::from(*y) - sum).powi(2);
                    size += sum * sum;
                }
            }
            let error = (error / size).sqrt();
            say(format_args!(
                "{format:?}, {n_rows} rows: error {error:.1e} of the result"
            ))?;
            // Exact codes and f32 sums; Q4_K's scales and minima rounded to f16; for many rows, weights to bf16.
            let bound = match format {
                _ if n_rows > 48 => 3e-3,
                GgmlFormat::Q4K => 1e-3,
                _ => 1e-5,
            };
            if error.is_nan() || error > bound {
                return Err(format!("{format:?}, {n_rows} rows: {error:.1e}").into());
            }
        }
    }
    Ok(())
}

/// Numbers between -1 and 1, by a recurrence.
fn numbers(n: usize, seed: u64) -> Vec<f32> {
    let mut state = seed;
    (0..n)
        .map(|_| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f32 / (1 << 23) as f32 - 1.0
        })
        .collect()
}
