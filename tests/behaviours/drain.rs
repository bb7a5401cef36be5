//! A server that is asked to end finishes what runs and takes nothing new.

use baichuan_client::{Client, Health, v1};
use e2e::{Fake, Gate, Setup, TestServer, refusal, text, within};
use tonic::Code;

async fn not_ready(client: &Client) {
    let mut watch = client.watch_health(Client::READINESS).await.unwrap();
    while watch.next().await.unwrap().expect("a watch goes on") != Health::NotServing {}
}

#[tokio::test]
async fn running_streams_finish_before_it_ends() {
    let gate = Gate::new();
    let server = TestServer::start(Setup::fake(Fake::gated(&gate))).await;
    let client = server.connect().await;
    gate.close();
    let running = client.generate(text("x", 100)).await.unwrap();
    server.ask_to_end();
    within("the change", not_ready(&client)).await;
    gate.open();
    let completion = within("the stream", running.collect()).await.unwrap();
    let choice = &completion.choices[0];
    assert_eq!(
        choice.finish.as_ref().unwrap().finish_reason(),
        v1::FinishReason::Length
    );
    assert_eq!(choice.token_ids.len(), 100);
    server.ended().await;
}

#[tokio::test]
async fn new_requests_are_refused_after_the_delay() {
    let gate = Gate::new();
    let server = TestServer::start(Setup::fake(Fake::gated(&gate))).await;
    let client = server.connect().await;
    gate.close();
    let running = client.generate(text("x", 10)).await.unwrap();
    server.ask_to_end();
    within("the change", not_ready(&client)).await;
    let draining = async { while !client.server_info().await.unwrap().draining {} };
    within("the delay", draining).await;
    let refused = refusal(client.generate(text("late", 10)).await);
    assert_eq!(refused.code, Code::Unavailable);
    assert!(refused.retry_delay.is_some(), "{refused:?}");
    gate.open();
    running.collect().await.unwrap();
    server.ended().await;
}

#[tokio::test]
async fn what_has_not_finished_in_time_is_ended_as_unavailable() {
    let gate = Gate::new();
    let setup = Setup::fake(Fake::gated(&gate)).with("shutdown.drain_timeout", "100ms");
    let server = TestServer::start(setup).await;
    let client = server.connect().await;
    gate.close();
    let running = client.generate(text("x", 4000)).await.unwrap();
    gate.allow(3);
    server.ask_to_end();
    let refused = refusal(within("the end", running.collect()).await);
    assert_eq!(refused.code, Code::Unavailable);
    gate.open();
    server.ended().await;
}

#[tokio::test]
async fn asked_twice_it_does_not_wait() {
    let gate = Gate::new();
    let setup = Setup::fake(Fake::gated(&gate)).with("shutdown.drain_timeout", "1h");
    let server = TestServer::start(setup).await;
    let client = server.connect().await;
    gate.close();
    let running = client.generate(text("x", 4000)).await.unwrap();
    server.ask_to_end();
    within("the change", not_ready(&client)).await;
    server.ask_to_end();
    let refused = refusal(within("the end", running.collect()).await);
    assert_eq!(refused.code, Code::Unavailable);
    gate.open();
    server.ended().await;
}
