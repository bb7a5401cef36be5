//! Who learns when that the server lives and is ready.

use baichuan_client::{Client, Health, v1};
use tonic::Code;

use crate::support::{Fake, TestServer, generation, refusal};

#[tokio::test]
async fn ports_answer_while_a_model_loads_and_readiness_waits_for_it() {
    let fake = Fake::default();
    fake.loading.shut();
    let server = TestServer::launch(fake, "").await;
    let client = &server.client;
    let mut ready = client.watch_health(Client::READINESS).await.unwrap();
    assert_eq!(ready.next().await.unwrap(), Some(Health::NotServing));
    assert_eq!(client.health("").await.unwrap(), Health::Serving);
    assert_eq!(
        (server.page("/livez").await.0, server.page("/readyz").await.0),
        (200, 503)
    );

    let refused = refusal(client.generate_unary(generation("a", 1)).await);
    assert_eq!(
        (refused.code, refused.reason.as_deref()),
        (Code::Unavailable, Some("MODEL_LOADING"))
    );
    assert!(refused.retry_delay.is_some());
    let models = client.models().await.unwrap();
    assert_eq!(
        (models[0].name.as_str(), models[0].state()),
        ("fake", v1::ModelState::Loading)
    );
    assert!(!client.server_info().await.unwrap().ready);

    server.fake.loading.open();
    assert_eq!(ready.next().await.unwrap(), Some(Health::Serving));
    assert_eq!(server.page("/readyz").await.0, 200);
    let model = client.model("").await.unwrap();
    assert_eq!((model.state(), model.is_default), (v1::ModelState::Ready, true));
    assert_eq!(
        (model.architecture.as_str(), model.supports_chat),
        ("FakeForCausalLM", true)
    );
}

#[tokio::test]
async fn a_watch_goes_on_through_every_change() {
    let server = TestServer::start("").await;
    let mut ready = server.client.watch_health(Client::READINESS).await.unwrap();
    assert_eq!(ready.next().await.unwrap(), Some(Health::Serving));
    server.fake.steps.shut();
    let mut running = server.client.generate(generation("a", 3)).await.unwrap();
    server.trigger.ask();
    assert_eq!(ready.next().await.unwrap(), Some(Health::NotServing));
    assert_eq!(server.client.health("").await.unwrap(), Health::Serving);
    server.fake.steps.open();
    while running.next().await.unwrap().is_some() {}
}

#[tokio::test]
async fn a_dead_engine_ends_its_requests_and_the_servers_health() {
    let server = TestServer::start("").await;
    let mut ready = server.client.watch_health(Client::READINESS).await.unwrap();
    let mut live = server.client.watch_health("").await.unwrap();
    assert_eq!(ready.next().await.unwrap(), Some(Health::Serving));
    assert_eq!(live.next().await.unwrap(), Some(Health::Serving));

    *server.fake.panic.lock().unwrap() = true;
    let dead = refusal(server.client.generate_unary(generation("a", 5)).await);
    assert_eq!(
        (dead.code, dead.reason.as_deref()),
        (Code::Unavailable, Some("ENGINE_STOPPED"))
    );
    assert_eq!(ready.next().await.unwrap(), Some(Health::NotServing));
    assert_eq!(live.next().await.unwrap(), Some(Health::NotServing));
    assert_eq!(
        (server.page("/livez").await.0, server.page("/readyz").await.0),
        (503, 503)
    );
    let models = server.client.models().await.unwrap();
    assert_eq!(models[0].state(), v1::ModelState::Failed);
    let refused = refusal(server.client.generate_unary(generation("a", 1)).await);
    assert_eq!(refused.code, Code::Unavailable);
}

#[tokio::test]
async fn a_model_that_cannot_be_loaded_ends_the_server_with_its_reason() {
    let fake = Fake {
        broken: true,
        ..Fake::default()
    };
    fake.loading.shut();
    let mut server = TestServer::launch(fake, "").await;
    server.fake.loading.open();
    let error = server.ended().await.unwrap_err().to_string();
    for part in ["\"fake\"", "model.safetensors", "model.norm.weight"] {
        assert!(error.contains(part), "{error}");
    }
}

#[tokio::test]
async fn a_health_of_an_unknown_service_is_not_found() {
    let server = TestServer::start("").await;
    let refused = refusal(server.client.health("nobody.v1.Nothing").await);
    assert_eq!(refused.code, Code::NotFound);
}
