//! Makes a model on a GPU: weights from a checkpoint or drawn on the device, then activations, then caches in what
//! memory is left.

use baichuan_engine::model::ModelSpec;
use baichuan_engine::{CachePlan, Dtype, EngineConfig, LoadError, LoadProgress, LoadRequest};
use baichuan_kernels::ElementType;
use baichuan_kernels::cuda::{Buffer, Choices, Device, GpuError, StepBuffer, StepTables};

use super::CudaModel;
use super::memory::{Activations, Caches};
use super::weights::DeviceWeights;
use crate::cache;
use crate::config::{BaichuanConfig, Span};
use crate::layout::{self, Role, TensorSpec};
use crate::load::Loaded;
use crate::weights::{Stored, Values, Weights, WeightsError};

/// Memory left to the driver, to recorded graphs and to trials of matrix products.
const RESERVE_BYTES: u64 = 768 << 20;

/// Where weights come from.
#[derive(Clone, Copy)]
pub enum Source<'a> {
    /// A checkpoint on disk.
    Checkpoint(&'a Weights),
    /// Random numbers made on the device, for measurements; equal seeds give equal weights in either type.
    Random {
        /// Of all weights.
        seed: u64,
    },
}

/// How to load a model onto a GPU.
pub struct CudaOptions<'a> {
    /// Which GPU, as the driver counts.
    pub ordinal: usize,
    /// Type of weights, activations and caches: f32 or bf16.
    pub dtype: Dtype,
    /// Sizes steps and caches.
    pub engine: &'a EngineConfig,
    /// Called after each tensor.
    pub progress: &'a (dyn Fn(LoadProgress) + Sync),
}

