//! Time of the published model's products, each alone, its matrix coming from memory.

use baichuan_kernels::ElementType;
use baichuan_kernels::cuda::{Buffer, Device, Output, Product, QuantFormat, QuantMatrix, Rows, Weights};

use crate::quant::issue;
use crate::speed::least_seconds;
use crate::{Outcome, say};

/// Name, outputs, inputs, and what becomes of the result; none: SwiGLU of as many gates and ups.
pub(crate) const PRODUCTS: [(&str, usize, usize, Option<Output>); 5] = [
    ("W_pack", 7168, 5120, Some(Output::Store)),
    ("o_proj", 5120, 5120, Some(Output::AddF32)),
    ("gate and up", 17_408, 5120, None),
    ("down", 5120, 17_408, Some(Output::AddF32)),
    ("head", 133_120, 5120, Some(Output::StoreF32)),
];
/// So many bytes of matrices are gone through in turns that no cache holds one until its next turn.
const CYCLE_BYTES: usize = 600 << 20;
const LAUNCHES: usize = 60;

/// Of every product, with so many rows of activations.
pub(crate) fn measure(rows: &[&str], isq: Option<QuantFormat>) -> Outcome {
    let device = Device::open(0)?;
    let element = ElementType::Bf16;
    for n_rows in rows {
        let n_rows: usize = n_rows.parse()?;
        for (name, n_out, n_in, output) in PRODUCTS {
            let matrix_rows = if output.is_some() { n_out } else { 2 * n_out };
            let bytes = isq.map_or(2 * matrix_rows * n_in, |format| format.bytes(matrix_rows, n_in));
            let matrices = (0..CYCLE_BYTES.div_ceil(bytes) as u64)
                .map(|seed| Matrix::random(&device, element, isq, (matrix_rows, n_in), seed))
                .collect::<Outcome<Vec<_>>>()?;
            let zeros = |bytes| Buffer::zeros(&device, bytes, "measuring products");
            let (x, y) = (zeros(n_rows * n_in * 2)?, zeros(n_rows * matrix_rows * 4)?);
            let scratch = zeros(2 * matrix_rows * n_in)?;
            let both = zeros(n_rows * matrix_rows * 2)?;
            device.random(element, x.all(), 11, 0.0, 1.0)?;
            let launch = |i: usize| -> Outcome {
                let product = Product {
                    element,
                    matrix: matrices[i % matrices.len()].weights(&scratch),
                    n_out,
                    n_in,
                };
                issue(&device, &product, Rows::Plain(x.all()), &y, &both, n_rows, output)
            };
            let launches = || (0..LAUNCHES).try_for_each(launch);
            let seconds = least_seconds(&device, 4, launches)? / LAUNCHES as f64;
            say(format_args!(
                "{n_rows} rows, {name}: {:.1} µs, {:.2} TB/s of the matrix",
                seconds * 1e6,
                bytes as f64 / seconds / 1e12
            ))?;
        }
    }
    Ok(())
}

enum Matrix {
    Plain(Buffer),
    Quantized(QuantMatrix),
}

impl Matrix {
    fn random(
        device: &Device,
        element: ElementType,
        isq: Option<QuantFormat>,
        shape: (usize, usize),
        seed: u64,
    ) -> Outcome<Self> {
        let (what, deviation) = ("measuring products", 0.02);
        let plain = || -> Outcome<Buffer> {
            let matrix = Buffer::zeros(device, shape.0 * shape.1 * 2, what)?;
            device.random(element, matrix.all(), seed, 0.0, deviation)?;
            Ok(matrix)
        };
        let Some(format) = isq else {
            return Ok(Self::Plain(plain()?));
        };
        let matrix = QuantMatrix::zeros(device, format, shape, what)?;
        if format == QuantFormat::Fp8 {
            matrix.round(device, element, plain()?.all())?;
        } else {
            matrix.randomise(device, seed, deviation)?;
        }
        Ok(Self::Quantized(matrix))
    }

    fn weights<'a>(&'a self, scratch: &'a Buffer) -> Weights<'a> {
        match self {
            Self::Plain(matrix) => Weights::Plain(matrix.all()),
            Self::Quantized(matrix) => Weights::Quantized {
                matrix,
                scratch: scratch.all(),
            },
        }
    }
}
