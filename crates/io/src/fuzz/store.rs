//! OME-Zarr stores, and ZIP archives of them.

use std::sync::Arc;

use super::LIMITS;
use crate::slide::SlideReader;
use crate::store::OmeZarr;
use crate::store::entries::{Entries, MemoryEntries};
use crate::{Level, Rect};

/// Opens a store of arbitrary metadata and reads some of it. The bytes are a list of values, each after its length in two bytes: the
/// metadata of the root, of level 0, of the group `OME`, its XML, and what every chunk is.
pub fn open_store(mut bytes: &[u8]) {
    let mut values = Vec::new();
    while let Some((length, rest)) = bytes.split_first_chunk::<2>() {
        let (value, rest) = rest.split_at(rest.len().min(u16::from_le_bytes(*length).into()));
        values.push(value);
        bytes = rest;
    }
    let keys = [
        &["zarr.json", ".zattrs", "1/zarr.json"][..],
        &["0/zarr.json", "0/.zarray", "0/.zattrs", "0/0/.zarray", "0/0/zarr.json"],
        &["OME/zarr.json", "OME/.zattrs"],
        &["OME/METADATA.ome.xml"],
        &["*"],
    ];
    for newer in [true, false] {
        let mut entries = MemoryEntries::default();
        for (keys, value) in keys.iter().zip(&values) {
            for key in keys.iter().filter(|key| newer || !key.ends_with("zarr.json")) {
                entries.0.insert((*key).into(), value.to_vec());
            }
        }
        let entries: Arc<dyn Entries> = Arc::new(entries);
        let Ok(store) = OmeZarr::open_entries(entries, LIMITS) else { continue };
        for level in 0..store.info().levels.len().min(3) {
            for (x, y) in [(0, 0), (-10, 40), (i64::MAX - 5, i64::MIN + 5)] {
                // An error is as good as pixels.
                let _ = store.read_region(Level(level), Rect::new(x, y, 20, 10));
            }
        }
        let _ = store.read_associated("label");
        let _ = store.content_id();
        if let Ok(rasters) = store.rasters() {
            use crate::slide::raster::Raster;
            for raster in rasters.iter().take(3) {
                raster.prefetch(crate::TileCoord { row: 0, column: 0 });
                let _ = raster.decode(crate::TileCoord { row: 0, column: 0 });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::open_store;

    /// Values as [`open_store`] takes them.
    fn list(values: &[&[u8]]) -> Vec<u8> {
        values.iter().flat_map(|value| [&(value.len() as u16).to_le_bytes()[..], value].concat()).collect()
    }

    /// Documents near to what makes sense: a third of the values are drawn by chance.
    fn group() -> impl Strategy<Value = String> {
        let axis = prop::sample::select(vec![
            r#"{"name":"y"}"#,
            r#"{"name":"x","unit":"micrometer"}"#,
            r#"{"name":"c","type":"channel"}"#,
            r#"{"name":"t"}"#,
            r#""z""#,
            r#""x""#,
            "7",
        ]);
        let path = prop::sample::select(vec!["0", "0", "1", "../0", "/", "", "0/0"]);
        let scale = prop::sample::select(vec!["[1,1]", "[1,1,1]", "[0,1]", "[1e308,1e-308]", "null", r#""x""#]);
        let kind = prop::sample::select(vec!["scale", "translation", "identity", "affine"]);
        let version = prop::sample::select(vec!["0.1", "0.3", "0.4", "0.5", "1", ""]);
        let extra = prop::sample::select(vec![
            "",
            r#","image-label":{"colors":[{"label-value":1,"rgba":[1,2,3,4]}]}"#,
            r#","omero":{"channels":[{"label":1},{}]}"#,
            r#","bioformats2raw.layout":3"#,
            r#","plate":{}"#,
            r#","series":["0","../1"]"#,
        ]);
        (prop::collection::vec(axis, 0..5), path, kind, scale, version, extra, 0..5_u8).prop_map(
            |(axes, path, kind, scale, version, extra, shape)| {
                let axes = match shape {
                    0 | 1 => r#"{"name":"y"},{"name":"x"}"#.to_owned(),
                    _ => axes.join(","),
                };
                let image = format!(
                    r#"{{"version":"{version}","axes":[{axes}],"datasets":[{{"path":"{path}","coordinateTransformations":[{{"type":"{kind}","{kind}":{scale}}}]}}]}}"#
                );
                let image = if shape == 4 { String::new() } else { image };
                format!(
                    r#"{{"zarr_format":3,"node_type":"group","multiscales":[{image}]{extra},"attributes":{{"ome":{{"version":"{version}","multiscales":[{image}]{extra}}}}}}}"#
                )
            },
        )
    }

    fn array() -> impl Strategy<Value = String> {
        let number = || prop_oneof![8 => 1..40_u64, 1 => any::<u64>(), 1 => Just(0)];
        let sides = || prop_oneof![6 => prop::collection::vec(number(), 2), 1 => prop::collection::vec(number(), 0..4)];
        let codec = prop::sample::select(vec![
            r#""bytes""#,
            r#"{"name":"bytes","configuration":{"endian":"big"}}"#,
            r#""blosc""#,
            r#""zstd""#,
            r#""gzip""#,
            r#""crc32c""#,
            r#"{"name":"transpose","configuration":{"order":[1,0]}}"#,
            r#"{"name":"transpose","configuration":{"order":[1,9]}}"#,
            r#"{"name":"numcodecs.lz4"}"#,
            r#""numcodecs.fletcher32""#,
            r#"{"name":"numcodecs.adler32"}"#,
        ]);
        let kind = prop::sample::select(vec!["uint8", "uint16", "bool", "int8"]);
        let id = prop::sample::select(vec![
            "null",
            r#"{"id":"blosc"}"#,
            r#"{"id":"zlib"}"#,
            r#"{"id":"lz4"}"#,
            r#"{"id":"fletcher32"}"#,
        ]);
        let dtype = prop::sample::select(vec!["|u1", ">u2", "|b1", "<i2"]);
        (sides(), sides(), sides(), sides(), prop::collection::vec(codec, 0..3), kind, id, dtype, 0..3_u8).prop_map(
            |(shape, chunk, inner, innermost, codecs, kind, id, dtype, nesting)| {
                let mut codecs = format!("[{}]", [&["\"bytes\""], &codecs[..]].concat()[usize::from(codecs.len() > 1)..].join(","));
                for chunk in [&innermost, &inner].into_iter().take(nesting.into()) {
                    codecs = format!(
                        r#"[{{"name":"sharding_indexed","configuration":{{"chunk_shape":{chunk:?},"codecs":{codecs},"index_codecs":["bytes"]}}}}]"#
                    );
                }
                format!(
                    r#"{{"zarr_format":3,"node_type":"array","shape":{shape:?},"data_type":"{kind}","chunk_grid":{{"name":"regular","configuration":{{"chunk_shape":{chunk:?}}}}},"chunk_key_encoding":"default","fill_value":0,"codecs":{codecs},"chunks":{chunk:?},"dtype":"{dtype}","compressor":{id},"order":"F","filters":null}}"#
                )
                // One text serves both versions: each finds its own names in it.
            },
        )
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4000))]

        #[test]
        fn stores_of_chance(root in group(), level in array(), chunk in prop::collection::vec(any::<u8>(), 0..200), old: bool) {
            let level = if old { level.replace(r#""zarr_format":3"#, r#""zarr_format":2"#) } else { level };
            let ome = r#"{"zarr_format":3,"node_type":"group","series":["0","1"],"attributes":{"ome":{"series":["0","1"]}}}"#;
            let xml = r#"<OME><Image Name="a"/><Image Name="label image"/></OME>"#;
            open_store(&list(&[root.as_bytes(), level.as_bytes(), ome.as_bytes(), xml.as_bytes(), &chunk]));
            open_store(&list(&[level.as_bytes(), level.as_bytes(), ome.as_bytes(), &chunk, &chunk]));
        }

        /// A chunk of Blosc whose header makes sense, and whose blocks are of chance.
        #[test]
        fn blosc_of_chance(flags: u8, element in 0..9_u8, block in 1..80_u32, rest in prop::collection::vec(any::<u8>(), 0..120)) {
            let level = br#"{"zarr_format":2,"shape":[8,8],"chunks":[8,8],"dtype":"|u1","compressor":{"id":"blosc"},"fill_value":0,"order":"C","filters":null}"#;
            let mut chunk = vec![2, 1, flags & 0xFD, element];
            for number in [64, block, 16 + rest.len() as u32] {
                chunk.extend(number.to_le_bytes());
            }
            // Most blocks lie where there is something.
            chunk.extend(rest.iter().enumerate().map(|(n, &byte)| if n % 4 == 0 || n >= 40 { byte } else { 0 }));
            open_store(&list(&[b"{}", level, b"{}", b"", &chunk]));
            let root = br#"{"multiscales":[{"version":"0.3","axes":["y","x"],"datasets":[{"path":"0"}]}]}"#;
            open_store(&list(&[root, level, b"{}", b"", &chunk]));
        }
    }
}
