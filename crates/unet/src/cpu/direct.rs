//! Convolution as it is defined, for every kernel, stride and transposition, on any number of channels.
//!
//! A band of output rows at a time, the loader brings the input rows that it needs into a scratch that second-level caches hold;
//! then, for each group of output channels, the kernels go along the rows.

use std::ops::Range;

use microtome_io::Size;

use super::buffer::Buffer;
use super::kernel::{Kernels, Rows, Runs};
use super::layer::{Group, InputBlocks, Memory, Operand, Packed, Values};
use super::loader::{Window, load};
use super::moments::LaneSums;
use super::program::Convolution;
use crate::network::Extent;

/// A band's scratch is at most this many words (640 KiB), or as many as there are weights: then reading the weights once per band
/// costs no more than reading the scratch once per group.
const BAND_WORDS: usize = 160 << 10;

/// Kernels take rows of so many pixels at a time, or one row; they are summed in f32 for the statistics.
const SUMMED: usize = 1024;

/// How one layer is computed.
#[derive(Debug)]
pub(super) struct Direct {
    input: InputBlocks,
    kernel: Extent,
    stride: Extent,
    expansion: Extent,
    /// Positions of the kernel.
    positions: Size,
    channels: usize,
    groups: Vec<Group>,
    runs: Runs,
    /// Rows of positions in one band.
    band: usize,
    /// For one block; the first row is that of each band.
    window: Window,
}

impl Direct {
    /// For a view of parts with so many channels, and an output of this size.
    pub(super) fn new(kernels: &Kernels, convolution: &Convolution, parts: &[usize], output: Size) -> Self {
        let Convolution { kernel, stride, .. } = *convolution;
        let expansion = convolution.pixels();
        let positions = Size::new(output.width / expansion.width as u64, output.height / expansion.height as u64);
        let (width, height) = (positions.width as usize, positions.height as usize);
        let input = InputBlocks::tight(parts);
        let channels = convolution.output * expansion.width;
        let groups = Group::divide(kernels, channels, convolution.output);

        let words = input.block.words();
        let phases = stride.width.min(kernel.width);
        let columns = width + (kernel.width - 1) / stride.width;
        let rows = |band: usize| (band - 1) * stride.height + kernel.height;
        let row = input.of.len() * phases * columns * words;
        let weights = input.of.len() * words * kernel.area() * channels;
        let fits = |band: &usize| rows(*band) * row <= BAND_WORDS.max(weights);
        let band = (1..=height).rev().find(fits).unwrap_or(1);
        let window = Window {
            y: 0,
            x: -(((kernel.width - 1) / 2) as isize),
            rows: rows(band),
            step: stride.width,
            phases,
            columns,
        };
        let at = |block: usize, y: usize| (block * window.rows + y) * window.row() * words;
        let lines = (0..input.of.len()).flat_map(|block| (0..kernel.height).map(move |y| (block, y)));
        let runs = if stride.width == 1 {
            // What lies side by side under the kernel also does so in the scratch.
            Runs::new(lines.map(|(block, y)| at(block, y)), kernel.width * words)
        } else {
            let columns = |x: usize| ((x % stride.width) * window.columns + x / stride.width) * words;
            let offsets = lines.flat_map(|(block, y)| (0..kernel.width).map(move |x| at(block, y) + columns(x)));
            Runs::new(offsets, words)
        };
        Self { input, kernel, stride, expansion, positions, channels: convolution.output, groups, runs, band, window }
    }

    /// Values of scratch that it needs.
    pub(super) fn scratch(&self) -> usize {
        self.input.of.len() * self.block_words()
    }

    fn block_words(&self) -> usize {
        self.window.rows * self.window.row() * self.input.block.words()
    }

    fn group_weights(&self, group: &Group) -> usize {
        self.runs.words() / Kernels::step(group.form) * group.lanes
    }

