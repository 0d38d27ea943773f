//! Convolutions of tensors that lie channels last: by cuDNN on a GPU, by candle's otherwise.

use candle_core::{Result, Tensor};

use crate::candle::convolve;
use crate::network::Extent;

/// A convolution with its weights on a device.
#[derive(Debug)]
pub(super) struct Convolution {
    /// Output × rows × columns × input.
    pub(super) weight: Tensor,
    /// Asked for by cuDNN only.
    #[cfg_attr(not(feature = "cudnn"), allow(dead_code))]
    pub(super) kernel: Extent,
    pub(super) stride: Extent,
    /// Rows of zeros above and below, and columns left and right.
    pub(super) padding: [usize; 2],
}

impl Convolution {
    pub(super) fn new(weight: Tensor, kernel: Extent, stride: Extent, padding: [usize; 2]) -> Self {
        Self { weight, kernel, stride, padding }
    }

    /// Rows and columns of the output of an input with so many.
    #[cfg(feature = "cudnn")]
    pub(super) fn output(&self, height: usize, width: usize) -> [usize; 2] {
        let Self { kernel, stride, padding, .. } = self;
        [
            (height + 2 * padding[0] - kernel.height) / stride.height + 1,
            (width + 2 * padding[1] - kernel.width) / stride.width + 1,
        ]
    }
}

/// What convolutions of a device share.
#[derive(Debug, Default)]
pub(super) struct Convolver {
    #[cfg(feature = "cudnn")]
    pub(super) cudnn: Option<super::driver::cudnn::Handle>,
}

impl Convolver {
    /// Tiles × rows × columns × output channels.
    #[cfg_attr(not(feature = "cudnn"), allow(clippy::needless_pass_by_ref_mut))] // cuDNN keeps what it has found out.
    pub(super) fn run(&mut self, x: &Tensor, convolution: &Convolution) -> Result<Tensor> {
        #[cfg(feature = "cudnn")]
        if let Some(cudnn) = &mut self.cudnn {
            return cudnn.run(x, convolution);
        }
        // candle's convolutions want channels first.
        let x = x.permute((0, 3, 1, 2))?.contiguous()?;
        let weight = convolution.weight.permute((0, 3, 1, 2))?.contiguous()?;
        convolve(&x, &weight, convolution.padding, convolution.stride)?.permute((0, 2, 3, 1))?.contiguous()
    }

    /// Gives memory back that was kept to be used again.
    #[cfg_attr(not(feature = "cudnn"), allow(clippy::unused_self, clippy::needless_pass_by_ref_mut))]
    pub(super) fn release(&mut self) {
        #[cfg(feature = "cudnn")]
        if let Some(cudnn) = &mut self.cudnn {
            cudnn.release();
        }
    }
}
