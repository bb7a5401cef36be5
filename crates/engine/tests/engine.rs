//! The engine with its thread, as the server holds it.

#![allow(clippy::unwrap_used, reason = "helpers of tests may fail loudly too")]

use std::sync::mpsc;
use std::time::Instant;

use baichuan_engine::event::{Event, FinishReason};
use baichuan_engine::request::{
    Account, GenerateRequest, OutputOptions, Request, RequestLimits, SamplingOptions, StoppingOptions,
};
use baichuan_engine::testing::{FakeOptions, StepHook, fake_engine};
use baichuan_engine::{
    Backend, EngineConfig, EngineHandle, EventStream, RequestError, RequestId, StepError, SubmitError,
};

fn engine(hook: Option<StepHook>, config: EngineConfig) -> EngineHandle {
    fake_engine(FakeOptions {
        hook,
        engine: config,
        ..FakeOptions::default()
    })
    .unwrap()
}

fn request(max_tokens: u32) -> Request {
    let limits = RequestLimits::default();
    let sampling = SamplingOptions {
        temperature: Some(0.0),
        ..Default::default()
    };
    let stopping = StoppingOptions {
        max_tokens: Some(max_tokens),
        ignore_eos: Some(true),
        ..Default::default()
    };
    Request::Generate(Box::new(GenerateRequest {
        id: RequestId::new("test"),
        prompt: vec![1, 2, 3],
        sampling: sampling.validate(&limits, 0).unwrap(),
        stopping: stopping.validate(&limits, 1).unwrap(),
        output: OutputOptions::default(),
        grammar: None,
        priority: 0,
        arrived: Instant::now(),
        account: Account::default(),
        deadline: None,
    }))
}

async fn last(mut stream: EventStream) -> Event {
    let mut last = None;
    while let Some(event) = stream.next().await {
        last = Some(event);
    }
    last.expect("a stream has a terminal event")
}

fn is_whole(event: &Event) -> bool {
    matches!(event, Event::Finished(f) if f.reason == FinishReason::Length)
}

/// A hook that lets a step go on only when told, and the teller. Warm-up's two steps go on by themselves.
fn gate() -> (StepHook, mpsc::Sender<()>) {
    let (tx, rx) = mpsc::channel();
    let hook = move |step| {
        if step >= 2 {
            let _ = rx.recv(); // once the teller is gone every step goes on
        }
        Ok(())
    };
    (Box::new(hook), tx)
}

#[tokio::test]
async fn drain_lets_the_admitted_finish_and_refuses_the_rest() {
    let (hook, gate) = gate();
    let engine = engine(Some(hook), EngineConfig::default());
    let stream = engine.submit(request(20)).unwrap();
    let drain = tokio::spawn({
        let engine = engine.clone();
        async move { engine.drain().await }
    });
    while !matches!(engine.submit(request(1)), Err(SubmitError::Draining)) {
        tokio::task::yield_now().await;
    }
    drop(gate);
    drain.await.unwrap();
    assert!(is_whole(&last(stream).await));
    let stats = engine.stats().borrow().clone();
    assert_eq!((stats.running, stats.waiting, stats.draining), (0, 0, true));
}

#[tokio::test]
async fn a_full_queue_refuses_at_once_and_says_when_to_come_back() {
    let (hook, gate) = gate();
    let config = EngineConfig {
        max_waiting: 2,
        ..EngineConfig::default()
    };
    let engine = engine(Some(hook), config);
    let mut streams = vec![engine.submit(request(2)).unwrap()];
    let refused = loop {
        match engine.submit(request(2)) {
            Ok(stream) => streams.push(stream),
            Err(error) => break error,
        }
        assert!(streams.len() <= 1 + 2 + 1, "one runs, two wait");
    };
    let SubmitError::QueueFull {
        waiting,
        limit,
        retry_after,
    } = refused
    else {
        panic!("{refused}")
    };
    assert_eq!((waiting, limit), (2, 2));
    assert!(!retry_after.is_zero());
    drop(gate);
    for stream in streams {
        assert!(is_whole(&last(stream).await));
    }
}

#[tokio::test]
async fn what_does_not_fit_the_model_is_refused_by_field() {
    let engine = engine(None, EngineConfig::default());
    let Request::Generate(mut bad) = request(1) else {
        unreachable!()
    };
    bad.prompt = vec![1, 99_999];
    let Err(SubmitError::Invalid(violations)) = engine.submit(Request::Generate(bad.clone())) else {
        panic!()
    };
    assert_eq!(violations.listed()[0].field, "token_ids.ids[1]");
    bad.prompt = vec![1; 5000];
    let Err(SubmitError::Invalid(violations)) = engine.submit(Request::Generate(bad)) else {
        panic!()
    };
    assert_eq!(
        violations.listed()[0].message,
        "prompt has 5000 tokens, the model accepts 4095"
    );
}

#[tokio::test]
async fn the_last_handle_ends_the_engine_and_its_requests() {
    let (hook, gate) = gate();
    let engine = engine(Some(hook), EngineConfig::default());
    let stream = engine.submit(request(1000)).unwrap();
    let dropped = tokio::task::spawn_blocking(move || drop(engine));
    drop(gate);
    dropped.await.unwrap();
    let end = last(stream).await;
    assert!(
        end == Event::Failed(RequestError::EngineStopped) || is_whole(&end),
        "{end:?}"
    );
}

#[test]
fn a_model_that_answers_nonsense_does_not_start() {
    let hook = |_| Err(StepError::NotFinite);
    let options = FakeOptions {
        hook: Some(Box::new(hook)),
        ..FakeOptions::default()
    };
    let error = fake_engine(options).err().expect("warm-up fails");
    assert_eq!(
        error.to_string(),
        "warm-up failed: the model produced NaN or infinite values"
    );
}
