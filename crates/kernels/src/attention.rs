//! Causal attention in place over a block cache: many sequences in one call, grouped query heads, an online softmax
//! and no copy of the cache.
//!
//! A query's keys are walked in tiles of [`TILE`] positions, tiles in splits of [`SPLIT`] positions, both counted
//! from position 0. A split's result starts from nothing, and splits are merged in ascending order. That makes the
//! sum over keys one and the same whether a sequence came as one chunk or many, whether it runs alone or beside
//! others, and whether its splits ran one after the other or on different threads.

mod coded;
mod part;
mod rows;
mod source;
mod tile;

use crate::kv::{KeysValues, KvCache, KvShape, RowWriter, Store, each};
use crate::level::Kernel;
use crate::simd::Simd;
use crate::threads::{Shared, Threads};

use self::part::{Merge, Readable, State};
use self::source::{Source, fresh};

/// Positions whose scores are computed together.
const TILE: usize = 32;

/// Positions whose partial result is computed on its own, so that one query's keys can be shared among threads.
const SPLIT: usize = 256;

/// Tasks that the splits of a call come to: few enough that neighbours stay together, enough that threads of unequal
/// speed end together.
const TASKS_PER_THREAD: usize = 16;

/// Query rows that share a tile of keys while it is in the cache of the CPU.
const ROWS_PER_UNIT: usize = 64;

/// Where a sequence keeps its rows, and which of them a query sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// Position `j` is row `j mod block_tokens` of block `j / block_tokens` of the table. A query at position `i` sees
    /// every `j ≤ i`.
    Paged,
    /// Position `j` is row `j mod rows`, counted through the blocks of the table. A query at position `i` sees
    /// `i - window < j ≤ i`.
    Ring {
        /// Rows of the ring, at least `window`.
        rows: usize,
        /// Positions a query sees, its own included.
        window: usize,
    },
}

/// The new tokens of one sequence.
#[derive(Clone, Copy, Debug)]
pub struct Span<'a> {
    /// How many new tokens there are.
    pub tokens: usize,
    /// Position of the first of them: what the cache holds of this sequence are positions before it.
    pub start: usize,
    /// The sequence's blocks. Paged: for every position up to the last new one. Ring: for every row of the ring that
    /// positions so far have come to.
    pub blocks: &'a [u32],
    /// How blocks are used.
    pub layout: Layout,
}

/// The operands of [`attend`]. Rows of all spans follow each other, in the order of `spans`.
#[derive(Clone, Copy, Debug)]
pub struct Attention<'a> {
    /// Query heads, a multiple of the cache's key/value heads: query head `h` reads key/value head
    /// `h / (q_heads / kv_heads)`.
    pub q_heads: usize,
    /// What scores are multiplied by, usually `1 / √head_dim`.
    pub scale: f32,
    /// Queries after rotation, `[tokens, q_heads, head_dim]`.
    pub q: &'a [f32],
    /// New keys as they are to be cached, `[tokens, kv_heads, head_dim]`.
    pub k: &'a [f32],
    /// New values as they are to be cached, `[tokens, kv_heads, head_dim]`.
    pub v: &'a [f32],
    /// Whose tokens the rows are.
    pub spans: &'a [Span<'a>],
}

/// `out[t, h] = Σ_j softmax_j(scale · q[t, h] · k_j) · v_j` over the keys that the query sees, cached and new;
/// `out` is `[tokens, q_heads, head_dim]`. On return the new rows are in the cache.
///
/// New rows are rounded to the cache's type before anything reads them, so they count the same now as in later
/// calls. A ring is read before it is overwritten: a chunk may be longer than the ring, and no query misses a key of
/// its window. Only rows of the spans' own tables are read, and of those only positions that some query sees.
///
/// # Panics
/// If a length does not fit the shapes, a table is too short, or names a block that the cache does not have.
pub fn attend(threads: &Threads, cache: &mut KvCache, attention: &Attention<'_>, out: &mut [f32]) {
    let shape = cache.shape;
    check(&shape, attention, out.len());
    each!(&mut cache.store, pair => attend_in(threads, shape, pair, attention, out));
}

