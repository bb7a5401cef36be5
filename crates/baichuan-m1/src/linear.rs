//! Linear layers on the host: mistral.rs's interface over this project's kernels.
//!
//! The model knows its linear layers as [`QuantMethod`]s only, so a layer may as well be one of mistral.rs's own.

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use baichuan_kernels::{ElementType, Format, Matrix, Threads};
use candle_core::{DType, Device, Result, Tensor};
use mistralrs_quant::{
    IsqType, QuantMethod, QuantMethodConfig, QuantizeOntoGuard, QuantizedSerde, UnquantLinear,
};

use crate::host;

/// `x · wᵀ` for a weight `[out, in]` packed for this machine's processor. Arithmetic and results are f32, and a row
/// of the result depends on its row of `x` alone, to the bit.
#[derive(Debug, Clone)]
pub struct HostLinear {
    weight: Arc<Matrix>,
    threads: Threads,
}

impl HostLinear {
    /// A layer of this weight that computes on these threads.
    pub fn new(weight: Matrix, threads: Threads) -> Self {
        Self {
            weight: Arc::new(weight),
            threads,
        }
    }
}

impl QuantMethod for HostLinear {
    /// Not how these layers are made: a configuration names no threads to run on.
    fn new(_: QuantMethodConfig) -> Result<Self> {
        candle_core::bail!("a host-linear layer is made of a packed matrix, not of a configuration")
    }

    fn dequantize_w(&self) -> Result<Tensor> {
        host::rows(self.weight.dequantize(), self.weight.cols())
    }

    /// `a`: f32 `[…, in]`; gives `[…, out]`.
    fn forward(&self, a: &Tensor) -> Result<Tensor> {
        let (n_out, n_in) = (self.weight.rows(), self.weight.cols());
        let mut shape = a.dims().to_vec();
        match shape.last_mut() {
            Some(last) if *last == n_in => *last = n_out,
            _ => candle_core::bail!(
                "a linear layer of {n_in} features was given a tensor {:?}",
                a.dims()
            ),
        }
        let out = host::with_values(&a.contiguous()?, |x| self.weight.product(&self.threads, x))?;
        Tensor::from_vec(out, shape, &Device::Cpu)
    }

    fn quantized_act_type(&self) -> Option<DType> {
        Some(DType::F32)
    }

    fn dtype_and_device(&self) -> (DType, Device) {
        let dtype = match self.weight.format() {
            Format::Plain(ElementType::Bf16) => DType::BF16,
            Format::Plain(ElementType::F16) => DType::F16,
            // Blocks have no type of their own here: what they stand for is f32.
            Format::Plain(ElementType::F32) | Format::Ggml(_) | Format::Affine4 { .. } => DType::F32,
        };
        (dtype, Device::Cpu)
    }

    fn add_delta_w(&self, delta: &Tensor) -> Result<Arc<dyn QuantMethod>> {
        let sum = (self.dequantize_w()? + delta)?.contiguous()?;
        let (rows, cols) = sum.dims2()?;
        let weight = host::with_values(&sum, |sum| Matrix::from_f32(&self.threads, rows, cols, sum))?;
        Ok(Arc::new(Self::new(weight, self.threads.clone())))
    }

    /// Quantises as mistral.rs does; the layer becomes one of its own.
    fn apply_isq(
        self: Arc<Self>,
        dtype: Option<IsqType>,
        device: Device,
        n_quantized: &AtomicUsize,
        imatrix_weight: Option<Vec<f32>>,
        guard: QuantizeOntoGuard,
    ) -> Result<Arc<dyn QuantMethod>> {
        let weight = candle_nn::Linear::new(self.dequantize_w()?, None);
        let dense = <UnquantLinear as QuantMethod>::new(QuantMethodConfig::Unquantized(weight))?;
        Arc::new(dense).apply_isq(dtype, device, n_quantized, imatrix_weight, guard)
    }
}

impl QuantizedSerde for HostLinear {
    fn name(&self) -> &'static str {
        "host-linear"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layer() -> (HostLinear, Vec<f32>) {
        let threads = Threads::new(1).unwrap();
        let weight: Vec<f32> = (0..21).map(|i| i as f32 - 10.0).collect();
        (
            HostLinear::new(Matrix::from_f32(&threads, 7, 3, &weight), threads),
            weight,
        )
    }

    #[test]
    fn a_layer_multiplies_the_last_dimension_of_any_tensor() {
        let (layer, weight) = layer();
        let x = Tensor::arange(0f32, 12.0, &Device::Cpu)
            .unwrap()
            .reshape((2, 2, 3))
            .unwrap();
        let out = layer.forward(&x).unwrap();
        assert_eq!(out.dims(), [2, 2, 7]);
        let out = out.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        for (row, out) in out.chunks(7).enumerate() {
            for (o, out) in out.iter().enumerate() {
                let expected: f32 = (0..3).map(|c| (row * 3 + c) as f32 * weight[o * 3 + c]).sum();
                assert_eq!(*out, expected);
            }
        }
    }

    #[test]
    fn a_tensor_of_another_width_is_refused_with_both_widths() {
        let x = Tensor::zeros((2, 4), DType::F32, &Device::Cpu).unwrap();
        let message = layer().0.forward(&x).unwrap_err().to_string();
        assert!(
            message.contains("of 3 features was given a tensor [2, 4]"),
            "{message}"
        );
    }

    #[test]
    fn a_delta_is_added_to_the_weight() {
        let (layer, weight) = layer();
        let delta = Tensor::ones((7, 3), DType::F32, &Device::Cpu).unwrap();
        let sum = layer.add_delta_w(&delta).unwrap().dequantize_w().unwrap();
        let sum = sum.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert_eq!(sum, weight.iter().map(|w| w + 1.0).collect::<Vec<_>>());
    }
}
