//! A Zarr array on disk, read chunk by chunk: version 2, and version 3 with or without shards.
//!
//! zarrs could do this for data that can be trusted; its shard reader adds offsets from the file without checking and its codecs allocate
//! what a stream claims (see [`codec`](super::codec)). So metadata, shard index and file access are our own, and zarrs
//! only decompresses. Formats: <https://zarr-specs.readthedocs.io/en/latest/v3/core/index.html>,
//! <https://zarr-specs.readthedocs.io/en/latest/v3/codecs/sharding-indexed/index.html>,
//! <https://zarr-specs.readthedocs.io/en/latest/v2/v2.0.html>.

use std::borrow::Cow;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::Value;

use super::codec::{self, ByteCodec, Named};
use super::folder;
use super::found::{METADATA, METADATA_LIMIT};
use crate::bytes::{ByteSource, Positional, content_id};
use crate::slide::Limits;
use crate::{Error, Result, SampleType};

/// More dimensions than OME-NGFF allows (5) are not worth reading.
const MAX_DIMENSIONS: usize = 8;
/// Shard indexes of more than this many chunks are refused (16 MiB of index).
pub(super) const MAX_CHUNKS_PER_SHARD: u64 = 1 << 20;

/// An array of 8- or 16-bit unsigned integers.
#[derive(Debug)]
pub(super) struct Array {
    /// The folder, with no symbolic link in it.
    folder: PathBuf,
    /// The file in it that describes the array.
    metadata: PathBuf,
    /// The folder of the store: no file outside it is opened.
    root: PathBuf,
    pub(super) shape: Vec<u64>,
    pub(super) sample: SampleType,
    /// The value where nothing is stored.
    pub(super) fill: u16,
    /// The shape of what is decoded at once.
    pub(super) chunk: Vec<u64>,
    big_endian: bool,
    /// The axes of the stored chunk in the order in which they are stored, the slowest first, if not `0, 1, ...`.
    order: Option<Vec<usize>>,
    codecs: Vec<ByteCodec>,
    keys: Keys,
    shards: Option<Shards>,
}

#[derive(Debug)]
struct Keys {
    prefix: &'static str,
    separator: char,
}

/// How chunks share files.
#[derive(Debug)]
struct Shards {
    /// Chunks of one shard along each axis.
    grid: Vec<u64>,
    at_start: bool,
    big_endian: bool,
    codecs: Vec<ByteCodec>,
}

/// A file that holds a chunk, or all the chunks of a shard.
#[derive(Debug)]
pub(super) struct ChunkFile {
    source: Positional,
    /// Offset and length of each chunk, row-major; empty where the file is one chunk.
    index: Vec<(u64, u64)>,
}

impl Array {
    /// Reads the metadata of the array in `folder`, a folder inside `root`; both are canonical paths.
    pub(super) fn open(root: &Path, folder: &Path, limits: &Limits) -> Result<Self> {
        let v3 = folder.join(METADATA);
        let (file, parts) = if v3.is_file() {
            let bytes = folder::read_small(&v3, METADATA_LIMIT)?;
            let parts = serde_json::from_slice::<V3>(&bytes).map_err(|e| e.to_string()).and_then(V3::parts);
            (v3, parts)
        } else {
            let v2 = folder.join(".zarray");
            let bytes = folder::read_small(&v2, METADATA_LIMIT)?;
            let parts = serde_json::from_slice::<V2>(&bytes).map_err(|e| e.to_string()).and_then(V2::parts);
            (v2, parts)
        };
        let parts = parts.map_err(|message| Error::unsupported(&file, message))?;
        let array = Self { folder: folder.into(), metadata: file, root: root.into(), ..parts };
        array.check(&array.metadata, limits)?;
        Ok(array)
    }

    fn check(&self, file: &Path, limits: &Limits) -> Result<()> {
        let n = self.shape.len();
        if n == 0
            || n > MAX_DIMENSIONS
            || self.chunk.len() != n
            || self.shards.as_ref().is_some_and(|s| s.grid.len() != n)
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
        if let Some(shards) = &self.shards
            && product(&shards.grid).is_none_or(|n| n == 0 || n > MAX_CHUNKS_PER_SHARD)
        {
            let grid = &shards.grid;
            return Err(Error::limits(
                file,
                format!("a shard of {grid:?} chunks has more than the {MAX_CHUNKS_PER_SHARD} that are allowed"),
            ));
        }
        Ok(())
    }

