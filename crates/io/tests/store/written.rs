//! What a written store holds, file by file.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use microtome_io::slide::SlideReader;
use microtome_io::store::{
    AxisUnit, Format, ImageSink, LabelSource, OmeZarr, StoreLevel, Stored, StoredImage, ZarrImage, stored_shard,
};
use microtome_io::{Level, Microns, Pixels, Rect, SampleType, Samples, Size, TileCoord};
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use super::{content, cut, encoded, image, picture, pyramid, shards, write_all};

/// Every file of a folder by its relative path.
pub(crate) fn files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut folders = vec![folder.to_path_buf()];
    while let Some(next) = folders.pop() {
        for entry in fs::read_dir(next).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                let name = path.strip_prefix(folder).unwrap().to_string_lossy().replace('\\', "/");
                found.insert(name, fs::read(&path).unwrap());
            }
        }
    }
    found
}

#[test]
fn the_metadata_is_ome_zarr_0_5() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.zarr");
    let mask = ZarrImage::create(&path, image(Size::new(101, 50), 2, SampleType::U16)).unwrap();
    mask.finish(&Map::new()).unwrap();
    let read = |name: &str| -> Value { serde_json::from_slice(&fs::read(path.join(name)).unwrap()).unwrap() };
    let rgba = |value: u16, rgba: [u8; 4]| json!({ "label-value": value, "rgba": rgba });
    let class = |value: u16, name: &str| json!({ "label-value": value, "class": name });
    let axis = |name: &str| json!({ "name": name, "type": "space", "unit": "micrometer" });
    let dataset = |path: &str, scale: [f64; 2], translation: [f64; 2]| {
        json!({ "path": path, "coordinateTransformations": [
            { "type": "scale", "scale": scale }, { "type": "translation", "translation": translation },
        ] })
    };
    assert_eq!(
        read("zarr.json"),
        json!({
            "zarr_format": 3,
            "node_type": "group",
            "attributes": {
                "ome": {
                    "version": "0.5",
                    "multiscales": [{
                        "name": "mask",
                        "axes": [axis("y"), axis("x")],
                        "datasets": [dataset("0", [0.25, 0.5], [0.0, 0.0]), dataset("1", [0.5, 1.0], [0.125, 0.25])],
                        "type": "mode",
                        "metadata": { "method": "majority", "version": "0.0.0", "args": {} },
                    }],
                    "image-label": {
                        "version": "0.5",
                        "colors": [
                            rgba(0, [0, 0, 0, 0]),
                            rgba(1, [230, 159, 0, 255]),
                            rgba(2, [86, 180, 233, 255]),
                            rgba(3, [0, 158, 115, 255]),
                        ],
                        "properties": [class(0, "background"), class(1, "tumour"), class(2, "stroma"), class(3, "necrosis")],
                    },
                },
                "microtome": { "fingerprint": { "model": "abc" } },
            },
        })
    );
    let little = json!({ "name": "bytes", "configuration": { "endian": "little" } });
    assert_eq!(
        read("1/zarr.json"),
        json!({
            "zarr_format": 3,
            "node_type": "array",
            "shape": [25, 51],
            "data_type": "uint16",
            "chunk_grid": { "name": "regular", "configuration": { "chunk_shape": [24, 32] } },
            "chunk_key_encoding": { "name": "default", "configuration": { "separator": "/" } },
            "fill_value": 0,
            "codecs": [{
                "name": "sharding_indexed",
                "configuration": {
                    "chunk_shape": [8, 16],
                    "codecs": [little, { "name": "zstd", "configuration": { "level": 1, "checksum": false } }],
                    "index_codecs": [little, { "name": "crc32c" }],
                    "index_location": "end",
                },
            }],
            "dimension_names": ["y", "x"],
        })
    );
}

