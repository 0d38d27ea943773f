//! Stores laid out as other programs lay them out, made by hand: Zarr 2, other orders, other units, missing chunks.

use std::fs;
use std::io::Write;
use std::path::Path;

use flate2::Compression;
use flate2::write::{GzEncoder, ZlibEncoder};
use microtome_io::store::{Content, OmeZarr, Translation};
use microtome_io::{Level, Microns, Pixels, Rect, Size};
use serde_json::{Value, json};

/// The picture of these tests: 3 channels of 7 × 5 pixels.
const SIZE: Size = Size::new(7, 5);

fn sample(channel: u64, y: u64, x: u64) -> u16 {
    (1000 * (channel + 1) + 10 * y + x) as u16
}

/// What a reader should give of `rect`: 0 outside the picture.
fn expected(rect: Rect) -> Pixels {
    let mut samples = Vec::new();
    for y in rect.y..rect.bottom() {
        for x in rect.x..rect.right() {
            let inside = SIZE.rect().contains(Rect::new(x, y, 1, 1));
            samples.extend((0..3).map(|c| if inside { sample(c, y as u64, x as u64) } else { 0 }));
        }
    }
    Pixels::from_u16(rect.size(), 3, samples)
}

fn put(file: &Path, bytes: impl AsRef<[u8]>) {
    fs::create_dir_all(file.parent().unwrap()).unwrap();
    fs::write(file, bytes).unwrap();
}

fn all_rects(store: &OmeZarr) {
    for rect in [SIZE.rect(), Rect::new(-2, -1, 12, 9), Rect::new(3, 2, 1, 1), Rect::new(2, 1, 4, 3)] {
        assert_eq!(store.read_region(Level(0), rect).unwrap(), expected(rect), "{rect}");
    }
}

/// Axes t, c, z, y, x as bioformats2raw writes them; chunks of 2 channels, 2 planes, 2 rows, 4 columns.
#[test]
fn version_2_in_any_order_with_any_compressor() {
    type Compress = fn(&[u8]) -> Vec<u8>;
    let plain: Compress = <[u8]>::to_vec;
    let gzip: Compress = |bytes| {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    };
    let zlib: Compress = |bytes| {
        let mut encoder = ZlibEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    };
    let cases = [
        (Value::Null, plain, "C", ">u2", json!("/")),
        (json!({ "id": "gzip", "level": 1 }), gzip, "F", "<u2", json!(".")),
        (json!({ "id": "zlib", "level": 1 }), zlib, "F", ">u2", Value::Null),
    ];
    for (compressor, compress, order, dtype, separator) in cases {
        let folder = tempfile::tempdir().unwrap();
        let axis = |name: &str, kind: &str| json!({ "name": name, "type": kind });
        let space = |name: &str| json!({ "name": name, "type": "space", "unit": "millimeter" });
        let attributes = json!({ "multiscales": [{
            "version": "0.4",
            "axes": [axis("t", "time"), axis("c", "channel"), space("z"), space("y"), space("x")],
            "datasets": [{ "path": "full/0", "coordinateTransformations": [
                { "type": "scale", "scale": [1, 1, 1, 0.001, 0.00025] },
                { "type": "translation", "translation": [0, 0, 0, 0.5, 0.25] },
            ] }],
            "coordinateTransformations": [{ "type": "scale", "scale": [1, 1, 1, 0.5, 2] }],
        }] });
        put(&folder.path().join(".zattrs"), attributes.to_string());
        let mut array = json!({
            "zarr_format": 2, "shape": [1, 3, 1, 5, 7], "chunks": [1, 2, 2, 2, 4], "dtype": dtype,
            "compressor": compressor, "fill_value": null, "order": order, "filters": null,
        });
        if !separator.is_null() {
            array["dimension_separator"] = separator.clone();
        }
        put(&folder.path().join("full/0/.zarray"), array.to_string());
        let separator = separator.as_str().unwrap_or(".");
        for (c, y, x) in (0..2).flat_map(|c| (0..3).flat_map(move |y| (0..2).map(move |x| (c, y, x)))) {
            // Indices within the chunk, the slowest first: c z y x, or x y z c.
            let mut stored = Vec::new();
            for i in 0..2 * 2 * 2 * 4 {
                let (ic, iz, iy, ix) = match order {
                    "C" => (i / 16, i / 8 % 2, i / 4 % 2, i % 4),
                    _ => (i % 2, i / 2 % 2, i / 4 % 2, i / 8),
                };
                // What sticks out of the picture, and the second plane, must never be seen.
                let inside = 2 * c + ic < 3 && 2 * y + iy < 5 && 4 * x + ix < 7 && iz == 0;
                let value = if inside { sample(2 * c + ic, 2 * y + iy, 4 * x + ix) } else { 9999 };
                stored.extend(if dtype == ">u2" { value.to_be_bytes() } else { value.to_le_bytes() });
            }
            let key = ["0".into(), c.to_string(), "0".into(), y.to_string(), x.to_string()].join(separator);
            put(&folder.path().join("full/0").join(key), compress(&stored));
        }
        let store = OmeZarr::open(folder.path()).unwrap();
        let info = store.info();
        assert_eq!((info.version.as_str(), info.channels), ("0.4", 3));
        assert_eq!(info.content, Content::Image { channels: Vec::new() });
        assert_eq!(info.chunk, Size::new(4, 2));
        assert_eq!(info.levels[0].mpp, Some(Microns { x: 0.5, y: 0.5 }));
        assert_eq!(info.levels[0].translation, Translation { x: 500.0, y: 250.0 });
        all_rects(&store);
    }
}

