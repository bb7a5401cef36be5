//! A call whose message does not arrive is given up, and its place is free.

use std::time::Duration;

use baichuan_client::{Error, Refusal, v1};
use e2e::{Fake, Neighbour, Setup, TestServer, refusal, within};
use futures::stream;
use tonic::client::Grpc;
use tonic::transport::Endpoint;
use tonic::{Code, Request};
use tonic_prost::ProstCodec;

/// Makes a call that says nothing; how the server ends it.
async fn silent_call(server: &TestServer) -> Refusal {
    let endpoint = Endpoint::from_shared(format!("http://{}", server.address)).unwrap();
    let mut grpc = Grpc::new(endpoint.connect().await.unwrap());
    grpc.ready().await.unwrap();
    let request = Request::new(stream::pending::<v1::GenerateRequest>());
    let path = "/baichuan.v1.InferenceService/Generate".parse().unwrap();
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
    for _ in 0..3 {
        let refused = silent_call(&server).await;
        assert_eq!(refused.code, Code::DeadlineExceeded, "{refused:?}");
        assert_eq!(refused.reason.as_deref(), Some("REQUEST_NOT_ARRIVED"));
    }
    neighbour.was_served().await;
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
