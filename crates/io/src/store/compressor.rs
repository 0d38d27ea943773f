//! Compressing chunks, and what metadata say of how that was done.

use std::io::{self, Write};

use serde_json::{Value, json};
use zstd::zstd_safe;

use super::codec::blosc;
use super::{Compression, Format};
use crate::SampleType;

/// Compresses one chunk after the other, on one thread.
pub(super) enum Compressor {
    None,
    Gzip { level: u32 },
    Zstd(zstd::bulk::Compressor<'static>),
    Blosc(blosc::Encoder),
}

impl Compressor {
    /// For chunks of such samples.
    pub(super) fn new(compression: Compression, sample: SampleType) -> io::Result<Self> {
        Ok(match compression {
            Compression::None => Self::None,
            Compression::Gzip { level } => Self::Gzip { level },
            Compression::Zstd { level } => Self::Zstd(zstd::bulk::Compressor::new(level)?),
            Compression::Blosc { level } => Self::Blosc(blosc::Encoder::new(zstd_level(level), sample.bytes())?),
        })
    }

    /// Puts the compressed form of a chunk in the place of what `to` holds. The same chunk gives the same bytes, whatever came before it.
    pub(super) fn encode(&mut self, chunk: &[u8], to: &mut Vec<u8>) -> io::Result<()> {
        to.clear();
        match self {
            Self::None => to.extend_from_slice(chunk),
            Self::Gzip { level } => {
                // The header that flate2 writes has neither a time nor a name.
                let mut encoder = flate2::write::GzEncoder::new(std::mem::take(to), flate2::Compression::new(*level));
                encoder.write_all(chunk)?;
                *to = encoder.finish()?;
            }
            Self::Zstd(compressor) => {
                to.reserve(zstd_safe::compress_bound(chunk.len()));
                compressor.compress_to_buffer(chunk, to)?;
            }
            Self::Blosc(encoder) => encoder.encode(chunk, to)?,
        }
        Ok(())
    }
}

/// What Blosc's library takes for its own level.
fn zstd_level(level: u32) -> i32 {
    if level < 9 { (level * 2).saturating_sub(1) as i32 } else { 22 }
}

/// How metadata name the compression, if there is one: a codec of Zarr 3, or the compressor of Zarr 2.
pub(super) fn named(compression: Compression, sample: SampleType, format: Format) -> Option<Value> {
    // There is nothing to shuffle in single bytes.
    let wide = sample.bytes() > 1;
    let configuration = match (compression, format) {
        (Compression::None, _) => return None,
        (Compression::Gzip { level }, _) => json!({ "level": level }),
        (Compression::Zstd { level }, Format::V0_5) => json!({ "level": level, "checksum": false }),
        (Compression::Zstd { level }, Format::V0_4) => json!({ "level": level }),
        (Compression::Blosc { level }, Format::V0_5) => json!({
            "cname": "zstd",
            "clevel": level,
            "shuffle": if wide { "shuffle" } else { "noshuffle" },
            "typesize": sample.bytes(),
            "blocksize": 0,
        }),
        (Compression::Blosc { level }, Format::V0_4) => {
            json!({ "cname": "zstd", "clevel": level, "shuffle": u8::from(wide), "blocksize": 0 })
        }
    };
    let name = match compression {
        Compression::None => return None,
        Compression::Gzip { .. } => "gzip",
        Compression::Zstd { .. } => "zstd",
        Compression::Blosc { .. } => "blosc",
    };
    Some(match (format, configuration) {
        (Format::V0_5, configuration) => json!({ "name": name, "configuration": configuration }),
        (Format::V0_4, Value::Object(settings)) => {
            let mut compressor = serde_json::Map::from_iter([("id".to_owned(), name.into())]);
            compressor.extend(settings);
            Value::Object(compressor)
        }
        (Format::V0_4, other) => other,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::codec::{self, ByteCodec};

    /// Chunks of every kind: nothing to win, much to win, a run, and less than a block of anything.
    fn chunks() -> Vec<Vec<u8>> {
        let noise = |n: usize| {
            let mut state = n as u64 | 1;
            // xorshift64, Marsaglia 2003.
            let next = move |_| {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                (state >> 32) as u8
            };
            (0..n).map(next).collect::<Vec<u8>>()
        };
        let ramp = |n: usize| (0..n / 2).flat_map(|i| ((i / 3) as u16).to_le_bytes()).collect::<Vec<u8>>();
        vec![
            noise(2),
            noise(300),
            noise(1 << 20),
            ramp(2),
            ramp(1000),
            ramp((3 << 18) + 10),
            vec![7; 1 << 19],
            vec![0; 16],
        ]
    }

    #[test]
    fn what_is_compressed_is_read_back_by_our_own_reader() {
        let compressions = ["none", "gzip:0", "gzip:6", "zstd:1", "zstd:19", "blosc:1", "blosc:5", "blosc:9"];
        for (text, sample) in compressions.iter().flat_map(|c| [SampleType::U8, SampleType::U16].map(|s| (c, s))) {
            let compression: Compression = text.parse().unwrap();
            let codecs: Vec<ByteCodec> = match named(compression, sample, Format::V0_4) {
                None => Vec::new(),
                Some(named) => vec![ByteCodec::named(named["id"].as_str().unwrap(), &named).unwrap()],
            };
            let mut compressor = Compressor::new(compression, sample).unwrap();
            let mut encoded = Vec::new();
            for chunk in chunks() {
                compressor.encode(&chunk, &mut encoded).unwrap();
                let decoded = codec::decode(&codecs, encoded.clone(), chunk.len() as u64);
                assert!(decoded.unwrap() == chunk, "{text}, {} bytes", chunk.len());
                // Neither what came before nor what the buffer held matters.
                let mut again = vec![1; 5];
                Compressor::new(compression, sample).unwrap().encode(&chunk, &mut again).unwrap();
                assert!(again == encoded, "{text}, {} bytes", chunk.len());
            }
        }
    }

    #[test]
    fn blosc_says_what_it_is() {
        let mut compressor = Compressor::new(Compression::Blosc { level: 1 }, SampleType::U16).unwrap();
        let (mut noise, mut ramp) = (Vec::new(), Vec::new());
        compressor.encode(&chunks()[1], &mut noise).unwrap();
        compressor.encode(&chunks()[4], &mut ramp).unwrap();
        // Version 2, format 1 of Zstandard, elements of two bytes; as it is, or shuffled, not split, compressed by number 4.
        assert_eq!((&noise[..2], noise[2] & 2, noise[3], noise.len()), (&[2, 1][..], 2, 2, 316));
        assert_eq!((&ramp[..2], ramp[2], ramp[3]), (&[2, 1][..], 4 << 5 | 16 | 1, 2));
        assert!(ramp.len() < 1000, "{}", ramp.len());
    }

    #[test]
    fn levels_of_blosc_are_those_of_its_library() {
        assert_eq!([1, 2, 5, 8, 9].map(zstd_level), [1, 3, 9, 15, 22]);
    }
}
