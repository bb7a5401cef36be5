//! Quantised weights: how far from what they stand for, the same to the bit in any company, and the same however they
//! came to be.
//!
//! Products of quantised weights round their input to bytes too, 32 of them sharing a step; `baichuan-kernels` holds
//! each product to the bound that follows. What becomes of it through a whole model is stated here.

use std::path::Path;

use baichuan_engine::model::Wants;
use baichuan_engine::{CacheDtype, Dtype};
use baichuan_kernels::GgmlFormat;
use baichuan_m1::random::{Preset, Recipe};
use tempfile::TempDir;

use crate::driver::{Driver, Setup, bits, likeliest};
use crate::golden::{CASES, folder, prompts};
use crate::rewrite;

/// A product's input is within 1/254 of the largest of 32 numbers: through four layers that becomes, at most, so much
/// of the length of a row of logits.
const ACTIVATIONS_ROUNDED: f32 = 0.06;

/// The same of weights in bf16, whose products take their input in bf16 as well.
const ACTIVATIONS_IN_BF16: f32 = 0.01;

fn tiny() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    Recipe::new(Preset::Tiny)
        .write(folder.path(), &|_, _| {})
        .unwrap();
    folder
}

fn tokens(n: usize) -> Vec<u32> {
    (0..n as u32).map(|i| (i * 197 + 31) % 509 + 3).collect()
}

fn quantised(format: GgmlFormat) -> Setup {
    Setup {
        dtype: None,
        cache_dtype: Some(CacheDtype::F32),
        isq: Some(format),
        ..Setup::default()
    }
}

/// The largest of all rows' distances, each as a part of the length of the reference's row.
pub(crate) fn relative_distance(rows: &[f32], reference: &[f32], width: usize) -> f32 {
    assert_eq!(rows.len(), reference.len());
    let length = |x: &mut dyn Iterator<Item = f32>| x.map(|x| x * x).sum::<f32>().sqrt();
    let each = rows.chunks_exact(width).zip(reference.chunks_exact(width));
    each.map(|(row, reference)| {
        let apart = length(&mut row.iter().zip(reference).map(|(a, b)| a - b));
        apart / length(&mut reference.iter().copied())
    })
    .fold(0.0, f32::max)
}

/// Logits of a checkpoint in f32, columns multiplied by the lengths that its head was divided by.
fn reference_logits(dir: &Path, lengths: &[f32], tokens: &[u32]) -> Vec<f32> {
    let mut logits = Driver::load(dir, Setup::default()).logits_in_chunks(tokens, &[tokens.len()]);
    for row in logits.chunks_exact_mut(lengths.len()) {
        row.iter_mut().zip(lengths).for_each(|(x, length)| *x *= length);
    }
    logits
}

#[test]
fn logits_are_those_of_the_dequantised_weights_but_for_the_rounding_of_activations() {
    let checkpoint = tiny();
    let tokens = tokens(40);
    for format in GgmlFormat::ALL {
        let (plain, lengths) = rewrite::dequantised(checkpoint.path(), format);
        let reference = reference_logits(plain.path(), &lengths, &tokens);
        let mut driver = Driver::load(checkpoint.path(), quantised(format));
        let logits = driver.logits_in_chunks(&tokens, &[tokens.len()]);
        let distance = relative_distance(&logits, &reference, lengths.len());
        eprintln!("{format:?}: {distance:.1e}");
        assert!(distance <= ACTIVATIONS_ROUNDED, "{format:?}: {distance}");
        assert!(distance > 0.0, "{format:?}: nothing was rounded");
    }
}

#[test]
fn weights_in_bf16_move_logits_by_the_rounding_of_activations_only() {
    let checkpoint = tiny();
    let tokens = tokens(40);
    let logits = |dtype| {
        let setup = Setup {
            dtype,
            cache_dtype: Some(CacheDtype::F32),
            ..Setup::default()
        };
        let mut driver = Driver::load(checkpoint.path(), setup);
        (
            driver.vocab_size(),
            driver.logits_in_chunks(&tokens, &[tokens.len()]),
        )
    };
    let ((vocab, kept), (_, widened)) = (logits(None), logits(Some(Dtype::F32)));
    let distance = relative_distance(&kept, &widened, vocab);
    eprintln!("bf16: {distance:.1e}");
    assert!(distance <= ACTIVATIONS_IN_BF16, "{distance}");
}

