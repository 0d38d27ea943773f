//! Tissue against whatever is empty, at low resolution: on bright, pale, dark, tinted, pen-marked and fluorescent slides.
//!
//! The method is the *background-symmetry* threshold (Young, Gerbrands and van Vliet, *Fundamentals of Image Processing*, Delft 1998,
//! section 10.3; Wu, Merchant and Castleman, *Microscope Image Processing*, 2008, equation 9.5): an image has a dominant,
//! symmetric peak of background in its histogram, whose width is measured on the side away from the objects and believed on the other.
//! The histogram is weighted as by Weszka and Rosenfeld (*Histogram modification for threshold selection*, IEEE Transactions on
//! Systems, Man and Cybernetics 9, 1979, pages 38 to 52): pixels that differ from their neighbours count less, which raises the flat
//! background out of textured tissue. So the slide's own glass, whatever its brightness and colour, is what tissue is told from; nothing
//! but the numbers of [`TissueOptions`] is assumed. Ours deviates in this:
//!
//! - each channel has a histogram and a threshold of its own; a cell is tissue if any channel says so;
//! - the threshold lies on both sides of the background: nothing has to decide whether the field is bright or dark, and what would be
//!   decided wrongly is not lost;
//! - a peak counts as background only if it is flat, by itself or against the rest; where none is, **everything is tissue**: slides
//!   without glass, and slides whose glass is too noisy to be known. So are pictures of a few cells;
//! - cells of exactly 0, or on bright slides of exactly the largest sample, in all channels are outside of what was scanned, and empty;
//! - the result goes through the median filter and the closing of CLAM (Lu et al., *Data-efficient and weakly supervised computational
//!   pathology on whole-slide images*, Nature Biomedical Engineering 2021, `segmentTissue`), the median over 3 x 3 cells in place of 7 x 7, and is
//!   then grown. Tissue of any size is kept and no holes are filled.
//!
//! CLAM's own threshold (saturation above 8 of 255) takes tinted glass for tissue, tissue without colour for glass, and knows no dark field;
//! Otsu's, which other tools use, always finds two classes, also on a slide of one, and moves with every pen stroke.
//! Pen, dust and debris are not background, so they count as tissue: running the network on them costs less than missing what lies under them.

mod background;
mod mask;

use std::sync::atomic::{AtomicU64, Ordering};

use microtome_io::slide::{SlideInfo, SlideReader};
use microtome_io::{Downsample, Level, Microns, Rect, Size, TileCoord};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

pub use background::Background;
use background::{Empty, Histograms};
use mask::{Mask, Window};

use crate::roi::Roi;
use crate::target::{Resampling, TargetGrid};
use crate::{Reader, Result};

/// Parameters of the tissue detector.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct TissueOptions {
    /// Micrometres per cell at least. Where the slide's resolution is unknown, level 0 is taken for 0.5 um per pixel, for this purpose only.
    pub mpp: f64,
    /// A stored level of up to this many micrometres per pixel is taken as it is.
    pub coarsest_mpp: f64,
    /// The tolerance around the background's mode, in half widths of its peak at half its height.
    pub half_widths: u16,
    /// The tolerance is at least the mode divided by this.
    pub fraction: u16,
    /// The tolerance is at least so many levels.
    pub least: u16,
    /// A background is flat if its cells differ from their neighbours by no more than the mode divided by this, in the median,
    pub flat_fraction: u16,
    /// or by no more than so many levels,
    pub flat_least: u16,
    /// or by so many powers of two less than the cells that are no background.
    pub flatness_octaves: usize,
    /// One in so many cells is rare: fewer prove nothing.
    pub rare: u64,
    /// A picture of fewer cells is tissue all over: it was cut out because of what is on it.
    pub least_cells: u64,
    /// Median filter: this many cells to each side.
    pub median_radius: usize,
    /// Closing: micrometres across the structuring element.
    pub closing: f64,
    /// How far the result is grown, in micrometres.
    pub margin: f64,
}

