//! What the layers keep of each sequence: the tensors behind the engine's block and slot ids.
//!
//! A global layer keeps convolved, rotated keys and values in pages, a sliding layer keeps them in a ring of blocks,
//! and both keep the raw rows that the convolution of the next step needs. Which sequence holds which block is the
//! engine's to know; nothing here does.

use baichuan_engine::kv::{CachePlan, CacheSpec};
use baichuan_engine::model::{CacheCopy, Freed};
use baichuan_engine::{BlockId, SlotId};
use baichuan_kernels::{KvCache, KvFormat, KvShape, Layout};

use crate::config::{BaichuanConfig, LayerShape, Span};
use crate::conv::RawRows;

/// One layer's memory, for all sequences.
pub(crate) struct LayerCache {
    /// Keys and values as attention reads them.
    pub(crate) kv: KvCache,
    /// How blocks of `kv` are used.
    pub(crate) layout: Layout,
    /// Keys before convolution and rotation.
    pub(crate) raw_keys: RawRows,
    /// Values before convolution.
    pub(crate) raw_values: RawRows,
}

/// The memory of all layers.
pub(crate) struct Caches(Vec<LayerCache>);

/// What the layers of `config` keep, as the engine accounts for it.
pub(crate) fn specs(config: &BaichuanConfig, format: impl Into<KvFormat>) -> Vec<CacheSpec> {
    let format = format.into();
    let of_layer = |shape: &LayerShape| {
        let bytes_per_token = 2 * shape.n_kv_heads * format.row_bytes(shape.head_dim);
        let kv = match shape.span {
            Span::Global => CacheSpec::Paged { bytes_per_token },
            Span::Sliding { window } => CacheSpec::Rotating {
                window,
                bytes_per_token,
            },
        };
        let bytes = 2 * (config.conv_window - 1) * shape.kv_width() * size_of::<f32>();
        [kv, CacheSpec::State { bytes }]
    };
    config.layers.iter().flat_map(of_layer).collect()
}

impl Caches {
    /// Memory for every layer, as `plan` has it. No block pool that a layer needs may be empty.
    pub(crate) fn new(config: &BaichuanConfig, plan: &CachePlan, format: impl Into<KvFormat>) -> Self {
        let format = format.into();
        let of_layer = |shape: &LayerShape| {
            let (n_blocks, layout) = match shape.span {
                Span::Global => (plan.global_blocks, Layout::Paged),
                Span::Sliding { window } => {
                    let rows = plan.window_rows;
                    (plan.window_blocks, Layout::Ring { rows, window })
                }
            };
            let kv_shape = KvShape {
                n_blocks,
                block_tokens: plan.block_tokens,
                kv_heads: shape.n_kv_heads,
                head_dim: shape.head_dim,
            };
            let raw_rows = || RawRows::new(plan.slots, config.conv_window, shape.kv_width());
            LayerCache {
                kv: KvCache::new(kv_shape, format),
                layout,
                raw_keys: raw_rows(),
                raw_values: raw_rows(),
            }
        };
        Self(config.layers.iter().map(of_layer).collect())
    }

    /// The memory of each layer, in order.
    pub(crate) fn layers(&mut self) -> impl Iterator<Item = &mut LayerCache> {
        self.0.iter_mut()
    }

    /// Makes a slot as if it had never been used.
    pub(crate) fn reset(&mut self, slot: SlotId) {
        for layer in &mut self.0 {
            layer.raw_keys.reset(slot.0 as usize);
            layer.raw_values.reset(slot.0 as usize);
        }
    }

    /// Copies one sequence's memory to that of another.
    pub(crate) fn copy(&mut self, copy: &CacheCopy<'_>) {
        let (from, to) = (copy.slot.0.0 as usize, copy.slot.1.0 as usize);
        for layer in &mut self.0 {
            layer.raw_keys.copy(from, to);
            layer.raw_values.copy(from, to);
            let blocks = match layer.layout {
                Layout::Paged => copy.global,
                Layout::Ring { .. } => copy.window,
            };
            for &(BlockId(from), BlockId(to)) in blocks {
                layer.kv.copy_block(from, to);
            }
        }
    }

    /// Fills freed memory with NaN.
    pub(crate) fn scrub(&mut self, freed: &Freed<'_>) {
        for layer in &mut self.0 {
            layer.raw_keys.scrub(freed.slot.0 as usize);
            layer.raw_values.scrub(freed.slot.0 as usize);
            let blocks = match layer.layout {
                Layout::Paged => freed.global,
                Layout::Ring { .. } => freed.window,
            };
            blocks
                .iter()
                .for_each(|&BlockId(block)| layer.kv.scrub_block(block));
        }
    }
}
