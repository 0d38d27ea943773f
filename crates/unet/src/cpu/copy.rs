//! Views written out value by value: where a network asks for something that no view can express, and for its result.

use super::loader::Source;
use super::moments::Moments;

impl Source<'_> {
    /// What becomes of a value of a channel.
    fn apply(&self, channel: usize, x: f32) -> f32 {
        let y = self.affine.map_or(x, |affine| x * affine[channel] + affine[self.channels + channel]);
        if y > 0.0 { y } else { y * self.slope }
    }
}

/// The view, channels last; appended to an empty `target`.
pub(super) fn channels_last(sources: &[Source<'_>], target: &mut Vec<f32>) {
    let pixels = sources.first().map_or(0, |s| s.values.len() / s.channels);
    for pixel in 0..pixels {
        for source in sources {
            let values = &source.values[pixel * source.channels..][..source.channels];
            target.extend(values.iter().enumerate().map(|(c, &x)| source.apply(c, x)));
        }
    }
}

/// The view, plane by plane.
pub(super) fn planes(sources: &[Source<'_>]) -> Vec<f32> {
    let mut planes = Vec::with_capacity(sources.iter().map(|s| s.values.len()).sum());
    for source in sources {
        for channel in 0..source.channels {
            let values = source.values.iter().skip(channel).step_by(source.channels);
            planes.extend(values.map(|&x| source.apply(channel, x)));
        }
    }
    planes
}

/// The moments of each channel of a tensor.
pub(super) fn measure(values: &[f32], moments: &mut [Moments]) {
    let channels = moments.len();
    for (c, moments) in moments.iter_mut().enumerate() {
        // As the kernels do: row-sized pieces, each relative to the mean of those before.
        for piece in values.chunks(channels * 128) {
            let pivot = moments.pivot();
            let differences = piece.iter().skip(c).step_by(channels).map(|v| f64::from(v - pivot));
            let squares = differences.clone().map(|d| d * d).sum();
            moments.add(differences.clone().count(), pivot, differences.sum(), squares);
        }
    }
}
