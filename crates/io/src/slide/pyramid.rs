//! A slide whose levels are made of [rasters](Raster): what the readers of all formats share.
//!
//! A format's file says which rasters make up a level, which are pictures that travel along, and what the metadata mean;
//! from there on reading is the same: cells are decoded outside of locks, kept in a cache, and put together.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use super::cache::{Found, TileCache, Wait};
use super::mosaic;
use super::raster::{Raster, Shape};
use super::{AssociatedImage, LevelInfo, OpenOptions, Resolution, SlideInfo, SlideReader};
use crate::bytes::{ByteSource, Memory, content_id};
use crate::store::Translation;
use crate::{Class, Downsample, Error, Level, Pixels, Rect, Result, Size, TileCoord};

/// A raster and where it lies on its level.
#[derive(Debug)]
pub(super) struct Part {
    /// Its top left corner, in pixels of the level.
    pub(super) x: u64,
    /// As `x`.
    pub(super) y: u64,
    pub(super) raster: Box<dyn Raster>,
}

/// One resolution of a slide.
#[derive(Debug)]
pub(super) struct Layer {
    pub(super) size: Size,
    /// What lies on it, the later ones over the earlier ones. Between them there is background.
    pub(super) parts: Vec<Part>,
    /// False if the file does not hold this level, and it is made of a finer one while reading.
    pub(super) stored: bool,
}

impl Layer {
    /// A level that is one raster.
    pub(super) fn of(raster: impl Raster + 'static) -> Self {
        let size = raster.shape().size;
        Self { size, parts: vec![Part { x: 0, y: 0, raster: Box::new(raster) }], stored: true }
    }

    /// How its pixels are stored: as those of its first raster.
    fn shape(&self) -> &Shape {
        self.parts[0].raster.shape()
    }
}

/// What a reader found in a slide's files.
#[derive(Debug)]
pub(super) struct Parts {
    pub(super) format: &'static str,
    /// All files that the slide is made of, the one that it is called by first.
    pub(super) files: Vec<Arc<dyn ByteSource>>,
    /// From the finest to the coarsest. Each has at least one part.
    pub(super) layers: Vec<Layer>,
    /// The downsample of each level, where the file states it; empty where the sizes say it all.
    pub(super) downsamples: Vec<Downsample>,
    pub(super) associated: Vec<(String, Box<dyn Raster>)>,
    /// Those of them that the file says to show the label on the glass.
    pub(super) labels: BTreeSet<String>,
    pub(super) resolution: Option<Resolution>,
    pub(super) objective_power: Option<f64>,
    /// The part of level 0 outside of which the scanner saw nothing, if the file says.
    pub(super) bounds: Option<Rect>,
    /// Names of the channels, if they are no colours.
    pub(super) channel_names: Vec<String>,
    /// What the values mean, if they are labels.
    pub(super) classes: Option<Vec<Class>>,
    /// Where the centre of the first pixel lies, in level-0 pixels.
    pub(super) translation: Translation,
    /// The embedded profile of colours.
    pub(super) icc_profile: Option<Vec<u8>>,
    pub(super) properties: BTreeMap<String, String>,
    /// What the rasters hold for as long as they live.
    pub(super) resident_bytes: u64,
}

impl Parts {
    /// A slide of one file of which only the pixels are known.
    pub(super) fn new(format: &'static str, file: Arc<dyn ByteSource>, layers: Vec<Layer>) -> Self {
        Self {
            format,
            files: vec![file],
            layers,
            downsamples: Vec::new(),
            associated: Vec::new(),
            labels: BTreeSet::new(),
            resolution: None,
            objective_power: None,
            bounds: None,
            channel_names: Vec::new(),
            classes: None,
            translation: Translation { x: 0.0, y: 0.0 },
            icc_profile: None,
            properties: BTreeMap::new(),
            resident_bytes: 0,
        }
    }
}

/// A slide made of rasters.
#[derive(Debug)]
pub(super) struct Pyramid {
    info: SlideInfo,
    files: Vec<Arc<dyn ByteSource>>,
    layers: Vec<Layer>,
    associated: Vec<(String, Box<dyn Raster>)>,
    icc_profile: Option<Vec<u8>>,
    cache: TileCache,
    decoded_bytes: u64,
    resident_bytes: u64,
}

