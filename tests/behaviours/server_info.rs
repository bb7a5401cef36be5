//! GetServerInfo says what runs.

use e2e::{Fake, Setup, TestServer};

#[tokio::test]
async fn version_state_models_and_limits_are_reported() {
    let setup = Setup::fake(Fake::default()).and_fake("other", Fake::default());
    let server = TestServer::start(setup.with("grpc.max_decoding_message_bytes", 1 << 20)).await;
    let info = server.client.server_info().await.unwrap();
    assert_eq!(info.version, env!("CARGO_PKG_VERSION"));
    assert_eq!((info.ready, info.draining), (true, false));
    assert_eq!(
        (info.default_model.as_str(), &info.models[..]),
        ("fake", &["fake".to_owned(), "other".to_owned()][..])
    );
    assert_eq!(info.max_decoding_message_bytes, 1 << 20);
    assert!(
        !info.cpu.is_empty() && info.started_at.is_some() && info.uptime_seconds >= 0.0,
        "{info:?}"
    );
    server.stop().await;
}
