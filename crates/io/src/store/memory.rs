//! An image that stays in memory: for tests, and for programs that want the pixels and no store.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use super::ledger::Ledger;
use super::sink::{Stored, is_background};
use super::{ImageSink, StoredImage};
use crate::{Error, Level, Pixels, Result, Samples, TileCoord};

/// A [`ImageSink`] that keeps what it is given. Memory: every shard that is not all background.
#[derive(Debug)]
pub struct MemoryImage {
    image: StoredImage,
    ledger: Ledger,
    kept: Mutex<Kept>,
}

#[derive(Debug, Default)]
struct Kept {
    shards: BTreeMap<(Level, TileCoord), Pixels>,
    /// The attributes of the image and the notes, once it is finished.
    attributes: Option<Map<String, Value>>,
}

impl MemoryImage {
    /// An image of which nothing is written yet.
    ///
    /// # Errors
    /// [`Error::Usage`] if the description cannot be honoured ([`StoredImage::validate`]).
    pub fn new(image: StoredImage) -> Result<Self> {
        let ledger = Ledger::new(Path::new(&image.name), &image)?;
        Ok(Self { image, ledger, kept: Mutex::default() })
    }

    /// The pixels of a whole level, which must fit in memory once more.
    ///
    /// # Errors
    /// [`Error::Usage`] before [`finish`](ImageSink::finish), and for a level that does not exist.
    pub fn level(&self, level: Level) -> Result<Pixels> {
        let name = Path::new(&self.image.name);
        let Some(size) = self.image.levels.get(level.0).map(|l| l.size) else {
            return Err(Error::usage(name, format!("there is no level {level}")));
        };
        let kept = self.kept();
        if kept.attributes.is_none() {
            return Err(Error::usage(name, "the image is not finished"));
        }
        let mut whole = Pixels::filled(size, self.image.sample, &vec![0; self.image.content.samples_per_pixel()]);
        for (&(of, shard), pixels) in &kept.shards {
            if of == level
                && let Some(rect) = self.image.shard_rect(level, shard)
            {
                whole.blit(size.rect(), pixels, rect);
            }
        }
        Ok(whole)
    }

    /// How many shards of `level` hold anything but background.
    #[must_use]
    pub fn stored_shards(&self, level: Level) -> usize {
        self.kept().shards.keys().filter(|(of, _)| *of == level).count()
    }

    /// The attributes of the image with the notes of [`finish`](ImageSink::finish), or `None` before.
    #[must_use]
    pub fn attributes(&self) -> Option<Map<String, Value>> {
        self.kept().attributes.clone()
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        // Insertions only, nothing half done when a panic elsewhere poisons the lock.
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ImageSink for MemoryImage {
    fn image(&self) -> &StoredImage {
        &self.image
    }

    fn write_shard(&self, level: Level, shard: TileCoord, pixels: &Pixels) -> Result<Stored> {
        let permit = self.ledger.admit(&self.image, level, shard, pixels)?;
        let stored = if is_background(pixels) {
            Stored::Background
        } else {
            self.kept().shards.insert((level, shard), pixels.clone());
            Stored::Sha256(digest(pixels))
        };
        permit.keep();
        Ok(stored)
    }

    /// Nothing here outlives the process, so there is nothing to wait for.
    fn sync(&self) -> Result<()> {
        Ok(())
    }

    fn read_shard(&self, level: Level, shard: TileCoord) -> Result<Pixels> {
        let background = self.image.background(Path::new(&self.image.name), level, shard)?;
        Ok(self.kept().shards.get(&(level, shard)).cloned().unwrap_or(background))
    }

    fn finish(&self, notes: &Map<String, Value>) -> Result<()> {
        let attributes = self.image.attributes_with(Path::new(&self.image.name), notes)?;
        self.ledger.close()?;
        self.kept().attributes = Some(attributes);
        Ok(())
    }
}

/// The SHA-256 of the samples, row by row, 16-bit ones with the low byte first.
fn digest(pixels: &Pixels) -> [u8; 32] {
    match pixels.samples() {
        Samples::U8(v) => Sha256::digest(v).into(),
        Samples::U16(v) => {
            let mut hash = Sha256::new();
            for sample in v {
                hash.update(sample.to_le_bytes());
            }
            hash.finalize().into()
        }
    }
}
