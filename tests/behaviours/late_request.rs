//! A call whose message does not arrive is given up, and its place is free.

use std::time::Duration;

use baichuan_client::{Error, Refusal, v1};
use e2e::{Fake, Neighbour, Setup, TestServer, refusal, text, within};
use futures::stream;
use tonic::client::Grpc;
use tonic::transport::Endpoint;
use tonic::{Code, Request};
use tonic_prost::ProstCodec;

/// Makes a call that says nothing; how the server ends it.
async fn silent_call(server: &TestServer, method: &str) -> Refusal {
    let endpoint = Endpoint::from_shared(format!("http://{}", server.address)).unwrap();
    let mut grpc = Grpc::new(endpoint.connect().await.unwrap());
    grpc.ready().await.unwrap();
    let request = Request::new(stream::pending::<v1::GenerateRequest>());
    let path = format!("/baichuan.v1.InferenceService/{method}").parse().unwrap();
    let codec: ProstCodec<v1::GenerateRequest, v1::GenerateResponse> = ProstCodec::default();
    let answer = within("an end of the call", grpc.streaming(request, path, codec)).await;
    refusal(answer.map(drop).map_err(Error::from))
}

#[tokio::test]
async fn calls_that_say_nothing_end_in_time_and_hold_no_place() {
    let setup = Setup::fake(Fake::default())
        .with("grpc.request_timeout", "200ms")
        // Its own and the neighbour's.
        .with("grpc.max_concurrent_calls", 2);
    let server = TestServer::start(setup).await;
    let neighbour = Neighbour::beside(&server).await;
    for method in ["Generate", "EmbedStream", "Embed", "EmbedStream", "Generate"] {
        let refused = silent_call(&server, method).await;
        assert_eq!(refused.code, Code::DeadlineExceeded, "{method}: {refused:?}");
        assert_eq!(refused.reason.as_deref(), Some("REQUEST_NOT_ARRIVED"));
    }
    neighbour.was_served().await;
    server.stop().await;
}

#[tokio::test]
async fn a_stream_of_inputs_that_has_not_begun_is_one_of_its_tenants_calls() {
    let setup = Setup::fake(Fake::default())
        .with("grpc.request_timeout", "1h")
        .with("tenants.anonymous.max_concurrent", 1)
        .with("listen.admin", "127.0.0.1:0");
    let server = std::sync::Arc::new(TestServer::start(setup).await);
    let silent = tokio::spawn({
        let server = server.clone();
        async move { silent_call(&server, "EmbedStream").await }
    });
    let begun = "grpc_server_started_total{grpc_type=\"bidi_stream\",grpc_service=\"baichuan.v1.InferenceService\",\
                 grpc_method=\"EmbedStream\"}";
    server.until_metric(begun, 1.0).await;
    let refused = within("a refusal", async {
        loop {
            if let Err(error) = server.client.generate_unary(text("x", 1)).await {
                return refusal::<()>(Err(error));
            }
        }
    });
    assert_eq!(refused.await.reason.as_deref(), Some("TENANT_QUOTA"));
    silent.abort();
    let _ = silent.await;
    let server = std::sync::Arc::into_inner(server).unwrap();
    // Who hangs up makes room.
    within("room", async {
        while server.client.generate_unary(text("x", 1)).await.is_err() {}
    })
    .await;
    server.stop().await;
}

#[tokio::test]
async fn a_request_that_is_slow_to_arrive_is_served() {
    let setup = Setup::fake(Fake::default()).with("grpc.request_timeout", "1h");
    let server = TestServer::start(setup).await;
    let endpoint = Endpoint::from_shared(format!("http://{}", server.address)).unwrap();
    let mut grpc = Grpc::new(endpoint.connect().await.unwrap());
    grpc.ready().await.unwrap();
    let slowly = stream::once(async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        e2e::text("x", 3)
    });
    let path = "/baichuan.v1.InferenceService/Generate".parse().unwrap();
    let codec: ProstCodec<v1::GenerateRequest, v1::GenerateResponse> = ProstCodec::default();
    let answer = grpc.streaming(Request::new(slowly), path, codec).await.unwrap();
    let mut messages = answer.into_inner();
    let mut finished = false;
    while let Some(message) = within("a message", messages.message()).await.unwrap() {
        finished = matches!(message.event, Some(v1::generate_response::Event::Finish(_)));
    }
    assert!(finished);
    server.stop().await;
}
