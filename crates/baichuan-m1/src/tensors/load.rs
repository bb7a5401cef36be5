//! Makes a model of a checkpoint: tensors to the device one by one, quantised there by mistral.rs where that is asked for.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use baichuan_engine::model::ModelSpec;
use baichuan_engine::{CachePlan, Dtype, EngineConfig, IsqType, LoadError, LoadProgress, Topology};
use baichuan_kernels::ElementType;
use candle_core::{DType, Device, Tensor};
use mistralrs_quant::{QuantMethod, QuantMethodConfig, QuantizeOntoGuard, UnquantLinear};

use super::TensorModel;
use super::attention::Attention;
use super::layer::{Layer, LayerCache};
use super::paged::PagedKv;
use crate::cache;
use crate::config::{BaichuanConfig, LayerShape, Span};
use crate::layout::{self, HEAD, LayerSpec, TensorSpec};
use crate::load::{Loaded, on_disk};
use crate::weights::{Stored, Values, Weights, WeightsError};

/// How to load.
pub(crate) struct TensorOptions<'a> {
    pub(crate) device: Device,
    /// Absent: as on disk.
    pub(crate) dtype: Option<Dtype>,
    pub(crate) isq: Option<IsqType>,
    /// What single layers and tensors are quantised to instead.
    pub(crate) topology: &'a Topology,
    pub(crate) engine: &'a EngineConfig,
    /// Bytes of memory for caches, asked for when weights are loaded.
    pub(crate) free_bytes: &'a dyn Fn(&Device) -> Result<u64, LoadError>,
    pub(crate) progress: &'a (dyn Fn(LoadProgress) + Sync),
}

/// Loads the checkpoint in the folder `dir`.
pub(crate) fn load(dir: &Path, options: &TensorOptions<'_>) -> Result<Loaded<TensorModel>, LoadError> {
    let invalid = |message: String| LoadError::Invalid {
        path: dir.to_owned(),
        message,
    };
    let config = BaichuanConfig::from_dir(dir).map_err(|error| invalid(error.to_string()))?;
    if config.quantization.is_some() {
        return Err(invalid(
            "a checkpoint that is quantised already does not load on this device yet".into(),
        ));
    }
    let weights = Weights::open(dir, &config).map_err(|error| invalid(error.to_string()))?;
    let specs = layout::all(&config);
    options
        .topology
        .check(config.layers.len(), specs.iter().map(|spec| spec.name.as_str()))
        .map_err(|error| LoadError::Unsupported {
            key: "topology",
            message: error.to_string(),
        })?;
    let dtype = options.dtype.unwrap_or_else(|| on_disk(&weights, &config));
    let mut reader = Reader {
        weights: &weights,
        config: &config,
        options,
        dtype,
        digest: blake3::Hasher::new(),
        done: 0,
        n_quantised: AtomicUsize::new(0),
    };
    let failed = |error: Failed| match error {
        Failed::Weights(error) => invalid(error.to_string()),
        Failed::Device(error) => LoadError::Compute(error.to_string()),
        Failed::Load(error) => error,
    };
    let embedding_spec = layout::embedding(&config);
    let embedding = reader.tensor(&embedding_spec, false).map_err(failed)?;
    let plan_of_rings = ring_rows(&config, options.engine);
    let mut layers = Vec::new();
    for (index, shape) in config.layers.iter().enumerate() {
        layers.push(reader.layer(index, shape, plan_of_rings).map_err(failed)?);
    }
    let final_norm = reader.vector(&layout::final_norm(&config)).map_err(failed)?;
    let head_spec = layout::head(&config).unwrap_or(embedding_spec);
    let head = reader.head(&head_spec).map_err(failed)?;

    let element = match dtype {
        Dtype::F32 => ElementType::F32,
        Dtype::F16 => ElementType::F16,
        Dtype::Bf16 => ElementType::Bf16,
    };
    let max_context = config
        .max_positions
        .min(options.engine.max_context.unwrap_or(usize::MAX));
    let specs_of_caches = cache::specs(&config, element);
    let free = (options.free_bytes)(&options.device)?;
    let plan = CachePlan::new(&specs_of_caches, options.engine, max_context, free)?;
    let caches =
        caches(&config, &plan, options, dtype).map_err(|error| LoadError::Compute(error.to_string()))?;
    debug_assert!(plan_of_rings.is_none_or(|rows| rows == plan.window_rows));
    let mut names: Vec<&str> = config
        .layers
        .iter()
        .enumerate()
        .flat_map(|(index, shape)| LayerSpec::new(&config, index, shape).into_array())
        .filter(|spec| spec.matrix().is_some())
        .map(|spec| options.isq_of(&spec).map_or("plain", IsqType::name))
        .collect();
    names.sort_unstable();
    names.dedup();
    let quantization = (names != ["plain"] && !names.is_empty()).then(|| names.join("+"));
    let mark = (!options.topology.is_empty())
        .then(|| blake3::hash(options.topology.text().as_bytes()).to_hex()[..8].to_owned());
    Ok(Loaded {
        parameters: specs.iter().map(|spec| spec.n_elements() as u64).sum(),
        dtype,
        cache_dtype: dtype,
        quantization,
        mark,
        digest: reader.digest.finalize(),
        device: format!("{:?}", options.device.location()).to_lowercase(),
        model: TensorModel {
            spec: ModelSpec {
                vocab_size: config.vocab_size,
                hidden_size: config.hidden_size,
                max_context,
                layers: specs_of_caches,
                cache: plan,
                samples: false,
            },
            device: options.device.clone(),
            dtype: candle_type(dtype),
            embedding,
            layers,
            caches,
            final_norm,
            head,
            config: config.clone(),
        },
        config,
    })
}

