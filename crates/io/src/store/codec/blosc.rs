//! Blosc 1: blocks of a chunk, each shuffled and compressed by itself.
//!
//! zarrs decodes this with the C library and a C++ one inside it (Snappy), which would bring the C++ runtime into every
//! binary; and what it is asked to decode comes from strangers. This decoder has no `unsafe`, and allocates the chunk once,
//! after its stated size was compared with what the caller allows.
//! The encoder is as small: it writes blocks of one stream, compressed with Zstandard, or the chunk as it is where that does not make it smaller.
//! Format: <https://github.com/Blosc/c-blosc/blob/main/README_CHUNK_FORMAT.rst>. Blosc 2 chunks are another format, which Zarr does not use.

use std::io::{self, Read};

use zstd::zstd_safe;

use super::lz;

const HEADER: usize = 16;
const BYTE_SHUFFLE: u8 = 1;
const STORED: u8 = 2;
const BIT_SHUFFLE: u8 = 4;
const NOT_SPLIT: u8 = 16;
/// A block of elements of at most so many bytes is compressed in as many streams, if each has at least so many bytes.
const MOST_STREAMS: usize = 16;
const LEAST_STREAM: usize = 128;

/// Decodes a chunk of at most `cap` bytes.
pub(super) fn decode(chunk: &[u8], cap: u64) -> Result<Vec<u8>, String> {
    let header = chunk.get(..HEADER).ok_or("the Blosc chunk has no header")?;
    let (version, flags, element) = (header[0], header[2], usize::from(header[3]).max(1));
    let number = |at: usize| u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
    let (size, block, stored) = (number(4) as usize, number(8) as usize, number(12) as usize);
    if !(1..=2).contains(&version) {
        return Err(format!("the Blosc chunk is of version {version}, of which 1 and 2 are supported"));
    }
    if stored != chunk.len() {
        return Err(format!("the Blosc chunk claims {stored} bytes and has {}", chunk.len()));
    }
    if size as u64 > cap {
        return Err(format!("the Blosc chunk claims {size} bytes, of which {cap} are allowed"));
    }
    if flags & STORED != 0 {
        return match &chunk[HEADER..] {
            rest if rest.len() == size => Ok(rest.to_vec()),
            rest => Err(format!("the Blosc chunk holds {} bytes instead of {size}", rest.len())),
        };
    }
    if size == 0 {
        return Ok(Vec::new());
    }
    if block == 0 {
        return Err("the blocks of the Blosc chunk are empty".into());
    }
    let count = size.div_ceil(block);
    let starts =
        chunk[HEADER..].get(..count.saturating_mul(4)).ok_or("the Blosc chunk has fewer blocks than it claims")?;
    let compressor = Compressor::numbered(flags >> 5)?;
    let mut decoded = vec![0; size];
    let mut buffer = vec![0; block.min(size)];
    for (start, to) in starts.as_chunks::<4>().0.iter().zip(decoded.chunks_mut(block)) {
        let mut rest =
            chunk.get(u32::from_le_bytes(*start) as usize..).ok_or("a Blosc block lies outside of its chunk")?;
        let whole = to.len() == block;
        let split = flags & NOT_SPLIT == 0 && whole && element <= MOST_STREAMS && block / element >= LEAST_STREAM;
        let streams = if split { element } else { 1 };
        let buffer = &mut buffer[..to.len()];
        if !buffer.len().is_multiple_of(streams) {
            return Err("a Blosc block is not made of whole elements".into());
        }
        for part in buffer.chunks_mut(to.len() / streams) {
            let (length, stream) = rest.split_first_chunk::<4>().ok_or("a Blosc block ends too early")?;
            let length = u32::from_le_bytes(*length) as usize;
            let (stream, after) = stream.split_at_checked(length).ok_or("a Blosc block ends too early")?;
            if length == part.len() {
                part.copy_from_slice(stream);
            } else {
                compressor.decode(stream, part)?;
            }
            rest = after;
        }
        if flags & BYTE_SHUFFLE != 0 && element > 1 {
            unshuffle(buffer, element, to);
        } else if flags & BIT_SHUFFLE != 0 {
            bit_unshuffle(buffer, element, to);
        } else {
            to.copy_from_slice(buffer);
        }
    }
    Ok(decoded)
}

/// Bytes of a block that is written: what fits the caches of a processor, so that readers shuffle and unpack it there.
const BLOCK: usize = 256 << 10;
/// The format that a chunk is written in: version 2 of Blosc 1, version 1 of its Zstandard streams, whose number is 4.
const VERSION: [u8; 2] = [2, 1];
const ZSTD: u8 = 4;

