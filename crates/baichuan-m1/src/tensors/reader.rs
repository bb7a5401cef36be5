//! Brings tensors to a device that candle drives, one by one: quantised there by mistral.rs where that is asked for, or as
//! MLX quantised them, which mistral.rs has layers for.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use baichuan_engine::{Dtype, IsqType, LoadError, LoadProgress};
use candle_core::{DType, Tensor};
use mistralrs_quant::{
    AfqLayer, QuantMethod, QuantMethodConfig, QuantizeOntoGuard, QuantizedConfig, ShardedSafeTensors,
    UnquantLinear,
};

use super::attention::Attention;
use super::layer::Layer;
use super::load::{TensorOptions, candle_type};
use crate::config::{BaichuanConfig, LayerShape, Span};
use crate::layout::{self, LayerSpec, TensorSpec};
use crate::weights::{Stored, StoredMatrix, Values, Weights, WeightsError};

/// mistral.rs's own type of that name; numbers of bits are its affine ones, which Apple's GPUs have kernels for.
fn isq_type(isq: IsqType) -> Result<mistralrs_quant::IsqType, LoadError> {
    use mistralrs_quant::IsqType as Theirs;
    Ok(match isq {
        IsqType::AFQ2 | IsqType::Bits2 => Theirs::AFQ2,
        IsqType::AFQ3 | IsqType::Bits3 => Theirs::AFQ3,
        IsqType::AFQ4 | IsqType::Bits4 => Theirs::AFQ4,
        IsqType::AFQ6 | IsqType::Bits6 => Theirs::AFQ6,
        IsqType::AFQ8 | IsqType::Bits8 => Theirs::AFQ8,
        IsqType::Q4_0 => Theirs::Q4_0,
        IsqType::Q4_1 => Theirs::Q4_1,
        IsqType::Q5_0 => Theirs::Q5_0,
        IsqType::Q5_1 => Theirs::Q5_1,
        IsqType::Q8_0 => Theirs::Q8_0,
        IsqType::Q2K => Theirs::Q2K,
        IsqType::Q3K => Theirs::Q3K,
        IsqType::Q4K => Theirs::Q4K,
        IsqType::Q5K => Theirs::Q5K,
        IsqType::Q6K => Theirs::Q6K,
        IsqType::FP8 => Theirs::F8E4M3,
        other => {
            return Err(LoadError::Unsupported {
                key: "isq",
                message: format!(
                    "{other} does not run on this device, choose AFQ4, AFQ8, Q4K, Q8_0 or a number of bits"
                ),
            });
        }
    })
}

/// Why a tensor did not get onto the device.
pub(super) enum Failed {
    Weights(WeightsError),
    Device(candle_core::Error),
    Load(LoadError),
}

impl From<WeightsError> for Failed {
    fn from(error: WeightsError) -> Self {
        Self::Weights(error)
    }
}

impl From<candle_core::Error> for Failed {
    fn from(error: candle_core::Error) -> Self {
        Self::Device(error)
    }
}

impl From<LoadError> for Failed {
    fn from(error: LoadError) -> Self {
        Self::Load(error)
    }
}

/// Reads the tensors of a checkpoint.
pub(super) struct Reader<'a> {
    weights: &'a Weights,
    config: &'a BaichuanConfig,
    options: &'a TensorOptions<'a>,
    dtype: Dtype,
    digest: blake3::Hasher,
    done: u64,
    n_quantised: AtomicUsize,
}

impl<'a> Reader<'a> {
    pub(super) fn new(
        weights: &'a Weights,
        config: &'a BaichuanConfig,
        options: &'a TensorOptions<'a>,
        dtype: Dtype,
    ) -> Self {
        Self {
            weights,
            config,
            options,
            dtype,
            digest: blake3::Hasher::new(),
            done: 0,
            n_quantised: AtomicUsize::new(0),
        }
    }

    /// Of everything that was read.
    pub(super) fn digest(&self) -> blake3::Hash {
        self.digest.finalize()
    }

