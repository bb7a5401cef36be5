//! A client that goes away frees what its request held, however it goes.

use baichuan_client::{Client, Event, Generation, prompt, v1};
use e2e::{Fake, Gate, Setup, TestServer, held, text, tokens, until_gone, until_idle, until_load};

/// Steps that the fake model takes before the client goes away.
const STEPS: u64 = 20;

fn named(id: &str, request: v1::GenerateRequest) -> v1::GenerateRequest {
    v1::GenerateRequest {
        request_id: id.into(),
        ..request
    }
}

async fn first_delta(generation: &mut Generation) {
    while !matches!(generation.next().await.unwrap(), Some(Event::Delta(_))) {}
}

/// Opens the gate once the server has let go of `ids`, and checks that nothing ran on and nothing stays held.
async fn nothing_runs_on(client: &Client, gate: &Gate, ids: &[&str]) {
    for id in ids {
        until_gone(client, id).await;
    }
    gate.open();
    let load = until_idle(client, "").await;
    // The step that waited at the gate goes through once it is open.
    assert!(load.steps_total <= STEPS + 1, "{load:?}");
}

#[tokio::test]
async fn dropping_the_stream_frees_its_blocks() {
    let gate = Gate::new();
    let server = TestServer::start(Setup::fake(Fake::gated(&gate))).await;
    gate.close();
    let request = named("dropped", text("Go on", 4000));
    let mut generation = server.client.generate(request).await.unwrap();
    gate.allow(STEPS);
    first_delta(&mut generation).await;
    until_load(&server.client, "", |load| held(load) > 0).await;
    drop(generation);
    nothing_runs_on(&server.client, &gate, &["dropped"]).await;
    server.stop().await;
}

#[tokio::test]
async fn a_broken_connection_frees_the_blocks_of_all_its_streams() {
    let gate = Gate::new();
    let server = TestServer::start(Setup::fake(Fake::gated(&gate))).await;
    let goes_away = server.connect().await;
    gate.close();
    let ids = ["a", "b", "c", "d", "e"];
    let mut running = Vec::new();
    for id in ids {
        let request = named(id, text("Go on", 4000));
        running.push(goes_away.generate(request).await.unwrap());
    }
    gate.allow(STEPS);
    for generation in &mut running {
        first_delta(generation).await;
    }
    // The streams and the connection's last handle go at once, as with a client that is killed.
    drop((running, goes_away));
    nothing_runs_on(&server.client, &gate, &ids).await;
    server.stop().await;
}

#[tokio::test]
async fn a_request_cancelled_in_the_queue_is_never_run() {
    let gate = Gate::new();
    let setup = Setup::fake(Fake::gated(&gate)).with("engine.max_sequences", 1);
    let server = TestServer::start(setup).await;
    gate.close();
    let mut running = server.client.generate(text("first", 30)).await.unwrap();
    assert!(matches!(
        running.next().await.unwrap(),
        Some(Event::PromptInfo(_))
    ));
    let queued = named("queued", text("second", 30));
    drop(server.client.generate(queued).await.unwrap());
    until_gone(&server.client, "queued").await;
    gate.open();
    running.collect().await.unwrap();
    let load = until_idle(&server.client, "").await;
    assert_eq!(load.prompt_tokens_total, 5, "only the first prompt was computed");
    server.stop().await;
}

#[tokio::test]
async fn a_prompt_cancelled_between_two_chunks_frees_what_it_has_so_far() {
    let gate = Gate::new();
    let setup = Setup::fake(Fake::gated(&gate)).with("engine.prefill_chunk_tokens", 16);
    let server = TestServer::start(setup).await;
    gate.close();
    let prompt: Vec<u32> = (0..1000).map(|i| i % 256).collect();
    let request = named("long", tokens(&prompt, 10));
    let generation = server.client.generate(request).await.unwrap();
    gate.allow(STEPS);
    until_load(&server.client, "", |load| load.steps_total == STEPS).await;
    drop(generation);
    nothing_runs_on(&server.client, &gate, &["long"]).await;
    server.stop().await;
}

/// Drops the call named `call`, which takes more than [`STEPS`] steps, before it answers.
async fn dropped_call<T: Send + 'static>(
    server: TestServer,
    gate: &Gate,
    call: impl Future<Output = T> + Send + 'static,
) {
    gate.close();
    let call = tokio::spawn(call);
    gate.allow(STEPS);
    until_load(&server.client, "", |load| load.steps_total == STEPS).await;
    call.abort();
    assert!(call.await.is_err_and(|error| error.is_cancelled()));
    nothing_runs_on(&server.client, gate, &["call"]).await;
    server.stop().await;
}

#[tokio::test]
async fn dropping_a_unary_call_frees_its_blocks_too() {
    let gate = Gate::new();
    let server = TestServer::start(Setup::fake(Fake::gated(&gate))).await;
    let client = server.client.clone();
    let call = async move { client.generate_unary(named("call", text("Go on", 4000))).await };
    dropped_call(server, &gate, call).await;
}

#[tokio::test]
async fn dropping_an_embedding_frees_its_blocks_too() {
    let gate = Gate::new();
    let setup = Setup::fake(Fake::gated(&gate)).with("engine.prefill_chunk_tokens", 16);
    let server = TestServer::start(setup).await;
    let client = server.client.clone();
    let request = v1::EmbedRequest {
        request_id: "call".into(),
        inputs: vec![prompt::embed_tokens([7; 1000])],
        ..Default::default()
    };
    let call = async move { client.embed(request).await };
    dropped_call(server, &gate, call).await;
}
