//! A stream whose connection breaks is taken up again from its next token, by its own tenant, while it is kept.

use std::time::Duration;

use baichuan_client::{Client, Completion, Event, Generation, v1};
use baichuan_server::{fresh_token, token_entry};
use e2e::{Fake, Gate, Setup, TestServer, Wire, from_token, kept, refusal, text, until_idle, within};
use tonic::Code;

const TOKENS: u32 = 60;
const LOST: &str = "baichuan_streams_lost_total";
const RESUMED: &str = "baichuan_streams_resumed_total";
const EXPIRED: &str = "baichuan_streams_expired_total";

fn setup(gate: &Gate) -> Setup {
    Setup::fake(Fake::gated(gate)).with("listen.admin", "127.0.0.1:0")
}

/// What an uncut stream tells.
async fn whole(client: &Client, request: v1::GenerateRequest) -> Completion {
    client.generate(request).await.unwrap().collect().await.unwrap()
}

/// Reads until so many tokens have come.
async fn read(generation: &mut Generation, tokens: u64) -> Completion {
    let mut completion = Completion::default();
    loop {
        let event = within("an event", generation.next()).await.unwrap();
        let event = event.expect("the stream goes on");
        let told = match &event {
            Event::Delta(delta) => delta.tokens_so_far,
            _ => 0,
        };
        completion.push(event);
        if told >= tokens {
            return completion;
        }
    }
}

/// Reads until the connection's loss is noticed, and adds what still came. How many tokens there are then.
async fn until_lost(generation: &mut Generation, completion: &mut Completion) -> u64 {
    while let Ok(event) = within("the loss", generation.next()).await {
        completion.push(event.expect("the stream is cut"));
    }
    completion.choices.iter().map(|c| c.token_ids.len() as u64).sum()
}

async fn rest(generation: Generation, completion: &mut Completion) {
    let mut generation = generation;
    while let Some(event) = within("the rest", generation.next()).await.unwrap() {
        completion.push(event);
    }
}

fn assert_same(parts: &Completion, whole: &Completion) {
    assert_eq!(parts.choices.len(), whole.choices.len());
    for (part, whole) in parts.choices.iter().zip(&whole.choices) {
        assert_eq!(part.token_ids, whole.token_ids);
        assert_eq!(part.text, whole.text);
        let (part, whole) = (part.finish.as_ref().unwrap(), whole.finish.as_ref().unwrap());
        assert_eq!(part.finish_reason, whole.finish_reason);
        assert_eq!(part.usage, whole.usage);
    }
}

#[tokio::test]
async fn a_cut_stream_goes_on_with_its_next_token_and_yields_what_an_uncut_one_does() {
    let gate = Gate::new();
    let server = TestServer::start(setup(&gate)).await;
    let whole = whole(&server.client, text("Go on", TOKENS)).await;
    let wire = Wire::to(server.address).await;
    gate.close();
    let mut stream = wire.connect().await.generate(kept("cut", TOKENS)).await.unwrap();
    gate.allow(20);
    let mut parts = read(&mut stream, 10).await;
    wire.cut();
    let token = until_lost(&mut stream, &mut parts).await;
    server.until_metric(LOST, 1.0).await;
    // It is generated while nobody reads.
    gate.open();
    until_idle(&server.client, "").await;
    let resumed = server.client.generate(from_token("cut", token)).await.unwrap();
    assert_eq!(resumed.request_id(), "cut");
    rest(resumed, &mut parts).await;
    assert_same(&parts, &whole);
    assert_eq!(server.metric(RESUMED).await, 1.0);
    server.stop().await;
}

#[tokio::test]
async fn several_completions_are_taken_up_together_and_none_ends_twice_in_tokens() {
    let gate = Gate::new();
    let server = TestServer::start(setup(&gate)).await;
    let several = |request: v1::GenerateRequest| {
        let sampling = v1::SamplingParams {
            n: Some(3),
            temperature: Some(1.0),
            seed: Some(5),
            ..Default::default()
        };
        v1::GenerateRequest {
            sampling: Some(sampling),
            ..request
        }
    };
    let whole = whole(&server.client, several(text("Go on", 30))).await;
    let wire = Wire::to(server.address).await;
    gate.close();
    let client = wire.connect().await;
    let mut stream = client.generate(several(kept("cut", 30))).await.unwrap();
    gate.allow(12);
    let mut parts = read(&mut stream, 9).await;
    wire.cut();
    let token = until_lost(&mut stream, &mut parts).await;
    gate.open();
    let resumed = server.client.generate(from_token("cut", token)).await.unwrap();
    rest(resumed, &mut parts).await;
    assert_same(&parts, &whole);
    server.stop().await;
}

