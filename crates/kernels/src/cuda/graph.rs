//! Work recorded once and issued again with one call.

use cudarc::driver::{CudaGraph, sys};

use super::Device;
use super::error::{During, GpuError};

/// Recorded work. It reads and writes the same addresses at every launch: the buffers it was recorded with must
/// outlive it.
pub struct Graph(CudaGraph);

// SAFETY: used by one thread at a time, with the device it belongs to.
unsafe impl Send for Graph {}

impl Graph {
    /// Records what `issue` issues, without running it. `issue` must not wait, allocate or copy from the host.
    ///
    /// Returns `None` if nothing was issued.
    pub fn record<E: From<GpuError>>(
        device: &Device,
        issue: impl FnOnce() -> Result<(), E>,
    ) -> Result<Option<Self>, E> {
        let stream = device.stream_arc();
        stream
            .begin_capture(sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL)
            .during("beginning to record a graph")?;
        let issued = issue();
        // Ends the recording in any case; a failed one leaves the stream usable.
        let graph = stream
            .end_capture(sys::CUgraphInstantiate_flags::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH)
            .during("recording a graph");
        issued?;
        Ok(graph?.map(Self))
    }

    /// Issues the recorded work.
    pub fn launch(&self) -> Result<(), GpuError> {
        self.0.launch().during("launching a graph")
    }
}