/// Rows of a ring: the window in whole blocks.
fn ring_rows(config: &BaichuanConfig, engine: &EngineConfig) -> Option<usize> {
    config.layers.iter().find_map(|layer| match layer.span {
        Span::Global => None,
        Span::Sliding { window } => Some(window.next_multiple_of(engine.cache.block_tokens)),
    })
}

fn candle_type(dtype: Dtype) -> DType {
    match dtype {
        Dtype::F32 => DType::F32,
        Dtype::F16 => DType::F16,
        Dtype::Bf16 => DType::BF16,
    }
}

fn caches(
    config: &BaichuanConfig,
    plan: &CachePlan,
    options: &TensorOptions<'_>,
    dtype: Dtype,
) -> candle_core::Result<Vec<LayerCache>> {
    let of_layer = |shape: &LayerShape| {
        let is_global = shape.span == Span::Global;
        let n_blocks = if is_global {
            plan.global_blocks
        } else {
            plan.window_blocks
        };
        let heads = (shape.n_kv_heads, shape.head_dim);
        let carried = (config.conv_window - 1, 2 * shape.kv_width());
        let zeros = Tensor::zeros(carried, DType::F32, &options.device)?;
        Ok(LayerCache {
            is_global,
            kv: PagedKv::zeros(
                n_blocks,
                plan.block_tokens,
                heads,
                candle_type(dtype),
                &options.device,
            )?,
            carry: vec![zeros.clone(); plan.slots],
            zeros,
        })
    };
    config.layers.iter().map(of_layer).collect()
}

impl TensorOptions<'_> {
    fn isq_of(&self, spec: &TensorSpec) -> Option<IsqType> {
        let layer = spec
            .name
            .strip_prefix("model.layers.")
            .and_then(|rest| rest.split('.').next());
        let layer = layer.and_then(|number| number.parse().ok());
        self.topology.isq(&spec.name, layer).or(self.isq)
    }
}

/// mistral.rs's own type of that name; numbers of bits are its affine ones, which Apple's GPUs have kernels for.
fn isq_type(isq: IsqType) -> Result<mistralrs_quant::IsqType, LoadError> {
    use mistralrs_quant::IsqType as Theirs;
    Ok(match isq {
        IsqType::AFQ2 | IsqType::Bits2 => Theirs::AFQ2,
        IsqType::AFQ3 | IsqType::Bits3 => Theirs::AFQ3,
        IsqType::AFQ4 | IsqType::Bits4 => Theirs::AFQ4,
        IsqType::AFQ6 | IsqType::Bits6 => Theirs::AFQ6,
        IsqType::AFQ8 | IsqType::Bits8 => Theirs::AFQ8,
        IsqType::Q4_0 => Theirs::Q4_0,
        IsqType::Q4_1 => Theirs::Q4_1,
        IsqType::Q5_0 => Theirs::Q5_0,
        IsqType::Q5_1 => Theirs::Q5_1,
        IsqType::Q8_0 => Theirs::Q8_0,
        IsqType::Q2K => Theirs::Q2K,
        IsqType::Q3K => Theirs::Q3K,
        IsqType::Q4K => Theirs::Q4K,
        IsqType::Q5K => Theirs::Q5K,
        IsqType::Q6K => Theirs::Q6K,
        IsqType::FP8 => Theirs::F8E4M3,
        other => {
            return Err(LoadError::Unsupported {
                key: "isq",
                message: format!(
                    "{other} does not run on this device, choose AFQ4, AFQ8, Q4K, Q8_0 or a number of bits"
                ),
            });
        }
    })
}

/// Why a tensor did not get onto the device.
enum Failed {
    Weights(WeightsError),
    Device(candle_core::Error),
    Load(LoadError),
}

impl From<WeightsError> for Failed {
    fn from(error: WeightsError) -> Self {
        Self::Weights(error)
    }
}

impl From<candle_core::Error> for Failed {
    fn from(error: candle_core::Error) -> Self {
        Self::Device(error)
    }
}

