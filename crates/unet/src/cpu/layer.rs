//! What algorithms share: what they read and write, the division of channels, and packed weights.

use std::collections::BTreeMap;
use std::ops::Range;

use microtome_io::Size;

use super::bf16;
use super::buffer::Buffer;
use super::kernel::{Block, Kernels, Lanes, Words};
use super::loader::{Channels, MOST_CHANNELS, Source};
use super::moments::{LaneMap, Moments};
use super::program::Convolution;
use crate::crew::Crew;
use crate::weights::Weight;

/// A part of a view with its places in memory.
#[derive(Debug, Clone)]
pub(super) struct Operand {
    /// Where in the arena.
    pub(super) place: Range<usize>,
    pub(super) channels: usize,
    pub(super) size: Size,
    /// Where among the factors, summands and slopes: those of its normalisation, and those of its activation.
    pub(super) affine: Option<Range<usize>>,
    pub(super) slopes: Option<Range<usize>>,
}

impl Operand {
    pub(super) fn source<'a>(&self, values: &'a [f32], affines: &'a [f32]) -> Source<'a> {
        Source {
            values,
            channels: self.channels,
            size: self.size,
            affine: self.affine.clone().map(|range| &affines[range]),
            slopes: self.slopes.clone().map(|range| &affines[range]),
        }
    }
}

/// All tensors but the one that is being written.
#[derive(Debug, Clone, Copy)]
pub(super) struct Others<'a> {
    before: &'a [f32],
    /// Where the rest begins.
    end: usize,
    after: &'a [f32],
}

impl<'a> Others<'a> {
    /// Takes one tensor out of the arena.
    pub(super) fn split(arena: &'a mut [f32], output: &Range<usize>) -> (Self, &'a mut [f32]) {
        let (before, rest) = arena.split_at_mut(output.start);
        let (written, after) = rest.split_at_mut(output.len());
        (Self { before, end: output.end, after }, written)
    }

    /// The values of a tensor.
    pub(super) fn get(self, place: &Range<usize>) -> &'a [f32] {
        match place.start.checked_sub(self.end) {
            Some(start) => &self.after[start..][..place.len()],
            None => &self.before[place.clone()],
        }
    }
}

/// What a layer reads.
#[derive(Debug, Clone, Copy)]
pub(super) struct Inputs<'a> {
    pub(super) operands: &'a [Operand],
    pub(super) others: Others<'a>,
    /// Factors, summands and slopes of all views.
    pub(super) affines: &'a [f32],
}

impl<'a> Inputs<'a> {
    /// One part of the view.
    pub(super) fn part(&self, part: usize) -> Source<'a> {
        let operand = &self.operands[part];
        operand.source(self.others.get(&operand.place), self.affines)
    }
}

/// What a layer writes, and the memory and the threads that it works with.
#[derive(Debug)]
pub(super) struct Work<'a> {
    pub(super) crew: &'a Crew,
    /// The tensor that is written.
    pub(super) tensor: &'a mut [f32],
    /// For each piece of the tensor, those of its channels, if they are wanted.
    pub(super) moments: Option<&'a mut [Moments]>,
    /// For all threads, and for the one that leads.
    pub(super) shared: &'a mut [f32],
    pub(super) scratch: &'a mut [f32],
}

/// What an algorithm asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Demands {
    /// Pieces of the tensor whose moments are taken one by one.
    pub(super) pieces: usize,
    /// Values of scratch for all threads, and for each.
    pub(super) shared: usize,
    pub(super) scratch: usize,
}

/// Fewer pieces than these leave threads idle: then a layer is divided in another way.
pub(super) const FEW_PIECES: usize = 4;

/// A tensor in pieces of so many values, with their places in the order and their moments.
pub(super) fn pieces<'a>(
    tensor: &'a mut [f32],
    values: usize,
    moments: Option<&'a mut [Moments]>,
    channels: usize,
) -> impl Iterator<Item = (usize, &'a mut [f32], Option<&'a mut [Moments]>)> + Send {
    let mut moments = moments.map(|moments| moments.chunks_exact_mut(channels));
    let numbered = tensor.chunks_mut(values).enumerate();
    numbered.map(move |(index, piece)| (index, piece, moments.as_mut().and_then(Iterator::next)))
}

