//! The kernels of our own.

use std::sync::OnceLock;

use candle_core::cuda_backend::CudaStorageSlice;
use candle_core::cuda_backend::cudarc::driver::{CudaSlice, CudaView, DeviceRepr, LaunchConfig, PushKernelArg};
use candle_core::cuda_backend::cudarc::nvrtc;
use candle_core::{CudaDevice, CudaStorage, Layout, Result, bail};

use super::super::blocks::Sizes;
use super::super::norm::{CHUNK, NormActivation};
use super::refused;
use crate::network::Extent;

const SOURCE: &str = include_str!("kernels.cu");
/// Name under which candle keeps the compiled kernels.
const MODULE: &str = "microtome";
/// Threads of a block, as in `kernels.cu`.
const THREADS: u32 = 256;

/// The kernels as PTX, compiled once.
fn ptx() -> std::result::Result<&'static str, &'static str> {
    static PTX: OnceLock<std::result::Result<String, String>> = OnceLock::new();
    let compiled = PTX.get_or_init(|| {
        nvrtc::compile_ptx(SOURCE).map(|ptx| ptx.to_src()).map_err(|error| match error {
            nvrtc::CompileError::CompileError { log, .. } => log.to_string_lossy().into_owned(),
            other => format!("{other:?}"),
        })
    });
    compiled.as_deref().map_err(String::as_str)
}

/// Compiles the kernels, if that has not been done, and loads them.
pub(super) fn prepare(device: &CudaDevice) -> crate::Result<()> {
    let ptx = ptx().map_err(|error| {
        let reason = error.lines().next().unwrap_or_default();
        refused(format!("the GPU cannot be used: NVRTC (libnvrtc.so.13) does not compile its kernels: {reason}"))
    })?;
    device.get_or_load_custom_func("coefficients", MODULE, ptx).map_err(|error| {
        let reason = error.to_string();
        let reason = reason.lines().next().unwrap_or_default();
        refused(format!(
            "the GPU cannot be used: its driver does not take the kernels that NVRTC made ({reason}); libnvrtc.so.13 must not be newer than the driver"
        ))
    })?;
    Ok(())
}

/// Tiles × pixels × channels; see [`NormActivation::run`].
pub(in crate::gpu) fn norm(
    norm: NormActivation,
    shape: [usize; 3],
    x: (&CudaStorage, &Layout),
    scale: (&CudaStorage, &Layout),
    residual: Option<(&CudaStorage, &Layout)>,
) -> Result<CudaStorage> {
    let device = &x.0.device;
    let scale = view::<f32>(scale)?;
    macro_rules! by_type {
        ($($variant:ident $name:literal);*) => {
            match &x.0.slice {
                $(CudaStorageSlice::$variant(_) => {
                    let residual = residual.map(view).transpose()?;
                    let output = launch(norm, shape, &view(x)?, &scale, residual.as_ref(), $name, device)?;
                    CudaStorageSlice::$variant(output)
                })*
                _ => bail!("instance normalisation of other numbers than f32, bf16 and f16"),
            }
        };
    }
    let slice = by_type!(F32 "f32"; BF16 "bf16"; F16 "f16");
    Ok(CudaStorage { slice, device: device.clone() })
}

fn view<'a, T>((storage, layout): (&'a CudaStorage, &Layout)) -> Result<CudaView<'a, T>>
where
    T: candle_core::cuda_backend::CudaDType,
{
    let Some((from, to)) = layout.contiguous_offsets() else { bail!("an operation on a view") };
    // Threads read four channels at once.
    if from % 4 != 0 {
        bail!("an operation on a tensor that begins at {from}");
    }
    Ok(storage.as_cuda_slice::<T>()?.slice(from..to))
}