/// Why weights did not get onto the device.
#[derive(Debug, thiserror::Error)]
pub(super) enum CudaLoadError {
    #[error(transparent)]
    Gpu(#[from] GpuError),
    #[error(transparent)]
    Weights(#[from] WeightsError),
}

/// Loads the checkpoint of a server's request onto GPU `ordinal`.
pub(crate) fn load(request: &LoadRequest<'_>, ordinal: usize) -> Result<Loaded<CudaModel>, LoadError> {
    let dir = request.checkpoint.dir();
    let invalid = |message: String| LoadError::Invalid {
        path: dir.to_owned(),
        message,
    };
    let config = BaichuanConfig::from_dir(dir).map_err(|error| invalid(error.to_string()))?;
    let weights = Weights::open(dir, &config).map_err(|error| invalid(error.to_string()))?;
    let specs = layout::all(&config);
    let pack = specs.iter().find(|spec| spec.role == Role::Pack);
    let on_disk = pack.map_or(Dtype::F32, |spec| weights.get(spec).dtype());
    let dtype = request.dtype.unwrap_or(on_disk);
    if let Some(cache_dtype) = request.cache_dtype.filter(|cache| *cache != dtype) {
        let (cache, weights) = (cache_dtype.name(), dtype.name());
        return Err(LoadError::Unsupported {
            key: "cache_dtype",
            message: format!("{cache}: on GPUs keys and values are of the weights' type, {weights}"),
        });
    }
    if let Some(isq) = request.isq {
        return Err(LoadError::Unsupported {
            key: "isq",
            message: format!("{isq} has no kernels on GPUs here"),
        });
    }
    let options = CudaOptions {
        ordinal,
        dtype,
        engine: request.engine,
        progress: request.progress,
    };
    let (model, digest) = CudaModel::read(&config, Source::Checkpoint(&weights), &options)?;
    let name = model.device().name().map_err(load_error)?;
    Ok(Loaded {
        model,
        parameters: specs.iter().map(|spec| spec.n_elements() as u64).sum(),
        dtype,
        quantization: None,
        digest,
        device: format!("cuda:{ordinal} ({name})"),
        config,
    })
}

impl CudaModel {
    /// Loads a model of the configuration. What a checkpoint lacks or has too much, [`Weights::open`] has found.
    pub fn load(
        config: &BaichuanConfig,
        source: Source<'_>,
        options: &CudaOptions<'_>,
    ) -> Result<Self, LoadError> {
        Self::read(config, source, options).map(|(model, _)| model)
    }

    /// The model, and the digest of what was read.
    fn read(
        config: &BaichuanConfig,
        source: Source<'_>,
        options: &CudaOptions<'_>,
    ) -> Result<(Self, blake3::Hash), LoadError> {
        let element = match options.dtype {
            Dtype::F32 => ElementType::F32,
            Dtype::Bf16 => ElementType::Bf16,
            Dtype::F16 => {
                return Err(LoadError::Unsupported {
                    key: "dtype",
                    message: "f16 does not run on GPUs here: use bf16 or f32".into(),
                });
            }
        };
        let device = Device::open(options.ordinal).map_err(load_error)?;
        let engine = options.engine;
        let max_context = config.max_positions.min(engine.max_context.unwrap_or(usize::MAX));
        let mut reader = Reader {
            source,
            element,
            progress: options.progress,
            digest: blake3::Hasher::new(),
            done: 0,
            drawn: 0,
        };
        let weights =
            DeviceWeights::read(&device, config, &mut reader, max_context).map_err(|error| match error {
                CudaLoadError::Gpu(error) => load_error(error),
                CudaLoadError::Weights(error) => LoadError::Compute(error.to_string()),
            })?;
        let activations = Activations::new(&device, config, element, engine).map_err(load_error)?;
        let layers = cache::specs(config, element);
        let free = device
            .free_bytes()
            .map_err(load_error)?
            .saturating_sub(RESERVE_BYTES);
        let plan = CachePlan::new(&layers, engine, max_context, free)?;
        check(config, &plan, free)?;
        let caches = Caches::new(&device, config, &plan, element).map_err(load_error)?;
        let per_sequence = plan.global_blocks_for(max_context) + plan.window_blocks_for(max_context);
        let ints = 4 * activations.rows + plan.slots.next_multiple_of(32) * (6 + per_sequence);
        let step = StepBuffer::new(&device, ints).map_err(load_error)?;
        device.synchronize().map_err(load_error)?;
        let model = Self {
            config: config.clone(),
            spec: ModelSpec {
                vocab_size: config.vocab_size,
                hidden_size: config.hidden_size,
                max_context,
                layers,
                samples: true,
                cache: plan,
            },
            element,
            weights,
            caches,
            activations,
            step,
            tables: StepTables::default(),
            choices: Choices::default(),
            graphs: Default::default(),
            device,
        };
        Ok((model, reader.digest.finalize()))
    }
}

/// Whether the caches planned can be: blocks of each kind that a layer needs, and memory for all.
fn check(config: &BaichuanConfig, plan: &CachePlan, free: u64) -> Result<(), LoadError> {
    let needs = |global: bool| {
        config
            .layers
            .iter()
            .any(|layer| (layer.span == Span::Global) == global)
    };
    if (plan.global_blocks == 0 && needs(true)) || (plan.window_blocks == 0 && needs(false)) {
        let (global, window) = (plan.global_blocks, plan.window_blocks);
        return Err(LoadError::Unsupported {
            key: "cache.budget",
            message: format!(
                "{global} global and {window} window blocks: the model needs blocks of both kinds"
            ),
        });
    }
    if plan.bytes() > free {
        return Err(LoadError::OutOfMemory {
            needed_bytes: plan.bytes(),
            available_bytes: free,
            hint: format!(
                "{} bytes of device memory are missing: lower the cache budget, max_context or max_sequences",
                plan.bytes() - free
            ),
        });
    }
    Ok(())
}

/// Says what to lower where memory does not suffice.
pub(super) fn load_error(error: GpuError) -> LoadError {
    match error {
        GpuError::OutOfMemory { what, wanted, free } => LoadError::OutOfMemory {
            needed_bytes: wanted,
            available_bytes: free,
            hint: format!(
                "{what} lack {} bytes of device memory: lower max_step_tokens, or free the device of other programs",
                wanted.saturating_sub(free)
            ),
        },
        GpuError::NoLibrary { .. } | GpuError::NoDevice { .. } | GpuError::WrongGeneration { .. } => {
            LoadError::Unsupported {
                key: "device",
                message: error.to_string(),
            }
        }
        other => LoadError::Compute(other.to_string()),
    }
}

/// Brings tensors to the device one by one.
pub(super) struct Reader<'a> {
    source: Source<'a>,
    element: ElementType,
    progress: &'a (dyn Fn(LoadProgress) + Sync),
    digest: blake3::Hasher,
    done: u64,
    drawn: u64,
}

impl Reader<'_> {
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
    pub(super) fn head(&mut self, device: &Device, spec: &TensorSpec) -> Result<Buffer, CudaLoadError> {
        let Source::Checkpoint(weights) = self.source else {
            // Drawn with the deviation that makes rows about that long.
            return self.tensor(device, spec);
        };
        let stored = weights.get(spec);
        let buffer = Buffer::zeros(device, spec.n_elements() * self.element.size(), "the weights")?;
        upload(device, buffer.all(), &stored.normalised(self.dtype())?)?;
        self.note(&stored);
        Ok(buffer)
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
        self.digest.update(stored.name().as_bytes());
        self.digest.update(&[0, stored.dtype() as u8]);
        self.digest.update_rayon(stored.bytes());
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
fn distribution(spec: &TensorSpec) -> (f32, f32) {
    let fan_in = spec.shape.last().copied().unwrap_or(1) as f32;
    match spec.role {
        Role::Embedding => (0.0, 0.5),
        Role::Norm => (1.0, 0.1),
        Role::Pack => (0.0, 1.2 / fan_in.sqrt()),
        Role::Linear | Role::Head => (0.0, 1.0 / fan_in.sqrt()),
        Role::Taps => (1.0 / fan_in, 0.25),
    }
}
