//! What the fuzz targets run, so that the tests run the same on bytes of their own. Not part of the interface.

mod described;
mod descriptions;
mod dicom;
mod ndpi;
mod store;

use std::sync::Arc;

use crate::bytes::Memory;
use crate::slide::{Limits, OpenOptions, open_bytes};
use crate::{Level, Rect};

pub use described::open_described;
pub use descriptions::read_descriptions;
pub use dicom::dicom;
pub use ndpi::open_ndpi;
pub use store::open_store;

/// What a file may ask for here: enough for all branches, and little enough for many runs.
const LIMITS: Limits = Limits { directories: 64, directory_entries: 256, table_bytes: 1 << 20, decoded_bytes: 1 << 22 };

/// Opens arbitrary bytes as a slide and reads some of it. Must return, whatever the bytes are.
pub fn open_and_read(bytes: &[u8]) {
    let options = OpenOptions::default().limits(LIMITS).cache_bytes(1 << 16);
    let Ok(slide) = open_bytes(Arc::new(Memory::new("fuzz", bytes.to_vec())), &options) else { return };
    for level in 0..slide.info().levels.len() {
        for (x, y) in [(0, 0), (-10, 40), (i64::MAX - 5, i64::MIN + 5)] {
            // An error is as good as pixels.
            let _ = slide.read_region(Level(level), Rect::new(x, y, 70, 50));
        }
    }
    for associated in &slide.info().associated {
        let _ = slide.read_associated(&associated.name);
    }
}

/// Decodes arbitrary bytes as a JPEG stream, of the size that it claims, once by itself and once with its tables apart, as tiles have
/// them. Must return, whatever the bytes are.
pub fn decode_jpeg(bytes: &[u8]) {
    use crate::slide::jpeg::{Color, decode, read_header};
    let Ok(header) = read_header(bytes) else { return };
    if u32::from(header.width) * u32::from(header.height) > 1 << 18 {
        return;
    }
    // An error is as good as samples.
    let _ = decode(None, bytes, header, Color::AsMarked);
    let frame = bytes.windows(2).position(|marker| matches!(marker, [0xff, 0xc0 | 0xc1]));
    if let Some((tables, rest)) = frame.map(|at| bytes.split_at(at)) {
        let _ = decode(Some(&[tables, b"\xff\xd9"].concat()), &[b"\xff\xd8", rest].concat(), header, Color::YCbCr);
    }
}

/// Decodes arbitrary bytes as a JPEG 2000 stream, of the size and depth that it claims. Must return, whatever the bytes are.
pub fn decode_jpeg2000(bytes: &[u8]) {
    use crate::slide::jpeg2000::{Color, Expected, decode, read_header};
    let Ok(header) = read_header(bytes) else { return };
    let (width, height) = (u64::from(header.width), u64::from(header.height));
    if width * height > 1 << 18 {
        return;
    }
    let sample = if header.bits > 8 { crate::SampleType::U16 } else { crate::SampleType::U8 };
    let components = usize::from(header.components);
    for color in [Color::AsStored, Color::YCbCr] {
        // An error is as good as samples.
        let _ = decode(bytes, Expected { width, height, components, sample }, color);
    }
}

#[cfg(test)]
mod tests {
    use jpeg_encoder::{ColorType, Encoder, SamplingFactor};
    use proptest::prelude::*;

    use super::open_and_read;

    /// A TIFF with one page whose every entry is drawn by chance, most of them near to what makes sense.
    fn page(big_endian: bool, entries: &[(u16, u16, u32, u32)], tail: &[u8]) -> Vec<u8> {
        let short = |v: u16| if big_endian { v.to_be_bytes() } else { v.to_le_bytes() };
        let long = |v: u32| if big_endian { v.to_be_bytes() } else { v.to_le_bytes() };
        let mut bytes = if big_endian { b"MM\0\x2a".to_vec() } else { b"II\x2a\0".to_vec() };
        bytes.extend(long(8));
        bytes.extend(short(entries.len() as u16));
        for &(tag, kind, count, value) in entries {
            bytes.extend(short(tag));
            bytes.extend(short(kind));
            bytes.extend(long(count));
            bytes.extend(long(value));
        }
        bytes.extend([0; 4]);
        bytes.extend(tail);
        bytes
    }

