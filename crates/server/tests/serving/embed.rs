//! Vectors: how they are made and carried, and what fails alone.

use std::collections::BTreeMap;

use baichuan_client::{prompt, v1, values};
use baichuan_engine::testing::{HIDDEN_SIZE, hidden};
use futures::StreamExt;
use futures::stream;
use tonic::Code;

use crate::support::{TestServer, embedding, fields, refusal};

/// The fake model's vector of a text, of length 1.
fn expected(text: &str) -> Vec<f32> {
    let tokens: Vec<u32> = text.bytes().map(u32::from).collect();
    normalized(hidden(&tokens))
}

fn normalized(vector: Vec<f32>) -> Vec<f32> {
    let length = vector.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>().sqrt();
    vector.iter().map(|v| (f64::from(*v) / length) as f32).collect()
}

#[tokio::test]
async fn inputs_become_vectors_of_length_one_in_their_order() {
    let server = TestServer::start("").await;
    let response = server
        .client
        .embed(embedding(&["one", "two", "three"]))
        .await
        .unwrap();
    let vectors: Vec<_> = response.embeddings.iter().map(|e| values(e).unwrap()).collect();
    assert_eq!(vectors, [expected("one"), expected("two"), expected("three")]);
    let indices: Vec<_> = response.embeddings.iter().map(|e| (e.index, e.tokens)).collect();
    assert_eq!(indices, [(0, 3), (1, 3), (2, 5)]);
    assert_eq!(
        (response.pooling(), response.normalized),
        (v1::Pooling::Last, true)
    );
    assert_eq!(response.usage.unwrap().prompt_tokens, 11);
    assert_eq!(
        (response.model.as_str(), response.system_fingerprint.as_str()),
        ("fake", "fake")
    );
}

#[tokio::test]
async fn vectors_are_cut_and_carried_as_asked() {
    let server = TestServer::start("").await;
    let request = v1::EmbedRequest {
        dimensions: Some(4),
        encoding: v1::EmbeddingEncoding::Bytes.into(),
        dtype: v1::EmbeddingDtype::F16.into(),
        ..embedding(&["one"])
    };
    let response = server.client.embed(request).await.unwrap();
    let embedding = &response.embeddings[0];
    assert_eq!((embedding.data.len(), embedding.dimensions), (8, 4));
    let tokens: Vec<u32> = "one".bytes().map(u32::from).collect();
    let expected = normalized(hidden(&tokens)[..4].to_vec());
    for (got, wanted) in values(embedding).unwrap().iter().zip(expected) {
        assert!((got - wanted).abs() < 1e-3, "{got} {wanted}");
    }
}

#[tokio::test]
async fn without_pooling_every_token_has_its_vector() {
    let server = TestServer::start("").await;
    let request = v1::EmbedRequest {
        pooling: v1::Pooling::None.into(),
        ..embedding(&["abc"])
    };
    let response = server.client.embed(request).await.unwrap();
    let got = values(&response.embeddings[0]).unwrap();
    assert_eq!(got.len(), 3 * HIDDEN_SIZE);
    assert_eq!(got[2 * HIDDEN_SIZE..], expected("abc"));
    assert_eq!(got[..HIDDEN_SIZE], expected("a"));
}

#[tokio::test]
async fn an_input_is_cut_to_its_first_tokens_only_when_asked() {
    let server = TestServer::start("engine.max_context = 16").await;
    let long = embedding(&["fine", "0123456789abcdefghij"]);
    let refused = refusal(server.client.embed(long.clone()).await);
    assert_eq!(
        (refused.code, fields(&refused)),
        (Code::InvalidArgument, vec!["inputs[1].text"])
    );
    let cut = v1::EmbedRequest {
        truncate_tokens: Some(5),
        ..long
    };
    let response = server.client.embed(cut).await.unwrap();
    assert_eq!(values(&response.embeddings[1]).unwrap(), expected("01234"));
    let truncated: Vec<_> = response.embeddings.iter().map(|e| e.truncated).collect();
    assert_eq!(truncated, [false, true]);
}

#[tokio::test]
async fn all_bad_fields_are_told_at_once() {
    let server = TestServer::start("").await;
    let request = v1::EmbedRequest {
        inputs: vec![
            v1::EmbedInput::default(),
            prompt::embed_text(""),
            prompt::embed_tokens([1, 99_999]),
        ],
        dimensions: Some(17),
        pooling: 77,
        dtype: v1::EmbeddingDtype::Bf16.into(),
        time_limit_ms: Some(0),
        ..Default::default()
    };
    let refused = refusal(server.client.embed(request).await);
    let expected = [
        "time_limit_ms",
        "dimensions",
        "pooling",
        "dtype",
        "inputs[0]",
        "inputs[1].text",
        "inputs[2].token_ids.ids[1]",
    ];
    assert_eq!(fields(&refused), expected);
    let none = refusal(server.client.embed(v1::EmbedRequest::default()).await);
    assert_eq!(fields(&none), ["inputs"]);
}

