//! Pixels as the bytes of a shard, or of the chunks that it is made of.
//!
//! The codec of a shard is Zarr's `sharding_indexed`: chunks one after the other, each compressed by itself, then where each one lies, then a checksum of
//! that (<https://zarr-specs.readthedocs.io/en/latest/v3/codecs/sharding-indexed/index.html>). It is written out here and not left to
//! zarrs, so that pixels go from where they lie straight into the chunk that is compressed: no shard is padded, no picture
//! is taken apart into planes as a whole, and of a chunk of background nothing but its pixels is ever touched.
//! Version 0.4 knows no shards: there each chunk is a file (<https://zarr-specs.readthedocs.io/en/latest/v2/v2.0.html>).

use std::borrow::Cow;
use std::io;

use serde_json::{Value, json};
use zarrs::array::codec::Crc32cCodec;
use zarrs::array::codec::api::{BytesToBytesCodecTraits, CodecOptions};

use super::compressor::{self, Compressor};
use super::{Encoding, Format, StoredImage};
use crate::{Pixels, Rect, SampleType, Samples, Size, TileCoord};

/// Offset and length of a chunk of nothing but background.
const ABSENT: [u8; 16] = [0xFF; 16];

/// Turns pixels into the bytes of a shard. All channels of a cell lie in its one file, each chunk holds one channel.
#[derive(Debug)]
pub(super) struct ShardEncoder {
    chunk: Size,
    shard: Size,
    channels: usize,
    sample: SampleType,
    axes: &'static [&'static str],
    encoding: Encoding,
    checksum: Crc32cCodec,
}

/// Which chunk of a shard.
#[derive(Debug, Clone, Copy)]
pub(super) struct ChunkOfShard {
    pub(super) channel: usize,
    /// Column and row within the shard.
    pub(super) at: TileCoord,
}

impl ShardEncoder {
    /// For a description that has been [validated](StoredImage::validate).
    pub(super) fn new(image: &StoredImage) -> Self {
        Self {
            chunk: image.chunk,
            shard: image.shard,
            channels: image.content.samples_per_pixel(),
            sample: image.sample,
            axes: image.content.axes(),
            encoding: image.encoding,
            checksum: Crc32cCodec::new(),
        }
    }

    /// The documents that describe a level of this size, by name.
    pub(super) fn array_metadata(&self, size: Size) -> Vec<(&'static str, Value)> {
        match self.encoding.format {
            Format::V0_5 => vec![(super::found::METADATA, self.array_v3(size))],
            Format::V0_4 => {
                // The first is xarray's custom. The second says which chunks were written as one: whoever compares what is stored with what
                // was written must know.
                let attributes = json!({
                    "_ARRAY_DIMENSIONS": self.axes,
                    super::ngff::OURS: { "shard": [self.shard.height, self.shard.width] },
                });
                vec![(".zarray", self.array_v2(size)), (".zattrs", attributes)]
            }
        }
    }

    /// Channels come first and are never cut: all in a shard, one in a chunk.
    fn shape(&self, channels: usize, size: Size) -> Value {
        match self.axes.len() {
            2 => json!([size.height, size.width]),
            _ => json!([channels, size.height, size.width]),
        }
    }

    fn array_v2(&self, size: Size) -> Value {
        json!({
            "zarr_format": 2,
            "shape": self.shape(self.channels, size),
            "chunks": self.shape(1, self.chunk),
            "dtype": match self.sample { SampleType::U8 => "|u1", SampleType::U16 => "<u2" },
            "compressor": compressor::named(self.encoding.compression, self.sample, Format::V0_4),
            "fill_value": 0,
            "order": "C",
            "filters": null,
            "dimension_separator": "/",
        })
    }

    fn array_v3(&self, size: Size) -> Value {
        let bytes = match self.sample {
            SampleType::U8 => json!({ "name": "bytes" }),
            SampleType::U16 => little_endian(),
        };
        let codecs: Vec<Value> = [Some(bytes), compressor::named(self.encoding.compression, self.sample, Format::V0_5)]
            .into_iter()
            .flatten()
            .collect();
        json!({
            "zarr_format": 3,
            "node_type": "array",
            "shape": self.shape(self.channels, size),
            "data_type": match self.sample { SampleType::U8 => "uint8", SampleType::U16 => "uint16" },
            "chunk_grid": { "name": "regular", "configuration": { "chunk_shape": self.shape(self.channels, self.shard) } },
            "chunk_key_encoding": { "name": "default", "configuration": { "separator": "/" } },
            "fill_value": 0,
            "codecs": [{
                "name": "sharding_indexed",
                "configuration": {
                    "chunk_shape": self.shape(1, self.chunk),
                    "codecs": codecs,
                    "index_codecs": [little_endian(), { "name": "crc32c" }],
                    "index_location": "end",
                },
            }],
            "dimension_names": self.axes,
        })
    }

