//! Checkpoints rewritten: tensors read, changed and written again.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use baichuan_kernels::{GgmlFormat, Matrix, Threads};
use half::{bf16, f16};
use safetensors::tensor::{Dtype, TensorView};
use safetensors::{SafeTensors, serialize_to_file};
use serde_json::Value;
use tempfile::TempDir;

/// Tensors by name: type, shape, bytes.
pub(crate) type Tensors = BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>;

/// A copy of the checkpoint in `dir` with some of its tensors and of its config.json changed.
pub(crate) fn rewritten(dir: &Path, change: impl FnOnce(&mut Tensors, &mut Value)) -> TempDir {
    let bytes = fs::read(dir.join("model.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let tensor = |(name, t): (&str, TensorView<'_>)| {
        (
            name.to_owned(),
            (t.dtype(), t.shape().to_vec(), t.data().to_vec()),
        )
    };
    let mut tensors: Tensors = tensors.iter().map(tensor).collect();
    let mut config = serde_json::from_slice(&fs::read(dir.join("config.json")).unwrap()).unwrap();
    change(&mut tensors, &mut config);
    let out = tempfile::tempdir().unwrap();
    let views: Vec<_> = tensors
        .iter()
        .map(|(name, (dtype, shape, data))| (name, TensorView::new(*dtype, shape.clone(), data).unwrap()))
        .collect();
    serialize_to_file(views, None, &out.path().join("model.safetensors")).unwrap();
    fs::write(out.path().join("config.json"), config.to_string()).unwrap();
    out
}

/// Whether a tensor is a matrix that is quantised.
pub(crate) fn is_matrix(name: &str, shape: &[usize]) -> bool {
    name.ends_with(".weight") && shape.len() == 2
}

/// A tensor's numbers.
pub(crate) fn numbers(dtype: Dtype, bytes: &[u8]) -> Vec<f32> {
    match dtype {
        Dtype::F32 => bytes
            .as_chunks()
            .0
            .iter()
            .map(|&b| f32::from_le_bytes(b))
            .collect(),
        Dtype::F16 => bytes
            .as_chunks()
            .0
            .iter()
            .map(|&b| f16::from_le_bytes(b).to_f32())
            .collect(),
        Dtype::BF16 => bytes
            .as_chunks()
            .0
            .iter()
            .map(|&b| bf16::from_le_bytes(b).to_f32())
            .collect(),
        other => panic!("{other:?}"),
    }
}

/// The same checkpoint in f32 with what its matrices stand for once quantised, and the lengths of the head's rows: a
/// model that loads it divides by them, and one that is quantised does not.
pub(crate) fn dequantised(dir: &Path, format: GgmlFormat) -> (TempDir, Vec<f32>) {
    let threads = Threads::new(1).unwrap();
    let mut lengths = Vec::new();
    let checkpoint = rewritten(dir, |tensors, _| {
        for (name, (dtype, shape, bytes)) in tensors.iter_mut() {
            let mut values = numbers(*dtype, bytes);
            if is_matrix(name, shape) {
                let cols = shape[1];
                let head = name == "lm_head.weight";
                if head {
                    values.chunks_exact_mut(cols).for_each(|row| {
                        let length = row.iter().map(|x| x * x).sum::<f32>().sqrt() + 1e-7;
                        row.iter_mut().for_each(|x| *x /= length);
                    });
                }
                let format = if name.contains("embed_tokens") {
                    GgmlFormat::Q8_0
                } else {
                    format
                };
                let quantised = Matrix::quantize(&threads, format, shape[0], cols, |row, out| {
                    out.copy_from_slice(&values[row * cols..][..cols]);
                });
                values = quantised.dequantize();
                if head {
                    lengths = row_lengths(&values, cols);
                }
            }
            *dtype = Dtype::F32;
            *bytes = values.iter().flat_map(|x| x.to_le_bytes()).collect();
        }
    });
    (checkpoint, lengths)
}

/// The length of each row.
pub(crate) fn row_lengths(values: &[f32], cols: usize) -> Vec<f32> {
    let length = |row: &[f32]| row.iter().map(|x| x * x).sum::<f32>().sqrt();
    values.chunks_exact(cols).map(length).collect()
}

/// The same checkpoint as MLX quantises it in groups, and its equivalent in f32 with the lengths of the head's rows.
pub(crate) fn affine(dir: &Path, group: usize) -> (TempDir, TempDir, Vec<f32>) {
    let (mut plain, mut lengths) = (Vec::new(), Vec::new());
    let quantised = rewritten(dir, |tensors, config| {
        for (name, (dtype, shape, bytes)) in std::mem::take(tensors) {
            if !is_matrix(&name, &shape) {
                plain.push((name.clone(), numbers(dtype, &bytes)));
                tensors.insert(name, (dtype, shape, bytes));
                continue;
            }
            let values = numbers(dtype, &bytes);
            let (mut codes, mut scales, mut biases) = (Vec::new(), Vec::new(), Vec::new());
            let mut stands_for = Vec::new();
            for group in values.chunks_exact(group) {
                let low = group.iter().copied().fold(f32::INFINITY, f32::min);
                let high = group.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                let (scale, bias) = (bf16::from_f32((high - low) / 15.0), bf16::from_f32(low));
                let code = |x: &f32| ((x - bias.to_f32()) / scale.to_f32()).round().clamp(0.0, 15.0);
                let of_group: Vec<f32> = group.iter().map(code).collect();
                codes.extend(
                    of_group
                        .chunks_exact(2)
                        .map(|two| two[0] as u8 | (two[1] as u8) << 4),
                );
                stands_for.extend(of_group.iter().map(|q| scale.to_f32() * q + bias.to_f32()));
                scales.extend(scale.to_le_bytes());
                biases.extend(bias.to_le_bytes());
            }
            if name == "lm_head.weight" {
                lengths = row_lengths(&stands_for, shape[1]);
            }
            plain.push((name.clone(), stands_for));
            let base = name.strip_suffix(".weight").unwrap().to_owned();
            let n_groups = vec![shape[0], shape[1] / group];
            tensors.insert(name, (Dtype::U32, vec![shape[0], shape[1] / 8], codes));
            tensors.insert(format!("{base}.scales"), (Dtype::BF16, n_groups.clone(), scales));
            tensors.insert(format!("{base}.biases"), (Dtype::BF16, n_groups, biases));
        }
        let table = serde_json::json!({ "group_size": group, "bits": 4 });
        config["quantization"] = table.clone();
        config["quantization_config"] = table;
    });
    let equivalent = rewritten(dir, |tensors, _| {
        for (name, values) in plain {
            let (dtype, _, bytes) = tensors.get_mut(&name).unwrap();
            *dtype = Dtype::F32;
            *bytes = values.iter().flat_map(|x| x.to_le_bytes()).collect();
        }
    });
    (quantised, equivalent, lengths)
}
