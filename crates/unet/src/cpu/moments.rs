//! Mean and variance of each channel of a tensor, taken while it is written.
//!
//! The kernels sum, in f32 and over about a thousand pixels, differences from a pivot and their squares. The pivot is the mean of what came before,
//! at first the value of one pixel, so that little is lost even where a channel's mean is far larger than its deviation; these sums are
//! then merged in f64. Each piece of a tensor has moments of its own, which are merged in the order of the pieces: so nothing depends on
//! which thread computed which piece.

use super::kernel::Lanes;

/// Count, mean and sum of squared deviations of a channel.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Moments {
    count: f64,
    mean: f64,
    deviations: f64,
}

impl Moments {
    /// Of no values yet, which will probably lie around this one.
    pub(super) fn around(value: f32) -> Self {
        Self { mean: f64::from(value), ..Self::default() }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.count == 0.0
    }

    /// The value to take differences from next.
    pub(super) fn pivot(&self) -> f32 {
        self.mean as f32
    }

    /// Adds so many values, given as sums of differences from a pivot and of their squares.
    pub(super) fn add(&mut self, values: usize, pivot: f32, sum: f64, squares: f64) {
        let n = values as f64;
        let mean = f64::from(pivot) + sum / n;
        let deviations = (squares - sum * sum / n).max(0.0);
        *self = self.merged(&Self { count: n, mean, deviations });
    }

    /// Both together.
    ///
    /// Chan, Golub and LeVeque, "Updating Formulae and a Pairwise Algorithm for Computing Sample Variances" (1979).
    pub(super) fn merged(&self, other: &Self) -> Self {
        if other.is_empty() {
            return *self;
        }
        let count = self.count + other.count;
        let delta = other.mean - self.mean;
        Self {
            count,
            mean: self.mean + delta * (other.count / count),
            deviations: self.deviations + (other.deviations + delta * delta * (self.count * other.count / count)),
        }
    }

    /// Mean and biased variance.
    pub(super) fn mean_and_variance(&self) -> (f64, f64) {
        (self.mean, self.deviations / self.count)
    }
}

/// Which channel each lane of a group of output channels belongs to.
#[derive(Debug, Clone)]
pub(super) struct LaneMap {
    /// For each lane that holds anything: the lane, the first lane of the same channel, and the channel.
    lanes: Box<[(usize, usize, usize)]>,
    /// Values per pixel of each channel that has lanes, by its first lane.
    copies: [usize; LaneMap::MOST],
    count: usize,
}

impl LaneMap {
    /// Lanes of two vectors of sixteen.
    pub(super) const MOST: usize = 32;

    /// A group of `channels` from `first` on, of a tensor in which `period` channels repeat for neighbouring pixels.
    /// If `paired`, the upper half of the lanes is for every other pixel of the same channels as the lower half.
    pub(super) fn new(form: Lanes, lanes: usize, first: usize, channels: usize, period: usize) -> Self {
        let halves = if form == Lanes::Paired { 2 } else { 1 };
        let mut map = Vec::new();
        let mut copies = [0; Self::MOST];
        for half in 0..halves {
            for c in 0..channels {
                let (lane, channel) = (half * lanes / 2 + c, (first + c) % period);
                let lead = map.iter().find(|(_, _, other)| *other == channel).map_or(lane, |(l, _, _)| *l);
                map.push((lane, lead, channel));
                if half == 0 {
                    copies[lead] += 1;
                }
            }
        }
        Self { lanes: map.into(), copies, count: lanes }
    }

    /// Values of the kernels' buffer: for each lane a pivot, a sum and a sum of squares.
    pub(super) fn sums(&self) -> usize {
        3 * self.count
    }

    /// Begins new sums around the means so far.
    pub(super) fn begin(&self, moments: &[Moments], sums: &mut [f32]) {
        sums.fill(0.0);
        for (lane, _, channel) in &self.lanes {
            sums[*lane] = moments[*channel].pivot();
        }
    }

    /// Adds what was summed over so many pixels.
    pub(super) fn merge(&self, sums: &[f32], pixels: usize, moments: &mut [Moments]) {
        let mut channels = [(0.0, 0.0); Self::MOST];
        for (lane, lead, _) in &self.lanes {
            channels[*lead].0 += f64::from(sums[self.count + lane]);
            channels[*lead].1 += f64::from(sums[2 * self.count + lane]);
        }
        for (lane, lead, channel) in &self.lanes {
            if lane == lead {
                let (sum, squares) = channels[*lane];
                moments[*channel].add(pixels * self.copies[*lane], sums[*lane], sum, squares);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_of_parts_are_those_of_the_whole() {
        let values: Vec<f32> = (0..100).map(|i| 1e4 + ((i * 37) % 11) as f32).collect();
        let mut moments = Moments::default();
        for part in values.chunks(17) {
            let pivot = moments.pivot();
            let differences = part.iter().map(|v| f64::from(v - pivot));
            moments.add(part.len(), pivot, differences.clone().sum(), differences.map(|d| d * d).sum());
        }
        let mean = values.iter().map(|v| f64::from(*v)).sum::<f64>() / 100.0;
        let variance = values.iter().map(|v| (f64::from(*v) - mean).powi(2)).sum::<f64>() / 100.0;
        let (m, v) = moments.mean_and_variance();
        assert!((m - mean).abs() < 1e-9 && (v - variance).abs() < 1e-9 * variance, "{m} {v}");
    }

    #[test]
    fn lanes_of_one_channel_are_added() {
        // Channels 2, 0, 1, 2 of three, in the lower half and again in the upper one.
        let map = LaneMap::new(Lanes::Paired, 16, 2, 4, 3);
        let mut moments = [Moments::default(); 3];
        let mut sums = [7.0; 48];
        assert_eq!(map.sums(), sums.len());
        map.begin(&moments, &mut sums);
        for lane in [0, 1, 2, 3, 8, 9, 10, 11] {
            sums[16 + lane] = 1.0;
            sums[32 + lane] = 1.0;
        }
        map.merge(&sums, 2, &mut moments);
        assert_eq!(moments.map(|m| m.count), [2.0, 2.0, 4.0]);
        assert_eq!(moments.map(|m| m.mean_and_variance()), [(1.0, 0.0); 3]);
    }
}
