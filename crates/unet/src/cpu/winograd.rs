//! Convolution of 3 x 3 with stride 1 by Winograd's F(4 x 4, 3 x 3): 36 products where the definition takes 144.
//!
//! Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks" (2015). The output is cut into tiles of 4 x 4 pixels. For a block
//! of tiles, the input is transformed into 36 values per tile and channel, each of the 36 is multiplied with its own matrix of weights,
//! and what comes out is transformed back. Weights are transformed in f64 when they are packed.
//! Rounding errors are about ten times those of the definition.

use std::ops::Range;

use microtome_io::Size;

use super::buffer::Buffer;
use super::kernel::{Block, InputTile, Kernels, Lanes, OutputTile, Rows, Runs};
use super::layer::{Group, InputBlocks, Memory, Operand, Packed, Values};
use super::loader::{MOST_CHANNELS, Window, load};
use super::moments::{LaneMap, LaneSums};
use super::program::Convolution;
use crate::network::Extent;

/// Pixels along each side of an output tile, and of the input tile that it depends on.
const OUTPUT: usize = 4;
const INPUT: usize = 6;
const POSITIONS: usize = INPUT * INPUT;
/// Tiles in a block: as many as make good use of the weights, as few as second-level caches hold; eight of them side by side.
const TILES: usize = 32;
const COLUMNS: usize = 8;
/// Layers with more weights than this per position of the kernel read them from memory, once per block: their blocks are twice as large.
const MANY_WEIGHTS: usize = 1 << 17;
const WORDS: usize = Block::Sixteen.words();
/// Between the values of two positions, so that they do not all fall into the same set of a cache.
const SKEW: usize = 5 * WORDS;

/// `G`, equation 12 of the paper.
const WEIGHTS: [[f64; 3]; INPUT] = [
    [1.0 / 4.0, 0.0, 0.0],
    [-1.0 / 6.0, -1.0 / 6.0, -1.0 / 6.0],
    [-1.0 / 6.0, 1.0 / 6.0, -1.0 / 6.0],
    [1.0 / 24.0, 1.0 / 12.0, 1.0 / 6.0],
    [1.0 / 24.0, -1.0 / 12.0, 1.0 / 6.0],
    [0.0, 0.0, 1.0],
];

/// How one layer is computed.
#[derive(Debug)]
pub(super) struct Winograd {
    input: InputBlocks,
    output: Size,
    channels: usize,
    groups: Vec<Group>,
    /// Vectors of output channels on the way back: for each its first channel and how many it holds.
    vectors: Vec<(usize, usize, LaneMap)>,
    runs: Runs,
    /// Tiles of a block along each axis.
    block: Extent,
}

impl Winograd {
    /// Whether it takes less time than the definition: where the transforms are paid for by enough channels,
    /// and four times as many weights by enough tiles that share them.
    pub(super) fn pays(convolution: &Convolution, parts: &[usize], output: Size) -> bool {
        let three = Extent { height: 3, width: 3 };
        convolution.expansion.is_none()
            && convolution.kernel == three
            && convolution.stride == Extent::ONE
            && parts.iter().all(|c| *c >= WORDS)
            && convolution.output >= WORDS
            && output.width.min(output.height) >= 3 * OUTPUT as u64
    }

    pub(super) fn new(kernels: &Kernels, convolution: &Convolution, parts: &[usize], output: Size) -> Self {
        let input = InputBlocks::new(parts, Block::Sixteen);
        let channels = convolution.output;
        // Values on the way are not for the statistics, and fill whole vectors.
        let groups = Group::divide(kernels, channels.next_multiple_of(kernels.lanes()), channels);
        let vectors = (0..channels).step_by(kernels.lanes()).map(|first| {
            let count = (channels - first).min(kernels.lanes());
            (first, count, LaneMap::new(Lanes::Single, kernels.lanes(), first, count, channels))
        });
        let tiles = Size::new(output.width.div_ceil(OUTPUT as u64), output.height.div_ceil(OUTPUT as u64));
        let block = Self::block(tiles, parts.iter().sum::<usize>() * channels);
        let runs = Runs::new((0..input.of.len()).map(|b| b * block.area() * WORDS), WORDS);
        Self { output, channels, groups, vectors: vectors.collect(), runs, block, input }
    }