#[test]
fn a_picture_says_what_its_channels_are() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("p.zarr");
    let image = picture(Size::new(101, 50), 2, SampleType::U8, 3);
    let store = ZarrImage::create(&path, image.clone()).unwrap();
    let levels = [content(&image, Level(0), 3), content(&image, Level(1), 4)];
    write_all(&store, &levels);
    store.finish(&Map::new()).unwrap();
    let read = |name: &str| -> Value { serde_json::from_slice(&fs::read(path.join(name)).unwrap()).unwrap() };
    let ome = &read("zarr.json")["attributes"]["ome"];
    assert_eq!(ome["image-label"], Value::Null);
    let space = |name: &str| json!({ "name": name, "type": "space", "unit": "micrometer" });
    let multiscale = &ome["multiscales"][0];
    assert_eq!(multiscale["axes"], json!([{ "name": "c", "type": "channel" }, space("y"), space("x")]));
    assert_eq!(multiscale["type"], json!("mean"));
    assert_eq!(
        multiscale["datasets"][1]["coordinateTransformations"],
        json!([
            { "type": "scale", "scale": [1.0, 0.5, 1.0] },
            { "type": "translation", "translation": [0.0, 0.125, 0.25] },
        ])
    );
    let window = json!({ "min": 0, "max": 255, "start": 0, "end": 255 });
    let channel =
        |label: &str, color: &str| json!({ "label": label, "color": color, "active": true, "window": window });
    assert_eq!(
        ome["omero"],
        json!({ "channels": [channel("p1", "E69F00"), channel("p2", "56B4E9"), channel("p3", "009E73")] })
    );
    let array = read("0/zarr.json");
    assert_eq!((&array["shape"], &array["dimension_names"]), (&json!([3, 50, 101]), &json!(["c", "y", "x"])));
    assert_eq!(array["chunk_grid"]["configuration"]["chunk_shape"], json!([3, 24, 32]));
    assert_eq!(array["codecs"][0]["configuration"]["chunk_shape"], json!([1, 8, 16]));
    assert_eq!(files(&path).keys().filter(|name| name.starts_with("0/c/")).count(), 4 * 3, "one file for each cell");
    let stored = stored_shard(&path, Level(0), TileCoord { row: 1, column: 2 }).unwrap();
    assert_eq!(stored, Stored::Sha256(Sha256::digest(&files(&path)["0/c/0/1/2"]).into()));

    let store = OmeZarr::open(&path).unwrap();
    let info = store.info();
    assert_eq!((info.channels, &info.content, &info.levels), (3, &image.content, &image.levels));
    assert_eq!((info.chunk, info.method.as_deref()), (Size::new(16, 8), Some("mean")));
}

/// The chunks of the other channels are made unreadable: nobody may try.
#[test]
fn a_channel_is_read_without_the_others() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("p.zarr");
    let image = picture(Size::new(101, 50), 1, SampleType::U16, 3);
    let sink = ZarrImage::create(&path, image.clone()).unwrap();
    let whole = content(&image, Level(0), 3);
    write_all(&sink, std::slice::from_ref(&whole));
    sink.finish(&Map::new()).unwrap();
    let plane = |channel: usize, rect: Rect| -> Pixels {
        let Samples::U16(samples) = cut(&whole, rect).samples().clone() else { unreachable!() };
        Pixels::from_u16(rect.size(), 1, samples.chunks(3).map(|pixel| pixel[channel]).collect())
    };
    let store = OmeZarr::open(&path).unwrap();
    let rects = [whole.size().rect(), Rect::new(-3, 5, 40, 60), Rect::new(31, 23, 2, 2)];
    for (channel, rect) in (0..3).flat_map(|channel| rects.map(|rect| (channel, rect))) {
        assert_eq!(store.read_channel(Level(0), rect, channel).unwrap(), plane(channel, rect), "{channel}, {rect}");
    }
    assert!(matches!(store.read_channel(Level(0), rects[0], 3), Err(microtome_io::Error::Usage { .. })));

    let (chunks, entry) = (2 * 3, 16);
    for (name, mut shard) in files(&path).into_iter().filter(|(name, _)| name.contains("/c/")) {
        // The index starts with the chunks of channel 0; the bytes of all chunks between those of channel 1 and the index are garbled.
        let index = shard.len() - 4 - 3 * chunks * entry;
        let entries: Vec<(u64, u64)> = shard[index..shard.len() - 4]
            .chunks(entry)
            .map(|e| (u64::from_le_bytes(e[..8].try_into().unwrap()), u64::from_le_bytes(e[8..].try_into().unwrap())))
            .collect();
        for (n, &(offset, length)) in entries.iter().enumerate().filter(|(_, e)| e.0 != u64::MAX) {
            if n / chunks != 1 {
                shard[offset as usize..(offset + length) as usize].fill(0);
            }
        }
        fs::write(path.join(name), shard).unwrap();
    }
    let store = OmeZarr::open(&path).unwrap();
    assert_eq!(store.read_channel(Level(0), rects[0], 1).unwrap(), plane(1, rects[0]));
    assert!(store.read_channel(Level(0), rects[0], 0).is_err() && store.read_region(Level(0), rects[0]).is_err());
}

