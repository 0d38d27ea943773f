//! Convolution of 3 x 3 with stride 1 by Winograd's algorithm: F(4 x 4, 3 x 3) takes 36 products where the definition takes 144,
//! F(2 x 2, 3 x 3) takes 16 in place of 36.
//!
//! Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks" (2015). The output is cut into tiles of 4 x 4 pixels. For a block
//! of tiles, the input is transformed into 36 values per tile and channel, each of the 36 is multiplied with its own matrix of weights,
//! and what comes out is transformed back. Weights are transformed in f64 when they are packed. Threads take strips of blocks; where
//! there are few, they share each of the three stages of a block.
//! Rounding errors are about ten times those of the definition. That would be too much in bf16: there tiles are of 2 x 2 pixels,
//! with errors about as large as the definition's. Pixels and products are f32 then; transformed input and weights are rounded.

use microtome_io::Size;

use super::buffer::Buffer;
use super::kernel::{Block, InputTile, Kernels, Lanes, OutputTile, Rows, Runs, Sides, Words};
use super::layer::{Demands, FEW_PIECES, Group, InputBlocks, Inputs, Load, Packed, Values, Work, pieces};
use super::loader::{MOST_CHANNELS, Window};
use super::moments::{LaneMap, Moments};
use super::program::Convolution;
use crate::network::{Extent, Padding};

/// Tiles in a block: as many as make good use of the weights, as few as second-level caches hold; eight of them side by side.
const TILES: usize = 32;
const COLUMNS: usize = 8;
/// Layers with more weights than this per position of the kernel read them from memory, once per block: their blocks are twice as large.
const MANY_WEIGHTS: usize = 1 << 17;
/// Sides of the output, in pixels, from which on tiles make up for their weights.
const LEAST: u64 = 12;
/// Channels of one block, of pixels and of transformed input.
const CHANNELS: usize = 16;
/// Between the values of two positions, so that they do not all fall into the same set of a cache.
const SKEW: usize = 80;

/// `G` of F(2, 3), section 4.1 of the paper.
const WEIGHTS_OF_TWO: [[f64; 3]; 4] = [[1.0, 0.0, 0.0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0.0, 0.0, 1.0]];

/// `G` of F(4, 3), equation 12.
const WEIGHTS_OF_FOUR: [[f64; 3]; 6] = [
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
    sides: Sides,
    input: InputBlocks,
    output: Size,
    channels: usize,
    groups: Vec<Group>,
    /// Vectors of output channels on the way back: for each its first channel and how many it holds.
    vectors: Vec<(usize, usize, LaneMap)>,
    runs: Runs,
    /// Tiles of a block along each axis.
    block: Extent,
    division: Division,
}

/// What threads take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Division {
    /// Blocks side by side across the tensor, with all that is to be done with them.
    Strips,
    /// Of one block after the other first channels, then positions, then rows of tiles.
    Stages,
}

impl Winograd {
    /// Whether it takes less time than the definition: where the transforms are paid for by enough channels,
    /// and many times as many weights by enough tiles that share them.
    pub(super) fn pays(kernels: &Kernels, convolution: &Convolution, parts: &[usize], output: Size) -> bool {
        // Where the definition takes half the time and tiles are smaller, the transforms weigh more.
        let least = CHANNELS * kernels.words().channels();
        let three = Extent { height: 3, width: 3 };
        // A transposed convolution without a stride has its taps in another order, and is one like any other.
        convolution.pixels() == Extent::ONE
            && convolution.kernel == three
            && convolution.before == (Padding { height: 1, width: 1 })
            && convolution.stride == Extent::ONE
            && parts.iter().all(|c| *c >= least)
            && convolution.output >= least
            && output.width.min(output.height) >= LEAST
    }

    pub(super) fn new(kernels: &Kernels, convolution: &Convolution, parts: &[usize], output: Size) -> Self {
        let sides = kernels.sides();
        let block = match kernels.words() {
            Words::F32 => Block::Sixteen,
            Words::Bf16 => Block::Eight,
        };
        let input = InputBlocks::new(parts, block, kernels.words());
        let channels = convolution.output;
        // Values on the way are not for the statistics, and fill whole vectors.
        let groups = Group::divide(kernels, channels.next_multiple_of(kernels.lanes()), channels);
        let vectors = (0..channels).step_by(kernels.lanes()).map(|first| {
            let count = (channels - first).min(kernels.lanes());
            (first, count, LaneMap::new(Lanes::Single, kernels.lanes(), first, count, channels))
        });
        let tiles = |pixels: u64| pixels.div_ceil(sides.output as u64);
        let tiles = Size::new(tiles(output.width), tiles(output.height));
        let block = Self::block(tiles, sides, parts.iter().sum::<usize>() * channels);
        let words = input.block.words();
        let channels_stride = sides.positions() * (block.area() * words + SKEW);
        let runs = Runs::new((0..input.of.len()).map(|b| b * channels_stride), words);
        let strips = (tiles.height as usize).div_ceil(block.height);
        let division = if strips >= FEW_PIECES { Division::Strips } else { Division::Stages };
        Self { sides, input, output, channels, groups, vectors: vectors.collect(), runs, block, division }
    }

