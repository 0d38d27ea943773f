//! What a slide looks like where nothing lies on it, found in histograms of its cells.

use microtome_io::{Pixels, SampleType, Samples, Size};
use serde::{Deserialize, Serialize};

use super::TissueOptions;

/// Bins of a histogram: one for each value below 256, and 128 for each doubling above, so that a bin is never wider than a 128th of its
/// values.
const BINS: usize = 256 + 8 * 128;

/// Classes of a difference between neighbours: 0, 1, 2 to 3, 4 to 7, ...
const OCTAVES: usize = 17;

/// The weights with which a histogram is smoothed: JPEG leaves combs of two or three levels in it.
const SMOOTHING: [u64; 5] = [1, 2, 3, 2, 1];

/// The empty background of one channel: what differs from the mode by more than the tolerance lies on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Background {
    /// The sample that empty cells have most often.
    pub mode: u16,
    /// How far an empty cell may be from it.
    pub tolerance: u16,
}

impl Background {
    /// True for a sample that empty cells do not have.
    pub(super) fn excludes(self, sample: u16) -> bool {
        sample.abs_diff(self.mode) > self.tolerance
    }
}

/// A peak that may be background.
#[derive(Debug, Clone, Copy)]
struct Candidate {
    background: Background,
    evidence: Evidence,
}

/// Why it may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Evidence {
    /// Its cells are like their neighbours.
    Flat,
    /// They are more like their neighbours than the rest.
    Flatter,
    /// There is no rest: a channel of nothing but noise, or a slide of nothing but tissue.
    NoObjects,
}

/// What is empty on a slide.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Empty {
    /// One entry per channel.
    pub(super) background: Vec<Background>,
    /// Cells of one of these values in all channels lie outside the scanned region; they are empty whatever the background is.
    padding: Vec<u16>,
}

impl Empty {
    /// For each cell of a picture whether something lies on it.
    pub(super) fn occupied(&self, pixels: &Pixels) -> Vec<bool> {
        match pixels.samples() {
            Samples::U8(samples) => self.occupied_samples(samples),
            Samples::U16(samples) => self.occupied_samples(samples),
        }
    }

    fn occupied_samples<T: Copy + Into<u16>>(&self, samples: &[T]) -> Vec<bool> {
        let is_occupied = |cell: &[T]| {
            let differs = cell.iter().zip(&self.background).any(|(&v, b)| b.excludes(v.into()));
            differs && !self.padding.iter().any(|&value| cell.iter().all(|&v| v.into() == value))
        };
        samples.chunks_exact(self.background.len()).map(is_occupied).collect()
    }
}

/// Cells of one channel, counted by value and by how much they differ from their neighbours.
#[derive(Debug, Clone)]
struct Histogram {
    /// `BINS` x `OCTAVES`.
    cells: Vec<u64>,
}

/// Cells of a slide.
#[derive(Debug, Clone)]
pub(super) struct Histograms {
    channels: Vec<Histogram>,
    /// Cells of exactly 0 in all channels among their like: what scanners put where they did not look.
    black: u64,
    /// The same of the largest sample.
    white: u64,
    /// All cells.
    count: u64,
    largest: u16,
}

impl Histograms {
    pub(super) fn new(channels: usize, sample: SampleType) -> Self {
        let largest = match sample {
            SampleType::U8 => u16::from(u8::MAX),
            SampleType::U16 => u16::MAX,
        };
        let cells = vec![0; (bin(largest) + 1) * OCTAVES];
        Self { channels: vec![Histogram { cells }; channels], black: 0, white: 0, count: 0, largest }
    }

    /// Bytes of the histograms of a slide.
    pub(super) fn bytes(channels: usize) -> u64 {
        (channels * BINS * OCTAVES * size_of::<u64>()) as u64
    }

    /// Counts the first `size` cells of a picture, each row and column of which is followed by the next one of the slide if there is one.
    pub(super) fn add(&mut self, pixels: &Pixels, size: Size) {
        match pixels.samples() {
            Samples::U8(samples) => self.add_samples(samples, pixels.size(), size),
            Samples::U16(samples) => self.add_samples(samples, pixels.size(), size),
        }
    }

