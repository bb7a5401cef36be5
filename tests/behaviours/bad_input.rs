//! What a client may get wrong: the code, the field, and a server that answers the next request.

use std::collections::HashMap;

use baichuan_client::{prompt, v1};
use e2e::{TestServer, refusal, text, tokens, until_idle};
use tonic::Code;

type Change = fn(&mut v1::GenerateRequest);

/// A request with something wrong in it, and the field that must be named.
const GENERATE: &[(&str, Change, &str)] = &[
    ("no prompt", |r| r.prompt = None, "prompt"),
    ("an empty text", |r| r.prompt = Some(prompt::text("")), "text"),
    (
        "no token ids",
        |r| r.prompt = Some(prompt::token_ids([])),
        "token_ids.ids",
    ),
    (
        "an id beyond the vocabulary",
        |r| r.prompt = Some(prompt::token_ids([1, 2, 264])),
        "token_ids.ids[2]",
    ),
    (
        "a prompt as long as the context",
        |r| r.prompt = Some(prompt::token_ids(vec![1; 4096])),
        "token_ids.ids",
    ),
    (
        "a text that is too long",
        |r| r.prompt = Some(prompt::text("x".repeat(5000))),
        "text",
    ),
    (
        "a prompt cut to nothing",
        |r| r.truncate_prompt_tokens = Some(0),
        "truncate_prompt_tokens",
    ),
    (
        "temperature NaN",
        |r| sampling(r).temperature = Some(f32::NAN),
        "sampling.temperature",
    ),
    (
        "temperature -1",
        |r| sampling(r).temperature = Some(-1.0),
        "sampling.temperature",
    ),
    (
        "temperature ∞",
        |r| sampling(r).temperature = Some(f32::INFINITY),
        "sampling.temperature",
    ),
    ("top_p 1.7", |r| sampling(r).top_p = Some(1.7), "sampling.top_p"),
    ("top_p 0", |r| sampling(r).top_p = Some(0.0), "sampling.top_p"),
    ("min_p 1.1", |r| sampling(r).min_p = Some(1.1), "sampling.min_p"),
    (
        "typical_p 0",
        |r| sampling(r).typical_p = Some(0.0),
        "sampling.typical_p",
    ),
    (
        "repetition_penalty 0",
        |r| sampling(r).repetition_penalty = Some(0.0),
        "sampling.repetition_penalty",
    ),
    (
        "a repetition_penalty that makes finite numbers infinite",
        |r| sampling(r).repetition_penalty = Some(3e38),
        "sampling.repetition_penalty",
    ),
    (
        "a repetition_penalty that makes finite numbers infinite, of the other kind",
        |r| sampling(r).repetition_penalty = Some(1e-38),
        "sampling.repetition_penalty",
    ),
    (
        "more messages than anybody writes",
        |r| r.prompt = Some(empty_messages(100_000)),
        "chat.messages",
    ),
    (
        "a text that is longer than any",
        |r| r.prompt = Some(prompt::text("x".repeat((4 << 20) + 1))),
        "text",
    ),
    (
        "presence_penalty 3",
        |r| sampling(r).presence_penalty = Some(3.0),
        "sampling.presence_penalty",
    ),
    (
        "frequency_penalty NaN",
        |r| sampling(r).frequency_penalty = Some(f32::NAN),
        "sampling.frequency_penalty",
    ),
    (
        "a bias of 101",
        |r| sampling(r).logit_bias = HashMap::from([(5, 101.0)]),
        "sampling.logit_bias[5]",
    ),
    (
        "a bias for no token",
        |r| sampling(r).logit_bias = HashMap::from([(900, 1.0)]),
        "sampling.logit_bias[900]",
    ),
    (
        "an allowed id beyond",
        |r| sampling(r).allowed_token_ids = vec![1, 999],
        "sampling.allowed_token_ids[1]",
    ),
    (
        "a bad id beyond",
        |r| sampling(r).bad_token_ids = vec![u32::MAX],
        "sampling.bad_token_ids[0]",
    ),
    (
        "nothing left to choose",
        |r| {
            sampling(r).allowed_token_ids = vec![1, 2];
            sampling(r).bad_token_ids = vec![2, 1];
        },
        "sampling.allowed_token_ids",
    ),
    ("n 0", |r| sampling(r).n = Some(0), "sampling.n"),
    ("n 1000", |r| sampling(r).n = Some(1000), "sampling.n"),
    (
        "max_tokens 0",
        |r| stopping(r).max_tokens = Some(0),
        "stopping.max_tokens",
    ),
    (
        "n × max_tokens beyond the limit",
        |r| {
            sampling(r).n = Some(16);
            stopping(r).max_tokens = Some(u32::MAX);
        },
        "stopping.max_tokens",
    ),
    (
        "min_tokens over max_tokens",
        |r| stopping(r).min_tokens = Some(9),
        "stopping.min_tokens",
    ),
    (
        "10 000 stop strings",
        |r| stopping(r).stop = vec!["x".into(); 10_000],
        "stopping.stop",
    ),
    (
        "an empty stop string",
        |r| stopping(r).stop = vec!["a".into(), String::new()],
        "stopping.stop[1]",
    ),
    (
        "a stop string of 100 kB",
        |r| stopping(r).stop = vec!["x".repeat(100_000)],
        "stopping.stop[0]",
    ),
    (
        "a stop id beyond",
        |r| stopping(r).stop_token_ids = vec![264],
        "stopping.stop_token_ids[0]",
    ),
    (
        "logprobs 21",
        |r| output(r).logprobs = Some(21),
        "output.logprobs",
    ),
    (
        "prompt_logprobs 21",
        |r| output(r).prompt_logprobs = Some(21),
        "output.prompt_logprobs",
    ),
    (
        "stream_interval 0",
        |r| output(r).stream_interval = Some(0),
        "output.stream_interval",
    ),
    (
        "stream_interval 4097",
        |r| output(r).stream_interval = Some(4097),
        "output.stream_interval",
    ),
    (
        "a time limit of nothing",
        |r| r.time_limit_ms = Some(0),
        "time_limit_ms",
    ),
    (
        "a name with a line end",
        |r| r.request_id = "two\nlines".into(),
        "request_id",
    ),
    (
        "a name of 100 kB",
        |r| r.request_id = "x".repeat(100_000),
        "request_id",
    ),
];

