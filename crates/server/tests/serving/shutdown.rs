//! How the server ends: nothing admitted is lost while there is time, and there is always an end.

use baichuan_client::{Event, v1};
use baichuan_server::ServeError;
use tonic::Code;

use crate::support::{TestServer, generation, refusal};

#[tokio::test]
async fn draining_refuses_new_calls_and_finishes_running_ones() {
    let mut server = TestServer::start("engine.max_sequences = 4").await;
    // No step runs until the end of the test, so that none of these can end before the server is asked to.
    server.fake.steps.shut();
    let mut streams = Vec::new();
    for _ in 0..8 {
        streams.push(server.client.generate(generation("a", 50)).await.unwrap());
    }
    server.trigger.ask();
    while !server.client.server_info().await.unwrap().draining {}
    let refused = refusal(server.client.generate(generation("a", 1)).await);
    assert_eq!(
        (refused.code, refused.reason.as_deref()),
        (Code::Unavailable, Some("DRAINING"))
    );
    assert!(refused.retry_delay.is_some());
    let models = server.client.models().await.unwrap();
    assert_eq!(models[0].state(), v1::ModelState::Draining);

    server.fake.steps.open();
    for stream in streams {
        let completion = stream.collect().await.unwrap();
        let usage = completion.choices[0].finish.as_ref().unwrap().usage.unwrap();
        assert_eq!(usage.completion_tokens, 50);
    }
    server.ended().await.unwrap();
}

#[tokio::test]
async fn calls_are_still_taken_during_the_drain_delay() {
    let mut server = TestServer::start("shutdown.drain_delay = '2s'").await;
    let mut ready = server
        .client
        .watch_health(baichuan_server::READINESS_SERVICE)
        .await
        .unwrap();
    ready.next().await.unwrap();
    server.trigger.ask();
    ready.next().await.unwrap();
    server.client.generate_unary(generation("a", 3)).await.unwrap();
    server.ended().await.unwrap();
}

#[tokio::test]
async fn what_runs_past_the_drain_timeout_ends_unavailable() {
    let mut server = TestServer::start("shutdown.drain_timeout = '100ms'").await;
    let mut running = server.client.generate(generation("a", 4000)).await.unwrap();
    while !matches!(running.next().await.unwrap(), Some(Event::Delta(_))) {}
    server.fake.steps.shut();
    server.trigger.ask();
    let error = loop {
        match running.next().await {
            Ok(Some(_)) => {}
            ended => break refusal(ended),
        }
    };
    assert_eq!(
        (error.code, error.reason.as_deref()),
        (Code::Unavailable, Some("SERVER_ENDED"))
    );
    server.fake.steps.open();
    server.ended().await.unwrap();
}

#[tokio::test]
async fn a_second_ask_ends_at_once() {
    let mut server = TestServer::start("").await;
    let mut running = server.client.generate(generation("a", 4000)).await.unwrap();
    running.next().await.unwrap();
    server.fake.steps.shut();
    server.trigger.ask();
    server.trigger.ask();
    // The engine's thread can be joined only when its step returns.
    let fake = server.fake.clone();
    let (ended, ()) = tokio::join!(server.ended(), async { fake.steps.open() });
    ended.unwrap();
    assert!(running.collect().await.is_err());
}

#[tokio::test]
async fn the_hard_timeout_ends_what_a_stuck_model_holds_up() {
    let toml = "shutdown.drain_delay = '0s'\nshutdown.drain_timeout = '0s'\nshutdown.hard_timeout = '200ms'";
    let mut server = TestServer::start(toml).await;
    let mut running = server.client.generate(generation("a", 4000)).await.unwrap();
    running.next().await.unwrap();
    server.fake.steps.shut();
    server.trigger.ask();
    let error = server.ended().await.unwrap_err();
    assert!(matches!(error, ServeError::HardTimeout { .. }), "{error}");
}

#[tokio::test]
async fn asked_while_loading_the_server_ends_without_having_served() {
    let fake = crate::support::Fake::default();
    fake.loading.shut();
    let mut server = TestServer::launch(fake, "").await;
    server.client.health("").await.unwrap();
    server.trigger.ask();
    server.ended().await.unwrap();
}
