//! Image-wide statistics: the streamed first pass over a slide.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};

use microtome_io::{Pixels, Rect, Samples, Size};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::reader::Reader;
use crate::roi::Roi;
use crate::{Error, Result};

/// Sums over all pixels of one channel. Integers, so that neither order nor number of threads can matter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChannelSums {
    /// Pixels seen.
    pub count: u64,
    /// Sum of the samples.
    pub sum: u128,
    /// Sum of their squares.
    pub sum_of_squares: u128,
    /// The smallest sample.
    pub min: u16,
    /// The largest sample.
    pub max: u16,
}

impl ChannelSums {
    const EMPTY: Self = Self { count: 0, sum: 0, sum_of_squares: 0, min: u16::MAX, max: 0 };

    fn merge(self, other: Self) -> Self {
        Self {
            count: self.count + other.count,
            sum: self.sum + other.sum,
            sum_of_squares: self.sum_of_squares + other.sum_of_squares,
            min: self.min.min(other.min),
            max: self.max.max(other.max),
        }
    }

    /// True for sums that samples can have: a file may hold any numbers.
    #[must_use]
    pub fn is_possible(&self) -> bool {
        let (n, low, high) = (u128::from(self.count), u128::from(self.min), u128::from(self.max));
        // Means lie between the extremes, and no variance is negative.
        let between = |low: u128, sum: u128, high: u128| {
            n.checked_mul(low).zip(n.checked_mul(high)).is_some_and(|(low, high)| (low..=high).contains(&sum))
        };
        let means = between(low, self.sum, high) && between(low * low, self.sum_of_squares, high * high);
        let variance = self.sum.checked_mul(self.sum).zip(n.checked_mul(self.sum_of_squares));
        n > 0 && means && variance.is_some_and(|(square, squares)| square <= squares)
    }

    /// The mean, in sample units.
    #[must_use]
    pub fn mean(&self) -> f64 {
        self.sum as f64 / self.count as f64
    }

    /// The population standard deviation (division by the count, as nnU-Net's z-score), in sample units.
    #[must_use]
    pub fn std(&self) -> f64 {
        // n Σx² - (Σx)² in integers: nothing cancels before the division. Below 2^125 for 16-bit samples of 2^40 pixels.
        let n = u128::from(self.count);
        let numerator = n * self.sum_of_squares - self.sum * self.sum;
        (numerator as f64).sqrt() / self.count as f64
    }
}

/// What becomes of tiles of a slide that cannot be decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Damage {
    /// They are an error.
    Fails,
    /// They are left out, with up to 16 pixels around them.
    LeftOut,
}

/// Around what cannot be read, pieces of this size are left out.
const SMALLEST_PIECE: u64 = 16;

/// Statistics of every channel of an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageStatistics {
    /// One entry per channel.
    pub channels: Vec<ChannelSums>,
}

impl ImageStatistics {
    /// Pixels of one piece of the pass; a multiple of the usual stored tile sizes.
    pub const PIECE: Size = Size::new(2048, 1024);

    /// Statistics of one picture.
    #[must_use]
    pub fn of(pixels: &Pixels) -> Self {
        let all = 0..pixels.size().area() as usize;
        Self::of_runs(pixels, std::slice::from_ref(&all))
    }

    /// Statistics of some runs of pixels of a picture, counted row by row.
    fn of_runs(pixels: &Pixels, runs: &[Range<usize>]) -> Self {
        let channels = pixels.channels();
        let sums = match pixels.samples() {
            Samples::U8(samples) => sums_u8(samples, channels, runs),
            Samples::U16(samples) => sums_u16(samples, channels, runs),
        };
        Self { channels: sums }
    }

    /// Statistics of the pixels of a picture, lying at `rect`, that are in the region.
    fn of_region(pixels: &Pixels, rect: Rect, region: &Roi) -> Self {
        let width = rect.width as usize;
        let (mut runs, mut at) = (Vec::new(), 0);
        // What lies between the runs outside, across the ends of rows.
        region.for_each_outside(rect, |row, outside| {
            let (start, end) = (row * width + outside.start, row * width + outside.end);
            if at < start {
                runs.push(at..start);
            }
            at = end;
        });
        runs.push(at..width * rect.height as usize);
        Self::of_runs(pixels, &runs)
    }

