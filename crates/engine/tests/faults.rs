//! A model that fails, panics, hangs or runs out of memory in any of its steps: what its requests see.

#![allow(clippy::unwrap_used, reason = "helpers of tests may fail loudly too")]

use std::time::{Duration, Instant};

use baichuan_engine::event::Event;
use baichuan_engine::request::{
    Account, GenerateRequest, OutputOptions, Request, RequestLimits, SamplingOptions, StoppingOptions,
};
use baichuan_engine::stats::EngineHealth;
use baichuan_engine::testing::{FakeOptions, Fault, Release, StepHook, VOCAB_SIZE, fake_engine, logits};
use baichuan_engine::{
    Backend, EngineConfig, EngineHandle, EventStream, OnFailure, RequestError, RequestId, SubmitError,
};

const TOKENS: usize = 8;

fn engine(hook: StepHook, config: EngineConfig) -> EngineHandle {
    let options = FakeOptions {
        hook: Some(hook),
        engine: EngineConfig {
            scrub_freed: true,
            ..config
        },
        ..FakeOptions::default()
    };
    fake_engine(options).unwrap()
}

/// Three sequences at once, prompts in chunks of eight: faults meet prefill, decode, both, and who waits.
fn narrow() -> EngineConfig {
    EngineConfig {
        max_sequences: 3,
        max_step_tokens: 16,
        prefill_chunk_tokens: 8,
        ..EngineConfig::default()
    }
}

fn prompt(visitor: u32) -> Vec<u32> {
    (0..3 + 5 * visitor).map(|i| (i * 7 + visitor) % 256).collect()
}

