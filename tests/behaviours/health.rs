//! Health: `""` is liveness, InferenceService is readiness, by Check and by a Watch that goes on.

use baichuan_client::{Client, Health};
use e2e::{TestServer, refusal, within};
use tonic::Code;

#[tokio::test]
async fn a_server_is_alive_and_ready_and_knows_no_other_service() {
    let server = TestServer::fake().await;
    assert_eq!(server.client.health("").await.unwrap(), Health::Serving);
    assert_eq!(
        server.client.health(Client::READINESS).await.unwrap(),
        Health::Serving
    );
    assert_eq!(
        refusal(server.client.health("nobody.v1.Service").await).code,
        Code::NotFound
    );
    server.stop().await;
}

#[tokio::test]
async fn a_watch_tells_that_the_server_is_going_and_liveness_stays() {
    let server = TestServer::fake().await;
    let client = server.connect().await;
    let mut ready = client.watch_health(Client::READINESS).await.unwrap();
    let mut alive = client.watch_health("").await.unwrap();
    assert_eq!(ready.next().await.unwrap(), Some(Health::Serving));
    assert_eq!(alive.next().await.unwrap(), Some(Health::Serving));
    server.ask_to_end();
    let change = within("the change", ready.next()).await;
    assert_eq!(change.unwrap(), Some(Health::NotServing));
    // Until the connection goes there is no other word on liveness.
    let last = within("the end of the watch", alive.next()).await;
    assert!(!matches!(last, Ok(Some(_))), "{last:?}");
    server.ended().await;
}
