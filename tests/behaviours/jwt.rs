//! JSON Web Tokens: only what the configured issuer signed for this audience, in time, by an allowed algorithm.

use std::path::PathBuf;

use e2e::{Fake, Provider, Setup, TestServer, base64_url, refusal, seconds_from_now, text};
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde_json::{Value, json};
use tempfile::TempDir;
use tonic::Code;

struct Issued {
    server: TestServer,
    provider: Provider,
    jwks: PathBuf,
    _dir: TempDir,
}

fn claims(tenant: &str) -> Value {
    json!({
        "iss": "https://id.example", "aud": ["other", "baichuan"], "sub": "u-1", "tenant": tenant,
        "exp": seconds_from_now(600), "nbf": seconds_from_now(-600),
    })
}

/// Claims with one of them changed, or taken out.
fn but(name: &str, value: Value) -> Value {
    let mut claims = claims("clinic");
    match value {
        Value::Null => claims.as_object_mut().unwrap().remove(name),
        value => claims.as_object_mut().unwrap().insert(name.into(), value),
    };
    claims
}

async fn start(settings: &[(&str, &str)]) -> Issued {
    let dir = tempfile::tempdir().unwrap();
    let jwks = dir.path().join("jwks.json");
    let provider = Provider::new("k1");
    Provider::publish(&[&provider], &jwks);
    let mut setup = Setup::fake(Fake::default())
        .with("auth.jwt.jwks", jwks.display())
        .with("auth.jwt.issuers", "[\"https://id.example\"]")
        .with("auth.jwt.audiences", "[\"baichuan\"]")
        .with("tenants.clinic.weight", 1)
        .with("listen.admin", "127.0.0.1:0")
        .with("reload.interval", "1h")
        .token(&provider.sign(&claims("clinic")));
    for (key, value) in settings {
        setup = setup.with(key, value);
    }
    Issued {
        server: TestServer::start(setup).await,
        provider,
        jwks,
        _dir: dir,
    }
}

/// What is said to who comes with a token.
async fn code(server: &TestServer, token: &str) -> Code {
    let client = server.connect_as(Some(token)).await;
    match client.generate_unary(text("x", 3)).await {
        Ok(_) => Code::Ok,
        Err(error) => error.code().unwrap(),
    }
}

#[tokio::test]
async fn a_token_of_the_issuer_is_its_tenants() {
    let Issued { server, provider, .. } = start(&[]).await;
    server.client.generate_unary(text("x", 3)).await.unwrap();
    let single = but("aud", json!("baichuan"));
    assert_eq!(code(&server, &provider.sign(&single)).await, Code::Ok);
    // Clocks differ a little.
    let just_ended = but("exp", json!(seconds_from_now(-10)));
    assert_eq!(code(&server, &provider.sign(&just_ended)).await, Code::Ok);
    server.stop().await;
}

#[tokio::test]
async fn whatever_is_wrong_with_a_token_it_is_nobodys() {
    let Issued { server, provider, .. } = start(&[]).await;
    for wrong in [
        but("exp", json!(seconds_from_now(-600))),
        but("exp", Value::Null),
        but("exp", json!("tomorrow")),
        but("nbf", json!(seconds_from_now(600))),
        but("nbf", json!("yesterday")),
        but("aud", json!("somebody-else")),
        but("aud", json!([])),
        but("aud", Value::Null),
        but("iss", json!("https://evil.example")),
        but("iss", Value::Null),
        but("tenant", Value::Null),
        but("tenant", json!("")),
        but("tenant", json!(["clinic"])),
    ] {
        assert_eq!(
            code(&server, &provider.sign(&wrong)).await,
            Code::Unauthenticated,
            "{wrong}"
        );
    }
    server.stop().await;
}