impl Default for TissueOptions {
    fn default() -> Self {
        Self {
            mpp: 4.0,
            // The 16th part of an objective of 20x has 8 um, or a little more.
            coarsest_mpp: 8.5,
            half_widths: 3,
            // CLAM's 8 of 255.
            fraction: 32,
            least: 2,
            flat_fraction: 64,
            flat_least: 3,
            flatness_octaves: 3,
            rare: 64,
            least_cells: 4096,
            median_radius: 1,
            closing: 16.0,
            margin: 32.0,
        }
    }
}

impl TissueOptions {
    /// How far a cell of the background may be from its mode.
    fn tolerance(&self, mode: u16, half_width: u16) -> u16 {
        half_width.saturating_mul(self.half_widths).max(mode / self.fraction.max(1)).max(self.least)
    }

    /// How much a cell of the background may differ from its neighbours.
    fn flat_step(&self, mode: u16) -> u32 {
        (mode / self.flat_fraction.max(1)).max(self.flat_least).into()
    }

    /// The filters over a mask of cells of this size.
    fn filters(&self, cell_mpp: f64) -> Filters {
        let cells = |microns: f64| (microns / cell_mpp - 1e-6).ceil().max(0.0) as usize;
        let closing = cells(self.closing);
        // An element of an even size reaches one cell further to one side, as OpenCV anchors it.
        let closing = Window { before: closing / 2, behind: closing.saturating_sub(1) / 2 };
        Filters { median: Window::around(self.median_radius), closing, margin: Window::around(cells(self.margin)) }
    }
}

/// What the detector found.
#[derive(Debug, Clone, PartialEq)]
pub struct Tissue {
    /// The region, over the target grid that was passed in.
    pub roi: Roi,
    /// Micrometres per cell of the region, if known.
    pub mpp: Option<Microns>,
    /// The share of cells that are tissue, 0 to 1.
    pub share: f64,
    /// What is empty, one entry per channel; `None` where no part of the slide looks empty, and all of it is tissue.
    pub background: Option<Vec<Background>>,
}

/// Cells that are worked on in one piece.
const PIECE: Size = Size::new(512, 512);

/// Bytes that looking for tissue holds per thread, whatever the size of the slide: a piece with its surroundings, its masks, and a histogram.
#[must_use]
pub fn band_bytes(slide: &dyn SlideReader) -> u64 {
    let options = TissueOptions::default();
    let grid = cells(slide.info(), slide.info().resolution.as_ref().map(|r| r.mpp), &options);
    let halo = 2 * options.filters(options.mpp).reach() as u64;
    let size = Size::new(PIECE.width + halo, PIECE.height + halo);
    Reader::new(slide, &grid).memory(size) + Mask::bytes(size.area()) + Histograms::bytes(slide.info().channels)
}

/// Looks for tissue on the whole slide, on the current rayon pool, in two passes over a coarse level.
///
/// Memory: [`band_bytes`] per thread, the runs of one row of pieces, and the region.
///
/// # Errors
/// [`Error::Slide`](crate::Error::Slide) if the slide cannot be read.
pub fn detect(
    slide: &dyn SlideReader,
    mpp: Option<Microns>,
    target: &TargetGrid,
    options: &TissueOptions,
) -> Result<Tissue> {
    let grid = cells(slide.info(), mpp, options);
    let reader = Reader::new(slide, &grid);
    // From target pixels to cells: both grids lie over level 0 with a common corner.
    let step = Downsample { x: grid.downsample.x / target.downsample.x, y: grid.downsample.y / target.downsample.y };
    let mut roi = Roi::builder(grid.size, step);

    let empty = match grid.size.area() {
        few if few < options.least_cells => None,
        _ => count(slide.info(), &reader)?.empty(options),
    };
    if let Some(empty) = &empty {
        let filters = options.filters(finest_mpp(mpp) * grid.downsample.x.min(grid.downsample.y));
        let pieces = grid.size.cells(PIECE);
        for row in 0..pieces.height {
            let found: Vec<Runs> = (0..pieces.width)
                .into_par_iter()
                .map(|column| find(&reader, TileCoord { row, column }, empty, &filters))
                .collect::<Result<_>>()?;
            for y in 0..found.first().map_or(0, |runs| runs.ends.len()) {
                roi.push_row(found.iter().flat_map(|runs| runs.row(y)))?;
            }
        }
    } else {
        for _ in 0..grid.size.height {
            roi.push_row(std::iter::once(0..grid.size.width))?;
        }
    }
    let roi = roi.finish();
    let share = roi.cells() as f64 / grid.size.area() as f64;
    Ok(Tissue { roi, mpp: grid.mpp, share, background: empty.map(|e| e.background) })
}