fn request(prompt: Vec<u32>) -> Request {
    let limits = RequestLimits::default();
    let sampling = SamplingOptions {
        temperature: Some(0.0),
        ..Default::default()
    };
    let stopping = StoppingOptions {
        max_tokens: Some(TOKENS as u32),
        ignore_eos: Some(true),
        ..Default::default()
    };
    Request::Generate(Box::new(GenerateRequest {
        id: RequestId::new("test"),
        prompt,
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

/// What greedy decoding gives, computed without an engine.
fn expected(prompt: &[u32]) -> Vec<u32> {
    let mut tokens = prompt.to_vec();
    for _ in 0..TOKENS {
        let row = logits(&tokens);
        let best = (0..VOCAB_SIZE).rev().max_by(|a, b| row[*a].total_cmp(&row[*b]));
        tokens.push(best.unwrap() as u32);
    }
    tokens.split_off(prompt.len())
}

/// All of a stream: its tokens, and its one terminal event.
async fn whole(mut stream: EventStream) -> (Vec<u32>, Event) {
    let (mut tokens, mut end) = (Vec::new(), None);
    while let Some(event) = stream.next().await {
        assert!(end.is_none(), "an event after the terminal one: {event:?}");
        match event {
            Event::Delta(delta) => tokens.extend(delta.token_ids),
            Event::Prompt(_) | Event::Prefilled(_) => {}
            terminal => end = Some(terminal),
        }
    }
    (tokens, end.expect("a stream has a terminal event"))
}

/// Five requests at once, and what each of them saw. Who came too late for an engine that stopped has seen that.
async fn visits(engine: &EngineHandle) -> Vec<(Vec<u32>, Vec<u32>, Event)> {
    let streams: Vec<_> = (0..5)
        .map(|visitor| {
            let prompt = prompt(visitor);
            (expected(&prompt), engine.submit(request(prompt)))
        })
        .collect();
    let mut seen = Vec::new();
    for (expected, submitted) in streams {
        let (tokens, end) = match submitted {
            Ok(stream) => whole(stream).await,
            Err(SubmitError::Dead) => (Vec::new(), Event::Failed(RequestError::EngineStopped)),
            Err(error) => panic!("{error}"),
        };
        seen.push((expected, tokens, end));
    }
    seen
}

async fn until(engine: &EngineHandle, health: EngineHealth) {
    let mut stats = engine.stats();
    stats.wait_for(|stats| stats.health == health).await.unwrap();
}

async fn is_dead(engine: &EngineHandle) {
    let mut stats = engine.stats();
    while stats.changed().await.is_ok() {}
    assert!(matches!(engine.submit(request(vec![1])), Err(SubmitError::Dead)));
}

/// Steps that the five requests take at most, of one token at least, and some after the end.
const STEPS: std::ops::Range<u64> = 2..40;

#[tokio::test]
async fn an_error_or_a_lack_of_memory_in_any_one_step_costs_nobody_anything() {
    for fault in [Fault::Error, Fault::OutOfMemory] {
        for step in STEPS {
            let engine = engine(fault.clone().at([step]), narrow());
            for (expected, tokens, end) in visits(&engine).await {
                assert!(
                    matches!(end, Event::Finished(_)),
                    "{fault:?} in step {step}: {end:?}"
                );
                assert_eq!(tokens, expected, "{fault:?} in step {step}");
            }
        }
    }
}

#[tokio::test]
async fn a_panic_in_any_one_step_ends_its_requests_once_and_the_others_are_unharmed() {
    for step in STEPS {
        let engine = engine(Fault::Panic.at([step]), narrow());
        let seen = visits(&engine).await;
        let stopped = Event::Failed(RequestError::EngineStopped);
        let ended = seen.iter().filter(|(_, _, end)| *end == stopped).count();
        assert!(ended <= 3, "three run at once: {seen:?}");
        for (expected, tokens, end) in seen {
            match end {
                Event::Finished(_) => assert_eq!(tokens, expected, "panic in step {step}"),
                end => {
                    assert_eq!(end, stopped);
                    assert!(expected.starts_with(&tokens));
                }
            }
        }
        let (mut tokens, mut end) = whole(engine.submit(request(prompt(9))).unwrap()).await;
        if ended == 0 && end == stopped {
            // The five had ended before that step.
            (tokens, end) = whole(engine.submit(request(prompt(9))).unwrap()).await;
        }
        assert!(
            matches!(end, Event::Finished(_)),
            "after a panic in step {step}: {end:?}"
        );
        assert_eq!(tokens, expected(&prompt(9)));
        if ended > 0 {
            assert_eq!(engine.stats().borrow().totals.restarts, 1);
        }
    }
}

#[tokio::test]
async fn an_engine_that_restarts_is_not_ready_and_what_waits_is_served_after_it() {
    let release = Release::default();
    let (hangs, panics) = (Fault::Hang(release.clone()), Fault::Panic);
    let hook = move |step| match step {
        4 => panics.happen(),
        5 => hangs.happen(), // the first step of the warm-up after the panic
        _ => Ok(()),
    };
    let engine = engine(Box::new(hook), narrow());
    let (_, end) = whole(engine.submit(request(prompt(2))).unwrap()).await;
    assert_eq!(end, Event::Failed(RequestError::EngineStopped));
    until(&engine, EngineHealth::Recovering).await;
    let waits = engine.submit(request(prompt(3))).unwrap();
    release.release();
    let (tokens, end) = whole(waits).await;
    assert!(matches!(end, Event::Finished(_)));
    assert_eq!(tokens, expected(&prompt(3)));
    until(&engine, EngineHealth::Running).await;
}

#[tokio::test]
async fn a_model_that_panics_again_soon_after_its_restart_is_given_up() {
    let engine = engine(Fault::Panic.at([4, 9]), narrow());
    let stopped = Event::Failed(RequestError::EngineStopped);
    assert_eq!(whole(engine.submit(request(prompt(2))).unwrap()).await.1, stopped);
    assert_eq!(whole(engine.submit(request(prompt(2))).unwrap()).await.1, stopped);
    is_dead(&engine).await;
    engine.drain().await;
}

#[tokio::test]
async fn a_model_that_cannot_be_made_anew_is_given_up() {
    let engine = engine(Fault::Panic.at(4..1000), narrow());
    for (_, _, end) in visits(&engine).await {
        assert_eq!(end, Event::Failed(RequestError::EngineStopped));
    }
    is_dead(&engine).await;
}

#[tokio::test]
async fn told_so_the_engine_does_not_restart_the_model() {
    let config = EngineConfig {
        on_failure: OnFailure::Exit,
        ..narrow()
    };
    let engine = engine(Fault::Panic.at([4]), config);
    for (_, _, end) in visits(&engine).await {
        assert_eq!(end, Event::Failed(RequestError::EngineStopped));
    }
    is_dead(&engine).await;
}

#[tokio::test]
async fn a_model_that_fails_at_every_step_is_restarted_and_then_given_up() {
    let engine = engine(Fault::Error.at(4..1000), narrow());
    let mut ends = Vec::new();
    while let Ok(stream) = engine.submit(request(prompt(2))) {
        ends.push(whole(stream).await.1);
        assert!(ends.len() <= 5, "two failures a request, eight in a row");
    }
    // The eighth failure led to a restart, whose own step failed.
    assert!(ends.contains(&Event::Failed(RequestError::StepFailed("planted".into()))));
    assert!(ends.iter().all(|end| matches!(end, Event::Failed(_))));
    is_dead(&engine).await;
}

#[tokio::test]
async fn a_model_that_fails_for_a_while_serves_again_after_its_restart() {
    let engine = engine(Fault::Error.at(4..12), narrow());
    let mut served = 0;
    for _ in 0..6 {
        let (tokens, end) = whole(engine.submit(request(prompt(2))).unwrap()).await;
        if matches!(end, Event::Finished(_)) {
            assert_eq!(tokens, expected(&prompt(2)));
            served += 1;
        }
    }
    assert!(served >= 2, "four are refused at most");
    assert_eq!(engine.stats().borrow().totals.restarts, 1);
}

fn impatient(on_failure: OnFailure) -> EngineConfig {
    EngineConfig {
        step_timeout: Some(Duration::from_millis(200)),
        on_failure,
        ..narrow()
    }
}

#[tokio::test]
async fn requests_of_a_stuck_step_end_and_none_are_taken_until_the_model_is_made_anew() {
    for step in [2, 3, 7] {
        let release = Release::default();
        let engine = engine(
            Fault::Hang(release.clone()).at([step]),
            impatient(OnFailure::Restart),
        );
        let seen = visits(&engine).await;
        for (expected, tokens, end) in seen {
            assert_eq!(end, Event::Failed(RequestError::EngineStopped));
            assert!(expected.starts_with(&tokens));
        }
        until(&engine, EngineHealth::Stuck).await;
        assert!(matches!(engine.submit(request(vec![1])), Err(SubmitError::Dead)));
        engine.drain().await; // does not wait for the step
        release.release();
        until(&engine, EngineHealth::Running).await;
        let stats = engine.stats().borrow().clone();
        assert_eq!((stats.totals.restarts, stats.running, stats.waiting), (1, 0, 0));
        assert_eq!(stats.global.used, 0);
    }
}

#[tokio::test]
async fn a_stuck_engine_that_shall_not_restart_is_dead_once_its_step_ends() {
    let release = Release::default();
    let engine = engine(Fault::Hang(release.clone()).at([3]), impatient(OnFailure::Exit));
    visits(&engine).await;
    until(&engine, EngineHealth::Stuck).await;
    release.release();
    is_dead(&engine).await;
}

#[tokio::test]
async fn a_handle_of_a_stuck_engine_can_be_dropped() {
    let release = Release::default();
    let engine = engine(Fault::Hang(release.clone()).at([3]), impatient(OnFailure::Exit));
    visits(&engine).await;
    until(&engine, EngineHealth::Stuck).await;
    drop(engine);
    release.release();
}
