//! Tissue against glass, at low resolution.
//!
//! The method is that of CLAM (Lu et al., *Data-efficient and weakly supervised computational pathology on whole-slide
//! images*, Nature Biomedical Engineering 2021, `segmentTissue`): the saturation of the HSV colour space, a median filter, a
//! threshold of 8 (of 255), a morphological closing of 4 x 4 pixels.
//! CLAM's median takes 7 x 7 pixels of a coarse level, which loses strands of tissue that are a cell or two wide. Ours takes 3 x 3 pixels of
//! 4 um, keeps tissue of any size, fills no holes, and grows the result by a margin.
//! The fixed threshold errs on the side of running the network: a slide whose glass is tinted counts as tissue all over.

use microtome_io::slide::SlideReader;
use microtome_io::{Downsample, Microns, Rect, SampleType, Size};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::roi::Roi;
use crate::target::TargetGrid;
use crate::{Reader, Result};

/// Parameters of the tissue detector; all lengths are in pixels of its own grid.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct TissueOptions {
    /// Micrometres per pixel of the grid on which tissue is looked for. Where the slide's resolution is unknown,
    /// level 0 is taken for 0.5 um per pixel, for this purpose only.
    pub mpp: f64,
    /// Median filter: this many pixels to each side.
    pub median_radius: usize,
    /// Saturation (0 to 255) above which a pixel is tissue.
    pub threshold: u8,
    /// Closing: width and height of the structuring element.
    pub closing: usize,
    /// How far the result is grown.
    pub margin: usize,
}

impl Default for TissueOptions {
    fn default() -> Self {
        Self { mpp: 4.0, median_radius: 1, threshold: 8, closing: 4, margin: 8 }
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
}

/// Rows of the coarse grid that are worked on at once.
const BAND: usize = 128;

/// Bytes that looking for tissue holds per thread: a band's source while it is resampled (4 megapixels of 3 bytes), its samples and
/// its planes.
#[must_use]
pub fn band_bytes(slide: &dyn SlideReader) -> u64 {
    let options = TissueOptions::default();
    let finest = slide.info().resolution.as_ref().map_or(0.5, |r| r.mpp.x.min(r.mpp.y)).max(0.01);
    let width = (slide.info().size().width as f64 * finest / options.mpp).ceil() as u64;
    let rows = (BAND + 2 * (options.median_radius + 2 * options.closing + options.margin)) as u64;
    // Samples once decoded and once gathered, saturation, two counters of four bytes, four masks.
    (12 << 20) + width * rows * (2 * 3 + 1 + 4 + 4)
}

/// Looks for tissue on the whole slide. `None` where the method does not apply: it needs 8-bit RGB on bright glass.
///
/// Memory: a band of 128 rows per thread and one bit per cell.
///
/// # Errors
/// [`Error::Slide`](crate::Error::Slide) if the slide cannot be read.
pub fn detect(
    slide: &dyn SlideReader,
    mpp: Option<Microns>,
    target: &TargetGrid,
    options: &TissueOptions,
) -> Result<Option<Tissue>> {
    let info = slide.info();
    if info.channels != 3 || info.sample != SampleType::U8 {
        return Ok(None);
    }
    let finest = mpp.map_or(0.5, |m| m.x.min(m.y));
    let grid = TargetGrid::coarse(slide.info(), mpp, (options.mpp / finest).max(1.0));
    let reader = Reader::new(slide, &grid);
    // From target pixels to cells: both grids lie over level 0 with a common corner.
    let step = Downsample { x: grid.downsample.x / target.downsample.x, y: grid.downsample.y / target.downsample.y };

    let height = grid.size.height as usize;
    let bands: Vec<(Vec<bool>, u64)> = (0..height.div_ceil(BAND))
        .into_par_iter()
        .map(|band| {
            let rows = band * BAND..((band + 1) * BAND).min(height);
            let (mask, bright) = detect_rows(&reader, rows, options)?;
            Ok((mask, bright))
        })
        .collect::<Result<_>>()?;

    // Dark-field and fluorescence pictures have a black background, whose saturation is noise.
    let bright: u64 = bands.iter().map(|b| b.1).sum();
    if bright * 4 < grid.size.area() {
        return Ok(None);
    }
    let mut roi = Roi::builder(grid.size, step);
    for row in bands.iter().flat_map(|(mask, _)| mask.chunks_exact(grid.size.width as usize)) {
        roi.push_row((0..).zip(row).filter(|(_, wanted)| **wanted).map(|(x, _)| x..x + 1))?;
    }
    let roi = roi.finish();
    let share = roi.cells() as f64 / grid.size.area() as f64;
    Ok(Some(Tissue { roi, mpp: grid.mpp, share }))
}

/// The mask of some rows, and how many of their pixels are bright (mean of the channels above 64).
fn detect_rows(reader: &Reader<'_>, rows: std::ops::Range<usize>, options: &TissueOptions) -> Result<(Vec<bool>, u64)> {
    let Size { width, height } = reader.grid().size;
    // Everything that can reach into the rows: the filters' radii added up.
    let halo = options.median_radius + 2 * options.closing + options.margin;
    let top = rows.start.saturating_sub(halo);
    let bottom = (rows.end + halo).min(height as usize);
    let pixels = reader.read(Rect::new(0, top as i64, width, (bottom - top) as u64))?;
    let samples = pixels.as_u8().unwrap_or_default();
    let bright = samples[(rows.start - top) * width as usize * 3..(rows.end - top) * width as usize * 3]
        .chunks_exact(3)
        .filter(|p| p.iter().map(|&v| u32::from(v)).sum::<u32>() > 3 * 64)
        .count() as u64;
    let saturation = samples.chunks_exact(3).map(|p| saturation([p[0], p[1], p[2]])).collect();
    let plane = Plane { width: width as usize, values: saturation };

    let wanted = plane.median_above(options.median_radius, options.threshold);
    // Closing with an even element: grown to one side more than shrunk from the other, as OpenCV anchors it.
    let (before, behind) = (options.closing / 2, (options.closing.max(1) - 1) / 2);
    let wanted = wanted.dilate(before, behind).erode(behind, before);
    let wanted = wanted.dilate(options.margin, options.margin);
    let width = width as usize;
    Ok((wanted.values[(rows.start - top) * width..(rows.end - top) * width].to_vec(), bright))
}

/// Saturation of the HSV colour space, 0 to 255, rounded to nearest.
fn saturation(rgb: [u8; 3]) -> u8 {
    let max = u32::from(rgb[0].max(rgb[1]).max(rgb[2]));
    let min = u32::from(rgb[0].min(rgb[1]).min(rgb[2]));
    if max == 0 { 0 } else { (((max - min) * 255 * 2 + max) / (2 * max)) as u8 }
}

#[derive(Debug)]
struct Plane<T> {
    width: usize,
    values: Vec<T>,
}

impl Plane<u8> {
    /// True where the median of the window (clipped at the borders) is above the threshold: that is where more than
    /// half of its pixels are, which two passes of counting tell without sorting.
    fn median_above(&self, radius: usize, threshold: u8) -> Plane<bool> {
        let height = self.values.len() / self.width;
        let window = |i: usize, n: usize| (i.saturating_sub(radius), (i + radius + 1).min(n));
        let mut rows = vec![0u32; self.values.len()];
        for y in 0..height {
            let line = &self.values[y * self.width..(y + 1) * self.width];
            for x in 0..self.width {
                let (a, b) = window(x, self.width);
                rows[y * self.width + x] = line[a..b].iter().filter(|&&v| v > threshold).count() as u32;
            }
        }
        let mut values = vec![false; self.values.len()];
        for y in 0..height {
            let (top, bottom) = window(y, height);
            for x in 0..self.width {
                let (a, b) = window(x, self.width);
                let above: u32 = (top..bottom).map(|y| rows[y * self.width + x]).sum();
                values[y * self.width + x] = above as usize * 2 > (bottom - top) * (b - a);
            }
        }
        Plane { width: self.width, values }
    }
}

impl Plane<bool> {
    /// True where any pixel from `before` to the left (above) to `behind` to the right (below) is.
    fn dilate(&self, before: usize, behind: usize) -> Self {
        self.sweep(before, behind, true)
    }

