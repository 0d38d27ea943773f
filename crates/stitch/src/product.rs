//! What a run makes of the sums: labels, and if asked probabilities and how sure they are.

use microtome_io::{Pixels, SampleType, Size};
use microtome_tile::pyramid::Reduction;
use serde::{Deserialize, Serialize};

use crate::accumulator::{BlockSums, Planes};
use crate::labels::Decision;

/// One image that a run writes. In the order in which the shards of a place are written: the labels come last, so that where they are
/// finished everything is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Product {
    /// The probability of each class (softmax of the mean logits), or of each region (their sigmoid), as `round(255 p)`. 0 in every channel
    /// where nothing was computed.
    Probabilities,
    /// How far the most probable class is ahead of the second, `round(255 (p1 - p2))`; of regions the least `|2 p - 1|`, likewise.
    Confidence,
    /// The label of each pixel.
    #[default]
    Labels,
}

impl Product {
    /// True for labels: what files leave out.
    #[allow(clippy::trivially_copy_pass_by_ref)] // serde's signature.
    pub(crate) fn is_labels(&self) -> bool {
        *self == Self::Labels
    }

    /// How its levels are made.
    #[must_use]
    pub fn reduction(self) -> Reduction {
        match self {
            Self::Labels => Reduction::Mode,
            Self::Probabilities | Self::Confidence => Reduction::Mean,
        }
    }

    /// Samples per pixel.
    #[must_use]
    pub fn channels(self, decision: &Decision) -> usize {
        match self {
            Self::Labels | Self::Confidence => 1,
            Self::Probabilities => decision.planes().logits(),
        }
    }

    /// How a sample is stored.
    #[must_use]
    pub fn sample(self, decision: &Decision) -> SampleType {
        match self {
            Self::Labels => decision.sample(),
            Self::Probabilities | Self::Confidence => SampleType::U8,
        }
    }

    /// The samples of a pixel that is background for certain: as probabilities 1 for background, or 0 for each region.
    #[must_use]
    pub fn certain(self, decision: &Decision) -> Vec<u16> {
        let mut samples = vec![0; self.channels(decision)];
        match (self, decision) {
            (Self::Labels, _) | (Self::Probabilities, Decision::Regions { .. }) => {}
            (Self::Probabilities, Decision::Argmax { .. }) | (Self::Confidence, _) => samples[0] = 255,
        }
        samples
    }

    /// The pixels of a block. The sums of weights are needed for everything but labels; where they are 0, so is the result.
    ///
    /// # Panics
    /// If they are needed and were not kept.
    #[must_use]
    pub fn of(self, decision: &Decision, sums: &BlockSums) -> Pixels {
        match self {
            Self::Labels => decision.decide(sums),
            Self::Probabilities => {
                let channels = self.channels(decision);
                let mut samples = Vec::with_capacity(sums.size.area() as usize * channels);
                each_pixel(decision, sums, |probabilities| samples.extend(probabilities.iter().map(|&p| quantised(p))));
                Pixels::from_u8(sums.size, channels, samples)
            }
            Self::Confidence => {
                let mut samples = Vec::with_capacity(sums.size.area() as usize);
                each_pixel(decision, sums, |probabilities| samples.push(confidence(decision, probabilities)));
                Pixels::from_u8(sums.size, 1, samples)
            }
        }
    }

    /// The pixels of a block of which several models have each said something.
    #[must_use]
    pub fn of_mean(self, decision: &Decision, mean: &MeanProbabilities) -> Pixels {
        match self {
            Self::Labels => decision.decide_mean(mean),
            Self::Probabilities => {
                let samples = mean.values.iter().map(|&p| quantised(p)).collect();
                Pixels::from_u8(mean.size, mean.channels, samples)
            }
            Self::Confidence => {
                let samples = mean.pixels().map(|probabilities| confidence(decision, probabilities)).collect();
                Pixels::from_u8(mean.size, 1, samples)
            }
        }
    }
}

