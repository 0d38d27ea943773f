//! Instance normalisation, a residual sum and leaky ReLU in one operation.
//!
//! Pixels of a tile are taken in chunks. In each chunk, each channel is summed relative to its first value, so that neither a large
//! mean nor many pixels cost digits; chunks are then merged in their order. So results do not depend on who computes which chunk.
//! `kernels.cu` does the same on a GPU.

use candle_core::{CpuStorage, CustomOp2, CustomOp3, Layout, Result, Shape, Tensor, WithDType, bail};

/// Pixels of a chunk.
pub(super) const CHUNK: usize = 1024;

/// `leaky(normalize(x) * factor + summand + residual)`, with the statistics of each tile and channel.
#[derive(Debug, Clone, Copy)]
pub(super) struct NormActivation {
    /// Added to the variance.
    pub(super) epsilon: f32,
    /// Factor for negative values; 1 where there is no activation.
    pub(super) slope: f32,
}

impl NormActivation {
    /// Of tiles × rows × columns × channels. `scale` are factors, then summands, 2 × channels, f32.
    pub(super) fn run(self, x: &Tensor, scale: &Tensor, residual: Option<&Tensor>) -> Result<Tensor> {
        let x = x.contiguous()?;
        match residual {
            None => x.apply_op2_no_bwd(scale, &self),
            Some(residual) => x.apply_op3_no_bwd(scale, &residual.contiguous()?, &self),
        }
    }

    fn on_cpu<T: WithDType>(self, x: &[T], scale: &[f32], residual: Option<&[T]>, shape: [usize; 3]) -> Vec<T> {
        let [tiles, pixels, channels] = shape;
        let mut output = Vec::with_capacity(x.len());
        for tile in 0..tiles {
            let range = tile * pixels * channels..(tile + 1) * pixels * channels;
            let x = &x[range.clone()];
            let residual = residual.map(|residual| &residual[range]);
            let mut coefficients = vec![(0.0_f32, 0.0_f32); channels];
            for (c, coefficients) in coefficients.iter_mut().enumerate() {
                let mut all = Moments::default();
                for chunk in x.chunks(CHUNK * channels) {
                    all = all.merged(Moments::of(chunk.iter().skip(c).step_by(channels).map(|v| v.to_f64() as f32)));
                }
                let factor = scale[c] / (all.squares / all.count + self.epsilon).sqrt();
                *coefficients = (all.mean, factor);
            }
            for (i, value) in x.iter().enumerate() {
                let (mean, factor) = coefficients[i % channels];
                let residual = residual.map_or(0.0, |residual| residual[i].to_f64() as f32);
                let y = (value.to_f64() as f32 - mean) * factor + scale[channels + i % channels] + residual;
                output.push(T::from_f64(f64::from(if y < 0.0 { y * self.slope } else { y })));
            }
        }
        output
    }

    fn cpu(
        self,
        (x, x_layout): (&CpuStorage, &Layout),
        (scale, scale_layout): (&CpuStorage, &Layout),
        residual: Option<(&CpuStorage, &Layout)>,
    ) -> Result<(CpuStorage, Shape)> {
        let shape = dimensions(x_layout, scale_layout, residual.map(|(_, layout)| layout))?;
        let scale = values::<f32>(scale, scale_layout)?;
        macro_rules! by_type {
            ($($variant:ident),*) => {
                match x {
                    $(CpuStorage::$variant(_) => {
                        let residual = residual.map(|(storage, layout)| values(storage, layout)).transpose()?;
                        CpuStorage::$variant(self.on_cpu(values(x, x_layout)?, scale, residual, shape))
                    })*
                    _ => bail!("instance normalisation of other numbers than f32, bf16 and f16"),
                }
            };
        }
        Ok((by_type!(F32, F16, BF16), x_layout.shape().clone()))
    }
}

/// Number, mean, and sum of squared differences from it.
#[derive(Debug, Clone, Copy, Default)]
struct Moments {
    count: f32,
    mean: f32,
    squares: f32,
}

impl Moments {
    fn of(values: impl Iterator<Item = f32>) -> Self {
        let (mut shift, mut count, mut sum, mut squares) = (None, 0.0, 0.0, 0.0);
        for value in values {
            let difference = value - *shift.get_or_insert(value);
            count += 1.0;
            sum += difference;
            squares += difference * difference;
        }
        let shift = shift.unwrap_or(0.0);
        Self { count, mean: shift + sum / count, squares: (squares - sum * sum / count).max(0.0) }
    }

    fn merged(self, other: Self) -> Self {
        let count = self.count + other.count;
        let (share, difference) = (other.count / count, other.mean - self.mean);
        Self {
            count,
            mean: self.mean + difference * share,
            squares: self.squares + other.squares + difference * difference * self.count * share,
        }
    }
}

/// What a tensor holds, row by row.
pub(super) fn values<'a, T: WithDType>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [T]> {
    let Some((from, to)) = layout.contiguous_offsets() else { bail!("an operation on a view") };
    Ok(&storage.as_slice::<T>()?[from..to])
}

/// Tiles, pixels and channels.
fn dimensions(x: &Layout, scale: &Layout, residual: Option<&Layout>) -> Result<[usize; 3]> {
    let (tiles, rows, columns, channels) = x.shape().dims4()?;
    if scale.shape().dims2()? != (2, channels) {
        bail!("factors and summands of {:?} for {channels} channels", scale.shape());
    }
    if residual.is_some_and(|residual| residual.shape() != x.shape()) {
        bail!("a residual of another shape than {:?}", x.shape());
    }
    Ok([tiles, rows * columns, channels])
}

impl CustomOp2 for NormActivation {
    fn name(&self) -> &'static str {
        "norm-activation"
    }

    fn cpu_fwd(&self, x: &CpuStorage, xl: &Layout, s: &CpuStorage, sl: &Layout) -> Result<(CpuStorage, Shape)> {
        self.cpu((x, xl), (s, sl), None)
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        x: &candle_core::CudaStorage,
        xl: &Layout,
        s: &candle_core::CudaStorage,
        sl: &Layout,
    ) -> Result<(candle_core::CudaStorage, Shape)> {
        let shape = dimensions(xl, sl, None)?;
        Ok((super::driver::kernels::norm(*self, shape, (x, xl), (s, sl), None)?, xl.shape().clone()))
    }
}

impl CustomOp3 for NormActivation {
    fn name(&self) -> &'static str {
        "residual-norm-activation"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        xl: &Layout,
        s: &CpuStorage,
        sl: &Layout,
        r: &CpuStorage,
        rl: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        self.cpu((x, xl), (s, sl), Some((r, rl)))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        x: &candle_core::CudaStorage,
        xl: &Layout,
        s: &candle_core::CudaStorage,
        sl: &Layout,
        r: &candle_core::CudaStorage,
        rl: &Layout,
    ) -> Result<(candle_core::CudaStorage, Shape)> {
        let shape = dimensions(xl, sl, Some(rl))?;
        Ok((super::driver::kernels::norm(*self, shape, (x, xl), (s, sl), Some((r, rl)))?, xl.shape().clone()))
    }
}
