//! What the fuzz targets run, so that the tests run the same on bytes of their own. Not part of the interface.

use std::sync::Arc;

use crate::bytes::Memory;
use crate::slide::{Limits, OpenOptions, open_bytes};
use crate::{Level, Rect};

/// Opens arbitrary bytes as a slide and reads some of it. Must return, whatever the bytes are.
pub fn open_and_read(bytes: &[u8]) {
    let limits = Limits { directories: 64, directory_entries: 256, table_bytes: 1 << 20, decoded_bytes: 1 << 22 };
    let options = OpenOptions::default().limits(limits).cache_bytes(1 << 16);
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

/// Reads arbitrary bytes as the descriptions that vendors put into tags. Must return, whatever the bytes are.
pub fn read_descriptions(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let path = std::path::Path::new("fuzz");
    // An error is as good as a description.
    let _ = crate::slide::leica::read_description(path, &text);
    let _ = crate::slide::philips::read_description(path, &text);
/// Opens a small TIFF whose pages are described by arbitrary text, OME-XML or a QPTIFF's, and reads some of it. Must return,
/// whatever the text is.
pub fn open_described(description: &[u8]) {
    open_and_read(&described(description));
}

/// A TIFF of four grey pages of 8 x 8 pixels: three of them say `description`, the first has a `SubIFD` of 4 x 4.
fn described(description: &[u8]) -> Vec<u8> {
    let mut bytes = b"II\x2a\0\0\0\0\0".to_vec();
    let samples = bytes.len() as u32;
    bytes.extend(0..64);
    let text = bytes.len() as u32;
    bytes.extend(description);
    bytes.push(0);
    let mut page = |side: u32, sub_ifd: Option<u32>, text: Option<u32>| -> (u32, usize) {
        bytes.resize(bytes.len().next_multiple_of(2), 0);
        let at = bytes.len() as u32;
        let mut entries = vec![(256, 4, 1, side), (257, 4, 1, side), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1)];
        entries.extend(text.map(|at| (270, 2, description.len() as u32 + 1, at)));
        entries.extend([(273, 4, 1, samples), (277, 3, 1, 1), (278, 4, 1, side), (279, 4, 1, side * side)]);
        entries.extend(sub_ifd.map(|at| (330, 4, 1, at)));
        bytes.extend((entries.len() as u16).to_le_bytes());
        for (tag, kind, count, value) in entries {
            bytes.extend([u16::to_le_bytes(tag), u16::to_le_bytes(kind)].concat());
            bytes.extend([u32::to_le_bytes(count), u32::to_le_bytes(value)].concat());
        }
        bytes.extend([0; 4]);
        (at, bytes.len() - 4)
    };
    let (reduced, _) = page(4, None, None);
    let (mut links, mut link) = (Vec::new(), 4);
    for number in 0..4 {
        let (at, next) = page(8, (number == 0).then_some(reduced), (number < 3).then_some(text));
        let value = at.to_le_bytes();
        links.push((link, value));
        link = next;
    }
    for (link, value) in links {
        bytes[link..link + 4].copy_from_slice(&value);
    }
    bytes
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
        file.extend([2, 0, element, 0, b'U', b'I', text.len() as u8, 0]);
        file.extend(text.bytes());
    file.extend(data);
    open_and_read(&file);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{open_and_read, read_descriptions};
    use super::{described, open_and_read, open_described};
    use crate::bytes::Memory;
    use crate::slide::{OpenOptions, SlideReader, open_bytes};
    use crate::{Error, Result};
    use super::{dicom, open_and_read};

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

    /// What a value or a name of a description may be replaced by.
    fn piece() -> impl Strategy<Value = String> {
        prop_oneof![
            prop::sample::select(vec![
                "",
                "0",
                "1",
                "-1",
                "2",
                "7",
                "64",
                "1e308",
                "-0.5",
                "nan",
                "inf",
                "0.0001",
                "4294967296",
                "9223372036854775807",
                "18446744073709551616",
                "brightfield",
                "WSI",
                "x=\"1\"",
                "</a>",
                "<a>",
                "&amp;",
                "&#0;",
                "<!DOCTYPE a>",
            ])
            .prop_map(str::to_owned),
            any::<i64>().prop_map(|number| number.to_string()),
            any::<f64>().prop_map(|number| number.to_string()),
        ]
    }

    /// Descriptions that are read, to change.
    const DESCRIPTIONS: &[&str] = &[
        r#"<scn xmlns="http://www.leica-microsystems.com/scn/2010/10/01"><collection sizeX="350000" sizeY="450000">
        <barcode>YmFy</barcode><image><creationDate>d</creationDate><device model="m" version="v"/>
        <pixels sizeX="300" sizeY="240"><dimension sizeX="300" sizeY="240" r="0" z="0" ifd="1"/></pixels>
        <view sizeX="150000" sizeY="120000" offsetX="50000" offsetY="100000"/><scanSettings><objectiveSettings>
        <objective>20</objective></objectiveSettings><illuminationSettings><illuminationSource>brightfield</illuminationSource>
        </illuminationSettings></scanSettings></image></collection></scn>"#,
        r#"<DataObject ObjectType="DPUfsImport"><Attribute Name="PIM_DP_UFS_BARCODE">Y29k</Attribute>
        <Attribute Name="PIM_DP_SCANNED_IMAGES"><Array><DataObject ObjectType="DPScannedImage">
        <Attribute Name="PIM_DP_IMAGE_TYPE">WSI</Attribute><Attribute Name="PIIM_PIXEL_DATA_REPRESENTATION_SEQUENCE"><Array>
        <DataObject ObjectType="PixelDataRepresentation"><Attribute Name="DICOM_PIXEL_SPACING">"0.1" "0.1"</Attribute></DataObject>
        </Array></Attribute></DataObject><DataObject><Attribute Name="PIM_DP_IMAGE_TYPE">LABELIMAGE</Attribute>
        <Attribute Name="PIM_DP_IMAGE_DATA">/9j/</Attribute></DataObject></Array></Attribute></DataObject>"#,
    ];
    fn opened(description: &str) -> Result<Box<dyn SlideReader>> {
        open_bytes(std::sync::Arc::new(Memory::new("fuzz", described(description.as_bytes()))), &OpenOptions::default())
    const PIXELS: &str = "SizeX='8' SizeY='8' SizeC='2' SizeZ='1' SizeT='1' Type='uint8'";
    #[test]
    fn what_is_described_well_opens() {
        let slide =
            opened(&format!("<OME><Image><Pixels {PIXELS}><TiffData IFD='1' PlaneCount='2'/></Pixels></Image></OME>"));
        assert_eq!(slide.unwrap().info().channels, 2);
        let qpi = |kind: &str| {
            opened(&format!(
                "<PerkinElmer-QPI-ImageDescription><ImageType>{kind}</ImageType></PerkinElmer-QPI-ImageDescription>"
            ))
        };
        assert_eq!(qpi("FullResolution").unwrap().info().channels, 3);
        assert!(qpi("ReducedResolution").is_err());
    #[test]
    fn descriptions_that_ask_for_too_much_are_refused() {
        for (sizes, data, limit) in [
            ("SizeC='4000000000'", "<TiffData/>", true),
            ("SizeC='4096'", "<TiffData PlaneCount='18446744073709551615'/>", false),
            ("SizeC='2'", "<TiffData IFD='18446744073709551615' PlaneCount='18446744073709551615'/>", false),
            ("SizeC='2'", "<TiffData FirstC='18446744073709551615'/>", false),
        ] {
            let pixels = PIXELS.replace("SizeC='2'", sizes);
            let text = format!("<OME><Image><Pixels {pixels}>{data}</Pixels></Image></OME>");
            let error = opened(&text).unwrap_err();
            assert_eq!(matches!(error, Error::Limits { .. }), limit, "{error}");
        }
    /// Text that is near to XML of a slide.
    fn near_xml() -> impl Strategy<Value = String> {
        let name = prop::sample::select(vec![
            "OME",
            "Image",
            "Pixels",
            "Channel",
            "TiffData",
            "UUID",
            "BinaryOnly",
            "Instrument",
            "Objective",
            "ObjectiveSettings",
            "PerkinElmer-QPI-ImageDescription",
            "ImageType",
            "Name",
            "Biomarker",
            "ScanProfile",
            "ScanResolution",
            "PixelSizeMicrons",
        ]);
        let attribute = prop::sample::select(vec![
            "SizeX",
            "SizeY",
            "SizeC",
            "SizeZ",
            "SizeT",
            "Type",
            "IFD",
            "PlaneCount",
            "FirstC",
            "FirstZ",
            "ID",
            "Name",
            "FileName",
            "UUID",
            "MetadataFile",
            "PhysicalSizeX",
            "PhysicalSizeY",
            "PhysicalSizeXUnit",
            "NominalMagnification",
            "xmlns:a",
        ]);
        let value = prop_oneof![
            4 => prop::sample::select(vec![
                "0", "1", "2", "8", "4", "-1", "99999999999999999999", "1e308", "uint8", "int8", "nm", "µm", "label", "../x", "x", "",
                "FullResolution", "ReducedResolution", "Thumbnail",
            ]).prop_map(str::to_owned),
            1 => any::<u64>().prop_map(|value| value.to_string()),
            1 => "[a-z<>&/\\\\.]{0,6}",
        ];
        let attributes = prop::collection::btree_map(attribute, value.clone(), 0..9);
        let leaf = (name.clone(), attributes.clone(), value)
            .prop_map(|(name, attributes, text)| element(name, &attributes, &text));
        leaf.prop_recursive(4, 24, 6, move |inner| {
            (name.clone(), attributes.clone(), prop::collection::vec(inner, 0..6))
                .prop_map(|(name, attributes, inner)| element(name, &attributes, &inner.concat()))
        })
    fn element(name: &str, attributes: &std::collections::BTreeMap<&str, String>, content: &str) -> String {
        let attributes: String = attributes.iter().map(|(name, value)| format!(" {name}='{value}'")).collect();
        format!("<{name}{attributes}>{content}</{name}>")

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4000))]

        #[test]
        fn ome_xml_of_chance(
            sizes in prop::collection::vec((prop::sample::select(vec!["1", "2", "3", "4", "8", "70000"]), any::<bool>()), 5),
            kind in prop::sample::select(vec!["uint8", "uint8", "uint16", "float"]),
            inner in prop::collection::vec(near_xml(), 0..5),
            outer in prop::collection::vec(near_xml(), 0..3),
        ) {
            let names = [("SizeX", "8"), ("SizeY", "8"), ("SizeC", "3"), ("SizeZ", "1"), ("SizeT", "1")];
            let sizes: String = names.iter().zip(&sizes).map(|((name, usual), (chance, taken))| {
                format!(" {name}='{}'", if *taken { *chance } else { *usual })
            }).collect();
            let (inner, outer) = (inner.concat(), outer.concat());
            let image = format!("<Image><Pixels Type='{kind}'{sizes}>{inner}</Pixels></Image>");
            open_described(format!("<OME>{image}{outer}{image}</OME>").as_bytes());
        }

        #[test]
        fn qpi_xml_of_chance(inner in prop::collection::vec(near_xml(), 0..6), kind in prop::option::of(Just("FullResolution"))) {
            let kind = kind.map(|kind| format!("<ImageType>{kind}</ImageType>")).unwrap_or_default();
            let inner = inner.concat();
            let root = "PerkinElmer-QPI-ImageDescription";
            open_described(format!("<{root}>{kind}{inner}</{root}>").as_bytes());
        }

        #[test]
        fn text_of_chance(
            head in prop::sample::select(vec!["<OME>", "<OME><Image>", "<PerkinElmer-QPI-ImageDescription>", "\u{feff}<OME a='"]),
            middle in "[<>/='\"a-c !\\[\\]?&;-]{0,60}",
            tail in prop::sample::select(vec!["</OME>", "</Image></OME>", "</PerkinElmer-QPI-ImageDescription>", ""]),
        ) {
            open_described(format!("{head}{middle}{tail}").as_bytes());
        }

        #[test]
        fn pages_of_chance(
            big_endian: bool,
            extra in prop::collection::vec(entry(), 0..8),
            width in 1..200_u32,
            height in 1..200_u32,
            compression in prop::sample::select(vec![1_u32, 5, 7, 8, 32773]),
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
        fn descriptions_of_chance(
            seed in prop::sample::select(DESCRIPTIONS),
            changes in prop::collection::vec((any::<prop::sample::Index>(), piece()), 0..6),
        ) {
            let mut text = seed.to_owned();
            for (at, piece) in changes {
                // From one quotation mark, bracket or space to the next: a value, a name or a text changes.
                let cuts: Vec<usize> = text.match_indices(['"', '<', '>', ' ']).map(|(at, _)| at + 1).collect();
                let start = cuts[at.index(cuts.len())];
                let end = text[start..].find(['"', '<', '>', ' ']).map_or(text.len(), |length| start + length);
                text.replace_range(start..end, &piece);
            }
            read_descriptions(text.as_bytes());
        fn dicom_slides_damaged_by_chance(
            syntax in prop::sample::select(vec![0_u8, 1, 4]),
            sparse: bool,
            other in prop::option::weighted(0.1, 0..7_u8),
            changes in prop::collection::vec((any::<prop::sample::Index>(), prop_oneof![
                any::<u8>(), prop::sample::select(vec![0, 1, 2, 4, 127, 128, 254, 255]),
            ]), 0..6),
            cut in prop::option::weighted(0.3, any::<prop::sample::Index>()),
            let mut bytes = small_dicom(syntax, sparse);
            if let Some(other) = other {
                bytes[0] = other;
            for (at, value) in changes {
                let at = at.index(bytes.len());
                bytes[at] = value;
            if let Some(cut) = cut {
                bytes.truncate(cut.index(bytes.len()));
            dicom(&bytes);
        }

        #[test]
        fn bytes_of_chance(
            head in prop::sample::select(vec![
                &b"II\x2a\0\x08\0\0\0"[..], b"MM\0\x2a\0\0\0\x08", b"II\x2b\0\x08\0\0\0\x10\0\0\0\0\0\0\0",
                b"\xff\xd8\xff\xdb", b"\x89PNG\r\n\x1a\n", b"RIFF\x20\0\0\0WEBP", b"",
            ]),
            tail in prop::collection::vec(any::<u8>(), 0..300),
        ) {
            open_and_read(&[head, &tail].concat());
        }
    }
}
