//! The program `baichuan` against a server: what it prints, its exit codes, Ctrl-C.

use std::process::{Output, Stdio};

use e2e::{Fake, Gate, Setup, TestServer, program, signal, until_idle, until_load, within};
use serde_json::Value;
use tokio::io::AsyncWriteExt;
use tokio::process::{Child, Command};

fn command(server: &TestServer, arguments: &[&str]) -> Command {
    let mut command = program("baichuan");
    command
        .args(arguments)
        .env("BAICHUAN_SERVER", server.address())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

async fn run_with_stdin(server: &TestServer, arguments: &[&str], stdin: &str) -> Output {
    let mut child: Child = command(server, arguments).spawn().unwrap();
    let mut pipe = child.stdin.take().unwrap();
    pipe.write_all(stdin.as_bytes()).await.unwrap();
    drop(pipe);
    within("the program", child.wait_with_output()).await.unwrap()
}

async fn run(server: &TestServer, arguments: &[&str]) -> Output {
    run_with_stdin(server, arguments, "").await
}

/// What a successful run printed.
async fn stdout(server: &TestServer, arguments: &[&str]) -> String {
    succeeded(arguments, run(server, arguments).await)
}

fn succeeded(arguments: &[&str], output: Output) -> String {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{arguments:?}: {stderr}");
    String::from_utf8(output.stdout).unwrap()
}

fn json_lines(text: &str) -> Vec<Value> {
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

const GREEDY: [&str; 6] = ["--temperature", "0", "--max-tokens", "12", "--allow-token", "97"];

#[tokio::test]
async fn generate_prints_the_text_from_any_source() {
    let server = TestServer::fake().await;
    let expected = format!("{}\n", "a".repeat(12));
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "hello\n").unwrap();
    let from = |source: &[&'static str]| [&["generate"], source, &GREEDY].concat();
    assert_eq!(stdout(&server, &from(&["hello"])).await, expected);
    assert_eq!(stdout(&server, &from(&["hello", "--unary"])).await, expected);
    assert_eq!(stdout(&server, &from(&["--prompt-ids", "1,2,3"])).await, expected);
    let stdin = run_with_stdin(&server, &from(&[]), "hello").await;
    assert_eq!(succeeded(&["stdin"], stdin), expected);
    let path = file.path().to_str().unwrap();
    let arguments = [&["generate", "--file", path][..], &GREEDY].concat();
    assert_eq!(stdout(&server, &arguments).await, expected);
    server.stop().await;
}

#[tokio::test]
async fn with_json_every_event_is_a_line() {
    let server = TestServer::fake().await;
    let arguments = [
        &["generate", "hello", "--json", "--token-ids", "--logprobs", "1"][..],
        &GREEDY,
    ]
    .concat();
    let events = json_lines(&stdout(&server, &arguments).await);
    assert_eq!(events[0]["prompt_info"]["prompt_tokens"], 5);
    assert_eq!(events[1]["delta"]["token_ids"][0], 97);
    assert_eq!(
        events[1]["delta"]["logprobs"][0]["top"].as_array().unwrap().len(),
        1
    );
    let last = &events.last().unwrap()["finish"];
    assert_eq!(last["finish_reason"], "FINISH_REASON_LENGTH");
    assert_eq!(last["usage"]["completion_tokens"], 12);
    server.stop().await;
}

#[tokio::test]
async fn several_completions_are_told_apart() {
    let server = TestServer::fake().await;
    let arguments = [&["generate", "hello", "-n", "2"][..], &GREEDY].concat();
    let a = "a".repeat(12);
    assert_eq!(stdout(&server, &arguments).await, format!("{a}\n--- 1\n{a}\n"));
    server.stop().await;
}

#[tokio::test]
async fn chat_sends_one_message_when_nobody_types() {
    let server = TestServer::fake().await;
    let arguments = [&["chat"][..], &GREEDY].concat();
    let answer = run_with_stdin(&server, &arguments, "what now?\n").await;
    assert_eq!(succeeded(&arguments, answer), format!("{}\n", "a".repeat(12)));
    server.stop().await;
}

#[tokio::test]
async fn embed_takes_texts_or_lines() {
    let server = TestServer::fake().await;
    let texts = json_lines(&stdout(&server, &["embed", "--json", "fever", "chills"]).await);
    assert_eq!(texts.len(), 2);
    assert_eq!(texts[1]["values"].as_array().unwrap().len(), 16);
    let lines = run_with_stdin(&server, &["embed", "--json"], "fever\nchills\ncough\n").await;
    let mut lines = json_lines(&succeeded(&["embed"], lines));
    lines.sort_by_key(|line| line["index"].as_u64());
    assert_eq!(lines.len(), 3);
    assert_eq!(lines[0]["values"], texts[0]["values"]);
    let one_bad = run_with_stdin(&server, &["embed"], "fever\n\ncough\n").await;
    assert_eq!(one_bad.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&one_bad.stderr).contains("1 of 3 texts"));
    server.stop().await;
}

#[tokio::test]
async fn an_stderr_that_nobody_reads_changes_no_exit_code() {
    let server = TestServer::fake().await;
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let mut child = command(&server, &["embed"]).stderr(writer).spawn().unwrap();
    let mut pipe = child.stdin.take().unwrap();
    pipe.write_all(b"fever\n\ncough\n").await.unwrap();
    drop(pipe);
    let output = within("the program", child.wait_with_output()).await.unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(String::from_utf8(output.stdout).unwrap().lines().count(), 2);
    server.stop().await;
}

#[tokio::test]
async fn tokenize_goes_both_ways() {
    let server = TestServer::fake().await;
    assert_eq!(stdout(&server, &["tokenize", "hi!"]).await, "104,105,33\n");
    assert_eq!(
        stdout(&server, &["tokenize", "--decode", "104,105,33"]).await,
        "hi!\n"
    );
    let chat = json_lines(&stdout(&server, &["tokenize", "--chat", "--json", "hi"]).await);
    assert_eq!(chat[0]["rendered"], "<C_Q>hi<C_A>");
    server.stop().await;
}

#[tokio::test]
async fn models_load_info_and_health_tell_of_the_server() {
    let server = TestServer::fake().await;
    let models = stdout(&server, &["models"]).await;
    assert!(
        models.starts_with("NAME") && models.contains("fake *"),
        "{models}"
    );
    let model = json_lines(&stdout(&server, &["models", "fake", "--json"]).await);
    assert_eq!(model[0]["vocab_size"], 264);
    let load = json_lines(&stdout(&server, &["load", "--json"]).await);
    assert_eq!(
        (&load[0]["model"], &load[0]["running"]),
        (&"fake".into(), &0.into())
    );
    assert!(stdout(&server, &["info"]).await.contains("fake"));
    assert_eq!(stdout(&server, &["health"]).await, "SERVING\n");
    server.stop().await;
}

#[tokio::test]
async fn bench_measures_and_counts() {
    let server = TestServer::fake().await;
    let size = [
        "--requests",
        "20",
        "--concurrency",
        "4",
        "--prompt-tokens",
        "10",
        "--json",
    ];
    let arguments = [&["bench", "--max-tokens", "6"][..], &size].concat();
    let [report] = json_lines(&stdout(&server, &arguments).await).try_into().unwrap();
    assert_eq!(
        (&report["succeeded"], &report["errors"]),
        (&20.into(), &serde_json::json!({}))
    );
    assert_eq!(
        (&report["prompt_tokens"], &report["generated_tokens"]),
        (&200.into(), &120.into())
    );
    assert_eq!(report["first_token_ms"]["count"], 20);
    assert_eq!(report["between_tokens_ms"]["count"], 100);
    assert!(report["generated_tokens_per_second"].as_f64().unwrap() > 0.0);
    for quantile in ["p50", "p95", "p99"] {
        assert!(report["between_tokens_ms"][quantile].is_f64(), "{report}");
    }
    let [embed] = json_lines(&stdout(&server, &[&["bench", "--embed"][..], &size].concat()).await)
        .try_into()
        .unwrap();
    assert_eq!(
        (&embed["prompt_tokens"], &embed["generated_tokens"]),
        (&200.into(), &0.into())
    );
    assert_eq!(embed["request_ms"]["count"], 20);
    let table = stdout(
        &server,
        &[
            "bench",
            "--requests",
            "3",
            "--prompt-tokens",
            "5",
            "--max-tokens",
            "3",
        ],
    )
    .await;
    assert!(
        table.contains("between tokens") && table.contains("3 requests (0 failed)"),
        "{table}"
    );
    server.stop().await;
}

#[tokio::test]
async fn a_refusal_exits_1_and_names_the_field() {
    let server = TestServer::fake().await;
    let refused = run(&server, &["generate", "hello", "--top-p", "1.7"]).await;
    assert_eq!(refused.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("sampling.top_p"));
    let unknown = run(&server, &["generate", "hello", "--model", "nobody", "--json"]).await;
    assert_eq!(unknown.status.code(), Some(1));
    let error: Value = serde_json::from_slice(&unknown.stderr).unwrap();
    assert_eq!(error["error"]["code"], "NotFound");
    let abort = run(&server, &["abort", "nobody"]).await;
    assert_eq!(abort.status.code(), Some(1));
    let health = run(&server, &["health", "--service", "nobody"]).await;
    assert_eq!(health.status.code(), Some(1));
    server.stop().await;
}

#[tokio::test]
async fn ctrl_c_ends_the_request_on_the_server() {
    let gate = Gate::new();
    let server = TestServer::start(Setup::fake(Fake::gated(&gate))).await;
    gate.close();
    gate.allow(5);
    let mut running = command(
        &server,
        &["generate", "hello", "--max-tokens", "4000", "--ignore-eos"],
    )
    .spawn()
    .unwrap();
    drop(running.stdin.take());
    until_load(&server.client, "", |load| {
        load.running == 1 && load.generated_tokens_total >= 4
    })
    .await;
    signal(running.id().unwrap(), "INT").await;
    let output = within("the program's end", running.wait_with_output())
        .await
        .unwrap();
    assert_eq!(output.status.code(), Some(130), "{output:?}");
    gate.open();
    let load = until_idle(&server.client, "").await;
    assert!(load.generated_tokens_total < 4000, "{load:?}");
    server.stop().await;
}

#[tokio::test]
async fn abort_ends_another_programs_request() {
    let gate = Gate::new();
    let server = TestServer::start(Setup::fake(Fake::gated(&gate))).await;
    gate.close();
    gate.allow(5);
    let arguments = [
        "generate",
        "hello",
        "--json",
        "--request-id",
        "mine",
        "--max-tokens",
        "4000",
        "--ignore-eos",
    ];
    let mut running = command(&server, &arguments).spawn().unwrap();
    drop(running.stdin.take());
    until_load(&server.client, "", |load| load.running == 1).await;
    stdout(&server, &["abort", "mine"]).await;
    gate.open();
    let output = within("the program's end", running.wait_with_output())
        .await
        .unwrap();
    let events = json_lines(&succeeded(&arguments, output));
    assert_eq!(
        events.last().unwrap()["finish"]["finish_reason"],
        "FINISH_REASON_ABORTED"
    );
    server.stop().await;
}
