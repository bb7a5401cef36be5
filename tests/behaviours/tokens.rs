//! Bearer tokens: who has none or a wrong one is nobody, and what the file says counts at once.

use std::path::Path;
use std::process::Stdio;

use baichuan_client::{Client, Health};
use baichuan_server::{fresh_token, token_entry};
use e2e::{Fake, Setup, TestServer, program, refusal, text, within};
use tempfile::TempDir;
use tokio::io::AsyncWriteExt;
use tonic::Code;

const TAKEN_UP: &str = "baichuan_reloads_total{what=\"tokens\",outcome=\"ok\"}";
const NOT_TAKEN_UP: &str = "baichuan_reloads_total{what=\"tokens\",outcome=\"failed\"}";

fn entry(token: &str, tenant: &str) -> String {
    token_entry(token, &format!("{tenant}-{}", &token[4..8]), tenant).unwrap()
}

/// A server with a tenant `clinic`, whose tokens are in a file.
fn guarded(file: &Path) -> Setup {
    Setup::fake(Fake::default())
        .with("auth.tokens", file.display())
        .with("tenants.clinic.weight", 1)
        .with("listen.admin", "127.0.0.1:0")
        .with("reload.interval", "1h")
}

struct Guarded {
    server: TestServer,
    token: String,
    dir: TempDir,
}

async fn start() -> Guarded {
    let dir = tempfile::tempdir().unwrap();
    let token = fresh_token().unwrap();
    std::fs::write(dir.path().join("tokens.toml"), entry(&token, "clinic")).unwrap();
    let setup = guarded(&dir.path().join("tokens.toml")).token(&token);
    Guarded {
        server: TestServer::start(setup).await,
        token,
        dir,
    }
}

#[tokio::test]
async fn without_a_token_or_with_a_wrong_one_nothing_is_served_but_health() {
    let Guarded {
        server,
        token,
        dir: _dir,
    } = start().await;
    server.client.generate_unary(text("x", 3)).await.unwrap();
    let none = server.connect_as(None).await;
    let refused = refusal(none.generate(text("x", 3)).await);
    assert_eq!(
        (refused.code, refused.reason.as_deref()),
        (Code::Unauthenticated, Some("CREDENTIALS_MISSING"))
    );
    let almost = format!("{}0", &token[..token.len() - 1]);
    let almost = if almost == token {
        format!("{}1", &token[..token.len() - 1])
    } else {
        almost
    };
    for wrong in [almost.as_str(), "x", "a.b.c"] {
        let client = server.connect_as(Some(wrong)).await;
        let refused = refusal(client.generate(text("x", 3)).await);
        assert_eq!(
            (refused.code, refused.reason.as_deref()),
            (Code::Unauthenticated, Some("CREDENTIALS_NOT_ACCEPTED"))
        );
        assert!(!refused.message.contains(wrong), "{refused:?}");
    }
    for outcome in [
        none.models().await.map(drop),
        none.server_info().await.map(drop),
        none.load("").await.map(drop),
        none.abort("x").await,
        none.tokenize(baichuan_client::v1::TokenizeRequest::default())
            .await
            .map(drop),
    ] {
        assert_eq!(refusal(outcome).code, Code::Unauthenticated);
    }
    assert_eq!(none.health(Client::READINESS).await.unwrap(), Health::Serving);
    drop(none);
    server.stop().await;
}

#[tokio::test]
async fn health_is_closed_too_where_the_operator_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let token = fresh_token().unwrap();
    std::fs::write(dir.path().join("tokens.toml"), entry(&token, "clinic")).unwrap();
    let setup = guarded(&dir.path().join("tokens.toml")).token(&token);
    let server = TestServer::start(setup.with("auth.open_health", false)).await;
    let none = server.connect_as(None).await;
    assert_eq!(refusal(none.health("").await).code, Code::Unauthenticated);
    drop(none);
    server.stop().await;
}

#[tokio::test]
async fn a_changed_file_counts_without_a_restart() {
    let Guarded { server, token, dir } = start().await;
    let next = fresh_token().unwrap();
    let file = dir.path().join("tokens.toml");
    std::fs::write(&file, entry(&next, "clinic")).unwrap();
    server.reload();
    server.until_metric(TAKEN_UP, 1.0).await;
    // The same connection: it is calls that are asked.
    assert_eq!(
        refusal(server.client.generate(text("x", 3)).await).code,
        Code::Unauthenticated
    );
    let client = server.connect_as(Some(&next)).await;
    client.generate_unary(text("x", 3)).await.unwrap();
    assert_ne!(token, next);
    drop(client);
    server.stop().await;
}

#[tokio::test]
async fn a_broken_file_changes_nothing() {
    let Guarded {
        server,
        token: _,
        dir,
    } = start().await;
    let file = dir.path().join("tokens.toml");
    let nobody = entry(&fresh_token().unwrap(), "nobody");
    for (n, broken) in ["[[tokens]", nobody.as_str()].into_iter().enumerate() {
        std::fs::write(&file, broken).unwrap();
        server.reload();
        server.until_metric(NOT_TAKEN_UP, n as f64 + 1.0).await;
        server.client.generate_unary(text("x", 3)).await.unwrap();
    }
    std::fs::remove_file(&file).unwrap();
    server.reload();
    server.until_metric(NOT_TAKEN_UP, 3.0).await;
    server.client.generate_unary(text("x", 3)).await.unwrap();
    server.stop().await;
}

#[tokio::test]
async fn hash_token_makes_the_entry_and_keeps_the_token_out_of_it() {
    let token = fresh_token().unwrap();
    let mut child = program("baichuan-server")
        .args(["hash-token", "--name", "n", "--tenant", "clinic"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child
        .stdin
        .take()
        .unwrap()
        .write_all(format!("{token}\n").as_bytes())
        .await
        .unwrap();
    let output = within("the program", child.wait_with_output()).await.unwrap();
    assert!(output.status.success());
    assert_eq!(
        String::from_utf8(output.stdout).unwrap(),
        token_entry(&token, "n", "clinic").unwrap()
    );
    assert!(output.stderr.is_empty());

    let mut made = program("baichuan-server");
    made.args(["hash-token", "--name", "n", "--tenant", "clinic", "--generate"]);
    let output = within("the program", made.output()).await.unwrap();
    let made = String::from_utf8(output.stderr).unwrap();
    let stdout = String::from_utf8(output.stdout).unwrap();
    assert_eq!(stdout, token_entry(made.trim(), "n", "clinic").unwrap());
    assert!(!stdout.contains(made.trim()));
}

#[tokio::test]
async fn the_client_program_proves_itself_by_its_environment() {
    let Guarded {
        server,
        token,
        dir: _dir,
    } = start().await;
    let ask = |token: Option<&str>| {
        let mut command = program("baichuan");
        command
            .args(["generate", "x", "--max-tokens", "3"])
            .env("BAICHUAN_SERVER", server.address());
        command.envs(token.map(|token| ("BAICHUAN_TOKEN", token.to_owned())));
        command
    };
    let allowed = within("the program", ask(Some(&token)).output()).await.unwrap();
    assert!(allowed.status.success());
    let refused = within("the program", ask(None).output()).await.unwrap();
    assert_eq!(refused.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("Unauthenticated"));
    server.stop().await;
}
