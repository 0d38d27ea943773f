//! Convolutions by cuDNN, channels last.

use std::collections::BTreeMap;
use std::sync::Arc;

use candle_core::cuda_backend::cudarc::cudnn::sys::{
    cudnnConvolutionFwdAlgo_t as Algorithm, cudnnConvolutionMode_t as Mode, cudnnMathType_t as Math,
    cudnnTensorFormat_t as Format,
};
use candle_core::cuda_backend::cudarc::cudnn::{ConvForward, Cudnn, CudnnDataType};
use candle_core::cuda_backend::cudarc::driver::{CudaSlice, CudaView, DeviceRepr};
use candle_core::cuda_backend::{CudaDType, CudaStorageSlice};
use candle_core::op::BackpropOp;
use candle_core::{CudaDevice, CudaStorage, Result, Storage, Tensor, WithDType, bail};

use super::super::convolution::Convolution;
use super::failed;

/// cuDNN on one device, with what it works in.
pub(in crate::gpu) struct Handle {
    cudnn: Arc<Cudnn>,
    device: CudaDevice,
    /// What was chosen for each shape, and the bytes that it works in.
    chosen: BTreeMap<Key, (Algorithm, usize)>,
    workspace: Option<CudaSlice<u8>>,
}

/// Everything that a choice depends on: tiles, rows, columns, input and output channels, kernel, stride, padding, and bytes of a number.
type Key = [usize; 12];

impl std::fmt::Debug for Handle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Handle").field("chosen", &self.chosen.len()).finish_non_exhaustive()
    }
}

impl Handle {
    pub(super) fn new(device: &CudaDevice) -> crate::Result<Self> {
        let cudnn = Cudnn::new(device.cuda_stream()).map_err(failed)?;
        Ok(Self { cudnn, device: device.clone(), chosen: BTreeMap::new(), workspace: None })
    }

    /// Gives memory back that was kept to be used again.
    pub(in crate::gpu) fn release(&mut self) {
        self.workspace = None;
    }

    /// Tiles × rows × columns × output channels.
    pub(in crate::gpu) fn run(&mut self, x: &Tensor, convolution: &Convolution) -> Result<Tensor> {
        let x = x.contiguous()?;
        let (tiles, height, width, input) = x.dims4()?;
        let output = convolution.weight.dim(0)?;
        let [rows, columns] = convolution.output(height, width);
        let shape = (tiles, rows, columns, output);
        let (x_storage, x_layout) = x.storage_and_layout();
        let (w_storage, w_layout) = convolution.weight.storage_and_layout();
        let (Storage::Cuda(x_storage), Storage::Cuda(w_storage)) = (&*x_storage, &*w_storage) else {
            bail!("a convolution of tensors that are on no GPU")
        };
        let (Some((x_from, x_to)), Some((w_from, w_to))) =
            (x_layout.contiguous_offsets(), w_layout.contiguous_offsets())
        else {
            bail!("a convolution of views")
        };
        let dims = Dims { tiles, height, width, input, output, rows, columns };
        macro_rules! by_type {
            ($($variant:ident $math:ident);*) => {
                match (&x_storage.slice, &w_storage.slice) {
                    $((CudaStorageSlice::$variant(x), CudaStorageSlice::$variant(w)) => CudaStorageSlice::$variant(
                        self.launch(&x.slice(x_from..x_to), &w.slice(w_from..w_to), dims, convolution, Math::$math)?
                    ),)*
                    _ => bail!("a convolution of other numbers than f32, bf16 and f16"),
                }
            };
        }
        // f32 is f32: without TF32. Sums are f32 in any case.
        let slice = by_type!(F32 CUDNN_FMA_MATH; BF16 CUDNN_TENSOR_OP_MATH; F16 CUDNN_TENSOR_OP_MATH);
        let storage = Storage::Cuda(CudaStorage { slice, device: self.device.clone() });
        Ok(Tensor::from_storage(storage, shape, BackpropOp::none(), false))
    }

    fn launch<T>(
        &mut self,
        x: &CudaView<'_, T>,
        weight: &CudaView<'_, T>,
        dims: Dims,
        convolution: &Convolution,
        math: Math,
    ) -> Result<CudaSlice<T>>
    where
        T: CudnnDataType + CudaDType + DeviceRepr + WithDType,
    {
        let Dims { tiles, height, width, input, output, rows, columns } = dims;
        let Convolution { kernel, stride, padding, .. } = convolution;
        let int = |n: usize| i32::try_from(n).map_err(|_| candle_core::Error::msg("a tensor that is too large"));
        // cuDNN names dimensions in the order of channels first whatever the format.
        let x_dims = [int(tiles)?, int(input)?, int(height)?, int(width)?];
        let w_dims = [int(output)?, int(input)?, int(kernel.height)?, int(kernel.width)?];
        let y_dims = [int(tiles)?, int(output)?, int(rows)?, int(columns)?];
        let x_is = self.cudnn.create_4d_tensor::<T>(Format::CUDNN_TENSOR_NHWC, x_dims)?;
        let w_is = self.cudnn.create_4d_filter::<T>(Format::CUDNN_TENSOR_NHWC, w_dims)?;
        let y_is = self.cudnn.create_4d_tensor::<T>(Format::CUDNN_TENSOR_NHWC, y_dims)?;
        let padding_is = [int(padding[0])?, int(padding[1])?];
        let stride_is = [int(stride.height)?, int(stride.width)?];
        let mut conv = self.cudnn.create_conv2d::<f32>(padding_is, stride_is, [1, 1], Mode::CUDNN_CROSS_CORRELATION)?;
        conv.set_math_type(math)?;
        let forward = ConvForward { conv: &conv, x: &x_is, w: &w_is, y: &y_is };
        let key = [
            tiles,
            height,
            width,
            input,
            output,
            kernel.height,
            kernel.width,
            stride.height,
            stride.width,
            padding[0],
            padding[1],
            size_of::<T>() * 2 + usize::from(math == Math::CUDNN_TENSOR_OP_MATH),
        ];
        let (algorithm, bytes) = if let Some(chosen) = self.chosen.get(&key) {
            *chosen
        } else {
            let algorithm = forward.pick_algorithm()?;
            let chosen = (algorithm, forward.get_workspace_size(algorithm)?);
            self.chosen.insert(key, chosen);
            chosen
        };
        if self.workspace.as_ref().is_none_or(|workspace| workspace.len() < bytes) {
            // The old one first, so that both are not held at once.
            self.workspace = None;
            // SAFETY: an algorithm writes what it reads of its workspace. At least a byte: nothing cannot be allocated.
            self.workspace = Some(unsafe { self.device.alloc::<u8>(bytes.max(1)) }?);
        }
        // SAFETY: a convolution writes all of its output.
        let mut y: CudaSlice<T> = unsafe { self.device.alloc(tiles * rows * columns * output) }?;
        let scaling = (T::one(), T::zero());
        // SAFETY: the descriptors are of tensors of these shapes and types, which the views hold.
        unsafe { forward.launch(algorithm, self.workspace.as_mut(), scaling, x, weight, &mut y) }?;
        Ok(y)
    }
}

/// Sizes of input and output.
#[derive(Debug, Clone, Copy)]
struct Dims {
    tiles: usize,
    height: usize,
    width: usize,
    input: usize,
    output: usize,
    rows: usize,
    columns: usize,
}
