//! What a tenant may use, and that it sees nothing of the others.

use baichuan_client::{Client, Event};
use baichuan_server::{fresh_token, token_entry};
use e2e::{Fake, Gate, Setup, TestServer, refusal, text, within};
use tempfile::TempDir;
use tonic::Code;

struct House {
    server: TestServer,
    /// May use model `a` alone.
    clinic: Client,
    /// May use model `fake` alone, which is not the default.
    guest: Client,
    /// May use all models.
    lab: Client,
    /// May call everything.
    operator: String,
    _dir: TempDir,
}

async fn start(gate: &Gate) -> House {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("tokens.toml");
    let [clinic, guest, lab, operator] = [(); 4].map(|()| fresh_token().unwrap());
    let entries = [
        (&clinic, "clinic"),
        (&guest, "guest"),
        (&lab, "lab"),
        (&operator, "operator"),
    ];
    let entries = entries.map(|(token, tenant)| token_entry(token, tenant, tenant).unwrap());
    std::fs::write(&file, entries.concat()).unwrap();
    let all = "[\"InferenceService\", \"ModelService\", \"ControlService\", \"AdminService\"]";
    let setup = Setup::fake(Fake::default())
        .and_fake("a", Fake::gated(gate))
        .with("default_model", "a")
        .with("auth.tokens", file.display())
        .with("tenants.clinic.models", "[\"a\"]")
        .with("tenants.guest.models", "[\"fake\"]")
        .with(
            "tenants.lab.services",
            "[\"InferenceService\", \"ControlService\"]",
        )
        .with("tenants.operator.services", all)
        .with("listen.admin_grpc", "127.0.0.1:0")
        .with("reload.interval", "1h")
        .token(&operator);
    let server = TestServer::start(setup).await;
    House {
        clinic: server.connect_as(Some(&clinic)).await,
        guest: server.connect_as(Some(&guest)).await,
        lab: server.connect_as(Some(&lab)).await,
        operator,
        server,
        _dir: dir,
    }
}

fn of_model(model: &str) -> baichuan_client::v1::GenerateRequest {
    baichuan_client::v1::GenerateRequest {
        model: model.into(),
        ..text("x", 3)
    }
}

#[tokio::test]
async fn a_tenant_uses_and_sees_only_the_models_it_is_allowed() {
    let House {
        server,
        clinic,
        guest,
        lab,
        ..
    } = start(&Gate::new()).await;
    clinic.generate_unary(of_model("a")).await.unwrap();
    clinic.generate_unary(of_model("")).await.unwrap();
    let refused = refusal(clinic.generate(of_model("fake")).await);
    assert_eq!(
        (refused.code, refused.reason.as_deref()),
        (Code::PermissionDenied, Some("MODEL_NOT_ALLOWED"))
    );
    // Whether there is a model by a name is told to who may use it.
    let guessed = refusal(clinic.generate(of_model("guess")).await);
    assert_eq!(
        (guessed.code, guessed.message.replace("guess", "fake")),
        (refused.code, refused.message)
    );
    let unknown = refusal(lab.generate(of_model("guess")).await);
    assert!(
        unknown.code == Code::NotFound && unknown.message.contains("fake"),
        "{unknown:?}"
    );
    let refused = refusal(guest.generate(of_model("")).await);
    assert!(
        refused.code == Code::PermissionDenied && !refused.message.contains("\"a\""),
        "{refused:?}"
    );
    let info = guest.server_info().await.unwrap();
    assert_eq!(
        (info.default_model.as_str(), info.models),
        ("", vec!["fake".into()])
    );
    assert_eq!(clinic.server_info().await.unwrap().default_model, "a");
    let seen: Vec<String> = clinic
        .models()
        .await
        .unwrap()
        .into_iter()
        .map(|m| m.name)
        .collect();
    assert_eq!(seen, ["a"]);
    assert_eq!(refusal(clinic.model("fake").await).code, Code::PermissionDenied);
    assert_eq!(clinic.server_info().await.unwrap().models, ["a"]);
    let loads: Vec<String> = clinic
        .load("")
        .await
        .unwrap()
        .into_iter()
        .map(|l| l.model)
        .collect();
    assert_eq!(loads, ["a"]);
    assert_eq!(refusal(clinic.load("fake").await).code, Code::PermissionDenied);
    for refused in [
        clinic
            .tokenize(baichuan_client::v1::TokenizeRequest {
                model: "fake".into(),
                ..Default::default()
            })
            .await
            .map(drop),
        clinic
            .embed(baichuan_client::v1::EmbedRequest {
                model: "fake".into(),
                ..Default::default()
            })
            .await
            .map(drop),
    ] {
        assert_eq!(refusal(refused).code, Code::PermissionDenied);
    }
    lab.generate_unary(of_model("fake")).await.unwrap();
    drop((clinic, guest, lab));
    server.stop().await;
}

#[tokio::test]
async fn a_tenant_calls_only_the_services_it_is_allowed() {
    let House {
        server, clinic, lab, ..
    } = start(&Gate::new()).await;
    lab.load("").await.unwrap();
    let refused = refusal(lab.models().await);
    assert_eq!(
        (refused.code, refused.reason.as_deref()),
        (Code::PermissionDenied, Some("SERVICE_NOT_ALLOWED"))
    );
    drop((clinic, lab));
    server.stop().await;
}

#[tokio::test]
async fn only_who_is_allowed_administers() {
    let House {
        server,
        clinic,
        lab,
        operator,
        ..
    } = start(&Gate::new()).await;
    drop((clinic, lab));
    let by = async |token: Option<&str>| {
        let mut options = baichuan_client::ConnectOptions::new(server.admin_grpc.unwrap().to_string());
        options.token = token.map(Into::into);
        Client::connect(&options).await.unwrap().drain(false).await
    };
    assert_eq!(refusal(by(None).await).code, Code::Unauthenticated);
    let clinic_again = fresh_token().unwrap();
    assert_eq!(refusal(by(Some(&clinic_again)).await).code, Code::Unauthenticated);
    assert_eq!(by(Some(&operator)).await.unwrap(), 0);
    server.stop().await;
}

#[tokio::test]
async fn a_tenant_neither_ends_nor_sees_another_ones_request() {
    let gate = Gate::new();
    let House {
        server, clinic, lab, ..
    } = start(&gate).await;
    gate.close();
    let named = |id: &str| baichuan_client::v1::GenerateRequest {
        request_id: id.into(),
        ..text("x", 20)
    };
    let mut running = clinic.generate(named("mine")).await.unwrap();
    assert!(matches!(
        running.next().await.unwrap(),
        Some(Event::PromptInfo(_))
    ));
    assert_eq!(refusal(lab.abort("mine").await).code, Code::NotFound);
    // Nor does the name tell that it is taken.
    let same = lab.generate(named("mine")).await.unwrap();
    assert_eq!(
        refusal(clinic.generate(named("mine")).await).code,
        Code::InvalidArgument
    );
    gate.open();
    assert_eq!(running.collect().await.unwrap().choices[0].token_ids.len(), 20);
    assert_eq!(same.collect().await.unwrap().choices[0].token_ids.len(), 20);

    gate.close();
    let theirs = clinic.generate(named("runaway")).await.unwrap();
    server.client.abort("runaway").await.unwrap();
    let ended = within("the operator's abort", theirs.collect()).await.unwrap();
    assert!(ended.choices[0].token_ids.len() < 20);
    gate.open();
    drop((clinic, lab));
    server.stop().await;
}
