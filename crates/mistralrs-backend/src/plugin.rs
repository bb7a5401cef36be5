//! How a server comes by a model of another family: recognises its checkpoints, loads one, starts a driver on it.

use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, mpsc};
use std::time::Instant;

use baichuan_engine::completion::Vocabulary;
use baichuan_engine::queue::Queue;
use baichuan_engine::request::{
    Account, EmbedRequest, GenerateRequest, OutputOptions, Pooling, RequestLimits, SamplingOptions,
    StoppingOptions,
};
use baichuan_engine::stats::EngineStats;
use baichuan_engine::text::{CheckpointText, Tokenizer};
use baichuan_engine::{
    Backend, BackendInfo, Checkpoint, Grammars, LoadError, LoadProgress, LoadRequest, ModelPlugin,
    QuantizeRequest, RequestId, StepError, TokenId,
};
use serde_json::Value;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::sync::watch;

use crate::adapters::Adapter;
use crate::backend::MistralRsBackend;
use crate::driver::{Command, Driver};
use crate::folder::{Folder, Kind, kind};
use crate::generate::Context;
use crate::hang::Hang;
use crate::load::{Plan, load};
use crate::meter::Meter;
use crate::quantize::quantize;

/// The plugin, for a server's registry.
pub fn plugin() -> impl ModelPlugin {
    MistralRsPlugin
}

struct MistralRsPlugin;

impl ModelPlugin for MistralRsPlugin {
    fn name(&self) -> &'static str {
        "mistralrs"
    }

    fn accepts(&self, checkpoint: &Checkpoint) -> bool {
        kind(checkpoint).is_some()
    }

    fn load(&self, request: &LoadRequest<'_>) -> Result<Arc<dyn Backend>, LoadError> {
        Ok(Arc::new(start(self.name(), request)?))
    }

    fn quantize(&self, request: &QuantizeRequest<'_>) -> Result<(), LoadError> {
        quantize(request)
    }
}

/// Loads a checkpoint and starts the thread that owns its engine.
pub(crate) fn start(plugin: &'static str, request: &LoadRequest<'_>) -> Result<MistralRsBackend, LoadError> {
    request.engine.validate()?;
    let plan = Plan::of(request)?;
    let text = CheckpointText::from_dir(request.checkpoint.dir(), None)?;
    check_ids(request.checkpoint, &text)?;
    let folder = Folder::lay_out(request.checkpoint, request.isq.is_some())?;
    let adapters = plan.adapters(request, &folder)?;
    let kind = folder.kind;
    let stage = |done| LoadProgress {
        stage: "weights",
        done,
        total: 1,
    };
    (request.progress)(stage(0));
    let mut info = info(plugin, request, text, &folder, (&plan, &adapters));
    let queue = Queue::new(request.engine.max_waiting, request.engine.max_waiting_tokens);
    let draining = Arc::new(AtomicBool::new(false));
    let (stats_sender, stats) = watch::channel(EngineStats::default());
    let (stuck_sender, stuck) = watch::channel(false);
    let (inbox, commands) = unbounded_channel();
    let (ready, loaded) = mpsc::channel();
    let thread = Thread {
        folder,
        plan,
        adapters,
        queue: queue.clone(),
        draining: draining.clone(),
        stats: stats_sender,
        hang: Hang::new(request.engine.step_timeout, stuck_sender),
        commands,
        ready,
        tokenizer: info.tokenizer.clone(),
        eos_token_ids: info.eos_token_ids.clone(),
        max_context: request.engine.max_context,
    };
    let thread = std::thread::Builder::new()
        .name(format!("mistralrs-{}", request.name))
        .spawn(move || thread.run())
        .map_err(|e| LoadError::Compute(format!("cannot start the engine's thread: {e}")))?;
    info.max_context = match loaded.recv() {
        Ok(outcome) => outcome?,
        Err(_) => {
            return Err(LoadError::Compute(
                "mistral.rs panicked while it loaded the model".into(),
            ));
        }
    };
    (request.progress)(stage(1));
    Ok(MistralRsBackend {
        info,
        kind,
        inbox: Some(inbox),
        stats,
        queue,
        max_wait: request.engine.max_wait,
        draining,
        event_buffer: request.engine.event_buffer,
        stuck,
        thread: Mutex::new(Some(thread)),
    })
}

/// All that the owning thread takes with it.
struct Thread {
    folder: Folder,
    plan: Plan,
    adapters: Vec<Adapter>,
    queue: Queue,
    draining: Arc<AtomicBool>,
    stats: watch::Sender<EngineStats>,
    hang: Hang,
    commands: UnboundedReceiver<Command>,
    ready: mpsc::Sender<Result<usize, LoadError>>,
    tokenizer: Tokenizer,
    eos_token_ids: Vec<TokenId>,
    /// Caps the model's own, in tokens.
    max_context: Option<usize>,
}

