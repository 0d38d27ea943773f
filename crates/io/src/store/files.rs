//! Which files a shard is stored in, and the digest over them.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use serde_json::Value;
use sha2::{Digest, Sha256};

use super::array::MAX_CHUNKS_PER_SHARD;
use super::entries::join;
use super::found::{METADATA, METADATA_LIMIT};
use super::place::{self, Place};
use super::shard::ChunkOfShard;
use super::{Format, Stored, StoredImage, ngff};
use crate::{Error, Level, Result, Size, TileCoord};

/// The key of a shard's file within its level, version 0.5, in an array with so many axes. The first ones, which are not y and x, are never cut.
pub(super) fn shard_key(shard: TileCoord, axes: usize) -> String {
    let uncut = "0/".repeat(axes.saturating_sub(2));
    format!("c/{uncut}{}/{}", shard.row, shard.column)
}

/// The chunks of a shard, version 0.4: those that lie inside of the level.
#[derive(Debug, Clone)]
pub(super) struct ChunkGroup {
    /// Of an array whose first axis are channels.
    channels: Option<u64>,
    rows: Range<u64>,
    columns: Range<u64>,
}

impl ChunkGroup {
    /// Those of a shard of a level of this size.
    pub(super) fn new(level: Size, chunk: Size, shard: Size, at: TileCoord, channels: Option<u64>) -> Self {
        let (per_shard, all) = (shard.cells(chunk), level.cells(chunk));
        let span =
            |at: u64, n: u64, all: u64| at.saturating_mul(n).min(all)..at.saturating_add(1).saturating_mul(n).min(all);
        Self {
            channels,
            rows: span(at.row, per_shard.height, all.height),
            columns: span(at.column, per_shard.width, all.width),
        }
    }

    pub(super) fn of(image: &StoredImage, level: Level, at: TileCoord) -> Self {
        let size = image.levels.get(level.0).map_or(Size::new(0, 0), |level| level.size);
        let channels = (image.content.axes().len() > 2).then(|| image.content.samples_per_pixel() as u64);
        Self::new(size, image.chunk, image.shard, at, channels)
    }

    /// The key of a chunk within its level.
    pub(super) fn key(&self, chunk: ChunkOfShard) -> String {
        let channel = chunk.channel as u64;
        self.key_at(channel, self.rows.start + chunk.at.row, self.columns.start + chunk.at.column)
    }

    fn key_at(&self, channel: u64, row: u64, column: u64) -> String {
        match self.channels {
            None => format!("{row}/{column}"),
            Some(_) => format!("{channel}/{row}/{column}"),
        }
    }

    /// The keys of all chunks within their level: channel by channel, row by row. This is the order of the [digest](GroupDigest).
    pub(super) fn keys(&self) -> impl Iterator<Item = String> {
        (0..self.channels.unwrap_or(1)).flat_map(move |channel| {
            self.rows
                .clone()
                .flat_map(move |row| self.columns.clone().map(move |column| self.key_at(channel, row, column)))
        })
    }
}

/// One digest over the files of a group: of each, in the order of [`ChunkGroup::keys`], its key within the level, a zero byte, its length in eight
/// bytes, the lowest first, and its content. What is not stored is left out.
#[derive(Debug, Default)]
pub(super) struct GroupDigest {
    hash: Sha256,
    any: bool,
}

impl GroupDigest {
    pub(super) fn add(&mut self, key: &str, content: &[u8]) {
        self.any = true;
        self.hash.update(key.as_bytes());
        self.hash.update([0]);
        self.hash.update((content.len() as u64).to_le_bytes());
        self.hash.update(content);
    }

    pub(super) fn stored(self) -> Stored {
        if self.any { Stored::Sha256(self.hash.finalize().into()) } else { Stored::Background }
    }
}

impl StoredImage {
    /// The files that a shard is stored in, as paths within the store with `/` between names: its one file, or in version 0.4 those of its chunks. Of those whose
    /// pixels are all background there is none. Empty if there is no such shard.
    #[must_use]
    pub fn shard_files(&self, level: Level, shard: TileCoord) -> Vec<String> {
        if self.shard_rect(level, shard).is_none() {
            return Vec::new();
        }
        match self.encoding.format {
            Format::V0_5 => vec![format!("{level}/{}", shard_key(shard, self.content.axes().len()))],
            Format::V0_4 => ChunkGroup::of(self, level, shard).keys().map(|key| format!("{level}/{key}")).collect(),
        }
    }
}

