//! A model that panics or hangs ends its requests and the server's readiness; it is made anew once, or the server
//! ends, as configured.

use baichuan_client::{Client, Health, v1};
use baichuan_server::ServeError;
use e2e::{Fake, Gate, Setup, TestServer, refusal, text, until_ready, within};
use tonic::Code;

async fn until(watch: &mut baichuan_client::HealthWatch, wanted: Health) {
    let seen = async { while watch.next().await.unwrap().expect("a watch goes on") != wanted {} };
    within("the change of health", seen).await;
}

/// Breaks the model under a request, which must end as unavailable.
async fn broken(server: &TestServer, gate: &Gate) {
    gate.close();
    let running = server.client.generate(text("x", 50)).await.unwrap();
    gate.allow(3);
    gate.break_model();
    let refused = refusal(within("the end", running.collect()).await);
    assert_eq!(
        (refused.code, refused.reason.as_deref()),
        (Code::Unavailable, Some("ENGINE_STOPPED"))
    );
    assert!(refused.retry_delay.is_some());
}

async fn other_model_serves(server: &TestServer) {
    let request = v1::GenerateRequest {
        model: "other".into(),
        ..text("x", 5)
    };
    let answer = server.client.generate_unary(request).await.unwrap();
    assert_eq!(answer.choices[0].token_ids.len(), 5);
}

#[tokio::test]
async fn the_server_is_not_ready_while_the_model_is_made_anew_and_then_serves_again() {
    let gate = Gate::new();
    let setup = Setup::fake(Fake::gated(&gate)).and_fake("other", Fake::default());
    let server = TestServer::start(setup).await;
    let mut ready = server.client.watch_health(Client::READINESS).await.unwrap();
    broken(&server, &gate).await;
    // The gate holds the step that warms the model up.
    until(&mut ready, Health::NotServing).await;
    assert_eq!(
        server.client.health("").await.unwrap(),
        Health::Serving,
        "it lives"
    );
    other_model_serves(&server).await;
    gate.open();
    until(&mut ready, Health::Serving).await;
    let answer = server.client.generate_unary(text("late", 5)).await.unwrap();
    assert_eq!(answer.choices[0].token_ids.len(), 5);
    drop(ready);
    server.stop().await;
}

#[tokio::test]
async fn a_model_that_breaks_again_is_given_up_and_the_others_are_none_the_worse() {
    let gate = Gate::new();
    let setup = Setup::fake(Fake::gated(&gate)).and_fake("other", Fake::default());
    let server = TestServer::start(setup).await;
    broken(&server, &gate).await;
    gate.open();
    until_ready(&server.client).await;
    let mut ready = server.client.watch_health(Client::READINESS).await.unwrap();
    let mut live = server.client.watch_health("").await.unwrap();
    broken(&server, &gate).await;
    until(&mut ready, Health::NotServing).await;
    // It is given up a moment after it broke.
    until(&mut live, Health::NotServing).await;
    let late = refusal(server.client.generate(text("late", 5)).await);
    assert_eq!(late.code, Code::Unavailable);
    let model = server.client.model("fake").await.unwrap();
    assert_eq!(model.state(), v1::ModelState::Failed);
    other_model_serves(&server).await;
    drop((ready, live));
    server.stop().await;
}

#[tokio::test]
async fn told_so_the_server_ends_with_an_error_when_the_model_breaks() {
    let gate = Gate::new();
    let setup = Setup::fake(Fake::gated(&gate)).with("engine.on_failure", "exit");
    let server = TestServer::start(setup).await;
    broken(&server, &gate).await;
    let error = server.failed().await;
    assert!(
        matches!(&error, ServeError::EngineFailed { model } if model == "fake"),
        "{error}"
    );
}

#[tokio::test]
async fn a_step_that_hangs_ends_its_requests_and_readiness_until_it_goes_on() {
    let gate = Gate::new();
    let setup = Setup::fake(Fake::gated(&gate)).with("engine.step_timeout", "300ms");
    let server = TestServer::start(setup).await;
    let mut ready = server.client.watch_health(Client::READINESS).await.unwrap();
    gate.close();
    let running = server.client.generate(text("x", 50)).await.unwrap();
    let refused = refusal(within("the end", running.collect()).await);
    assert_eq!(refused.code, Code::Unavailable);
    until(&mut ready, Health::NotServing).await;
    let late = refusal(server.client.generate(text("late", 5)).await);
    assert_eq!(late.code, Code::Unavailable);
    gate.open();
    until(&mut ready, Health::Serving).await;
    server.client.generate_unary(text("late", 5)).await.unwrap();
    drop(ready);
    server.stop().await;
}

#[tokio::test]
async fn told_so_the_server_ends_with_an_error_when_a_step_hangs() {
    let gate = Gate::new();
    let setup = Setup::fake(Fake::gated(&gate))
        .with("engine.step_timeout", "300ms")
        .with("engine.on_failure", "exit");
    let server = TestServer::start(setup).await;
    gate.close();
    let running = server.client.generate(text("x", 50)).await.unwrap();
    let refused = refusal(within("the end", running.collect()).await);
    assert_eq!(refused.code, Code::Unavailable);
    let error = server.failed().await;
    assert!(matches!(&error, ServeError::EngineFailed { .. }), "{error}");
}
