//! Checkpoints, backends and requests.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use baichuan_engine::event::{Delta, Event, Finished};
use baichuan_engine::request::{
    Account, EmbedRequest, GenerateRequest, OutputOptions, Pooling, Request, RequestLimits, SamplingOptions,
    StoppingOptions,
};
use baichuan_engine::stats::EngineStats;
use baichuan_engine::{
    Backend, Checkpoint, EngineConfig, EventStream, LoadError, LoadRequest, ModelPlugin, Placement,
    RequestError, RequestId, TokenId,
};
use serde::Deserialize;
use serde::de::DeserializeOwned;

/// Far longer than anything here takes: reaching it is a failure.
const PATIENCE: Duration = Duration::from_secs(120);

/// A golden completion.
#[derive(Deserialize)]
pub(crate) struct Completed {
    pub(crate) prompt: Vec<TokenId>,
    pub(crate) tokens: Vec<TokenId>,
    pub(crate) logprobs: Vec<f32>,
}

/// A golden vector.
#[derive(Deserialize)]
pub(crate) struct Vector {
    pub(crate) prompt: Vec<TokenId>,
    pub(crate) values: Vec<f32>,
}

/// The folder of a checkpoint, such as `qwen2`.
pub(crate) fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/golden")
        .join(name)
}

/// What a checkpoint must say, by the prompt's name.
pub(crate) fn golden<T: DeserializeOwned>(name: &str) -> BTreeMap<String, T> {
    let text = std::fs::read(folder(name).join("golden.json")).unwrap();
    serde_json::from_slice(&text).unwrap()
}

