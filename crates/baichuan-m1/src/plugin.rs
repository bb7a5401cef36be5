//! How a server comes by this model: recognises its checkpoints, loads one, starts an engine on it.

use std::sync::Arc;

use baichuan_engine::request::{Pooling, SamplingOptions};
use baichuan_engine::text::{ChatTemplate, CheckpointText, GenerationDefaults, TextError};
use baichuan_engine::{
    Backend, BackendInfo, Checkpoint, DeviceMap, EngineHandle, Grammars, IsqType, LoadError, LoadRequest,
    ModelPlugin, QuantizeRequest,
};
use baichuan_kernels::{GgmlFormat, Threads};

use crate::config::{ARCHITECTURE, BaichuanConfig};
use crate::load::{LoadOptions, Loaded, load};
use crate::place::Place;
use crate::quantize::quantize;

/// What a chat looks like to checkpoints that do not say: the roles of the published model.
const CHAT_TEMPLATE: &str = "{%- for message in messages -%}\
    {%- if message['role'] == 'system' -%}{{ '<B_SYS>' + message['content'] }}\
    {%- elif message['role'] == 'user' -%}{{ '<C_Q>' + message['content'] }}\
    {%- elif message['role'] == 'assistant' -%}{{ '<C_A>' + message['content'] }}\
    {%- else -%}{{ raise_exception('there is no role ' + message['role']) }}\
    {%- endif -%}\
    {%- endfor -%}\
    {%- if add_generation_prompt -%}{{ '<C_A>' }}{%- endif -%}";

/// The plugin, for a server's registry.
pub fn plugin() -> impl ModelPlugin {
    BaichuanM1Plugin
}

struct BaichuanM1Plugin;

/// The tokens that open a user's and the assistant's turn in [`CHAT_TEMPLATE`].
const ROLES: [&str; 2] = ["<C_Q>", "<C_A>"];

/// What the checkpoint says about text; the published model's template where it has none and knows the roles.
fn text(checkpoint: &Checkpoint) -> Result<CheckpointText, TextError> {
    let mut text = CheckpointText::from_dir(checkpoint.dir(), None)?;
    let knows_roles = ROLES.iter().all(|role| text.tokenizer.token_id(role).is_some());
    if text.chat_template.is_none() && knows_roles {
        let special = text.tokenizer.special_tokens().clone();
        text.chat_template = Some(ChatTemplate::new(
            "default chat template",
            CHAT_TEMPLATE,
            special,
        )?);
    }
    Ok(text)
}

impl ModelPlugin for BaichuanM1Plugin {
    fn name(&self) -> &'static str {
        "baichuan-m1"
    }

    fn accepts(&self, checkpoint: &Checkpoint) -> bool {
        checkpoint.architecture() == ARCHITECTURE
    }

    fn load(&self, request: &LoadRequest<'_>) -> Result<Arc<dyn Backend>, LoadError> {
        if !request.adapters.is_empty() {
            return Err(LoadError::Unsupported {
                key: "adapters",
                message: "Baichuan-M1 is loaded without".into(),
            });
        }
        // Text first: what is wrong with it is found in moments, weights take minutes.
        let text = text(request.checkpoint)?;
        // A configuration that cannot be read is told of where the model is loaded.
        if let Ok(config) = BaichuanConfig::from_dir(request.checkpoint.dir()) {
            text.generation
                .check_ids(request.checkpoint.dir(), config.vocab_size)?;
        }
        let place = Place::of(request.placement.device)?;
        let topology = &request.placement.topology;
        let of_layers: Vec<Place> = topology.devices().map(Place::of).collect::<Result<_, _>>()?;
        let elsewhere = of_layers.iter().any(|layer| *layer != place);
        let mapped = request.placement.map != DeviceMap::Single;
        #[cfg(feature = "cuda")]
        if elsewhere || (mapped && place != Place::Host) {
            let loaded = crate::cuda::load_mapped(request, place, host_threads(request.threads)?)?;
            let info = self.info(request, text, &loaded);
            return Ok(Arc::new(EngineHandle::start(loaded.model, info, request.engine)?));
        }
        #[cfg(feature = "cuda")]
        if let Place::Gpu(ordinal) = place {
            let loaded = crate::cuda::load(request, ordinal)?;
            let info = self.info(request, text, &loaded);
            return Ok(Arc::new(EngineHandle::start(loaded.model, info, request.engine)?));
        }
        #[cfg(feature = "metal")]
        if let Place::Metal(ordinal) = place {
            let loaded = self.load_metal(request, ordinal, mapped || elsewhere)?;
            let info = self.info(request, text, &loaded);
            return Ok(Arc::new(EngineHandle::start(loaded.model, info, request.engine)?));
        }
        if mapped {
            return Err(LoadError::Unsupported {
                key: "device_map",
                message: format!(
                    "{} spreads layers over GPUs, and none can be used",
                    request.placement.map
                ),
            });
        }
        debug_assert!(
            place == Place::Host && !elsewhere,
            "no GPU without kernels for it"
        );
        if request.random_weights.is_some() {
            return Err(LoadError::Unsupported {
                key: "random_weights",
                message: "weights are drawn on GPUs only; `cargo xtask make-model` writes random checkpoints"
                    .into(),
            });
        }
        let threads = host_threads(request.threads)?;
        let isq = request.isq.map(format_of).transpose()?;
        let loaded = load(
            request.checkpoint.dir(),
            &LoadOptions {
                dtype: request.dtype,
                cache_dtype: request.cache_dtype,
                isq,
                topology,
                threads,
                engine: request.engine,
                progress: request.progress,
            },
        )?;
        let info = self.info(request, text, &loaded);
        Ok(Arc::new(EngineHandle::start(loaded.model, info, request.engine)?))
    }

    fn quantize(&self, request: &QuantizeRequest<'_>) -> Result<(), LoadError> {
        quantize(
            request.checkpoint,
            request.out,
            format_of(request.isq)?,
            &host_threads(request.threads)?,
            request.progress,
        )
    }
}

