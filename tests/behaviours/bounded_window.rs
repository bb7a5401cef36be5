//! A sequence far longer than the window holds no more of it than the window and a chunk.

use baichuan_client::Event;
use e2e::checkpoint::tiny_m1;
use e2e::{Setup, TestServer, tokens, until_idle};

const WINDOW: u64 = 16;
const CHUNK: u64 = 8;
const BLOCK: u64 = 4;

#[tokio::test]
async fn four_windows_of_tokens_hold_at_most_a_window_and_a_chunk_of_rows() {
    let setup = Setup::m1(tiny_m1())
        .with("engine.prefill_chunk_tokens", CHUNK)
        .with("engine.cache.block_tokens", BLOCK);
    let server = TestServer::start(setup).await;
    let prompt: Vec<u32> = (0..3 * WINDOW as u32).map(|i| 9 + i % 250).collect();
    let mut generation = server
        .client
        .generate(tokens(&prompt, WINDOW as u32))
        .await
        .unwrap();
    let most = (WINDOW + CHUNK).div_ceil(BLOCK);
    let mut held = Vec::new();
    while let Some(event) = generation.next().await.unwrap() {
        if matches!(event, Event::Delta(_)) {
            let [load] = server.client.load("").await.unwrap().try_into().unwrap();
            let window = load.pools.iter().find(|pool| pool.pool == "window").unwrap();
            held.push(window.blocks_used);
        }
    }
    assert!(
        held.iter().all(|blocks| *blocks <= most),
        "{held:?} of at most {most}"
    );
    let load = until_idle(&server.client, "").await;
    assert_eq!(load.window_tokens, WINDOW);
    let peak = load.window_rows_peak;
    assert!((WINDOW..=WINDOW + CHUNK).contains(&peak), "{peak} rows");
    server.stop().await;
}
