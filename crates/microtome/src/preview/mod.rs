//! What a slide or a mask looks like: small pictures with a mask on them, and DeepZoom pyramids.
//!
//! A picture is made in steps, each of which takes the one before: an [`overview`] of the slide, a mask on it ([`overlay()`]), a scale bar and a
//! legend below it ([`with_scale_bar`], [`with_legend`]), a file ([`save`]). Of a mask alone, [`LabelPicture`] makes a picture.
//! [`deep_zoom`] writes a whole slide for viewers in the browser.
//!
//! One table of [classes](microtome_io::Class), which the mask carries, has the names, colours and codes for all of them.
//!
//! ```
//! use microtome::io::Size;
//! use microtome::preview::{self, DeepZoomOptions, PreviewOptions, Shown};
//! use microtome::{Existing, Silent};
//! use microtome_testkit::SyntheticSlide;
//!
//! let slide = SyntheticSlide::new(Size::new(3000, 2000), 1);
//! let folder = tempfile::tempdir()?;
//!
//! // A picture of 512 pixels with a scale bar below it.
//! let mut options = PreviewOptions::default();
//! options.size = 512;
//! let picture = preview::overview(&slide, options)?;
//! let mpp = preview::resolution(&slide, options).expect("this slide knows its resolution");
//! let picture = preview::with_scale_bar(&picture, mpp.x)?;
//! preview::save(&picture, &folder.path().join("slide.png"), options)?;
//!
//! // The whole slide for OpenSeadragon: slide.dzi, and tiles of JPEG in slide_files.
//! let output = folder.path().join("slide.dzi");
//! let summary = preview::deep_zoom(&slide, Shown::Colors, &output, &DeepZoomOptions::default(), Existing::Keep, &Silent)?;
//! assert_eq!((summary.levels, summary.size), (13, Size::new(3000, 2000)));
//! assert!(folder.path().join("slide_files/12/11_7.jpg").exists());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod deepzoom;
mod encode;
mod font;
mod footer;
mod labels;
mod overlay;
#[cfg(test)]
mod tests;

use microtome_io::slide::SlideReader;
use microtome_io::store::OmeZarr;
use microtome_io::{Downsample, Microns, Pixels, Rect, SampleType, Samples, Size};
use microtome_tile::{Reader, TargetGrid};
use rayon::prelude::*;

use crate::{Error, Result};

pub use deepzoom::{DeepZoomOptions, DeepZoomSummary, Shown, Subsampling, TileFormat, TileSource, deep_zoom};
pub use encode::save;
pub(crate) use encode::{PictureFormat, encode};
pub use footer::{with_legend, with_scale_bar};
pub use labels::LabelPicture;
pub use overlay::{Style, outline, outline_region, overlay};
pub(crate) use overlay::{outline_own, outline_roi};

/// How a preview is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct PreviewOptions {
    /// The longest side of the picture, in pixels. A smaller slide is not enlarged.
    pub size: u64,
    /// Quality of JPEG pictures, 1 to 100.
    pub quality: u8,
}

impl Default for PreviewOptions {
    fn default() -> Self {
        Self { size: 1024, quality: 90 }
    }
}

/// A picture of the whole slide, 8-bit grey or RGB: read from the level that is just fine enough, averaged down.
///
/// Slides of 16 bits are shown with their upper 8. Bands of it are read at the same time, by the threads of the pool that this is called on.
///
/// # Errors
/// [`Error::Read`] if the slide cannot be read, [`Error::Usage`] if it has neither 1 nor 3 channels or the size is 0.
pub fn overview(slide: &dyn SlideReader, options: PreviewOptions) -> Result<Pixels> {
    let info = slide.info();
    if options.size == 0 {
        return Err(Error::Usage("a preview of 0 pixels".into()));
    }
    if !is_shown(slide) {
        return Err(Error::Usage(format!(
            "{}: a slide with {} channels cannot be shown as a picture (1 or 3 can)",
            info.path.display(),
            info.channels
        )));
    }
    let grid = grid(slide, options);
    let mut pixels = Pixels::filled(grid.size, info.sample, &vec![0; info.channels]);
    let starts: Vec<u64> = (0..grid.size.height).step_by(BAND as usize).collect();
    let read = |y: u64| -> Result<(Rect, Pixels)> {
        let band = Rect::new(0, y as i64, grid.size.width, BAND.min(grid.size.height - y));
        Ok((band, Reader::new(slide, &grid).read(band)?))
    };
    // A few bands for each thread at a time, so that the picture is held once.
    for some in starts.chunks(4 * rayon::current_num_threads().max(1)) {
        for (band, pixels_of) in some.par_iter().map(|&y| read(y)).collect::<Result<Vec<_>>>()? {
            pixels.blit(grid.size.rect(), &pixels_of, band);
        }
    }
    Ok(match pixels.samples() {
        Samples::U8(_) => pixels,
        Samples::U16(v) => {
            Pixels::from_u8(pixels.size(), pixels.channels(), v.iter().map(|&s| (s >> 8) as u8).collect())
        }
    })
}

/// Rows of an overview that are read together: enough that few stored tiles lie under two bands.
const BAND: u64 = 64;

/// True for slides that have an [`overview`].
pub(crate) fn is_shown(slide: &dyn SlideReader) -> bool {
    matches!(slide.info().channels, 1 | 3)
}

/// A picture of the [`overview`]'s size, light grey all over, to draw on where there is no overview.
pub(crate) fn blank(slide: &dyn SlideReader, options: PreviewOptions) -> Pixels {
    Pixels::filled(grid(slide, options).size, SampleType::U8, &[240])
}

/// Micrometres per pixel of the [`overview`] that these options make, along each axis; `None` where the slide does not say. For
/// [`with_scale_bar`].
#[must_use]
pub fn resolution(slide: &dyn SlideReader, options: PreviewOptions) -> Option<Microns> {
    let mpp = slide.info().resolution.as_ref()?.mpp;
    Some(mpp.at(grid(slide, options).downsample))
}

/// The same of a [`LabelPicture`] of a mask.
#[must_use]
pub fn mask_resolution(mask: &OmeZarr, options: PreviewOptions) -> Option<Microns> {
    let (finest, shown) = (mask.info().levels[0], labels::shown(mask, options));
    let downsample = Downsample {
        x: finest.size.width as f64 / shown.width as f64,
        y: finest.size.height as f64 / shown.height as f64,
    };
    Some(finest.mpp?.at(downsample))
}

/// The grid of an overview.
fn grid(slide: &dyn SlideReader, options: PreviewOptions) -> TargetGrid {
    let size = slide.info().size();
    let factor = (size.width.max(size.height) as f64 / options.size.max(1) as f64).max(1.0);
    let mut grid = TargetGrid::coarse(slide.info(), None, factor);
    // The last pixels of a level whose size was rounded up reach out of the slide: what lies there alone is not shown. A quotient that was rounded
    // is no pixel more.
    let pixels = |n: u64, downsample: f64| ((n as f64 / downsample - 1e-6).ceil() as u64).max(1);
    grid.size = Size::new(
        grid.size.width.min(pixels(size.width, grid.downsample.x)),
        grid.size.height.min(pixels(size.height, grid.downsample.y)),
    );
    grid
}

/// A picture of a mask: each label in its class's colour, background black. Reads the level that is just fine enough;
/// labels are picked, never averaged.
///
/// # Errors
/// [`Error::Read`] if the mask cannot be read.
pub fn mask_overview(mask: &OmeZarr, options: PreviewOptions) -> Result<Pixels> {
    Ok(LabelPicture::read(mask, options)?.colored())
}
