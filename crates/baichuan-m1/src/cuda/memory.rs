//! Device memory of a step, and of the sequences between steps.

use baichuan_engine::model::{CacheCopy, Freed};
use baichuan_engine::{BlockId, CachePlan, EngineConfig, SlotId};
use baichuan_kernels::ElementType;
use baichuan_kernels::cuda::{
    Attention, Buffer, CacheShape, ChoiceBuffer, Device, GpuError, Pinned, Weights,
};

use crate::config::{BaichuanConfig, LayerShape, Span};

/// Rows whose logits are made at a time.
pub(super) const HEAD_ROWS: usize = 256;

/// Buffers of a step, used by one layer after another.
pub(super) struct Activations {
    /// Rows there is room for.
    pub(super) rows: usize,
    /// The residual stream, `[rows][hidden]` f32.
    pub(super) x: Buffer,
    /// After a norm, `[rows][hidden]`.
    pub(super) normed: Buffer,
    /// Sums of squares of the residual stream's rows, in parts.
    pub(super) squares: Buffer,
    /// What W_pack makes.
    pub(super) packed: Buffer,
    /// Convolved keys and values of chunks.
    pub(super) fresh: Buffer,
    /// What attention makes, `[rows][hidden]`.
    pub(super) attended: Buffer,
    /// Gates and ups.
    pub(super) gate_up: Buffer,
    /// After SwiGLU, `[rows][intermediate]`.
    pub(super) act: Buffer,
    /// Room for a layer's largest matrix written out or its activations in eight bits, where matrices are quantised.
    pub(super) dequantized: Buffer,
    /// Partial results of attention.
    pub(super) parts: Buffer,
    /// After the last norm, `[HEAD_ROWS][hidden]`, and the same in f32.
    pub(super) hidden: Buffer,
    pub(super) hidden_f32: Buffer,
    /// `[HEAD_ROWS][vocab]` f32.
    pub(super) logits: Buffer,
    /// `[HEAD_ROWS]` i32.
    pub(super) chosen: Buffer,
    /// Where logits and hidden states arrive.
    pub(super) host: Pinned<f32>,
    pub(super) host_chosen: Pinned<i32>,
    /// How tokens are chosen.
    pub(super) choices: ChoiceBuffer,
}

impl Activations {
    pub(super) fn new(
        device: &Device,
        config: &BaichuanConfig,
        element: ElementType,
        engine: &EngineConfig,
        is_quantized: bool,
    ) -> Result<Self, GpuError> {
        let rows = engine.max_step_tokens.max(HEAD_ROWS).next_multiple_of(128);
        let size = element.size();
        let (h, f, v) = (config.hidden_size, config.intermediate_size, config.vocab_size);
        let widest = |width: fn(&LayerShape) -> usize| config.layers.iter().map(width).max().unwrap_or(0);
        let packed = widest(|layer| layer.q_width() + 2 * layer.kv_width());
        let fresh = widest(|layer| 2 * layer.kv_width());
        let parts = |layer: &LayerShape| {
            Attention::scratch_bytes(
                engine.max_sequences.max(HEAD_ROWS),
                layer.n_heads,
                layer.n_kv_heads,
                layer.head_dim,
            )
        };
        let parts = config.layers.iter().map(parts).max().unwrap_or(0);
        let zeros = |bytes| Buffer::zeros(device, bytes, "the activations of a step");
        let largest = if is_quantized {
            ((2 * f).max(packed) * h * size).max(Weights::rounded_bytes(rows, h.max(f)))
        } else {
            0
        };
        Ok(Self {
            rows,
            x: zeros(rows * h * 4)?,
            normed: zeros(rows * h * size)?,
            squares: zeros(rows * device.norm_parts() * 4)?,
            packed: zeros(rows * packed * size)?,
            fresh: zeros(rows * fresh * size)?,
            attended: zeros(rows * h * size)?,
            gate_up: zeros(rows * 2 * f * size)?,
            act: zeros(rows * f * size)?,
            dequantized: zeros(largest)?,
            parts: zeros(parts)?,
            hidden: zeros(HEAD_ROWS * h * size)?,
            hidden_f32: zeros(HEAD_ROWS * h * 4)?,
            logits: zeros(HEAD_ROWS * v * 4)?,
            chosen: zeros(HEAD_ROWS * 4)?,
            host: Pinned::zeros(device, HEAD_ROWS * v.max(h))?,
            host_chosen: Pinned::zeros(device, HEAD_ROWS)?,
            choices: ChoiceBuffer::new(device, HEAD_ROWS)?,
        })
    }
}