    /// Statistics of the pixels of a rectangle that are in the region.
    fn of_rect(reader: Reader<'_>, rect: Rect, region: Option<&Roi>, damage: Damage) -> Result<Self> {
        const NONE: ImageStatistics = ImageStatistics { channels: Vec::new() };
        if region.is_some_and(|region| !region.touches(rect)) {
            return Ok(NONE);
        }
        match (reader.read(rect), region) {
            (Ok(pixels), None) => Ok(Self::of(&pixels)),
            (Ok(pixels), Some(region)) => Ok(Self::of_region(&pixels, rect, region)),
            (Err(Error::Slide(microtome_io::Error::Tile { .. })), _) if damage == Damage::LeftOut => {
                // Closer and closer around what cannot be read.
                let Size { width, height } = rect.size();
                if width.max(height) <= SMALLEST_PIECE {
                    return Ok(NONE);
                }
                let half = Size::new(width.div_ceil(2), height.div_ceil(2));
                let mut sums = NONE;
                for (right, below) in [(0, 0), (1, 0), (0, 1), (1, 1)] {
                    let (x, y) = (rect.x + (right * half.width) as i64, rect.y + (below * half.height) as i64);
                    if let Some(quarter) = Rect::new(x, y, half.width, half.height).intersect(rect) {
                        sums = sums.merge(Self::of_rect(reader, quarter, region, damage)?);
                    }
                }
                Ok(sums)
            }
            (Err(error), _) => Err(error),
        }
    }

    fn merge(self, other: Self) -> Self {
        if self.channels.is_empty() {
            return other;
        }
        if other.channels.is_empty() {
            return self;
        }
        let channels = self.channels.into_iter().zip(other.channels).map(|(a, b)| a.merge(b)).collect();
        Self { channels }
    }

    /// Streams over a part of the target grid, on the current rayon pool, and sums every pixel, or every one of a region. Pieces that do
    /// not touch the region are not read; where it holds no pixel, there are no channels. `damage` says what becomes of tiles of the slide
    /// that cannot be decoded.
    ///
    /// Memory: two megapixels per thread. `progress` is told the pixels of each finished piece, read or not; once it says `false`, the
    /// pass is given up and there is no result.
    ///
    /// # Errors
    /// [`Error::Slide`](crate::Error::Slide) if a part of the slide cannot be read.
    pub fn stream(
        reader: Reader<'_>,
        part: Rect,
        region: Option<&Roi>,
        damage: Damage,
        progress: &(dyn Fn(u64) -> bool + Sync),
    ) -> Result<Option<Self>> {
        let going = AtomicBool::new(true);
        let size = reader.grid().size;
        let cells = size.cells(Self::PIECE);
        let all = (0..cells.area())
            .into_par_iter()
            .map(|i| {
                if !going.load(Ordering::Relaxed) {
                    return Ok(Self { channels: Vec::new() });
                }
                let (row, column) = (i / cells.width, i % cells.width);
                let rect = Rect::new(
                    (column * Self::PIECE.width) as i64,
                    (row * Self::PIECE.height) as i64,
                    Self::PIECE.width,
                    Self::PIECE.height,
                );
                let Some(rect) = rect.intersect(size.rect()).and_then(|rect| rect.intersect(part)) else {
                    return Ok(Self { channels: Vec::new() });
                };
                let statistics = Self::of_rect(reader, rect, region, damage)?;
                if !progress(rect.size().area()) {
                    going.store(false, Ordering::Relaxed);
                }
                Ok(statistics)
            })
            .try_reduce(|| Self { channels: Vec::new() }, |a, b| Ok::<_, Error>(a.merge(b)))?;
        Ok(going.into_inner().then_some(all))
    }
}

