//! Time of a step of the published 14.5 billion parameters in bf16 or f16, random weights, against the memory's speed
//! measured in the same run. A step is what the engine waits for: ids to the device, forward, chosen token back.

use std::time::Instant;

use baichuan_engine::{Dtype, TokenId};
use baichuan_kernels::cuda::{Buffer, Device, QuantFormat};
use baichuan_m1::cuda::{CudaModel, Source};
use baichuan_m1::layout::{self, Role, TensorSpec};

use crate::sequences::{choose, sequences};
use crate::{Outcome, engine, open_quantised, published, say};

/// (name, sequences, tokens cached before)
const DECODES: [(&str, usize, usize); 9] = [
    ("d1", 1, 160),
    ("d4", 4, 160),
    ("d8", 8, 160),
    ("d16", 16, 160),
    ("d32", 32, 160),
    ("d64", 64, 160),
    ("d128", 128, 160),
    ("d256", 256, 160),
    ("d32long", 32, 8000),
];
const PREFILLS: [(&str, usize); 3] = [("p512", 512), ("p2048", 2048), ("p8192", 8192)];
const STEPS: usize = 25;

pub(crate) fn measure(rows: &[&str], dtype: Dtype, isq: Option<QuantFormat>) -> Outcome {
    let wanted = |name: &str| rows.is_empty() || rows.contains(&name);
    let config = published(40)?;
    let mut engine = engine(32, 8192 + 64, 8192, 8192);
    engine.max_sequences = 256;
    let begun = Instant::now();
    let source = Source::Random { seed: 3 };
    let mut model = open_quantised(&config, source, dtype, isq, &engine)?;
    let specs = layout::all(&config);
    let read = || specs.iter().filter(|spec| spec.role != Role::Embedding);
    let n_weights = read().map(|spec| spec.n_elements() as f64).sum::<f64>();
    let bytes = |spec: &TensorSpec| bytes_of(isq, spec) as f64;
    let weight_bytes = read().map(bytes).sum::<f64>();
    model.randomise_caches(5)?;
    let bandwidth = bandwidth(&model)?;
    say(format_args!(
        "{}, {}: loaded in {:.1} s; reads {:.2} TB/s; weights but the embedding {:.2} GB, {:.2} ms to read",
        model.device().name()?,
        dtype.name(),
        begun.elapsed().as_secs_f64(),
        bandwidth / 1e12,
        weight_bytes / 1e9,
        weight_bytes / bandwidth * 1e3
    ))?;
    for (name, n, context) in DECODES.into_iter().filter(|row| wanted(row.0)) {
        let ms = decode(&mut model, n, context)?;
        let kv = n as f64 * context as f64 * 120.0 * 1024.0;
        let floor = (weight_bytes + kv) / bandwidth * 1e3;
        say(format_args!(
            "{name}: decode, batch {n}, context {context}: {ms:.2} ms/step, {:.0} tok/s, floor {floor:.2} ms, {:.0} % of bandwidth",
            n as f64 / ms * 1e3,
            floor / ms * 100.0
        ))?;
    }
    for (name, n) in PREFILLS.into_iter().filter(|row| wanted(row.0)) {
        let ms = prefill(&mut model, n)?;
        let flops = 2.0 * n_weights * n as f64;
        say(format_args!(
            "{name}: prefill of {n}: {ms:.1} ms, {:.0} tok/s, products alone are {:.0} TFLOP/s",
            n as f64 / ms * 1e3,
            flops / ms / 1e9
        ))?;
    }
    Ok(())
}

/// Bytes that a tensor takes on the device.
fn bytes_of(isq: Option<QuantFormat>, spec: &TensorSpec) -> usize {
    match (isq, spec.role) {
        (Some(format), Role::Pack | Role::Linear | Role::Head) => format.bytes(spec.shape[0], spec.shape[1]),
        _ => 2 * spec.n_elements(),
    }
}

/// Bytes per second of a pure read.
fn bandwidth(model: &CudaModel) -> Outcome<f64> {
    let device = model.device();
    let buffer = Buffer::zeros(device, 8 << 30, "measuring bandwidth")?;
    let sink = Buffer::zeros(device, 4, "measuring bandwidth")?;
    let read = || Ok(device.read_all(buffer.all(), sink.all())?);
    let seconds = least_seconds(device, 8, read)?;
    Ok(buffer.n_bytes() as f64 / seconds)
}

/// Of so many runs of what `issue` issues, the shortest.
pub(crate) fn least_seconds(device: &Device, runs: usize, issue: impl Fn() -> Outcome) -> Outcome<f64> {
    let mut least = f64::MAX;
    for _ in 0..runs {
        device.synchronize()?;
        let begun = Instant::now();
        issue()?;
        device.synchronize()?;
        least = least.min(begun.elapsed().as_secs_f64());
    }
    Ok(least)
}

fn decode(model: &mut CudaModel, n: usize, context: usize) -> Outcome<f64> {
    let mut all = sequences(model, n.max(32));
    all.truncate(n);
    all.iter_mut().for_each(|sequence| sequence.n_cached = context);
    let mut next: Vec<TokenId> = (0..n as u32).map(|i| i * 97 + 5).collect();
    let mut times = Vec::new();
    for _ in 0..STEPS + 3 {
        let tokens: Vec<_> = next.iter().map(|token| vec![*token]).collect();
        let begun = Instant::now();
        next = choose(model, &mut all, &tokens)?;
        times.push(begun.elapsed().as_secs_f64() * 1e3);
    }
    Ok(median(&mut times[3..]))
}

fn prefill(model: &mut CudaModel, n: usize) -> Outcome<f64> {
    let mut all = sequences(model, 32);
    all.truncate(1);
    let tokens: Vec<TokenId> = (0..n as u32).map(|i| i * 31 % 133_000 + 5).collect();
    let mut times = Vec::new();
    for _ in 0..5 {
        all[0].restart(model);
        let begun = Instant::now();
        choose(model, &mut all, std::slice::from_ref(&tokens))?;
        times.push(begun.elapsed().as_secs_f64() * 1e3);
    }
    Ok(median(&mut times[1..]))
}

fn median(times: &mut [f64]) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}