    fn entry() -> impl Strategy<Value = (u16, u16, u32, u32)> {
        let tag = prop_oneof![
            4 => prop::sample::select(vec![
                254_u16, 256, 257, 258, 259, 262, 270, 273, 277, 278, 279, 284, 317, 322, 323, 324, 325, 330, 338, 339, 347,
            ]),
            1 => any::<u16>(),
        ];
        let kind = prop_oneof![8 => prop::sample::select(vec![1_u16, 2, 3, 4, 5]), 1 => any::<u16>()];
        let count = prop_oneof![8 => 0..5_u32, 1 => any::<u32>()];
        let value = prop_oneof![8 => 0..300_u32, 1 => any::<u32>()];
        (tag, kind, count, value)
    }

    /// Small streams of all kinds of colours; none where the data is absent.
    fn streams() -> Vec<Vec<u8>> {
        let Some(folder) = microtome_testkit::data("codec/wsi-rs/jp2k") else { return Vec::new() };
        ["rgb_mct", "rgb_nomct", "ycbcr_444", "ycbcr_422", "ycbcr_420"]
            .map(|name| std::fs::read(folder.join(name).with_extension("j2k")).unwrap())
            .to_vec()
    }

    #[test]
    fn jpeg_2000_streams_with_bytes_of_chance() {
        let streams = streams();
        if streams.is_empty() {
            return;
        }
        let changes = prop::collection::vec((0..400_usize, any::<u8>()), 1..6);
        let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig::with_cases(3000));
        runner
            .run(&(prop::sample::select(streams), changes), |(mut stream, changes)| {
                for (at, byte) in changes {
                    let at = at % stream.len();
                    stream[at] = byte;
                }
                let start = std::time::Instant::now();
                super::decode_jpeg2000(&stream);
                prop_assert!(start.elapsed() < std::time::Duration::from_secs(2));
                Ok(())
            })
            .unwrap();
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(3000))]

        #[test]
        fn jpeg_streams_with_bytes_of_chance(
            chroma in prop::sample::select(vec![
                SamplingFactor::R_4_4_4, SamplingFactor::R_4_2_2, SamplingFactor::R_4_2_0, SamplingFactor::R_4_4_0, SamplingFactor::R_4_1_0,
            ]),
            size in (1..90_u16, 1..90_u16),
            restart in 0..5_u16,
            progressive in prop::sample::select(vec![false, false, false, true]),
            changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
            in_the_head: bool,
        ) {
            let mut stream = Vec::new();
            let mut encoder = Encoder::new(&mut stream, 70);
            encoder.set_sampling_factor(chroma);
            encoder.set_restart_interval(restart);
            encoder.set_progressive(progressive);
            let pixels: Vec<u8> = (0..u32::from(size.0) * u32::from(size.1) * 3).map(|i| (i * i >> 6) as u8).collect();
            encoder.encode(&pixels, size.0, size.1, ColorType::Rgb).unwrap();
            // Tables and headers come first.
            let window = if in_the_head { stream.len().min(640) } else { stream.len() };
            for (at, value) in changes {
                stream[at.index(window)] = value;
            }
            let start = std::time::Instant::now();
            super::decode_jpeg(&stream);
            prop_assert!(start.elapsed() < std::time::Duration::from_secs(2));
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4000))]

        #[test]
        fn pages_of_chance(
            big_endian: bool,
            extra in prop::collection::vec(entry(), 0..8),
            width in 1..200_u32,
            height in 1..200_u32,
            compression in prop::sample::select(vec![1_u32, 5, 7, 8, 32773, 33003, 34712, 50000, 50001]),
            tail in prop::collection::vec(any::<u8>(), 0..400),
        ) {
            // What a page needs comes last: of a tag that appears twice, the first one counts.
            let mut entries = extra;
            entries.extend([
                (256, 4, 1, width), (257, 4, 1, height), (258, 4, 1, 8), (259, 4, 1, compression), (262, 4, 1, 1),
                (273, 4, 1, 250), (278, 4, 1, height), (279, 4, 1, 100),
            ]);
            open_and_read(&page(big_endian, &entries, &tail));
        }

        #[test]
        fn bytes_of_chance(
            head in prop::sample::select(vec![
                &b"II\x2a\0\x08\0\0\0"[..], b"MM\0\x2a\0\0\0\x08", b"II\x2b\0\x08\0\0\0\x10\0\0\0\0\0\0\0",
                b"PK\x03\x04", b"PK\x05\x06", b"\xff\xd8\xff\xdb", b"\x89PNG\r\n\x1a\n", b"RIFF\x20\0\0\0WEBP", b"",
            ]),
            tail in prop::collection::vec(any::<u8>(), 0..300),
        ) {
            open_and_read(&[head, &tail].concat());
        }
    }
}