    /// Compresses the chunks of the shard that `pixels`, clipped to their level, are the top left part of, and gives each to `take`: channel by
    /// channel, row by row, whatever the number of threads, so that the same pixels give the same bytes; `None` for those of background.
    /// What is outside of the level is background. Memory: one chunk, and its encoded form.
    ///
    /// # Errors
    /// Those of `take`, and what `fault` makes of the compressor's.
    pub(super) fn each_chunk<E>(
        &self,
        pixels: &Pixels,
        fault: impl Fn(io::Error) -> E,
        mut take: impl FnMut(ChunkOfShard, Option<&[u8]>) -> Result<(), E>,
    ) -> Result<(), E> {
        let grid = self.shard.cells(self.chunk);
        let mut compressor = Compressor::new(self.encoding.compression, self.sample).map_err(&fault)?;
        let mut chunk = vec![0; self.chunk.area() as usize * self.sample.bytes()];
        let mut encoded = Vec::new();
        for channel in 0..self.channels {
            for n in 0..grid.area() {
                let at = TileCoord { row: n / grid.width, column: n % grid.width };
                let place = ChunkOfShard { channel, at };
                if gather(pixels, channel, at.rect(self.chunk), &mut chunk) == Gathered::Background {
                    take(place, None)?;
                } else {
                    compressor.encode(&chunk, &mut encoded).map_err(&fault)?;
                    take(place, Some(&encoded))?;
                }
            }
        }
        Ok(())
    }

    /// The shard that `pixels`, clipped to their level, are the top left part of; `None` if they are all background.
    /// Memory: one chunk, its encoded form, and the encoded shard.
    pub(super) fn encode(&self, pixels: &Pixels) -> io::Result<Option<Vec<u8>>> {
        let other = |e: zarrs::array::codec::api::CodecError| io::Error::other(e.to_string());
        let options = CodecOptions::default().with_concurrent_target(1);
        let chunks = self.shard.cells(self.chunk).area() as usize * self.channels;
        let mut file = Vec::new();
        let mut index = Vec::with_capacity(chunks * ABSENT.len());
        self.each_chunk(
            pixels,
            |e| e,
            |_, encoded| {
                match encoded {
                    None => index.extend(ABSENT),
                    Some(encoded) => {
                        index.extend((file.len() as u64).to_le_bytes());
                        index.extend((encoded.len() as u64).to_le_bytes());
                        file.extend_from_slice(encoded);
                    }
                }
                Ok(())
            },
        )?;
        if file.is_empty() {
            return Ok(None);
        }
        file.extend_from_slice(&self.checksum.encode(Cow::Owned(index), &options).map_err(other)?);
        Ok(Some(file))
    }
}

fn little_endian() -> Value {
    json!({ "name": "bytes", "configuration": { "endian": "little" } })
}

/// What became of the pixels of a chunk.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Gathered {
    /// All are 0, and nothing was copied.
    Background,
    /// They were copied.
    Copied,
}

/// Copies one channel of the pixels that lie in `cell` to the top left corner of a chunk, whose rest becomes 0.
pub(super) fn gather(pixels: &Pixels, channel: usize, cell: Rect, chunk: &mut [u8]) -> Gathered {
    match pixels.samples() {
        Samples::U8(samples) => Plane { samples, pixels, channel }.gather(cell, chunk, |v| [v]),
        Samples::U16(samples) => Plane { samples, pixels, channel }.gather(cell, chunk, u16::to_le_bytes),
    }
}

/// One channel of a picture.
struct Plane<'a, T> {
    samples: &'a [T],
    pixels: &'a Pixels,
    channel: usize,
}

impl<T: Copy + Default + PartialEq + std::ops::BitOr<Output = T>> Plane<'_, T> {
    fn gather<const N: usize>(&self, cell: Rect, chunk: &mut [u8], bytes: impl Fn(T) -> [u8; N]) -> Gathered {
        // Where the number of channels is known beforehand, the compiler copies many samples at once.
        match self.pixels.channels() {
            1 => self.gather_of::<N, 1>(cell, chunk, bytes),
            2 => self.gather_of::<N, 2>(cell, chunk, bytes),
            3 => self.gather_of::<N, 3>(cell, chunk, bytes),
            _ => self.gather_of::<N, 0>(cell, chunk, bytes),
        }
    }

    /// Of a picture of so many channels, 0 for any number.
    fn gather_of<const N: usize, const CHANNELS: usize>(
        &self,
        cell: Rect,
        chunk: &mut [u8],
        bytes: impl Fn(T) -> [u8; N],
    ) -> Gathered {
        let (step, channel) = (if CHANNELS == 0 { self.pixels.channels() } else { CHANNELS }, self.channel);
        // Said once, so that it is not asked for every sample.
        assert!(channel < step, "there is no channel {channel}");
        let size = self.pixels.size();
        let Some(inside) = cell.intersect(size.rect()) else { return Gathered::Background };
        let rows = (inside.y..inside.bottom()).map(|y| {
            let start = (y as usize * size.width as usize + inside.x as usize) * step;
            &self.samples[start..start + inside.width as usize * step]
        });
        let zero = T::default();
        // Without leaving a row early: that is what lets the compiler look at many samples at once.
        let blank = move |row: &[T]| {
            let any = match step {
                1 => row.iter().fold(zero, |any, &sample| any | sample),
                _ => row.chunks_exact(step).fold(zero, |any, pixel| any | pixel[channel]),
            };
            any == zero
        };
        if rows.clone().all(blank) {
            return Gathered::Background;
        }
        if inside.size() != cell.size() {
            chunk.fill(0);
        }
        let stride = cell.width as usize * N;
        for (to, from) in chunk.chunks_exact_mut(stride).zip(rows) {
            for (to, pixel) in to.chunks_exact_mut(N).zip(from.chunks_exact(step)) {
                to.copy_from_slice(&bytes(pixel[channel]));
            }
        }
        Gathered::Copied
    }
}
