//! What is refused for lack of room, and how it is said.

use std::time::Duration;

use baichuan_client::{Refusal, prompt, v1};
use futures::stream;
use tonic::Code;

use crate::support::{TestServer, embedding, fields, generation, refusal};

/// A server whose one sequence runs and whose queue of one is full, with the streams that make it so.
async fn full() -> (TestServer, Vec<baichuan_client::Generation>) {
    let server = TestServer::start("engine.max_sequences = 1\nengine.max_waiting = 1").await;
    let mut running = server.client.generate(generation("a", 4000)).await.unwrap();
    running.next().await.unwrap();
    server.fake.steps.shut();
    let mut held = vec![running];
    // The first may yet be counted as waiting: fill up until one is refused.
    while let Ok(waiting) = server.client.generate(generation("b", 10)).await {
        held.push(waiting);
    }
    (server, held)
}

fn assert_queue_full(refused: &Refusal) {
    assert_eq!(
        (refused.code, refused.reason.as_deref()),
        (Code::ResourceExhausted, Some("QUEUE_FULL"))
    );
    assert!(refused.retry_delay.unwrap() > Duration::ZERO);
    assert_eq!(
        refused.retry_pushback.unwrap().as_millis(),
        refused.retry_delay.unwrap().as_millis()
    );
}

#[tokio::test]
async fn a_full_queue_refuses_generations_embeddings_and_stream_items_alike() {
    let (server, held) = full().await;
    assert_queue_full(&refusal(server.client.generate(generation("c", 1)).await));
    assert_queue_full(&refusal(server.client.generate_unary(generation("c", 1)).await));
    assert_queue_full(&refusal(server.client.embed(embedding(&["c"])).await));
    let inputs = stream::iter([(5, prompt::embed_text("c"))]);
    let mut stream = server
        .client
        .embed_stream(v1::EmbedRequest::default(), inputs)
        .await
        .unwrap();
    let failure = stream.next().await.unwrap().unwrap().result.unwrap_err();
    assert_eq!(
        (failure.code, failure.reason.as_str()),
        (Code::ResourceExhausted, "QUEUE_FULL")
    );
    assert!(failure.retry_delay.unwrap() > Duration::ZERO);

    drop(held);
    server.fake.steps.open();
    server.load_until(|load| load.running + load.waiting == 0).await;
    server.client.generate_unary(generation("c", 1)).await.unwrap();
}

#[tokio::test]
async fn too_many_waiting_tokens_are_a_reason_of_their_own() {
    let server = TestServer::start("engine.max_sequences = 1\nengine.max_waiting_tokens = 10").await;
    let mut running = server.client.generate(generation("a", 4000)).await.unwrap();
    running.next().await.unwrap();
    server.fake.steps.shut();
    let mut held = Vec::new();
    let refused = loop {
        match server.client.generate(generation("12345678", 1)).await {
            Ok(waiting) => held.push(waiting),
            refused => break refusal(refused),
        }
    };
    assert_eq!(
        (refused.code, refused.reason.as_deref()),
        (Code::ResourceExhausted, Some("TOKEN_BUDGET"))
    );
}

#[tokio::test]
async fn no_more_calls_run_than_configured_and_health_still_answers() {
    let server = TestServer::start("grpc.max_concurrent_calls = 2").await;
    server.fake.steps.shut();
    let mut held = Vec::new();
    for _ in 0..2 {
        held.push(server.client.generate(generation("a", 5)).await.unwrap());
    }
    assert_queue_full(&refusal(server.client.generate(generation("a", 5)).await));
    server.client.health("").await.unwrap();
    server.client.server_info().await.unwrap();
    server.fake.steps.open();
    for generation in held {
        generation.collect().await.unwrap();
    }
    server.client.generate_unary(generation("a", 1)).await.unwrap();
}

#[tokio::test]
async fn a_message_over_the_limit_is_refused_and_the_server_stays_up() {
    let server = TestServer::start("").await;
    let mut options = baichuan_client::ConnectOptions::new(server.address.to_string());
    options.max_message_bytes = 64 << 20;
    let client = baichuan_client::Client::connect(&options).await.unwrap();
    let refused = refusal(client.generate_unary(generation(&"x".repeat(33 << 20), 1)).await);
    assert_eq!(
        (refused.code, refused.reason.as_deref()),
        (Code::ResourceExhausted, Some("MESSAGE_TOO_LARGE"))
    );
    assert!(refused.request_id.is_some(), "{refused:?}");
    client.generate_unary(generation("x", 1)).await.unwrap();
}

#[tokio::test]
async fn more_inputs_than_allowed_are_refused() {
    let server = TestServer::start("requests.max_embed_inputs = 2").await;
    let refused = refusal(server.client.embed(embedding(&["a", "b", "c"])).await);
    assert_eq!(
        (refused.code, fields(&refused)),
        (Code::InvalidArgument, vec!["inputs"])
    );
}
