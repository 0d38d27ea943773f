//! An image on disk.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::fs;
use std::io::ErrorKind;
use std::num::NonZeroU64;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde_json::{Map, Value};
use sha2::{Digest, Sha256};
use zarrs::array::codec::api::{ArrayToBytesCodecTraits, CodecOptions};
use zarrs::array::codec::{ShardingCodecBuilder, SubchunkWriteOrder, ZstdCodec};
use zarrs::array::{ArrayBuilder, ArrayBytes, ArrayMetadataOptions, DataType, FillValue, data_type};

use super::found::{self, Found, MARKER, METADATA, inspect};
use super::ledger::Ledger;
use super::sink::{Stored, is_background};
use super::{ImageSink, StoredImage, folder, ngff};
use crate::{Error, Level, Pixels, Result, SampleType, Samples, TileCoord};

/// Compression level of the chunks: beyond 3, masks get hardly smaller and much slower to write.
const ZSTD_LEVEL: i32 = 3;
/// How many encoded bytes, and how many files, may wait for the disk. Dirty pages count as memory.
const SYNC_BYTES: usize = 32 << 20;
const SYNC_FILES: usize = 1024;

/// A [`ImageSink`] that writes an OME-Zarr 0.5 image into a folder.
///
/// Levels are the arrays `0`, `1`, ...; one file holds one shard (`sharding_indexed`: chunks compressed with zstd, an
/// index with a checksum at the end), chunks and shards of nothing but background are not stored, and the same pixels give the
/// same bytes. A shard file appears whole, by rename. The root metadata comes last, so that nobody takes an unfinished store for
/// a finished one; [`inspect`] tells ours from a stranger's.
///
/// Memory: per write under way, one padded shard and twice its encoded form; a bit per shard; at most 32 MiB of files that are not yet on the disk.
#[derive(Debug)]
pub struct ZarrImage {
    path: PathBuf,
    image: StoredImage,
    ledger: Ledger,
    encoder: Encoder,
    unsynced: Mutex<Unsynced>,
    /// The marker, locked for as long as this process writes here: [`inspect`] tells others so.
    _marker: fs::File,
    /// Held while files are brought to the disk, so that whoever asks for that second does not return first.
    sync_turn: Mutex<()>,
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
        let encoder = Encoder::new(path, &image)?;
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
        let _ = marker.try_lock();
        let store = Self::new(path, image, ledger, encoder, marker);
        if let Err(error) = store.describe_levels() {
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
        let encoder = Encoder::new(path, &image)?;
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
        let store = Self::new(path, image, ledger, encoder, marker);
        store.describe_levels()?;
        Ok(store)
    }

    fn new(path: &Path, image: StoredImage, ledger: Ledger, encoder: Encoder, marker: fs::File) -> Self {
        Self {
            path: path.into(),
            image,
            ledger,
            encoder,
            unsynced: Mutex::default(),
            _marker: marker,
            sync_turn: Mutex::default(),
        }
    }