fn attend_in<R: Readable>(
    threads: &Threads,
    shape: KvShape,
    cache: &mut KeysValues<R>,
    attention: &Attention<'_>,
    out: &mut [f32],
) {
    let is_ring = |span: &Span<'_>| matches!(span.layout, Layout::Ring { .. });
    // Rings are read before they are written, so their new rows wait here, rounded; pages are written at once.
    let fresh = attention
        .spans
        .iter()
        .any(is_ring)
        .then(|| fresh::<R>(threads, shape.head_dim, attention.k, attention.v));
    write(threads, shape, cache, attention, |span| !is_ring(span));

    let units = units(&shape, attention);
    let source = Source {
        shape,
        cache,
        fresh: fresh.as_ref(),
    };
    let n_splits = |unit: &Unit<'_>| unit.splits().len();
    let is_split = units.len() < 4 * threads.count() && units.iter().any(|unit| n_splits(unit) > 1);
    let width = R::width(shape.head_dim);
    let out = Shared::new(out);
    if is_split && threads.count() > 1 {
        let jobs: Vec<(usize, usize)> = units
            .iter()
            .enumerate()
            .flat_map(|(i, unit)| unit.splits().map(move |split| (i, split)))
            .collect();
        let states: Vec<std::sync::OnceLock<State>> = jobs.iter().map(|_| Default::default()).collect();
        // Neighbours together, so that what is asked of memory beyond a split is what the same thread reads next.
        let jobs_per_task = jobs.len().div_ceil(threads.count() * TASKS_PER_THREAD);
        threads.for_each(jobs.len().div_ceil(jobs_per_task), |task| {
            let first = task * jobs_per_task;
            let of_task = jobs.iter().zip(&states).skip(first).take(jobs_per_task);
            for (&(unit, split), result) in of_task {
                let mut state = State::new(units[unit].n_rows(attention, &shape), width);
                part::compute(threads, attention, &source, &units[unit], split, &mut state);
                // Each job sets its own.
                let _ = result.set(state);
            }
        });
        threads.for_each(units.len(), |unit| {
            let mut total = State::new(units[unit].n_rows(attention, &shape), width);
            for (job, state) in jobs.iter().zip(&states) {
                if let (true, Some(part)) = (job.0 == unit, state.get()) {
                    threads.run(Merge {
                        total: &mut total,
                        part,
                    });
                }
            }
            units[unit].finish(attention, &shape, &total, &out);
        });
    } else {
        threads.for_each(units.len(), |unit| {
            let unit = &units[unit];
            let n_rows = unit.n_rows(attention, &shape);
            let mut total = State::new(n_rows, width);
            let mut part = State::new(n_rows, width);
            for split in unit.splits() {
                part.reset();
                part::compute(threads, attention, &source, unit, split, &mut part);
                threads.run(Merge {
                    total: &mut total,
                    part: &part,
                });
            }
            unit.finish(attention, &shape, &total, &out);
        });
    }
    write(threads, shape, cache, attention, is_ring);
}

/// What one task computes: some tokens of a span, for the query heads of one key/value head.
struct Unit<'a> {
    span: &'a Span<'a>,
    /// Row of the span's first token in q, k, v and out.
    first_row: usize,
    kv_head: usize,
    /// Tokens of the span.
    tokens: std::ops::Range<usize>,
}

fn units<'a>(shape: &KvShape, attention: &Attention<'a>) -> Vec<Unit<'a>> {
    let tokens_per_unit = (ROWS_PER_UNIT * shape.kv_heads / attention.q_heads).max(1);
    let mut units = Vec::new();
    let mut first_row = 0;
    for span in attention.spans {
        for kv_head in 0..shape.kv_heads {
            for start in (0..span.tokens).step_by(tokens_per_unit) {
                let tokens = start..span.tokens.min(start + tokens_per_unit);
                units.push(Unit {
                    span,
                    first_row,
                    kv_head,
                    tokens,
                });
            }
        }
        first_row += span.tokens;
    }
    units
}

impl Unit<'_> {
    /// Positions that the query of a token sees.
    fn visible(&self, token: usize) -> std::ops::Range<usize> {
        let end = self.span.start + token + 1;
        match self.span.layout {
            Layout::Paged => 0..end,
            Layout::Ring { window, .. } => end.saturating_sub(window)..end,
        }
    }

    /// Splits that hold a position some token sees.
    fn splits(&self) -> std::ops::Range<usize> {
        let (first, last) = (self.visible(self.tokens.start), self.visible(self.tokens.end - 1));
        first.start / SPLIT..last.end.div_ceil(SPLIT)
    }

    /// Query rows: the heads of the group, of each token.
    fn n_rows(&self, attention: &Attention<'_>, shape: &KvShape) -> usize {
        self.tokens.len() * (attention.q_heads / shape.kv_heads)
    }

    /// Where the first query head of a token's group starts in q and out.
    fn query(&self, attention: &Attention<'_>, shape: &KvShape, token: usize) -> usize {
        let group = attention.q_heads / shape.kv_heads;
        ((self.first_row + token) * attention.q_heads + self.kv_head * group) * shape.head_dim
    }

    /// Divides by the softmax's denominators.
    fn finish(&self, attention: &Attention<'_>, shape: &KvShape, state: &State, out: &Shared<f32>) {
        let group = attention.q_heads / shape.kv_heads;
        for (i, token) in self.tokens.clone().enumerate() {
            let start = self.query(attention, shape, token);
            // SAFETY: `check` found `out` to hold every query head, and this group is this unit's alone.
            let out = unsafe { std::slice::from_raw_parts_mut(out.ptr().add(start), group * shape.head_dim) };
            for (head, out) in out.chunks_exact_mut(shape.head_dim).enumerate() {
                let (sum, weighted) = state.row(i * group + head);
                out.iter_mut().zip(weighted).for_each(|(out, x)| *out = x / sum);
            }
        }
    }
}

