//! Drives a model as the engine does, with blocks handed out in no good order and unused memory full of NaN.

use std::path::Path;

use baichuan_engine::model::{CacheCopy, Freed, StepBatch, StepEntry, Wants};
use baichuan_engine::{
    BlockId, CacheBudget, CacheConfig, CacheDtype, CachePlan, CausalLm, Dtype, EngineConfig, LoadError,
    SlotId,
};
use baichuan_kernels::{GgmlFormat, Threads};
use baichuan_m1::{BaichuanM1, LoadOptions, load};

/// A model and its free memory.
pub(crate) struct Driver {
    pub(crate) model: BaichuanM1,
    plan: CachePlan,
    global: Vec<BlockId>,
    window: Vec<BlockId>,
    slots: Vec<SlotId>,
}

/// A sequence and the memory it holds.
pub(crate) struct Sequence {
    slot: SlotId,
    global: Vec<BlockId>,
    window: Vec<BlockId>,
    /// Tokens so far.
    pub(crate) len: usize,
}

/// How to load, where a test cares.
#[derive(Clone, Copy)]
pub(crate) struct Setup {
    pub(crate) dtype: Option<Dtype>,
    pub(crate) cache_dtype: Option<CacheDtype>,
    pub(crate) isq: Option<GgmlFormat>,
    /// The text of a topology file.
    pub(crate) topology: &'static str,
    pub(crate) n_threads: usize,
    pub(crate) block_tokens: usize,
}

/// Setups with keys and values as they are computed, and with the rounding that cuts deepest.
pub(crate) fn rounded_and_not() -> [Setup; 2] {
    [CacheDtype::F32, CacheDtype::Int8].map(|cache_dtype| Setup {
        cache_dtype: Some(cache_dtype),
        ..Setup::default()
    })
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            dtype: Some(Dtype::F32),
            cache_dtype: Some(CacheDtype::F32),
            isq: None,
            topology: "",
            n_threads: 2,
            block_tokens: 4,
        }
    }
}

impl Driver {
    /// Loads a checkpoint, with room for eight sequences of 128 tokens.
    pub(crate) fn load(dir: &Path, setup: Setup) -> Self {
        Self::try_load(dir, setup).unwrap()
    }

    /// The same, of one that may be refused.
    pub(crate) fn try_load(dir: &Path, setup: Setup) -> Result<Self, LoadError> {
        let blocks = 8 * 128_usize.div_ceil(setup.block_tokens);
        let engine = EngineConfig {
            max_sequences: 8,
            cache: CacheConfig {
                block_tokens: setup.block_tokens,
                budget: CacheBudget::Blocks {
                    global: blocks,
                    window: blocks,
                },
                ..CacheConfig::default()
            },
            ..EngineConfig::default()
        };
        let options = LoadOptions {
            dtype: setup.dtype,
            cache_dtype: setup.cache_dtype,
            isq: setup.isq,
            topology: &setup.topology.parse().unwrap(),
            threads: Threads::new(setup.n_threads).unwrap(),
            engine: &engine,
            progress: &|_| {},
        };
        let mut model = load(dir, &options)?.model;
        let plan = model.spec().cache;
        let scattered = |n: usize| -> Vec<BlockId> {
            // 7 has no factor in common with the number of blocks, a power of two.
            (0..n).map(|i| BlockId((i * 7 % n) as u32)).collect()
        };
        let (global, window) = (scattered(plan.global_blocks), scattered(plan.window_blocks));
        let slots: Vec<SlotId> = (0..plan.slots as u32).map(SlotId).collect();
        for &slot in &slots {
            model.scrub(&Freed {
                slot,
                global: &global,
                window: &window,
            });
        }
        Ok(Self {
            model,
            plan,
            global,
            window,
            slots,
        })
    }

    /// Width of a row of logits.
    pub(crate) fn vocab_size(&self) -> usize {
        self.model.spec().vocab_size
    }

    /// Width of a hidden state.
    pub(crate) fn hidden_size(&self) -> usize {
        self.model.spec().hidden_size
    }

    /// A sequence without tokens.
    pub(crate) fn start(&mut self) -> Sequence {
        let slot = self.slots.pop().unwrap();
        self.model.reset_slot(slot);
        Sequence {
            slot,
            global: Vec::new(),
            window: Vec::new(),
            len: 0,
        }
    }