fn sums_u8(samples: &[u8], channels: usize, runs: &[Range<usize>]) -> Vec<ChannelSums> {
    // A histogram per channel makes every later sum exact and the loop a single increment.
    let mut histograms = vec![[0u64; 256]; channels];
    let wanted = runs.iter().map(|run| &samples[run.start * channels..run.end * channels]);
    for pixel in wanted.flat_map(|samples| samples.chunks_exact(channels)) {
        for (histogram, &sample) in histograms.iter_mut().zip(pixel) {
            histogram[usize::from(sample)] += 1;
        }
    }
    let of = |histogram: &[u64; 256]| {
        histogram.iter().zip(0u16..).filter(|(n, _)| **n > 0).fold(ChannelSums::EMPTY, |sums, (&n, value)| {
            let v = u128::from(value);
            sums.merge(ChannelSums {
                count: n,
                sum: v * u128::from(n),
                sum_of_squares: v * v * u128::from(n),
                min: value,
                max: value,
            })
        })
    };
    histograms.iter().map(of).collect()
}

fn sums_u16(samples: &[u16], channels: usize, runs: &[Range<usize>]) -> Vec<ChannelSums> {
    let mut sums = vec![ChannelSums::EMPTY; channels];
    let wanted = runs.iter().map(|run| &samples[run.start * channels..run.end * channels]);
    for pixel in wanted.flat_map(|samples| samples.chunks_exact(channels)) {
        for (s, &value) in sums.iter_mut().zip(pixel) {
            let v = u128::from(value);
            s.count += 1;
            s.sum += v;
            s.sum_of_squares += v * v;
            s.min = s.min.min(value);
            s.max = s.max.max(value);
        }
    }
    sums
}

#[cfg(test)]
mod tests {
    use microtome_io::Downsample;

    use super::*;

    // numpy: a = np.array([0, 10, 20, 250]); a.mean(), a.std() -> (70.0, 104.16333328...)
    #[test]
    fn mean_and_population_deviation() {
        let s = ImageStatistics::of(&Pixels::from_u8(Size::new(2, 2), 1, vec![0, 10, 20, 250])).channels[0];
        assert_eq!((s.count, s.min, s.max, s.mean()), (4, 0, 250, 70.0));
        assert!((s.std() - 104.163_333_280_005_5).abs() < 1e-9, "{}", s.std());
    }

    #[test]
    fn of_a_region_only_its_pixels_count() {
        let size = Size::new(5, 3);
        let mut roi = Roi::builder(size, Downsample { x: 1.0, y: 1.0 });
        for row in [1..3, 0..5, 0..0] {
            roi.push_row(std::iter::once(row)).unwrap();
        }
        let pixels = Pixels::from_u8(size, 1, (0..15).collect());
        let found = ImageStatistics::of_region(&pixels, size.rect(), &roi.finish()).channels[0];
        assert_eq!((found.count, found.sum, found.min, found.max), (7, 1 + 2 + 5 + 6 + 7 + 8 + 9, 1, 9));
    }

    #[test]
    fn impossible_sums_are_told() {
        let sums = ImageStatistics::of(&Pixels::from_u8(Size::new(2, 2), 1, vec![0, 10, 20, 250])).channels[0];
        assert!(sums.is_possible());
        for wrong in [
            ChannelSums { count: 0, ..sums },
            ChannelSums { sum: 2000, ..sums },
            ChannelSums { sum_of_squares: 3, ..sums },
            ChannelSums { sum_of_squares: u128::MAX, ..sums },
            ChannelSums { min: 200, ..sums },
        ] {
            assert!(!wrong.is_possible(), "{wrong:?}");
        }
    }

    #[test]
    fn eight_and_sixteen_bits_agree() {
        let wide: Vec<u16> = (0..300).map(|i| i % 256).collect();
        let narrow: Vec<u8> = wide.iter().map(|&v| v as u8).collect();
        let size = Size::new(10, 10);
        assert_eq!(
            ImageStatistics::of(&Pixels::from_u8(size, 3, narrow)),
            ImageStatistics::of(&Pixels::from_u16(size, 3, wide))
        );
    }
}