    /// Tiles of a block along each axis, for a layer with so many weights per position of its kernel.
    /// Blocks are as square as can be, because neighbours read the pixels on their common borders twice, and all equally large.
    fn block(tiles: Size, weights: usize) -> Extent {
        let most = if weights > MANY_WEIGHTS { 2 * TILES } else { TILES };
        let equal = |all: usize, most: usize| all.div_ceil(all.div_ceil(most));
        let width = equal(tiles.width as usize, COLUMNS);
        Extent { width, height: equal(tiles.height as usize, most / width) }
    }

    /// Rows and columns of pixels that a block reads.
    fn window(&self) -> Window {
        let side = |tiles: usize| tiles * OUTPUT + INPUT - OUTPUT;
        Window { y: 0, x: 0, rows: side(self.block.height), step: 1, phases: 1, columns: side(self.block.width) }
    }

    fn window_words(&self) -> usize {
        self.window().rows * self.window().row() * WORDS
    }

    /// Words of the pixels that are loaded together.
    fn pixels(&self) -> usize {
        self.window_words() * self.input.of.len().min(MOST_CHANNELS / WORDS)
    }

    /// Words from one position's transformed input to the next's, and the same for the products.
    fn strides(&self) -> (usize, usize) {
        let tiles = self.block.area();
        (self.input.of.len() * tiles * WORDS + SKEW, tiles * self.lanes() + SKEW)
    }

    /// Output channels with what fills the last vector.
    fn lanes(&self) -> usize {
        self.groups.iter().map(|g| g.channels).sum()
    }

    /// Values of scratch that it needs.
    pub(super) fn scratch(&self) -> usize {
        let (inputs, products) = self.strides();
        self.pixels() + POSITIONS * (inputs + products)
    }

    fn group_weights(&self, group: &Group) -> usize {
        self.runs.words() / Kernels::step(group.form) * group.lanes
    }

    pub(super) fn pack(&self, values: &Values<'_>) -> Packed {
        let position: usize = self.groups.iter().map(|g| self.group_weights(g)).sum();
        let mut weights = Buffer::zeros(position * POSITIONS);
        let mut start = 0;
        for group in &self.groups {
            for (o, word) in (0..group.channels).flat_map(|o| (0..self.runs.words()).map(move |word| (o, word))) {
                let output = group.first + o;
                let Some(input) = self.input.channel(word / WORDS, word % WORDS) else { continue };
                if output >= self.channels {
                    continue;
                }
                let place = start + word / Kernels::step(group.form) * group.lanes + group.lane(o, word);
                for (i, value) in transform(|y, x| values.weight(output, input, y, x)).into_iter().enumerate() {
                    weights[i * position + place] = value;
                }
            }
            start += self.group_weights(group);
        }
        let mut bias = Buffer::zeros(self.channels.next_multiple_of(WORDS));
        (0..self.channels).for_each(|c| bias[c] = values.bias_of(c));
        Packed { weights, bias }
    }

    pub(super) fn run(
        &self,
        kernels: &Kernels,
        packed: &Packed,
        operands: &[Operand],
        output: &Range<usize>,
        memory: &mut Memory<'_>,
    ) {
        let (width, height) = (self.output.width as usize, self.output.height as usize);
        for y in (0..height).step_by(self.block.height * OUTPUT) {
            for x in (0..width).step_by(self.block.width * OUTPUT) {
                self.transform_input(kernels, operands, (y, x), memory);
                self.multiply(kernels, packed, memory);
                self.transform_output(kernels, packed, output, (y, x), memory);
            }
        }
    }

    fn transform_input(
        &self,
        kernels: &Kernels,
        operands: &[Operand],
        (y, x): (usize, usize),
        memory: &mut Memory<'_>,
    ) {
        let window = Window { y: y as isize - 1, x: x as isize - 1, ..self.window() };
        let (pixels, rest) = memory.scratch.split_at_mut(self.pixels());
        let (stride, _) = self.strides();
        let tiles = self.block.area();
        let plane = self.window_words();
        for (blocks, part, channels) in self.input.loads() {
            let source = operands[part].source(memory.arena, memory.affines);
            load(kernels, Block::Sixteen, &source, channels, window, plane, pixels);
            for (index, pixels) in blocks.zip(pixels.chunks_exact(plane)) {
                for tile in 0..tiles {
                    let (row, column) = (tile / self.block.width, tile % self.block.width);
                    kernels.input_tile(InputTile {
                        input: pixels,
                        from: (row * OUTPUT * window.columns + column * OUTPUT) * WORDS,
                        row_stride: window.columns * WORDS,
                        output: rest,
                        to: (index * tiles + tile) * WORDS,
                        position_stride: stride,
                    });
                }
            }
        }
    }

