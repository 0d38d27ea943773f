//! A Zarr array, read chunk by chunk: version 2, and version 3 with or without shards, which may hold shards.
//!
//! zarrs could do this for data that can be trusted; its shard reader adds offsets from the file without checking and its codecs allocate
//! what a stream claims (see [`codec`](super::codec)). So metadata, shard index and file access are our own, and zarrs
//! only decompresses. Formats: <https://zarr-specs.readthedocs.io/en/latest/v3/core/index.html>,
//! <https://zarr-specs.readthedocs.io/en/latest/v3/codecs/sharding-indexed/index.html>,
//! <https://zarr-specs.readthedocs.io/en/latest/v2/v2.0.html>.

use std::borrow::Cow;
use std::collections::HashMap;
use std::io::{self, ErrorKind};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use serde::Deserialize;
use serde_json::Value;

use super::codec::{self, ByteCodec, Named};
use super::entries::{Entries, join};
use super::found::{METADATA, METADATA_LIMIT};
use crate::bytes::{ByteSource, content_id};
use crate::slide::Limits;
use crate::{Error, Result, SampleType};

/// More dimensions than OME-NGFF allows (5) are not worth reading.
const MAX_DIMENSIONS: usize = 8;
/// Shard indexes of more than this many chunks are refused (16 MiB of index).
pub(super) const MAX_CHUNKS_PER_SHARD: u64 = 1 << 20;

/// A shard may be made of shards; deeper than this nobody needs.
const MAX_NESTING: usize = 4;
/// Indexes of inner shards that are kept for one file: so many chunks altogether (16 MiB).
const NESTED_CHUNKS: usize = 1 << 20;

/// An array of booleans or of 8- or 16-bit unsigned integers.
#[derive(Debug)]
pub(super) struct Array {
    entries: Arc<dyn Entries>,
    /// The key of the array, empty at the root.
    folder: String,
    /// The key of the document that describes it.
    metadata: String,
    layout: Layout,
}

impl std::ops::Deref for Array {
    type Target = Layout;

    fn deref(&self) -> &Layout {
        &self.layout
    }
}

/// What the metadata of an array say.
#[derive(Debug)]
pub(super) struct Layout {
    pub(super) shape: Vec<u64>,
    pub(super) sample: SampleType,
    /// Samples are 0, or anything else, which counts as 1.
    boolean: bool,
    /// The value where nothing is stored.
    pub(super) fill: u16,
    /// The shape of what is decoded at once.
    pub(super) chunk: Vec<u64>,
    big_endian: bool,
    /// The axes of the stored chunk in the order in which they are stored, the slowest first, if not `0, 1, ...`.
    order: Option<Vec<usize>>,
    codecs: Vec<ByteCodec>,
    keys: Keys,
    /// From the file to what holds the chunks; empty where each chunk is a file.
    shards: Vec<Shards>,
}

#[derive(Debug)]
struct Keys {
    prefix: &'static str,
    separator: char,
}

/// How chunks, or shards, share a shard.
#[derive(Debug)]
struct Shards {
    /// How many of them one shard has along each axis.
    grid: Vec<u64>,
    /// How many chunks each of them has along each axis.
    chunks: Vec<u64>,
    at_start: bool,
    big_endian: bool,
    codecs: Vec<ByteCodec>,
}

/// Offset and length of each chunk of a shard, row-major.
type Index = Vec<(u64, u64)>;

/// A shard that is open.
#[derive(Debug)]
pub(super) struct ShardFile {
    source: Arc<dyn ByteSource>,
    index: Index,
    /// Bytes of memory that the shard takes while it is open, without those of [`nested`](Self::nested).
    pub(super) bytes: u64,
    /// Indexes of the shards in it, by offset and length.
    nested: Mutex<HashMap<(u64, u64), Arc<Index>>>,
}

