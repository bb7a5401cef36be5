//! Models come and go while others serve: LoadModel and UnloadModel.

use std::path::Path;

use baichuan_client::{Client, Health, v1};
use baichuan_server::ServeError;
use e2e::{Fake, Gate, Setup, TestServer, refusal, text, until_idle, within};
use serde_json::json;
use tonic::Code;

/// What stands for a fake model's checkpoint.
fn checkpoint(dir: &Path) {
    let config = json!({
        "architectures": ["FakeForCausalLM"], "max_context": 1024, "window": 16, "chat": false,
    });
    std::fs::write(dir.join("config.json"), config.to_string()).unwrap();
}

fn entry(name: &str, dir: &Path) -> String {
    format!("name = {name:?}\npath = {dir:?}")
}

fn to(model: &str, n: u32) -> v1::GenerateRequest {
    v1::GenerateRequest {
        model: model.into(),
        ..text("x", n)
    }
}

async fn n_tokens(client: &Client, request: v1::GenerateRequest) -> usize {
    let generation = client.generate(request).await.unwrap();
    generation.collect().await.unwrap().choices[0].token_ids.len()
}

fn admin(setup: Setup) -> Setup {
    setup.with("listen.admin_grpc", "127.0.0.1:0")
}

#[tokio::test]
async fn a_model_is_loaded_beside_others_and_taken_away_when_its_requests_have_finished() {
    let gate = Gate::new();
    let server = TestServer::start(admin(Setup::fake(Fake::gated(&gate)))).await;
    let client = &server.client;
    let operator = server.operator().await;
    let mut ready = client.watch_health(Client::READINESS).await.unwrap();
    assert_eq!(ready.next().await.unwrap(), Some(Health::Serving));
    gate.close();
    let running = client.generate(text("x", 30)).await.unwrap();

    let dir = tempfile::tempdir().unwrap();
    checkpoint(dir.path());
    let loaded = operator.load_model(entry("late", dir.path())).await.unwrap();
    assert_eq!(
        (loaded.name.as_str(), loaded.state()),
        ("late", v1::ModelState::Ready)
    );
    assert_eq!((loaded.max_context, loaded.is_default), (1024, false));
    let names = |models: Vec<v1::Model>| models.into_iter().map(|m| m.name).collect::<Vec<_>>();
    assert_eq!(names(client.models().await.unwrap()), ["fake", "late"]);
    assert_eq!(n_tokens(client, to("late", 7)).await, 7);
    assert_eq!(until_idle(client, "late").await.generated_tokens_total, 7);

    // A stream that runs on it when it is taken away finishes first.
    let mut last = client.generate(to("late", 600)).await.unwrap();
    assert!(last.next().await.unwrap().is_some());
    let (unloaded, finished) = tokio::join!(operator.unload_model("late"), last.collect());
    unloaded.unwrap();
    assert!(finished.unwrap().choices[0].finish.is_some());
    assert_eq!(refusal(client.generate(to("late", 1)).await).code, Code::NotFound);
    assert_eq!(names(client.models().await.unwrap()), ["fake"]);

    // Its name is free again, and the first model has noticed nothing.
    operator.load_model(entry("late", dir.path())).await.unwrap();
    assert_eq!(n_tokens(client, to("late", 3)).await, 3);
    gate.open();
    assert_eq!(
        within("the first", running.collect()).await.unwrap().choices[0]
            .token_ids
            .len(),
        30
    );
    assert_eq!(client.health(Client::READINESS).await.unwrap(), Health::Serving);
    drop((ready, operator));
    server.stop().await;
}

