//! Stores made to hurt: each is refused with a sentence, none panics, allocates what it claims or leads out of its folder.

use std::fs;
use std::path::{Path, PathBuf};

use microtome_io::slide::OpenOptions;
use microtome_io::store::{Content, Format, ImageSink, OmeZarr, ZarrImage};
use microtome_io::{Error, Level, Rect, SampleType, Size};
use proptest::prelude::*;
use serde_json::{Map, Value, json};

use super::{content, encoded, image, picture, pyramid, write_all};

/// A sound store of 101 × 50 pixels, two levels, in shards of 32 × 24.
fn store(folder: &Path) -> PathBuf {
    let path = folder.join("m.zarr");
    let mask = ZarrImage::create(&path, image(Size::new(101, 50), 2, SampleType::U8)).unwrap();
    write_all(&mask, &pyramid(Size::new(101, 50), 2, 5));
    mask.finish(&Map::new()).unwrap();
    path
}

/// A sound store of a picture, of the same sizes.
fn picture_store(folder: &Path, channels: u16) -> PathBuf {
    let path = folder.join("p.zarr");
    let image = picture(Size::new(101, 50), 2, SampleType::U8, channels);
    let levels = [content(&image, Level(0), 5), content(&image, Level(1), 5)];
    let sink = ZarrImage::create(&path, image).unwrap();
    write_all(&sink, &levels);
    sink.finish(&Map::new()).unwrap();
    path
}

/// `omero` is for people who look: whatever is in it, the pixels are read.
#[test]
fn strange_names_of_channels_are_no_reason_to_refuse() {
    let strange =
        [json!(7), json!({}), json!([]), json!([7]), json!([{ "label": 7, "color": "+12345" }]), json!(vec![0; 99])];
    for channels in strange {
        let folder = tempfile::tempdir().unwrap();
        let path = picture_store(folder.path(), 2);
        edit(&path.join("zarr.json"), |root| root["attributes"]["ome"]["omero"]["channels"] = channels.clone());
        read_everything(&path).unwrap();
        let store = OmeZarr::open(&path).unwrap();
        let Content::Image { channels: read } = &store.info().content else { panic!("a picture was written") };
        assert!(read.is_empty() || read.len() == 2, "{channels}: {read:?}");
    }
}

/// What is not stored is background; what has gone away is not.
#[test]
fn a_store_that_goes_away_is_no_background() {
    for format in [Format::V0_5, Format::V0_4] {
        let folder = tempfile::tempdir().unwrap();
        let (here, there) = (folder.path().join("m.zarr"), folder.path().join("elsewhere.zarr"));
        let image = encoded(image(Size::new(101, 50), 1, SampleType::U8), format, "zstd");
        let mask = ZarrImage::create(&here, image).unwrap();
        mask.finish(&Map::new()).unwrap();
        let slide = microtome_io::slide::open(&here, &OpenOptions::default()).unwrap();
        let read = || slide.read_region(Level(0), Rect::new(0, 0, 20, 20));
        slide.keep_decoded(0);
        assert!(read().unwrap().as_u8().unwrap().iter().all(|&v| v == 0));
        fs::rename(&here, &there).unwrap();
        let error = read().unwrap_err();
        assert!(error.to_string().contains("gone away"), "{error}");
        fs::rename(&there, &here).unwrap();
        assert!(read().unwrap().as_u8().unwrap().iter().all(|&v| v == 0));
    }
}

