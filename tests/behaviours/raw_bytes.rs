//! Bytes that no client library would send.

use std::collections::HashMap;

use baichuan_client::Refusal;
use bytes::{Buf, BufMut, Bytes};
use e2e::peer::{DATA, END_HEADERS, END_STREAM, HEADERS, Peer, call_headers, field as header, frame};
use e2e::{Fake, Setup, TestServer, refusal, text, until_idle};
use tonic::client::Grpc;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::transport::Channel;
use tonic::{Code, Request, Status, Streaming};

/// Messages as the bytes they are.
#[derive(Clone, Copy, Default)]
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

/// What comes of sending `message` to a method; of a stream, its end.
async fn send(server: &TestServer, path: &'static str, message: Vec<u8>) -> Refusal {
    let endpoint = Channel::from_shared(format!("http://{}", server.address)).unwrap();
    let mut grpc = Grpc::new(endpoint.connect().await.unwrap());
    grpc.ready().await.unwrap();
    let request = Request::new(Bytes::from(message));
    let answer = grpc.server_streaming(request, path.parse().unwrap(), Raw).await;
    let status = match answer {
        Err(status) => status,
        Ok(answer) => the_end(answer.into_inner()).await,
    };
    refusal::<()>(Err(status.into()))
}

async fn the_end(mut messages: Streaming<Bytes>) -> Status {
    loop {
        match messages.message().await {
            Ok(Some(_)) => {}
            Ok(None) => panic!("the message was taken"),
            Err(status) => return status,
        }
    }
}

const GENERATE: &str = "/baichuan.v1.InferenceService/Generate";
const GENERATE_UNARY: &str = "/baichuan.v1.InferenceService/GenerateUnary";

/// A field of wire type 2.
fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
    let length = u8::try_from(bytes.len()).unwrap();
    [&[number << 3 | 2, length], bytes].concat()
}

async fn still_answers(server: &TestServer) {
    let completion = server
        .client
        .generate(text("x", 2))
        .await
        .unwrap()
        .collect()
        .await
        .unwrap();
    assert_eq!(completion.choices[0].token_ids.len(), 2);
    until_idle(&server.client, "").await;
}

#[tokio::test]
async fn text_that_is_not_utf8_is_refused() {
    let server = TestServer::fake().await;
    let text = field(3, b"fever \xff\xfe");
    let nested = field(1, &text);
    for (path, message) in [(GENERATE, text), (GENERATE_UNARY, nested)] {
        let refused = send(&server, path, message).await;
        assert_eq!(refused.code, Code::InvalidArgument, "{path}: {refused:?}");
        assert!(
            refused.message.contains("text") || refused.message.contains("prompt"),
            "{refused:?}"
        );
    }
    still_answers(&server).await;
    server.stop().await;
}

#[tokio::test]
async fn bytes_that_are_no_message_are_refused() {
    let server = TestServer::fake().await;
    let broken: HashMap<&str, Vec<u8>> = [
        ("a length beyond the end", vec![3 << 3 | 2, 200, b'x']),
        ("a wire type that is none", vec![3 << 3 | 7, 1]),
        ("field number 0", vec![2, 1, b'x']),
        ("a number that does not end", vec![9 << 3, 0xff, 0xff]),
        ("text where a message is due", field(6, b"\x0a\xff")),
    ]
    .into();
    for (what, message) in broken {
        let refused = send(&server, GENERATE, message).await;
        assert_eq!(refused.code, Code::InvalidArgument, "{what}: {refused:?}");
    }
    still_answers(&server).await;
    server.stop().await;
}

#[tokio::test]
async fn a_message_of_33_mib_is_refused_before_it_is_read() {
    let server = TestServer::fake().await;
    let refused = send(&server, GENERATE, vec![0; 33 << 20]).await;
    assert_eq!(refused.code, Code::ResourceExhausted, "{refused:?}");
    still_answers(&server).await;
    server.stop().await;
}

#[tokio::test]
async fn an_unknown_method_is_unimplemented() {
    let server = TestServer::fake().await;
    let refused = send(&server, "/baichuan.v1.InferenceService/Divine", Vec::new()).await;
    assert_eq!(refused.code, Code::Unimplemented);
    still_answers(&server).await;
    server.stop().await;
}

#[tokio::test]
async fn what_cannot_be_unpacked_is_the_senders_fault() {
    let setup = Setup::fake(Fake::default())
        .with("grpc.max_decoding_message_bytes", 1000)
        .with("listen.admin", "127.0.0.1:0");
    let server = TestServer::start(setup).await;
    // 5000 zeros.
    let bomb = [
        31, 139, 8, 0, 0, 0, 0, 0, 2, 3, 237, 193, 49, 1, 0, 0, 0, 194, 160, 245, 79, 109, 10, 63, 160, 0, 0,
        0, 0, 128, 183, 1, 168, 14, 229, 216, 136, 19, 0, 0,
    ];
    let packed = |bytes: &[u8]| [&[1, 0, 0, 0, u8::try_from(bytes.len()).unwrap()], bytes].concat();
    let (not_gzip, cut_off) = (packed(b"not gzip"), packed(&bomb)[..20].to_vec());
    let not_a_flag = [&[7][..], &packed(b"x")[1..]].concat();
    for (what, message, code, count) in [
        ("no gzip", not_gzip, "InvalidArgument", 1.0),
        ("not all of it", cut_off, "InvalidArgument", 2.0),
        ("a flag that is none", not_a_flag, "InvalidArgument", 3.0),
        ("more than a message", packed(&bomb), "ResourceExhausted", 1.0),
    ] {
        let mut peer = Peer::greeted(server.address).await;
        let headers = [call_headers(), header("grpc-encoding", "gzip")].concat();
        let call = [
            frame(HEADERS, END_HEADERS, 1, &headers),
            frame(DATA, END_STREAM, 1, &message),
        ];
        assert!(peer.say(&call.concat()).await);
        peer.until(what, |f| f.kind == HEADERS && f.flags & END_STREAM != 0)
            .await;
        let handled = format!(
            "grpc_server_handled_total{{grpc_type=\"server_stream\",grpc_service=\"baichuan.v1.InferenceService\",\
             grpc_method=\"Generate\",grpc_code=\"{code}\"}}"
        );
        server.until_metric(&handled, count).await;
    }
    server.stop().await;
}
