//! Attention against its definition in f64, and against itself: chunked, batched, threaded, scrubbed.

use super::*;
use crate::matrix::tests::noise;
use crate::threads::all_for_tests;
use crate::{ElementType, KvFormat};

/// A sequence to run, with all its operands: `[tokens, heads, head_dim]`.
#[derive(Clone)]
struct Sequence {
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    blocks: Vec<u32>,
    layout: Layout,
}

struct Geometry {
    q_heads: usize,
    shape: KvShape,
}

impl Geometry {
    fn new(q_heads: usize, kv_heads: usize, head_dim: usize) -> Self {
        Self {
            q_heads,
            shape: KvShape {
                n_blocks: 64,
                block_tokens: 16,
                kv_heads,
                head_dim,
            },
        }
    }

    fn scale(&self) -> f32 {
        (self.shape.head_dim as f32).sqrt().recip()
    }

    fn sequence(&self, seed: u32, tokens: usize, layout: Layout, first_block: u32) -> Sequence {
        let rows = match layout {
            Layout::Paged => tokens,
            Layout::Ring { rows, .. } => rows.min(tokens),
        };
        let n_blocks = rows.div_ceil(self.shape.block_tokens) as u32;
        Sequence {
            q: noise(seed, tokens * self.q_heads * self.shape.head_dim)
                .iter()
                .map(|x| x * 4.0)
                .collect(),
            k: noise(seed + 1, tokens * self.shape.row_len()),
            v: noise(seed + 2, tokens * self.shape.row_len()),
            // Backwards, so that neighbours in the sequence are not neighbours in memory.
            blocks: (first_block..first_block + n_blocks).rev().collect(),
            layout,
        }
    }

    /// A cache full of NaN.
    fn cache(&self, format: impl Into<KvFormat>) -> KvCache {
        let mut cache = KvCache::new(self.shape, format);
        (0..self.shape.n_blocks).for_each(|block| cache.scrub_block(block as u32));
        cache
    }

    /// Runs steps of one call each; a step names tokens of some sequences. Returns each sequence's outputs.
    fn run(
        &self,
        threads: &Threads,
        cache: &mut KvCache,
        sequences: &[Sequence],
        steps: &[Vec<(usize, std::ops::Range<usize>)>],
    ) -> Vec<Vec<f32>> {
        let mut outputs = vec![Vec::new(); sequences.len()];
        let (q_row, kv_row) = (self.q_heads * self.shape.head_dim, self.shape.row_len());
        for step in steps {
            let gather = |field: fn(&Sequence) -> &[f32], row: usize| -> Vec<f32> {
                let rows = step
                    .iter()
                    .flat_map(|(i, r)| &field(&sequences[*i])[r.start * row..r.end * row]);
                rows.copied().collect()
            };
            let q = gather(|s| &s.q, q_row);
            let spans: Vec<Span<'_>> = step
                .iter()
                .map(|(i, r)| Span {
                    tokens: r.len(),
                    start: r.start,
                    blocks: &sequences[*i].blocks,
                    layout: sequences[*i].layout,
                })
                .collect();
            let mut out = vec![f32::NAN; q.len()];
            let attention = Attention {
                q_heads: self.q_heads,
                scale: self.scale(),
                q: &q,
                k: &gather(|s| &s.k, kv_row),
                v: &gather(|s| &s.v, kv_row),
                spans: &spans,
            };
            attend(threads, cache, &attention, &mut out);
            let mut rest = out.as_slice();
            for (i, r) in step {
                let (mine, others) = rest.split_at(r.len() * q_row);
                outputs[*i].extend_from_slice(mine);
                rest = others;
            }
        }
        outputs
    }

