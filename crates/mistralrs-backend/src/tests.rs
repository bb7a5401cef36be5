//! What no client can bring about: an engine that panics, fails or hangs. Faults strike where tokens are chosen, inside
//! mistralrs-core's own thread.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Mutex, PoisonError, mpsc};
use std::time::{Duration, Instant};

use baichuan_engine::event::Event;
use baichuan_engine::request::{
    Account, EmbedRequest, GenerateRequest, OutputOptions, Pooling, Request, RequestLimits, SamplingOptions,
    StoppingOptions,
};
use baichuan_engine::stats::EngineHealth;
use baichuan_engine::{
    Backend, Checkpoint, EngineConfig, EventSink, EventStream, LoadRequest, Placement, RequestError,
    RequestId, SubmitError,
};

use crate::backend::MistralRsBackend;
use crate::driver::{Command, Job};
use crate::plugin::start;

const PATIENCE: Duration = Duration::from_secs(60);

/// Done once, before a token of the request of that name is chosen.
type Fault = Box<dyn FnOnce() + Send>;

static FAULTS: Mutex<Option<HashMap<String, Fault>>> = Mutex::new(None);

/// Has a fault strike the request called `name`, once.
fn inject(name: &str, fault: impl FnOnce() + Send + 'static) {
    let mut faults = FAULTS.lock().unwrap();
    faults
        .get_or_insert_default()
        .insert(name.to_owned(), Box::new(fault));
}

/// Where faults strike.
pub(crate) fn strike(name: &str) {
    let mut faults = FAULTS.lock().unwrap_or_else(PoisonError::into_inner);
    let fault = faults.as_mut().and_then(|faults| faults.remove(name));
    drop(faults);
    if let Some(fault) = fault {
        fault();
    }
}

fn load(model: &str, config: &EngineConfig) -> MistralRsBackend {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/golden")
        .join(model);
    let checkpoint = Checkpoint::open(folder).unwrap();
    let request = LoadRequest {
        name: "doomed",
        checkpoint: &checkpoint,
        dtype: None,
        cache_dtype: None,
        isq: None,
        adapters: &[],
        threads: None,
        random_weights: None,
        placement: &Placement::default(),
        engine: config,
        progress: &|_| {},
    };
    start("mistralrs", &request).unwrap()
}

fn embedding(tokens: &[u32]) -> Request {
    Request::Embed(EmbedRequest {
        id: RequestId::new("test"),
        tokens: tokens.to_vec(),
        pooling: Pooling::Last,
        priority: 0,
        account: Account::default(),
        deadline: None,
        arrived: Instant::now(),
    })
}

/// A greedy completion of so many tokens.
fn generation(name: &str, max_tokens: u32) -> Request {
    let limits = RequestLimits::default();
    let sampling = SamplingOptions {
        temperature: Some(0.0),
        ..SamplingOptions::default()
    };
    let stopping = StoppingOptions {
        max_tokens: Some(max_tokens),
        ignore_eos: Some(true),
        ..StoppingOptions::default()
    };
    Request::Generate(Box::new(GenerateRequest {
        id: RequestId::new(name),
        prompt: vec![104, 105],
        sampling: sampling.validate(&limits, 0).unwrap(),
        stopping: stopping.validate(&limits, 1).unwrap(),
        output: OutputOptions::default(),
        grammar: None,
        priority: 0,
        account: Account::default(),
        deadline: None,
        arrived: Instant::now(),
    }))
}

async fn within<T>(what: &str, work: impl Future<Output = T>) -> T {
    let outcome = tokio::time::timeout(PATIENCE, work).await;
    outcome.unwrap_or_else(|_| panic!("waited {PATIENCE:?} for {what}"))
}

/// The last event of a stream.
async fn last(stream: &mut EventStream) -> Option<Event> {
    let mut last = None;
    while let Some(event) = within("an event", stream.next()).await {
        last = Some(event);
    }
    last
}

