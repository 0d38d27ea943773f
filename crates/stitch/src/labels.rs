//! From sums of weighted logits to labels.

use microtome_io::{Pixels, SampleType};
use serde::{Deserialize, Serialize};

use crate::accumulator::{BlockSums, Planes};
use crate::product::MeanProbabilities;

/// How the logits of a pixel become its label. The weights are positive, so sums decide as means would, without division.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", tag = "kind")]
pub enum Decision {
    /// The index of the largest logit, the lowest of several equal ones.
    Argmax {
        /// Number of classes, background included.
        classes: usize,
    },
    /// Each region in order whose logit is positive sets its value; later ones overwrite earlier ones.
    Regions {
        /// The value of each region.
        values: Vec<u16>,
    },
}

impl Decision {
    /// What has to be summed for it.
    ///
    /// Between two classes the sign of one sum decides, that of the differences of their logits. In exact arithmetic that is the same
    /// as to compare two sums; in f32 both round, and `docs/blending.md` says how often they decide a pixel otherwise.
    #[must_use]
    pub fn planes(&self) -> Planes {
        match self {
            Self::Argmax { classes: 2 } => Planes::Difference,
            Self::Argmax { classes } => Planes::Each(*classes),
            Self::Regions { values } => Planes::Each(values.len()),
        }
    }

    /// The narrowest samples that hold every label: 8 bits up to 255, as nnU-Net writes.
    #[must_use]
    pub fn sample(&self) -> SampleType {
        let max = match self {
            Self::Argmax { classes } => classes.saturating_sub(1),
            Self::Regions { values } => values.iter().copied().max().unwrap_or(0).into(),
        };
        if max < 256 { SampleType::U8 } else { SampleType::U16 }
    }

    /// The labels of a block.
    #[must_use]
    pub fn decide(&self, sums: &BlockSums) -> Pixels {
        match self.sample() {
            SampleType::U8 => Pixels::from_u8(sums.size, 1, self.labels(sums, |label| label as u8)),
            SampleType::U16 => Pixels::from_u16(sums.size, 1, self.labels(sums, |label| label)),
        }
    }

    /// The labels of a block of which several models have each said something: the index of the largest probability, the lowest of several
    /// equal ones; or each region in order whose probability is above one half.
    pub(crate) fn decide_mean(&self, mean: &MeanProbabilities) -> Pixels {
        let label = |probabilities: &[f32]| match self {
            Self::Argmax { .. } => {
                let larger = |best: (u16, f32), (class, &p): (u16, &f32)| if p > best.1 { (class, p) } else { best };
                (0..).zip(probabilities).fold((0, f32::NEG_INFINITY), larger).0
            }
            Self::Regions { values } => {
                values.iter().zip(probabilities).fold(0, |label, (&value, &p)| if p > 0.5 { value } else { label })
            }
        };
        match self.sample() {
            SampleType::U8 => Pixels::from_u8(mean.size, 1, mean.pixels().map(|p| label(p) as u8).collect()),
            SampleType::U16 => Pixels::from_u16(mean.size, 1, mean.pixels().map(label).collect()),
        }
    }

    fn labels<T: Copy>(&self, sums: &BlockSums, of: impl Fn(u16) -> T) -> Vec<T> {
        match (self, sums.sums.planes) {
            (Self::Argmax { .. }, Planes::Difference) => {
                let [background, class] = [of(0), of(1)];
                let choose = |&sum: &f32| if sum > 0.0 { class } else { background };
                sums.planes().next().unwrap_or_default().iter().map(choose).collect()
            }
            (Self::Argmax { .. }, Planes::Each(_)) => argmax(sums, of),
            (Self::Regions { values }, _) => regions(sums, values, of),
        }
    }
}

fn argmax<T: Copy>(sums: &BlockSums, of: impl Fn(u16) -> T) -> Vec<T> {
    let mut planes = sums.planes();
    let mut best = planes.next().unwrap_or_default().to_vec();
    let mut labels = vec![of(0); best.len()];
    for (class, plane) in (1..).zip(planes) {
        let class = of(class);
        for ((best, label), &sum) in best.iter_mut().zip(&mut labels).zip(plane) {
            let larger = sum > *best;
            *best = if larger { sum } else { *best };
            *label = if larger { class } else { *label };
        }
    }
    labels
}

fn regions<T: Copy>(sums: &BlockSums, values: &[u16], of: impl Fn(u16) -> T) -> Vec<T> {
    let mut labels = vec![of(0); sums.size.area() as usize];
    for (plane, &value) in sums.planes().zip(values) {
        let value = of(value);
        for (label, &sum) in labels.iter_mut().zip(plane) {
            *label = if sum > 0.0 { value } else { *label };
        }
    }
    labels
}

#[cfg(test)]
mod tests {
    use microtome_io::Size;

    use super::*;
    use crate::{Sums, WeightSum};

    fn sums(planes: Planes, values: Vec<f32>) -> BlockSums {
        let size = Size::new((values.len() / planes.sums()) as u64, 1);
        BlockSums { size, sums: Sums { planes, weights: WeightSum::Omitted }, values }
    }

    #[test]
    fn the_first_of_equal_logits_wins() {
        let sums = sums(Planes::Each(3), vec![1.0, 0.0, 0.0, 1.0, 2.0, 0.0, 0.0, 2.0, 0.5]);
        assert_eq!(Decision::Argmax { classes: 3 }.decide(&sums).as_u8().unwrap(), [0, 1, 2]);
    }

    #[test]
    fn of_two_classes_a_positive_difference_means_the_second() {
        let decision = Decision::Argmax { classes: 2 };
        assert_eq!(decision.planes(), Planes::Difference);
        assert_eq!(decision.decide(&sums(Planes::Difference, vec![-1.0, 0.0, 1e-9])).as_u8().unwrap(), [0, 0, 1]);
    }

    #[test]
    fn later_regions_overwrite_earlier_ones() {
        let sums = sums(Planes::Each(2), vec![1.0, 1.0, -1.0, -1.0, 2.0, 0.0]);
        assert_eq!(Decision::Regions { values: vec![7, 3] }.decide(&sums).as_u8().unwrap(), [7, 3, 0]);
    }

    #[test]
    fn labels_above_255_are_wide() {
        assert_eq!(Decision::Regions { values: vec![300] }.sample(), SampleType::U16);
        assert_eq!(Decision::Argmax { classes: 256 }.sample(), SampleType::U8);
    }
}
