//! What lies beyond f16: stored as its largest number, read as that where cuBLASLt made infinity of it, NaN left alone.

use baichuan_kernels::ElementType;
use baichuan_kernels::cuda::{Buffer, Device, Output, Product, Rows, Weights};

use crate::quant::{from_bits, to_bits};
use crate::{Outcome, say};

const F16: ElementType = ElementType::F16;
const LARGEST: f32 = 65_504.0;
const WIDTH: usize = 256;

pub(crate) fn check() -> Outcome {
    let device = Device::open(0)?;
    norm(&device)?;
    // By the kernels for few rows, and by cuBLASLt.
    for n_rows in [8, 48] {
        products(&device, n_rows)?;
    }
    say(format_args!(
        "f16: what is beyond {LARGEST} is stored and read as that"
    ))
}

/// A row of one large number among zeros, which is √WIDTH after its norm, times weights that make more or less than f16
/// holds of it; and a row with NaN.
fn norm(device: &Device) -> Outcome {
    let weights = [5000.0, -5000.0, 4000.0, f32::MIN_POSITIVE];
    for (place, weight) in weights.into_iter().enumerate() {
        let mut x = vec![0f32; 2 * WIDTH];
        x[place] = 3.0;
        x[WIDTH + place] = f32::NAN;
        let x = Buffer::of(device, &x, "a check")?;
        let weight_bits = to_bits(F16, &[weight; WIDTH]);
        let weight_on_device = Buffer::of(device, &weight_bits, "a check")?;
        let y = Buffer::zeros(device, 2 * WIDTH * 2, "a check")?;
        let shape = (2, WIDTH);
        let (x, w, y) = (x.all(), weight_on_device.all(), y.all());
        device.rms_norm(F16, x, w, y, None, None, shape, 0.0)?;
        let got = from_bits(F16, y.download(device, 2 * WIDTH)?);
        let weight = from_bits(F16, weight_bits)[0];
        let expected = ((WIDTH as f32).sqrt() * weight).clamp(-LARGEST, LARGEST);
        if (got[place] - expected).abs() > expected.abs() / 1024.0 || !got[WIDTH + place].is_nan() {
            return Err(format!(
                "norm times {weight}: {} instead of {expected}, {} instead of NaN",
                got[place],
                got[WIDTH + place]
            )
            .into());
        }
    }
    Ok(())
}

/// Gates and ups far beyond f16 on either side: what SwiGLU makes of them is a number, and the same for any kernels.
fn products(device: &Device, n_rows: usize) -> Outcome {
    const N_OUT: usize = 16;
    // Row `i` of the matrix is all `signs[i % 4]`: gates and ups of every combination of signs.
    let sign = |row: usize, period: usize| {
        if (row / period).is_multiple_of(2) {
            1.0
        } else {
            -1.0
        }
    };
    let rows = (0..2 * N_OUT).map(|row| if row < N_OUT { sign(row, 1) } else { sign(row, 2) });
    let matrix: Vec<f32> = rows.flat_map(|sign| [512.0 * sign; WIDTH]).collect();
    let matrix = Buffer::of(device, &to_bits(F16, &matrix), "a check")?;
    let x = to_bits(F16, &vec![512.0; n_rows * WIDTH]);
    let x = Buffer::of(device, &x, "a check")?;
    let product = Product {
        element: F16,
        matrix: Weights::Plain(matrix.all()),
        n_out: N_OUT,
        n_in: WIDTH,
    };
    let zeros = |n: usize| Buffer::zeros(device, n * 2, "a check");
    let (both, act) = (zeros(n_rows * 2 * N_OUT)?, zeros(n_rows * N_OUT)?);
    let x_rows = Rows::Plain(x.all());
    device.multiply_swiglu(&product, x_rows, both.all(), act.all(), (&product, n_rows))?;
    let act = from_bits(F16, act.all().download(device, n_rows * N_OUT)?);
    for (place, got) in act.into_iter().enumerate() {
        let (gate, up) = (sign(place % N_OUT, 1), sign(place % N_OUT, 2));
        let expected = if gate > 0.0 { LARGEST * up } else { 0.0 };
        if got != expected {
            return Err(format!("{n_rows} rows, place {place}: {got} instead of {expected}").into());
        }
    }
    // What few rows store is the largest number itself; of many it may be infinite, never NaN.
    device.multiply(&product, x_rows, both.all(), n_rows, Output::Store)?;
    let stored = from_bits(F16, both.all().download(device, n_rows * N_OUT)?);
    let is_right = |x: &f32| x.abs() == LARGEST || (n_rows > 16 && x.is_infinite());
    match stored.iter().find(|x| !is_right(x)) {
        Some(x) => Err(format!("{n_rows} rows, {x} stored").into()),
        None => Ok(()),
    }
}
