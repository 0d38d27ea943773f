//! The weights with which overlapping tiles are blended.

use half::f16;
use microtome_io::Size;
use serde::{Deserialize, Serialize};

/// The shape of the weights over a tile: along each axis of `p` pixels a weight for each pixel `x` in `0..p`, all positive,
/// and the product of both axes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum WindowShape {
    /// nnU-Net's Gaussian: along an axis of `p` pixels a Gaussian of standard deviation `p / 8` about pixel `p / 2`
    /// (rounded down, so not symmetric for even `p`), cut off beyond four standard deviations; the product of both
    /// axes, scaled to a maximum of 10, rounded to f16, its zeros replaced by the smallest value that is not zero.
    /// Source: nnU-Net 2.8.1, `compute_gaussian`, and `scipy.ndimage.gaussian_filter` which it calls.
    Gaussian,
    /// MONAI's Gaussian: `exp(-(x - (p - 1) / 2)^2 / (2 (p / 8)^2))`, symmetric, and whatever is below 0.001 (a third of a square
    /// tile) raised to that; no scaling, f32.
    /// Source: MONAI 1.6.1, `monai.data.utils.compute_importance_map` with `mode="gaussian"`, `sigma_scale=0.125`.
    GaussianMonai,
    /// 1 everywhere.
    Constant,
    /// A Hann window, sampled at the pixels' centres, where it is positive: `sin^2(pi (x + 1/2) / p)`. Tiles half a tile apart
    /// add up to the same everywhere.
    /// Source: `scipy.signal.windows.hann(2 p + 1)[1::2]`; see Pielawski and Wählby, Introducing Hann windows for reducing
    /// edge-effects in patch-based image segmentation, PLOS ONE 2020.
    Hann,
    /// A triangle, sampled at the pixels' centres: `min(2 x + 1, 2 (p - x) - 1) / p`. Tiles half a tile apart add up to the same
    /// everywhere.
    /// Source: `scipy.signal.windows.triang(2 p - 1)[::2]`.
    Linear,
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
            WindowShape::GaussianMonai => {
                product(size, monai_axis, |w: f32| w).into_iter().map(|w| w.max(MONAI_LEAST)).collect()
            }
            WindowShape::Constant => vec![1.0; size.area() as usize],
            WindowShape::Hann => product(size, hann_axis, |w| w as f32),
            WindowShape::Linear => product(size, linear_axis, |w| w as f32),
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

/// MONAI clamps its Gaussian from below at the larger of its minimum and this.
const MONAI_LEAST: f32 = 1e-3;

/// The product of both axes at every pixel, row by row.
fn product<T: Copy + std::ops::Mul<Output = T>>(
    size: Size,
    axis: fn(usize) -> Vec<T>,
    weight: fn(T) -> f32,
) -> Vec<f32> {
    let (columns, rows) = (axis(size.width as usize), axis(size.height as usize));
    rows.iter().flat_map(|&y| columns.iter().map(move |&x| weight(y * x))).collect()
}

fn hann_axis(p: usize) -> Vec<f64> {
    (0..p).map(|x| (std::f64::consts::PI * (x as f64 + 0.5) / p as f64).sin().powi(2)).collect()
}

fn linear_axis(p: usize) -> Vec<f64> {
    (0..p).map(|x| (2 * x + 1).min(2 * (p - x) - 1) as f64 / p as f64).collect()
}

