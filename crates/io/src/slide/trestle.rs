//! Trestle TIFF: pages of tiles that overlap, and a description of `key=value` pairs, parted by semicolons.
//!
//! All pages are levels, from the finest to the coarsest. `OverlapsXY` gives two numbers for each of them: by how many
//! pixels a tile overlaps its neighbour to the right and below (see [`Stitched`]). The tags of the resolution hold micrometres
//! per pixel as they are, whatever their unit says. `Objective Power` is the magnification, `Background Color` the colour
//! of what was not scanned. The pairs become properties `trestle.KEY`, as in OpenSlide. A JPEG file of the same name that
//! ends in `.Full` is the `macro` picture.
//!
//! Not seen on a real file: it was built against the files that `tests/python/vendor_tiffs.py` writes and OpenSlide 4.0.1
//! opens.
//!
//! Sources: OpenSlide's `openslide-vendor-trestle.c` and its format page "Trestle".

use std::collections::BTreeMap;
use std::sync::Arc;

use super::jpeg_picture::JpegPicture;
use super::pyramid::{Layer, Part, Parts, Pyramid};
use super::raster::Raster;
use super::stitched::{Placing, Stitched};
use super::tiff::{Container, Page, Tag, Tiff};
use super::{OpenOptions, Resolution, ResolutionSource, SlideReader};
use crate::{Error, Microns, Result, SampleType, Size};

/// True if the first page was written by Trestle's program and all pages are of tiles.
pub(super) fn detect(tiff: &Tiff) -> Result<bool> {
    let (file, first) = (tiff.file(), &tiff.directories()[0]);
    let software = first.text(file, Tag::SOFTWARE)?.unwrap_or_default();
    let described = first.has(Tag::IMAGE_DESCRIPTION);
    Ok(software.starts_with("MedScan") && described && tiff.directories().iter().all(super::tiff::Ifd::is_tiled))
}

/// Opens a Trestle TIFF.
pub(super) fn open(tiff: Tiff, options: &OpenOptions) -> Result<Box<dyn SlideReader>> {
    let (file, first) = (tiff.file(), &tiff.directories()[0]);
    let description = first.text(file, Tag::IMAGE_DESCRIPTION)?.unwrap_or_default();
    let mut properties = properties(&description);
    let overlaps = properties.get("trestle.OverlapsXY").map(|text| overlaps(text)).unwrap_or_default();
    let background = properties.get("trestle.Background Color").and_then(|text| color(text));
    let mut layers = Vec::new();
    for (level, ifd) in tiff.directories().iter().enumerate() {
        let page = Page::read(file, ifd)?;
        let overlap = overlaps.get(level).copied().unwrap_or((0, 0));
        layers.push(layer(file, page, overlap, background.as_ref())?);
    }

    let (x, y) = (first.rational(file, Tag::X_RESOLUTION)?, first.rational(file, Tag::Y_RESOLUTION)?);
    let resolution = x.zip(y).filter(|(x, y)| *x > 0.0 && *y > 0.0).map(|(x, y)| Resolution {
        mpp: Microns { x, y },
        source: ResolutionSource::Vendor("XResolution, in micrometres".into()),
    });
    let objective_power = properties.get("trestle.Objective Power").and_then(|text| text.parse().ok());
    properties.extend(tiff.text_properties()?);
    let parts = Parts {
        associated: overview(file, options),
        resolution,
        objective_power: objective_power.filter(|power: &f64| power.is_finite() && *power > 0.0),
        icc_profile: first.bytes(file, Tag::ICC_PROFILE)?,
        properties,
        ..Parts::new("trestle", Arc::clone(file.source()), layers)
    };
    Ok(Box::new(Pyramid::new(parts, options)?))
}

