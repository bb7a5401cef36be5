//! Greedy tokens, log-probabilities and vectors equal those of `transformers`.

use baichuan_engine::request::Pooling;

use crate::support::{Completed, Vector, collect, embed, golden, greedy, load, one, vector};

async fn tokens_are_those_of_transformers(name: &str) {
    let backend = load(name);
    for (prompt, expected) in golden::<Completed>(name) {
        let mut wish = greedy(&expected.prompt, expected.tokens.len() as u32);
        wish.output.logprobs = Some(2);
        let whole = one(wish.submit(&backend)).await;
        assert_eq!(whole.tokens, expected.tokens, "{name}, {prompt}");
        let logprobs = whole.deltas.iter().flat_map(|d| &d.logprobs);
        for (got, expected) in logprobs.zip(&expected.logprobs) {
            assert!(
                (got.token.logprob - expected).abs() < 1e-3,
                "{name}, {prompt}: {} is not {expected}",
                got.token.logprob
            );
            assert_eq!(got.top[0].id, got.token.id, "greedy takes the likeliest");
            assert!(got.top[1].logprob < got.token.logprob);
        }
    }
}

#[tokio::test]
async fn qwen2_says_what_transformers_says() {
    tokens_are_those_of_transformers("qwen2").await;
}

#[tokio::test]
async fn qwen3_says_what_transformers_says() {
    tokens_are_those_of_transformers("qwen3").await;
}

async fn vectors_are_those_of_transformers(model: &str, pooling: Pooling) {
    let backend = load(model);
    assert_eq!(backend.info().default_pooling, pooling);
    for (name, expected) in golden::<Vector>(model) {
        let stream = backend.submit(embed(&expected.prompt, pooling)).unwrap();
        let values = vector(stream).await.unwrap();
        assert_eq!(values.len(), backend.info().hidden_size);
        for (got, expected) in values.iter().zip(&expected.values) {
            assert!(
                (got - expected).abs() < 1e-3,
                "{model}, {name}: {got} is not {expected}"
            );
        }
    }
}

#[tokio::test]
async fn qwen3_embedding_gives_the_last_tokens_state() {
    vectors_are_those_of_transformers("qwen3-embedding", Pooling::Last).await;
}

/// Windows to both sides, layers without a window, a mean, and two linear layers behind it.
#[tokio::test]
async fn embedding_gemma_gives_the_mean_state() {
    vectors_are_those_of_transformers("embedding-gemma", Pooling::Mean).await;
}

/// mistralrs-core 0.8 gives every row of a batched decode on a CPU the last row's attention. Several requests at once
/// must therefore never be one batch, and each gets what it gets alone.
#[tokio::test]
async fn requests_at_once_get_what_each_gets_alone() {
    let backend = load("qwen3");
    let golden = golden::<Completed>("qwen3");
    let streams: Vec<_> = golden
        .values()
        .map(|expected| greedy(&expected.prompt, expected.tokens.len() as u32).submit(&backend))
        .collect();
    let mut stats = backend.stats();
    assert_eq!(stats.borrow_and_update().slots_total, 1);
    let watched = tokio::spawn(async move {
        let mut most = 0;
        while stats.changed().await.is_ok() {
            most = stats.borrow_and_update().running.max(most);
        }
        most
    });
    for (stream, expected) in streams.into_iter().zip(golden.values()) {
        assert_eq!(collect(stream).await.unwrap()[0].tokens, expected.tokens);
    }
    drop(backend);
    assert_eq!(watched.await.unwrap(), 1, "one sequence at a time on a CPU");
}
