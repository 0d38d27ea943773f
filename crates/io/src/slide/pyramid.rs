//! A slide whose levels are pages of one TIFF: what the readers of all vendors share.
//!
//! A vendor's file says which pages are levels, which are pictures that travel along, and what the metadata mean; from
//! there on reading is the same.

use std::sync::Arc;

use super::cache::TileCache;
use super::mosaic;
use super::tiff::{Ifd, Page, Tag, Tiff};
use super::{AssociatedImage, LevelInfo, OpenOptions, Resolution, SlideInfo, SlideReader};
use crate::bytes::content_id;
use crate::{Downsample, Error, Level, Pixels, Rect, Result, Size, TileCoord};

/// What a vendor's reader found in a TIFF.
#[derive(Debug)]
pub(super) struct Parts {
    pub(super) format: &'static str,
    /// From the finest to the coarsest.
    pub(super) levels: Vec<Page>,
    pub(super) associated: Vec<(String, Page)>,
    pub(super) resolution: Option<Resolution>,
    pub(super) objective_power: Option<f64>,
    pub(super) properties: std::collections::BTreeMap<String, String>,
}

/// A slide made of the pages of a TIFF.
#[derive(Debug)]
pub(super) struct Pyramid {
    tiff: Tiff,
    info: SlideInfo,
    levels: Vec<Page>,
    associated: Vec<(String, Page)>,
    cache: TileCache,
}

impl Pyramid {
    /// Checks that the levels belong together.
    ///
    /// # Errors
    /// [`Error::Unsupported`] if levels differ in channels or sample type, or two of them in nothing.
    pub(super) fn new(tiff: Tiff, parts: Parts, options: &OpenOptions) -> Result<Self> {
        let path = tiff.file().path();
        let Parts { format, levels, associated, resolution, objective_power, mut properties } = parts;
        let Some(first) = levels.first() else {
            return Err(Error::unsupported(path, "the TIFF holds no page that can be a level"));
        };
        for pair in levels.windows(2) {
            let (finer, coarser) = (&pair[0], &pair[1]);
            if (coarser.channels(), coarser.sample) != (first.channels(), first.sample) {
                return Err(Error::unsupported(path, "levels that differ in channels or sample type cannot be read"));
            }
            if coarser.layout.size.width >= finer.layout.size.width
                || coarser.layout.size.height > finer.layout.size.height
            {
                return Err(Error::unsupported(
                    path,
                    format!(
                        "pages of {} and {} pixels are no levels of one picture (focal planes, perhaps, which cannot be read)",
                        finer.layout.size, coarser.layout.size
                    ),
                ));
            }
        }
        let ifd = &tiff.directories()[0];
        for (name, tag) in TEXTS {
            if let Some(text) = ifd.text(tiff.file(), *tag)?.filter(|text| !text.is_empty()) {
                properties.insert(format!("tiff.{name}"), text);
            }
        }
        let size = first.layout.size;
        let info = SlideInfo {
            path: path.into(),
            format: format.into(),
            levels: levels
                .iter()
                .map(|page| LevelInfo {
                    size: page.layout.size,
                    downsample: Downsample {
                        x: size.width as f64 / page.layout.size.width as f64,
                        y: size.height as f64 / page.layout.size.height as f64,
                    },
                    tile: page.layout.cell,
                })
                .collect(),
            channels: first.channels(),
            sample: first.sample,
            resolution,
            objective_power,
            background: first.background(),
            associated: associated
                .iter()
                .map(|(name, page)| AssociatedImage { name: name.clone(), size: page.layout.size })
                .collect(),
            properties,
            icc_profile_bytes: ifd.field(Tag::ICC_PROFILE).map(|field| field.count as usize),
        };
        let tile_bytes = levels
            .iter()
            .map(|page| page.layout.cell.area() as usize * page.channels() * page.sample.bytes())
            .max()
            .unwrap_or_default();
        let cache = TileCache::new(options.cache_bytes, tile_bytes);
        Ok(Self { tiff, info, levels, associated, cache })
    }
}

impl SlideReader for Pyramid {
    fn info(&self) -> &SlideInfo {
        &self.info
    }

