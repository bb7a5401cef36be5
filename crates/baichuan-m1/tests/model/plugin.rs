//! The plugin through the engine: recognises its checkpoints, loads them, answers as the reference does.

use std::fs;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use baichuan_engine::event::Event;
use baichuan_engine::request::{
    Account, GenerateRequest, OutputOptions, Request, RequestLimits, SamplingOptions, StoppingOptions,
};
use baichuan_engine::{
    Backend, BackendInfo, CacheBudget, CacheConfig, CacheDtype, Checkpoint, Dtype, EngineConfig, EventStream,
    IsqType, LoadError, LoadProgress, LoadRequest, ModelPlugin, Placement, QuantizeRequest, Registry,
    RequestId,
};
use baichuan_m1::random::{Preset, Recipe};

use crate::golden::{self, folder, prompts};
use crate::rewrite::rewritten;

fn load_with(
    dir: &Path,
    engine: &EngineConfig,
    progress: &(dyn Fn(LoadProgress) + Sync),
) -> Result<Arc<dyn Backend>, LoadError> {
    load_with_cache(dir, None, engine, progress)
}

fn load_with_cache(
    dir: &Path,
    cache_dtype: Option<CacheDtype>,
    engine: &EngineConfig,
    progress: &(dyn Fn(LoadProgress) + Sync),
) -> Result<Arc<dyn Backend>, LoadError> {
    let checkpoint = Checkpoint::open(dir)?;
    let plugin = Registry::new()
        .with(baichuan_m1::plugin())
        .pick(None, &checkpoint)?;
    plugin.load(&LoadRequest {
        name: "under-test",
        checkpoint: &checkpoint,
        dtype: Some(Dtype::F32),
        cache_dtype,
        isq: None,
        adapters: &[],
        threads: Some(1),
        placement: &Placement::default(),
        random_weights: None,
        engine,
        progress,
    })
}

/// The greedy continuation of a prompt.
fn greedy(prompt: Vec<u32>, max_tokens: usize) -> Request {
    let limits = RequestLimits::default();
    let sampling = SamplingOptions {
        temperature: Some(0.0),
        ..SamplingOptions::default()
    };
    let stopping = StoppingOptions {
        max_tokens: Some(max_tokens as u32),
        ignore_eos: Some(true),
        ..StoppingOptions::default()
    };
    Request::Generate(Box::new(GenerateRequest {
        id: RequestId::new("under-test"),
        prompt,
        sampling: sampling.validate(&limits, 0).unwrap(),
        stopping: stopping.validate(&limits, 1).unwrap(),
        output: OutputOptions::default(),
        grammar: None,
        priority: 0,
        arrived: Instant::now(),
        account: Account::default(),
        deadline: None,
    }))
}

async fn tokens(mut stream: EventStream) -> (Vec<u32>, u32) {
    let mut tokens = Vec::new();
    while let Some(event) = stream.next().await {
        match event {
            Event::Delta(delta) => tokens.extend(delta.token_ids),
            Event::Finished(finished) => return (tokens, finished.preemptions),
            Event::Failed(error) => panic!("{error}"),
            _ => {}
        }
    }
    panic!("the stream has no terminal event")
}

#[tokio::test]
async fn prompts_that_fight_for_memory_get_the_answers_of_the_reference() {
    // Room for the longest prompt and its answer, 105 tokens, and little more: the others are preempted.
    let engine = EngineConfig {
        max_sequences: 6,
        prefill_chunk_tokens: 5,
        cache: CacheConfig {
            block_tokens: 4,
            budget: CacheBudget::Blocks {
                global: 30,
                window: 9,
            },
            ..CacheConfig::default()
        },
        scrub_freed: true,
        ..EngineConfig::default()
    };
    let backend = load_with(&folder("alternating"), &engine, &|_| {}).unwrap();
    let golden = prompts("alternating");
    let streams: Vec<EventStream> = golden
        .iter()
        .map(|golden| {
            backend
                .submit(greedy(golden.tokens.clone(), golden.greedy.len()))
                .unwrap()
        })
        .collect();
    let mut preemptions = 0;
    for (golden, stream) in golden.iter().zip(streams) {
        let (tokens, paused) = tokens(stream).await;
        assert_eq!(tokens, golden.greedy, "a prompt of {}", golden.tokens.len());
        preemptions += paused;
    }
    assert!(preemptions > 0, "memory sufficed: nothing was tested");
}

