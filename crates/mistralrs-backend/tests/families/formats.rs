//! Weights as GGUF and UQFF, quantised at load, and with adapters.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use baichuan_engine::{Backend, Checkpoint, EngineConfig, IsqType, LoadError, ModelPlugin, QuantizeRequest};
use serde_json::{Value, json};

use crate::support::{Completed, folder, golden, greedy, load, one, try_load, try_load_with};

/// Every golden completion of `model`.
async fn says(backend: &Arc<dyn Backend>, model: &str) {
    for (name, expected) in golden::<Completed>(model) {
        let whole = one(greedy(&expected.prompt, expected.tokens.len() as u32).submit(backend)).await;
        assert_eq!(whole.tokens, expected.tokens, "{model}, {name}");
    }
}

fn quantised(model: &str, isq: IsqType) -> Arc<dyn Backend> {
    try_load(&folder(model), &EngineConfig::default(), |r| r.isq = Some(isq)).unwrap()
}

#[tokio::test]
async fn gguf_files_say_what_their_rounded_weights_say() {
    for model in [
        "qwen2-f32.gguf",
        "qwen2-f16.gguf",
        "qwen2-q8_0.gguf",
        "qwen3-q8_0.gguf",
    ] {
        let backend = load(model);
        let info = backend.info();
        assert_eq!(
            (info.quantization.as_str(), info.max_context),
            ("gguf", 512),
            "{model}"
        );
        assert!(info.parameters > 30_000, "{model}: {}", info.parameters);
        says(&backend, model).await;
    }
}

#[tokio::test]
async fn weights_quantised_at_load_say_what_the_same_weights_of_a_gguf_file_say() {
    for (model, rounded) in [("qwen2", "qwen2-q8_0.gguf"), ("qwen3", "qwen3-q8_0.gguf")] {
        let backend = quantised(model, IsqType::Q8_0);
        assert_eq!(backend.info().quantization, "Q8_0");
        says(&backend, rounded).await;
    }
}

#[tokio::test]
async fn a_quantised_checkpoint_is_written_as_uqff_and_says_what_one_quantised_at_load_says() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let request = |checkpoint: &Path, out: &Path| {
        mistralrs_backend::plugin().quantize(&QuantizeRequest {
            checkpoint: &Checkpoint::open(checkpoint)?,
            isq: IsqType::Q8_0,
            out,
            threads: None,
            progress: &|_| {},
        })
    };
    request(&folder("qwen2"), &out).unwrap();
    let mut names: Vec<_> = fs::read_dir(&out)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort_unstable();
    assert_eq!(
        names,
        [
            "config.json",
            "golden.json",
            "q8_0-0.uqff",
            "residual.safetensors",
            "tokenizer.json",
            "tokenizer_config.json"
        ]
    );
    let backend = try_load(&out, &EngineConfig::default(), |_| {}).unwrap();
    assert_eq!(backend.info().quantization, "uqff");
    assert!(backend.info().chat_template.is_some());
    says(&backend, "qwen2-q8_0.gguf").await;

    // What is quantised is not quantised again, and what is there is not overwritten.
    let again = request(&out, &dir.path().join("again")).unwrap_err();
    assert!(
        matches!(again, LoadError::Unsupported { key: "isq", .. }),
        "{again}"
    );
    let over = request(&folder("qwen2"), &out).unwrap_err();
    assert!(over.to_string().contains("not empty"), "{over}");
    fs::remove_file(out.join("residual.safetensors")).unwrap();
    let spoilt = try_load(&out, &EngineConfig::default(), |_| {}).err().unwrap();
    assert!(spoilt.to_string().contains("residual.safetensors"), "{spoilt}");
}

#[tokio::test]
async fn an_adapter_changes_what_a_model_says_to_what_the_reference_says_with_it() {
    let adapters = [folder("qwen2-lora")];
    let adapted = |isq| {
        let config = EngineConfig::default();
        try_load_with(&folder("qwen2"), &adapters, &config, |r| r.isq = isq).unwrap()
    };
    let backend = adapted(None);
    says(&backend, "qwen2-lora").await;
    // Nothing of it is left for who is loaded next, and both can be told apart.
    let plain = load("qwen2");
    says(&plain, "qwen2").await;
    assert_ne!(plain.info().fingerprint, backend.info().fingerprint);
    // Nor are two that differ in how much they count taken for one.
    let stronger = tempfile::tempdir().unwrap();
    copy_all(&adapters[0], stronger.path());
    let path = stronger.path().join("adapter_config.json");
    let mut settings: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    settings["lora_alpha"] = json!(settings["lora_alpha"].as_f64().unwrap() * 2.0);
    fs::write(path, settings.to_string()).unwrap();
    let stronger = [stronger.path().to_owned()];
    let stronger = try_load_with(&folder("qwen2"), &stronger, &EngineConfig::default(), |_| {}).unwrap();
    assert_ne!(stronger.info().fingerprint, backend.info().fingerprint);
    // It is added before weights are quantised.
    let golden = golden::<Completed>("qwen2-lora");
    let expected = &golden["a sentence"];
    let rounded = one(greedy(&expected.prompt, 1).submit(&adapted(Some(IsqType::Q8_0)))).await;
    assert_eq!(rounded.tokens, expected.tokens[..1]);
}

