//! A Llama of a random Baichuan-M1's matrices: the same bytes under other names, and no convolution.
//!
//! Its attention has the sizes of Baichuan-M1's sliding layers, which those of the global layers equal in all but how
//! they are divided into heads.

use std::fs::{self, File};
use std::io::{BufWriter, Read, Seek, SeekFrom, Write};
use std::path::Path;

use anyhow::{Context, ensure};
use serde_json::{Map, Value, json};

const WEIGHTS: &str = "model.safetensors";
/// A tokenizer for it: bytes, and what they are called is not measured.
const TOKENIZER: &str = "crates/mistralrs-backend/tests/golden/qwen2";

/// A tensor of the file to write: name, shape, first byte and number of bytes in the other file's data.
struct Piece {
    name: String,
    shape: Vec<u64>,
    at: u64,
    bytes: u64,
}

/// Writes the Llama of the Baichuan-M1 in `source`, one file of bf16, into the folder `out`.
pub(super) fn write(source: &Path, out: &Path) -> anyhow::Result<()> {
    let config = fs::read(source.join("config.json"))
        .with_context(|| format!("no checkpoint in {}: make-model --preset bench", source.display()))?;
    let config: Value = serde_json::from_slice(&config)?;
    let mut weights = File::open(source.join(WEIGHTS))?;
    let mut length = [0; 8];
    weights.read_exact(&mut length)?;
    let length = u64::from_le_bytes(length);
    let mut header = Vec::new();
    (&mut weights).take(length).read_to_end(&mut header)?;
    let header: Map<String, Value> = serde_json::from_slice(&header)?;
    let pieces = pieces(&header, &config)?;

    fs::create_dir_all(out)?;
    let mut file = BufWriter::new(File::create(out.join(WEIGHTS))?);
    let header = new_header(&pieces).to_string();
    file.write_all(&(header.len() as u64).to_le_bytes())?;
    file.write_all(header.as_bytes())?;
    for piece in &pieces {
        weights.seek(SeekFrom::Start(8 + length + piece.at))?;
        let copied = std::io::copy(&mut (&mut weights).take(piece.bytes), &mut file)?;
        ensure!(
            copied == piece.bytes,
            "{} ends early",
            source.join(WEIGHTS).display()
        );
    }
    file.into_inner()?.sync_all()?;
    let tokenizer = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../..")
        .join(TOKENIZER);
    for name in ["tokenizer.json", "tokenizer_config.json"] {
        fs::copy(tokenizer.join(name), out.join(name))?;
    }
    fs::write(out.join("config.json"), format!("{:#}\n", llama(&config)))?;
    Ok(())
}

fn llama(config: &Value) -> Value {
    let same = |key: &str| config[key].clone();
    json!({
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "torch_dtype": "bfloat16",
        "hidden_act": "silu",
        "vocab_size": same("vocab_size"),
        "hidden_size": same("hidden_size"),
        "intermediate_size": same("intermediate_size"),
        "num_hidden_layers": same("num_hidden_layers"),
        "num_attention_heads": same("num_swa_attention_heads"),
        "num_key_value_heads": same("num_swa_key_value_heads"),
        "max_position_embeddings": same("max_position_embeddings"),
        "rms_norm_eps": same("rms_norm_eps"),
        "rope_theta": same("rope_theta"),
        "tie_word_embeddings": false,
        "bos_token_id": null,
        "eos_token_id": 256,
    })
}

/// What is taken of each tensor, in the file's order: a W_pack is three matrices, one behind the other.
fn pieces(header: &Map<String, Value>, config: &Value) -> anyhow::Result<Vec<Piece>> {
    let number = |key: &str| {
        config[key]
            .as_u64()
            .with_context(|| format!("config.json has no {key}"))
    };
    let hidden = number("hidden_size")?;
    let heads = number("num_swa_attention_heads")?;
    let narrow = hidden / heads * number("num_swa_key_value_heads")?;
    let mut pieces = Vec::new();
    for (name, tensor) in header {
        if name == "__metadata__" || name.contains(".conv_") {
            continue;
        }
        ensure!(tensor["dtype"] == "BF16", "{name} must be bf16");
        let at = tensor["data_offsets"][0]
            .as_u64()
            .context("a tensor has no place")?;
        let shape: Vec<u64> = tensor["shape"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(Value::as_u64)
            .collect();
        let mut piece = |name: String, shape: Vec<u64>, at: u64| {
            let bytes = 2 * shape.iter().product::<u64>();
            pieces.push(Piece {
                name,
                shape,
                at,
                bytes,
            });
            at + bytes
        };
        let Some(front) = name.strip_suffix("W_pack.weight") else {
            piece(name.clone(), shape, at);
            continue;
        };
        ensure!(
            shape == [hidden + 2 * narrow, hidden],
            "{name} is {shape:?}: its layer's heads together are not as wide as those of sliding layers"
        );
        let at = piece(format!("{front}q_proj.weight"), vec![hidden, hidden], at);
        let at = piece(format!("{front}k_proj.weight"), vec![narrow, hidden], at);
        piece(format!("{front}v_proj.weight"), vec![narrow, hidden], at);
    }
    Ok(pieces)
}

fn new_header(pieces: &[Piece]) -> Value {
    let mut header = json!({ "__metadata__": { "format": "pt" } });
    let mut at = 0;
    for piece in pieces {
        let end = at + piece.bytes;
        header[&piece.name] = json!({ "dtype": "BF16", "shape": piece.shape, "data_offsets": [at, end] });
        at = end;
    }
    header
}

#[cfg(test)]
mod tests {
    use baichuan_m1::random::{Preset, Recipe};

    use super::*;

    #[test]
    fn the_matrices_are_the_same_bytes_under_other_names() {
        let (source, out) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        Recipe::new(Preset::Tiny)
            .write(source.path(), &|_, _| {})
            .unwrap();
        write(source.path(), out.path()).unwrap();
        let read = |dir: &Path| {
            let bytes = fs::read(dir.join(WEIGHTS)).unwrap();
            let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
            let header: Map<String, Value> = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
            (header, bytes[8 + length..].to_vec())
        };
        let ((old, from), (new, to)) = (read(source.path()), read(out.path()));
        let of = |header: &Map<String, Value>, bytes: &[u8], name: &str| {
            let place = |end: usize| header[name]["data_offsets"][end].as_u64().unwrap() as usize;
            bytes[place(0)..place(1)].to_vec()
        };
        let front = "model.layers.1.self_attn";
        let parts = ["q", "k", "v"].map(|part| of(&new, &to, &format!("{front}.{part}_proj.weight")));
        assert_eq!(parts.concat(), of(&old, &from, &format!("{front}.W_pack.weight")));
        for name in ["lm_head.weight", "model.layers.3.mlp.down_proj.weight"] {
            assert_eq!(of(&new, &to, name), of(&old, &from, name), "{name}");
        }
        assert!(
            new.keys()
                .all(|name| !name.contains("conv") && !name.contains("pack"))
        );
        let written: u64 = new
            .values()
            .filter_map(|t| t["data_offsets"][1].as_u64())
            .max()
            .unwrap();
        assert_eq!(written, to.len() as u64);
    }
}