    /// Writes the metadata of all levels, and brings them to the disk.
    fn describe_levels(&self) -> Result<()> {
        for (n, level) in self.image.levels.iter().enumerate() {
            let folder = self.path.join(n.to_string());
            fs::create_dir_all(&folder).map_err(|e| Error::io(&folder, e))?;
            let metadata = folder.join(METADATA);
            folder::put(&metadata, &self.encoder.array_metadata(&metadata, level.size)?)?;
            folder::sync_file(&metadata)?;
            folder::sync_folder(&folder)?;
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
        let files = {
            let mut unsynced = self.unsynced();
            if unsynced.failed {
                let source = std::io::Error::other("an earlier write did not reach the disk");
                return Err(Error::io(&self.path, source));
            }
            unsynced.bytes = 0;
            std::mem::take(&mut unsynced.files)
        };
        let bring = || {
            let mut folders = BTreeSet::new();
            for file in &files {
                folder::sync_file(file)?;
                folders.extend(file.ancestors().skip(1).take_while(|a| a.starts_with(&self.path)));
            }
            folders.into_iter().try_for_each(folder::sync_folder)
        };
        bring().inspect_err(|_| self.unsynced().failed = true)
    }

    fn shard_file(&self, level: Level, shard: TileCoord) -> PathBuf {
        shard_file(&self.path, level, shard)
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
        let mut stored = Stored::Background;
        if !is_background(pixels) {
            let file = self.shard_file(level, shard);
            let encoded = self.encoder.encode(&file, pixels)?;
            if let Some(folder) = file.parent() {
                fs::create_dir_all(folder).map_err(|e| Error::io(folder, e))?;
            }
            folder::put(&file, &encoded)?;
            stored = Stored::Sha256(Sha256::digest(&encoded).into());
            let full = {
                let mut unsynced = self.unsynced();
                unsynced.files.push(file);
                unsynced.bytes += encoded.len();
                unsynced.bytes >= SYNC_BYTES || unsynced.files.len() >= SYNC_FILES
            };
            drop(encoded);
            if full {
                self.bring_to_disk()?;
            }
        }
        permit.keep();
        Ok(stored)
    }

    fn sync(&self) -> Result<()> {
        self.bring_to_disk()
    }

    fn read_shard(&self, level: Level, shard: TileCoord) -> Result<Pixels> {
        let mut labels = self.image.background(&self.path, level, shard)?;
        let file = self.shard_file(level, shard);
        match fs::read(&file) {
            Ok(encoded) => self.encoder.decode(&file, encoded, &mut labels)?,
            Err(e) if e.kind() == ErrorKind::NotFound => {}
            Err(e) => return Err(Error::io(&file, e)),
        }
        Ok(labels)
    }

    fn finish(&self, notes: &Map<String, Value>) -> Result<()> {
        let attributes = self.image.attributes_with(&self.path, notes)?;
        self.ledger.close()?;
        self.bring_to_disk()?;
        let root = self.path.join(METADATA);
        folder::put(&root, &ngff::to_bytes(&ngff::root(&self.image, &attributes)))?;
        folder::sync_file(&root)?;
        folder::sync_folder(&self.path)?;
        let marker = self.path.join(MARKER);
        fs::remove_file(&marker).map_err(|e| Error::io(&marker, e))?;
        folder::sync_folder(&self.path)
    }
}

fn shard_file(store: &Path, level: Level, shard: TileCoord) -> PathBuf {
    store.join(format!("{level}/c/{}/{}", shard.row, shard.column))
}

/// What is stored of a shard in a store of ours, finished or not, as [`ImageSink::write_shard`] told when it was written.
///
/// # Errors
/// [`Error::Io`] if the file is there and cannot be read.
pub fn stored_shard(store: impl AsRef<Path>, level: Level, shard: TileCoord) -> Result<Stored> {
    let file = shard_file(store.as_ref(), level, shard);
    match fs::read(&file) {
        Ok(bytes) => Ok(Stored::Sha256(Sha256::digest(&bytes).into())),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(Stored::Background),
        Err(e) => Err(Error::io(&file, e)),
    }
}

/// Turns labels into the bytes of a shard.
#[derive(Debug)]
struct Encoder {
    /// Rows and columns.
    shard: [NonZeroU64; 2],
    data_type: DataType,
    fill: FillValue,
    codec: Arc<dyn ArrayToBytesCodecTraits>,
}

impl Encoder {
    fn new(path: &Path, image: &StoredImage) -> Result<Self> {
        let shape = |size: crate::Size| -> Result<[NonZeroU64; 2]> {
            let side = |n| NonZeroU64::new(n).ok_or_else(|| Error::usage(path, "a chunk or shard is empty"));
            Ok([side(size.height)?, side(size.width)?])
        };
        let (data_type, fill) = match image.sample {
            SampleType::U8 => (data_type::uint8(), FillValue::from(0u8)),
            SampleType::U16 => (data_type::uint16(), FillValue::from(0u16)),
        };
        let (chunk, shard) = (shape(image.chunk)?, shape(image.shard)?);
        let codec = ShardingCodecBuilder::new(chunk.to_vec(), &data_type)
            .bytes_to_bytes_codecs(vec![Arc::new(ZstdCodec::new(ZSTD_LEVEL, false))])
            .build()
            // Chunks lie in a shard in the order of the picture, whatever the number of threads: same labels, same bytes.
            .with_subchunk_write_order(SubchunkWriteOrder::C);
        Ok(Self { shard, data_type, fill, codec: Arc::new(codec) })
    }