/// A level: a page with its tiles moved over each other.
fn layer(file: &Container, page: Page, overlap: (u64, u64), background: Option<&[u16; 3]>) -> Result<Layer> {
    let (size, cell) = (page.layout.size, page.layout.cell);
    let tiles = size.cells(cell);
    if overlap.0 >= cell.width || overlap.1 >= cell.height {
        return Err(Error::format(
            file.path(),
            format!(
                "tiles of {cell} pixels cannot overlap by {} and {} pixels, as OverlapsXY says",
                overlap.0, overlap.1
            ),
        ));
    }
    // A last tile that is narrower than the overlap would lie within its neighbour.
    let side =
        |pixels: u64, tiles: u64, overlap: u64| pixels.checked_sub((tiles - 1) * overlap).filter(|&side| side > 0);
    let (width, height) = (side(size.width, tiles.width, overlap.0), side(size.height, tiles.height, overlap.1));
    let Some((width, height)) = width.zip(height) else {
        return Err(Error::format(file.path(), "the overlaps of OverlapsXY leave nothing of a level"));
    };
    let placing = |count: u64, length: u64, overlap: u64| Placing {
        first: 0,
        count,
        per_tile: 1,
        length,
        advance: (length - overlap) as f64,
    };
    let shape = page.shape();
    let background = match background {
        Some(color) if shape.channels == 3 && shape.sample == SampleType::U8 => color.to_vec(),
        _ => shape.background.clone(),
    };
    let columns = placing(tiles.width, cell.width, overlap.0);
    let rows = placing(tiles.height, cell.height, overlap.1);
    let raster = Box::new(Stitched::new(Arc::new(page), columns, rows, background));
    Ok(Layer { size: Size::new(width, height), parts: vec![Part { x: 0, y: 0, raster }], stored: true })
}

/// The picture beside the slide, if there is one.
fn overview(file: &Container, options: &OpenOptions) -> Vec<(String, Box<dyn Raster>)> {
    let path = file.path().with_extension("Full");
    // Opening what is no file (a pipe) could wait for ever.
    if !path.is_file() {
        return Vec::new();
    }
    // A picture that travels along and cannot be read is no reason to refuse the slide.
    let picture = options.access.open(&path).and_then(|source| {
        let limit = options.limits.decoded_bytes;
        if source.len() > limit {
            return Err(Error::limits(&path, format!("has {} bytes, the limit is {limit}", source.len())));
        }
        JpegPicture::new(&path, source.read_at(0..source.len())?.into_owned(), limit)
    });
    picture.map(|picture| ("macro".to_owned(), Box::new(picture) as Box<dyn Raster>)).into_iter().collect()
}

/// The `key=value` pairs of a description.
fn properties(description: &str) -> BTreeMap<String, String> {
    let pairs = description.split(';').filter_map(|pair| pair.split_once('='));
    pairs.map(|(key, value)| (format!("trestle.{}", key.trim()), value.trim().to_owned())).collect()
}

/// By how many pixels the tiles of each level overlap, along x and y.
fn overlaps(text: &str) -> Vec<(u64, u64)> {
    // What is no number is taken for 0, as in OpenSlide.
    let numbers: Vec<u64> = text.split(' ').map(|number| number.parse().unwrap_or(0)).collect();
    numbers.chunks_exact(2).map(|pair| (pair[0], pair[1])).collect()
}

/// Red, green and blue of a hexadecimal number.
fn color(text: &str) -> Option<[u16; 3]> {
    let value = u32::from_str_radix(text, 16).ok()?;
    Some([16, 8, 0].map(|shift| (value >> shift & 0xff) as u16))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptions_are_taken_apart() {
        let found = properties("Objective Power=20;OverlapsXY= 64 32 16 8 4;Background Color=F0F1F2; odd ;a = b=c ");
        assert_eq!(found["trestle.Objective Power"], "20");
        assert_eq!(found["trestle.a"], "b=c");
        assert_eq!(found.len(), 4);
        assert_eq!(overlaps(&found["trestle.OverlapsXY"]), [(64, 32), (16, 8)]);
        assert_eq!(color(&found["trestle.Background Color"]), Some([0xf0, 0xf1, 0xf2]));
        assert_eq!(color("white"), None);
    }
}
