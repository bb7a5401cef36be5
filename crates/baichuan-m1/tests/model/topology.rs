//! Layers and tensors that are quantised each in its own way.

use std::path::Path;

use baichuan_engine::{
    BackendInfo, CacheDtype, Checkpoint, EngineConfig, IsqType, LoadError, LoadRequest, ModelPlugin,
    Placement,
};
use baichuan_kernels::GgmlFormat;
use baichuan_m1::random::{Preset, Recipe};
use tempfile::TempDir;

use crate::driver::{Driver, Setup, bits};

/// Four layers.
fn tiny() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    Recipe::new(Preset::Tiny)
        .write(folder.path(), &|_, _| {})
        .unwrap();
    folder
}

fn logits(dir: &Path, isq: Option<GgmlFormat>, topology: &'static str) -> Vec<f32> {
    let setup = Setup {
        dtype: None,
        cache_dtype: Some(CacheDtype::F32),
        isq,
        topology,
        ..Setup::default()
    };
    let tokens: Vec<u32> = (0..24).map(|i| (i * 197 + 31) % 509 + 3).collect();
    Driver::load(dir, setup).logits_in_chunks(&tokens, &[tokens.len()])
}

fn info(dir: &Path, isq: Option<IsqType>, topology: &str) -> Result<BackendInfo, LoadError> {
    let checkpoint = Checkpoint::open(dir)?;
    let engine = EngineConfig {
        max_context: Some(64),
        ..EngineConfig::default()
    };
    let placement = Placement {
        topology: topology.parse().unwrap(),
        ..Placement::default()
    };
    let backend = baichuan_m1::plugin().load(&LoadRequest {
        name: "under-test",
        checkpoint: &checkpoint,
        dtype: None,
        cache_dtype: None,
        isq,
        adapters: &[],
        threads: Some(1),
        placement: &placement,
        random_weights: None,
        engine: &engine,
        progress: &|_| {},
    })?;
    Ok(backend.info().clone())
}

#[test]
fn every_layer_named_is_as_good_as_the_model_s_isq() {
    let checkpoint = tiny();
    let uniform = logits(checkpoint.path(), Some(GgmlFormat::Q8_0), "");
    for (isq, topology) in [
        (None, "0-4: {isq: Q8_0}\n'/lm_head|embed_tokens/': {isq: Q8_0}"),
        (None, "'/./': {isq: 8}"),
        // What it does not name is as the model is.
        (Some(GgmlFormat::Q8_0), "1-3: {isq: Q8_0}"),
        (Some(GgmlFormat::Q8_0), "1-3: {device: cpu}"),
    ] {
        assert_eq!(
            bits(&logits(checkpoint.path(), isq, topology)),
            bits(&uniform),
            "{topology}"
        );
    }
}

#[test]
fn a_topology_changes_what_it_names_and_nothing_else() {
    let checkpoint = tiny();
    let dir = checkpoint.path();
    let of = |topology| logits(dir, None, topology);
    let (plain, second, fourth) = (of(""), of("1: {isq: Q4K}"), of("3: {isq: Q4K}"));
    let both = of("1: {isq: Q4K}\n3: {isq: Q4K}");
    let unlike = of("1: {isq: Q4K}\n3: {isq: Q8_0}");
    for (place, one) in [&plain, &second, &fourth, &both, &unlike].iter().enumerate() {
        for other in [&plain, &second, &fourth, &both, &unlike].iter().skip(place + 1) {
            assert_ne!(bits(one), bits(other), "two topologies give one model");
        }
    }
    // The pattern counts before the range: but for gate and up, layer 1 is Q4K again.
    let by_name = of("1: {isq: Q8_0}\n'/layers\\.1\\./': {isq: Q4K}");
    assert_eq!(bits(&by_name), bits(&second));
    // Where layers 2 and 3 are plain, the first layers' quantisation is what is left: the farther, the more of it.
    let distance = |a: &[f32]| a.iter().zip(&plain).map(|(a, b)| (a - b).powi(2)).sum::<f32>();
    assert!(distance(&of("1: {isq: Q8_0}")) < distance(&second));
}

#[tokio::test]
async fn a_topology_is_told_and_marks_the_model() {
    let checkpoint = tiny();
    let info = |topology| info(checkpoint.path(), None, topology).unwrap();
    let (mixed, other) = (
        info("0-2: {isq: Q8_0}\n2: {isq: Q4K}"),
        info("0-2: {isq: Q8_0}\n3: {isq: Q4K}"),
    );
    assert_eq!(mixed.quantization, "Q4K+Q8_0+plain");
    assert_eq!(other.quantization, mixed.quantization);
    assert_ne!(other.fingerprint, mixed.fingerprint);
    assert_eq!(info("1: {device: cpu}").fingerprint, info("").fingerprint);
}

#[tokio::test]
async fn an_entry_that_cannot_be_is_named() {
    let checkpoint = tiny();
    for (topology, says) in [
        ("2-5: {isq: Q4K}", "entry \"2-5\": the model has 4 layers"),
        ("'/experts/': {isq: Q4K}", "entry \"/experts/\": no tensor"),
        ("1: {isq: HQQ4}", "model.layers.1.self_attn.W_pack.weight: HQQ4"),
        ("'/up_proj/': {isq: Q4K}", "gate_proj and up_proj of layer 0"),
        #[cfg(not(feature = "cuda"))]
        ("1: {device: 'cuda[1]'}", "cuda:1"),
        ("1: {device: 'metal[0]'}", "metal"),
    ] {
        match info(checkpoint.path(), None, topology) {
            Err(error @ LoadError::Unsupported { .. }) => {
                assert!(error.to_string().contains(says), "{topology}: {error}");
            }
            Err(error) => panic!("{topology}: {error:?}"),
            Ok(_) => panic!("{topology} was taken"),
        }
    }
}
