//! What is loaded, how, and what is refused before it is.

use std::fs;
use std::path::Path;

use baichuan_engine::{
    CacheDtype, Checkpoint, DeviceChoice, DeviceMap, Dtype, EngineConfig, IsqType, LoadError, ModelPlugin,
    Placement,
};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::{Completed, folder, golden, greedy, load, one, try_load};

/// A copy of a checkpoint, to be spoilt.
fn copy(name: &str) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    for file in [
        "config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "model.safetensors",
    ] {
        fs::copy(folder(name).join(file), dir.path().join(file)).unwrap();
    }
    dir
}

fn edit(dir: &Path, change: impl FnOnce(&mut Value)) {
    let path = dir.join("config.json");
    let mut config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    change(&mut config);
    fs::write(path, config.to_string()).unwrap();
}

fn refusal(dir: &Path) -> String {
    match try_load(dir, &EngineConfig::default(), |_| {}) {
        Err(error) => error.to_string(),
        Ok(_) => panic!("must not load"),
    }
}

#[tokio::test]
async fn a_model_says_what_it_is() {
    let backend = load("qwen2");
    let info = backend.info();
    assert_eq!(
        (info.plugin, info.architecture.as_str()),
        ("mistralrs", "Qwen2ForCausalLM")
    );
    assert_eq!(
        (
            info.dtype.as_str(),
            info.quantization.as_str(),
            info.device.as_str()
        ),
        ("f32", "none", "cpu")
    );
    assert_eq!(
        (info.vocab_size, info.hidden_size, info.max_context),
        (264, 32, 512)
    );
    assert_eq!(info.eos_token_ids, [256]);
    assert!(info.parameters > 30_000 && info.chat_template.is_some());
    let other = load("qwen3");
    assert_ne!(info.fingerprint, other.info().fingerprint);
}

#[test]
fn other_families_are_accepted_and_baichuan_m1_is_not() {
    let accepts = |architecture: &str| {
        let dir = tempfile::tempdir().unwrap();
        let config = json!({ "architectures": [architecture] });
        fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
        mistralrs_backend::plugin().accepts(&Checkpoint::open(dir.path()).unwrap())
    };
    for known in [
        "Qwen2ForCausalLM",
        "Qwen3MoeForCausalLM",
        "LlamaForCausalLM",
        "MistralForCausalLM",
    ] {
        assert!(accepts(known), "{known}");
    }
    for other in ["BaichuanM1ForCausalLM", "FakeForCausalLM", ""] {
        assert!(!accepts(other), "{other}");
    }
}

#[tokio::test]
async fn quantised_at_load_it_says_nearly_the_same() {
    let backend = try_load(&folder("qwen3"), &EngineConfig::default(), |r| {
        r.isq = Some(IsqType::Q8_0)
    })
    .unwrap();
    assert_eq!(backend.info().quantization, "Q8_0");
    let golden = golden::<Completed>("qwen3");
    let expected = &golden["a sentence"];
    let whole = one(greedy(&expected.prompt, 4).submit(&backend)).await;
    assert_eq!(whole.tokens[..2], expected.tokens[..2]);
}

#[test]
fn what_cannot_be_done_names_its_key() {
    let key = |change: &dyn Fn(&mut baichuan_engine::LoadRequest<'_>)| match try_load(
        &folder("qwen2"),
        &EngineConfig::default(),
        |r| change(r),
    ) {
        Err(LoadError::Unsupported { key, .. }) => key,
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("must not load"),
    };
    assert_eq!(key(&|r| r.threads = Some(2)), "threads");
    assert_eq!(key(&|r| r.random_weights = Some(1)), "random_weights");
    assert_eq!(key(&|r| r.dtype = Some(Dtype::Bf16)), "dtype");
    assert_eq!(key(&|r| r.cache_dtype = Some(CacheDtype::F16)), "cache_dtype");
    let elsewhere = Placement {
        device: DeviceChoice::Metal(0),
        ..Placement::default()
    };
    let spread = Placement {
        device: DeviceChoice::Cpu,
        map: DeviceMap::Auto,
        ..Placement::default()
    };
    let by_layer = Placement {
        topology: "0: {isq: Q4K}".parse().unwrap(),
        ..Placement::default()
    };
    for (placement, expected) in [
        (&elsewhere, "device"),
        (&spread, "device_map"),
        (&by_layer, "topology"),
    ] {
        let checkpoint = Checkpoint::open(folder("qwen2")).unwrap();
        let request = baichuan_engine::LoadRequest {
            name: "x",
            checkpoint: &checkpoint,
            dtype: None,
            cache_dtype: None,
            isq: None,
            adapters: &[],
            threads: None,
            random_weights: None,
            placement,
            engine: &EngineConfig::default(),
            progress: &|_| {},
        };
        let refused = mistralrs_backend::plugin().load(&request);
        assert!(matches!(refused, Err(LoadError::Unsupported { key, .. }) if key == expected));
    }
}

#[test]
fn a_bad_folder_is_refused_by_file_and_reason() {
    let dir = copy("qwen2");
    fs::remove_file(dir.path().join("tokenizer.json")).unwrap();
    assert!(refusal(dir.path()).contains("tokenizer"));

    let dir = copy("qwen2");
    fs::remove_file(dir.path().join("model.safetensors")).unwrap();
    assert!(refusal(dir.path()).contains("no weights"));

    let dir = copy("qwen2");
    fs::write(dir.path().join("model.gguf"), "").unwrap();
    assert!(refusal(dir.path()).contains("safetensors and as GGUF"));

    let dir = copy("qwen2");
    fs::write(dir.path().join("model.safetensors"), [255; 64]).unwrap();
    assert!(refusal(dir.path()).contains("model.safetensors"));

    let dir = copy("qwen2");
    edit(dir.path(), |config| {
        config["eos_token_id"] = json!([256, 999_999])
    });
    let refused = refusal(dir.path());
    assert!(
        refused.contains("config.json") && refused.contains("`eos_token_id`"),
        "{refused}"
    );

    let dir = copy("qwen2");
    fs::write(
        dir.path().join("generation_config.json"),
        r#"{"pad_token_id": 999999}"#,
    )
    .unwrap();
    let refused = refusal(dir.path());
    assert!(
        refused.contains("generation_config.json: `pad_token_id`"),
        "{refused}"
    );

    // A length that nothing has memory for: of the first value's name.
    let dir = copy("qwen2");
    fs::remove_file(dir.path().join("model.safetensors")).unwrap();
    let mut gguf = fs::read(folder("qwen2-q8_0.gguf").join("model.gguf")).unwrap();
    gguf[24..32].copy_from_slice(&(1u64 << 60).to_le_bytes());
    fs::write(dir.path().join("model.gguf"), gguf).unwrap();
    let refused = refusal(dir.path());
    assert!(
        refused.contains("model.gguf") && refused.contains("ends within its header"),
        "{refused}"
    );

    let dir = copy("qwen2");
    edit(dir.path(), |config| config["use_sliding_window"] = json!(true));
    assert!(refusal(dir.path()).contains("use_sliding_window"));

    // What only mistral.rs can find, a panic of its loader included, is an error too.
    let dir = copy("qwen2");
    edit(dir.path(), |config| config["num_hidden_layers"] = json!(7));
    assert!(refusal(dir.path()).contains("mistral.rs"));
    let dir = copy("qwen2");
    edit(dir.path(), |config| config["hidden_size"] = json!("wide"));
    assert!(refusal(dir.path()).contains("mistral.rs"));
}
