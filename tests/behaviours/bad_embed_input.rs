//! What a client may get wrong about embeddings: the code, the field, and a server that answers the next request.

use baichuan_client::{prompt, v1};
use e2e::{TestServer, refusal, until_idle};
use tonic::Code;

#[tokio::test]
async fn a_field_that_cannot_be_accepted_is_named() {
    let server = TestServer::fake().await;
    let valid = || v1::EmbedRequest {
        inputs: vec![prompt::embed_text("x")],
        ..Default::default()
    };
    let too_long = prompt::embed_tokens(vec![1; 5000]);
    for (request, field) in [
        (
            v1::EmbedRequest {
                inputs: vec![],
                ..valid()
            },
            "inputs",
        ),
        (
            v1::EmbedRequest {
                inputs: vec![prompt::embed_text("x"); 3000],
                ..valid()
            },
            "inputs",
        ),
        (
            v1::EmbedRequest {
                inputs: vec![v1::EmbedInput { input: None }],
                ..valid()
            },
            "inputs[0]",
        ),
        (
            v1::EmbedRequest {
                inputs: vec![prompt::embed_text("x"), prompt::embed_text("")],
                ..valid()
            },
            "inputs[1]",
        ),
        (
            v1::EmbedRequest {
                inputs: vec![prompt::embed_tokens([264])],
                ..valid()
            },
            "inputs[0]",
        ),
        (
            v1::EmbedRequest {
                inputs: vec![too_long],
                ..valid()
            },
            "inputs[0]",
        ),
        (
            v1::EmbedRequest {
                dimensions: Some(0),
                ..valid()
            },
            "dimensions",
        ),
        (
            v1::EmbedRequest {
                dimensions: Some(17),
                ..valid()
            },
            "dimensions",
        ),
        (
            v1::EmbedRequest {
                pooling: 99,
                ..valid()
            },
            "pooling",
        ),
        (
            v1::EmbedRequest {
                encoding: 99,
                ..valid()
            },
            "encoding",
        ),
        (v1::EmbedRequest { dtype: 99, ..valid() }, "dtype"),
        (
            v1::EmbedRequest {
                truncate_tokens: Some(0),
                ..valid()
            },
            "truncate_tokens",
        ),
    ] {
        let refused = refusal(server.client.embed(request).await);
        assert_eq!(refused.code, Code::InvalidArgument, "{field}: {refused:?}");
        let named = &refused.violations[0].field;
        assert!(named.starts_with(field), "{field}: {refused:?}");
        assert_eq!(server.client.embed(valid()).await.unwrap().embeddings.len(), 1);
    }
    until_idle(&server.client, "").await;
    server.stop().await;
}
