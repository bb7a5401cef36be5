//! A client that does not read loses its request, not the engine's time.

use baichuan_client::v1;
use e2e::{Fake, Setup, TestServer, refusal, text, until_idle, until_load};
use tonic::Code;

#[tokio::test]
async fn who_does_not_read_is_cut_off_and_the_others_are_not_held_up() {
    // Everything that buffers between the model and the reader, made small.
    let setup = Setup::fake(Fake::default())
        .with("engine.event_buffer", 64)
        .with("grpc.max_send_buffer_bytes", 1024);
    let server = TestServer::start(setup).await;
    let slow = server.connect().await;
    let mut request = text("never read", 4000);
    // Megabytes: more than the client's flow-control window holds.
    request.sampling.as_mut().unwrap().n = Some(8);
    request.output = Some(v1::OutputOptions {
        logprobs: Some(20),
        ..Default::default()
    });
    let unread = slow.generate(request).await.unwrap();
    until_load(&server.client, "", |load| load.generated_tokens_total > 0).await;
    let load = until_idle(&server.client, "").await;
    assert!(load.generated_tokens_total < 8 * 4000, "{load:?}");
    let other = server
        .client
        .generate(text("read", 50))
        .await
        .unwrap()
        .collect()
        .await
        .unwrap();
    assert_eq!(other.choices[0].token_ids.len(), 50);
    let refused = refusal(unread.collect().await);
    assert_eq!(refused.code, Code::ResourceExhausted);
    assert_eq!(refused.reason.as_deref(), Some("SLOW_CLIENT"));
    server.stop().await;
}
