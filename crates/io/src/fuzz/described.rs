//! TIFFs whose pages are described in XML: OME-TIFF and QPTIFF.

use super::open_and_read;

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
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{described, open_described};
    use crate::bytes::Memory;
    use crate::slide::{OpenOptions, SlideReader, open_bytes};
    use crate::{Error, Result};

    fn opened(description: &str) -> Result<Box<dyn SlideReader>> {
        open_bytes(std::sync::Arc::new(Memory::new("fuzz", described(description.as_bytes()))), &OpenOptions::default())
    }

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
    }

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
    }

    fn element(name: &str, attributes: &std::collections::BTreeMap<&str, String>, content: &str) -> String {
        let attributes: String = attributes.iter().map(|(name, value)| format!(" {name}='{value}'")).collect();
        format!("<{name}{attributes}>{content}</{name}>")
    }

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
    }
}
