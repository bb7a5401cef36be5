//! Nobody in particular: only where the port is this machine's, or the operator says so.

use e2e::{Fake, Setup, TestServer, program, text, within};

/// What the server says of a configuration.
async fn check(settings: &[&str]) -> (bool, String) {
    let model = e2e::checkpoint::tiny_m1();
    let mut command = program("baichuan-server");
    command.arg("check-config").arg("--model").arg(model);
    for setting in settings {
        command.args(["--set", setting]);
    }
    let output = within("the program", command.output()).await.unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8(text).unwrap())
}

#[tokio::test]
async fn a_port_that_others_can_reach_needs_identities_or_the_operators_word() {
    for address in ["0.0.0.0:1", "[::]:1", "192.0.2.1:1", "example.org:1"] {
        let grpc = format!("listen.grpc={address}");
        let (passes, said) = check(&[&grpc]).await;
        assert!(
            !passes && said.contains("listen.grpc:") && said.contains("auth.allow_anonymous"),
            "{said}"
        );
        assert!(check(&[&grpc, "auth.allow_anonymous=true"]).await.0, "{address}");
        let admin = format!("listen.admin_grpc={address}");
        let (passes, said) = check(&[&admin]).await;
        assert!(!passes && said.contains("listen.admin_grpc:"), "{said}");
    }
    for address in ["127.0.0.1:1", "[::1]:1", "localhost:1", "127.1.2.3:1"] {
        assert!(check(&[&format!("listen.grpc={address}")]).await.0, "{address}");
    }
}

#[tokio::test]
async fn anonymous_callers_are_a_tenant_beside_those_who_prove_themselves() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("tokens.toml");
    let token = baichuan_server::fresh_token().unwrap();
    std::fs::write(
        &file,
        baichuan_server::token_entry(&token, "n", "clinic").unwrap(),
    )
    .unwrap();
    let setup = Setup::fake(Fake::default())
        .with("auth.tokens", file.display())
        .with("auth.allow_anonymous", true)
        .with("tenants.clinic.weight", 1)
        .with("tenants.anonymous.services", "[\"InferenceService\"]");
    let server = TestServer::start(setup).await;
    server.client.generate_unary(text("x", 3)).await.unwrap();
    assert!(server.client.models().await.is_err());
    let clinic = server.connect_as(Some(&token)).await;
    clinic.models().await.unwrap();
    // Who claims to be somebody and is not, is not nobody either.
    let wrong = server.connect_as(Some("wrong")).await;
    assert!(wrong.generate(text("x", 3)).await.is_err());
    drop((clinic, wrong));
    server.stop().await;
}