#[tokio::test]
async fn what_was_lost_on_the_way_is_told_again() {
    let gate = Gate::new();
    let server = TestServer::start(setup(&gate)).await;
    let wire = Wire::to(server.address).await;
    gate.close();
    let mut stream = wire.connect().await.generate(kept("cut", TOKENS)).await.unwrap();
    gate.allow(20);
    let first = read(&mut stream, 15).await;
    wire.cut();
    server.until_metric(LOST, 1.0).await;
    gate.open();
    // As if messages had been on their way: the caller has fewer than were sent.
    for token in [0, 7, 15] {
        let mut parts = Completion::default();
        rest(
            server.client.generate(from_token("cut", token)).await.unwrap(),
            &mut parts,
        )
        .await;
        let ids = &parts.choices[0].token_ids;
        assert_eq!(ids.len() as u64, u64::from(TOKENS) - token);
        assert_eq!(
            ids[..15 - token as usize],
            first.choices[0].token_ids[token as usize..15]
        );
        assert_eq!(parts.info.is_some(), token == 0);
    }
    // Even when it has ended, its end can have been lost.
    let mut end = Completion::default();
    let all = server
        .client
        .generate(from_token("cut", TOKENS.into()))
        .await
        .unwrap();
    rest(all, &mut end).await;
    assert!(end.choices[0].token_ids.is_empty() && end.choices[0].finish.is_some());
    server.stop().await;
}

#[tokio::test]
async fn beginning_again_is_taking_up_from_the_start_but_only_with_the_same_request() {
    let gate = Gate::new();
    let server = TestServer::start(setup(&gate)).await;
    gate.close();
    let wire = Wire::to(server.address).await;
    let mut stream = wire
        .connect()
        .await
        .generate(kept("begun", TOKENS))
        .await
        .unwrap();
    gate.allow(5);
    let first = read(&mut stream, 3).await;
    wire.cut();
    server.until_metric(LOST, 1.0).await;
    let other = v1::GenerateRequest {
        prompt: Some(baichuan_client::prompt::text("Something else")),
        ..kept("begun", TOKENS)
    };
    let refused = refusal(server.client.generate(other).await);
    assert_eq!(
        (refused.code, refused.violations[0].field.as_str()),
        (Code::InvalidArgument, "request_id")
    );
    gate.open();
    let again = server.client.generate(kept("begun", TOKENS)).await.unwrap();
    let again = within("the stream", again.collect()).await.unwrap();
    assert_eq!(again.choices[0].token_ids.len() as u32, TOKENS);
    assert_eq!(again.choices[0].token_ids[..3], first.choices[0].token_ids[..3]);
    let load = until_idle(&server.client, "").await;
    assert_eq!(load.prompt_tokens_total, 5, "the prompt was computed once");
    server.stop().await;
}

#[tokio::test]
async fn a_second_reader_takes_over_from_one_that_hangs() {
    let gate = Gate::new();
    let server = TestServer::start(setup(&gate)).await;
    gate.close();
    let mut first = server.client.generate(kept("moved", TOKENS)).await.unwrap();
    gate.allow(5);
    let mut parts = read(&mut first, 3).await;
    let second = server
        .connect()
        .await
        .generate(from_token("moved", 3))
        .await
        .unwrap();
    let error = loop {
        match within("the end of the first", first.next()).await {
            Ok(event) => assert!(event.is_some()),
            error => break refusal(error),
        }
    };
    assert_eq!(
        (error.code, error.reason.as_deref()),
        (Code::Aborted, Some("STREAM_TAKEN_UP"))
    );
    drop(first);
    gate.open();
    rest(second, &mut parts).await;
    assert_eq!(parts.choices[0].token_ids.len() as u32, TOKENS);
    server.stop().await;
}