impl Array {
    /// Reads the metadata of the array under the key `folder`.
    pub(super) fn open(entries: &Arc<dyn Entries>, folder: &str, limits: &Limits) -> Result<Self> {
        let (v3, v2) = (join(folder, METADATA), join(folder, ".zarray"));
        let (metadata, layout) = if let Some(bytes) = entries.get(&v3, METADATA_LIMIT)? {
            (v3, serde_json::from_slice::<V3>(&bytes).map_err(|e| e.to_string()).and_then(V3::layout))
        } else if let Some(bytes) = entries.get(&v2, METADATA_LIMIT)? {
            (v2, serde_json::from_slice::<V2>(&bytes).map_err(|e| e.to_string()).and_then(V2::layout))
        } else {
            let message = "there is no array here: neither a zarr.json nor a .zarray";
            return Err(Error::format(entries.name(folder), message));
        };
        let file = entries.name(&metadata);
        let layout = layout.map_err(|message| Error::unsupported(&file, message))?;
        layout.check(&file, limits)?;
        Ok(Self { entries: Arc::clone(entries), folder: folder.into(), metadata, layout })
    }

    /// Opens a shard, or `None` if it is not stored. Which chunks lie in it, [`file_of`](Layout::file_of) says. Where each chunk is a file, there is nothing to open.
    pub(super) fn open_shard(&self, file: &[u64]) -> Result<Option<ShardFile>> {
        let Some(shards) = self.shards.first() else { return Ok(None) };
        let key = self.key_of(file);
        let Some(source) = self.entries.open(&key)? else { return self.absent() };
        let index = shards.read_index(&*source, 0..source.len()).map_err(|fault| fault.at(&*self.entries, &key))?;
        let bytes = self.entries.held_bytes(&key) + (index.len() * size_of::<(u64, u64)>()) as u64;
        Ok(Some(ShardFile { source, index, bytes, nested: Mutex::default() }))
    }

    /// Nothing is stored under a key: that is the fill value, as long as the array itself is there. A mount that goes away takes both.
    fn absent<T>(&self) -> Result<Option<T>> {
        if !self.entries.may_go_away() || self.entries.contains(&self.metadata)? {
            return Ok(None);
        }
        let gone = io::Error::new(ErrorKind::NotFound, "it has gone away while the store was read");
        Err(Error::io(self.entries.name(&self.metadata), gone))
    }

    /// True if each chunk is a file.
    pub(super) fn is_unsharded(&self) -> bool {
        self.shards.is_empty()
    }

    /// Adds what tells this array from another: the identities of its metadata and of up to 16 files of chunks, spread over it.
    pub(super) fn identify(&self, ids: &mut Vec<String>) -> Result<()> {
        const FILES: u64 = 16;
        ids.push(identity(&*self.entries, &self.metadata)?);
        let last: Vec<u64> = self.shape.iter().zip(&self.chunk).map(|(&n, &side)| (n - 1) / side).collect();
        let files = Grid::new(self.file_of(&last).into_iter().map(|last| (0, last)).collect());
        let count = files.count();
        for n in 0..count.min(FILES) {
            let file = files.get((u128::from(n) * u128::from(count) / u128::from(count.min(FILES))) as u64);
            ids.push(identity(&*self.entries, &self.key_of(&file))?);
        }
        Ok(())
    }

    fn key_of(&self, file: &[u64]) -> String {
        let mut key = String::from(self.keys.prefix);
        for index in file {
            if !key.is_empty() {
                key.push(self.keys.separator);
            }
            key += &index.to_string();
        }
        join(&self.folder, &key)
    }

