//! One prompt, several completions: each is a completion of its own, and the prompt is computed once.

use std::collections::HashSet;

use baichuan_client::v1;
use e2e::{TestServer, text, until_idle};

#[tokio::test]
async fn every_index_has_its_own_text_and_its_own_end() {
    let server = TestServer::fake().await;
    let mut request = text("Four ways to say it:", 12);
    request.sampling = Some(v1::SamplingParams {
        temperature: Some(1.0),
        seed: Some(5),
        n: Some(4),
        ..Default::default()
    });
    let completion = server
        .client
        .generate(request)
        .await
        .unwrap()
        .collect()
        .await
        .unwrap();
    assert_eq!(completion.choices.len(), 4);
    for choice in &completion.choices {
        let finish = choice.finish.as_ref().expect("every completion finishes");
        assert_eq!(finish.finish_reason(), v1::FinishReason::Length);
        assert_eq!(choice.token_ids.len(), 12);
    }
    let distinct: HashSet<_> = completion
        .choices
        .iter()
        .map(|choice| &choice.token_ids)
        .collect();
    assert_eq!(distinct.len(), 4, "samples of one seed differ by index");
    server.stop().await;
}

#[tokio::test]
async fn greedy_completions_of_one_prompt_are_equal_and_share_its_prefill() {
    let server = TestServer::fake().await;
    let before = until_idle(&server.client, "").await;
    let prompt = "a".repeat(100);
    let mut request = text(&prompt, 9);
    request.sampling.as_mut().unwrap().n = Some(5);
    let completion = server
        .client
        .generate(request)
        .await
        .unwrap()
        .collect()
        .await
        .unwrap();
    for choice in &completion.choices[1..] {
        assert_eq!(choice.token_ids, completion.choices[0].token_ids);
    }
    let after = until_idle(&server.client, "").await;
    assert_eq!(after.prompt_tokens_total - before.prompt_tokens_total, 100);
    assert_eq!(after.generated_tokens_total - before.generated_tokens_total, 45);
    server.stop().await;
}