    fn read_region(&self, level: Level, rect: Rect) -> Result<Pixels> {
        self.info.level(level)?;
        let page = &self.levels[level.0];
        let file = self.tiff.file();
        page.check_limits(file, rect.size())?;
        let mut pixels = Pixels::filled(rect.size(), page.sample, &self.info.background);
        mosaic::fill(&mut pixels, rect, page.layout.size, page.layout.cell, |tile| {
            self.cache.get(level, tile, || {
                let decoded = page.decode(file, tile).map_err(|error| at_tile(error, level, tile))?;
                Ok(decoded.map(Arc::new))
            })
        })?;
        Ok(pixels)
    }

    fn read_associated(&self, name: &str) -> Result<Pixels> {
        let Some((_, page)) = self.associated.iter().find(|(found, _)| found == name) else {
            let names: Vec<&str> = self.associated.iter().map(|(name, _)| name.as_str()).collect();
            return Err(Error::usage(
                &self.info.path,
                format!("there is no associated image {name:?}; there are: [{}]", names.join(", ")),
            ));
        };
        let file = self.tiff.file();
        let size = page.layout.size;
        page.check_limits(file, size)?;
        let mut pixels = Pixels::filled(size, page.sample, &page.background());
        mosaic::fill(&mut pixels, size.rect(), size, page.layout.cell, |tile| {
            let decoded = page.decode(file, tile).map_err(|error| match error {
                Error::Format { path, message } => {
                    Error::Format { path, message: format!("associated image {name:?}, {tile}: {message}") }
                }
                other => other,
            })?;
            Ok(decoded.map(Arc::new))
        })?;
        Ok(pixels)
    }

    fn keep_decoded(&self, bytes: u64) {
        self.cache.resize(usize::try_from(bytes).unwrap_or(usize::MAX));
    }

    fn content_id(&self) -> Result<String> {
        content_id(self.tiff.file().source())
    }
}

/// Says which tile an error is about. Failures of the operating system stay what they are: trying again may help.
fn at_tile(error: Error, level: Level, tile: TileCoord) -> Error {
    match error {
        Error::Format { path, message } => Error::Tile { path, level, tile, message },
        other => other,
    }
}

/// True if some one downsample turns `full` into `reduced`, each side rounded up or down: if the same whole picture
/// can be on both. A picture of something else, such as the whole glass, seldom has the same shape to the pixel.
pub(super) fn explains(full: Size, reduced: Size) -> bool {
    // A side of n pixels stems from a downsample between full / (n + 1) and full / (n - 1), ends excluded.
    let range = |full: u64, reduced: u64| {
        let full = full as f64;
        (full / (reduced as f64 + 1.0), if reduced <= 1 { f64::INFINITY } else { full / (reduced as f64 - 1.0) })
    };
    let (x, y) = (range(full.width, reduced.width), range(full.height, reduced.height));
    x.0 < y.1 && y.0 < x.1
}

/// Text fields of the first directory, under the names that OpenSlide gives them.
const TEXTS: &[(&str, Tag)] = &[
    ("ImageDescription", Tag::IMAGE_DESCRIPTION),
    ("Make", Tag::MAKE),
    ("Model", Tag::MODEL),
    ("Software", Tag::SOFTWARE),
    ("DateTime", Tag::DATE_TIME),
    ("Artist", Tag::ARTIST),
    ("HostComputer", Tag::HOST_COMPUTER),
    ("Copyright", Tag::COPYRIGHT),
    ("DocumentName", Tag::DOCUMENT_NAME),
];

/// True for a page of tiles.
pub(super) fn is_tiled(ifd: &Ifd) -> bool {
    ifd.has(Tag::TILE_WIDTH)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_that_one_downsample_explains() {
        let full = Size::new(300, 250);
        for (width, height) in [(300, 250), (150, 125), (75, 62), (37, 31), (38, 32), (1, 1)] {
            assert!(explains(full, Size::new(width, height)), "{width} x {height}");
        }
        for (width, height) in [(150, 150), (75, 70), (120, 40), (37, 37)] {
            assert!(!explains(full, Size::new(width, height)), "{width} x {height}");
        }
    }
}
