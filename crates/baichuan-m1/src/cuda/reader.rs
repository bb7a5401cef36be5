//! Brings weights to a GPU: from a checkpoint, or drawn there.

use baichuan_engine::{Dtype, LoadProgress};
use baichuan_kernels::cuda::{Buffer, Device, GpuError, QuantFormat, QuantMatrix};
use baichuan_kernels::{ElementType, GgmlFormat, Threads};

use super::weights::DeviceMatrix;
use crate::formats::Formats;
use crate::layout::{Role, TensorSpec};
use crate::weights::{Stored, Values, Weights, WeightsError};

/// Where weights come from.
#[derive(Clone, Copy)]
pub enum Source<'a> {
    /// A checkpoint on disk.
    Checkpoint(&'a Weights),
    /// Random numbers made on the device, for measurements; equal seeds give equal weights in any type.
    Random {
        /// Of all weights.
        seed: u64,
    },
}

impl Source<'_> {
    /// The digest before anything is read.
    fn begin_digest(self) -> blake3::Hasher {
        let mut digest = blake3::Hasher::new();
        if let Self::Random { seed } = self {
            digest.update(b"random");
            digest.update(&seed.to_le_bytes());
        }
        digest
    }
}

/// What is counted while a model is read.
pub(super) struct Tally<'a> {
    /// Of everything read so far.
    pub(super) digest: &'a mut blake3::Hasher,
    /// Bytes read.
    pub(super) done: &'a mut u64,
    /// Tensors drawn.
    pub(super) n_drawn: &'a mut u64,
}

/// Why weights did not get onto the device.
#[derive(Debug, thiserror::Error)]
pub(super) enum CudaLoadError {
    #[error(transparent)]
    Gpu(#[from] GpuError),
    #[error(transparent)]
    Weights(#[from] WeightsError),
}

/// Bytes that a tensor takes on the device.
pub(super) fn bytes_of(spec: &TensorSpec, element: ElementType, formats: &Formats<QuantFormat>) -> usize {
    let quantised = matches!(spec.role, Role::Pack | Role::Linear | Role::Head);
    match formats.of(spec) {
        Some(format) if quantised && format.suits(spec.shape[1]) => {
            format.bytes(spec.shape[0], spec.shape[1])
        }
        _ => spec.n_elements() * element.size(),
    }
}

/// Brings tensors to the device one by one; quantises what is to be quantised.
pub(super) struct Reader<'a> {
    source: Source<'a>,
    element: ElementType,
    progress: &'a (dyn Fn(LoadProgress) + Sync),
    digest: blake3::Hasher,
    done: u64,
    drawn: u64,
    quantizer: &'a Quantizer,
}

/// What matrices are quantised to, and where ggml's blocks are encoded: on the host. FP8 is rounded on the device.
pub(super) struct Quantizer {
    pub(super) formats: Formats<QuantFormat>,
    pub(super) threads: Threads,
}

impl<'a> Reader<'a> {
    pub(super) fn new(
        source: Source<'a>,
        element: ElementType,
        progress: &'a (dyn Fn(LoadProgress) + Sync),
        quantizer: &'a Quantizer,
    ) -> Self {
        Self {
            source,
            element,
            progress,
            digest: source.begin_digest(),
            done: 0,
            drawn: 0,
            quantizer,
        }
    }

    /// What was counted so far, for somebody else's turn at reading.
    pub(super) fn tally(&mut self) -> Tally<'_> {
        Tally {
            digest: &mut self.digest,
            done: &mut self.done,
            n_drawn: &mut self.drawn,
        }
    }

    /// Of everything that was read.
    pub(super) fn digest(&self) -> blake3::Hash {
        self.digest.finalize()
    }

    /// The matrices of these tensors one below another, quantised if that was asked for.
    pub(super) fn matrix<const N: usize>(
        &mut self,
        device: &Device,
        specs: [&TensorSpec; N],
    ) -> Result<DeviceMatrix, CudaLoadError> {
        let Some(matrix) = self.room_for_quantized(device, &specs)? else {
            return Ok(DeviceMatrix::Plain(self.stacked(device, specs)?));
        };
        let format = match matrix.format() {
            QuantFormat::Ggml(format) => format,
            QuantFormat::Fp8 => {
                matrix.round(device, self.element, self.stacked(device, specs)?.all())?;
                return Ok(DeviceMatrix::Quantized(matrix));
            }
        };
        let mut first = 0;
        for spec in specs {
            if let Source::Checkpoint(weights) = self.source {
                let stored = weights.get(spec);
                self.encode(device, (&matrix, format), first, spec, &stored.to_vec::<f32>()?)?;
                self.note(&stored);
            }
            first += spec.shape[0];
        }
        self.draw_quantized(device, &matrix, specs[0])?;
        Ok(DeviceMatrix::Quantized(matrix))
    }

    /// A quantised matrix of the tensors' rows, if they are to be quantised and can be.
    fn room_for_quantized(
        &self,
        device: &Device,
        specs: &[&TensorSpec],
    ) -> Result<Option<QuantMatrix>, GpuError> {
        let n_in = specs[0].shape[1];
        let n_out = specs.iter().map(|spec| spec.shape[0]).sum();
        match self.quantizer.formats.of(specs[0]) {
            Some(format) if format.suits(n_in) => {
                QuantMatrix::zeros(device, format, (n_out, n_in), "the weights").map(Some)
            }
            _ => Ok(None),
        }
    }

