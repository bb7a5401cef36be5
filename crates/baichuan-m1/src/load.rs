//! Makes a model of a checkpoint: tensors are read, checked, rounded or quantised to what is asked for and packed, one at
//! a time, see [`reader`]; what a checkpoint has packed already is read where it lies.

pub(crate) mod reader;

use std::path::Path;
use std::sync::Arc;

use baichuan_engine::model::ModelSpec;
use baichuan_engine::{
    CacheDtype, CachePlan, Dtype, EngineConfig, IsqType, LoadError, LoadProgress, Topology,
};
use baichuan_kernels::{ElementType, GgmlFormat, KvFormat, Matrix, Threads};
use mistralrs_quant::QuantMethod;
use sysinfo::{MemoryRefreshKind, RefreshKind, System};

use self::reader::{Reader, SOURCE_DTYPE};
use crate::attention::HybridAttention;
use crate::cache::{self, Caches};
use crate::config::{BaichuanConfig, Quantization, Span};
use crate::conv::Convolution;
use crate::formats::Formats;
use crate::layer::DecoderLayer;
use crate::layout::{self, LayerSpec, Role, TensorSpec};
use crate::linear::HostLinear;
use crate::model::BaichuanM1;
use crate::plugin::format_of;
use crate::weights::{StoredMatrix, Weights, WeightsError};

/// How to load a model.
pub struct LoadOptions<'a> {
    /// Type of the weights in memory; absent: each as it is on disk.
    pub dtype: Option<Dtype>,
    /// What cached keys and values are kept as; absent: as the checkpoint's weights, before they were quantised.
    pub cache_dtype: Option<CacheDtype>,
    /// Format to quantise projections and head to, the embedding to [`Quantization::embedding`]; absent: they stay as
    /// they are.
    pub isq: Option<GgmlFormat>,
    /// What single layers and tensors are quantised to instead.
    pub topology: &'a Topology,
    /// Where to compute.
    pub threads: Threads,
    /// Sizes the caches.
    pub engine: &'a EngineConfig,
    /// Called after each tensor.
    pub progress: &'a (dyn Fn(LoadProgress) + Sync),
}

/// A model and what is to be told of it.
pub struct Loaded<M = BaichuanM1> {
    /// The model.
    pub model: M,
    /// What config.json says.
    pub config: BaichuanConfig,
    /// Number of weights.
    pub parameters: u64,
    /// Type of the projections in memory; where they are quantised, of what is not.
    pub dtype: Dtype,
    /// What cached keys and values are kept as.
    pub cache_dtype: CacheDtype,
    /// What projections and head are quantised to, if they are, as mistral.rs spells it.
    pub quantization: Option<String>,
    /// Tells models apart whose layers are quantised each in its own way.
    pub mark: Option<String>,
    /// Digest of all tensors as they are on disk, however they are spread over files.
    pub digest: blake3::Hash,
    /// Where it runs, e.g. `cpu`.
    pub device: String,
}

/// Loads the checkpoint in the folder `dir`.
pub fn load(dir: &Path, options: &LoadOptions<'_>) -> Result<Loaded, LoadError> {
    let invalid = |message: String| LoadError::Invalid {
        path: dir.to_owned(),
        message,
    };
    let config = BaichuanConfig::from_dir(dir).map_err(|error| invalid(error.to_string()))?;
    let formats = formats(&config, options)?;
    let weights = Weights::open(dir, &config).map_err(|error| invalid(error.to_string()))?;
    let on_disk = on_disk(&weights, &config);
    options.threads.install(|| {
        let numbers = (options.dtype, &formats);
        let mut reader = Reader::new(&weights, numbers, &options.threads, options.progress);
        let parts =
            parts(&mut reader, &config, &options.threads).map_err(|error| invalid(error.to_string()))?;
        let cache_dtype = options.cache_dtype.unwrap_or(on_disk.into());
        let (caches, spec) = caches(&config, options, cache_dtype, reader.mapped_bytes())?;
        let quantization = match config.quantization {
            _ if formats.quantise() => formats.name(&config),
            Some(Quantization::Panels16(format)) => Some(format.name().to_owned()),
            Some(Quantization::Affine4) => Some(IsqType::AFQ4.name().to_owned()),
            None => None,
        };
        let is_quantised = quantization.is_some() && !formats.differ();
        Ok(Loaded {
            parameters: layout::all(&config)
                .iter()
                .map(|spec| spec.n_elements() as u64)
                .sum(),
            dtype: match is_quantised {
                true => Dtype::F32,
                false => options.dtype.unwrap_or(on_disk),
            },
            mark: formats.mark(),
            cache_dtype,
            quantization,
            digest: reader.digest(),
            device: "cpu".into(),
            model: BaichuanM1 {
                threads: options.threads.clone(),
                embedding: parts.embedding,
                layers: parts.layers,
                final_norm: parts.final_norm,
                head: parts.head,
                caches,
                spec,
                config: config.clone(),
            },
            config,
        })
    })
}