    /// Tiles of a block along each axis, for a layer with so many weights per position of its kernel.
    /// Blocks are as square as can be, because neighbours read the pixels on their common borders twice, and all equally large.
    fn block(tiles: Size, sides: Sides, weights: usize) -> Extent {
        let most = if weights > MANY_WEIGHTS || sides.output < 4 { 2 * TILES } else { TILES };
        let equal = |all: usize, most: usize| all.div_ceil(all.div_ceil(most));
        let width = equal(tiles.width as usize, COLUMNS);
        Extent { width, height: equal(tiles.height as usize, most / width) }
    }

    /// Rows and columns of pixels that a block reads.
    fn window(&self) -> Window {
        let Sides { output, input } = self.sides;
        let side = |tiles: usize| tiles * output + input - output;
        Window { y: 0, x: 0, rows: side(self.block.height), step: 1, phases: 1, columns: side(self.block.width) }
    }

    fn window_words(&self) -> usize {
        self.window().rows * self.window().row() * CHANNELS
    }

    /// Words of the pixels that are loaded together.
    fn pixels(&self) -> usize {
        self.window_words() * self.input.of.len().min(MOST_CHANNELS / CHANNELS)
    }

    /// Words from one position's transformed input to the next's, and from one block of channels to the next.
    fn input_strides(&self) -> (usize, usize) {
        let position = self.block.area() * self.input.block.words() + SKEW;
        (position, self.sides.positions() * position)
    }

    /// Words of all transformed input, and of all products.
    fn stages(&self) -> (usize, usize) {
        (self.input.of.len() * self.input_strides().1, self.sides.positions() * self.product_stride())
    }

    /// Words from one position's products to the next's.
    fn product_stride(&self) -> usize {
        self.block.area() * self.lanes() + SKEW
    }

    /// Output channels with what fills the last vector.
    fn lanes(&self) -> usize {
        self.groups.iter().map(|g| g.channels).sum()
    }

    pub(super) fn demands(&self) -> Demands {
        let (inputs, products) = self.stages();
        let tiles = (self.output.height as usize).div_ceil(self.sides.output);
        let sums = self.sums();
        match self.division {
            Division::Strips => Demands {
                pieces: tiles.div_ceil(self.block.height),
                shared: 0,
                scratch: inputs + products + self.pixels().max(sums),
            },
            Division::Stages => Demands { pieces: tiles, shared: inputs + products, scratch: self.pixels().max(sums) },
        }
    }

    /// Values of the kernels' sums for all vectors.
    fn sums(&self) -> usize {
        self.vectors.iter().map(|(_, _, map)| map.sums()).sum()
    }

    fn group_weights(&self, group: &Group) -> usize {
        self.runs.words() / Kernels::step(group.form) * group.lanes
    }

    pub(super) fn pack(&self, values: &Values<'_>) -> Packed {
        let position: usize = self.groups.iter().map(|g| self.group_weights(g)).sum();
        let mut weights = Buffer::zeros(position * self.sides.positions());
        let words = self.input.block.words();
        let mut start = 0;
        for group in &self.groups {
            for (o, word) in (0..group.channels).flat_map(|o| (0..self.runs.words()).map(move |word| (o, word))) {
                let output = group.first + o;
                if output >= self.channels {
                    continue;
                }
                let place = start + word / Kernels::step(group.form) * group.lanes + group.lane(o, word);
                let transformed = self.input.channels(word / words, word % words).map(|input| match input {
                    Some(input) => self.transform(|y, x| values.weight(output, input, (y, x), (0, 0))),
                    None => [0.0; 36],
                });
                for i in 0..self.sides.positions() {
                    weights[i * position + place] = self.input.word(transformed.map(|values| values[i]));
                }
            }
            start += self.group_weights(group);
        }
        let mut bias = Buffer::zeros(self.channels.next_multiple_of(CHANNELS));
        (0..self.channels).for_each(|c| bias[c] = values.bias_of(c));
        Packed { weights, bias }
    }