    /// Decodes a chunk: its bytes and how they are laid out, or `None` if it is not stored and has the fill value.
    /// `shard` is the one in which it lies, if it lies in one that is stored.
    pub(super) fn read_chunk(&self, shard: Option<&ShardFile>, chunk: &[u64]) -> Result<Option<Chunk>> {
        let key = self.key_of(&self.file_of(chunk));
        let size = product(&self.chunk).unwrap_or(u64::MAX).saturating_mul(self.sample.bytes() as u64);
        let encoded = match shard {
            None if !self.shards.is_empty() => return Ok(None),
            None => match self.entries.get(&key, codec::cap(size))? {
                Some(encoded) => encoded,
                None => return self.absent(),
            },
            Some(shard) => {
                let read = || -> Result<Option<Vec<u8>>, Fault> {
                    let Some((offset, length)) = self.find(shard, chunk)? else { return Ok(None) };
                    if length > codec::cap(size) {
                        return Err(format!("it takes {length} bytes in the file, for {size} decoded").into());
                    }
                    read_at(&*shard.source, offset, length).map(Some)
                };
                match read().map_err(|fault| fault.at(&*self.entries, &key))? {
                    Some(encoded) => encoded,
                    None => return Ok(None),
                }
            }
        };
        let bytes = codec::decode(&self.codecs, encoded, size)
            .map_err(|message| Error::format(self.entries.name(&key), message))?;
        let strides = match &self.order {
            None => strides(&self.chunk),
            Some(order) => {
                let stored: Vec<u64> = order.iter().map(|&axis| self.chunk[axis]).collect();
                let mut by_axis = vec![0; order.len()];
                for (&axis, stride) in order.iter().zip(strides(&stored)) {
                    by_axis[axis] = stride;
                }
                by_axis
            }
        };
        Ok(Some(Chunk { bytes, strides, big_endian: self.big_endian, boolean: self.boolean }))
    }

    /// Where a chunk lies in the file of its shard, if it is stored.
    fn find(&self, file: &ShardFile, chunk: &[u64]) -> Result<Option<(u64, u64)>, Fault> {
        let mut place = (0, file.source.len());
        for (depth, shards) in self.shards.iter().enumerate() {
            let cell = shards.cell_of(chunk);
            let (offset, length) = if depth == 0 { file.index[cell] } else { file.nested(shards, place)?[cell] };
            if (offset, length) == (u64::MAX, u64::MAX) {
                return Ok(None);
            }
            // Offsets count from the start of the shard that has them, and stay within it.
            let start = place.0.checked_add(offset).ok_or_else(|| format!("it lies at {offset}, beyond any file"))?;
            if depth > 0 && offset.checked_add(length).is_none_or(|end| end > place.1) {
                return Err(format!("it lies at {offset}, outside of its shard of {} bytes", place.1).into());
            }
            place = (start, length);
        }
        Ok(Some(place))
    }

    /// True if it is of use to [say](Self::prefetch) which chunks will be wanted.
    pub(super) fn reads_ahead(&self) -> bool {
        self.entries.reads_ahead()
    }

    /// Says that a chunk will be wanted soon.
    pub(super) fn prefetch(&self, shard: Option<&ShardFile>, chunk: &[u64]) {
        if let Some(shard) = shard {
            // Of shards in shards only what is known without reading.
            if self.shards.len() == 1
                && let Ok(Some((offset, length))) = self.find(shard, chunk)
            {
                shard.source.prefetch(offset..offset.saturating_add(length));
            }
        } else if self.is_unsharded()
            && let Ok(Some(source)) = self.entries.open(&self.key_of(chunk))
        {
            source.prefetch(0..source.len());
        }
    }
}

/// The identity of a value, or that there is none.
pub(super) fn identity(entries: &dyn Entries, key: &str) -> Result<String> {
    match entries.open(key)? {
        None => Ok("not stored".into()),
        Some(source) => content_id(&*source),
    }
}

/// What keeps a chunk from being found: something in the file, or the file itself.
enum Fault {
    Content(String),
    File(Error),
}

impl From<String> for Fault {
    fn from(message: String) -> Self {
        Self::Content(message)
    }
}

impl Fault {
    fn at(self, entries: &dyn Entries, key: &str) -> Error {
        match self {
            Self::Content(message) => Error::format(entries.name(key), message),
            Self::File(error) => error,
        }
    }
}

impl ShardFile {
    /// The index of a shard in this one.
    fn nested(&self, shards: &Shards, place: (u64, u64)) -> Result<Arc<Index>, Fault> {
        let lock = || self.nested.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(index) = lock().get(&place) {
            return Ok(Arc::clone(index));
        }
        let end = place.0.checked_add(place.1).ok_or_else(|| format!("it lies at {}, beyond any file", place.0))?;
        let index = Arc::new(shards.read_index(&*self.source, place.0..end)?);
        let mut nested = lock();
        if (nested.len() + 1).saturating_mul(index.len()) > NESTED_CHUNKS {
            nested.clear();
        }
        nested.insert(place, Arc::clone(&index));
        Ok(index)
    }
}