impl Thread {
    /// Loads, says so, and drives until the end. A panic drops what `ready`, the requests and `stats` hang on.
    fn run(self) {
        let runtime = match tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()
        {
            Ok(runtime) => runtime,
            Err(error) => {
                let error = LoadError::Compute(format!("no runtime for mistral.rs: {error}"));
                let _ = self.ready.send(Err(error)); // the loader waits for it
                return;
            }
        };
        runtime.block_on(async move {
            let Self {
                folder,
                plan,
                adapters,
                queue,
                draining,
                stats,
                hang,
                commands,
                ready,
                tokenizer,
                eos_token_ids,
                max_context,
            } = self;
            let started = async {
                let loaded = load(&folder, &plan, adapters).await?;
                let max_context = loaded.max_context.min(max_context.unwrap_or(usize::MAX));
                let engine = loaded
                    .engine
                    .get_sender(None)
                    .map_err(|e| LoadError::Compute(format!("mistral.rs: {e}")))?;
                let vocabulary = Vocabulary {
                    tokenizer,
                    eos_token_ids,
                    max_context,
                };
                let context = Context {
                    engine,
                    filler: filler(&vocabulary.tokenizer),
                    vocabulary: Arc::new(vocabulary),
                    meter: Arc::new(Meter::default()),
                    mean_is_sum: folder.head.is_some_and(|head| head.mean_is_sum),
                };
                let driver = Driver {
                    context: Arc::new(context),
                    engine: loaded.engine,
                    queue,
                    draining,
                    max_running: plan.max_running,
                };
                driver.warm_up(folder.kind).await?;
                Ok((driver, max_context))
            };
            match started.await {
                Ok((driver, max_context)) => {
                    drop(folder);
                    stats.send_replace(driver.stats(std::iter::empty()));
                    if ready.send(Ok(max_context)).is_ok() {
                        driver.run(hang, stats, commands).await;
                    }
                }
                Err(error) => {
                    let _ = ready.send(Err(error)); // the loader waits for it
                }
            }
        });
    }
}

impl Driver {
    /// Runs three tokens through the model, as a request would.
    async fn warm_up(&self, kind: Kind) -> Result<(), LoadError> {
        let token = self.context.filler;
        let id = RequestId::new("warm-up");
        let arrived = Instant::now();
        let (sink, mut stream) = baichuan_engine::EventSink::channel(16);
        match kind {
            Kind::Text => {
                let limits = RequestLimits::default();
                let sampling = SamplingOptions {
                    temperature: Some(0.0),
                    ..SamplingOptions::default()
                };
                let stopping = StoppingOptions {
                    max_tokens: Some(2),
                    ignore_eos: Some(true),
                    ..StoppingOptions::default()
                };
                let invalid = |e: baichuan_engine::Violations| LoadError::Compute(e.to_string());
                let request = GenerateRequest {
                    id,
                    prompt: vec![token; 2],
                    sampling: sampling.validate(&limits, 0).map_err(invalid)?,
                    stopping: stopping.validate(&limits, 1).map_err(invalid)?,
                    output: OutputOptions::default(),
                    grammar: None,
                    priority: 0,
                    account: Account::default(),
                    deadline: None,
                    arrived,
                };
                crate::generate::generate(&self.context, request, sink).await;
            }
            Kind::Embedding => {
                let request = EmbedRequest {
                    id,
                    tokens: vec![token; 2],
                    pooling: Pooling::Last,
                    priority: 0,
                    account: Account::default(),
                    deadline: None,
                    arrived,
                };
                crate::generate::embed(&self.context, request, sink).await;
            }
        }
        self.context.meter.reset();
        let mut outcome = Err(StepError::Compute("mistral.rs did not answer".into()));
        while let Some(event) = stream.next().await {
            use baichuan_engine::event::Event;
            match event {
                Event::Failed(error) => outcome = Err(StepError::Compute(error.to_string())),
                Event::Finished(_) => outcome = Ok(()),
                Event::Embedded(embedded) => {
                    let finite = embedded.values.iter().all(|v| v.is_finite());
                    outcome = if finite { Ok(()) } else { Err(StepError::NotFinite) };
                }
                Event::Prompt(_) | Event::Prefilled(_) | Event::Delta(_) => {}
            }
        }
        Ok(outcome?)
    }
}