/// Stores the new rows of some of the spans; of a ring those that are not overwritten within the call.
fn write<R: Readable>(
    threads: &Threads,
    shape: KvShape,
    cache: &mut KeysValues<R>,
    attention: &Attention<'_>,
    which: impl Fn(&Span<'_>) -> bool,
) {
    let mut rows = Vec::new();
    let mut first_row = 0;
    for span in attention.spans {
        if which(span) {
            let kept = match span.layout {
                Layout::Paged => span.tokens,
                Layout::Ring { rows, .. } => span.tokens.min(rows),
            };
            rows.extend(
                (span.tokens - kept..span.tokens).map(|token| (span, first_row + token, span.start + token)),
            );
        }
        first_row += span.tokens;
    }
    // A task is one head's keys or values: whatever blocks the spans name, no two tasks write one place.
    let (k, v) = (cache.k.writer(), cache.v.writer());
    let operands = [(attention.k, &k), (attention.v, &v)];
    let write_head = |task: usize| {
        let (head, (fresh, cached)) = (task / 2, operands[task % 2]);
        for &(span, row, position) in &rows {
            let (block, offset) = source::place(&shape, span, position);
            let from = row * shape.row_len() + head * shape.head_dim;
            let to = shape.head_row(block, head, offset);
            // SAFETY: `check` found the block in the cache, and a head's rows are this task's alone.
            unsafe { write_row(threads, cached, to, &fresh[from..][..shape.head_dim]) };
        }
    };
    const VALUES_WORTH_A_THREAD: usize = 1 << 14;
    if rows.len() * shape.row_len() < VALUES_WORTH_A_THREAD {
        (0..2 * shape.kv_heads).for_each(write_head);
    } else {
        threads.for_each(2 * shape.kv_heads, write_head);
    }
}

/// Rounds a row into its place, with the level's instructions.
///
/// # Safety
/// As for [`RowWriter::write`].
unsafe fn write_row(threads: &Threads, writer: &impl RowWriter, row: usize, from: &[f32]) {
    struct Write<'a, W>(&'a W, usize, &'a [f32]);

    impl<W: RowWriter> Kernel for Write<'_, W> {
        type Output = ();

        #[inline(always)]
        fn run<S: Simd>(self, _: S) {
            // SAFETY: the caller's word.
            unsafe { self.0.write(self.1, self.2) }
        }
    }
    threads.run(Write(writer, row, from));
}

fn check(shape: &KvShape, attention: &Attention<'_>, out_len: usize) {
    let Attention {
        q_heads,
        q,
        k,
        v,
        spans,
        ..
    } = *attention;
    let tokens: usize = spans.iter().map(|span| span.tokens).sum();
    let is_grouped = q_heads > 0 && q_heads.is_multiple_of(shape.kv_heads);
    assert!(
        is_grouped,
        "{q_heads} query heads over {} key/value heads",
        shape.kv_heads
    );
    assert_eq!(
        q.len(),
        tokens * q_heads * shape.head_dim,
        "q is [{tokens}, {q_heads}, {}]",
        shape.head_dim
    );
    assert_eq!(out_len, q.len(), "out has the shape of q");
    assert_eq!(
        k.len(),
        tokens * shape.row_len(),
        "k is [{tokens}, {}, {}]",
        shape.kv_heads,
        shape.head_dim
    );
    assert_eq!(v.len(), k.len(), "v has the shape of k");
    for span in spans {
        let end = span.start + span.tokens;
        let needed = match span.layout {
            Layout::Paged => end,
            Layout::Ring { rows, window } => {
                assert!(
                    window > 0 && rows >= window,
                    "a ring of {rows} rows for a window of {window}"
                );
                end.min(rows)
            }
        };
        let held = span.blocks.len() * shape.block_tokens;
        assert!(held >= needed, "a table of {held} rows for {needed}");
        let stray = span
            .blocks
            .iter()
            .find(|&&block| block as usize >= shape.n_blocks);
        assert!(stray.is_none(), "block {stray:?} of {}", shape.n_blocks);
    }
}

#[cfg(test)]
mod tests;
