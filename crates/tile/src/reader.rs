//! Pixels of the target grid.
//!
//! Resampling is done here and not by a library for resizing pictures, such as `fast_image_resize`: those compute the weights of a
//! pixel from the rectangle that they are given, so that two requests which overlap differ in the last bit, and a run's result would
//! depend on how it is cut into tiles. Here they follow from the pixel's place on the grid alone.

use microtome_io::slide::SlideReader;
use microtome_io::{Pixels, Rect, SampleType, Samples, Size, TileCoord};

use crate::target::{Resampling, TargetGrid};
use crate::{Error, Result};

/// Source pixels that one step of resampling reads at most, so that its memory does not depend on the request.
const SOURCE_PIXELS: u64 = 4 << 20;

/// Reads rectangles of the target grid from a slide.
///
/// Every target pixel is computed from its own position alone, so any two requests agree on the pixels that they
/// share, bit for bit.
#[derive(Debug, Clone, Copy)]
pub struct Reader<'a> {
    slide: &'a dyn SlideReader,
    grid: &'a TargetGrid,
}

impl<'a> Reader<'a> {
    /// A reader of `slide` on `grid`.
    #[must_use]
    pub fn new(slide: &'a dyn SlideReader, grid: &'a TargetGrid) -> Self {
        Self { slide, grid }
    }

    /// The slide.
    #[must_use]
    pub fn slide(&self) -> &'a dyn SlideReader {
        self.slide
    }

    /// The grid.
    #[must_use]
    pub fn grid(&self) -> &'a TargetGrid {
        self.grid
    }

    /// The pixels of `rect`, which must lie inside the grid.
    ///
    /// Memory: the result, and while resampling at most 4 megapixels of the level read (more only where a single
    /// target pixel covers more).
    ///
    /// # Errors
    /// [`Error::Slide`] if the slide cannot be read there, [`Error::Usage`] if `rect` is not inside the grid.
    pub fn read(&self, rect: Rect) -> Result<Pixels> {
        if !self.grid.size.rect().contains(rect) || rect.is_empty() {
            return Err(Error::Usage(format!("{rect} is not inside the target grid of {}", self.grid.size)));
        }
        if self.grid.resampling == Resampling::None {
            return Ok(self.slide.read_region(self.grid.level, rect)?);
        }
        let info = self.slide.info();
        let mut out = Pixels::filled(rect.size(), info.sample, &vec![0; info.channels]);
        self.resample_into(rect, rect, &mut out)?;
        Ok(out)
    }

    /// Resamples the pixels of `piece`, a part of `rect`, into `out`; large pieces are halved until their source is small.
    fn resample_into(&self, piece: Rect, rect: Rect, out: &mut Pixels) -> Result<()> {
        let (width, height) = (piece.width as f64 * self.grid.step.x, piece.height as f64 * self.grid.step.y);
        if width * height > SOURCE_PIXELS as f64 && piece.size().area() > 1 {
            let half = if (width >= height && piece.width > 1) || piece.height == 1 {
                Size::new(piece.width / 2, piece.height)
            } else {
                Size::new(piece.width, piece.height / 2)
            };
            let first = Rect::new(piece.x, piece.y, half.width, half.height);
            let second = if half.height == piece.height {
                Rect::new(first.right(), piece.y, piece.width - half.width, piece.height)
            } else {
                Rect::new(piece.x, first.bottom(), piece.width, piece.height - half.height)
            };
            self.resample_into(first, rect, out)?;
            return self.resample_into(second, rect, out);
        }
        let level = self.slide.info().level(self.grid.level)?.size;
        let columns = Taps::new(piece.x, piece.width, self.grid.step.x, level.width, self.grid.resampling);
        let rows = Taps::new(piece.y, piece.height, self.grid.step.y, level.height, self.grid.resampling);
        let source = Rect::new(
            columns.source.start as i64,
            rows.source.start as i64,
            columns.source.end - columns.source.start,
            rows.source.end - rows.source.start,
        );
        let pixels = self.slide.read_region(self.grid.level, source)?;
        out.blit(rect, &resample(&pixels, &columns, &rows), piece);
        Ok(())
    }

    /// Says that the pixels of `rect` will be read soon, so that the system can fetch their bytes meanwhile.
    pub fn prefetch(&self, rect: Rect) {
        let level = self.slide.info().level(self.grid.level);
        if let (Some(rect), Ok(level)) = (rect.intersect(self.grid.size.rect()), level) {
            self.slide.prefetch(self.grid.level, self.source(rect, level.size));
        }
    }

    /// The pixels of the level, which has the size `level`, that those of `rect` are made of.
    fn source(&self, rect: Rect, level: Size) -> Rect {
        match self.grid.resampling {
            Resampling::None => rect,
            resampling => {
                let columns = Taps::new(rect.x, rect.width, self.grid.step.x, level.width, resampling).source;
                let rows = Taps::new(rect.y, rect.height, self.grid.step.y, level.height, resampling).source;
                let size = (columns.end - columns.start, rows.end - rows.start);
                Rect::new(columns.start as i64, rows.start as i64, size.0, size.1)
            }
        }
    }

    /// Reads every stored tile that the pixels of `rect` come from by itself, and gives the errors. For reports, after
    /// [`read`](Self::read) has failed.
    #[must_use]
    pub fn faults(&self, rect: Rect) -> Vec<microtome_io::Error> {
        let Some(rect) = rect.intersect(self.grid.size.rect()) else { return Vec::new() };
        let level = match self.slide.info().level(self.grid.level) {
            Ok(level) => level,
            Err(error) => return vec![error],
        };
        let source = self.source(rect, level.size);
        let rows = source.y as u64 / level.tile.height..(source.bottom() as u64).div_ceil(level.tile.height);
        let columns = source.x as u64 / level.tile.width..(source.right() as u64).div_ceil(level.tile.width);
        rows.flat_map(|row| columns.clone().map(move |column| TileCoord { row, column }))
            .filter_map(|at| at.rect(level.tile).intersect(level.size.rect()))
            .filter_map(|part| self.slide.read_region(self.grid.level, Rect::new(part.x, part.y, 1, 1)).err())
            .collect()
    }

    /// Bytes that one request of `size` holds at its peak, besides the slide's own cache.
    #[must_use]
    pub fn memory(&self, size: Size) -> u64 {
        let info = self.slide.info();
        let pixel = (info.channels * info.sample.bytes()) as u64;
        let source = match self.grid.resampling {
            Resampling::None => 0,
            // Decoded samples, the piece made of them, and one row of sums.
            _ => SOURCE_PIXELS * pixel + size.area() * pixel + size.width * info.channels as u64 * 4,
        };
        size.area() * pixel + source
    }
}

