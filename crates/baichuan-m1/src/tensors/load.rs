//! Makes a model of a checkpoint: its tensors, see [`super::reader`], then caches.

use std::path::Path;

use baichuan_engine::model::ModelSpec;
use baichuan_engine::{CachePlan, Dtype, EngineConfig, IsqType, LoadError, LoadProgress, Topology};
use baichuan_kernels::ElementType;
use candle_core::{DType, Device, Tensor};

use super::TensorModel;
use super::layer::LayerCache;
use super::paged::PagedKv;
use super::reader::{Failed, Reader};
use crate::cache;
use crate::config::{BaichuanConfig, LayerShape, Quantization, Span};
use crate::layout::{self, LayerSpec, TensorSpec};
use crate::load::{Loaded, on_disk};
use crate::weights::Weights;

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
    match config.quantization {
        None => {}
        Some(Quantization::Panels16(_)) => {
            return Err(invalid(
                "it is packed for a processor's kernels, which this device lacks".into(),
            ));
        }
        Some(Quantization::Affine4) => {
            let key = match (options.isq, options.topology.is_empty()) {
                (Some(_), _) => Some("isq"),
                (None, false) => Some("topology"),
                (None, true) => None,
            };
            if let Some(key) = key {
                return Err(LoadError::Unsupported {
                    key,
                    message: "the checkpoint is quantised already, leave it unset".into(),
                });
            }
        }
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
    let mut reader = Reader::new(&weights, &config, options, dtype);
    let failed = |error: Failed| match error {
        Failed::Weights(error) => invalid(error.to_string()),
        Failed::Device(error) => LoadError::Compute(error.to_string()),
        Failed::Load(error) => error,
    };
    let embedding_spec = layout::embedding(&config);
    let embedding = reader.embedding(&embedding_spec).map_err(failed)?;
    let plan_of_rings = ring_rows(&config, options.engine);
    let mut layers = Vec::new();
    for (index, shape) in config.layers.iter().enumerate() {
        layers.push(reader.layer(index, shape, plan_of_rings).map_err(failed)?);
    }
    let final_norm = reader.vector(&layout::final_norm(&config)).map_err(failed)?;
    let head = reader.head((&embedding_spec, &embedding)).map_err(failed)?;

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
    let quantization = match config.quantization {
        Some(_) => Some(IsqType::AFQ4.name().to_owned()),
        None => (names != ["plain"] && !names.is_empty()).then(|| names.join("+")),
    };
    let mark = (!options.topology.is_empty())
        .then(|| blake3::hash(options.topology.text().as_bytes()).to_hex()[..8].to_owned());
    Ok(Loaded {
        parameters: specs.iter().map(|spec| spec.n_elements() as u64).sum(),
        dtype,
        cache_dtype: dtype.into(),
        quantization,
        mark,
        digest: reader.digest(),
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

pub(super) fn candle_type(dtype: Dtype) -> DType {
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
    pub(super) fn isq_of(&self, spec: &TensorSpec) -> Option<IsqType> {
        let layer = spec
            .name
            .strip_prefix("model.layers.")
            .and_then(|rest| rest.split('.').next());
        let layer = layer.and_then(|number| number.parse().ok());
        self.topology.isq(&spec.name, layer).or(self.isq)
    }
}
