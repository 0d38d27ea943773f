//! OpenSlide's levels and pictures as rasters, so that regions are put together, kept and limited as those of all readers.
//!
//! OpenSlide has no cells that one could ask for: it draws any rectangle of a level, whose corner is a whole pixel of level 0. We ask
//! for the cells of a grid, so that two regions that overlap agree in every pixel: of the size of the file's tiles where OpenSlide
//! knows it (`openslide.level[i].tile-width`; of several small tiles where the downsample is no whole number), of 256 pixels
//! elsewhere. The corner of a cell is rounded to level 0. Where the downsample of a level is no whole number, OpenSlide then draws
//! the cell up to half a pixel of level 0 away from where it belongs, and interpolates.
//!
//! Pixels come as 32-bit words of alpha, red, green and blue, multiplied by alpha; they are laid over `openslide.background-color`, over
//! white where there is none. What OpenSlide leaves out is transparent, and so has the background.
//!
//! A failed read spoils the handle: from then on it answers everything with the first error. So a read that failed is done again
//! with a handle of its own. If that one fails, too, the cell is bad; the others are read with new handles.
//!
//! OpenSlide parses the file itself, in C, and our limits apply to what it says of it afterwards.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use openslide_rs::errors::OpenSlideError;
use openslide_rs::{Address, OpenSlide, Region, Size as Area};

use super::super::alpha::words_over;
use super::super::generic_tiff::PLAUSIBLE_MPP;
use super::super::pyramid::{Layer, Part, Parts, Pyramid, check_limit};
use super::super::raster::{Raster, Shape};
use super::super::{OpenOptions, Resolution, ResolutionSource, SlideReader};
use crate::bytes::Memory;
use crate::{Error, Microns, Pixels, Rect, Result, SampleType, Size, TileCoord};

/// Sides of tiles of which cells are made; others (strips, whole levels) would be slow to ask for one by one, or all at once.
const SIDES: std::ops::RangeInclusive<u64> = 16..=4096;
/// The side of a cell elsewhere, and of several smaller tiles where corners must be rounded: the fewer, the better.
const SIDE: u64 = 256;

/// The most bytes that OpenSlide's own cache takes: what it takes if it is not told.
const MOST_CACHE: usize = 32 << 20;

/// The vendors that OpenSlide 4.0.1 knows.
const VENDORS: &[&str] = &[
    "aperio",
    "dicom",
    "generic-tiff",
    "hamamatsu",
    "leica",
    "mirax",
    "philips",
    "sakura",
    "synthetic",
    "trestle",
    "ventana",
    "zeiss",
];

/// What OpenSlide takes a file for, or nothing if it cannot read it.
pub(super) fn vendor(path: &Path) -> Option<String> {
    OpenSlide::detect_vendor(path).ok()
}