impl Pyramid {
    /// Checks that the levels belong together.
    ///
    /// # Errors
    /// [`Error::Unsupported`] if levels differ in channels or sample type, or two of them in nothing.
    pub(super) fn new(parts: Parts, options: &OpenOptions) -> Result<Self> {
        let Parts { format, files, layers, downsamples, associated, icc_profile, resident_bytes, .. } = parts;
        let path = files[0].path();
        let Some(first) = layers.first() else {
            return Err(Error::unsupported(path, "the file holds no picture that can be a level"));
        };
        let first = first.shape().clone();
        let shapes = layers.iter().flat_map(|layer| layer.parts.iter().map(|part| part.raster.shape()));
        if shapes.into_iter().any(|shape| (shape.channels, shape.sample) != (first.channels, first.sample)) {
            return Err(Error::unsupported(path, "levels that differ in channels or sample type cannot be read"));
        }
        for pair in layers.windows(2) {
            let (finer, coarser) = (pair[0].size, pair[1].size);
            if coarser.width > finer.width || coarser.height > finer.height || coarser == finer {
                return Err(Error::unsupported(
                    path,
                    format!(
                        "pictures of {finer} and {coarser} pixels are no levels of one slide (focal planes, perhaps, which cannot be read)"
                    ),
                ));
            }
        }
        let size = layers[0].size;
        let info = SlideInfo {
            levels: layers
                .iter()
                .enumerate()
                .map(|(level, layer)| {
                    let sizes = LevelInfo::new(size, layer.size, layer.shape().cell);
                    let stated = downsamples.get(level).copied();
                    LevelInfo { stored: layer.stored, downsample: stated.unwrap_or(sizes.downsample), ..sizes }
                })
                .collect(),
            resolution: parts.resolution,
            objective_power: parts.objective_power,
            background: first.background,
            bounds: parts.bounds,
            channel_names: parts.channel_names,
            classes: parts.classes,
            translation: parts.translation,
            associated: associated
                .iter()
                .map(|(name, raster)| {
                    let known = AssociatedImage::new(format, name, raster.shape().size);
                    AssociatedImage { shows_label: known.shows_label || parts.labels.contains(name), ..known }
                })
                .collect(),
            properties: parts.properties,
            icc_profile_bytes: icc_profile.as_ref().map(Vec::len),
            ..SlideInfo::new(path, format, size, first.cell, first.channels, first.sample)
        };
        let all = layers.iter().flat_map(|layer| &layer.parts);
        let cell_bytes = all.map(|part| part.raster.shape().cell_bytes()).max().unwrap_or_default();
        let cache = TileCache::new(options.cache_bytes, usize::try_from(cell_bytes).unwrap_or(usize::MAX));
        let decoded_bytes = options.limits.decoded_bytes;
        Ok(Self { info, files, layers, associated, icc_profile, cache, decoded_bytes, resident_bytes })
    }
}

impl SlideReader for Pyramid {
    fn info(&self) -> &SlideInfo {
        &self.info
    }

    fn read_region(&self, level: Level, rect: Rect) -> Result<Pixels> {
        self.info.level(level)?;
        let layer = &self.layers[level.0];
        check_limit(&self.info.path, layer.shape(), rect.size(), self.decoded_bytes)?;
        let fetch = |number: usize, part: &Part, tile: TileCoord, wait: Wait| {
            self.cache.get((level, number, tile), wait, || {
                let decoded = part.raster.decode(tile).map_err(|error| at_tile(error, level, tile))?;
                Ok(decoded.map(Arc::new))
            })
        };
        if let [part] = &layer.parts[..] {
            let (shape, at, size) = (part.raster.shape(), part.place(rect), part.visible(layer.size));
            let kept = self.cache.capacity() as u64 / rayon::current_num_threads() as u64;
            let even = part.raster.grid() == shape.cell.into();
            if even && mosaic::few(at, size, shape.cell, shape.cell_bytes(), kept) {
                let blank = Pixels::filled(Size::new(1, 1), self.info.sample, &self.info.background);
                return mosaic::gather(at, size, shape.cell, &blank, |tile, wait| fetch(0, part, tile, wait));
            }
        }
        let mut pixels = Pixels::filled(rect.size(), self.info.sample, &self.info.background);
        for (number, part) in layer.parts.iter().enumerate() {
            let (size, grid) = (part.visible(layer.size), part.raster.grid());
            mosaic::fill(&mut pixels, part.place(rect), size, grid, |tile, wait| fetch(number, part, tile, wait))?;
        }
        Ok(pixels)
    }

