//! Hamamatsu NDPI: a TIFF of 64-bit offsets in halves (see [`tiff`](super::tiff)) whose pages are one JPEG each.
//!
//! The field 65421, the magnification of the objective, says what a page is: a level where it is positive, the picture of
//! the whole glass (`macro`) where it is -1, a map of where the scanner saw something (`map`) where it is -2. Levels at
//! another focus than 0 (65424) are other planes of the slide, and not read; the property `microtome.focal-planes-not-read`
//! says which there are. The field 65449 holds lines of `key=value`, which become properties `hamamatsu.key` as in OpenSlide.
//!
//! A level is one strip: a JPEG, cut by restart markers, larger than the format allows where need be (its frame header
//! then says 0 or nonsense for a side, and the page's own size counts). See [`strip`] for how it is read in pieces.
//!
//! Between stored levels, which often lie a factor of 4 apart, OpenSlide shows levels of its own making: each JPEG at 1/2,
//! 1/4 and 1/8, where that many pixels divide its pieces and no stored level has that width. The same levels are shown
//! here, made by averages of squares of pixels; the property `microtome.levels-not-stored` says which they are. OpenSlide has the JPEG decoder
//! leave out fine frequencies instead, so that samples differ: by 12 levels at most and 0.5 in the mean on a real slide
//! (`tests/slide/ndpi.rs`).
//!
//! The colours are those that the TIFF states (YCbCr in all files known).
//!
//! Sources: OpenSlide's format page "Hamamatsu" and `openslide-vendor-hamamatsu.c` (for what the fields mean), tifffile
//! (names of fields, the upper halves), a file of the slideio tutorial.

mod intervals;
mod strip;

use std::collections::BTreeMap;
use std::sync::Arc;

use strip::Strip;

use super::pyramid::{Layer, Parts, Pyramid};
use super::raster::Raster;
use super::reduced::Reduced;
use super::tiff::{Container, Ifd, Page, Tag, Tiff};
use super::{OpenOptions, Resolution, ResolutionSource, SlideReader};
use crate::{Error, Microns, Result};

/// The unit of resolution that means something here: pixels per centimetre.
const CENTIMETER: u64 = 3;
/// What takes the place of a magnification in pictures that travel along.
const MACRO: f32 = -1.0;
const MAP: f32 = -2.0;

/// True if the first page is Hamamatsu's.
pub(super) fn detect(tiff: &Tiff) -> bool {
    tiff.directories()[0].has(Tag::NDPI_FORMAT)
}

/// Opens an NDPI.
pub(super) fn open(tiff: Tiff, options: &OpenOptions) -> Result<Box<dyn SlideReader>> {
    let file = tiff.file();
    let first = &tiff.directories()[0];
    let mut properties = properties(&tiff, first)?;
    let mut strips = Vec::<Arc<Strip>>::new();
    let mut associated = Vec::<(String, Box<dyn Raster>)>::new();
    let (mut planes, mut not_read) = (Vec::new(), 0);
    for ifd in tiff.directories() {
        let lens = ifd.float(file, Tag::NDPI_SOURCE_LENS)?.unwrap_or_default();
        if lens > 0.0 {
            let plane = ifd.signed(file, Tag::NDPI_FOCAL_PLANE)?.unwrap_or_default();
            if plane == 0 {
                strips.push(Arc::new(Strip::read(file, ifd)?));
            } else if !planes.contains(&plane) {
                planes.push(plane);
            }
            continue;
        }
        let name = match lens {
            MACRO => "macro",
            MAP => "map",
            _ => {
                not_read += 1;
                continue;
            }
        };
        // A picture that travels along and cannot be read is no reason to refuse the slide.
        match Page::read(file, ifd) {
            Ok(page) if associated.iter().all(|(known, _)| known != name) => {
                associated.push((name.to_owned(), Box::new(page)));
            }
            Ok(_) | Err(Error::Unsupported { .. }) => not_read += 1,
            Err(error) => return Err(error),
        }
    }
    if strips.windows(2).any(|pair| pair[0].shape().size.width <= pair[1].shape().size.width) {
        return Err(Error::unsupported(
            file.path(),
            "the levels of an NDPI must become smaller from page to page; in this one they do not",
        ));
    }
    if !planes.is_empty() {
        properties.insert("microtome.focal-planes-not-read".into(), list(&planes));
    }
    if not_read > 0 {
        properties.insert("microtome.pages-not-read".into(), not_read.to_string());
    }
    let layers = layers(strips);
    let made: Vec<usize> = (0..layers.len()).filter(|&level| !layers[level].stored).collect();
    if !made.is_empty() {
        properties.insert("microtome.levels-not-stored".into(), list(&made));
    }
    let lens = first.float(file, Tag::NDPI_SOURCE_LENS)?.map(f64::from);
    let parts = Parts {
        associated,
        resolution: resolution(file, first)?,
        objective_power: lens.filter(|&power| power > 0.0),
        icc_profile: first.bytes(file, Tag::ICC_PROFILE)?,
        properties,
        ..Parts::new("hamamatsu", Arc::clone(file.source()), layers)
    };
    Ok(Box::new(Pyramid::new(parts, options)?))
}

