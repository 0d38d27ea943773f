//! What is asked of CUDA, cuDNN and NVRTC: which devices there are, memory that is copied fast, and the kernels.
//!
//! Every `unsafe` here hands pointers or sizes to a library of NVIDIA's. They are those of allocations that live as long as the
//! work that was queued with them: candle and cudarc free memory in the order of the stream, and buffers of the host are kept until their
//! batch has arrived.
#![allow(unsafe_code)]

#[cfg(feature = "cudnn")]
pub(super) mod cudnn;
pub(super) mod kernels;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use candle_core::cuda_backend::cudarc::cublas::sys::cublasGetVersion_v2;
use candle_core::cuda_backend::cudarc::driver::{CudaContext, CudaEvent, CudaSlice, DeviceRepr, PinnedHostSlice, sys};
use candle_core::op::BackpropOp;
use candle_core::{CudaDevice, CudaStorage, Device, Storage, Tensor};

use super::convolution::Convolver;
use super::pool::Opened;
use super::session::{NetworkSession, Recipe, Transport};
use crate::device::is_out_of_memory;
use crate::{Error, Precision, Result};

/// The version of CUDA that a driver must know for what this build brings along: 1000 times the major and 10 times the minor version.
const NEEDED: i32 = sys::CUDA_VERSION as i32;
/// The least compute capability with tensor cores for bf16: Ampere.
const BF16_SINCE: (i32, i32) = (8, 0);
/// What is left free of a device's memory: contexts of libraries, workspaces, other programs.
const SPARE: f64 = 0.2;

fn refused(message: impl Into<String>) -> Error {
    Error::Device { message: message.into() }
}

/// The first line of what a library says; a full memory is an error of its own.
pub(crate) fn failed(error: impl std::fmt::Display) -> Error {
    let message = error.to_string();
    let message = message.lines().next().unwrap_or("no reason given").to_owned();
    if is_out_of_memory(&message) { Error::DeviceMemory { message } } else { Error::Inference { message } }
}

/// Whether a device answers, or a sentence about what is missing.
pub(crate) fn present(number: usize) -> Result<()> {
    let mut version = 0;
    // SAFETY: it writes one number.
    let asked = unsafe { sys::cuDriverGetVersion(&raw mut version) };
    if asked != sys::CUresult::CUDA_SUCCESS || version == 0 {
        return Err(refused("no CUDA driver is installed here (libcuda.so.1)"));
    }
    if version < NEEDED {
        let name = |version: i32| format!("{}.{}", version / 1000, version % 1000 / 10);
        return Err(refused(format!(
            "the NVIDIA driver here is too old: it knows CUDA {}, and this build needs {}",
            name(version),
            name(NEEDED)
        )));
    }
    let count = CudaContext::device_count().map_err(|error| refused(format!("no CUDA device answers: {error}")))?;
    match usize::try_from(count).unwrap_or(0) {
        0 => Err(refused("there is no CUDA device here")),
        count if number >= count => {
            Err(refused(format!("there is no cuda:{number}: the devices here are 0 to {}", count - 1)))
        }
        _ => Ok(()),
    }
}

/// Whether a device multiplies bf16 fast.
pub(crate) fn multiplies_bf16(number: usize) -> Result<bool> {
    let context = CudaContext::new(number).map_err(failed)?;
    Ok(context.compute_capability().map_err(failed)? >= BF16_SINCE)
}