/// Announces the bytes that [`detect`] will read first of all, unless they are more than a system should keep for later: then none.
pub fn prefetch(slide: &dyn SlideReader, mpp: Option<Microns>, options: &TissueOptions) {
    /// Pixels. A JPEG of them has some 50 MB.
    const MOST: u64 = 1 << 28;
    let level = cells(slide.info(), mpp, options).level;
    let size = slide.info().levels[level.0].size;
    if size.area() <= MOST {
        slide.prefetch(level, size.rect());
    }
}

/// Micrometres per pixel of level 0, along the finer axis.
fn finest_mpp(mpp: Option<Microns>) -> f64 {
    mpp.map_or(0.5, |m| m.x.min(m.y)).max(1e-3)
}

/// The grid of cells: the coarsest stored level that is fine enough, averaged down only if it is finer than need be.
fn cells(slide: &SlideInfo, mpp: Option<Microns>, options: &TissueOptions) -> TargetGrid {
    let finest = finest_mpp(mpp);
    let (least, most) = (options.mpp / finest, options.coarsest_mpp / finest);
    let level = slide.levels.iter().rposition(|l| l.downsample.x.max(l.downsample.y) <= most).unwrap_or(0);
    let info = &slide.levels[level];
    if info.downsample.x.min(info.downsample.y) < least {
        return TargetGrid::coarse(slide, mpp, least.max(1.0));
    }
    TargetGrid {
        size: info.size,
        mpp: mpp.map(|m| m.at(info.downsample)),
        level: Level(level),
        step: Downsample { x: 1.0, y: 1.0 },
        resampling: Resampling::None,
        downsample: info.downsample,
    }
}

/// The first pass: counts all cells of the grid.
fn count(info: &SlideInfo, reader: &Reader<'_>) -> Result<Histograms> {
    let size = reader.grid().size;
    let pieces = size.cells(PIECE);
    let next = AtomicU64::new(0);
    // One histogram per thread, not per piece.
    (0..rayon::current_num_threads())
        .into_par_iter()
        .map(|_| {
            let mut histograms = Histograms::new(info.channels, info.sample);
            loop {
                let piece = next.fetch_add(1, Ordering::Relaxed);
                if piece >= pieces.area() {
                    return Ok(histograms);
                }
                let (piece, _) = around(size, TileCoord { row: piece / pieces.width, column: piece % pieces.width }, 0);
                // With the next row and column, to which cells are compared.
                let wider = Rect { width: piece.width + 1, height: piece.height + 1, ..piece };
                let pixels = reader.read(wider.intersect(size.rect()).unwrap_or(piece))?;
                histograms.add(&pixels, piece.size());
            }
        })
        .try_reduce(|| Histograms::new(info.channels, info.sample), |a, b| Ok(a.merge(&b)))
}

/// A piece of the grid, and the same with `halo` cells around it as far as there are any.
fn around(size: Size, piece: TileCoord, halo: usize) -> (Rect, Rect) {
    let piece = piece.rect(PIECE);
    let halo = halo as u64;
    let wide = Rect::new(piece.x - halo as i64, piece.y - halo as i64, piece.width + 2 * halo, piece.height + 2 * halo);
    let inside = |rect: Rect| rect.intersect(size.rect()).unwrap_or(rect);
    (inside(piece), inside(wide))
}

