//! A model that chooses tokens itself answers as the host would, and is asked wherever it can be.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use proptest::prelude::*;

use super::bench::*;
use crate::core::Event;
use crate::ids::TokenId;
use crate::request::{GenerateRequest, OutputOptions, SamplingOptions, StoppingOptions};
use crate::testing::{EOS, FakeModel};

/// Events of one request, once with tokens chosen by the host, once by the model, and how many the model chose.
fn both(generate: &GenerateRequest) -> (Vec<Event>, Vec<Event>, u64) {
    let config = config(20, 6, 2, 8);
    let chosen = Arc::new(AtomicU64::new(0));
    let model = FakeModel::new(&config, MAX_CONTEXT, 10).unwrap();
    let mut bench = Bench::with_model(&config, model.that_samples(chosen.clone()));
    let id = bench.submit(request(generate.clone()));
    bench.run();
    bench.assert_empty();
    let by_model = bench.seen.remove(&id).unwrap();
    let by_host = Bench::one(&config, request(generate.clone()));
    (by_host, by_model, chosen.load(Ordering::Relaxed))
}

fn prompt() -> Vec<TokenId> {
    (0..20).chain(3..9).collect()
}

#[test]
fn whoever_chooses_the_tokens_are_the_same() {
    let options = [
        greedy(),
        SamplingOptions::default(),
        SamplingOptions {
            temperature: Some(0.0),
            repetition_penalty: Some(1.5),
            ..Default::default()
        },
        SamplingOptions {
            temperature: Some(0.7),
            top_k: Some(5),
            top_p: Some(0.85),
            repetition_penalty: Some(1.05),
            ..Default::default()
        },
        SamplingOptions {
            min_p: Some(0.05),
            presence_penalty: Some(1.0),
            frequency_penalty: Some(-0.5),
            bad_token_ids: vec![1, 2, 3],
            seed: Some(9),
            ..Default::default()
        },
    ];
    for options in options {
        let generate = generate(&prompt(), options.clone(), max_tokens(25));
        let (by_host, by_model, chosen) = both(&generate);
        assert_eq!(tokens(&by_host, 0), tokens(&by_model, 0), "{options:?}");
        assert_eq!(chosen, 25, "{options:?}: the host chose");
    }
}

#[test]
fn what_may_not_end_a_completion_is_not_chosen_by_the_model_either() {
    let stopping = StoppingOptions {
        min_tokens: Some(20),
        max_tokens: Some(40),
        stop_token_ids: (0..128).collect(),
        ..Default::default()
    };
    let (by_host, by_model, chosen) = both(&generate(&prompt(), SamplingOptions::default(), stopping));
    let tokens_of = tokens(&by_model, 0);
    assert_eq!(tokens(&by_host, 0), tokens_of);
    assert_eq!(chosen as usize, tokens_of.len());
    assert!(tokens_of[..20].iter().all(|token| *token >= 128 && *token != EOS));
    assert_eq!(finished(&by_host, 0).reason, finished(&by_model, 0).reason);
}

#[test]
fn the_host_chooses_where_it_has_to_see_the_logits_or_knows_more() {
    let bias = SamplingOptions {
        logit_bias: [(5, 3.0)].into(),
        ..Default::default()
    };
    let allowed = SamplingOptions {
        allowed_token_ids: vec![1, 2, 3],
        ..Default::default()
    };
    let typical = SamplingOptions {
        typical_p: Some(0.5),
        ..Default::default()
    };
    let mut all: Vec<GenerateRequest> = [bias, allowed, typical]
        .into_iter()
        .map(|options| generate(&prompt(), options, max_tokens(10)))
        .collect();
    all.push(GenerateRequest {
        output: OutputOptions {
            logprobs: Some(2),
            ..OutputOptions::default()
        },
        ..generate(&prompt(), SamplingOptions::default(), max_tokens(10))
    });
    for generate in all {
        let (by_host, by_model, chosen) = both(&generate);
        assert_eq!(tokens(&by_host, 0), tokens(&by_model, 0));
        assert_eq!(chosen, 0, "{:?}", generate.sampling);
    }
}

#[test]
fn completions_that_begin_together_take_their_first_token_from_one_row() {
    let options = SamplingOptions {
        n: Some(3),
        ..Default::default()
    };
    let config = roomy();
    let chosen = Arc::new(AtomicU64::new(0));
    let model = FakeModel::new(&config, MAX_CONTEXT, 10).unwrap();
    let mut bench = Bench::with_model(&config, model.that_samples(chosen.clone()));
    let all = request(generate(&prompt(), options, max_tokens(10)));
    let id = bench.submit(all.clone());
    bench.run();
    let by_model = bench.seen.remove(&id).unwrap();
    let by_host = Bench::one(&config, all);
    for index in 0..3 {
        assert_eq!(tokens(&by_host, index), tokens(&by_model, index));
    }
    assert_eq!(chosen.load(Ordering::Relaxed), 3 * 9);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn whatever_is_asked_whoever_chooses_the_tokens_are_the_same(
        temperature in 0.0f32..2.0,
        top_k in 0u32..20,
        top_p in 0.05f32..=1.0,
        min_p in 0.0f32..0.3,
        repetition in 0.5f32..2.0,
        presence in -2.0f32..2.0,
        frequency in -2.0f32..2.0,
        seed: u64,
    ) {
        let options = SamplingOptions {
            temperature: Some(temperature), top_k: Some(top_k), top_p: Some(top_p), min_p: Some(min_p),
            repetition_penalty: Some(repetition), presence_penalty: Some(presence),
            frequency_penalty: Some(frequency), seed: Some(seed), ..Default::default()
        };
        let (by_host, by_model, chosen) = both(&generate(&prompt(), options, max_tokens(12)));
        prop_assert_eq!(tokens(&by_host, 0), tokens(&by_model, 0));
        prop_assert_eq!(chosen, 12);
    }
}
