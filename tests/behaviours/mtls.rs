//! Client certificates: without one of the configured authority there is no connection, and its name is the tenant's.

use baichuan_client::TlsOptions;
use e2e::{Authority, Fake, Setup, TestServer, refusal, text};
use tonic::Code;

const WORKLOAD: &str = "uri:spiffe://cluster.local/ns/clinic/sa/app";

fn mutual(authority: &Authority) -> Setup {
    authority.issue("server", &["dns:localhost"]);
    authority.issue("clinic", &["dns:clinic.example", WORKLOAD]);
    Setup::fake(Fake::default())
        .with("tls.cert", authority.path("server.pem").display())
        .with("tls.key", authority.path("server.key").display())
        .with("tls.client_ca", authority.path("ca.pem").display())
        .with("tenants.clinic.sans", format!("[\"{WORKLOAD}\"]"))
        .with("listen.admin", "127.0.0.1:0")
        .tls(authority.trusted(Some("clinic")))
}

/// What comes of a call over a connection; whether a handshake fails shows at the first use, for TLS 1.3 clients
/// are done before the server has looked at their certificate.
async fn outcome(server: &TestServer, tls: TlsOptions) -> Result<(), baichuan_client::Error> {
    let client = server.connect_by(tls).await?;
    client.generate_unary(text("x", 3)).await.map(drop)
}

#[tokio::test]
async fn a_certificates_name_is_a_tenant() {
    let authority = Authority::new();
    let server = TestServer::start(mutual(&authority)).await;
    server.client.generate_unary(text("x", 3)).await.unwrap();
    authority.issue("nobody", &["dns:nobody.example"]);
    let refused = refusal(outcome(&server, authority.trusted(Some("nobody"))).await);
    assert_eq!(refused.code, Code::Unauthenticated);
    // The same words under another kind of name are another name.
    authority.issue("disguised", &["dns:spiffe.cluster.local"]);
    let refused = refusal(outcome(&server, authority.trusted(Some("disguised"))).await);
    assert_eq!(refused.code, Code::Unauthenticated);
    server.stop().await;
}

#[tokio::test]
async fn without_a_certificate_of_the_authority_there_is_no_connection() {
    let authority = Authority::new();
    let server = TestServer::start(mutual(&authority)).await;
    let stranger = Authority::new();
    stranger.issue("forged", &[WORKLOAD]);
    let forged = TlsOptions {
        ca: Some(authority.path("ca.pem")),
        ..stranger.trusted(Some("forged"))
    };
    authority.issue_until("ended", &[WORKLOAD], 2021);
    for (n, tls) in [authority.trusted(None), forged, authority.trusted(Some("ended"))]
        .into_iter()
        .enumerate()
    {
        let error = outcome(&server, tls).await.unwrap_err();
        let told = error.code();
        assert!(
            told.is_none() || told == Some(Code::Unavailable) || told == Some(Code::Unknown),
            "{error:?}"
        );
        server
            .until_metric("baichuan_tls_handshake_failures_total", n as f64 + 1.0)
            .await;
    }
    server.stop().await;
}

#[tokio::test]
async fn where_certificates_are_optional_who_has_none_must_prove_themselves_otherwise() {
    let authority = Authority::new();
    let server = TestServer::start(mutual(&authority).with("tls.client_auth", "optional")).await;
    server.client.generate_unary(text("x", 3)).await.unwrap();
    let refused = refusal(outcome(&server, authority.trusted(None)).await);
    assert_eq!(refused.code, Code::Unauthenticated);
    assert_eq!(refused.reason.as_deref(), Some("CREDENTIALS_MISSING"));
    server.stop().await;
}