fn launch<T: DeviceRepr>(
    norm: NormActivation,
    [tiles, pixels, channels]: [usize; 3],
    x: &CudaView<'_, T>,
    scale: &CudaView<'_, f32>,
    residual: Option<&CudaView<'_, T>>,
    name: &str,
    device: &CudaDevice,
) -> Result<CudaSlice<T>> {
    let ptx = ptx().map_err(candle_core::Error::msg)?;
    let together = together(channels);
    let function = |kernel: &str| device.get_or_load_custom_func(&format!("{kernel}_{name}_{together}"), MODULE, ptx);
    let chunks = pixels.div_ceil(CHUNK);
    let packs = tiles * pixels * channels / together;
    let [tiles32, pixels32, channels32, chunk32] = [number(tiles)?, number(pixels)?, number(channels)?, number(CHUNK)?];

    // SAFETY: each is written whole by the kernel that follows: moments of each channel of each chunk, coefficients of each channel of each
    // tile, and a value for each value of `x`.
    let (partial, coefficients, output) = unsafe {
        (
            device.alloc::<f32>(tiles * chunks * channels * 2)?,
            device.alloc::<f32>(tiles * channels * 2)?,
            device.alloc::<T>(tiles * pixels * channels)?,
        )
    };
    let moments = function("moments")?;
    let mut arguments = moments.builder();
    arguments.arg(x).arg(&partial).arg(&pixels32).arg(&channels32).arg(&chunk32);
    // SAFETY: the arguments are those of `moments` in kernels.cu; it reads tiles × pixels × channels values of `x`, for which the layout vouches.
    unsafe { arguments.launch(grid(chunks, tiles32)?) }.map_err(candle_core::Error::wrap)?;

    let merge = device.get_or_load_custom_func("coefficients", MODULE, ptx)?;
    let mut arguments = merge.builder();
    arguments.arg(&partial).arg(scale).arg(&coefficients).arg(&tiles32).arg(&pixels32).arg(&channels32);
    arguments.arg(&chunk32).arg(&norm.epsilon);
    // SAFETY: the arguments are those of `coefficients`; `scale` has 2 × channels values.
    unsafe { arguments.launch(grid((tiles * channels).div_ceil(THREADS as usize), 1)?) }
        .map_err(candle_core::Error::wrap)?;

    let apply = function("apply")?;
    let (none, packs64) = (0_u64, packs as u64);
    let mut arguments = apply.builder();
    arguments.arg(x).arg(&coefficients).arg(scale);
    match residual {
        Some(residual) => arguments.arg(residual),
        None => arguments.arg(&none),
    };
    arguments.arg(&output).arg(&packs64).arg(&pixels32).arg(&channels32).arg(&norm.slope);
    // SAFETY: the arguments are those of `apply`; a residual has the shape of `x`, and none is a null pointer.
    unsafe { arguments.launch(grid(packs.div_ceil(THREADS as usize), 1)?) }.map_err(candle_core::Error::wrap)?;
    Ok(output)
}

/// Channels that a thread takes at once.
fn together(channels: usize) -> usize {
    if channels.is_multiple_of(4) { 4 } else { 1 }
}

fn number(n: usize) -> Result<u32> {
    u32::try_from(n).map_err(|_| candle_core::Error::msg("a tensor that is too large"))
}

/// So many blocks of threads.
fn grid(x: usize, y: u32) -> Result<LaunchConfig> {
    Ok(LaunchConfig { grid_dim: (number(x)?, y, 1), block_dim: (THREADS, 1, 1), shared_mem_bytes: 0 })
}

/// See [`Blocks::run`](super::super::blocks::Blocks::run).
pub(in crate::gpu) fn blocks(
    extent: Extent,
    sizes: Sizes,
    x: (&CudaStorage, &Layout),
    bias: (&CudaStorage, &Layout),
) -> Result<CudaStorage> {
    let device = &x.0.device;
    macro_rules! by_type {
        ($($variant:ident $name:literal);*) => {
            match &x.0.slice {
                $(CudaStorageSlice::$variant(_) => {
                    CudaStorageSlice::$variant(launch_blocks(extent, sizes, &view(x)?, &view(bias)?, $name, device)?)
                })*
                _ => bail!("blocks of other numbers than f32, bf16 and f16"),
            }
        };
    }
    let slice = by_type!(F32 "f32"; BF16 "bf16"; F16 "f16");
    Ok(CudaStorage { slice, device: device.clone() })
}

fn launch_blocks<T: DeviceRepr>(
    extent: Extent,
    sizes: Sizes,
    x: &CudaView<'_, T>,
    bias: &CudaView<'_, T>,
    name: &str,
    device: &CudaDevice,
) -> Result<CudaSlice<T>> {
    let ptx = ptx().map_err(candle_core::Error::msg)?;
    let Sizes { tiles, height, width, channels } = sizes;
    let together = together(channels);
    let values = tiles * height * width * extent.area() * channels;
    let packs = values / together;
    let packs64 = packs as u64;
    let [height32, width32, channels32] = [number(height)?, number(width)?, number(channels)?];
    let [down, across] = [number(extent.height)?, number(extent.width)?];
    // SAFETY: the kernel writes a value for each value of `x`.
    let output: CudaSlice<T> = unsafe { device.alloc(values) }?;
    let function = device.get_or_load_custom_func(&format!("blocks_{name}_{together}"), MODULE, ptx)?;
    let mut arguments = function.builder();
    arguments.arg(x).arg(bias).arg(&output).arg(&packs64).arg(&height32).arg(&width32).arg(&channels32);
    arguments.arg(&down).arg(&across);
    // SAFETY: the arguments are those of `blocks` in kernels.cu; `x` has tiles × height × width × block × channels values, `bias` one for each
    // channel.
    unsafe { arguments.launch(grid(packs.div_ceil(THREADS as usize), 1)?) }.map_err(candle_core::Error::wrap)?;
    Ok(output)
}