/// Some of the input's channels: those that one block of the scratch holds.
#[derive(Debug, Clone, Copy)]
pub(super) struct InputBlock {
    /// Index of the part of the view.
    pub(super) part: usize,
    /// The first channel, of the part and of the view.
    pub(super) first: usize,
    input: usize,
    channels: usize,
}

/// Blocks that are loaded together.
#[derive(Debug, Clone)]
pub(super) struct Load {
    pub(super) blocks: Range<usize>,
    /// Which part of the view they are of, and which of its channels they hold.
    pub(super) part: usize,
    pub(super) channels: Channels,
}

/// A view's channels in blocks; no block holds channels of two parts.
#[derive(Debug, Clone)]
pub(super) struct InputBlocks {
    pub(super) block: Block,
    words: Words,
    pub(super) of: Vec<InputBlock>,
}

impl InputBlocks {
    pub(super) fn new(parts: &[usize], block: Block, words: Words) -> Self {
        let most = block.words() * words.channels();
        let mut of = Vec::new();
        let mut input = 0;
        for (part, &channels) in parts.iter().enumerate() {
            for first in (0..channels).step_by(most) {
                let count = (channels - first).min(most);
                of.push(InputBlock { part, first, input: input + first, channels: count });
            }
            input += channels;
        }
        Self { block, words, of }
    }

    /// The widest blocks that need the fewest words in all.
    pub(super) fn tight(parts: &[usize], words: Words) -> Self {
        let all =
            |b: &Block| parts.iter().map(|c| c.div_ceil(words.channels()).next_multiple_of(b.words())).sum::<usize>();
        let block = Block::ALL.into_iter().min_by_key(all).unwrap_or(Block::Sixteen);
        Self::new(parts, block, words)
    }

    /// All blocks, in the order in which they are loaded.
    pub(super) fn loads(&self) -> impl Iterator<Item = Load> + Send {
        let together = MOST_CHANNELS / (self.block.words() * self.words.channels());
        let mut start = 0;
        let parts = self.of.chunk_by(|a, b| a.part == b.part);
        parts.flat_map(move |blocks| blocks.chunks(together)).map(move |blocks| {
            let first = start;
            start += blocks.len();
            let count = blocks.iter().map(|b| b.channels).sum();
            Load { blocks: first..start, part: blocks[0].part, channels: Channels { first: blocks[0].first, count } }
        })
    }

    /// The view's channels that a word of a block holds, as far as there are any.
    pub(super) fn channels(&self, block: usize, word: usize) -> [Option<usize>; 2] {
        let block = self.of[block];
        let channel = |place: usize| (place < block.channels).then_some(block.input + place);
        match self.words {
            Words::F32 => [channel(word), None],
            Words::Bf16 => [channel(2 * word), channel(2 * word + 1)],
        }
    }

    /// The weights for these channels, as a word holds them.
    pub(super) fn word(&self, weights: [f32; 2]) -> f32 {
        match self.words {
            Words::F32 => weights[0],
            Words::Bf16 => bf16::pair(weights[0], weights[1]),
        }
    }
}

/// Output channels that one kernel computes together.
#[derive(Debug, Clone)]
pub(super) struct Group {
    pub(super) form: Lanes,
    pub(super) first: usize,
    pub(super) channels: usize,
    pub(super) lanes: usize,
    pub(super) map: LaneMap,
}

impl Group {
    /// All groups of so many channels, which repeat after `period`.
    pub(super) fn divide(kernels: &Kernels, channels: usize, period: usize) -> Vec<Self> {
        let mut first = 0;
        let mut next = |(form, count): (Lanes, usize)| {
            let lanes = kernels.group_lanes(form);
            let map = LaneMap::new(form, lanes, first, count, period);
            first += count;
            Self { form, first: first - count, channels: count, lanes, map }
        };
        kernels.groups(channels).into_iter().map(&mut next).collect()
    }

    /// Whether there are moments of the group's channels yet, of which there are `period` in all.
    pub(super) fn has_moments(&self, moments: &[Moments]) -> bool {
        !moments[self.first % moments.len()].is_empty()
    }

    /// Sets out the moments of the group's channels around one value of each.
    pub(super) fn expect(&self, values: &[f32], moments: &mut [Moments]) {
        let period = moments.len();
        for (c, value) in values[..self.channels].iter().enumerate() {
            let moments = &mut moments[(self.first + c) % period];
            if moments.is_empty() {
                *moments = Moments::around(*value);
            }
        }
    }