/// For each pixel along one axis of the target: which source pixels it takes, and with which weights.
#[derive(Debug)]
struct Taps {
    taps: Vec<Tap>,
    weights: Vec<f32>,
    /// All source pixels that are needed.
    source: std::ops::Range<u64>,
}

/// One target pixel's source pixels: `len` from `first` on, with the weights from `weights[at]` on.
#[derive(Debug, Clone, Copy)]
struct Tap {
    first: u64,
    at: usize,
    len: usize,
}

impl Taps {
    fn new(start: i64, count: u64, step: f64, n: u64, resampling: Resampling) -> Self {
        let mut result = Self { taps: Vec::with_capacity(count as usize), weights: Vec::new(), source: n..0 };
        for i in 0..count {
            let x = (start as u64 + i) as f64;
            let at = result.weights.len();
            let first = match resampling {
                Resampling::Area => {
                    // The last target pixel may stick out behind the last source pixel: it takes what there is.
                    let a = (x * step).min(n as f64 - 1.0);
                    let b = ((x + 1.0) * step).clamp(a.floor() + 1e-6, n as f64);
                    let first = a.floor() as u64;
                    let last = (b.ceil() as u64).clamp(first + 1, n);
                    let overlap = |i: u64| (b.min((i + 1) as f64) - a.max(i as f64)).max(0.0);
                    let total: f64 = (first..last).map(overlap).sum();
                    result.weights.extend((first..last).map(|i| (overlap(i) / total) as f32));
                    first
                }
                Resampling::Bilinear | Resampling::None => {
                    // Pixel centres lie at + 0.5; beyond the outermost centres the edge pixel goes on.
                    let centre = ((x + 0.5) * step - 0.5).clamp(0.0, (n - 1) as f64);
                    let first = (centre.floor() as u64).min(n.saturating_sub(2));
                    let t = (centre - first as f64) as f32;
                    result.weights.extend([1.0 - t, t].into_iter().take(n.min(2) as usize));
                    first
                }
            };
            let len = result.weights.len() - at;
            result.source = result.source.start.min(first)..result.source.end.max(first + len as u64);
            result.taps.push(Tap { first, at, len });
        }
        result
    }
}

fn resample(source: &Pixels, columns: &Taps, rows: &Taps) -> Pixels {
    let size = Size::new(columns.taps.len() as u64, rows.taps.len() as u64);
    let channels = source.channels();
    match source.samples() {
        Samples::U8(samples) => {
            Pixels::from_u8(size, channels, resample_samples(samples, channels, columns, rows, |v| v as u8))
        }
        Samples::U16(samples) => {
            Pixels::from_u16(size, channels, resample_samples(samples, channels, columns, rows, |v| v as u16))
        }
    }
}

/// Each target sample is `sum_x w_x (sum_y w_y s)` in f32, added in ascending order and rounded half up.
fn resample_samples<T: Copy + Into<f32>>(
    source: &[T],
    channels: usize,
    columns: &Taps,
    rows: &Taps,
    convert: impl Fn(f32) -> T,
) -> Vec<T> {
    let width = (columns.source.end - columns.source.start) as usize * channels;
    let mut out = Vec::with_capacity(columns.taps.len() * rows.taps.len() * channels);
    let mut sums = vec![0f32; width];
    for row in &rows.taps {
        sums.fill(0.0);
        for (i, &weight) in rows.weights[row.at..row.at + row.len].iter().enumerate() {
            let y = (row.first - rows.source.start) as usize + i;
            for (sum, &sample) in sums.iter_mut().zip(&source[y * width..(y + 1) * width]) {
                *sum += weight * sample.into();
            }
        }
        for column in &columns.taps {
            let offset = (column.first - columns.source.start) as usize * channels;
            let weights = &columns.weights[column.at..column.at + column.len];
            out.extend((0..channels).map(|c| {
                let sum =
                    weights.iter().enumerate().fold(0f32, |sum, (i, &w)| sum + w * sums[offset + i * channels + c]);
                convert(sum + 0.5)
            }));
        }
    }
    out
}

/// Asks that the slide has pixels a network can take.
///
/// # Errors
/// [`Error::Usage`] if the number of channels is not the model's.
pub fn check_channels(slide: &dyn SlideReader, wanted: usize) -> Result<()> {
    let info = slide.info();
    if info.channels != wanted {
        return Err(Error::Usage(format!(
            "{}: the slide has {} channel{} of {} and the model wants {wanted}",
            info.path.display(),
            info.channels,
            if info.channels == 1 { "" } else { "s" },
            match info.sample {
                SampleType::U8 => "8 bits",
                SampleType::U16 => "16 bits",
            },
        )));
    }
    Ok(())
}