/// Opens a slide with OpenSlide.
pub(super) fn open(path: &Path, options: &OpenOptions) -> Result<Box<dyn SlideReader>> {
    let limits = &options.limits;
    // Our cache keeps cells, OpenSlide's the tiles that several cells touch.
    let cache = (options.cache_bytes / 2).min(MOST_CACHE);
    let library = Arc::new(Library { path: path.to_owned(), cache, shared: Mutex::default() });
    let slide = library.shared()?;
    let corrupt = |what: String| Error::format(path, format!("OpenSlide: {what}"));
    let failed = |error: OpenSlideError| corrupt(one_line(&error));

    let mut properties = BTreeMap::new();
    let mut bytes = 0;
    for name in slide.property_names().map_err(failed)? {
        let value = slide.property_value(&name).map_err(failed)?;
        bytes += (name.len() + value.len()) as u64;
        properties.insert(name, value);
    }
    if bytes > limits.table_bytes {
        return Err(Error::limits(path, format!("properties of {bytes} bytes, the limit is {}", limits.table_bytes)));
    }
    let text = |name: &str| properties.get(name).map(String::as_str);
    let background = text("openslide.background-color").and_then(color).unwrap_or([0xff; 3]);

    let levels = slide.level_count();
    if levels == 0 {
        return Err(corrupt("the slide has no level".into()));
    }
    if levels as usize > limits.directories {
        return Err(Error::limits(path, format!("{levels} levels, the limit is {}", limits.directories)));
    }
    let mut layers = Vec::new();
    for level in 0..levels {
        let size = size(slide.level_dimensions(level).map_err(failed)?);
        let downsample = slide.level_downsample(level).map_err(failed)?;
        if size.is_empty() || !downsample.is_finite() || downsample <= 0.0 {
            return Err(corrupt(format!("level {level} has {size} pixels and the downsample {downsample}")));
        }
        let side = |name: &str| {
            let stated = text(&format!("openslide.level[{level}].tile-{name}")).and_then(|text| text.parse().ok());
            let tile: u64 = stated.filter(|side| SIDES.contains(side))?;
            // A bad tile spoils its cell, so a cell is a tile where that costs nothing else.
            Some(if downsample.fract() == 0.0 { tile } else { tile * (SIDE / tile).max(1) })
        };
        let cell = match (side("width"), side("height")) {
            (Some(width), Some(height)) => Size::new(width, height),
            _ => Size::new(SIDE, SIDE),
        };
        let shape = shape(size, cell, background);
        check_limit(path, &Shape { channels: 4, ..shape.clone() }, shape.cell, limits.decoded_bytes)?;
        let plane = Plane { library: Arc::clone(&library), level, downsample, background, shape };
        layers.push(Layer { size, parts: vec![Part { x: 0, y: 0, raster: Box::new(plane) }], stored: true });
    }

    let mut associated = Vec::<(String, Box<dyn Raster>)>::new();
    for name in slide.associated_image_names().map_err(failed)? {
        let size = size(slide.associated_image_dimensions(&name).map_err(failed)?);
        let shape = shape(size, size, background);
        // One that is too large to be decoded is no reason to refuse the slide.
        if !size.is_empty()
            && check_limit(path, &Shape { channels: 4, ..shape.clone() }, size, limits.decoded_bytes).is_ok()
        {
            associated
                .push((name.clone(), Box::new(Picture { library: Arc::clone(&library), name, background, shape })));
        }
    }

    let icc_size = text("openslide.icc-size").and_then(|text| text.parse::<u64>().ok()).unwrap_or_default();
    if icc_size > limits.table_bytes {
        return Err(Error::limits(
            path,
            format!("an ICC profile of {icc_size} bytes, the limit is {}", limits.table_bytes),
        ));
    }
    let icc_profile = slide.icc_profile().map_err(failed)?;

    let vendor = text("openslide.vendor").unwrap_or_default();
    let number = |name: &str| text(name).and_then(|text| text.parse().ok()).filter(|n: &f64| n.is_finite() && *n > 0.0);
    let mpp = number("openslide.mpp-x").zip(number("openslide.mpp-y")).map(|(x, y)| Microns { x, y });
    // Plain TIFFs often state the resolution of paper; see the reader of ours.
    let believed = |mpp: &Microns| vendor != "generic-tiff" || [mpp.x, mpp.y].iter().all(|n| PLAUSIBLE_MPP.contains(n));
    let resolution =
        mpp.filter(believed).map(|mpp| Resolution { mpp, source: ResolutionSource::Vendor("openslide.mpp-x".into()) });
    let whole = |name: &str| text(&format!("openslide.bounds-{name}")).and_then(|text| text.parse::<i64>().ok());
    let extent = |name: &str| whole(name).and_then(|n| u64::try_from(n).ok()).filter(|&n| n > 0);
    let bounds = match (whole("x"), whole("y"), extent("width"), extent("height")) {
        (Some(x), Some(y), Some(width), Some(height)) => Some(Rect::new(x, y, width, height)),
        _ => None,
    };

    let objective_power = number("openslide.objective-power");
    // The file alone may be an index (MIRAX, VMS): OpenSlide's hash is about the pixels.
    let hash = text("openslide.quickhash-1").unwrap_or_default().as_bytes().to_vec();
    let mut files = vec![options.access.open(path)?];
    files.push(Arc::new(Memory::new(path, hash)));
    let format = VENDORS.iter().find(|known| **known == vendor).copied().unwrap_or("openslide");
    let version = OpenSlide::version().unwrap_or_default();
    properties.insert("microtome.read-by".into(), format!("OpenSlide {version}"));
    let parts = Parts {
        files,
        associated,
        resolution,
        objective_power,
        bounds,
        icc_profile,
        properties,
        resident_bytes: cache as u64,
        ..Parts::new(format, Arc::new(Memory::new(path, Vec::new())), layers)
    };
    let keep = OpenOptions { cache_bytes: options.cache_bytes - cache, ..options.clone() };
    Ok(Box::new(Pyramid::new(parts, &keep)?))
}

fn shape(size: Size, cell: Size, background: [u8; 3]) -> Shape {
    Shape { size, cell, channels: 3, sample: SampleType::U8, background: background.map(u16::from).to_vec() }
}

fn size(area: Area) -> Size {
    Size::new(area.w.into(), area.h.into())
}

/// A colour as OpenSlide writes it: `RRGGBB`.
fn color(hex: &str) -> Option<[u8; 3]> {
    let [0, red, green, blue] = u32::from_str_radix(hex, 16).ok()?.to_be_bytes() else { return None };
    (hex.len() == 6 && hex.bytes().all(|byte| byte.is_ascii_hexdigit())).then_some([red, green, blue])
}

