//! The network on candle: the reference lowering of [`Network`](crate::Network), on the CPU or on one CUDA device.

mod device;
mod lowering;

use candle_core::{DType, Device, Tensor};
use microtome_io::Size;

pub(crate) use device::open;
use lowering::Lowering;
#[cfg(any(test, feature = "cuda"))]
pub(crate) use lowering::{Curve, activation_bytes, as_convolution, batch_norm, combine, convolve, with_bias};

use crate::crew::Crew;
use crate::ensemble::{Concurrency, Engine, Ensemble, Needs};
use crate::model::Model;
use crate::weights::Fold;
use crate::{Execution, Precision, Result};

/// The network of one fold on a device of candle's.
#[derive(Debug)]
pub(crate) struct CandleNetwork {
    lowering: Lowering,
    channels: usize,
    tile: Size,
    device: Device,
    dtype: DType,
}

/// candle's name for what a network computes in.
pub(crate) fn dtype(precision: Precision) -> DType {
    match precision {
        Precision::F32 => DType::F32,
        Precision::Bf16 => DType::BF16,
        Precision::F16 => DType::F16,
    }
}

/// A model on a device of candle's.
///
/// # Errors
/// If the device fails.
pub(crate) fn ensemble(model: &Model, execution: &Execution, device: &Device) -> Result<Ensemble<CandleNetwork>> {
    let dtype = dtype(execution.precision);
    let (network, tile) = (model.network(), model.card().tile);
    let lower = |fold: &Fold| -> Result<CandleNetwork> {
        let lowering = Lowering::new(&network, tile, &fold.weights, dtype, device)?;
        Ok(CandleNetwork { lowering, channels: network.channels(), tile, device: device.clone(), dtype })
    };
    let folds = model.folds().iter().map(lower).collect::<Result<Vec<_>>>()?;
    let engine = format!("candle 0.11, {} on {}", dtype.as_str(), device::kind(device));
    let width = dtype.size_in_bytes() as u64;
    let needs = Needs {
        weights: network.parameters().saturating_mul(width).saturating_mul(folds.len() as u64),
        forward: lowering::activation_bytes(&network, tile, width),
        thread: 0,
    };
    let concurrency = if device.is_cpu() { Concurrency::Threads } else { Concurrency::One };
    Ok(Ensemble::new(model, execution, folds, engine, needs, concurrency))
}

impl Engine for CandleNetwork {
    fn forward(&self, input: &[f32], _crew: &Crew) -> Result<Vec<f32>> {
        let Size { width, height } = self.tile;
        let shape = (1, height as usize, width as usize, self.channels);
        let input = Tensor::from_slice(input, shape, &Device::Cpu)?.permute((0, 3, 1, 2))?.contiguous()?;
        let input = input.to_device(&self.device)?.to_dtype(self.dtype)?;
        Ok(self.lowering.forward(&input)?.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?)
    }
}

/// Logits of any network, to compare with.
///
/// # Errors
/// If candle fails.
#[cfg(test)]
pub(crate) fn run_on_cpu(
    network: &crate::Network,
    tile: Size,
    weights: &std::collections::BTreeMap<String, crate::weights::Weight>,
    input: &[f32],
) -> Result<Vec<f32>> {
    let (device, dtype) = (Device::Cpu, DType::F32);
    let lowering = Lowering::new(network, tile, weights, dtype, &device)?;
    CandleNetwork { lowering, channels: network.channels(), tile, device, dtype }.forward(input, &Crew::default())
}