impl From<LoadError> for Failed {
    fn from(error: LoadError) -> Self {
        Self::Load(error)
    }
}

struct Reader<'a> {
    weights: &'a Weights,
    config: &'a BaichuanConfig,
    options: &'a TensorOptions<'a>,
    dtype: Dtype,
    digest: blake3::Hasher,
    done: u64,
    n_quantised: AtomicUsize,
}

impl Reader<'_> {
    fn layer(&mut self, index: usize, shape: &LayerShape, ring_rows: Option<usize>) -> Result<Layer, Failed> {
        let spec = LayerSpec::new(self.config, index, shape);
        let input_norm = self.vector(&spec.input_norm)?;
        let pack = self.linear(&[&spec.pack])?;
        let taps = Tensor::cat(
            &[self.taps(&spec.taps_k, shape)?, self.taps(&spec.taps_v, shape)?],
            1,
        )?;
        let out = self.linear(&[&spec.out])?;
        Ok(Layer {
            input_norm,
            attention: Attention {
                shape: *shape,
                ring_rows: match shape.span {
                    Span::Global => 0,
                    Span::Sliding { .. } => ring_rows.unwrap_or(0),
                },
                pack,
                out,
                taps: taps.contiguous()?,
                conv_window: self.config.conv_window,
            },
            post_norm: self.vector(&spec.post_norm)?,
            gate_up: self.linear(&[&spec.gate, &spec.up])?,
            down: self.linear(&[&spec.down])?,
            norm_eps: self.config.rms_norm_eps as f32,
        })
    }

    /// `[conv_window, kv_width]`: each head's taps over its whole width.
    fn taps(&mut self, spec: &TensorSpec, shape: &LayerShape) -> Result<Tensor, Failed> {
        let taps = self
            .vector(spec)?
            .reshape((shape.n_kv_heads, self.config.conv_window))?;
        let wide = taps.t()?.unsqueeze(2)?;
        let wide = wide.broadcast_as((self.config.conv_window, shape.n_kv_heads, shape.head_dim))?;
        Ok(wide
            .contiguous()?
            .reshape((self.config.conv_window, shape.kv_width()))?)
    }

    /// Scales and taps: f32.
    fn vector(&mut self, spec: &TensorSpec) -> Result<Tensor, Failed> {
        let stored = self.weights.get(spec);
        let values = stored.to_vec::<f32>()?;
        self.note(&stored);
        Ok(Tensor::new(values, &self.options.device)?)
    }

    fn tensor(&mut self, spec: &TensorSpec, normalised: bool) -> Result<Tensor, Failed> {
        let stored = self.weights.get(spec);
        let values = match normalised {
            true => stored.normalised(self.dtype)?,
            false => stored.values(self.dtype)?,
        };
        let (shape, device) = (&spec.shape[..], &self.options.device);
        let tensor = match values {
            Values::F32(values) => Tensor::from_slice(&values, shape, device)?,
            Values::F16(values) => Tensor::from_slice(&values, shape, device)?,
            Values::Bf16(values) => Tensor::from_slice(&values, shape, device)?,
        };
        self.note(&stored);
        Ok(tensor)
    }

    /// The matrices of `specs` one below another.
    fn linear(&mut self, specs: &[&TensorSpec]) -> Result<Arc<dyn QuantMethod>, Failed> {
        let isq = self.options.isq_of(specs[0]);
        if let Some(other) = specs.iter().find(|spec| self.options.isq_of(spec) != isq) {
            return Err(Failed::Load(LoadError::Unsupported {
                key: "topology",
                message: format!(
                    "{} and {} are one matrix and have one format",
                    specs[0].name, other.name
                ),
            }));
        }
        let parts = specs.iter().map(|spec| self.tensor(spec, false));
        let parts = parts.collect::<Result<Vec<_>, _>>()?;
        self.quantised(Tensor::cat(&parts, 0)?, isq)
    }

    fn head(&mut self, spec: &TensorSpec) -> Result<Arc<dyn QuantMethod>, Failed> {
        let own = TensorSpec {
            name: HEAD.into(),
            ..spec.clone()
        };
        let weight = self.tensor(spec, true)?;
        self.quantised(weight, self.options.isq_of(&own))
    }

    fn quantised(&self, weight: Tensor, isq: Option<IsqType>) -> Result<Arc<dyn QuantMethod>, Failed> {
        let dense = QuantMethodConfig::Unquantized(candle_nn::Linear::new(weight, None));
        let dense: Arc<dyn QuantMethod> = Arc::new(<UnquantLinear as QuantMethod>::new(dense)?);
        let Some(isq) = isq else {
            return Ok(dense);
        };
        let device = self.options.device.clone();
        let guard = QuantizeOntoGuard::new();
        Ok(dense.apply_isq(Some(isq_type(isq)?), device, &self.n_quantised, None, guard)?)
    }

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
