//! Tensors in host memory as plain slices, which is what the kernels for this machine's processor take, and back.

use baichuan_kernels::{Threads, rms_norm, swiglu};
use candle_core::{CpuStorage, Device, Result, Storage, Tensor};

/// Calls `read` with the values of a contiguous f32 tensor in host memory.
pub(crate) fn with_values<R>(tensor: &Tensor, read: impl FnOnce(&[f32]) -> R) -> Result<R> {
    let (storage, layout) = tensor.storage_and_layout();
    match (&*storage, layout.contiguous_offsets()) {
        (Storage::Cpu(CpuStorage::F32(values)), Some((start, end))) => Ok(read(&values[start..end])),
        _ => candle_core::bail!(
            "a contiguous f32 tensor in host memory was expected, this one is {:?} on {:?}, {layout:?}",
            tensor.dtype(),
            tensor.device()
        ),
    }
}

/// A tensor `[values.len() / width, width]` in host memory.
pub(crate) fn rows(values: Vec<f32>, width: usize) -> Result<Tensor> {
    let n_rows = values.len() / width;
    Tensor::from_vec(values, (n_rows, width), &Device::Cpu)
}

/// RMSNorm of each row of `x`, `[rows, weight.len()]`; the mean of squares is taken in f32.
pub(crate) fn norm(threads: &Threads, x: &Tensor, weight: &[f32], eps: f32) -> Result<Tensor> {
    let out = with_values(x, |x| {
        let mut out = vec![0.0; x.len()];
        rms_norm(threads, x, weight, eps, &mut out);
        out
    })?;
    rows(out, weight.len())
}

/// `silu(gate) · up`, element by element, of rows that hold gates and then ups: `[rows, 2 · width]` to `[rows, width]`.
pub(crate) fn gated(threads: &Threads, gate_up: &Tensor) -> Result<Tensor> {
    let width = gate_up.dim(1)? / 2;
    let out = with_values(gate_up, |gate_up| {
        let mut out = vec![0.0; gate_up.len() / 2];
        swiglu(threads, gate_up, width, &mut out);
        out
    })?;
    rows(out, width)
}