/// About what [`Activations`] and the workspace of products take, for maps that are made before anything is.
pub(super) fn step_bytes(config: &BaichuanConfig, element: ElementType, engine: &EngineConfig) -> u64 {
    let rows = engine.max_step_tokens.max(HEAD_ROWS).next_multiple_of(128);
    let (h, f, v) = (config.hidden_size, config.intermediate_size, config.vocab_size);
    let widest = config
        .layers
        .iter()
        .map(|layer| layer.q_width() + 4 * layer.kv_width())
        .max()
        .unwrap_or(0);
    let of_row = 4 * h + element.size() * (3 * h + 3 * f + widest);
    (rows * of_row + HEAD_ROWS * (4 * v + 6 * h) + (512 << 20)) as u64
}

/// One layer's memory, for all sequences.
struct LayerCache {
    is_global: bool,
    kv: Buffer,
    /// `[slots][taps - 1][k, v][kv_width]`.
    carry: Buffer,
    block_bytes: usize,
    slot_bytes: usize,
}

/// The memory of all layers.
pub(super) struct Caches {
    layers: Vec<LayerCache>,
    block_tokens: usize,
    window_rows: usize,
}

impl Caches {
    pub(super) fn new(
        device: &Device,
        config: &BaichuanConfig,
        plan: &CachePlan,
        element: ElementType,
    ) -> Result<Self, GpuError> {
        let of_layer = |shape: &LayerShape| {
            let is_global = shape.span == Span::Global;
            let n_blocks = if is_global {
                plan.global_blocks
            } else {
                plan.window_blocks
            };
            let block_bytes = plan.block_tokens * 2 * shape.kv_width() * element.size();
            let slot_bytes = (config.conv_window - 1) * 2 * shape.kv_width() * element.size();
            Ok(LayerCache {
                is_global,
                kv: Buffer::zeros(device, n_blocks * block_bytes, "the caches")?,
                carry: Buffer::zeros(device, plan.slots * slot_bytes, "the caches")?,
                block_bytes,
                slot_bytes,
            })
        };
        Ok(Self {
            layers: config
                .layers
                .iter()
                .map(of_layer)
                .collect::<Result<_, GpuError>>()?,
            block_tokens: plan.block_tokens,
            window_rows: plan.window_rows,
        })
    }

    /// A layer's keys and values as kernels take them.
    pub(super) fn shape(&self, layer: usize, shape: &LayerShape) -> CacheShape<'_> {
        CacheShape {
            data: self.layers[layer].kv.all(),
            block_tokens: self.block_tokens,
            n_kv_heads: shape.n_kv_heads,
            head_dim: shape.head_dim,
            ring: match shape.span {
                Span::Global => None,
                Span::Sliding { window } => Some((self.window_rows, window)),
            },
        }
    }

    /// A layer's raw rows.
    pub(super) fn carry(&self, layer: usize) -> &Buffer {
        &self.layers[layer].carry
    }

    pub(super) fn reset(&self, device: &Device, slot: SlotId) -> Result<(), GpuError> {
        device.bind()?;
        self.layers
            .iter()
            .try_for_each(|layer| layer.slot(slot).fill(device, 0))
    }

    pub(super) fn copy(&self, device: &Device, copy: &CacheCopy<'_>) -> Result<(), GpuError> {
        for layer in &self.layers {
            layer.slot(copy.slot.1).copy(device, layer.slot(copy.slot.0))?;
            for (from, to) in if layer.is_global { copy.global } else { copy.window } {
                layer.block(*to).copy(device, layer.block(*from))?;
            }
        }
        Ok(())
    }

    /// All ones are NaN in every float type.
    pub(super) fn scrub(&self, device: &Device, freed: &Freed<'_>) -> Result<(), GpuError> {
        device.bind()?;
        for layer in &self.layers {
            layer.slot(freed.slot).fill(device, 0xff)?;
            for block in if layer.is_global {
                freed.global
            } else {
                freed.window
            } {
                layer.block(*block).fill(device, 0xff)?;
            }
        }
        Ok(())
    }

    pub(super) fn randomise(&self, device: &Device, element: ElementType, seed: u64) -> Result<(), GpuError> {
        for (layer, number) in self.layers.iter().zip(0..) {
            device.random(element, layer.kv.all(), seed + number, 0.0, 1.0)?;
        }
        Ok(())
    }
}

impl LayerCache {
    fn slot(&self, slot: SlotId) -> baichuan_kernels::cuda::Span<'_> {
        self.carry
            .part(slot.0 as usize * self.slot_bytes, self.slot_bytes)
    }

    fn block(&self, block: BlockId) -> baichuan_kernels::cuda::Span<'_> {
        self.kv
            .part(block.0 as usize * self.block_bytes, self.block_bytes)
    }
}
