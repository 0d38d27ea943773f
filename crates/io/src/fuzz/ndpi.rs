//! Hamamatsu NDPI.

use super::open_and_read;

/// Opens a Hamamatsu NDPI of one level around arbitrary bytes and reads some of it. Must return, whatever the bytes are.
///
/// The first bytes are chances: the size, the restart interval, the sampling factors, and how many bytes of the rest are the
/// table of intervals. What remains are the coded units, so that chance does not have to find its way through the
/// directory and the tables of a JPEG.
pub fn open_ndpi(bytes: &[u8]) {
    if let Some((&head, rest)) = bytes.split_first_chunk() {
        open_and_read(&ndpi(head, rest));
    }
}

fn ndpi([width, height, interval, factors, hints]: [u8; 5], rest: &[u8]) -> Vec<u8> {
    let (hints, units) = rest.split_at(rest.len().min(usize::from(hints) * 4));
    let (width, height) = (u16::from(width) * 5 + 1, u16::from(height) * 3 + 1);
    let mut strip = b"\xff\xd8\xff\xdb\0\x43\0".to_vec();
    strip.extend([7; 64]);
    // Codes for DC of up to 11 bits, and some for AC.
    strip.extend(*b"\xff\xc4\0\x1f\0\0\x01\x05\x01\x01\x01\x01\x01\x01\0\0\0\0\0\0\0");
    strip.extend(0..12);
    strip.extend(*b"\xff\xc4\0\x17\x10\0\x03\x01\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x01\x11\xf0");
    strip.extend(*b"\xff\xc0\0\x11\x08");
    strip.extend([height.to_be_bytes(), width.to_be_bytes()].concat());
    let luma = [0x11, 0x21, 0x22, 0x12, factors][usize::from(factors) % 5];
    strip.extend([3, 1, luma, 0, 2, 0x11, 0, 3, 0x11, 0]);
    strip.extend([0xff, 0xdd, 0, 4, 0, interval]);
    strip.extend(*b"\xff\xda\0\x0c\x03\x01\0\x02\0\x03\0\0\x3f\0");
    strip.extend(units);

    let fields = 10;
    let hints_at = 12 + 2 + 12 * fields + 8;
    let strip_at = hints_at + hints.len() as u32;
    let mut file = b"II\x2a\0\x0c\0\0\0\0\0\0\0".to_vec();
    file.extend((fields as u16).to_le_bytes());
    for (tag, kind, count, value) in [
        (256_u16, 4_u16, 1, width.into()),
        (257, 4, 1, height.into()),
        (259, 3, 1, 7),
        (262, 3, 1, 6),
        (273, 4, 1, strip_at),
        (278, 4, 1, height.into()),
        (279, 4, 1, strip.len() as u32),
        (65420, 3, 1, 1),
        (65421, 11, 1, 20_f32.to_bits()),
        (65426, 4, hints.len() as u32 / 4, hints_at),
    ] {
        file.extend([tag.to_le_bytes(), kind.to_le_bytes()].concat());
        file.extend([u32::to_le_bytes(count), value.to_le_bytes()].concat());
    }
    file.extend([0; 8]);
    file.extend(hints);
    file.extend(strip);
    file
}
#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use std::sync::Arc;

    use microtome_testkit::ndpi::NdpiSlide;

    use super::super::{LIMITS, open_and_read};
    use super::{ndpi, open_ndpi};
    use crate::bytes::Memory;
    use crate::slide::{OpenOptions, open_bytes};
    use crate::{Level, Rect};

    #[test]
    fn right_bytes_are_a_slide() {
        // 51 x 31 pixels in 4:4:4, all units of one DC difference of 0 and an end of block for each component, an interval per row.
        let columns = 7;
        // DC code 00 (no bits), AC code 00 (end of block): four zero bits a block, three blocks a unit, filled up with ones.
        let bits = columns * 12;
        let mut row = vec![0; bits / 8];
        row.push(0xff >> (bits % 8));
        let mut units = Vec::new();
        for number in 0..4 {
            units.extend(&row);
            units.extend([0xff, if number < 3 { 0xd0 + number } else { 0xd9 }]);
        }
        let file = ndpi([10, 10, columns as u8, 0, 0], &units);
        let options = OpenOptions::default().limits(LIMITS);
        let slide = open_bytes(Arc::new(Memory::new("fuzz", file)), &options).unwrap();
        assert_eq!(slide.info().format, "hamamatsu");
        let pixels = slide.read_region(Level(0), Rect::new(0, 0, 51, 31)).unwrap();
        assert!(pixels == crate::Pixels::filled(pixels.size(), crate::SampleType::U8, &[128; 3]));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4000))]

        #[test]
        fn intervals_of_chance(
            head in any::<[u8; 5]>(),
            hints in prop::collection::vec(0..600_u32, 0..40),
            pieces in prop::collection::vec((prop::collection::vec(any::<u8>(), 0..12), 0..12_u8), 0..40),
        ) {
            // Each piece ends with a marker, most of them the one that is due.
            let mut bytes = head.to_vec();
            bytes[4] = hints.len() as u8;
            bytes.extend(hints.iter().flat_map(|hint| hint.to_le_bytes()));
            for (number, (piece, marker)) in pieces.iter().enumerate() {
                bytes.extend(piece);
                let code = match marker {
                    8 => 0xd9,
                    9 => 0,
                    10 => 0xda,
                    _ => 0xd0 + number as u8 % 8,
                };
                bytes.extend([0xff, code]);
            }
            open_ndpi(&bytes);
        }

        #[test]
        fn slides_with_wrong_bytes(
            interval in prop::sample::select(vec![0_u16, 1, 4, 8]),
            changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
            from_the_end: bool,
            length in any::<prop::sample::Index>(),
        ) {
            let mut slide = NdpiSlide::new(&[(64, 24), (32, 16)], |_, x, y| [x as u8, y as u8, 99]);
            slide.interval = interval;
            let mut bytes = slide.bytes();
            // Directories come last, and are where most of what can go wrong is.
            let window = bytes.len().min(800);
            for (index, value) in changes {
                let at = if from_the_end { bytes.len() - 1 - index.index(window) } else { index.index(bytes.len()) };
                bytes[at] = value;
            }
            open_and_read(&bytes);
            bytes.truncate(length.index(bytes.len()));
            open_and_read(&bytes);
        }
    }
}
