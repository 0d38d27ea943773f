//! Convolution as it is defined, for every kernel, stride and transposition, on any number of channels.
//!
//! A band of output rows at a time, the loader brings the input rows that it needs into a scratch that second-level caches hold;
//! then, for each group of output channels, the kernels go along the rows. Threads take bands; where there are few, groups.

use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use microtome_io::Size;

use super::buffer::Buffer;
use super::kernel::{Kernels, Rows, Runs};
use super::layer::{Demands, FEW_PIECES, Group, InputBlocks, Inputs, Load, Packed, Values, Work, pieces};
use super::loader::{Window, load};
use super::moments::{LaneMap, Moments};
use super::program::Convolution;
use crate::network::{Extent, Padding};

/// A band's scratch is at most this many words (640 KiB), or as many as there are weights: then reading the weights once per band
/// costs no more than reading the scratch once per group.
const BAND_WORDS: usize = 160 << 10;

/// Kernels take rows of so many pixels at a time, or one row; they are summed in f32 for the statistics.
const SUMMED: usize = 1024;

/// How one layer is computed.
#[derive(Debug)]
pub(super) struct Direct {
    input: InputBlocks,
    before: Padding,
    stride: Extent,
    expansion: Extent,
    /// Positions of the kernel.
    positions: Size,
    channels: usize,
    groups: Vec<Group>,
    shares: Vec<Share>,
    /// What shares read: all of the kernel but in transposed convolutions.
    readings: Vec<Reading>,
    /// Rows of positions in one band.
    band: usize,
    division: Division,
    /// For one block; the first row is that of each band.
    window: Window,
}

/// What threads take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Division {
    /// Bands, one after the other; each is loaded by the thread that computes it.
    Bands,
    /// Shares of one band after the other; each band is loaded once for all.
    Shares,
}

/// A group of output channels in one of the rows that a position expands to.
#[derive(Debug, Clone)]
struct Share {
    group: usize,
    below: usize,
    /// Index of what it reads.
    reading: usize,
    /// Where its weights and its bias lie among the packed ones.
    weights: Range<usize>,
    bias: Range<usize>,
}

/// The part of the kernel that weighs anything for a share, and the words under it.
#[derive(Debug)]
struct Reading {
    part: Part,
    runs: Runs,
}

/// Some rows and columns of the kernel, at least one of each.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Part {
    rows: Range<usize>,
    columns: Range<usize>,
}

impl Part {
    /// What there are weights for, to a group of channels in one of the rows that a position expands to.
    fn of(convolution: &Convolution, group: &Group, below: usize) -> Self {
        let Convolution { kernel, output, transposed, .. } = convolution;
        let Some(transposed) = transposed else {
            return Self { rows: 0..kernel.height, columns: 0..kernel.width };
        };
        let pixels = group.first / output..(group.first + group.channels).div_ceil(*output);
        let reach = |taps: usize, weighs: &dyn Fn(usize) -> bool| {
            let weighing = || (0..taps).filter(|tap| weighs(*tap));
            let first = weighing().next().unwrap_or(0);
            first..weighing().last().unwrap_or(first) + 1
        };
        let weighs = |y, x| pixels.clone().any(|beside| transposed.weight((y, x), (below, beside)).is_some());
        Self {
            rows: reach(kernel.height, &|y| (0..kernel.width).any(|x| weighs(y, x))),
            columns: reach(kernel.width, &|x| (0..kernel.height).any(|y| weighs(y, x))),
        }
    }

    /// Rows and columns, in the order of the runs.
    fn positions(&self) -> impl Iterator<Item = (usize, usize)> {
        let columns = self.columns.clone();
        self.rows.clone().flat_map(move |y| columns.clone().map(move |x| (y, x)))
    }
}

/// Where pixels of one share go.
#[derive(Debug)]
struct Target<'a> {
    values: &'a mut [f32],
    /// Of the first pixel.
    to: usize,
    pixel_stride: usize,
    row_stride: usize,
}