    /// Opens a file of chunks, or `None` if it is not stored. Which chunks lie in it, [`file_of`](Self::file_of) says.
    pub(super) fn open_file(&self, file: &[u64]) -> Result<Option<ChunkFile>, String> {
        let Some(source) = self.open_source(file)? else { return Ok(None) };
        let index = match &self.shards {
            None => Vec::new(),
            Some(shards) => shards.read_index(&source)?,
        };
        Ok(Some(ChunkFile { source, index }))
    }

    fn open_source(&self, file: &[u64]) -> Result<Option<Positional>, String> {
        let path = self.path_of(file);
        let io = |e: std::io::Error| format!("{}: {e}", path.display());
        // Asked before opening, which would wait at a named pipe; and a link must not lead out of the store.
        let metadata = match fs::symlink_metadata(&path) {
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
            metadata => metadata.map_err(io)?,
        };
        if !metadata.is_file() || !fs::canonicalize(&path).map_err(io)?.starts_with(&self.root) {
            return Err(format!("{} is no regular file of the store", path.display()));
        }
        Positional::open(&path).map(Some).map_err(|e| e.to_string())
    }

    /// Adds what tells this array from another: the identities of its metadata and of up to 16 files of chunks, spread over it.
    pub(super) fn identify(&self, ids: &mut Vec<String>) -> Result<()> {
        const FILES: u64 = 16;
        ids.push(content_id(&Positional::open(&self.metadata)?)?);
        let last: Vec<u64> = self.shape.iter().zip(&self.chunk).map(|(&n, &side)| (n - 1) / side).collect();
        let files = Grid::new(self.file_of(&last).into_iter().map(|last| (0, last)).collect());
        let count = files.count();
        for n in 0..count.min(FILES) {
            let file = files.get((u128::from(n) * u128::from(count) / u128::from(count.min(FILES))) as u64);
            match self.open_source(&file).map_err(|message| Error::format(&self.metadata, message))? {
                None => ids.push("not stored".into()),
                Some(source) => ids.push(content_id(&source)?),
            }
        }
        Ok(())
    }

    /// The file in which a chunk lies: the shard, or the chunk itself.
    pub(super) fn file_of(&self, chunk: &[u64]) -> Vec<u64> {
        chunk.iter().zip(self.chunks_per_file()).map(|(c, n)| c / n).collect()
    }

    /// How many chunks lie in one file, per axis.
    pub(super) fn chunks_per_file(&self) -> Vec<u64> {
        self.shards.as_ref().map_or_else(|| vec![1; self.shape.len()], |shards| shards.grid.clone())
    }

    fn path_of(&self, file: &[u64]) -> PathBuf {
        let mut key = String::from(self.keys.prefix);
        for index in file {
            if !key.is_empty() {
                key.push(self.keys.separator);
            }
            key += &index.to_string();
        }
        self.folder.join(key)
    }

    /// Decodes a chunk: its bytes and how they are laid out, or `None` if it is not stored and has the fill value.
    pub(super) fn read_chunk(&self, file: &ChunkFile, chunk: &[u64]) -> Result<Option<Chunk>, String> {
        let (offset, length) = match &self.shards {
            None => (0, file.source.len()),
            Some(shards) => {
                let cell = chunk.iter().zip(&shards.grid).fold(0, |at, (c, n)| at * n + c % n);
                file.index[cell as usize]
            }
        };
        if (offset, length) == (u64::MAX, u64::MAX) {
            return Ok(None);
        }
        let size = product(&self.chunk).unwrap_or(u64::MAX).saturating_mul(self.sample.bytes() as u64);
        if length > codec::cap(size) {
            return Err(format!("it takes {length} bytes in the file, for {size} decoded"));
        }
        let encoded = read_at(&file.source, offset, length)?;
        let bytes = codec::decode(&self.codecs, encoded, size)?;
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
        Ok(Some(Chunk { bytes, strides, big_endian: self.big_endian }))
    }
}

/// A decoded chunk.
#[derive(Debug)]
pub(super) struct Chunk {
    bytes: Vec<u8>,
    /// Samples from one index to the next, per axis.
    pub(super) strides: Vec<usize>,
    big_endian: bool,
}

