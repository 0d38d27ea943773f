//! An image in a folder, or in an object store.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use super::array::Array;
use super::entries::join;
use super::files::{ChunkGroup, GroupDigest, shard_key};
use super::found::{self, Found, MARKER, METADATA_LIMIT, inspect_place};
use super::ledger::Ledger;
use super::multiscale::Axes;
use super::place::{self, Hold, Place, Take};
use super::region::Region;
use super::shard::ShardEncoder;
use super::sink::Stored;
use super::{Format, ImageSink, StoredImage, ngff};
use crate::slide::Limits;
use crate::{Error, Level, Pixels, Result, TileCoord};

/// How many encoded bytes, and how many files, may wait for the disk. Dirty pages count as memory.
const SYNC_BYTES: usize = 16 << 20;
const SYNC_FILES: usize = 1024;

/// A [`ImageSink`] that writes an OME-Zarr image, version 0.5 or 0.4, into a folder, or into an object store if its path is a URL.
///
/// Levels are the arrays `0`, `1`, ... In version 0.5 one file holds one shard with all its channels (`sharding_indexed`: chunks of one channel, each
/// compressed by itself, an index with a checksum at the end). In version 0.4 each chunk of one channel is a file, those at the edges of a
/// level padded with background to their full size, and a shard is the group of chunks that are written with one call, of which there is one digest.
/// Chunks and shards of nothing but background are not stored, and the same pixels give the
/// same bytes. A file appears whole, by rename. The root metadata comes last (of version 0.4 `.zattrs`, which makes an image of the group), so that
/// nobody takes an unfinished store for a finished one; [`inspect`](super::inspect) tells ours from a stranger's.
///
/// Memory: per write under way, one chunk, and the encoded shard; a bit per shard; at most 16 MiB of files that are not yet on the disk.
#[derive(Debug)]
pub struct ZarrImage {
    place: Box<dyn Place>,
    image: StoredImage,
    ledger: Ledger,
    encoder: ShardEncoder,
    /// True if an earlier process may have written shards that are none any more.
    begun_before: bool,
    /// The levels, as they are read again.
    arrays: Vec<Array>,
    unsynced: Mutex<Unsynced>,
    /// Held for as long as this process writes here, alone or [with others](Self::join): [`inspect`](super::inspect) tells others so.
    _hold: Hold,
    /// Held while files are brought to the disk, so that whoever asks for that second does not return first.
    sync_turn: Mutex<()>,
}

/// How many processes write a store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Writers {
    One,
    Several,
}

/// What was written but may not be on the disk yet.
#[derive(Debug, Default)]
struct Unsynced {
    keys: Vec<String>,
    bytes: usize,
    /// After one failure the system may have thrown pages away and report success the next time: never believe it again.
    failed: bool,
}

/// Refuses a place where what is there is neither nothing nor an unfinished store of this machine's.
fn refuse_others(path: &Path, found: &Found) -> Result<()> {
    match found {
        Found::Complete(_) => Err(Error::usage(path, "a finished store is there already")),
        Found::Foreign => Err(Error::usage(path, "something that is no store of microtome's is there already")),
        Found::Elsewhere => Err(place::begun(path)),
        Found::Nothing | Found::Unfinished | Found::InUse => Ok(()),
    }
}

impl ZarrImage {
    /// Starts a store at `path`, where nothing or an empty folder may be. The folder around it exists.
    ///
    /// # Errors
    /// [`Error::Usage`] if something is there, or the description cannot be honoured ([`StoredImage::validate`]);
    /// [`Error::Io`] or [`Error::Transient`] if it cannot be written, and then nothing of it is left, if it can be removed.
    pub fn create(path: impl AsRef<Path>, image: StoredImage) -> Result<Self> {
        let path = path.as_ref();
        let (place, ledger) = (place::of(path)?, Ledger::new(path, &image)?);
        let found = inspect_place(&*place)?;
        refuse_others(path, &found)?;
        match found {
            Found::Unfinished => return Err(place::begun(path)),
            Found::InUse => return Err(place::taken(path)),
            _ => {}
        }
        let hold = place.take(Take::Fresh)?;
        let mut store = Self::new(place, image, ledger, hold);
        if let Err(error) = store.describe_levels(Writers::One) {
            // The lock goes before the store; the first error is the one to report. A service that does not answer is not asked to remove anything.
            drop(store);
            if !error.is_transient() {
                let _ = found::remove(path);
            }
            return Err(error);
        }
        Ok(store)
    }

