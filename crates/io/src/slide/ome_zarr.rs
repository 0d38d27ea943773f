//! OME-Zarr images as slides, in a folder or in a ZIP archive.
//!
//! What a store is, which of its images is the slide, and how its chunks are decoded, is the matter of [`store`](crate::store). Here its
//! levels become [rasters](super::raster::Raster), so that decoded chunks are kept and put together as the tiles of any slide.
//! Pixels outside of the slide and in chunks that are not stored have the fill value of level 0.

use std::path::Path;
use std::sync::Arc;

use super::pyramid::{Layer, Parts, Pyramid};
use super::raster::Raster;
use super::{ICC_FAULT, OpenOptions, SlideInfo, SlideReader};
use crate::base64;
use crate::bytes::{ByteSource, Memory};
use crate::store::entries::{Entries, FolderEntries, ZipEntries};
use crate::store::{ICC_PROFILE, OmeZarr};
use crate::{Level, Pixels, Rect, Result};

pub(super) use crate::store::entries::is_zip;

/// True if a folder is a node of Zarr.
pub(super) fn is_store(folder: &Path) -> bool {
    ["zarr.json", ".zattrs", ".zgroup", ".zarray"].iter().any(|name| folder.join(name).exists())
}

/// Opens the store in a folder.
pub(super) fn open_folder(path: &Path, options: &OpenOptions) -> Result<Box<dyn SlideReader>> {
    open(Arc::new(FolderEntries::open(path)?), options)
}

/// Opens the store in an archive.
pub(super) fn open_zip(source: Arc<dyn ByteSource>, options: &OpenOptions) -> Result<Box<dyn SlideReader>> {
    open(Arc::new(ZipEntries::open(source, &options.limits)?), options)
}

/// Opens the store that is made of these values.
pub(super) fn open(entries: Arc<dyn Entries>, options: &OpenOptions) -> Result<Box<dyn SlideReader>> {
    let store = OmeZarr::open_entries(entries, options.limits)?;
    let info = SlideReader::info(&store).clone();
    let layers = store.rasters()?.into_iter().map(Layer::of).collect();
    let mut associated: Vec<(String, Box<dyn Raster>)> = Vec::new();
    for (name, picture) in store.pictures() {
        if let Some(finest) = picture.rasters()?.into_iter().next() {
            associated.push((name.clone(), Box::new(finest)));
        }
    }
    // The store knows its own identity; to the pyramid it is a name.
    let file = Arc::new(Memory::new(&info.path, Vec::new()));
    let mut properties = info.properties;
    let profile = store.info().attributes.get(ICC_PROFILE).and_then(|text| {
        let profile = text.as_str().and_then(base64::decode);
        if profile.is_none() {
            properties.insert(ICC_FAULT.into(), "what the store keeps in its place is no base64".into());
        }
        profile
    });
    let labels = info.associated.into_iter().filter(|picture| picture.shows_label).map(|picture| picture.name);
    let parts = Parts {
        associated,
        labels: labels.collect(),
        icc_profile: profile,
        resolution: info.resolution,
        objective_power: info.objective_power,
        downsamples: info.levels.iter().map(|level| level.downsample).collect(),
        channel_names: info.channel_names,
        classes: info.classes,
        translation: info.translation,
        properties,
        ..Parts::new("ome-zarr", file, layers)
    };
    Ok(Box::new(StoreSlide { pyramid: Pyramid::new(parts, options)?, store }))
}

/// A pyramid whose identity is that of the store.
#[derive(Debug)]
struct StoreSlide {
    pyramid: Pyramid,
    store: OmeZarr,
}

impl SlideReader for StoreSlide {
    fn info(&self) -> &SlideInfo {
        self.pyramid.info()
    }

    fn read_region(&self, level: Level, rect: Rect) -> Result<Pixels> {
        self.pyramid.read_region(level, rect)
    }

    fn read_associated(&self, name: &str) -> Result<Pixels> {
        self.pyramid.read_associated(name)
    }

    fn icc_profile(&self) -> Option<&[u8]> {
        self.pyramid.icc_profile()
    }

    fn prefetch(&self, level: Level, rect: Rect) {
        self.pyramid.prefetch(level, rect);
    }

    fn resident_bytes(&self) -> u64 {
        self.store.held_bytes()
    }

    fn keep_decoded(&self, bytes: u64) {
        self.pyramid.keep_decoded(bytes);
    }

    fn content_id(&self) -> Result<String> {
        self.store.content_id()
    }
}