#[test]
fn the_same_pixels_give_the_same_files_and_no_others() {
    let folder = tempfile::tempdir().unwrap();
    let labels = image(Size::new(150, 90), 4, SampleType::U8);
    let wide = picture(Size::new(150, 90), 4, SampleType::U16, 2);
    let images = [labels, wide].into_iter().flat_map(|image| {
        let forms =
            [(Format::V0_5, "zstd:1"), (Format::V0_5, "blosc:1"), (Format::V0_4, "zstd:1"), (Format::V0_4, "gzip:6")];
        forms.map(|(format, compression)| encoded(image.clone(), format, compression))
    });
    for image in images {
        let levels: Vec<Pixels> = (0..4).map(|n| content(&image, Level(n), 3)).collect();
        let form = format!("{}-{}", image.encoding.format, image.encoding.compression.to_string().replace(':', "-"));
        let write = |name: &str, backwards: bool| {
            let path = folder.path().join(format!("{name}-{}-{form}", image.method));
            let sink = ZarrImage::create(&path, image.clone()).unwrap();
            if backwards {
                from_threads_backwards(&sink, &levels);
            } else {
                write_all(&sink, &levels);
            }
            sink.finish(&Map::new()).unwrap();
            files(&path)
        };
        let (one, other) = (write("one", false), write("other", true));
        assert_eq!(one.keys().collect::<Vec<_>>(), other.keys().collect::<Vec<_>>());
        assert!(one == other);
        let is_chunk = |name: &str| match image.encoding.format {
            Format::V0_5 => name.contains("/c/"),
            Format::V0_4 => name.bytes().all(|b| b == b'/' || b.is_ascii_digit()),
        };
        let documents: &[&str] = match image.encoding.format {
            Format::V0_5 => &["zarr.json"],
            Format::V0_4 => &[".zgroup", ".zattrs", ".zarray"],
        };
        let is_document = |name: &str| documents.contains(&name.rsplit('/').next().unwrap());
        let strangers: Vec<_> = one.keys().filter(|name| !is_document(name) && !is_chunk(name)).collect();
        assert!(strangers.is_empty(), "{strangers:?}");
    }
}

/// Writes everything from several threads, the last shard first.
fn from_threads_backwards(mask: &ZarrImage, levels: &[Pixels]) {
    std::thread::scope(|scope| {
        for (n, whole) in levels.iter().enumerate().rev() {
            scope.spawn(move || {
                for shard in shards(mask.image(), Level(n)).into_iter().rev() {
                    let rect = mask.image().shard_rect(Level(n), shard).unwrap();
                    mask.write_shard(Level(n), shard, &cut(whole, rect)).unwrap();
                }
            });
        }
    });
}