/// Stored levels, from the finest on, and those in between. One that several stored levels could give is made of the coarsest.
fn layers(strips: Vec<Arc<Strip>>) -> Vec<Layer> {
    let mut by_width = BTreeMap::new();
    for strip in strips {
        for by in [2, 4, 8].into_iter().filter(|&by| strip.can_be_reduced(by)) {
            if let Some(reduced) = Reduced::new(&strip, by) {
                let width = reduced.shape().size.width;
                by_width.insert(width, Layer { stored: false, ..Layer::of(reduced) });
            }
        }
        by_width.insert(strip.shape().size.width, Layer::of(strip));
    }
    by_width.into_values().rev().collect()
}

/// The physical size of a pixel, of the first page.
fn resolution(file: &Container, ifd: &Ifd) -> Result<Option<Resolution>> {
    if ifd.unsigned(file, Tag::RESOLUTION_UNIT)? != Some(CENTIMETER) {
        return Ok(None);
    }
    let side = |tag: Tag| {
        let per_centimeter = ifd.rational(file, tag)?;
        Ok::<_, Error>(per_centimeter.map(|value| 10_000.0 / value).filter(|mpp| mpp.is_finite() && *mpp > 0.0))
    };
    let (x, y) = (side(Tag::X_RESOLUTION)?, side(Tag::Y_RESOLUTION)?);
    Ok(x.zip(y).map(|(x, y)| Resolution { mpp: Microns { x, y }, source: ResolutionSource::TiffTags }))
}

/// What the first page says, under OpenSlide's names.
fn properties(tiff: &Tiff, first: &Ifd) -> Result<BTreeMap<String, String>> {
    let file = tiff.file();
    let mut properties = tiff.text_properties()?;
    let mut set = |name: &str, value: Option<String>| {
        if let Some(value) = value.filter(|value| !value.is_empty()) {
            properties.insert(name.into(), value);
        }
    };
    for (name, tag) in [("tiff.XResolution", Tag::X_RESOLUTION), ("tiff.YResolution", Tag::Y_RESOLUTION)] {
        set(name, first.rational(file, tag)?.map(|value| value.to_string()));
    }
    let unit = first.unsigned(file, Tag::RESOLUTION_UNIT)?;
    set(
        "tiff.ResolutionUnit",
        unit.map(|unit| ["", "none", "inch", "centimeter"].get(unit as usize).copied().unwrap_or("").into()),
    );
    set("hamamatsu.SourceLens", first.float(file, Tag::NDPI_SOURCE_LENS)?.map(|lens| f64::from(lens).to_string()));
    for (name, tag) in [
        ("hamamatsu.XOffsetFromSlideCentre", Tag::NDPI_X_OFFSET),
        ("hamamatsu.YOffsetFromSlideCentre", Tag::NDPI_Y_OFFSET),
    ] {
        set(name, first.signed(file, tag)?.map(|nanometers| nanometers.to_string()));
    }
    set("hamamatsu.Reference", first.text(file, Tag::NDPI_REFERENCE)?);
    // Not as text: OpenSlide keeps what white space there is at the end of a value.
    let map = first.bytes(file, Tag::NDPI_PROPERTY_MAP)?.unwrap_or_default();
    let map = String::from_utf8_lossy(map.split(|&byte| byte == 0).next().unwrap_or_default());
    for (key, value) in map.split("\r\n").filter_map(|line| line.split_once('=')).filter(|(key, _)| !key.is_empty()) {
        set(&format!("hamamatsu.{key}"), Some(value.into()));
    }
    Ok(properties)
}

fn list(numbers: &[impl ToString]) -> String {
    numbers.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}
