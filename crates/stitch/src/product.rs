//! What a run makes of the sums: labels, and if asked probabilities and how sure they are.

use microtome_io::{Pixels, SampleType};
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
                each_pixel(decision, sums, |probabilities| {
                    let sure = match decision {
                        Decision::Argmax { .. } => lead(probabilities),
                        Decision::Regions { .. } => {
                            probabilities.iter().fold(1.0, |least: f32, p| least.min((2.0 * p - 1.0).abs()))
                        }
                    };
                    let computed = probabilities.iter().any(|&p| p > 0.0);
                    samples.push(if computed { quantised(sure) } else { 0 });
                });
                Pixels::from_u8(sums.size, 1, samples)
            }
        }
    }
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
    use microtome_io::Size;

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
}
