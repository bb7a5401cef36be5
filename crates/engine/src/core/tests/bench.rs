//! What the core's tests stand on: an engine without its thread, requests, and readers of events.

use std::collections::BTreeMap;

use super::super::*;
use crate::backend::EventStream;
use crate::config::{CacheBudget, CacheConfig};
use crate::event::{Delta, Finished};
use crate::ids::{RequestId, TokenId};
use crate::request::{
    Account, EmbedRequest, OutputOptions, Pooling, RequestLimits, SamplingOptions, SamplingParams,
    StoppingOptions,
};
use crate::testing::{self, EOS, FakeModel, VOCAB_SIZE, byte_tokenizer};

pub(super) const MAX_CONTEXT: usize = 200;

/// An engine without its thread, and a reader for each of its requests.
pub(super) struct Bench {
    pub(super) core: EngineCore<FakeModel>,
    pub(super) queue: Queue,
    pub(super) streams: BTreeMap<u64, EventStream>,
    pub(super) seen: BTreeMap<u64, Vec<Event>>,
    pub(super) next: u64,
    pub(super) sees_prefill: bool,
}

pub(super) fn config(global: usize, window: usize, slots: usize, chunk: usize) -> EngineConfig {
    EngineConfig {
        max_step_tokens: chunk.max(slots),
        prefill_chunk_tokens: chunk,
        max_sequences: slots,
        cache: CacheConfig {
            block_tokens: 4,
            budget: CacheBudget::Blocks { global, window },
            ..CacheConfig::default()
        },
        scrub_freed: true,
        ..EngineConfig::default()
    }
}

pub(super) fn roomy() -> EngineConfig {
    config(1000, 1000, 32, 64)
}

impl Bench {
    pub(super) fn new(config: &EngineConfig) -> Self {
        Self::with_model(config, FakeModel::new(config, MAX_CONTEXT, 10).unwrap())
    }

    pub(super) fn with_model(config: &EngineConfig, model: FakeModel) -> Self {
        let vocabulary = Vocabulary {
            tokenizer: byte_tokenizer().unwrap(),
            eos_token_ids: vec![EOS],
            max_context: MAX_CONTEXT,
        };
        let queue = Queue::new(1000, 1 << 20);
        let core = EngineCore::new(model, vocabulary, config, queue.clone(), Instant::now);
        Self {
            core,
            queue,
            streams: BTreeMap::new(),
            seen: BTreeMap::new(),
            sees_prefill: false,
            next: 0,
        }
    }

    pub(super) fn submit(&mut self, request: Request) -> u64 {
        let place = self
            .queue
            .enter(request.account(), request.tokens().len(), 0.0)
            .unwrap();
        let (sink, stream) = EventSink::channel(1 << 16);
        self.core.submit(Job {
            request,
            sink,
            place,
            span: tracing::Span::none(),
        });
        self.next += 1;
        self.streams.insert(self.next, stream);
        self.seen.insert(self.next, Vec::new());
        self.next
    }

    pub(super) fn cancel(&mut self, id: u64) {
        self.streams.remove(&id);
    }

    /// One step; reads what it brought.
    pub(super) fn step(&mut self) {
        self.core.step();
        self.core.scheduler.check_integrity().unwrap();
        for (id, stream) in &mut self.streams {
            let seen = self.seen.get_mut(id).unwrap();
            while let Some(Some(event)) = futures::FutureExt::now_or_never(stream.next()) {
                // Asked for by the one test that looks at them.
                if self.sees_prefill || !matches!(event, Event::Prefilled(_)) {
                    seen.push(event);
                }
            }
        }
    }

    pub(super) fn run(&mut self) {
        let mut steps = 0;
        while !self.core.is_idle() {
            self.step();
            steps += 1;
            assert!(steps < 100_000, "it never ends");
        }
    }

    pub(super) fn one(config: &EngineConfig, request: Request) -> Vec<Event> {
        let mut bench = Self::new(config);
        let id = bench.submit(request);
        bench.run();
        bench.seen.remove(&id).unwrap()
    }

    pub(super) fn assert_empty(&self) {
        let stats = self.core.stats(false);
        assert_eq!((stats.running, stats.waiting, stats.waiting_tokens), (0, 0, 0));
        assert_eq!(
            (stats.global.used, stats.window.used, stats.slots_used),
            (0, 0, 0)
        );
    }
}

pub(super) fn greedy() -> SamplingOptions {
    SamplingOptions {
        temperature: Some(0.0),
        ..Default::default()
    }
}

pub(super) fn sampling(options: SamplingOptions) -> SamplingParams {
    options.validate(&RequestLimits::default(), 0).unwrap()
}

pub(super) fn generate(
    prompt: &[TokenId],
    options: SamplingOptions,
    stopping: StoppingOptions,
) -> GenerateRequest {
    let sampling = sampling(options);
    GenerateRequest {
        id: RequestId::new("test"),
        prompt: prompt.to_vec(),
        stopping: stopping.validate(&RequestLimits::default(), sampling.n).unwrap(),
        sampling,
        output: OutputOptions::default(),
        grammar: None,
        priority: 0,
        arrived: Instant::now(),
        account: Account::default(),
        deadline: None,
    }
}

pub(super) fn max_tokens(n: u32) -> StoppingOptions {
    StoppingOptions {
        max_tokens: Some(n),
        ignore_eos: Some(true),
        ..Default::default()
    }
}

pub(super) fn embed(tokens: &[TokenId], pooling: Pooling) -> Request {
    let id = RequestId::new("test");
    Request::Embed(EmbedRequest {
        id,
        tokens: tokens.to_vec(),
        pooling,
        priority: 0,
        arrived: Instant::now(),
        account: Account::default(),
        deadline: None,
    })
}

pub(super) fn request(generate: GenerateRequest) -> Request {
    Request::Generate(Box::new(generate))
}

/// What greedy decoding of the fake model gives, computed without an engine.
pub(super) fn greedy_tokens(prompt: &[TokenId], n: usize) -> Vec<TokenId> {
    let mut tokens = prompt.to_vec();
    for _ in 0..n {
        let row = testing::logits(&tokens);
        let best = (0..VOCAB_SIZE)
            .rev()
            .max_by(|a, b| row[*a].total_cmp(&row[*b]))
            .unwrap();
        tokens.push(best as TokenId);
    }
    tokens.split_off(prompt.len())
}

pub(super) fn deltas(events: &[Event], index: u32) -> Vec<&Delta> {
    let delta = |e: &'_ Event| matches!(e, Event::Delta(d) if d.index == index);
    events
        .iter()
        .filter(|e| delta(e))
        .map(|e| {
            if let Event::Delta(d) = e {
                d
            } else {
                unreachable!()
            }
        })
        .collect()
}

pub(super) fn tokens(events: &[Event], index: u32) -> Vec<TokenId> {
    deltas(events, index)
        .iter()
        .flat_map(|d| d.token_ids.clone())
        .collect()
}

pub(super) fn text(events: &[Event], index: u32) -> String {
    deltas(events, index).iter().map(|d| d.text.as_str()).collect()
}

pub(super) fn finished(events: &[Event], index: u32) -> &Finished {
    let ends: Vec<_> = events
        .iter()
        .filter_map(|e| if let Event::Finished(f) = e { Some(f) } else { None })
        .collect();
    let mut of_index = ends.into_iter().filter(|f| f.index == index);
    let end = of_index.next().expect("it has an end");
    assert!(of_index.next().is_none(), "it has one end");
    end
}
