//! A tensor each of whose pixels comes from a few neighbours in one view: pooling and resizing, first down, then across.

use super::kernel::{Blend, Gather, Kernels};
use super::layer::{Demands, Inputs, Operand, Work, pieces};
use super::strip::{PIECES, Reading, Tally};
use crate::taps::{Combination, Separable};

/// How one step is computed: an output row at a time.
#[derive(Debug)]
pub(super) struct Neighbours {
    taps: Separable,
    reading: Reading,
    channels: usize,
    /// Pixels of an input row, and of an output row.
    from: usize,
    to: usize,
    /// Rows that one thread takes at once.
    together: usize,
    demands: Demands,
}

impl Neighbours {
    pub(super) fn new(operands: &[Operand], taps: Separable) -> Self {
        let channels = operands.iter().map(|o| o.channels).sum();
        let from = operands[0].size.width as usize;
        let to = taps.columns.positions.len() / taps.columns.each;
        let reading = Reading::new(operands, 0..operands.len(), from);
        let scratch = reading.scratch(operands) + from * channels + Tally::scratch(channels);
        let rows = taps.rows.positions.len() / taps.rows.each;
        let together = rows.div_ceil(PIECES);
        let demands = Demands { pieces: rows.div_ceil(together), shared: 0, scratch };
        Self { taps, reading, channels, from, to, together, demands }
    }

    pub(super) fn demands(&self) -> Demands {
        self.demands
    }

    pub(super) fn run(&self, kernels: &Kernels, inputs: Inputs<'_>, work: Work<'_>) {
        let line = self.to * self.channels;
        let Separable { combination, rows, columns } = &self.taps;
        let blend = match combination {
            Combination::Sum => Blend::Add,
            Combination::Maximum => Blend::Maximum,
        };
        let pieces = pieces(work.tensor, self.together * line, work.moments, self.channels);
        work.crew.each(work.scratch, pieces, |(index, values, moments), scratch| {
            let (mut reader, scratch) = self.reading.start(kernels, inputs, scratch);
            let (row, scratch) = scratch.split_at_mut(self.from * self.channels);
            let mut tally = Tally::new(kernels, moments, &mut scratch[..Tally::scratch(self.channels)]);
            let taps = rows.positions.chunks_exact(rows.each).zip(rows.weights.chunks_exact(rows.each));
            let taps = taps.skip(index * self.together);
            for (target, (positions, weights)) in values.chunks_exact_mut(line).zip(taps) {
                for (index, (y, weight)) in positions.iter().zip(weights).enumerate() {
                    let how = if index == 0 { Blend::Set } else { blend };
                    reader.blend(y * self.from..(y + 1) * self.from, *weight, how, row);
                }
                let (channels, combination) = (self.channels, *combination);
                kernels.gather(Gather { source: row, channels, taps: columns, combination, target });
                tally.add(target);
            }
            tally.finish();
        });
    }
}