    pub(super) fn run(&self, kernels: &Kernels, packed: &Packed, inputs: Inputs<'_>, work: Work<'_>) {
        match self.division {
            Division::Strips => self.run_by_strips(kernels, packed, inputs, work),
            Division::Stages => self.run_by_stages(kernels, packed, inputs, work),
        }
    }

    fn run_by_strips(&self, kernels: &Kernels, packed: &Packed, inputs: Inputs<'_>, work: Work<'_>) {
        let (transformed, products) = self.stages();
        let strips = pieces(work.tensor, self.block.height * self.tile_row(), work.moments, self.channels);
        work.crew.each(work.scratch, strips, |(index, values, mut moments), scratch| {
            let (transformed, scratch) = scratch.split_at_mut(transformed);
            let (products, scratch) = scratch.split_at_mut(products);
            for x in self.columns() {
                let y = index * self.block.height * self.sides.output;
                for (load, target) in self.loads(transformed) {
                    self.transform_input(kernels, inputs, &load, (y, x), target, scratch);
                }
                for (position, products) in products.chunks_exact_mut(self.product_stride()).enumerate() {
                    self.multiply(kernels, packed, position, transformed, products);
                }
                let products = &*products;
                self.transform_output(kernels, packed, (products, 0), x, values, moments.as_deref_mut(), scratch);
            }
        });
    }

    fn run_by_stages(&self, kernels: &Kernels, packed: &Packed, inputs: Inputs<'_>, mut work: Work<'_>) {
        let (transformed, products) = self.stages();
        let (transformed, rest) = work.shared.split_at_mut(transformed);
        let products = &mut rest[..products];
        let strip = self.block.height * self.tile_row();
        for (index, values) in work.tensor.chunks_mut(strip).enumerate() {
            let mut moments = work.moments.as_deref_mut().map(|moments| {
                let rows = self.block.height * self.channels;
                moments.chunks_mut(rows).nth(index).unwrap_or_default()
            });
            for x in self.columns() {
                let y = index * self.block.height * self.sides.output;
                work.crew.each(work.scratch, self.loads(transformed), |(load, target), scratch| {
                    self.transform_input(kernels, inputs, &load, (y, x), target, scratch);
                });
                let positions = products.chunks_exact_mut(self.product_stride()).enumerate();
                work.crew.each(work.scratch, positions, |(position, products), _| {
                    self.multiply(kernels, packed, position, transformed, products);
                });
                let rows = pieces(values, self.tile_row(), moments.as_deref_mut(), self.channels);
                work.crew.each(work.scratch, rows, |(row, values, moments), scratch| {
                    self.transform_output(kernels, packed, (products, row), x, values, moments, scratch);
                });
            }
        }
    }

    /// Values of one row of output tiles across the tensor.
    fn tile_row(&self) -> usize {
        self.sides.output * self.output.width as usize * self.channels
    }

    /// The first columns of the blocks.
    fn columns(&self) -> impl Iterator<Item = usize> {
        (0..self.output.width as usize).step_by(self.block.width * self.sides.output)
    }

