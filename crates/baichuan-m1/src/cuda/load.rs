//! Makes a model on a GPU: weights from a checkpoint or drawn on the device, then activations, then caches in what
//! memory is left.

use baichuan_engine::model::ModelSpec;
use baichuan_engine::{
    CacheBudget, CachePlan, Dtype, EngineConfig, IsqType, LoadError, LoadProgress, LoadRequest, Topology,
};
use baichuan_kernels::cuda::{Choices, Device, GpuError, QuantFormat, StepBuffer, StepTables};
use baichuan_kernels::{ElementType, GgmlFormat, Threads};

use super::CudaModel;
use super::mapped::MappedModel;
use super::memory::{Activations, Caches};
use super::reader::{CudaLoadError, Quantizer, Reader, Source, bytes_of};
use super::weights::DeviceWeights;
use crate::cache;
use crate::config::{BaichuanConfig, Span};
use crate::formats::Formats;
use crate::layout::{self, Role};
use crate::load::Loaded;
use crate::place::Place;
use crate::weights::Weights;

/// Memory left to the driver, to recorded graphs and to trials of matrix products.
pub(super) const RESERVE_BYTES: u64 = 768 << 20;

/// How to load a model onto a GPU.
pub struct CudaOptions<'a> {
    /// Which GPU, as the driver counts.
    pub ordinal: usize,
    /// Type of weights, activations and caches.
    pub dtype: Dtype,
    /// What projections and the head are quantised to while they are loaded; not with f32. Matrices whose width the
    /// format's kernels do not take stay as they are.
    pub isq: Option<QuantFormat>,
    /// What single layers and tensors are quantised to instead; its devices are not looked at.
    pub topology: &'a Topology,
    /// Sizes steps and caches.
    pub engine: &'a EngineConfig,
    /// Called after each tensor.
    pub progress: &'a (dyn Fn(LoadProgress) + Sync),
}

/// What a server's request names, opened and checked.
struct Opened {
    config: BaichuanConfig,
    /// Absent: they are drawn.
    weights: Option<Weights>,
    dtype: Dtype,
    isq: Option<QuantFormat>,
    formats: Formats<QuantFormat>,
}

impl Opened {
    fn new(request: &LoadRequest<'_>) -> Result<Self, LoadError> {
        let dir = request.checkpoint.dir();
        let invalid = |message: String| LoadError::Invalid {
            path: dir.to_owned(),
            message,
        };
        let config = BaichuanConfig::from_dir(dir).map_err(|error| invalid(error.to_string()))?;
        if config.quantization.is_some() {
            return Err(invalid(
                "a checkpoint that is quantised already has no kernels on GPUs here yet".into(),
            ));
        }
        let weights = match request.random_weights {
            Some(_) => None,
            None => Some(Weights::open(dir, &config).map_err(|error| invalid(error.to_string()))?),
        };
        let specs = layout::all(&config);
        let pack = specs.iter().find(|spec| spec.role == Role::Pack);
        let on_disk = match (pack, &weights) {
            (Some(pack), Some(weights)) => weights.get(pack).dtype(),
            _ => Dtype::Bf16,
        };
        let dtype = request.dtype.unwrap_or(on_disk);
        if let Some(cache_dtype) = request.cache_dtype.filter(|cache| *cache != dtype.into()) {
            let (cache, weights) = (cache_dtype.name(), dtype.name());
            return Err(LoadError::Unsupported {
                key: "cache_dtype",
                message: format!("{cache}: on GPUs keys and values are of the weights' type, {weights}"),
            });
        }
        let isq = request.isq.map(format_of).transpose()?;
        let formats = Formats::new(&config, isq, &request.placement.topology, format_of)?;
        Ok(Self {
            config,
            weights,
            dtype,
            isq,
            formats,
        })
    }

    fn source(&self, request: &LoadRequest<'_>) -> Source<'_> {
        match &self.weights {
            Some(weights) => Source::Checkpoint(weights),
            None => Source::Random {
                seed: request.random_weights.unwrap_or_default(),
            },
        }
    }

    fn loaded<M>(self, model: M, digest: blake3::Hash, device: String) -> Loaded<M> {
        let specs = layout::all(&self.config);
        Loaded {
            model,
            parameters: specs.iter().map(|spec| spec.n_elements() as u64).sum(),
            dtype: self.dtype,
            cache_dtype: self.dtype.into(),
            quantization: self.formats.name(&self.config),
            mark: self.formats.mark(),
            digest,
            device,
            config: self.config,
        }
    }
}

/// Loads what a server's request names onto GPU `ordinal`.
pub(crate) fn load(request: &LoadRequest<'_>, ordinal: usize) -> Result<Loaded<CudaModel>, LoadError> {
    let opened = Opened::new(request)?;
    let options = CudaOptions {
        ordinal,
        dtype: opened.dtype,
        isq: opened.isq,
        topology: &request.placement.topology,
        engine: request.engine,
        progress: request.progress,
    };
    let (model, digest) = CudaModel::read(&opened.config, opened.source(request), &options)?;
    let name = model.device().name().map_err(load_error)?;
    Ok(opened.loaded(model, digest, format!("cuda:{ordinal} ({name})")))
}

/// Loads what a server's request names as its device map says.
pub(crate) fn load_mapped(
    request: &LoadRequest<'_>,
    place: Place,
    threads: Threads,
) -> Result<Loaded<MappedModel>, LoadError> {
    let opened = Opened::new(request)?;
    let source = opened.source(request);
    let (model, digest) = MappedModel::read(
        request,
        &opened.config,
        source,
        place,
        (opened.dtype, opened.formats.clone()),
        threads,
    )?;
    let device = model.device();
    Ok(opened.loaded(model, digest, device))
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
        let element = element_of(options.dtype);
        let device = Device::open(options.ordinal).map_err(load_error)?;
        let engine = options.engine;
        let max_context = config.max_positions.min(engine.max_context.unwrap_or(usize::MAX));
        let formats = Formats::new(config, options.isq, options.topology, format_of)?;
        check_weights(config, element, &formats, &device)?;
        let quantizer = quantizer(options.dtype, formats)?;
        let mut reader = Reader::new(source, element, options.progress, &quantizer);
        let weights =
            DeviceWeights::read(&device, config, &mut reader, max_context).map_err(weights_error)?;
        let activations = Activations::new(&device, config, element, engine, quantizer.formats.quantise())
            .map_err(load_error)?;
        let layers = cache::specs(config, element);
        let free = device
            .free_bytes()
            .map_err(load_error)?
            .saturating_sub(RESERVE_BYTES);
        let engine = within(engine, &device)?;
        let plan = CachePlan::new(&layers, &engine, max_context, free)?;
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
        Ok((model, reader.digest()))
    }
}

