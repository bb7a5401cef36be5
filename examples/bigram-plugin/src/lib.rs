//! A family of models of its own: the next token depends on the last one alone, by counts over a text.
//!
//! A checkpoint is a folder with `config.json`, `tokenizer.json` and the text, `corpus.txt`. As models go it is a
//! poor one; as a plugin it is whole, and `docs/PLUGINS.md` leads through it. It needs no cache: every sequence's state
//! is its last token, which each step brings along.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use baichuan_engine::model::{
    CacheCopy, Freed, HiddenRows, ModelSpec, Rows, StepBatch, StepEntry, StepOutput, Wants,
};
use baichuan_engine::request::{Pooling, SamplingOptions};
use baichuan_engine::text::{CheckpointText, EncodeOptions, Tokenizer};
use baichuan_engine::{
    Backend, BackendInfo, CachePlan, CausalLm, Checkpoint, EngineHandle, Grammars, LoadError, LoadRequest,
    ModelPlugin, SlotId, StepError, TokenId,
};

/// As `config.json` calls it.
const ARCHITECTURE: &str = "BigramForCausalLM";
/// Longest sequence, in tokens. The model does not care.
const MAX_CONTEXT: usize = 4096;

/// The plugin, for a server's registry.
pub fn plugin() -> impl ModelPlugin {
    BigramPlugin
}

struct BigramPlugin;

impl ModelPlugin for BigramPlugin {
    fn name(&self) -> &'static str {
        "bigram"
    }

    fn accepts(&self, checkpoint: &Checkpoint) -> bool {
        checkpoint.architecture() == ARCHITECTURE
    }

    fn load(&self, request: &LoadRequest<'_>) -> Result<Arc<dyn Backend>, LoadError> {
        if request.isq.is_some() {
            return Err(LoadError::Unsupported {
                key: "isq",
                message: "counts are not quantised".into(),
            });
        }
        let text = CheckpointText::from_dir(request.checkpoint.dir(), None)?;
        let model = Bigram::learn(request, &text.tokenizer)?;
        let info = info(self.name(), request, text, &model);
        Ok(Arc::new(EngineHandle::start(model, info, request.engine)?))
    }
}

/// Counts over a text.
struct Bigram {
    spec: ModelSpec,
    /// By a token and the one behind it.
    counts: HashMap<(TokenId, TokenId), f32>,
}

impl Bigram {
    fn learn(request: &LoadRequest<'_>, tokenizer: &Tokenizer) -> Result<Self, LoadError> {
        let path = request.checkpoint.dir().join("corpus.txt");
        let corpus = read(&path)?;
        let tokens = tokenizer.encode(&corpus, EncodeOptions::UNTRUSTED)?;
        let mut counts = HashMap::new();
        for pair in tokens.windows(2) {
            *counts.entry((pair[0], pair[1])).or_insert(0.0) += 1.0;
        }
        let layers = Vec::new();
        let cache = CachePlan::new(&layers, request.engine, MAX_CONTEXT, 0)?;
        let spec = ModelSpec {
            vocab_size: tokenizer.vocab_size(),
            hidden_size: tokenizer.vocab_size(),
            max_context: MAX_CONTEXT,
            layers,
            cache,
            samples: false,
        };
        Ok(Self { spec, counts })
    }

    /// The logits behind `token`: how often each token was seen there.
    fn row(&self, token: TokenId) -> Vec<f32> {
        let behind = |next: usize| self.counts.get(&(token, next as TokenId)).copied();
        (0..self.spec.vocab_size)
            .map(|next| behind(next).unwrap_or(0.0))
            .collect()
    }

    fn answer(&self, entry: &StepEntry<'_>) -> Rows {
        let width = self.spec.vocab_size;
        let rows = || entry.tokens.iter().map(|token| self.row(*token));
        let last = || rows().next_back().unwrap_or_default();
        let sum = |weight: &dyn Fn(usize) -> f32| {
            let mut sum = vec![0.0; width];
            for (at, row) in (entry.start..).zip(rows()) {
                sum.iter_mut()
                    .zip(row)
                    .for_each(|(sum, value)| *sum += weight(at) * value);
            }
            sum
        };
        let values = match entry.wants {
            Wants::Nothing | Wants::Sample(_) => return Rows::default(),
            Wants::LastLogits | Wants::Hidden(HiddenRows::Last) => last(),
            Wants::AllLogits | Wants::Hidden(HiddenRows::All) => rows().flatten().collect(),
            Wants::Hidden(HiddenRows::First) => rows().next().unwrap_or_default(),
            Wants::Hidden(HiddenRows::Sum) => sum(&|_| 1.0),
            Wants::Hidden(HiddenRows::WeightedSum) => sum(&|at| (at + 1) as f32),
        };
        Rows::new(width, values)
    }
}

impl CausalLm for Bigram {
    fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    fn forward(&mut self, batch: &StepBatch<'_>) -> Result<StepOutput, StepError> {
        let rows = batch.entries.iter().map(|entry| self.answer(entry));
        Ok(StepOutput::of_rows(rows.collect()))
    }

    fn reset_slot(&mut self, _: SlotId) {}

    fn copy(&mut self, _: &CacheCopy<'_>) -> Result<(), StepError> {
        Ok(())
    }

    fn scrub(&mut self, _: &Freed<'_>) {}
}

fn info(
    plugin: &'static str,
    request: &LoadRequest<'_>,
    text: CheckpointText,
    model: &Bigram,
) -> BackendInfo {
    let CheckpointText {
        tokenizer,
        chat_template,
        generation,
    } = text;
    BackendInfo {
        name: request.name.to_owned(),
        plugin,
        architecture: ARCHITECTURE.to_owned(),
        parameters: model.counts.len() as u64,
        dtype: "f32".to_owned(),
        quantization: "none".to_owned(),
        device: "cpu".to_owned(),
        vocab_size: model.spec.vocab_size,
        hidden_size: model.spec.hidden_size,
        max_context: MAX_CONTEXT,
        generates: true,
        embeds: true,
        default_pooling: Pooling::Mean,
        default_sampling: SamplingOptions {
            temperature: generation.temperature,
            ..SamplingOptions::default()
        },
        default_max_tokens: generation.max_new_tokens,
        limits: request.engine.limits,
        grammars: Grammars::new(&tokenizer, &generation.eos_token_ids),
        eos_token_ids: generation.eos_token_ids,
        bos_token_id: generation.bos_token_id,
        pad_token_id: generation.pad_token_id,
        tokenizer,
        chat_template,
        fingerprint: format!("bigram-{}", env!("CARGO_PKG_VERSION")),
    }
}

fn read(path: &Path) -> Result<String, LoadError> {
    std::fs::read_to_string(path).map_err(|source| LoadError::Io {
        path: path.to_owned(),
        source,
    })
}