/// Found by the fuzz target `store`: a document that is a number ended the program.
#[test]
fn metadata_that_are_no_objects_are_refused() {
    for name in ["zarr.json", ".zattrs", "OME/zarr.json", "OME/.zattrs"] {
        for document in ["2", "[]", "[7]", "\"x\"", "true", "null"] {
            let folder = tempfile::tempdir().unwrap();
            if name.starts_with("OME") {
                fs::create_dir(folder.path().join("OME")).unwrap();
                let root = json!({ "bioformats2raw.layout": 3 });
                fs::write(folder.path().join(".zattrs"), root.to_string()).unwrap();
            }
            for document in [document.to_owned(), format!(r#"{{"attributes": {document}, "multiscales": {document}}}"#)]
            {
                fs::write(folder.path().join(name), &document).unwrap();
                let error = OmeZarr::open(folder.path()).unwrap_err();
                assert!(
                    matches!(error, Error::Format { .. } | Error::Unsupported { .. }),
                    "{name} {document}: {error}"
                );
            }
        }
    }
}

fn edit(file: &Path, change: impl Fn(&mut Value)) {
    let mut document: Value = serde_json::from_slice(&fs::read(file).unwrap()).unwrap();
    change(&mut document);
    fs::write(file, document.to_string()).unwrap();
}

type Change = Box<dyn Fn(&mut Value)>;

fn read_everything(path: &Path) -> microtome_io::Result<()> {
    let store = OmeZarr::open(path)?;
    for (n, level) in store.info().levels.iter().enumerate() {
        store.read_region(Level(n), level.size.rect())?;
    }
    Ok(())
}

#[test]
fn hostile_metadata_is_refused() {
    let secret = tempfile::tempdir().unwrap();
    store(secret.path());
    let level_path = |path: &str| {
        let path = path.to_owned();
        move |root: &mut Value| root["attributes"]["ome"]["multiscales"][0]["datasets"][0]["path"] = json!(path)
    };
    let root = |pointer: &'static str, value: Value| {
        move |root: &mut Value| *root.pointer_mut(pointer).unwrap_or_else(|| panic!("{pointer}")) = value.clone()
    };
    let multiscale = "/attributes/ome/multiscales/0";
    let scale = "/attributes/ome/multiscales/0/datasets/0/coordinateTransformations/0/scale";
    let codec = "/codecs/0/configuration";
    let cases: Vec<(&str, &str, Change)> = vec![
        ("zarr.json", "out of the store", Box::new(level_path("../m.zarr/0"))),
        ("zarr.json", "out of the store", Box::new(level_path(&secret.path().join("m.zarr/0").to_string_lossy()))),
        ("zarr.json", "m.zarr/9", Box::new(level_path("9"))),
        ("zarr.json", "no multiscale image", Box::new(root("/attributes/ome/multiscales", json!([])))),
        ("zarr.json", "multiscales", Box::new(root(multiscale, json!("text")))),
        ("zarr.json", "0.9", Box::new(root("/attributes/ome/version", json!("0.9")))),
        ("zarr.json", "levels, not 0", Box::new(root("/attributes/ome/multiscales/0/datasets", json!([])))),
        ("zarr.json", "none is x", Box::new(root("/attributes/ome/multiscales/0/axes/1/name", json!("z")))),
        (
            "zarr.json",
            "at most 5 axes",
            Box::new(root("/attributes/ome/multiscales/0/axes", json!(vec![json!({"name": "y"}); 6]))),
        ),
        (
            "zarr.json",
            "dimensions, for the axes",
            Box::new(|root: &mut Value| {
                let multiscale = &mut root["attributes"]["ome"]["multiscales"][0];
                multiscale["axes"] = json!([{ "name": "t" }, { "name": "y" }, { "name": "x" }]);
                for n in 0..2 {
                    multiscale["datasets"][n]["coordinateTransformations"] = json!([]);
                }
            }),
        ),
        ("zarr.json", "one number for each", Box::new(root(scale, json!([1.0])))),
        ("zarr.json", "positive number", Box::new(root(scale, json!([0.0, 1.0])))),
        (
            "zarr.json",
            "\"affine\" is not supported",
            Box::new(root(
                "/attributes/ome/multiscales/0/datasets/0/coordinateTransformations/0/type",
                json!("affine"),
            )),
        ),
        ("0/zarr.json", "empty or too large", Box::new(root("/shape", json!([0, 101])))),
        ("0/zarr.json", "empty or too large", Box::new(root("/shape", json!([u64::MAX, 101])))),
        ("0/zarr.json", "do not fit", Box::new(root("/shape", json!([50])))),
        ("0/zarr.json", "float64", Box::new(root("/data_type", json!("float64")))),
        ("0/zarr.json", "fill value", Box::new(root("/fill_value", json!(-1)))),
        ("0/zarr.json", "whole chunks of 0", Box::new(root("/codecs/0/configuration/chunk_shape", json!([0, 16])))),
        ("0/zarr.json", "whole chunks of 7", Box::new(root("/codecs/0/configuration/chunk_shape", json!([7, 16])))),
        ("0/zarr.json", "differ in dimensions", Box::new(root("/codecs/0/configuration/chunk_shape", json!([8])))),
        (
            "0/zarr.json",
            "chunks has more than",
            Box::new(|array: &mut Value| {
                array["chunk_grid"]["configuration"]["chunk_shape"] = json!([1u64 << 40, 1u64 << 40]);
            }),
        ),
        (
            "0/zarr.json",
            "bytes that are allowed",
            Box::new(move |array: &mut Value| {
                array["chunk_grid"]["configuration"]["chunk_shape"] = json!([1u64 << 40, 1u64 << 40]);
                array.pointer_mut(codec).unwrap()["chunk_shape"] = json!([1u64 << 40, 1u64 << 40]);
            }),
        ),
        ("0/zarr.json", "\"bz2\"", Box::new(root("/codecs/0/configuration/codecs/1/name", json!("bz2")))),
        ("0/zarr.json", "no fixed size", Box::new(root("/codecs/0/configuration/index_codecs/1/name", json!("zstd")))),
        ("0/zarr.json", "nor \"end\"", Box::new(root("/codecs/0/configuration/index_location", json!("middle")))),
        ("0/zarr.json", "chunk key encoding", Box::new(root("/chunk_key_encoding/name", json!("../..")))),
        ("0/zarr.json", "separator", Box::new(root("/chunk_key_encoding/configuration/separator", json!("/../")))),
        ("1/zarr.json", "larger than the one before", Box::new(root("/shape", json!([51, 101])))),
        ("1/zarr.json", "differs from level 0", Box::new(root("/data_type", json!("uint16")))),
    ];
    for (file, sentence, change) in cases {
        let folder = tempfile::tempdir().unwrap();
        let path = store(folder.path());
        edit(&path.join(file), change);
        let error = OmeZarr::open(&path).expect_err(sentence).to_string();
        assert!(error.contains(sentence), "{sentence:?} is not in {error:?}");
    }
}

#[cfg(unix)]
#[test]
fn links_do_not_lead_out() {
    use std::os::unix::fs::symlink;
    let (folder, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (path, other) = (store(folder.path()), store(outside.path()));
    fs::remove_file(path.join("0/c/0/0")).unwrap();
    symlink(other.join("0/c/0/0"), path.join("0/c/0/0")).unwrap();
    let error = read_everything(&path).unwrap_err();
    assert!(matches!(error, Error::Tile { .. }) && error.to_string().contains("no regular file"), "{error}");
    fs::remove_dir_all(path.join("0")).unwrap();
    symlink(other.join("0"), path.join("0")).unwrap();
    assert!(OmeZarr::open(&path).unwrap_err().to_string().contains("out of the store"));
}

#[test]
fn a_shard_index_is_not_believed() {
    // (offset, length) of chunk 0, and what is said of it. The checksum is taken out of the metadata and the file, so that the index itself must hold.
    let cases = [
        (u64::MAX - 1, 2, "beyond any file"),
        (0, u64::MAX - 1, "bytes in the file"),
        (1 << 40, 8, "truncated"),
        (0, 0, "it holds 0 bytes instead of 128"),
    ];
    for (offset, length, sentence) in cases {
        let folder = tempfile::tempdir().unwrap();
        let path = store(folder.path());
        edit(&path.join("0/zarr.json"), |array| {
            array["codecs"][0]["configuration"]["index_codecs"].as_array_mut().unwrap().pop();
        });
        let file = path.join("0/c/0/0");
        let mut shard = fs::read(&file).unwrap();
        shard.truncate(shard.len() - 4);
        let at = shard.len() - 6 * 16;
        shard[at..at + 8].copy_from_slice(&offset.to_le_bytes());
        shard[at + 8..at + 16].copy_from_slice(&length.to_le_bytes());
        fs::write(&file, shard).unwrap();
        let store = OmeZarr::open(&path).unwrap();
        let error = store.read_region(Level(0), microtome_io::Rect::new(0, 0, 16, 8)).unwrap_err();
        assert!(matches!(error, Error::Tile { .. }) && error.to_string().contains(sentence), "{error}");
    }
}

#[test]
fn a_damaged_shard_names_its_chunk() {
    let folder = tempfile::tempdir().unwrap();
    let path = store(folder.path());
    fs::write(path.join("0/c/1/2"), [0; 7]).unwrap();
    let error = read_everything(&path).unwrap_err();
    let text = error.to_string();
    assert!(text.contains("level 0, column 4 row 3") && text.contains("less than its index"), "{text}");
    // Reports keep what it says, and not where the store lies.
    let Error::Tile { message, .. } = error else { panic!("{error}") };
    assert!(message.contains("0/c/1/2") && !message.contains(&folder.path().display().to_string()), "{message}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    /// One byte of one file differs: an answer or an error, never a panic.
    #[test]
    fn a_flipped_byte_does_not_panic(channels in 0u16..3, file in 0usize..4, at in 0.0..1.0f64, byte in 0u8..) {
        let folder = tempfile::tempdir().unwrap();
        let (path, shard) = match channels {
            0 => (store(folder.path()), "0/c/0/0"),
            n => (picture_store(folder.path(), n), "0/c/0/0/0"),
        };
        let file = path.join(["zarr.json", "0/zarr.json", "1/zarr.json", shard][file]);
        let mut bytes = fs::read(&file).unwrap();
        let at = (at * bytes.len() as f64) as usize;
        bytes[at] = byte;
        fs::write(&file, bytes).unwrap();
        let _ = read_everything(&path);
    }
}
