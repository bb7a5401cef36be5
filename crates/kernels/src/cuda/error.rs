//! What can go wrong on a GPU.

use cudarc::driver::DriverError;

/// Why something could not be done on a GPU.
#[derive(Debug, thiserror::Error)]
pub enum GpuError {
    /// A library that comes with the driver or with CUDA is not on this machine.
    #[error("{library} was not found: {hint}")]
    NoLibrary {
        /// The library.
        library: &'static str,
        /// Where it comes from.
        hint: &'static str,
    },
    /// There is no GPU of this number.
    #[error("there is no GPU {ordinal}: the driver sees {found}")]
    NoDevice {
        /// The number asked for.
        ordinal: usize,
        /// How many there are.
        found: usize,
    },
    /// The kernels were compiled for another generation of GPUs.
    #[error(
        "the kernels were built for compute capability {built}, {device} has {found}: build with CUDA_COMPUTE_CAP={found}"
    )]
    WrongGeneration {
        /// What they were built for, e.g. 90.
        built: String,
        /// What the device has.
        found: String,
        /// The device's name.
        device: String,
    },
    /// Device memory does not suffice.
    #[error("{what} needs {wanted} bytes of device memory, {free} are free")]
    OutOfMemory {
        /// What it was for.
        what: &'static str,
        /// Bytes asked for.
        wanted: u64,
        /// Bytes free when it was asked for.
        free: u64,
    },
    /// The driver refused or a kernel failed.
    #[error("{what}: {source}")]
    Driver {
        /// What was being done.
        what: &'static str,
        /// What the driver said.
        source: DriverError,
    },
    /// cuBLASLt refused.
    #[error("cuBLASLt, {what}: {status}")]
    Blas {
        /// What was being done, with the shape.
        what: String,
        /// Its status.
        status: String,
    },
}

/// Says what was being done when the driver failed.
pub(super) trait During<T> {
    fn during(self, what: &'static str) -> Result<T, GpuError>;
}

impl<T> During<T> for Result<T, DriverError> {
    fn during(self, what: &'static str) -> Result<T, GpuError> {
        self.map_err(|source| GpuError::Driver { what, source })
    }
}
