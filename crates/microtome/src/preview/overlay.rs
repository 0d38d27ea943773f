//! What is drawn on a picture of a slide: a mask, a region of interest.

use microtome_io::slide::SlideReader;
use microtome_io::store::{Content, OmeZarr};
use microtome_io::{Pixels, Rect, Size};
use microtome_tile::tissue::{self, TissueOptions};
use microtome_tile::{Roi, TargetGrid};
use serde_json::json;

use super::labels::{Frame, LabelPicture, Palette};
use super::{PreviewOptions, grid};
use crate::region::labels::on_slide;
use crate::region::{self, Place, RegionOrigin};
use crate::{Error, Result};

/// How a mask is drawn on its slide.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub enum Style {
    /// Pixels that have a label and a neighbour (left, right, above or below) with another one get their class's colour.
    #[default]
    Outline,
    /// All pixels that have a label are mixed with their class's colour.
    Fill {
        /// How much of the mixture is the class's colour, 0 to 1.
        opacity: f64,
    },
}

/// Draws a mask on a picture of the same slide, in the colours of its classes. Grey pictures become RGB; background (label 0) stays as it is.
///
/// A mask that a run of ours has made of this very slide covers it. Another one lies where its scale and translation say, if slide and mask both know
/// their resolution; else it covers the slide, whose proportions it must have.
///
/// # Errors
/// [`Error::Read`] if the mask cannot be read, [`Error::Usage`] if it is a picture and no mask, if it reaches out of the slide or has not its shape, or
/// if the opacity is not within 0 to 1.
pub fn overlay(picture: &Pixels, slide: &dyn SlideReader, mask: &OmeZarr, style: Style) -> Result<Pixels> {
    let Content::Labels { .. } = mask.info().content else {
        return Err(Error::Usage(format!("{}: a picture, and no mask of labels", mask.info().path.display())));
    };
    let frame = frame_of(mask, slide, picture.size())?;
    match style {
        Style::Outline => outline_in(picture, mask, frame),
        Style::Fill { opacity } => fill(picture, mask, frame, opacity),
    }
}

/// [`overlay`] with [`Style::Outline`].
///
/// # Errors
/// As [`overlay`].
pub fn outline(picture: &Pixels, slide: &dyn SlideReader, mask: &OmeZarr) -> Result<Pixels> {
    overlay(picture, slide, mask, Style::Outline)
}

/// Where a mask lies in a picture of the whole slide.
fn frame_of(mask: &OmeZarr, slide: &dyn SlideReader, picture: Size) -> Result<Frame> {
    let (info, whole) = (slide.info(), Frame::whole(picture));
    if is_of(mask, slide)? {
        return Ok(whole);
    }
    let (level, size) = (mask.info().levels[0], info.size());
    let (Some(of_mask), Some(of_slide)) = (level.mpp, &info.resolution) else {
        check_proportions(size, mask)?;
        return Ok(whole);
    };
    let ours = mask.info().attributes.contains_key("run");
    let [x, y] = on_slide(&level, of_mask, ours, (size, info.translation, of_slide.mpp))
        .map_err(|why| Error::Usage(format!("{}: {why}", mask.info().path.display())))?;
    // Sizes and resolutions are rounded: what ends about where the slide does covers it.
    if x.covers(size.width) && y.covers(size.height) {
        return Ok(whole);
    }
    let (per_x, per_y) = (whole.width / size.width as f64, whole.height / size.height as f64);
    Ok(Frame {
        left: x.start * per_x,
        top: y.start * per_y,
        width: (x.end - x.start) * per_x,
        height: (y.end - y.start) * per_y,
    })
}

/// True for the whole mask of a run of ours over this very slide. Of the slide's resolution that run may have been told another one (`--mpp`).
fn is_of(mask: &OmeZarr, slide: &dyn SlideReader) -> Result<bool> {
    let info = mask.info();
    match info.attributes.get("run") {
        Some(run) if run["target"]["size"] == json!(info.levels[0].size) => {
            Ok(run["slide"] == slide.content_id().map_err(Error::Read)?)
        }
        _ => Ok(false),
    }
}

/// Refuses a mask that cannot be one of the whole slide.
fn check_proportions(slide: Size, mask: &OmeZarr) -> Result<()> {
    let size = mask.info().levels[0].size;
    // Sizes are rounded to whole pixels, so the proportions may differ by one pixel of the mask.
    let ratio = slide.height as f64 / slide.width as f64;
    if (ratio * size.width as f64 - size.height as f64).abs() > 1.0 + ratio {
        return Err(Error::Usage(format!(
            "{}: a mask of {size} pixels has not the proportions of the slide ({slide})",
            mask.info().path.display()
        )));
    }
    Ok(())
}

/// The outlines of a mask that is known to be the slide's: its pixels may be wider than high where the slide's are not.
///
/// # Errors
/// [`Error::Read`] if the mask cannot be read.
pub(crate) fn outline_own(picture: &Pixels, mask: &OmeZarr) -> Result<Pixels> {
    outline_in(picture, mask, Frame::whole(picture.size()))
}

fn outline_in(picture: &Pixels, mask: &OmeZarr, frame: Frame) -> Result<Pixels> {
    let labels = LabelPicture::framed(mask, picture.size(), frame)?;
    let palette = Palette::new(mask.info().content.classes());
    draw(picture, labels.values(), |label| palette.color(label))
}