/// Writes chunks.
pub(in crate::store) struct Encoder {
    zstd: zstd::bulk::Compressor<'static>,
    /// Bytes of an element.
    element: usize,
    shuffled: Vec<u8>,
}

impl Encoder {
    /// For elements of so many bytes, 1 to 255, compressed at a level of Zstandard.
    pub(in crate::store) fn new(level: i32, element: usize) -> io::Result<Self> {
        Ok(Self { zstd: zstd::bulk::Compressor::new(level)?, element, shuffled: Vec::new() })
    }

    /// Appends a chunk of less than 2 GiB to `to`, which is empty. The same bytes give the same chunk.
    pub(in crate::store) fn encode(&mut self, bytes: &[u8], to: &mut Vec<u8>) -> io::Result<()> {
        let block = bytes.len().clamp(1, BLOCK / self.element * self.element);
        let shuffle = if self.element > 1 { BYTE_SHUFFLE } else { 0 };
        let header = |to: &mut Vec<u8>, flags: u8| {
            to.extend(VERSION);
            to.extend([flags, self.element as u8]);
            for number in [bytes.len(), block, 0] {
                to.extend((number as u32).to_le_bytes());
            }
        };
        header(to, ZSTD << 5 | NOT_SPLIT | shuffle);
        let starts = to.len();
        to.resize(starts + 4 * bytes.len().div_ceil(block), 0);
        for (n, plain) in bytes.chunks(block).enumerate() {
            let start = to.len();
            to[starts + 4 * n..][..4].copy_from_slice(&(start as u32).to_le_bytes());
            let plain = if shuffle == 0 {
                plain
            } else {
                self.shuffled.resize(plain.len(), 0);
                byte_shuffle(plain, self.element, &mut self.shuffled);
                &self.shuffled[..]
            };
            let mut stream = Vec::with_capacity(zstd_safe::compress_bound(plain.len()));
            self.zstd.compress_to_buffer(plain, &mut stream)?;
            // A stream as long as its block is the block itself.
            let stream = if stream.len() < plain.len() { &stream[..] } else { plain };
            to.extend((stream.len() as u32).to_le_bytes());
            to.extend_from_slice(stream);
        }
        if to.len() >= HEADER + bytes.len() {
            to.clear();
            header(to, ZSTD << 5 | NOT_SPLIT | shuffle | STORED);
            to.extend_from_slice(bytes);
        }
        let length = (to.len() as u32).to_le_bytes();
        to[HEADER - 4..HEADER].copy_from_slice(&length);
        Ok(())
    }
}

/// The first bytes of all elements, then the second ones. What is no whole element stays as it is.
fn byte_shuffle(from: &[u8], element: usize, to: &mut [u8]) {
    let count = from.len() / element;
    for (byte, plane) in to.chunks_exact_mut(count.max(1)).take(element).enumerate() {
        plane.iter_mut().zip(from.iter().skip(byte).step_by(element)).for_each(|(to, &from)| *to = from);
    }
    let whole = count * element;
    to[whole..].copy_from_slice(&from[whole..]);
}

/// What compresses the streams of a block.
#[derive(Debug, Clone, Copy)]
enum Compressor {
    BloscLz,
    Lz4,
    Snappy,
    Zlib,
    Zstd,
}

impl Compressor {
    fn numbered(number: u8) -> Result<Self, String> {
        Ok(match number {
            0 => Self::BloscLz,
            1 => Self::Lz4,
            2 => Self::Snappy,
            3 => Self::Zlib,
            4 => Self::Zstd,
            _ => return Err(format!("the Blosc chunk is compressed in format {number}, which is not known")),
        })
    }

    /// Fills `to` exactly.
    fn decode(self, stream: &[u8], to: &mut [u8]) -> Result<(), String> {
        match self {
            Self::BloscLz => lz::blosclz(stream, to),
            Self::Lz4 => lz::lz4(stream, to),
            Self::Snappy => lz::snappy(stream, to),
            Self::Zlib => flate2::read::ZlibDecoder::new(stream).read_exact(to).map_err(|e| e.to_string()),
            Self::Zstd => match zstd::bulk::decompress_to_buffer(stream, to) {
                Ok(n) if n == to.len() => Ok(()),
                Ok(n) => Err(format!("a Blosc block holds {n} bytes instead of {}", to.len())),
                Err(e) => Err(e.to_string()),
            },
        }
    }
}