    /// A product of matrices for each position: channels by tiles.
    fn multiply(&self, kernels: &Kernels, packed: &Packed, memory: &mut Memory<'_>) {
        let (stride, product_stride) = self.strides();
        let scratch = &mut memory.scratch[self.pixels()..];
        let (inputs, products) = scratch.split_at_mut(POSITIONS * stride);
        let (tiles, lanes) = (self.block.area(), self.lanes());
        let zeros = [0.0; 2 * WORDS];
        let mut weights = &*packed.weights;
        for position in 0..POSITIONS {
            for group in &self.groups {
                let (group_weights, rest) = weights.split_at(self.group_weights(group));
                weights = rest;
                let rows = Rows {
                    rows: 1,
                    pixels: tiles,
                    input: inputs,
                    from: position * stride,
                    row_stride: 0,
                    runs: &self.runs,
                    weights: group_weights,
                    bias: &zeros,
                    output: products,
                    to: position * product_stride + group.first,
                    pixel_stride: lanes,
                    output_stride: 0,
                    channels: group.channels,
                    statistics: None,
                };
                kernels.rows(group.form, Block::Sixteen, rows);
            }
        }
    }

    fn transform_output(
        &self,
        kernels: &Kernels,
        packed: &Packed,
        output: &Range<usize>,
        (y, x): (usize, usize),
        memory: &mut Memory<'_>,
    ) {
        let (stride, product_stride) = self.strides();
        let products = &memory.scratch[self.pixels() + POSITIONS * stride..];
        let tensor = &mut memory.arena[output.clone()];
        let (width, height) = (self.output.width as usize, self.output.height as usize);
        // Of the last blocks, only what lies inside the output.
        let rows = (height - y).min(self.block.height * OUTPUT);
        let columns = (width - x).min(self.block.width * OUTPUT);
        let mut sums: Vec<_> = match &memory.moments {
            Some(moments) => self.vectors.iter().map(|(_, _, map)| Some(LaneSums::new(map, moments))).collect(),
            None => self.vectors.iter().map(|_| None).collect(),
        };
        for row in (0..rows).step_by(OUTPUT) {
            for column in (0..columns).step_by(OUTPUT) {
                let tile = row / OUTPUT * self.block.width + column / OUTPUT;
                for ((first, channels, _), sums) in self.vectors.iter().zip(&mut sums) {
                    kernels.output_tile(OutputTile {
                        input: products,
                        from: tile * self.lanes() + first,
                        position_stride: product_stride,
                        bias: &packed.bias[*first..],
                        output: tensor,
                        to: ((y + row) * width + x + column) * self.channels + first,
                        row_stride: width * self.channels,
                        pixel_stride: self.channels,
                        rows: (rows - row).min(OUTPUT),
                        columns: (columns - column).min(OUTPUT),
                        channels: *channels,
                        statistics: sums.as_mut().map(LaneSums::as_mut),
                    });
                }
            }
        }
        if let Some(moments) = &mut memory.moments {
            for ((_, _, map), sums) in self.vectors.iter().zip(sums.iter().flatten()) {
                sums.merge(map, rows * columns, moments);
            }
        }
    }
}

/// `G w Gᵀ`, rounded to f32 once.
fn transform(weight: impl Fn(usize, usize) -> f32) -> [f32; POSITIONS] {
    let mut rows = [[0.0; 3]; INPUT];
    for (row, g) in rows.iter_mut().zip(&WEIGHTS) {
        for (x, value) in row.iter_mut().enumerate() {
            *value = (0..3).map(|y| g[y] * f64::from(weight(y, x))).sum();
        }
    }
    std::array::from_fn(|i| {
        let (row, g) = (rows[i / INPUT], WEIGHTS[i % INPUT]);
        (0..3).map(|x| row[x] * g[x]).sum::<f64>() as f32
    })
}