    fn add_samples<T: Copy + Into<u16>>(&mut self, samples: &[T], picture: Size, size: Size) {
        let channels = self.channels.len();
        let stride = picture.width as usize * channels;
        let mut steps = vec![0u16; channels];
        for y in 0..size.height as usize {
            for x in 0..size.width as usize {
                let at = y * stride + x * channels;
                // A cell at the edge of the slide has fewer neighbours.
                let right = if x + 1 < picture.width as usize { at + channels } else { at };
                let below = if y + 1 < picture.height as usize { at + stride } else { at };
                let cell = |c: usize| -> u16 { samples[at + c].into() };
                for (c, step) in steps.iter_mut().enumerate() {
                    let (right, below): (u16, u16) = (samples[right + c].into(), samples[below + c].into());
                    *step = cell(c).abs_diff(right).max(cell(c).abs_diff(below));
                }
                self.count += 1;
                let flat = steps.iter().all(|&step| step == 0);
                if flat && (0..channels).all(|c| cell(c) == 0) {
                    self.black += 1;
                } else if flat && (0..channels).all(|c| cell(c) == self.largest) {
                    self.white += 1;
                } else {
                    for (c, histogram) in self.channels.iter_mut().enumerate() {
                        histogram.cells[bin(cell(c)) * OCTAVES + octave(steps[c])] += 1;
                    }
                }
            }
        }
    }

    /// Both together. Integers: the order does not matter.
    pub(super) fn merge(mut self, other: &Self) -> Self {
        for (a, b) in self.channels.iter_mut().zip(&other.channels) {
            a.cells.iter_mut().zip(&b.cells).for_each(|(a, b)| *a += b);
        }
        self.black += other.black;
        self.white += other.white;
        self.count += other.count;
        self
    }

    /// What is empty on the slide; nothing where no part of it looks empty.
    pub(super) fn empty(&self, options: &TissueOptions) -> Option<Empty> {
        let found: Option<Vec<_>> = self.channels.iter().map(|h| h.background(options)).collect();
        // Channels without an object say nothing of what is empty, unless another one does.
        let proven = found.filter(|channels| channels.iter().any(|c| c.evidence != Evidence::NoObjects));
        let background = proven.map(|channels| channels.into_iter().map(|c| c.background).collect()).or_else(|| {
            // Glass that is overexposed, or a background that the camera has cut off, is all at the end of the scale; where such cells
            // are rare they are chance.
            let extreme = if self.white > self.black { self.largest } else { 0 };
            let background = Background { mode: extreme, tolerance: options.tolerance(extreme, 0) };
            (self.white.max(self.black) * options.rare > self.count).then(|| vec![background; self.channels.len()])
        })?;
        // White is what scanners put around bright slides; on dark ones it is the brightest there is to see.
        let bright = background.iter().all(|b| b.mode >= self.largest / 4);
        Some(Empty { background, padding: if bright { vec![0, self.largest] } else { vec![0] } })
    }
}

impl Histogram {
    fn bins(&self) -> usize {
        self.cells.len() / OCTAVES
    }

    /// Cells by density (per sample value, so that bins of different widths compare), those that differ from their neighbours counting
    /// less, and smoothed.
    fn density(&self) -> Vec<u64> {
        let density: Vec<u64> = self
            .cells
            .chunks_exact(OCTAVES)
            .enumerate()
            .map(|(bin, cells)| {
                let flat: u64 = cells.iter().enumerate().map(|(octave, &n)| n * (1 << (OCTAVES - 1 - octave))).sum();
                flat * (256 / u64::from(width(bin)))
            })
            .collect();
        let reach = SMOOTHING.len() / 2;
        (0..density.len())
            .map(|i| {
                let near = SMOOTHING
                    .iter()
                    .enumerate()
                    .filter_map(|(k, w)| Some(w * density.get((i + k).checked_sub(reach)?)?));
                near.sum()
            })
            .collect()
    }

