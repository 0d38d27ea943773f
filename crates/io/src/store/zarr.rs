//! An image on disk.

use std::collections::BTreeSet;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use super::array::Array;
use super::entries::{Entries, FolderEntries};
use super::files::{ChunkGroup, GroupDigest, shard_key};
use super::found::{self, Found, MARKER, inspect};
use super::ledger::Ledger;
use super::multiscale::Axes;
use super::region::Region;
use super::shard::ShardEncoder;
use super::sink::Stored;
use super::{Format, ImageSink, StoredImage, folder, ngff};
use crate::slide::Limits;
use crate::{Error, Level, Pixels, Result, TileCoord};

/// How many encoded bytes, and how many files, may wait for the disk. Dirty pages count as memory.
const SYNC_BYTES: usize = 16 << 20;
const SYNC_FILES: usize = 1024;
/// How long one who takes part waits for those who only look.
const PATIENCE: Duration = Duration::from_secs(1);

/// A [`ImageSink`] that writes an OME-Zarr image, version 0.5 or 0.4, into a folder.
///
/// Levels are the arrays `0`, `1`, ... In version 0.5 one file holds one shard with all its channels (`sharding_indexed`: chunks of one channel, each
/// compressed by itself, an index with a checksum at the end). In version 0.4 each chunk of one channel is a file, those at the edges of a
/// level padded with background to their full size, and a shard is the group of chunks that are written with one call, of which there is one digest.
/// Chunks and shards of nothing but background are not stored, and the same pixels give the
/// same bytes. A file appears whole, by rename. The root metadata comes last (of version 0.4 `.zattrs`, which makes an image of the group), so that
/// nobody takes an unfinished store for a finished one; [`inspect`] tells ours from a stranger's.
///
/// Memory: per write under way, one chunk, and the encoded shard; a bit per shard; at most 16 MiB of files that are not yet on the disk.
#[derive(Debug)]
pub struct ZarrImage {
    path: PathBuf,
    image: StoredImage,
    ledger: Ledger,
    encoder: ShardEncoder,
    /// The levels, as they are read again.
    arrays: Vec<Array>,
    unsynced: Mutex<Unsynced>,
    /// The marker, locked for as long as this process writes here, alone or [with others](Self::join): [`inspect`] tells others so.
    _marker: fs::File,
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
    files: Vec<PathBuf>,
    bytes: usize,
    /// After one failure the system may have thrown pages away and report success the next time: never believe it again.
    failed: bool,
}

impl ZarrImage {
    /// Starts a store at `path`, where nothing or an empty folder may be. The folder around it exists.
    ///
    /// # Errors
    /// [`Error::Usage`] if something is there, or the description cannot be honoured ([`StoredImage::validate`]);
    /// [`Error::Io`] if it cannot be written, and then nothing of it is left.
    pub fn create(path: impl AsRef<Path>, image: StoredImage) -> Result<Self> {
        let path = path.as_ref();
        let ledger = Ledger::new(path, &image)?;
        match inspect(path)? {
            Found::Nothing => {}
            Found::Complete(_) => return Err(Error::usage(path, "a finished store is there already")),
            Found::Unfinished => return Err(Error::usage(path, "an unfinished store is there already")),
            Found::InUse => return Err(Error::usage(path, "another process is writing a store there")),
            Found::Foreign => {
                return Err(Error::usage(path, "something that is no store of microtome's is there already"));
            }
        }
        let fresh = match fs::create_dir(path) {
            Ok(()) => true,
            Err(e) if e.kind() == ErrorKind::AlreadyExists => false,
            Err(e) => return Err(Error::io(path, e)),
        };
        // Of several that start at once, the one that makes this file has the store.
        let marker = match fs::File::create_new(path.join(MARKER)) {
            Ok(marker) => marker,
            Err(e) if e.kind() == ErrorKind::AlreadyExists => {
                return Err(Error::usage(path, "an unfinished store is there already"));
            }
            Err(e) => {
                if fresh {
                    let _ = fs::remove_dir(path);
                }
                return Err(Error::io(path, e));
            }
        };
        // Where the file system knows no locks, two processes still cannot both make the marker.
        if matches!(marker.try_lock(), Err(fs::TryLockError::WouldBlock)) {
            // Somebody took it for what a process that was killed has left, and is removing it.
            return Err(Error::usage(path, "another process is writing a store there"));
        }
        let mut store = Self::new(path, image, ledger, marker);
        if let Err(error) = store.describe_levels(Writers::One) {
            // The lock goes before the store; the first error is the one to report.
            drop(store);
            let _ = found::remove(path);
            return Err(error);
        }
        Ok(store)
    }

