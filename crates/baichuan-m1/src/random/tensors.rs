//! Random tensors, streamed into safetensors files.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;

use baichuan_engine::Dtype;
use half::{bf16, f16};
use rand::RngCore;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use rayon::prelude::*;
use serde_json::{Value, json};

use super::{RandomError, Recipe};
use crate::config::BaichuanConfig;
use crate::layout::{self, Role, TensorSpec};

/// Values drawn from one stream of random numbers. Part of what a seed means.
const CHUNK: usize = 1 << 16;
/// Chunks drawn before they are written: what a checkpoint of any size keeps in memory.
const CHUNKS_IN_FLIGHT: usize = 64;

/// Writes all weights of `recipe` and, for several shards, their index.
pub(super) fn write(
    recipe: &Recipe,
    config: &BaichuanConfig,
    dir: &Path,
    progress: &dyn Fn(u64, u64),
) -> Result<(), RandomError> {
    let specs = layout::all(config);
    let element_bytes = recipe.dtype.bytes();
    let total: u64 = specs
        .iter()
        .map(|spec| (spec.n_elements() * element_bytes) as u64)
        .sum();
    let mut weight_map = BTreeMap::new();
    let mut done = 0;
    for shard in 0..recipe.shards {
        let range = shard * specs.len() / recipe.shards..(shard + 1) * specs.len() / recipe.shards;
        let name = match recipe.shards {
            1 => "model.safetensors".to_owned(),
            n => format!("model-{:05}-of-{n:05}.safetensors", shard + 1),
        };
        weight_map.extend(
            specs[range.clone()]
                .iter()
                .map(|spec| (spec.name.clone(), name.clone())),
        );
        let path = dir.join(&name);
        let result = write_file(&path, recipe, &specs, range, element_bytes, |bytes| {
            done += bytes as u64;
            progress(done, total);
        });
        result.map_err(|source| RandomError::Io { path, source })?;
    }
    if recipe.shards > 1 {
        let path = dir.join("model.safetensors.index.json");
        let index = json!({"metadata": {"total_size": total}, "weight_map": weight_map});
        std::fs::write(&path, format!("{index:#}\n")).map_err(|source| RandomError::Io { path, source })?;
    }
    Ok(())
}

fn write_file(
    path: &Path,
    recipe: &Recipe,
    specs: &[TensorSpec],
    range: std::ops::Range<usize>,
    element_bytes: usize,
    mut written: impl FnMut(usize),
) -> io::Result<()> {
    let mut file = BufWriter::new(File::create(path)?);
    let header = header(&specs[range.clone()], recipe.dtype, element_bytes).to_string();
    let padding = header.len().next_multiple_of(8) - header.len();
    file.write_all(&((header.len() + padding) as u64).to_le_bytes())?;
    file.write_all(header.as_bytes())?;
    file.write_all(&b"       "[..padding])?;
    for number in range {
        let spec = &specs[number];
        let n_chunks = spec.n_elements().div_ceil(CHUNK);
        for first in (0..n_chunks).step_by(CHUNKS_IN_FLIGHT) {
            let chunks = first..n_chunks.min(first + CHUNKS_IN_FLIGHT);
            let drawn: Vec<Vec<u8>> = chunks
                .into_par_iter()
                .map(|chunk| draw(recipe, number as u64, spec, chunk))
                .collect();
            for bytes in drawn {
                file.write_all(&bytes)?;
                written(bytes.len());
            }
        }
    }
    file.into_inner()?.sync_all()
}

fn header(specs: &[TensorSpec], dtype: Dtype, element_bytes: usize) -> Value {
    let dtype = match dtype {
        Dtype::F32 => "F32",
        Dtype::F16 => "F16",
        Dtype::Bf16 => "BF16",
    };
    let mut header = json!({"__metadata__": {"format": "pt"}});
    let mut start = 0;
    for spec in specs {
        let end = start + spec.n_elements() * element_bytes;
        header[&spec.name] = json!({"dtype": dtype, "shape": spec.shape, "data_offsets": [start, end]});
        start = end;
    }
    header
}

/// One chunk of a tensor as it goes to disk. Its values depend on seed, tensor number and chunk number only.
fn draw(recipe: &Recipe, tensor: u64, spec: &TensorSpec, chunk: usize) -> Vec<u8> {
    let mut rng = ChaCha8Rng::seed_from_u64(recipe.seed);
    rng.set_stream(tensor << 32 | chunk as u64);
    let count = CHUNK.min(spec.n_elements() - chunk * CHUNK);
    let (mean, deviation) = distribution(spec);
    let values = (0..count).map(|_| mean + deviation * roughly_normal(&mut rng));
    match recipe.dtype {
        Dtype::F32 => values.flat_map(f32::to_le_bytes).collect(),
        Dtype::F16 => values.flat_map(|x| f16::from_f32(x).to_le_bytes()).collect(),
        Dtype::Bf16 => values.flat_map(|x| bf16::from_f32(x).to_le_bytes()).collect(),
    }
}

/// Mean and deviation that keep activations near one through any number of layers.
fn distribution(spec: &TensorSpec) -> (f32, f32) {
    let fan_in = spec.shape.last().copied().unwrap_or(1) as f32;
    match spec.role {
        Role::Embedding => (0.0, 0.5),
        Role::Head => (0.0, 0.02),
        Role::Norm => (1.0, 0.1),
        Role::Pack => (0.0, 1.2 / fan_in.sqrt()),
        Role::Linear => (0.0, 1.0 / fan_in.sqrt()),
        Role::Taps => (1.0 / fan_in, 0.25),
    }
}

/// Mean 0, variance 1, within ±3.47: the sum of four uniform numbers, one draw of 64 bits.
fn roughly_normal(rng: &mut ChaCha8Rng) -> f32 {
    let bits = rng.next_u64();
    let sum: u32 = (0..4).map(|i| (bits >> (16 * i)) as u16 as u32).sum();
    // Each has mean (2^16 - 1) / 2 and variance (2^32 - 1) / 12.
    const MEAN: f32 = 2.0 * 65_535.0;
    const DEVIATION: f32 = 37_837.22;
    (sum as f32 - MEAN) / DEVIATION
}
