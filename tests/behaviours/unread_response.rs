//! Who takes nothing of a response loses the call, and what the call held is free.

use e2e::peer::{
    DATA, END_HEADERS, END_STREAM, Frame, HEADERS, Peer, RST_STREAM, SETTINGS, call_headers_of, frame,
};
use e2e::{Fake, Setup, TestServer, text, until_idle, within};

const SERVICE: &str = "/baichuan.v1.InferenceService";
/// SETTINGS_INITIAL_WINDOW_SIZE.
const WINDOW: [u8; 2] = [0, 4];

/// A text in this field of a message, as gRPC carries messages.
fn message(field: u8, text: &str) -> Vec<u8> {
    let mut message = vec![field << 3 | 2];
    let mut length = text.len();
    while length >= 128 {
        message.push(u8::try_from(length % 128).unwrap() | 128);
        length /= 128;
    }
    message.push(u8::try_from(length).unwrap());
    message.extend_from_slice(text.as_bytes());
    let length = u32::try_from(message.len()).unwrap().to_be_bytes();
    [&[0][..], &length, &message].concat()
}

/// Makes a call whose response may have `window` bytes, and takes no more of it.
async fn unread_call(server: &TestServer, path: &str, message: &[u8], window: u32) -> Peer {
    let mut peer = Peer::greeted(server.address).await;
    let settings = [&WINDOW[..], &window.to_be_bytes()].concat();
    let call = [
        frame(SETTINGS, 0, 0, &settings),
        frame(HEADERS, END_HEADERS, 1, &call_headers_of(path)),
        frame(DATA, END_STREAM, 1, message),
    ];
    assert!(peer.say(&call.concat()).await);
    peer.until("the beginning of an answer", |f| {
        f.kind == HEADERS && f.stream == 1
    })
    .await;
    peer
}

#[tokio::test]
async fn calls_whose_responses_nobody_takes_are_reset_and_hold_no_place() {
    let setup = Setup::fake(Fake::default())
        .with("grpc.send_timeout", "300ms")
        .with("grpc.max_concurrent_calls", 1)
        .with("listen.admin", "127.0.0.1:0");
    let server = TestServer::start(setup).await;
    // Letters are also the numbers of their tokens.
    let long = message(2, &"x".repeat(10_000));
    let short = message(3, "x");
    let cases = [
        // One answer, which the transport would take whole as soon as a byte of it may go out.
        ("unary", "Tokenize", &long, 0, 1.0),
        ("unary", "Tokenize", &long, 1, 2.0),
        ("unary", "Detokenize", &long, 1, 1.0),
        // A stream: of no message anything, or of some.
        ("server_stream", "Generate", &short, 0, 1.0),
        ("server_stream", "Generate", &short, 500, 2.0),
    ];
    for (kind, method, message, window, count) in cases {
        let mut peer = unread_call(&server, &format!("{SERVICE}/{method}"), message, window).await;
        // What it ended with is seen below.
        let is_end = |frame: &Frame| frame.kind == RST_STREAM && frame.stream == 1;
        while peer.hear().await.is_some_and(|frame| !is_end(&frame)) {}
        let handled = format!(
            "grpc_server_handled_total{{grpc_type=\"{kind}\",grpc_service=\"baichuan.v1.InferenceService\",\
             grpc_method=\"{method}\",grpc_code=\"ResourceExhausted\"}}"
        );
        server.until_metric(&handled, count).await;
        // The only place there is.
        let next = within("an answer", server.client.generate_unary(text("x", 3)))
            .await
            .unwrap();
        assert_eq!(next.choices[0].token_ids.len(), 3, "{method} {window}");
    }
    until_idle(&server.client, "").await;
    server.stop().await;
}

#[tokio::test]
async fn an_answer_of_many_pieces_arrives_whole() {
    let server = TestServer::fake().await;
    let request = baichuan_client::v1::TokenizeRequest {
        input: Some(baichuan_client::v1::tokenize_request::Input::Text(
            "abc".repeat(300_000),
        )),
        return_tokens: Some(true),
        ..Default::default()
    };
    let answer = server.client.tokenize(request).await.unwrap();
    let whole = answer.tokens.concat() == "<0x61><0x62><0x63>".repeat(300_000);
    assert!(whole, "{} tokens", answer.tokens.len());
    server.stop().await;
}
