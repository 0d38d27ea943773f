//! Where a network runs, and what is said of it.

use std::fmt;
use std::num::NonZeroU32;
use std::str::FromStr;
use std::time::Duration;

use serde::Serialize;

use crate::Result;

/// Where a network runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Device {
    /// The first CUDA device if this build has the `cuda` feature and a device answers, otherwise the CPU.
    #[default]
    Auto,
    /// The CPU.
    Cpu,
    /// CUDA devices, one or several.
    Cuda(Gpus),
}

/// CUDA devices by the numbers that CUDA gives them within `CUDA_VISIBLE_DEVICES`: the fastest first, or as `nvidia-smi` counts where
/// `CUDA_DEVICE_ORDER=PCI_BUS_ID`; and how many tiles each computes at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gpus {
    /// A bit for each number.
    numbers: u64,
    batch: Option<NonZeroU32>,
}

impl Gpus {
    /// One device.
    ///
    /// # Panics
    /// If the number is 64 or more.
    #[must_use]
    pub fn one(number: usize) -> Self {
        assert!(number < Self::MOST, "device {number}");
        Self { numbers: 1 << number, batch: None }
    }

    /// Numbers are below this.
    const MOST: usize = u64::BITS as usize;

    /// The devices' numbers, ascending.
    pub fn numbers(self) -> impl Iterator<Item = usize> {
        (0..Self::MOST).filter(move |number| self.numbers >> number & 1 == 1)
    }

    /// Tiles that each device is asked to compute at once; `None`: as many as its memory has room for.
    #[must_use]
    pub fn batch(self) -> Option<usize> {
        self.batch.map(|batch| batch.get() as usize)
    }
}

impl Device {
    /// The same, with so many tiles at once on each GPU. On the CPU nothing depends on it.
    #[must_use]
    pub fn with_batch(self, batch: Option<usize>) -> Self {
        let batch = batch.and_then(|batch| NonZeroU32::new(u32::try_from(batch).unwrap_or(u32::MAX)));
        match self {
            Self::Cuda(gpus) => Self::Cuda(Gpus { batch, ..gpus }),
            other => other,
        }
    }

    /// Settles what [`Auto`](Self::Auto) means here, and sees whether the devices that are asked for answer.
    ///
    /// # Errors
    /// [`Error::Device`](crate::Error::Device) with a sentence if a CUDA device is asked for and this build, the driver or the machine has none.
    pub fn choose(self) -> Result<ChosenDevice> {
        match self {
            Self::Cpu => Ok(ChosenDevice { device: self, note: None }),
            Self::Cuda(gpus) => {
                gpus.numbers().try_for_each(present)?;
                Ok(ChosenDevice { device: self, note: None })
            }
            // In a build without CUDA nobody expects a GPU.
            Self::Auto if !cfg!(feature = "cuda") => Ok(ChosenDevice { device: Self::Cpu, note: None }),
            Self::Auto => match present(0) {
                Ok(()) => Ok(ChosenDevice { device: Self::Cuda(Gpus::one(0)), note: None }),
                Err(error) => {
                    Ok(ChosenDevice { device: Self::Cpu, note: Some(format!("the network runs on the CPU: {error}")) })
                }
            },
        }
    }
}

/// Where a network will run, and why there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChosenDevice {
    /// Never [`Device::Auto`].
    pub device: Device,
    /// Why it is the CPU where a GPU might have been expected, in a sentence.
    pub note: Option<String>,
}

impl FromStr for Device {
    type Err = String;

    /// `auto`, `cpu`, `cuda` (the first), `cuda:1` or `cuda:0,1`.
    fn from_str(text: &str) -> Result<Self, String> {
        let numbers = match text.split_once(':') {
            None if text == "auto" => return Ok(Self::Auto),
            None if text == "cpu" => return Ok(Self::Cpu),
            None if text == "cuda" => return Ok(Self::Cuda(Gpus::one(0))),
            Some(("cuda", numbers)) => numbers,
            _ => return Err("auto, cpu, cuda, cuda:N or cuda:N,N,...".into()),
        };
        let mut gpus = Gpus { numbers: 0, batch: None };
        for number in numbers.split(',') {
            let parsed = number.trim().parse::<usize>().ok().filter(|number| *number < Gpus::MOST);
            let bit = 1_u64 << parsed.ok_or_else(|| format!("{number:?} is not the number of a device"))?;
            if gpus.numbers & bit != 0 {
                return Err(format!("device {number} is named twice"));
            }
            gpus.numbers |= bit;
        }
        Ok(Self::Cuda(gpus))
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(gpus) => {
                let numbers: Vec<String> = gpus.numbers().map(|number| number.to_string()).collect();
                write!(f, "cuda:{}", numbers.join(","))
            }
        }
    }
}

