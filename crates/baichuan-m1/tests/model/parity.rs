//! Equal to the reference: logits and hidden states at every position, and 64 greedy tokens.

use baichuan_engine::Dtype;
use baichuan_engine::model::{HiddenRows, Wants};

use crate::driver::{Driver, Setup, largest_difference, likeliest};
use crate::golden::{CASES, folder, prompts};

const TOLERANCE: f32 = 1e-4;

/// Compares a whole case and gives the largest difference seen in logits and in hidden states.
fn compare(case: &str, setup: Setup, tolerance: f32) {
    let mut driver = Driver::load(&folder(case), setup);
    let (mut of_logits, mut of_hidden) = (0.0_f32, 0.0_f32);
    for golden in prompts(case) {
        let length = golden.tokens.len();
        let mut sequence = driver.start();
        let logits = driver.run(&mut sequence, &golden.tokens, Wants::AllLogits);
        let difference = largest_difference(&logits, &golden.logits);
        assert!(
            difference <= tolerance,
            "{case}, {length} tokens: logits differ by {difference}"
        );
        of_logits = of_logits.max(difference);

        let first = likeliest(&logits[logits.len() / length * (length - 1)..]);
        let greedy = driver.greedy(&mut sequence, first, golden.greedy.len());
        assert_eq!(greedy, golden.greedy, "{case}, {length} tokens");
        driver.free(sequence);

        let mut sequence = driver.start();
        let hidden = driver.run(&mut sequence, &golden.tokens, Wants::Hidden(HiddenRows::All));
        let difference = largest_difference(&hidden, &golden.hidden);
        assert!(
            difference <= tolerance,
            "{case}, {length} tokens: hidden states differ by {difference}"
        );
        of_hidden = of_hidden.max(difference);
        driver.free(sequence);
    }
    eprintln!("{case}: logits differ by {of_logits:.1e} at most, hidden states by {of_hidden:.1e}");
}

#[test]
fn logits_hidden_states_and_greedy_tokens_equal_the_reference() {
    for case in CASES {
        compare(case, Setup::default(), TOLERANCE);
    }
}

#[test]
fn weights_kept_in_bf16_compute_the_same_as_when_widened_to_f32() {
    let setup = Setup {
        dtype: None,
        ..Setup::default()
    };
    compare("bf16_shards", setup, TOLERANCE);
}

#[test]
fn the_length_of_blocks_does_not_matter() {
    for block_tokens in [1, 3, 16, 32] {
        for case in ["alternating", "all_sliding"] {
            let setup = Setup {
                block_tokens,
                ..Setup::default()
            };
            compare(case, setup, TOLERANCE);
        }
    }
}

#[test]
fn half_precision_weights_and_caches_stay_within_their_rounding() {
    let bounds = [(Dtype::F16, 0.02), (Dtype::Bf16, 0.15)];
    for (dtype, bound) in bounds {
        for (dtype, cache_dtype) in [(Some(dtype), None), (Some(Dtype::F32), Some(dtype))] {
            let setup = Setup {
                dtype,
                cache_dtype,
                ..Setup::default()
            };
            for case in ["alternating", "conv_3"] {
                let mut driver = Driver::load(&folder(case), setup);
                for golden in prompts(case) {
                    let logits = driver.logits_in_chunks(&golden.tokens, &[5]);
                    let difference = largest_difference(&logits, &golden.logits);
                    assert!(
                        difference <= bound,
                        "{case} {dtype:?} {cache_dtype:?}: {difference}"
                    );
                    assert!(
                        difference > TOLERANCE,
                        "{case} {dtype:?} {cache_dtype:?}: nothing was rounded"
                    );
                }
            }
        }
    }
}
