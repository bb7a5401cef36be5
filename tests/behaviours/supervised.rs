//! What the program tells who supervises it, and what SIGHUP does to its files.

use std::path::Path;

use baichuan_client::{Client, ConnectOptions};
use baichuan_server::{fresh_token, token_entry};
use e2e::checkpoint::tiny_m1;
use e2e::{Authority, ServerProcess, refusal, text, until_ready, within};
use tokio::net::UnixDatagram;
use tonic::Code;

/// The next message that says one of these.
async fn told(supervisor: &UnixDatagram, what: &[&str]) -> String {
    let mut bytes = [0; 4096];
    let heard = async {
        loop {
            let n = supervisor.recv(&mut bytes).await.unwrap();
            let message = String::from_utf8_lossy(&bytes[..n]).into_owned();
            if message.lines().any(|line| what.contains(&line)) {
                return message;
            }
        }
    };
    within("a message to the supervisor", heard).await
}

fn write_tokens(path: &Path, token: &str) {
    std::fs::write(path, token_entry(token, "app", "clinic").unwrap()).unwrap();
}

#[tokio::test]
async fn systemd_learns_that_it_is_ready_lives_looks_at_files_and_goes() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("notify");
    let supervisor = UnixDatagram::bind(&socket).unwrap();
    let tokens = dir.path().join("tokens.toml");
    let token = fresh_token().unwrap();
    write_tokens(&tokens, &token);
    let environment = [
        ("NOTIFY_SOCKET", socket.to_str().unwrap()),
        ("WATCHDOG_USEC", "200000"),
    ];
    let (model, tokens) = (
        tiny_m1().to_str().unwrap(),
        format!("auth.tokens={}", tokens.display()),
    );
    let arguments = [
        "--model",
        model,
        "--set",
        &tokens,
        "--set",
        "tenants.clinic.weight=1",
        "--set",
        "reload.interval=1h",
    ];
    let caller = |address| ConnectOptions {
        token: Some(token.clone()),
        ..ConnectOptions::new(address)
    };
    let server = ServerProcess::start_as(&environment, &arguments, caller).await;
    let first = told(&supervisor, &["READY=1", "WATCHDOG=1", "STOPPING=1"]).await;
    assert!(first.contains("READY=1"), "{first}");
    // It was true when it was said.
    server.client.generate_unary(text("x", 3)).await.unwrap();
    told(&supervisor, &["WATCHDOG=1"]).await;
    server.signal("HUP").await;
    let reloading = told(&supervisor, &["RELOADING=1"]).await;
    assert!(reloading.contains("MONOTONIC_USEC="), "{reloading}");
    told(&supervisor, &["READY=1"]).await;
    server.signal("TERM").await;
    told(&supervisor, &["STOPPING=1"]).await;
    let (status, log) = server.ended().await;
    assert_eq!(status.code(), Some(0), "{log:?}");
}

#[tokio::test]
async fn sighup_exchanges_tokens_and_certificates_and_a_broken_file_changes_nothing() {
    let (authority, successor) = (Authority::new(), Authority::new());
    authority.issue("server", &["dns:localhost"]);
    successor.issue("server", &["dns:localhost"]);
    let (token, next) = (fresh_token().unwrap(), fresh_token().unwrap());
    let tokens = authority.path("tokens.toml");
    write_tokens(&tokens, &token);
    let file = |key: &str, name: &str| format!("{key}={}", authority.path(name).display());
    let settings = [
        file("auth.tokens", "tokens.toml"),
        file("tls.cert", "server.pem"),
        file("tls.key", "server.key"),
        "tenants.clinic.weight=1".into(),
        "reload.interval=1h".into(),
    ];
    let model = tiny_m1().to_str().unwrap();
    let mut arguments = vec!["--model", model];
    arguments.extend(settings.iter().flat_map(|setting| ["--set", setting.as_str()]));
    let options = |address: &str, token: &str, by: &Authority| ConnectOptions {
        token: Some(token.into()),
        tls: Some(by.trusted(None)),
        ..ConnectOptions::new(address)
    };
    let server =
        ServerProcess::start_as(&[], &arguments, |address| options(&address, &token, &authority)).await;
    until_ready(&server.client).await;
    server.client.generate_unary(text("x", 3)).await.unwrap();

    // Broken first: what was there goes on, and the log says why.
    std::fs::write(&tokens, "[[tokens]").unwrap();
    for name in ["server.pem", "server.key"] {
        std::fs::copy(successor.path(name), authority.path(name)).unwrap();
    }
    server.signal("HUP").await;
    let exchanged = async {
        loop {
            let connected = Client::connect(&options(&server.address, &token, &successor)).await;
            match connected {
                Ok(client) => return client,
                Err(_) => tokio::task::yield_now().await,
            }
        }
    };
    let fresh = within("the new certificate", exchanged).await;
    fresh.generate_unary(text("x", 3)).await.unwrap();
    assert!(
        Client::connect(&options(&server.address, &token, &authority))
            .await
            .is_err(),
        "the old certificate is shown no more"
    );

    write_tokens(&tokens, &next);
    server.signal("HUP").await;
    let exchanged = async { while fresh.generate_unary(text("x", 3)).await.is_ok() {} };
    within("the end of the old token", exchanged).await;
    assert_eq!(
        refusal(fresh.generate_unary(text("x", 3)).await).code,
        Code::Unauthenticated
    );
    let client = Client::connect(&options(&server.address, &next, &successor))
        .await
        .unwrap();
    client.generate_unary(text("x", 3)).await.unwrap();
    drop((client, fresh));
    server.signal("TERM").await;
    let (status, log) = server.ended().await;
    assert_eq!(status.code(), Some(0), "{log:?}");
    let said = log
        .iter()
        .any(|line| line.contains("cannot be used") && line.contains("tokens.toml"));
    assert!(said, "{log:?}");
}