/// What a mask goes through.
#[derive(Debug, Clone, Copy)]
struct Filters {
    median: Window,
    closing: Window,
    margin: Window,
}

impl Filters {
    /// How far a cell can be from those that decide it: the windows added up.
    fn reach(&self) -> usize {
        self.median.before + self.closing.before + self.closing.behind + self.margin.before
    }

    fn apply(&self, mask: &Mask) -> Mask {
        let mask = mask.majority(self.median);
        mask.dilate(self.closing).erode(self.closing.mirrored()).dilate(self.margin)
    }
}

/// The tissue of a piece, as columns of the grid, row by row.
#[derive(Debug, Default)]
struct Runs {
    runs: Vec<std::ops::Range<u64>>,
    /// Where the runs of each row end.
    ends: Vec<usize>,
}

impl Runs {
    fn row(&self, y: usize) -> impl Iterator<Item = std::ops::Range<u64>> + '_ {
        let start = if y == 0 { 0 } else { self.ends[y - 1] };
        self.runs[start..self.ends[y]].iter().cloned()
    }
}

/// The second pass, for one piece.
fn find(reader: &Reader<'_>, piece: TileCoord, empty: &Empty, filters: &Filters) -> Result<Runs> {
    let (piece, wide) = around(reader.grid().size, piece, filters.reach());
    let cells = empty.occupied(&reader.read(wide)?);
    let mask = filters.apply(&Mask::new(wide.width as usize, cells));
    let mut found = Runs::default();
    let left = (piece.x - wide.x) as usize;
    for y in piece.y - wide.y..piece.bottom() - wide.y {
        let runs = mask.runs(y as usize, left..left + piece.width as usize);
        found.runs.extend(runs.map(|run| piece.x as u64 + run.start as u64..piece.x as u64 + run.end as u64));
        found.ends.push(found.runs.len());
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use microtome_io::slide::LevelInfo;
    use microtome_io::{Pixels, SampleType};

    use super::*;

    /// Cells that are 200 or, more often in some places than in others, darker.
    #[derive(Debug)]
    struct Speckled {
        info: SlideInfo,
        /// What was announced.
        announced: Mutex<Vec<(Level, Rect)>>,
    }

    impl Speckled {
        fn new(size: Size) -> Self {
            let info = SlideInfo::new("speckled", "", size, Size::new(256, 256), 1, SampleType::U8);
            Self { info, announced: Mutex::default() }
        }

        /// One of 64 000 x 32 000 pixels with levels of these downsamples.
        fn of_levels(downsamples: &[f64]) -> Self {
            let mut slide = Self::new(Size::new(64_000, 32_000));
            slide.info.levels = downsamples
                .iter()
                .map(|&d| Size::new((64_000.0 / d) as u64, (32_000.0 / d) as u64))
                .map(|size| LevelInfo::new(slide.info.size(), size, Size::new(256, 256)))
                .collect();
            slide
        }
    }

    impl SlideReader for Speckled {
        fn info(&self) -> &SlideInfo {
            &self.info
        }

        fn prefetch(&self, level: Level, rect: Rect) {
            self.announced.lock().unwrap().push((level, rect));
        }

        fn read_region(&self, _: Level, rect: Rect) -> microtome_io::Result<Pixels> {
            let cell = |x: i64, y: i64| {
                let chance = (x * 7919 ^ y * 104_729).wrapping_mul(2_654_435_761) >> 7 & 1023;
                if chance < (x / 40 + y / 40) % 9 * 60 { (100 + chance % 60) as u8 } else { 200 }
            };
            let cells = (rect.y..rect.bottom()).flat_map(|y| (rect.x..rect.right()).map(move |x| cell(x, y)));
            Ok(Pixels::from_u8(rect.size(), 1, cells.collect()))
        }

        fn read_associated(&self, name: &str) -> microtome_io::Result<Pixels> {
            Err(microtome_io::Error::usage(&self.info.path, name))
        }

        fn content_id(&self) -> microtome_io::Result<String> {
            Ok(String::new())
        }
    }

    /// The region is what the filters make of the whole slide at once, whichever pieces and threads it was found by.
    #[test]
    fn pieces_leave_no_trace() {
        let size = Size::new(1300, 1100);
        let (slide, mpp) = (Speckled::new(size), Some(Microns::square(4.0)));
        let target = TargetGrid::plan(slide.info(), mpp, &crate::TargetOptions::default()).unwrap();
        let options = TissueOptions::default();
        let detect = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| detect(&slide, mpp, &target, &options)).unwrap()
        };
        let found = detect(3);
        assert_eq!(found, detect(1));
        assert!((0.2..0.9).contains(&found.share), "{}", found.share);

        let background = found.background.unwrap();
        assert_eq!(background, [Background { mode: 200, tolerance: 6 }]);
        let cells = slide.read_region(Level::FINEST, size.rect()).unwrap();
        let occupied = cells.as_u8().unwrap().iter().map(|&v| v.abs_diff(200) > 6).collect();
        let whole = options.filters(4.0).apply(&Mask::new(size.width as usize, occupied));
        for y in 0..size.height {
            let runs: Vec<_> = whole.runs(y as usize, 0..size.width as usize).collect();
            let found: Vec<_> = found.roi.runs(y).map(|run| run.start as usize..run.end as usize).collect();
            assert_eq!(found, runs, "row {y}");
        }
    }

    #[test]
    fn memory_does_not_grow_with_the_slide() {
        let bytes = |width, height| band_bytes(&Speckled::new(Size::new(width, height)));
        assert_eq!(bytes(20_000, 10_000), bytes(2_000_000, 1_000_000));
        assert!(bytes(20_000, 10_000) < 12 << 20, "{}", bytes(20_000, 10_000));
    }

    #[test]
    fn the_coarsest_level_that_is_fine_enough_is_read_as_it_is() {
        let read = |mpp: f64, downsamples: &[f64]| {
            let info = Speckled::of_levels(downsamples).info;
            let grid = cells(&info, Some(Microns::square(mpp)), &TissueOptions::default());
            (grid.level.0, grid.step.x, grid.mpp.unwrap().x)
        };
        assert_eq!(read(0.25, &[1.0, 4.0, 16.0]), (2, 1.0, 4.0));
        assert_eq!(read(0.5, &[1.0, 4.0, 16.0]), (2, 1.0, 8.0));
        assert_eq!(read(0.5, &[1.0, 4.0]), (1, 2.0, 4.0));
        assert_eq!(read(0.25, &[1.0, 4.0, 16.0, 32.0, 64.0]), (3, 1.0, 8.0));
        assert_eq!(read(0.5, &[1.0]), (0, 8.0, 4.0));
        assert_eq!(read(10.0, &[1.0]), (0, 1.0, 10.0));
    }

    #[test]
    fn what_is_announced_is_the_level_that_is_read() {
        let announced = |mpp: f64, downsamples: &[f64]| {
            let slide = Speckled::of_levels(downsamples);
            prefetch(&slide, Some(Microns::square(mpp)), &TissueOptions::default());
            slide.announced.into_inner().unwrap()
        };
        assert_eq!(announced(0.25, &[1.0, 4.0, 16.0, 32.0, 64.0]), [(Level(3), Rect::new(0, 0, 2000, 1000))]);
        assert_eq!(announced(0.5, &[1.0, 4.0]), [(Level(1), Rect::new(0, 0, 16_000, 8000))]);
        assert_eq!(announced(0.5, &[1.0]), [], "two gigapixels");
    }
}
