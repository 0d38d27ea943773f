//! A tensor each of whose pixels comes from a few neighbours in one view: pooling and resizing, first down, then across.

use std::ops::Range;

use super::kernel::{Blend, Gather, Kernels};
use super::layer::{Memory, Operand, Others};
use super::strip::{Reading, Tally};
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
    scratch: usize,
}

impl Neighbours {
    pub(super) fn new(operands: &[Operand], taps: Separable) -> Self {
        let channels = operands.iter().map(|o| o.channels).sum();
        let from = operands[0].size.width as usize;
        let to = taps.columns.positions.len() / taps.columns.each;
        let reading = Reading::new(operands, 0..operands.len(), from);
        let scratch = reading.scratch(operands) + from * channels + Tally::scratch(channels);
        Self { taps, reading, channels, from, to, scratch }
    }

    /// Values of scratch that it needs.
    pub(super) fn scratch(&self) -> usize {
        self.scratch
    }

    pub(super) fn run(&self, kernels: &Kernels, operands: &[Operand], output: &Range<usize>, memory: &mut Memory<'_>) {
        let (others, tensor) = Others::split(memory.arena, output);
        let (mut reader, scratch) = self.reading.start(kernels, operands, (others, memory.affines), memory.scratch);
        let (row, scratch) = scratch.split_at_mut(self.from * self.channels);
        let sums = &mut scratch[..Tally::scratch(self.channels)];
        let mut tally = Tally::new(kernels, memory.moments.as_deref_mut(), sums);
        let Separable { combination, rows, columns } = &self.taps;
        let blend = match combination {
            Combination::Sum => Blend::Add,
            Combination::Maximum => Blend::Maximum,
        };
        let taps = rows.positions.chunks_exact(rows.each).zip(rows.weights.chunks_exact(rows.each));
        for (target, (positions, weights)) in tensor.chunks_exact_mut(self.to * self.channels).zip(taps) {
            for (index, (y, weight)) in positions.iter().zip(weights).enumerate() {
                let how = if index == 0 { Blend::Set } else { blend };
                reader.blend(y * self.from..(y + 1) * self.from, *weight, how, row);
            }
            let (channels, combination) = (self.channels, *combination);
            kernels.gather(Gather { source: row, channels, taps: columns, combination, target });
            tally.add(target);
        }
        tally.finish();
    }
}