impl Layout {
    fn check(&self, file: &Path, limits: &Limits) -> Result<()> {
        let n = self.shape.len();
        if n == 0
            || n > MAX_DIMENSIONS
            || self.chunk.len() != n
            || self.shards.iter().any(|shards| shards.grid.len() != n)
        {
            return Err(Error::format(file, format!("the chunks do not fit an array of {n} dimensions")));
        }
        if let Some(order) = &self.order {
            let mut sorted = order.clone();
            sorted.sort_unstable();
            if sorted != (0..n).collect::<Vec<_>>() {
                return Err(Error::format(file, format!("the transpose order {order:?} is no permutation")));
            }
        }
        if self.shape.iter().chain(&self.chunk).any(|&side| side == 0 || side > i64::MAX as u64 / 2) {
            return Err(Error::format(
                file,
                format!("the shape {:?} in chunks of {:?} is empty or too large", self.shape, self.chunk),
            ));
        }
        let bytes = product(&self.chunk).and_then(|n| n.checked_mul(self.sample.bytes() as u64));
        if bytes.is_none_or(|bytes| bytes > limits.decoded_bytes) {
            let limit = limits.decoded_bytes;
            return Err(Error::limits(
                file,
                format!("a chunk of {:?} samples is larger than the {limit} bytes that are allowed", self.chunk),
            ));
        }
        if let Some(Shards { grid, .. }) =
            (self.shards.iter()).find(|shards| product(&shards.grid).is_none_or(|n| n == 0 || n > MAX_CHUNKS_PER_SHARD))
        {
            return Err(Error::limits(
                file,
                format!("a shard of {grid:?} chunks has more than the {MAX_CHUNKS_PER_SHARD} that are allowed"),
            ));
        }
        Ok(())
    }

    /// The file in which a chunk lies: the shard, or the chunk itself.
    pub(super) fn file_of(&self, chunk: &[u64]) -> Vec<u64> {
        chunk.iter().zip(self.chunks_per_file()).map(|(c, n)| c / n).collect()
    }

    /// How many chunks lie in one file, per axis.
    pub(super) fn chunks_per_file(&self) -> Vec<u64> {
        match self.shards.first() {
            None => vec![1; self.shape.len()],
            Some(shards) => shards.grid.iter().zip(&shards.chunks).map(|(n, each)| n * each).collect(),
        }
    }
}

/// A decoded chunk.
#[derive(Debug)]
pub(super) struct Chunk {
    bytes: Vec<u8>,
    /// Samples from one index to the next, per axis.
    pub(super) strides: Vec<usize>,
    big_endian: bool,
    boolean: bool,
}

impl Chunk {
    /// The 8-bit samples.
    pub(super) fn into_u8(mut self) -> Vec<u8> {
        if self.boolean {
            self.bytes.iter_mut().for_each(|byte| *byte = u8::from(*byte != 0));
        }
        self.bytes
    }

    /// The 16-bit samples.
    pub(super) fn into_u16(self) -> Vec<u16> {
        let (pairs, _) = self.bytes.as_chunks::<2>();
        let read = if self.big_endian { u16::from_be_bytes } else { u16::from_le_bytes };
        pairs.iter().map(|&pair| read(pair)).collect()
    }
}

impl Shards {
    /// Reads the index of the shard that lies at `place`.
    fn read_index(&self, source: &dyn ByteSource, place: std::ops::Range<u64>) -> Result<Index, Fault> {
        let plain = product(&self.grid).unwrap_or(u64::MAX).saturating_mul(16);
        let checksums = self.codecs.iter().filter(|&&c| c == ByteCodec::Crc32c).count() as u64;
        let stored = plain + 4 * checksums;
        let length = place.end - place.start;
        let offset = match length.checked_sub(stored) {
            None => {
                return Err(format!("the shard has {length} bytes, less than its index of {stored}").into());
            }
            Some(_) if self.at_start => place.start,
            Some(offset) => place.start + offset,
        };
        let index = codec::decode(&self.codecs, read_at(source, offset, stored)?, plain)?;
        let read = if self.big_endian { u64::from_be_bytes } else { u64::from_le_bytes };
        let (numbers, _) = index.as_chunks::<8>();
        Ok(numbers.chunks_exact(2).map(|pair| (read(pair[0]), read(pair[1]))).collect())
    }

