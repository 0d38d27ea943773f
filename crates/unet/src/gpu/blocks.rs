//! What a transposed convolution without overlap leaves to do after its product of matrices: a block of pixels of each pixel's values, and a
//! bias, in one pass over memory. `kernels.cu` does the same on a GPU.

use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor, WithDType, bail};

use super::norm::values;
use crate::network::Extent;

/// Tiles × rows × columns × (rows and columns of a block × channels) becomes tiles × rows × columns × channels.
#[derive(Debug, Clone, Copy)]
pub(super) struct Blocks {
    pub(super) extent: Extent,
}

/// Sizes before and after.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sizes {
    pub(super) tiles: usize,
    pub(super) height: usize,
    pub(super) width: usize,
    /// Of the result.
    pub(super) channels: usize,
}

impl Blocks {
    /// `bias` has a value for each channel of the result, of the same type.
    pub(super) fn run(self, x: &Tensor, bias: &Tensor) -> Result<Tensor> {
        x.contiguous()?.apply_op2_no_bwd(&bias.flatten_all()?, &self)
    }

    fn sizes(self, x: &Layout, bias: &Layout) -> Result<(Sizes, Shape)> {
        let (tiles, height, width, values) = x.shape().dims4()?;
        let channels = values / self.extent.area();
        if bias.shape().dims1()? != channels {
            bail!("a bias of {:?} for {channels} channels", bias.shape());
        }
        let shape = (tiles, height * self.extent.height, width * self.extent.width, channels);
        Ok((Sizes { tiles, height, width, channels }, shape.into()))
    }

    fn on_cpu<T: WithDType>(self, x: &[T], bias: &[T], sizes: Sizes) -> Vec<T> {
        let Sizes { tiles, height, width, channels } = sizes;
        let Extent { height: down, width: across } = self.extent;
        let mut output = Vec::with_capacity(x.len());
        for row in 0..tiles * height * down {
            for column in 0..width * across {
                let pixel = row / down * width + column / across;
                let from = ((pixel * down + row % down) * across + column % across) * channels;
                // One rounding, as on a GPU.
                let sum = |(v, b): (&T, &T)| T::from_f64(f64::from((v.to_f64() + b.to_f64()) as f32));
                output.extend(x[from..from + channels].iter().zip(bias).map(sum));
            }
        }
        output
    }
}

impl CustomOp2 for Blocks {
    fn name(&self) -> &'static str {
        "blocks"
    }

    fn cpu_fwd(&self, x: &CpuStorage, xl: &Layout, b: &CpuStorage, bl: &Layout) -> Result<(CpuStorage, Shape)> {
        let (sizes, shape) = self.sizes(xl, bl)?;
        macro_rules! by_type {
            ($($variant:ident),*) => {
                match x {
                    $(CpuStorage::$variant(_) => {
                        CpuStorage::$variant(self.on_cpu(values(x, xl)?, values(b, bl)?, sizes))
                    })*
                    _ => bail!("blocks of other numbers than f32, bf16 and f16"),
                }
            };
        }
        Ok((by_type!(F32, F16, BF16), shape))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        x: &candle_core::CudaStorage,
        xl: &Layout,
        b: &candle_core::CudaStorage,
        bl: &Layout,
    ) -> Result<(candle_core::CudaStorage, Shape)> {
        let (sizes, shape) = self.sizes(xl, bl)?;
        Ok((super::driver::kernels::blocks(self.extent, sizes, (x, xl), (b, bl))?, shape))
    }
}