#[tokio::test]
async fn another_tenant_finds_nothing_and_cannot_tell() {
    let gate = Gate::new();
    let dir = tempfile::tempdir().unwrap();
    let (own, others) = (fresh_token().unwrap(), fresh_token().unwrap());
    let entries = [("own", &own, "clinic"), ("others", &others, "lab")]
        .map(|(name, token, tenant)| token_entry(token, name, tenant).unwrap());
    std::fs::write(dir.path().join("tokens.toml"), entries.concat()).unwrap();
    let setup = setup(&gate)
        .with("auth.tokens", dir.path().join("tokens.toml").display())
        .with("tenants.clinic.weight", 1)
        .with("tenants.lab.weight", 1)
        .token(&own);
    let server = TestServer::start(setup).await;
    let wire = Wire::to(server.address).await;
    gate.close();
    let client = wire.connect_as(Some(&own)).await;
    let mut stream = client.generate(kept("secret", TOKENS)).await.unwrap();
    gate.allow(5);
    let mut parts = read(&mut stream, 3).await;
    wire.cut();
    server.until_metric(LOST, 1.0).await;
    let stranger = server.connect_as(Some(&others)).await;
    for token in [1, 3, 1000] {
        let told = |id: &str, refused: baichuan_client::Refusal| {
            let said = (
                refused.code,
                refused.reason.clone(),
                refused.message.replace(id, "ID"),
            );
            assert_eq!(said.0, Code::NotFound, "{refused:?}");
            said
        };
        let there = refusal(stranger.generate(from_token("secret", token)).await);
        let nowhere = refusal(stranger.generate(from_token("nothing", token)).await);
        assert_eq!(told("secret", there), told("nothing", nowhere));
    }
    // From the start it is a request of the stranger's own, with a prompt or without.
    let refused = refusal(stranger.generate(from_token("secret", 0)).await);
    assert_eq!(refused.violations[0].field, "prompt", "{refused:?}");
    gate.open();
    let theirs = stranger.generate(kept("secret", 7)).await.unwrap();
    assert_eq!(theirs.collect().await.unwrap().choices[0].token_ids.len(), 7);
    rest(
        server.client.generate(from_token("secret", 3)).await.unwrap(),
        &mut parts,
    )
    .await;
    assert_eq!(parts.choices[0].token_ids.len() as u32, TOKENS);
    drop((stranger, client));
    server.stop().await;
}

#[tokio::test]
async fn a_stream_that_nobody_takes_up_in_time_is_cancelled_and_frees_its_blocks() {
    let gate = Gate::new();
    let server = TestServer::start(setup(&gate).with("requests.resume_window", "50ms")).await;
    let wire = Wire::to(server.address).await;
    gate.close();
    let mut stream = wire.connect().await.generate(kept("late", 4000)).await.unwrap();
    gate.allow(5);
    read(&mut stream, 3).await;
    wire.cut();
    server.until_metric(EXPIRED, 1.0).await;
    gate.open();
    let load = until_idle(&server.client, "").await;
    assert!(load.generated_tokens_total < 4000, "{load:?}");
    let refused = refusal(server.client.generate(from_token("late", 3)).await);
    assert_eq!(
        (refused.code, refused.reason.as_deref()),
        (Code::NotFound, Some("STREAM_NOT_FOUND"))
    );
    server.stop().await;
}

#[tokio::test]
async fn a_draining_server_lets_a_lost_stream_be_taken_up_and_finished() {
    let gate = Gate::new();
    let server = TestServer::start(setup(&gate)).await;
    let client = server.connect().await;
    let wire = Wire::to(server.address).await;
    gate.close();
    let mut stream = wire
        .connect()
        .await
        .generate(kept("drained", TOKENS))
        .await
        .unwrap();
    gate.allow(5);
    let mut parts = read(&mut stream, 3).await;
    wire.cut();
    server.until_metric(LOST, 1.0).await;
    server.ask_to_end();
    let draining = async { while !client.server_info().await.unwrap().draining {} };
    within("the drain", draining).await;
    let refused = refusal(client.generate(kept("new", 3)).await);
    assert_eq!(refused.code, Code::Unavailable);
    let token = until_lost(&mut stream, &mut parts).await;
    // Whole before its caller is back: it is waited for all the same.
    gate.open();
    until_idle(&client, "").await;
    let resumed = client.generate(from_token("drained", token)).await.unwrap();
    rest(resumed, &mut parts).await;
    assert_eq!(parts.choices[0].token_ids.len() as u32, TOKENS);
    drop(client);
    server.ended().await;
}

