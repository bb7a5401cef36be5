//! Streams are kept within bounds, and what cannot be taken up is refused by name.

use baichuan_client::{Event, v1};
use e2e::{
    Fake, Gate, Setup, TestServer, Wire, from_token, kept, refusal, text, until_gone, until_idle, until_load,
    within,
};
use tonic::Code;

const LOST: &str = "baichuan_streams_lost_total";
const KEPT: &str = "baichuan_streams_kept";

/// Tokens told up to a delta.
fn told(event: Option<Event>) -> Option<u64> {
    match event.expect("the stream goes on") {
        Event::Delta(delta) => Some(delta.tokens_so_far),
        _ => None,
    }
}

fn setup(gate: &Gate) -> Setup {
    Setup::fake(Fake::gated(gate)).with("listen.admin", "127.0.0.1:0")
}

#[tokio::test]
async fn a_token_that_cannot_be_gone_on_from_is_refused_by_name() {
    let gate = Gate::new();
    let server = TestServer::start(setup(&gate).with("requests.resume_buffer_bytes", 2000)).await;
    let client = &server.client;
    let request = v1::GenerateRequest {
        output: Some(v1::OutputOptions {
            stream_interval: Some(4),
            ..Default::default()
        }),
        ..kept("over", 400)
    };
    // Read as it comes, or the buffer were full of what was not read.
    gate.close();
    let mut stream = client.generate(request).await.unwrap();
    for tokens in (40..=400).step_by(40) {
        gate.allow(40);
        while told(within("an event", stream.next()).await.unwrap()) < Some(tokens) {}
    }
    gate.open();
    while within("the end", stream.next()).await.unwrap().is_some() {}
    let table = [
        (from_token("over", 401), Code::OutOfRange, "TOKENS_NOT_TOLD"),
        (
            from_token("over", 1),
            Code::FailedPrecondition,
            "TOKENS_FORGOTTEN",
        ),
        (from_token("nobody", 1), Code::NotFound, "STREAM_NOT_FOUND"),
    ];
    for (request, code, reason) in table {
        let refused = refusal(client.generate(request).await);
        assert_eq!(
            (refused.code, refused.reason.as_deref()),
            (code, Some(reason)),
            "{refused:?}"
        );
        assert!(refused.message.contains("resume_from_token"), "{refused:?}");
        if code != Code::NotFound {
            assert_eq!(refused.violations[0].field, "resume_from_token");
        }
    }
    let inside = refusal(client.generate(from_token("over", 398)).await);
    assert_eq!(
        (inside.code, inside.violations[0].field.as_str()),
        (Code::InvalidArgument, "resume_from_token")
    );
    assert!(inside.message.contains("400"), "{inside:?}");
    let bad_id = refusal(client.generate(from_token("no spaces", 1)).await);
    assert_eq!(bad_id.violations[0].field, "request_id");
    let unary = refusal(client.generate_unary(kept("unary", 3)).await);
    assert_eq!(
        (unary.code, unary.violations[0].field.as_str()),
        (Code::InvalidArgument, "request.resume_from_token")
    );
    // What the last messages tell is there.
    let end = client.generate(from_token("over", 396)).await.unwrap().collect();
    assert_eq!(end.await.unwrap().choices[0].finish.as_ref().unwrap().index, 0);
    server.stop().await;
}

#[tokio::test]
async fn a_stream_that_nobody_reads_for_too_much_of_it_ends() {
    let gate = Gate::new();
    let setup = setup(&gate)
        .with("requests.resume_buffer_bytes", 4000)
        .with("requests.resume_window", "1h");
    let server = TestServer::start(setup).await;
    let wire = Wire::to(server.address).await;
    gate.close();
    let mut stream = wire.connect().await.generate(kept("long", 4000)).await.unwrap();
    gate.allow(3);
    while told(within("an event", stream.next()).await.unwrap()) < Some(3) {}
    wire.cut();
    server.until_metric(LOST, 1.0).await;
    gate.open();
    let load = until_idle(&server.client, "").await;
    assert!(load.generated_tokens_total < 1000, "{load:?}");
    let resumed = server.client.generate(from_token("long", 3)).await.unwrap();
    let refused = refusal(within("the end", resumed.collect()).await);
    assert_eq!(
        (refused.code, refused.reason.as_deref()),
        (Code::ResourceExhausted, Some("SLOW_CLIENT"))
    );
    server.stop().await;
}

