//! Choosing a device.

use candle_core::Device as CandleDevice;

use crate::{Device, Error, Result};

pub(super) fn open(device: Device) -> Result<CandleDevice> {
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

/// What decides how sums are rounded: the instructions that the matrix product chooses from, or the kind of device.
pub(super) fn arithmetic(device: &CandleDevice) -> &'static str {
    match device {
        CandleDevice::Cpu => instructions(),
        CandleDevice::Cuda(_) => "cuda",
        CandleDevice::Metal(_) => "metal",
    }
}

#[cfg(target_arch = "x86_64")]
fn instructions() -> &'static str {
    if is_x86_feature_detected!("avx512f") {
        "cpu avx512f"
    } else if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
        "cpu avx2 fma"
    } else {
        "cpu sse2"
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn instructions() -> &'static str {
    std::env::consts::ARCH
}