    /// Goes on with an unfinished store at `path`, of which the shards `done` are known to be on the disk.
    /// All others are still to be written, whether there is a file or not.
    ///
    /// # Errors
    /// [`Error::Usage`] if there is no unfinished store, another process is writing it, or the description cannot be
    /// honoured or has no such shard; [`Error::Io`] if it cannot be written.
    pub fn resume(
        path: impl AsRef<Path>,
        image: StoredImage,
        done: impl IntoIterator<Item = (Level, TileCoord)>,
    ) -> Result<Self> {
        let path = path.as_ref();
        let ledger = Ledger::new(path, &image)?;
        if inspect(path)? != Found::Unfinished {
            return Err(Error::usage(path, "there is no unfinished store to go on with"));
        }
        let file = path.join(MARKER);
        let marker = fs::OpenOptions::new().write(true).open(&file).map_err(|e| Error::io(&file, e))?;
        if matches!(marker.try_lock(), Err(fs::TryLockError::WouldBlock)) {
            return Err(Error::usage(path, "another process is writing a store there"));
        }
        for (level, shard) in done {
            ledger.mark(&image, level, shard)?;
        }
        let mut store = Self::new(path, image, ledger, marker);
        store.tidy()?;
        store.describe_levels(Writers::One)?;
        Ok(store)
    }

    /// Takes part in writing an unfinished store at `path` beside others, each of which writes shards of its own, or begins one where nothing or
    /// an empty folder is. All must describe it the same. The shards `done` are known to be on the disk.
    ///
    /// Whoever [resumes](Self::resume) the store when nobody takes part any more finishes it.
    ///
    /// # Errors
    /// [`Error::Usage`] if something else is there, a process is writing it that shares with nobody, or the description cannot be honoured or has no
    /// such shard; [`Error::Io`] if it cannot be written.
    pub fn join(
        path: impl AsRef<Path>,
        image: StoredImage,
        done: impl IntoIterator<Item = (Level, TileCoord)>,
    ) -> Result<Self> {
        let path = path.as_ref();
        let ledger = Ledger::new(path, &image)?;
        match fs::create_dir(path) {
            Err(e) if e.kind() != ErrorKind::AlreadyExists => return Err(Error::io(path, e)),
            _ => {}
        }
        let file = path.join(MARKER);
        let created = match inspect(path)? {
            Found::Nothing => fs::OpenOptions::new().read(true).write(true).create_new(true).open(&file),
            Found::Unfinished | Found::InUse => Err(ErrorKind::AlreadyExists.into()),
            Found::Complete(_) => return Err(Error::usage(path, "a finished store is there already")),
            Found::Foreign => {
                return Err(Error::usage(path, "something that is no store of microtome's is there already"));
            }
        };
        let marker = match created {
            // Somebody else has begun it.
            // To read, too: over NFS a part of a lock wants that.
            Err(e) if e.kind() == ErrorKind::AlreadyExists => fs::OpenOptions::new().read(true).write(true).open(&file),
            created => created,
        };
        let marker = marker.map_err(|e| Error::io(&file, e))?;
        if !shared(&marker) {
            return Err(Error::usage(path, "another process is writing a store there"));
        }
        for (level, shard) in done {
            ledger.mark(&image, level, shard)?;
        }
        let mut store = Self::new(path, image, ledger, marker);
        store.describe_levels(Writers::Several)?;
        Ok(store)
    }