#[tokio::test]
async fn who_stays_and_does_not_read_is_cut_off_too() {
    let setup = Setup::fake(Fake::default())
        .with("requests.resume_buffer_bytes", 64 << 10)
        .with("grpc.max_send_buffer_bytes", 1024);
    let server = TestServer::start(setup).await;
    let slow = server.connect().await;
    let mut request = kept("unread", 4000);
    // Megabytes: more than the client's flow-control window holds.
    request.sampling.as_mut().unwrap().n = Some(8);
    request.output = Some(v1::OutputOptions {
        logprobs: Some(20),
        ..Default::default()
    });
    let unread = slow.generate(request).await.unwrap();
    until_load(&server.client, "", |load| load.generated_tokens_total > 0).await;
    let load = until_idle(&server.client, "").await;
    assert!(load.generated_tokens_total < 8 * 4000, "{load:?}");
    let refused = refusal(within("the end", unread.collect()).await);
    assert_eq!(
        (refused.code, refused.reason.as_deref()),
        (Code::ResourceExhausted, Some("SLOW_CLIENT"))
    );
    server.stop().await;
}

#[tokio::test]
async fn only_so_many_streams_are_kept_and_the_longest_ended_make_room() {
    let gate = Gate::new();
    let setup = setup(&gate)
        .with("requests.resume_streams", 3)
        .with("requests.resume_window", "1h");
    let server = TestServer::start(setup).await;
    let client = &server.client;
    for id in ["a", "b", "c", "d"] {
        client
            .generate(kept(id, 3))
            .await
            .unwrap()
            .collect()
            .await
            .unwrap();
    }
    assert_eq!(server.metric(KEPT).await, 3.0);
    assert_eq!(
        refusal(client.generate(from_token("a", 1)).await).code,
        Code::NotFound
    );
    client
        .generate(from_token("b", 1))
        .await
        .unwrap()
        .collect()
        .await
        .unwrap();
    gate.close();
    let mut running = Vec::new();
    for id in ["e", "f", "g"] {
        running.push(client.generate(kept(id, 3)).await.unwrap());
    }
    let refused = refusal(client.generate(kept("h", 3)).await);
    assert_eq!(refused.code, Code::ResourceExhausted);
    assert!(refused.retry_delay.is_some(), "{refused:?}");
    // Who does not ask for it is served.
    gate.open();
    client
        .generate(text("x", 3))
        .await
        .unwrap()
        .collect()
        .await
        .unwrap();
    for generation in running {
        generation.collect().await.unwrap();
    }
    server.stop().await;
}

#[tokio::test]
async fn one_tenant_keeps_its_share_of_streams_at_most() {
    let gate = Gate::new();
    let setup = setup(&gate)
        .with("requests.resume_streams", 4)
        .with("tenants.anonymous.queue_share", 0.5);
    let server = TestServer::start(setup).await;
    gate.close();
    let a = server.client.generate(kept("a", 3)).await.unwrap();
    let b = server.client.generate(kept("b", 3)).await.unwrap();
    let refused = refusal(server.client.generate(kept("c", 3)).await);
    assert_eq!(
        (refused.code, refused.reason.as_deref()),
        (Code::ResourceExhausted, Some("TENANT_QUOTA"))
    );
    gate.open();
    a.collect().await.unwrap();
    b.collect().await.unwrap();
    server.stop().await;
}

#[tokio::test]
async fn a_broken_connection_cancels_what_was_not_to_be_kept() {
    let gate = Gate::new();
    let server = TestServer::start(setup(&gate)).await;
    let wire = Wire::to(server.address).await;
    gate.close();
    let plain = v1::GenerateRequest {
        request_id: "plain".into(),
        ..text("Go on", 4000)
    };
    let mut stream = wire.connect().await.generate(plain).await.unwrap();
    gate.allow(5);
    while !matches!(stream.next().await.unwrap(), Some(Event::Delta(_))) {}
    wire.cut();
    until_gone(&server.client, "plain").await;
    gate.open();
    let load = until_idle(&server.client, "").await;
    assert!(load.generated_tokens_total < 100, "{load:?}");
    assert_eq!(server.metric(LOST).await, 0.0);
    server.stop().await;
}

#[tokio::test]
async fn the_operator_can_have_every_stream_kept_or_none() {
    let gate = Gate::new();
    let server = TestServer::start(setup(&gate).with("requests.resume", "always")).await;
    let wire = Wire::to(server.address).await;
    gate.close();
    let plain = v1::GenerateRequest {
        request_id: "plain".into(),
        ..text("Go on", 50)
    };
    let mut stream = wire.connect().await.generate(plain).await.unwrap();
    gate.allow(5);
    while !matches!(stream.next().await.unwrap(), Some(Event::Delta(_))) {}
    wire.cut();
    server.until_metric(LOST, 1.0).await;
    gate.open();
    let rest = server.client.generate(from_token("plain", 1)).await.unwrap();
    assert_eq!(rest.collect().await.unwrap().choices[0].token_ids.len(), 49);
    server.stop().await;

    let server = TestServer::start(Setup::fake(Fake::default()).with("requests.resume", "off")).await;
    let refused = refusal(server.client.generate(kept("off", 3)).await);
    assert_eq!(refused.code, Code::Unimplemented);
    assert!(refused.message.contains("resume_from_token"), "{refused:?}");
    server.stop().await;
}
