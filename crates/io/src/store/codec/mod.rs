//! Decoding what a stranger compressed, in bounded memory.
//!
//! zarrs decodes into whatever size a stream claims, which is right for one's own data and wrong for a stranger's: twenty bytes of
//! zstd can claim an exabyte. Here each stage has a cap, checked before zarrs is asked or while the stream is read. Blosc is
//! [decoded here](blosc), and so are LZ4 and the checksums that numcodecs knows.

pub(super) mod blosc;
mod lz;

use std::borrow::Cow;
use std::io::Read;

use serde::Deserialize;
use serde_json::Value;
use zarrs::array::BytesRepresentation;
use zarrs::array::codec::api::{BytesToBytesCodecTraits, CodecOptions};
use zarrs::array::codec::{Crc32cCodec, ZstdCodec};

/// One stage between the bytes of a file and those of a chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ByteCodec {
    Zstd,
    Gzip,
    Zlib,
    Blosc,
    /// LZ4 as numcodecs writes it: four bytes of size, then one block.
    Lz4,
    Crc32c,
    /// A checksum of four bytes, before or after.
    Adler32(Side),
    Crc32(Side),
    Fletcher32,
}

/// Where a checksum stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    Before,
    After,
}

/// A codec as metadata names it: Zarr v3 `{name, configuration}`, or the name alone.
#[derive(Debug, Clone, Deserialize)]
#[serde(from = "Spelling")]
pub(super) struct Named {
    pub(super) name: String,
    pub(super) configuration: Value,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Spelling {
    Name(String),
    Full {
        name: String,
        #[serde(default)]
        configuration: Value,
    },
}

impl From<Spelling> for Named {
    fn from(spelling: Spelling) -> Self {
        match spelling {
            Spelling::Name(name) => Self { name, configuration: Value::Null },
            Spelling::Full { name, configuration } => Self { name, configuration },
        }
    }
}

impl ByteCodec {
    /// By its name in Zarr v3 (`name`) or v2 (`id`), and what else is said of it.
    pub(super) fn named(name: &str, configuration: &Value) -> Result<Self, String> {
        let side = |default| match configuration["location"].as_str() {
            None => Ok(default),
            Some("start") => Ok(Side::Before),
            Some("end") => Ok(Side::After),
            Some(other) => Err(format!("the checksum lies at {other:?}, neither \"start\" nor \"end\"")),
        };
        match name.strip_prefix("numcodecs.").unwrap_or(name) {
            "zstd" => Ok(Self::Zstd),
            "gzip" => Ok(Self::Gzip),
            "zlib" => Ok(Self::Zlib),
            "blosc" => Ok(Self::Blosc),
            "lz4" => Ok(Self::Lz4),
            "crc32c" if name == "crc32c" => Ok(Self::Crc32c),
            "adler32" => Ok(Self::Adler32(side(Side::Before)?)),
            "crc32" => Ok(Self::Crc32(side(Side::Before)?)),
            "fletcher32" => Ok(Self::Fletcher32),
            _ => Err(format!(
                "the chunks are compressed with {name:?}, of which Blosc, zstd, gzip, zlib, LZ4 and none are supported"
            )),
        }
    }

