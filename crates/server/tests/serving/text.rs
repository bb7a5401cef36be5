//! Tokenize and Detokenize.

use baichuan_client::{prompt, v1};
use tonic::Code;
use v1::tokenize_request::Input;

use crate::support::{TestServer, fields, refusal};

#[tokio::test]
async fn text_becomes_ids_and_ids_become_the_text() {
    let server = TestServer::start("").await;
    let request = v1::TokenizeRequest {
        input: Some(Input::Text("héllo 你好".into())),
        return_tokens: Some(true),
        ..Default::default()
    };
    let response = server.client.tokenize(request).await.unwrap();
    assert_eq!(response.tokens.len(), response.token_ids.len());
    assert_eq!(
        (response.model.as_str(), response.rendered.as_str()),
        ("fake", "")
    );
    assert!(response.max_context > 0);
    let back = v1::DetokenizeRequest {
        token_ids: response.token_ids,
        ..Default::default()
    };
    assert_eq!(server.client.detokenize(back).await.unwrap().text, "héllo 你好");
}

#[tokio::test]
async fn a_chat_is_shown_as_rendered() {
    let server = TestServer::start("").await;
    let request = v1::TokenizeRequest {
        input: Some(Input::Chat(prompt::conversation([prompt::message("user", "hi")]))),
        ..Default::default()
    };
    let response = server.client.tokenize(request).await.unwrap();
    assert_eq!(response.rendered, "<C_Q>hi<C_A>");
    assert!(response.tokens.is_empty());
}

#[tokio::test]
async fn bad_input_is_named() {
    let server = TestServer::start("").await;
    let nothing = refusal(server.client.tokenize(v1::TokenizeRequest::default()).await);
    assert_eq!(
        (nothing.code, fields(&nothing)),
        (Code::InvalidArgument, vec!["input"])
    );
    let unknown = v1::DetokenizeRequest {
        token_ids: vec![65, 70_000],
        ..Default::default()
    };
    assert_eq!(
        fields(&refusal(server.client.detokenize(unknown).await)),
        ["token_ids[1]"]
    );
    let role = v1::TokenizeRequest {
        input: Some(Input::Chat(prompt::conversation([prompt::message("", "hi")]))),
        ..Default::default()
    };
    assert_eq!(
        fields(&refusal(server.client.tokenize(role).await)),
        ["chat.messages[0].role"]
    );
}