#[test]
fn background_takes_no_space() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.zarr");
    let mut image = image(Size::new(64, 48), 1, SampleType::U8);
    image.shard = Size::new(64, 48);
    let mask = ZarrImage::create(&path, image.clone()).unwrap();
    let at = shards(&image, Level(0))[0];
    mask.write_shard(Level(0), at, &Pixels::filled(image.shard, SampleType::U8, &[0])).unwrap();
    mask.finish(&Map::new()).unwrap();
    assert_eq!(files(&path).keys().collect::<Vec<_>>(), ["0/zarr.json", "zarr.json"]);
    assert!(!path.join("0/c").exists(), "not even a folder");

    // In version 0.4 there is no file for it either, nor a folder.
    let path = folder.path().join("o.zarr");
    let older = encoded(image.clone(), Format::V0_4, "zstd");
    let mask = ZarrImage::create(&path, older).unwrap();
    let mut one = Pixels::filled(image.shard, SampleType::U8, &[0]);
    one.blit(image.shard.rect(), &Pixels::filled(Size::new(1, 1), SampleType::U8, &[3]), Rect::new(20, 9, 1, 1));
    mask.write_shard(Level(0), at, &one).unwrap();
    mask.finish(&Map::new()).unwrap();
    assert_eq!(files(&path).keys().collect::<Vec<_>>(), [".zattrs", ".zgroup", "0/.zarray", "0/.zattrs", "0/1/1"]);
    assert_eq!(fs::read_dir(path.join("0")).unwrap().count(), 3, "no folders for rows without chunks");

    // One label in one of the 24 chunks: 23 entries of the index say "nothing".
    let path = folder.path().join("n.zarr");
    let mask = ZarrImage::create(&path, image.clone()).unwrap();
    let mut one = Pixels::filled(image.shard, SampleType::U8, &[0]);
    one.blit(image.shard.rect(), &Pixels::filled(Size::new(1, 1), SampleType::U8, &[3]), Rect::new(20, 9, 1, 1));
    mask.write_shard(Level(0), at, &one).unwrap();
    mask.finish(&Map::new()).unwrap();
    let shard = &files(&path)["0/c/0/0"];
    let index = &shard[shard.len() - 24 * 16 - 4..shard.len() - 4];
    let absent = index.chunks(16).filter(|entry| entry.iter().all(|&b| b == 0xFF)).count();
    assert_eq!(absent, 23);
    assert_eq!(OmeZarr::open(&path).unwrap().read_region(Level(0), image.shard.rect()).unwrap(), one);
}

#[test]
fn a_reader_learns_what_the_writer_knew() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.zarr");
    let image = image(Size::new(101, 50), 3, SampleType::U8);
    let levels = pyramid(Size::new(101, 50), 3, 5);
    let mask = ZarrImage::create(&path, image.clone()).unwrap();
    write_all(&mask, &levels);
    mask.finish(&Map::new()).unwrap();

    let store = OmeZarr::open(&path).unwrap();
    let info = store.info();
    assert_eq!(
        (info.version.as_str(), info.name.as_deref(), info.method.as_deref()),
        ("0.5", Some("mask"), Some("mode"))
    );
    assert_eq!(info.levels, image.levels);
    assert_eq!((info.channels, info.sample, info.chunk), (1, SampleType::U8, image.chunk));
    assert_eq!(info.content.classes()[1..], *image.content.classes());
    assert_eq!((&info.metadata, &info.attributes), (&image.metadata, &image.attributes));

    let slide: &dyn SlideReader = &store;
    assert_eq!(slide.info().format, "ome-zarr");
    assert_eq!(slide.info().resolution.as_ref().unwrap().mpp, Microns { x: 0.5, y: 0.25 });
    assert_eq!(slide.info().levels[1].size, Size::new(51, 25));
    assert!(slide.read_associated("label").is_err());
    let id = slide.content_id().unwrap();
    assert_eq!(id, OmeZarr::open(&path).unwrap().content_id().unwrap());
    assert!(slide.read_region(Level(3), Rect::new(0, 0, 1, 1)).is_err());

    // Rectangles that start and end anywhere, also outside.
    for rect in [
        (0, 0, 1, 1),
        (15, 7, 2, 2),
        (-5, -9, 40, 30),
        (90, 40, 30, 30),
        (33, 25, 60, 20),
        (500, 0, 3, 3),
        (3, 3, 0, 9),
    ] {
        let rect = Rect::new(rect.0, rect.1, rect.2, rect.3);
        assert_eq!(store.read_region(Level(0), rect).unwrap(), cut(&levels[0], rect), "{rect}");
    }
    assert!(
        store.read_region(Level(0), Rect::new(0, 0, 1 << 40, 1 << 40)).unwrap_err().to_string().contains("allowed")
    );
}