/// Axes x, y, c with the channels side by side, a transposed inner chunk, the shard index at the start; one shard is not stored.
#[test]
fn version_3_with_the_index_first_and_the_axes_turned() {
    let folder = tempfile::tempdir().unwrap();
    let root = json!({ "zarr_format": 3, "node_type": "group", "attributes": { "ome": {
        "version": "0.5",
        "multiscales": [{
            "axes": [{ "name": "x", "type": "space" }, { "name": "y", "type": "space" }, { "name": "c", "type": "channel" }],
            "datasets": [{ "path": "a", "coordinateTransformations": [{ "type": "scale", "scale": [1, 1, 1] }] }],
        }],
    } } });
    put(&folder.path().join("zarr.json"), root.to_string());
    let little = json!({ "name": "bytes", "configuration": { "endian": "little" } });
    let array = json!({
        "zarr_format": 3, "node_type": "array", "shape": [7, 5, 3], "data_type": "uint16",
        "chunk_grid": { "name": "regular", "configuration": { "chunk_shape": [8, 4, 3] } },
        "chunk_key_encoding": { "name": "default", "configuration": { "separator": "." } },
        "fill_value": 7,
        "codecs": [{ "name": "sharding_indexed", "configuration": {
            "chunk_shape": [4, 4, 3],
            "codecs": [{ "name": "transpose", "configuration": { "order": [2, 0, 1] } }, little],
            "index_codecs": [little],
            "index_location": "start",
        } }],
        "attributes": {}, "dimension_names": ["x", "y", "c"],
    });
    put(&folder.path().join("a/zarr.json"), array.to_string());
    // The shard of rows 0 to 3 has two chunks, the right one stored first; the shard of row 4 is not stored.
    let chunk = |first: u64| -> Vec<u8> {
        let at = |i: u64| (i / 16, first + i / 4 % 4, i % 4);
        (0..48).map(at).flat_map(|(c, x, y)| sample(c, y, x).to_le_bytes()).collect()
    };
    let mut shard: Vec<u8> = [32 + 96u64, 96, 32, 96].into_iter().flat_map(u64::to_le_bytes).collect();
    shard.extend(chunk(4));
    shard.extend(chunk(0));
    put(&folder.path().join("a/c.0.0.0"), shard);
    let store = OmeZarr::open(folder.path()).unwrap();
    let upper = Rect::new(0, 0, 7, 4);
    assert_eq!(store.read_region(Level(0), upper).unwrap(), expected(upper));
    let last = store.read_region(Level(0), Rect::new(5, 4, 3, 2)).unwrap();
    // Two pixels of the picture with the fill value, all else outside.
    let mut filled = vec![0; 18];
    filled[..6].fill(7);
    assert_eq!(last, Pixels::from_u16(Size::new(3, 2), 3, filled));
    assert_eq!(store.info().levels[0].mpp, None);
}
