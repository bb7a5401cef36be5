//! A full queue refuses at once and says when to come back.

use std::time::Duration;

use baichuan_client::{Event, Refusal, prompt, v1};
use e2e::{Fake, Gate, Setup, TestServer, refusal, text, tokens, until_idle, until_load};
use tonic::Code;

/// A server with one running request and room for no more than the settings leave in its queue.
async fn busy(gate: &Gate, settings: &[(&str, usize)]) -> (TestServer, baichuan_client::Generation) {
    let mut setup = Setup::fake(Fake::gated(gate)).with("engine.max_sequences", 1);
    for (key, value) in settings {
        setup = setup.with(key, value);
    }
    let server = TestServer::start(setup).await;
    gate.close();
    let mut running = server.client.generate(text("run", 5)).await.unwrap();
    assert!(
        matches!(running.next().await.unwrap(), Some(Event::PromptInfo(_))),
        "it has left the queue"
    );
    (server, running)
}

fn check(refused: &Refusal, reason: &str) {
    assert_eq!(refused.code, Code::ResourceExhausted);
    assert_eq!(
        (refused.reason.as_deref(), refused.domain.as_deref()),
        (Some(reason), Some("baichuan.v1"))
    );
    let delay = refused.retry_delay.expect("RetryInfo");
    assert!(delay > Duration::ZERO);
    let pushback = refused
        .retry_pushback
        .expect("the trailer grpc-retry-pushback-ms");
    assert_eq!(pushback.as_millis(), delay.as_millis());
}

#[tokio::test]
async fn more_requests_than_may_wait_are_refused_and_those_that_wait_are_served() {
    let gate = Gate::new();
    let (server, running) = busy(&gate, &[("engine.max_waiting", 2)]).await;
    let mut waiting = Vec::new();
    for _ in 0..2 {
        waiting.push(server.client.generate(text("waits", 5)).await.unwrap());
    }
    check(
        &refusal(server.client.generate(text("too many", 5)).await),
        "QUEUE_FULL",
    );
    check(
        &refusal(server.client.generate_unary(text("too many", 5)).await),
        "QUEUE_FULL",
    );
    let embed = v1::EmbedRequest {
        inputs: vec![prompt::embed_text("too many")],
        ..Default::default()
    };
    check(&refusal(server.client.embed(embed).await), "QUEUE_FULL");
    gate.open();
    for generation in std::iter::once(running).chain(waiting) {
        assert_eq!(generation.collect().await.unwrap().choices[0].token_ids.len(), 5);
    }
    until_idle(&server.client, "").await;
    server
        .client
        .generate(text("room again", 5))
        .await
        .unwrap()
        .collect()
        .await
        .unwrap();
    server.stop().await;
}

#[tokio::test]
async fn more_prompt_tokens_than_may_wait_are_refused() {
    let gate = Gate::new();
    let (server, running) = busy(&gate, &[("engine.max_waiting_tokens", 100)]).await;
    let waiting = server.client.generate(tokens(&[1; 60], 5)).await.unwrap();
    check(
        &refusal(server.client.generate(tokens(&[1; 60], 5)).await),
        "TOKEN_BUDGET",
    );
    let short = server.client.generate(tokens(&[1; 40], 5)).await.unwrap();
    gate.open();
    for generation in [running, waiting, short] {
        generation.collect().await.unwrap();
    }
    server.stop().await;
}

#[tokio::test]
async fn who_would_wait_longer_than_allowed_is_refused_and_is_taken_where_there_is_room() {
    let gate = Gate::new();
    let setup = Setup::fake(Fake::gated(&gate))
        .with("engine.max_sequences", 1)
        // Less than anything takes: nobody may wait once it is known how long that is.
        .with("engine.max_wait", "1us");
    let server = TestServer::start(setup).await;
    gate.close();
    let mut queued = Vec::new();
    for _ in 0..4 {
        queued.push(server.client.generate(text("waits", 5)).await.unwrap());
    }
    gate.open();
    for generation in queued {
        generation.collect().await.unwrap();
    }
    until_idle(&server.client, "").await;

    gate.close();
    let running = server.client.generate(text("there is room", 50)).await.unwrap();
    gate.allow(2);
    until_load(&server.client, "", |load| load.slots_used == 1).await;
    let refused = refusal(server.client.generate(text("waits too long", 5)).await);
    check(&refused, "QUEUE_FULL");
    assert!(refused.message.contains("1µs"), "{}", refused.message);
    gate.open();
    running.collect().await.unwrap();
    until_idle(&server.client, "").await;
    server.client.generate_unary(text("room again", 5)).await.unwrap();
    server.stop().await;
}