/// What is stored of a shard in a store of ours, finished or not, as [`ImageSink::write_shard`](super::ImageSink::write_shard) told when it was written.
///
/// # Errors
/// [`Error::Io`] or [`Error::Transient`] if a file is there and cannot be read, [`Error::Format`] if the level's metadata is not that of an array of ours.
pub fn stored_shard(store: impl AsRef<Path>, level: Level, shard: TileCoord) -> Result<Stored> {
    let place = place::of(store.as_ref())?;
    LevelFiles::read(&*place, level)?.stored(&*place, shard)
}

/// What is stored of the shards of a store of ours, asked from any number of threads. What a level says of itself is read once.
#[derive(Debug)]
pub struct StoredShards {
    place: Box<dyn Place>,
    levels: Mutex<BTreeMap<Level, Arc<LevelFiles>>>,
}

impl StoredShards {
    /// Of the store at a path.
    ///
    /// # Errors
    /// [`Error::Usage`] for what can be no store.
    pub fn new(store: impl AsRef<Path>) -> Result<Self> {
        Ok(Self { place: place::of(store.as_ref())?, levels: Mutex::default() })
    }

    /// What is stored of a shard, as [`ImageSink::write_shard`](super::ImageSink::write_shard) told when it was written.
    ///
    /// # Errors
    /// As [`stored_shard`].
    pub fn shard(&self, level: Level, shard: TileCoord) -> Result<Stored> {
        let levels = || self.levels.lock().unwrap_or_else(PoisonError::into_inner);
        let known = levels().get(&level).cloned();
        let files = if let Some(files) = known {
            files
        } else {
            let files = Arc::new(LevelFiles::read(&*self.place, level)?);
            levels().insert(level, Arc::clone(&files));
            files
        };
        files.stored(&*self.place, shard)
    }
}

/// What a store that is gone on with still holds of the shards that were finished.
#[derive(Debug)]
pub struct Survey {
    place: Box<dyn Place>,
    level: Option<(Level, LevelFiles)>,
    /// The keys of that level, where it is enough to know that a value is there.
    keys: BTreeSet<String>,
}

/// What is known of a shard without more work than that takes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kept {
    /// It was read.
    Read(Stored),
    /// It was looked for: an object store holds no half of a value, so that what was written there is whole if it is there. Of a group of
    /// chunks it is enough that one is: a group is noted after its last chunk, and whoever removes one removes what describes the level first.
    Seen {
        /// True if there is one of its values at least.
        any: bool,
    },
}

impl Survey {
    /// Of the store at a path.
    ///
    /// # Errors
    /// [`Error::Usage`] for what can be no store.
    pub fn new(store: impl AsRef<Path>) -> Result<Self> {
        Ok(Self { place: place::of(store.as_ref())?, level: None, keys: BTreeSet::new() })
    }

    /// What is there of a shard. Level by level is fastest: of an object store the keys of one level are held.
    ///
    /// # Errors
    /// As [`stored_shard`].
    pub fn shard(&mut self, level: Level, shard: TileCoord) -> Result<Kept> {
        let files = match self.level.take() {
            Some((known, files)) if known == level => files,
            _ => {
                self.keys.clear();
                if self.place.keeps_whole() {
                    self.place.walk(&level.to_string(), &mut |key, _| {
                        self.keys.insert(key.into());
                    })?;
                }
                LevelFiles::read(&*self.place, level)?
            }
        };
        let kept = if self.place.keeps_whole() {
            Kept::Seen { any: files.keys(shard).any(|key| self.keys.contains(&key)) }
        } else {
            Kept::Read(files.stored(&*self.place, shard)?)
        };
        self.level = Some((level, files));
        Ok(kept)
    }
}

/// How the shards of a level are stored.
#[derive(Debug)]
struct LevelFiles {
    level: String,
    form: Form,
}

#[derive(Debug)]
enum Form {
    /// There is no such level.
    Absent,
    /// One file for each shard, of an array with so many axes.
    Shards { axes: usize },
    /// A group of files for each.
    Chunks { size: Size, chunk: Size, side: Size, channels: Option<u64> },
}

impl LevelFiles {
    fn read(place: &dyn Place, level: Level) -> Result<Self> {
        let level = level.to_string();
        let (v3, v2) = (join(&level, METADATA), join(&level, ".zarray"));
        let form = if let Some(document) = read_json(place, &v3)? {
            let Some(axes) = document["shape"].as_array().map(Vec::len).filter(|n| (2..=3).contains(n)) else {
                return Err(Error::format(place.path().join(v3), "this is no array of two or three axes"));
            };
            Form::Shards { axes }
        } else if let Some(document) = read_json(place, &v2)? {
            Self::chunks(place, &level, &document)?
        } else {
            Form::Absent
        };
        Ok(Self { level, form })
    }

