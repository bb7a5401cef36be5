//! Which device each layer lives on: as configured, or as memory allows.
//!
//! Embedding, last norm and head live on the first GPU, as in mistral.rs; a step's rows go from device to device where
//! neighbouring layers live on different ones.

use std::ops::Range;

use baichuan_engine::{DeviceMap, LoadError, Topology};

use crate::place::Place;

/// Bytes that the parts of a model need on whichever GPU has them.
#[derive(Clone, Debug)]
pub(crate) struct Demand {
    /// Weights and the least cache of each layer.
    pub(crate) layers: Vec<u64>,
    /// Embedding and head: on the first GPU.
    pub(crate) ends: u64,
    /// A step's tensors and what the driver needs: on every GPU that has layers.
    pub(crate) step: u64,
}

/// A GPU and its free memory in bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Gpu {
    pub(crate) ordinal: usize,
    pub(crate) free: u64,
}

/// Layers that live on one device and follow one another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Segment {
    pub(crate) place: Place,
    pub(crate) layers: Range<usize>,
}

/// The place of each of `n_layers` layers; `gpus` are asked only for [`DeviceMap::Auto`].
///
/// # Errors
/// A map that names more layers than there are, or none; a GPU that has not even room for both ends.
pub(crate) fn places(
    map: &DeviceMap,
    n_layers: usize,
    gpus: impl FnOnce() -> Result<(Demand, Vec<Gpu>), LoadError>,
) -> Result<Vec<Place>, LoadError> {
    let refuse = |message: String| LoadError::Unsupported {
        key: "device_map",
        message,
    };
    let mut places = Vec::with_capacity(n_layers);
    match map {
        DeviceMap::Single => places.resize(n_layers, Place::Gpu(0)),
        DeviceMap::Auto => {
            let (demand, gpus) = gpus()?;
            places = by_memory(&demand, &gpus)?;
        }
        DeviceMap::Layers(parts) => {
            for part in parts {
                places.extend(std::iter::repeat_n(Place::Gpu(part.ordinal), part.layers));
            }
            if places.len() > n_layers {
                return Err(refuse(format!(
                    "{map} places {} layers, the model has {n_layers}",
                    places.len()
                )));
            }
            if places.is_empty() {
                return Err(refuse(format!(
                    "{map} places no layer on a GPU, use device = \"cpu\""
                )));
            }
            places.resize(n_layers, Place::Host);
        }
    }
    Ok(places)
}

/// Where a topology has each of `n_layers` layers; those it says nothing of are at `elsewhere`.
///
/// # Errors
/// A device that this build lacks; no layer on a GPU.
pub(crate) fn by_topology(
    topology: &Topology,
    n_layers: usize,
    elsewhere: Place,
) -> Result<Vec<Place>, LoadError> {
    let place = |layer: usize| {
        let device = topology.layer(layer).and_then(|range| range.device);
        device.map_or(Ok(elsewhere), Place::of)
    };
    let places: Vec<Place> = (0..n_layers).map(place).collect::<Result<_, _>>()?;
    if places.iter().all(|place| *place == Place::Host) {
        return Err(LoadError::Unsupported {
            key: "topology",
            message: "leaves no layer on a GPU, use device = \"cpu\"".into(),
        });
    }
    Ok(places)
}

/// As many layers as fit on each GPU in turn, the rest on the host.
fn by_memory(demand: &Demand, gpus: &[Gpu]) -> Result<Vec<Place>, LoadError> {
    let mut rest = demand.layers.iter().copied();
    let mut next = rest.next();
    let mut places = Vec::with_capacity(demand.layers.len());
    for (number, gpu) in gpus.iter().enumerate() {
        let ends = if number == 0 { demand.ends } else { 0 };
        let needed_bytes = demand.step + ends + if number == 0 { next.unwrap_or(0) } else { 0 };
        if number == 0 && needed_bytes > gpu.free {
            return Err(LoadError::OutOfMemory {
                what: "embedding, head and one layer",
                needed_bytes,
                available_bytes: gpu.free,
                hint: "free the GPU of other programs, lower max_step_tokens, or use device = \"cpu\"".into(),
            });
        }
        let mut free = gpu.free.saturating_sub(demand.step + ends);
        while let Some(bytes) = next.filter(|bytes| *bytes <= free) {
            places.push(Place::Gpu(gpu.ordinal));
            free -= bytes;
            next = rest.next();
        }
    }
    places.resize(demand.layers.len(), Place::Host);
    Ok(places)
}