#[test]
fn without_a_resolution_the_unit_is_the_pixel() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.zarr");
    let mut image = image(Size::new(9, 9), 3, SampleType::U8);
    image.levels = StoreLevel::finest(Size::new(9, 9), None).pyramid(3);
    ZarrImage::create(&path, image.clone()).unwrap().finish(&Map::new()).unwrap();
    let root: Value = serde_json::from_slice(&fs::read(path.join("zarr.json")).unwrap()).unwrap();
    let multiscale = &root["attributes"]["ome"]["multiscales"][0];
    assert_eq!(multiscale["axes"][0], json!({ "name": "y", "type": "space" }));
    assert_eq!(multiscale["datasets"][2]["coordinateTransformations"][0]["scale"], json!([4.0, 4.0]));
    let store = OmeZarr::open(&path).unwrap();
    assert_eq!(store.info().levels, image.levels);
    assert_eq!(SlideReader::info(&store).resolution, None);
}

#[test]
fn the_metadata_is_ome_zarr_0_4() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.zarr");
    let mut image = encoded(image(Size::new(101, 50), 2, SampleType::U16), Format::V0_4, "zstd:3");
    image.source = Some(LabelSource { image: "../../".into(), unit: AxisUnit::Micrometer });
    let mask = ZarrImage::create(&path, image).unwrap();
    assert!(!path.join(".zattrs").exists() && !path.join(".zgroup").exists(), "the root metadata come last");
    mask.finish(&Map::new()).unwrap();
    let read = |name: &str| -> Value { serde_json::from_slice(&fs::read(path.join(name)).unwrap()).unwrap() };
    let axis = |name: &str| json!({ "name": name, "type": "space", "unit": "micrometer" });
    let root = read(".zattrs");
    let multiscale = &root["multiscales"][0];
    assert_eq!((&multiscale["version"], &multiscale["name"]), (&json!("0.4"), &json!("mask")));
    assert_eq!(multiscale["axes"], json!([axis("y"), axis("x")]));
    assert_eq!(multiscale["metadata"], json!({ "method": "majority", "version": "0.0.0", "args": {} }));
    assert_eq!(
        multiscale["datasets"][1],
        json!({ "path": "1", "coordinateTransformations": [
            { "type": "scale", "scale": [0.5, 1.0] }, { "type": "translation", "translation": [0.125, 0.25] },
        ] })
    );
    let label = &root["image-label"];
    assert_eq!((&label["version"], &label["source"]), (&json!("0.4"), &json!({ "image": "../../" })));
    assert_eq!((label["colors"].as_array().unwrap().len(), label["properties"].as_array().unwrap().len()), (4, 4));
    assert_eq!(root["microtome"], json!({ "fingerprint": { "model": "abc" } }));
    assert_eq!(read(".zgroup"), json!({ "zarr_format": 2 }));
    assert_eq!(
        read("1/.zarray"),
        json!({
            "zarr_format": 2,
            "shape": [25, 51],
            "chunks": [8, 16],
            "dtype": "<u2",
            "compressor": { "id": "zstd", "level": 3 },
            "fill_value": 0,
            "order": "C",
            "filters": null,
            "dimension_separator": "/",
        })
    );
    let attributes = json!({ "_ARRAY_DIMENSIONS": ["y", "x"], "microtome": { "shard": [24, 32] } });
    assert_eq!(read("1/.zattrs"), attributes);
}