    /// Undoes this stage; the result has at most `cap` bytes.
    fn decode(self, encoded: &[u8], cap: u64) -> Result<Vec<u8>, String> {
        let mut decoded = Vec::new();
        match self {
            Self::Zstd => {
                let size = zstd_bound(encoded).ok_or("the zstd stream is damaged")?;
                if size > cap {
                    return Err(format!("the zstd stream claims {size} bytes, of which {cap} are allowed"));
                }
                return undo(&ZstdCodec::new(0, false), encoded);
            }
            Self::Blosc => return blosc::decode(encoded, cap),
            Self::Lz4 => {
                let (size, block) = encoded.split_first_chunk::<4>().ok_or("the LZ4 stream has no size")?;
                let size = u32::from_le_bytes(*size);
                if u64::from(size) > cap {
                    return Err(format!("the LZ4 stream claims {size} bytes, of which {cap} are allowed"));
                }
                decoded.resize(size as usize, 0);
                return lz::lz4(block, &mut decoded).map(|()| decoded);
            }
            Self::Crc32c => return undo(&Crc32cCodec::new(), encoded),
            Self::Adler32(side) => return checked(encoded, side, adler32),
            Self::Crc32(side) => {
                return checked(encoded, side, |bytes| {
                    let mut crc = flate2::Crc::new();
                    crc.update(bytes);
                    crc.sum()
                });
            }
            Self::Fletcher32 => return checked(encoded, Side::After, fletcher32),
            Self::Gzip => flate2::read::MultiGzDecoder::new(encoded).take(cap + 1).read_to_end(&mut decoded),
            Self::Zlib => flate2::read::ZlibDecoder::new(encoded).take(cap + 1).read_to_end(&mut decoded),
        }
        .map_err(|e| e.to_string())?;
        if decoded.len() as u64 > cap {
            return Err(format!("the stream holds more than the {cap} bytes that are allowed"));
        }
        Ok(decoded)
    }
}

/// What is beside a checksum of four bytes in little endian, if it is right.
fn checked(encoded: &[u8], side: Side, sum: fn(&[u8]) -> u32) -> Result<Vec<u8>, String> {
    let split = match side {
        Side::Before => encoded.split_first_chunk::<4>(),
        Side::After => encoded.split_last_chunk::<4>().map(|(bytes, stated)| (stated, bytes)),
    };
    match split {
        Some((stated, bytes)) if u32::from_le_bytes(*stated) == sum(bytes) => Ok(bytes.to_vec()),
        Some(_) => Err("the checksum is wrong".into()),
        None => Err("there is no checksum".into()),
    }
}

/// RFC 1950, section 8.2.
fn adler32(bytes: &[u8]) -> u32 {
    let (mut a, mut b) = (1u32, 0u32);
    // After so many bytes neither sum has overflowed.
    for piece in bytes.chunks(5552) {
        for &byte in piece {
            a += u32::from(byte);
            b += a;
        }
        a %= 65521;
        b %= 65521;
    }
    b << 16 | a
}

/// As HDF5 has it: pairs of bytes in big endian, sums modulo 65535 whose zero may be 65535.
fn fletcher32(bytes: &[u8]) -> u32 {
    let (pairs, odd) = bytes.as_chunks::<2>();
    let (mut a, mut b) = (0u32, 0u32);
    let fold = |sum: u32| (sum & 0xFFFF) + (sum >> 16);
    for piece in pairs.chunks(360) {
        for &pair in piece {
            a += u32::from(u16::from_be_bytes(pair));
            b += a;
        }
        (a, b) = (fold(a), fold(b));
    }
    if let [last] = odd {
        a += u32::from(*last) << 8;
        b += a;
        (a, b) = (fold(a), fold(b));
    }
    fold(b) << 16 | fold(a)
}

fn undo(codec: &dyn BytesToBytesCodecTraits, encoded: &[u8]) -> Result<Vec<u8>, String> {
    let options = CodecOptions::default().with_concurrent_target(1).with_validate_checksums(true);
    codec
        .decode(Cow::Borrowed(encoded), &BytesRepresentation::UnboundedSize, &options)
        .map(Cow::into_owned)
        .map_err(|e| e.to_string())
}

/// The largest size that the encoded form of `decoded` bytes, or anything between the two, may have.
///
/// Compressors may make bytes a little longer, checksums add four, and a zstd stream without a size is bounded by whole blocks.
pub(super) const fn cap(decoded: u64) -> u64 {
    decoded.saturating_mul(2).saturating_add(1 << 20)
}

/// Undoes all stages, the last one first. The result has exactly `size` bytes.
pub(super) fn decode(codecs: &[ByteCodec], encoded: Vec<u8>, size: u64) -> Result<Vec<u8>, String> {
    let bytes = codecs.iter().rev().try_fold(encoded, |bytes, codec| codec.decode(&bytes, cap(size)))?;
    if bytes.len() as u64 == size {
        Ok(bytes)
    } else {
        Err(format!("it holds {} bytes instead of {size}", bytes.len()))
    }
}

/// An upper bound of what a zstd stream decodes to: the sum over its frames of the size that the frame states, or else of its blocks at
/// their largest. `None` if it is damaged. (RFC 8878, section 3.1; the same bound as libzstd's `ZSTD_decompressBound`, which zarrs allocates.)
fn zstd_bound(mut stream: &[u8]) -> Option<u64> {
    const BLOCK: u64 = 128 << 10;
    let mut bound = 0u64;
    while !stream.is_empty() {
        let magic = u32::from_le_bytes(*take(&mut stream)?);
        if magic & 0xFFFF_FFF0 == 0x184D_2A50 {
            let length = u32::from_le_bytes(*take(&mut stream)?);
            stream = stream.get(length as usize..)?;
            continue;
        }
        if magic != 0xFD2F_B528 {
            return None;
        }
        let [descriptor] = *take(&mut stream)?;
        let single_segment = descriptor & 0x20 != 0;
        let has_checksum = descriptor & 0x04 != 0;
        if !single_segment {
            take::<1>(&mut stream)?;
        }
        stream = stream.get([0, 1, 2, 4][usize::from(descriptor & 3)]..)?;
        let stated = match (descriptor >> 6, single_segment) {
            (0, false) => None,
            (0, true) => Some(u64::from(take::<1>(&mut stream)?[0])),
            (1, _) => Some(u64::from(u16::from_le_bytes(*take(&mut stream)?)) + 256),
            (2, _) => Some(u64::from(u32::from_le_bytes(*take(&mut stream)?))),
            _ => Some(u64::from_le_bytes(*take(&mut stream)?)),
        };
        let mut blocks = 0u64;
        loop {
            let [a, b, c] = *take(&mut stream)?;
            let header = u32::from_le_bytes([a, b, c, 0]);
            let length = match (header >> 1) & 3 {
                1 => 1, // one byte, repeated
                3 => return None,
                _ => header >> 3,
            };
            stream = stream.get(length as usize..)?;
            blocks += 1;
            if header & 1 != 0 {
                break;
            }
        }
        if has_checksum {
            take::<4>(&mut stream)?;
        }
        bound = bound.saturating_add(stated.unwrap_or(blocks.saturating_mul(BLOCK)));
    }
    Some(bound)
}

fn take<'a, const N: usize>(stream: &mut &'a [u8]) -> Option<&'a [u8; N]> {
    let (head, tail) = stream.split_first_chunk()?;
    *stream = tail;
    Some(head)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn zstd(bytes: &[u8]) -> Vec<u8> {
        let encoded = ZstdCodec::new(3, true).encode(Cow::Borrowed(bytes), &CodecOptions::default());
        encoded.unwrap().into_owned()
    }

    #[test]
    fn the_bound_of_a_stream_is_what_it_states() {
        for n in [0usize, 1, 255, 256, 70_000, 1 << 20] {
            let bytes: Vec<u8> = (0..n).map(|i| (i * i >> 5) as u8).collect();
            assert_eq!(zstd_bound(&zstd(&bytes)), Some(n as u64));
            assert_eq!(decode(&[ByteCodec::Zstd], zstd(&bytes), n as u64).unwrap(), bytes);
        }
        let twice = [zstd(&[1; 10]), zstd(&[2; 20])].concat();
        assert_eq!(zstd_bound(&twice), Some(30));
    }

    #[test]
    fn a_claim_is_refused_before_it_is_believed() {
        // A frame header that states 2^60 bytes, then one empty last block.
        let mut bomb = vec![0x28, 0xB5, 0x2F, 0xFD, 0xE0];
        bomb.extend((1u64 << 60).to_le_bytes());
        bomb.extend([1, 0, 0]);
        assert_eq!(zstd_bound(&bomb), Some(1 << 60));
        assert!(decode(&[ByteCodec::Zstd], bomb, 100).unwrap_err().contains("claims"));
        // 64 MiB of zeros behind a megabyte's cap.
        let mut zeros = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        std::io::copy(&mut std::io::repeat(0).take(64 << 20), &mut zeros).unwrap();
        assert!(decode(&[ByteCodec::Gzip], zeros.finish().unwrap(), 100).unwrap_err().contains("more than"));
    }

    #[test]
    fn damaged_streams_are_errors() {
        let whole = zstd(&(0..5000u32).flat_map(u32::to_le_bytes).collect::<Vec<_>>());
        for n in 1..whole.len() {
            assert!(decode(&[ByteCodec::Zstd], whole[..n].to_vec(), 20_000).is_err(), "cut at {n}");
        }
        let sums =
            [ByteCodec::Crc32c, ByteCodec::Adler32(Side::Before), ByteCodec::Crc32(Side::After), ByteCodec::Fletcher32];
        for codec in [ByteCodec::Gzip, ByteCodec::Zlib, ByteCodec::Zstd, ByteCodec::Blosc, ByteCodec::Lz4]
            .into_iter()
            .chain(sums)
        {
            assert!(decode(&[codec], vec![7; 3], 1).is_err());
            assert!(decode(&[codec], Vec::new(), 1).is_err());
        }
    }
}