    /// Goes on with an unfinished store at `path`, of which the shards `done` are known to be on the disk.
    /// All others are still to be written, whether there is a file or not.
    ///
    /// # Errors
    /// [`Error::Usage`] if there is no unfinished store, another process is writing it, or the description cannot be
    /// honoured or has no such shard; [`Error::Io`] or [`Error::Transient`] if it cannot be written.
    pub fn resume(
        path: impl AsRef<Path>,
        image: StoredImage,
        done: impl IntoIterator<Item = (Level, TileCoord)>,
    ) -> Result<Self> {
        let path = path.as_ref();
        let (place, ledger) = (place::of(path)?, Ledger::new(path, &image)?);
        if inspect_place(&*place)? != Found::Unfinished {
            return Err(Error::usage(path, "there is no unfinished store to go on with"));
        }
        let hold = place.take(Take::Left)?;
        for level in 0..image.levels.len() {
            place.tidy(&level.to_string())?;
        }
        Self::new(place, image, ledger, hold).go_on(done, Writers::One)
    }

    /// Takes part in writing an unfinished store at `path` beside others, each of which writes shards of its own, or begins one where nothing or
    /// an empty folder is. All must describe it the same. The shards `done` are known to be on the disk.
    ///
    /// Whoever [resumes](Self::resume) the store when nobody takes part any more finishes it.
    ///
    /// # Errors
    /// [`Error::Usage`] if something else is there, a process is writing it that shares with nobody, the path is a URL, or the description cannot
    /// be honoured or has no such shard; [`Error::Io`] if it cannot be written.
    pub fn join(
        path: impl AsRef<Path>,
        image: StoredImage,
        done: impl IntoIterator<Item = (Level, TileCoord)>,
    ) -> Result<Self> {
        let path = path.as_ref();
        let (place, ledger) = (place::of(path)?, Ledger::new(path, &image)?);
        refuse_others(path, &inspect_place(&*place)?)?;
        let hold = place.take(Take::Shared)?;
        Self::new(place, image, ledger, hold).go_on(done, Writers::Several)
    }

    /// The store, of which these shards are finished.
    fn go_on(self, done: impl IntoIterator<Item = (Level, TileCoord)>, writers: Writers) -> Result<Self> {
        for (level, shard) in done {
            self.ledger.mark(&self.image, level, shard)?;
        }
        let mut store = Self { begun_before: true, ..self };
        store.describe_levels(writers)?;
        Ok(store)
    }

    fn new(place: Box<dyn Place>, image: StoredImage, ledger: Ledger, hold: Hold) -> Self {
        Self {
            place,
            encoder: ShardEncoder::new(&image),
            image,
            ledger,
            begun_before: false,
            arrays: Vec::new(),
            unsynced: Mutex::default(),
            _hold: hold,
            sync_turn: Mutex::default(),
        }
    }

    /// Writes the metadata of all levels, brings them to the disk, and opens the levels.
    fn describe_levels(&mut self, writers: Writers) -> Result<()> {
        let mut keys = vec![MARKER.to_owned()];
        for (n, level) in self.image.levels.iter().enumerate() {
            for (name, document) in self.encoder.array_metadata(level.size) {
                let key = join(&n.to_string(), name);
                let bytes = ngff::to_bytes(&document);
                match writers {
                    Writers::One => self.place.put(&key, &bytes)?,
                    Writers::Several => self.place.put_same(&key, &bytes)?,
                }
                keys.push(key);
            }
        }
        self.place.sync(&keys)?;
        let entries = self.place.entries()?;
        for n in 0..self.image.levels.len() {
            // What we describe is within our own limits; a shard's size is checked before that.
            let limits = Limits { decoded_bytes: u64::MAX, ..Limits::default() };
            self.arrays.push(Array::open(&entries, &n.to_string(), &limits)?);
        }
        self.place.sync_name()
    }

