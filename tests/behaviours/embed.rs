//! Embed turns inputs into vectors: pooled, cut, normalised and carried as asked.

use baichuan_client::{Client, prompt, v1, values};
use baichuan_engine::testing::hidden;
use e2e::checkpoint::tiny_m1;
use e2e::{Setup, TestServer, until_idle};
use v1::{EmbeddingDtype, EmbeddingEncoding, Pooling};

const TOKENS: [u32; 5] = [7, 70, 107, 200, 3];

async fn one(client: &Client, request: v1::EmbedRequest) -> Vec<f32> {
    let inputs = vec![prompt::embed_tokens(TOKENS)];
    let answer = client
        .embed(v1::EmbedRequest { inputs, ..request })
        .await
        .unwrap();
    values(&answer.embeddings[0]).unwrap()
}

fn raw(pooling: Pooling) -> v1::EmbedRequest {
    v1::EmbedRequest {
        pooling: pooling.into(),
        normalize: Some(false),
        ..Default::default()
    }
}

fn assert_near(got: &[f32], expected: &[f32], within: f32) {
    assert_eq!(got.len(), expected.len());
    for (got, expected) in got.iter().zip(expected) {
        assert!((got - expected).abs() <= within, "{got} is not {expected}");
    }
}

/// Hidden states of the fake model behind every token of [`TOKENS`].
fn rows() -> Vec<Vec<f32>> {
    (1..=TOKENS.len()).map(|n| hidden(&TOKENS[..n])).collect()
}

fn weighted(weights: &[f32]) -> Vec<f32> {
    let total: f32 = weights.iter().sum();
    let rows = rows();
    (0..rows[0].len())
        .map(|d| rows.iter().zip(weights).map(|(row, w)| row[d] * w).sum::<f32>() / total)
        .collect()
}

#[tokio::test]
async fn every_pooling_is_what_it_says() {
    let server = TestServer::fake().await;
    let client = &server.client;
    let rows = rows();
    assert_near(&one(client, raw(Pooling::Last)).await, &rows[4], 1e-5);
    assert_near(&one(client, raw(Pooling::First)).await, &rows[0], 1e-5);
    assert_near(&one(client, raw(Pooling::Mean)).await, &weighted(&[1.0; 5]), 1e-5);
    assert_near(
        &one(client, raw(Pooling::WeightedMean)).await,
        &weighted(&[1.0, 2.0, 3.0, 4.0, 5.0]),
        1e-5,
    );
    assert_near(&one(client, raw(Pooling::None)).await, &rows.concat(), 1e-5);
    assert_near(&one(client, raw(Pooling::ModelDefault)).await, &rows[4], 1e-5);
    until_idle(client, "").await;
    server.stop().await;
}

#[tokio::test]
async fn vectors_have_length_one_unless_asked_otherwise_and_are_cut_before() {
    let server = TestServer::fake().await;
    let cut = v1::EmbedRequest {
        dimensions: Some(5),
        ..Default::default()
    };
    for (request, dimensions) in [(v1::EmbedRequest::default(), 16), (cut, 5)] {
        let vector = one(&server.client, request).await;
        let last = &hidden(&TOKENS)[..dimensions];
        let length = last.iter().map(|v| v * v).sum::<f32>().sqrt();
        let expected: Vec<_> = last.iter().map(|v| v / length).collect();
        assert_near(&vector, &expected, 1e-5);
    }
    server.stop().await;
}

#[tokio::test]
async fn bytes_carry_the_same_numbers_to_their_precision() {
    let server = TestServer::fake().await;
    let floats = one(&server.client, v1::EmbedRequest::default()).await;
    for (dtype, within) in [
        (EmbeddingDtype::F32, 0.0),
        (EmbeddingDtype::F16, 1e-3),
        (EmbeddingDtype::Bf16, 4e-3),
    ] {
        let request = v1::EmbedRequest {
            encoding: EmbeddingEncoding::Bytes.into(),
            dtype: dtype.into(),
            ..Default::default()
        };
        assert_near(&one(&server.client, request).await, &floats, within);
    }
    server.stop().await;
}

#[tokio::test]
async fn inputs_are_answered_in_order_with_what_was_applied() {
    let server = TestServer::fake().await;
    let inputs = vec![
        prompt::embed_text("fever"),
        prompt::embed_tokens(TOKENS),
        prompt::embed_text("a long text that is cut to eight tokens"),
    ];
    let request = v1::EmbedRequest {
        inputs,
        truncate_tokens: Some(8),
        request_id: "e".into(),
        ..Default::default()
    };
    let answer = server.client.embed(request).await.unwrap();
    let seen: Vec<_> = answer
        .embeddings
        .iter()
        .map(|e| (e.index, e.tokens, e.truncated, e.dimensions))
        .collect();
    assert_eq!(seen, [(0, 5, false, 16), (1, 5, false, 16), (2, 8, true, 16)]);
    assert_eq!((answer.request_id.as_str(), answer.model.as_str()), ("e", "fake"));
    assert_eq!((answer.pooling(), answer.normalized), (Pooling::Last, true));
    let usage = answer.usage.unwrap();
    assert_eq!(
        (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens),
        (18, 0, 18)
    );
    server.stop().await;
}

#[tokio::test]
async fn the_real_models_vectors_do_not_depend_on_their_company_or_the_chunks() {
    let chunked = Setup::m1(tiny_m1()).with("engine.prefill_chunk_tokens", 5);
    let (whole, chunked) = (
        TestServer::start(Setup::m1(tiny_m1())).await,
        TestServer::start(chunked).await,
    );
    let texts = [
        "The patient has a fever.",
        "x",
        "你好，请问你有什么症状？我头痛，发烧，咳嗽三天了。",
    ];
    for pooling in [
        Pooling::Last,
        Pooling::Mean,
        Pooling::WeightedMean,
        Pooling::First,
        Pooling::None,
    ] {
        let request = v1::EmbedRequest {
            inputs: texts.map(prompt::embed_text).into(),
            ..raw(pooling)
        };
        let together = chunked.client.embed(request).await.unwrap();
        for (text, together) in texts.iter().zip(&together.embeddings) {
            let request = v1::EmbedRequest {
                inputs: vec![prompt::embed_text(*text)],
                ..raw(pooling)
            };
            let alone = whole.client.embed(request).await.unwrap();
            let (alone, together) = (values(&alone.embeddings[0]).unwrap(), values(together).unwrap());
            assert_near(&together, &alone, 1e-4);
            assert!(
                alone.iter().any(|v| v.abs() > 0.01),
                "{pooling:?} of {text:?} is nothing"
            );
        }
    }
    whole.stop().await;
    chunked.stop().await;
}
