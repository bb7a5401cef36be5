//! Products with quantised matrices on the device against the same numbers multiplied on the host.

use baichuan_kernels::cuda::{Buffer, Device, Output, Product, QuantFormat, QuantMatrix, Rows, Weights};
use baichuan_kernels::{ElementType, GgmlFormat, Matrix, Threads};
use half::{bf16, f16};

use crate::product_speed::PRODUCTS;
use crate::{Outcome, say};

/// Outputs and inputs; more outputs than a GPU has multiprocessors, and no multiple of anything but, the second time, of
/// the sixteen that products of floats of eight bits come in; so many that a block makes them in several passes.
const SHAPES: [(usize, usize); 3] = [(1006, 1280), (1008, 1280), (18_000, 256)];
const ROWS: [usize; 10] = [1, 5, 8, 16, 32, 33, 48, 100, 112, 200];
/// With matrices of the published model: a cluster's way to share a product out is another for each.
const PUBLISHED_ROWS: [usize; 4] = [20, 64, 128, 200];
/// Of the head, so many outputs: several passes.
const MOST_OUTPUTS: usize = 20_000;
const FORMATS: [QuantFormat; 5] = [
    QuantFormat::Ggml(GgmlFormat::Q8_0),
    QuantFormat::Ggml(GgmlFormat::Q4_0),
    QuantFormat::Ggml(GgmlFormat::Q4K),
    QuantFormat::Ggml(GgmlFormat::Q6K),
    QuantFormat::Fp8,
];

/// A format by mistral.rs's name.
pub(crate) fn format(name: &str) -> Outcome<QuantFormat> {
    let found = FORMATS.into_iter().find(|format| format.name() == name);
    found.ok_or_else(|| format!("{name} has no kernels on GPUs here").into())
}

/// Most rows that kernels for few of them multiply, with codes as exact numbers.
fn few_rows(format: GgmlFormat) -> usize {
    match format {
        GgmlFormat::Q4_0 | GgmlFormat::Q4K => 8,
        _ => 16,
    }
}

/// Types of activations.
pub(crate) const ELEMENTS: [ElementType; 2] = [ElementType::Bf16, ElementType::F16];

/// Every format and type, for few rows and many, or as many as named: within rounding of the dequantised weights' product.
pub(crate) fn check(rows: &[&str]) -> Outcome {
    let rows: Vec<usize> = rows.iter().map(|rows| rows.parse()).collect::<Result<_, _>>()?;
    let all = rows.is_empty();
    let rows = if all { ROWS.to_vec() } else { rows };
    let device = Device::open(0)?;
    let threads = Threads::physical()?;
    for element in ELEMENTS {
        say(format_args!("{element:?}:"))?;
        for format in FORMATS {
            for shape in SHAPES {
                let weights = numbers(shape.0 * shape.1, 1);
                let checked = Checked::new(&device, &threads, (element, format), shape, &weights)?;
                for &n_rows in &rows {
                    checked.products(&device, &numbers(n_rows * shape.1, 7))?;
                }
            }
            if all && format != QuantFormat::Fp8 {
                published(&device, element, format)?;
            }
        }
        // Next to one large number of each row all others are less than the least normal one; activations leave it out,
        // and are large instead, so that results are normal numbers.
        let shape @ (n_out, n_in) = SHAPES[0];
        let mut weights: Vec<f32> = numbers(n_out * n_in, 1).iter().map(|x| x / 32_768.0).collect();
        weights.iter_mut().step_by(n_in).for_each(|x| *x = 1.0);
        let mut x: Vec<f32> = numbers(8 * n_in, 7).iter().map(|x| x * 1024.0).collect();
        x.iter_mut().step_by(n_in).for_each(|x| *x = 0.0);
        say(format_args!("subnormal numbers:"))?;
        Checked::new(&device, &threads, (element, QuantFormat::Fp8), shape, &weights)?
            .products(&device, &x)?;
        if all {
            rounded_at_once(&device, &threads, element)?;
        }
    }
    Ok(())
}

