//! What is refused, what is cut off, and what that leaves behind: nothing.

use std::sync::Arc;

use baichuan_engine::event::Event;
use baichuan_engine::request::{Pooling, Request};
use baichuan_engine::{Backend, EngineConfig, RequestError, SubmitError};

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
        SubmitError::Invalid(violations) => violations.0[0].field.clone(),
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