/// MONAI computes in f32; only the exponential is rounded once here and up to twice there.
fn monai_axis(p: usize) -> Vec<f32> {
    let sigma = 0.125 * p as f64;
    let scale = (-2.0 * sigma * sigma) as f32;
    let centre = (p as f32 - 1.0) / 2.0;
    (0..p).map(|x| f64::from((x as f32 - centre) * (x as f32 - centre) / scale).exp() as f32).collect()
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

    // MONAI 1.6.1, torch 2.15 CPU: m = compute_importance_map((33, 20), mode="gaussian", sigma_scale=0.125, device="cpu",
    //   dtype=torch.float); m[16, :10].tolist() -> MIDDLE, m.min() -> 0.001; the same with (64, 64): m[32, 32] -> 0.996_101_4
    #[test]
    fn monais_gaussian_is_monais() {
        const MIDDLE: [f32; 10] = [
            0.001,
            0.003_088_714_8,
            0.011_108_996,
            0.034_047_45,
            0.088_921_614,
            0.197_898_7,
            0.375_311_1,
            0.606_530_67,
            0.835_270_2,
            0.980_198_7,
        ];
        let window = Window::new(WindowShape::GaussianMonai, Size::new(20, 33));
        assert_eq!(window.row(16)[..10], MIDDLE);
        assert_eq!((window.row(0)[0], window.row(16)[19]), (1e-3, 1e-3));
        assert_eq!(window.row(3), window.row(29), "symmetric");
        let window = Window::new(WindowShape::GaussianMonai, Size::new(64, 64));
        assert_eq!(window.row(32)[32], 0.996_101_4);
    }

    // scipy 1.17.1: scipy.signal.windows.hann(2 * p + 1)[1::2] for p = 8 and 5
    #[test]
    fn hann_is_scipys() {
        let eight = [
            0.038_060_233_74,
            0.308_658_283_8,
            0.691_341_716_2,
            0.961_939_766_3,
            0.961_939_766_3,
            0.691_341_716_2,
            0.308_658_283_8,
            0.038_060_233_74,
        ];
        let five = [0.095_491_502_81, 0.654_508_497_2, 1.0, 0.654_508_497_2, 0.095_491_502_81];
        assert_near(&Window::new(WindowShape::Hann, Size::new(8, 1)), &eight);
        assert_near(&Window::new(WindowShape::Hann, Size::new(5, 1)), &five);
        assert_eq!(Window::new(WindowShape::Hann, Size::new(1, 1)).row(0), [1.0]);
    }

    // scipy 1.17.1: scipy.signal.windows.triang(2 * p - 1)[::2] for p = 8 and 5
    #[test]
    fn linear_is_scipys() {
        assert_near(
            &Window::new(WindowShape::Linear, Size::new(8, 1)),
            &[0.125, 0.375, 0.625, 0.875, 0.875, 0.625, 0.375, 0.125],
        );
        assert_near(&Window::new(WindowShape::Linear, Size::new(5, 1)), &[0.2, 0.6, 1.0, 0.6, 0.2]);
        assert_eq!(Window::new(WindowShape::Linear, Size::new(1, 1)).row(0), [1.0]);
    }

    /// Equal to numbers in f64, but for the rounding to f32.
    #[track_caller]
    fn assert_near(window: &Window, expected: &[f64]) {
        let row = window.row(0);
        assert_eq!(row.len(), expected.len());
        assert!(row.iter().zip(expected).all(|(w, e)| (f64::from(*w) / e - 1.0).abs() <= 6e-8), "{row:?}");
    }

    const SHAPES: [WindowShape; 5] = [
        WindowShape::Gaussian,
        WindowShape::GaussianMonai,
        WindowShape::Constant,
        WindowShape::Hann,
        WindowShape::Linear,
    ];

    #[test]
    fn every_weight_of_every_window_is_positive_and_finite() {
        for shape in SHAPES {
            for (width, height) in [(1, 1), (2, 3), (1, 4096), (5, 5), (128, 128), (640, 1024)] {
                let window = Window::new(shape, Size::new(width, height));
                assert_eq!(window.weights.len() as u64, width * height);
                assert!(window.weights.iter().all(|w| *w > 0.0 && w.is_finite()), "{shape:?}, {width} x {height}");
            }
        }
    }

    #[test]
    fn hann_and_linear_add_up_to_a_constant_half_a_tile_apart() {
        for shape in [WindowShape::Hann, WindowShape::Linear] {
            let window = Window::new(shape, Size::new(128, 1));
            let row = window.row(0);
            assert!((0..64).all(|x| (row[x] + row[x + 64] - 1.0).abs() <= f32::EPSILON), "{shape:?}");
        }
    }

    #[test]
    fn names_are_those_of_the_command() {
        let names = SHAPES.map(|shape| serde_json::to_value(shape).unwrap());
        assert_eq!(names, ["gaussian", "gaussian-monai", "constant", "hann", "linear"]);
    }
}