/// First the first bytes of all elements, then the second ones: back to elements. What is no whole element stays as it is.
fn unshuffle(from: &[u8], element: usize, to: &mut [u8]) {
    let count = from.len() / element;
    for (byte, plane) in from.chunks_exact(count.max(1)).take(element).enumerate() {
        to.iter_mut().skip(byte).step_by(element).zip(plane).for_each(|(to, &from)| *to = from);
    }
    let whole = count * element;
    to[whole..].copy_from_slice(&from[whole..]);
}

/// First the lowest bits of the first bytes of all elements, then the second lowest ones, and so on: back to elements.
/// Elements that do not come in eights are not shuffled.
fn bit_unshuffle(from: &[u8], element: usize, to: &mut [u8]) {
    let count = from.len() / element;
    if count == 0 || !count.is_multiple_of(8) {
        to.copy_from_slice(from);
        return;
    }
    let whole = count * element;
    to[whole..].copy_from_slice(&from[whole..]);
    to[..whole].fill(0);
    for (row, bits) in from[..whole].chunks_exact(count / 8).enumerate() {
        let (byte, bit) = (row / 8, row % 8);
        for (eight, &bits) in bits.iter().enumerate() {
            for n in 0..8 {
                to[(eight * 8 + n) * element + byte] |= (bits >> n & 1) << bit;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chunk(flags: u8, element: u8, size: u32, block: u32, rest: &[u8]) -> Vec<u8> {
        let mut chunk = vec![2, 1, flags, element];
        chunk.extend(size.to_le_bytes());
        chunk.extend(block.to_le_bytes());
        chunk.extend((HEADER as u32 + rest.len() as u32).to_le_bytes());
        chunk.extend(rest);
        chunk
    }

    #[test]
    fn what_is_stored_as_it_is() {
        assert_eq!(decode(&chunk(STORED, 2, 3, 3, b"abc"), 3).unwrap(), b"abc");
        assert!(decode(&chunk(STORED, 2, 4, 4, b"abc"), 4).is_err());
        assert_eq!(decode(&chunk(STORED, 1, 0, 0, b""), 4).unwrap(), b"");
    }

    /// Where blocks lie, how long they and the chunk are: none of it is believed.
    #[test]
    fn claims_are_refused_before_they_are_believed() {
        for (size, block, rest) in [
            (u32::MAX, 8, &[][..]),
            (8, 0, &[20, 0, 0, 0]),
            (8, 1, &[20, 0, 0, 0]),
            (8, 8, &[0xFF, 0xFF, 0xFF, 0xFF]),
            (8, 8, &[20, 0, 0, 0, 0xFF, 0xFF, 0xFF, 0xFF]),
            (8, 8, &[20, 0, 0, 0, 2, 0, 0, 0, 1, 2]),
        ] {
            for flags in (0..=255).filter(|flags| flags & STORED == 0) {
                assert!(decode(&chunk(flags, 1, size, block, rest), 100).is_err(), "{flags}, {size}, {block}");
            }
        }
        let whole = chunk(0, 1, 4, 4, &[20, 0, 0, 0, 4, 0, 0, 0, 1, 2, 3, 4]);
        assert_eq!(decode(&whole, 4).unwrap(), [1, 2, 3, 4]);
        assert!(decode(&whole[..whole.len() - 1], 4).is_err());
        assert!(decode(&whole, 3).unwrap_err().contains("claims"));
    }

    #[test]
    fn shuffles_are_undone() {
        let mut to = [0; 7];
        unshuffle(&[0, 2, 4, 1, 3, 5, 9], 2, &mut to);
        assert_eq!(to, [0, 1, 2, 3, 4, 5, 9]);
        let mut back = [0; 7];
        byte_shuffle(&to, 2, &mut back);
        assert_eq!(back, [0, 2, 4, 1, 3, 5, 9]);
        // Bit 0 of all eight elements, then bit 1, ...: the elements are 1, 2, 4, 8, ...
        let mut to = [0; 9];
        bit_unshuffle(&[1, 2, 4, 8, 16, 32, 64, 128, 7], 1, &mut to);
        assert_eq!(to, [1, 2, 4, 8, 16, 32, 64, 128, 7][..].try_into().unwrap_or(to), "nine elements are not shuffled");
        let mut to = [0; 8];
        bit_unshuffle(&[0xFF, 0, 0, 0, 0, 0, 0, 1], 1, &mut to);
        assert_eq!(to, [0x81, 1, 1, 1, 1, 1, 1, 1]);
    }
}