    /// Quantises a tensor's numbers into rows of the matrix from `first` on.
    fn encode(
        &self,
        device: &Device,
        (matrix, format): (&QuantMatrix, GgmlFormat),
        first: usize,
        spec: &TensorSpec,
        values: &[f32],
    ) -> Result<(), GpuError> {
        let n_in = spec.shape[1];
        let mut blocks = vec![0; spec.shape[0] * format.row_bytes(n_in)];
        format.encode(&self.quantizer.threads, n_in, values, &mut blocks);
        matrix.set_rows(device, first, &blocks)
    }

    /// Draws a quantised matrix, where weights are drawn.
    fn draw_quantized(
        &mut self,
        device: &Device,
        matrix: &QuantMatrix,
        spec: &TensorSpec,
    ) -> Result<(), GpuError> {
        let Source::Random { seed } = self.source else {
            return Ok(());
        };
        self.drawn += 1;
        let (_, deviation) = distribution(spec);
        matrix.randomise(device, seed << 20 | self.drawn, deviation)
    }

    pub(super) fn tensor(&mut self, device: &Device, spec: &TensorSpec) -> Result<Buffer, CudaLoadError> {
        self.stacked(device, [spec])
    }

    /// Tensors one after another in one buffer.
    pub(super) fn stacked<const N: usize>(
        &mut self,
        device: &Device,
        specs: [&TensorSpec; N],
    ) -> Result<Buffer, CudaLoadError> {
        let sizes = specs.map(|spec| spec.n_elements() * self.element.size());
        let buffer = Buffer::zeros(device, sizes.iter().sum(), "the weights")?;
        let mut offset = 0;
        for (spec, size) in specs.into_iter().zip(sizes) {
            let to = buffer.part(offset, size);
            match self.source {
                Source::Checkpoint(weights) => {
                    let stored = weights.get(spec);
                    let values = stored.values(self.dtype())?;
                    upload(device, to, &values)?;
                    self.note(&stored);
                }
                Source::Random { seed } => {
                    self.drawn += 1;
                    let (mean, deviation) = distribution(spec);
                    device.random(self.element, to, seed << 20 | self.drawn, mean, deviation)?;
                }
            }
            offset += size;
        }
        Ok(buffer)
    }

    /// The head: rows of length one.
    pub(super) fn head(&mut self, device: &Device, spec: &TensorSpec) -> Result<DeviceMatrix, CudaLoadError> {
        // By its own name where it is the embedding.
        let own = spec.as_head();
        let Source::Checkpoint(weights) = self.source else {
            // Drawn with the deviation that makes rows about that long.
            return self.matrix(device, [&own]);
        };
        let stored = weights.get(spec);
        let plain = || -> Result<Buffer, CudaLoadError> {
            let buffer = Buffer::zeros(device, spec.n_elements() * self.element.size(), "the weights")?;
            upload(device, buffer.all(), &stored.normalised(self.dtype())?)?;
            Ok(buffer)
        };
        let head = match self.room_for_quantized(device, &[&own])? {
            None => DeviceMatrix::Plain(plain()?),
            Some(matrix) => {
                match matrix.format() {
                    QuantFormat::Ggml(format) => {
                        if let Values::F32(values) = stored.normalised(Dtype::F32)? {
                            self.encode(device, (&matrix, format), 0, spec, &values)?;
                        }
                    }
                    QuantFormat::Fp8 => matrix.round(device, self.element, plain()?.all())?,
                }
                DeviceMatrix::Quantized(matrix)
            }
        };
        self.note(&stored);
        Ok(head)
    }

    /// Taps of keys, then of values, in f32.
    pub(super) fn taps(&mut self, device: &Device, specs: [&TensorSpec; 2]) -> Result<Buffer, CudaLoadError> {
        if let Source::Checkpoint(weights) = self.source {
            let mut taps = Vec::new();
            for spec in specs {
                let stored = weights.get(spec);
                taps.extend(stored.to_vec::<f32>()?);
                self.note(&stored);
            }
            return Ok(Buffer::of(device, &taps, "the weights")?);
        }
        let element = std::mem::replace(&mut self.element, ElementType::F32);
        let taps = self.stacked(device, specs);
        self.element = element;
        taps
    }

    fn dtype(&self) -> Dtype {
        match self.element {
            ElementType::F32 => Dtype::F32,
            ElementType::F16 => Dtype::F16,
            ElementType::Bf16 => Dtype::Bf16,
        }
    }

    fn note(&mut self, stored: &Stored<'_>) {
        let Source::Checkpoint(weights) = self.source else {
            return;
        };
        stored.hash(&mut self.digest);
        self.done += stored.bytes().len() as u64;
        (self.progress)(LoadProgress {
            stage: "weights",
            done: self.done,
            total: weights.total_bytes(),
        });
    }
}

fn upload(device: &Device, to: baichuan_kernels::cuda::Span<'_>, values: &Values) -> Result<(), GpuError> {
    match values {
        Values::F32(values) => to.upload(device, values),
        Values::F16(values) => to.upload(device, values),
        Values::Bf16(values) => to.upload(device, values),
    }
}

/// Mean and deviation that keep activations near one through any number of layers.
pub(super) fn distribution(spec: &TensorSpec) -> (f32, f32) {
    let fan_in = spec.shape.last().copied().unwrap_or(1) as f32;
    match spec.role {
        Role::Embedding => (0.0, 0.5),
        Role::Norm => (1.0, 0.1),
        Role::Pack => (0.0, 1.2 / fan_in.sqrt()),
        Role::Linear | Role::Head => (0.0, 1.0 / fan_in.sqrt()),
        Role::Taps => (1.0 / fan_in, 0.25),
    }
}
