//! Which shards have been written: the account that makes "once" true.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use super::StoredImage;
use crate::{Error, Level, Pixels, Result, TileCoord};

/// What a sink knows of its shards: one bit for each, and how many are being written right now.
#[derive(Debug)]
pub(super) struct Ledger {
    /// Named in errors.
    path: PathBuf,
    levels: Vec<Bits>,
    progress: Mutex<Progress>,
}

#[derive(Debug)]
struct Bits {
    columns: u64,
    words: Vec<AtomicU64>,
}

#[derive(Debug, Default)]
struct Progress {
    in_flight: usize,
    closed: bool,
}

impl Ledger {
    /// An account of no shard yet.
    ///
    /// # Errors
    /// [`Error::Usage`] if the description cannot be honoured.
    pub(super) fn new(path: &Path, image: &StoredImage) -> Result<Self> {
        image.validate(path)?;
        let levels = image.levels.iter().map(|level| {
            let grid = level.size.cells(image.shard);
            let words = (0..grid.area().div_ceil(64)).map(|_| AtomicU64::new(0)).collect();
            Bits { columns: grid.width, words }
        });
        Ok(Self { path: path.into(), levels: levels.collect(), progress: Mutex::default() })
    }

    /// Allows a write, or says why not. The shard counts as written once the permit is [kept](Permit::keep).
    pub(super) fn admit(
        &self,
        image: &StoredImage,
        level: Level,
        shard: TileCoord,
        pixels: &Pixels,
    ) -> Result<Permit<'_>> {
        let refuse = |why: String| Err(Error::usage(&self.path, format!("level {level}, shard {shard}: {why}")));
        let Some(rect) = image.shard_rect(level, shard) else { return refuse("there is no such shard".into()) };
        let channels = image.content.samples_per_pixel();
        if pixels.size() != rect.size() || pixels.channels() != channels || pixels.sample_type() != image.sample {
            return refuse(format!(
                "it holds {} pixels of {channels} times {:?}, and was given {} of {} times {:?}",
                rect.size(),
                image.sample,
                pixels.size(),
                pixels.channels(),
                pixels.sample_type(),
            ));
        }
        let mut progress = self.progress();
        if progress.closed {
            return refuse("the image is finished".into());
        }
        let (word, bit) = self.bit(level, shard);
        if word.fetch_or(bit, Ordering::AcqRel) & bit != 0 {
            return refuse("it was written before".into());
        }
        progress.in_flight += 1;
        Ok(Permit { ledger: self, level, shard, kept: false })
    }

    /// Counts a shard as written: it is stored already.
    pub(super) fn mark(&self, image: &StoredImage, level: Level, shard: TileCoord) -> Result<()> {
        if image.shard_rect(level, shard).is_none() {
            return Err(Error::usage(&self.path, format!("level {level}, shard {shard}: there is no such shard")));
        }
        let (word, bit) = self.bit(level, shard);
        word.fetch_or(bit, Ordering::AcqRel);
        Ok(())
    }

    /// Allows nothing any more.
    pub(super) fn close(&self) -> Result<()> {
        let mut progress = self.progress();
        if progress.in_flight > 0 {
            return Err(Error::usage(&self.path, format!("{} shards are still being written", progress.in_flight)));
        }
        if std::mem::replace(&mut progress.closed, true) {
            return Err(Error::usage(&self.path, "the image is finished already"));
        }
        Ok(())
    }

    fn progress(&self) -> std::sync::MutexGuard<'_, Progress> {
        // Two plain fields, changed together and never across a call: a panic elsewhere cannot have left them torn.
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn bit(&self, level: Level, shard: TileCoord) -> (&AtomicU64, u64) {
        let bits = &self.levels[level.0];
        let index = shard.row * bits.columns + shard.column;
        (&bits.words[(index / 64) as usize], 1 << (index % 64))
    }
}

/// The right to write one shard. Dropped without [`keep`](Self::keep), the shard may be written by somebody else.
#[derive(Debug)]
pub(super) struct Permit<'a> {
    ledger: &'a Ledger,
    level: Level,
    shard: TileCoord,
    kept: bool,
}

impl Permit<'_> {
    /// The shard is stored.
    pub(super) fn keep(mut self) {
        self.kept = true;
    }
}

impl Drop for Permit<'_> {
    fn drop(&mut self) {
        if !self.kept {
            let (word, bit) = self.ledger.bit(self.level, self.shard);
            word.fetch_and(!bit, Ordering::AcqRel);
        }
        self.ledger.progress().in_flight -= 1;
    }
}
