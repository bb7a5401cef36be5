//! A laid-out folder becomes an engine of mistralrs-core that runs.

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::Arc;

use baichuan_engine::config::{CacheBudget, CacheConfig};
use baichuan_engine::{DeviceChoice, DeviceMap, Dtype, IsqType, LoadError, LoadRequest};
use candle_core::{DType, Device};
use mistralrs_core::{
    AutoDeviceMapParams, DefaultSchedulerMethod, DeviceLayerMapMetadata, DeviceMapMetadata, DeviceMapSetting,
    LoaderBuilder, MemoryGpuConfig, MistralRs, MistralRsBuilder, ModelDType, ModelSelected,
    PagedAttentionConfig, PagedCacheType, SchedulerConfig, TokenSource, parse_isq_value,
};

use crate::adapters::Adapter;
use crate::folder::{Folder, Kind, Weights};

/// Everything that decides how a folder is loaded, checked before anything is read.
pub(crate) struct Plan {
    pub(crate) device: Device,
    pub(crate) device_name: String,
    pub(crate) dtype: Dtype,
    isq: Option<mistralrs_core::IsqType>,
    map: DeviceMap,
    /// Absent on CPUs, where there is no paged attention.
    paged: Option<PagedAttentionConfig>,
    pub(crate) max_running: usize,
    max_context: usize,
}

impl Plan {
    /// # Errors
    /// A key of the configuration that cannot be done.
    pub(crate) fn of(request: &LoadRequest<'_>) -> Result<Self, LoadError> {
        if request.threads.is_some() {
            return Err(unsupported(
                "threads",
                "mistral.rs takes all cores; RAYON_NUM_THREADS sets how many, for the whole process",
            ));
        }
        if request.random_weights.is_some() {
            return Err(unsupported("random_weights", "mistral.rs draws none"));
        }
        if !request.placement.topology.is_empty() {
            return Err(unsupported("topology", "is not handed to mistral.rs yet"));
        }
        let (device, device_name) = device(request.placement.device)?;
        let on_gpu = !device.is_cpu();
        if on_gpu {
            tracing::warn!(
                "mistral.rs's answers on GPUs were not the reference's when they were compared; on CPUs they are (docs/PLUGINS.md)"
            );
        }
        if !on_gpu && request.placement.map != DeviceMap::Single {
            return Err(unsupported("device_map", "there is only the CPU, use single"));
        }
        // Candle has no product of bf16 matrices on CPUs, and is slow with f16.
        let stored = match request.checkpoint.config()["torch_dtype"]
            .as_str()
            .or_else(|| request.checkpoint.config()["dtype"].as_str())
        {
            Some("float16") => Dtype::F16,
            Some("float32") => Dtype::F32,
            _ => Dtype::Bf16,
        };
        let dtype = match (request.dtype, on_gpu) {
            (Some(dtype), true) => dtype,
            (None, true) => stored,
            (None | Some(Dtype::F32), false) => Dtype::F32,
            (Some(_), false) => return Err(unsupported("dtype", "mistral.rs computes in f32 on CPUs")),
        };
        if request.cache_dtype.is_some_and(|cache| cache != dtype.into()) {
            return Err(unsupported(
                "cache_dtype",
                "mistral.rs keeps keys and values as it computes them",
            ));
        }
        Ok(Self {
            isq: request.isq.map(|isq| isq_type(isq, &device)).transpose()?,
            paged: on_gpu.then(|| paged(&request.engine.cache)).transpose()?,
            map: request.placement.map.clone(),
            max_running: if on_gpu { request.engine.max_sequences } else { 1 },
            max_context: request
                .engine
                .max_context
                .unwrap_or(AutoDeviceMapParams::DEFAULT_MAX_SEQ_LEN),
            device,
            device_name,
            dtype,
        })
    }
}

impl Plan {
    /// Reads what is added to the weights of a laid-out checkpoint.
    ///
    /// # Errors
    /// That nothing can be, or what is wrong with an adapter.
    pub(crate) fn adapters(
        &self,
        request: &LoadRequest<'_>,
        folder: &Folder,
    ) -> Result<Vec<Adapter>, LoadError> {
        if request.adapters.is_empty() {
            return Ok(Vec::new());
        }
        if folder.kind != Kind::Text || folder.weights != Weights::Safetensors {
            let message = "are added to models that generate, from safetensors";
            return Err(unsupported("adapters", message));
        }
        if !self.device.is_cpu() && (self.isq.is_some() || self.map != DeviceMap::Single) {
            let message = "on GPUs they are added to weights that are all on one device and not quantised";
            return Err(unsupported("adapters", message));
        }
        let architecture = request.checkpoint.architecture();
        let read = |dir: &PathBuf| Adapter::read(dir, architecture, &folder.shapes);
        request.adapters.iter().map(read).collect()
    }
}

