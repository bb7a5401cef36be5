//! All that only Apple's GPUs have: the device, its memory, and mistral.rs's kernels for keys and values in blocks.
//!
//! Written against their documented signatures; it has never run. Faults of those libraries that are avoided: candle's
//! `sdpa` is wrong for two to eight queries, so attention of chunks is plain products ([`super::attention`]);
//! `flash_attn_sinks` adds a sink that nobody asked for, so it is not used; the paged kernel of version 1 keeps a score for every
//! key in threadgroup memory, which long contexts overflow, so calls stay below the 512 (sequence, head) pairs at which it is
//! chosen; there is no window in the paged kernels, so single queries use them only where a ring is as long as the window.

use baichuan_engine::LoadError;
use candle_core::{DType, Device, Result, Tensor};

use super::paged::PagedKv;

/// Above so many pairs of a sequence and a head the kernels of version 1 are chosen.
const PAIRS_AT_ONCE: usize = 512;
/// Widths of heads and rows of blocks that the paged kernels are compiled for.
const HEAD_DIMS: [usize; 8] = [64, 80, 96, 112, 128, 192, 256, 512];
const BLOCK_TOKENS: [usize; 3] = [8, 16, 32];
/// Memory left to what is made during a step.
const RESERVE_BYTES: u64 = 1 << 30;

/// Opens an Apple GPU.
pub(crate) fn open(ordinal: usize) -> std::result::Result<Device, LoadError> {
    Device::new_metal(ordinal).map_err(|error| LoadError::Unsupported {
        key: "device",
        message: format!("metal:{ordinal}: {error}"),
    })
}

/// Bytes that may be taken yet: of the system's memory what Metal recommends at most, less what is taken.
pub(crate) fn free_bytes(device: &Device) -> std::result::Result<u64, LoadError> {
    let metal = device
        .as_metal_device()
        .map_err(|error| LoadError::Compute(error.to_string()))?;
    let limit = metal.device().recommended_max_working_set_size() as u64;
    let taken = metal.device().current_allocated_size() as u64;
    Ok(limit.saturating_sub(taken).saturating_sub(RESERVE_BYTES))
}

/// As [`PagedKv::write`].
pub(super) fn write(kv: &PagedKv, k: &Tensor, v: &Tensor, places: &[usize]) -> Result<()> {
    let places: Vec<i64> = places.iter().map(|place| *place as i64).collect();
    let places = Tensor::new(places, k.device())?;
    let (k, v) = (k.contiguous()?, v.contiguous()?);
    mistralrs_paged_attn::reshape_and_cache(&k, &v, None, None, &kv.keys, &kv.values, &places)
}

/// Whether there is a kernel for single queries over these blocks.
pub(super) fn attends(kv: &PagedKv) -> bool {
    kv.values.dims4().is_ok_and(|(_, _, head_dim, block_tokens)| {
        HEAD_DIMS.contains(&head_dim) && BLOCK_TOKENS.contains(&block_tokens)
    })
}

/// As [`PagedKv::attend_each`].
pub(super) fn attend_each(
    kv: &PagedKv,
    q: &Tensor,
    tables: &[&[u32]],
    lens: &[usize],
    scale: f32,
) -> Result<Tensor> {
    let (n, heads, _) = q.dims3()?;
    let at_once = (PAIRS_AT_ONCE / heads).max(1);
    let mut parts = Vec::new();
    for first in (0..n).step_by(at_once) {
        let n = at_once.min(n - first);
        let (tables, lens) = (&tables[first..first + n], &lens[first..first + n]);
        let longest = lens.iter().copied().max().unwrap_or(0);
        let width = longest.div_ceil(kv.block_tokens);
        let mut table = vec![0u32; n * width];
        for ((row, blocks), len) in table.chunks_exact_mut(width).zip(tables).zip(lens) {
            let used = len.div_ceil(kv.block_tokens);
            row[..used].copy_from_slice(&blocks[..used]);
        }
        let lens: Vec<u32> = lens.iter().map(|len| *len as u32).collect();
        let mixed = mistralrs_paged_attn::paged_attention(
            &q.narrow(0, first, n)?.contiguous()?,
            None,
            None,
            &kv.keys,
            &kv.values,
            &Tensor::from_vec(table, (n, width), q.device())?,
            &Tensor::new(lens, q.device())?,
            None,
            longest,
            scale,
            // None.
            1.0,
            None,
        )?;
        parts.push(mixed.to_dtype(DType::F32)?);
    }
    Tensor::cat(&parts, 0)
}
