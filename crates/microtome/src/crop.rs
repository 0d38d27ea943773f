//! Black borders, which nnU-Net cuts off before it looks at an image.

use std::fmt;

use microtome_io::{Rect, Size};
use microtome_tile::TargetGrid;
use serde::{Deserialize, Serialize};

/// Whether the image is cropped to the pixels that are not 0 in every channel before anything else: then statistics and tiles are those of
/// the crop, and what lies outside is background.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CropNonzero {
    /// As the model says: nnU-Net's were trained so.
    #[default]
    Auto,
    /// It is.
    On,
    /// It is not.
    Off,
}

impl CropNonzero {
    /// True if the image is cropped, for a model that says `model`.
    pub(crate) fn crops(self, model: bool) -> bool {
        match self {
            Self::Auto => model,
            Self::On => true,
            Self::Off => false,
        }
    }
}

/// What is left of an image that is cropped to the pixels that are not 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Crop {
    /// Pixels of the target grid, where it was looked for.
    pub target: Rect,
    /// The same in pixels of level 0, to the nearest.
    pub level0: Rect,
    /// Whether that is all of the image.
    pub whole: bool,
}

impl Crop {
    /// What a rectangle of the target grid is of a slide of this size.
    pub(crate) fn new(target: Rect, grid: &TargetGrid, slide: Size) -> Self {
        let at = |pixel: i64, factor: f64, end: u64| ((pixel as f64 * factor).round() as u64).min(end);
        let x = [target.x, target.right()].map(|x| at(x, grid.downsample.x, slide.width));
        let y = [target.y, target.bottom()].map(|y| at(y, grid.downsample.y, slide.height));
        let level0 = Rect::new(x[0] as i64, y[0] as i64, x[1] - x[0], y[1] - y[0]);
        Self { target, level0, whole: target == grid.size.rect() }
    }
}

impl fmt::Display for Crop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.whole {
            return f.write_str("nothing to cut off: no edge of the slide is black");
        }
        write!(f, "{} of level 0; what lies outside is black, and background in the mask", self.level0)
    }
}
