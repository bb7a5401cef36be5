//! Many clients at once: 64 streams of the real model, in pools too small for them, answer as each does alone; and a server
//! that is asked for three times what it can do, by clients of whom half misbehave, keeps what it promises.

use std::time::Duration;

use baichuan_client::{Client, Completion, v1};
use e2e::checkpoint::tiny_m1;
use e2e::soak::{self, Plan};
use e2e::{Setup, TestServer, program, tokens, until_idle, within};
use futures::future::join_all;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

const STREAMS: usize = 64;

/// One client's wish and patience.
#[derive(Clone, Debug)]
struct Visitor {
    request: v1::GenerateRequest,
    arrives: Duration,
    /// Goes away after so many tokens; absent: stays to the end.
    leaves_after: Option<usize>,
}

fn visitors() -> Vec<Visitor> {
    let mut random = StdRng::seed_from_u64(20);
    let mut visitor = |index: usize| {
        let length = if index.is_multiple_of(5) {
            random.random_range(40..90)
        } else {
            random.random_range(1..30)
        };
        let prompt: Vec<u32> = (0..length).map(|_| random.random_range(9..512)).collect();
        let max_tokens = random.random_range(1..40);
        let mut request = tokens(&prompt, max_tokens);
        request.priority = Some(random.random_range(-1..=1));
        if index.is_multiple_of(2) {
            request.sampling = Some(v1::SamplingParams {
                temperature: Some(0.9),
                top_k: Some(40),
                top_p: Some(0.95),
                seed: Some(index as u64),
                ..Default::default()
            });
        }
        Visitor {
            request,
            arrives: Duration::from_millis(random.random_range(0..40)),
            leaves_after: (index % 4 == 3).then(|| random.random_range(0..max_tokens as usize)),
        }
    };
    (0..STREAMS).map(&mut visitor).collect()
}

/// Runs a visit: what came of it, and whether the stream ended by itself.
async fn visit(client: &Client, visitor: &Visitor) -> (Completion, bool) {
    let mut completion = Completion::default();
    let mut generation = client.generate(visitor.request.clone()).await.unwrap();
    loop {
        let received = completion
            .choices
            .first()
            .map_or(0, |choice| choice.token_ids.len());
        if visitor.leaves_after.is_some_and(|enough| received >= enough) {
            return (completion, false);
        }
        match generation.next().await.unwrap() {
            Some(event) => completion.push(event),
            None => return (completion, true),
        }
    }
}

fn token_ids(completion: &Completion) -> &[u32] {
    completion.choices.first().map_or(&[], |choice| &choice.token_ids)
}

#[tokio::test]
async fn every_stream_ends_once_with_the_tokens_of_its_solo_run_and_nothing_stays_held() {
    let visitors = visitors();
    let roomy = TestServer::start(Setup::m1(tiny_m1())).await;
    let mut alone = Vec::new();
    for visitor in &visitors {
        let request = visitor.request.clone();
        alone.push(
            roomy
                .client
                .generate(request)
                .await
                .unwrap()
                .collect()
                .await
                .unwrap(),
        );
    }
    roomy.stop().await;

    // One sequence of full length fits; four hold most of it.
    let setup = Setup::m1(tiny_m1())
        .with("engine.cache.block_tokens", 4)
        .with_blocks(64, 40)
        .with("engine.max_context", 160)
        .with("engine.max_sequences", 12)
        .with("engine.max_step_tokens", 24)
        .with("engine.prefill_chunk_tokens", 11);
    let server = TestServer::start(setup).await;
    let visits = visitors.iter().map(|visitor| {
        let client = server.client.clone();
        async move {
            tokio::time::sleep(visitor.arrives).await;
            visit(&client, visitor).await
        }
    });
    let outcomes = within("all visits", join_all(visits)).await;

    for ((visitor, (got, ended)), alone) in visitors.iter().zip(&outcomes).zip(&alone) {
        assert_eq!(*ended, visitor.leaves_after.is_none());
        if *ended {
            assert_eq!(token_ids(got), token_ids(alone), "{visitor:?}");
            let finishes = got
                .choices
                .iter()
                .filter(|choice| choice.finish.is_some())
                .count();
            assert_eq!(finishes, 1);
        } else {
            assert!(token_ids(alone).starts_with(token_ids(got)), "{visitor:?}");
        }
    }
    let load = until_idle(&server.client, "").await;
    assert!(
        load.preemptions_total > 0,
        "the pools were not too small: {load:?}"
    );
    assert_eq!(load.requests_total, STREAMS as u64);
    server.stop().await;
}

/// What `cargo run --bin soak` does for 20 minutes, for a few seconds: a busy machine's times are not judged.
#[tokio::test]
async fn under_three_times_its_capacity_and_misbehaviour_a_server_loses_and_keeps_nothing() {
    let server = program("baichuan-server");
    let plan = Plan {
        server: server.as_std().get_program().into(),
        model: tiny_m1().into(),
        time: Duration::from_secs(6),
        clients: 40,
        sequences: 8,
        max_tokens: 24,
        strict: false,
        ..Plan::default()
    };
    let verdict = soak::run(&plan).await;
    assert!(verdict.faults.is_empty(), "{verdict}");
}