/// What plain weights are to be quantised to; nothing where the checkpoint is so already.
fn formats(config: &BaichuanConfig, options: &LoadOptions<'_>) -> Result<Formats, LoadError> {
    let unsupported = |key, message: String| Err(LoadError::Unsupported { key, message });
    if let Some(dtype) = options
        .dtype
        .filter(|_| options.isq.is_some() || config.quantization.is_some())
    {
        let message = format!("{}: weights are quantised, leave it unset", dtype.name());
        return unsupported("dtype", message);
    }
    let formats = Formats::new(config, options.isq, options.topology, format_of)?;
    if config.quantization.is_some() && formats.differ() {
        let message = "the checkpoint is quantised already, no layer can be quantised otherwise";
        return unsupported("topology", message.into());
    }
    match (options.isq, config.quantization) {
        (_, None) => Ok(formats),
        (None, _) => Ok(Formats::uniform(None)),
        (Some(isq), Some(Quantization::Panels16(format))) if isq == format => Ok(Formats::uniform(None)),
        (Some(isq), Some(_)) => {
            let message = format!(
                "{}: the checkpoint is quantised already, leave it unset",
                isq.name()
            );
            unsupported("isq", message)
        }
    }
}

/// The type that the weights have, or had before they were quantised.
pub(crate) fn on_disk(weights: &Weights, config: &BaichuanConfig) -> Dtype {
    let named = |name: &str| {
        [Dtype::F32, Dtype::F16, Dtype::Bf16]
            .into_iter()
            .find(|dtype| dtype.name() == name)
    };
    let pack = layout::all(config)
        .into_iter()
        .find(|spec| spec.role == Role::Pack);
    match pack.map(|spec| weights.matrix(&spec)) {
        Some(StoredMatrix::Plain(stored)) => stored.dtype(),
        Some(StoredMatrix::Affine4 { scales, .. }) => scales.dtype(),
        Some(StoredMatrix::Packed(_)) | None => {
            weights.note(SOURCE_DTYPE).and_then(named).unwrap_or(Dtype::F32)
        }
    }
}

/// What of a model is weights.
struct Parts {
    /// `[vocab, hidden]`.
    embedding: Matrix,
    layers: Vec<DecoderLayer>,
    /// `[hidden]`.
    final_norm: Vec<f32>,
    /// `[vocab, hidden]`, rows of length one.
    head: Arc<dyn QuantMethod>,
}

fn parts(reader: &mut Reader<'_>, config: &BaichuanConfig, threads: &Threads) -> Result<Parts, WeightsError> {
    let spec = layout::embedding(config);
    let embedding = reader.matrix(&[&spec])?;
    let layers = (0..config.layers.len())
        .map(|index| layer(reader, config, index, threads))
        .collect::<Result<_, _>>()?;
    let final_norm = reader.vector(&layout::final_norm(config))?;
    let is_packed = matches!(config.quantization, Some(Quantization::Panels16(_)));
    let head = match layout::head(config).or_else(|| is_packed.then(|| layout::own_head(config))) {
        Some(head) => reader.matrix(&[&head])?,
        // The head is the embedding normalised, while the embedding itself stays as it is.
        None => reader.tied_head(&spec, &embedding)?,
    };
    Ok(Parts {
        embedding,
        layers,
        final_norm,
        head: Arc::new(HostLinear::new(head, threads.clone())),
    })
}

