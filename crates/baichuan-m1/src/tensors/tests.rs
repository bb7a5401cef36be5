//! The model over candle's tensors against the host's: on the processor, and with the feature `metal` on an Apple GPU.

use std::path::{Path, PathBuf};

use baichuan_engine::config::{CacheBudget, CacheConfig};
use baichuan_engine::model::{CacheCopy, Freed, StepEntry, Wants};
use baichuan_engine::{BlockId, CacheDtype, Dtype, EngineConfig, IsqType, LoadError, Topology};
use baichuan_kernels::Threads;

use super::*;
use crate::load::LoadOptions;
use crate::model::BaichuanM1;

/// What the tests of the host's model rewrite checkpoints with.
#[path = "../../tests/model/rewrite.rs"]
#[expect(dead_code, reason = "the rest is theirs")]
mod rewrite;

const SEQUENCES: usize = 3;
const TOKENS: usize = 48;

#[cfg(not(feature = "metal"))]
fn device() -> Device {
    Device::Cpu
}

#[cfg(feature = "metal")]
fn device() -> Device {
    metal::open(0).unwrap()
}

fn golden() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden");
    let mut folders: Vec<_> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.join("golden.safetensors").exists())
        .collect();
    folders.sort();
    assert!(folders.len() >= 8, "{folders:?}");
    folders
}

fn engine(block_tokens: usize) -> EngineConfig {
    let blocks = SEQUENCES * TOKENS.div_ceil(block_tokens);
    EngineConfig {
        max_sequences: SEQUENCES,
        cache: CacheConfig {
            block_tokens,
            budget: CacheBudget::Blocks {
                global: blocks,
                window: blocks,
            },
            ..CacheConfig::default()
        },
        ..EngineConfig::default()
    }
}

fn host(dir: &Path, engine: &EngineConfig) -> BaichuanM1 {
    let options = LoadOptions {
        dtype: Some(Dtype::F32),
        cache_dtype: Some(CacheDtype::F32),
        isq: None,
        topology: &Topology::default(),
        threads: Threads::new(1).unwrap(),
        engine,
        progress: &|_| {},
    };
    crate::load::load(dir, &options).unwrap().model
}

fn tensors(
    dir: &Path,
    engine: &EngineConfig,
    isq: Option<IsqType>,
) -> std::result::Result<TensorModel, LoadError> {
    tensors_in(Dtype::F32, dir, engine, isq)
}

fn tensors_in(
    dtype: Dtype,
    dir: &Path,
    engine: &EngineConfig,
    isq: Option<IsqType>,
) -> std::result::Result<TensorModel, LoadError> {
    let options = TensorOptions {
        device: device(),
        dtype: Some(dtype),
        isq,
        topology: &Topology::default(),
        engine,
        free_bytes: &|_| Ok(1 << 30),
        progress: &|_| {},
    };
    load(dir, &options).map(|loaded| loaded.model)
}

fn tokens(model: &dyn CausalLm, salt: u32) -> Vec<u32> {
    let vocab = model.spec().vocab_size as u32;
    (0..TOKENS as u32)
        .map(|i| (i * 197 + 31 * salt + 7) % (vocab - 3) + 3)
        .collect()
}

/// Blocks of a sequence's own, in no good order.
fn blocks(block_tokens: usize, sequence: usize) -> Vec<BlockId> {
    let each = TOKENS.div_ceil(block_tokens);
    (0..each)
        .rev()
        .map(|i| BlockId((i * SEQUENCES + sequence) as u32))
        .collect()
}

/// Logits of every token of every sequence. Step by step each sequence goes on by its next part, `parts[sequence]` in turns.
fn logits(model: &mut dyn CausalLm, block_tokens: usize, parts: [&[usize]; SEQUENCES]) -> Vec<Vec<f32>> {
    let all: Vec<Vec<u32>> = (0..SEQUENCES as u32).map(|salt| tokens(model, salt)).collect();
    let of: Vec<Vec<BlockId>> = (0..SEQUENCES)
        .map(|sequence| blocks(block_tokens, sequence))
        .collect();
    let slot = |sequence: usize| SlotId(sequence as u32);
    let everything: Vec<BlockId> = of.concat();
    for sequence in 0..SEQUENCES {
        model.scrub(&Freed {
            slot: slot(sequence),
            global: &everything,
            window: &everything,
        });
        model.reset_slot(slot(sequence));
    }
    let mut done = [0; SEQUENCES];
    let mut rows = vec![Vec::new(); SEQUENCES];
    for turn in 0.. {
        let mut entries = Vec::new();
        let mut whose = Vec::new();
        for sequence in 0..SEQUENCES {
            let start = done[sequence];
            let n = parts[sequence][turn % parts[sequence].len()].min(TOKENS - start);
            if n == 0 {
                continue;
            }
            done[sequence] += n;
            whose.push(sequence);
            entries.push(StepEntry {
                slot: slot(sequence),
                tokens: &all[sequence][start..start + n],
                start,
                global: &of[sequence],
                window: &of[sequence],
                wants: Wants::AllLogits,
            });
        }
        if entries.is_empty() {
            return rows;
        }
        let output = model.forward(&StepBatch { entries: &entries }).unwrap();
        for (sequence, got) in whose.into_iter().zip(&output.entries) {
            got.iter().for_each(|row| rows[sequence].extend_from_slice(row));
        }
    }
    unreachable!("sequences end")
}

fn farthest(a: &[Vec<f32>], b: &[Vec<f32>]) -> f32 {
    let pairs = a.iter().flatten().zip(b.iter().flatten());
    assert_eq!(a.concat().len(), b.concat().len());
    pairs
        .map(|(a, b)| (a - b).abs())
        .fold(0.0, |far, x| if x > far || x.is_nan() { x } else { far })
}

