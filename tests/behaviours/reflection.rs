//! Reflection, v1 and v1alpha, describes every service.

use e2e::TestServer;
use tonic::transport::Channel;

const SERVICES: [&str; 4] = [
    "baichuan.v1.InferenceService",
    "baichuan.v1.ModelService",
    "baichuan.v1.ControlService",
    "grpc.health.v1.Health",
];

macro_rules! check {
    ($version:ident, $channel:expr) => {{
        use tonic_reflection::pb::$version::ServerReflectionRequest;
        use tonic_reflection::pb::$version::server_reflection_client::ServerReflectionClient;
        use tonic_reflection::pb::$version::server_reflection_request::MessageRequest;
        use tonic_reflection::pb::$version::server_reflection_response::MessageResponse;

        let ask = |question| ServerReflectionRequest {
            host: String::new(),
            message_request: Some(question),
        };
        let symbols = SERVICES.map(|s| ask(MessageRequest::FileContainingSymbol(s.into())));
        let questions = std::iter::once(ask(MessageRequest::ListServices(String::new()))).chain(symbols);
        let mut client = ServerReflectionClient::new($channel);
        let answers = client
            .server_reflection_info(futures::stream::iter(questions))
            .await
            .unwrap();
        let mut answers = answers.into_inner();
        let first = answers.message().await.unwrap().unwrap().message_response;
        let Some(MessageResponse::ListServicesResponse(list)) = first else {
            panic!("{first:?}")
        };
        let listed: Vec<_> = list.service.into_iter().map(|s| s.name).collect();
        for service in SERVICES {
            assert!(
                listed.iter().any(|s| s == service),
                "{service} is not in {listed:?}"
            );
            let answer = answers.message().await.unwrap().unwrap().message_response;
            let Some(MessageResponse::FileDescriptorResponse(files)) = answer else {
                panic!("{answer:?}")
            };
            assert!(!files.file_descriptor_proto.is_empty(), "{service}");
        }
    }};
}

async fn channel(server: &TestServer) -> Channel {
    let endpoint = Channel::from_shared(format!("http://{}", server.address)).unwrap();
    endpoint.connect().await.unwrap()
}

#[tokio::test]
async fn v1_lists_and_describes_every_service() {
    let server = TestServer::fake().await;
    check!(v1, channel(&server).await);
    server.stop().await;
}

#[tokio::test]
async fn v1alpha_does_so_for_older_tools() {
    let server = TestServer::fake().await;
    check!(v1alpha, channel(&server).await);
    server.stop().await;
}