    fn read_associated(&self, name: &str) -> Result<Pixels> {
        let Some((_, raster)) = self.associated.iter().find(|(found, _)| found == name) else {
            let names: Vec<&str> = self.associated.iter().map(|(name, _)| name.as_str()).collect();
            return Err(Error::usage(
                &self.info.path,
                format!("there is no associated image {name:?}; there are: [{}]", names.join(", ")),
            ));
        };
        let shape = raster.shape();
        check_limit(&self.info.path, shape, shape.size, self.decoded_bytes)?;
        let mut pixels = Pixels::filled(shape.size, shape.sample, &shape.background);
        mosaic::fill(&mut pixels, shape.size.rect(), shape.size, raster.grid(), |tile, _| {
            let decoded = raster.decode(tile).map_err(|error| match error {
                Error::Format { path, message } => {
                    Error::Format { path, message: format!("associated image {name:?}, {tile}: {message}") }
                }
                other => other,
            })?;
            Ok(Found::Tile(decoded.map(Arc::new)))
        })?;
        Ok(pixels)
    }

    fn tiles(&self, level: Level) -> Result<Box<dyn Iterator<Item = Rect> + '_>> {
        self.info.level(level)?;
        let layer = &self.layers[level.0];
        Ok(Box::new(layer.parts.iter().flat_map(|part| {
            let (size, grid) = (part.visible(layer.size), part.raster.grid());
            mosaic::cells(size.rect(), size, grid).map(move |at| {
                let rect = grid.rect(at, size);
                Rect { x: rect.x + part.x as i64, y: rect.y + part.y as i64, ..rect }
            })
        })))
    }

    fn jpeg_tile(&self, level: Level, tile: TileCoord) -> Result<Option<Vec<u8>>> {
        self.info.level(level)?;
        let layer = &self.layers[level.0];
        let [part] = &layer.parts[..] else { return Ok(None) };
        let cell = part.raster.shape().cell;
        let cells = part.visible(layer.size).cells(cell);
        let is_cell = (part.x, part.y) == (0, 0) && part.raster.grid() == cell.into();
        if !layer.stored || !is_cell || tile.column >= cells.width || tile.row >= cells.height {
            return Ok(None);
        }
        part.raster.jpeg(tile).map_err(|error| at_tile(error, level, tile))
    }

    fn icc_profile(&self) -> Option<&[u8]> {
        self.icc_profile.as_deref()
    }

    fn prefetch(&self, level: Level, rect: Rect) {
        let Some(layer) = self.layers.get(level.0) else { return };
        for part in &layer.parts {
            for tile in mosaic::cells(part.place(rect), part.visible(layer.size), part.raster.grid()) {
                part.raster.prefetch(tile);
            }
        }
    }

    fn resident_bytes(&self) -> u64 {
        self.resident_bytes
    }

    fn keep_decoded(&self, bytes: u64) {
        self.cache.resize(usize::try_from(bytes).unwrap_or(usize::MAX));
    }

    /// Of several files, the identity of the list of theirs, whichever of them the slide was opened by.
    fn content_id(&self) -> Result<String> {
        if let [file] = &self.files[..] {
            return content_id(&**file);
        }
        let mut ids = self.files.iter().map(|file| content_id(&**file)).collect::<Result<Vec<_>>>()?;
        ids.sort_unstable();
        content_id(&Memory::new(&self.info.path, ids.join("\n").into_bytes()))
    }
}

impl Part {
    /// A rectangle of the level in the coordinates of the raster.
    fn place(&self, rect: Rect) -> Rect {
        // Parts lie within a level whose sides are far below what would overflow.
        Rect { x: rect.x.saturating_sub(self.x as i64), y: rect.y.saturating_sub(self.y as i64), ..rect }
    }

    /// How much of the raster lies on a level of this size: a raster may be padded.
    fn visible(&self, level: Size) -> Size {
        let size = self.raster.shape().size;
        Size::new(
            size.width.min(level.width.saturating_sub(self.x)),
            size.height.min(level.height.saturating_sub(self.y)),
        )
    }
}

/// Refuses to decode more than the limits allow in one piece.
pub(super) fn check_limit(path: &Path, shape: &Shape, size: Size, limit: u64) -> Result<()> {
    let bytes = size.area().saturating_mul((shape.channels * shape.sample.bytes()) as u64);
    if bytes > limit {
        return Err(Error::limits(
            path,
            format!("{size} pixels to decode in one piece take {bytes} bytes, the limit is {limit}"),
        ));
    }
    Ok(())
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
