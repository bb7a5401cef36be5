//! Stand-ins for a model, for tests of everything above it.
//!
//! [`FakeModel`] keeps the tokens themselves where a real model keeps keys and values, and reads every one of
//! them back from blocks, ring and slot at each step: bookkeeping that hands out a wrong block, forgets a reset
//! or reads freed memory makes it fail, not answer differently. Its logits are a hash of all the tokens so far,
//! so that two runs are equal only if every token before was.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::backend::{Backend, BackendInfo};
use crate::config::EngineConfig;
use crate::error::{LoadError, StepError};
use crate::grammar::Grammars;
use crate::handle::EngineHandle;
use crate::ids::{BlockId, SlotId, TokenId};
use crate::kv::{CachePlan, CacheSpec};
use crate::model::{
    CacheCopy, CausalLm, Freed, HiddenRows, ModelSpec, Rows, StepBatch, StepEntry, StepOutput, Wants,
};
use crate::plugin::{Checkpoint, LoadRequest, ModelPlugin};
use crate::request::{Pooling, SamplingOptions};
use crate::text::{ChatTemplate, SpecialTokens};

mod faults;
mod tokenizer;

pub use faults::{Fault, Release};
pub use tokenizer::byte_tokenizer;

/// Tokens of [`FakeModel`]'s vocabulary: 256 bytes, then [`BOS`], [`EOS`] and role tokens.
pub const VOCAB_SIZE: usize = 264;
/// Beginning of sequence.
pub const BOS: TokenId = 256;
/// End of sequence.
pub const EOS: TokenId = 257;
/// Width of a hidden state.
pub const HIDDEN_SIZE: usize = 16;

type Row = Option<(usize, TokenId)>;

/// Called before every step with its number, from 0; may fail it, panic, or take its time.
pub type StepHook = Box<dyn FnMut(u64) -> Result<(), StepError> + Send>;

/// A model whose keys and values are the tokens themselves.
pub struct FakeModel {
    spec: ModelSpec,
    global: Vec<Row>,
    window: Vec<Row>,
    last: Vec<Row>,
    n_steps: u64,
    hook: Option<StepHook>,
    poison: Option<TokenId>,
    chosen: Arc<AtomicU64>,
    /// Tokens of a step that it has memory for.
    room: usize,
    copies: bool,
}

impl FakeModel {
    /// A model with one layer of each kind, a window of `window` tokens and room as `config` says.
    pub fn new(config: &EngineConfig, max_context: usize, window: usize) -> Result<Self, LoadError> {
        let layers = vec![
            CacheSpec::Paged { bytes_per_token: 8 },
            CacheSpec::Rotating {
                window,
                bytes_per_token: 16,
            },
            CacheSpec::State { bytes: 8 },
        ];
        let cache = CachePlan::new(&layers, config, max_context, 64 << 20)?;
        Ok(Self {
            global: vec![None; cache.global_blocks * cache.block_tokens],
            window: vec![None; cache.window_blocks * cache.block_tokens],
            last: vec![None; cache.slots],
            spec: ModelSpec {
                vocab_size: VOCAB_SIZE,
                hidden_size: HIDDEN_SIZE,
                max_context,
                layers,
                cache,
                samples: false,
            },
            n_steps: 0,
            hook: None,
            poison: None,
            chosen: Arc::default(),
            room: usize::MAX,
            copies: true,
        })
    }

    /// Chooses tokens itself where the engine lets it, and counts them in `chosen`.
    pub fn that_samples(mut self, chosen: Arc<AtomicU64>) -> Self {
        self.spec.samples = true;
        self.chosen = chosen;
        self
    }

    /// Runs out of memory in every step of more than `tokens`.
    pub fn with_room_for(mut self, tokens: usize) -> Self {
        self.room = tokens;
        self
    }

    /// Runs out of memory whenever it shall copy.
    pub fn without_copies(mut self) -> Self {
        self.copies = false;
        self
    }

    /// Fails every step that has `token` among its tokens.
    pub fn with_poison(mut self, token: TokenId) -> Self {
        self.poison = Some(token);
        self
    }

    /// Calls `hook` before every step.
    pub fn with_hook(mut self, hook: StepHook) -> Self {
        self.hook = Some(hook);
        self
    }

    fn global_row(&self, blocks: &[BlockId], position: usize) -> usize {
        let n = self.spec.cache.block_tokens;
        blocks[position / n].0 as usize * n + position % n
    }

    fn window_row(&self, blocks: &[BlockId], position: usize) -> usize {
        self.global_row(blocks, position % self.spec.cache.window_rows)
    }