#[test]
fn each_compression_is_named_as_each_version_does() {
    let folder = tempfile::tempdir().unwrap();
    let compressor = |format: Format, compression: &str, sample: SampleType| -> Value {
        let path = folder.path().join(format!("{format}-{}-{sample:?}", compression.replace(':', "-")));
        let image = encoded(image(Size::new(20, 10), 1, sample), format, compression);
        ZarrImage::create(&path, image).unwrap().finish(&Map::new()).unwrap();
        let (name, place) = match format {
            Format::V0_5 => ("0/zarr.json", "/codecs/0/configuration/codecs"),
            Format::V0_4 => ("0/.zarray", "/compressor"),
        };
        let document: Value = serde_json::from_slice(&fs::read(path.join(name)).unwrap()).unwrap();
        document.pointer(place).unwrap().clone()
    };
    let bytes = json!({ "name": "bytes" });
    assert_eq!(compressor(Format::V0_5, "none", SampleType::U8), json!([bytes]));
    assert_eq!(
        compressor(Format::V0_5, "gzip:5", SampleType::U8),
        json!([bytes, { "name": "gzip", "configuration": { "level": 5 } }])
    );
    let blosc = json!({ "cname": "zstd", "clevel": 5, "shuffle": "noshuffle", "typesize": 1, "blocksize": 0 });
    assert_eq!(
        compressor(Format::V0_5, "blosc:5", SampleType::U8),
        json!([bytes, { "name": "blosc", "configuration": blosc }])
    );
    assert_eq!(compressor(Format::V0_4, "none", SampleType::U16), Value::Null);
    assert_eq!(compressor(Format::V0_4, "gzip:5", SampleType::U16), json!({ "id": "gzip", "level": 5 }));
    assert_eq!(
        compressor(Format::V0_4, "blosc:1", SampleType::U16),
        json!({ "id": "blosc", "cname": "zstd", "clevel": 1, "shuffle": 1, "blocksize": 0 })
    );
}

#[test]
fn in_version_0_4_each_chunk_is_a_file_of_full_size() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("p.zarr");
    let image = encoded(picture(Size::new(50, 30), 1, SampleType::U8, 2), Format::V0_4, "none");
    // 50 x 30 pixels are 4 x 4 chunks of 16 x 8, and 2 x 2 shards of 32 x 24.
    let whole = Pixels::filled(Size::new(50, 30), SampleType::U8, &[7, 9]);
    let store = ZarrImage::create(&path, image.clone()).unwrap();
    let mut stored = BTreeMap::new();
    for at in shards(&image, Level(0)) {
        let rect = image.shard_rect(Level(0), at).unwrap();
        stored.insert(at, store.write_shard(Level(0), at, &cut(&whole, rect)).unwrap());
    }
    store.finish(&Map::new()).unwrap();
    let files = files(&path);
    let chunks: Vec<_> = files.iter().filter(|(name, _)| !name.contains(".z")).collect();
    assert_eq!(chunks.len(), 2 * 4 * 4);
    assert!(chunks.iter().all(|(_, content)| content.len() == 16 * 8));
    // The last chunk of the second channel has two columns and six rows inside of the level.
    let expected: Vec<u8> = (0..8).flat_map(|y| (0..16).map(move |x| if x < 2 && y < 6 { 9 } else { 0 })).collect();
    assert_eq!(files["0/1/3/3"], expected);
    // A shard's digest is that of its files.
    let last = TileCoord { row: 1, column: 1 };
    let names = image.shard_files(Level(0), last);
    assert_eq!(names, ["0/0/3/2", "0/0/3/3", "0/1/3/2", "0/1/3/3"]);
    let mut by_hand = Sha256::new();
    for name in &names {
        by_hand.update(&name[2..]);
        by_hand.update([0]);
        by_hand.update(128u64.to_le_bytes());
        by_hand.update(&files[name]);
    }
    assert_eq!(stored[&last], Stored::Sha256(by_hand.finalize().into()));
    for (at, written) in stored {
        assert_eq!(stored_shard(&path, Level(0), at).unwrap(), written, "{at}");
    }
    // Neither a chunk that changed nor one that is gone goes unnoticed, nor one that should not be there.
    let before = stored_shard(&path, Level(0), last).unwrap();
    fs::write(path.join("0/1/3/3"), [0; 128]).unwrap();
    assert_ne!(stored_shard(&path, Level(0), last).unwrap(), before);
    fs::remove_file(path.join("0/1/3/3")).unwrap();
    assert_ne!(stored_shard(&path, Level(0), last).unwrap(), before);
    names.iter().for_each(|name| drop(fs::remove_file(path.join(name))));
    assert_eq!(stored_shard(&path, Level(0), last).unwrap(), Stored::Background);
}

