//! What llm-d's endpoint picker reads of a worker, by its public sources (llm-d-router, August 2026): gRPC messages on
//! their way, by path and uncompressed, and the metrics page. The labels of its pods are in `deploy/llm-d`.

use baichuan_proto::vllm::grpc::engine as pb;
use bytes::{Buf, BufMut, Bytes, BytesMut};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use pb::generate_request::Input;
use pb::generate_response::Response;
use prost::Message;
use tokio::net::TcpStream;

use crate::support::TestServer;

/// A call as it stands on the wire, from a caller that would take gzip; the answer's frames.
async fn frames(server: &TestServer, path: &str, message: &impl Message) -> Vec<(u8, Bytes)> {
    let socket = TcpStream::connect(server.address).await.unwrap();
    let (mut sender, connection) =
        http2::handshake::<_, _, Full<Bytes>>(TokioExecutor::new(), TokioIo::new(socket))
            .await
            .unwrap();
    let connection = tokio::spawn(connection);
    let encoded = message.encode_to_vec();
    let mut body = BytesMut::new();
    body.put_u8(0);
    body.put_u32(encoded.len() as u32);
    body.put_slice(&encoded);
    let request = hyper::Request::post(format!("http://{}{path}", server.address))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .header("grpc-accept-encoding", "identity,deflate,gzip")
        .body(Full::new(body.freeze()))
        .unwrap();
    let response = sender.send_request(request).await.unwrap();
    assert_eq!(response.headers().get("grpc-encoding"), None);
    let collected = response.into_body().collect().await.unwrap();
    let status = collected.trailers().unwrap().get("grpc-status").unwrap().clone();
    assert_eq!(status, "0");
    let mut bytes = collected.to_bytes();
    let mut frames = Vec::new();
    while bytes.has_remaining() {
        let flag = bytes.get_u8();
        let length = bytes.get_u32() as usize;
        frames.push((flag, bytes.split_to(length)));
    }
    connection.abort();
    frames
}

fn tokenized() -> pb::TokenizedInput {
    pb::TokenizedInput {
        original_text: String::new(),
        input_ids: vec![3, 4, 5],
    }
}

#[tokio::test]
async fn messages_go_by_the_paths_it_claims_and_are_never_compressed() {
    let server = TestServer::start("grpc.vllm_facade = true").await;
    let request = pb::GenerateRequest {
        input: Some(Input::Tokenized(tokenized())),
        sampling_params: Some(pb::SamplingParams {
            temperature: Some(0.0),
            max_tokens: Some(3),
            ignore_eos: true,
            ..pb::SamplingParams::default()
        }),
        stream: true,
        ..pb::GenerateRequest::default()
    };
    let frames_of_generate = frames(&server, "/vllm.grpc.engine.VllmEngine/Generate", &request).await;
    assert_eq!(frames_of_generate.len(), 4, "three chunks and the end");
    for (flag, message) in frames_of_generate {
        assert_eq!(flag, 0, "a compressed message is an error there");
        // What it accounts by: every message, in chunks too, tells the prompt's and its own tokens.
        match pb::GenerateResponse::decode(message).unwrap().response.unwrap() {
            Response::Chunk(chunk) => {
                assert_eq!((chunk.prompt_tokens, chunk.completion_tokens), (3, 1));
            }
            Response::Complete(end) => assert_eq!((end.prompt_tokens, end.completion_tokens), (3, 3)),
        }
    }
    let request = pb::EmbedRequest {
        request_id: String::new(),
        tokenized: Some(tokenized()),
    };
    let frames_of_embed = frames(&server, "/vllm.grpc.engine.VllmEngine/Embed", &request).await;
    let [(0, message)] = &frames_of_embed[..] else {
        panic!("one plain message: {frames_of_embed:?}");
    };
    let response = pb::EmbedResponse::decode(message.clone()).unwrap();
    assert!(response.prompt_tokens == 3 && !response.embedding.is_empty());
}

#[tokio::test]
async fn the_metrics_of_a_pod_labelled_vllm_are_there_by_name_and_label() {
    let server = TestServer::start("grpc.vllm_facade = true").await;
    let (status, page) = server.page("/metrics").await;
    assert_eq!(status, 200);
    let series = |name: &str| {
        let beginning = format!("{name}{{");
        let found: Vec<_> = page.lines().filter(|l| l.starts_with(&beginning)).collect();
        assert_eq!(found.len(), 1, "{name} in {page}");
        found[0].to_owned()
    };
    for name in [
        "vllm:num_requests_waiting",
        "vllm:num_requests_running",
        "vllm:kv_cache_usage_perc",
    ] {
        let line = series(name);
        let value: f64 = line.rsplit(' ').next().unwrap().parse().unwrap();
        assert!((0.0..=1.0).contains(&value), "{line}");
    }
    // Read from labels, as whole numbers.
    let cache = series("vllm:cache_config_info");
    for label in ["block_size", "num_gpu_blocks"] {
        let value = cache.split(&format!("{label}=\"")).nth(1).unwrap();
        let value: u64 = value.split('"').next().unwrap().parse().unwrap();
        assert!(value > 0, "{cache}");
    }
}