#[test]
fn checkpoints_of_mlx_load_as_they_are_and_their_head_is_not_normalised_again() {
    let checkpoint = tiny();
    let tokens = tokens(40);
    for group in [32, 64, 128] {
        let (affine, plain, lengths) = rewrite::affine(checkpoint.path(), group);
        let reference = reference_logits(plain.path(), &lengths, &tokens);
        let setup = Setup {
            dtype: None,
            cache_dtype: Some(CacheDtype::F32),
            ..Setup::default()
        };
        let mut driver = Driver::load(affine.path(), setup);
        let logits = driver.logits_in_chunks(&tokens, &[7]);
        let distance = relative_distance(&logits, &reference, lengths.len());
        eprintln!("groups of {group}: {distance:.1e}");
        assert!(distance <= ACTIVATIONS_ROUNDED, "groups of {group}: {distance}");
        let whole = driver.logits_in_chunks(&tokens, &[tokens.len()]);
        assert_eq!(bits(&whole), bits(&logits), "groups of {group}");
    }
}

#[test]
fn scales_of_mlx_that_are_no_numbers_are_refused_by_name() {
    let (affine, ..) = rewrite::affine(tiny().path(), 32);
    let spoilt = rewrite::rewritten(affine.path(), |tensors, _| {
        let (_, _, bytes) = tensors.get_mut("model.embed_tokens.scales").unwrap();
        bytes[..2].copy_from_slice(&half::bf16::NAN.to_le_bytes());
    });
    let setup = Setup {
        dtype: None,
        ..Setup::default()
    };
    assert!(Driver::try_load(affine.path(), setup).is_ok());
    let error = Driver::try_load(spoilt.path(), setup).err().expect("no number");
    assert!(
        error.to_string().contains("`model.embed_tokens.scales` has NaN"),
        "{error}"
    );
}

#[test]
fn company_and_chunks_do_not_show_in_any_format() {
    let prompts: Vec<_> = prompts("alternating")
        .into_iter()
        .map(|golden| golden.tokens)
        .collect();
    for format in GgmlFormat::ALL {
        let mut driver = Driver::load(&folder("alternating"), quantised(format));
        let alone: Vec<_> = prompts
            .iter()
            .map(|tokens| driver.logits_in_chunks(tokens, &[1]))
            .collect();
        for (tokens, alone) in prompts.iter().zip(&alone) {
            for chunk in [2, 5, 9, 64] {
                let cut = driver.logits_in_chunks(tokens, &[chunk]);
                assert_eq!(bits(&cut), bits(alone), "{format:?}, chunks of {chunk}");
            }
        }
        let mut greedy_alone = Vec::new();
        for (tokens, alone) in prompts.iter().zip(&alone) {
            let mut sequence = driver.start();
            driver.run(&mut sequence, tokens, Wants::Nothing);
            let first = likeliest(&alone[alone.len() / tokens.len() * (tokens.len() - 1)..]);
            greedy_alone.push(driver.greedy(&mut sequence, first, 6));
            driver.free(sequence);
        }
        let mut sequences: Vec<_> = prompts.iter().map(|_| driver.start()).collect();
        let mut work: Vec<_> = sequences
            .iter_mut()
            .zip(&prompts)
            .map(|(sequence, tokens)| (sequence, tokens.as_slice(), Wants::AllLogits))
            .collect();
        let together = driver.step(&mut work);
        for (together, alone) in together.iter().zip(&alone) {
            assert_eq!(bits(together), bits(alone), "{format:?} side by side");
        }
        for step in 0..5 {
            let mut work: Vec<_> = sequences
                .iter_mut()
                .zip(&greedy_alone)
                .map(|(sequence, tokens)| (sequence, &tokens[step..=step], Wants::LastLogits))
                .collect();
            let logits = driver.step(&mut work);
            for (row, tokens) in logits.iter().zip(&greedy_alone) {
                assert_eq!(
                    likeliest(row),
                    tokens[step + 1],
                    "{format:?}, token {step} side by side"
                );
            }
        }
    }
}

/// How often the likeliest next token of a golden prompt is the reference's, over all prompts of all cases.
fn agreement(format: GgmlFormat) -> f32 {
    let (mut same, mut of) = (0, 0);
    for case in CASES {
        let mut driver = Driver::load(&folder(case), quantised(format));
        let vocab = driver.vocab_size();
        for golden in prompts(case) {
            let logits = driver.logits_in_chunks(&golden.tokens, &[golden.tokens.len()]);
            for (row, reference) in logits.chunks(vocab).zip(golden.logits.chunks(vocab)) {
                same += usize::from(likeliest(row) == likeliest(reference));
                of += 1;
            }
        }
    }
    same as f32 / of as f32
}

#[test]
fn the_likeliest_token_is_mostly_that_of_the_reference() {
    // Random weights, whose best and second-best logits lie close: a trained model agrees more often.
    for (format, least) in [
        (GgmlFormat::Q8_0, 0.93),
        (GgmlFormat::Q6K, 0.88),
        (GgmlFormat::Q4K, 0.6),
        (GgmlFormat::Q4_0, 0.6),
    ] {
        let agreement = agreement(format);
        eprintln!("{format:?}: {agreement:.3}");
        assert!(agreement >= least, "{format:?}: {agreement}");
    }
}
