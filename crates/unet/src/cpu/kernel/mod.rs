//! The few functions in which the time is spent, for each instruction set, behind an interface that is safe.
//!
//! Every call checks in all builds that what the kernel will read and write lies inside the slices it was given:
//! that takes a few comparisons per hundreds of multiplications.
#![allow(unsafe_code)]
// The kernels' parts must become part of the functions that enable the features, or they would be calls without them.
#![allow(clippy::inline_always)]

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "x86_64")]
mod avx512bf16;
#[cfg(all(test, target_os = "linux"))]
mod bounds;
mod curve;
mod elementwise;
mod generic;
#[cfg(test)]
mod pairs;
mod portable;
mod vector;
mod winograd;

use super::InstructionSet;
pub(super) use curve::Curve;
use elementwise::Elementwise;
pub(super) use elementwise::{Blend, Gather};

/// How many input words lie together for each pixel of the scratch that convolutions read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Block {
    Four,
    Eight,
    Sixteen,
}

impl Block {
    pub(super) const ALL: [Self; 3] = [Self::Sixteen, Self::Eight, Self::Four];

    pub(super) const fn words(self) -> usize {
        match self {
            Self::Four => 4,
            Self::Eight => 8,
            Self::Sixteen => 16,
        }
    }
}

/// What the words of scratch and weights hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Words {
    /// One f32: one channel.
    F32,
    /// Two bf16: neighbouring channels, the first in the lower half. The sums of their products are f32.
    Bf16,
}

impl Words {
    /// Channels of one word.
    pub(super) const fn channels(self) -> usize {
        match self {
            Self::F32 => 1,
            Self::Bf16 => 2,
        }
    }
}

/// How output channels share vectors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lanes {
    /// One vector holds half as many channels as it has lanes; neighbouring lanes take even and odd input words.
    Paired,
    /// One vector holds as many channels as it has lanes.
    Single,
    /// Two vectors at a time: fewer reads of the input for each product.
    Double,
}

/// The input words that one output pixel is a sum over, relative to the pixel's first word: runs of equal length.
#[derive(Debug, Clone)]
pub(super) struct Runs {
    offsets: Box<[usize]>,
    length: usize,
    /// One past the last word.
    reach: usize,
}

impl Runs {
    /// # Panics
    /// If the length is no multiple of four.
    pub(super) fn new(offsets: impl IntoIterator<Item = usize>, length: usize) -> Self {
        assert!(length.is_multiple_of(4), "a run of {length} words");
        let offsets: Box<[usize]> = offsets.into_iter().collect();
        let reach = offsets.iter().max().map_or(0, |last| last + length);
        Self { offsets, length, reach }
    }

    /// Words in all runs together.
    pub(super) fn words(&self) -> usize {
        self.offsets.len() * self.length
    }
}

/// Some rows of a convolution's output: neighbouring pixels, one group of channels.
#[derive(Debug)]
pub(super) struct Rows<'a> {
    pub(super) rows: usize,
    /// In each row.
    pub(super) pixels: usize,
    pub(super) input: &'a [f32],
    /// Where the first pixel's words are relative to, and how much farther on those of the next row.
    pub(super) from: usize,
    pub(super) row_stride: usize,
    pub(super) runs: &'a Runs,
    /// One vector, or two, for each word (for each two words if paired).
    pub(super) weights: &'a [f32],
    /// A value per lane; 0 in odd lanes if paired.
    pub(super) bias: &'a [f32],
    pub(super) output: &'a mut [f32],
    /// Where the first pixel's first channel goes.
    pub(super) to: usize,
    /// Distance between pixels, and between rows, of the output.
    pub(super) pixel_stride: usize,
    pub(super) output_stride: usize,
    /// Channels that are written, at most those of the group.
    pub(super) channels: usize,
    /// For each lane a pivot, the sum of differences from it, and the sum of their squares.
    pub(super) statistics: Option<&'a mut [f32]>,
}

/// The tiles of Winograd's algorithm: pixels along each side.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sides {
    pub(super) output: usize,
    pub(super) input: usize,
}

impl Sides {
    /// Values that stand for a tile of one channel.
    pub(super) const fn positions(self) -> usize {
        self.input * self.input
    }
}

/// A tile of input of sixteen channels, to be transformed.
#[derive(Debug)]
pub(super) struct InputTile<'a> {
    /// Blocks of sixteen f32.
    pub(super) input: &'a [f32],
    pub(super) from: usize,
    pub(super) row_stride: usize,
    /// For each position, words that hold sixteen channels.
    pub(super) output: &'a mut [f32],
    pub(super) to: usize,
    pub(super) position_stride: usize,
}