    /// The place in the index of what holds a chunk.
    fn cell_of(&self, chunk: &[u64]) -> usize {
        let axes = chunk.iter().zip(&self.grid).zip(&self.chunks);
        axes.fold(0, |at, ((c, n), each)| at * n + c / each % n) as usize
    }
}

/// `length` bytes of a file, from `offset`, if it has them.
fn read_at(source: &dyn ByteSource, offset: u64, length: u64) -> Result<Vec<u8>, Fault> {
    let end = offset.checked_add(length).ok_or_else(|| format!("it lies at {offset}, beyond any file"))?;
    let bytes = source.read_at(offset..end).map(Cow::into_owned).and_then(|bytes| source.still_whole().map(|()| bytes));
    bytes.map_err(|error| match error {
        Error::Format { message, .. } => Fault::Content(message),
        other => Fault::File(other),
    })
}

fn product(sides: &[u64]) -> Option<u64> {
    sides.iter().try_fold(1u64, |n, &side| n.checked_mul(side))
}

/// Row-major strides.
fn strides(shape: &[u64]) -> Vec<usize> {
    let mut strides = vec![1; shape.len()];
    for axis in (1..shape.len()).rev() {
        strides[axis - 1] = strides[axis] * shape[axis] as usize;
    }
    strides
}

/// All index tuples between the first and last of each axis. Made one by one: a hostile store can have a chunk for every sample.
#[derive(Debug)]
pub(super) struct Grid(Vec<(u64, u64)>);

impl Grid {
    /// The tuples between the first and last index of each axis; the first is not larger than the last.
    pub(super) fn new(spans: Vec<(u64, u64)>) -> Self {
        Self(spans)
    }

    /// How many tuples there are.
    pub(super) fn count(&self) -> u64 {
        self.0.iter().fold(1, |n, &(first, last)| n.saturating_mul(last - first + 1))
    }

    /// The `n`-th tuple, row-major.
    pub(super) fn get(&self, mut n: u64) -> Vec<u64> {
        let mut tuple = vec![0; self.0.len()];
        for (index, &(first, last)) in tuple.iter_mut().zip(&self.0).rev() {
            let length = last - first + 1;
            *index = first + n % length;
            n /= length;
        }
        tuple
    }
}

/// `zarr.json`.
#[derive(Deserialize)]
struct V3 {
    zarr_format: u64,
    node_type: String,
    shape: Vec<u64>,
    data_type: Value,
    chunk_grid: Named,
    chunk_key_encoding: Named,
    fill_value: Value,
    codecs: Vec<Named>,
    #[serde(default)]
    storage_transformers: Vec<Value>,
}