    /// Reads all that is cached of an entry's sequence, checking that every place agrees.
    fn read(&self, entry: &StepEntry<'_>) -> Vec<TokenId> {
        let tokens: Vec<TokenId> = (0..entry.start)
            .map(
                |position| match self.global[self.global_row(entry.global, position)] {
                    Some((at, token)) if at == position => token,
                    other => panic!("global row of position {position} holds {other:?}"),
                },
            )
            .collect();
        let oldest = (entry.start + 1)
            .saturating_sub(self.spec.cache.window_tokens)
            .min(entry.start);
        for (position, token) in tokens.iter().enumerate().skip(oldest) {
            let row = self.window[self.window_row(entry.window, position)];
            assert_eq!(row, Some((position, *token)), "ring row of position {position}");
        }
        let last = entry
            .start
            .checked_sub(1)
            .map(|position| (position, tokens[position]));
        assert_eq!(
            self.last[entry.slot.0 as usize], last,
            "carried state at {}",
            entry.start
        );
        tokens
    }

    /// Tokens of the entries that want one.
    fn choose(&self, batch: &StepBatch<'_>) -> Result<Vec<Option<TokenId>>, StepError> {
        let of_entry = |entry: &StepEntry<'_>| match entry.wants {
            Wants::Sample(_) if !self.spec.samples => {
                Err(StepError::Compute("it was told not to choose".into()))
            }
            Wants::Sample(sampling) => {
                let tokens = [&self.read(entry), entry.tokens].concat();
                self.chosen.fetch_add(1, Ordering::Relaxed);
                sampling.choose(&logits(&tokens)).map(Some)
            }
            _ => Ok(None),
        };
        batch.entries.iter().map(of_entry).collect()
    }

    fn write(&mut self, entry: &StepEntry<'_>) {
        for (position, token) in (entry.start..).zip(entry.tokens) {
            let row = Some((position, *token));
            let (global, window) = (
                self.global_row(entry.global, position),
                self.window_row(entry.window, position),
            );
            self.global[global] = row;
            self.window[window] = row;
            self.last[entry.slot.0 as usize] = row;
        }
    }
}

impl CausalLm for FakeModel {
    fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    fn forward(&mut self, batch: &StepBatch<'_>) -> Result<StepOutput, StepError> {
        let step = self.n_steps;
        self.n_steps += 1;
        if let Some(hook) = &mut self.hook {
            hook(step)?;
        }
        if batch.n_tokens() > self.room {
            return Err(StepError::OutOfMemory(format!("room for {} tokens", self.room)));
        }
        if self
            .poison
            .is_some_and(|poison| batch.entries.iter().any(|e| e.tokens.contains(&poison)))
        {
            return Err(StepError::Compute("poisoned".into()));
        }
        let chosen = self.choose(batch)?;
        let entries = batch
            .entries
            .iter()
            .map(|entry| {
                let mut tokens = self.read(entry);
                let rows_of = |tokens: &mut Vec<TokenId>, f: &dyn Fn(&[TokenId]) -> Vec<f32>| {
                    let mut rows = Vec::new();
                    for token in entry.tokens {
                        tokens.push(*token);
                        rows.push(f(tokens));
                    }
                    rows
                };
                match entry.wants {
                    Wants::Nothing | Wants::Sample(_) => Rows::default(),
                    Wants::LastLogits => {
                        tokens.extend(entry.tokens);
                        Rows::new(VOCAB_SIZE, logits(&tokens))
                    }
                    Wants::AllLogits => Rows::new(VOCAB_SIZE, rows_of(&mut tokens, &logits).concat()),
                    Wants::Hidden(which) => {
                        let rows = rows_of(&mut tokens, &hidden);
                        let sum = |weight: &dyn Fn(usize) -> f32| {
                            let mut sum = vec![0.0f32; HIDDEN_SIZE];
                            for (position, row) in (entry.start..).zip(&rows) {
                                sum.iter_mut()
                                    .zip(row)
                                    .for_each(|(s, r)| *s += weight(position) * r);
                            }
                            sum
                        };
                        let values = match which {
                            HiddenRows::First => rows[0].clone(),
                            HiddenRows::Last => rows[rows.len() - 1].clone(),
                            HiddenRows::Sum => sum(&|_| 1.0),
                            HiddenRows::WeightedSum => sum(&|position| (position + 1) as f32),
                            HiddenRows::All => rows.concat(),
                        };
                        Rows::new(HIDDEN_SIZE, values)
                    }
                }
            })
            .collect();
        batch.entries.iter().for_each(|entry| self.write(entry));
        Ok(StepOutput { entries, chosen })
    }

    fn reset_slot(&mut self, slot: SlotId) {
        self.last[slot.0 as usize] = None;
    }

    fn copy(&mut self, copy: &CacheCopy<'_>) -> Result<(), StepError> {
        if !self.copies {
            return Err(StepError::OutOfMemory("no room for copies".into()));
        }
        let n = self.spec.cache.block_tokens;
        for (rows, blocks) in [(&mut self.global, copy.global), (&mut self.window, copy.window)] {
            for (from, to) in blocks {
                let (from, to) = (from.0 as usize * n, to.0 as usize * n);
                rows.copy_within(from..from + n, to);
            }
        }
        let (from, to) = copy.slot;
        self.last[to.0 as usize] = self.last[from.0 as usize];
        Ok(())
    }