    fn new(path: &Path, image: StoredImage, ledger: Ledger, marker: fs::File) -> Self {
        Self {
            path: path.into(),
            encoder: ShardEncoder::new(&image),
            image,
            ledger,
            arrays: Vec::new(),
            unsynced: Mutex::default(),
            _marker: marker,
            sync_turn: Mutex::default(),
        }
    }

    /// Removes what processes that were killed while they took part have left half written. Half-written shards are replaced when they are
    /// written again.
    fn tidy(&self) -> Result<()> {
        for n in 0..self.image.levels.len() {
            let folder = self.path.join(n.to_string());
            let entries = match fs::read_dir(&folder) {
                Err(e) if e.kind() == ErrorKind::NotFound => continue,
                entries => entries.map_err(|e| Error::io(&folder, e))?,
            };
            for entry in entries {
                let path = entry.map_err(|e| Error::io(&folder, e))?.path();
                if folder::is_partial(&path) {
                    fs::remove_file(&path).map_err(|e| Error::io(&path, e))?;
                }
            }
        }
        Ok(())
    }

    /// Writes the metadata of all levels, brings them to the disk, and opens the levels.
    fn describe_levels(&mut self, writers: Writers) -> Result<()> {
        for (n, level) in self.image.levels.iter().enumerate() {
            let folder = self.path.join(n.to_string());
            fs::create_dir_all(&folder).map_err(|e| Error::io(&folder, e))?;
            for (name, document) in self.encoder.array_metadata(level.size) {
                let metadata = folder.join(name);
                match writers {
                    Writers::One => folder::put(&metadata, &ngff::to_bytes(&document))?,
                    Writers::Several => folder::put_same(&metadata, &ngff::to_bytes(&document))?,
                }
                folder::sync_file(&metadata)?;
            }
            folder::sync_folder(&folder)?;
            let entries: Arc<dyn Entries> = Arc::new(FolderEntries::open(&self.path)?);
            // What we describe is within our own limits; a shard's size is checked before that.
            let limits = Limits { decoded_bytes: u64::MAX, ..Limits::default() };
            self.arrays.push(Array::open(&entries, &n.to_string(), &limits)?);
        }
        folder::sync_folder(&self.path)?;
        match self.path.parent() {
            Some(parent) if parent != Path::new("") => folder::sync_folder(parent),
            _ => folder::sync_folder(Path::new(".")),
        }
    }

    /// The folder of the store.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns once every shard whose write has returned is on the disk, names and all.
    /// If the disk refuses, then and for ever after: what it holds is no longer known.
    fn bring_to_disk(&self) -> Result<()> {
        let _turn = self.sync_turn.lock().unwrap_or_else(PoisonError::into_inner);
        // What is on its way counts until it has arrived: whoever writes meanwhile waits rather than dirty more pages.
        let (files, bytes) = {
            let mut unsynced = self.unsynced();
            if unsynced.failed {
                let source = std::io::Error::other("an earlier write did not reach the disk");
                return Err(Error::io(&self.path, source));
            }
            (std::mem::take(&mut unsynced.files), unsynced.bytes)
        };
        let bring = || {
            let mut folders = BTreeSet::new();
            for file in &files {
                folder::sync_file(file)?;
                folders.extend(file.ancestors().skip(1).take_while(|a| a.starts_with(&self.path)));
            }
            folders.into_iter().try_for_each(folder::sync_folder)
        };
        let brought = bring();
        let mut unsynced = self.unsynced();
        unsynced.bytes -= bytes;
        unsynced.failed |= brought.is_err();
        brought
    }

    /// The file of a shard, or in version 0.4 what messages call its group of chunks: the level.
    fn shard_file(&self, level: Level, shard: TileCoord) -> PathBuf {
        let folder = self.path.join(level.to_string());
        match self.image.encoding.format {
            Format::V0_5 => folder.join(shard_key(shard, self.image.content.axes().len())),
            Format::V0_4 => folder,
        }
    }

