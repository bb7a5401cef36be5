//! Peers that abuse HTTP/2 are sent away or bounded; what they held is free, and others get the tokens they would get.

use std::time::Duration;

use e2e::peer::{
    CONTINUATION, DATA, END_HEADERS, END_STREAM, HEADERS, PING, PRIORITY, Peer, RST_STREAM, SETTINGS,
    WINDOW_UPDATE, call_headers, field, frame, goodbye,
};
use e2e::{Fake, Neighbour, Setup, TestServer, until_idle, within};

/// The code ENHANCE_YOUR_CALM.
const CALM: u32 = 0xb;
/// The code CANCEL.
const CANCEL: [u8; 4] = [0, 0, 0, 8];

async fn server() -> TestServer {
    TestServer::start(Setup::fake(Fake::default())).await
}

/// The neighbour was served, and nothing is held any more.
async fn unharmed(server: TestServer, neighbour: Neighbour) {
    neighbour.was_served().await;
    until_idle(&server.client, "").await;
    server.stop().await;
}

#[tokio::test]
async fn calls_reset_as_soon_as_they_are_made_end_the_connection() {
    let server = server().await;
    let neighbour = Neighbour::beside(&server).await;
    let mut peer = Peer::greeted(server.address).await;
    let headers = call_headers();
    let calls: Vec<u8> = (0..20_000u32)
        .flat_map(|n| {
            let stream = 2 * n + 1;
            let call = frame(HEADERS, END_HEADERS, stream, &headers);
            [call, frame(RST_STREAM, 0, stream, &CANCEL)].concat()
        })
        .collect();
    let heard = peer.say_until_hung_up(&calls).await;
    // The word may be lost: the system drops it when it closes a socket with bytes unread.
    assert!(goodbye(&heard).is_none_or(|code| code == CALM), "{heard:?}");
    unharmed(server, neighbour).await;
}

#[tokio::test]
async fn calls_that_make_the_server_reset_them_end_the_connection() {
    let server = server().await;
    let neighbour = Neighbour::beside(&server).await;
    let mut peer = Peer::greeted(server.address).await;
    let headers = call_headers();
    let calls: Vec<u8> = (0..20_000u32)
        .flat_map(|n| {
            let stream = 2 * n + 1;
            let call = frame(HEADERS, END_HEADERS, stream, &headers);
            // A window that grows by nothing is an error of that call alone.
            [call, frame(WINDOW_UPDATE, 0, stream, &[0; 4])].concat()
        })
        .collect();
    let heard = peer.say_until_hung_up(&calls).await;
    assert!(goodbye(&heard).is_none_or(|code| code != 0), "{heard:?}");
    unharmed(server, neighbour).await;
}

#[tokio::test]
async fn headers_that_go_on_and_on_end_the_connection() {
    let server = server().await;
    let neighbour = Neighbour::beside(&server).await;
    let mut peer = Peer::greeted(server.address).await;
    let more = frame(CONTINUATION, 0, 1, &field("a", &"v".repeat(2048)));
    let flood = [frame(HEADERS, 0, 1, &call_headers()), more.repeat(4000)].concat();
    let heard = peer.say_until_hung_up(&flood).await;
    assert!(goodbye(&heard).is_none_or(|code| code != 0), "{heard:?}");
    unharmed(server, neighbour).await;
}

#[tokio::test]
async fn empty_continuations_without_end_end_the_connection() {
    let server = server().await;
    let neighbour = Neighbour::beside(&server).await;
    let mut peer = Peer::greeted(server.address).await;
    let flood = [
        frame(HEADERS, 0, 1, &call_headers()),
        frame(CONTINUATION, 0, 1, &[]).repeat(500_000),
    ]
    .concat();
    let heard = peer.say_until_hung_up(&flood).await;
    assert!(goodbye(&heard).is_none_or(|code| code != 0), "{heard:?}");
    unharmed(server, neighbour).await;
}

