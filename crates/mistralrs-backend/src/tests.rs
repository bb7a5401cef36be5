//! What no client can bring about: a panic inside mistralrs-core.

use std::path::Path;
use std::time::{Duration, Instant};

use baichuan_engine::request::{Account, EmbedRequest, Pooling, Request};
use baichuan_engine::{
    Backend, Checkpoint, EngineConfig, EventSink, LoadRequest, Placement, RequestError, RequestId,
    SubmitError,
};

use crate::driver::{Command, Job};
use crate::plugin::start;

#[tokio::test]
async fn a_panic_in_mistral_rs_ends_its_requests_and_the_backend_and_nothing_else() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/qwen3-embedding");
    let checkpoint = Checkpoint::open(folder).unwrap();
    let config = EngineConfig::default();
    let backend = start(
        "mistralrs",
        &LoadRequest {
            name: "doomed",
            checkpoint: &checkpoint,
            dtype: None,
            cache_dtype: None,
            isq: None,
            threads: None,
            random_weights: None,
            placement: &Placement::default(),
            engine: &config,
            progress: &|_| {},
        },
    )
    .unwrap();
    let request = |tokens: &[u32]| EmbedRequest {
        id: RequestId::new("test"),
        tokens: tokens.to_vec(),
        pooling: Pooling::Last,
        priority: 0,
        account: Account::default(),
        deadline: None,
        arrived: Instant::now(),
    };
    // Past the check that keeps clients from it: an input of one token, on which mistralrs-core panics.
    let (sink, mut doomed) = EventSink::channel(4);
    let job = Job {
        request: Request::Embed(request(&[1])),
        sink,
        place: backend.queue.enter(&Account::default(), 1, 0.0).unwrap(),
    };
    backend.send(Command::Submit(Box::new(job))).unwrap();
    let mut waiting = backend.submit(Request::Embed(request(&[1, 2]))).unwrap();
    let mut stats = backend.stats();
    let died = async { while stats.changed().await.is_ok() {} };
    tokio::time::timeout(Duration::from_secs(60), died)
        .await
        .expect("its statistics end");
    for stream in [&mut doomed, &mut waiting] {
        let last = stream.next().await;
        assert_eq!(
            last,
            Some(baichuan_engine::event::Event::Failed(RequestError::EngineStopped))
        );
    }
    assert!(matches!(
        backend.submit(Request::Embed(request(&[1, 2]))),
        Err(SubmitError::Dead)
    ));
    tokio::task::spawn_blocking(move || drop(backend)).await.unwrap();
}
