//! TLS: who does not speak it or does not believe the certificate gets nothing; certificates change while streams run.

use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

use baichuan_client::{Client, ConnectOptions, Event, TlsOptions};
use e2e::{Authority, Fake, Gate, Setup, TestServer, text, within};
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;

const ENDS: &str = "baichuan_tls_certificate_not_after_timestamp_seconds";
const TAKEN_UP: &str = "baichuan_reloads_total{what=\"tls\",outcome=\"ok\"}";
const NOT_TAKEN_UP: &str = "baichuan_reloads_total{what=\"tls\",outcome=\"failed\"}";

fn encrypted(authority: &Authority, fake: Fake) -> Setup {
    authority.issue_until("server", &["dns:localhost"], 2098);
    Setup::fake(fake)
        .with("tls.cert", authority.path("server.pem").display())
        .with("tls.key", authority.path("server.key").display())
        .with("listen.admin", "127.0.0.1:0")
        .with("reload.interval", "10ms")
        .tls(authority.trusted(None))
}

#[tokio::test]
async fn calls_are_encrypted_and_who_does_not_encrypt_gets_no_answer() {
    let authority = Authority::new();
    let server = TestServer::start(encrypted(&authority, Fake::default())).await;
    let generation = server.client.generate(text("x", 5)).await.unwrap();
    assert_eq!(generation.collect().await.unwrap().choices[0].token_ids.len(), 5);
    let plain = Client::connect(&ConnectOptions::new(server.address())).await;
    // A connection over TCP there is, and nothing comes over it.
    let answer = match plain {
        Ok(client) => within("the refusal", client.server_info()).await,
        Err(error) => Err(error),
    };
    assert!(answer.is_err());
    server.stop().await;
}

#[tokio::test]
async fn a_client_that_believes_somebody_else_does_not_connect() {
    let authority = Authority::new();
    let server = TestServer::start(encrypted(&authority, Fake::default())).await;
    let stranger = Authority::new();
    assert!(server.connect_by(stranger.trusted(None)).await.is_err());
    server
        .until_metric("baichuan_tls_handshake_failures_total", 1.0)
        .await;
    server.stop().await;
}

#[tokio::test]
async fn a_client_s_file_that_is_not_what_it_should_be_is_named_with_its_option() {
    let authority = Authority::new();
    authority.issue("client", &[]);
    authority.issue("other", &[]);
    let (cert, key) = (authority.path("client.pem"), authority.path("client.key"));
    let refusal = |ca: PathBuf, cert: PathBuf, key: PathBuf| {
        let tls = TlsOptions {
            ca: Some(ca),
            cert: Some(cert),
            key: Some(key),
            server_name: None,
        };
        let options = ConnectOptions {
            tls: Some(tls),
            ..ConnectOptions::new("localhost:1")
        };
        Client::connect_lazy(&options).unwrap_err().to_string()
    };
    let ca = || authority.trusted(None).ca.unwrap();
    for (said, option, file) in [
        (refusal(key.clone(), cert.clone(), key.clone()), "tls-ca", &key),
        (refusal(ca(), key.clone(), key.clone()), "tls-cert", &key),
        (refusal(ca(), cert.clone(), cert.clone()), "tls-key", &cert),
    ] {
        assert!(
            said.starts_with(&format!("{option}: {}: ", file.display())),
            "{said}"
        );
    }
    let other = authority.path("other.key");
    let said = refusal(ca(), cert.clone(), other.clone());
    let both = format!("tls-key: {}, of {}: ", other.display(), cert.display());
    assert!(said.starts_with(&both), "{said}");
}

#[tokio::test]
async fn a_new_certificate_is_used_without_a_restart_and_running_streams_go_on() {
    let gate = Gate::new();
    let authority = Authority::new();
    let server = TestServer::start(encrypted(&authority, Fake::gated(&gate))).await;
    gate.close();
    let mut running = server.client.generate(text("x", 20)).await.unwrap();
    assert!(matches!(
        running.next().await.unwrap(),
        Some(Event::PromptInfo(_))
    ));

    // Signed by an authority that clients did not believe before.
    let successor = Authority::new();
    successor.issue("server", &["dns:localhost"]);
    assert!(server.connect_by(successor.trusted(None)).await.is_err());
    let before = server.metric(ENDS).await;
    for name in ["server.pem", "server.key"] {
        std::fs::copy(successor.path(name), authority.path(name)).unwrap();
    }
    server.until_metric(TAKEN_UP, 1.0).await;
    let fresh = server.connect_by(successor.trusted(None)).await.unwrap();
    fresh.server_info().await.unwrap();
    assert!(server.metric(ENDS).await > before);
    assert!(server.connect_by(authority.trusted(None)).await.is_err());

    gate.open();
    let completion = running.collect().await.unwrap();
    assert_eq!(completion.choices[0].token_ids.len(), 20);
    drop(fresh);
    server.stop().await;
}

#[tokio::test]
async fn a_certificate_that_cannot_be_used_changes_nothing() {
    let authority = Authority::new();
    let server = TestServer::start(encrypted(&authority, Fake::default())).await;
    let good = std::fs::read(authority.path("server.pem")).unwrap();
    authority.issue("another", &["dns:localhost"]);
    authority.issue_until("ended", &["dns:localhost"], 2021);
    let broken: [(&str, Vec<u8>); 4] = [
        ("half written", good[..good.len() / 2].to_vec()),
        ("empty", Vec::new()),
        (
            "of another key",
            std::fs::read(authority.path("another.pem")).unwrap(),
        ),
        ("ended", std::fs::read(authority.path("ended.pem")).unwrap()),
    ];
    for (n, (what, bytes)) in broken.into_iter().enumerate() {
        let path = authority.path("server.pem");
        // All at once, as who renews certificates should: half a file would be told of too.
        let mut file = tempfile::NamedTempFile::new_in(path.parent().unwrap()).unwrap();
        file.write_all(&bytes).unwrap();
        file.persist(&path).unwrap();
        server.until_metric(NOT_TAKEN_UP, n as f64 + 1.0).await;
        let client = server.connect().await;
        assert!(client.server_info().await.is_ok(), "{what}");
    }
    assert_eq!(server.metric(TAKEN_UP).await, 0.0);
    server.stop().await;
}

#[tokio::test]
async fn who_connects_and_says_nothing_is_closed() {
    let authority = Authority::new();
    let setup = encrypted(&authority, Fake::default()).with("grpc.handshake_timeout", "200ms");
    let server = TestServer::start(setup).await;
    let mut silent = TcpStream::connect(server.address).await.unwrap();
    let mut byte = [0];
    let closed = within("the server to hang up", silent.read(&mut byte)).await;
    assert!(matches!(closed, Ok(0) | Err(_)), "{closed:?}");
    server
        .until_metric("baichuan_tls_handshake_failures_total", 1.0)
        .await;
    server.stop().await;
}

#[tokio::test]
async fn a_server_ends_though_somebody_shakes_hands_slowly() {
    let authority = Authority::new();
    let setup = encrypted(&authority, Fake::default()).with("grpc.handshake_timeout", "1h");
    let server = TestServer::start(setup).await;
    let _silent = TcpStream::connect(server.address).await.unwrap();
    within(
        "the end",
        tokio::time::timeout(Duration::from_secs(30), server.stop()),
    )
    .await
    .unwrap();
}