impl Direct {
    /// For a view of parts with so many channels, and an output of this size.
    pub(super) fn new(kernels: &Kernels, convolution: &Convolution, parts: &[usize], output: Size) -> Self {
        let Convolution { kernel, before, stride, .. } = *convolution;
        let expansion = convolution.pixels();
        let positions = Size::new(output.width / expansion.width as u64, output.height / expansion.height as u64);
        let (width, height) = (positions.width as usize, positions.height as usize);
        let input = InputBlocks::tight(parts, kernels.words());
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
        let window =
            Window { y: 0, x: -(before.width as isize), rows: rows(band), step: stride.width, phases, columns };
        let at = |block: usize, y: usize| (block * window.rows + y) * window.row() * words;
        let runs = |Part { rows, columns }: &Part| {
            let lines = (0..input.of.len()).flat_map(|block| rows.clone().map(move |y| (block, y)));
            if stride.width == 1 {
                // What lies side by side under the kernel also does so in the scratch.
                let first = columns.start * words;
                return Runs::new(lines.map(|(block, y)| at(block, y) + first), columns.len() * words);
            }
            let column = |x: usize| ((x % stride.width) * window.columns + x / stride.width) * words;
            Runs::new(lines.flat_map(|(block, y)| columns.clone().map(move |x| at(block, y) + column(x))), words)
        };
        let mut readings: Vec<Reading> = Vec::new();
        let mut shares = Vec::with_capacity(groups.len() * expansion.height);
        let mut weights = 0;
        for below in 0..expansion.height {
            let mut bias = 0;
            for (index, group) in groups.iter().enumerate() {
                let part = Part::of(convolution, group, below);
                let reading = readings.iter().position(|r| r.part == part).unwrap_or_else(|| {
                    let runs = runs(&part);
                    readings.push(Reading { part, runs });
                    readings.len() - 1
                });
                let length = readings[reading].runs.words() / Kernels::step(group.form) * group.lanes;
                let (w, b) = (weights..weights + length, bias..bias + group.lanes);
                (weights, bias) = (w.end, b.end);
                shares.push(Share { group: index, below, reading, weights: w, bias: b });
            }
        }
        let division =
            if height.div_ceil(band) >= FEW_PIECES.min(shares.len()) { Division::Bands } else { Division::Shares };
        let channels = convolution.output;
        Self { input, before, stride, expansion, positions, channels, groups, shares, readings, band, division, window }
    }

    pub(super) fn demands(&self) -> Demands {
        let loaded = self.input.of.len() * self.block_words();
        let bands = (self.positions.height as usize).div_ceil(self.band);
        let widest = self.groups.iter().map(|g| g.channels).max().unwrap_or(0);
        match self.division {
            Division::Bands => Demands { pieces: bands, shared: 0, scratch: loaded },
            Division::Shares => Demands {
                pieces: self.shares.len(),
                shared: loaded,
                scratch: self.band * self.positions.width as usize * widest,
            },
        }
    }

    fn block_words(&self) -> usize {
        self.window.rows * self.window.row() * self.input.block.words()
    }

    pub(super) fn pack(&self, values: &Values<'_>) -> Packed {
        let words = self.input.block.words();
        let mut weights = Buffer::zeros(self.shares.last().map_or(0, |share| share.weights.end));
        for Share { group, below, reading, weights: place, .. } in &self.shares {
            let (group, packed) = (&self.groups[*group], &mut weights[place.clone()]);
            // The order of the runs: block, row, column, word.
            let mut word = 0;
            for block in 0..self.input.of.len() {
                for at in self.readings[*reading].part.positions() {
                    for c in 0..words {
                        let place = word / Kernels::step(group.form) * group.lanes;
                        word += 1;
                        let inputs = self.input.channels(block, c);
                        for o in 0..group.channels {
                            let (output, beside) =
                                ((group.first + o) % self.channels, (group.first + o) / self.channels);
                            let weight = |input| values.weight(output, input, at, (*below, beside));
                            packed[place + group.lane(o, c)] =
                                self.input.word(inputs.map(|input| input.map_or(0.0, weight)));
                        }
                    }
                }
            }
        }
        Packed { weights, bias: values.bias(&self.groups) }
    }

    pub(super) fn run(&self, kernels: &Kernels, packed: &Packed, inputs: Inputs<'_>, work: Work<'_>) {
        match self.division {
            Division::Bands => self.run_by_bands(kernels, packed, inputs, work),
            Division::Shares => self.run_by_shares(kernels, packed, inputs, work),
        }
    }

    fn run_by_bands(&self, kernels: &Kernels, packed: &Packed, inputs: Inputs<'_>, work: Work<'_>) {
        let (height, row) = (self.positions.height as usize, self.row_values());
        let bands = pieces(work.tensor, self.band * row * self.expansion.height, work.moments, self.channels);
        work.crew.each(work.scratch, bands, |(index, values, mut moments), scratch| {
            let top = index * self.band;
            self.load(kernels, inputs, top, scratch);
            for share in &self.shares {
                let target = Target {
                    values,
                    to: share.below * row + self.groups[share.group].first,
                    pixel_stride: self.pixel_values(),
                    row_stride: self.expansion.height * row,
                };
                let rows = self.band.min(height - top);
                self.compute(kernels, packed, share, rows, scratch, target, moments.as_deref_mut());
            }
        });
    }

