//! What each matrix is quantised to: as the model is, or as a topology says.

use std::collections::{BTreeMap, BTreeSet};

use baichuan_engine::{IsqType, LoadError, Topology};
use baichuan_kernels::GgmlFormat;

use crate::config::BaichuanConfig;
use crate::layout::{self, LayerSpec, Role, TensorSpec};

/// What a device's weights may be quantised to.
pub(crate) trait WeightFormat: Copy + PartialEq {
    /// As mistral.rs spells it.
    fn name(self) -> &'static str;
}

impl WeightFormat for GgmlFormat {
    fn name(self) -> &'static str {
        GgmlFormat::name(self)
    }
}

/// The format of every matrix, on a device that has kernels for formats `F`.
#[derive(Clone, Debug)]
pub(crate) struct Formats<F = GgmlFormat> {
    /// Of matrices that the topology does not name.
    model: Option<F>,
    /// Where the topology says something else, by tensor.
    special: BTreeMap<String, Option<F>>,
}

impl<F: WeightFormat> Formats<F> {
    /// One for all, if any.
    pub(crate) fn uniform(model: Option<F>) -> Self {
        Self {
            model,
            special: BTreeMap::new(),
        }
    }

    /// As `topology` says, `model` where it says nothing. `format_of` knows what there are kernels for.
    ///
    /// # Errors
    /// A topology that names what the model has not, or cannot be.
    pub(crate) fn new(
        config: &BaichuanConfig,
        model: Option<F>,
        topology: &Topology,
        format_of: impl Fn(IsqType) -> Result<F, LoadError>,
    ) -> Result<Self, LoadError> {
        let refuse = |message: String| LoadError::Unsupported {
            key: "topology",
            message,
        };
        let mut formats = Self::uniform(model);
        if topology.is_empty() {
            return Ok(formats);
        }
        let matrices = matrices(config);
        let names = matrices.iter().map(|(spec, _)| spec.name.as_str());
        topology
            .check(config.layers.len(), names)
            .map_err(|error| refuse(error.to_string()))?;
        for (spec, layer) in &matrices {
            let Some(isq) = topology.isq(&spec.name, *layer) else {
                continue;
            };
            let format = format_of(isq).map_err(|error| match error {
                LoadError::Unsupported { message, .. } => refuse(format!("{}: {message}", spec.name)),
                other => other,
            })?;
            if model != Some(format) {
                formats.special.insert(spec.name.clone(), Some(format));
            }
        }
        for (index, shape) in config.layers.iter().enumerate() {
            let layer = LayerSpec::new(config, index, shape);
            let (gate, up) = (formats.of(&layer.gate), formats.of(&layer.up));
            if gate != up {
                let (gate, up) = (name_of(gate), name_of(up));
                return Err(refuse(format!(
                    "gate_proj and up_proj of layer {index} are one matrix and have one format, got {gate} and {up}"
                )));
            }
        }
        Ok(formats)
    }

    /// What this matrix is quantised to.
    pub(crate) fn of(&self, spec: &TensorSpec) -> Option<F> {
        self.special.get(&spec.name).copied().unwrap_or(self.model)
    }

    /// Whether anything is quantised.
    pub(crate) fn quantise(&self) -> bool {
        self.model.is_some() || self.special.values().any(Option::is_some)
    }

    /// Whether the topology makes a difference.
    pub(crate) fn differ(&self) -> bool {
        !self.special.is_empty()
    }

    /// What projections and head are quantised to, as mistral.rs spells it: several joined by `+`; absent if none is.
    pub(crate) fn name(&self, config: &BaichuanConfig) -> Option<String> {
        let specs = matrices(config).into_iter().map(|(spec, _)| spec);
        let weights = specs.filter(|spec| spec.role != Role::Embedding);
        let names: BTreeSet<&str> = weights.map(|spec| name_of(self.of(&spec))).collect();
        let names: Vec<&str> = names.into_iter().collect();
        self.quantise().then(|| names.join("+"))
    }

    /// Tells one topology from another in a model's fingerprint.
    pub(crate) fn mark(&self) -> Option<String> {
        let digest = || {
            let text: Vec<String> = self
                .special
                .iter()
                .map(|(name, f)| format!("{name} {}", name_of(*f)))
                .collect();
            blake3::hash(text.join("\n").as_bytes()).to_hex()[..8].to_owned()
        };
        self.differ().then(digest)
    }
}

#[cfg(feature = "cuda")]
mod on_gpu {
    use baichuan_kernels::cuda::QuantFormat;

    use super::{BTreeMap, BaichuanConfig, Formats, LayerSpec, LoadError, WeightFormat};

    impl WeightFormat for QuantFormat {
        fn name(self) -> &'static str {
            QuantFormat::name(self)
        }
    }

    impl Formats<QuantFormat> {
        /// Of these layers, which live on the host.
        ///
        /// # Errors
        /// One of them is quantised to what only GPUs have kernels for.
        pub(crate) fn on_host(
            &self,
            config: &BaichuanConfig,
            layers: impl Iterator<Item = usize>,
        ) -> Result<Formats, LoadError> {
            let mut special = BTreeMap::new();
            for index in layers {
                for spec in LayerSpec::new(config, index, &config.layers[index]).into_array() {
                    let format = match self.of(&spec) {
                        None => None,
                        Some(QuantFormat::Ggml(format)) => Some(format),
                        Some(format @ QuantFormat::Fp8) => {
                            let (isq, name) = (format.name(), spec.name);
                            return Err(LoadError::Unsupported {
                                key: "isq",
                                message: format!("{isq}: {name} is on the host, which has no kernels for it"),
                            });
                        }
                    };
                    special.insert(spec.name, format);
                }
            }
            Ok(Formats { model: None, special })
        }
    }
}

fn name_of<F: WeightFormat>(format: Option<F>) -> &'static str {
    format.map_or("plain", F::name)
}

/// Everything that can be quantised, and of which layer it is; the head by its own name where it is tied, too.
fn matrices(config: &BaichuanConfig) -> Vec<(TensorSpec, Option<usize>)> {
    let mut matrices = vec![(layout::embedding(config), None)];
    for (index, shape) in config.layers.iter().enumerate() {
        let specs = LayerSpec::new(config, index, shape).into_array();
        let specs = specs.into_iter().filter(|spec| spec.matrix().is_some());
        matrices.extend(specs.map(|spec| (spec, Some(index))));
    }
    matrices.push((layout::own_head(config), None));
    matrices
}
