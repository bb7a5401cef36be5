//! Makes a model on several devices: the map first, then weights, each tensor to its layer's device, then caches.

use std::collections::BTreeMap;

use baichuan_engine::model::ModelSpec;
use baichuan_engine::{CacheBudget, CachePlan, Dtype, EngineConfig, LoadError, LoadRequest};
use baichuan_kernels::cuda::{Buffer, Choices, Device, Pinned, QuantFormat, StepBuffer, StepTables};
use baichuan_kernels::{ElementType, Threads};

use super::{MappedModel, On, Stage};
use crate::cache;
use crate::config::{BaichuanConfig, Span};
use crate::cuda::CudaModel;
use crate::cuda::host_part::HostPart;
use crate::cuda::host_reader::HostReader;
use crate::cuda::load::{RESERVE_BYTES, check, element_of, load_error, quantizer, weights_error, within};
use crate::cuda::memory::{self, Activations, Caches};
use crate::cuda::reader::{Quantizer, Reader, Source, bytes_of};
use crate::cuda::weights::{DeviceMatrix, DeviceWeights, LayerWeights, angles};
use crate::device_map::{Demand, Gpu, by_topology, places, segments};
use crate::formats::Formats;
use crate::layout::{self, LayerSpec};
use crate::load::free_memory;
use crate::place::Place;

/// What a load stands on.
struct Setup<'a> {
    request: &'a LoadRequest<'a>,
    config: &'a BaichuanConfig,
    source: Source<'a>,
    element: ElementType,
    /// Where layers live that the topology does not name.
    place: Place,
    quantizer: Quantizer,
    threads: Threads,
    max_context: usize,
}

impl MappedModel {
    /// Reads a model of the configuration to the devices of the request's map; also says what was read.
    pub(in crate::cuda) fn read(
        request: &LoadRequest<'_>,
        config: &BaichuanConfig,
        source: Source<'_>,
        place: Place,
        (dtype, formats): (Dtype, Formats<QuantFormat>),
        threads: Threads,
    ) -> Result<(Self, blake3::Hash), LoadError> {
        let setup = Setup {
            request,
            config,
            source,
            element: element_of(dtype),
            place,
            quantizer: quantizer(dtype, formats)?,
            threads,
            max_context: config
                .max_positions
                .min(request.engine.max_context.unwrap_or(usize::MAX)),
        };
        let places = setup.places()?;
        setup.read(&places, dtype)
    }
}

/// The model's configuration with these layers only.
fn with_layers(config: &BaichuanConfig, layers: &[usize]) -> BaichuanConfig {
    BaichuanConfig {
        layers: layers.iter().map(|layer| config.layers[*layer]).collect(),
        ..config.clone()
    }
}