/// Norm and SwiGLU that round their result themselves, against those that leave it to the product.
fn rounded_at_once(device: &Device, threads: &Threads, element: ElementType) -> Outcome {
    let ((n_out, width), n_rows, eps) = (SHAPES[1], 48, 1e-6);
    let matrix = |seed, n_out| {
        let weights = numbers(n_out * width, seed);
        Checked::new(
            device,
            threads,
            (element, QuantFormat::Fp8),
            (n_out, width),
            &weights,
        )
    };
    let (gates_and_ups, last) = (matrix(3, 2 * width)?, matrix(4, n_out)?);
    let next = last.product();
    let plain_next = Product {
        matrix: Weights::Plain(last.scratch.all()),
        ..next
    };
    let gate_up = Product {
        n_out: width,
        ..gates_and_ups.product()
    };
    let x = Buffer::of(device, &numbers(n_rows * width, 9), "a check")?;
    let weight = Buffer::of(device, &to_bits(element, &numbers(width, 10)), "a check")?;
    let zeros = |bytes| Buffer::zeros(device, bytes, "a check");
    let (normed, act) = (zeros(n_rows * width * 2)?, zeros(n_rows * width * 2)?);
    let both = zeros(n_rows * width * 4)?;
    let mut results = Vec::new();
    for next_of_each in [&plain_next, &next] {
        let y = zeros(n_rows * n_out * 4)?;
        let of_norm = device.rms_norm_for(
            (next_of_each, n_rows),
            x.all(),
            weight.all(),
            normed.all(),
            n_rows,
            eps,
        )?;
        device.multiply(&next, of_norm, y.all(), n_rows, Output::StoreF32)?;
        let after_norm: Vec<f32> = y.all().download(device, n_rows * n_out)?;
        let x = Rows::Plain(normed.all());
        let of_swiglu = device.multiply_swiglu(&gate_up, x, both.all(), act.all(), (next_of_each, n_rows))?;
        device.multiply(&next, of_swiglu, y.all(), n_rows, Output::StoreF32)?;
        let after_swiglu: Vec<f32> = y.all().download(device, n_rows * n_out)?;
        results.push([after_norm, after_swiglu]);
    }
    for (name, [apart, at_once]) in ["norm", "SwiGLU"]
        .into_iter()
        .zip([0, 1].map(|i| [&results[0][i], &results[1][i]]))
    {
        let exact: Vec<f64> = apart.iter().map(|x| f64::from(*x)).collect();
        let error = error(&exact, at_once);
        say(format_args!(
            "{name} rounded at once: {error:.1e} off what is rounded apart"
        ))?;
        if error.is_nan() || error > 2e-3 {
            return Err(format!("{name} rounded at once: {error:.1e}").into());
        }
    }
    Ok(())
}

/// A matrix, and what its numbers are.
struct Checked {
    /// Of activations.
    element: ElementType,
    format: QuantFormat,
    matrix: QuantMatrix,
    exact: Vec<f32>,
    shape: (usize, usize),
    scratch: Buffer,
}

impl Checked {
    fn new(
        device: &Device,
        threads: &Threads,
        (element, format): (ElementType, QuantFormat),
        shape @ (n_out, n_in): (usize, usize),
        weights: &[f32],
    ) -> Outcome<Self> {
        let matrix = QuantMatrix::zeros(device, format, shape, "a check")?;
        let exact = match format {
            QuantFormat::Ggml(ggml) => {
                let mut blocks = vec![0; n_out * ggml.row_bytes(n_in)];
                ggml.encode(threads, n_in, weights, &mut blocks);
                let half = n_out / 3;
                let (low, high) = blocks.split_at(half * ggml.row_bytes(n_in));
                matrix.set_rows(device, 0, low)?;
                matrix.set_rows(device, half, high)?;
                Matrix::from_ggml(threads, ggml, n_out, n_in, &blocks)?.dequantize()
            }
            QuantFormat::Fp8 => {
                let weights = to_bits(element, weights);
                matrix.round(device, element, Buffer::of(device, &weights, "a check")?.all())?;
                rounded(&from_bits(element, weights), n_in)
            }
        };
        Ok(Self {
            element,
            format,
            matrix,
            exact,
            shape,
            scratch: Buffer::zeros(device, n_out * n_in * 2, "a check")?,
        })
    }