    fn scrub(&mut self, freed: &Freed<'_>) {
        let n = self.spec.cache.block_tokens;
        for (rows, blocks) in [(&mut self.global, freed.global), (&mut self.window, freed.window)] {
            for block in blocks {
                rows[block.0 as usize * n..][..n].fill(None);
            }
        }
        // Not `None`, which is what a reset leaves: a slot used without one must be noticed.
        self.last[freed.slot.0 as usize] = Some((usize::MAX, TokenId::MAX));
    }
}

/// The logits behind `tokens`: in −4 .. 4, the end of a sequence rather unlikely.
pub fn logits(tokens: &[TokenId]) -> Vec<f32> {
    let mut row = noise(tokens, 0, VOCAB_SIZE);
    row[EOS as usize] -= 2.0;
    row
}

/// The hidden state behind `tokens`.
pub fn hidden(tokens: &[TokenId]) -> Vec<f32> {
    noise(tokens, 1, HIDDEN_SIZE)
}

fn noise(tokens: &[TokenId], salt: u64, n: usize) -> Vec<f32> {
    let mix = |h: u64| {
        let h = (h ^ (h >> 31)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        h ^ (h >> 29)
    };
    let state = tokens.iter().fold(mix(salt + 1), |h, token| {
        mix(h.wrapping_add(u64::from(*token) + 1))
    });
    (0..n as u64)
        .map(|i| (mix(state.wrapping_add(i)) >> 40) as f32 / (1u64 << 21) as f32 - 4.0)
        .collect()
}

/// How a fake backend is made.
pub struct FakeOptions {
    /// Served name.
    pub name: String,
    /// Of the engine.
    pub engine: EngineConfig,
    /// Longest sequence, in tokens.
    pub max_context: usize,
    /// The sliding layer's window, in tokens.
    pub window: usize,
    /// Called before every step.
    pub hook: Option<StepHook>,
    /// What the checkpoint would say of sampling.
    pub default_sampling: SamplingOptions,
    /// Whether it has a chat template.
    pub chat: bool,
}

impl Default for FakeOptions {
    fn default() -> Self {
        Self {
            name: "fake".into(),
            engine: EngineConfig {
                scrub_freed: true,
                ..EngineConfig::default()
            },
            max_context: 4096,
            window: 32,
            hook: None,
            default_sampling: SamplingOptions::default(),
            chat: true,
        }
    }
}

/// An engine over a [`FakeModel`] and [`byte_tokenizer`].
pub fn fake_engine(options: FakeOptions) -> Result<EngineHandle, LoadError> {
    let mut model = FakeModel::new(&options.engine, options.max_context, options.window)?;
    if let Some(hook) = options.hook {
        model = model.with_hook(hook);
    }
    let template = "{% for m in messages %}{{ '<C_Q>' if m.role == 'user' else '<C_A>' }}{{ m.content }}{% endfor %}\
                    {% if add_generation_prompt %}<C_A>{% endif %}";
    let chat_template = options
        .chat
        .then(|| ChatTemplate::new("fake", template, SpecialTokens::default()))
        .transpose()?;
    let tokenizer = byte_tokenizer()?;
    let info = BackendInfo {
        name: options.name,
        plugin: "fake",
        architecture: "FakeForCausalLM".into(),
        parameters: 0,
        dtype: "f32".into(),
        quantization: "none".into(),
        device: "cpu".into(),
        vocab_size: VOCAB_SIZE,
        hidden_size: HIDDEN_SIZE,
        max_context: options.max_context,
        generates: true,
        embeds: true,
        default_pooling: Pooling::Last,
        default_sampling: options.default_sampling,
        default_max_tokens: None,
        limits: options.engine.limits,
        eos_token_ids: vec![EOS],
        bos_token_id: Some(BOS),
        pad_token_id: None,
        grammars: Grammars::new(&tokenizer, &[EOS]),
        tokenizer,
        chat_template,
        fingerprint: "fake".into(),
    };
    EngineHandle::start(model, info, &options.engine)
}

/// A plugin that serves [`fake_engine`] for any checkpoint of architecture `FakeForCausalLM`.
pub struct FakePlugin;

impl ModelPlugin for FakePlugin {
    fn name(&self) -> &'static str {
        "fake"
    }

    fn accepts(&self, checkpoint: &Checkpoint) -> bool {
        checkpoint.architecture() == "FakeForCausalLM"
    }

    fn load(&self, request: &LoadRequest<'_>) -> Result<Arc<dyn Backend>, LoadError> {
        let options = FakeOptions {
            name: request.name.into(),
            engine: request.engine.clone(),
            ..FakeOptions::default()
        };
        Ok(Arc::new(fake_engine(options)?))
    }
}