    pub(super) fn layer(
        &mut self,
        index: usize,
        shape: &LayerShape,
        ring_rows: Option<usize>,
    ) -> Result<Layer, Failed> {
        let spec = LayerSpec::new(self.config, index, shape);
        let input_norm = self.vector(&spec.input_norm)?;
        let pack = self.linear(&[&spec.pack])?;
        let taps = Tensor::cat(
            &[self.taps(&spec.taps_k, shape)?, self.taps(&spec.taps_v, shape)?],
            1,
        )?;
        let out = self.linear(&[&spec.out])?;
        Ok(Layer {
            input_norm,
            attention: Attention {
                shape: *shape,
                ring_rows: match shape.span {
                    Span::Global => 0,
                    Span::Sliding { .. } => ring_rows.unwrap_or(0),
                },
                pack,
                out,
                taps: taps.contiguous()?,
                conv_window: self.config.conv_window,
            },
            post_norm: self.vector(&spec.post_norm)?,
            gate_up: self.linear(&[&spec.gate, &spec.up])?,
            down: self.linear(&[&spec.down])?,
            norm_eps: self.config.rms_norm_eps as f32,
        })
    }

    /// `[conv_window, kv_width]`: each head's taps over its whole width.
    fn taps(&mut self, spec: &TensorSpec, shape: &LayerShape) -> Result<Tensor, Failed> {
        let taps = self
            .vector(spec)?
            .reshape((shape.n_kv_heads, self.config.conv_window))?;
        let wide = taps.t()?.unsqueeze(2)?;
        let wide = wide.broadcast_as((self.config.conv_window, shape.n_kv_heads, shape.head_dim))?;
        Ok(wide
            .contiguous()?
            .reshape((self.config.conv_window, shape.kv_width()))?)
    }

    /// Scales and taps: f32.
    pub(super) fn vector(&mut self, spec: &TensorSpec) -> Result<Tensor, Failed> {
        let stored = self.weights.get(spec);
        let values = stored.to_vec::<f32>()?;
        self.note(&stored);
        Ok(Tensor::new(values, &self.options.device)?)
    }

    fn tensor(&mut self, spec: &TensorSpec, normalised: bool) -> Result<Tensor, Failed> {
        let stored = self.weights.get(spec);
        let values = match normalised {
            true => stored.normalised(self.dtype)?,
            false => stored.values(self.dtype)?,
        };
        let (shape, device) = (&spec.shape[..], &self.options.device);
        let tensor = match values {
            Values::F32(values) => Tensor::from_slice(&values, shape, device)?,
            Values::F16(values) => Tensor::from_slice(&values, shape, device)?,
            Values::Bf16(values) => Tensor::from_slice(&values, shape, device)?,
        };
        self.note(&stored);
        Ok(tensor)
    }

    /// The matrices of `specs` one below another.
    fn linear(&mut self, specs: &[&TensorSpec]) -> Result<Arc<dyn QuantMethod>, Failed> {
        let isq = self.options.isq_of(specs[0]);
        if let Some(other) = specs.iter().find(|spec| self.options.isq_of(spec) != isq) {
            return Err(Failed::Load(LoadError::Unsupported {
                key: "topology",
                message: format!(
                    "{} and {} are one matrix and have one format",
                    specs[0].name, other.name
                ),
            }));
        }
        if let Some(groups) = self.groups(specs)? {
            return Ok(groups);
        }
        let parts = specs.iter().map(|spec| self.tensor(spec, false));
        let parts = parts.collect::<Result<Vec<_>, _>>()?;
        self.quantised(specs[0], Tensor::cat(&parts, 0)?, isq)
    }

    /// `[vocab, hidden]`, in the model's type.
    pub(super) fn embedding(&mut self, spec: &TensorSpec) -> Result<Tensor, Failed> {
        match self.groups(&[spec])? {
            Some(groups) => Ok(groups.dequantize_w()?.to_dtype(candle_type(self.dtype))?),
            None => self.tensor(spec, false),
        }
    }

