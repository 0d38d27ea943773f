//! The weights with which overlapping tiles are blended.

use half::f16;
use microtome_io::Size;
use serde::{Deserialize, Serialize};

/// The shape of the weights over a tile.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WindowShape {
    /// nnU-Net's Gaussian: along an axis of `p` pixels a Gaussian of standard deviation `p / 8` about pixel `p / 2`
    /// (rounded down, so not symmetric for even `p`), cut off beyond four standard deviations; the product of both
    /// axes, scaled to a maximum of 10, rounded to f16, its zeros replaced by the smallest value that is not zero.
    /// Source: nnU-Net 2.8.1, `compute_gaussian`, and `scipy.ndimage.gaussian_filter` which it calls.
    Gaussian,
    /// 1 everywhere.
    Constant,
}

/// Weights over a tile, all positive: one per pixel, row by row.
#[derive(Debug, Clone, PartialEq)]
pub struct Window {
    size: Size,
    weights: Vec<f32>,
}

impl Window {
    /// The weights of `shape` over tiles of `size`.
    #[must_use]
    pub fn new(shape: WindowShape, size: Size) -> Self {
        let weights = match shape {
            WindowShape::Gaussian => gaussian(size),
            WindowShape::Constant => vec![1.0; size.area() as usize],
        };
        Self { size, weights }
    }

    /// The size of the tile.
    #[must_use]
    pub fn size(&self) -> Size {
        self.size
    }

    /// The weights of a row of pixels.
    #[must_use]
    pub fn row(&self, y: usize) -> &[f32] {
        let width = self.size.width as usize;
        &self.weights[y * width..(y + 1) * width]
    }

    /// Bytes held.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.weights.len() as u64 * 4
    }
}

fn gaussian(size: Size) -> Vec<f32> {
    let (columns, rows) = (gaussian_axis(size.width as usize), gaussian_axis(size.height as usize));
    let max = |axis: &[f64]| axis.iter().copied().fold(0.0, f64::max);
    let scale = (max(&columns) * max(&rows)) / 10.0;
    // nnU-Net rounds twice, f64 to f32 to f16, which differs from a single rounding in a few pixels.
    let mut weights: Vec<f16> =
        rows.iter().flat_map(|&y| columns.iter().map(move |&x| f16::from_f32((x * y / scale) as f32))).collect();
    let smallest = weights.iter().copied().filter(|w| *w > f16::ZERO).fold(f16::MAX, f16::min);
    for weight in weights.iter_mut().filter(|w| **w == f16::ZERO) {
        *weight = smallest;
    }
    weights.into_iter().map(f16::to_f32).collect()
}

/// A unit impulse at `p / 2` filtered with a normalised, truncated Gaussian.
fn gaussian_axis(p: usize) -> Vec<f64> {
    let sigma = p as f64 / 8.0;
    let radius = (4.0 * sigma + 0.5) as i64;
    let phi = |k: i64| (-0.5 / (sigma * sigma) * (k * k) as f64).exp();
    let total: f64 = (-radius..=radius).map(phi).sum();
    (0..p as i64)
        .map(|x| {
            let k = x - (p / 2) as i64;
            if k.abs() > radius { 0.0 } else { phi(k) / total }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    // nnU-Net 2.8.1, torch CPU:
    //   g = compute_gaussian((128, 128), sigma_scale=1/8, value_scaling_factor=10, dtype=torch.float16)
    //   g.max(), g[64, 64], g[0, 0] -> 10, 10, 1.13e-06 (19 units of the last place of a subnormal f16)
    #[test]
    fn the_gaussian_is_nnunets() {
        let window = Window::new(WindowShape::Gaussian, Size::new(128, 128));
        assert_eq!(window.row(64)[64], 10.0);
        assert_eq!(window.row(0)[0], 19.0 * f16::MIN_POSITIVE_SUBNORMAL.to_f32());
        assert_eq!(window.row(63)[64], window.row(65)[64], "symmetric about pixel 64 ...");
        assert!(window.row(0)[64] < window.row(127)[64], "... which is not the middle");
        assert!(window.row(0).iter().all(|&w| w > 0.0));
    }

    #[test]
    fn sides_may_differ_and_be_odd() {
        let window = Window::new(WindowShape::Gaussian, Size::new(33, 20));
        assert_eq!(window.row(10)[16], 10.0);
        assert_eq!(window.row(10)[0], window.row(10)[32]);
    }
}
