//! How fast a GPU's memory can be read: what measurements are compared with.

use std::time::Instant;

use baichuan_kernels::cuda::{Buffer, Device, GpuError};

const BYTES: usize = 8 << 30;
const TRIES: usize = 8;

/// Bytes per second of the best of a few pure reads of 8 GiB.
pub fn read_bandwidth(device: &Device) -> Result<f64, GpuError> {
    let buffer = Buffer::zeros(device, BYTES, "the memory to measure")?;
    let sink = Buffer::zeros(device, 4, "the memory to measure")?;
    let mut best = f64::MAX;
    for _ in 0..TRIES {
        device.synchronize()?;
        let begun = Instant::now();
        device.read_all(buffer.all(), sink.all())?;
        device.synchronize()?;
        best = best.min(begun.elapsed().as_secs_f64());
    }
    Ok(BYTES as f64 / best)
}

/// Name of GPU `ordinal` and its read bandwidth in bytes per second.
pub fn measure(ordinal: usize) -> Result<(String, f64), GpuError> {
    let device = Device::open(ordinal)?;
    Ok((device.name()?, read_bandwidth(&device)?))
}
