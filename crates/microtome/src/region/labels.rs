//! Regions as OME-Zarr label images, such as the mask of another model.

use std::ops::Range;
use std::path::Path;

use microtome_io::store::{OmeZarr, StoreLevel, Translation};
use microtome_io::{Downsample, Level, Microns, Rect, Samples, Size};
use microtome_tile::{Placement, Roi};

use super::picture::check_proportions;
use super::values::Values;
use super::{Place, refuse};
use crate::Result;

/// Micrometres per pixel of the level that is read: the coarsest that is no coarser.
const MPP: f64 = 4.0;
/// Rows that are read at once, at most.
const BAND: u64 = 1024;
/// Samples that are read at once, at most; and as many again of a chunk per thread.
const PIECE: u64 = 8 << 20;

/// Reads a region from a label image, a band of rows at a time.
pub(super) fn read(path: &Path, asked: &[String], place: Place<'_>) -> Result<Roi> {
    let store = OmeZarr::open(path).map_err(|error| refuse(path, strip(path, &error)))?;
    let info = store.info();
    if info.channels != 1 {
        let message = format!("a label image has one channel, and this image has {}", info.channels);
        return Err(refuse(path, message));
    }
    let ours = info.attributes.contains_key("run");
    let (level, placement) = place_of(path, &info.levels, ours, place)?;
    let size = placement.size;
    if size.is_empty() {
        return Err(refuse(path, "this image has no pixels"));
    }
    let mut values = Values::new(path, asked, info.content.classes())?;
    let mut placed = placement.builder(place.target.size);
    let band = info.chunk.height.clamp(1, BAND);
    let piece = (PIECE / band).max(1);
    let mut rows: Vec<Vec<Range<u64>>> = Vec::new();
    for top in (0..size.height).step_by(band as usize) {
        let height = band.min(size.height - top);
        rows.iter_mut().for_each(Vec::clear);
        rows.resize_with(height as usize, Vec::new);
        for left in (0..size.width).step_by(piece as usize) {
            let width = piece.min(size.width - left);
            let pixels = store
                .read_region(level, Rect::new(left as i64, top as i64, width, height))
                .map_err(|error| refuse(path, strip(path, &error)))?;
            for (y, runs) in rows.iter_mut().enumerate() {
                let row = y * width as usize..(y + 1) * width as usize;
                match pixels.samples() {
                    Samples::U8(samples) => values.runs(&samples[row], left, runs),
                    Samples::U16(samples) => values.runs(&samples[row], left, runs),
                }
            }
            if rows.iter().map(Vec::len).sum::<usize>() > Roi::MAX_RUNS {
                return Err(refuse(path, "too ragged for a region: a coarser level would do"));
            }
        }
        for runs in &rows {
            placed.push_row(runs.iter().cloned()).map_err(|error| refuse(path, error))?;
        }
    }
    let roi = placed.finish();
    values.check(&roi)?;
    Ok(roi)
}

/// The message without the path in front, which is put there anyway.
fn strip(path: &Path, error: &microtome_io::Error) -> String {
    let text = error.to_string();
    text.strip_prefix(&format!("{}: ", path.display())).map_or(text.clone(), Into::into)
}

/// The level to read and where it lies on the target grid.
///
/// Where slide and store both know their resolution, scale and translation decide; else the mask covers the whole slide.
fn place_of(path: &Path, levels: &[StoreLevel], ours: bool, place: Place<'_>) -> Result<(Level, Placement)> {
    let Place { slide, origin, mpp, target } = place;
    let (Some(mpp), true) = (mpp, levels.iter().all(|level| level.mpp.is_some())) else {
        check_proportions(path, levels[0].size, slide)?;
        return Ok((Level::FINEST, Placement::stretched(levels[0].size, target.size)));
    };
    // A level whose resolution was rounded on its way is still one of 4 um.
    let fine = |m: Microns| m.x.max(m.y) <= MPP * 1.01;
    let n = levels.iter().rposition(|level| level.mpp.is_some_and(fine)).unwrap_or(0);
    let level = levels[n];
    let level_mpp = level.mpp.unwrap_or(mpp);
    let [x, y] = on_slide(&level, level_mpp, ours, (slide, origin, mpp)).map_err(|message| refuse(path, message))?;
    let placement = Placement {
        size: Size::new(level.size.width, level.size.height),
        step: Downsample { x: x.step / target.downsample.x, y: y.step / target.downsample.y },
        left: x.start / target.downsample.x,
        top: y.start / target.downsample.y,
    };
    Ok((Level(n), placement))
}

/// Where a level of a mask, `ours` or another program's, whose pixels measure `of_mask`, lies on a slide whose pixels measure `of_slide`: from left to right, and from top to bottom.
///
/// # Errors
/// A sentence if it reaches out of the slide.
pub(crate) fn on_slide(
    level: &StoreLevel,
    of_mask: Microns,
    ours: bool,
    (slide, origin, of_slide): (Size, Translation, Microns),
) -> Result<[Along; 2], String> {
    // Many programs write none for their coarser levels, although those share the corner of the first: a translation of exactly 0 is taken for that.
    let corner = |translation: f64, origin: f64| translation == 0.0 && (origin == 0.0 || !ours);
    let along = |step: f64, translation: f64, of_slide: f64, origin: f64, n: u64| {
        let place = (!corner(translation, origin)).then(|| translation / of_slide - origin);
        Along::new(step, place, n)
    };
    let (at, step) = (level.translation, Downsample { x: of_mask.x / of_slide.x, y: of_mask.y / of_slide.y });
    let x = along(step.x, at.x, of_slide.x, origin.x, level.size.width);
    let y = along(step.y, at.y, of_slide.y, origin.y, level.size.height);
    if x.fits(slide.width) && y.fits(slide.height) {
        return Ok([x, y]);
    }
    Err(format!(
        "by its resolution this mask reaches from ({:.0}, {:.0}) to ({:.0}, {:.0}) in pixels of the slide, which has {slide}: is it of another slide?",
        x.start, y.start, x.end, y.end
    ))
}

/// A mask along one axis, in level-0 pixels of the slide.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Along {
    step: f64,
    pub(crate) start: f64,
    pub(crate) end: f64,
}

impl Along {
    /// A mask of `n` pixels, each of `step` pixels of the slide; `place` is where the centre of its first one lies from that of the slide's first one,
    /// `None` where both have their corner at the same point.
    fn new(step: f64, place: Option<f64>, n: u64) -> Self {
        let start = place.map_or(0.0, |place| place + (1.0 - step) / 2.0);
        Self { step, start, end: start + n as f64 * step }
    }

    /// True unless the mask reaches out of the slide by more than a pixel of its own, or two of the slide's; or ever so little where
    /// resolutions were rounded.
    fn fits(&self, slide: u64) -> bool {
        let slack = self.slack(slide);
        self.start >= -slack && self.end <= slide as f64 + slack
    }

    /// True if the mask begins where the slide does and ends there, too, as far as rounded sizes and resolutions tell.
    pub(crate) fn covers(&self, slide: u64) -> bool {
        self.start.abs() <= 1.0 && (self.end - slide as f64).abs() <= self.slack(slide)
    }

    fn slack(&self, slide: u64) -> f64 {
        self.step.max(2.0) + slide as f64 * 1e-3
    }
}
