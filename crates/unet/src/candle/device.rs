//! Choosing a device.

use candle_core::Device as CandleDevice;

use crate::{Device, Error, Result};

pub(crate) fn open(device: Device) -> Result<CandleDevice> {
    match device {
        Device::Cpu => Ok(CandleDevice::Cpu),
        Device::Auto => Ok(cuda(0).unwrap_or(CandleDevice::Cpu)),
        Device::Cuda(index) => cuda(index),
    }
}

#[cfg(feature = "cuda")]
fn cuda(index: usize) -> Result<CandleDevice> {
    CandleDevice::new_cuda(index).map_err(|error| {
        let reason = error.to_string();
        Error::Device {
            message: format!(
                "CUDA device {index} does not answer: {}",
                reason.lines().next().unwrap_or("no reason given")
            ),
        }
    })
}

#[cfg(not(feature = "cuda"))]
fn cuda(index: usize) -> Result<CandleDevice> {
    let message =
        format!("CUDA device {index} cannot be used: this build has no CUDA support (cargo feature `cuda` or `cudnn`)");
    Err(Error::Device { message })
}

/// The kind of device, which decides how sums are rounded.
pub(super) fn kind(device: &CandleDevice) -> &'static str {
    match device {
        CandleDevice::Cpu => "cpu",
        CandleDevice::Cuda(_) => "cuda",
        CandleDevice::Metal(_) => "metal",
    }
}
