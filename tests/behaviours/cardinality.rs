//! However many names, models and paths callers invent, `/metrics` does not grow.

use std::collections::BTreeSet;

use baichuan_client::v1;
use e2e::{Fake, Setup, TestServer, scrape, text};
use tonic::client::Grpc;
use tonic::transport::Channel;
use tonic::{Code, Request};
use tonic_prost::ProstCodec;

/// Every series of the server: name and labels, without values and exemplars.
async fn series(server: &TestServer) -> BTreeSet<String> {
    let metrics = scrape(server.admin.expect("it listens")).await;
    // Health is watched by whoever waits for readiness, and let go of at any time.
    let counts = |line: &&str| !line.starts_with('#') && !line.contains("grpc.health");
    let samples = metrics.lines().filter(counts);
    let names = samples.map(|line| match line.find("} ") {
        Some(end) => line[..=end].to_owned(),
        None => line.split(' ').next().unwrap_or_default().to_owned(),
    });
    names.collect()
}

/// One of each thing that callers may make up.
async fn invent(server: &TestServer, channel: &Channel, invented: &str) {
    let mut inference = v1::inference_service_client::InferenceServiceClient::new(channel.clone());
    let mut request = Request::new(text("x", 2));
    let metadata = request.metadata_mut();
    metadata.insert("x-request-id", invented.parse().unwrap());
    metadata.insert("user-agent", invented.parse().unwrap());
    let id = format!(
        "{:032x}",
        u128::from_be_bytes(*b"sixteen bytes ok") ^ invented.len() as u128
    );
    metadata.insert(
        "traceparent",
        format!("00-{id}-b7ad6b7169203331-01").parse().unwrap(),
    );
    let mut stream = inference.generate(request).await.unwrap().into_inner();
    while stream.message().await.unwrap().is_some() {}

    let mut elsewhere = text("x", 2);
    elsewhere.model = invented.into();
    assert_eq!(
        inference.generate(elsewhere).await.unwrap_err().code(),
        Code::NotFound
    );
    let mut bad = text("x", 2);
    bad.request_id = format!("{invented} with blanks");
    assert_eq!(
        inference.generate(bad).await.unwrap_err().code(),
        Code::InvalidArgument
    );

    for path in [
        format!("/{invented}/Generate"),
        format!("/baichuan.v1.InferenceService/{invented}"),
    ] {
        let mut grpc = Grpc::new(channel.clone());
        grpc.ready().await.unwrap();
        let codec: ProstCodec<v1::TokenizeRequest, v1::TokenizeResponse> = ProstCodec::default();
        let request = Request::new(v1::TokenizeRequest::default());
        let unknown = grpc.unary(request, path.parse().unwrap(), codec).await;
        assert_eq!(unknown.unwrap_err().code(), Code::Unimplemented);
    }
    assert!(server.client.load(invented).await.is_err());
    assert!(server.client.abort(invented).await.is_err());
}

#[tokio::test]
async fn metrics_do_not_grow_with_what_callers_invent() {
    let server = TestServer::start(Setup::fake(Fake::default()).with("listen.admin", "127.0.0.1:0")).await;
    let channel = Channel::from_shared(format!("http://{}", server.address)).unwrap();
    let channel = channel.connect().await.unwrap();
    invent(&server, &channel, "first").await;
    let before = series(&server).await;
    for number in 0..30 {
        invent(&server, &channel, &format!("invented-{number}")).await;
    }
    let after = series(&server).await;
    assert!(before.len() > 100, "{before:?}");
    let new: Vec<_> = after.difference(&before).collect();
    assert!(new.is_empty(), "{new:?}");
    server.stop().await;
}
