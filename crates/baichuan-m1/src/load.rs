//! Makes a model of a checkpoint: tensors are read, checked, rounded to the type asked for and packed, one at a
//! time, so that no more than one of them is ever in memory twice.

use std::path::Path;
use std::sync::Arc;

use baichuan_engine::model::ModelSpec;
use baichuan_engine::{CachePlan, Dtype, EngineConfig, LoadError, LoadProgress};
use baichuan_kernels::{ElementType, GgmlFormat, Matrix, Threads};
use candle_core::{Device, Tensor};
use mistralrs_quant::QuantMethod;
use sysinfo::{MemoryRefreshKind, RefreshKind, System};

use crate::attention::HybridAttention;
use crate::cache::{self, Caches};
use crate::config::{BaichuanConfig, Span};
use crate::conv::Convolution;
use crate::layer::DecoderLayer;
use crate::layout::{self, LayerSpec, TensorSpec};
use crate::linear::HostLinear;
use crate::model::BaichuanM1;
use crate::weights::{Stored, Values, Weights, WeightsError};

/// How to load a model.
pub struct LoadOptions<'a> {
    /// Type of the weights in memory; absent: each as it is on disk.
    pub dtype: Option<Dtype>,
    /// Type of cached keys and values; absent: f32.
    pub cache_dtype: Option<Dtype>,
    /// Format to quantise projections and head to; absent: they stay as they are.
    pub isq: Option<GgmlFormat>,
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
    /// Type of the projections in memory.
    pub dtype: Dtype,
    /// What projections and head were quantised to, if they were.
    pub quantization: Option<GgmlFormat>,
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
    let weights = Weights::open(dir, &config).map_err(|error| invalid(error.to_string()))?;
    options.threads.install(|| {
        let mut reader = Reader {
            weights: &weights,
            options,
            digest: blake3::Hasher::new(),
            done: 0,
        };
        let parts = reader
            .parts(&config)
            .map_err(|error| invalid(error.to_string()))?;
        let (caches, spec) = caches(&config, options)?;
        let specs = layout::all(&config);
        let pack = specs.iter().find(|spec| spec.role == layout::Role::Pack);
        let on_disk = pack.map_or(Dtype::F32, |spec| weights.get(spec).dtype());
        Ok(Loaded {
            parameters: specs.iter().map(|spec| spec.n_elements() as u64).sum(),
            dtype: options.dtype.unwrap_or(on_disk),
            quantization: options.isq,
            digest: reader.digest.finalize(),
            device: "cpu".into(),
            model: BaichuanM1 {
                threads: options.threads.clone(),
                embedding: tensor(parts.embedding, config.hidden_size).map_err(compute_error)?,
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

/// What of a model is weights.
struct Parts {
    /// `[vocab, hidden]`.
    embedding: Values,
    layers: Vec<DecoderLayer>,
    /// `[hidden]`.
    final_norm: Vec<f32>,
    /// `[vocab, hidden]`, rows of length one.
    head: Arc<dyn QuantMethod>,
}

struct Reader<'a> {
    weights: &'a Weights,
    options: &'a LoadOptions<'a>,
    digest: blake3::Hasher,
    done: u64,
}

impl Reader<'_> {
    fn parts(&mut self, config: &BaichuanConfig) -> Result<Parts, WeightsError> {
        let spec = layout::embedding(config);
        let embedding = self.values(&spec)?;
        let layers = (0..config.layers.len())
            .map(|index| self.layer(config, index))
            .collect::<Result<_, _>>()?;
        let final_norm = self.vector(&layout::final_norm(config))?;
        // Tied: the head is the embedding normalised, while the embedding itself stays as it is.
        let head_spec = layout::head(config);
        let stored = self.weights.get(head_spec.as_ref().unwrap_or(&spec));
        let values = stored.normalised(self.dtype(&stored))?;
        if head_spec.is_some() {
            self.note(&stored);
        }
        let head = self.linear(values, &spec);
        Ok(Parts {
            embedding,
            layers,
            final_norm,
            head,
        })
    }

    fn layer(&mut self, config: &BaichuanConfig, index: usize) -> Result<DecoderLayer, WeightsError> {
        let shape = config.layers[index];
        let spec = LayerSpec::new(config, index, &shape);
        let conv_window = config.conv_window;
        let convolution = |taps| Convolution::new(taps, conv_window, shape.head_dim);
        Ok(DecoderLayer {
            input_norm: self.vector(&spec.input_norm)?,
            attention: HybridAttention {
                shape,
                pack: self.projection(&spec.pack)?,
                conv_k: convolution(self.vector(&spec.taps_k)?),
                conv_v: convolution(self.vector(&spec.taps_v)?),
                out: self.projection(&spec.out)?,
                conv_window,
            },
            post_norm: self.vector(&spec.post_norm)?,
            gate: self.projection(&spec.gate)?,
            up: self.projection(&spec.up)?,
            down: self.projection(&spec.down)?,
            norm_eps: config.rms_norm_eps as f32,
        })
    }

    /// Scales and taps: f32, whatever the weights are.
    fn vector(&mut self, spec: &TensorSpec) -> Result<Vec<f32>, WeightsError> {
        let stored = self.weights.get(spec);
        let values = stored.to_vec()?;
        self.note(&stored);
        Ok(values)
    }

    fn projection(&mut self, spec: &TensorSpec) -> Result<Arc<dyn QuantMethod>, WeightsError> {
        let values = self.values(spec)?;
        Ok(self.linear(values, spec))
    }

    fn values(&mut self, spec: &TensorSpec) -> Result<Values, WeightsError> {
        let stored = self.weights.get(spec);
        let values = stored.values(self.dtype(&stored))?;
        self.note(&stored);
        Ok(values)
    }

    fn dtype(&self, stored: &Stored<'_>) -> Dtype {
        self.options.dtype.unwrap_or(stored.dtype())
    }

    /// A linear layer of row-major `values` in the shape of `spec`.
    fn linear(&self, values: Values, spec: &TensorSpec) -> Arc<dyn QuantMethod> {
        let threads = &self.options.threads;
        let (rows, cols) = (spec.shape[0], spec.shape[1]);
        let weight = match (self.options.isq, &values) {
            (Some(format), values) => Matrix::quantize(threads, format, rows, cols, |row, out| {
                values.widen(row * cols..(row + 1) * cols, out);
            }),
            (None, Values::F32(values)) => Matrix::from_f32(threads, rows, cols, values),
            (None, Values::F16(values)) => Matrix::from_f16(threads, rows, cols, values),
            (None, Values::Bf16(values)) => Matrix::from_bf16(threads, rows, cols, values),
        };
        Arc::new(HostLinear::new(weight, threads.clone()))
    }

    /// Counts a tensor as read.
    fn note(&mut self, stored: &Stored<'_>) {
        self.digest.update(stored.name().as_bytes());
        self.digest.update(&[0, stored.dtype() as u8]);
        self.digest.update_rayon(stored.bytes());
        self.done += stored.bytes().len() as u64;
        (self.options.progress)(LoadProgress {
            stage: "weights",
            done: self.done,
            total: self.weights.total_bytes(),
        });
    }
}

/// Reads the layers of a model whose other layers live elsewhere.
#[cfg(feature = "cuda")]
pub(crate) struct HostReader<'a>(Reader<'a>);

#[cfg(feature = "cuda")]
impl<'a> HostReader<'a> {
    pub(crate) fn new(weights: &'a Weights, options: &'a LoadOptions<'a>) -> Self {
        Self(Reader {
            weights,
            options,
            digest: blake3::Hasher::new(),
            done: 0,
        })
    }

    /// Reads layer number `index`, counting it in `digest` and `done`.
    pub(crate) fn layer(
        &mut self,
        config: &BaichuanConfig,
        index: usize,
        (digest, done): (&mut blake3::Hasher, &mut u64),
    ) -> Result<DecoderLayer, WeightsError> {
        let reader = &mut self.0;
        std::mem::swap(&mut reader.digest, digest);
        reader.done = *done;
        let layer = reader.layer(config, index);
        std::mem::swap(&mut reader.digest, digest);
        *done = reader.done;
        layer
    }
}

fn compute_error(error: candle_core::Error) -> LoadError {
    LoadError::Compute(error.to_string())
}

fn tensor(values: Values, width: usize) -> candle_core::Result<Tensor> {
    let cpu = Device::Cpu;
    match values {
        Values::F32(values) => Tensor::from_vec(values, ((), width), &cpu),
        Values::F16(values) => Tensor::from_vec(values, ((), width), &cpu),
        Values::Bf16(values) => Tensor::from_vec(values, ((), width), &cpu),
    }
}

/// Divides memory among the layers and takes it.
fn caches(config: &BaichuanConfig, options: &LoadOptions<'_>) -> Result<(Caches, ModelSpec), LoadError> {
    let element = match options.cache_dtype.unwrap_or(Dtype::F32) {
        Dtype::F32 => ElementType::F32,
        Dtype::F16 => ElementType::F16,
        Dtype::Bf16 => ElementType::Bf16,
    };
    let layers = cache::specs(config, element);
    let max_context = config
        .max_positions
        .min(options.engine.max_context.unwrap_or(usize::MAX));
    let cache = CachePlan::new(&layers, options.engine, max_context, free_memory()?)?;
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
    let caches = Caches::new(config, &cache, element);
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
    let of_group = system
        .cgroup_limits()
        .map_or(u64::MAX, |limits| limits.free_memory);
    Ok(system.available_memory().min(of_group))
}
