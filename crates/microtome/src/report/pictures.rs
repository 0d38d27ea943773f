//! What the report shows: the slide with the region that ran, and the slide with the mask.

use std::path::Path;

use microtome_io::slide::SlideReader;
use microtome_io::store::OmeZarr;
use microtome_io::{Error as IoError, Pixels};
use microtome_tile::{Roi, TargetGrid};

use super::html::Jpeg;
use crate::damaged::Conspicuous;
use crate::preview::{self, PictureFormat, PreviewOptions};
use crate::{Error, Result};

/// Two pictures of the whole slide, and what a reader must know of them.
#[derive(Debug)]
pub(super) struct Pictures {
    pub(super) region: Jpeg,
    pub(super) mask: Jpeg,
    pub(super) note: Option<&'static str>,
}

impl Pictures {
    /// Reads the level of the slide that is just fine enough, and that of the mask.
    pub(super) fn draw(slide: &dyn SlideReader, target: &TargetGrid, roi: Option<&Roi>, mask: &Path) -> Result<Self> {
        let options = PreviewOptions { size: 900, quality: 85 };
        let (slide_alone, note) = ground(slide, options)?;
        let region = match roi {
            Some(roi) => preview::outline_roi(&slide_alone, roi, target)?,
            None => slide_alone.clone(),
        };
        let store = OmeZarr::open(mask).map_err(Error::Read)?;
        let outlined = preview::outline_own(&slide_alone, &store)?;
        let jpeg = |picture: &Pixels| -> Result<Jpeg> {
            Ok(Jpeg { bytes: preview::encode(picture, PictureFormat::Jpeg, mask, options)?, size: picture.size() })
        };
        Ok(Self { region: jpeg(&region)?, mask: jpeg(&outlined)?, note })
    }
}

/// Longest side of a small picture, in pixels.
const THUMBNAIL: u64 = 200;

/// A small picture of the slide with the outlines of its mask, as a JPEG. Nothing of the slide but its pixels is in it.
///
/// # Errors
/// As [`Pictures::draw`].
pub(crate) fn thumbnail(slide: &dyn SlideReader, mask: &Path) -> Result<Vec<u8>> {
    let options = PreviewOptions { size: THUMBNAIL, quality: 80 };
    let (alone, _) = ground(slide, options)?;
    let store = OmeZarr::open(mask).map_err(Error::Read)?;
    preview::encode(&preview::outline_own(&alone, &store)?, PictureFormat::Jpeg, mask, options)
}

/// What is drawn on: the slide, where a picture can show it.
fn ground(slide: &dyn SlideReader, options: PreviewOptions) -> Result<(Pixels, Option<&'static str>)> {
    if !preview::is_shown(slide) {
        let note = "A slide of so many channels is not shown: only outlines are.";
        return Ok((preview::blank(slide, options), Some(note)));
    }
    match preview::overview(slide, options) {
        // The level that is shown need not be the one that was read: the run is none the worse for it.
        Err(Error::Read(IoError::Tile { .. })) => {
            let note = "Parts of the slide that cannot be read are shown in one plain colour, purple or grey.";
            Ok((preview::overview(&Conspicuous(slide), options)?, Some(note)))
        }
        picture => Ok((picture?, None)),
    }
}
