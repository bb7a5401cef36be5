//! The layers of a mapped model that live on the host.

use baichuan_engine::StepError;
use baichuan_engine::model::StepBatch;
use baichuan_kernels::Threads;

use crate::cache::Caches;
use crate::config::BaichuanConfig;
use crate::host;
use crate::layer::DecoderLayer;
use crate::step::Step;

/// Some layers and their caches in host memory.
pub(super) struct HostPart {
    /// The model's, with these layers only.
    pub(super) config: BaichuanConfig,
    pub(super) threads: Threads,
    pub(super) layers: Vec<DecoderLayer>,
    pub(super) caches: Caches,
}

impl HostPart {
    /// Runs the layers `first..end` of this part; `x` is `[rows][hidden]`, rows in the batch's order.
    pub(super) fn forward(
        &mut self,
        batch: &StepBatch<'_>,
        (first, end): (usize, usize),
        x: Vec<f32>,
    ) -> Result<Vec<f32>, StepError> {
        let Self {
            config,
            threads,
            layers,
            caches,
        } = self;
        let threads = &*threads;
        let run = || -> candle_core::Result<Vec<f32>> {
            let step = Step::new(config, batch);
            let mut x = host::rows(x, config.hidden_size)?;
            for (layer, cache) in layers.iter().zip(caches.layers()).take(end).skip(first) {
                x = layer.forward(threads, &x, &step, cache)?;
            }
            x.flatten_all()?.to_vec1()
        };
        run().map_err(|error| StepError::Compute(error.to_string()))
    }
}