/// What several models say of a block: the mean of the probabilities that each gives, all models counting the same, as nnU-Net takes it over
/// configurations.
///
/// In f32: the probabilities of the models are added in their order, and the sum is divided by their number.
/// Source: nnU-Net 2.8.1, `nnunetv2.ensembling.ensemble.average_probabilities`.
#[derive(Debug, Clone, PartialEq)]
pub struct MeanProbabilities {
    pub(crate) size: Size,
    channels: usize,
    /// One of each class or region, pixel by pixel, row by row. All 0 where a model has computed nothing.
    values: Vec<f32>,
}

impl MeanProbabilities {
    /// The mean over models, of each of which `sums` holds the sums of the same block, with those of the weights.
    ///
    /// # Panics
    /// If there is no model, or the sums of weights were not kept.
    #[must_use]
    pub fn of(decision: &Decision, sums: &[BlockSums]) -> Self {
        let (size, channels) = (sums[0].size, decision.planes().logits());
        let mut values = vec![0.0; size.area() as usize * channels];
        for sums in sums {
            let mut pixels = values.chunks_exact_mut(channels);
            each_pixel(decision, sums, |probabilities| {
                pixels.next().into_iter().flatten().zip(probabilities).for_each(|(sum, p)| *sum += p);
            });
        }
        let models = sums.len() as f32;
        values.iter_mut().for_each(|p| *p /= models);
        for weights in sums.iter().filter_map(BlockSums::weights) {
            for (pixel, _) in values.chunks_exact_mut(channels).zip(weights).filter(|(_, weight)| **weight == 0.0) {
                pixel.fill(0.0);
            }
        }
        Self { size, channels, values }
    }

    /// The bytes that it holds for each pixel.
    #[must_use]
    pub fn bytes_per_pixel(decision: &Decision) -> u64 {
        decision.planes().logits() as u64 * 4
    }

    /// The probabilities of each pixel, row by row.
    pub(crate) fn pixels(&self) -> impl Iterator<Item = &[f32]> {
        self.values.chunks_exact(self.channels)
    }
}

/// How sure the probabilities of a pixel are.
fn confidence(decision: &Decision, probabilities: &[f32]) -> u8 {
    let sure = match decision {
        Decision::Argmax { .. } => lead(probabilities),
        Decision::Regions { .. } => probabilities.iter().fold(1.0, |least: f32, p| least.min((2.0 * p - 1.0).abs())),
    };
    let computed = probabilities.iter().any(|&p| p > 0.0);
    if computed { quantised(sure) } else { 0 }
}

/// A number from 0 to 1 in 8 bits.
fn quantised(p: f32) -> u8 {
    (p * 255.0 + 0.5) as u8
}

/// The largest less the second largest; of a single one, itself.
fn lead(probabilities: &[f32]) -> f32 {
    let mut two = [0.0f32; 2];
    for &p in probabilities {
        if p > two[0] {
            two = [p, two[0]];
        } else if p > two[1] {
            two[1] = p;
        }
    }
    two[0] - two[1]
}

/// Calls `f` with the probabilities of each pixel, row by row; all 0 where there is no weight.
fn each_pixel(decision: &Decision, sums: &BlockSums, mut f: impl FnMut(&[f32])) {
    let Some(weights) = sums.weights() else { panic!("the sums of weights were kept") };
    let planes: Vec<&[f32]> = sums.planes().collect();
    let mut probabilities = vec![0.0f32; decision.planes().logits()];
    for (i, &weight) in weights.iter().enumerate() {
        if weight > 0.0 {
            match (decision, sums.sums.planes) {
                (Decision::Argmax { .. }, Planes::Difference) => {
                    let p = sigmoid(planes[0][i] / weight);
                    probabilities.copy_from_slice(&[1.0 - p, p]);
                }
                (Decision::Argmax { .. }, Planes::Each(_)) => {
                    let mean = |plane: &&[f32]| plane[i] / weight;
                    let largest = planes.iter().map(mean).fold(f32::NEG_INFINITY, f32::max);
                    probabilities.iter_mut().zip(&planes).for_each(|(p, plane)| *p = exp(mean(plane) - largest));
                    let total: f32 = probabilities.iter().sum();
                    probabilities.iter_mut().for_each(|p| *p /= total);
                }
                (Decision::Regions { .. }, _) => {
                    probabilities.iter_mut().zip(&planes).for_each(|(p, plane)| *p = sigmoid(plane[i] / weight));
                }
            }
        } else {
            probabilities.fill(0.0);
        }
        f(&probabilities);
    }
}