/// Some token that reads as text: see [`crate::steer::Steer`].
fn filler(tokenizer: &Tokenizer) -> TokenId {
    let reads = |id: &TokenId| {
        let bytes = tokenizer.token_bytes(*id).unwrap_or_default();
        !bytes.is_empty() && bytes.iter().all(u8::is_ascii_alphanumeric)
    };
    (0..tokenizer.vocab_size() as TokenId).find(reads).unwrap_or(0)
}

fn info(
    plugin: &'static str,
    request: &LoadRequest<'_>,
    text: CheckpointText,
    folder: &Folder,
    (plan, adapters): (&Plan, &[Adapter]),
) -> BackendInfo {
    let CheckpointText {
        tokenizer,
        chat_template,
        generation,
    } = text;
    let config = request.checkpoint.config();
    let number = |key: &str| config[key].as_u64().and_then(|n| usize::try_from(n).ok());
    let default_sampling = SamplingOptions::from(&generation);
    let eos_token_ids = match generation.eos_token_ids.is_empty() {
        true => ids(&config["eos_token_id"]).unwrap_or_default(),
        false => generation.eos_token_ids,
    };
    let dtype = plan.dtype.name();
    let quantization = match (&folder.weights, request.isq) {
        (crate::folder::Weights::Gguf(_), _) => "gguf",
        (crate::folder::Weights::Uqff(_), _) => "uqff",
        (crate::folder::Weights::Safetensors, Some(isq)) => isq.name(),
        (crate::folder::Weights::Safetensors, None) => "none",
    };
    let numbers = if quantization == "none" {
        dtype
    } else {
        quantization
    };
    let mut digest = folder.digest;
    for adapter in adapters {
        digest = blake3::hash(&[digest.as_bytes().as_slice(), adapter.digest().as_bytes()].concat());
    }
    let digest = &digest.to_hex()[..12];
    BackendInfo {
        name: request.name.to_owned(),
        plugin,
        architecture: request.checkpoint.architecture().to_owned(),
        parameters: folder.parameters(),
        dtype: dtype.to_owned(),
        quantization: quantization.to_owned(),
        device: plan.device_name.clone(),
        vocab_size: vocab_size(request.checkpoint, &tokenizer),
        hidden_size: folder
            .head
            .and_then(|head| head.dimensions)
            .or_else(|| number("hidden_size"))
            .unwrap_or(0),
        // Said by mistral.rs once it has loaded.
        max_context: 0,
        generates: folder.kind == Kind::Text,
        embeds: folder.kind == Kind::Embedding,
        default_pooling: folder.head.map_or(Pooling::Last, |head| head.pooling),
        default_sampling,
        default_max_tokens: generation.max_new_tokens,
        limits: request.engine.limits,
        grammars: Grammars::new(&tokenizer, &eos_token_ids),
        bos_token_id: generation
            .bos_token_id
            .or(ids(&config["bos_token_id"]).and_then(|ids| ids.first().copied())),
        pad_token_id: generation.pad_token_id,
        eos_token_ids,
        tokenizer,
        chat_template,
        fingerprint: format!("{digest}-{numbers}-mistralrs-{}", env!("CARGO_PKG_VERSION")),
    }
}

/// What config.json says, or else the tokenizer.
fn vocab_size(checkpoint: &Checkpoint, tokenizer: &Tokenizer) -> usize {
    let said = checkpoint.config()["vocab_size"].as_u64();
    said.and_then(|n| usize::try_from(n).ok())
        .unwrap_or_else(|| tokenizer.vocab_size())
}

/// That the tokens which begin, end and fill a sequence are of the vocabulary.
fn check_ids(checkpoint: &Checkpoint, text: &CheckpointText) -> Result<(), LoadError> {
    let vocab_size = vocab_size(checkpoint, &text.tokenizer);
    text.generation.check_ids(checkpoint.dir(), vocab_size)?;
    for key in ["bos_token_id", "eos_token_id"] {
        let value = &checkpoint.config()[key];
        let known = |ids: Vec<TokenId>| ids.iter().all(|id| (*id as usize) < vocab_size);
        if !ids(value).is_some_and(known) {
            return Err(LoadError::Invalid {
                path: checkpoint.dir().join("config.json"),
                message: format!("`{key}` is {value}, must be ids of a vocabulary of {vocab_size}"),
            });
        }
    }
    Ok(())
}

/// One id or several, or none; `None` where something is no id.
fn ids(value: &Value) -> Option<Vec<TokenId>> {
    let id = |value: &Value| value.as_u64().and_then(|id| TokenId::try_from(id).ok());
    match value {
        Value::Null => Some(Vec::new()),
        Value::Array(list) => list.iter().map(id).collect(),
        one => Some(vec![id(one)?]),
    }
}
