//! Below the services: broken messages, compression, reflection, connections.

use std::collections::HashMap;

use baichuan_client::v1;
use bytes::{Buf, BufMut, Bytes};
use http_body_util::Full;
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tonic::client::Grpc;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Response, Status};
use tonic_types::StatusExt;

use crate::support::{TestServer, generation};

/// Carries bytes as they are.
#[derive(Clone, Default)]
struct Raw;

impl Codec for Raw {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, dst: &mut EncodeBuf<'_>) -> Result<(), Status> {
        dst.put(item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, src: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(src.copy_to_bytes(src.remaining())))
    }
}

async fn channel(server: &TestServer) -> Channel {
    let endpoint = Endpoint::from_shared(format!("http://{}", server.address)).unwrap();
    endpoint.connect().await.unwrap()
}

async fn send(
    server: &TestServer,
    path: &'static str,
    message: &'static [u8],
) -> Result<Response<Bytes>, Status> {
    let mut grpc = Grpc::new(channel(server).await);
    grpc.ready().await.unwrap();
    let request = Request::new(Bytes::from_static(message));
    grpc.unary(request, PathAndQuery::from_static(path), Raw).await
}

#[tokio::test]
async fn bytes_that_are_no_message_are_an_invalid_argument() {
    let server = TestServer::start("").await;
    for (name, message) in [
        ("text that is not UTF-8", &b"\x0a\x02\xff\xfe"[..]),
        ("a length beyond the end", b"\x0a\x7fx"),
        ("a wrong wire type", b"\x08\x01"),
        ("noise", b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff"),
    ] {
        let status = send(&server, "/baichuan.v1.InferenceService/Embed", message)
            .await
            .unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{name}: {status:?}");
        assert!(
            status.get_error_details().bad_request().is_some(),
            "{name}: {status:?}"
        );
        assert!(
            status.metadata().contains_key("x-request-id"),
            "{name}: {status:?}"
        );
    }
    server.client.generate_unary(generation("x", 1)).await.unwrap();
}

#[tokio::test]
async fn an_unknown_method_is_unimplemented() {
    let server = TestServer::start("").await;
    let status = send(&server, "/baichuan.v1.InferenceService/Divine", b"")
        .await
        .unwrap_err();
    assert_eq!(status.code(), Code::Unimplemented);
    assert!(status.metadata().contains_key("x-request-id"));
}

#[tokio::test]
async fn responses_are_compressed_for_those_who_ask_and_requests_may_be() {
    use tonic::codec::CompressionEncoding::Gzip;
    use v1::model_service_client::ModelServiceClient;
    let server = TestServer::start("").await;
    let plain = ModelServiceClient::new(channel(&server).await);
    let asking = plain.clone().accept_compressed(Gzip).send_compressed(Gzip);
    let mut encodings = HashMap::new();
    for (name, mut client) in [("plain", plain), ("asking", asking)] {
        let response = client.list_models(v1::ListModelsRequest {}).await.unwrap();
        let encoding = response
            .metadata()
            .get("grpc-encoding")
            .map(|v| v.to_str().unwrap().to_owned());
        encodings.insert(name, encoding);
    }
    assert_eq!(encodings["plain"], None);
    assert_eq!(encodings["asking"].as_deref(), Some("gzip"));
}

#[tokio::test]
async fn reflection_lists_the_services_in_both_versions() {
    let server = TestServer::start("").await;
    macro_rules! services {
        ($version:ident) => {{
            use tonic_reflection::pb::$version::ServerReflectionRequest;
            use tonic_reflection::pb::$version::server_reflection_client::ServerReflectionClient;
            use tonic_reflection::pb::$version::server_reflection_request::MessageRequest;
            use tonic_reflection::pb::$version::server_reflection_response::MessageResponse;
            let request = ServerReflectionRequest {
                host: String::new(),
                message_request: Some(MessageRequest::ListServices(String::new())),
            };
            let mut client = ServerReflectionClient::new(channel(&server).await);
            let request = futures::stream::iter([request]);
            let mut stream = client.server_reflection_info(request).await.unwrap().into_inner();
            match stream.message().await.unwrap().unwrap().message_response {
                Some(MessageResponse::ListServicesResponse(list)) => {
                    list.service.into_iter().map(|s| s.name).collect::<Vec<String>>()
                }
                other => panic!("{other:?}"),
            }
        }};
    }
    for services in [services!(v1), services!(v1alpha)] {
        for service in [
            "baichuan.v1.InferenceService",
            "baichuan.v1.ControlService",
            "grpc.health.v1.Health",
        ] {
            assert!(
                services.iter().any(|s| s == service),
                "{service} not in {services:?}"
            );
        }
    }
}

#[tokio::test]
async fn a_connection_that_says_nothing_is_closed() {
    let server = TestServer::start("grpc.handshake_timeout = '100ms'").await;
    let mut silent = TcpStream::connect(server.address).await.unwrap();
    // The server's own SETTINGS may come first; then the end.
    let mut rest = Vec::new();
    silent.read_to_end(&mut rest).await.unwrap();
    server.client.health("").await.unwrap();
}

#[tokio::test]
async fn http1_on_the_grpc_port_ends_the_connection_and_nothing_else() {
    let server = TestServer::start("").await;
    let mut socket = TcpStream::connect(server.address).await.unwrap();
    socket
        .write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
        .await
        .unwrap();
    let mut rest = Vec::new();
    let _ = socket.read_to_end(&mut rest).await;
    server.client.generate_unary(generation("x", 1)).await.unwrap();
}

#[tokio::test]
async fn connections_beyond_the_limit_are_closed() {
    let server = TestServer::start("grpc.max_connections = 1").await;
    let mut second = TcpStream::connect(server.address).await.unwrap();
    let mut rest = Vec::new();
    // Closed or reset: either way nothing is served.
    let _ = second.read_to_end(&mut rest).await;
    assert!(rest.is_empty());
    server.client.health("").await.unwrap();
}

/// An HTTP/2 connection without a gRPC client's own timers on it.
async fn http2(
    server: &TestServer,
) -> (
    SendRequest<Full<Bytes>>,
    impl Future<Output = Result<(), hyper::Error>> + use<>,
) {
    let socket = TcpStream::connect(server.address).await.unwrap();
    http2::handshake(TokioExecutor::new(), TokioIo::new(socket))
        .await
        .unwrap()
}

#[tokio::test]
async fn a_grpc_timeout_is_the_servers_to_keep() {
    let server = TestServer::start("").await;
    let (mut sender, connection) = http2(&server).await;
    let connection = tokio::spawn(connection);
    server.fake.steps.shut();
    let message = v1::GenerateUnaryRequest {
        request: Some(v1::GenerateRequest {
            time_limit_ms: Some(3_600_000),
            ..generation("x", 4)
        }),
    }
    .encode_to_vec();
    let mut framed = vec![0];
    framed.put_u32(message.len() as u32);
    framed.extend(message);
    let request = hyper::Request::post(format!(
        "http://{}/baichuan.v1.InferenceService/GenerateUnary",
        server.address
    ))
    .header("content-type", "application/grpc")
    .header("te", "trailers")
    .header("grpc-timeout", "100m")
    .body(Full::new(Bytes::from(framed)))
    .unwrap();
    let response = sender.send_request(request).await.unwrap();
    let status = Status::from_header_map(response.headers()).unwrap();
    assert_eq!(status.code(), Code::DeadlineExceeded);
    assert_eq!(
        status.get_error_details().error_info().unwrap().reason,
        "DEADLINE_EXCEEDED"
    );
    drop(sender);
    connection.await.unwrap().unwrap();
}

#[tokio::test]
async fn an_aged_connection_is_asked_to_go_and_its_calls_finish() {
    let toml = "grpc.max_connection_age = '2s'\ngrpc.max_connection_age_grace = '30s'";
    let server = TestServer::start(toml).await;
    server.fake.steps.shut();
    let running = server.client.generate(generation("x", 20)).await.unwrap();
    // One without calls, made later: when that was asked to go and went, the other was asked, too.
    let (sender, idle) = http2(&server).await;
    idle.await.unwrap();
    drop(sender);
    server.fake.steps.open();
    let completion = running.collect().await.unwrap();
    assert_eq!(
        completion.choices[0]
            .finish
            .as_ref()
            .unwrap()
            .usage
            .unwrap()
            .completion_tokens,
        20
    );
}