#[test]
fn logits_are_the_host_s_however_prompts_are_cut_and_mixed() {
    for dir in golden() {
        // Rings as long as their window, and longer ones.
        for block_tokens in [1, 4] {
            let engine = engine(block_tokens);
            let expected = logits(&mut host(&dir, &engine), block_tokens, [&[TOKENS]; SEQUENCES]);
            let mut model = tensors(&dir, &engine, None).unwrap();
            for parts in [
                [&[TOKENS][..]; SEQUENCES],
                [&[1], &[5, 1], &[16]],
                [&[3], &[1], &[1]],
            ] {
                let got = logits(&mut model, block_tokens, parts);
                let off = farthest(&got, &expected);
                assert!(
                    off < 1e-4,
                    "{dir:?}, blocks of {block_tokens}, {parts:?}: off by {off}"
                );
            }
        }
    }
}

#[test]
fn in_f16_logits_are_near_those_in_f32_however_prompts_are_cut() {
    for dir in golden() {
        let engine = engine(4);
        let expected = logits(&mut host(&dir, &engine), 4, [&[TOKENS]; SEQUENCES]);
        let mut model = tensors_in(Dtype::F16, &dir, &engine, None).unwrap();
        for parts in [[&[TOKENS][..]; SEQUENCES], [&[1], &[5, 1], &[16]]] {
            let off = farthest(&logits(&mut model, 4, parts), &expected);
            assert!(off > 0.0 && off < 0.03, "{dir:?}, {parts:?}: off by {off}");
        }
    }
}

#[test]
fn a_copied_sequence_goes_on_as_the_first_does() {
    let (dir, engine) = (&golden()[0], engine(4));
    let mut model = tensors(dir, &engine, None).unwrap();
    let expected = logits(&mut model, 4, [&[TOKENS]; SEQUENCES]);
    let all = tokens(&model, 0);
    let (first, second) = (blocks(4, 0), blocks(4, 1));
    let forward = |model: &mut TensorModel, slot: u32, blocks: &[BlockId], start: usize, end: usize| {
        let entry = StepEntry {
            slot: SlotId(slot),
            tokens: &all[start..end],
            start,
            global: blocks,
            window: blocks,
            wants: Wants::LastLogits,
        };
        let output = model.forward(&StepBatch { entries: &[entry] }).unwrap();
        output.entries[0].iter().next().unwrap().to_vec()
    };
    model.reset_slot(SlotId(0));
    forward(&mut model, 0, &first, 0, TOKENS - 1);
    let pairs: Vec<(BlockId, BlockId)> = first.iter().copied().zip(second.iter().copied()).collect();
    model
        .copy(&CacheCopy {
            slot: (SlotId(0), SlotId(1)),
            global: &pairs,
            window: &pairs,
        })
        .unwrap();
    let last = forward(&mut model, 1, &second, TOKENS - 1, TOKENS);
    let width = last.len();
    let expected = expected[0][(TOKENS - 1) * width..].to_vec();
    assert!(farthest(&[last], &[expected]) < 1e-4);
}

#[test]
fn mistral_rs_quantises_the_layers_or_says_what_cannot_be() {
    let folder = tempfile::tempdir().unwrap();
    crate::random::Recipe::new(crate::random::Preset::Tiny)
        .write(folder.path(), &|_, _| {})
        .unwrap();
    let engine = engine(4);
    let mut plain = tensors(folder.path(), &engine, None).unwrap();
    let expected = logits(&mut plain, 4, [&[TOKENS]; SEQUENCES]);
    let largest = expected.iter().flatten().fold(0f32, |most, x| most.max(x.abs()));
    for (isq, bound) in [(IsqType::Q8_0, 0.1), (IsqType::AFQ8, 0.1), (IsqType::AFQ4, 0.6)] {
        let mut quantised = tensors(folder.path(), &engine, Some(isq)).unwrap();
        let off = farthest(&logits(&mut quantised, 4, [&[TOKENS]; SEQUENCES]), &expected);
        assert!(
            off > 0.0 && off < bound * largest,
            "{isq}: off by {off} of {largest}"
        );
    }
    let error = tensors(folder.path(), &engine, Some(IsqType::HQQ4))
        .err()
        .unwrap();
    assert!(error.to_string().contains("HQQ4"), "{error}");
}

#[test]
fn checkpoints_of_mlx_load_as_they_are_and_their_head_is_not_normalised_again() {
    let folder = tempfile::tempdir().unwrap();
    crate::random::Recipe::new(crate::random::Preset::Tiny)
        .write(folder.path(), &|_, _| {})
        .unwrap();
    let engine = engine(4);
    for group in [32, 64, 128] {
        let (affine, plain, lengths) = rewrite::affine(folder.path(), group);
        let mut expected = logits(&mut host(plain.path(), &engine), 4, [&[TOKENS]; SEQUENCES]);
        for logits in &mut expected {
            let lengths = lengths.iter().cycle();
            logits
                .iter_mut()
                .zip(lengths)
                .for_each(|(logit, length)| *logit *= length);
        }
        let mut model = tensors(affine.path(), &engine, None).unwrap();
        let off = farthest(&logits(&mut model, 4, [&[TOKENS]; SEQUENCES]), &expected);
        assert!(off < 1e-4, "groups of {group}: off by {off}");
        let error = tensors(affine.path(), &engine, Some(IsqType::AFQ4))
            .err()
            .unwrap();
        assert!(error.to_string().contains("quantised already"), "{error}");
    }
}
