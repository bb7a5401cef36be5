//! Equal to the reference: logits and hidden states at every position, and 64 greedy tokens.

use std::path::Path;

use baichuan_engine::model::{HiddenRows, Wants};
use baichuan_engine::{CacheDtype, Dtype};

use crate::driver::{Driver, Setup, largest_difference, likeliest};
use crate::golden::{CASES, folder, prompts};
use crate::quantised::relative_distance;

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

/// Their products take activations in bf16 too.
#[test]
fn weights_kept_in_bf16_stay_within_the_rounding_of_activations() {
    const BOUND: f32 = 0.05;
    let setup = Setup {
        dtype: None,
        ..Setup::default()
    };
    let mut driver = Driver::load(&folder("bf16_shards"), setup);
    let mut seen = 0.0_f32;
    for golden in prompts("bf16_shards") {
        let logits = driver.logits_in_chunks(&golden.tokens, &[5]);
        seen = seen.max(largest_difference(&logits, &golden.logits));
    }
    eprintln!("bf16_shards: logits differ by {seen:.1e} at most");
    assert!(seen > TOLERANCE && seen <= BOUND, "{seen}");
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
    let (f32, f16, bf16) = (Some(Dtype::F32), Some(Dtype::F16), Some(Dtype::Bf16));
    for (dtype, cache_dtype, bound) in [
        (f16, None, 0.02),
        (f32, Some(CacheDtype::F16), 0.02),
        (bf16, None, 0.15),
        (f32, Some(CacheDtype::Bf16), 0.15),
        (f32, Some(CacheDtype::Int8), 0.25),
    ] {
        let setup = Setup {
            dtype,
            cache_dtype,
            ..Setup::default()
        };
        let mut seen = 0.0_f32;
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
                seen = seen.max(difference);
            }
        }
        eprintln!("{dtype:?}, cache {cache_dtype:?}: logits differ by {seen:.1e} at most");
    }
}

#[test]
fn keys_and_values_in_eight_bits_leave_the_likeliest_token_nearly_everywhere() {
    let setup = Setup {
        cache_dtype: Some(CacheDtype::Int8),
        ..Setup::default()
    };
    let (mut same, mut of, mut distance) = (0, 0, 0.0_f32);
    for case in CASES {
        let mut driver = Driver::load(&folder(case), setup);
        let vocab = driver.vocab_size();
        for golden in prompts(case) {
            let logits = driver.logits_in_chunks(&golden.tokens, &[golden.tokens.len()]);
            distance = distance.max(relative_distance(&logits, &golden.logits, vocab));
            for (row, reference) in logits.chunks(vocab).zip(golden.logits.chunks(vocab)) {
                same += usize::from(likeliest(row) == likeliest(reference));
                of += 1;
            }
        }
    }
    eprintln!(
        "the same in {same} of {of} places, rows of logits {distance:.1e} of their length apart at most"
    );
    // Random weights, whose best and second-best logits lie close: a trained model agrees more often.
    assert!(same < of, "nothing was rounded");
    assert!(same * 100 >= of * 97, "the same in {same} of {of} places");
    assert!(distance <= 0.08, "{distance}");
}

/// Chats whose likelihood was measured when the checkpoint was trained, by another implementation in f32.
#[derive(serde::Deserialize)]
struct HeldOut {
    texts: Vec<HeldOutText>,
}

#[derive(serde::Deserialize)]
struct HeldOutText {
    ids: Vec<u32>,
    prompt_tokens: usize,
    /// Σ −ln p over the tokens after the prompt.
    nll: f64,
}

/// What a model makes of a text's `nll`.
fn nll(driver: &mut Driver, text: &HeldOutText) -> f64 {
    let vocab = driver.vocab_size();
    let logits = driver.logits_in_chunks(&text.ids, &[text.ids.len()]);
    let minus_log_p = |position: usize| {
        let row = &logits[(position - 1) * vocab..][..vocab];
        let sum: f64 = row.iter().map(|&x| f64::from(x).exp()).sum();
        sum.ln() - f64::from(row[text.ids[position] as usize])
    };
    (text.prompt_tokens..text.ids.len()).map(minus_log_p).sum()
}

#[test]
fn keys_and_values_in_eight_bits_leave_texts_as_likely_to_the_trained_checkpoint() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/baichuan-m1-wordnet");
    let held_out = std::fs::read(dir.join("held-out.json")).unwrap();
    let held_out: HeldOut = serde_json::from_slice(&held_out).unwrap();
    let setup = Setup {
        cache_dtype: Some(CacheDtype::Int8),
        ..Setup::default()
    };
    let mut driver = Driver::load(&dir, setup);
    let (mut ours, mut theirs) = (0.0, 0.0);
    for text in held_out.texts.iter().step_by(5) {
        (ours, theirs) = (ours + nll(&mut driver, text), theirs + text.nll);
    }
    eprintln!("{ours} instead of {theirs}");
    let change = (ours / theirs - 1.0).abs();
    assert!(change < 0.01, "{ours} instead of {theirs}");
    assert!(change > 1e-6, "nothing was rounded");
}

#[test]
fn the_trained_checkpoint_finds_texts_as_likely_as_its_trainers_did() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/baichuan-m1-wordnet");
    let held_out = std::fs::read(dir.join("held-out.json")).unwrap();
    let held_out: HeldOut = serde_json::from_slice(&held_out).unwrap();
    let mut driver = Driver::load(&dir, Setup::default());
    let (mut ours, mut theirs) = (0.0, 0.0);
    for text in &held_out.texts {
        let nll = nll(&mut driver, text);
        // They kept the normalised head in f32; here it is rounded to bf16, as the checkpoint's own type.
        let bound = 2e-3 * text.nll;
        assert!(
            (nll - text.nll).abs() < bound,
            "{:?}: {nll} instead of {}",
            text.ids,
            text.nll
        );
        (ours, theirs) = (ours + nll, theirs + text.nll);
    }
    assert!(
        (ours / theirs - 1.0).abs() < 1e-4,
        "{ours} instead of {theirs} over all texts"
    );
}