/// Who compares what is stored believes no more of the metadata than could be ours.
#[test]
fn a_group_that_cannot_be_ours_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.zarr");
    let image = encoded(image(Size::new(50, 30), 1, SampleType::U8), Format::V0_4, "zstd");
    ZarrImage::create(&path, image).unwrap().finish(&Map::new()).unwrap();
    let at = TileCoord { row: 0, column: 0 };
    assert_eq!(stored_shard(&path, Level(0), at).unwrap(), Stored::Background);
    for attributes in [
        "{}",
        r#"{"microtome": {"shard": [0, 5]}}"#,
        r#"{"microtome": {"shard": [18446744073709551615, 9999999999]}}"#,
        "[",
    ] {
        fs::write(path.join("0/.zattrs"), attributes).unwrap();
        let error = stored_shard(&path, Level(0), at).unwrap_err();
        assert!(matches!(error, microtome_io::Error::Format { .. }), "{error}");
    }
}

#[test]
fn version_0_4_tells_a_reader_the_same() {
    let folder = tempfile::tempdir().unwrap();
    for (n, image) in [image(Size::new(101, 50), 3, SampleType::U8), picture(Size::new(101, 50), 3, SampleType::U16, 3)]
        .into_iter()
        .enumerate()
    {
        let image = encoded(image, Format::V0_4, "blosc:5");
        let levels: Vec<_> = (0..3).map(|n| content(&image, Level(n), 5)).collect();
        let path = folder.path().join(format!("{n}.zarr"));
        let sink = ZarrImage::create(&path, image.clone()).unwrap();
        write_all(&sink, &levels);
        sink.finish(&Map::new()).unwrap();
        let store = OmeZarr::open(&path).unwrap();
        let info = store.info();
        assert_eq!((info.version.as_str(), info.method.as_deref()), ("0.4", Some(image.method.as_str())));
        assert_eq!((&info.levels, info.sample, info.chunk), (&image.levels, image.sample, image.chunk));
        assert_eq!((&info.metadata, &info.attributes), (&image.metadata, &image.attributes));
        match &image.content {
            microtome_io::store::Content::Labels { classes } => assert_eq!(info.content.classes()[1..], *classes),
            channels @ microtome_io::store::Content::Image { .. } => assert_eq!(&info.content, channels),
        }
        for rect in [Rect::new(0, 0, 101, 50), Rect::new(-5, -9, 40, 30), Rect::new(90, 40, 30, 30)] {
            assert_eq!(store.read_region(Level(0), rect).unwrap(), cut(&levels[0], rect), "{rect}");
        }
    }
}

#[test]
fn labels_of_an_image_without_a_unit_have_none() {
    let folder = tempfile::tempdir().unwrap();
    for format in [Format::V0_5, Format::V0_4] {
        let path = folder.path().join(format.to_string());
        let mut image: StoredImage = encoded(image(Size::new(9, 9), 2, SampleType::U8), format, "zstd");
        image.source = Some(LabelSource { image: "../../".into(), unit: AxisUnit::Unknown });
        ZarrImage::create(&path, image).unwrap().finish(&Map::new()).unwrap();
        let name = if format == Format::V0_5 { "zarr.json" } else { ".zattrs" };
        let root: Value = serde_json::from_slice(&fs::read(path.join(name)).unwrap()).unwrap();
        let root = if format == Format::V0_5 { &root["attributes"]["ome"] } else { &root };
        let multiscale = &root["multiscales"][0];
        assert_eq!(multiscale["axes"], json!([{ "name": "y", "type": "space" }, { "name": "x", "type": "space" }]));
        assert_eq!(multiscale["datasets"][0]["coordinateTransformations"][0]["scale"], json!([0.25, 0.5]));
        assert_eq!(root["image-label"]["source"], json!({ "image": "../../" }));
        assert_eq!(SlideReader::info(&OmeZarr::open(&path).unwrap()).resolution, None);
    }
}