/// A running engine and what it says of the model.
pub(crate) struct Loaded {
    pub(crate) engine: Arc<MistralRs>,
    pub(crate) max_context: usize,
}

/// Loads weights and starts mistralrs-core's thread. For a thread of its own: quantisation at load leaves traces in
/// thread-local state.
///
/// # Errors
/// What mistralrs-core says.
pub(crate) async fn load(folder: &Folder, plan: &Plan, adapters: Vec<Adapter>) -> Result<Loaded, LoadError> {
    let loader = LoaderBuilder::new(selected(folder, plan))
        .build()
        .map_err(failed)?;
    for adapter in adapters {
        adapter.push(candle_dtype(plan.dtype), &plan.device);
    }
    let pipeline = loader
        .load_model_from_hf(
            None,
            TokenSource::None,
            &dtype(plan.dtype),
            &plan.device,
            true,
            mapping(plan),
            plan.isq,
            plan.paged,
        )
        .map_err(failed)?;
    let (max_context, cache) = {
        let pipeline = pipeline.lock().await;
        let metadata = pipeline.get_metadata();
        (metadata.max_seq_len, metadata.cache_config.clone())
    };
    let max_running = NonZeroUsize::new(plan.max_running).unwrap_or(NonZeroUsize::MIN);
    let scheduler = match cache {
        Some(config) => SchedulerConfig::PagedAttentionMeta {
            max_num_seqs: max_running.get(),
            config,
        },
        None => SchedulerConfig::DefaultScheduler {
            method: DefaultSchedulerMethod::Fixed(max_running),
        },
    };
    let engine = MistralRsBuilder::new(pipeline, scheduler, false, None)
        // A completion ends when the engine's rules say so, and at no token of mistralrs-core's choosing.
        .with_disable_eos_stop(true)
        .with_no_prefix_cache(true)
        .build()
        .await;
    Ok(Loaded { engine, max_context })
}

/// Quantises the weights of a laid-out checkpoint on the host and has mistralrs-core write them to `file`.
///
/// # Errors
/// What mistralrs-core says, also if it panics.
pub(crate) fn write_uqff(
    folder: &Folder,
    isq: mistralrs_core::IsqType,
    file: PathBuf,
) -> Result<(), LoadError> {
    let model = plain(folder, Dtype::F32, (1, 1), None, Some(file));
    let write = move || {
        let loader = LoaderBuilder::new(model).build().map_err(failed)?;
        let written = loader.load_model_from_hf(
            None,
            TokenSource::None,
            &ModelDType::F32,
            &Device::Cpu,
            true,
            DeviceMapSetting::dummy(),
            Some(isq),
            None,
        );
        written.map(drop).map_err(failed)
    };
    // A thread of its own, as for loading.
    let written = std::thread::scope(|scope| scope.spawn(write).join());
    match written {
        Ok(outcome) => outcome,
        Err(_) => Err(LoadError::Compute(
            "mistral.rs panicked while it quantised the model".into(),
        )),
    }
}

fn failed(error: impl std::fmt::Display) -> LoadError {
    LoadError::Compute(format!("mistral.rs: {error:#}"))
}

fn candle_dtype(dtype: Dtype) -> DType {
    match dtype {
        Dtype::F32 => DType::F32,
        Dtype::F16 => DType::F16,
        Dtype::Bf16 => DType::BF16,
    }
}

fn selected(folder: &Folder, plan: &Plan) -> ModelSelected {
    let path = folder.path().display().to_string();
    let max_batch_size = plan.max_running;
    let max_seq_len = plan.max_context;
    let from_uqff = match &folder.weights {
        Weights::Uqff(files) => Some(files.join(";")),
        Weights::Safetensors | Weights::Gguf(_) => None,
    };
    match (folder.kind, &folder.weights) {
        (Kind::Text, Weights::Gguf(files)) => ModelSelected::GGUF {
            tok_model_id: Some(path.clone()),
            quantized_model_id: path,
            quantized_filename: files.join(" "),
            dtype: dtype(plan.dtype),
            topology: None,
            max_seq_len,
            max_batch_size,
        },
        (Kind::Text, _) => plain(folder, plan.dtype, (max_seq_len, max_batch_size), from_uqff, None),
        (Kind::Embedding, _) => ModelSelected::Embedding {
            model_id: path,
            tokenizer_json: None,
            arch: None,
            dtype: dtype(plan.dtype),
            topology: None,
            write_uqff: None,
            from_uqff,
            hf_cache_path: None,
        },
    }
}