    /// The lane of the group's channel `c` for an input word: paired channels have two.
    pub(super) fn lane(&self, c: usize, word: usize) -> usize {
        if self.form == Lanes::Paired { 2 * c + word % 2 } else { c }
    }
}

/// Weights and bias of one layer in the order in which the kernels read them.
#[derive(Debug)]
pub(super) struct Packed {
    pub(super) weights: Buffer,
    pub(super) bias: Buffer,
}

impl Packed {
    pub(super) fn bytes(&self) -> u64 {
        Buffer::bytes(self.weights.len()) + Buffer::bytes(self.bias.len())
    }
}

/// A layer's weights as the model has them.
#[derive(Debug)]
pub(super) struct Values<'a> {
    convolution: &'a Convolution,
    weights: &'a [f32],
    bias: Option<&'a [f32]>,
}

impl<'a> Values<'a> {
    /// # Panics
    /// If a weight is missing: they have been matched with the network before.
    pub(super) fn new(convolution: &'a Convolution, weights: &'a BTreeMap<String, Weight>) -> Self {
        let values = |name: &String| &*weights[name].values;
        Self { convolution, weights: values(&convolution.weight), bias: convolution.bias.as_ref().map(values) }
    }

    /// The weight from an input to an output channel at a position of the kernel, for one of the pixels that the position gives.
    pub(super) fn weight(&self, output: usize, input: usize, at: (usize, usize), pixel: (usize, usize)) -> f32 {
        let c = self.convolution;
        // Output × input × kernel; transposed: input × output × kernel.
        let (outer, inner, (y, x)) = match c.transposed {
            None => (output * c.input + input, c.kernel, at),
            Some(transposed) => match transposed.weight(at, pixel) {
                Some(place) => (input * c.output + output, transposed.kernel, place),
                None => return 0.0,
            },
        };
        self.weights[(outer * inner.height + y) * inner.width + x]
    }

    /// The bias of an output channel; 0 if there is none.
    pub(super) fn bias_of(&self, output: usize) -> f32 {
        self.bias.map_or(0.0, |b| b[output])
    }

    /// The biases of all groups, one after the other, as the kernels read them.
    pub(super) fn bias(&self, groups: &[Group]) -> Buffer {
        let mut bias = Buffer::zeros(groups.iter().map(|g| g.lanes).sum());
        let mut start = 0;
        for group in groups {
            for c in 0..group.channels {
                bias[start + group.lane(c, 0)] = self.bias_of((group.first + c) % self.convolution.output);
            }
            start += group.lanes;
        }
        bias
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_waste_as_little_as_can_be() {
        let words = |parts: &[usize]| InputBlocks::tight(parts, Words::F32).block.words();
        assert_eq!(words(&[3]), 4);
        assert_eq!(words(&[8, 8]), 8);
        assert_eq!(words(&[32, 16]), 16);
        assert_eq!(words(&[20]), 4);
        let blocks = InputBlocks::tight(&[5, 6], Words::F32);
        let channel = |block, word| blocks.channels(block, word)[0];
        assert_eq!((channel(0, 4), channel(0, 5), channel(1, 0)), (Some(4), None, Some(5)));
    }

    #[test]
    fn a_word_of_bf16_holds_two_channels() {
        let words = |parts: &[usize]| InputBlocks::tight(parts, Words::Bf16).block.words();
        assert_eq!([words(&[3]), words(&[8, 8]), words(&[16]), words(&[32, 32]), words(&[24, 8])], [4, 4, 8, 16, 4]);
        let blocks = InputBlocks::tight(&[5, 6], Words::Bf16);
        assert_eq!(blocks.of.iter().map(|b| (b.part, b.first)).collect::<Vec<_>>(), [(0, 0), (1, 0)]);
        assert_eq!(blocks.channels(0, 2), [Some(4), None]);
        assert_eq!(blocks.channels(1, 1), [Some(7), Some(8)]);
        assert_eq!(blocks.channels(1, 3), [None, None]);
        assert_eq!(blocks.word([1.0, -2.0]).to_bits(), bf16::pair(1.0, -2.0).to_bits());
    }
}
