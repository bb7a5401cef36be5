//! bf16, f16 and FP8 against f32 of the same random weights: holds the tensor core kernels against the plain ones.

use baichuan_engine::model::Rows;
use baichuan_engine::{Dtype, EngineConfig, TokenId};
use baichuan_kernels::cuda::QuantFormat;
use baichuan_m1::config::BaichuanConfig;
use baichuan_m1::cuda::Source;

use crate::sequences::sequences;
use crate::{Outcome, config, engine, open, open_quantised, published, say};

/// Root mean square of the difference over that of the logits with weights in FP8, whose numbers are a
/// sixteenth off at most. In four layers that made 0.09, with activations rounded as well 0.12, in forty 0.13 and 0.16.
const FP8_BOUND: f64 = 0.2;
/// Types of sixteen bits.
const ROUNDED: [Dtype; 2] = [Dtype::Bf16, Dtype::F16];

/// The same by the type of weights. In bf16 it was 0.006 to 0.009, so f16, of three bits more, must be below.
pub(crate) fn bound_of(dtype: Dtype) -> f64 {
    match dtype {
        Dtype::F32 | Dtype::Bf16 => 0.05,
        Dtype::F16 => 0.004,
    }
}

/// Heads of the published widths in a small model; several windows long, cut into chunks in several ways.
pub(crate) fn small() -> Outcome {
    for window in [48, 100] {
        let config = config(4, 1024, 1536, 1000, window)?;
        let engine = engine(3, 1024, window, 1024);
        let tokens = tokens(700, 1000);
        let exact = logits(&config, Dtype::F32, &engine, &tokens, &[1024])?;
        for dtype in ROUNDED {
            let kind = dtype.name();
            for chunks in [vec![1024], vec![1], vec![64, 33, 200, 1, 17, 1], vec![128]] {
                let rounded = logits(&config, dtype, &engine, &tokens, &chunks)?;
                let name = format!("{kind}, window {window}, chunks {chunks:?}");
                report(bound_of(dtype), &name, &exact, &rounded)?;
            }
            // Activations are rounded to eight bits, too, in chunks of sixteen tokens and more.
            for chunks in [vec![1024], vec![1]] {
                let fp8 = Some(QuantFormat::Fp8);
                let rounded = logits_of(&config, dtype, fp8, &engine, &tokens, &chunks)?;
                let name = format!("FP8 and {kind}, window {window}, chunks {chunks:?}");
                report(FP8_BOUND, &name, &exact, &rounded)?;
            }
        }
    }
    // The published widths in four layers, across the window: in one f32 pass, and in chunks and single tokens.
    let config = published(4)?;
    let engine = engine(1, 10_000, 8192, 2048);
    let tokens = tokens(8192 + 900, 133_120);
    let exact = tail(&config, Dtype::F32, &engine, &tokens, 2048)?;
    for dtype in ROUNDED {
        let rounded = tail(&config, dtype, &engine, &tokens, 1500)?;
        let name = format!("{}, four published layers past the window", dtype.name());
        report(bound_of(dtype), &name, &exact, &rounded)?;
    }
    Ok(())
}

/// All 14.5 billion weights.
pub(crate) fn full() -> Outcome {
    let config = published(40)?;
    let engine = engine(1, 1024, 8192, 512);
    let tokens = tokens(512, 133_120);
    // In f32 it does not fit beside another.
    let of = |dtype, isq| -> Outcome<[Vec<Vec<f32>>; 2]> {
        let whole = logits_of(&config, dtype, isq, &engine, &tokens, &[512])?;
        let single = logits_of(&config, dtype, isq, &engine, &tokens[..128], &[1])?;
        Ok([whole, single])
    };
    let bf16 = of(Dtype::Bf16, None)?;
    let f16 = of(Dtype::F16, None)?;
    let fp8 = of(Dtype::Bf16, Some(QuantFormat::Fp8))?;
    let exact = logits(&config, Dtype::F32, &engine, &tokens, &[512])?;
    for (name, bound, [whole, single]) in [
        ("bf16", bound_of(Dtype::Bf16), bf16),
        ("f16", bound_of(Dtype::F16), f16),
        ("FP8", FP8_BOUND, fp8),
    ] {
        report(bound, &format!("14.5 B in {name}, chunk of 512"), &exact, &whole)?;
        let name = format!("14.5 B in {name}, single tokens");
        report(bound, &name, &exact[..single.len()], &single)?;
    }
    Ok(())
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
    logits_of(config, dtype, None, engine, tokens, chunks)
}

/// The same with weights quantised.
fn logits_of(
    config: &BaichuanConfig,
    dtype: Dtype,
    isq: Option<QuantFormat>,
    engine: &EngineConfig,
    tokens: &[TokenId],
    chunks: &[usize],
) -> Outcome<Vec<Vec<f32>>> {
    let mut model = open_quantised(config, Source::Random { seed: 7 }, dtype, isq, engine)?;
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

/// How far rounded logits are off exact ones; an error if that is more than `bound`.
pub(crate) fn report(bound: f64, name: &str, exact: &[Vec<f32>], rounded: &[Vec<f32>]) -> Outcome {
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