/// Whether a CUDA device answers.
#[cfg(feature = "cuda")]
fn present(number: usize) -> Result<()> {
    crate::gpu::driver::present(number)
}

#[cfg(not(feature = "cuda"))]
fn present(number: usize) -> Result<()> {
    let message = format!(
        "CUDA device {number} cannot be used: this build has no CUDA support (cargo feature `cuda` or `cudnn`)"
    );
    Err(crate::Error::Device { message })
}

/// What a GPU has done for a predictor.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct DeviceUse {
    /// Which, and what it is: `cuda:0, NVIDIA H200`.
    pub name: String,
    /// Tiles that it computes at once.
    pub batch: usize,
    /// Tiles so far.
    pub tiles: u64,
    /// The time in which it had something to do.
    #[serde(serialize_with = "seconds")]
    pub busy: Duration,
    /// What whoever reads the summary should know: a batch that did not fit, a device that failed.
    pub notes: Vec<String>,
}

#[allow(clippy::trivially_copy_pass_by_ref)] // serde's signature.
fn seconds<S: serde::Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64(duration.as_secs_f64())
}

impl DeviceUse {
    /// What was done since an earlier look at the same device.
    #[must_use]
    pub fn since(mut self, before: &Self) -> Self {
        self.tiles -= before.tiles;
        self.busy -= before.busy;
        self
    }
}

/// Whether what a driver or a library says of a failure means that the device's memory is full.
pub(crate) fn is_out_of_memory(message: &str) -> bool {
    // CUDA_ERROR_OUT_OF_MEMORY of the driver, CUBLAS_STATUS_ALLOC_FAILED, CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED.
    ["OUT_OF_MEMORY", "out of memory", "ALLOC_FAILED", "ALLOCATION_FAILED"].iter().any(|word| message.contains(word))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_read_and_written() {
        for text in ["auto", "cpu", "cuda:0", "cuda:3", "cuda:0,1", "cuda:0,2,63"] {
            assert_eq!(text.parse::<Device>().unwrap().to_string(), text);
        }
        assert_eq!("cuda".parse(), Ok(Device::Cuda(Gpus::one(0))));
        // The order of tiles is the slide's, not that of the devices.
        assert_eq!("cuda:1,0".parse::<Device>().unwrap().to_string(), "cuda:0,1");
        let refused = |text: &str| text.parse::<Device>().unwrap_err();
        assert_eq!(refused("gpu"), "auto, cpu, cuda, cuda:N or cuda:N,N,...");
        assert_eq!(refused("cuda:"), "\"\" is not the number of a device");
        assert_eq!(refused("cuda:64"), "\"64\" is not the number of a device");
        assert_eq!(refused("cuda:0,x"), "\"x\" is not the number of a device");
        assert_eq!(refused("cuda:1,1"), "device 1 is named twice");
    }

    #[test]
    fn a_batch_is_that_of_gpus() {
        let gpu: Device = "cuda:1".parse().unwrap();
        let Device::Cuda(gpus) = gpu.with_batch(Some(8)) else { panic!("{gpu}") };
        assert_eq!((gpus.batch(), gpus.numbers().collect::<Vec<_>>()), (Some(8), vec![1]));
        assert_eq!(gpu.with_batch(None), gpu);
        assert_eq!(Device::Cpu.with_batch(Some(8)), Device::Cpu);
    }

    #[test]
    fn the_cpu_needs_nobody_s_answer() {
        assert_eq!(Device::Cpu.choose().unwrap(), ChosenDevice { device: Device::Cpu, note: None });
    }

    #[cfg(not(feature = "cuda"))]
    #[test]
    fn without_cuda_auto_is_the_cpu_and_a_gpu_is_refused() {
        assert_eq!(Device::Auto.choose().unwrap(), ChosenDevice { device: Device::Cpu, note: None });
        let error = "cuda:2".parse::<Device>().unwrap().choose().unwrap_err().to_string();
        assert_eq!(
            error,
            "CUDA device 2 cannot be used: this build has no CUDA support (cargo feature `cuda` or `cudnn`)"
        );
    }

    /// What cudarc prints of such failures.
    #[test]
    fn full_memory_is_told_from_other_failures() {
        for message in [
            "DriverError(CUDA_ERROR_OUT_OF_MEMORY, \"out of memory\")",
            "CudnnError(CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED)",
            "CublasError(CUBLAS_STATUS_ALLOC_FAILED)",
        ] {
            assert!(is_out_of_memory(message), "{message}");
        }
        for message in
            ["DriverError(CUDA_ERROR_ILLEGAL_ADDRESS, \"an illegal memory access\")", "CUDNN_STATUS_BAD_PARAM"]
        {
            assert!(!is_out_of_memory(message), "{message}");
        }
    }
}
