//! The model over candle's tensors and mistral.rs's layers, for devices whose kernels come with those: Apple's GPUs.
//!
//! Nothing here depends on the device but [`paged`]'s three operations, which [`metal`] has kernels for: so the tests hold this
//! model to the host's on the processor. It follows the host's model closely. What differs: queries are multiplied with
//! keys in the weights' type, products are whatever mistral.rs makes of them, and a row's result depends on its company by
//! rounding. Tokens are chosen on the host.

mod attention;
mod layer;
mod load;
#[cfg(feature = "metal")]
pub(crate) mod metal;
mod paged;
mod reader;

use std::sync::Arc;

use baichuan_engine::model::{CacheCopy, Freed, ModelSpec, StepBatch, StepOutput};
use baichuan_engine::{CausalLm, SlotId, StepError};
use candle_core::{DType, Device, Result, Tensor};
use mistralrs_quant::QuantMethod;

use self::layer::{Layer, LayerCache};
use crate::config::BaichuanConfig;
use crate::model::{outputs_of, split};
use crate::step::Step;

#[cfg(any(test, feature = "metal"))]
pub(crate) use load::{TensorOptions, load};

/// A loaded Baichuan-M1 on a device that candle drives.
pub(crate) struct TensorModel {
    config: BaichuanConfig,
    spec: ModelSpec,
    device: Device,
    /// Of weights, keys and values.
    dtype: DType,
    /// `[vocab, hidden]`.
    embedding: Tensor,
    layers: Vec<Layer>,
    caches: Vec<LayerCache>,
    /// `[hidden]`, f32.
    final_norm: Tensor,
    /// `[vocab, hidden]`, rows of length one.
    head: Arc<dyn QuantMethod>,
}

impl CausalLm for TensorModel {
    fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    fn forward(&mut self, batch: &StepBatch<'_>) -> std::result::Result<StepOutput, StepError> {
        self.step(batch).map_err(step_error)
    }

    fn reset_slot(&mut self, slot: SlotId) {
        self.caches.iter_mut().for_each(|cache| cache.reset(slot));
    }

    fn copy(&mut self, copy: &CacheCopy<'_>) -> std::result::Result<(), StepError> {
        self.caches
            .iter_mut()
            .try_for_each(|cache| cache.copy(copy))
            .map_err(step_error)
    }

    fn scrub(&mut self, freed: &Freed<'_>) {
        for cache in &mut self.caches {
            // What is not filled is freed memory all the same: nothing reads it, and the next step tells of the device.
            let _ = cache.scrub(freed);
        }
    }
}

fn step_error(error: candle_core::Error) -> StepError {
    StepError::Compute(error.to_string())
}

impl TensorModel {
    fn step(&mut self, batch: &StepBatch<'_>) -> Result<StepOutput> {
        let tokens: Vec<u32> = batch
            .entries
            .iter()
            .flat_map(|entry| entry.tokens)
            .copied()
            .collect();
        if let Some(token) = tokens
            .iter()
            .find(|token| **token as usize >= self.config.vocab_size)
        {
            candle_core::bail!("token {token} of {}", self.config.vocab_size);
        }
        let step = Step::new(&self.config, batch);
        let tokens = Tensor::new(tokens, &self.device)?;
        let mut x = self.embedding.index_select(&tokens, 0)?.to_dtype(DType::F32)?;
        for (layer, cache) in self.layers.iter().zip(&mut self.caches) {
            x = layer.forward(&x, &step, cache, self.dtype)?;
        }
        self.outputs(&x, &step)
    }

    /// Final norm and head, on the rows that somebody wants.
    fn outputs(&self, x: &Tensor, step: &Step<'_>) -> Result<StepOutput> {
        let (outputs, wanted_rows, logit_rows) = outputs_of(step);
        let sizes = (self.config.hidden_size, self.config.vocab_size);
        if wanted_rows.is_empty() {
            return Ok(split(sizes, outputs, &[], &[]));
        }
        let wanted = x.index_select(&Tensor::new(wanted_rows, &self.device)?, 0)?;
        let hidden = candle_nn::ops::rms_norm(&wanted, &self.final_norm, self.config.rms_norm_eps as f32)?;
        let logits = match logit_rows.is_empty() {
            true => Vec::new(),
            false => {
                let rows = hidden.index_select(&Tensor::new(logit_rows, &self.device)?, 0)?;
                let logits = self.head.forward_autocast(&rows.to_dtype(self.dtype)?)?;
                logits.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?
            }
        };
        let hidden = hidden.flatten_all()?.to_vec1()?;
        Ok(split(sizes, outputs, &hidden, &logits))
    }
}

#[cfg(test)]
mod tests;
