//! bf16 and FP8 against f32 of the same random weights: holds the tensor core kernels against the plain ones.

use baichuan_engine::model::Rows;
use baichuan_engine::{Dtype, EngineConfig, TokenId};
use baichuan_kernels::cuda::QuantFormat;
use baichuan_m1::config::BaichuanConfig;
use baichuan_m1::cuda::{CudaModel, Source};

use crate::sequences::sequences;
use crate::{Outcome, config, engine, open, open_quantised, published, say};

/// Root mean square of the difference over that of the logits: of bf16, and of weights in FP8, whose numbers are a
/// sixteenth off at most. In four layers that made 0.09, with activations rounded as well 0.12, in forty 0.13 and 0.16.
const BOUND: f64 = 0.05;
const FP8_BOUND: f64 = 0.2;

/// Heads of the published widths in a small model; several windows long, cut into chunks in several ways.
pub(crate) fn small() -> Outcome {
    for window in [48, 100] {
        let config = config(4, 1024, 1536, 1000, window)?;
        let engine = engine(3, 1024, window, 1024);
        let tokens = tokens(700, 1000);
        let exact = logits(&config, Dtype::F32, &engine, &tokens, &[1024])?;
        for chunks in [vec![1024], vec![1], vec![64, 33, 200, 1, 17, 1], vec![128]] {
            let rounded = logits(&config, Dtype::Bf16, &engine, &tokens, &chunks)?;
            report(&format!("window {window}, chunks {chunks:?}"), &exact, &rounded)?;
        }
        // Activations are rounded to eight bits, too, in chunks of sixteen tokens and more.
        for chunks in [vec![1024], vec![1]] {
            let rounded = logits_of(&config, Some(QuantFormat::Fp8), &engine, &tokens, &chunks)?;
            let name = format!("FP8, window {window}, chunks {chunks:?}");
            report_within(FP8_BOUND, &name, &exact, &rounded)?;
        }
    }
    // The published widths in four layers, across the window: in one f32 pass, and in chunks and single tokens.
    let config = published(4)?;
    let engine = engine(1, 10_000, 8192, 2048);
    let tokens = tokens(8192 + 900, 133_120);
    let exact = tail(&config, Dtype::F32, &engine, &tokens, 2048)?;
    let rounded = tail(&config, Dtype::Bf16, &engine, &tokens, 1500)?;
    report("four published layers past the window", &exact, &rounded)
}

/// All 14.5 billion weights.
pub(crate) fn full() -> Outcome {
    let config = published(40)?;
    let engine = engine(1, 1024, 8192, 512);
    let tokens = tokens(512, 133_120);
    let rounded = logits(&config, Dtype::Bf16, &engine, &tokens, &[512])?;
    let single = logits(&config, Dtype::Bf16, &engine, &tokens[..128], &[1])?;
    let exact = logits(&config, Dtype::F32, &engine, &tokens, &[512])?;
    report("14.5 B, chunk of 512", &exact, &rounded)?;
    report("14.5 B, single tokens", &exact[..single.len()], &single)?;
    let fp8 = Some(QuantFormat::Fp8);
    let rounded = logits_of(&config, fp8, &engine, &tokens, &[512])?;
    let single = logits_of(&config, fp8, &engine, &tokens[..128], &[1])?;
    report_within(FP8_BOUND, "14.5 B in FP8, chunk of 512", &exact, &rounded)?;
    report_within(
        FP8_BOUND,
        "14.5 B in FP8, single tokens",
        &exact[..single.len()],
        &single,
    )
}