fn empty_messages(n: usize) -> v1::generate_request::Prompt {
    v1::generate_request::Prompt::Chat(v1::Chat {
        messages: vec![v1::ChatMessage::default(); n],
        ..Default::default()
    })
}

fn sampling(request: &mut v1::GenerateRequest) -> &mut v1::SamplingParams {
    request.sampling.get_or_insert_default()
}

fn stopping(request: &mut v1::GenerateRequest) -> &mut v1::StoppingParams {
    request.stopping.get_or_insert_default()
}

fn output(request: &mut v1::GenerateRequest) -> &mut v1::OutputOptions {
    request.output.get_or_insert_default()
}

#[tokio::test]
async fn a_field_that_cannot_be_accepted_is_named() {
    let server = TestServer::fake().await;
    for (what, change, field) in GENERATE {
        let mut request = text("x", 5);
        change(&mut request);
        // In a unary call the request is a field itself.
        for (refused, path) in [
            (
                refusal(server.client.generate(request.clone()).await),
                field.to_string(),
            ),
            (
                refusal(server.client.generate_unary(request).await),
                format!("request.{field}"),
            ),
        ] {
            assert_eq!(refused.code, Code::InvalidArgument, "{what}: {refused:?}");
            let fields: Vec<_> = refused.violations.iter().map(|v| &v.field).collect();
            assert_eq!(fields, [&path], "{what}: {refused:?}");
            assert!(!refused.violations[0].description.is_empty(), "{what}");
        }
        let after = server
            .client
            .generate(text("x", 2))
            .await
            .unwrap()
            .collect()
            .await
            .unwrap();
        assert_eq!(after.choices[0].token_ids.len(), 2, "after {what}");
    }
    until_idle(&server.client, "").await;
    server.stop().await;
}

