//! EmbedStream answers numbered inputs as they are ready.

use std::collections::HashMap;

use baichuan_client::{Client, EmbedFailure, prompt, v1, values};
use e2e::{Fake, Gate, Setup, TestServer, refusal, until_idle, until_load, within};
use futures::stream;
use tonic::Code;

type Answers = HashMap<u32, Result<v1::Embedding, EmbedFailure>>;

async fn all(client: &Client, options: v1::EmbedRequest, inputs: Vec<(u32, v1::EmbedInput)>) -> Answers {
    let mut answers = client.embed_stream(options, stream::iter(inputs)).await.unwrap();
    let mut by_index = HashMap::new();
    while let Some(answer) = answers.next().await.unwrap() {
        assert!(
            by_index.insert(answer.index, answer.result).is_none(),
            "{} came twice",
            answer.index
        );
    }
    by_index
}

#[tokio::test]
async fn every_input_is_answered_once_under_its_number_as_embed_would() {
    let setup = Setup::fake(Fake::default()).with("requests.embed_in_flight", 4);
    let server = TestServer::start(setup).await;
    let text = |i: u32| format!("sentence {i} {}", "x".repeat(i as usize % 70));
    let inputs = (0..200)
        .map(|i| (1000 - 5 * i, prompt::embed_text(text(i))))
        .collect();
    let options = v1::EmbedRequest {
        pooling: v1::Pooling::Mean.into(),
        ..Default::default()
    };
    let answers = all(&server.client, options.clone(), inputs).await;
    assert_eq!(answers.len(), 200);
    for i in [0, 69, 140, 199] {
        let alone = v1::EmbedRequest {
            inputs: vec![prompt::embed_text(text(i))],
            ..options.clone()
        };
        let alone = server.client.embed(alone).await.unwrap();
        let streamed = answers[&(1000 - 5 * i)].as_ref().unwrap();
        assert_eq!(values(streamed).unwrap(), values(&alone.embeddings[0]).unwrap());
    }
    until_idle(&server.client, "").await;
    server.stop().await;
}

#[tokio::test]
async fn an_input_that_fails_does_not_end_the_others() {
    let server = TestServer::fake().await;
    let inputs = vec![
        (1, prompt::embed_text("good")),
        (2, prompt::embed_tokens([264])),
        (3, prompt::embed_text("")),
        (4, prompt::embed_text("good too")),
    ];
    let answers = all(&server.client, v1::EmbedRequest::default(), inputs).await;
    assert!(answers[&1].is_ok() && answers[&4].is_ok());
    for index in [2, 3] {
        let failure = answers[&index].as_ref().unwrap_err();
        assert_eq!(
            (failure.code, failure.retry_delay),
            (Code::InvalidArgument, None),
            "{failure:?}"
        );
        assert!(!failure.message.is_empty());
    }
    server.stop().await;
}

#[tokio::test]
async fn options_that_cannot_be_accepted_end_the_stream() {
    let server = TestServer::fake().await;
    let good = || vec![(0, prompt::embed_text("x"))];
    let wrong = v1::EmbedRequest {
        dimensions: Some(17),
        ..Default::default()
    };
    let inputs_too = v1::EmbedRequest {
        inputs: vec![prompt::embed_text("x")],
        ..Default::default()
    };
    let unknown = v1::EmbedRequest {
        model: "nobody".into(),
        ..Default::default()
    };
    for (options, code, field) in [
        (wrong, Code::InvalidArgument, "options.dimensions"),
        (inputs_too, Code::InvalidArgument, "options.inputs"),
        (unknown, Code::NotFound, ""),
    ] {
        let ended = async {
            let mut answers = server.client.embed_stream(options, stream::iter(good())).await?;
            answers.next().await
        };
        let refused = refusal(ended.await);
        assert_eq!(refused.code, code, "{refused:?}");
        let named = refused.violations.first().map_or("", |v| v.field.as_str());
        assert_eq!(named, field);
    }
    server.stop().await;
}

#[tokio::test]
async fn dropping_it_frees_what_is_in_work() {
    let gate = Gate::new();
    let setup = Setup::fake(Fake::gated(&gate)).with("engine.prefill_chunk_tokens", 16);
    let server = TestServer::start(setup).await;
    gate.close();
    let inputs = stream::iter((0..50).map(|i| (i, prompt::embed_tokens(vec![i; 300]))));
    let answers = server.client.embed_stream(v1::EmbedRequest::default(), inputs);
    let answers = within("the call", answers).await.unwrap();
    gate.allow(2);
    until_load(&server.client, "", |load| load.running > 0).await;
    drop(answers);
    gate.open();
    until_idle(&server.client, "").await;
    server.stop().await;
}