#[tokio::test]
async fn what_is_told_of_a_model_is_what_its_checkpoint_says() {
    let backend = load_with(&folder("tied_head"), &EngineConfig::default(), &|_| {}).unwrap();
    let info = backend.info();
    assert_eq!((info.name.as_str(), info.plugin), ("under-test", "baichuan-m1"));
    assert_eq!(info.architecture, "BaichuanM1ForCausalLM");
    assert_eq!(
        (info.vocab_size, info.hidden_size, info.max_context),
        (96, 32, 512)
    );
    assert_eq!(info.parameters, 26_352);
    assert_eq!(
        (info.eos_token_ids.as_slice(), info.bos_token_id),
        (&[2][..], Some(1))
    );
    assert!(
        info.chat_template.is_some(),
        "roles are known even where the checkpoint has no template"
    );
}

#[tokio::test]
async fn the_fingerprint_tells_apart_what_answers_depend_on_and_not_the_files_it_comes_in() {
    let fingerprint = |seed, shards, edit: (&str, &str), cache_dtype| {
        let folder = tempfile::tempdir().unwrap();
        let recipe = Recipe {
            seed,
            shards,
            ..Recipe::new(Preset::Tiny)
        };
        recipe.write(folder.path(), &|_, _| {}).unwrap();
        let path = folder.path().join("config.json");
        let mut config: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        if let (key, Ok(value)) = (edit.0, serde_json::from_str(edit.1)) {
            config[key] = value;
        }
        fs::write(path, config.to_string()).unwrap();
        let engine = EngineConfig {
            max_context: Some(64),
            ..EngineConfig::default()
        };
        load_with_cache(folder.path(), cache_dtype, &engine, &|_| {})
            .unwrap()
            .info()
            .fingerprint
            .clone()
    };
    let first = fingerprint(1, 1, ("", ""), None);
    assert_eq!(fingerprint(1, 3, ("", ""), None), first);
    assert_eq!(fingerprint(1, 1, ("comment", "1"), None), first);
    for edit in [
        ("rope_theta", "12345.0"),
        ("rms_norm_eps", "1e-3"),
        ("sliding_window", "24"),
        ("eos_token_id", "7"),
    ] {
        assert_ne!(fingerprint(1, 1, edit, None), first, "{edit:?}");
    }
    // Weights as asked for, keys and values as the checkpoint's weights are on disk.
    assert!(first.contains("-f32-bf16-"), "{first}");
    assert_ne!(fingerprint(2, 1, ("", ""), None), first);
    let int8 = fingerprint(1, 1, ("", ""), Some(CacheDtype::Int8));
    assert_eq!(int8, first.replace("-bf16-", "-int8-"));
}

#[tokio::test]
async fn progress_rises_to_the_total() {
    let seen = Mutex::new(Vec::new());
    let note = |progress| seen.lock().unwrap().push(progress);
    load_with(&folder("bf16_shards"), &EngineConfig::default(), &note).unwrap();
    let seen = seen.into_inner().unwrap();
    assert!(seen.is_sorted_by(|a, b| a.done < b.done));
    let last = seen.last().unwrap();
    assert_eq!((last.stage, last.done), ("weights", last.total));
}