/// Puts a model on a device. The calling thread drives it from now on.
pub(super) fn open(number: usize, recipe: &Recipe) -> Result<Opened> {
    present(number)?;
    // A stream of its own: that of candle's plain constructor is another one for each thread.
    let device = CudaDevice::new_with_stream(number).map_err(|error| {
        let reason = error.to_string();
        let reason = reason.lines().next().unwrap_or("no reason given");
        if is_out_of_memory(reason) {
            return Error::DeviceMemory { message: format!("cuda:{number}: {reason}") };
        }
        refused(format!("cuda:{number} cannot be used: {reason}; cuBLAS and cuRAND of CUDA 13 must be where the system finds libraries"))
    })?;
    let stream = device.cuda_stream();
    let context = stream.context().clone();
    let (name, capability) = (context.name().map_err(failed)?, context.compute_capability().map_err(failed)?);
    if recipe.precision == Precision::Bf16 && capability < BF16_SINCE {
        return Err(refused(format!("cuda:{number}, {name}, does not know bf16: --precision f16 or f32")));
    }
    keep_memory(&context)?;
    let convolver = convolver(&device, number)?;
    kernels::prepare(&device)?;
    let blas = cublas_version(&device)?;
    let mut kind = format!("{name}, compute {}.{}, cuBLAS {blas}", capability.0, capability.1);
    if let Some(version) = cudnn_version() {
        kind = format!("{kind}, cuDNN {version}");
    }
    let transport = Pinned {
        device: device.clone(),
        spare_up: VecDeque::new(),
        spare_down: Vec::new(),
        begun: None,
        under_way: VecDeque::new(),
    };
    let session = NetworkSession::new(recipe, &Device::Cuda(device), convolver, transport)?;
    let (free, _) = context.mem_get_info().map_err(failed)?;
    let fits = (free as f64 * (1.0 - SPARE)) as u64 / recipe.tile_bytes().max(1);
    Ok(Opened {
        session: Box::new(session),
        name: format!("cuda:{number}, {name}"),
        kind,
        fits: usize::try_from(fits).unwrap_or(usize::MAX),
    })
}

#[cfg(feature = "cudnn")]
fn convolver(device: &CudaDevice, number: usize) -> Result<Convolver> {
    if cudnn_version().is_none() {
        return Err(refused(format!(
            "cuda:{number} cannot be used: cuDNN 9 (libcudnn.so.9) is not where the system finds libraries"
        )));
    }
    Ok(Convolver { cudnn: Some(cudnn::Handle::new(device)?) })
}

#[cfg(not(feature = "cudnn"))]
#[allow(clippy::unnecessary_wraps)] // As with cuDNN.
fn convolver(_device: &CudaDevice, _number: usize) -> Result<Convolver> {
    Ok(Convolver::default())
}

/// The version of cuBLAS, which computes kernels of one pixel and transposed convolutions.
fn cublas_version(device: &CudaDevice) -> Result<i32> {
    let (blas, mut version) = (device.cublas_handle(), 0);
    // SAFETY: the handle lives as long as `blas`; one number is written.
    unsafe { cublasGetVersion_v2(*blas.handle(), &raw mut version) }.result().map_err(failed)?;
    Ok(version)
}

/// cuDNN's version, if it is there: what stands in for a missing library answers with an error code instead.
#[cfg(feature = "cudnn")]
fn cudnn_version() -> Option<usize> {
    let version = candle_core::cuda_backend::cudarc::cudnn::result::get_version();
    (version >= 9000).then_some(version)
}

#[cfg(not(feature = "cudnn"))]
fn cudnn_version() -> Option<usize> {
    None
}

/// Lets the device's pool keep what is freed, so that activations reuse it: by default it returns everything at each synchronisation.
fn keep_memory(context: &Arc<CudaContext>) -> Result<()> {
    let mut threshold = u64::MAX;
    let attribute = sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
    with_pool(context, |pool| {
        // SAFETY: the attribute is a 64-bit number.
        unsafe { sys::cuMemPoolSetAttribute(pool, attribute, (&raw mut threshold).cast()) }
    })
}

/// Gives what the pool keeps back to the system.
fn trim_memory(context: &Arc<CudaContext>) -> Result<()> {
    // SAFETY: the pool is the device's own.
    with_pool(context, |pool| unsafe { sys::cuMemPoolTrimTo(pool, 0) })
}

fn with_pool(context: &Arc<CudaContext>, act: impl FnOnce(sys::CUmemoryPool) -> sys::CUresult) -> Result<()> {
    if !context.has_async_alloc() {
        return Ok(());
    }
    let mut pool = std::ptr::null_mut();
    // SAFETY: it writes one pointer.
    let asked = unsafe { sys::cuDeviceGetDefaultMemPool(&raw mut pool, context.cu_device()) };
    asked.result().and_then(|()| act(pool).result()).map_err(failed)
}

/// Samples and logits on their way through memory that the device reads and writes by itself. All is queued in one stream.
struct Pinned {
    device: CudaDevice,
    /// The older first.
    spare_up: VecDeque<PinnedHostSlice<u8>>,
    spare_down: Vec<PinnedHostSlice<f32>>,
    begun: Option<CudaEvent>,
    under_way: VecDeque<Arriving>,
}