fn fill(picture: &Pixels, mask: &OmeZarr, frame: Frame, opacity: f64) -> Result<Pixels> {
    if !(0.0..=1.0).contains(&opacity) {
        return Err(Error::Usage(format!("an opacity of {opacity}: it is within 0 and 1")));
    }
    let labels = LabelPicture::framed(mask, picture.size(), frame)?;
    let palette = Palette::new(mask.info().content.classes());
    let mut samples = rgb(picture)?;
    // In whole numbers, so that the mixture is the same everywhere: 0 leaves a pixel as it is, 255 replaces it.
    let share = (opacity * 255.0).round() as u32;
    for (pixel, &label) in samples.as_chunks_mut::<3>().0.iter_mut().zip(labels.values()) {
        if label != 0 {
            for (sample, color) in pixel.iter_mut().zip(palette.color(label)) {
                *sample = ((u32::from(*sample) * (255 - share) + u32::from(color) * share + 127) / 255) as u8;
            }
        }
    }
    Ok(Pixels::from_u8(picture.size(), 3, samples))
}

/// Outlines a region of interest on the [`overview`](super::overview) of the same slide that was made with the same options, in a blue that no class
/// has. Grey pictures become RGB.
///
/// The region is that of a run at the picture's resolution: what lies between the centres of its pixels is not seen.
///
/// # Errors
/// [`Error::Region`] for a region that cannot be read or does not fit the slide, [`Error::Read`] if the slide cannot be read,
/// [`Error::Usage`] for another picture.
pub fn outline_region(
    picture: &Pixels,
    slide: &dyn SlideReader,
    region: &RegionOrigin,
    options: PreviewOptions,
) -> Result<Pixels> {
    let target = grid(slide, options);
    let mpp = slide.info().resolution.as_ref().map(|r| r.mpp);
    if picture.size() != target.size {
        return Err(Error::Usage(format!("a picture of {} is no overview of {}", picture.size(), target.size)));
    }
    let roi = match region {
        RegionOrigin::File(source) => region::load(source, Place::of(slide.info(), mpp, &target))?.roi,
        RegionOrigin::Tissue => tissue::detect(slide, mpp, &target, &TissueOptions::default())?.roi,
    };
    let width = target.size.width as usize;
    let mut wanted = vec![1; target.size.area() as usize];
    roi.for_each_outside(target.size.rect(), |y, run| wanted[y * width..][run].fill(0));
    draw(picture, &wanted, |_| REGION)
}

/// Outlines a region at hand, over `target`, on a picture of the whole slide, as [`outline_region`] does. A pixel of the picture counts
/// where anything under it is wanted, so that no part is too small to be seen.
///
/// # Errors
/// [`Error::Usage`] for pictures that are neither grey nor RGB of 8 bits.
pub(crate) fn outline_roi(picture: &Pixels, roi: &Roi, target: &TargetGrid) -> Result<Pixels> {
    let (shown, all) = (picture.size(), target.size);
    // The target pixels under a pixel of the picture, at least one.
    let under = |i: u64, shown: u64, all: u64| {
        let step = all as f64 / shown as f64;
        let first = ((i as f64 * step) as u64).min(all - 1);
        first..(((i + 1) as f64 * step).ceil() as u64).clamp(first + 1, all)
    };
    let mut wanted = Vec::with_capacity(shown.area() as usize);
    for y in 0..shown.height {
        let rows = under(y, shown.height, all.height);
        let band = |from: u64, end: u64| Rect::new(from as i64, rows.start as i64, end - from, rows.end - rows.start);
        if !roi.touches(band(0, all.width)) {
            wanted.resize(wanted.len() + shown.width as usize, 0);
            continue;
        }
        wanted.extend((0..shown.width).map(|x| {
            let columns = under(x, shown.width, all.width);
            u16::from(roi.touches(band(columns.start, columns.end)))
        }));
    }
    draw(picture, &wanted, |_| REGION)
}

/// Pure blue, which neither the palette of classes nor a common stain has.
const REGION: [u8; 3] = [0, 0, 255];

/// Colours every pixel that has a label other than 0 and a neighbour (left, right, above or below) that has another one.
fn draw(picture: &Pixels, labels: &[u16], color: impl Fn(u16) -> [u8; 3]) -> Result<Pixels> {
    let size = picture.size();
    let mut samples = rgb(picture)?;
    let (width, height) = (size.width as usize, size.height as usize);
    for y in 0..height {
        for x in 0..width {
            let label = labels[y * width + x];
            let differs = |x: usize, y: usize| labels[y * width + x] != label;
            let edge = (x > 0 && differs(x - 1, y))
                || (x + 1 < width && differs(x + 1, y))
                || (y > 0 && differs(x, y - 1))
                || (y + 1 < height && differs(x, y + 1));
            if label != 0 && edge {
                samples[(y * width + x) * 3..][..3].copy_from_slice(&color(label));
            }
        }
    }
    Ok(Pixels::from_u8(size, 3, samples))
}

/// The samples of a picture as RGB.
///
/// # Errors
/// [`Error::Usage`] for pictures that are neither grey nor RGB of 8 bits.
pub(super) fn rgb(picture: &Pixels) -> Result<Vec<u8>> {
    match (picture.channels(), picture.as_u8()) {
        (3, Some(samples)) => Ok(samples.to_vec()),
        (1, Some(samples)) => Ok(samples.iter().flat_map(|&v| [v; 3]).collect()),
        _ => Err(Error::Usage("pictures that are drawn on are grey or RGB of 8 bits".into())),
    }
}