#[tokio::test]
async fn everything_wrong_with_a_request_is_said_at_once() {
    let server = TestServer::fake().await;
    let mut request = text("x", 5);
    sampling(&mut request).top_p = Some(1.7);
    sampling(&mut request).n = Some(0);
    output(&mut request).logprobs = Some(99);
    let refused = refusal(server.client.generate(request).await);
    let mut fields: Vec<_> = refused.violations.iter().map(|v| v.field.as_str()).collect();
    fields.sort_unstable();
    assert_eq!(fields, ["output.logprobs", "sampling.n", "sampling.top_p"]);
    server.stop().await;
}

#[tokio::test]
async fn of_more_that_is_wrong_than_anybody_reads_the_first_is_said_and_the_rest_counted() {
    let server = TestServer::fake().await;
    let mut request = text("x", 5);
    request.prompt = Some(empty_messages(1000));
    let refused = refusal(server.client.generate(request).await);
    assert_eq!(refused.code, Code::InvalidArgument);
    let last = refused.violations.last().unwrap();
    assert_eq!(
        (refused.violations.len(), last.description.as_str()),
        (21, "980 more violations")
    );
    let long = "x".repeat(1 << 20);
    assert_eq!(refusal(server.client.model(&long).await).code, Code::NotFound);
    let refused = refusal(server.client.abort(&long).await);
    assert_eq!(
        (refused.code, refused.violations[0].field.as_str()),
        (Code::InvalidArgument, "request_id")
    );
    server.stop().await;
}

#[tokio::test]
async fn the_longest_prompt_that_leaves_room_for_a_token_is_taken() {
    let server = TestServer::fake().await;
    let completion = server
        .client
        .generate(tokens(&[1; 4095], 5))
        .await
        .unwrap()
        .collect()
        .await
        .unwrap();
    let finish = completion.choices[0].finish.as_ref().unwrap();
    assert_eq!(finish.usage.unwrap().total_tokens, 4096);
    server.stop().await;
}

#[tokio::test]
async fn an_unknown_model_is_not_found_whatever_is_asked_of_it() {
    let server = TestServer::fake().await;
    let model = || "nobody".to_owned();
    let client = &server.client;
    let embed = v1::EmbedRequest {
        model: model(),
        inputs: vec![prompt::embed_text("x")],
        ..Default::default()
    };
    let input = Some(v1::tokenize_request::Input::Text("x".into()));
    for refused in [
        refusal(
            client
                .generate(v1::GenerateRequest {
                    model: model(),
                    ..text("x", 2)
                })
                .await,
        ),
        refusal(
            client
                .generate_unary(v1::GenerateRequest {
                    model: model(),
                    ..text("x", 2)
                })
                .await,
        ),
        refusal(client.embed(embed).await),
        refusal(
            client
                .tokenize(v1::TokenizeRequest {
                    model: model(),
                    input,
                    ..Default::default()
                })
                .await,
        ),
        refusal(
            client
                .detokenize(v1::DetokenizeRequest {
                    model: model(),
                    ..Default::default()
                })
                .await,
        ),
    ] {
        assert_eq!(refused.code, Code::NotFound, "{refused:?}");
        assert!(refused.message.contains("nobody"), "{refused:?}");
        assert!(refused.reason.is_some_and(|reason| !reason.is_empty()));
    }
    server.stop().await;
}

#[tokio::test]
async fn a_unary_request_without_a_request_is_refused() {
    use v1::inference_service_client::InferenceServiceClient;
    let server = TestServer::fake().await;
    let mut stub = InferenceServiceClient::connect(format!("http://{}", server.address))
        .await
        .unwrap();
    let status = stub
        .generate_unary(v1::GenerateUnaryRequest { request: None })
        .await
        .unwrap_err();
    let refused = refusal::<()>(Err(status.into()));
    assert_eq!(
        (refused.code, refused.violations[0].field.as_str()),
        (Code::InvalidArgument, "request")
    );
    server.stop().await;
}