/// A batch whose logits are not here yet.
struct Arriving {
    begun: CudaEvent,
    ended: CudaEvent,
    logits: PinnedHostSlice<f32>,
    /// Freed when they have arrived.
    _source: Tensor,
}

impl Pinned {
    fn event(&self) -> Result<CudaEvent> {
        // With times; who waits for it sleeps, because the cores have other work.
        self.device.cuda_stream().record_event(Some(sys::CUevent_flags::CU_EVENT_BLOCKING_SYNC)).map_err(failed)
    }
}

/// Memory that the device reads and writes by itself.
fn pinned<T: DeviceRepr>(context: &Arc<CudaContext>, length: usize) -> Result<PinnedHostSlice<T>> {
    // SAFETY: bytes and floats may have any value; all are written before they are read. Without flags, because the host reads them too.
    unsafe { context.alloc_pinned_with_flags(length, 0) }.map_err(failed)
}

impl Transport for Pinned {
    fn upload(&mut self, length: usize, fill: &mut dyn FnMut(&mut [u8])) -> Result<Tensor> {
        let stream = self.device.cuda_stream();
        self.spare_up.retain(|buffer| buffer.len() == length);
        // One for each batch that may be under way: the copy out of the older one is done, or as good as done.
        let mut buffer = match self.spare_up.len() {
            0 | 1 => pinned(stream.context(), length)?,
            _ => self.spare_up.pop_front().ok_or_else(|| refused("a buffer was lost"))?,
        };
        // Waits until that copy is done.
        fill(buffer.as_mut_slice().map_err(failed)?);
        // SAFETY: the copy that follows writes all of it.
        let mut samples: CudaSlice<u8> = unsafe { self.device.alloc(length) }?;
        self.device.memcpy_htod(&buffer, &mut samples)?;
        self.spare_up.push_back(buffer);
        let storage = Storage::Cuda(CudaStorage::wrap_cuda_slice(samples, self.device.clone()));
        Ok(Tensor::from_storage(storage, length, BackpropOp::none(), false))
    }

    fn begin(&mut self) -> Result<()> {
        self.begun = Some(self.event()?);
        Ok(())
    }

    fn download(&mut self, logits: Tensor) -> Result<()> {
        let begun = self.begun.take().ok_or_else(|| refused("a batch that was not begun"))?;
        let stream = self.device.cuda_stream();
        let length = logits.elem_count();
        self.spare_down.retain(|buffer| buffer.len() == length);
        let mut buffer = match self.spare_down.pop() {
            Some(buffer) => buffer,
            None => pinned(stream.context(), length)?,
        };
        {
            let (storage, layout) = logits.storage_and_layout();
            let Storage::Cuda(storage) = &*storage else { return Err(refused("logits that are on no GPU")) };
            let Some((from, to)) = layout.contiguous_offsets() else { return Err(refused("logits that are a view")) };
            let values = storage.as_cuda_slice::<f32>()?.slice(from..to);
            self.device.memcpy_dtoh(&values, &mut buffer)?;
        }
        let ended = self.event()?;
        self.under_way.push_back(Arriving { begun, ended, logits: buffer, _source: logits });
        Ok(())
    }

    fn arrived(&mut self, take: &mut dyn FnMut(&[f32])) -> Result<Duration> {
        let Arriving { begun, ended, logits, .. } =
            self.under_way.pop_front().ok_or_else(|| refused("nothing is under way"))?;
        let milliseconds = begun.elapsed_ms(&ended).map_err(failed)?;
        take(logits.as_slice().map_err(failed)?);
        self.spare_down.push(logits);
        Ok(Duration::from_secs_f64(f64::from(milliseconds.max(0.0)) * 1e-3))
    }

    fn release(&mut self) {
        self.begun = None;
        // What is under way ends before its buffers are freed; whether it went well does not matter any more.
        let _ = self.device.cuda_stream().synchronize();
        self.under_way.clear();
        self.spare_up.clear();
        self.spare_down.clear();
        // If it fails, the next attempt says what is wrong.
        let _ = self.device.cuda_stream().synchronize();
        let _ = trim_memory(self.device.cuda_stream().context());
    }
}

/// What the pool keeps is of no use to anybody once the weights, which go before this, are freed.
impl Drop for Pinned {
    fn drop(&mut self) {
        self.release();
    }
}
