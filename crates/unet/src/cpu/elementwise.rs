//! A tensor each of whose pixels comes from the same pixel of one or two views: residual sums, curved activations, views written out.

use std::ops::Range;

use super::kernel::{Blend, Curve, Kernels};
use super::layer::{Demands, Inputs, Operand, Work, pieces};
use super::strip::{PIECES, Reading, STRIP, Tally};

/// How one step is computed: strip by strip, while first-level caches hold it.
#[derive(Debug)]
pub(super) struct Elementwise {
    first: Reading,
    second: Option<Reading>,
    curve: Option<Curve>,
    /// Whether the first view is where the tensor is written.
    over: bool,
    channels: usize,
    /// Pixels of a strip, and strips that one thread takes at once.
    strip: usize,
    together: usize,
    demands: Demands,
}

impl Elementwise {
    /// For the sum of two views, of which the first has so many of the operands, or of one view that has all of them.
    /// The first operand may be where the tensor is written, if it is the whole of the first view.
    pub(super) fn new(operands: &[Operand], first: usize, curve: Option<Curve>, output: &Range<usize>) -> Self {
        let channels: usize = operands[..first].iter().map(|o| o.channels).sum();
        let strip = (STRIP / channels).max(1);
        let over = operands[0].place == *output;
        let second = (first < operands.len()).then(|| Reading::new(operands, first..operands.len(), strip));
        let first = Reading::new(operands, 0..first, strip);
        let scratch =
            first.scratch(operands) + second.as_ref().map_or(0, |s| s.scratch(operands)) + Tally::scratch(channels);
        let strips = output.len().div_ceil(strip * channels);
        let together = strips.div_ceil(PIECES);
        let demands = Demands { pieces: strips.div_ceil(together), shared: 0, scratch };
        Self { first, second, curve, over, channels, strip, together, demands }
    }

    pub(super) fn demands(&self) -> Demands {
        self.demands
    }

    pub(super) fn run(&self, kernels: &Kernels, inputs: Inputs<'_>, work: Work<'_>) {
        let pixels = self.together * self.strip;
        let pieces = pieces(work.tensor, pixels * self.channels, work.moments, self.channels);
        work.crew.each(work.scratch, pieces, |(index, values, moments), scratch| {
            let (mut first, scratch) = self.first.start(kernels, inputs, scratch);
            let (mut second, scratch) = match &self.second {
                Some(second) => {
                    let (reader, scratch) = second.start(kernels, inputs, scratch);
                    (Some(reader), scratch)
                }
                None => (None, scratch),
            };
            let mut tally = Tally::new(kernels, moments, &mut scratch[..Tally::scratch(self.channels)]);
            let mut start = index * pixels;
            for strip in values.chunks_mut(self.strip * self.channels) {
                let pixels = start..start + strip.len() / self.channels;
                start = pixels.end;
                if self.over {
                    first.bend(strip);
                } else {
                    first.blend(pixels.clone(), 1.0, Blend::Set, strip);
                }
                if let Some(second) = &mut second {
                    second.blend(pixels, 1.0, Blend::Add, strip);
                }
                if let Some(curve) = self.curve {
                    kernels.curve(curve, strip);
                }
                tally.add(strip);
            }
            tally.finish();
        });
    }
}
