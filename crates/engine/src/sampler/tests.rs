//! What the host sampler makes of logits.

use super::*;
use crate::request::{RequestLimits, SamplingOptions};
use proptest::prelude::*;

fn params(options: SamplingOptions) -> SamplingParams {
    options.validate(&RequestLimits::default(), 7).unwrap()
}

fn options() -> SamplingOptions {
    SamplingOptions {
        temperature: Some(1.0),
        ..Default::default()
    }
}

/// How often each token comes of `n` first draws under different seeds.
fn shares(base: SamplingOptions, logits: &[f32], n: u64) -> Vec<f64> {
    let mut counts = vec![0u32; logits.len()];
    for seed in 0..n {
        let params = params(SamplingOptions {
            seed: Some(seed),
            ..base.clone()
        });
        let token = Sampler::new(&params, 0, &[])
            .sample(&params, logits, &[], None)
            .unwrap()
            .unwrap();
        counts[token as usize] += 1;
    }
    counts.into_iter().map(|c| f64::from(c) / n as f64).collect()
}

#[test]
fn greedy_takes_the_first_of_the_largest() {
    let params = params(SamplingOptions {
        temperature: Some(0.0),
        ..Default::default()
    });
    let mut sampler = Sampler::new(&params, 0, &[]);
    assert_eq!(
        sampler
            .sample(&params, &[0.0, 3.0, 1.0, 3.0], &[], None)
            .unwrap()
            .unwrap(),
        1
    );
    assert_eq!(
        sampler
            .sample(&params, &[0.0, 3.0, 1.0, 3.0], &[1], None)
            .unwrap()
            .unwrap(),
        3
    );
}

#[test]
fn draws_follow_the_softmax() {
    let logits = [1.0f32, 2.0, 0.0];
    for temperature in [0.5f32, 1.0, 2.0] {
        let weights: Vec<f64> = logits.iter().map(|l| f64::from(l / temperature).exp()).collect();
        let total: f64 = weights.iter().sum();
        let got = shares(
            SamplingOptions {
                temperature: Some(temperature),
                ..Default::default()
            },
            &logits,
            20_000,
        );
        for (share, weight) in got.iter().zip(&weights) {
            assert!((share - weight / total).abs() < 0.015, "{got:?} at {temperature}");
        }
    }
}

#[test]
fn filters_leave_what_they_should() {
    // Probabilities 0.5, 0.25, 0.15, 0.1.
    let logits: Vec<f32> = [0.5f32, 0.25, 0.15, 0.1].iter().map(|p| p.ln()).collect();
    let left = |options: SamplingOptions| -> Vec<TokenId> {
        let mut ids: Vec<_> = filter::candidates(&Filters::of(&params(options)), &logits)
            .iter()
            .map(|c| c.id)
            .collect();
        ids.sort_unstable();
        ids
    };
    assert_eq!(left(options()), [0, 1, 2, 3]);
    assert_eq!(
        left(SamplingOptions {
            top_k: Some(2),
            ..options()
        }),
        [0, 1]
    );
    assert_eq!(
        left(SamplingOptions {
            top_p: Some(0.5),
            ..options()
        }),
        [0]
    );
    assert_eq!(
        left(SamplingOptions {
            top_p: Some(0.51),
            ..options()
        }),
        [0, 1]
    );
    assert_eq!(
        left(SamplingOptions {
            top_p: Some(1e-6),
            ..options()
        }),
        [0]
    );
    assert_eq!(
        left(SamplingOptions {
            min_p: Some(0.29),
            ..options()
        }),
        [0, 1, 2]
    );
    assert_eq!(
        left(SamplingOptions {
            min_p: Some(1.0),
            ..options()
        }),
        [0]
    );
    // Entropy 1.21 nats; surprises 0.69, 1.39, 1.90, 2.30: the second is the most typical.
    assert_eq!(
        left(SamplingOptions {
            typical_p: Some(0.2),
            ..options()
        }),
        [1]
    );
    assert_eq!(
        left(SamplingOptions {
            typical_p: Some(0.7),
            ..options()
        }),
        [0, 1]
    );
    assert_eq!(
        left(SamplingOptions {
            top_k: Some(3),
            top_p: Some(0.8),
            ..options()
        }),
        [0, 1]
    );
}

/// Of equally likely tokens a share is a number of tokens, whatever sums of their probabilities would round to.
#[test]
fn a_share_of_equals_is_a_whole_number_of_them() {
    for n in 1..200u32 {
        for (top_p, kept) in [
            (0.5f32, n.div_ceil(2)),
            (0.25, n.div_ceil(4)),
            (0.75, (3 * n).div_ceil(4)),
        ] {
            let wish = SamplingOptions {
                top_p: Some(top_p),
                ..options()
            };
            let left = filter::candidates(&Filters::of(&params(wish)), &vec![1.5; n as usize]);
            assert_eq!(left.len(), kept as usize, "{top_p} of {n}");
        }
        let all = filter::candidates(&Filters::of(&params(options())), &vec![1.5; n as usize]);
        for id in 0..n {
            assert_eq!(
                filter::pick(&all, f64::from(id) / f64::from(n) + 1e-9),
                Some(id),
                "of {n}"
            );
        }
    }
}