impl V3 {
    fn layout(self) -> Result<Layout, String> {
        if self.zarr_format != 3 || self.node_type != "array" {
            return Err(format!("this is a Zarr {} {}, not an array of version 3", self.zarr_format, self.node_type));
        }
        if !self.storage_transformers.is_empty() {
            return Err("storage transformers are not supported".into());
        }
        let data_type = self.data_type.as_str().or_else(|| self.data_type["name"].as_str());
        let sample = match data_type {
            Some("uint8" | "bool") => SampleType::U8,
            Some("uint16") => SampleType::U16,
            _ => return Err(unsupported_type(&self.data_type)),
        };
        if self.chunk_grid.name != "regular" {
            return Err(format!("the chunk grid {:?} is not supported, only \"regular\"", self.chunk_grid.name));
        }
        let grid_shape = numbers(&self.chunk_grid.configuration["chunk_shape"])?;
        let separator = |default| match self.chunk_key_encoding.configuration["separator"].as_str() {
            None => Ok(default),
            Some("/") => Ok('/'),
            Some(".") => Ok('.'),
            Some(other) => Err(format!("the chunk key separator {other:?} is neither \"/\" nor \".\"")),
        };
        let keys = match self.chunk_key_encoding.name.as_str() {
            "default" => Keys { prefix: "c", separator: separator('/')? },
            "v2" => Keys { prefix: "", separator: separator('.')? },
            other => return Err(format!("the chunk key encoding {other:?} is not supported")),
        };
        let (mut chunk, mut codecs, mut shards) = (grid_shape, self.codecs, Vec::new());
        while codecs.iter().any(|codec| codec.name == "sharding_indexed") {
            let [only] = &codecs[..] else {
                let names: Vec<&str> = codecs.iter().map(|codec| codec.name.as_str()).collect();
                return Err(format!("shards beside other codecs are not supported: {names:?}"));
            };
            if shards.len() == MAX_NESTING {
                return Err(format!("shards within more than {MAX_NESTING} others are not supported"));
            }
            let sharding = Sharding::deserialize(&only.configuration).map_err(|e| format!("sharding: {e}"))?;
            shards.push(sharding.shards(&chunk)?);
            (chunk, codecs) = (sharding.chunk_shape, sharding.codecs);
        }
        // From the innermost outwards: how many chunks there are in each part of a shard.
        let mut chunks = vec![1; chunk.len()];
        for shards in shards.iter_mut().rev() {
            shards.chunks.clone_from(&chunks);
            for (chunks, &n) in chunks.iter_mut().zip(&shards.grid) {
                *chunks = n.checked_mul(*chunks).ok_or("the shards are too large")?;
            }
        }
        let chain = Chain::new(&codecs)?;
        let boolean = data_type == Some("bool");
        let fill = fill(&self.fill_value, sample, boolean)?;
        Ok(Layout {
            shape: self.shape,
            sample,
            boolean,
            fill,
            chunk,
            big_endian: chain.big_endian,
            order: chain.order,
            codecs: chain.codecs,
            keys,
            shards,
        })
    }
}

#[derive(Deserialize)]
struct Sharding {
    chunk_shape: Vec<u64>,
    codecs: Vec<Named>,
    index_codecs: Vec<Named>,
    #[serde(default)]
    index_location: Option<String>,
}

impl Sharding {
    /// How a shard of this shape is divided. How many chunks there are in each part is for the caller to say.
    fn shards(&self, shard: &[u64]) -> Result<Shards, String> {
        let index = Chain::new(&self.index_codecs)?;
        if index.order.is_some() || index.codecs.iter().any(|&codec| codec != ByteCodec::Crc32c) {
            return Err("the shard index has no fixed size".into());
        }
        let at_start = match self.index_location.as_deref() {
            None | Some("end") => false,
            Some("start") => true,
            Some(other) => return Err(format!("the shard index lies at {other:?}, neither \"start\" nor \"end\"")),
        };
        let mut grid = Vec::new();
        for (&shard, &chunk) in shard.iter().zip(&self.chunk_shape) {
            if chunk == 0 || shard % chunk != 0 {
                return Err(format!("a shard of {shard} samples is not made of whole chunks of {chunk}"));
            }
            grid.push(shard / chunk);
        }
        if shard.len() != self.chunk_shape.len() {
            return Err("shards and chunks differ in dimensions".into());
        }
        let chunks = vec![1; grid.len()];
        Ok(Shards { grid, chunks, at_start, big_endian: index.big_endian, codecs: index.codecs })
    }
}

/// The codecs between a chunk's samples and its bytes.
#[derive(Debug)]
struct Chain {
    order: Option<Vec<usize>>,
    big_endian: bool,
    codecs: Vec<ByteCodec>,
}