    pub(super) fn pack(&self, values: &Values<'_>) -> Packed {
        let words = self.input.block.words();
        let all: usize = self.groups.iter().map(|g| self.group_weights(g)).sum();
        let mut weights = Buffer::zeros(all * self.expansion.height);
        let mut start = 0;
        for below in 0..self.expansion.height {
            for group in &self.groups {
                let packed = &mut weights[start..][..self.group_weights(group)];
                start += packed.len();
                // The order of the runs: block, row, column, word.
                let mut word = 0;
                for block in 0..self.input.of.len() {
                    for (y, x) in (0..self.kernel.height).flat_map(|y| (0..self.kernel.width).map(move |x| (y, x))) {
                        for c in 0..words {
                            let place = word / Kernels::step(group.form) * group.lanes;
                            word += 1;
                            let Some(input) = self.input.channel(block, c) else { continue };
                            for o in 0..group.channels {
                                let (output, beside) =
                                    ((group.first + o) % self.channels, (group.first + o) / self.channels);
                                packed[place + group.lane(o, c)] = values.weight(output, input, y + below, x + beside);
                            }
                        }
                    }
                }
            }
        }
        Packed { weights, bias: values.bias(&self.groups) }
    }

    pub(super) fn run(
        &self,
        kernels: &Kernels,
        packed: &Packed,
        operands: &[Operand],
        output: &Range<usize>,
        memory: &mut Memory<'_>,
    ) {
        let height = self.positions.height as usize;
        for top in (0..height).step_by(self.band) {
            let rows = self.band.min(height - top);
            self.load(kernels, operands, top, memory);
            self.band(kernels, packed, top..top + rows, output, memory);
        }
    }

    /// Brings what a band reads into the scratch.
    fn load(&self, kernels: &Kernels, operands: &[Operand], top: usize, memory: &mut Memory<'_>) {
        let y = (top * self.stride.height) as isize - ((self.kernel.height - 1) / 2) as isize;
        let window = Window { y, ..self.window };
        let plane = self.block_words();
        for (blocks, part, channels) in self.input.loads() {
            let source = operands[part].source(memory.arena, memory.affines);
            let target = &mut memory.scratch[blocks.start * plane..blocks.end * plane];
            load(kernels, self.input.block, &source, channels, window, plane, target);
        }
    }

    fn band(
        &self,
        kernels: &Kernels,
        packed: &Packed,
        rows: Range<usize>,
        output: &Range<usize>,
        memory: &mut Memory<'_>,
    ) {
        let scratch = &*memory.scratch;
        let tensor = &mut memory.arena[output.clone()];
        let (width, words) = (self.positions.width as usize, self.input.block.words());
        // Side by side lie, for each position, its pixels of one row.
        let pixel_stride = self.channels * self.expansion.width;
        let row_stride = self.stride.height * self.window.row() * words;
        let (top, together) = (rows.start, (SUMMED / width).max(1));
        let mut weights = &*packed.weights;
        for below in 0..self.expansion.height {
            let mut bias = &*packed.bias;
            for group in &self.groups {
                let (group_weights, rest) = weights.split_at(self.group_weights(group));
                weights = rest;
                let (group_bias, rest) = bias.split_at(group.lanes);
                bias = rest;
                for rows in rows.clone().step_by(together).map(|y| y..(y + together).min(rows.end)) {
                    let mut sums = memory.moments.as_ref().map(|moments| LaneSums::new(&group.map, moments));
                    let (y, count) = (rows.start, rows.len());
                    let rows = Rows {
                        rows: count,
                        pixels: width,
                        input: scratch,
                        from: (y - top) * row_stride,
                        row_stride,
                        runs: &self.runs,
                        weights: group_weights,
                        bias: group_bias,
                        output: tensor,
                        to: (y * self.expansion.height + below) * width * pixel_stride + group.first,
                        pixel_stride,
                        output_stride: self.expansion.height * width * pixel_stride,
                        channels: group.channels,
                        statistics: sums.as_mut().map(LaneSums::as_mut),
                    };
                    kernels.rows(group.form, self.input.block, rows);
                    if let (Some(sums), Some(moments)) = (&sums, &mut memory.moments) {
                        sums.merge(&group.map, count * width, moments);
                    }
                }
            }
        }
    }
}