/// Loads with an adapter whose configuration `change` has spoilt.
fn with_spoilt_adapter(model: &str, change: impl FnOnce(&mut Value)) -> LoadError {
    let dir = tempfile::tempdir().unwrap();
    let source = folder("qwen2-lora");
    fs::copy(
        source.join("adapter_model.safetensors"),
        dir.path().join("adapter_model.safetensors"),
    )
    .unwrap();
    let text = fs::read(source.join("adapter_config.json")).unwrap();
    let mut config: Value = serde_json::from_slice(&text).unwrap();
    change(&mut config);
    fs::write(dir.path().join("adapter_config.json"), config.to_string()).unwrap();
    let adapters: [PathBuf; 1] = [dir.path().into()];
    let config = EngineConfig::default();
    let outcome = try_load_with(&folder(model), &adapters, &config, |_| {});
    outcome.err().unwrap()
}

#[test]
fn an_adapter_that_cannot_be_added_is_refused_by_file_and_key() {
    let dora = with_spoilt_adapter("qwen2", |config| config["use_dora"] = json!(true));
    assert!(dora.to_string().contains("adapter_config.json"), "{dora}");
    assert!(dora.to_string().contains("use_dora"), "{dora}");
    // Qwen3 has heads of another width: the adapter's matrices do not fit.
    let misfit = with_spoilt_adapter("qwen3", |config| config["r"] = json!(5));
    assert!(
        misfit.to_string().contains("adapter_model.safetensors"),
        "{misfit}"
    );
    for model in ["qwen2-q8_0.gguf", "qwen3-embedding"] {
        let refused = with_spoilt_adapter(model, |_| {});
        assert!(
            matches!(&refused, LoadError::Unsupported { key: "adapters", .. }),
            "{model}: {refused}"
        );
    }
}

#[test]
fn formats_that_do_not_go_together_are_refused_by_key_or_file() {
    let isq = |model: &str| {
        let outcome = try_load(&folder(model), &EngineConfig::default(), |r| {
            r.isq = Some(IsqType::Q8_0)
        });
        outcome.err().unwrap()
    };
    for model in ["qwen2-q8_0.gguf", "embedding-gemma"] {
        let refused = isq(model);
        assert!(
            matches!(refused, LoadError::Unsupported { key: "isq", .. }),
            "{model}: {refused}"
        );
    }
    let spoilt = |model: &str, change: &dyn Fn(&Path)| {
        let dir = tempfile::tempdir().unwrap();
        copy_all(&folder(model), dir.path());
        change(dir.path());
        try_load(dir.path(), &EngineConfig::default(), |_| {})
            .err()
            .unwrap()
            .to_string()
    };
    let edit = |dir: &Path, key: &str, value: Value| {
        let path = dir.join("config.json");
        let mut config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        config[key] = value;
        fs::write(path, config.to_string()).unwrap();
    };
    let gguf = folder("qwen2-q8_0.gguf").join("model.gguf");
    let embeds = spoilt("qwen3-embedding", &|dir| {
        fs::remove_file(dir.join("model.safetensors")).unwrap();
        fs::copy(&gguf, dir.join("model.gguf")).unwrap();
    });
    assert!(embeds.contains("GGUF"), "{embeds}");
    let causal = spoilt("embedding-gemma", &|dir| {
        edit(dir, "use_bidirectional_attention", json!(false));
    });
    assert!(causal.contains("use_bidirectional_attention"), "{causal}");
    let layers = spoilt("embedding-gemma", &|dir| {
        let irregular = ["full_attention", "sliding_attention", "full_attention"];
        edit(dir, "layer_types", json!(irregular));
    });
    assert!(layers.contains("layer_types"), "{layers}");
}

fn copy_all(from: &Path, to: &Path) {
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        if entry.path().is_dir() {
            fs::create_dir_all(&to).unwrap();
            copy_all(&entry.path(), &to);
        } else {
            fs::copy(entry.path(), to).unwrap();
        }
    }
}
