//! OME-Zarr images as slides, in a folder or in a ZIP archive.
//!
//! What a store is, which of its images is the slide, and how its chunks are decoded, is the matter of [`store`](crate::store). Here its
//! levels become [rasters](super::raster::Raster), so that decoded chunks are kept and put together as the tiles of any slide.
//! Pixels outside of the slide and in chunks that are not stored have the fill value of level 0.

use std::path::Path;
use std::sync::Arc;

use serde_json::Value;

use super::pyramid::{Layer, Parts, Pyramid};
use super::raster::Raster;
use super::{OpenOptions, SlideInfo, SlideReader};
use crate::bytes::{ByteSource, Memory};
use crate::store::OmeZarr;
use crate::store::entries::{Entries, FolderEntries, ZipEntries};
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

fn open(entries: Arc<dyn Entries>, options: &OpenOptions) -> Result<Box<dyn SlideReader>> {
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
    let profile = store.info().attributes.get(ICC_PROFILE).and_then(Value::as_str).and_then(base64);
    let parts = Parts {
        associated,
        icc_profile: profile,
        resolution: info.resolution,
        downsamples: info.levels.iter().map(|level| level.downsample).collect(),
        channel_names: info.channel_names,
        properties: info.properties,
        ..Parts::new("ome-zarr", file, layers)
    };
    Ok(Box::new(StoreSlide { pyramid: Pyramid::new(parts, options)?, store }))
}

/// Where an image that we have converted keeps the ICC profile of its slide, among the attributes that are ours.
const ICC_PROFILE: &str = "icc_profile";

/// The bytes that base64 stands for (RFC 4648, section 4), or `None` if it is none.
fn base64(text: &str) -> Option<Vec<u8>> {
    let value = |letter: u8| match letter {
        b'A'..=b'Z' => Some(letter - b'A'),
        b'a'..=b'z' => Some(letter - b'a' + 26),
        b'0'..=b'9' => Some(letter - b'0' + 52),
        b'+' => Some(62),
        b'/' => Some(63),
        _ => None,
    };
    let letters = text.trim_end_matches('=').as_bytes();
    if !text.len().is_multiple_of(4) || text.len() - letters.len() > 2 || letters.len() % 4 == 1 {
        return None;
    }
    let mut bytes = Vec::with_capacity(letters.len() / 4 * 3 + 2);
    for group in letters.chunks(4) {
        let mut bits = 0;
        for (n, &letter) in group.iter().enumerate() {
            bits |= u32::from(value(letter)?) << (18 - 6 * n);
        }
        bytes.extend_from_slice(&bits.to_be_bytes()[1..group.len()]);
    }
    Some(bytes)
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

#[cfg(test)]
mod tests {
    use super::base64;

    /// The test vectors of RFC 4648, section 10, and what is no base64.
    #[test]
    fn base64_is_that_of_the_rfc() {
        for (bytes, text) in [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foob", "Zm9vYg=="),
            ("fooba", "Zm9vYmE="),
            ("foobar", "Zm9vYmFy"),
        ] {
            assert_eq!(base64(text).as_deref(), Some(bytes.as_bytes()), "{text}");
        }
        for text in ["Zg", "Z===", "====", "Zm9v!a==", "Zm 9"] {
            assert_eq!(base64(text), None, "{text}");
        }
        assert_eq!(base64("+///"), Some(vec![0xfb, 0xff, 0xff]));
    }
}
