//! LoRA adapters in PEFT's layout, added to the weights as they are loaded.
//!
//! mistralrs-quant adds what is pushed on the loading thread to every matrix that it makes there, and skips in silence
//! what fits none: so everything is matched with the checkpoint beforehand.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};

use baichuan_engine::LoadError;
use candle_core::{DType, Device, Tensor};
use mistralrs_quant::{LoraAdapter, LoraConfig, ShardedSafeTensors, push_applied_lora};
use serde_json::Value;

/// Architectures all of whose projections mistralrs-core makes by the way that adapters are added on.
const ARCHITECTURES: [&str; 4] = [
    "LlamaForCausalLM",
    "MistralForCausalLM",
    "Qwen2ForCausalLM",
    "Qwen3ForCausalLM",
];
const CONFIG: &str = "adapter_config.json";
const WEIGHTS: &str = "adapter_model.safetensors";
/// In front of the checkpoint's names.
const PREFIX: &str = "base_model.model.";

/// An adapter that fits its checkpoint.
pub(crate) struct Adapter {
    rank: usize,
    alpha: f64,
    /// What it changes, by the checkpoint's names, without `.weight`.
    modules: BTreeSet<String>,
    tensors: HashMap<String, Tensor>,
    digest: blake3::Hash,
}

impl Adapter {
    /// Reads the adapter in `dir` for a checkpoint of these weights.
    ///
    /// # Errors
    /// By file and key, what is missing, or of a kind that is not added here, or fits no weight of the checkpoint.
    pub(crate) fn read(
        dir: &Path,
        architecture: &str,
        shapes: &BTreeMap<String, Vec<usize>>,
    ) -> Result<Self, LoadError> {
        if !ARCHITECTURES.contains(&architecture) {
            let known = ARCHITECTURES.join(", ");
            return Err(LoadError::Unsupported {
                key: "adapters",
                message: format!("mistral.rs adds them to {known}, not to {architecture}"),
            });
        }
        let path = dir.join(CONFIG);
        let text = fs::read(&path).map_err(|e| io(&path, e))?;
        let config: Value = serde_json::from_slice(&text).map_err(|e| invalid(&path, e.to_string()))?;
        let (rank, alpha) = plain_lora(&config).map_err(|message| invalid(&path, message))?;

        let path = dir.join(WEIGHTS);
        let bytes = fs::read(&path).map_err(|e| io(&path, e))?;
        let mut digest = blake3::Hasher::new();
        digest.update(&bytes).update(&alpha.to_le_bytes());
        let tensors = candle_core::safetensors::load_buffer(&bytes, &Device::Cpu)
            .map_err(|e| invalid(&path, e.to_string()))?;
        let modules = modules(&tensors, rank, shapes).map_err(|message| invalid(&path, message))?;
        Ok(Self {
            rank,
            alpha,
            modules,
            tensors,
            digest: digest.finalize(),
        })
    }

    /// Of its weights.
    pub(crate) fn digest(&self) -> &blake3::Hash {
        &self.digest
    }

    /// From here on this thread adds it to what it loads.
    pub(crate) fn push(self, dtype: DType, device: &Device) {
        let exactly = |module: &String| format!("^{}$", module.replace('.', r"\."));
        push_applied_lora(LoraAdapter {
            config: LoraConfig {
                rank: self.rank,
                alpha: self.alpha,
                target_modules: self.modules.iter().map(exactly).collect::<HashSet<_>>(),
            },
            weights: ShardedSafeTensors::wrap(Box::new(self.tensors), dtype, device.clone()),
        });
    }
}

/// Rank and alpha of an adapter's configuration, if it is nothing but a LoRA.
fn plain_lora(config: &Value) -> Result<(usize, f64), String> {
    if config["peft_type"] != "LORA" {
        return Err(format!(
            "peft_type: only LORA is added, got {}",
            config["peft_type"]
        ));
    }
    // Whatever changes what the two matrices mean.
    let off = |value: &Value| match value {
        Value::Null | Value::Bool(false) => true,
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.is_empty(),
        Value::String(text) => text == "none",
        Value::Bool(true) | Value::Number(_) => false,
    };
    for key in [
        "alora_invocation_tokens",
        "alpha_pattern",
        "arrow_config",
        "bias",
        "fan_in_fan_out",
        "kasa_config",
        "layer_replication",
        "lora_bias",
        "modules_to_save",
        "rank_pattern",
        "target_parameters",
        "trainable_token_indices",
        "use_bdlora",
        "use_dora",
        "use_qalora",
        "use_rslora",
        "velora_config",
    ] {
        if !off(&config[key]) {
            return Err(format!("{key}: must be off, got {}", config[key]));
        }
    }
    let rank = config["r"].as_u64().and_then(|rank| usize::try_from(rank).ok());
    let rank = rank
        .filter(|rank| *rank > 0)
        .ok_or("r: must be a whole number above 0")?;
    let alpha = config["lora_alpha"]
        .as_f64()
        .ok_or("lora_alpha: must be a number")?;
    Ok((rank, alpha))
}