/// Neighbours on one device, taken together.
pub(crate) fn segments(places: &[Place]) -> Vec<Segment> {
    let mut segments: Vec<Segment> = Vec::new();
    for (layer, &place) in places.iter().enumerate() {
        match segments.last_mut().filter(|segment| segment.place == place) {
            Some(segment) => segment.layers.end = layer + 1,
            None => segments.push(Segment {
                place,
                layers: layer..layer + 1,
            }),
        }
    }
    segments
}

#[cfg(test)]
mod tests {
    use super::*;

    fn demand(n_layers: usize) -> Demand {
        Demand {
            layers: vec![10; n_layers],
            ends: 20,
            step: 5,
        }
    }

    fn auto(n_layers: usize, free: &[u64]) -> Result<String, LoadError> {
        let gpus = free.iter().enumerate();
        let gpus = gpus.map(|(ordinal, &free)| Gpu { ordinal, free }).collect();
        let places = places(&DeviceMap::Auto, n_layers, || Ok((demand(n_layers), gpus)))?;
        let letter = |place: &Place| match place {
            Place::Host => 'h',
            Place::Gpu(ordinal) => char::from_digit(*ordinal as u32, 10).unwrap(),
            #[cfg(feature = "metal")]
            Place::Metal(_) => 'm',
        };
        Ok(places.iter().map(letter).collect())
    }

    fn written(map: &str, n_layers: usize) -> Result<Vec<Segment>, LoadError> {
        let map = map.parse().unwrap();
        let places = places(&map, n_layers, || panic!("memory was asked for"))?;
        Ok(segments(&places))
    }

    fn segment(place: Place, layers: Range<usize>) -> Segment {
        Segment { place, layers }
    }

    #[test]
    fn a_topology_places_what_it_names_and_leaves_the_rest() {
        let topology: Topology = "1-3: {device: cpu}".parse().unwrap();
        let places = by_topology(&topology, 4, Place::Gpu(1)).unwrap();
        let [gpu, host] = [Place::Gpu(1), Place::Host];
        assert_eq!(places, [gpu, host, host, gpu]);
        let error = by_topology(&topology, 4, Place::Host).unwrap_err();
        assert!(error.to_string().contains("leaves no layer on a GPU"), "{error}");
    }

    #[test]
    fn memory_decides_gpu_by_gpu_and_the_rest_is_the_hosts() {
        for (free, places) in [
            (&[1000][..], "000000"),
            (&[85, 1000], "000000"),
            (&[84, 1000], "000001"),
            (&[45, 35], "00111h"),
            (&[35, 0], "0hhhhh"),
            // A second GPU with room for nothing is passed over.
            (&[45, 14, 1000], "002222"),
        ] {
            assert_eq!(auto(6, free).unwrap(), places, "{free:?}");
        }
    }

    #[test]
    fn a_gpu_without_room_for_the_ends_is_told_with_what_is_missing() {
        let error = auto(6, &[34]).unwrap_err().to_string();
        assert!(
            error.contains("35 bytes") && error.contains("1 are missing"),
            "{error}"
        );
    }

    #[test]
    fn a_written_map_is_taken_in_order_and_the_rest_is_the_hosts() {
        assert_eq!(written("single", 4).unwrap(), [segment(Place::Gpu(0), 0..4)]);
        assert_eq!(
            written("0:2;1:2", 4).unwrap(),
            [segment(Place::Gpu(0), 0..2), segment(Place::Gpu(1), 2..4)]
        );
        assert_eq!(
            written("1:1;0:1", 4).unwrap(),
            [
                segment(Place::Gpu(1), 0..1),
                segment(Place::Gpu(0), 1..2),
                segment(Place::Host, 2..4)
            ]
        );
    }

    #[test]
    fn a_map_of_more_layers_than_there_are_or_none_is_refused() {
        for map in ["0:5", "0:3;1:2", "0:0"] {
            let error = written(map, 4).unwrap_err().to_string();
            assert!(error.contains("device_map") && error.contains(map), "{error}");
        }
    }
}
