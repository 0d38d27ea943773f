//! Descriptions in XML that vendors put into tags.

/// Reads arbitrary bytes as the descriptions that vendors put into tags. Must return, whatever the bytes are.
pub fn read_descriptions(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let path = std::path::Path::new("fuzz");
    // An error is as good as a description.
    let _ = crate::slide::leica::read_description(path, &text);
    let _ = crate::slide::philips::read_description(path, &text);
    let _ = crate::slide::ventana::read_description(path, &text);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::read_descriptions;

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
        r#"<Metadata><iScan Magnification="40" ScanRes="0.25" ScanWhitePoint="235" Z-layers="1"/></Metadata>"#,
        r#"<EncodeInfo Ver="2"><SlideStitchInfo><ImageInfo AOIScanned="1" Width="64" Height="48" NumRows="2" NumCols="2"
        Pos-X="0" Pos-Y="100.0"><TileJointInfo Confidence="90" Direction="RIGHT" Tile1="1" Tile2="2" OverlapX="8" OverlapY="0"/>
        <TileJointInfo Confidence="90" Direction="UP" Tile1="1" Tile2="4" OverlapX="0" OverlapY="7"/></ImageInfo><ImageInfo
        AOIScanned="1" Width="64" Height="48" NumRows="3" NumCols="3" Pos-X="300" Pos-Y="40"/></SlideStitchInfo><AoiOrigin>
        <AOI0 OriginX="0" OriginY="0"/><AOI1 OriginX="384" OriginY="96"/></AoiOrigin></EncodeInfo>"#,
    ];

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4000))]

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
        }
    }
}