    /// Writes a file of a shard.
    fn put(&self, level: Level, file: PathBuf, encoded: &[u8]) -> Result<()> {
        if let Some(folder) = file.parent() {
            // In a store that somebody has removed meanwhile nothing is made anew: it would lack what was there before.
            folder::create_inside(&self.path.join(level.to_string()), folder)?;
        }
        folder::put(&file, encoded)?;
        let mut unsynced = self.unsynced();
        unsynced.files.push(file);
        unsynced.bytes += encoded.len();
        Ok(())
    }

    /// Writes the one file of a shard.
    fn put_shard(&self, level: Level, shard: TileCoord, pixels: &Pixels) -> Result<Stored> {
        let file = self.shard_file(level, shard);
        let Some(encoded) = self.encoder.encode(pixels).map_err(|e| Error::io(&file, e))? else {
            discard(&file)?;
            return Ok(Stored::Background);
        };
        self.put(level, file, &encoded)?;
        Ok(Stored::Sha256(Sha256::digest(&encoded).into()))
    }

    /// Writes the files of a shard's chunks.
    fn put_chunks(&self, level: Level, shard: TileCoord, pixels: &Pixels) -> Result<Stored> {
        let group = ChunkGroup::of(&self.image, level, shard);
        let folder = self.path.join(level.to_string());
        let mut digest = GroupDigest::default();
        let fault = |e| Error::io(&folder, e);
        self.encoder.each_chunk(pixels, fault, |chunk, encoded| {
            let key = group.key(chunk);
            let Some(encoded) = encoded else { return discard(&folder.join(&key)) };
            digest.add(&key, encoded);
            self.put(level, folder.join(&key), encoded)
        })?;
        Ok(digest.stored())
    }

    fn unsynced(&self) -> MutexGuard<'_, Unsynced> {
        // Plain values, complete after each statement: a panic elsewhere cannot have left them torn.
        self.unsynced.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Takes part of the lock on a marker; false if somebody has all of it. Where the file system knows no locks, nobody can.
fn shared(marker: &fs::File) -> bool {
    let begun = Instant::now();
    while matches!(marker.try_lock_shared(), Err(fs::TryLockError::WouldBlock)) {
        // Whoever asks what the store is takes all of it for a moment.
        if begun.elapsed() > PATIENCE {
            return false;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    true
}

/// Removes what an attempt that was stopped may have written where there is nothing but background now.
fn discard(file: &Path) -> Result<()> {
    match fs::remove_file(file) {
        Err(e) if !matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => Err(Error::io(file, e)),
        _ => Ok(()),
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
            unsynced.bytes >= SYNC_BYTES || unsynced.files.len() >= SYNC_FILES
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

    fn read_shard(&self, level: Level, shard: TileCoord) -> Result<Pixels> {
        let pixels = self.image.background(&self.path, level, shard)?;
        let (Some(rect), Some(array)) = (self.image.shard_rect(level, shard), self.arrays.get(level.0)) else {
            return Ok(pixels);
        };
        let axes = Axes::named(self.image.content.axes());
        // On this thread alone: the caller may hold what rayon must not be entered with.
        Region::new(array, &axes, rect, rect, pixels).read_in_order().map_err(|(_, error)| {
            let message = match error {
                Error::Format { message, .. } => message,
                other => other.to_string(),
            };
            let file = self.shard_file(level, shard);
            Error::format(&file, format!("the shard cannot be read again: {message}"))
        })
    }

    fn finish(&self, notes: &Map<String, Value>) -> Result<()> {
        let attributes = self.image.attributes_with(&self.path, notes)?;
        self.ledger.close()?;
        self.bring_to_disk()?;
        let marker = self.path.join(MARKER);
        // Where it is gone, somebody has taken the store away while it was written.
        fs::symlink_metadata(&marker).map_err(|e| Error::io(&marker, e))?;
        for (name, document) in ngff::root(&self.image, &attributes) {
            let metadata = self.path.join(name);
            folder::put(&metadata, &ngff::to_bytes(&document))?;
            folder::sync_file(&metadata)?;
            folder::sync_folder(&self.path)?;
        }
        fs::remove_file(&marker).map_err(|e| Error::io(&marker, e))?;
        folder::sync_folder(&self.path)
    }
}
