//! One layer, and what it keeps of each sequence.

use std::sync::Arc;

use baichuan_engine::SlotId;
use baichuan_engine::model::{CacheCopy, Freed};
use candle_core::{DType, Result, Tensor};
use mistralrs_quant::QuantMethod;

use super::attention::Attention;
use super::paged::PagedKv;
use crate::step::Step;

/// A layer's weights.
pub(super) struct Layer {
    /// `[hidden]`, f32.
    pub(super) input_norm: Tensor,
    pub(super) attention: Attention,
    /// `[hidden]`, f32.
    pub(super) post_norm: Tensor,
    /// `[2 · intermediate, hidden]`: gates, then ups.
    pub(super) gate_up: Arc<dyn QuantMethod>,
    /// `[hidden, intermediate]`.
    pub(super) down: Arc<dyn QuantMethod>,
    pub(super) norm_eps: f32,
}

/// A layer's memory, for all sequences.
pub(super) struct LayerCache {
    pub(super) is_global: bool,
    /// Convolved, rotated keys, and convolved values.
    pub(super) kv: PagedKv,
    /// Of each slot the raw keys and values before its next token, `[conv_window − 1, 2 · kv_width]` f32.
    pub(super) carry: Vec<Tensor>,
    /// What `carry` is before a sequence's first token.
    pub(super) zeros: Tensor,
}

impl Layer {
    /// `x`: `[rows, hidden]` f32, the residual stream. Products take their input in `dtype`.
    pub(super) fn forward(
        &self,
        x: &Tensor,
        step: &Step<'_>,
        cache: &mut LayerCache,
        dtype: DType,
    ) -> Result<Tensor> {
        let normed = candle_nn::ops::rms_norm(x, &self.input_norm, self.norm_eps)?;
        let mixed = self.attention.forward(&normed.to_dtype(dtype)?, step, cache)?;
        let x = (x + mixed)?;
        let normed = candle_nn::ops::rms_norm(&x, &self.post_norm, self.norm_eps)?;
        let both = self.gate_up.forward_autocast(&normed.to_dtype(dtype)?)?;
        let width = both.dim(1)? / 2;
        let gate = both.narrow(1, 0, width)?.contiguous()?;
        let up = both.narrow(1, width, width)?.contiguous()?;
        let gated = (candle_nn::ops::silu(&gate)? * up)?;
        x + self.down.forward_autocast(&gated)?.to_dtype(DType::F32)?
    }
}

impl LayerCache {
    pub(super) fn reset(&mut self, slot: SlotId) {
        self.carry[slot.0 as usize] = self.zeros.clone();
    }

    pub(super) fn copy(&mut self, copy: &CacheCopy<'_>) -> Result<()> {
        self.carry[copy.slot.1.0 as usize] = self.carry[copy.slot.0.0 as usize].clone();
        let blocks = if self.is_global { copy.global } else { copy.window };
        blocks
            .iter()
            .try_for_each(|(from, to)| self.kv.copy(from.0 as usize, to.0 as usize))
    }

    pub(super) fn scrub(&mut self, freed: &Freed<'_>) -> Result<()> {
        self.carry[freed.slot.0 as usize] = (self.zeros.clone() * f64::NAN)?;
        let blocks = if self.is_global {
            freed.global
        } else {
            freed.window
        };
        blocks
            .iter()
            .try_for_each(|block| self.kv.scrub(block.0 as usize))
    }
}