/// The backend is dead, for whoever watches it and whoever asks something of it; what ran and waited has ended.
async fn is_dead(backend: MistralRsBackend, streams: &mut [EventStream], another: Request) {
    let mut stats = backend.stats();
    let died = async { while stats.changed().await.is_ok() {} };
    within("the end of its statistics", died).await;
    for stream in streams {
        assert_eq!(
            last(stream).await,
            Some(Event::Failed(RequestError::EngineStopped))
        );
    }
    assert!(matches!(backend.submit(another), Err(SubmitError::Dead)));
    within("the drain", backend.drain()).await;
    tokio::task::spawn_blocking(move || drop(backend)).await.unwrap();
}

#[tokio::test]
async fn a_panic_while_embedding_ends_the_requests_and_the_backend_and_nothing_else() {
    let backend = load("qwen3-embedding", &EngineConfig::default());
    // Past the check that keeps clients from it: an input of one token, on which mistralrs-core panics.
    let (sink, doomed) = EventSink::channel(4);
    let job = Job {
        request: embedding(&[1]),
        sink,
        place: backend.queue.enter(&Account::default(), 1, 0.0).unwrap(),
        span: tracing::Span::none(),
    };
    backend.send(Command::Submit(Box::new(job))).unwrap();
    let waiting = backend.submit(embedding(&[1, 2])).unwrap();
    is_dead(backend, &mut [doomed, waiting], embedding(&[1, 2])).await;
}

#[tokio::test]
async fn a_panic_while_generating_ends_the_requests_and_the_backend_and_nothing_else() {
    let (backend, other) = (
        load("qwen2", &EngineConfig::default()),
        load("qwen3", &EngineConfig::default()),
    );
    inject("panics", || panic!("a fault of this test"));
    let doomed = backend.submit(generation("panics", 100)).unwrap();
    let waiting = backend.submit(generation("waits", 100)).unwrap();
    let mut elsewhere = other.submit(generation("elsewhere", 30)).unwrap();
    is_dead(backend, &mut [doomed, waiting], generation("late", 1)).await;
    assert!(matches!(last(&mut elsewhere).await, Some(Event::Finished(_))));
    tokio::task::spawn_blocking(move || drop(other)).await.unwrap();
}

#[tokio::test]
async fn an_engine_that_hangs_ends_its_requests_and_takes_new_ones_when_it_goes_on() {
    let config = EngineConfig {
        step_timeout: Some(Duration::from_millis(300)),
        ..EngineConfig::default()
    };
    let backend = load("qwen3", &config);
    let (go_on, wait) = mpsc::channel::<()>();
    inject("hangs", move || {
        let _ = wait.recv();
    });
    let mut stats = backend.stats();
    let mut hangs = backend.submit(generation("hangs", 100)).unwrap();
    let mut waits = backend.submit(generation("waits", 100)).unwrap();
    for stream in [&mut hangs, &mut waits] {
        assert_eq!(
            last(stream).await,
            Some(Event::Failed(RequestError::EngineStopped))
        );
    }
    within(
        "the change of health",
        stats.wait_for(|s| s.health == EngineHealth::Stuck),
    )
    .await
    .unwrap();
    let refused = backend.submit(generation("late", 1));
    assert!(matches!(refused, Err(SubmitError::Dead)));
    within("the drain of what is stuck", backend.drain()).await;
    backend
        .draining
        .store(false, std::sync::atomic::Ordering::Relaxed);
    drop((hangs, waits));
    drop(go_on);
    within(
        "the change of health",
        stats.wait_for(|s| s.health == EngineHealth::Running),
    )
    .await
    .unwrap();
    let mut again = backend.submit(generation("again", 5)).unwrap();
    assert!(matches!(last(&mut again).await, Some(Event::Finished(_))));
    tokio::task::spawn_blocking(move || drop(backend)).await.unwrap();
}
