//! A mask that stays in memory: for tests, and for programs that want the labels and no store.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use sha2::{Digest, Sha256};

use super::ledger::Ledger;
use super::sink::{Stored, is_background};
use super::{LabelImage, MaskSink};
use crate::{Error, Level, Pixels, Result, Samples, TileCoord};

/// A [`MaskSink`] that keeps what it is given. Memory: every shard that is not all background.
#[derive(Debug)]
pub struct MemoryMask {
    image: LabelImage,
    ledger: Ledger,
    kept: Mutex<Kept>,
}

#[derive(Debug, Default)]
struct Kept {
    shards: BTreeMap<(Level, TileCoord), Pixels>,
    finished: bool,
}

impl MemoryMask {
    /// An image of which nothing is written yet.
    ///
    /// # Errors
    /// [`Error::Usage`] if the description cannot be honoured ([`LabelImage::validate`]).
    pub fn new(image: LabelImage) -> Result<Self> {
        let ledger = Ledger::new(Path::new(&image.name), &image)?;
        Ok(Self { image, ledger, kept: Mutex::default() })
    }

    /// The labels of a whole level, which must fit in memory once more.
    ///
    /// # Errors
    /// [`Error::Usage`] before [`finish`](MaskSink::finish), and for a level that does not exist.
    pub fn level(&self, level: Level) -> Result<Pixels> {
        let name = Path::new(&self.image.name);
        let Some(size) = self.image.levels.get(level.0).map(|l| l.size) else {
            return Err(Error::usage(name, format!("there is no level {level}")));
        };
        let kept = self.kept();
        if !kept.finished {
            return Err(Error::usage(name, "the image is not finished"));
        }
        let mut whole = Pixels::filled(size, self.image.sample, &[0]);
        for (&(of, shard), labels) in &kept.shards {
            if of == level
                && let Some(rect) = self.image.shard_rect(level, shard)
            {
                whole.blit(size.rect(), labels, rect);
            }
        }
        Ok(whole)
    }

    /// How many shards of `level` hold anything but background.
    #[must_use]
    pub fn stored_shards(&self, level: Level) -> usize {
        self.kept().shards.keys().filter(|(of, _)| *of == level).count()
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        // Insertions only, nothing half done when a panic elsewhere poisons the lock.
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl MaskSink for MemoryMask {
    fn image(&self) -> &LabelImage {
        &self.image
    }

    fn write_shard(&self, level: Level, shard: TileCoord, labels: &Pixels) -> Result<Stored> {
        let permit = self.ledger.admit(&self.image, level, shard, labels)?;
        let stored = if is_background(labels) {
            Stored::Background
        } else {
            self.kept().shards.insert((level, shard), labels.clone());
            Stored::Sha256(digest(labels))
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

    fn finish(&self) -> Result<()> {
        self.ledger.close()?;
        self.kept().finished = true;
        Ok(())
    }
}

/// The SHA-256 of the labels, row by row, 16-bit ones with the low byte first.
fn digest(labels: &Pixels) -> [u8; 32] {
    match labels.samples() {
        Samples::U8(v) => Sha256::digest(v).into(),
        Samples::U16(v) => {
            let mut hash = Sha256::new();
            for label in v {
                hash.update(label.to_le_bytes());
            }
            hash.finalize().into()
        }
    }
}