#[tokio::test]
async fn a_checkpoint_that_cannot_be_loaded_is_an_error_that_names_folder_and_fault() {
    type Break = fn(&Path);
    let cases: [(Break, &str); 5] = [
        (
            |dir| fs::remove_file(dir.join("tokenizer.json")).unwrap(),
            "no tokenizer",
        ),
        (
            |dir| fs::remove_file(dir.join("model.safetensors")).unwrap(),
            "neither model.safetensors nor",
        ),
        (
            |dir| {
                let config = fs::read_to_string(dir.join("config.json")).unwrap();
                let config = config.replace("\"conv_window\": 2", "\"conv_window\": 0");
                fs::write(dir.join("config.json"), config).unwrap();
            },
            "config.json: `conv_window` is 0",
        ),
        (
            |dir| {
                fs::write(
                    dir.join("generation_config.json"),
                    r#"{"eos_token_id": [2, 999999]}"#,
                )
                .unwrap()
            },
            "generation_config.json: `eos_token_id` holds 999999, the vocabulary has ",
        ),
        (
            |dir| {
                let mut weights = fs::read(dir.join("model.safetensors")).unwrap();
                let at = weights.len() - 4;
                weights[at..].copy_from_slice(&f32::NAN.to_le_bytes());
                fs::write(dir.join("model.safetensors"), weights).unwrap();
            },
            "has NaN at element",
        ),
    ];
    for (break_it, expected) in cases {
        let copy = tempfile::tempdir().unwrap();
        for file in fs::read_dir(folder("alternating")).unwrap().map(Result::unwrap) {
            fs::copy(file.path(), copy.path().join(file.file_name())).unwrap();
        }
        break_it(copy.path());
        let error = load_with(copy.path(), &EngineConfig::default(), &|_| {})
            .err()
            .expect(expected);
        let message = error.to_string();
        assert!(message.contains(expected), "{message:?} lacks {expected:?}");
        assert!(
            message.contains(&copy.path().display().to_string()),
            "{message:?} names no folder"
        );
    }
}

#[tokio::test]
async fn a_pool_without_blocks_is_refused_by_the_name_of_its_key() {
    let budget = CacheBudget::Blocks { global: 0, window: 8 };
    let engine = EngineConfig {
        cache: CacheConfig {
            budget,
            ..CacheConfig::default()
        },
        ..EngineConfig::default()
    };
    let error = load_with(&folder("alternating"), &engine, &|_| {})
        .err()
        .expect("no blocks");
    assert!(
        error
            .to_string()
            .starts_with("cache.budget: 0 global and 8 window blocks"),
        "{error}"
    );
}

#[tokio::test]
async fn caches_that_no_memory_has_room_for_are_refused_however_they_were_asked_for() {
    let blocks = CacheBudget::Blocks {
        global: 1 << 40,
        window: 8,
    };
    for budget in [blocks, CacheBudget::Bytes(1 << 60)] {
        let engine = EngineConfig {
            // Else sequences are what bounds the caches.
            max_sequences: 1 << 40,
            cache: CacheConfig {
                budget,
                ..CacheConfig::default()
            },
            ..EngineConfig::default()
        };
        let refused = load_with(&folder("alternating"), &engine, &|_| {});
        let expected = matches!(
            refused,
            Err(LoadError::OutOfMemory {
                what: "the caches",
                ..
            })
        );
        assert!(expected, "{:?}", refused.err());
    }
}

#[test]
fn a_checkpoint_of_another_architecture_finds_no_plugin() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(
        folder.path().join("config.json"),
        r#"{"architectures": ["LlamaForCausalLM"]}"#,
    )
    .unwrap();
    let error = load_with(folder.path(), &EngineConfig::default(), &|_| {})
        .err()
        .expect("not ours");
    assert!(matches!(error, LoadError::NoPlugin { .. }), "{error}");
}

/// A tokenizer of bytes, and no role.
fn without_roles() -> String {
    let vocab: serde_json::Map<_, _> = (0..256)
        .map(|byte| (format!("<0x{byte:02X}>"), byte.into()))
        .collect();
    serde_json::json!({
        "version": "1.0", "added_tokens": [], "normalizer": null, "pre_tokenizer": null, "post_processor": null,
        "decoder": {"type": "Sequence", "decoders": [{"type": "ByteFallback"}, {"type": "Fuse"}]},
        "model": {"type": "BPE", "byte_fallback": true, "vocab": vocab, "merges": []},
    })
    .to_string()
}

