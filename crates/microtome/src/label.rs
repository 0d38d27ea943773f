//! Where labels lie in the image that they are put into.

use microtome_io::Microns;
use microtome_io::slide::SlideInfo;
use microtome_io::store::{AxisUnit, LabelSource, LabelledImage, StoreLevel, Translation};
use microtome_tile::pyramid::level_sizes;
use serde::Serialize;

use crate::plan::Geometry;
use crate::{Error, Result};

/// The levels of a label: in what the image measures, so that a viewer lays one on the other.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct LabelPlace {
    finest: StoreLevel,
    levels: usize,
    /// True if the numbers are micrometres.
    micrometres: bool,
}

impl LabelPlace {
    /// The place of a slide's labels in an image of it: the slide's first pixel is the image's, or where both know how large a pixel is, both begin
    /// at the same point. There are as many levels as the image has, unless the coarsest has one pixel before that.
    ///
    /// # Errors
    /// [`Error::Usage`] if the image is not one of the whole slide.
    pub(crate) fn new(image: &LabelledImage, slide: &SlideInfo, geometry: &Geometry) -> Result<Self> {
        let (target, downsample) = (&geometry.target, geometry.target.downsample);
        let (mpp, translation) = if slide.size() == image.size() {
            let (pixel, first) = (image.pixel(), image.translation());
            // The centre of a target pixel lies half its extent from the corner, that of the image's first pixel half of its own.
            let shift = |pixel: f64, downsample: f64| (downsample - 1.0) / 2.0 * pixel;
            (
                Microns { x: pixel.x * downsample.x, y: pixel.y * downsample.y },
                Translation { x: first.x + shift(pixel.x, downsample.x), y: first.y + shift(pixel.y, downsample.y) },
            )
        } else {
            let (Some(resolution), Some(mpp), AxisUnit::Micrometer) = (&geometry.resolution, target.mpp, image.unit())
            else {
                return Err(not_of_the_slide(
                    image,
                    slide,
                    "and without the size of a pixel of both there is no telling how they lie on each other",
                ));
            };
            let (of_image, of_slide) = (image.pixel(), resolution.mpp);
            // What is halved is rounded up to a whole pixel; resolutions are rounded.
            let alike = |a: f64, b: f64, pixel: f64| (a - b).abs() <= 1.5 * pixel + 0.005 * b;
            let (a, b) = (image.size(), slide.size());
            if !alike(a.width as f64 * of_image.x, b.width as f64 * of_slide.x, of_image.x)
                || !alike(a.height as f64 * of_image.y, b.height as f64 * of_slide.y, of_image.y)
            {
                return Err(not_of_the_slide(image, slide, "and they do not cover the same area"));
            }
            let first = image.translation();
            // From the centre of the image's first pixel to the corner that both have, and on to the centre of a target pixel.
            let place = |first: f64, of_image: f64, of_target: f64| first + (of_target - of_image) / 2.0;
            (mpp, Translation { x: place(first.x, of_image.x, mpp.x), y: place(first.y, of_image.y, mpp.y) })
        };
        Ok(Self {
            finest: StoreLevel { size: target.size, mpp: Some(mpp), translation },
            levels: image.levels().min(level_sizes(target.size, 1).len()),
            micrometres: image.unit() == AxisUnit::Micrometer,
        })
    }

    pub(crate) fn levels(&self) -> Vec<StoreLevel> {
        self.finest.pyramid(self.levels)
    }

    /// What labels say of the image in whose folder `labels` they lie.
    pub(crate) fn source(&self) -> LabelSource {
        let unit = if self.micrometres { AxisUnit::Micrometer } else { AxisUnit::Unknown };
        LabelSource { image: "../../".into(), unit }
    }
}

fn not_of_the_slide(image: &LabelledImage, slide: &SlideInfo, why: &str) -> Error {
    let (path, size, of_slide) = (image.path().display(), image.size(), slide.size());
    Error::Usage(format!(
        "{path}: the image has {size} pixels and the slide {of_slide}, {why}: labels are put into an image of the whole slide"
    ))
}
