//! Models come and go while others serve: LoadModel and UnloadModel.

use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};

use baichuan_client::{Client, Health, prompt, v1};
use baichuan_engine::{Backend, Checkpoint, LoadError, LoadRequest, ModelPlugin};
use baichuan_server::ServeError;
use e2e::{Fake, Gate, Setup, TestServer, refusal, text, until_idle, until_load, within};
use futures::stream::{self, StreamExt};
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

/// Returns when only so many models are served.
async fn until_models(client: &Client, n: usize) {
    let served = async {
        while client.models().await.unwrap().len() != n {
            tokio::task::yield_now().await;
        }
    };
    within("the list of models", served).await;
}

#[tokio::test]
async fn an_embedding_finishes_though_its_model_is_unloaded_before_all_its_inputs_are_taken() {
    let gate = Gate::new();
    let setup = admin(Setup::fake(Fake::default()).with_gate("late", &gate));
    let setup = setup
        .with("requests.embed_in_flight", 2)
        .with("engine.prefill_chunk_tokens", 16);
    let server = TestServer::start(setup).await;
    let (client, operator) = (&server.client, server.operator().await);
    let dir = tempfile::tempdir().unwrap();
    checkpoint(dir.path());
    operator.load_model(entry("late", dir.path())).await.unwrap();
    gate.close();
    let embed = client.embed(v1::EmbedRequest {
        model: "late".into(),
        inputs: vec![prompt::embed_tokens(vec![1; 200]); 7],
        ..Default::default()
    });
    let unload = async {
        // What an engine reports, it reports after a step.
        gate.allow(2);
        until_load(client, "late", |load| load.running > 0).await;
        operator.unload_model("late").await
    };
    let open = async {
        until_models(client, 2).await;
        until_models(client, 1).await;
        gate.open();
    };
    let all = async { tokio::join!(embed, unload, open) };
    let (embedded, unloaded, ()) = within("both ends", all).await;
    assert_eq!(embedded.unwrap().embeddings.len(), 7);
    unloaded.unwrap();
    drop(operator);
    server.stop().await;
}

#[tokio::test]
async fn a_stream_of_inputs_ends_when_its_model_is_unloaded_and_does_not_keep_it() {
    let server = TestServer::start(admin(Setup::fake(Fake::default()))).await;
    let operator = server.operator().await;
    let dir = tempfile::tempdir().unwrap();
    checkpoint(dir.path());
    operator.load_model(entry("late", dir.path())).await.unwrap();
    let options = v1::EmbedRequest {
        model: "late".into(),
        ..Default::default()
    };
    // One input, and then nothing for ever.
    let inputs = stream::iter([(1, prompt::embed_text("x"))]).chain(stream::pending());
    let mut answers = server.client.embed_stream(options, inputs).await.unwrap();
    assert!(answers.next().await.unwrap().unwrap().result.is_ok());
    within("the unloading", operator.unload_model("late"))
        .await
        .unwrap();
    let refused = refusal(within("the end", answers.next()).await);
    assert_eq!(
        (refused.code, refused.reason.as_deref()),
        (Code::Unavailable, Some("MODEL_UNLOADING"))
    );
    drop((answers, operator));
    server.stop().await;
}

/// Takes its time, and then there is nothing; or panics.
#[derive(Clone, Default)]
struct Slow {
    loading: Arc<AtomicUsize>,
    most_at_once: Arc<AtomicUsize>,
    is_open: Arc<(Mutex<bool>, Condvar)>,
}

impl Slow {
    fn open(&self) {
        *self.is_open.0.lock().unwrap() = true;
        self.is_open.1.notify_all();
    }
}

impl ModelPlugin for Slow {
    fn name(&self) -> &'static str {
        "slow"
    }

    fn accepts(&self, checkpoint: &Checkpoint) -> bool {
        checkpoint.architecture() == "SlowForCausalLM"
    }

    fn load(&self, request: &LoadRequest<'_>) -> Result<Arc<dyn Backend>, LoadError> {
        assert!(request.name != "panics", "a test asked for this panic");
        let at_once = self.loading.fetch_add(1, Ordering::SeqCst) + 1;
        self.most_at_once.fetch_max(at_once, Ordering::SeqCst);
        let is_open = self.is_open.0.lock().unwrap();
        drop(self.is_open.1.wait_while(is_open, |open| !*open).unwrap());
        self.loading.fetch_sub(1, Ordering::SeqCst);
        Err(LoadError::Compute("nothing came of it".into()))
    }
}

#[tokio::test]
async fn a_load_whose_caller_has_gone_keeps_its_turn_until_it_has_ended() {
    struct Opens(Slow);
    impl Drop for Opens {
        fn drop(&mut self) {
            self.0.open(); // or a test that fails would wait for it
        }
    }
    let slow = Slow::default();
    let opens = Opens(slow.clone());
    let setup = admin(Setup::fake(Fake::default())).with_plugin(slow.clone());
    let server = TestServer::start(setup).await;
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(
        dir.path().join("config.json"),
        r#"{"architectures": ["SlowForCausalLM"]}"#,
    )
    .unwrap();
    let operator = server.operator().await;
    let load = |name: &str| {
        let (operator, entry) = (operator.clone(), entry(name, dir.path()));
        tokio::spawn(async move { operator.load_model(entry).await })
    };
    let first = load("first");
    until_models(&server.client, 2).await;
    let begun = async {
        while slow.loading.load(Ordering::SeqCst) == 0 {
            tokio::task::yield_now().await;
        }
    };
    within("the first load", begun).await;
    first.abort();
    until_models(&server.client, 1).await;
    let second = load("second");
    // Time in which it could begin.
    for _ in 0..30 {
        server.client.models().await.unwrap();
    }
    assert_eq!(slow.loading.load(Ordering::SeqCst), 1);
    slow.open();
    let refused = refusal(within("the second load", second).await.unwrap());
    assert!(
        refused.violations[0].description.contains("nothing came of it"),
        "{refused:?}"
    );
    assert_eq!(slow.most_at_once.load(Ordering::SeqCst), 1);

    let panicked = load("panics").await.unwrap();
    assert_eq!(panicked.unwrap_err().code(), Some(Code::Internal));
    drop(opens);
    server.stop().await;
}
