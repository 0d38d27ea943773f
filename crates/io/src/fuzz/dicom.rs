//! DICOM whole slides.

use super::open_and_read;

/// Opens a DICOM whole slide whose header and pixels are arbitrary bytes, the first of which chooses a transfer syntax.
pub fn dicom(bytes: &[u8]) {
    let Some((&first, data)) = bytes.split_first() else { return };
    let syntaxes = ["1.2", "1.2.1", "1.2.1.98", "1.2.4.50", "1.2.5", "1.2.4.80", "1.2.4.90"];
    let mut file = vec![0; 128];
    file.extend(b"DICM");
    let root = "1.2.840.10008.";
    let texts =
        [(2, format!("{root}5.1.4.1.1.77.1.6")), (16, root.to_owned() + syntaxes[usize::from(first) % syntaxes.len()])];
    for (element, mut text) in texts {
        if text.len() % 2 == 1 {
            text.push('\0');
        }
        file.extend([2, 0, element, 0, b'U', b'I', text.len() as u8, 0]);
        file.extend(text.bytes());
    }
    file.extend(data);
    open_and_read(&file);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::dicom;

    /// An element of a DICOM file, with its type or without.
    fn element(typed: bool, (group, element): (u16, u16), vr: &str, value: &[u8]) -> Vec<u8> {
        let mut bytes = [group.to_le_bytes(), element.to_le_bytes()].concat();
        let length = value.len() as u32;
        match vr {
            _ if !typed => bytes.extend(length.to_le_bytes()),
            "SQ" | "OB" | "OW" => bytes.extend([vr.as_bytes(), &[0, 0], &length.to_le_bytes()].concat()),
            _ => bytes.extend([vr.as_bytes(), &(length as u16).to_le_bytes()].concat()),
        }
        bytes.extend(value);
        bytes
    }

    /// A slide of 5 x 3 pixels in four tiles of 4 x 2, of which the last is left out if it is sparse.
    fn small_dicom(syntax: u8, sparse: bool) -> Vec<u8> {
        let typed = syntax != 0;
        let of = |tag, vr, value: &[u8]| element(typed, tag, vr, value);
        let item = |value: &[u8]| [&[0xfe, 0xff, 0, 0xe0][..], &(value.len() as u32).to_le_bytes(), value].concat();
        let short = |n: u16| n.to_le_bytes();
        let path = of((0x48, 0x106), "SH", b"1 ");
        let mut frames = String::from(if sparse { "3" } else { "4" });
        frames.push(' ');
        let mut bytes = vec![syntax];
        for element in [
            of((8, 8), "CS", b"ORIGINAL\\PRIMARY\\VOLUME\\NONE "),
            of((8, 0x18), "UI", b"1.2\0"),
            of((0x20, 0xe), "UI", b"1.3\0"),
            of((0x20, 0x9311), "CS", if sparse { b"TILED_SPARSE" } else { b"TILED_FULL" }),
            of((0x28, 2), "US", &short(1)),
            of((0x28, 4), "CS", b"MONOCHROME2 "),
            of((0x28, 8), "IS", frames.as_bytes()),
            of((0x28, 0x10), "US", &short(2)),
            of((0x28, 0x11), "US", &short(4)),
            of((0x28, 0x100), "US", &short(8)),
            of((0x28, 0x101), "US", &short(8)),
            of((0x28, 0x102), "US", &short(7)),
            of((0x28, 0x103), "US", &short(0)),
            of((0x48, 6), "UL", &5_u32.to_le_bytes()),
            of((0x48, 7), "UL", &3_u32.to_le_bytes()),
            of((0x48, 0x105), "SQ", &item(&path)),
        ] {
            bytes.extend(element);
        }
        if sparse {
            let place = |x: u32, y: u32| {
                let at =
                    [of((0x48, 0x21e), "SL", &x.to_le_bytes()), of((0x48, 0x21f), "SL", &y.to_le_bytes())].concat();
                let named = of((0x48, 0x207), "SQ", &item(&path));
                item(&[named, of((0x48, 0x21a), "SQ", &item(&at))].concat())
            };
            bytes.extend(of((0x5200, 0x9230), "SQ", &[place(1, 1), place(5, 1), place(1, 3)].concat()));
        }
        let count = if sparse { 3 } else { 4 };
        if syntax < 2 {
            bytes.extend(of((0x7fe0, 0x10), "OB", &vec![9; 8 * count]));
            return bytes;
        }
        // Run lengths: one segment, which repeats a byte 8 times.
        let mut frame = vec![1, 0, 0, 0, 64, 0, 0, 0];
        frame.resize(64, 0);
        frame.extend([(-7_i8) as u8, 9]);
        let offsets: Vec<u8> = (0..count as u32).flat_map(|n| (n * 74).to_le_bytes()).collect();
        bytes.extend(b"\xe0\x7f\x10\0OB\0\0\xff\xff\xff\xff");
        bytes.extend(item(if sparse { &offsets } else { &[] }));
        bytes.extend((0..count).flat_map(|_| item(&frame)));
        bytes.extend(b"\xfe\xff\xdd\xe0\0\0\0\0");
        bytes
    }

    /// What [`dicom`] makes of bytes, up to the first tile.
    fn first_tile(bytes: &[u8]) -> crate::Result<crate::Pixels> {
        let folder = tempfile::tempdir().unwrap();
        let mut file = vec![0; 128];
        file.extend(b"DICM");
        file.extend(element(true, (2, 2), "UI", b"1.2.840.10008.5.1.4.1.1.77.1.6"));
        let syntax: &[u8] = [&b"1.2.840.10008.1.2\0"[..], b"1.2.840.10008.1.2.1\0", b"", b"", b"1.2.840.10008.1.2.5\0"]
            [usize::from(bytes[0])];
        file.extend(element(true, (2, 16), "UI", syntax));
        file.extend(&bytes[1..]);
        let path = folder.path().join("small");
        std::fs::write(&path, file).unwrap();
        crate::slide::open(path, &crate::slide::OpenOptions::default())?
            .read_region(crate::Level(0), crate::Rect::new(0, 0, 5, 3))
    }

    #[test]
    fn the_small_dicom_slides_are_slides() {
        for syntax in [0, 1, 4] {
            assert_eq!(first_tile(&small_dicom(syntax, false)).unwrap().as_u8().unwrap(), [9; 15]);
            let sparse = first_tile(&small_dicom(syntax, true)).unwrap();
            assert_eq!(sparse.as_u8().unwrap()[10..], [9, 9, 9, 9, 0]);
        }
    }

    #[test]
    fn lengths_and_depths_without_end_are_refused() {
        // Elements of 4 GiB, of a type that is read and of one that is a sequence.
        for vr in ["UT", "OB", "SQ", "UN"] {
            let mut bytes = vec![1, 8, 0, 5, 0];
            bytes.extend([vr.as_bytes(), &[0, 0, 0xfe, 0xff, 0xff, 0xff, b'x', b'x']].concat());
            let error = first_tile(&bytes).unwrap_err().to_string();
            assert!(error.contains("is said to be 4294967294 bytes long, the file has 2 more"), "{error}");
        }
        // Sequences in sequences, with and without lengths.
        let mut bytes = vec![1];
        for _ in 0..10_000 {
            bytes.extend(b"\x08\0\x40\x11SQ\0\0\xff\xff\xff\xff\xfe\xff\0\xe0\xff\xff\xff\xff");
        }
        let error = first_tile(&bytes).unwrap_err().to_string();
        assert!(error.contains("nested deeper than the 32 levels"), "{error}");
        // More elements than anything needs, each of no bytes.
        let mut bytes = vec![1];
        bytes.extend((0..140_000).flat_map(|_| *b"\x09\0\x01\0LO\0\0"));
        let error = first_tile(&bytes).unwrap_err().to_string();
        assert!(error.contains("more elements than the 131072"), "{error}");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4000))]

        #[test]
        fn dicom_slides_damaged_by_chance(
            syntax in prop::sample::select(vec![0_u8, 1, 4]),
            sparse: bool,
            other in prop::option::weighted(0.1, 0..7_u8),
            changes in prop::collection::vec((any::<prop::sample::Index>(), prop_oneof![
                any::<u8>(), prop::sample::select(vec![0, 1, 2, 4, 127, 128, 254, 255]),
            ]), 0..6),
            cut in prop::option::weighted(0.3, any::<prop::sample::Index>()),
        ) {
            let mut bytes = small_dicom(syntax, sparse);
            if let Some(other) = other {
                bytes[0] = other;
            }
            for (at, value) in changes {
                let at = at.index(bytes.len());
                bytes[at] = value;
            }
            if let Some(cut) = cut {
                bytes.truncate(cut.index(bytes.len()));
            }
            dicom(&bytes);
        }
    }
}
