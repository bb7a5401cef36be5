//! Text goes to tokens and back.

use baichuan_client::{Client, v1};
use e2e::checkpoint::tiny_m1;
use e2e::{Setup, TestServer, refusal};
use tonic::Code;
use v1::tokenize_request::Input;

const TEXTS: [&str; 6] = [
    "The patient has a headache.",
    "  leading and   inner spaces ",
    "你好，请问你有什么症状？\n我头痛，发烧，咳嗽三天了。",
    "emoji 🤒🩺 and a family 👨‍👩‍👧",
    "control \u{1}\u{7f}\t and \r\n line ends",
    "<C_Q> is a role only where the template puts it </s>",
];

async fn tokenize(client: &Client, text: &str) -> v1::TokenizeResponse {
    let request = v1::TokenizeRequest {
        input: Some(Input::Text(text.into())),
        return_tokens: Some(true),
        ..Default::default()
    };
    client.tokenize(request).await.unwrap()
}

async fn round_trip(server: TestServer) {
    for text in TEXTS {
        let tokenized = tokenize(&server.client, text).await;
        assert_eq!(tokenized.tokens.len(), tokenized.token_ids.len());
        let request = v1::DetokenizeRequest {
            token_ids: tokenized.token_ids,
            skip_special_tokens: Some(false),
            ..Default::default()
        };
        assert_eq!(server.client.detokenize(request).await.unwrap().text, text);
    }
    server.stop().await;
}

#[tokio::test]
async fn any_text_survives_the_fake_models_tokens() {
    round_trip(TestServer::fake().await).await;
}

#[tokio::test]
async fn any_text_survives_the_real_models_tokens() {
    round_trip(TestServer::start(Setup::m1(tiny_m1())).await).await;
}

#[tokio::test]
async fn special_tokens_are_left_out_of_text_unless_asked_for() {
    let server = TestServer::fake().await;
    let eos = baichuan_engine::testing::EOS;
    let mut request = v1::DetokenizeRequest {
        token_ids: vec![104, 105, eos],
        ..Default::default()
    };
    assert_eq!(
        server.client.detokenize(request.clone()).await.unwrap().text,
        "hi"
    );
    request.skip_special_tokens = Some(false);
    assert_eq!(server.client.detokenize(request).await.unwrap().text, "hi</s>");
    server.stop().await;
}

#[tokio::test]
async fn texts_and_tokens_beyond_the_longest_text_are_refused() {
    let setup = Setup::fake(e2e::Fake::default()).with("engine.limits.max_text_bytes", 10);
    let server = TestServer::start(setup).await;
    assert_eq!(tokenize(&server.client, "0123456789").await.token_ids.len(), 10);
    let text = v1::TokenizeRequest {
        input: Some(Input::Text("0123456789a".into())),
        ..Default::default()
    };
    let tokens = |n| v1::DetokenizeRequest {
        token_ids: vec![104; n],
        ..Default::default()
    };
    let message = v1::ChatMessage {
        role: "user".into(),
        content: "fever?".into(),
    };
    let chat = v1::TokenizeRequest {
        input: Some(Input::Chat(v1::Chat {
            messages: vec![message; 2],
            ..Default::default()
        })),
        ..Default::default()
    };
    // A byte's token is written `<0x68>`.
    assert_eq!(server.client.detokenize(tokens(1)).await.unwrap().text, "h");
    for (refused, field) in [
        (refusal(server.client.tokenize(text).await), "text"),
        (refusal(server.client.tokenize(chat).await), "chat.messages"),
        (refusal(server.client.detokenize(tokens(2)).await), "token_ids"),
    ] {
        assert_eq!(refused.code, Code::InvalidArgument);
        assert_eq!(refused.violations[0].field, field);
    }
    server.stop().await;
}

#[tokio::test]
async fn the_context_is_reported_with_the_tokens() {
    let server = TestServer::fake().await;
    let answer = tokenize(&server.client, "x").await;
    assert_eq!((answer.max_context, answer.model.as_str()), (4096, "fake"));
    server.stop().await;
}

#[tokio::test]
async fn a_token_beyond_the_vocabulary_has_no_text() {
    let server = TestServer::fake().await;
    let request = v1::DetokenizeRequest {
        token_ids: vec![1, 264],
        ..Default::default()
    };
    let refused = refusal(server.client.detokenize(request).await);
    assert_eq!(
        (refused.code, refused.violations[0].field.as_str()),
        (Code::InvalidArgument, "token_ids[1]")
    );
    let nothing = refusal(server.client.tokenize(v1::TokenizeRequest::default()).await);
    assert_eq!(
        (nothing.code, nothing.violations[0].field.as_str()),
        (Code::InvalidArgument, "input")
    );
    server.stop().await;
}