/// Where a layer's tensors come from; asked for in the order in which they are used.
pub(crate) trait Tensors {
    /// Scales and taps.
    fn vector(&mut self, spec: &TensorSpec) -> Result<Vec<f32>, WeightsError>;

    /// The matrices of `specs`, as many rows each, one below the other.
    fn matrix(&mut self, specs: &[&TensorSpec]) -> Result<Matrix, WeightsError>;
}

/// Makes layer number `index`.
pub(crate) fn layer(
    reader: &mut impl Tensors,
    config: &BaichuanConfig,
    index: usize,
    threads: &Threads,
) -> Result<DecoderLayer, WeightsError> {
    let shape = config.layers[index];
    let spec = LayerSpec::new(config, index, &shape);
    let conv_window = config.conv_window;
    let convolution = |taps| Convolution::new(taps, conv_window, shape.head_dim);
    let linear = |matrix| -> Arc<dyn QuantMethod> { Arc::new(HostLinear::new(matrix, threads.clone())) };
    Ok(DecoderLayer {
        input_norm: reader.vector(&spec.input_norm)?,
        attention: HybridAttention {
            shape,
            pack: linear(reader.matrix(&[&spec.pack])?),
            conv_k: convolution(reader.vector(&spec.taps_k)?),
            conv_v: convolution(reader.vector(&spec.taps_v)?),
            out: linear(reader.matrix(&[&spec.out])?),
            conv_window,
        },
        post_norm: reader.vector(&spec.post_norm)?,
        gate_up: linear(match config.quantization {
            Some(Quantization::Panels16(_)) => reader.matrix(&[&spec.gate_up()])?,
            _ => reader.matrix(&[&spec.gate, &spec.up])?,
        }),
        down: linear(reader.matrix(&[&spec.down])?),
        norm_eps: config.rms_norm_eps as f32,
    })
}

/// Divides memory among the layers and takes it.
///
/// `mapped_bytes` of weights are read where they lie in a file: free memory to the system, but not to the caches.
fn caches(
    config: &BaichuanConfig,
    options: &LoadOptions<'_>,
    cache_dtype: CacheDtype,
    mapped_bytes: u64,
) -> Result<(Caches, ModelSpec), LoadError> {
    let format = match cache_dtype {
        CacheDtype::F32 => KvFormat::Plain(ElementType::F32),
        CacheDtype::F16 => KvFormat::Plain(ElementType::F16),
        CacheDtype::Bf16 => KvFormat::Plain(ElementType::Bf16),
        CacheDtype::Int8 => KvFormat::Int8,
    };
    let layers = cache::specs(config, format);
    let max_context = config
        .max_positions
        .min(options.engine.max_context.unwrap_or(usize::MAX));
    let free = free_memory()?.saturating_sub(mapped_bytes);
    let cache = CachePlan::new(&layers, options.engine, max_context, free)?;
    cache.fits(free)?;
    let lacks =
        |blocks, span: fn(Span) -> bool| blocks == 0 && config.layers.iter().any(|layer| span(layer.span));
    if lacks(cache.global_blocks, |span| span == Span::Global)
        || lacks(cache.window_blocks, |span| span != Span::Global)
    {
        let (global, window) = (cache.global_blocks, cache.window_blocks);
        return Err(LoadError::Unsupported {
            key: "cache.budget",
            message: format!(
                "{global} global and {window} window blocks: the model needs blocks of both kinds"
            ),
        });
    }
    let caches = Caches::new(config, &cache, format);
    let spec = ModelSpec {
        vocab_size: config.vocab_size,
        hidden_size: config.hidden_size,
        max_context: config.max_positions,
        layers,
        cache,
        samples: false,
    };
    Ok((caches, spec))
}

/// Memory that this process may still take, in bytes.
pub(crate) fn free_memory() -> Result<u64, LoadError> {
    let memory = RefreshKind::nothing().with_memory(MemoryRefreshKind::nothing().with_ram());
    let system = System::new_with_specifics(memory)
        .map_err(|error| LoadError::Compute(format!("cannot tell how much memory is free: {error}")))?;
    // A group's limit counts pages of files that were read, too, but the system takes those back first.
    let of_group = system
        .cgroup_limits()
        .map_or(u64::MAX, |limits| limits.total_memory.saturating_sub(limits.rss));
    Ok(system.available_memory().min(of_group))
}
