//! Deadlines end requests on the server, whoever sets them and wherever the request is.

use std::time::Duration;

use baichuan_client::{Client, Completion, Refusal, prompt, v1};
use e2e::{Fake, Gate, Setup, TestServer, refusal, text, until_idle, within};
use tonic::{Code, IntoRequest, Request};

/// A server whose model does nothing.
async fn hanging(gate: &Gate) -> TestServer {
    let server = TestServer::start(Setup::fake(Fake::gated(gate))).await;
    gate.close();
    server
}

/// What came, and how the stream ended.
async fn until_error(
    client: &Client,
    request: impl IntoRequest<v1::GenerateRequest>,
) -> (Completion, Refusal) {
    let mut completion = Completion::default();
    let mut generation = client.generate(request).await.unwrap();
    loop {
        match generation.next().await {
            Ok(Some(event)) => completion.push(event),
            Ok(None) => panic!("the stream ended well: {completion:?}"),
            error => return (completion, refusal(error)),
        }
    }
}

fn limited(milliseconds: u32) -> v1::GenerateRequest {
    v1::GenerateRequest {
        time_limit_ms: Some(milliseconds),
        ..text("Go on", 4000)
    }
}

#[tokio::test]
async fn a_time_limit_ends_the_stream_with_its_reason_and_the_usage_so_far() {
    let gate = Gate::new();
    let server = hanging(&gate).await;
    gate.allow(5);
    let (completion, refused) = within("the limit", until_error(&server.client, limited(300))).await;
    assert_eq!(refused.code, Code::DeadlineExceeded);
    assert!(refused.reason.is_some(), "{refused:?}");
    let choice = &completion.choices[0];
    let finish = choice.finish.as_ref().expect("a finish before the status");
    assert_eq!(finish.finish_reason(), v1::FinishReason::TimeLimit);
    assert_eq!(
        finish.usage.unwrap().completion_tokens as usize,
        choice.token_ids.len()
    );
    gate.open();
    until_idle(&server.client, "").await;
    server.stop().await;
}

#[tokio::test]
async fn grpc_timeout_ends_a_running_stream() {
    let gate = Gate::new();
    let server = hanging(&gate).await;
    gate.allow(5);
    let mut request = Request::new(text("Go on", 4000));
    // Written by hand: the client's own timer, which ends only waiting for headers, stays out of it.
    request
        .metadata_mut()
        .insert("grpc-timeout", "300m".parse().unwrap());
    let (_, refused) = within("the deadline", until_error(&server.client, request)).await;
    assert_eq!(refused.code, Code::DeadlineExceeded);
    gate.open();
    until_idle(&server.client, "").await;
    server.stop().await;
}

#[tokio::test]
async fn the_earlier_of_the_two_counts() {
    let gate = Gate::new();
    let server = hanging(&gate).await;
    let mut request = Request::new(limited(300));
    request
        .metadata_mut()
        .insert("grpc-timeout", "1H".parse().unwrap());
    let (_, refused) = within("the limit", until_error(&server.client, request)).await;
    assert_eq!(refused.code, Code::DeadlineExceeded);

    let mut request = Request::new(limited(3_600_000));
    request
        .metadata_mut()
        .insert("grpc-timeout", "300m".parse().unwrap());
    let (_, refused) = within("the deadline", until_error(&server.client, request)).await;
    assert_eq!(refused.code, Code::DeadlineExceeded);
    gate.open();
    server.stop().await;
}

#[tokio::test]
async fn unary_calls_and_embeddings_have_deadlines_too() {
    let gate = Gate::new();
    let server = hanging(&gate).await;
    let refused = refusal(within("the limit", server.client.generate_unary(limited(300))).await);
    assert_eq!(refused.code, Code::DeadlineExceeded);

    let inputs = vec![prompt::embed_text("x")];
    let embed = v1::EmbedRequest {
        inputs,
        time_limit_ms: Some(300),
        ..Default::default()
    };
    let refused = refusal(within("the limit", server.client.embed(embed)).await);
    assert_eq!(refused.code, Code::DeadlineExceeded);
    gate.open();
    until_idle(&server.client, "").await;
    server.stop().await;
}

/// The tokens that a refusal says were used, of prompts.
fn prompt_tokens(refused: &Refusal) -> usize {
    refused.metadata["prompt_tokens"].parse().unwrap()
}

fn embedding(milliseconds: u32) -> v1::EmbedRequest {
    v1::EmbedRequest {
        inputs: vec![prompt::embed_tokens([7; 100])],
        time_limit_ms: Some(milliseconds),
        ..Default::default()
    }
}