impl Chunk {
    /// The 8-bit samples.
    pub(super) fn into_u8(self) -> Vec<u8> {
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
    fn read_index(&self, source: &Positional) -> Result<Vec<(u64, u64)>, String> {
        let plain = product(&self.grid).unwrap_or(u64::MAX).saturating_mul(16);
        let checksums = self.codecs.iter().filter(|&&c| c == ByteCodec::Crc32c).count() as u64;
        let stored = plain + 4 * checksums;
        let length = source.len();
        let offset = match length.checked_sub(stored) {
            None => return Err(format!("the shard has {length} bytes, less than its index of {stored}")),
            Some(_) if self.at_start => 0,
            Some(offset) => offset,
        };
        let index = codec::decode(&self.codecs, read_at(source, offset, stored)?, plain)?;
        let read = if self.big_endian { u64::from_be_bytes } else { u64::from_le_bytes };
        let (numbers, _) = index.as_chunks::<8>();
        Ok(numbers.chunks_exact(2).map(|pair| (read(pair[0]), read(pair[1]))).collect())
    }
}

/// `length` bytes of a file, from `offset`, if it has them.
fn read_at(source: &Positional, offset: u64, length: u64) -> Result<Vec<u8>, String> {
    let end = offset.checked_add(length).ok_or_else(|| format!("it lies at {offset}, beyond any file"))?;
    source.read_at(offset..end).map(Cow::into_owned).map_err(|e| e.to_string())
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
    fn parts(self) -> Result<Array, String> {
        if self.zarr_format != 3 || self.node_type != "array" {
            return Err(format!("this is a Zarr {} {}, not an array of version 3", self.zarr_format, self.node_type));
        }
        if !self.storage_transformers.is_empty() {
            return Err("storage transformers are not supported".into());
        }
        let sample = match self.data_type.as_str() {
            Some("uint8") => SampleType::U8,
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
        let (chunk, chain, shards) = match self.codecs.as_slice() {
            [only] if only.name == "sharding_indexed" => {
                let sharding = Sharding::deserialize(&only.configuration).map_err(|e| format!("sharding: {e}"))?;
                let (shards, chain) = sharding.parts(&grid_shape)?;
                (sharding.chunk_shape, chain, Some(shards))
            }
            codecs => (grid_shape, Chain::new(codecs)?, None),
        };
        let fill = fill(&self.fill_value, sample)?;
        Ok(Array {
            folder: PathBuf::new(),
            metadata: PathBuf::new(),
            root: PathBuf::new(),
            shape: self.shape,
            sample,
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
    fn parts(&self, shard: &[u64]) -> Result<(Shards, Chain), String> {
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
        let shards = Shards { grid, at_start, big_endian: index.big_endian, codecs: index.codecs };
        Ok((shards, Chain::new(&self.codecs)?))
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
                Some(codec) if codec.name == "transpose" && chain.order.is_none() => {
                    let order = numbers(&codec.configuration["order"])?;
                    chain.order = Some(order.into_iter().map(|axis| axis as usize).collect());
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
            chain.codecs.push(ByteCodec::named(&codec.name)?);
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
    fn parts(self) -> Result<Array, String> {
        if self.zarr_format != 2 {
            return Err(format!("this is an array of Zarr version {}, not 2", self.zarr_format));
        }
        let (sample, big_endian) = match self.dtype.as_str() {
            Some("|u1" | "<u1" | ">u1") => (SampleType::U8, false),
            Some("<u2") => (SampleType::U16, false),
            Some(">u2") => (SampleType::U16, true),
            _ => return Err(unsupported_type(&self.dtype)),
        };
        if self.filters.is_some_and(|filters| !filters.is_empty()) {
            return Err("filters are not supported".into());
        }
        let codecs = match &self.compressor {
            None => Vec::new(),
            Some(compressor) => vec![ByteCodec::named(compressor["id"].as_str().unwrap_or("nameless"))?],
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
        Ok(Array {
            folder: PathBuf::new(),
            metadata: PathBuf::new(),
            root: PathBuf::new(),
            shape: self.shape,
            sample,
            fill: if self.fill_value.is_null() { 0 } else { fill(&self.fill_value, sample)? },
            chunk: self.chunks,
            big_endian,
            order,
            codecs,
            keys: Keys { prefix: "", separator },
            shards: None,
        })
    }
}

fn unsupported_type(data_type: &Value) -> String {
    format!("the samples are of type {data_type}, of which unsigned integers of 8 and 16 bits are supported")
}

fn fill(value: &Value, sample: SampleType) -> Result<u16, String> {
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