    /// The definition, on keys and values rounded to the cache's type.
    fn reference(&self, sequence: &Sequence, format: impl Into<KvFormat>) -> Vec<f64> {
        let (d, kv_heads) = (self.shape.head_dim, self.shape.kv_heads);
        let mut rounding = KvCache::new(self.shape, format);
        let rows = sequence
            .k
            .chunks(self.shape.row_len())
            .zip(sequence.v.chunks(self.shape.row_len()));
        let (k, v): (Vec<_>, Vec<_>) = rows
            .map(|(k, v)| {
                rounding.write_row(0, 0, k, v);
                rounding.read_row(0, 0)
            })
            .unzip();
        let row = |x: &[Vec<f32>], token: usize, head: usize| -> Vec<f64> {
            x[token][head * d..][..d].iter().map(|&x| f64::from(x)).collect()
        };
        let mut out = Vec::new();
        for (i, q) in sequence.q.chunks_exact(d).enumerate() {
            let (token, head) = (i / self.q_heads, i % self.q_heads / (self.q_heads / kv_heads));
            let first = match sequence.layout {
                Layout::Paged => 0,
                Layout::Ring { window, .. } => (token + 1).saturating_sub(window),
            };
            let scores: Vec<f64> = (first..=token)
                .map(|j| {
                    let k = row(&k, j, head);
                    f64::from(self.scale()) * q.iter().zip(k).map(|(&q, k)| f64::from(q) * k).sum::<f64>()
                })
                .collect();
            let largest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let weights: Vec<f64> = scores.iter().map(|score| (score - largest).exp()).collect();
            let sum: f64 = weights.iter().sum();
            let mut weighted = vec![0.0; d];
            for (j, weight) in (first..=token).zip(&weights) {
                weighted
                    .iter_mut()
                    .zip(row(&v, j, head))
                    .for_each(|(o, v)| *o += weight / sum * v);
            }
            out.extend(weighted);
        }
        out
    }
}

const FORMATS: [KvFormat; 4] = [
    KvFormat::Plain(ElementType::F32),
    KvFormat::Plain(ElementType::Bf16),
    KvFormat::Plain(ElementType::F16),
    KvFormat::Int8,
];

/// What arithmetic may add to the rounding of keys and values: in eight bits queries and weights are rounded to sixteen.
fn tolerance(format: KvFormat) -> f64 {
    match format {
        KvFormat::Plain(_) => 4e-6,
        KvFormat::Int8 => 1e-4,
    }
}

fn assert_close(got: &[f32], expected: &[f64], format: impl Into<KvFormat>, what: &str) {
    assert_eq!(got.len(), expected.len());
    let tolerance = tolerance(format.into());
    for (i, (got, expected)) in got.iter().zip(expected).enumerate() {
        assert!(
            (f64::from(*got) - expected).abs() <= tolerance,
            "{what}: value {i} is {got}, not {expected}"
        );
    }
}

fn assert_same_bits(a: &[f32], b: &[f32], what: &str) {
    assert_eq!(a.len(), b.len());
    assert!(a.iter().zip(b).all(|(a, b)| a.to_bits() == b.to_bits()), "{what}");
}

/// All tokens of one sequence, cut at the given lengths in turn.
fn chunks(sequence: usize, tokens: usize, lengths: &[usize]) -> Vec<Vec<(usize, std::ops::Range<usize>)>> {
    let mut steps = Vec::new();
    let mut start = 0;
    for length in lengths.iter().cycle() {
        if start == tokens {
            return steps;
        }
        let end = tokens.min(start + length);
        steps.push(vec![(sequence, start..end)]);
        start = end;
    }
    steps
}

#[test]
fn attention_is_that_of_its_definition_for_any_geometry() {
    for threads in all_for_tests() {
        for (q_heads, kv_heads, head_dim) in [
            (1, 1, 8),
            (4, 2, 24),
            (10, 2, 16),
            (6, 1, 33),
            (7, 7, 64),
            (3, 1, 1),
        ] {
            let geometry = Geometry::new(q_heads, kv_heads, head_dim);
            for layout in [Layout::Paged, Layout::Ring { rows: 37, window: 29 }] {
                for format in FORMATS {
                    let sequence = geometry.sequence(5, 83, layout, 3);
                    let steps = chunks(0, 83, &[50, 1, 7]);
                    let out = geometry.run(
                        &threads,
                        &mut geometry.cache(format),
                        std::slice::from_ref(&sequence),
                        &steps,
                    );
                    let what = format!("{layout:?} {format:?} {q_heads}/{kv_heads}×{head_dim}");
                    assert_close(&out[0], &geometry.reference(&sequence, format), format, &what);
                }
            }
        }
    }
}

