//! A checkpoint's weights: `config.json`, the index of shards, and a file of tensors.
//!
//! The first byte of an input says what the rest is: three parts divided by NULs, the last of them a header's JSON around
//! which a file of the right length is made (0), or the same with a whole file as it is (1); with 2 and 3 the file is a shard.
//! A checkpoint that opens can be loaded.

use baichuan_engine::topology::Topology;
use baichuan_engine::{CacheBudget, CacheConfig, EngineConfig};
use baichuan_kernels::Threads;
use baichuan_m1::config::BaichuanConfig;
use baichuan_m1::weights::Weights;
use baichuan_m1::{LoadOptions, load};
use libfuzzer_sys::Corpus;
use serde_json::Value;
use tempfile::TempDir;

use crate::serving::scratch;

thread_local! {
    static DIR: TempDir = scratch();
    static THREADS: Threads = Threads::new(1).expect("one thread");
}

/// Bytes of numbers at most.
const MAX_DATA: u64 = 1 << 16;

pub(crate) fn feed(input: &[u8]) -> Corpus {
    let Some((how, bytes)) = input.split_first() else {
        return Corpus::Reject;
    };
    let mut parts = bytes.splitn(3, |byte| *byte == 0);
    let (Some(config), Some(index), Some(tensors)) = (parts.next(), parts.next(), parts.next()) else {
        return Corpus::Reject;
    };
    let file = match how & 1 {
        0 => around(tensors),
        _ => tensors.to_vec(),
    };
    DIR.with(|dir| {
        let write = |name: &str, bytes: &[u8]| std::fs::write(dir.path().join(name), bytes).expect("a file");
        let remove = |name: &str| drop(std::fs::remove_file(dir.path().join(name)));
        write("config.json", config);
        if how & 2 == 0 {
            write("model.safetensors", &file);
            remove("model.safetensors.index.json");
        } else {
            write("shard.safetensors", &file);
            write("model.safetensors.index.json", index);
            remove("model.safetensors");
        }
        let Ok(config) = BaichuanConfig::from_dir(dir.path()) else {
            return;
        };
        if Weights::open(dir.path(), &config).is_err() {
            return;
        }
        let engine = EngineConfig {
            cache: CacheConfig {
                budget: CacheBudget::Blocks { global: 4, window: 4 },
                ..CacheConfig::default()
            },
            max_sequences: 1,
            max_step_tokens: 8,
            prefill_chunk_tokens: 8,
            ..EngineConfig::default()
        };
        let _ = load(
            dir.path(),
            &LoadOptions {
                dtype: None,
                cache_dtype: None,
                isq: None,
                topology: &Topology::default(),
                threads: THREADS.with(Threads::clone),
                engine: &engine,
                progress: &|_| {},
            },
        );
    });
    Corpus::Keep
}

/// A file with this header and as many zeros as it speaks of.
fn around(header: &[u8]) -> Vec<u8> {
    let end = |tensor: &Value| tensor["data_offsets"][1].as_u64();
    let length = match serde_json::from_slice::<Value>(header) {
        Ok(Value::Object(tensors)) => tensors.values().filter_map(end).max().unwrap_or(0),
        _ => 0,
    };
    let data = vec![0; usize::try_from(length.min(MAX_DATA)).unwrap_or(0)];
    [&(header.len() as u64).to_le_bytes()[..], header, &data].concat()
}