#[tokio::test]
async fn an_embedding_whose_time_is_up_says_how_many_tokens_it_used() {
    let gate = Gate::new();
    let setup = Setup::fake(Fake::gated(&gate)).with("engine.prefill_chunk_tokens", 16);
    let server = TestServer::start(setup).await;
    gate.close();
    // Two chunks of its prompt are computed, and the third hangs.
    gate.allow(2);
    let refused = refusal(within("the limit", server.client.embed(embedding(500))).await);
    assert_eq!(refused.code, Code::DeadlineExceeded);
    assert_eq!(prompt_tokens(&refused), 32, "{refused:?}");
    assert!(refused.message.contains("in prefill"), "{refused:?}");
    gate.open();
    until_idle(&server.client, "").await;
    server.stop().await;
}

#[tokio::test]
async fn an_embedding_whose_time_is_up_in_the_queue_has_used_nothing() {
    let gate = Gate::new();
    let setup = Setup::fake(Fake::gated(&gate)).with("engine.max_sequences", 1);
    let server = TestServer::start(setup).await;
    gate.close();
    let running = server.client.generate(text("first", 10)).await.unwrap();
    let refused = refusal(within("the limit", server.client.embed(embedding(200))).await);
    assert_eq!(refused.code, Code::DeadlineExceeded);
    assert_eq!(prompt_tokens(&refused), 0);
    assert!(refused.message.contains("in the queue"), "{refused:?}");
    gate.open();
    running.collect().await.unwrap();
    until_idle(&server.client, "").await;
    server.stop().await;
}

#[tokio::test]
async fn a_prompt_whose_time_is_up_between_two_chunks_says_so() {
    let gate = Gate::new();
    let setup = Setup::fake(Fake::gated(&gate)).with("engine.prefill_chunk_tokens", 16);
    let server = TestServer::start(setup).await;
    gate.close();
    gate.allow(2);
    let request = v1::GenerateRequest {
        prompt: Some(prompt::token_ids(vec![7; 100])),
        ..limited(500)
    };
    let (completion, refused) = within("the limit", until_error(&server.client, request)).await;
    assert_eq!(refused.code, Code::DeadlineExceeded);
    assert!(refused.message.contains("in prefill"), "{refused:?}");
    assert_eq!(prompt_tokens(&refused), 100);
    assert_eq!(refused.metadata["completion_tokens"], "0");
    let finish = completion.choices[0].finish.as_ref().unwrap();
    assert_eq!(finish.finish_reason(), v1::FinishReason::TimeLimit);
    assert_eq!(finish.usage.unwrap().completion_tokens, 0);
    gate.open();
    until_idle(&server.client, "").await;
    server.stop().await;
}

#[tokio::test]
async fn a_request_whose_time_is_up_in_the_queue_never_runs() {
    let gate = Gate::new();
    let setup = Setup::fake(Fake::gated(&gate)).with("engine.max_sequences", 1);
    let server = TestServer::start(setup).await;
    gate.close();
    let running = server.client.generate(text("first", 10)).await.unwrap();
    let (completion, refused) = within("the limit", until_error(&server.client, limited(300))).await;
    assert_eq!(refused.code, Code::DeadlineExceeded);
    assert!(completion.info.is_none(), "it was never admitted");
    gate.open();
    running.collect().await.unwrap();
    let load = until_idle(&server.client, "").await;
    assert_eq!(load.generated_tokens_total, 10);
    server.stop().await;
}

#[tokio::test]
async fn a_request_that_is_done_in_time_does_not_notice() {
    let server = TestServer::fake().await;
    let mut request = Request::new(text("quick", 10));
    request.set_timeout(Duration::from_secs(3600));
    let completion = server
        .client
        .generate(request)
        .await
        .unwrap()
        .collect()
        .await
        .unwrap();
    assert_eq!(
        completion.choices[0].finish.as_ref().unwrap().finish_reason(),
        v1::FinishReason::Length
    );
    server.stop().await;
}

#[tokio::test]
async fn what_cannot_be_done_in_time_by_recent_rates_is_refused_at_once() {
    let gate = Gate::new();
    let server = TestServer::start(Setup::fake(Fake::gated(&gate))).await;
    // A slow past: one prompt of a few tokens took a while.
    gate.close();
    let slow = server.client.generate(text("slow", 2)).await.unwrap();
    tokio::time::sleep(Duration::from_millis(300)).await;
    gate.open();
    slow.collect().await.unwrap();
    until_idle(&server.client, "").await;
    let mut request = text("", 5);
    request.prompt = Some(prompt::text("x".repeat(3000)));
    request.time_limit_ms = Some(1000);
    let refused = refusal(server.client.generate(request.clone()).await);
    assert_eq!(
        (refused.code, refused.reason.as_deref()),
        (Code::DeadlineExceeded, Some("DEADLINE_UNREACHABLE")),
        "{refused:?}"
    );
    assert!(
        refused.metadata["needs_ms"].parse::<u64>().unwrap() > 1000,
        "{refused:?}"
    );
    assert_eq!(refused.metadata["completion_tokens"], "0");
    // With time enough the same request is served.
    request.time_limit_ms = Some(3_600_000);
    server.client.generate_unary(request).await.unwrap();
    server.stop().await;
}