    /// The folder of the store, or its URL.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.place.path()
    }

    /// Returns once every shard whose write has returned is on the disk, names and all.
    /// If the disk refuses, then and for ever after: what it holds is no longer known.
    fn bring_to_disk(&self) -> Result<()> {
        let _turn = self.sync_turn.lock().unwrap_or_else(PoisonError::into_inner);
        // What is on its way counts until it has arrived: whoever writes meanwhile waits rather than dirty more pages.
        let (keys, bytes) = {
            let mut unsynced = self.unsynced();
            if unsynced.failed {
                let source = std::io::Error::other("an earlier write did not reach the disk");
                return Err(Error::io(self.path(), source));
            }
            (std::mem::take(&mut unsynced.keys), unsynced.bytes)
        };
        let ours = || if self.place.is_ours()? { Ok(()) } else { Err(place::gone(self.path())) };
        let brought = self.place.sync(&keys).and_then(|()| ours());
        let mut unsynced = self.unsynced();
        unsynced.bytes -= bytes;
        unsynced.failed |= brought.is_err();
        brought
    }

    /// The key of a shard, or in version 0.4 of what holds its group of chunks: the level.
    fn shard_key(&self, level: Level, shard: TileCoord) -> String {
        match self.image.encoding.format {
            Format::V0_5 => join(&level.to_string(), &shard_key(shard, self.image.content.axes().len())),
            Format::V0_4 => level.to_string(),
        }
    }

    /// What messages call a value.
    fn name(&self, key: &str) -> PathBuf {
        self.path().join(key)
    }

    /// Writes a value of a shard.
    fn put(&self, key: String, encoded: &[u8]) -> Result<()> {
        self.place.put(&key, encoded)?;
        let mut unsynced = self.unsynced();
        unsynced.keys.push(key);
        unsynced.bytes += encoded.len();
        Ok(())
    }

    /// Removes what an attempt that was stopped may have written where there is nothing but background now.
    fn discard(&self, key: &str) -> Result<()> {
        if self.begun_before { self.place.delete(key) } else { Ok(()) }
    }

    /// Writes the one value of a shard.
    fn put_shard(&self, level: Level, shard: TileCoord, pixels: &Pixels) -> Result<Stored> {
        let key = self.shard_key(level, shard);
        let Some(encoded) = self.encoder.encode(pixels).map_err(|e| Error::io(self.name(&key), e))? else {
            self.discard(&key)?;
            return Ok(Stored::Background);
        };
        self.put(key, &encoded)?;
        Ok(Stored::Sha256(Sha256::digest(&encoded).into()))
    }

    /// Writes the values of a shard's chunks.
    fn put_chunks(&self, level: Level, shard: TileCoord, pixels: &Pixels) -> Result<Stored> {
        let group = ChunkGroup::of(&self.image, level, shard);
        let folder = level.to_string();
        let mut digest = GroupDigest::default();
        let fault = |e| Error::io(self.name(&folder), e);
        self.encoder.each_chunk(pixels, fault, |chunk, encoded| {
            let key = group.key(chunk);
            let Some(encoded) = encoded else { return self.discard(&join(&folder, &key)) };
            digest.add(&key, encoded);
            self.put(join(&folder, &key), encoded)
        })?;
        Ok(digest.stored())
    }

    fn unsynced(&self) -> MutexGuard<'_, Unsynced> {
        // Plain values, complete after each statement: a panic elsewhere cannot have left them torn.
        self.unsynced.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ImageSink for ZarrImage {
    fn image(&self) -> &StoredImage {
        &self.image
    }

    fn write_shard(&self, level: Level, shard: TileCoord, pixels: &Pixels) -> Result<Stored> {
        let permit = self.ledger.admit(&self.image, level, shard, pixels)?;
        let stored = match self.image.encoding.format {
            Format::V0_5 => self.put_shard(level, shard, pixels)?,
            Format::V0_4 => self.put_chunks(level, shard, pixels)?,
        };
        let full = {
            let unsynced = self.unsynced();
            unsynced.bytes >= SYNC_BYTES || unsynced.keys.len() >= SYNC_FILES
        };
        if full {
            self.bring_to_disk()?;
        }
        permit.keep();
        Ok(stored)
    }

    fn sync(&self) -> Result<()> {
        self.bring_to_disk()
    }

    fn is_half_full(&self) -> bool {
        let unsynced = self.unsynced();
        unsynced.bytes >= SYNC_BYTES / 2 || unsynced.keys.len() >= SYNC_FILES / 2
    }

    fn read_shard(&self, level: Level, shard: TileCoord) -> Result<Pixels> {
        let pixels = self.image.background(self.path(), level, shard)?;
        let (Some(rect), Some(array)) = (self.image.shard_rect(level, shard), self.arrays.get(level.0)) else {
            return Ok(pixels);
        };
        let axes = Axes::named(self.image.content.axes());
        // On this thread alone: the caller may hold what rayon must not be entered with.
        Region::new(array, &axes, rect, rect, pixels).read_in_order().map_err(|(_, error)| {
            let message = match error {
                Error::Format { message, .. } => message,
                transient @ Error::Transient { .. } => return transient,
                other => other.to_string(),
            };
            let name = self.name(&self.shard_key(level, shard));
            Error::format(name, format!("the shard cannot be read again: {message}"))
        })
    }

    fn finish(&self, notes: &Map<String, Value>) -> Result<()> {
        let attributes = self.image.attributes_with(self.path(), notes)?;
        self.ledger.close()?;
        self.bring_to_disk()?;
        if self.place.value(MARKER, METADATA_LIMIT)?.is_none() || !self.place.is_ours()? {
            return Err(place::gone(self.path()));
        }
        for (name, document) in ngff::root(&self.image, &attributes) {
            self.place.put(name, &ngff::to_bytes(&document))?;
            self.place.sync(&[name.to_owned()])?;
        }
        self.place.unmark()
    }
}