#[tokio::test]
async fn an_answer_that_no_message_holds_is_refused_before_the_work() {
    let server = TestServer::start("grpc.max_encoding_message_bytes = 1000").await;
    let request = v1::EmbedRequest {
        pooling: v1::Pooling::None.into(),
        ..embedding(&["0123456789abcdef"])
    };
    let refused = refusal(server.client.embed(request).await);
    assert_eq!(
        (refused.code, fields(&refused)),
        (Code::InvalidArgument, vec!["inputs"])
    );
    assert!(
        refused.violations[0].description.contains("at most 1000"),
        "{refused:?}"
    );
    // Vectors that would just fit, were there nothing else in a message: one takes 64 bytes.
    let request = v1::EmbedRequest {
        inputs: embedding(&["x"; 15]).inputs,
        ..Default::default()
    };
    let refused = refusal(server.client.embed(request).await);
    assert_eq!(fields(&refused), ["inputs"]);
    let request = v1::EmbedRequest {
        inputs: embedding(&["x"; 3]).inputs,
        ..Default::default()
    };
    assert_eq!(server.client.embed(request).await.unwrap().embeddings.len(), 3);
}

#[tokio::test]
async fn a_time_limit_ends_an_embedding() {
    let server = TestServer::start("").await;
    server.fake.steps.shut();
    let request = v1::EmbedRequest {
        time_limit_ms: Some(50),
        ..embedding(&["one"])
    };
    let refused = refusal(server.client.embed(request).await);
    assert_eq!(
        (refused.code, refused.reason.as_deref()),
        (Code::DeadlineExceeded, Some("DEADLINE_EXCEEDED"))
    );
    server.fake.steps.open();
    server.load_until(|load| load.running == 0).await;
}

#[tokio::test]
async fn a_stream_answers_every_input_by_its_number_and_bad_ones_fail_alone() {
    let server = TestServer::start("requests.embed_in_flight = 3").await;
    let options = v1::EmbedRequest {
        normalize: Some(false),
        ..Default::default()
    };
    let inputs = (0..50).map(|i| match i {
        13 => (113, prompt::embed_tokens([1, 99_999])),
        i => (100 + i, prompt::embed_text(format!("text {i}"))),
    });
    let mut stream = server
        .client
        .embed_stream(options, stream::iter(inputs.collect::<Vec<_>>()))
        .await
        .unwrap();
    let mut answers = BTreeMap::new();
    while let Some(answer) = stream.next().await.unwrap() {
        assert!(answers.insert(answer.index, answer.result).is_none());
    }
    assert_eq!(
        answers.keys().copied().collect::<Vec<_>>(),
        (100..150).collect::<Vec<_>>()
    );
    for (index, result) in answers {
        match result {
            Ok(embedding) => {
                let tokens: Vec<u32> = format!("text {}", index - 100).bytes().map(u32::from).collect();
                assert_eq!(values(&embedding).unwrap(), hidden(&tokens), "{index}");
            }
            Err(failure) => {
                assert_eq!((index, failure.code), (113, Code::InvalidArgument));
                assert!(failure.message.contains("99999"), "{failure:?}");
            }
        }
    }
}

#[tokio::test]
async fn a_stream_reads_no_further_than_it_can_work() {
    let server = TestServer::start("requests.embed_in_flight = 3").await;
    server.fake.steps.shut();
    let (read_tx, read_rx) = tokio::sync::watch::channel(0);
    let inputs = stream::iter(0..100_000u32).map(move |i| {
        read_tx.send_replace(i);
        (i, prompt::embed_text("x".repeat(4000)))
    });
    let mut stream = server
        .client
        .embed_stream(v1::EmbedRequest::default(), inputs)
        .await
        .unwrap();
    // Time for an unbounded reader to get far.
    for _ in 0..200 {
        server.client.health("").await.unwrap();
    }
    // Three in work, and what HTTP/2's windows hold: 1 MiB of 4000-byte messages and a client's buffer.
    assert!(*read_rx.borrow() < 1000, "{}", *read_rx.borrow());
    server.fake.steps.open();
    assert!(stream.next().await.unwrap().is_some());
    drop(stream);
    server.load_until(|load| load.running + load.waiting == 0).await;
}

#[tokio::test]
async fn bad_options_of_a_stream_end_it_before_it_begins() {
    let server = TestServer::start("").await;
    let options = v1::EmbedRequest {
        dimensions: Some(0),
        inputs: vec![prompt::embed_text("not here")],
        ..Default::default()
    };
    let inputs = stream::iter([(0, prompt::embed_text("x"))]);
    let refused = refusal(server.client.embed_stream(options, inputs).await);
    assert_eq!(refused.code, Code::InvalidArgument);
    assert_eq!(fields(&refused), ["options.dimensions", "options.inputs"]);
}

#[tokio::test]
async fn abort_ends_a_stream() {
    let server = TestServer::start("").await;
    let options = v1::EmbedRequest {
        request_id: "flow".into(),
        ..Default::default()
    };
    let endless = stream::iter([(0, prompt::embed_text("x"))]).chain(stream::pending());
    let mut stream = server.client.embed_stream(options, endless).await.unwrap();
    assert!(stream.next().await.unwrap().is_some());
    server.client.abort("flow").await.unwrap();
    assert_eq!(refusal(stream.next().await).code, Code::Cancelled);
}
