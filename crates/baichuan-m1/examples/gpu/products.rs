//! Products with plain matrices of sixteen bits on the device against sums in f64 on the host.

use baichuan_kernels::ElementType;
use baichuan_kernels::cuda::{Buffer, Device, Output, Product, Rows, Weights};

use crate::quant::{ELEMENTS, error, from_bits, multiply, numbers, swiglu, to_bits};
use crate::{Outcome, say};

/// Outputs and inputs: more outputs than a GPU has multiprocessors, and fewer; so many that a block makes them in several
/// passes; inputs that are no multiple of what a kernel takes at once.
const SHAPES: [(usize, usize); 4] = [(1006, 1280), (1008, 1160), (48, 320), (18_000, 192)];
/// Of every kernel's tiles the least and the most, and of cuBLASLt's.
const ROWS: [usize; 10] = [1, 8, 16, 17, 32, 33, 64, 65, 96, 97];

/// Within rounding of the result, for every kind of result.
pub(crate) fn check() -> Outcome {
    let device = Device::open(0)?;
    for element in ELEMENTS {
        say(format_args!("{element:?}:"))?;
        for shape in SHAPES {
            of_shape(&device, element, shape)?;
        }
    }
    Ok(())
}

fn of_shape(device: &Device, element: ElementType, (n_out, n_in): (usize, usize)) -> Outcome {
    let weights = to_bits(element, &numbers(n_out * n_in, 3));
    let matrix = Buffer::of(device, &weights, "a check")?;
    let weights = from_bits(element, weights);
    let product = Product {
        element,
        matrix: Weights::Plain(matrix.all()),
        n_out,
        n_in,
    };
    // Gates and ups are the halves of the same matrix.
    let halves = Product {
        n_out: n_out / 2,
        ..product
    };
    // Sums in f32, then rounded; beside gates and ups also between.
    let (summed, stored, gated) = match element {
        ElementType::F16 => (1e-5, 4e-4, 1.5e-3),
        _ => (1e-5, 3e-3, 1e-2),
    };
    for n_rows in ROWS {
        let x = to_bits(element, &numbers(n_rows * n_in, 7));
        let on_device = Buffer::of(device, &x, "a check")?;
        let x = Rows::Plain(on_device.all());
        let expected = multiply(
            &weights,
            &from_bits(element, on_device.all().download(device, n_rows * n_in)?),
            n_in,
        );
        let mut errors = Vec::new();
        for output in [Output::AddF32, Output::StoreF32, Output::Store] {
            let before: Vec<f32> = numbers(n_rows * n_out, 11);
            let y = Buffer::of(device, &before, "a check")?;
            device.multiply(&product, x, y.all(), n_rows, output)?;
            let (y, bound) = match output {
                Output::Store => (
                    from_bits(element, y.all().download(device, n_rows * n_out)?),
                    stored,
                ),
                Output::StoreF32 => (y.all().download(device, n_rows * n_out)?, summed),
                Output::AddF32 => {
                    let mut y: Vec<f32> = y.all().download(device, n_rows * n_out)?;
                    y.iter_mut().zip(&before).for_each(|(y, before)| *y -= before);
                    (y, summed)
                }
            };
            errors.push((error(&expected, &y), bound));
        }
        let act = Buffer::zeros(device, n_rows * n_out, "a check")?;
        let both = Buffer::zeros(device, n_rows * n_out * 2, "a check")?;
        device.multiply_swiglu(&halves, x, both.all(), act.all(), (&product, n_rows))?;
        let act = from_bits(element, act.all().download(device, n_rows * (n_out / 2))?);
        errors.push((error(&swiglu(&expected, n_out), &act), gated));
        let [added, summed, stored, gated] = [0, 1, 2, 3].map(|i| errors[i].0);
        say(format_args!(
            "[{n_out}][{n_in}], {n_rows} rows: error {added:.1e} {summed:.1e} {stored:.1e} of the result (added, f32, rounded), SwiGLU {gated:.1e}"
        ))?;
        if errors
            .iter()
            .any(|(error, bound)| error.is_nan() || error > bound)
        {
            return Err(format!("[{n_out}][{n_in}], {n_rows} rows: beyond its bound").into());
        }
    }
    Ok(())
}