/// The values of all positions for one vector of channels, to be transformed into a tile of output.
#[derive(Debug)]
pub(super) struct OutputTile<'a> {
    pub(super) input: &'a [f32],
    pub(super) from: usize,
    pub(super) position_stride: usize,
    /// A value per lane.
    pub(super) bias: &'a [f32],
    pub(super) output: &'a mut [f32],
    pub(super) to: usize,
    pub(super) row_stride: usize,
    pub(super) pixel_stride: usize,
    /// Rows and columns that lie inside the output, at least one.
    pub(super) rows: usize,
    pub(super) columns: usize,
    /// Channels that are written, at most a vector.
    pub(super) channels: usize,
    /// As for [`Rows`], one vector.
    pub(super) statistics: Option<&'a mut [f32]>,
}

/// Pixels on their way into blocks of words, through `x * factor + summand` and a leaky ReLU.
#[derive(Debug)]
pub(super) struct LoadedRow<'a> {
    /// The first pixel's first channel and what follows.
    pub(super) source: &'a [f32],
    /// Distance between pixels of the source.
    pub(super) stride: usize,
    /// Distance to the row that is loaded next.
    pub(super) row_stride: usize,
    pub(super) pixels: usize,
    /// Channels that are read; blocks are filled up with 0.
    pub(super) channels: usize,
    /// The first block's first pixel and what follows.
    pub(super) target: &'a mut [f32],
    /// Distance between blocks of the target; pixels lie a block apart.
    pub(super) plane: usize,
    /// As many factors, summands and slopes as all blocks have room for channels.
    pub(super) factors: &'a [f32],
    pub(super) summands: &'a [f32],
    /// Factors for negative values.
    pub(super) slopes: &'a [f32],
}

/// Part of [`Rows`] as the kernels see it: pointers to the first word of each thing.
struct RawTile {
    input: *const f32,
    offsets: *const usize,
    runs: usize,
    length: usize,
    weights: *const f32,
    bias: *const f32,
    output: *mut f32,
    pixel_stride: usize,
    channels: usize,
    statistics: *mut f32,
}

/// [`InputTile`] likewise.
struct RawInputTile {
    input: *const f32,
    row_stride: usize,
    output: *mut f32,
    position_stride: usize,
}

/// [`OutputTile`] likewise.
struct RawOutputTile {
    input: *const f32,
    position_stride: usize,
    bias: *const f32,
    output: *mut f32,
    row_stride: usize,
    pixel_stride: usize,
    rows: usize,
    columns: usize,
    channels: usize,
    statistics: *mut f32,
}

/// [`LoadedRow`] likewise.
struct RawRow {
    source: *const f32,
    stride: usize,
    row_stride: usize,
    pixels: usize,
    channels: usize,
    target: *mut f32,
    plane: usize,
    factors: *const f32,
    summands: *const f32,
    slopes: *const f32,
}

type TileKernel = unsafe fn(&RawTile);
type RowLoader = unsafe fn(&RawRow);

/// One kernel for each number of pixels, for each [`Block`].
type Form = [&'static [TileKernel]; 3];

/// The kernels of one instruction set.
pub(super) struct Kernels {
    /// Lanes of a vector.
    lanes: usize,
    words: Words,
    single: Form,
    double: Option<Form>,
    paired: Option<Form>,
    /// Those that load f32, if its words hold something else.
    f32: Option<&'static Kernels>,
    sides: Sides,
    input_tile: unsafe fn(&RawInputTile),
    output_tile: unsafe fn(&RawOutputTile),
    load_row: [RowLoader; 3],
    elementwise: Elementwise,
}

/// The table of a kernel's instances: numbers of pixels in ascending order from 1.
macro_rules! by_pixels {
    ($kernel:ident<$content:ty>: $($pixels:literal)*) => {
        [
            &[$($kernel::<$content, $pixels, 4>),*],
            &[$($kernel::<$content, $pixels, 8>),*],
            &[$($kernel::<$content, $pixels, 16>),*],
        ]
    };
}
macro_rules! by_block {
    ($kernel:ident<$content:ty>) => {
        [$kernel::<$content, 4>, $kernel::<$content, 8>, $kernel::<$content, 16>]
    };
}
use {by_block, by_pixels};

impl std::fmt::Debug for Kernels {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Kernels").field("lanes", &self.lanes).finish_non_exhaustive()
    }
}

