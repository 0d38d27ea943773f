//! A tensor whose pixels were channels of one view: a block of pixels from each.

use super::kernel::{Blend, Kernels};
use super::layer::{Demands, Inputs, Operand, Work, pieces};
use super::strip::{PIECES, Reading, Tally};

/// How one step is computed: an input row, and so a block's rows of the output, at a time.
#[derive(Debug)]
pub(super) struct Shuffle {
    /// Pixels along each side of a block.
    factor: usize,
    reading: Reading,
    /// Of the output.
    channels: usize,
    /// Pixels of an input row.
    from: usize,
    /// Input rows that one thread takes at once.
    together: usize,
    demands: Demands,
}

impl Shuffle {
    pub(super) fn new(operands: &[Operand], factor: usize) -> Self {
        let all: usize = operands.iter().map(|o| o.channels).sum();
        let channels = all / (factor * factor);
        let (from, rows) = (operands[0].size.width as usize, operands[0].size.height as usize);
        let reading = Reading::new(operands, 0..operands.len(), from);
        let scratch = reading.scratch(operands) + from * all + Tally::scratch(channels);
        let together = rows.div_ceil(PIECES);
        let demands = Demands { pieces: rows.div_ceil(together), shared: 0, scratch };
        Self { factor, reading, channels, from, together, demands }
    }

    pub(super) fn demands(&self) -> Demands {
        self.demands
    }

    pub(super) fn run(&self, kernels: &Kernels, inputs: Inputs<'_>, work: Work<'_>) {
        let area = self.factor * self.factor;
        let line = self.from * self.factor * self.channels;
        let block = self.factor * line;
        let pieces = pieces(work.tensor, self.together * block, work.moments, self.channels);
        work.crew.each(work.scratch, pieces, |(index, values, moments), scratch| {
            let (mut reader, scratch) = self.reading.start(kernels, inputs, scratch);
            let (row, scratch) = scratch.split_at_mut(self.from * self.channels * area);
            let mut tally = Tally::new(kernels, moments, &mut scratch[..Tally::scratch(self.channels)]);
            for (y, block) in (index * self.together..).zip(values.chunks_exact_mut(block)) {
                reader.blend(y * self.from..(y + 1) * self.from, 1.0, Blend::Set, row);
                for (below, target) in block.chunks_exact_mut(line).enumerate() {
                    let positions = target.chunks_exact_mut(self.factor * self.channels);
                    for (pixels, channels) in positions.zip(row.chunks_exact(self.channels * area)) {
                        for (beside, pixel) in pixels.chunks_exact_mut(self.channels).enumerate() {
                            let first = below * self.factor + beside;
                            let values = channels.iter().skip(first).step_by(area);
                            pixel.iter_mut().zip(values).for_each(|(to, value)| *to = *value);
                        }
                    }
                    tally.add(target);
                }
            }
            tally.finish();
        });
    }
}