#[tokio::test]
async fn what_cannot_be_loaded_or_unloaded_says_why_and_changes_nothing() {
    let server = TestServer::start(admin(Setup::fake(Fake::default()))).await;
    let client = &server.client;
    let operator = server.operator().await;
    let dir = tempfile::tempdir().unwrap();
    checkpoint(dir.path());
    let there = entry("late", dir.path());
    let strange = tempfile::tempdir().unwrap();
    std::fs::write(
        strange.path().join("config.json"),
        r#"{"architectures": ["NobodysModel"]}"#,
    )
    .unwrap();
    let table = [
        (String::new(), "config", "1 to"),
        ("name = 3".into(), "config", "string"),
        (format!("{there}\ncolour = \"red\""), "config", "colour"),
        ("name = \"late\"".into(), "config.path", "missing"),
        (entry("late", Path::new("/nowhere")), "config.path", "/nowhere"),
        (entry("fake", dir.path()), "config.name", "already"),
        (entry("", dir.path()), "config.name", "printable"),
        (entry("late", strange.path()), "config", "NobodysModel"),
        (format!("{there}\nplugin = \"none\""), "config", "none"),
        (
            format!("{there}\nengine.max_sequences = 0"),
            "config.engine.max_sequences",
            "at least 1",
        ),
    ];
    for (config, field, words) in table {
        let refused = refusal(operator.load_model(config.clone()).await);
        assert_eq!(refused.code, Code::InvalidArgument, "{config}: {refused:?}");
        let violation = &refused.violations[0];
        assert_eq!(violation.field, field, "{config}: {violation:?}");
        assert!(violation.description.contains(words), "{config}: {violation:?}");
    }
    assert_eq!(
        refusal(operator.unload_model("fake").await).violations[0].field,
        "model"
    );
    assert_eq!(refusal(operator.unload_model("late").await).code, Code::NotFound);
    assert_eq!(client.models().await.unwrap().len(), 1);
    assert_eq!(client.health(Client::READINESS).await.unwrap(), Health::Serving);
    drop(operator);
    server.stop().await;
}

#[tokio::test]
async fn models_stay_as_they_are_unless_the_operators_service_is_enabled() {
    let server = TestServer::fake().await;
    let refused = refusal(server.client.load_model("name = \"x\"").await);
    assert_eq!(refused.code, Code::Unimplemented);
    assert_eq!(
        refusal(server.client.unload_model("fake").await).code,
        Code::Unimplemented
    );
    server.stop().await;
}

#[tokio::test]
async fn a_model_that_was_loaded_late_and_breaks_ends_the_process_where_it_shall() {
    let gate = Gate::new();
    let setup = admin(Setup::fake(Fake::default()).with_gate("late", &gate));
    let server = TestServer::start(setup).await;
    let operator = server.operator().await;
    let dir = tempfile::tempdir().unwrap();
    checkpoint(dir.path());
    let entry = format!("{}\nengine.on_failure = \"exit\"", entry("late", dir.path()));
    operator.load_model(entry).await.unwrap();
    gate.break_model();
    let refused = refusal(server.client.generate_unary(to("late", 5)).await);
    assert_eq!(refused.code, Code::Unavailable);
    drop(operator);
    let error = server.failed().await;
    assert!(
        matches!(&error, ServeError::EngineFailed { model } if model == "late"),
        "{error}"
    );
}

#[tokio::test]
async fn a_late_model_that_stays_broken_is_not_ready_and_neither_is_the_server_until_it_is_unloaded() {
    let gate = Gate::new();
    let setup =
        admin(Setup::fake(Fake::default()).with_gate("late", &gate)).with("listen.admin", "127.0.0.1:0");
    let server = TestServer::start(setup).await;
    let (client, operator) = (&server.client, server.operator().await);
    let dir = tempfile::tempdir().unwrap();
    checkpoint(dir.path());
    operator.load_model(entry("late", dir.path())).await.unwrap();
    let ready = |model: &str| format!("baichuan_model_ready{{model_name=\"{model}\"}}");
    assert_eq!(server.metric(&ready("late")).await, 1.0);
    let mut watch = client.watch_health(Client::READINESS).await.unwrap();
    assert_eq!(watch.next().await.unwrap(), Some(Health::Serving));
    // The first time it is made anew, the second time it is given up.
    for next in [Some(Health::Serving), None] {
        gate.close();
        let running = client.generate(to("late", 50)).await.unwrap();
        gate.allow(3);
        gate.break_model();
        let refused = refusal(within("the end", running.collect()).await);
        assert_eq!(refused.code, Code::Unavailable);
        let unready = async { while watch.next().await.unwrap() != Some(Health::NotServing) {} };
        within("the loss of readiness", unready).await;
        gate.open();
        if next.is_some() {
            let ready = async { while watch.next().await.unwrap() != next {} };
            within("readiness", ready).await;
        }
    }
    let failed = async {
        while client.model("late").await.unwrap().state() != v1::ModelState::Failed {
            tokio::task::yield_now().await;
        }
    };
    within("the model's end", failed).await;
    assert_eq!(server.metric(&ready("late")).await, 0.0);
    assert_eq!(server.metric(&ready("fake")).await, 1.0);
    assert_eq!(client.model("fake").await.unwrap().state(), v1::ModelState::Ready);
    assert_eq!(n_tokens(client, to("fake", 3)).await, 3);
    operator.unload_model("late").await.unwrap();
    let serving = async { while watch.next().await.unwrap() != Some(Health::Serving) {} };
    within("readiness", serving).await;
    drop((watch, operator));
    server.stop().await;
}