#[test]
fn a_checkpoint_without_a_template_chats_only_if_its_tokenizer_knows_the_roles() {
    let folder = tempfile::tempdir().unwrap();
    Recipe::new(Preset::Tiny)
        .write(folder.path(), &|_, _| {})
        .unwrap();
    fs::write(folder.path().join("tokenizer_config.json"), "{}").unwrap();
    let engine = EngineConfig {
        max_context: Some(64),
        ..EngineConfig::default()
    };
    let chats = |dir: &Path| {
        load_with(dir, &engine, &|_| {})
            .unwrap()
            .info()
            .chat_template
            .is_some()
    };
    assert!(chats(folder.path()));
    fs::write(folder.path().join("tokenizer.json"), without_roles()).unwrap();
    assert!(!chats(folder.path()));
}

/// A model of `checkpoint`, quantised as it is loaded or before, and the first tokens it generates.
async fn quantised(checkpoint: &Path, isq: Option<IsqType>) -> Result<(BackendInfo, Vec<u32>), LoadError> {
    let checkpoint = Checkpoint::open(checkpoint)?;
    let engine = EngineConfig {
        max_context: Some(64),
        ..EngineConfig::default()
    };
    let backend = baichuan_m1::plugin().load(&LoadRequest {
        name: "under-test",
        checkpoint: &checkpoint,
        dtype: None,
        cache_dtype: None,
        isq,
        adapters: &[],
        threads: Some(1),
        placement: &Placement::default(),
        random_weights: None,
        engine: &engine,
        progress: &|_| {},
    })?;
    let stream = backend.submit(greedy((3..20).collect(), 12)).unwrap();
    Ok((backend.info().clone(), tokens(stream).await.0))
}

fn quantize(checkpoint: &Path, isq: IsqType, out: &Path) -> Result<(), LoadError> {
    baichuan_m1::plugin().quantize(&QuantizeRequest {
        checkpoint: &Checkpoint::open(checkpoint)?,
        isq,
        out,
        threads: Some(2),
        progress: &|_| {},
    })
}

#[tokio::test]
async fn weights_quantised_before_are_those_quantised_at_load() {
    let folder = tempfile::tempdir().unwrap();
    let plain = folder.path().join("plain");
    Recipe::new(Preset::Tiny).write(&plain, &|_, _| {}).unwrap();
    for isq in [IsqType::Q8_0, IsqType::Q6K, IsqType::Q4K, IsqType::Q4_0] {
        let out = folder.path().join(isq.name());
        quantize(&plain, isq, &out).unwrap();
        let (at_load, expected) = quantised(&plain, Some(isq)).await.unwrap();
        let (before, tokens) = quantised(&out, None).await.unwrap();
        assert_eq!(tokens, expected, "{isq}");
        assert_eq!(before.fingerprint, at_load.fingerprint);
        assert_eq!(
            (before.quantization.as_str(), before.dtype.as_str()),
            (isq.name(), "f32")
        );
        assert!(before.fingerprint.contains(isq.name()), "{}", before.fingerprint);
        assert_eq!(before.parameters, at_load.parameters);
        // Said again it is no contradiction, said otherwise it is.
        assert!(quantised(&out, Some(isq)).await.is_ok());
        let other = if isq == IsqType::Q8_0 {
            IsqType::Q4_0
        } else {
            IsqType::Q8_0
        };
        let error = quantised(&out, Some(other)).await.unwrap_err().to_string();
        assert!(error.contains("quantised already"), "{error}");
    }
}

#[tokio::test]
async fn a_tied_head_is_quantised_normalised_and_the_embedding_as_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let (tied, out) = (golden::folder("tied_head"), folder.path().join("out"));
    quantize(&tied, IsqType::Q8_0, &out).unwrap();
    let (_, expected) = quantised(&tied, Some(IsqType::Q8_0)).await.unwrap();
    let (_, tokens) = quantised(&out, None).await.unwrap();
    assert_eq!(tokens, expected);
}

