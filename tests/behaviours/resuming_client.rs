//! The client library and the program take a broken stream up again by themselves.

use std::process::Stdio;
use std::time::Duration;

use baichuan_client::Completion;
use e2e::{Fake, Gate, Setup, TestServer, Wire, program, signal, text, until_idle, until_load, within};
use tokio::io::AsyncReadExt;
use tokio::process::Command;

const PATIENCE: Duration = Duration::from_secs(60);
const LOST: &str = "baichuan_streams_lost_total";
const RESUMED: &str = "baichuan_streams_resumed_total";

fn setup(gate: &Gate) -> Setup {
    Setup::fake(Fake::gated(gate)).with("listen.admin", "127.0.0.1:0")
}

async fn whole(server: &TestServer, max_tokens: u32) -> Completion {
    let generation = server.client.generate(text("Go on", max_tokens)).await.unwrap();
    generation.collect().await.unwrap()
}

#[tokio::test]
async fn a_stream_cut_again_and_again_comes_whole() {
    let gate = Gate::new();
    let server = TestServer::start(setup(&gate)).await;
    let whole = whole(&server, 60).await;
    let wire = Wire::to(server.address).await;
    gate.close();
    let client = wire.connect().await;
    let request = text("Go on", 60);
    let mut generation = client.generate_resumable(request, PATIENCE).await.unwrap();
    let mut parts = Completion::default();
    for cut in 1..=4 {
        gate.allow(10);
        while parts.choices.first().map_or(0, |c| c.token_ids.len()) < cut * 10 - 2 {
            parts.push(within("an event", generation.next()).await.unwrap().unwrap());
        }
        wire.cut();
        server.until_metric(LOST, cut as f64).await;
    }
    gate.open();
    while let Some(event) = within("the rest", generation.next()).await.unwrap() {
        parts.push(event);
    }
    assert_eq!(parts.choices[0].token_ids, whole.choices[0].token_ids);
    assert_eq!(parts.choices[0].text, whole.choices[0].text);
    drop((generation, client));
    server.stop().await;
}

#[tokio::test]
async fn a_stream_outlives_a_connection_that_the_server_asks_to_go() {
    let gate = Gate::new();
    let setup = setup(&gate)
        .with("grpc.max_connection_age", "300ms")
        .with("grpc.max_connection_age_grace", "100ms");
    let patient = TestServer::fake().await;
    let whole = whole(&patient, 60).await;
    patient.stop().await;
    let server = TestServer::start(setup).await;
    gate.close();
    let client = server.connect().await;
    let request = text("Go on", 60);
    let generation = client.generate_resumable(request, PATIENCE).await.unwrap();
    let collected = tokio::spawn(generation.collect());
    gate.allow(10);
    server.until_metric(LOST, 1.0).await;
    gate.allow(10);
    server.until_metric(LOST, 2.0).await;
    gate.open();
    let parts = within("the stream", collected).await.unwrap().unwrap();
    assert_eq!(parts.choices[0].token_ids, whole.choices[0].token_ids);
    drop(client);
    server.stop().await;
}

#[tokio::test]
async fn a_stream_whose_server_ends_is_finished_by_another() {
    let gate = Gate::new();
    let server = TestServer::start(setup(&gate).with("shutdown.drain_timeout", "50ms")).await;
    let other = TestServer::fake().await;
    let request = || {
        let mut request = text("Go on", 60);
        // The seed that the client draws is the same for both.
        request.sampling.as_mut().unwrap().temperature = Some(1.0);
        request.sampling.as_mut().unwrap().n = Some(2);
        request
    };
    let wire = Wire::to(server.address).await;
    gate.close();
    let client = wire.connect().await;
    let mut generation = client.generate_resumable(request(), PATIENCE).await.unwrap();
    let mut parts = Completion::default();
    gate.allow(10);
    while parts.choices.get(1).map_or(0, |c| c.token_ids.len()) < 5 {
        parts.push(within("an event", generation.next()).await.unwrap().unwrap());
    }
    let seed = parts.info.as_ref().unwrap().seed;
    wire.lead_to(other.address);
    server.ask_to_end();
    // Once the stream is ended, so that the engine's thread can be.
    let ended = async {
        server
            .until_metric("baichuan_requests_rejected_total{reason=\"unavailable\"}", 1.0)
            .await;
        gate.open();
    };
    let rest = async {
        while let Some(event) = within("the rest", generation.next()).await.unwrap() {
            parts.push(event);
        }
    };
    tokio::join!(ended, rest);
    drop((generation, client));
    server.ended().await;
    let mut same = request();
    same.sampling.as_mut().unwrap().seed = Some(seed);
    let whole = other
        .client
        .generate(same)
        .await
        .unwrap()
        .collect()
        .await
        .unwrap();
    for (part, whole) in parts.choices.iter().zip(&whole.choices) {
        assert_eq!((&part.token_ids, &part.text), (&whole.token_ids, &whole.text));
        assert_eq!(part.token_ids.len(), 60);
    }
    assert_eq!(parts.choices.len(), 2);
    other.stop().await;
}