/// What OpenSlide says, without line breaks.
fn one_line(error: &OpenSlideError) -> String {
    let text = match error {
        OpenSlideError::LibraryError(text) => text.clone(),
        other => other.to_string(),
    };
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// The file, and a handle of it that all threads share as long as nothing failed.
#[derive(Debug)]
struct Library {
    path: PathBuf,
    cache: usize,
    shared: Mutex<Option<Arc<OpenSlide>>>,
}

impl Library {
    /// The handle that all share.
    fn shared(&self) -> Result<Arc<OpenSlide>> {
        let mut shared = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(slide) = &*shared {
            return Ok(Arc::clone(slide));
        }
        // Under the lock: others would open one more, and have nothing to do meanwhile.
        let slide = Arc::new(self.open()?);
        *shared = Some(Arc::clone(&slide));
        Ok(slide)
    }

    fn open(&self) -> Result<OpenSlide> {
        let slide = if self.cache == 0 {
            OpenSlide::new(&self.path)
        } else {
            OpenSlide::new_with_cache(&self.path, self.cache)
        };
        slide.map_err(|error| match error {
            OpenSlideError::MissingFile(path) => Error::io(path, std::io::ErrorKind::NotFound.into()),
            OpenSlideError::UnsupportedFile(path) => Error::unsupported(path, "is in no format that OpenSlide knows"),
            error => Error::format(&self.path, format!("OpenSlide cannot open it: {}", one_line(&error))),
        })
    }

    /// Reads with the shared handle, and after a failure with one of its own.
    fn read<T>(&self, read: impl Fn(&OpenSlide) -> Result<T, OpenSlideError>) -> Result<T> {
        let slide = self.shared()?;
        let Ok(value) = read(&slide) else {
            // It may be that something else was read through this handle, and failed.
            self.retire(&slide);
            let own = self.open()?;
            let value =
                read(&own).map_err(|error| Error::format(&self.path, format!("OpenSlide: {}", one_line(&error))))?;
            *self.shared.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(own));
            return Ok(value);
        };
        Ok(value)
    }

    /// Stops sharing a handle. Those who still use it will find that it failed, and do as [`Library::read`] does.
    fn retire(&self, slide: &Arc<OpenSlide>) {
        let mut shared = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        if shared.as_ref().is_some_and(|current| Arc::ptr_eq(current, slide)) {
            *shared = None;
        }
    }
}

/// A level.
#[derive(Debug)]
struct Plane {
    library: Arc<Library>,
    level: u32,
    downsample: f64,
    background: [u8; 3],
    shape: Shape,
}

impl Raster for Plane {
    fn shape(&self) -> &Shape {
        &self.shape
    }

    fn decode(&self, cell: TileCoord) -> Result<Option<Pixels>> {
        let Some(rect) = cell.rect(self.shape.cell).intersect(self.shape.size.rect()) else { return Ok(None) };
        // Level 0 has at most 2^32 pixels a side, as its size was given in 32 bits; a float beyond that becomes the largest number.
        let at = |pixel: i64| (pixel as f64 * self.downsample).round() as u32;
        let region = Region {
            address: Address { x: at(rect.x), y: at(rect.y) },
            level: self.level,
            // The cell lies inside the level, whose sides are such numbers, too.
            size: Area { w: rect.width as u32, h: rect.height as u32 },
        };
        let words = self.library.read(|slide| slide.read_region(&region))?;
        Ok(Some(Pixels::from_u8(rect.size(), 3, words_over(&words, self.background))))
    }
}

/// A picture that travels along.
#[derive(Debug)]
struct Picture {
    library: Arc<Library>,
    name: String,
    background: [u8; 3],
    shape: Shape,
}

impl Raster for Picture {
    fn shape(&self) -> &Shape {
        &self.shape
    }

    fn decode(&self, _: TileCoord) -> Result<Option<Pixels>> {
        let (area, words) = self.library.read(|slide| slide.read_associated_buffer(&self.name))?;
        if size(area) != self.shape.size {
            let message = format!("OpenSlide: {:?} had {} pixels and has {}", self.name, self.shape.size, size(area));
            return Err(Error::format(&self.library.path, message));
        }
        Ok(Some(Pixels::from_u8(self.shape.size, 3, words_over(&words, self.background))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colours_are_six_digits() {
        assert_eq!(color("FAfa00"), Some([0xfa, 0xfa, 0]));
        for text in ["", "fff", "fffffff", "00ffffff", "+fffff", "grey12"] {
            assert_eq!(color(text), None, "{text}");
        }
    }
}
