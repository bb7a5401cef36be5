//! GetLoad says what runs, what waits and what memory is held.

use baichuan_client::Event;
use e2e::{Fake, Gate, Setup, TestServer, refusal, text, until_idle, until_load};
use tonic::Code;

#[tokio::test]
async fn running_and_waiting_sequences_and_their_memory_are_counted() {
    let gate = Gate::new();
    let setup = Setup::fake(Fake::gated(&gate)).with("engine.max_sequences", 1);
    let server = TestServer::start(setup).await;
    gate.close();
    let mut running = server.client.generate(text("run", 20)).await.unwrap();
    assert!(
        matches!(running.next().await.unwrap(), Some(Event::PromptInfo(_))),
        "admitted"
    );
    let waiting = server.client.generate(text("waits", 20)).await.unwrap();
    gate.allow(2);
    let load = until_load(&server.client, "", |load| load.waiting == 1).await;
    assert_eq!((load.running, load.waiting_tokens), (1, 5));
    assert_eq!((load.slots_used, load.slots_total), (1, 1));
    let pools: Vec<_> = load.pools.iter().map(|pool| pool.pool.as_str()).collect();
    assert_eq!(pools, ["global", "window"]);
    for pool in &load.pools {
        assert!(
            pool.blocks_used >= 1 && pool.blocks_used <= pool.blocks_total,
            "{pool:?}"
        );
        assert!(pool.block_tokens == 16 && pool.block_bytes > 0, "{pool:?}");
    }
    gate.open();
    running.collect().await.unwrap();
    waiting.collect().await.unwrap();
    let load = until_idle(&server.client, "").await;
    assert_eq!(
        (
            load.requests_total,
            load.prompt_tokens_total,
            load.generated_tokens_total
        ),
        (2, 8, 40)
    );
    assert_eq!((load.preemptions_total, load.window_tokens), (0, 32));
    assert!(load.steps_total >= 40, "{load:?}");
    server.stop().await;
}

#[tokio::test]
async fn one_model_can_be_asked_for_and_an_unknown_one_is_not_found() {
    let setup = Setup::fake(Fake::default()).and_fake("other", Fake::default());
    let server = TestServer::start(setup).await;
    let names =
        |loads: Vec<baichuan_client::v1::ModelLoad>| loads.into_iter().map(|l| l.model).collect::<Vec<_>>();
    assert_eq!(names(server.client.load("").await.unwrap()), ["fake", "other"]);
    assert_eq!(names(server.client.load("other").await.unwrap()), ["other"]);
    assert_eq!(refusal(server.client.load("nobody").await).code, Code::NotFound);
    server.stop().await;
}
