//! Slides that behave like another one, except where a test wants them to fail or to count.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};

use microtome_io::slide::{SlideInfo, SlideReader};
use microtome_io::{Error, Level, Pixels, Rect, Result, TileCoord};

/// A slide some of whose stored tiles, or pictures that travel along, cannot be decoded: every read that touches one fails and names it.
#[derive(Debug)]
pub struct FailingSlide<S> {
    inner: S,
    bad: BTreeSet<(Level, TileCoord)>,
    bad_pictures: BTreeSet<String>,
}

impl<S: SlideReader> FailingSlide<S> {
    /// Behaves like `inner`, for now.
    #[must_use]
    pub fn new(inner: S) -> Self {
        Self { inner, bad: BTreeSet::new(), bad_pictures: BTreeSet::new() }
    }

    /// Makes a stored tile undecodable.
    #[must_use]
    pub fn with_bad_tile(mut self, level: Level, tile: TileCoord) -> Self {
        self.bad.insert((level, tile));
        self
    }

    /// Makes a picture that travels along undecodable.
    #[must_use]
    pub fn with_bad_picture(mut self, name: &str) -> Self {
        self.bad_pictures.insert(name.into());
        self
    }
}

impl<S: SlideReader> SlideReader for FailingSlide<S> {
    fn info(&self) -> &SlideInfo {
        self.inner.info()
    }

    fn read_region(&self, level: Level, rect: Rect) -> Result<Pixels> {
        let stored = self.info().level(level)?;
        let visible = rect.intersect(stored.size.rect());
        let touched = |tile: &TileCoord| visible.is_some_and(|v| v.intersect(tile.rect(stored.tile)).is_some());
        if let Some(&(level, tile)) = self.bad.iter().find(|(l, tile)| *l == level && touched(tile)) {
            let message = "made undecodable by a test".into();
            return Err(Error::Tile { path: self.info().path.clone(), level, tile, message });
        }
        self.inner.read_region(level, rect)
    }

    fn read_associated(&self, name: &str) -> Result<Pixels> {
        if self.bad_pictures.contains(name) {
            return Err(Error::format(&self.info().path, format!("{name}: made undecodable by a test")));
        }
        self.inner.read_associated(name)
    }

    fn icc_profile(&self) -> Option<&[u8]> {
        self.inner.icc_profile()
    }

    fn resident_bytes(&self) -> u64 {
        self.inner.resident_bytes()
    }

    fn keep_decoded(&self, bytes: u64) {
        self.inner.keep_decoded(bytes);
    }

    fn content_id(&self) -> Result<String> {
        self.inner.content_id()
    }
}

/// A slide that counts what is read from it.
#[derive(Debug)]
pub struct CountingSlide<S> {
    inner: S,
    /// One per level.
    reads: Vec<AtomicU64>,
    pixels: Vec<AtomicU64>,
    largest: AtomicU64,
}

impl<S: SlideReader> CountingSlide<S> {
    /// Counts from zero.
    #[must_use]
    pub fn new(inner: S) -> Self {
        let zeros = || inner.info().levels.iter().map(|_| AtomicU64::new(0)).collect();
        Self { reads: zeros(), pixels: zeros(), largest: AtomicU64::new(0), inner }
    }

    /// Calls of `read_region` on a level.
    pub fn reads(&self, level: Level) -> u64 {
        self.reads[level.0].load(Ordering::Relaxed)
    }

    /// Pixels read from a level, counted each time.
    pub fn pixels(&self, level: Level) -> u64 {
        self.pixels[level.0].load(Ordering::Relaxed)
    }

    /// Pixels of the largest region read at once, on any level.
    pub fn largest(&self) -> u64 {
        self.largest.load(Ordering::Relaxed)
    }
}

impl<S: SlideReader> SlideReader for CountingSlide<S> {
    fn info(&self) -> &SlideInfo {
        self.inner.info()
    }

    fn read_region(&self, level: Level, rect: Rect) -> Result<Pixels> {
        let pixels = self.inner.read_region(level, rect)?;
        self.reads[level.0].fetch_add(1, Ordering::Relaxed);
        self.pixels[level.0].fetch_add(rect.size().area(), Ordering::Relaxed);
        self.largest.fetch_max(rect.size().area(), Ordering::Relaxed);
        Ok(pixels)
    }

    fn read_associated(&self, name: &str) -> Result<Pixels> {
        self.inner.read_associated(name)
    }

    fn icc_profile(&self) -> Option<&[u8]> {
        self.inner.icc_profile()
    }

    fn resident_bytes(&self) -> u64 {
        self.inner.resident_bytes()
    }

    fn keep_decoded(&self, bytes: u64) {
        self.inner.keep_decoded(bytes);
    }

    fn content_id(&self) -> Result<String> {
        self.inner.content_id()
    }
}

#[cfg(test)]
mod tests {
    use microtome_io::Size;

    use super::*;
    use crate::SyntheticSlide;

    #[test]
    fn only_reads_that_touch_a_bad_tile_fail() {
        let tile = TileCoord { row: 1, column: 2 };
        let slide = SyntheticSlide::new(Size::new(1000, 700), 1);
        let slide = FailingSlide::new(slide).with_bad_tile(Level(0), tile);
        assert!(slide.read_region(Level(0), Rect::new(0, 0, 512, 700)).is_ok());
        assert!(slide.read_region(Level(1), Rect::new(0, 0, 500, 350)).is_ok());
        let error = slide.read_region(Level(0), Rect::new(0, 256, 513, 1)).unwrap_err();
        assert!(matches!(error, Error::Tile { level: Level(0), tile: t, .. } if t == tile), "{error}");
    }

    #[test]
    fn reads_are_counted_by_level() {
        let slide = CountingSlide::new(SyntheticSlide::new(Size::new(1000, 700), 1));
        slide.read_region(Level(0), Rect::new(0, 0, 10, 10)).unwrap();
        slide.read_region(Level(0), Rect::new(-5, 0, 10, 20)).unwrap();
        slide.read_region(Level(2), Rect::new(0, 0, 1, 1)).unwrap();
        assert_eq!((slide.reads(Level(0)), slide.pixels(Level(0)), slide.largest()), (2, 300, 200));
        assert_eq!((slide.reads(Level(2)), slide.pixels(Level(2)), slide.reads(Level(1))), (1, 1, 0));
    }
}