/// Whether the weights fit, before minutes are spent on reading them.
fn check_weights(
    config: &BaichuanConfig,
    element: ElementType,
    formats: &Formats<QuantFormat>,
    device: &Device,
) -> Result<(), LoadError> {
    let specs = layout::all(config);
    let bytes: usize = specs.iter().map(|spec| bytes_of(spec, element, formats)).sum();
    let needed_bytes = bytes as u64 + RESERVE_BYTES;
    let available_bytes = device.free_bytes().map_err(load_error)?;
    if needed_bytes > available_bytes {
        return Err(LoadError::OutOfMemory {
            what: "the weights",
            needed_bytes,
            available_bytes,
            hint: "free the GPU of other programs, or spread the layers with device_map".into(),
        });
    }
    Ok(())
}

/// The format that a name of mistral.rs stands for.
fn format_of(isq: IsqType) -> Result<QuantFormat, LoadError> {
    let ggml = match isq {
        IsqType::FP8 => return Ok(QuantFormat::Fp8),
        IsqType::Q8_0 | IsqType::Bits8 => GgmlFormat::Q8_0,
        IsqType::Q6K | IsqType::Bits6 => GgmlFormat::Q6K,
        IsqType::Q4K | IsqType::Bits4 => GgmlFormat::Q4K,
        IsqType::Q4_0 => GgmlFormat::Q4_0,
        _ => {
            return Err(LoadError::Unsupported {
                key: "isq",
                message: format!(
                    "{isq} has no kernels on GPUs here, choose one of FP8, Q8_0, Q6K, Q4K, Q4_0, 8, 6, 4"
                ),
            });
        }
    };
    Ok(QuantFormat::Ggml(ggml))
}

/// What to quantise with.
pub(super) fn quantizer(dtype: Dtype, formats: Formats<QuantFormat>) -> Result<Quantizer, LoadError> {
    if formats.quantise() && dtype == Dtype::F32 {
        return Err(LoadError::Unsupported {
            key: "isq",
            message: "on GPUs quantised weights go with dtype bf16 or f16".into(),
        });
    }
    let threads = match formats.quantise() {
        true => Threads::physical(),
        false => Threads::new(1),
    };
    let threads = threads.map_err(|error| LoadError::Compute(error.to_string()))?;
    Ok(Quantizer { formats, threads })
}

/// The engine's setup with the share of device memory that caches may have as bytes.
pub(super) fn within(engine: &EngineConfig, device: &Device) -> Result<EngineConfig, LoadError> {
    let mut engine = engine.clone();
    if let CacheBudget::Utilization(_) = engine.cache.budget {
        let (free, total) = device.memory().map_err(load_error)?;
        let kept = total as f64 * (1.0 - engine.cache.gpu_memory_utilization);
        engine.cache.budget = CacheBudget::Bytes(free.saturating_sub(kept as u64));
    }
    Ok(engine)
}

/// Whether the caches planned can be: blocks of each kind that a layer needs, and memory for all.
pub(super) fn check(config: &BaichuanConfig, plan: &CachePlan, free: u64) -> Result<(), LoadError> {
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
            what: "the caches",
            needed_bytes: plan.bytes(),
            available_bytes: free,
            hint: "lower the cache budget, max_context or max_sequences".into(),
        });
    }
    Ok(())
}

/// The type of weights, activations and caches.
pub(super) fn element_of(dtype: Dtype) -> ElementType {
    match dtype {
        Dtype::F32 => ElementType::F32,
        Dtype::Bf16 => ElementType::Bf16,
        Dtype::F16 => ElementType::F16,
    }
}

pub(super) fn weights_error(error: CudaLoadError) -> LoadError {
    match error {
        CudaLoadError::Gpu(error) => load_error(error),
        CudaLoadError::Weights(error) => LoadError::Compute(error.to_string()),
    }
}

/// Says what to lower where memory does not suffice.
pub(super) fn load_error(error: GpuError) -> LoadError {
    match error {
        GpuError::OutOfMemory { what, wanted, free } => LoadError::OutOfMemory {
            what,
            needed_bytes: wanted,
            available_bytes: free,
            hint: "free the GPU of other programs, spread the layers (device_map), or lower max_step_tokens"
                .into(),
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