    fn chunks(place: &dyn Place, level: &str, document: &Value) -> Result<Form> {
        let numbers = |value: &Value| -> Option<Vec<u64>> { value.as_array()?.iter().map(Value::as_u64).collect() };
        let (shape, chunk) = (numbers(&document["shape"]), numbers(&document["chunks"]));
        let plane = |numbers: &[u64]| match *numbers {
            [height, width] | [_, height, width] if height > 0 && width > 0 => Some(Size::new(width, height)),
            _ => None,
        };
        let (Some(shape), Some(size), Some(chunk)) =
            (&shape, shape.as_deref().and_then(plane), chunk.as_deref().and_then(plane))
        else {
            let array = place.path().join(join(level, ".zarray"));
            return Err(Error::format(array, "this is no array of two or three axes"));
        };
        let attributes = join(level, ".zattrs");
        let shards = numbers(&read_json(place, &attributes)?.unwrap_or_default()[ngff::OURS]["shard"]);
        let channels = (shape.len() > 2).then(|| shape[0]);
        // What is stored is as far away as the file says: no more of it is looked for than a shard can have.
        let sound = |shard: &Size| {
            let grid = shard.cells(chunk);
            let chunks = grid.width.checked_mul(grid.height).and_then(|n| n.checked_mul(channels.unwrap_or(1)));
            chunks.is_some_and(|n| n <= MAX_CHUNKS_PER_SHARD)
        };
        let Some(side) = shards.as_deref().and_then(plane).filter(sound) else {
            let message = "this does not say which chunks microtome wrote as one";
            return Err(Error::format(place.path().join(attributes), message));
        };
        Ok(Form::Chunks { size, chunk, side, channels })
    }

    /// The keys of a shard within the level.
    fn inside(&self, shard: TileCoord) -> Vec<String> {
        match self.form {
            Form::Absent => Vec::new(),
            Form::Shards { axes } => vec![shard_key(shard, axes)],
            Form::Chunks { size, chunk, side, channels } => {
                ChunkGroup::new(size, chunk, side, shard, channels).keys().collect()
            }
        }
    }

    /// The keys of a shard.
    fn keys(&self, shard: TileCoord) -> impl Iterator<Item = String> {
        self.inside(shard).into_iter().map(|key| join(&self.level, &key))
    }

    fn stored(&self, place: &dyn Place, shard: TileCoord) -> Result<Stored> {
        let mut digest = GroupDigest::default();
        for key in self.inside(shard) {
            let Some(bytes) = place.value(&join(&self.level, &key), u64::MAX)? else { continue };
            if let Form::Shards { .. } = self.form {
                return Ok(Stored::Sha256(Sha256::digest(&bytes).into()));
            }
            digest.add(&key, &bytes);
        }
        Ok(digest.stored())
    }
}

fn read_json(place: &dyn Place, key: &str) -> Result<Option<Value>> {
    let Some(bytes) = place.value(key, METADATA_LIMIT)? else { return Ok(None) };
    serde_json::from_slice(&bytes).map(Some).map_err(|e| Error::format(place.path().join(key), e.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_has_the_chunks_of_its_shard_that_are_inside_of_the_level() {
        let group = |row, column, channels| {
            let at = TileCoord { row, column };
            let group = ChunkGroup::new(Size::new(50, 20), Size::new(16, 8), Size::new(32, 16), at, channels);
            group.keys().collect::<Vec<_>>()
        };
        assert_eq!(group(0, 0, None), ["0/0", "0/1", "1/0", "1/1"]);
        // 50 pixels are four chunks of 16, the last with two columns; 20 are three of 8.
        assert_eq!(group(1, 1, None), ["2/2", "2/3"]);
        assert_eq!(group(1, 0, Some(2)), ["0/2/0", "0/2/1", "1/2/0", "1/2/1"]);
        assert!(group(2, 0, None).is_empty() && group(u64::MAX - 1, u64::MAX - 1, Some(9)).is_empty());
    }

    #[test]
    fn a_digest_has_names_and_contents() {
        let of = |files: &[(&str, &[u8])]| {
            let mut digest = GroupDigest::default();
            files.iter().for_each(|(key, content)| digest.add(key, content));
            digest.stored()
        };
        assert_eq!(of(&[]), Stored::Background);
        let by_hand = Sha256::digest(b"2/17\0\x03\0\0\0\0\0\0\0abc");
        assert_eq!(of(&[("2/17", b"abc")]), Stored::Sha256(by_hand.into()));
        assert_ne!(of(&[("2/17", b"abc")]), of(&[("2/18", b"abc")]));
        assert_ne!(of(&[("0/0", b"ab"), ("0/1", b"c")]), of(&[("0/0", b"a"), ("0/1", b"bc")]));
    }
}
