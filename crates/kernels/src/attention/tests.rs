//! Attention against its definition in f64, and against itself: chunked, batched, threaded, scrubbed.

use super::*;
use crate::ElementType;
use crate::matrix::tests::noise;
use crate::threads::all_for_tests;

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
    fn cache(&self, element: ElementType) -> KvCache {
        let mut cache = KvCache::new(self.shape, element);
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
    fn reference(&self, sequence: &Sequence, element: ElementType) -> Vec<f64> {
        let (d, kv_heads) = (self.shape.head_dim, self.shape.kv_heads);
        let rounded = |x: f32| match element {
            ElementType::F32 => f64::from(x),
            ElementType::Bf16 => half::bf16::from_f32(x).to_f64(),
            ElementType::F16 => half::f16::from_f32(x).to_f64(),
        };
        let row = |x: &[f32], token: usize, head: usize| -> Vec<f64> {
            x[(token * kv_heads + head) * d..][..d]
                .iter()
                .map(|&x| rounded(x))
                .collect()
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
                    let k = row(&sequence.k, j, head);
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
                    .zip(row(&sequence.v, j, head))
                    .for_each(|(o, v)| *o += weight / sum * v);
            }
            out.extend(weighted);
        }
        out
    }
}

const ELEMENTS: [ElementType; 3] = [ElementType::F32, ElementType::Bf16, ElementType::F16];

fn assert_close(got: &[f32], expected: &[f64], what: &str) {
    assert_eq!(got.len(), expected.len());
    for (i, (got, expected)) in got.iter().zip(expected).enumerate() {
        assert!(
            (f64::from(*got) - expected).abs() <= 4e-6,
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
                for element in ELEMENTS {
                    let sequence = geometry.sequence(5, 83, layout, 3);
                    let steps = chunks(0, 83, &[50, 1, 7]);
                    let out = geometry.run(
                        &threads,
                        &mut geometry.cache(element),
                        std::slice::from_ref(&sequence),
                        &steps,
                    );
                    let what = format!("{layout:?} {element:?} {q_heads}/{kv_heads}×{head_dim}");
                    assert_close(&out[0], &geometry.reference(&sequence, element), &what);
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
                    assert_close(&out[0], &geometry.reference(&sequence, ElementType::F32), &what);
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
            let out = geometry.run(
                &threads,
                &mut geometry.cache(ElementType::F32),
                std::slice::from_ref(&sequence),
                &steps,
            );
            assert_close(
                &out[0],
                &geometry.reference(&sequence, ElementType::F32),
                &format!("{layout:?}"),
            );
        }
    }
}

#[test]
fn chunks_company_and_threads_do_not_change_a_bit() {
    for level in crate::Level::ALL.into_iter().filter(|level| level.is_available()) {
        let [one, three] = [1, 3].map(|n| Threads::with_level(n, level).unwrap());
        for geometry in [Geometry::new(10, 2, 32), Geometry::new(5, 1, 24)] {
            for element in ELEMENTS {
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
                        &mut geometry.cache(element),
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
                        let out = geometry.run(threads, &mut geometry.cache(element), &sequences, &steps);
                        for i in [0, 1] {
                            let what = format!("sequence {i}, {element:?}, {level:?}, chunks {lengths:?}");
                            assert_same_bits(&out[i], &alone[i], &what);
                        }
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
