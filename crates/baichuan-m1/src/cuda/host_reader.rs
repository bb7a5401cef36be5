//! Weights of a mapped model's layers that live on the host: from the checkpoint, or drawn.

use baichuan_engine::{Dtype, LoadProgress};
use baichuan_kernels::{ElementType, Matrix, Threads};
use half::bf16;

use super::reader::{Source, Tally, distribution};
use crate::config::BaichuanConfig;
use crate::formats::Formats;
use crate::layer::DecoderLayer;
use crate::layout::TensorSpec;
use crate::load::reader::Reader;
use crate::load::{Tensors, layer};
use crate::weights::WeightsError;

/// Reads or draws the layers of a model whose other layers live on GPUs.
pub(super) enum HostReader<'a> {
    Checkpoint(Box<Reader<'a>>, &'a Threads),
    Drawn(Drawn<'a>),
}

impl<'a> HostReader<'a> {
    /// `element`: of drawn weights that are not quantised.
    pub(super) fn new(
        source: Source<'a>,
        (dtype, element): (Dtype, ElementType),
        formats: &'a Formats,
        threads: &'a Threads,
        progress: &'a (dyn Fn(LoadProgress) + Sync),
    ) -> Self {
        match source {
            Source::Checkpoint(weights) => {
                let numbers = (Some(dtype), formats);
                let reader = Reader::new(weights, numbers, threads, progress);
                Self::Checkpoint(Box::new(reader), threads)
            }
            Source::Random { seed } => Self::Drawn(Drawn {
                seed,
                n_drawn: 0,
                element,
                formats,
                threads,
            }),
        }
    }

    /// Layer number `index`, counted in the tally of who reads the others.
    pub(super) fn layer(
        &mut self,
        config: &BaichuanConfig,
        index: usize,
        tally: Tally<'_>,
    ) -> Result<DecoderLayer, WeightsError> {
        match self {
            Self::Checkpoint(reader, threads) => {
                reader.swap_counts((&mut *tally.digest, &mut *tally.done));
                let layer = threads.install(|| layer(&mut **reader, config, index, threads));
                reader.swap_counts((tally.digest, tally.done));
                layer
            }
            Self::Drawn(drawn) => {
                drawn.n_drawn = *tally.n_drawn;
                let threads = drawn.threads;
                let layer = threads.install(|| layer(drawn, config, index, threads));
                *tally.n_drawn = drawn.n_drawn;
                layer
            }
        }
    }
}

/// Draws weights as `random_fill` of the GPU's kernels does: plain ones are equal wherever a layer lives.
pub(super) struct Drawn<'a> {
    seed: u64,
    n_drawn: u64,
    element: ElementType,
    formats: &'a Formats,
    threads: &'a Threads,
}

impl Drawn<'_> {
    /// The seed of the next tensor.
    fn next_seed(&mut self) -> u64 {
        self.n_drawn += 1;
        self.seed << 20 | self.n_drawn
    }
}

impl Tensors for Drawn<'_> {
    fn vector(&mut self, spec: &TensorSpec) -> Result<Vec<f32>, WeightsError> {
        let (seed, of) = (self.next_seed(), distribution(spec));
        Ok((0..spec.n_elements() as u64)
            .map(|n| number(seed, n, of))
            .collect())
    }

    fn matrix(&mut self, specs: &[&TensorSpec]) -> Result<Matrix, WeightsError> {
        let (part_rows, cols) = (specs[0].shape[0], specs[0].shape[1]);
        let seeds: Vec<u64> = specs.iter().map(|_| self.next_seed()).collect();
        let of = distribution(specs[0]);
        let source = |row: usize, out: &mut [f32]| {
            let (seed, first) = (seeds[row / part_rows], (row % part_rows * cols) as u64);
            for (n, x) in (first..).zip(out) {
                *x = number(seed, n, of);
            }
        };
        let rows = part_rows * specs.len();
        Ok(match self.formats.of(specs[0]) {
            Some(format) => Matrix::quantize(self.threads, format, rows, cols, source),
            None => Matrix::round(self.threads, self.element, rows, cols, source),
        })
    }
}

/// Number `n` of those that `random_fill` in rows.cu draws from a seed.
fn number(seed: u64, n: u64, (mean, deviation): (f32, f32)) -> f32 {
    let mut z = seed
        .wrapping_mul(0x9e37_79b9_7f4a_7c15)
        .wrapping_add(n.wrapping_mul(0xbf58_476d_1ce4_e5b9))
        .wrapping_add(0x94d0_49bb_1331_11eb);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^= z >> 31;
    let sum = (z & 0xffff) + (z >> 16 & 0xffff) + (z >> 32 & 0xffff) + (z >> 48);
    bf16::from_f32(mean + deviation * (sum as f32 - 131_070.0) / 37_837.22).to_f32()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_the_mean_and_deviation_asked_for() {
        let n = 100_000;
        let drawn: Vec<f64> = (0..n).map(|i| f64::from(number(7, i, (1.0, 0.5)))).collect();
        let mean = drawn.iter().sum::<f64>() / n as f64;
        let variance = drawn.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n as f64;
        assert!((mean - 1.0).abs() < 0.01, "{mean}");
        assert!((variance.sqrt() - 0.5).abs() < 0.01, "{variance}");
    }
}
