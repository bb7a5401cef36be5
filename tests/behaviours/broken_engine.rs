//! A model that panics ends its requests and the server's readiness, not the process.

use baichuan_client::{Client, Health, v1};
use e2e::{Fake, Gate, Setup, TestServer, refusal, text, within};
use tonic::Code;

#[tokio::test]
async fn its_requests_end_as_unavailable_and_the_server_says_that_it_is_not_ready() {
    let gate = Gate::new();
    let setup = Setup::fake(Fake::gated(&gate)).and_fake("other", Fake::default());
    let server = TestServer::start(setup).await;
    let mut ready = server.client.watch_health(Client::READINESS).await.unwrap();
    assert_eq!(ready.next().await.unwrap(), Some(Health::Serving));
    gate.close();
    let running = server.client.generate(text("x", 50)).await.unwrap();
    gate.allow(3);
    gate.break_model();
    let refused = refusal(within("the end", running.collect()).await);
    assert_eq!(refused.code, Code::Unavailable);
    assert_eq!(
        within("the change", ready.next()).await.unwrap(),
        Some(Health::NotServing)
    );
    let late = refusal(server.client.generate(text("late", 5)).await);
    assert_eq!(late.code, Code::Unavailable);
    assert_eq!(
        server.client.model("fake").await.unwrap().state(),
        v1::ModelState::Failed
    );

    // The other model is none the worse for it.
    let request = v1::GenerateRequest {
        model: "other".into(),
        ..text("x", 5)
    };
    assert_eq!(
        server.client.generate_unary(request).await.unwrap().choices[0]
            .token_ids
            .len(),
        5
    );
    drop(ready);
    server.stop().await;
}