    /// The `zarr.json` of one level; `file` is where it goes.
    fn array_metadata(&self, file: &Path, size: crate::Size) -> Result<Vec<u8>> {
        let bug = |e: String| Error::usage(file, format!("the array cannot be described: {e}"));
        let mut builder = ArrayBuilder::new(
            vec![size.height, size.width],
            self.shard.map(NonZeroU64::get).to_vec(),
            self.data_type.clone(),
            self.fill.clone(),
        );
        builder.array_to_bytes_codec(self.codec.clone()).dimension_names(Some(["y", "x"]));
        let array = builder.build(Arc::new(()), "/").map_err(|e| bug(e.to_string()))?;
        // zarrs would note its own version, and so change our bytes with every update.
        let options = ArrayMetadataOptions::default().with_include_zarrs_metadata(false);
        let document = serde_json::to_value(array.metadata_opt(&options)).map_err(|e| bug(e.to_string()))?;
        Ok(ngff::to_bytes(&document))
    }

    /// The shard that `labels`, clipped to its level, is the top left part of.
    fn encode(&self, file: &Path, labels: &Pixels) -> Result<Vec<u8>> {
        let [rows, columns] = self.shard.map(NonZeroU64::get);
        let whole = labels.size() == crate::Size::new(columns, rows);
        let bytes: Cow<'_, [u8]> = match labels.samples() {
            Samples::U8(v) if whole => Cow::Borrowed(v),
            Samples::U8(v) => Cow::Owned(pad(v, labels.size(), rows, columns, |v| [v])),
            Samples::U16(v) => Cow::Owned(pad(v, labels.size(), rows, columns, u16::to_ne_bytes)),
        };
        // One thread: the caller runs many shards at once, and may hold what rayon must not be entered with.
        let options = CodecOptions::default().with_concurrent_target(1);
        let encoded =
            self.codec.encode(ArrayBytes::new_flen(bytes), &self.shard, &self.data_type, &self.fill, &options);
        encoded.map(Cow::into_owned).map_err(|e| Error::io(file, std::io::Error::other(e.to_string())))
    }

    /// The top left part of a shard that [`encode`](Self::encode) made, as much as `labels` holds.
    fn decode(&self, file: &Path, encoded: Vec<u8>, labels: &mut Pixels) -> Result<()> {
        let options = CodecOptions::default().with_concurrent_target(1);
        let bytes = self
            .codec
            .decode(Cow::Owned(encoded), &self.shard, &self.data_type, &self.fill, &options)
            .and_then(|array| Ok(array.into_fixed()?.into_owned()))
            .map_err(|e| Error::format(file, format!("the shard cannot be read again: {e}")))?;
        let size = labels.size();
        let stride = self.shard[1].get() as usize * labels.sample_type().bytes();
        match labels.samples_mut() {
            Samples::U8(v) => {
                for (to, from) in v.chunks_exact_mut(size.width as usize).zip(bytes.chunks_exact(stride)) {
                    to.copy_from_slice(&from[..to.len()]);
                }
            }
            Samples::U16(v) => {
                for (to, from) in v.chunks_exact_mut(size.width as usize).zip(bytes.chunks_exact(stride)) {
                    for (to, from) in to.iter_mut().zip(from.chunks_exact(2)) {
                        *to = u16::from_ne_bytes([from[0], from[1]]);
                    }
                }
            }
        }
        Ok(())
    }
}

/// The samples as bytes in the machine's order, in the top left corner of `rows` × `columns` zeros.
fn pad<T: Copy, const N: usize>(
    samples: &[T],
    size: crate::Size,
    rows: u64,
    columns: u64,
    bytes: fn(T) -> [u8; N],
) -> Vec<u8> {
    let (width, stride) = (size.width as usize, columns as usize * N);
    let mut padded = vec![0; rows as usize * stride];
    for (to, from) in padded.chunks_exact_mut(stride).zip(samples.chunks_exact(width)) {
        for (to, &from) in to.chunks_exact_mut(N).zip(from) {
            to.copy_from_slice(&bytes(from));
        }
    }
    padded
}
