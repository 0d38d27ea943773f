//! The JPEG streams of level 0 of a TIFF, each made whole, for the bare decoders.
//!
//! As little of TIFF as that takes, and for files that are what they say: the readers of the crate are what is measured beside it.

use std::path::Path;
use std::time::Instant;

use zune_core::bytestream::ZCursor;
use zune_core::colorspace::ColorSpace;
use zune_core::options::DecoderOptions;
use zune_jpeg::JpegDecoder;

use crate::Result;

/// Whose code decodes.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Decoder {
    /// What our readers decode with.
    Ours,
    /// zune-jpeg.
    Zune,
}

/// The stream of each tile, with its first row of pixels.
pub(crate) struct Streams {
    tiles: Vec<(u64, Vec<u8>)>,
    side: (usize, usize),
}

impl Streams {
    pub(crate) fn of(path: &Path) -> Result<Self> {
        let file = std::fs::read(path)?;
        let tiff = Tiff::new(&file)?;
        let one = |tag| tiff.values(tag).first().copied().ok_or(format!("the first page has no field {tag}"));
        let (width, tile_width, tile_height) = (one(256)?, one(322)?, one(323)?);
        if one(259)? != 7 {
            return Err("the tiles of the first page are not JPEG".into());
        }
        let tables = tiff.bytes(347).unwrap_or_default();
        // Without start and end of image.
        let tables = tables.get(2..tables.len().saturating_sub(2)).unwrap_or_default();
        let transform = u8::from(one(262)? == 6);
        let columns = width.div_ceil(tile_width);
        let (offsets, lengths) = (tiff.values(324), tiff.values(325));
        let mut tiles = Vec::new();
        for (index, (&offset, &length)) in
            offsets.iter().zip(&lengths).enumerate().filter(|(_, (_, length))| **length > 0)
        {
            let data =
                file.get(offset as usize..(offset + length) as usize).ok_or("a tile lies outside of the file")?;
            let mut stream = b"\xff\xd8".to_vec();
            stream.extend(tables);
            stream.extend(b"\xff\xee\0\x0eAdobe\0\x64\0\0\0\0");
            stream.push(transform);
            stream.extend(without_comments(&data[2..]));
            tiles.push((index as u64 / columns * tile_height, stream));
        }
        Ok(Self { tiles, side: (tile_width as usize, tile_height as usize) })
    }

    /// How long a decoder takes for the tiles that touch these rows of pixels.
    pub(crate) fn decode(&self, decoder: Decoder, top: u64, bottom: u64) -> Result<f64> {
        let (width, height) = self.side;
        let options = DecoderOptions::default()
            .set_strict_mode(true)
            .set_max_width(width)
            .set_max_height(height)
            .jpeg_set_out_colorspace(ColorSpace::RGB);
        let mut samples = vec![0; width * height * 3];
        let started = Instant::now();
        for (_, stream) in self
            .tiles
            .iter()
            .filter(|(row, _)| (top..bottom).contains(row) || (*row < top && row + height as u64 > top))
        {
            match decoder {
                Decoder::Ours => microtome_io::slide::decode_jpeg(stream, &mut samples)?,
                Decoder::Zune => JpegDecoder::new_with_options(ZCursor::new(stream.as_slice()), options)
                    .decode_into(&mut samples)
                    .map_err(|error| error.to_string())?,
            }
            std::hint::black_box(&samples);
        }
        Ok(started.elapsed().as_secs_f64())
    }
}

/// A stream from behind its start marker, without segments that say something of colours.
fn without_comments(mut rest: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(rest.len());
    while let [0xff, marker, high, low, ..] = *rest {
        let length = 2 + usize::from(u16::from_be_bytes([high, low]));
        if marker == 0xda || length > rest.len() {
            break;
        }
        if !matches!(marker, 0xe0..=0xef | 0xfe) {
            out.extend(&rest[..length]);
        }
        rest = &rest[length..];
    }
    out.extend(rest);
    out
}

/// The first directory of a TIFF in little-endian order, as all slides of the bench are.
struct Tiff<'a> {
    file: &'a [u8],
    entries: &'a [u8],
    big: bool,
}

impl<'a> Tiff<'a> {
    fn new(file: &'a [u8]) -> Result<Self> {
        let big = match file.get(..4) {
            Some(b"II\x2a\0") => false,
            Some(b"II\x2b\0") => true,
            _ => return Err("no little-endian TIFF".into()),
        };
        let (first, width) = if big { (number(file, 8, 8), 8) } else { (number(file, 4, 4), 2) };
        let count = number(file, first as usize, width) as usize;
        let start = first as usize + width;
        let entries = file.get(start..start + count * if big { 20 } else { 12 }).ok_or("the file ends early")?;
        Ok(Self { file, entries, big })
    }

    /// The type and the bytes of a field.
    fn field(&self, tag: u64) -> Option<(u64, &'a [u8])> {
        let (entry, width) = if self.big { (20, 8) } else { (12, 4) };
        let found = self.entries.chunks_exact(entry).find(|entry| number(entry, 0, 2) == tag)?;
        let kind = number(found, 2, 2);
        let bytes = number(found, 4, width) as usize * bytes_of(kind);
        let value = &found[4 + width..];
        if bytes <= width {
            return Some((kind, &value[..bytes]));
        }
        let at = number(value, 0, width) as usize;
        Some((kind, self.file.get(at..at + bytes)?))
    }

    fn bytes(&self, tag: u64) -> Option<&'a [u8]> {
        self.field(tag).map(|(_, bytes)| bytes)
    }

    fn values(&self, tag: u64) -> Vec<u64> {
        let Some((kind, bytes)) = self.field(tag) else { return Vec::new() };
        bytes.chunks_exact(bytes_of(kind)).map(|value| number(value, 0, value.len())).collect()
    }
}

/// Bytes of a value of a type that offsets, lengths, numbers and tables have.
fn bytes_of(kind: u64) -> usize {
    match kind {
        3 => 2,
        4 => 4,
        16 => 8,
        _ => 1,
    }
}

/// A number of so many bytes; 0 where the file ends.
fn number(bytes: &[u8], at: usize, width: usize) -> u64 {
    bytes.get(at..at + width).unwrap_or_default().iter().rev().fold(0, |value, &byte| value << 8 | u64::from(byte))
}