/// A model that generates, from safetensors or UQFF; `sizes` are the longest sequence and the largest batch.
fn plain(
    folder: &Folder,
    weights: Dtype,
    sizes: (usize, usize),
    from_uqff: Option<String>,
    write_uqff: Option<PathBuf>,
) -> ModelSelected {
    ModelSelected::Plain {
        model_id: folder.path().display().to_string(),
        tokenizer_json: None,
        arch: None,
        dtype: dtype(weights),
        topology: None,
        organization: None,
        write_uqff,
        from_uqff,
        imatrix: None,
        calibration_file: None,
        max_seq_len: sizes.0,
        max_batch_size: sizes.1,
        hf_cache_path: None,
        matformer_config_path: None,
        matformer_slice_name: None,
    }
}

fn dtype(dtype: Dtype) -> ModelDType {
    match dtype {
        Dtype::F32 => ModelDType::F32,
        Dtype::F16 => ModelDType::F16,
        Dtype::Bf16 => ModelDType::BF16,
    }
}

fn mapping(plan: &Plan) -> DeviceMapSetting {
    match &plan.map {
        DeviceMap::Single => DeviceMapSetting::dummy(),
        DeviceMap::Auto => DeviceMapSetting::Auto(AutoDeviceMapParams::Text {
            max_seq_len: plan.max_context,
            max_batch_size: plan.max_running,
        }),
        DeviceMap::Layers(parts) => {
            let parts = parts.iter().map(|part| DeviceLayerMapMetadata {
                ordinal: part.ordinal,
                layers: part.layers,
            });
            DeviceMapSetting::Map(DeviceMapMetadata::from_num_device_layers(parts.collect()))
        }
    }
}

/// The device and its name. `auto` is the first GPU of a build that has any.
fn device(choice: DeviceChoice) -> Result<(Device, String), LoadError> {
    let cuda = cfg!(feature = "cuda");
    let gpu =
        |ordinal| Device::new_cuda(ordinal).map_err(|e| unsupported("device", format!("GPU {ordinal}: {e}")));
    match choice {
        DeviceChoice::Cpu => Ok((Device::Cpu, "cpu".into())),
        DeviceChoice::Auto if !cuda => Ok((Device::Cpu, "cpu".into())),
        DeviceChoice::Auto => Ok(match Device::new_cuda(0) {
            Ok(device) => (device, "cuda".into()),
            Err(_) => (Device::Cpu, "cpu".into()),
        }),
        DeviceChoice::Cuda(ordinal) if cuda => Ok((gpu(ordinal)?, choice.to_string())),
        DeviceChoice::Cuda(_) => Err(unsupported("device", "this program is built without CUDA")),
        DeviceChoice::Metal(_) => Err(unsupported("device", "this program is built without Metal")),
    }
}

/// A type of quantisation in mistralrs-core's terms.
///
/// # Errors
/// That the device has none such.
pub(crate) fn isq_type(isq: IsqType, device: &Device) -> Result<mistralrs_core::IsqType, LoadError> {
    parse_isq_value(isq.name(), Some(device)).map_err(|message| unsupported("isq", message))
}

/// Memory for mistralrs-core's blocks of keys and values.
fn paged(cache: &CacheConfig) -> Result<PagedAttentionConfig, LoadError> {
    let memory = match cache.budget {
        CacheBudget::Bytes(bytes) => {
            MemoryGpuConfig::MbAmount(usize::try_from(bytes >> 20).unwrap_or(usize::MAX))
        }
        CacheBudget::Utilization(share) => MemoryGpuConfig::Utilization(share as f32),
        CacheBudget::ContextTokens(tokens) => MemoryGpuConfig::ContextSize(tokens),
        CacheBudget::Blocks { .. } => {
            return Err(unsupported(
                "cache.budget",
                "mistral.rs counts memory, not blocks",
            ));
        }
    };
    PagedAttentionConfig::new(Some(cache.block_tokens), memory, PagedCacheType::Auto)
        .map_err(|e| unsupported("cache", e.to_string()))
}

fn unsupported(key: &'static str, message: impl Into<String>) -> LoadError {
    LoadError::Unsupported {
        key,
        message: message.into(),
    }
}