    /// True where all those pixels are; beyond the borders everything is.
    fn erode(&self, before: usize, behind: usize) -> Self {
        self.sweep(before, behind, false)
    }

    fn sweep(&self, before: usize, behind: usize, looked_for: bool) -> Self {
        let height = self.values.len() / self.width;
        let along = |n: usize, at: &dyn Fn(usize) -> bool, out: &mut dyn FnMut(usize, bool)| {
            for i in 0..n {
                let found = (i.saturating_sub(before)..(i + behind + 1).min(n)).any(|j| at(j) == looked_for);
                out(i, found == looked_for);
            }
        };
        let mut rows = self.values.clone();
        for y in 0..height {
            along(self.width, &|x| self.values[y * self.width + x], &mut |x, v| rows[y * self.width + x] = v);
        }
        let mut values = rows.clone();
        for x in 0..self.width {
            along(height, &|y| rows[y * self.width + x], &mut |y, v| values[y * self.width + x] = v);
        }
        Self { width: self.width, values }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn saturation_is_opencvs() {
        // cv2.cvtColor(np.uint8([[[200, 100, 150], [255, 250, 252], [0, 0, 0], [90, 90, 90]]]), cv2.COLOR_RGB2HSV)[..., 1]
        assert_eq!([[200, 100, 150], [255, 250, 252], [0, 0, 0], [90, 90, 90]].map(saturation), [128, 5, 0, 0]);
    }

    #[test]
    fn closing_fills_a_gap_and_moves_nothing() {
        let mut values = vec![false; 11 * 11];
        for (x, y) in [(4, 5), (6, 5)] {
            values[y * 11 + x] = true;
        }
        let plane = Plane { width: 11, values };
        let closed = plane.dilate(2, 1).erode(1, 2);
        let set: Vec<_> = (0..121).filter(|&i| closed.values[i]).map(|i| (i % 11, i / 11)).collect();
        assert_eq!(set, [(4, 5), (5, 5), (6, 5)]);
    }

    #[test]
    fn the_median_ignores_specks() {
        let mut values = vec![0u8; 49];
        values[24] = 255;
        let plane = Plane { width: 7, values };
        assert!(!plane.median_above(1, 8).values.iter().any(|&v| v));
        let full = Plane { width: 7, values: vec![200u8; 49] };
        assert!(full.median_above(3, 8).values.iter().all(|&v| v));
    }
}