/// Of all that an answer depends on beside its request and what the fingerprint spells out: weights, what is not seen in
/// their shapes, which tokens end an answer, the values used where a request is silent, and where it is computed.
fn digest<M>(loaded: &Loaded<M>, generation: &GenerationDefaults) -> blake3::Hash {
    let config = &loaded.config;
    let rest = (
        (&config.layers, config.rope_theta, config.rms_norm_eps),
        (config.bos_token_id, &config.eos_token_ids, generation),
        &loaded.device,
    );
    let mut digest = blake3::Hasher::new();
    digest.update(loaded.digest.as_bytes());
    digest.update(format!("{rest:?}").as_bytes());
    digest.finalize()
}

fn host_threads(n_threads: Option<usize>) -> Result<Threads, LoadError> {
    let threads = match n_threads {
        Some(n_threads) => Threads::new(n_threads),
        None => Threads::physical(),
    };
    threads.map_err(|error| LoadError::Unsupported {
        key: "threads",
        message: error.to_string(),
    })
}

/// The format that a name of mistral.rs stands for.
pub(crate) fn format_of(isq: IsqType) -> Result<GgmlFormat, LoadError> {
    match isq {
        IsqType::Q8_0 | IsqType::Bits8 => Ok(GgmlFormat::Q8_0),
        IsqType::Q4_0 => Ok(GgmlFormat::Q4_0),
        IsqType::Q4K | IsqType::Bits4 => Ok(GgmlFormat::Q4K),
        IsqType::Q6K | IsqType::Bits6 => Ok(GgmlFormat::Q6K),
        _ => Err(LoadError::Unsupported {
            key: "isq",
            message: format!(
                "{isq} has no kernels on a CPU here, choose one of Q8_0, Q6K, Q4K, Q4_0, 8, 6, 4"
            ),
        }),
    }
}

#[cfg(feature = "metal")]
impl BaichuanM1Plugin {
    fn load_metal(
        &self,
        request: &LoadRequest<'_>,
        ordinal: usize,
        spread: bool,
    ) -> Result<Loaded<crate::tensors::TensorModel>, LoadError> {
        use crate::tensors::{TensorOptions, load, metal};
        let unsupported = |key, message: &str| {
            Err(LoadError::Unsupported {
                key,
                message: message.into(),
            })
        };
        if spread {
            return unsupported("device_map", "a model is on one Apple GPU as a whole");
        }
        if request.random_weights.is_some() {
            return unsupported("random_weights", "weights are drawn on NVIDIA GPUs only");
        }
        if request.cache_dtype.is_some() {
            return unsupported("cache_dtype", "on GPUs keys and values are of the weights' type");
        }
        load(
            request.checkpoint.dir(),
            &TensorOptions {
                device: metal::open(ordinal)?,
                dtype: request.dtype,
                isq: request.isq,
                topology: &request.placement.topology,
                engine: request.engine,
                free_bytes: &metal::free_bytes,
                progress: request.progress,
            },
        )
    }
}

impl BaichuanM1Plugin {
    fn info<M>(&self, request: &LoadRequest<'_>, text: CheckpointText, loaded: &Loaded<M>) -> BackendInfo {
        let CheckpointText {
            tokenizer,
            chat_template,
            generation,
        } = text;
        let config = &loaded.config;
        let digest = &digest(loaded, &generation).to_hex()[..12];
        let dtype = loaded.dtype.name();
        let mut numbers = loaded.quantization.clone().unwrap_or_else(|| dtype.to_owned());
        if let Some(mark) = &loaded.mark {
            numbers = format!("{numbers}-{mark}");
        }
        let cache = loaded.cache_dtype.name();
        let default_sampling = SamplingOptions::from(&generation);
        let eos_token_ids = match generation.eos_token_ids.is_empty() {
            true => config.eos_token_ids.clone(),
            false => generation.eos_token_ids,
        };
        BackendInfo {
            name: request.name.to_owned(),
            plugin: self.name(),
            architecture: ARCHITECTURE.to_owned(),
            parameters: loaded.parameters,
            dtype: dtype.to_owned(),
            quantization: loaded.quantization.clone().unwrap_or_else(|| "none".into()),
            device: loaded.device.clone(),
            vocab_size: config.vocab_size,
            hidden_size: config.hidden_size,
            max_context: config.max_positions,
            generates: true,
            embeds: true,
            default_pooling: Pooling::Last,
            default_sampling,
            default_max_tokens: generation.max_new_tokens,
            limits: request.engine.limits,
            grammars: Grammars::new(&tokenizer, &eos_token_ids),
            eos_token_ids,
            bos_token_id: generation.bos_token_id.or(config.bos_token_id),
            pad_token_id: generation.pad_token_id,
            tokenizer,
            chat_template,
            fingerprint: format!("{digest}-{numbers}-{cache}-{}", env!("CARGO_PKG_VERSION")),
        }
    }
}
