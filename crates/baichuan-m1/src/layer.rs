//! One decoder layer: attention, then a gated feed-forward part, each after an RMSNorm and beside a residual.

use std::sync::Arc;

use baichuan_kernels::Threads;
use candle_core::{Result, Tensor};
use mistralrs_quant::QuantMethod;

use crate::attention::HybridAttention;
use crate::cache::LayerCache;
use crate::host;
use crate::step::Step;

/// A decoder layer.
pub(crate) struct DecoderLayer {
    /// `[hidden]`.
    pub(crate) input_norm: Vec<f32>,
    pub(crate) attention: HybridAttention,
    /// `[hidden]`.
    pub(crate) post_norm: Vec<f32>,
    /// Gates, then ups: `[2 · intermediate, hidden]`.
    pub(crate) gate_up: Arc<dyn QuantMethod>,
    /// `[hidden, intermediate]`.
    pub(crate) down: Arc<dyn QuantMethod>,
    pub(crate) norm_eps: f32,
}

impl DecoderLayer {
    /// `x`: `[tokens, hidden]`, the residual stream before and after.
    pub(crate) fn forward(
        &self,
        threads: &Threads,
        x: &Tensor,
        step: &Step<'_>,
        cache: &mut LayerCache,
    ) -> Result<Tensor> {
        let normed = host::norm(threads, x, &self.input_norm, self.norm_eps)?;
        let x = (x + self.attention.forward(threads, &normed, step, cache)?)?;
        let normed = host::norm(threads, &x, &self.post_norm, self.norm_eps)?;
        let gated = host::gated(threads, &self.gate_up.forward(&normed)?)?;
        x + self.down.forward(&gated)?
    }
}