    /// What is loaded together, each with the place of what it is transformed into.
    fn loads<'a>(&'a self, mut transformed: &'a mut [f32]) -> impl Iterator<Item = (Load, &'a mut [f32])> + Send {
        self.input.loads().map(move |load| {
            let length = load.blocks.len() * self.input_strides().1;
            let (own, rest) = std::mem::take(&mut transformed).split_at_mut(length);
            transformed = rest;
            (load, own)
        })
    }

    /// Some channels of the block whose first pixel is this one.
    fn transform_input(
        &self,
        kernels: &Kernels,
        inputs: Inputs<'_>,
        load: &Load,
        (y, x): (usize, usize),
        target: &mut [f32],
        scratch: &mut [f32],
    ) {
        let window = Window { y: y as isize - 1, x: x as isize - 1, ..self.window() };
        let (position_stride, channels_stride) = self.input_strides();
        let (plane, row_stride) = (self.window_words(), window.columns * CHANNELS);
        let (pixels, words) = (Block::Sixteen, self.input.block.words());
        super::loader::load(kernels.f32(), pixels, &inputs.part(load.part), load.channels, window, plane, scratch);
        for (output, input) in target.chunks_exact_mut(channels_stride).zip(scratch.chunks_exact(plane)) {
            for tile in 0..self.block.area() {
                let (row, column) = (tile / self.block.width, tile % self.block.width);
                let (from, to) = (self.sides.output * (row * row_stride + column * CHANNELS), tile * words);
                kernels.input_tile(InputTile { input, from, row_stride, output: &mut *output, to, position_stride });
            }
        }
    }

    /// One position's product of matrices: channels by tiles.
    fn multiply(&self, kernels: &Kernels, packed: &Packed, position: usize, transformed: &[f32], products: &mut [f32]) {
        let zeros = [0.0; 2 * CHANNELS];
        let each = packed.weights.len() / self.sides.positions();
        let mut weights = &packed.weights[position * each..][..each];
        for group in &self.groups {
            let (group_weights, rest) = weights.split_at(self.group_weights(group));
            weights = rest;
            let rows = Rows {
                rows: 1,
                pixels: self.block.area(),
                input: transformed,
                from: position * self.input_strides().0,
                row_stride: 0,
                runs: &self.runs,
                weights: group_weights,
                bias: &zeros,
                output: &mut *products,
                to: group.first,
                pixel_stride: self.lanes(),
                output_stride: 0,
                channels: group.channels,
                statistics: None,
            };
            kernels.rows(group.form, self.input.block, rows);
        }
    }

    /// From a block's products, from one row of its tiles on, as many rows as `values` hold, which are whole rows of the tensor.
    /// The block begins in column `x`.
    #[allow(clippy::too_many_arguments)]
    fn transform_output(
        &self,
        kernels: &Kernels,
        packed: &Packed,
        (products, first_row): (&[f32], usize),
        x: usize,
        values: &mut [f32],
        mut moments: Option<&mut [Moments]>,
        scratch: &mut [f32],
    ) {
        let (width, side) = (self.output.width as usize, self.sides.output);
        let (row_stride, pixel_stride) = (width * self.channels, self.channels);
        // Of the last blocks, only what lies inside the output.
        let rows = values.len() / row_stride;
        let columns = (width - x).min(self.block.width * side);
        let transform =
            |output: &mut [f32], (row, column): (usize, usize), vector: usize, statistics: Option<&mut [f32]>| {
                let (first, channels, _) = &self.vectors[vector];
                let tile = (first_row + row / side) * self.block.width + column / side;
                kernels.output_tile(OutputTile {
                    input: products,
                    from: tile * self.lanes() + first,
                    position_stride: self.product_stride(),
                    bias: &packed.bias[*first..],
                    output,
                    to: row * row_stride + (x + column) * pixel_stride + first,
                    row_stride,
                    pixel_stride,
                    rows: (rows - row).min(side),
                    columns: (columns - column).min(side),
                    channels: *channels,
                    statistics,
                });
            };
        if let Some(moments) = moments.as_deref_mut()
            && moments[0].is_empty()
        {
            // The last pixel of the first tile, away from the padding, tells around which values the others probably lie.
            (0..self.vectors.len()).for_each(|vector| transform(values, (0, 0), vector, None));
            let pixel = (rows.min(side) - 1) * row_stride + (x + columns.min(side) - 1) * pixel_stride;
            moments.iter_mut().zip(&values[pixel..]).for_each(|(moments, value)| *moments = Moments::around(*value));
        }
        let each = self.vectors[0].2.sums();
        let mut sums = scratch[..self.sums()].chunks_exact_mut(each);
        if let Some(moments) = &moments {
            self.vectors.iter().zip(&mut sums).for_each(|((_, _, map), sums)| map.begin(moments, sums));
        }
        for (row, column) in (0..rows).step_by(side).flat_map(|y| (0..columns).step_by(side).map(move |x| (y, x))) {
            let mut sums = scratch.chunks_exact_mut(each);
            for vector in 0..self.vectors.len() {
                let sums = sums.next().filter(|_| moments.is_some());
                transform(values, (row, column), vector, sums);
            }
        }
        if let Some(moments) = moments {
            for ((_, _, map), sums) in self.vectors.iter().zip(scratch.chunks_exact(each)) {
                map.merge(sums, rows * columns, moments);
            }
        }
    }

    /// `G w Gᵀ`, rounded to f32 once; as many values as there are positions.
    fn transform(&self, weight: impl Fn(usize, usize) -> f32) -> [f32; 36] {
        let side = self.sides.input;
        let g: &[[f64; 3]] = if side == 4 { &WEIGHTS_OF_TWO } else { &WEIGHTS_OF_FOUR };
        let mut rows = [[0.0; 3]; 6];
        for (row, g) in rows.iter_mut().zip(g) {
            for (x, value) in row.iter_mut().enumerate() {
                *value = (0..3).map(|y| g[y] * f64::from(weight(y, x))).sum();
            }
        }
        let mut values = [0.0; 36];
        for (i, value) in values[..self.sides.positions()].iter_mut().enumerate() {
            let (row, g) = (rows[i / side], g[i % side]);
            *value = (0..3).map(|x| row[x] * g[x]).sum::<f64>() as f32;
        }
        values
    }
}