impl Setup<'_> {
    fn places(&self) -> Result<Vec<Place>, LoadError> {
        let placement = &self.request.placement;
        let n_layers = self.config.layers.len();
        if placement.topology.places_layers() {
            return by_topology(&placement.topology, n_layers, self.place);
        }
        places(&placement.map, n_layers, || Ok((self.demand(), self.gpus()?)))
    }

    /// Every GPU that the kernels run on, in the driver's order.
    fn gpus(&self) -> Result<Vec<Gpu>, LoadError> {
        let share = self.request.engine.cache.gpu_memory_utilization;
        let mut gpus = Vec::new();
        for ordinal in 0..Device::count().map_err(load_error)? {
            let (free, total) = Device::memory_of(ordinal).map_err(load_error)?;
            let kept = (total as f64 * (1.0 - share)) as u64;
            gpus.push(Gpu {
                ordinal,
                free: free.saturating_sub(kept.max(RESERVE_BYTES)),
            });
        }
        Ok(gpus)
    }

    fn demand(&self) -> Demand {
        let (config, size) = (self.config, self.element.size());
        let layers = config.layers.iter().enumerate().map(|(index, shape)| {
            let weights: usize = LayerSpec::new(config, index, shape)
                .into_array()
                .iter()
                .map(|spec| bytes_of(spec, self.element, &self.quantizer.formats))
                .sum();
            let tokens = match shape.span {
                Span::Global => self.max_context,
                Span::Sliding { window } => self.max_context.min(window),
            };
            (weights + tokens * 2 * shape.kv_width() * size) as u64
        });
        let ends = layout::embedding(config).n_elements() * 2 * size;
        Demand {
            layers: layers.collect(),
            ends: ends as u64,
            step: memory::step_bytes(config, self.element, self.request.engine),
        }
    }

    /// Weights to their devices, then a step's tensors, then caches; and the digest of what was read.
    fn read(&self, places: &[Place], dtype: Dtype) -> Result<(MappedModel, blake3::Hash), LoadError> {
        let config = self.config;
        let mut ordinals: Vec<usize> = Vec::new();
        for place in places {
            if let Place::Gpu(ordinal) = place
                && !ordinals.contains(ordinal)
            {
                ordinals.push(*ordinal);
            }
        }
        let open = |ordinal: &usize| Device::open(*ordinal).map_err(load_error);
        let devices: Vec<Device> = ordinals.iter().map(open).collect::<Result<_, _>>()?;
        let shard_of = |ordinal: usize| ordinals.iter().position(|o| *o == ordinal).unwrap_or(0);
        let mut reader = Reader::new(self.source, self.element, self.request.progress, &self.quantizer);
        let of_host = (0..places.len()).filter(|index| places[*index] == Place::Host);
        let host_formats = self.quantizer.formats.on_host(config, of_host)?;
        let mut on_host = HostReader::new(
            self.source,
            (dtype, self.element),
            &host_formats,
            &self.threads,
            self.request.progress,
        );
        let (mut gpu_layers, mut host_layers) = (vec![Vec::new(); devices.len()], Vec::new());
        let mut gpu_weights: Vec<Vec<LayerWeights>> = devices.iter().map(|_| Vec::new()).collect();
        let mut decoder_layers = Vec::new();
        let base = &devices[0];
        base.bind().map_err(load_error)?;
        let embedding_spec = layout::embedding(config);
        let embedding = reader.tensor(base, &embedding_spec).map_err(weights_error)?;
        for (index, place) in places.iter().enumerate() {
            match place {
                Place::Host => {
                    let layer = on_host
                        .layer(config, index, reader.tally())
                        .map_err(|error| LoadError::Compute(error.to_string()))?;
                    decoder_layers.push(layer);
                    host_layers.push(index);
                }
                Place::Gpu(ordinal) => {
                    let shard = shard_of(*ordinal);
                    devices[shard].bind().map_err(load_error)?;
                    let layer = LayerWeights::read(&devices[shard], config, &mut reader, index)
                        .map_err(weights_error)?;
                    gpu_weights[shard].push(layer);
                    gpu_layers[shard].push(index);
                }
            }
        }
        base.bind().map_err(load_error)?;
        let final_norm = reader
            .tensor(base, &layout::final_norm(config))
            .map_err(weights_error)?;
        let head_spec = layout::head(config);
        let head = reader
            .head(base, head_spec.as_ref().unwrap_or(&embedding_spec))
            .map_err(weights_error)?;

        let mut ends = Some((embedding, final_norm, head));
        let mut parts = Vec::new();
        for ((device, layers), weights) in devices.into_iter().zip(&gpu_layers).zip(gpu_weights) {
            device.bind().map_err(load_error)?;
            let config = with_layers(config, layers);
            let empty = || Buffer::zeros(&device, 0, "nothing");
            let (embedding, final_norm, head) = match ends.take() {
                Some(ends) => ends,
                None => (
                    empty().map_err(load_error)?,
                    empty().map_err(load_error)?,
                    DeviceMatrix::Plain(empty().map_err(load_error)?),
                ),
            };
            let weights = DeviceWeights {
                embedding,
                layers: weights,
                final_norm,
                head,
                angles: angles(&device, &config, self.max_context).map_err(load_error)?,
            };
            let engine = self.request.engine;
            let is_quantized = self.quantizer.formats.quantise();
            let activations =
                Activations::new(&device, &config, self.element, engine, is_quantized).map_err(load_error)?;
            parts.push((device, config, weights, activations));
        }
        let plan = self.plan(&parts, &with_layers(config, &host_layers))?;
        let spec = ModelSpec {
            vocab_size: config.vocab_size,
            hidden_size: config.hidden_size,
            max_context: self.max_context,
            layers: cache::specs(config, self.element),
            cache: plan,
            samples: true,
        };
        let per_sequence =
            plan.global_blocks_for(self.max_context) + plan.window_blocks_for(self.max_context);
        let mut shards = Vec::new();
        for (device, config, weights, activations) in parts {
            device.bind().map_err(load_error)?;
            let ints = 4 * activations.rows + plan.slots.next_multiple_of(32) * (6 + per_sequence);
            shards.push(CudaModel {
                caches: Caches::new(&device, &config, &plan, self.element).map_err(load_error)?,
                step: StepBuffer::new(&device, ints).map_err(load_error)?,
                spec: spec.clone(),
                element: self.element,
                config,
                weights,
                activations,
                tables: StepTables::default(),
                choices: Choices::default(),
                graphs: BTreeMap::new(),
                device,
            });
        }
        let carried_rows = if host_layers.is_empty() {
            0
        } else {
            shards[0].activations.rows
        };
        shards[0].device.bind().map_err(load_error)?;
        let carried =
            Pinned::zeros(&shards[0].device, carried_rows * config.hidden_size).map_err(load_error)?;
        let host = (!host_layers.is_empty()).then(|| {
            let config = with_layers(config, &host_layers);
            HostPart {
                caches: cache::Caches::new(&config, &plan, self.element),
                threads: self.threads.clone(),
                layers: decoder_layers,
                config,
            }
        });
        let stages = segments(places).into_iter().map(|segment| {
            let (on, own) = match segment.place {
                Place::Host => (On::Host, &host_layers),
                Place::Gpu(ordinal) => (On::Shard(shard_of(ordinal)), &gpu_layers[shard_of(ordinal)]),
            };
            let first = own
                .iter()
                .position(|layer| *layer == segment.layers.start)
                .unwrap_or(0);
            Stage {
                on,
                first,
                end: first + segment.layers.len(),
            }
        });
        let model = MappedModel {
            spec,
            places: places.to_vec(),
            stages: stages.collect(),
            shards,
            host,
            graphs: BTreeMap::new(),
            carried,
        };
        Ok((model, reader.digest()))
    }

    /// As many blocks as fit on every device.
    fn plan(
        &self,
        parts: &[(Device, BaichuanConfig, DeviceWeights, Activations)],
        host: &BaichuanConfig,
    ) -> Result<CachePlan, LoadError> {
        let engine = self.request.engine;
        let specs = |config: &BaichuanConfig| cache::specs(config, self.element);
        let of = |config: &BaichuanConfig, engine: &EngineConfig, free: u64| {
            CachePlan::new(&specs(config), engine, self.max_context, free)
        };
        let mut room = Vec::new();
        for (device, config, ..) in parts {
            device.bind().map_err(load_error)?;
            let free = device
                .free_bytes()
                .map_err(load_error)?
                .saturating_sub(RESERVE_BYTES);
            room.push((config, within(engine, device)?, free));
        }
        if !host.layers.is_empty() {
            room.push((host, engine.clone(), free_memory()?));
        }
        // Bytes are of all devices together, everything else holds for each.
        let plan = if let CacheBudget::Bytes(_) = engine.cache.budget {
            of(self.config, engine, 0)?
        } else {
            let plans: Vec<CachePlan> = room
                .iter()
                .map(|(config, engine, free)| of(config, engine, *free))
                .collect::<Result<_, _>>()?;
            let nowhere = || LoadError::Compute("the model has no layers".into());
            CachePlan::joined(&plans).ok_or_else(nowhere)?
        };
        let exactly = |engine: &EngineConfig| {
            let mut engine = engine.clone();
            engine.cache.budget = CacheBudget::Blocks {
                global: plan.global_blocks,
                window: plan.window_blocks,
            };
            engine
        };
        for (config, engine, free) in &room {
            check(config, &of(config, &exactly(engine), *free)?, *free)?;
        }
        Ok(plan)
    }
}