    fn product(&self) -> Product<'_> {
        Product {
            element: self.element,
            matrix: Weights::Quantized {
                matrix: &self.matrix,
                scratch: self.scratch.all(),
            },
            n_out: self.shape.0,
            n_in: self.shape.1,
        }
    }

    /// The matrix times `x`, whole rows: added, stored as f32 and in its type, and as gates and ups.
    fn products(&self, device: &Device, x: &[f32]) -> Outcome {
        let (n_out, n_in) = self.shape;
        let n_rows = x.len() / n_in;
        let x = to_bits(self.element, x);
        let on_device = Buffer::of(device, &x, "a check")?;
        let product = self.product();
        // What the device multiplies with.
        let rounds = self.format == QuantFormat::Fp8
            && n_rows > 16
            && n_rows.is_multiple_of(16)
            && n_out.is_multiple_of(16);
        let plain = from_bits(self.element, x);
        let multiplied = if rounds {
            rounded(&plain, n_in)
        } else {
            plain.clone()
        };
        let expected = self.multiply(&multiplied);
        // Exact codes and f32 sums; scales and minima of ggml's larger blocks rounded to f16; from some tens of rows on, weights to
        // sixteen bits, at first scales and minima as well; of floats of eight bits on both sides, the tensor cores' own sums.
        let bound = match self.format {
            _ if rounds => 1e-3,
            QuantFormat::Ggml(ggml) if n_rows > few_rows(ggml) => match self.element {
                ElementType::F16 => 1e-3,
                _ => 6e-3,
            },
            _ if n_rows > 64 => 3e-3,
            QuantFormat::Ggml(GgmlFormat::Q4K | GgmlFormat::Q6K) => 1e-3,
            _ => 1e-5,
        };
        let mut report = String::new();
        for output in [Output::AddF32, Output::StoreF32, Output::Store] {
            let y = made(
                device,
                &product,
                Rows::Plain(on_device.all()),
                n_rows,
                Some(output),
            )?;
            let error = error(&expected, &y);
            report += &format!(" {error:.1e}");
            let bound = if output == Output::Store {
                bound + 3e-3
            } else {
                bound
            };
            if error.is_nan() || error > bound {
                return Err(format!("{:?}, {n_rows} rows, {output:?}: {error:.1e}", self.format).into());
            }
        }
        let halves = Product {
            n_out: n_out / 2,
            ..product
        };
        let act = made(device, &halves, Rows::Plain(on_device.all()), n_rows, None)?;
        let swiglu = error(&swiglu(&expected, n_out), &act);
        let whole = if rounds {
            format!(
                "; activations' rounding {:.1e}",
                error(&self.multiply(&plain), &to_f32(&expected))
            )
        } else {
            String::new()
        };
        say(format_args!(
            "{}, {n_out} outputs, {n_rows} rows: error{report} of the result (added, f32, rounded), SwiGLU {swiglu:.1e}{whole}",
            self.format.name()
        ))?;
        if swiglu.is_nan() || swiglu > bound + 8e-3 {
            return Err(format!("{:?}, {n_rows} rows, SwiGLU: {swiglu:.1e}", self.format).into());
        }
        Ok(())
    }

    fn multiply(&self, x: &[f32]) -> Vec<f64> {
        multiply(&self.exact, x, self.shape.1)
    }
}

/// Rows of `x`, of `n_in` numbers each, times a matrix.
pub(crate) fn multiply(matrix: &[f32], x: &[f32], n_in: usize) -> Vec<f64> {
    let dot = |w: &[f32], x: &[f32]| w.iter().zip(x).map(|(w, x)| f64::from(*w) * f64::from(*x)).sum();
    x.chunks(n_in)
        .flat_map(|x| matrix.chunks(n_in).map(move |w| dot(w, x)))
        .collect()
}

/// Issues a product of so many rows into `y`, room for f32; as [`PRODUCTS`] says, SwiGLU where there is no output, `both` then room
/// for gates and ups.
pub(crate) fn issue(
    device: &Device,
    product: &Product<'_>,
    x: Rows<'_>,
    y: &Buffer,
    both: &Buffer,
    n_rows: usize,
    output: Option<Output>,
) -> Outcome {
    let Some(output) = output else {
        // Nothing is multiplied with the result: it is asked for as a plain matrix takes it.
        let next = Product {
            matrix: Weights::Plain(y.all()),
            ..*product
        };
        device.multiply_swiglu(product, x, both.all(), y.all(), (&next, n_rows))?;
        return Ok(());
    };
    Ok(device.multiply(product, x, y.all(), n_rows, output)?)
}

/// The same on the host: stored, or added to zeros.
fn made(
    device: &Device,
    product: &Product<'_>,
    x: Rows<'_>,
    n_rows: usize,
    output: Option<Output>,
) -> Outcome<Vec<f32>> {
    let n = n_rows * product.n_out;
    let (y, both) = (
        Buffer::zeros(device, n * 4, "a check")?,
        Buffer::zeros(device, n * 4, "a check")?,
    );
    issue(device, product, x, &y, &both, n_rows, output)?;
    Ok(match output {
        Some(Output::AddF32 | Output::StoreF32) => y.all().download(device, n)?,
        Some(Output::Store) | None => from_bits(product.element, y.all().download(device, n)?),
    })
}

