//! Bytes in place of a client's side of HTTP/2, on the port of a running server.
//!
//! The first byte of an input says how long the connection stays open after the server has taken the rest in, in
//! milliseconds, and by its highest bit whether the rest follows a proper preface. Whatever that does to its own
//! connection, the next one is served.

use std::cell::{Cell, OnceCell};
use std::time::Duration;

use libfuzzer_sys::Corpus;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::serving::Server;

/// The connection's preface and empty settings.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
/// A ping that the server answers once it has taken in what was before it.
const PING: &[u8] = b"\0\0\x08\x06\0\0\0\0\0fuzzfuzz";
/// Its answer.
const PONG: &[u8] = b"\0\0\x08\x06\x01\0\0\0\0fuzzfuzz";
/// Longest wait for it: what is left open in an input swallows the ping.
const SWALLOWED: Duration = Duration::from_millis(20);

thread_local! {
    static SERVER: OnceCell<Server> = const { OnceCell::new() };
    static N_INPUTS: Cell<u64> = const { Cell::new(0) };
}

pub(crate) fn feed(input: &[u8]) -> Corpus {
    let Some((how, bytes)) = input.split_first() else {
        return Corpus::Reject;
    };
    let linger = Duration::from_millis(u64::from(how & 0x0f));
    let said = match how & 0x80 {
        0 => [PREFACE, bytes, PING].concat(),
        _ => bytes.to_vec(),
    };
    SERVER.with(|server| {
        let server = server.get_or_init(Server::start);
        server.wait(talk(server, &said, linger));
        N_INPUTS.set(N_INPUTS.get() + 1);
        if N_INPUTS.get().is_multiple_of(64) {
            assert!(server.serves(), "others are no longer served");
        }
    });
    Corpus::Keep
}

async fn talk(server: &Server, said: &[u8], linger: Duration) {
    let mut socket = TcpStream::connect(server.address).await.expect("a connection");
    // Closed by a reset, so that no port waits for stragglers.
    socket.set_zero_linger().expect("an option that every system has");
    let (mut reads, mut writes) = socket.split();
    let mut heard = Vec::new();
    let listens = async {
        let mut buffer = [0; 4096];
        while let Ok(n @ 1..) = reads.read(&mut buffer).await {
            heard.extend_from_slice(&buffer[..n]);
            if heard.windows(PONG.len()).any(|frame| frame == PONG) {
                break;
            }
        }
    };
    // The server may hang up before it has taken everything.
    let both = async { tokio::join!(writes.write_all(said), listens) };
    let _ = tokio::time::timeout(SWALLOWED, both).await;
    let mut buffer = [0; 4096];
    let rest = async { while let Ok(1..) = reads.read(&mut buffer).await {} };
    let _ = tokio::time::timeout(linger, rest).await;
}
