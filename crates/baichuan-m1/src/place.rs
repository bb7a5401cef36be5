//! Which device a model goes to: what was asked for, what this build can do, what this machine has.

use baichuan_engine::{DeviceChoice, LoadError};

/// Where a model's layers begin to be placed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// The host's processor and memory.
    Host,
    /// An NVIDIA GPU.
    #[cfg_attr(
        not(any(test, feature = "cuda")),
        expect(dead_code, reason = "made where there are kernels for it")
    )]
    Gpu(usize),
    /// An Apple GPU.
    #[cfg(feature = "metal")]
    Metal(usize),
}

impl Place {
    /// # Errors
    /// What was named and this build lacks. Whether a GPU that was named is there, opening it tells.
    pub(crate) fn of(device: DeviceChoice) -> Result<Self, LoadError> {
        match device {
            DeviceChoice::Cpu => Ok(Self::Host),
            DeviceChoice::Auto => Ok(first_gpu()),
            DeviceChoice::Cuda(ordinal) => cuda(ordinal),
            DeviceChoice::Metal(ordinal) => metal(ordinal),
        }
    }
}

#[cfg(feature = "cuda")]
fn cuda(ordinal: usize) -> Result<Place, LoadError> {
    Ok(Place::Gpu(ordinal))
}

#[cfg(not(feature = "cuda"))]
fn cuda(ordinal: usize) -> Result<Place, LoadError> {
    Err(LoadError::Unsupported {
        key: "device",
        message: format!("cuda:{ordinal}: this program was built without its feature `cuda`"),
    })
}

#[cfg(feature = "metal")]
fn metal(ordinal: usize) -> Result<Place, LoadError> {
    Ok(Place::Metal(ordinal))
}

#[cfg(not(feature = "metal"))]
fn metal(ordinal: usize) -> Result<Place, LoadError> {
    Err(LoadError::Unsupported {
        key: "device",
        message: format!("metal:{ordinal}: this program was built without its feature `metal`"),
    })
}

/// The first GPU if it can be used, else the host.
#[cfg(feature = "cuda")]
fn first_gpu() -> Place {
    match baichuan_kernels::cuda::Device::probe(0) {
        Ok(()) => Place::Gpu(0),
        Err(reason) => {
            tracing::info!(%reason, "no GPU can be used, the model goes to the host");
            Place::Host
        }
    }
}

/// An Apple GPU has to be asked for: it has never been tried.
#[cfg(not(feature = "cuda"))]
fn first_gpu() -> Place {
    Place::Host
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_this_build_lacks_is_refused_by_name() {
        assert_eq!(Place::of(DeviceChoice::Cpu).unwrap(), Place::Host);
        #[cfg(not(feature = "metal"))]
        {
            let error = Place::of(DeviceChoice::Metal(0)).unwrap_err().to_string();
            assert!(error.contains("metal:0") && error.contains("without"), "{error}");
        }
        #[cfg(not(feature = "cuda"))]
        {
            assert_eq!(Place::of(DeviceChoice::Auto).unwrap(), Place::Host);
            let error = Place::of(DeviceChoice::Cuda(1)).unwrap_err().to_string();
            assert!(error.contains("cuda:1") && error.contains("without"), "{error}");
        }
    }
}
