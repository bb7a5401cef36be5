//! How `config.json` says that weights are quantised on disk.

use baichuan_kernels::GgmlFormat;
use serde_json::{Value, json};

use super::ConfigError;
use super::raw::RawConfig;

/// How matrices lie on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Quantization {
    /// As MLX writes them: `.weight` in nibbles, `.scales` and `.biases` of groups; those that it leaves alone are plain.
    Affine4,
    /// Packed for this crate's kernels, which read them in place; the embedding as [`Quantization::embedding`] says.
    Panels16(GgmlFormat),
}

/// What `quant_method` calls [`Quantization::Panels16`]. Another layout would have another name.
const PANELS_16: &str = "baichuan-panels16";

const SUPPORTED: &str = "four bits as MLX quantises, or what `baichuan-server quantize` wrote";

impl Quantization {
    /// The format of the embedding beside projections of `format`: eight bits, whatever they have. Each token reads one
    /// row of it, so its size costs no time, and every layer builds on it.
    pub fn embedding(_format: GgmlFormat) -> GgmlFormat {
        GgmlFormat::Q8_0
    }

    /// The value of `quantization_config` that says so.
    pub(crate) fn panels16(format: GgmlFormat) -> Value {
        json!({ "quant_method": PANELS_16, "format": format.name() })
    }

    pub(super) fn of(raw: &RawConfig) -> Result<Option<Self>, ConfigError> {
        let keys = [
            ("quantization_config", &raw.quantization_config),
            ("quantization", &raw.quantization),
        ];
        let Some((key, value)) = keys
            .into_iter()
            .find_map(|(key, value)| Some((key, value.as_ref()?)))
        else {
            return Ok(None);
        };
        let format = value["format"].as_str().and_then(GgmlFormat::from_name);
        match (value["quant_method"].as_str(), format) {
            (Some(PANELS_16), Some(format)) => Ok(Some(Self::Panels16(format))),
            (None, None) if is_affine4(value) => Ok(Some(Self::Affine4)),
            _ => Err(ConfigError::Unsupported {
                key,
                got: value.to_string(),
                supported: SUPPORTED,
            }),
        }
    }
}

/// Whether MLX's table names groups of four bits, for all layers: single layers may only be exempt.
fn is_affine4(value: &Value) -> bool {
    let Some(table) = value.as_object() else {
        return false;
    };
    let four_bits = |table: &serde_json::Map<String, Value>| {
        let group = table.get("group_size").and_then(Value::as_u64);
        let bits = table.get("bits").and_then(Value::as_u64);
        let mode = table.get("mode").is_none_or(|mode| mode == "affine");
        bits == Some(4) && matches!(group, Some(32 | 64 | 128)) && mode
    };
    let of_layers = table.values().all(|value| match value {
        Value::Object(table) => four_bits(table),
        _ => true,
    });
    four_bits(table) && of_layers
}
