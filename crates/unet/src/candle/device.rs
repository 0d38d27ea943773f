//! candle's devices.

use candle_core::Device as CandleDevice;

use crate::{Device, Error, Result};

/// The device that was chosen; of several the first, because this engine drives one.
pub(crate) fn open(device: Device) -> Result<CandleDevice> {
    match device {
        Device::Auto | Device::Cpu => Ok(CandleDevice::Cpu),
        Device::Cuda(gpus) => {
            let number = gpus.numbers().next().unwrap_or(0);
            // A stream of its own: that of the plain constructor is another one for each thread that computes.
            CandleDevice::new_cuda_with_stream(number).map_err(|error| {
                let reason = error.to_string();
                let reason = reason.lines().next().unwrap_or("no reason given");
                Error::Device { message: format!("CUDA device {number} does not answer: {reason}") }
            })
        }
    }
}

/// The kind of device, which decides how sums are rounded.
pub(super) fn kind(device: &CandleDevice) -> &'static str {
    match device {
        CandleDevice::Cpu => "cpu",
        CandleDevice::Cuda(_) => "cuda",
        CandleDevice::Metal(_) => "metal",
    }
}