impl Kernels {
    /// # Panics
    /// If this CPU has not the instruction set: that is what makes all other functions safe to call.
    pub(super) fn of(set: InstructionSet, words: Words) -> &'static Self {
        let set = set.with(words);
        assert!(set.is_available(), "{set} is not available");
        match (set, words) {
            #[cfg(target_arch = "x86_64")]
            (InstructionSet::Avx512Bf16, _) => &avx512bf16::BF16,
            #[cfg(target_arch = "x86_64")]
            (InstructionSet::Avx512, Words::F32) => &avx512::F32,
            #[cfg(target_arch = "x86_64")]
            (InstructionSet::Avx512, Words::Bf16) => &avx512::BF16,
            #[cfg(target_arch = "x86_64")]
            (InstructionSet::Avx2, Words::F32) => &avx2::F32,
            #[cfg(target_arch = "x86_64")]
            (InstructionSet::Avx2, Words::Bf16) => &avx2::BF16,
            #[cfg(not(target_arch = "x86_64"))]
            (InstructionSet::Avx512Bf16 | InstructionSet::Avx512 | InstructionSet::Avx2, _) => {
                unreachable!("asserted above")
            }
            (InstructionSet::Portable, Words::F32) => &portable::F32,
            (InstructionSet::Portable, Words::Bf16) => &portable::BF16,
        }
    }

    /// Those of the same instruction set that load f32.
    pub(super) fn f32(&self) -> &Self {
        self.f32.unwrap_or(self)
    }

    /// The tiles that it transforms.
    pub(super) fn sides(&self) -> Sides {
        self.sides
    }

    /// What the words of [`rows`](Self::rows) and [`load_row`](Self::load_row) hold.
    pub(super) fn words(&self) -> Words {
        self.words
    }

    /// Lanes of a vector: 8 or 16.
    pub(super) fn lanes(&self) -> usize {
        self.lanes
    }

    /// How so many output channels are best divided: for each group its form and the number of its channels.
    pub(super) fn groups(&self, channels: usize) -> Vec<(Lanes, usize)> {
        let lanes = self.lanes;
        let mut groups = Vec::new();
        let mut rest = channels;
        while rest > 0 {
            let paired = self.paired.is_some();
            // Two vectors where the second is at least half full; a pair where one vector would be at most half full.
            let form = if self.double.is_some() && rest > lanes + if paired { lanes / 2 } else { 0 } {
                Lanes::Double
            } else if paired && rest <= lanes / 2 {
                Lanes::Paired
            } else {
                Lanes::Single
            };
            let count = rest.min(self.channels(form));
            groups.push((form, count));
            rest -= count;
        }
        groups
    }

    /// Output channels of one group.
    pub(super) fn channels(&self, form: Lanes) -> usize {
        match form {
            Lanes::Paired => self.lanes / 2,
            Lanes::Single => self.lanes,
            Lanes::Double => 2 * self.lanes,
        }
    }

    /// Lanes of one group: as many as there are values of bias, pivot, sum and squares.
    pub(super) fn group_lanes(&self, form: Lanes) -> usize {
        if form == Lanes::Double { 2 * self.lanes } else { self.lanes }
    }

    /// Input words that one group of weights is for.
    pub(super) fn step(form: Lanes) -> usize {
        if form == Lanes::Paired { 2 } else { 1 }
    }

    fn form(&self, form: Lanes) -> &Form {
        match form {
            Lanes::Paired => self.paired.as_ref(),
            Lanes::Single => Some(&self.single),
            Lanes::Double => self.double.as_ref(),
        }
        .expect("`groups` only names forms that there are")
    }

    /// Computes rows, in pieces of as many pixels as registers hold, as equal as can be. A piece goes down all rows before the next one
    /// begins, so that first-level caches still hold the input rows that neighbouring output rows have in common.
    ///
    /// # Panics
    /// If anything would be read or written outside of the slices.
    pub(super) fn rows(&self, form: Lanes, block: Block, rows: Rows<'_>) {
        if rows.rows == 0 || rows.pixels == 0 {
            return;
        }
        let kernels = self.form(form)[block as usize];
        let lanes = self.group_lanes(form);
        let (last_row, last) = (rows.rows - 1, rows.pixels - 1);
        let read = rows.from + last_row * rows.row_stride + last * block.words() + rows.runs.reach;
        let written = rows.to + last_row * rows.output_stride + last * rows.pixel_stride + rows.channels;
        assert!(read <= rows.input.len(), "{read} of {} words are read", rows.input.len());
        assert!(written <= rows.output.len(), "{written} of {} values are written", rows.output.len());
        assert!(rows.runs.words() / Self::step(form) * lanes <= rows.weights.len());
        assert!(lanes <= rows.bias.len());
        assert!(rows.channels <= self.channels(form));
        assert!(rows.statistics.as_ref().is_none_or(|s| 3 * lanes <= s.len()));
        let mut raw = RawTile {
            input: std::ptr::null(),
            offsets: rows.runs.offsets.as_ptr(),
            runs: rows.runs.offsets.len(),
            length: rows.runs.length,
            weights: rows.weights.as_ptr(),
            bias: rows.bias.as_ptr(),
            output: std::ptr::null_mut(),
            pixel_stride: rows.pixel_stride,
            channels: rows.channels,
            statistics: rows.statistics.map_or(std::ptr::null_mut(), <[f32]>::as_mut_ptr),
        };
        let input = rows.input[rows.from..].as_ptr();
        let output = rows.output[rows.to..].as_mut_ptr();
        let pieces = rows.pixels.div_ceil(kernels.len());
        let (least, longer) = (rows.pixels / pieces, rows.pixels % pieces);
        let mut x = 0;
        for piece in 0..pieces {
            let pixels = least + usize::from(piece < longer);
            for y in 0..rows.rows {
                raw.input = input.wrapping_add(y * rows.row_stride + x * block.words());
                raw.output = output.wrapping_add(y * rows.output_stride + x * rows.pixel_stride);
                // SAFETY: `of` has seen that the CPU has the instruction set. Weights, bias and statistics are read from their start.
                // The farthest word that is read is the farthest run's last word of the last row's last pixel, and the farthest one that
                // is written that pixel's last channel: both lie inside the slices by the assertions above.
                unsafe { kernels[pixels - 1](&raw) }
            }
            x += pixels;
        }
    }

    /// Transforms a tile of input.
    ///
    /// # Panics
    /// If the tile reads or writes outside of its slices.
    pub(super) fn input_tile(&self, tile: InputTile<'_>) {
        let InputTile { input, from, row_stride, output, to, position_stride } = tile;
        let side = self.sides.input;
        assert!(from + (side - 1) * row_stride + side * 16 <= input.len());
        assert!(to + (self.sides.positions() - 1) * position_stride + 16 / self.words.channels() <= output.len());
        let (input, output) = (input[from..].as_ptr(), output[to..].as_mut_ptr());
        let raw = RawInputTile { input, row_stride, output, position_stride };
        // SAFETY: the CPU has the instruction set; as many rows and columns of blocks are read as the tile has, and for each position
        // sixteen channels written, inside the slices by the assertions above.
        unsafe { (self.input_tile)(&raw) }
    }

    /// Transforms a tile of output.
    ///
    /// # Panics
    /// If the tile reads or writes outside of its slices.
    pub(super) fn output_tile(&self, tile: OutputTile<'_>) {
        let Sides { output: side, .. } = self.sides;
        assert!(tile.from + (self.sides.positions() - 1) * tile.position_stride + self.lanes <= tile.input.len());
        assert!(self.lanes <= tile.bias.len() && tile.channels <= self.lanes);
        assert!((1..=side).contains(&tile.rows) && (1..=side).contains(&tile.columns));
        let last = (tile.rows - 1) * tile.row_stride + (tile.columns - 1) * tile.pixel_stride;
        assert!(tile.to + last + tile.channels <= tile.output.len());
        assert!(tile.statistics.as_ref().is_none_or(|s| 3 * self.lanes <= s.len()));
        let raw = RawOutputTile {
            input: tile.input[tile.from..].as_ptr(),
            position_stride: tile.position_stride,
            bias: tile.bias.as_ptr(),
            output: tile.output[tile.to..].as_mut_ptr(),
            row_stride: tile.row_stride,
            pixel_stride: tile.pixel_stride,
            rows: tile.rows,
            columns: tile.columns,
            channels: tile.channels,
            statistics: tile.statistics.map_or(std::ptr::null_mut(), <[f32]>::as_mut_ptr),
        };
        // SAFETY: the CPU has the instruction set; a vector is read for each position, and the first `channels` of the stated rows and columns
        // written, inside the slices by the assertions above.
        unsafe { (self.output_tile)(&raw) }
    }

    /// Brings pixels into blocks.
    ///
    /// # Panics
    /// If the row reads or writes outside of its slices.
    pub(super) fn load_row(&self, block: Block, row: LoadedRow<'_>) {
        if row.pixels == 0 || row.channels == 0 {
            return;
        }
        let channels = block.words() * self.words.channels();
        let (last, blocks) = (row.pixels - 1, row.channels.div_ceil(channels));
        assert!(last * row.stride + row.channels <= row.source.len());
        assert!((blocks - 1) * row.plane + row.pixels * block.words() <= row.target.len());
        assert!([row.factors, row.summands, row.slopes].iter().all(|values| blocks * channels <= values.len()));
        let raw = RawRow {
            source: row.source.as_ptr(),
            stride: row.stride,
            row_stride: row.row_stride,
            pixels: row.pixels,
            channels: row.channels,
            target: row.target.as_mut_ptr(),
            plane: row.plane,
            factors: row.factors.as_ptr(),
            summands: row.summands.as_ptr(),
            slopes: row.slopes.as_ptr(),
        };
        // SAFETY: the CPU has the instruction set; all that is read and written lies inside the slices by the assertions above.
        unsafe { self.load_row[block as usize](&raw) }
    }
}
