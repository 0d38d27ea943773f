//! How steps other than convolutions read a view and are measured: some pixels with all their channels, one after the other.

use std::ops::Range;

use super::kernel::{Blend, Kernels};
use super::layer::{Inputs, Operand, Others};
use super::moments::Moments;

/// Values of a strip: with those that it is made from, first-level caches hold them.
pub(super) const STRIP: usize = 2048;

/// A tensor is written in at most so many pieces: enough for many threads, and few enough that what is prepared for each takes no time.
pub(super) const PIECES: usize = 32;

/// How many pixels of so many channels the patterns of the kernels are for: enough to fill vectors of sixteen, and to make one turn
/// around the pattern long; but few where there are many channels.
fn period(channels: usize) -> usize {
    const LANES: usize = 16;
    const TURN: usize = 256;
    let whole = LANES >> channels.trailing_zeros().min(LANES.trailing_zeros());
    let pixels = whole * TURN.div_ceil(whole * channels);
    if pixels * channels <= STRIP { pixels } else { 1 }
}

/// How a view is read.
#[derive(Debug)]
pub(super) struct Reading {
    /// Which of the step's operands are its parts.
    parts: Range<usize>,
    channels: usize,
    /// The most pixels that are read at once.
    pixels: usize,
}

impl Reading {
    pub(super) fn new(operands: &[Operand], parts: Range<usize>, pixels: usize) -> Self {
        let channels = operands[parts.clone()].iter().map(|o| o.channels).sum();
        Self { parts, channels, pixels }
    }

    /// Values of scratch that it needs: patterns, and for several parts a strip of one part.
    pub(super) fn scratch(&self, operands: &[Operand]) -> usize {
        let operands = &operands[self.parts.clone()];
        let patterns: usize = operands.iter().map(pattern).sum();
        let widest = operands.iter().map(|o| o.channels).max().unwrap_or(0);
        patterns + if operands.len() > 1 { (widest + self.channels) * self.pixels } else { 0 }
    }

    /// Fills in the patterns, and returns what is left of the scratch.
    pub(super) fn start<'a>(
        &self,
        kernels: &'a Kernels,
        Inputs { operands, others, affines }: Inputs<'a>,
        scratch: &'a mut [f32],
    ) -> (Reader<'a>, &'a mut [f32]) {
        let (own, rest) = scratch.split_at_mut(self.scratch(operands));
        let operands = &operands[self.parts.clone()];
        let (patterns, joined) = own.split_at_mut(operands.iter().map(pattern).sum());
        let mut start = 0;
        for operand in operands {
            let length = pattern(operand);
            fill(&mut patterns[start..][..length], operand, affines);
            start += length;
        }
        (Reader { kernels, operands, others, patterns, channels: self.channels, joined }, rest)
    }
}

/// Values of an operand's pattern.
fn pattern(operand: &Operand) -> usize {
    let plain = operand.affine.is_none() && operand.slopes.is_none();
    if plain { 0 } else { 3 * operand.channels * period(operand.channels) }
}

/// Repeats factors, summands and slopes.
fn fill(pattern: &mut [f32], operand: &Operand, affines: &[f32]) {
    let channels = operand.channels;
    let (factors, rest) = pattern.split_at_mut(pattern.len() / 3);
    let (summands, slopes) = rest.split_at_mut(rest.len() / 2);
    let affine = operand.affine.clone().map(|range| &affines[range]);
    let bends = operand.slopes.clone().map(|range| &affines[range]);
    for c in 0..channels {
        let (factor, summand) = affine.map_or((1.0, 0.0), |a| (a[c], a[channels + c]));
        let slope = bends.map_or(1.0, |s| s[c]);
        for i in (c..factors.len()).step_by(channels) {
            (factors[i], summands[i], slopes[i]) = (factor, summand, slope);
        }
    }
}

/// A view that is being read.
#[derive(Debug)]
pub(super) struct Reader<'a> {
    kernels: &'a Kernels,
    operands: &'a [Operand],
    others: Others<'a>,
    patterns: &'a [f32],
    channels: usize,
    joined: &'a mut [f32],
}