#[test]
fn penalties_bias_and_lists_move_logits_as_documented() {
    let logits = [2.0f32, -2.0, 1.0, 0.5];
    let adjusted = |options: SamplingOptions, prompt: &[TokenId], generated: &[TokenId]| {
        let params = params(options);
        let mut sampler = Sampler::new(&params, 0, prompt);
        for id in generated {
            sampler.note(*id);
        }
        sampler.adjust(&params, &logits, &[], None)
    };
    let repetition = SamplingOptions {
        repetition_penalty: Some(2.0),
        ..options()
    };
    assert_eq!(adjusted(repetition, &[0, 1], &[0, 3, 3]), [1.0, -4.0, 1.0, 0.25]);
    let presence = SamplingOptions {
        presence_penalty: Some(0.5),
        ..options()
    };
    assert_eq!(adjusted(presence, &[0], &[3, 3, 2]), [2.0, -2.0, 0.5, 0.0]);
    let frequency = SamplingOptions {
        frequency_penalty: Some(0.5),
        ..options()
    };
    assert_eq!(adjusted(frequency, &[0], &[3, 3, 2]), [2.0, -2.0, 0.5, -0.5]);
    let bias = SamplingOptions {
        logit_bias: [(1, 10.0)].into(),
        bad_token_ids: vec![0],
        ..options()
    };
    assert_eq!(adjusted(bias, &[], &[]), [f32::NEG_INFINITY, 8.0, 1.0, 0.5]);
    let allowed = SamplingOptions {
        allowed_token_ids: vec![1, 3],
        ..options()
    };
    assert_eq!(
        adjusted(allowed, &[], &[]),
        [f32::NEG_INFINITY, -2.0, f32::NEG_INFINITY, 0.5]
    );
}

#[test]
fn a_row_that_is_not_finite_is_an_error() {
    let params = params(options());
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let result = Sampler::new(&params, 0, &[]).sample(&params, &[0.0, bad], &[], None);
        assert!(matches!(result, Err(StepError::NotFinite)));
    }
}

#[test]
fn what_may_not_end_is_chosen_when_nothing_else_is_allowed() {
    let params = params(SamplingOptions {
        allowed_token_ids: vec![2],
        ..options()
    });
    assert_eq!(
        Sampler::new(&params, 0, &[])
            .sample(&params, &[0.0; 4], &[2], None)
            .unwrap()
            .unwrap(),
        2
    );
}

#[test]
fn logprobs_are_of_the_model_alone() {
    let logits: Vec<f32> = [0.5f32, 0.25, 0.15, 0.1].iter().map(|p| p.ln() + 3.0).collect();
    let (logprob, top) = top_logprobs(&logits, 3, 2);
    assert!((logprob - 0.1f32.ln()).abs() < 1e-5);
    assert_eq!(top.iter().map(|t| t.0).collect::<Vec<_>>(), [0, 1]);
    assert!((top[1].1 - 0.25f32.ln()).abs() < 1e-5);
    assert_eq!(top_logprobs(&logits, 0, 0).1, []);
    assert_eq!(top_logprobs(&logits, 0, 20).1.len(), 4);
}

proptest! {
    /// A draw depends on seed, index and number alone, and completions of one seed differ.
    #[test]
    fn a_seed_gives_the_same_tokens_again(seed: u64, index in 0u32..4) {
        let params = params(SamplingOptions { seed: Some(seed), ..options() });
        let logits = vec![0.0f32; 1000];
        let draw = |index: u32| -> Vec<TokenId> {
            let mut sampler = Sampler::new(&params, index, &[]);
            (0..8).map(|_| sampler.sample(&params, &logits, &[], None).unwrap().unwrap()).collect()
        };
        prop_assert_eq!(draw(index), draw(index));
        prop_assert_ne!(draw(index), draw(index + 1));
    }

    /// Only what every filter and list allows is ever drawn.
    #[test]
    fn a_draw_is_one_of_the_candidates(
        logits in proptest::collection::vec(-8.0f32..8.0, 2..40),
        temperature in 0.05f32..3.0,
        top_k in 0u32..10,
        top_p in 0.01f32..=1.0,
        min_p in 0.0f32..=1.0,
        typical_p in 0.01f32..=1.0,
        seed: u64,
    ) {
        let params = params(SamplingOptions {
            temperature: Some(temperature), top_k: Some(top_k), top_p: Some(top_p), min_p: Some(min_p),
            typical_p: Some(typical_p), seed: Some(seed), ..Default::default()
        });
        let candidates = filter::candidates(&Filters::of(&params), &logits);
        prop_assert!(!candidates.is_empty());
        let token = Sampler::new(&params, 0, &[]).sample(&params, &logits, &[], None).unwrap().unwrap();
        prop_assert!(candidates.iter().any(|c| c.id == token));
    }
}