#[test]
fn what_cannot_be_quantised_is_refused_and_nothing_is_overwritten() {
    let dir = tempfile::tempdir().unwrap();
    let (plain, out) = (dir.path().join("plain"), dir.path().join("out"));
    Recipe::new(Preset::Tiny).write(&plain, &|_, _| {}).unwrap();
    let refusal =
        |checkpoint: &Path, isq, out: &Path| quantize(checkpoint, isq, out).unwrap_err().to_string();
    assert!(refusal(&plain, IsqType::HQQ4, &out).contains("HQQ4"));
    assert!(refusal(&plain, IsqType::Q8_0, &plain).contains("not empty"));
    quantize(&plain, IsqType::Q8_0, &out).unwrap();
    assert!(refusal(&out, IsqType::Q8_0, &dir.path().join("again")).contains("quantised already"));
    assert!(out.join("tokenizer.model").is_file());
    let unfinished = |entry: fs::DirEntry| entry.file_name().to_string_lossy().contains("unfinished");
    assert!(
        !fs::read_dir(&out)
            .unwrap()
            .any(|entry| unfinished(entry.unwrap()))
    );
}

#[test]
fn what_fails_on_the_way_leaves_nothing_behind_and_can_be_tried_again() {
    let dir = tempfile::tempdir().unwrap();
    let (plain, out) = (dir.path().join("plain"), dir.path().join("out"));
    Recipe::new(Preset::Tiny).write(&plain, &|_, _| {}).unwrap();
    let broken = rewritten(&plain, |tensors, _| {
        let (dtype, _, data) = tensors.get_mut("model.layers.1.mlp.down_proj.weight").unwrap();
        assert_eq!(*dtype, safetensors::Dtype::BF16);
        data[..2].copy_from_slice(&half::bf16::NAN.to_le_bytes());
    });
    fs::copy(
        plain.join("tokenizer.model"),
        broken.path().join("tokenizer.model"),
    )
    .unwrap();
    let error = quantize(broken.path(), IsqType::Q8_0, &out)
        .unwrap_err()
        .to_string();
    assert!(error.contains("NaN"), "{error}");
    assert_eq!(fs::read_dir(&out).unwrap().count(), 0);
    quantize(&plain, IsqType::Q8_0, &out).unwrap();
    assert!(out.join("config.json").is_file());
}

#[tokio::test]
async fn a_type_that_processors_have_no_kernels_for_is_refused_by_its_name_with_those_they_have() {
    let dir = tempfile::tempdir().unwrap();
    Recipe::new(Preset::Tiny).write(dir.path(), &|_, _| {}).unwrap();
    for isq in [IsqType::FP8, IsqType::AFQ4, IsqType::Q5K] {
        let message = quantised(dir.path(), Some(isq)).await.unwrap_err().to_string();
        assert!(
            message.contains(isq.name()) && message.contains("CPU") && message.contains("Q6K"),
            "{message}"
        );
    }
}

#[test]
fn a_damaged_packed_file_is_refused_by_the_name_of_the_tensor() {
    let dir = tempfile::tempdir().unwrap();
    let (plain, out) = (dir.path().join("plain"), dir.path().join("out"));
    Recipe::new(Preset::Tiny).write(&plain, &|_, _| {}).unwrap();
    quantize(&plain, IsqType::Q8_0, &out).unwrap();
    // Said to be of a smaller format, its tensors are too long.
    let config = std::fs::read_to_string(out.join("config.json")).unwrap();
    std::fs::write(out.join("config.json"), config.replace("Q8_0", "Q4_0")).unwrap();
    let error = load_with(&out, &EngineConfig::default(), &|_| {})
        .err()
        .unwrap()
        .to_string();
    assert!(error.contains("dtype"), "{error}");
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let error = runtime.block_on(quantised(&out, None)).unwrap_err().to_string();
    assert!(
        error.contains("model.layers.0.") && error.contains("shape"),
        "{error}"
    );
}