#[test]
fn a_window_counts_the_query_itself() {
    let threads = Threads::new(1).unwrap();
    let geometry = Geometry::new(2, 1, 16);
    const W: usize = 20;
    for tokens in [W - 1, W, W + 1, 3 * W] {
        for window in [W - 1, W, W + 1] {
            for rows in [window, window + 1, 64] {
                let sequence = geometry.sequence(9, tokens, Layout::Ring { rows, window }, 0);
                for lengths in [[1].as_slice(), &[tokens], &[W], &[W - 1, 1, 2]] {
                    let steps = chunks(0, tokens, lengths);
                    let mut cache = geometry.cache(ElementType::F32);
                    let out = geometry.run(&threads, &mut cache, std::slice::from_ref(&sequence), &steps);
                    let what = format!("{tokens} tokens, window {window} in {rows} rows, chunks {lengths:?}");
                    assert_close(
                        &out[0],
                        &geometry.reference(&sequence, ElementType::F32),
                        ElementType::F32,
                        &what,
                    );
                }
            }
        }
    }
}

#[test]
fn a_long_context_split_over_threads_is_that_of_the_definition() {
    for threads in all_for_tests() {
        let geometry = Geometry::new(4, 2, 16);
        for layout in [
            Layout::Paged,
            Layout::Ring {
                rows: 600,
                window: 590,
            },
        ] {
            let sequence = geometry.sequence(13, 800, layout, 0);
            let steps = chunks(0, 800, &[799, 1]);
            for format in [ElementType::F32.into(), KvFormat::Int8] {
                let mut cache = geometry.cache(format);
                let out = geometry.run(&threads, &mut cache, std::slice::from_ref(&sequence), &steps);
                let what = format!("{layout:?}, {format:?}");
                assert_close(&out[0], &geometry.reference(&sequence, format), format, &what);
            }
        }
    }
}

#[test]
fn chunks_company_and_threads_do_not_change_a_bit() {
    for level in crate::Level::ALL.into_iter().filter(|level| level.is_available()) {
        let [one, three] = [1, 3].map(|n| Threads::with_level(n, level).unwrap());
        for geometry in [Geometry::new(10, 2, 32), Geometry::new(5, 1, 24)] {
            for format in FORMATS {
                let sequences = [
                    geometry.sequence(21, 430, Layout::Paged, 0),
                    geometry.sequence(
                        31,
                        430,
                        Layout::Ring {
                            rows: 310,
                            window: 300,
                        },
                        30,
                    ),
                ];
                let alone = [0, 1].map(|i| {
                    let mut out = geometry.run(
                        &one,
                        &mut geometry.cache(format),
                        &sequences,
                        &chunks(i, 430, &[1]),
                    );
                    out.swap_remove(i)
                });
                for threads in [&one, &three] {
                    for lengths in [[430].as_slice(), &[64], &[399, 1, 3, 17]] {
                        let steps: Vec<_> = chunks(0, 430, lengths)
                            .into_iter()
                            .zip(chunks(1, 430, lengths))
                            .map(|(a, b)| [b, a].concat())
                            .collect();
                        let out = geometry.run(threads, &mut geometry.cache(format), &sequences, &steps);
                        for i in [0, 1] {
                            let what = format!("sequence {i}, {format:?}, {level:?}, chunks {lengths:?}");
                            assert_same_bits(&out[i], &alone[i], &what);
                        }
                    }
                }
            }
        }
    }
}

/// How far `out` is from `exact`, as a part of the length of each head's row; the largest of all.
fn relative_distance(out: &[f32], exact: &[f32], head_dim: usize) -> f32 {
    let length = |x: &mut dyn Iterator<Item = f32>| x.map(|x| x * x).sum::<f32>().sqrt();
    let heads = out.chunks_exact(head_dim).zip(exact.chunks_exact(head_dim));
    heads
        .map(|(out, exact)| {
            length(&mut out.iter().zip(exact).map(|(a, b)| a - b)) / length(&mut exact.iter().copied())
        })
        .fold(0.0, f32::max)
}

#[test]
fn eight_bits_move_attention_by_little_and_the_more_bits_the_less() {
    let threads = Threads::new(2).unwrap();
    for (q_heads, kv_heads, head_dim) in [(8, 2, 256), (16, 4, 128), (4, 1, 64), (2, 1, 24)] {
        let geometry = Geometry::new(q_heads, kv_heads, head_dim);
        let sequence = geometry.sequence(41, 500, Layout::Paged, 0);
        let [exact, f16, int8] =
            [ElementType::F32.into(), ElementType::F16.into(), KvFormat::Int8].map(|format| {
                let mut cache = geometry.cache(format);
                let steps = chunks(0, 500, &[64]);
                geometry
                    .run(&threads, &mut cache, std::slice::from_ref(&sequence), &steps)
                    .remove(0)
            });
        let [f16, int8] = [f16, int8].map(|out| relative_distance(&out, &exact, head_dim));
        eprintln!("{q_heads}/{kv_heads}×{head_dim}: f16 {f16:.1e}, eight bits {int8:.1e}");
        assert!(
            f16 < int8 && int8 <= 0.02,
            "{q_heads}/{kv_heads}×{head_dim}: {f16}, {int8}"
        );
    }
}

