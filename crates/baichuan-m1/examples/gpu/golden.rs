//! The golden checkpoints: logits, hidden states and greedy continuations of the reference implementation.

use std::path::Path;

use baichuan_engine::model::{HiddenRows, Rows, Wants};
use baichuan_engine::{Dtype, TokenId};
use baichuan_m1::config::BaichuanConfig;
use baichuan_m1::cuda::{CudaModel, Source};
use baichuan_m1::weights::Weights;
use safetensors::SafeTensors;

use crate::sequences::{Sequence, choose, sequences};
use crate::{Outcome, engine, open, say};

/// Largest difference of a logit or hidden state in f32.
const F32_BOUND: f32 = 1e-4;
/// The same in sixteen bits, for logits of order one; f16 has three bits more than bf16.
const ROUNDED: [(Dtype, f32); 2] = [(Dtype::Bf16, 0.15), (Dtype::F16, 0.03)];
const PROMPTS: usize = 6;

struct Case {
    tokens: Vec<TokenId>,
    logits: Vec<f32>,
    hidden: Vec<f32>,
    greedy: Vec<TokenId>,
}

pub(crate) fn check(dir: &Path) -> Outcome {
    let mut folders: Vec<_> = std::fs::read_dir(dir)?.collect::<Result<Vec<_>, _>>()?;
    folders.sort_by_key(std::fs::DirEntry::path);
    for folder in folders {
        let path = folder.path();
        if !path.join("golden.safetensors").exists() {
            continue;
        }
        let config = BaichuanConfig::from_dir(&path)?;
        let weights = Weights::open(&path, &config)?;
        let cases = read(&path.join("golden.safetensors"))?;
        let name = folder.file_name();
        let name = name.to_string_lossy();
        let engine = engine(PROMPTS, 256, 16, 256);
        let mut model = open(&config, Source::Checkpoint(&weights), Dtype::F32, &engine)?;
        let worst = compare(&mut model, &cases, F32_BOUND)?;
        say(format_args!(
            "{name}: f32 logits and hidden states within {worst:.1e}"
        ))?;
        greedy_alone(&mut model, &cases)?;
        greedy_together(&mut model, &cases)?;
        say(format_args!(
            "{name}: f32 greedy tokens equal, alone and together"
        ))?;
        drop(model);
        for (dtype, bound) in ROUNDED {
            let mut model = open(&config, Source::Checkpoint(&weights), dtype, &engine)?;
            let worst = compare(&mut model, &cases, bound)?;
            let dtype = dtype.name();
            say(format_args!(
                "{name}: {dtype} logits and hidden states within {worst:.1e}"
            ))?;
        }
    }
    Ok(())
}

fn read(path: &Path) -> Outcome<Vec<Case>> {
    let bytes = std::fs::read(path)?;
    let tensors = SafeTensors::deserialize(&bytes)?;
    let words =
        |name: String| -> Outcome<Vec<[u8; 4]>> { Ok(tensors.tensor(&name)?.data().as_chunks().0.to_vec()) };
    let ids = |name| -> Outcome<Vec<u32>> { Ok(words(name)?.into_iter().map(u32::from_le_bytes).collect()) };
    let floats =
        |name| -> Outcome<Vec<f32>> { Ok(words(name)?.into_iter().map(f32::from_le_bytes).collect()) };
    (0..PROMPTS)
        .map(|n| {
            Ok(Case {
                tokens: ids(format!("p{n}.tokens"))?,
                logits: floats(format!("p{n}.logits"))?,
                hidden: floats(format!("p{n}.hidden"))?,
                greedy: ids(format!("p{n}.greedy"))?,
            })
        })
        .collect()
}

/// The largest difference over all prompts and ways to cut them.
fn compare(model: &mut CudaModel, cases: &[Case], bound: f32) -> Outcome<f32> {
    let mut sequence = sequences(model, PROMPTS).swap_remove(PROMPTS - 1);
    let mut worst = 0f32;
    for (number, case) in cases.iter().enumerate() {
        for chunk in [1, 2, 3, 7, 16, 256] {
            for (wants, expected) in [
                (Wants::AllLogits, &case.logits),
                (Wants::Hidden(HiddenRows::All), &case.hidden),
            ] {
                sequence.restart(model);
                let rows = sequence.rows(model, &case.tokens, chunk, wants)?;
                let got: Vec<f32> = rows.into_iter().flat_map(Rows::into_values).collect();
                if got.len() != expected.len() {
                    return Err(format!(
                        "prompt {number}: {} values, {} expected",
                        got.len(),
                        expected.len()
                    )
                    .into());
                }
                let difference = got.iter().zip(expected).map(|(a, b)| (a - b).abs());
                let difference =
                    difference.fold(0f32, |worst, d| if d > worst || d.is_nan() { d } else { worst });
                if difference.is_nan() || difference > bound {
                    return Err(format!(
                        "prompt {number} in chunks of {chunk}, {wants:?}: off by {difference}"
                    )
                    .into());
                }
                worst = worst.max(difference);
            }
        }
    }
    Ok(worst)
}

fn greedy_alone(model: &mut CudaModel, cases: &[Case]) -> Outcome {
    let mut sequence: Vec<Sequence> = sequences(model, PROMPTS).into_iter().take(1).collect();
    for (number, case) in cases.iter().enumerate() {
        sequence[0].restart(model);
        let mut next = choose(model, &mut sequence, std::slice::from_ref(&case.tokens))?;
        for (place, expected) in case.greedy.iter().enumerate() {
            if next[0] != *expected {
                return Err(format!(
                    "prompt {number}, token {place}: {} instead of {expected}",
                    next[0]
                )
                .into());
            }
            next = choose(model, &mut sequence, &[next])?;
        }
    }
    Ok(())
}

/// All prompts in one batch: mixed prefill, then decodes padded to eight rows.
fn greedy_together(model: &mut CudaModel, cases: &[Case]) -> Outcome {
    let mut all = sequences(model, PROMPTS);
    let prompts: Vec<_> = cases.iter().map(|case| case.tokens.clone()).collect();
    let mut next = choose(model, &mut all, &prompts)?;
    for place in 0..cases[0].greedy.len() {
        for (number, case) in cases.iter().enumerate() {
            if next[number] != case.greedy[place] {
                return Err(format!(
                    "prompt {number} of a batch, token {place}: {} instead of {}",
                    next[number], case.greedy[place]
                )
                .into());
            }
        }
        let tokens: Vec<_> = next.iter().map(|token| vec![*token]).collect();
        next = choose(model, &mut all, &tokens)?;
    }
    Ok(())
}
