//! SIGTERM lets the program `baichuan-server` finish what runs, and then exit with 0.

use baichuan_client::{Client, Event, Health, v1};
use e2e::checkpoint::tiny_m1;
use e2e::{ServerProcess, refusal, text, until_ready, within};
use tonic::Code;

#[tokio::test]
async fn running_streams_finish_new_ones_are_refused_and_the_process_exits_0() {
    let model = tiny_m1().to_str().unwrap();
    let server = ServerProcess::start(&["--model", model, "--model-name", "m1"]).await;
    until_ready(&server.client).await;
    let mut running = server.client.generate(text("Go on", 1500)).await.unwrap();
    while !matches!(running.next().await.unwrap(), Some(Event::Delta(_))) {}
    let mut watch = server.client.watch_health(Client::READINESS).await.unwrap();
    assert_eq!(watch.next().await.unwrap(), Some(Health::Serving));

    server.signal("TERM").await;
    assert_eq!(
        within("the change", watch.next()).await.unwrap(),
        Some(Health::NotServing)
    );
    let draining = async { while !server.client.server_info().await.unwrap().draining {} };
    within("the drain", draining).await;
    let late = refusal(server.client.generate(text("late", 3)).await);
    assert_eq!(late.code, Code::Unavailable);

    let completion = within("the stream", running.collect()).await.unwrap();
    let finish = completion.choices[0].finish.as_ref().unwrap();
    assert_eq!(finish.finish_reason(), v1::FinishReason::Length);
    assert_eq!(finish.usage.unwrap().completion_tokens, 1500);
    drop(watch);
    let (status, log) = server.ended().await;
    assert_eq!(status.code(), Some(0), "{log:?}");
}

#[tokio::test]
async fn what_cannot_be_served_ends_the_process_with_its_reason() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(
        folder.path().join("config.json"),
        r#"{"architectures": ["NobodysForCausalLM"]}"#,
    )
    .unwrap();
    let server = ServerProcess::start(&["--model", folder.path().to_str().unwrap()]).await;
    let (status, log) = server.ended().await;
    assert_eq!(status.code(), Some(1));
    let said = log.concat();
    assert!(
        said.contains("NobodysForCausalLM") && said.contains("baichuan-m1"),
        "{said}"
    );
}