pub(crate) fn tokens(n: usize, vocab: u64) -> Vec<TokenId> {
    let next = |i: u64| ((i + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 33) % (vocab - 3) + 3;
    (0..n as u64).map(|i| next(i) as TokenId).collect()
}

/// Logits of all tokens, cut into chunks of these sizes in turn.
fn logits(
    config: &BaichuanConfig,
    dtype: Dtype,
    engine: &EngineConfig,
    tokens: &[TokenId],
    chunks: &[usize],
) -> Outcome<Vec<Vec<f32>>> {
    let model = open(config, Source::Random { seed: 7 }, dtype, engine)?;
    logits_by(model, engine, tokens, chunks)
}

/// The same in bf16 with weights quantised.
fn logits_of(
    config: &BaichuanConfig,
    isq: Option<QuantFormat>,
    engine: &EngineConfig,
    tokens: &[TokenId],
    chunks: &[usize],
) -> Outcome<Vec<Vec<f32>>> {
    let model = open_quantised(config, Source::Random { seed: 7 }, Dtype::Bf16, isq, engine)?;
    logits_by(model, engine, tokens, chunks)
}

fn logits_by(
    mut model: CudaModel,
    engine: &EngineConfig,
    tokens: &[TokenId],
    chunks: &[usize],
) -> Outcome<Vec<Vec<f32>>> {
    let mut sequence = sequences(&mut model, engine.max_sequences).swap_remove(0);
    let (mut rest, mut rows) = (tokens, Vec::new());
    for &size in chunks.iter().cycle() {
        let (chunk, left) = rest.split_at(size.min(rest.len()));
        rows.extend(sequence.logits(&mut model, chunk, chunk.len())?);
        rest = left;
        if rest.is_empty() {
            break;
        }
    }
    Ok(split(&rows))
}

/// Logits of the last 64 tokens, the last 32 of them one by one.
fn tail(
    config: &BaichuanConfig,
    dtype: Dtype,
    engine: &EngineConfig,
    tokens: &[TokenId],
    chunk: usize,
) -> Outcome<Vec<Vec<f32>>> {
    use baichuan_engine::model::Wants;
    let mut model = open(config, Source::Random { seed: 7 }, dtype, engine)?;
    let mut sequence = sequences(&mut model, 1).swap_remove(0);
    let (head, last) = tokens.split_at(tokens.len() - 64);
    sequence.rows(&mut model, head, chunk, Wants::Nothing)?;
    let mut rows = sequence.logits(&mut model, &last[..32], 32)?;
    rows.extend(sequence.logits(&mut model, &last[32..], 1)?);
    Ok(split(&rows))
}

pub(crate) fn split(rows: &[Rows]) -> Vec<Vec<f32>> {
    rows.iter().flat_map(Rows::iter).map(<[f32]>::to_vec).collect()
}

pub(crate) fn report(name: &str, exact: &[Vec<f32>], rounded: &[Vec<f32>]) -> Outcome {
    report_within(BOUND, name, exact, rounded)
}

fn report_within(bound: f64, name: &str, exact: &[Vec<f32>], rounded: &[Vec<f32>]) -> Outcome {
    let (mut error, mut size, mut worst, mut agree) = (0f64, 0f64, 0f32, 0);
    let mut most = 0f64;
    for (a, b) in exact.iter().zip(rounded) {
        let (mut row_error, mut row_size) = (0f64, 0f64);
        for (a, b) in a.iter().zip(b) {
            row_error += f64::from(a - b).powi(2);
            row_size += f64::from(*a).powi(2);
            worst = worst.max((a - b).abs());
        }
        most = most.max((row_error / row_size).sqrt());
        error += row_error;
        size += row_size;
        agree += usize::from(top(a) == top(b));
    }
    let relative = (error / size).sqrt();
    let n = rounded.len();
    say(format_args!(
        "{name}: error {relative:.2e} of the logits' size, worst row {most:.2e}, worst logit {worst:.2e}; same top token in {agree} of {n}"
    ))?;
    if relative.is_nan() || relative > bound || exact.len() != n {
        return Err(format!("{name}: {relative} is more than {bound}").into());
    }
    Ok(())
}

pub(crate) fn top(row: &[f32]) -> usize {
    let best = row.iter().enumerate().fold(
        (0, f32::NEG_INFINITY),
        |best, (i, x)| if *x > best.1 { (i, *x) } else { best },
    );
    best.0
}
