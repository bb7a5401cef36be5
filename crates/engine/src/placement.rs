//! Where a model's layers live: which devices, which layers on each. Spelling is mistral.rs's.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::topology::Topology;

/// Where a model runs: `auto`, `cpu`, `cuda`, `cuda:1`, `metal`.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
#[serde(try_from = "String", into = "String")]
pub enum DeviceChoice {
    /// The first GPU that this build can use; without one, the host.
    #[default]
    Auto,
    /// The host's processor.
    Cpu,
    /// An NVIDIA GPU, as the driver counts them.
    Cuda(usize),
    /// An Apple GPU.
    Metal(usize),
}

impl FromStr for DeviceChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (kind, ordinal) = match text.split_once(':') {
            Some((kind, ordinal)) => (kind, ordinal.parse().ok()),
            None => (text, Some(0)),
        };
        match (kind, ordinal, text.contains(':')) {
            ("auto", _, false) => Ok(Self::Auto),
            ("cpu", _, false) => Ok(Self::Cpu),
            ("cuda", Some(ordinal), _) => Ok(Self::Cuda(ordinal)),
            ("metal", Some(ordinal), _) => Ok(Self::Metal(ordinal)),
            _ => Err(format!(
                "must be auto, cpu, cuda, cuda:ORDINAL, metal or metal:ORDINAL, got {text:?}"
            )),
        }
    }
}

impl fmt::Display for DeviceChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(0) => f.write_str("cuda"),
            Self::Cuda(ordinal) => write!(f, "cuda:{ordinal}"),
            Self::Metal(0) => f.write_str("metal"),
            Self::Metal(ordinal) => write!(f, "metal:{ordinal}"),
        }
    }
}

/// So many layers on one GPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceLayers {
    /// Of the GPU.
    pub ordinal: usize,
    /// How many layers.
    pub layers: usize,
}

/// How layers are spread over devices.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
#[serde(try_from = "String", into = "String")]
pub enum DeviceMap {
    /// All on the one device of [`DeviceChoice`].
    #[default]
    Single,
    /// By free memory: as many as fit on each GPU in turn, the rest on the host.
    Auto,
    /// In order: `0:20;1:20` is 20 layers on GPU 0, the next 20 on GPU 1, and the rest, if any, on the host.
    Layers(Vec<DeviceLayers>),
}

impl FromStr for DeviceMap {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "single" => return Ok(Self::Single),
            "auto" => return Ok(Self::Auto),
            _ => {}
        }
        let part = |part: &str| {
            let (ordinal, layers) = part.split_once(':')?;
            Some(DeviceLayers {
                ordinal: ordinal.parse().ok()?,
                layers: layers.parse().ok()?,
            })
        };
        let parts: Option<Vec<DeviceLayers>> = text.split(';').map(part).collect();
        let Some(parts) = parts else {
            return Err(format!(
                "must be single, auto, or ORDINAL:LAYERS;… like \"0:20;1:20\", got {text:?}"
            ));
        };
        for (place, part) in parts.iter().enumerate() {
            if parts[..place].iter().any(|before| before.ordinal == part.ordinal) {
                return Err(format!("names GPU {} twice: {text:?}", part.ordinal));
            }
        }
        Ok(Self::Layers(parts))
    }
}

impl fmt::Display for DeviceMap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts = match self {
            Self::Single => return f.write_str("single"),
            Self::Auto => return f.write_str("auto"),
            Self::Layers(parts) => parts,
        };
        for (place, part) in parts.iter().enumerate() {
            let separator = if place == 0 { "" } else { ";" };
            write!(f, "{separator}{}:{}", part.ordinal, part.layers)?;
        }
        Ok(())
    }
}

/// In configurations both are text.
macro_rules! as_text {
    ($($name:ty),+) => { $(
        impl TryFrom<String> for $name {
            type Error = String;

            fn try_from(text: String) -> Result<Self, String> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(value: $name) -> Self {
                value.to_string()
            }
        }
    )+ };
}
as_text!(DeviceChoice, DeviceMap);

/// Where a model is to live, as configured.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Placement {
    /// The device, or the kind of devices.
    pub device: DeviceChoice,
    /// How layers are spread.
    pub map: DeviceMap,
    /// Device and quantisation of single layers; with devices in it, `map` is [`DeviceMap::Single`].
    pub topology: Topology,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_device_reads_back_as_it_is_written() {
        for (text, device) in [
            ("auto", DeviceChoice::Auto),
            ("cpu", DeviceChoice::Cpu),
            ("cuda", DeviceChoice::Cuda(0)),
            ("cuda:3", DeviceChoice::Cuda(3)),
            ("metal", DeviceChoice::Metal(0)),
            ("metal:1", DeviceChoice::Metal(1)),
        ] {
            assert_eq!(text.parse(), Ok(device));
            assert_eq!(device.to_string(), text);
        }
        assert_eq!("cuda:0".parse(), Ok(DeviceChoice::Cuda(0)));
    }

    #[test]
    fn what_is_no_device_is_refused() {
        for text in [
            "", "gpu", "cpu:0", "auto:1", "cuda:", "cuda:x", "cuda:-1", "cuda:1:2", "CUDA",
        ] {
            let error = text.parse::<DeviceChoice>();
            assert!(error.is_err_and(|e| e.contains(&format!("{text:?}"))), "{text}");
        }
    }

    #[test]
    fn a_map_is_read_in_order() {
        let layers = |ordinal, layers| DeviceLayers { ordinal, layers };
        for (text, map) in [
            ("single", DeviceMap::Single),
            ("auto", DeviceMap::Auto),
            ("0:20", DeviceMap::Layers(vec![layers(0, 20)])),
            ("1:20;0:3", DeviceMap::Layers(vec![layers(1, 20), layers(0, 3)])),
        ] {
            assert_eq!(text.parse().as_ref(), Ok(&map));
            assert_eq!(map.to_string(), text);
        }
    }

    #[test]
    fn what_is_no_map_is_refused() {
        for text in [
            "",
            "0",
            "0:",
            ":20",
            "0:20;",
            "0:20,1:20",
            "0:-1",
            "a:2",
            "0:2;0:3",
        ] {
            assert!(text.parse::<DeviceMap>().is_err(), "{text}");
        }
    }
}
