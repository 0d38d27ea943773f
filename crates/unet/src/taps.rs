//! Pooling and resizing as what they have in common: along each axis, an output position takes a few input positions, each with a weight.
//!
//! First rows are combined, then columns. Positions are those of PyTorch 2: `aten/src/ATen/native/UpSample.h` computes them in f32.

use microtome_io::Size;

use crate::network::{Factor, Interpolation, Operation};

/// What becomes of the values that an output position takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Combination {
    /// The weighted sum.
    Sum,
    /// The largest; weights are 1.
    Maximum,
}

/// One axis: for each output position the same number of input positions.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Taps {
    /// Input positions of one output position.
    pub(crate) each: usize,
    /// Those of all output positions, one after the other.
    pub(crate) positions: Vec<usize>,
    /// A weight for each.
    pub(crate) weights: Vec<f32>,
}

impl Taps {
    fn new(each: usize, positions: Vec<usize>, weights: Vec<f32>) -> Self {
        Self { each, positions, weights }
    }

    /// The mean of `kernel` neighbours, and so on every `stride` positions, with `before` zeros before the first.
    fn mean(outputs: usize, kernel: usize, stride: usize, before: usize) -> Self {
        let under = || (0..outputs).flat_map(|o| (0..kernel).map(move |k| o * stride + k));
        let positions = under().map(|at| at.saturating_sub(before)).collect();
        let weights = under().map(|at| if at < before { 0.0 } else { 1.0 / kernel as f32 }).collect();
        Self::new(kernel, positions, weights)
    }

    /// `kernel` neighbours, the first of them `padding` positions before the input. Those outside are replaced by the nearest inside,
    /// which is under the kernel anyway.
    fn window(outputs: usize, inputs: usize, kernel: usize, stride: usize, padding: usize) -> Self {
        let inside = |at: usize| at.saturating_sub(padding).min(inputs.saturating_sub(1));
        let positions: Vec<usize> =
            (0..outputs).flat_map(|o| (0..kernel).map(move |k| inside(o * stride + k))).collect();
        let weights = vec![1.0; positions.len()];
        Self::new(kernel, positions, weights)
    }

    /// `area_pixel_compute_source_index` and `nearest_idx`.
    fn resize(outputs: usize, inputs: usize, factor: f64, interpolation: Interpolation) -> Self {
        let last = inputs.saturating_sub(1);
        let step = match interpolation {
            Interpolation::BilinearCorners if outputs > 1 => last as f32 / (outputs - 1) as f32,
            Interpolation::BilinearCorners => 0.0,
            Interpolation::Nearest | Interpolation::Bilinear => (1.0 / factor) as f32,
        };
        if interpolation == Interpolation::Nearest {
            let positions = (0..outputs).map(|o| ((o as f32 * step) as usize).min(last)).collect();
            return Self::new(1, positions, vec![1.0; outputs]);
        }
        let mut taps = Self::new(2, Vec::with_capacity(2 * outputs), Vec::with_capacity(2 * outputs));
        for o in 0..outputs {
            let at = match interpolation {
                Interpolation::BilinearCorners => step * o as f32,
                _ => (step * (o as f32 + 0.5) - 0.5).max(0.0),
            };
            let lower = (at as usize).min(last);
            let weight = (at - lower as f32).clamp(0.0, 1.0);
            taps.positions.extend([lower, (lower + 1).min(last)]);
            taps.weights.extend([1.0 - weight, weight]);
        }
        taps
    }
}

/// Both axes.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Separable {
    pub(crate) combination: Combination,
    /// From input to output rows.
    pub(crate) rows: Taps,
    /// From input to output columns.
    pub(crate) columns: Taps,
}

impl Separable {
    /// The taps of pooling or resizing from one size to another; none for other operations.
    pub(crate) fn new(operation: &Operation, from: Size, to: Size) -> Option<Self> {
        let (width, height) = (from.width as usize, from.height as usize);
        let (columns, rows) = (to.width as usize, to.height as usize);
        Some(match operation {
            Operation::AveragePool { kernel, stride, before } => Self {
                combination: Combination::Sum,
                rows: Taps::mean(rows, kernel.height, stride.height, before.height),
                columns: Taps::mean(columns, kernel.width, stride.width, before.width),
            },
            Operation::MaxPool { kernel, stride, padding } => Self {
                combination: Combination::Maximum,
                rows: Taps::window(rows, height, kernel.height, stride.height, padding.height),
                columns: Taps::window(columns, width, kernel.width, stride.width, padding.width),
            },
            Operation::Resize { factor: Factor { height: down, width: across }, interpolation } => Self {
                combination: Combination::Sum,
                rows: Taps::resize(rows, height, *down, *interpolation),
                columns: Taps::resize(columns, width, *across, *interpolation),
            },
            _ => return None,
        })
    }
}
