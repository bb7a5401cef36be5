//! What is refused, what is cut off, and what that leaves behind: nothing.

use std::sync::Arc;
use std::time::{Duration, Instant};

use baichuan_engine::event::Event;
use baichuan_engine::request::{Account, Pooling, Request, RequestLimits, StoppingOptions};
use baichuan_engine::{Backend, EngineConfig, RequestError, SubmitError, TenantId};

use crate::support::{collect, embed, greedy, load, load_with, one, until, within};

fn refusal(backend: &Arc<dyn Backend>, request: Request) -> SubmitError {
    backend.submit(request).expect_err("must be refused")
}

fn generate(wish: crate::support::Wish) -> Request {
    Request::Generate(Box::new(wish.request()))
}

#[tokio::test]
async fn what_a_model_lacks_is_refused_by_its_field() {
    let text = load("qwen2");
    let vectors = load("qwen3-embedding");
    let field = |error| match error {
        SubmitError::Unsupported { field, .. } => field.to_owned(),
        SubmitError::Invalid(violations) => violations.listed()[0].field.clone(),
        other => panic!("{other}"),
    };
    assert_eq!(field(refusal(&text, embed(&[1, 2], Pooling::Last))), "model");
    assert_eq!(field(refusal(&vectors, generate(greedy(&[1, 2], 4)))), "model");
    assert_eq!(field(refusal(&vectors, embed(&[1, 2], Pooling::Mean))), "pooling");
    assert_eq!(field(refusal(&vectors, embed(&[1], Pooling::Last))), "inputs");
    assert_eq!(
        field(refusal(&vectors, embed(&[1, 264], Pooling::Last))),
        "token_ids.ids[1]"
    );
    let mut wish = greedy(&[1, 2], 4);
    wish.output.prompt_logprobs = Some(1);
    assert_eq!(field(refusal(&text, generate(wish))), "output.prompt_logprobs");
    assert_eq!(field(refusal(&text, generate(greedy(&[97; 512], 4)))), "prompt");
}

#[tokio::test]
async fn a_dropped_stream_ends_its_request_and_lets_the_next_one_in() {
    let backend = load("qwen3");
    let mut running = greedy(&[104, 105], 500).submit(&backend);
    let waiting = greedy(&[104, 105], 500).submit(&backend);
    let next = greedy(&[104, 105], 6).submit(&backend);
    while !matches!(within("a delta", running.next()).await, Some(Event::Delta(_))) {}
    until(&backend, |s| s.running == 1 && s.waiting == 2).await;
    drop(waiting);
    drop(running);
    assert_eq!(one(next).await.tokens.len(), 6);
    let stats = until(&backend, |s| s.running == 0 && s.waiting == 0).await;
    assert_eq!((stats.totals.cancelled, stats.totals.requests), (2, 3));
    assert!(stats.totals.generated_tokens < 500, "{stats:?}");
    assert_eq!(stats.measured.cancel_to_free.count(), 2);
    let measured = &stats.measured;
    assert_eq!(
        measured.decode_steps.count() + measured.prefill_steps.count(),
        stats.totals.steps
    );
}

#[tokio::test]
async fn what_cannot_be_done_by_its_deadline_is_refused_at_once() {
    let backend = load("qwen2");
    // Learns how fast the engine is.
    assert_eq!(
        one(greedy(&[97; 100], 20).submit(&backend)).await.tokens.len(),
        20
    );
    let stats = until(&backend, |s| s.running == 0 && s.decode_step_rate > 0.0).await;
    let second = Duration::from_secs(1);
    let must_have = |tokens: f64, left: Duration| {
        let mut request = greedy(&[97; 2], 400).request();
        request.stopping = StoppingOptions {
            max_tokens: Some(400),
            min_tokens: Some(tokens as u32),
            ..StoppingOptions::default()
        }
        .validate(&RequestLimits::default(), 1)
        .unwrap();
        request.deadline = Some(Instant::now() + left);
        Request::Generate(Box::new(request))
    };
    // Four hundred tokens within a tenth of the time that they take, and a few within a minute.
    let left = second.div_f64(stats.decode_step_rate) * 40;
    match refusal(&backend, must_have(400.0, left)) {
        SubmitError::DeadlineUnreachable { needs, left } => assert!(needs > left),
        other => panic!("{other}"),
    }
    let in_time = backend.submit(must_have(4.0, second * 60)).unwrap();
    assert!(!one(in_time).await.tokens.is_empty());
}