#[test]
fn what_is_not_finite_in_eight_bits_reaches_those_who_see_it_and_nobody_else() {
    let geometry = Geometry::new(4, 2, 24);
    for level in crate::Level::ALL.into_iter().filter(|level| level.is_available()) {
        let threads = Threads::with_level(1, level).unwrap();
        let healthy = geometry.sequence(51, 70, Layout::Paged, 0);
        let run = |sequence: &Sequence, lengths: &[usize]| {
            let mut cache = geometry.cache(KvFormat::Int8);
            let steps = chunks(0, 70, lengths);
            geometry
                .run(&threads, &mut cache, std::slice::from_ref(sequence), &steps)
                .remove(0)
        };
        let expected = run(&healthy, &[1]);
        let row = geometry.q_heads * geometry.shape.head_dim;
        for bad in [f32::NAN, f32::INFINITY] {
            for of_keys in [true, false] {
                let mut ill = healthy.clone();
                let numbers = if of_keys { &mut ill.k } else { &mut ill.v };
                // Of the first head of the token at 40.
                numbers[40 * geometry.shape.row_len() + 3] = bad;
                for lengths in [[1].as_slice(), &[70], &[39, 3]] {
                    let out = run(&ill, lengths);
                    let what = format!("{bad} {of_keys} {level:?} {lengths:?}");
                    assert_same_bits(&out[..40 * row], &expected[..40 * row], &what);
                    for token in 40..70 {
                        let (first, second) = out[token * row..][..row].split_at(row / 2);
                        assert!(first.iter().all(|x| x.is_nan()), "{what}, token {token}");
                        assert!(second.iter().all(|x| x.is_finite()), "{what}, token {token}");
                    }
                }
            }
        }
    }
}

#[test]
fn a_span_of_no_tokens_is_allowed() {
    let threads = Threads::new(2).unwrap();
    let geometry = Geometry::new(2, 1, 8);
    let sequences = [
        geometry.sequence(1, 3, Layout::Paged, 0),
        geometry.sequence(4, 3, Layout::Paged, 1),
    ];
    let steps = [vec![(0, 0..0), (1, 0..3)]];
    let out = geometry.run(
        &threads,
        &mut geometry.cache(ElementType::F32),
        &sequences,
        &steps,
    );
    assert_close(
        &out[1],
        &geometry.reference(&sequences[1], ElementType::F32),
        ElementType::F32,
        "second span",
    );
    assert!(out[0].is_empty());
}

#[test]
#[should_panic(expected = "a table of 16 rows for 17")]
fn a_table_that_is_too_short_is_refused() {
    let geometry = Geometry::new(1, 1, 8);
    let mut sequence = geometry.sequence(1, 17, Layout::Paged, 0);
    sequence.blocks.truncate(1);
    let threads = Threads::new(1).unwrap();
    geometry.run(
        &threads,
        &mut geometry.cache(ElementType::F32),
        &[sequence],
        &chunks(0, 17, &[17]),
    );
}

#[test]
#[should_panic(expected = "block Some(64) of 64")]
fn a_block_the_cache_lacks_is_refused() {
    let geometry = Geometry::new(1, 1, 8);
    let sequence = geometry.sequence(1, 3, Layout::Paged, 64);
    let threads = Threads::new(1).unwrap();
    geometry.run(
        &threads,
        &mut geometry.cache(ElementType::F32),
        &[sequence],
        &chunks(0, 3, &[3]),
    );
}

#[test]
#[should_panic(expected = "a ring of 7 rows for a window of 8")]
fn a_ring_smaller_than_its_window_is_refused() {
    let geometry = Geometry::new(1, 1, 8);
    let sequence = geometry.sequence(1, 3, Layout::Ring { rows: 7, window: 8 }, 0);
    let threads = Threads::new(1).unwrap();
    geometry.run(
        &threads,
        &mut geometry.cache(ElementType::F32),
        &[sequence],
        &chunks(0, 3, &[3]),
    );
}