    /// Takes a sequence's memory back and fills it with NaN.
    pub(crate) fn free(&mut self, sequence: Sequence) {
        self.model.scrub(&Freed {
            slot: sequence.slot,
            global: &sequence.global,
            window: &sequence.window,
        });
        self.slots.push(sequence.slot);
        self.global.extend(sequence.global);
        self.window.extend(sequence.window);
    }

    /// A second sequence with the same tokens behind it.
    pub(crate) fn fork(&mut self, sequence: &Sequence) -> Sequence {
        let mut copy = self.start();
        self.grow(&mut copy, sequence.len);
        copy.len = sequence.len;
        let pairs = |from: &[BlockId], to: &[BlockId]| -> Vec<_> {
            from.iter().copied().zip(to.iter().copied()).collect()
        };
        let (global, window) = (
            pairs(&sequence.global, &copy.global),
            pairs(&sequence.window, &copy.window),
        );
        self.model
            .copy(&CacheCopy {
                slot: (sequence.slot, copy.slot),
                global: &global,
                window: &window,
            })
            .unwrap();
        copy
    }

    fn grow(&mut self, sequence: &mut Sequence, len: usize) {
        while sequence.global.len() < self.plan.global_blocks_for(len) {
            sequence.global.push(self.global.pop().unwrap());
        }
        while sequence.window.len() < self.plan.window_blocks_for(len) {
            sequence.window.push(self.window.pop().unwrap());
        }
    }

    /// One step of several sequences; gives the rows of each, flat.
    pub(crate) fn step(&mut self, work: &mut [(&mut Sequence, &[u32], Wants)]) -> Vec<Vec<f32>> {
        for (sequence, tokens, _) in work.iter_mut() {
            self.grow(sequence, sequence.len + tokens.len());
        }
        let entries: Vec<StepEntry<'_>> = work
            .iter()
            .map(|(sequence, tokens, wants)| StepEntry {
                slot: sequence.slot,
                tokens,
                start: sequence.len,
                global: &sequence.global,
                window: &sequence.window,
                wants: *wants,
            })
            .collect();
        let output = self.model.forward(&StepBatch { entries: &entries }).unwrap();
        for (sequence, tokens, _) in work {
            sequence.len += tokens.len();
        }
        output
            .entries
            .into_iter()
            .map(|rows| rows.into_values())
            .collect()
    }

    /// One step of one sequence.
    pub(crate) fn run(&mut self, sequence: &mut Sequence, tokens: &[u32], wants: Wants) -> Vec<f32> {
        self.step(&mut [(sequence, tokens, wants)]).remove(0)
    }

    /// Logits at every position of a sequence that comes in chunks of these lengths, the last one repeated.
    pub(crate) fn logits_in_chunks(&mut self, tokens: &[u32], chunks: &[usize]) -> Vec<f32> {
        let mut sequence = self.start();
        let (mut logits, mut rest) = (Vec::new(), tokens);
        let mut chunks = chunks
            .iter()
            .copied()
            .chain(std::iter::repeat(*chunks.last().unwrap()));
        while !rest.is_empty() {
            let (chunk, after) = rest.split_at(chunks.next().unwrap().min(rest.len()));
            logits.extend(self.run(&mut sequence, chunk, Wants::AllLogits));
            rest = after;
        }
        self.free(sequence);
        logits
    }

    /// `n` tokens after what the sequence holds, each the likeliest; `token` is the first to go in.
    pub(crate) fn greedy(&mut self, sequence: &mut Sequence, token: u32, n: usize) -> Vec<u32> {
        let mut tokens = vec![token];
        while tokens.len() < n {
            let logits = self.run(sequence, &tokens[tokens.len() - 1..], Wants::LastLogits);
            tokens.push(likeliest(&logits));
        }
        tokens
    }
}

/// The place of the largest value.
pub(crate) fn likeliest(logits: &[f32]) -> u32 {
    (0..logits.len())
        .max_by(|&a, &b| logits[a].total_cmp(&logits[b]))
        .unwrap() as u32
}

/// The largest difference between values of the same place; infinite where one is not a number.
pub(crate) fn largest_difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    let difference = |(a, b): (&f32, &f32)| (a - b).abs();
    a.iter()
        .zip(b)
        .map(difference)
        .fold(0.0, |largest, d| if d <= largest { largest } else { d })
}

/// The bits of each value.
pub(crate) fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|x| x.to_bits()).collect()
}