#[tokio::test]
async fn headers_over_the_limit_are_refused_and_the_connection_goes_on() {
    let server = server().await;
    let neighbour = Neighbour::beside(&server).await;
    let mut peer = Peer::greeted(server.address).await;
    // 20 fields of 1 KiB: more than the 16 KiB that `grpc.max_header_list_bytes` allows.
    let fields: Vec<u8> = (0..20).flat_map(|_| field("a", &"v".repeat(1024))).collect();
    let (first, rest) = fields.split_at(12 << 10);
    let headers = [call_headers(), first.to_vec()].concat();
    peer.say(&frame(HEADERS, END_STREAM, 1, &headers)).await;
    peer.say(&frame(CONTINUATION, END_HEADERS, 1, rest)).await;
    let refused = peer.until("an answer", |frame| frame.stream == 1).await;
    assert_eq!((refused.kind, refused.flags & END_STREAM), (HEADERS, END_STREAM));
    // `:status: 431`, its digits as they are or in Huffman's code.
    let says = |digits: &[u8]| refused.payload.windows(digits.len()).any(|w| w == digits);
    assert!(says(b"431") || says(&[0x69, 0x90, 0xff]), "{refused:?}");
    peer.say(&frame(PING, 0, 0, b"12345678")).await;
    let pong = peer
        .until("an answer to a ping", |frame| frame.kind == PING)
        .await;
    assert_eq!(pong.payload, b"12345678");
    unharmed(server, neighbour).await;
}

#[tokio::test]
async fn headers_that_never_end_hold_a_connection_no_longer_than_a_ping_may_go_unanswered() {
    let setup = Setup::fake(Fake::default())
        .with("grpc.keepalive_interval", "200ms")
        .with("grpc.keepalive_timeout", "200ms");
    let server = TestServer::start(setup).await;
    let neighbour = Neighbour::beside(&server).await;
    let mut peer = Peer::greeted(server.address).await;
    // Between the parts of a list of headers nothing else may be said, an answer to a ping neither.
    peer.say(&frame(HEADERS, 0, 1, &call_headers()[..20])).await;
    peer.until_hung_up().await;
    unharmed(server, neighbour).await;
}

#[tokio::test]
async fn a_greeting_that_trickles_is_cut_off_in_time() {
    let setup = Setup::fake(Fake::default()).with("grpc.handshake_timeout", "300ms");
    let server = TestServer::start(setup).await;
    let neighbour = Neighbour::beside(&server).await;
    let mut peer = Peer::silent(server.address).await;
    let trickled = async {
        for byte in b"PRI * HTTP/2.0\r\n\r\nSM\r\n" {
            if !peer.say(&[*byte]).await {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    within("a trickle", trickled).await;
    peer.until_hung_up().await;
    unharmed(server, neighbour).await;
}

/// Sends a frame over and over and listens to nothing, until the server takes no more or has taken enough.
async fn flood_with(before: Vec<u8>, one: Vec<u8>) {
    let server = server().await;
    let neighbour = Neighbour::beside(&server).await;
    let mut peer = Peer::greeted(server.address).await;
    peer.say(&before).await;
    let lot = one.repeat(1000);
    let flooding = async {
        for _ in 0..300 {
            if !peer.say(&lot).await {
                return;
            }
        }
    };
    // Taken, refused, or left in the socket: that is the server's choice, as long as it costs nobody else.
    let _ = tokio::time::timeout(Duration::from_secs(3), flooding).await;
    unharmed(server, neighbour).await;
}

#[tokio::test]
async fn a_flood_of_pings_costs_nobody_else() {
    flood_with(Vec::new(), frame(PING, 0, 0, b"12345678")).await;
}

#[tokio::test]
async fn a_flood_of_settings_costs_nobody_else() {
    flood_with(Vec::new(), frame(SETTINGS, 0, 0, &[0, 4, 0, 1, 0, 0])).await;
}

#[tokio::test]
async fn a_flood_of_priorities_costs_nobody_else() {
    flood_with(Vec::new(), frame(PRIORITY, 0, 1, &[0, 0, 0, 0, 9])).await;
}

#[tokio::test]
async fn a_flood_of_frames_of_unknown_kind_costs_nobody_else() {
    flood_with(Vec::new(), frame(0xee, 0, 0, b"?")).await;
}

#[tokio::test]
async fn a_flood_of_empty_data_costs_nobody_else() {
    let call = frame(HEADERS, END_HEADERS, 1, &call_headers());
    flood_with(call, frame(DATA, 0, 1, &[])).await;
}