fn sigmoid(x: f32) -> f32 {
    // Of a number that is not positive, whose exponential cannot overflow.
    let e = exp(-x.abs());
    let p = 1.0 / (1.0 + e);
    if x < 0.0 { e * p } else { p }
}

/// The exponential of a number that is not positive, with a relative error below 2 units of the last place.
///
/// Ours, and not the system's, because that of another system may round otherwise, and results are the same bytes everywhere: `2^n` times a
/// polynomial on `[-ln 2 / 2, ln 2 / 2]` (Cephes, S. L. Moshier, `expf`).
fn exp(x: f32) -> f32 {
    if x < -87.0 {
        return 0.0;
    }
    let n = (x * std::f32::consts::LOG2_E).round();
    let r = x - n * 0.693_359_4 - n * -2.121_944_4e-4;
    let p = [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5]
        .iter()
        .fold(1.987_569_1e-4, |sum: f32, c| sum * r + c);
    (p * r * r + r + 1.0) * f32::from_bits(((127 + n as i32) as u32) << 23)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Sums, WeightSum};

    fn sums(planes: Planes, values: Vec<f32>) -> BlockSums {
        let size = Size::new((values.len() / (planes.sums() + 1)) as u64, 1);
        BlockSums { size, sums: Sums { planes, weights: WeightSum::Kept }, values }
    }

    #[test]
    fn the_exponential_is_the_exponential() {
        let worst = (0..=8_700_000)
            .map(|i| -(i as f32) / 1e5)
            .map(|x| (f64::from(exp(x)) / f64::from(x).exp() - 1.0).abs())
            .fold(0.0, f64::max);
        assert!(worst < 2.0 / 16_777_216.0, "{worst:e}");
        assert_eq!((exp(0.0), exp(-1000.0), exp(f32::NEG_INFINITY)), (1.0, 0.0, 0.0));
    }

    // numpy: np.round(255 * scipy.special.softmax([1., 2., 4.])) -> [11, 29, 215]; 255 * (p[2] - p[1]) = 186.04
    #[test]
    fn probabilities_are_the_softmax_of_the_mean() {
        let decision = Decision::Argmax { classes: 3 };
        // The second pixel has no weight.
        let sums = sums(Planes::Each(3), vec![0.5, 9.0, 1.0, 9.0, 2.0, 9.0, 0.5, 0.0]);
        assert_eq!(Product::Probabilities.of(&decision, &sums).as_u8().unwrap(), [11, 29, 215, 0, 0, 0]);
        assert_eq!(Product::Confidence.of(&decision, &sums).as_u8().unwrap(), [186, 0]);
    }

    #[test]
    fn one_plane_is_as_good_as_two() {
        let decision = Decision::Argmax { classes: 2 };
        let logits: Vec<(f32, f32)> = (-40..40).map(|i| (0.5, 0.5 + i as f32 / 8.0)).collect();
        let of = |f: fn(&(f32, f32)) -> f32| logits.iter().map(f).collect::<Vec<_>>();
        let weights = vec![1.0; logits.len()];
        let one = sums(Planes::Difference, [of(|l| l.1 - l.0), weights.clone()].concat());
        let two = sums(Planes::Each(2), [of(|l| l.0), of(|l| l.1), weights].concat());
        for product in [Product::Labels, Product::Probabilities, Product::Confidence] {
            assert_eq!(product.of(&decision, &one), product.of(&decision, &two), "{product:?}");
        }
    }

    #[test]
    fn regions_have_probabilities_of_their_own() {
        let decision = Decision::Regions { values: vec![1, 2] };
        // np.round(255 / (1 + np.exp([-2., 1.]))) -> [225, 69]; the less sure: 255 * |2 p - 1| = 117.8
        let sums = sums(Planes::Each(2), vec![4.0, -2.0, 2.0]);
        assert_eq!(Product::Probabilities.of(&decision, &sums).as_u8().unwrap(), [225, 69]);
        assert_eq!(Product::Confidence.of(&decision, &sums).as_u8().unwrap(), [118]);
    }

    // import numpy as np; from scipy.special import softmax
    // m = (softmax([1., 2., 4.]) + softmax([5., 0., 4.5])) / 2; np.round(255 * m), 255 * (m[2] - m[0]) -> [84, 15, 156], 71.13
    // A mean of logits would say otherwise of the second pixel: 0 is barely right once, and 2 is barely right twice.
    // m = (softmax([9., 0., 0.]) + softmax([0., 0., 5.])) / 2; np.round(255 * m) -> [128, 1, 126]
    #[test]
    fn the_mean_of_models_is_that_of_their_probabilities() {
        let decision = Decision::Argmax { classes: 3 };
        // The third pixel has no weight in the second model.
        let models = [
            sums(Planes::Each(3), vec![0.5, 9.0, 3.0, 1.0, 0.0, 3.0, 2.0, 0.0, 9.0, 0.5, 1.0, 1.0]),
            sums(Planes::Each(3), vec![10.0, 0.0, 7.0, 0.0, 0.0, 1.0, 9.0, 10.0, 0.0, 2.0, 2.0, 0.0]),
        ];
        let mean = MeanProbabilities::of(&decision, &models);
        let of = |product: Product| product.of_mean(&decision, &mean).as_u8().unwrap().to_vec();
        assert_eq!(of(Product::Probabilities), [84, 15, 156, 128, 1, 126, 0, 0, 0]);
        assert_eq!(of(Product::Labels), [2, 0, 0]);
        assert_eq!(of(Product::Confidence)[0], 71);
        assert_eq!(of(Product::Confidence)[2], 0);
        assert_eq!(MeanProbabilities::bytes_per_pixel(&decision), 12);
    }

    #[test]
    fn the_mean_of_one_model_is_what_it_says() {
        let values: Vec<f32> = (0..40).map(|i| ((i * 37) % 83) as f32 / 8.0 - 5.0).chain([1.0; 20]).collect();
        let rows = Planes::Each(2);
        for decision in [Decision::Argmax { classes: 2 }, Decision::Regions { values: vec![3, 1] }] {
            let sums = sums(rows, values.clone());
            let mean = MeanProbabilities::of(&decision, std::slice::from_ref(&sums));
            for product in [Product::Labels, Product::Probabilities, Product::Confidence] {
                assert_eq!(product.of_mean(&decision, &mean), product.of(&decision, &sums), "{decision:?} {product:?}");
            }
        }
    }

    #[test]
    fn of_several_models_a_region_needs_more_than_half() {
        let decision = Decision::Regions { values: vec![300, 2] };
        // The second region is just not there in the first pixel, and just there in the second.
        let models = [
            sums(Planes::Each(2), vec![4.0, 4.0, -2.1, -1.5, 1.0, 1.0]),
            sums(Planes::Each(2), vec![-1.0, -9.0, 2.0, 2.0, 1.0, 1.0]),
        ];
        let labels = Product::Labels.of_mean(&decision, &MeanProbabilities::of(&decision, &models));
        assert_eq!(labels, Pixels::from_u16(Size::new(2, 1), 1, vec![300, 2]));
    }
}
