//! Sequences of many lengths in one batch against each of them alone.
//!
//! The number of rows decides which kernel makes a product, so results in company differ by rounding. How much, and
//! whether it changes the most likely token, is what this measures; in f32 it must not.

use baichuan_engine::model::{StepBatch, Wants};
use baichuan_engine::{CausalLm, Dtype, TokenId};
use baichuan_m1::cuda::{CudaModel, Source};

use crate::agree::{bound_of, report, split, tokens, top};
use crate::sequences::{Sequence, sequences};
use crate::{Outcome, config, engine, open, say};

const SEQUENCES: usize = 64;
const STEPS: usize = 8;

/// Prompts of 1 to 442 tokens across windows of 100, and the tokens after them.
pub(crate) fn check() -> Outcome {
    let config = config(4, 1024, 1536, 1000, 100)?;
    let engine = engine(SEQUENCES, 512, 100, 16_384);
    for dtype in [Dtype::F32, Dtype::Bf16, Dtype::F16] {
        let name = dtype.name();
        let mut model = open(&config, Source::Random { seed: 7 }, dtype, &engine)?;
        let mut all = sequences(&mut model, SEQUENCES);
        let prompts: Vec<Vec<TokenId>> = (0..SEQUENCES).map(|i| tokens(1 + i * 7, 1000)).collect();
        // Alone, each follows its own most likely tokens; in company it is given the same.
        let mut alone = vec![Vec::new(); STEPS];
        let mut fed = vec![prompts.clone()];
        fed.resize(STEPS, vec![Vec::new(); SEQUENCES]);
        for i in 0..SEQUENCES {
            for step in 0..STEPS {
                let row = logits(&mut model, &mut all[i..=i], &fed[step][i..=i])?.swap_remove(0);
                if let Some(next) = fed.get_mut(step + 1) {
                    next[i] = vec![top(&row) as TokenId];
                }
                alone[step].push(row);
            }
            all[i].restart(&mut model);
        }
        let mut same = 0;
        for (step, tokens) in fed.iter().enumerate() {
            let together = logits(&mut model, &mut all, tokens)?;
            let equal = |(a, b): &(&Vec<f32>, &Vec<f32>)| top(a) == top(b);
            same += alone[step].iter().zip(&together).filter(equal).count();
            if step == 0 || step + 1 == STEPS {
                let name = format!("{name}, {SEQUENCES} together against alone, step {step}");
                report(bound_of(dtype), &name, &alone[step], &together)?;
            }
        }
        let n = SEQUENCES * STEPS;
        say(format_args!("{name}: same greedy token in {same} of {n}"))?;
        if dtype == Dtype::F32 && same < n {
            return Err("in f32 company changed a greedy token".into());
        }
    }
    Ok(())
}

/// One step of all `sequences`: the logits after each one's last token.
fn logits(
    model: &mut CudaModel,
    sequences: &mut [Sequence],
    tokens: &[Vec<TokenId>],
) -> Outcome<Vec<Vec<f32>>> {
    let entries: Vec<_> = sequences
        .iter()
        .zip(tokens)
        .map(|(sequence, tokens)| sequence.entry(tokens, Wants::LastLogits))
        .collect();
    let output = model.forward(&StepBatch { entries: &entries })?;
    for (sequence, tokens) in sequences.iter_mut().zip(tokens) {
        sequence.n_cached += tokens.len();
    }
    Ok(split(&output.entries))
}
