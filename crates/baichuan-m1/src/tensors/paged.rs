//! Keys and values in blocks, as mistral.rs's kernels keep them, and the three things that are done with them.
//!
//! On Apple's GPUs writing and single queries are those kernels' ([`super::metal`]); everywhere else, and for what they cannot,
//! it is candle's operations.

use candle_core::{DType, Device, Result, Tensor};

use super::attention::attend;

/// One layer's keys and values.
pub(super) struct PagedKv {
    /// `[blocks, kv_heads, head_dim / x, block_tokens, x]`; `x` numbers are 16 bytes.
    pub(super) keys: Tensor,
    /// `[blocks, kv_heads, head_dim, block_tokens]`.
    pub(super) values: Tensor,
    pub(super) block_tokens: usize,
}

impl PagedKv {
    /// Blocks of zeros. `head_dim` is a multiple of `x`.
    pub(super) fn zeros(
        n_blocks: usize,
        block_tokens: usize,
        (kv_heads, head_dim): (usize, usize),
        dtype: DType,
        device: &Device,
    ) -> Result<Self> {
        let x = 16 / dtype.size_in_bytes();
        Ok(Self {
            keys: Tensor::zeros((n_blocks, kv_heads, head_dim / x, block_tokens, x), dtype, device)?,
            values: Tensor::zeros((n_blocks, kv_heads, head_dim, block_tokens), dtype, device)?,
            block_tokens,
        })
    }

    /// Writes keys and values, `[rows, kv_heads, head_dim]` each; row `i` goes to place `places[i]`, which is
    /// `block · block_tokens + row of the block`.
    pub(super) fn write(&self, k: &Tensor, v: &Tensor, places: &[usize]) -> Result<()> {
        #[cfg(feature = "metal")]
        if self.keys.device().is_metal() {
            return super::metal::write(self, k, v, places);
        }
        let (_, kv_heads, parts, _, x) = self.keys.dims5()?;
        for (i, place) in places.iter().enumerate() {
            let (block, row) = (place / self.block_tokens, place % self.block_tokens);
            let k = k
                .narrow(0, i, 1)?
                .reshape((1, kv_heads, parts, 1, x))?
                .contiguous()?;
            let v = v
                .narrow(0, i, 1)?
                .reshape((1, kv_heads, parts * x, 1))?
                .contiguous()?;
            self.keys.narrow(0, block, 1)?.slice_set(&k, 3, row)?;
            self.values.narrow(0, block, 1)?.slice_set(&v, 3, row)?;
        }
        Ok(())
    }

    /// The first `n` rows of these blocks, keys and values, `[n, kv_heads, head_dim]` each.
    pub(super) fn gather(&self, blocks: &[u32], n: usize) -> Result<(Tensor, Tensor)> {
        let (_, kv_heads, parts, block_tokens, x) = self.keys.dims5()?;
        let blocks = Tensor::new(&blocks[..n.div_ceil(block_tokens)], self.keys.device())?;
        let rows = blocks.dim(0)? * block_tokens;
        let keys = self.keys.index_select(&blocks, 0)?.permute((0, 3, 1, 2, 4))?;
        let keys = keys.contiguous()?.reshape((rows, kv_heads, parts * x))?;
        let values = self.values.index_select(&blocks, 0)?.permute((0, 3, 1, 2))?;
        let values = values.contiguous()?.reshape((rows, kv_heads, parts * x))?;
        Ok((keys.narrow(0, 0, n)?, values.narrow(0, 0, n)?))
    }

    /// Attention of one query for each sequence, `q` `[sequences, heads, head_dim]`, over the first `lens[i]` rows of
    /// its blocks; gives f32 of `q`'s shape.
    pub(super) fn attend_each(
        &self,
        q: &Tensor,
        tables: &[&[u32]],
        lens: &[usize],
        scale: f32,
    ) -> Result<Tensor> {
        #[cfg(feature = "metal")]
        if self.keys.device().is_metal() && super::metal::attends(self) {
            return super::metal::attend_each(self, q, tables, lens, scale);
        }
        let each = tables.iter().zip(lens).enumerate().map(|(i, (blocks, &n))| {
            let (k, v) = self.gather(blocks, n)?;
            attend(&q.narrow(0, i, 1)?, &k, &v, None, scale)
        });
        Tensor::cat(&each.collect::<Result<Vec<_>>>()?, 0)
    }

    /// Copies one block to another.
    pub(super) fn copy(&self, from: usize, to: usize) -> Result<()> {
        for all in [&self.keys, &self.values] {
            all.slice_set(&all.narrow(0, from, 1)?.copy()?, 0, to)?;
        }
        Ok(())
    }

    /// Fills a block with NaN.
    pub(super) fn scrub(&self, block: usize) -> Result<()> {
        for all in [&self.keys, &self.values] {
            let nan = Tensor::full(f32::NAN, all.narrow(0, block, 1)?.shape(), all.device())?;
            all.slice_set(&nan.to_dtype(all.dtype())?.contiguous()?, 0, block)?;
        }
        Ok(())
    }
}