/// Loads a folder; `change` may ask for something else than the defaults.
pub(crate) fn try_load(
    dir: &Path,
    engine: &EngineConfig,
    change: impl FnOnce(&mut LoadRequest<'_>),
) -> Result<Arc<dyn Backend>, LoadError> {
    try_load_with(dir, &[], engine, change)
}

/// [`try_load`] with adapters.
pub(crate) fn try_load_with(
    dir: &Path,
    adapters: &[PathBuf],
    engine: &EngineConfig,
    change: impl FnOnce(&mut LoadRequest<'_>),
) -> Result<Arc<dyn Backend>, LoadError> {
    let checkpoint = Checkpoint::open(dir)?;
    let placement = Placement::default();
    let mut request = LoadRequest {
        name: "under-test",
        checkpoint: &checkpoint,
        dtype: None,
        cache_dtype: None,
        isq: None,
        adapters,
        threads: None,
        random_weights: None,
        placement: &placement,
        engine,
        progress: &|_| {},
    };
    change(&mut request);
    mistralrs_backend::plugin().load(&request)
}

pub(crate) fn load(name: &str) -> Arc<dyn Backend> {
    load_with(name, &EngineConfig::default())
}

pub(crate) fn load_with(name: &str, engine: &EngineConfig) -> Arc<dyn Backend> {
    try_load(&folder(name), engine, |_| {}).unwrap_or_else(|e| panic!("{name}: {e}"))
}

/// A generation as a test wants it.
#[derive(Default)]
pub(crate) struct Wish {
    pub(crate) prompt: Vec<TokenId>,
    pub(crate) sampling: SamplingOptions,
    pub(crate) stopping: StoppingOptions,
    pub(crate) output: OutputOptions,
}

/// Greedy, through end-of-sequence tokens.
pub(crate) fn greedy(prompt: &[TokenId], max_tokens: u32) -> Wish {
    Wish {
        prompt: prompt.to_vec(),
        sampling: SamplingOptions {
            temperature: Some(0.0),
            ..SamplingOptions::default()
        },
        stopping: StoppingOptions {
            max_tokens: Some(max_tokens),
            ignore_eos: Some(true),
            ..StoppingOptions::default()
        },
        output: OutputOptions {
            token_ids: true,
            ..OutputOptions::default()
        },
    }
}

impl Wish {
    pub(crate) fn request(self) -> GenerateRequest {
        let limits = RequestLimits::default();
        let sampling = self.sampling.validate(&limits, 0).unwrap();
        GenerateRequest {
            id: RequestId::new("test"),
            prompt: self.prompt,
            stopping: self.stopping.validate(&limits, sampling.n()).unwrap(),
            sampling,
            output: self.output.validate().unwrap(),
            grammar: None,
            priority: 0,
            account: Account::default(),
            deadline: None,
            arrived: Instant::now(),
        }
    }

    pub(crate) fn submit(self, backend: &Arc<dyn Backend>) -> EventStream {
        submit(backend, self.request())
    }
}

pub(crate) fn submit(backend: &Arc<dyn Backend>, request: GenerateRequest) -> EventStream {
    backend.submit(Request::Generate(Box::new(request))).unwrap()
}

pub(crate) fn embed(tokens: &[TokenId], pooling: Pooling) -> Request {
    Request::Embed(EmbedRequest {
        id: RequestId::new("test"),
        tokens: tokens.to_vec(),
        pooling,
        priority: 0,
        account: Account::default(),
        deadline: None,
        arrived: Instant::now(),
    })
}

/// One completion, whole.
#[derive(Debug, Default)]
pub(crate) struct Whole {
    pub(crate) text: String,
    pub(crate) tokens: Vec<TokenId>,
    pub(crate) deltas: Vec<Delta>,
    pub(crate) finished: Option<Finished>,
}

/// All completions of a request, by index.
pub(crate) async fn collect(mut stream: EventStream) -> Result<Vec<Whole>, RequestError> {
    let mut all: Vec<Whole> = Vec::new();
    let mut at = |index: u32| {
        let index = index as usize;
        if all.len() <= index {
            all.resize_with(index + 1, Whole::default);
        }
        index
    };
    let mut events = Vec::new();
    while let Some(event) = within("an event", stream.next()).await {
        events.push(event);
    }
    for event in &events {
        if let Event::Delta(Delta { index, .. }) | Event::Finished(Finished { index, .. }) = event {
            at(*index);
        }
    }
    for event in events {
        match event {
            Event::Delta(delta) => {
                let whole = &mut all[delta.index as usize];
                whole.text.push_str(&delta.text);
                whole.tokens.extend(&delta.token_ids);
                whole.deltas.push(delta);
            }
            Event::Finished(finished) => {
                let index = finished.index as usize;
                all[index].finished = Some(finished);
            }
            Event::Failed(error) => return Err(error),
            Event::Prompt(_) | Event::Prefilled(_) | Event::Embedded(_) => {}
        }
    }
    Ok(all)
}

/// The only completion of a request.
pub(crate) async fn one(stream: EventStream) -> Whole {
    collect(stream).await.unwrap().remove(0)
}

/// The vector of an input.
pub(crate) async fn vector(mut stream: EventStream) -> Result<Vec<f32>, RequestError> {
    loop {
        match within("a vector", stream.next()).await {
            Some(Event::Prefilled(_)) => {}
            Some(Event::Embedded(embedded)) => return Ok(embedded.values),
            Some(Event::Failed(error)) => return Err(error),
            other => panic!("not a vector: {other:?}"),
        }
    }
}

/// Waits until a backend's load is as wanted.
pub(crate) async fn until(backend: &Arc<dyn Backend>, holds: impl Fn(&EngineStats) -> bool) -> EngineStats {
    let mut stats = backend.stats();
    let found = within("the load", stats.wait_for(|stats| holds(stats))).await;
    found.unwrap().clone()
}

pub(crate) async fn within<T>(what: &str, work: impl Future<Output = T>) -> T {
    match tokio::time::timeout(PATIENCE, work).await {
        Ok(outcome) => outcome,
        Err(_) => panic!("waited {PATIENCE:?} for {what}"),
    }
}
