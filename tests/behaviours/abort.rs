//! Abort ends a request by its name.

use baichuan_client::Generation;
use baichuan_client::{Event, v1};
use e2e::{Fake, Gate, Setup, TestServer, refusal, text, until_idle, within};
use tonic::{Code, Request};

fn named(id: &str, max_tokens: u32) -> v1::GenerateRequest {
    v1::GenerateRequest {
        request_id: id.into(),
        ..text("Go on", max_tokens)
    }
}

#[tokio::test]
async fn the_aborted_stream_finishes_as_aborted_and_the_others_go_on() {
    let gate = Gate::new();
    let server = TestServer::start(Setup::fake(Fake::gated(&gate))).await;
    let whole = server
        .client
        .generate(named("alone", 200))
        .await
        .unwrap()
        .collect()
        .await
        .unwrap();
    gate.close();
    let mut aborted = server.client.generate(named("aborted", 4000)).await.unwrap();
    let other = server.client.generate(named("other", 200)).await.unwrap();
    gate.allow(10);
    while !matches!(aborted.next().await.unwrap(), Some(Event::Delta(_))) {}
    server.client.abort("aborted").await.unwrap();
    gate.open();
    let completion = aborted.collect().await.unwrap();
    let finish = completion.choices[0].finish.as_ref().unwrap();
    assert_eq!(finish.finish_reason(), v1::FinishReason::Aborted);
    let other = other.collect().await.unwrap();
    assert_eq!(other.choices[0].token_ids, whole.choices[0].token_ids);
    until_idle(&server.client, "").await;
    server.stop().await;
}

#[tokio::test]
async fn nobody_to_abort_is_not_found() {
    let server = TestServer::fake().await;
    server
        .client
        .generate(named("over", 3))
        .await
        .unwrap()
        .collect()
        .await
        .unwrap();
    for id in ["nobody", "over"] {
        let refused = refusal(server.client.abort(id).await);
        assert_eq!(refused.code, Code::NotFound, "{id:?}");
        assert_eq!(refused.domain.as_deref(), Some("baichuan.v1"));
    }
    assert_eq!(refusal(server.client.abort("").await).code, Code::InvalidArgument);
    server.stop().await;
}

#[tokio::test]
async fn a_name_in_use_is_refused_and_free_again_afterwards() {
    let gate = Gate::new();
    let server = TestServer::start(Setup::fake(Fake::gated(&gate))).await;
    gate.close();
    let first = server.client.generate(named("twice", 5)).await.unwrap();
    let refused = refusal(server.client.generate(named("twice", 5)).await);
    assert_eq!(
        (refused.code, refused.violations[0].field.as_str()),
        (Code::InvalidArgument, "request_id")
    );
    gate.open();
    first.collect().await.unwrap();
    until_idle(&server.client, "").await;
    server
        .client
        .generate(named("twice", 5))
        .await
        .unwrap()
        .collect()
        .await
        .unwrap();
    server.stop().await;
}

/// The name that a generation has been given, by its first message.
async fn name(generation: &mut Generation) -> String {
    match within("the first message", generation.next()).await.unwrap() {
        Some(Event::PromptInfo(info)) => info.request_id,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn calls_of_one_x_request_id_run_side_by_side_and_each_can_be_aborted() {
    let gate = Gate::new();
    let server = TestServer::start(Setup::fake(Fake::gated(&gate))).await;
    gate.close();
    let start = async || {
        let mut request = Request::new(text("Go on", 20));
        let id = "passed-on".parse().unwrap();
        request.metadata_mut().insert("x-request-id", id);
        server.client.generate(request).await.unwrap()
    };
    let (mut first, mut second) = (start().await, start().await);
    gate.allow(3);
    let names = [name(&mut first).await, name(&mut second).await];
    assert_eq!(names[0], "passed-on");
    assert!(!names[1].is_empty() && names[1] != names[0], "{names:?}");
    server.client.abort(&names[1]).await.unwrap();
    let aborted = within("the end", second.collect()).await.unwrap();
    let finish = aborted.choices[0].finish.as_ref().unwrap();
    assert_eq!(finish.finish_reason(), v1::FinishReason::Aborted);
    gate.open();
    let whole = within("the other", first.collect()).await.unwrap();
    assert_eq!(whole.choices[0].token_ids.len(), 20);
    server.stop().await;
}
