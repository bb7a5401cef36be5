//! Each kernel beside the floor that bounds it, measured in turns in one run.
//!
//! `cargo bench -p baichuan-kernels` prints Criterion's times, and for each product its share of what the machine does
//! at most: of the read bandwidth for few rows, of f32 multiply–adds for many. A filter, as in `-- "Q8_0"`, picks.

use std::time::{Duration, Instant};

use baichuan_kernels::probe::{Bandwidth, fused_gflop_s};
use baichuan_kernels::{
    Attention, ElementType, Format, GgmlFormat, KvCache, KvFormat, KvShape, Layout, Matrix, Span, Threads,
    attend, rms_norm, swiglu,
};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use half::{bf16, f16};

/// A layer of 5632 × 2048, so many times over that no cache holds it.
const ROWS: usize = 5632;
const COLS: usize = 2048;
const LAYERS_BYTES: usize = 200 << 20;

fn noise(len: usize) -> Vec<f32> {
    (0..len as u32)
        .map(|i| (i.wrapping_mul(2_654_435_761) >> 8) as f32 / 8_388_608.0 - 1.0)
        .collect()
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn weight(threads: &Threads, format: Format) -> Matrix {
    let w = noise(ROWS * COLS);
    match format {
        Format::Plain(ElementType::F32) => Matrix::from_f32(threads, ROWS, COLS, &w),
        Format::Plain(ElementType::Bf16) => {
            let w: Vec<bf16> = w.into_iter().map(bf16::from_f32).collect();
            Matrix::from_bf16(threads, ROWS, COLS, &w)
        }
        Format::Plain(ElementType::F16) => {
            let w: Vec<f16> = w.into_iter().map(f16::from_f32).collect();
            Matrix::from_f16(threads, ROWS, COLS, &w)
        }
        Format::Ggml(format) => Matrix::quantize(threads, format, ROWS, COLS, |row, values| {
            values.copy_from_slice(&w[row * COLS..][..COLS]);
        }),
        Format::Affine4 { .. } => unreachable!("the same kernel as Q4_0"),
    }
}

fn products(c: &mut Criterion) {
    let threads = Threads::physical().expect("threads");
    let bandwidth = Bandwidth::new(256 << 20);
    let plain = [ElementType::F32, ElementType::Bf16, ElementType::F16].map(Format::Plain);
    for format in plain.into_iter().chain(GgmlFormat::ALL.map(Format::Ggml)) {
        let name = match format {
            Format::Plain(element) => format!("{element:?}"),
            Format::Ggml(format) => format!("{format:?}"),
            Format::Affine4 { group } => format!("affine{group}"),
        };
        let first = weight(&threads, format);
        let n_layers = LAYERS_BYTES / first.bytes() + 1;
        let layers: Vec<Matrix> = std::iter::once(first)
            .chain((1..n_layers).map(|_| weight(&threads, format)))
            .collect();
        let layer_bytes = layers[0].bytes();
        for m in [1, 8, 512] {
            let (x, mut out) = (noise(m * COLS), vec![0.0; m * ROWS]);
            let used = if m < 512 { layers.len() } else { 1 };
            let mut pass = || {
                let start = Instant::now();
                layers[..used]
                    .iter()
                    .for_each(|w| w.matmul(&threads, &x, &mut out));
                start.elapsed()
            };
            let mut group = c.benchmark_group(format!("product {name}"));
            group
                .sample_size(10)
                .measurement_time(Duration::from_secs(2))
                .warm_up_time(Duration::from_millis(200));
            group.throughput(Throughput::Bytes((layer_bytes * used) as u64));
            let mut seconds = Vec::new();
            let (mut reads, mut flops) = (Vec::new(), Vec::new());
            group.bench_function(format!("{m} rows"), |b| {
                b.iter_custom(|n| {
                    reads.push(bandwidth.read_gb_s(&threads));
                    flops.push(fused_gflop_s(&threads));
                    (0..n)
                        .map(|_| pass())
                        .inspect(|time| seconds.push(time.as_secs_f64()))
                        .sum()
                });
            });
            group.finish();
            if seconds.is_empty() {
                continue; // filtered out
            }
            let (seconds, read, flop) = (median(seconds), median(reads), median(flops));
            let gb_s = (layer_bytes * used) as f64 / seconds / 1e9;
            let gflop_s = (2 * m * ROWS * COLS * used) as f64 / seconds / 1e9;
            eprintln!(
                "{name:5} {m:3} rows: {gb_s:6.2} GB/s, {:4.0} % of {read:.1}; {gflop_s:6.1} GFLOP/s, {:4.0} % of {flop:.0}",
                100.0 * gb_s / read,
                100.0 * gflop_s / flop,
            );
        }
    }
}

fn attention(c: &mut Criterion) {
    let threads = Threads::physical().expect("threads");
    let mut group = c.benchmark_group("attention");
    group
        .sample_size(10)
        .measurement_time(Duration::from_secs(2))
        .warm_up_time(Duration::from_millis(200));
    let formats = [
        ("F32", KvFormat::Plain(ElementType::F32)),
        ("Bf16", KvFormat::Plain(ElementType::Bf16)),
        ("Int8", KvFormat::Int8),
    ];
    // Of the published model, and of the smaller one that measurements of the whole are made with.
    let geometries = [
        ("global", 20, 2, 256),
        ("sliding", 40, 8, 128),
        ("small global", 8, 2, 256),
        ("small sliding", 16, 4, 128),
    ];
    for (name, q_heads, kv_heads, head_dim) in geometries {
        for (format_name, format) in formats {
            for (context, tokens) in [(128, 1), (8192, 1), (512, 512)] {
                let shape = KvShape {
                    n_blocks: 8192 / 16 + 1,
                    block_tokens: 16,
                    kv_heads,
                    head_dim,
                };
                let mut cache = KvCache::new(shape, format);
                let blocks: Vec<u32> = (0..shape.n_blocks as u32).collect();
                let row = noise(shape.row_len());
                for position in 0..context {
                    cache.write_row(blocks[position / 16], position % 16, &row, &row);
                }
                let (q, kv) = (
                    noise(tokens * q_heads * head_dim),
                    noise(tokens * shape.row_len()),
                );
                let span = Span {
                    tokens,
                    start: context - tokens,
                    blocks: &blocks,
                    layout: Layout::Paged,
                };
                let scale = (head_dim as f32).sqrt().recip();
                let attention = Attention {
                    q_heads,
                    scale,
                    q: &q,
                    k: &kv,
                    v: &kv,
                    spans: &[span],
                };
                let mut out = vec![0.0; q.len()];
                group.throughput(Throughput::Bytes(
                    (context * 2 * kv_heads * format.row_bytes(head_dim)) as u64,
                ));
                group.bench_function(format!("{name} {format_name}, {tokens} of {context}"), |b| {
                    b.iter(|| attend(&threads, &mut cache, &attention, &mut out));
                });
            }
        }
    }
    group.finish();
}

fn rows(c: &mut Criterion) {
    let threads = Threads::physical().expect("threads");
    let mut group = c.benchmark_group("rows");
    group
        .sample_size(10)
        .measurement_time(Duration::from_secs(1))
        .warm_up_time(Duration::from_millis(200));
    for m in [1, 512] {
        let (x, weight, mut out) = (noise(m * 5120), noise(5120), vec![0.0; m * 5120]);
        group.throughput(Throughput::Bytes((8 * x.len()) as u64));
        group.bench_function(format!("rms_norm {m} × 5120"), |b| {
            b.iter(|| rms_norm(&threads, &x, &weight, 1e-6, &mut out));
        });
        let (gate_up, mut out) = (noise(2 * m * 17408), vec![0.0; m * 17408]);
        group.throughput(Throughput::Bytes((12 * out.len()) as u64));
        group.bench_function(format!("swiglu {m} × 17408"), |b| {
            b.iter(|| swiglu(&threads, &gate_up, 17408, &mut out));
        });
    }
    group.finish();
}

criterion_group!(benches, products, attention, rows);
criterion_main!(benches);