#[tokio::test]
async fn where_nobody_answers_any_more_the_loss_is_told() {
    let gate = Gate::new();
    let server = TestServer::start(setup(&gate).with("requests.resume_window", "100ms")).await;
    let wire = Wire::to(server.address).await;
    gate.close();
    let client = wire.connect().await;
    let request = text("Go on", 60);
    let patience = Duration::from_millis(200);
    let mut generation = client.generate_resumable(request, patience).await.unwrap();
    gate.allow(3);
    within("an event", generation.next()).await.unwrap().unwrap();
    drop(wire);
    let error = loop {
        match within("the loss", generation.next()).await {
            Ok(event) => assert!(event.is_some()),
            Err(error) => break error,
        }
    };
    assert!(error.code().is_some(), "{error:?}");
    gate.open();
    drop((generation, client));
    server.stop().await;
}

#[tokio::test]
async fn a_stream_that_breaks_again_before_anything_new_comes_is_not_taken_up_for_ever() {
    let gate = Gate::new();
    let server = TestServer::start(setup(&gate)).await;
    let wire = Wire::to(server.address).await;
    gate.close();
    let client = wire.connect().await;
    let patience = Duration::from_secs(1);
    let request = text("Go on", 60);
    let mut generation = client.generate_resumable(request, patience).await.unwrap();
    gate.allow(3);
    within("an event", generation.next()).await.unwrap().unwrap();
    // As behind a proxy that takes every call and loses it.
    let breaks = async {
        wire.cut();
        for resumed in 1.. {
            server.until_metric(RESUMED, f64::from(resumed)).await;
            // Pauses are 50 ms, and twice as long each time: a second has room for four.
            assert!(resumed < 10, "taken up again without a pause, or for ever");
            wire.cut();
        }
    };
    let loss = async {
        loop {
            match within("the loss", generation.next()).await {
                Ok(event) => assert!(event.is_some()),
                Err(error) => break error,
            }
        }
    };
    let error = tokio::select! {
        error = loss => error,
        () = breaks => unreachable!("it goes on until the loss is told"),
    };
    assert!(error.code().is_some(), "{error:?}");
    gate.open();
    drop((generation, client));
    server.stop().await;
}

fn baichuan(wire: &Wire, arguments: &[&str]) -> Command {
    let mut command = program("baichuan");
    command
        .args([
            "generate",
            "Go on",
            "--temperature",
            "0",
            "--ignore-eos",
            // For as long as it takes: no time is too long to be counted.
            "--resume=18446744073709551615",
        ])
        .args(arguments)
        .env("BAICHUAN_SERVER", wire.address.to_string())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

#[tokio::test]
async fn the_program_prints_a_cut_answer_whole() {
    let gate = Gate::new();
    let server = TestServer::start(setup(&gate)).await;
    let whole = whole(&server, 60).await;
    let wire = Wire::to(server.address).await;
    gate.close();
    let running = baichuan(&wire, &["--max-tokens", "60"]).spawn().unwrap();
    gate.allow(20);
    until_load(&server.client, "", |load| load.generated_tokens_total >= 60 + 10).await;
    wire.cut();
    server.until_metric(LOST, 1.0).await;
    gate.open();
    let output = within("the program", running.wait_with_output()).await.unwrap();
    assert!(output.status.success(), "{output:?}");
    let printed = String::from_utf8(output.stdout).unwrap();
    assert_eq!(printed, format!("{}\n", whole.choices[0].text));
    server.stop().await;
}

#[tokio::test]
async fn ctrl_c_ends_a_kept_request_on_the_server_too() {
    let gate = Gate::new();
    let server = TestServer::start(setup(&gate).with("requests.resume_window", "1h")).await;
    let wire = Wire::to(server.address).await;
    gate.close();
    let running = baichuan(&wire, &["--max-tokens", "4000"]).spawn().unwrap();
    gate.allow(20);
    until_load(&server.client, "", |load| load.generated_tokens_total >= 10).await;
    signal(running.id().unwrap(), "INT").await;
    let output = within("the program", running.wait_with_output()).await.unwrap();
    assert_eq!(output.status.code(), Some(130), "{output:?}");
    gate.open();
    let load = until_idle(&server.client, "").await;
    assert!(load.generated_tokens_total < 1000, "{load:?}");
    server.stop().await;
}

#[tokio::test]
async fn an_output_that_nobody_reads_any_more_ends_a_kept_request_on_the_server_too() {
    let gate = Gate::new();
    let server = TestServer::start(setup(&gate).with("requests.resume_window", "1h")).await;
    let wire = Wire::to(server.address).await;
    gate.close();
    let mut running = baichuan(&wire, &["--max-tokens", "4000"]).spawn().unwrap();
    gate.allow(20);
    let mut stdout = running.stdout.take().unwrap();
    within("some text", stdout.read_u8()).await.unwrap();
    // As `| head` does.
    drop(stdout);
    gate.allow(100);
    let output = within("the program", running.wait_with_output()).await.unwrap();
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    gate.open();
    let load = until_idle(&server.client, "").await;
    assert!(load.generated_tokens_total < 1000, "{load:?}");
    server.stop().await;
}
