//! The weights in device memory.

use baichuan_kernels::ElementType;
use baichuan_kernels::cuda::{Buffer, Device, GpuError, Product, QuantMatrix, Weights};

use super::reader::{CudaLoadError, Reader};
use crate::config::{BaichuanConfig, LayerShape};
use crate::layout::{self, LayerSpec};

/// All weights; matrices and norms in the model's type, taps in f32.
pub(super) struct DeviceWeights {
    /// `[vocab][hidden]`.
    pub(super) embedding: Buffer,
    pub(super) layers: Vec<LayerWeights>,
    /// `[hidden]`.
    pub(super) final_norm: Buffer,
    /// `[vocab][hidden]`, rows of length one.
    pub(super) head: DeviceMatrix,
    /// Cosines and sines for each width of heads.
    pub(super) angles: Vec<(usize, Buffer)>,
}

/// A projection's weights.
pub(super) enum DeviceMatrix {
    /// In the model's type.
    Plain(Buffer),
    /// Quantised while they were loaded.
    Quantized(QuantMatrix),
}

pub(super) struct LayerWeights {
    pub(super) shape: LayerShape,
    pub(super) input_norm: Buffer,
    pub(super) pack: DeviceMatrix,
    /// `[k, v][kv_heads][taps]`.
    pub(super) taps: Buffer,
    pub(super) out: DeviceMatrix,
    pub(super) post_norm: Buffer,
    /// Gates, then ups.
    pub(super) gate_up: DeviceMatrix,
    pub(super) down: DeviceMatrix,
}

impl LayerWeights {
    /// Reads layer number `index`.
    pub(super) fn read(
        device: &Device,
        config: &BaichuanConfig,
        reader: &mut Reader<'_>,
        index: usize,
    ) -> Result<Self, CudaLoadError> {
        let shape = config.layers[index];
        let spec = LayerSpec::new(config, index, &shape);
        Ok(Self {
            shape,
            input_norm: reader.tensor(device, &spec.input_norm)?,
            pack: reader.matrix(device, [&spec.pack])?,
            taps: reader.taps(device, [&spec.taps_k, &spec.taps_v])?,
            out: reader.matrix(device, [&spec.out])?,
            post_norm: reader.tensor(device, &spec.post_norm)?,
            gate_up: reader.matrix(device, [&spec.gate, &spec.up])?,
            down: reader.matrix(device, [&spec.down])?,
        })
    }
}

impl DeviceWeights {
    /// Reads everything, `max_context` positions' angles included.
    pub(super) fn read(
        device: &Device,
        config: &BaichuanConfig,
        reader: &mut Reader<'_>,
        max_context: usize,
    ) -> Result<Self, CudaLoadError> {
        let embedding_spec = layout::embedding(config);
        let embedding = reader.tensor(device, &embedding_spec)?;
        let layers = config.layers.iter().enumerate();
        let layers = layers
            .map(|(index, _)| LayerWeights::read(device, config, reader, index))
            .collect::<Result<_, CudaLoadError>>()?;
        let final_norm = reader.tensor(device, &layout::final_norm(config))?;
        let head = reader.head(device, layout::head(config).as_ref().unwrap_or(&embedding_spec))?;
        Ok(Self {
            embedding,
            layers,
            final_norm,
            head,
            angles: angles(device, config, max_context)?,
        })
    }

    /// The angles for heads of this width.
    pub(super) fn angles_of(&self, head_dim: usize) -> Option<&Buffer> {
        self.angles
            .iter()
            .find(|(d, _)| *d == head_dim)
            .map(|(_, angles)| angles)
    }
}

pub(super) fn angles(
    device: &Device,
    config: &BaichuanConfig,
    positions: usize,
) -> Result<Vec<(usize, Buffer)>, GpuError> {
    let mut head_dims: Vec<usize> = config.layers.iter().map(|layer| layer.head_dim).collect();
    head_dims.sort_unstable();
    head_dims.dedup();
    let of_width = |head_dim: usize| {
        let table = Buffer::zeros(device, positions * head_dim * 4, "rotary angles")?;
        device.rope_table(table.all(), positions, head_dim / 2, config.rope_theta)?;
        Ok((head_dim, table))
    };
    head_dims.into_iter().map(of_width).collect()
}

/// A product with `matrix`; `scratch` as of [`Weights::Quantized`].
pub(super) fn product<'a>(
    element: ElementType,
    matrix: &'a DeviceMatrix,
    scratch: &'a Buffer,
    n_out: usize,
    n_in: usize,
) -> Product<'a> {
    Product {
        element,
        matrix: match matrix {
            DeviceMatrix::Plain(matrix) => Weights::Plain(matrix.all()),
            DeviceMatrix::Quantized(matrix) => Weights::Quantized {
                matrix,
                scratch: scratch.all(),
            },
        },
        n_out,
        n_in,
    }
}