    /// The head: rows of length one, but for one that is quantised in the checkpoint.
    pub(super) fn head(&mut self, embedding: (&TensorSpec, &Tensor)) -> Result<Arc<dyn QuantMethod>, Failed> {
        let own = layout::own_head(self.config);
        let isq = self.options.isq_of(&own);
        let Some(spec) = layout::head(self.config) else {
            if let StoredMatrix::Plain(_) = self.weights.matrix(embedding.0) {
                let weight = self.tensor(embedding.0, true)?;
                return self.quantised(&own, weight, isq);
            }
            let rows = embedding.1.to_dtype(DType::F32)?;
            let lengths = (rows.sqr()?.sum_keepdim(1)?.sqrt()? + 1e-7)?;
            let rows = rows.broadcast_div(&lengths)?.to_dtype(candle_type(self.dtype))?;
            return self.quantised(&own, rows, None);
        };
        if let Some(groups) = self.groups(&[&spec])? {
            return Ok(groups);
        }
        let weight = self.tensor(&spec, true)?;
        self.quantised(&own, weight, isq)
    }

    /// The matrices of `specs` one below another as MLX quantised them, if it did.
    fn groups(&mut self, specs: &[&TensorSpec]) -> Result<Option<Arc<dyn QuantMethod>>, Failed> {
        let stored: Vec<_> = specs.iter().map(|spec| self.weights.matrix(spec)).collect();
        let mut parts = Vec::new();
        for matrix in &stored {
            if let StoredMatrix::Affine4 {
                group,
                codes,
                scales,
                biases,
            } = matrix
            {
                parts.push((*group, *codes, *scales, *biases));
            }
        }
        if parts.is_empty() {
            return Ok(None);
        }
        let group = parts[0].0;
        if parts.len() < specs.len() || parts.iter().any(|part| part.0 != group) {
            let tensor = specs[0].name.clone();
            return Err(WeightsError::Mixed { tensor }.into());
        }
        let (n_out, n_in) = (
            specs.iter().map(|spec| spec.shape[0]).sum::<usize>(),
            specs[0].shape[1],
        );
        let device = &self.options.device;
        let words = |bytes: &[u8]| {
            bytes
                .as_chunks()
                .0
                .iter()
                .map(|word| u32::from_le_bytes(*word))
                .collect()
        };
        let codes: Vec<u32> = parts
            .iter()
            .flat_map(|(_, codes, ..)| -> Vec<u32> { words(codes) })
            .collect();
        let mut tensors = HashMap::from([(
            "weight".to_owned(),
            Tensor::from_vec(codes, (n_out, n_in / 8), device)?,
        )]);
        for (name, of) in [("scales", 0), ("biases", 1)] {
            let mut values = Vec::new();
            for (_, _, scales, biases) in &parts {
                values.extend([scales, biases][of].to_vec::<f32>()?);
            }
            let values = Tensor::from_vec(values, (n_out, n_in / group), device)?;
            tensors.insert(name.to_owned(), values.to_dtype(candle_type(self.dtype))?);
        }
        for (_, codes, scales, biases) in &parts {
            self.digest.update(codes);
            self.done += codes.len() as u64;
            self.note(scales);
            self.note(biases);
        }
        let tensors = ShardedSafeTensors::wrap(Box::new(tensors), candle_type(self.dtype), device.clone());
        let groups = QuantizedConfig::Afq {
            bits: 4,
            group_size: group,
        };
        Ok(Some(AfqLayer::afq_linear_b(
            n_in, n_out, &groups, false, tensors,
        )?))
    }

    fn quantised(
        &self,
        spec: &TensorSpec,
        weight: Tensor,
        isq: Option<IsqType>,
    ) -> Result<Arc<dyn QuantMethod>, Failed> {
        let dense = QuantMethodConfig::Unquantized(candle_nn::Linear::new(weight, None));
        let dense: Arc<dyn QuantMethod> = Arc::new(<UnquantLinear as QuantMethod>::new(dense)?);
        let Some(isq) = isq else {
            return Ok(dense);
        };
        let device = self.options.device.clone();
        let guard = QuantizeOntoGuard::new();
        let quantised = dense.apply_isq(Some(isq_type(isq)?), device, &self.n_quantised, None, guard);
        quantised.map_err(|error| {
            Failed::Load(LoadError::Unsupported {
                key: "isq",
                message: format!("{isq}: {}: {error}", spec.name),
            })
        })
    }

    fn note(&mut self, stored: &Stored<'_>) {
        stored.hash(&mut self.digest);
        self.done += stored.bytes().len() as u64;
        (self.options.progress)(LoadProgress {
            stage: "weights",
            done: self.done,
            total: self.weights.total_bytes(),
        });
    }
}
