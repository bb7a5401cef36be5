//! The model on one NVIDIA GPU: the same weights, caches and definitions as on the host, other arithmetic.
//!
//! [`CudaModel`] keeps everything on the device and issues a step's work to one stream. The rows of a step are
//! its new tokens, entries of one token first. Per layer:
//!
//! norm → W_pack → convolution, RoPE, cache write → attention → o_proj added to the residual → norm → gate and up
//! with SwiGLU → down added to the residual.
//!
//! The residual stream is f32, everything else the weights' type. A step of nothing but single tokens is padded to
//! the next of a few sizes and replayed as a recorded graph, so that the host issues one launch instead of some
//! hundreds; ids, positions and block tables reach the graph in one small copy. Sequences' rings are as long as
//! their window, so a chunk attends before it overwrites: its keys and values wait in a buffer until then.
//!
//! Unlike on the host, sums here depend on the number of rows: an entry's result is the same in any company up to
//! rounding, not to the bit.

pub mod bandwidth;
mod forward;
mod host_part;
mod host_reader;
mod load;
mod mapped;
mod memory;
mod output;
mod reader;
mod tables;
mod weights;

use std::collections::BTreeMap;

use baichuan_engine::model::{CacheCopy, Freed, ModelSpec, StepBatch, StepOutput};
use baichuan_engine::{CausalLm, SlotId, StepError, TokenId};
use baichuan_kernels::ElementType;
use baichuan_kernels::cuda::{Choices, Device, GpuError, Graph, StepBuffer, StepTables};

use crate::config::BaichuanConfig;

pub use load::CudaOptions;
pub(crate) use load::{load, load_mapped};
use memory::{Activations, Caches};
use output::Head;
pub use output::choose_row;
pub use reader::Source;
use weights::DeviceWeights;

/// A loaded Baichuan-M1 on a GPU, with memory for its sequences.
pub struct CudaModel {
    config: BaichuanConfig,
    spec: ModelSpec,
    element: ElementType,
    weights: DeviceWeights,
    caches: Caches,
    activations: Activations,
    step: StepBuffer,
    tables: StepTables,
    choices: Choices,
    /// Recorded steps of single tokens, by their number of rows.
    graphs: BTreeMap<usize, Graph>,
    /// Last, so that it is there while what belongs to it is freed.
    device: Device,
}

impl CausalLm for CudaModel {
    fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    fn forward(&mut self, batch: &StepBatch<'_>) -> Result<StepOutput, StepError> {
        self.device.bind().map_err(step_error)?;
        self.run(batch, Head::Rows)
    }

    fn reset_slot(&mut self, slot: SlotId) {
        self.log(self.caches.reset(&self.device, slot));
    }

    fn copy(&mut self, copy: &CacheCopy<'_>) -> Result<(), StepError> {
        self.device.bind().map_err(step_error)?;
        self.caches.copy(&self.device, copy).map_err(step_error)
    }

    fn scrub(&mut self, freed: &Freed<'_>) {
        self.log(self.caches.scrub(&self.device, freed));
    }
}

impl CudaModel {
    /// As [`CausalLm::forward`], but instead of logits yields the most likely token of each entry that wants
    /// some: they never leave the device.
    pub fn most_likely(&mut self, batch: &StepBatch<'_>) -> Result<Vec<Option<TokenId>>, StepError> {
        self.device.bind().map_err(step_error)?;
        self.run(batch, Head::Choose).map(|output| output.chosen)
    }

    /// Fills all caches with random numbers: for measurements at contexts that nobody waits to compute.
    pub fn randomise_caches(&mut self, seed: u64) -> Result<(), GpuError> {
        self.device.bind()?;
        self.caches.randomise(&self.device, self.element, seed)?;
        self.device.synchronize()
    }

    /// The GPU.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// What cannot be reported where it happens fails the next step: the driver keeps an error until then.
    fn log(&self, result: Result<(), GpuError>) {
        if let Err(error) = result {
            tracing::error!(%error, "the GPU failed between two steps");
        }
    }
}

fn step_error(error: GpuError) -> StepError {
    match error {
        GpuError::OutOfMemory { .. } => StepError::OutOfMemory(error.to_string()),
        other => StepError::Compute(other.to_string()),
    }
}
