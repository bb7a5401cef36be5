//! Log-probabilities are those of the model, before any sampling parameter.

use baichuan_client::{Client, v1};
use baichuan_engine::testing::logits;
use e2e::{TestServer, refusal, tokens};

/// Of every token behind `sequence`, from the fake model's own logits.
fn expected(sequence: &[u32]) -> Vec<f32> {
    let row = logits(sequence);
    let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = row.iter().map(|l| f64::from(l - max).exp()).sum();
    row.iter().map(|l| l - max - sum.ln() as f32).collect()
}

fn check(reported: &v1::TokenLogprob, sequence: &[u32], n_top: usize) {
    let all = expected(sequence);
    let near = |a: f32, b: f32| (a - b).abs() < 1e-4;
    assert!(
        near(reported.logprob, all[reported.token_id as usize]),
        "{reported:?}"
    );
    assert_eq!(reported.top.len(), n_top);
    let mut best = all.clone();
    best.sort_by(|a, b| b.total_cmp(a));
    for (top, best) in reported.top.iter().zip(best) {
        assert!(
            near(top.logprob, best) && near(all[top.token_id as usize], best),
            "{top:?}"
        );
    }
}

async fn run(client: &Client, request: v1::GenerateRequest) -> baichuan_client::Completion {
    client.generate(request).await.unwrap().collect().await.unwrap()
}

#[tokio::test]
async fn every_generated_token_comes_with_its_own_and_the_likeliest_ones() {
    let server = TestServer::fake().await;
    let prompt: Vec<u32> = (40..60).collect();
    let mut request = tokens(&prompt, 8);
    request.output.as_mut().unwrap().logprobs = Some(3);
    // Sampling far from the model's own distribution: what is reported must not follow.
    request.sampling = Some(v1::SamplingParams {
        temperature: Some(3.0),
        seed: Some(1),
        repetition_penalty: Some(1.5),
        ..Default::default()
    });
    let completion = run(&server.client, request).await;
    let choice = &completion.choices[0];
    assert_eq!(choice.logprobs.len(), 8);
    for (at, reported) in choice.logprobs.iter().enumerate() {
        assert_eq!(reported.token_id, choice.token_ids[at]);
        check(reported, &[&prompt[..], &choice.token_ids[..at]].concat(), 3);
    }
    server.stop().await;
}

#[tokio::test]
async fn zero_likeliest_ones_still_give_the_tokens_own() {
    let server = TestServer::fake().await;
    let mut request = tokens(&[1, 2, 3], 4);
    request.output.as_mut().unwrap().logprobs = Some(0);
    let completion = run(&server.client, request).await;
    assert_eq!(completion.choices[0].logprobs.len(), 4);
    check(&completion.choices[0].logprobs[0], &[1, 2, 3], 0);
    server.stop().await;
}

#[tokio::test]
async fn a_prompts_own_come_with_its_admission_for_all_but_the_first_token() {
    let server = TestServer::fake().await;
    // Longer than a chunk of prefill.
    let prompt: Vec<u32> = (0..600).map(|i| i % 250).collect();
    let mut request = tokens(&prompt, 1);
    request.output.as_mut().unwrap().prompt_logprobs = Some(2);
    let info = run(&server.client, request).await.info.unwrap();
    assert_eq!(info.prompt_logprobs.len(), prompt.len() - 1);
    for at in [0, 1, 254, 255, 256, 511, 598] {
        let reported = &info.prompt_logprobs[at];
        assert_eq!(reported.token_id, prompt[at + 1]);
        check(reported, &prompt[..=at], 2);
    }
    server.stop().await;
}

#[tokio::test]
async fn more_than_twenty_are_too_many() {
    let server = TestServer::fake().await;
    let mut request = tokens(&[1], 1);
    request.output.as_mut().unwrap().logprobs = Some(21);
    let refusal = refusal(server.client.generate(request).await);
    assert_eq!(refusal.violations[0].field, "output.logprobs");
    server.stop().await;
}