impl Chain {
    fn new(codecs: &[Named]) -> Result<Self, String> {
        let mut chain = Self { order: None, big_endian: false, codecs: Vec::new() };
        let mut rest = codecs.iter();
        let bytes = loop {
            match rest.next() {
                Some(codec) if codec.name == "transpose" => {
                    let order: Vec<usize> =
                        numbers(&codec.configuration["order"])?.into_iter().map(|axis| axis as usize).collect();
                    chain.order = Some(match &chain.order {
                        None => order,
                        // Of several, each turns what the one before has turned.
                        Some(before) => order
                            .iter()
                            .map(|&axis| before.get(axis).copied())
                            .collect::<Option<_>>()
                            .ok_or_else(|| format!("the transpose order {order:?} is no permutation"))?,
                    });
                }
                Some(codec) if codec.name == "bytes" => break codec,
                Some(codec) => return Err(format!("the codec {:?} is not supported here", codec.name)),
                None => return Err("the codecs do not say how samples become bytes".into()),
            }
        };
        chain.big_endian = match bytes.configuration["endian"].as_str() {
            None | Some("little") => false,
            Some("big") => true,
            Some(other) => return Err(format!("the byte order {other:?} is neither \"little\" nor \"big\"")),
        };
        for codec in rest {
            chain.codecs.push(ByteCodec::named(&codec.name, &codec.configuration)?);
        }
        Ok(chain)
    }
}

/// `.zarray`.
#[derive(Deserialize)]
struct V2 {
    zarr_format: u64,
    shape: Vec<u64>,
    chunks: Vec<u64>,
    dtype: Value,
    compressor: Option<Value>,
    fill_value: Value,
    order: String,
    filters: Option<Vec<Value>>,
    #[serde(default)]
    dimension_separator: Option<String>,
}

impl V2 {
    fn layout(self) -> Result<Layout, String> {
        if self.zarr_format != 2 {
            return Err(format!("this is an array of Zarr version {}, not 2", self.zarr_format));
        }
        let (sample, big_endian) = match self.dtype.as_str() {
            Some("|u1" | "<u1" | ">u1" | "|b1") => (SampleType::U8, false),
            Some("<u2") => (SampleType::U16, false),
            Some(">u2") => (SampleType::U16, true),
            _ => return Err(unsupported_type(&self.dtype)),
        };
        if let Some(filters) = self.filters.filter(|filters| !filters.is_empty()) {
            let ids: Vec<&str> = filters.iter().map(|filter| filter["id"].as_str().unwrap_or("nameless")).collect();
            return Err(format!("the samples went through filters, which are not supported: {}", ids.join(", ")));
        }
        let codecs = match &self.compressor {
            None => Vec::new(),
            Some(compressor) => vec![ByteCodec::named(compressor["id"].as_str().unwrap_or("nameless"), compressor)?],
        };
        let order = match self.order.as_str() {
            "C" => None,
            "F" => Some((0..self.chunks.len()).rev().collect()),
            other => return Err(format!("the order {other:?} is neither \"C\" nor \"F\"")),
        };
        let separator = match self.dimension_separator.as_deref() {
            None | Some(".") => '.',
            Some("/") => '/',
            Some(other) => return Err(format!("the dimension separator {other:?} is neither \"/\" nor \".\"")),
        };
        let boolean = self.dtype == "|b1";
        Ok(Layout {
            shape: self.shape,
            sample,
            boolean,
            fill: if self.fill_value.is_null() { 0 } else { fill(&self.fill_value, sample, boolean)? },
            chunk: self.chunks,
            big_endian,
            order,
            codecs,
            keys: Keys { prefix: "", separator },
            shards: Vec::new(),
        })
    }
}

fn unsupported_type(data_type: &Value) -> String {
    format!(
        "the samples are of type {data_type}, of which unsigned integers of 8 and 16 bits and booleans are supported"
    )
}

fn fill(value: &Value, sample: SampleType, boolean: bool) -> Result<u16, String> {
    if let (true, Some(value)) = (boolean, value.as_bool()) {
        return Ok(value.into());
    }
    let max = if sample == SampleType::U8 { 255 } else { 65535 };
    // zarr-python 2 wrote the fill value of an integer as a float at times.
    let number = value.as_u64().or_else(|| value.as_f64().filter(|v| v.fract() == 0.0 && *v >= 0.0).map(|v| v as u64));
    match number {
        Some(v) if v <= max => Ok(v as u16),
        _ => Err(format!("the fill value {value} is not one of 0 to {max}")),
    }
}

fn numbers(value: &Value) -> Result<Vec<u64>, String> {
    serde_json::from_value(value.clone()).map_err(|e| format!("a list of numbers was expected: {e}"))
}