impl Reader<'_> {
    /// Does to the pixels of a tensor in its own place what the view, which has no other part, does to them.
    pub(super) fn bend(&self, values: &mut [f32]) {
        self.kernels.bend(self.patterns, values);
    }

    /// Blends pixels, times a weight, into `target`.
    pub(super) fn blend(&mut self, pixels: Range<usize>, weight: f32, how: Blend, target: &mut [f32]) {
        let part = |operand: &Operand, pattern: &[f32], weight: f32, how: Blend, target: &mut [f32]| {
            let values =
                &self.others.get(&operand.place)[pixels.start * operand.channels..pixels.end * operand.channels];
            self.kernels.blend(values, pattern, weight, how, target);
        };
        if let [operand] = self.operands {
            return part(operand, self.patterns, weight, how, target);
        }
        let (joined, strip) = self.joined.split_at_mut(pixels.len() * self.channels);
        let (mut first, mut start) = (0, 0);
        for operand in self.operands {
            let strip = &mut strip[..pixels.len() * operand.channels];
            part(operand, &self.patterns[start..][..pattern(operand)], 1.0, Blend::Set, strip);
            for (to, from) in joined.chunks_exact_mut(self.channels).zip(strip.chunks_exact(operand.channels)) {
                to[first..][..operand.channels].copy_from_slice(from);
            }
            first += operand.channels;
            start += pattern(operand);
        }
        self.kernels.blend(joined, &[], weight, how, target);
    }
}

/// Statistics of strips, taken while they are written.
#[derive(Debug)]
pub(super) struct Tally<'a> {
    kernels: &'a Kernels,
    moments: Option<&'a mut [Moments]>,
    /// For each value of a pattern a pivot, a sum of differences from it, and a sum of their squares.
    sums: &'a mut [f32],
    pixels: usize,
}

impl<'a> Tally<'a> {
    /// Pixels that are summed in f32.
    const SUMMED: usize = 1024;

    /// Values of scratch for so many channels.
    pub(super) fn scratch(channels: usize) -> usize {
        3 * channels * period(channels)
    }

    pub(super) fn new(kernels: &'a Kernels, moments: Option<&'a mut [Moments]>, scratch: &'a mut [f32]) -> Self {
        let mut tally = Self { kernels, moments, sums: scratch, pixels: 0 };
        tally.reset();
        tally
    }

    /// Begins new sums around the means so far.
    fn reset(&mut self) {
        let Some(moments) = &self.moments else { return };
        let (pivots, sums) = self.sums.split_at_mut(self.sums.len() / 3);
        let means = moments.iter().map(Moments::pivot).cycle();
        pivots.iter_mut().zip(means).for_each(|(p, mean)| *p = mean);
        sums.fill(0.0);
        self.pixels = 0;
    }

    pub(super) fn add(&mut self, strip: &[f32]) {
        let Some(moments) = &self.moments else { return };
        self.kernels.measure(strip, self.sums);
        self.pixels += strip.len() / moments.len();
        if self.pixels >= Self::SUMMED {
            self.merge();
        }
    }

    fn merge(&mut self) {
        let Some(moments) = self.moments.as_deref_mut() else { return };
        if self.pixels == 0 {
            return;
        }
        let channels = moments.len();
        let (pivots, rest) = self.sums.split_at(self.sums.len() / 3);
        let (sums, squares) = rest.split_at(rest.len() / 2);
        for (c, moments) in moments.iter_mut().enumerate() {
            let all = |values: &[f32]| values.iter().skip(c).step_by(channels).map(|v| f64::from(*v)).sum();
            moments.add(self.pixels, pivots[c], all(sums), all(squares));
        }
        self.reset();
    }

    pub(super) fn finish(mut self) {
        self.merge();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_fill_vectors() {
        for channels in 1..=128 {
            let values = period(channels) * channels;
            assert!(values.is_multiple_of(16) && (256..=STRIP).contains(&values), "{channels}: {values}");
        }
        assert_eq!((period(512), period(511)), (1, 1));
    }
}