#[tokio::test]
async fn a_token_that_the_issuer_did_not_sign_is_nobodys() {
    let Issued { server, provider, .. } = start(&[]).await;
    let good = provider.sign(&claims("clinic"));
    let parts: Vec<&str> = good.split('.').collect();
    let other_claims = base64_url(but("sub", json!("root")).to_string().as_bytes());
    let none = base64_url(br#"{"alg":"none","typ":"JWT"}"#);
    // The public key as if it were a shared secret.
    let confused = jsonwebtoken::encode(
        &Header::default(),
        &claims("clinic"),
        &EncodingKey::from_secret(provider.public().as_bytes()),
    )
    .unwrap();
    let impostor = Provider::new("k1");
    let stranger = Provider::new("k2");
    for forged in [
        format!("{}.{other_claims}.{}", parts[0], parts[2]),
        format!("{none}.{}.", parts[1]),
        format!("{}.{}.", parts[0], parts[1]),
        confused,
        impostor.sign(&claims("clinic")),
        stranger.sign(&claims("clinic")),
    ] {
        assert_eq!(code(&server, &forged).await, Code::Unauthenticated, "{forged}");
    }
    server.stop().await;
}

#[tokio::test]
async fn an_algorithm_that_is_not_listed_is_not_accepted_though_the_key_is_there() {
    let Issued { server, provider, .. } = start(&[
        ("auth.jwt.algorithms", "[\"ES256\"]"),
        ("auth.allow_anonymous", "true"),
    ])
    .await;
    assert_eq!(
        code(&server, &provider.sign(&claims("clinic"))).await,
        Code::Unauthenticated
    );
    server.stop().await;
}

#[tokio::test]
async fn a_token_is_checked_by_the_algorithm_of_its_key_in_the_file() {
    let Issued {
        server,
        provider,
        jwks,
        _dir,
    } = start(&[]).await;
    let rsa = Provider::rsa("rsa", Algorithm::RS256);
    let elliptic = Provider::elliptic("elliptic");
    Provider::publish(&[&provider, &rsa, &elliptic], &jwks);
    server.reload();
    server
        .until_metric("baichuan_reloads_total{what=\"jwks\",outcome=\"ok\"}", 1.0)
        .await;
    for provider in [&rsa, &elliptic] {
        let good = provider.sign(&claims("clinic"));
        assert_eq!(code(&server, &good).await, Code::Ok);
        let parts: Vec<&str> = good.split('.').collect();
        let other_claims = base64_url(but("sub", json!("root")).to_string().as_bytes());
        let changed = format!("{}.{other_claims}.{}", parts[0], parts[2]);
        assert_eq!(code(&server, &changed).await, Code::Unauthenticated);
        let ended = provider.sign(&but("exp", json!(seconds_from_now(-600))));
        assert_eq!(code(&server, &ended).await, Code::Unauthenticated);
    }
    // The key is for RS256, as its file says; the name of another key does not make one of it.
    let other_algorithm = Provider::rsa("rsa", Algorithm::RS512).sign(&claims("clinic"));
    assert_eq!(code(&server, &other_algorithm).await, Code::Unauthenticated);
    let other_key = Provider::elliptic("rsa").sign(&claims("clinic"));
    assert_eq!(code(&server, &other_key).await, Code::Unauthenticated);
    // One that the file says is for encryption, or for what nobody knows, signs nothing.
    let good = rsa.sign(&claims("clinic"));
    for (n, algorithm) in [(2.0, "RSA-OAEP"), (3.0, "RS1024")] {
        let published = std::fs::read_to_string(&jwks).unwrap();
        assert_eq!(code(&server, &good).await, Code::Ok);
        std::fs::write(&jwks, published.replace("RS256", algorithm)).unwrap();
        server.reload();
        let reloads = "baichuan_reloads_total{what=\"jwks\",outcome=\"ok\"}";
        server.until_metric(reloads, 2.0 * n - 2.0).await;
        assert_eq!(code(&server, &good).await, Code::Unauthenticated, "{algorithm}");
        std::fs::write(&jwks, published).unwrap();
        server.reload();
        server.until_metric(reloads, 2.0 * n - 1.0).await;
    }
    server.stop().await;
}

#[tokio::test]
async fn keys_rotate_without_a_restart() {
    let Issued {
        server,
        provider,
        jwks,
        _dir,
    } = start(&[]).await;
    let next = Provider::new("k2");
    Provider::publish(&[&provider, &next], &jwks);
    server.reload();
    server
        .until_metric("baichuan_reloads_total{what=\"jwks\",outcome=\"ok\"}", 1.0)
        .await;
    assert_eq!(code(&server, &next.sign(&claims("clinic"))).await, Code::Ok);
    assert_eq!(code(&server, &provider.sign(&claims("clinic"))).await, Code::Ok);
    Provider::publish(&[&next], &jwks);
    server.reload();
    server
        .until_metric("baichuan_reloads_total{what=\"jwks\",outcome=\"ok\"}", 2.0)
        .await;
    assert_eq!(
        code(&server, &provider.sign(&claims("clinic"))).await,
        Code::Unauthenticated
    );
    std::fs::write(&jwks, r#"{"keys": [{"kty": "oct", "k": "c2VjcmV0"}]}"#).unwrap();
    server.reload();
    server
        .until_metric("baichuan_reloads_total{what=\"jwks\",outcome=\"failed\"}", 1.0)
        .await;
    assert_eq!(code(&server, &next.sign(&claims("clinic"))).await, Code::Ok);
    server.stop().await;
}

#[tokio::test]
async fn a_tenant_that_is_not_configured_is_refused_or_one_of_all_others() {
    let Issued { server, provider, .. } = start(&[]).await;
    let client = server
        .connect_as(Some(&provider.sign(&claims("unheard-of"))))
        .await;
    let refused = refusal(client.generate(text("x", 3)).await);
    assert_eq!(
        (refused.code, refused.reason.as_deref()),
        (Code::PermissionDenied, Some("TENANT_NOT_SERVED"))
    );
    drop(client);
    server.stop().await;
    let Issued { server, provider, .. } = start(&[("tenants.other.weight", "1")]).await;
    assert_eq!(
        code(&server, &provider.sign(&claims("unheard-of"))).await,
        Code::Ok
    );
    server.stop().await;
}
