//! A seed makes sampling reproducible, whatever else runs.

use baichuan_client::v1;
use e2e::{TestServer, text};
use futures::future::join_all;

fn sampled(seed: Option<u64>) -> v1::GenerateRequest {
    let mut request = text("Once upon a time", 30);
    request.sampling = Some(v1::SamplingParams {
        temperature: Some(1.0),
        top_p: Some(0.95),
        seed,
        ..Default::default()
    });
    request
}

async fn tokens_of(server: &TestServer, request: v1::GenerateRequest) -> Vec<u32> {
    let generation = server.client.generate(request).await.unwrap();
    generation.collect().await.unwrap().choices.remove(0).token_ids
}

#[tokio::test]
async fn equal_seeds_give_equal_tokens_alone_and_in_company() {
    let server = TestServer::fake().await;
    let alone = tokens_of(&server, sampled(Some(11))).await;
    let seeds = [11, 12, 13, 11, 14, 15, 11];
    let together = join_all(seeds.map(|seed| tokens_of(&server, sampled(Some(seed))))).await;
    for (seed, tokens) in seeds.iter().zip(&together) {
        assert_eq!(*seed == 11, *tokens == alone, "seed {seed}");
    }
    server.stop().await;
}

#[tokio::test]
async fn a_drawn_seed_is_reported_and_reproduces_the_completion() {
    let server = TestServer::fake().await;
    let generation = server.client.generate(sampled(None)).await.unwrap();
    let completion = generation.collect().await.unwrap();
    let seed = completion.info.unwrap().seed;
    assert_eq!(
        tokens_of(&server, sampled(Some(seed))).await,
        completion.choices[0].token_ids
    );
    let other = server
        .client
        .generate(sampled(None))
        .await
        .unwrap()
        .collect()
        .await
        .unwrap();
    assert_ne!(
        other.info.unwrap().seed,
        seed,
        "each request without a seed draws its own"
    );
    server.stop().await;
}
