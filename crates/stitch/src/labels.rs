//! From sums of weighted logits to labels.

use microtome_io::{Pixels, SampleType};
use serde::{Deserialize, Serialize};

use crate::accumulator::BlockSums;

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
    /// Number of logits per pixel.
    #[must_use]
    pub fn planes(&self) -> usize {
        match self {
            Self::Argmax { classes } => *classes,
            Self::Regions { values } => values.len(),
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
        let n = sums.size.area() as usize;
        let labels = match self {
            Self::Argmax { classes } => argmax(&sums.values, n, *classes),
            Self::Regions { values } => regions(&sums.values, n, values),
        };
        match self.sample() {
            SampleType::U8 => Pixels::from_u8(sums.size, 1, labels.into_iter().map(|l| l as u8).collect()),
            SampleType::U16 => Pixels::from_u16(sums.size, 1, labels),
        }
    }
}

fn argmax(sums: &[f32], n: usize, classes: usize) -> Vec<u16> {
    let mut labels = vec![0u16; n];
    let mut best = sums[..n].to_vec();
    for class in 1..classes {
        let plane = &sums[class * n..(class + 1) * n];
        for ((best, label), &sum) in best.iter_mut().zip(&mut labels).zip(plane) {
            let larger = sum > *best;
            *best = if larger { sum } else { *best };
            *label = if larger { class as u16 } else { *label };
        }
    }
    labels
}

fn regions(sums: &[f32], n: usize, values: &[u16]) -> Vec<u16> {
    let mut labels = vec![0u16; n];
    for (plane, &value) in sums.chunks_exact(n.max(1)).zip(values) {
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

    #[test]
    fn the_first_of_equal_logits_wins() {
        let sums = BlockSums { size: Size::new(3, 1), values: vec![1.0, 0.0, 0.0, 1.0, 2.0, 0.0, 0.0, 2.0, 0.5] };
        assert_eq!(Decision::Argmax { classes: 3 }.decide(&sums).as_u8().unwrap(), [0, 1, 2]);
    }

    #[test]
    fn later_regions_overwrite_earlier_ones() {
        let sums = BlockSums { size: Size::new(3, 1), values: vec![1.0, 1.0, -1.0, -1.0, 2.0, 0.0] };
        assert_eq!(Decision::Regions { values: vec![7, 3] }.decide(&sums).as_u8().unwrap(), [7, 3, 0]);
    }

    #[test]
    fn labels_above_255_are_wide() {
        assert_eq!(Decision::Regions { values: vec![300] }.sample(), SampleType::U16);
        assert_eq!(Decision::Argmax { classes: 256 }.sample(), SampleType::U8);
    }
}
