//! Pixels as the bytes of a shard.
//!
//! The codec is Zarr's `sharding_indexed`: chunks one after the other, each compressed by itself, then where each one lies, then a checksum of
//! that (<https://zarr-specs.readthedocs.io/en/latest/v3/codecs/sharding-indexed/index.html>). It is written out here and not left to
//! zarrs, so that pixels go from where they lie straight into the chunk that is compressed: no shard is padded, no picture
//! is taken apart into planes as a whole, and of a chunk of background nothing but its pixels is ever touched.

use std::borrow::Cow;
use std::io;

use serde_json::{Value, json};
use zarrs::array::codec::api::{BytesToBytesCodecTraits, CodecOptions};
use zarrs::array::codec::{Crc32cCodec, ZstdCodec};

use super::StoredImage;
use crate::{Pixels, Rect, SampleType, Samples, Size, TileCoord};

/// Compression level of the chunks. Measured on shards of 2048 x 2048 (`store::measurements`): of masks level 3 makes
/// larger files (181 against 165 kB) in slightly more time, of probabilities and confidences files that are 2 to 3 % smaller in 1.6 to 2 times the time.
const ZSTD_LEVEL: i32 = 1;
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
    compressor: ZstdCodec,
    checksum: Crc32cCodec,
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
            compressor: ZstdCodec::new(ZSTD_LEVEL, false),
            checksum: Crc32cCodec::new(),
        }
    }

    /// The `zarr.json` of a level of this size.
    pub(super) fn array_metadata(&self, size: Size) -> Value {
        // Channels come first and are never cut: all in a shard, one in a chunk.
        let shape = |channels: usize, size: Size| match self.axes.len() {
            2 => json!([size.height, size.width]),
            _ => json!([channels, size.height, size.width]),
        };
        let bytes = match self.sample {
            SampleType::U8 => json!({ "name": "bytes" }),
            SampleType::U16 => little_endian(),
        };
        json!({
            "zarr_format": 3,
            "node_type": "array",
            "shape": shape(self.channels, size),
            "data_type": match self.sample { SampleType::U8 => "uint8", SampleType::U16 => "uint16" },
            "chunk_grid": { "name": "regular", "configuration": { "chunk_shape": shape(self.channels, self.shard) } },
            "chunk_key_encoding": { "name": "default", "configuration": { "separator": "/" } },
            "fill_value": 0,
            "codecs": [{
                "name": "sharding_indexed",
                "configuration": {
                    "chunk_shape": shape(1, self.chunk),
                    "codecs": [bytes, { "name": "zstd", "configuration": { "level": ZSTD_LEVEL, "checksum": false } }],
                    "index_codecs": [little_endian(), { "name": "crc32c" }],
                    "index_location": "end",
                },
            }],
            "dimension_names": self.axes,
        })
    }

    /// The shard that `pixels`, clipped to their level, are the top left part of; `None` if they are all background.
    /// Memory: one chunk, its encoded form, and the encoded shard.
    pub(super) fn encode(&self, pixels: &Pixels) -> io::Result<Option<Vec<u8>>> {
        let other = |e: zarrs::array::codec::api::CodecError| io::Error::other(e.to_string());
        let options = CodecOptions::default().with_concurrent_target(1);
        let grid = self.shard.cells(self.chunk);
        let mut chunk = vec![0; self.chunk.area() as usize * self.sample.bytes()];
        let mut file = Vec::new();
        let mut index = Vec::with_capacity(grid.area() as usize * self.channels * ABSENT.len());
        // In the order of the array, whatever the number of threads: same pixels, same bytes.
        for channel in 0..self.channels {
            for n in 0..grid.area() {
                let cell = TileCoord { row: n / grid.width, column: n % grid.width }.rect(self.chunk);
                if gather(pixels, channel, cell, &mut chunk) == Gathered::Background {
                    index.extend(ABSENT);
                    continue;
                }
                let encoded = self.compressor.encode(Cow::Borrowed(&chunk), &options).map_err(other)?;
                index.extend((file.len() as u64).to_le_bytes());
                index.extend((encoded.len() as u64).to_le_bytes());
                file.extend_from_slice(&encoded);
            }
        }
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