#[tokio::test]
async fn the_deadline_counts_on_while_nobody_reads() {
    let gate = Gate::new();
    let server = TestServer::start(setup(&gate)).await;
    let wire = Wire::to(server.address).await;
    gate.close();
    let request = v1::GenerateRequest {
        time_limit_ms: Some(400),
        ..kept("timed", 4000)
    };
    let mut stream = wire.connect().await.generate(request).await.unwrap();
    gate.allow(5);
    let mut parts = read(&mut stream, 3).await;
    wire.cut();
    let token = until_lost(&mut stream, &mut parts).await;
    // No later limit puts it off.
    let request = v1::GenerateRequest {
        time_limit_ms: Some(3_600_000),
        ..from_token("timed", token)
    };
    let mut resumed = server.client.generate(request).await.unwrap();
    let refused = loop {
        match within("the deadline", resumed.next()).await {
            Ok(event) => parts.push(event.expect("an error ends it")),
            error => break refusal(error),
        }
    };
    assert_eq!(refused.code, Code::DeadlineExceeded);
    let choice = &parts.choices[0];
    let finish = choice.finish.as_ref().unwrap();
    assert_eq!(finish.finish_reason(), v1::FinishReason::TimeLimit);
    assert_eq!(
        finish.usage.unwrap().completion_tokens as usize,
        choice.token_ids.len()
    );
    gate.open();
    until_idle(&server.client, "").await;
    server.stop().await;
}

#[tokio::test]
async fn whoever_takes_up_can_set_an_earlier_deadline() {
    let gate = Gate::new();
    let server = TestServer::start(setup(&gate)).await;
    gate.close();
    let mut stream = server.client.generate(kept("hurried", 4000)).await.unwrap();
    gate.allow(5);
    read(&mut stream, 3).await;
    let request = v1::GenerateRequest {
        time_limit_ms: Some(50),
        ..from_token("hurried", 3)
    };
    let resumed = server.client.generate(request).await.unwrap();
    let refused = refusal(within("the deadline", resumed.collect()).await);
    assert_eq!(refused.code, Code::DeadlineExceeded);
    gate.open();
    until_idle(&server.client, "").await;
    drop(stream);
    server.stop().await;
}

#[tokio::test]
async fn who_ends_the_call_ends_the_request_however_long_streams_are_kept() {
    let gate = Gate::new();
    let server = TestServer::start(setup(&gate).with("requests.resume_window", "1h")).await;
    for id in ["reset", "reset and gone"].map(|id| id.replace(' ', "-")) {
        gate.close();
        let client = server.connect().await;
        let mut stream = client.generate(kept(&id, 4000)).await.unwrap();
        gate.allow(5);
        read(&mut stream, 3).await;
        // RST_STREAM; then also the end of the connection, right behind it.
        drop(stream);
        if id != "reset" {
            drop(client);
        }
        let taken_up = async {
            while server.client.generate(from_token(&id, 1)).await.is_ok() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        within("the end of the request", taken_up).await;
        gate.open();
        let load = until_idle(&server.client, "").await;
        assert!(load.generated_tokens_total < 1000, "{load:?}");
    }
    assert_eq!(server.metric(LOST).await, 0.0);
    server.stop().await;
}

#[tokio::test]
async fn abort_ends_a_stream_that_nobody_reads() {
    let gate = Gate::new();
    let server = TestServer::start(setup(&gate).with("requests.resume_window", "1h")).await;
    let wire = Wire::to(server.address).await;
    gate.close();
    let mut stream = wire
        .connect()
        .await
        .generate(kept("aborted", 4000))
        .await
        .unwrap();
    gate.allow(5);
    let mut parts = read(&mut stream, 3).await;
    wire.cut();
    let token = until_lost(&mut stream, &mut parts).await;
    server.until_metric(LOST, 1.0).await;
    server.client.abort("aborted").await.unwrap();
    gate.open();
    until_idle(&server.client, "").await;
    let resumed = server
        .client
        .generate(from_token("aborted", token))
        .await
        .unwrap();
    rest(resumed, &mut parts).await;
    let finish = parts.choices[0].finish.as_ref().unwrap();
    assert_eq!(finish.finish_reason(), v1::FinishReason::Aborted);
    server.stop().await;
}