    fn run_by_shares(&self, kernels: &Kernels, packed: &Packed, inputs: Inputs<'_>, mut work: Work<'_>) {
        let (height, width, row) = (self.positions.height as usize, self.positions.width as usize, self.row_values());
        for (index, values) in work.tensor.chunks_mut(self.band * row * self.expansion.height).enumerate() {
            let top = index * self.band;
            let rows = self.band.min(height - top);
            self.load(kernels, inputs, top, work.shared);
            let loaded = &*work.shared;
            let values = Mutex::new(values);
            let mut moments = work.moments.as_deref_mut().map(|moments| moments.chunks_exact_mut(self.channels));
            let shares = self.shares.iter().map(|share| (share, moments.as_mut().and_then(Iterator::next)));
            work.crew.each(work.scratch, shares, |(share, moments), scratch| {
                let group = &self.groups[share.group];
                let pixel = group.channels;
                let own = Target { values: scratch, to: 0, pixel_stride: pixel, row_stride: width * pixel };
                self.compute(kernels, packed, share, rows, loaded, own, moments);
                // Side by side in the tensor lie channels of several shares: threads copy theirs one after the other.
                let mut values = values.lock().unwrap_or_else(PoisonError::into_inner);
                for (y, line) in scratch.chunks_exact(width * pixel).take(rows).enumerate() {
                    let to = (y * self.expansion.height + share.below) * row + group.first;
                    let pixels = values[to..].chunks_mut(self.pixel_values());
                    pixels.zip(line.chunks_exact(pixel)).for_each(|(to, from)| to[..pixel].copy_from_slice(from));
                }
            });
        }
    }

    /// Values of a position's pixels in one row: side by side lie, for each position, its pixels.
    fn pixel_values(&self) -> usize {
        self.channels * self.expansion.width
    }

    /// Values of one row of the output.
    fn row_values(&self) -> usize {
        self.positions.width as usize * self.pixel_values()
    }

    /// Brings what a band reads into the scratch.
    fn load(&self, kernels: &Kernels, inputs: Inputs<'_>, top: usize, scratch: &mut [f32]) {
        let y = (top * self.stride.height) as isize - self.before.height as isize;
        let window = Window { y, ..self.window };
        let plane = self.block_words();
        for Load { blocks, part, channels } in self.input.loads() {
            let target = &mut scratch[blocks.start * plane..blocks.end * plane];
            load(kernels, self.input.block, &inputs.part(part), channels, window, plane, target);
        }
    }

    /// One share of a band of so many rows, from what has been loaded for the band.
    #[allow(clippy::too_many_arguments)]
    fn compute(
        &self,
        kernels: &Kernels,
        packed: &Packed,
        share: &Share,
        rows: usize,
        loaded: &[f32],
        target: Target<'_>,
        mut moments: Option<&mut [Moments]>,
    ) {
        let group = &self.groups[share.group];
        let (width, words) = (self.positions.width as usize, self.input.block.words());
        let row_stride = self.stride.height * self.window.row() * words;
        let Target { values, to, pixel_stride, row_stride: output_stride } = target;
        let convolve = |output: &mut [f32],
                        (y, x): (usize, usize),
                        (rows, pixels): (usize, usize),
                        statistics: Option<&mut [f32]>| {
            let first = to + y * output_stride + x * pixel_stride;
            let rows = Rows {
                rows,
                pixels,
                input: loaded,
                from: y * row_stride + x * words,
                row_stride,
                runs: &self.readings[share.reading].runs,
                weights: &packed.weights[share.weights.clone()],
                bias: &packed.bias[share.bias.clone()],
                output,
                to: first,
                pixel_stride,
                output_stride,
                channels: group.channels,
                statistics,
            };
            kernels.rows(group.form, self.input.block, rows);
        };
        if let Some(moments) = moments.as_deref_mut()
            && !group.has_moments(moments)
        {
            // The middle of the band, far from the padding, tells around which values the others probably lie.
            let (y, x) = (rows / 2, width / 2);
            convolve(values, (y, x), (1, 1), None);
            group.expect(&values[to + y * output_stride + x * pixel_stride..], moments);
        }
        let together = (SUMMED / width).max(1);
        for y in (0..rows).step_by(together) {
            let count = together.min(rows - y);
            match &mut moments {
                Some(moments) => {
                    let sums = &mut [0.0; 3 * LaneMap::MOST][..group.map.sums()];
                    group.map.begin(moments, sums);
                    convolve(values, (y, 0), (count, width), Some(sums));
                    group.map.merge(sums, count * width, moments);
                }
                None => convolve(values, (y, 0), (count, width), None),
            }
        }
    }
}