/// Products of the published model's shapes, which clusters split and blocks make in passes: rows together against the same
/// few at a time, by kernels that the checks above hold to the host.
fn published(device: &Device, element: ElementType, format: QuantFormat) -> Outcome {
    let mut errors = Vec::new();
    for (_, n_out, n_in, output) in PRODUCTS {
        let n_out = n_out.min(MOST_OUTPUTS);
        let matrix_rows = if output.is_some() { n_out } else { 2 * n_out };
        let matrix = QuantMatrix::zeros(device, format, (matrix_rows, n_in), "a check")?;
        matrix.randomise(device, 5, 0.02)?;
        let scratch = Buffer::zeros(device, matrix_rows * n_in * 2, "a check")?;
        let product = Product {
            element,
            matrix: Weights::Quantized {
                matrix: &matrix,
                scratch: scratch.all(),
            },
            n_out,
            n_in,
        };
        for n_rows in PUBLISHED_ROWS {
            let all = to_bits(element, &numbers(n_rows * n_in, 7));
            let by = |at_once: usize| -> Outcome<Vec<f32>> {
                let mut results = Vec::new();
                for x in all.chunks(at_once * n_in) {
                    let n_rows = x.len() / n_in;
                    let x = Buffer::of(device, x, "a check")?;
                    results.extend(made(device, &product, Rows::Plain(x.all()), n_rows, output)?);
                }
                Ok(results)
            };
            let few: Vec<f64> = by(8)?.into_iter().map(f64::from).collect();
            errors.push(error(&few, &by(n_rows)?));
        }
    }
    let worst = errors.iter().copied().fold(0.0, f64::max);
    say(format_args!(
        "{}, published shapes, {PUBLISHED_ROWS:?} rows: within {worst:.1e} of the same eight at a time",
        format.name()
    ))?;
    let bound = match element {
        ElementType::F16 => 1e-3,
        _ => 1e-2,
    };
    if errors.iter().any(|error| error.is_nan() || *error > bound) {
        return Err(format!("{format:?}, published shapes: {errors:?}").into());
    }
    Ok(())
}

/// Of rows of so many numbers: silu of the first half times the second.
pub(crate) fn swiglu(rows: &[f64], width: usize) -> Vec<f64> {
    rows.chunks(width)
        .flat_map(|row| {
            let (gates, ups) = row.split_at(width / 2);
            gates.iter().zip(ups).map(|(g, u)| g / (1.0 + (-g).exp()) * u)
        })
        .collect()
}

/// Of the result's size.
pub(crate) fn error(expected: &[f64], y: &[f32]) -> f64 {
    let (mut error, mut size) = (0.0, 0.0);
    for (expected, y) in expected.iter().zip(y) {
        error += (f64::from(*y) - expected).powi(2);
        size += expected * expected;
    }
    (error / size).sqrt()
}

/// Each row over a factor that makes its largest number 448, rounded to the nearest float of eight bits (E4M3), ties to
/// even, and multiplied again.
fn rounded(x: &[f32], width: usize) -> Vec<f32> {
    let row = |row: &[f32]| {
        let most = row.iter().fold(0f32, |most, x| most.max(x.abs()));
        let (factor, inverse) = (most / 448.0, 448.0 / most);
        row.iter()
            .map(|x| {
                let x = x * inverse;
                let step = x.abs().log2().floor().max(-6.0).exp2() / 8.0;
                ((x / step).round_ties_even() * step).clamp(-448.0, 448.0) * factor
            })
            .collect::<Vec<f32>>()
    };
    x.chunks(width).flat_map(row).collect()
}

/// Numbers of a type of sixteen bits.
pub(crate) fn to_bits(element: ElementType, x: &[f32]) -> Vec<u16> {
    let bits = |x: &f32| match element {
        ElementType::F16 => f16::from_f32(*x).to_bits(),
        _ => bf16::from_f32(*x).to_bits(),
    };
    x.iter().map(bits).collect()
}

pub(crate) fn from_bits(element: ElementType, bits: Vec<u16>) -> Vec<f32> {
    let number = |bits| match element {
        ElementType::F16 => f16::from_bits(bits).to_f32(),
        _ => bf16::from_bits(bits).to_f32(),
    };
    bits.into_iter().map(number).collect()
}

fn to_f32(x: &[f64]) -> Vec<f32> {
    x.iter().map(|x| *x as f32).collect()
}

/// Numbers between -1 and 1, by a recurrence.
pub(crate) fn numbers(n: usize, seed: u64) -> Vec<f32> {
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
