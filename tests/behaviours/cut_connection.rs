//! A connection that is cut anywhere in a call, in either direction: the call ends, what it held is free, and others
//! never notice.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};

use baichuan_client::{Client, ConnectOptions, Error};
use e2e::{Fake, Neighbour, Setup, TestServer, greedy, tokens, until_idle, within};
use futures::StreamExt;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// Connections that are cut at once.
const AT_ONCE: usize = 8;
/// Of the call that is cut.
const PROMPT: [u32; 3] = [1, 2, 3];
const MAX_TOKENS: u32 = 4;

/// Which direction of a connection is cut, and after how many bytes.
#[derive(Clone, Copy, Debug)]
enum Cut {
    ToServer(usize),
    ToClient(usize),
}

/// A proxy for one connection, which hangs up on both sides when the cut comes. Says how many bytes went each way.
async fn proxy(listener: TcpListener, server: SocketAddr, cut: Option<Cut>) -> (usize, usize) {
    let (client, _) = listener.accept().await.unwrap();
    let server = TcpStream::connect(server).await.unwrap();
    let (client_reads, client_writes) = client.into_split();
    let (server_reads, server_writes) = server.into_split();
    let (to_server, to_client) = match cut {
        Some(Cut::ToServer(n)) => (n, usize::MAX),
        Some(Cut::ToClient(n)) => (usize::MAX, n),
        None => (usize::MAX, usize::MAX),
    };
    let (up, down) = (AtomicUsize::new(0), AtomicUsize::new(0));
    tokio::select! {
        () = carry(client_reads, server_writes, to_server, &up) => {}
        () = carry(server_reads, client_writes, to_client, &down) => {}
    }
    (up.into_inner(), down.into_inner())
}

/// Carries `limit` bytes at most.
async fn carry(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    limit: usize,
    carried: &AtomicUsize,
) {
    let mut buffer = [0; 4096];
    loop {
        let room = (limit - carried.load(Ordering::Relaxed)).min(buffer.len());
        if room == 0 {
            return;
        }
        let Ok(n @ 1..) = from.read(&mut buffer[..room]).await else {
            return;
        };
        if to.write_all(&buffer[..n]).await.is_err() {
            return;
        }
        carried.fetch_add(n, Ordering::Relaxed);
    }
}

/// A call through the proxy: what it brought; and the bytes that went each way.
async fn call(server: SocketAddr, cut: Option<Cut>) -> (Result<Vec<u32>, Error>, (usize, usize)) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let carrying = tokio::spawn(proxy(listener, server, cut));
    let answer = async {
        let client = Client::connect(&ConnectOptions::new(address)).await?;
        let generation = client.generate(tokens(&PROMPT, MAX_TOKENS)).await?;
        let whole = generation.collect().await?;
        Ok(whole.choices[0].token_ids.clone())
    };
    let answer = within("the end of a cut call", answer).await;
    (answer, within("the proxy's end", carrying).await.unwrap())
}

#[tokio::test]
async fn cut_after_any_byte_the_call_ends_and_nothing_stays_held() {
    let server = TestServer::start(Setup::fake(Fake::default())).await;
    let address = server.address;
    let all: Vec<u32> = (0..264).collect();
    let expected = greedy(&PROMPT, MAX_TOKENS as usize, &all);
    let (answer, (up, down)) = call(address, None).await;
    assert_eq!(answer.unwrap(), expected);
    let neighbour = Neighbour::beside(&server).await;
    let cuts = (0..up).map(Cut::ToServer).chain((0..down).map(Cut::ToClient));
    let calls = futures::stream::iter(cuts).map(async |cut| (cut, call(address, Some(cut)).await.0));
    let outcomes: Vec<_> = calls.buffer_unordered(AT_ONCE).collect().await;
    let mut broken = 0;
    for (cut, answer) in outcomes {
        match answer {
            // The last bytes of a connection are not the call's.
            Ok(tokens) => assert_eq!(tokens, expected, "{cut:?}"),
            // The client's own words for a broken connection: the server has not refused anything.
            Err(error) if error.refusal().is_none_or(|words| words.reason.is_none()) => broken += 1,
            Err(error) => panic!("{cut:?}: {error:?}"),
        }
    }
    assert!(
        broken > (up + down) / 2,
        "{broken} of {} cuts did anything",
        up + down
    );
    neighbour.was_served().await;
    until_idle(&server.client, "").await;
    server.stop().await;
}