#[tokio::test]
async fn the_queue_of_one_tenant_is_bounded_by_its_share_and_its_load_is_told() {
    let config = EngineConfig {
        max_waiting: 4,
        ..EngineConfig::default()
    };
    let backend = load_with("qwen3", &config);
    let of = |tenant: u32| {
        let mut request = greedy(&[104, 105], 400).request();
        request.account = Account {
            tenant: TenantId(tenant),
            queue_share: 0.5,
            ..Account::default()
        };
        Request::Generate(Box::new(request))
    };
    let mut running = backend.submit(of(1)).unwrap();
    while !matches!(within("a delta", running.next()).await, Some(Event::Delta(_))) {}
    let _waiting = [backend.submit(of(1)).unwrap(), backend.submit(of(1)).unwrap()];
    match refusal(&backend, of(1)) {
        SubmitError::TenantShare {
            waiting: 2, limit: 2, ..
        } => {}
        other => panic!("{other}"),
    }
    let _another = backend.submit(of(2)).unwrap();
    let stats = until(&backend, |s| s.tenants.len() == 2 && s.waiting == 3).await;
    let loads: Vec<_> = stats
        .tenants
        .iter()
        .map(|load| (load.tenant.0, load.running, load.waiting, load.waiting_tokens))
        .collect();
    assert_eq!(loads, [(1, 1, 2, 4), (2, 0, 1, 2)]);
}

#[tokio::test]
async fn who_comes_to_a_full_queue_is_told_when_to_come_again() {
    let config = EngineConfig {
        max_waiting: 1,
        ..EngineConfig::default()
    };
    let backend = load_with("qwen3", &config);
    let mut running = greedy(&[104, 105], 500).submit(&backend);
    while !matches!(within("a delta", running.next()).await, Some(Event::Delta(_))) {}
    let waiting = greedy(&[104, 105], 4).submit(&backend);
    match refusal(&backend, generate(greedy(&[104, 105], 4))) {
        SubmitError::QueueFull {
            waiting: 1,
            limit: 1,
            retry_after,
        } => assert!(!retry_after.is_zero()),
        other => panic!("{other}"),
    }
    drop(running);
    assert_eq!(one(waiting).await.tokens.len(), 4);
}

#[tokio::test]
async fn who_would_wait_too_long_is_refused() {
    let config = EngineConfig {
        max_wait: Some(Duration::from_millis(1)),
        ..EngineConfig::default()
    };
    let backend = load_with("qwen3", &config);
    let request = || generate(greedy(&[104, 105], 100));
    // Learns how fast requests leave: nobody is refused before three of them have.
    let first = [(); 4].map(|()| backend.submit(request()).unwrap());
    for stream in first {
        assert_eq!(one(stream).await.tokens.len(), 100);
    }
    until(&backend, |s| s.running == 0).await;
    let alone = backend.submit(request()).unwrap();
    until(&backend, |s| s.running == 1 && s.waiting == 0).await;
    match refusal(&backend, request()) {
        SubmitError::WaitTooLong {
            waiting: 0,
            wait,
            limit,
            ..
        } => assert!(wait > limit),
        other => panic!("{other}"),
    }
    assert_eq!(one(alone).await.tokens.len(), 100);
}

#[tokio::test]
async fn a_reader_that_stops_is_cut_off_and_holds_up_nobody() {
    let config = EngineConfig {
        event_buffer: 4,
        ..EngineConfig::default()
    };
    let backend = load_with("qwen2", &config);
    let slow = greedy(&[104, 105], 300).submit(&backend);
    let mut quick = greedy(&[104, 105], 3).request();
    quick.output.stream_interval = 3;
    let quick = crate::support::submit(&backend, quick);
    assert_eq!(one(quick).await.tokens.len(), 3);
    match collect(slow).await {
        Err(RequestError::SlowClient { pending: 4 }) => {}
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_drain_lets_what_was_taken_in_finish_and_takes_nothing_more() {
    let backend = load("qwen2");
    let streams = [30, 20].map(|n| greedy(&[104, 105], n).submit(&backend));
    let drained = tokio::spawn({
        let backend = backend.clone();
        async move { backend.drain().await }
    });
    let refused = async {
        loop {
            match backend.submit(generate(greedy(&[104, 105], 1))) {
                Err(SubmitError::Draining) => break,
                Err(other) => panic!("{other}"),
                Ok(_) => tokio::task::yield_now().await,
            }
        }
    };
    within("the drain", refused).await;
    let [first, second] = streams;
    assert_eq!(one(first).await.tokens.len(), 30);
    assert_eq!(one(second).await.tokens.len(), 20);
    within("the drain's end", drained).await.unwrap();
}

#[tokio::test]
async fn a_backend_that_is_dropped_ends_its_requests() {
    let backend = load("qwen3");
    let mut running = greedy(&[104, 105], 500).submit(&backend);
    while !matches!(within("a delta", running.next()).await, Some(Event::Delta(_))) {}
    let waiting = greedy(&[104, 105], 5).submit(&backend);
    tokio::task::spawn_blocking(move || drop(backend)).await.unwrap();
    assert!(matches!(collect(waiting).await, Err(RequestError::EngineStopped)));
    assert!(matches!(collect(running).await, Err(RequestError::EngineStopped)));
}