    /// The background, if the commonest value is one.
    fn background(&self, options: &TissueOptions) -> Option<Candidate> {
        let density = self.density();
        let peak = *density.iter().max()?;
        let mode_bin = density.iter().position(|&d| d == peak && d > 0)?;
        let mode = middle(mode_bin);
        // To each side until the density has fallen to a half; the object's side is the wider one.
        let below = density[..mode_bin].iter().rposition(|&d| d < peak / 2).map(|b| mode - middle(b));
        let above = density[mode_bin..].iter().position(|&d| d < peak / 2).map(|b| middle(mode_bin + b) - mode);
        let half_width = below.into_iter().chain(above).min()?;
        let background = Background { mode, tolerance: options.tolerance(mode, half_width) };

        let inside = self.median_octave(|sample| sample.abs_diff(mode) <= half_width)?;
        let outside = self.median_octave(|sample| background.excludes(sample));
        let count = |wanted: &dyn Fn(u16) -> bool| self.octaves(wanted).iter().sum::<u64>();
        let evidence = if (1u32 << inside) - 1 <= options.flat_step(mode) {
            Evidence::Flat
        } else if outside.is_some_and(|outside| inside + options.flatness_octaves <= outside) {
            Evidence::Flatter
        } else if count(&|sample| sample.abs_diff(mode) / 2 > background.tolerance) * options.rare <= count(&|_| true) {
            Evidence::NoObjects
        } else {
            return None;
        };
        Some(Candidate { background, evidence })
    }

    /// Cells of some values, by how much they differ from their neighbours.
    fn octaves(&self, wanted: impl Fn(u16) -> bool) -> [u64; OCTAVES] {
        let mut octaves = [0u64; OCTAVES];
        for bin in (0..self.bins()).filter(|&bin| wanted(middle(bin))) {
            let cells = &self.cells[bin * OCTAVES..(bin + 1) * OCTAVES];
            octaves.iter_mut().zip(cells).for_each(|(sum, n)| *sum += n);
        }
        octaves
    }

    /// The class of the median difference between neighbours, over cells of some values.
    fn median_octave(&self, wanted: impl Fn(u16) -> bool) -> Option<usize> {
        let octaves = self.octaves(wanted);
        let all: u64 = octaves.iter().sum();
        let mut seen = 0;
        octaves.iter().position(|n| {
            seen += n;
            seen > 0 && seen * 2 >= all
        })
    }
}

/// The bin of a sample.
fn bin(sample: u16) -> usize {
    let sample = usize::from(sample);
    if sample < 256 {
        return sample;
    }
    // Above, the eight leading bits count.
    let doublings = sample.ilog2() as usize - 7;
    256 + (doublings - 1) * 128 + (sample >> doublings) - 128
}

/// Values in a bin.
fn width(bin: usize) -> u16 {
    if bin < 256 { 1 } else { 2 << ((bin - 256) / 128) }
}

/// The sample in the middle of a bin.
fn middle(bin: usize) -> u16 {
    if bin < 256 {
        return bin as u16;
    }
    let lowest = (128 + (bin - 256) % 128) as u32 * u32::from(width(bin));
    (lowest + u32::from(width(bin)) / 2) as u16
}

/// The class of a difference.
fn octave(step: u16) -> usize {
    step.checked_ilog2().map_or(0, |log| log as usize + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_sample_has_a_bin_of_its_neighbours() {
        assert_eq!(bin(u16::MAX), BINS - 1);
        for sample in 0..=u16::MAX {
            let bin = bin(sample);
            assert!(middle(bin).abs_diff(sample) <= width(bin) / 2, "{sample}");
            assert!(u32::from(width(bin)) * 128 <= u32::from(sample).max(128), "{sample}");
        }
        assert_eq!([0, 1, 2, 3, 4, 255, 65535].map(octave), [0, 1, 2, 2, 3, 8, 16]);
    }
}