/// The modules that an adapter's tensors change; each must be a matrix of the checkpoint that they fit.
fn modules(
    tensors: &HashMap<String, Tensor>,
    rank: usize,
    shapes: &BTreeMap<String, Vec<usize>>,
) -> Result<BTreeSet<String>, String> {
    let mut modules = BTreeSet::new();
    for (name, tensor) in tensors {
        let part = |end: &str| name.strip_prefix(PREFIX)?.strip_suffix(end);
        let (module, is_first) = match (part(".lora_A.weight"), part(".lora_B.weight")) {
            (Some(module), _) => (module, true),
            (_, Some(module)) => (module, false),
            _ => return Err(format!("{name}: is no part of a plain LoRA of a linear layer")),
        };
        let (outputs, inputs) = match shapes.get(&format!("{module}.weight")).map(Vec::as_slice) {
            Some(&[outputs, inputs]) if !module.contains("embed") => (outputs, inputs),
            _ => return Err(format!("{name}: the checkpoint has no linear layer {module}")),
        };
        let expected = match is_first {
            true => [rank, inputs],
            false => [outputs, rank],
        };
        if tensor.dims() != expected {
            let got = tensor.dims();
            return Err(format!(
                "{name}: must be {expected:?} for rank {rank}, got {got:?}"
            ));
        }
        modules.insert(module.to_owned());
    }
    if modules.is_empty() {
        return Err("holds nothing".into());
    }
    for module in &modules {
        for half in ["lora_A", "lora_B"] {
            let name = format!("{PREFIX}{module}.{half}.weight");
            if !tensors.contains_key(&name) {
                return Err(format!("{name}: is missing"));
            }
        }
    }
    Ok(modules)
}

fn io(path: &Path, source: std::io::Error) -> LoadError {
    LoadError::Io {
        path: PathBuf::from(path),
        source,
    }
}

fn invalid(path: &Path, message: String) -> LoadError {
    LoadError::Invalid {
        path: PathBuf::from(path),
        message,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn refused(change: impl FnOnce(&mut Value)) -> String {
        let mut config = json!({
            "peft_type": "LORA", "r": 4, "lora_alpha": 8, "bias": "none", "modules_to_save": null,
            "rank_pattern": {}, "use_dora": false, "target_modules": ["q_proj"],
        });
        assert_eq!(plain_lora(&config), Ok((4, 8.0)));
        change(&mut config);
        plain_lora(&config).expect_err("must be refused")
    }

    #[test]
    fn what_is_no_plain_lora_is_refused_by_its_key() {
        for (key, value) in [
            ("peft_type", json!("IA3")),
            ("r", json!(0)),
            ("lora_alpha", json!("much")),
            ("bias", json!("all")),
            ("modules_to_save", json!(["lm_head"])),
            ("rank_pattern", json!({"q_proj": 8})),
            ("use_dora", json!(true)),
            ("use_rslora", json!(true)),
        ] {
            assert!(refused(|config| config[key] = value).starts_with(key), "{key}");
        }
    }

    #[test]
    fn what_fits_no_weight_is_refused_by_its_name() {
        let shapes = [
            ("model.q_proj.weight", vec![6, 8]),
            ("model.norm.weight", vec![8]),
        ];
        let shapes: BTreeMap<_, _> = shapes.map(|(name, shape)| (name.to_owned(), shape)).into();
        let tensors = |list: &[(&str, [usize; 2])]| -> HashMap<String, Tensor> {
            let zeros = |shape: [usize; 2]| Tensor::zeros(&shape, DType::F32, &Device::Cpu).unwrap();
            list.iter()
                .map(|(name, shape)| (format!("{PREFIX}model.{name}.weight"), zeros(*shape)))
                .collect()
        };
        let (a, b) = (("q_proj.lora_A", [2, 8]), ("q_proj.lora_B", [6, 2]));
        let fits = modules(&tensors(&[a, b]), 2, &shapes).unwrap();
        assert_eq!(fits.into_iter().collect::<Vec<_>>(), ["model.q_proj"]);
        for (list, word) in [
            (vec![], "holds nothing"),
            (vec![a], "lora_B.weight: is missing"),
            (vec![a, ("q_proj.lora_B", [6, 3])], "must be [6, 2]"),
            (
                vec![a, b, ("k_proj.lora_A", [2, 8])],
                "no linear layer model.k_proj",
            ),
            (vec![a, b, ("norm.lora_A", [2, 8])], "no linear layer model.norm"),
            (vec![a, b, ("q_proj.lora_embedding_A", [2, 8])], "no part"),
        ] {
            let refused = modules(&tensors(&list), 2, &shapes).expect_err(word);
            assert!(refused.contains(word), "{refused}");
        }
    }
}
