//! AdminService: off unless enabled, and then on an address of its own.

use baichuan_client::{Client, Health};
use e2e::{Fake, Gate, Setup, TestServer, refusal, text, within};
use tonic::Code;

#[tokio::test]
async fn it_is_not_there_unless_enabled() {
    let server = TestServer::fake().await;
    assert_eq!(
        refusal(server.client.drain(false).await).code,
        Code::Unimplemented
    );
    assert_eq!(
        refusal(server.client.set_log_filter("debug").await).code,
        Code::Unimplemented
    );
    // And nothing has drained.
    server
        .client
        .generate(text("x", 3))
        .await
        .unwrap()
        .collect()
        .await
        .unwrap();
    server.stop().await;
}

#[tokio::test]
async fn enabled_it_is_not_where_applications_call() {
    let server =
        TestServer::start(Setup::fake(Fake::default()).with("listen.admin_grpc", "127.0.0.1:0")).await;
    assert_eq!(
        refusal(server.client.drain(false).await).code,
        Code::Unimplemented
    );
    let operator = server.operator().await;
    assert_eq!(
        refusal(operator.generate(text("x", 3)).await).code,
        Code::Unimplemented
    );
    drop(operator);
    server.stop().await;
}

#[tokio::test]
async fn drain_finishes_what_runs_and_takes_nothing_new_but_stays_up() {
    let gate = Gate::new();
    let setup = Setup::fake(Fake::gated(&gate)).with("listen.admin_grpc", "127.0.0.1:0");
    let server = TestServer::start(setup).await;
    let operator = server.operator().await;
    gate.close();
    let running = server.client.generate(text("x", 20)).await.unwrap();
    let mut watch = server.client.watch_health(Client::READINESS).await.unwrap();
    assert_eq!(watch.next().await.unwrap(), Some(Health::Serving));
    assert_eq!(operator.drain(false).await.unwrap(), 1);
    assert_eq!(
        within("the change", watch.next()).await.unwrap(),
        Some(Health::NotServing)
    );
    let late = refusal(server.client.generate(text("late", 3)).await);
    assert_eq!(late.code, Code::Unavailable);
    assert!(late.retry_delay.is_some(), "{late:?}");
    gate.open();
    assert_eq!(within("the drain", operator.drain(true)).await.unwrap(), 0);
    assert_eq!(running.collect().await.unwrap().choices[0].token_ids.len(), 20);
    assert!(server.client.server_info().await.unwrap().draining);
    assert_eq!(
        server.client.health("").await.unwrap(),
        Health::Serving,
        "still alive"
    );
    drop((watch, operator));
    server.stop().await;
}
