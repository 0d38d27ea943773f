//! What lies at a path before, during and after a store is written, and who may remove it.

use std::fs;

use microtome_io::store::{
    ASSOCIATED, Format, Found, ImageSink, OmeZarr, Stored, StoredShards, ZarrImage, inspect, make_group, remove,
    reopen, stored_shard,
};
use microtome_io::{Level, Pixels, SampleType, Size, TileCoord};

use serde_json::{Map, json};

use super::written::files;
use super::{cut, encoded, image, pyramid, shards};

fn one_shard(mask: &ZarrImage) {
    let labels = Pixels::filled(Size::new(20, 10), SampleType::U8, &[1]);
    mask.write_shard(Level(0), TileCoord { row: 0, column: 0 }, &labels).unwrap();
}

#[test]
fn a_store_is_nothing_then_unfinished_then_complete_then_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.zarr");
    let image = image(Size::new(20, 10), 2, SampleType::U8);
    assert_eq!(inspect(&path).unwrap(), Found::Nothing);
    let mask = ZarrImage::create(&path, image.clone()).unwrap();
    one_shard(&mask);
    assert_eq!(inspect(&path).unwrap(), Found::InUse);
    assert!(remove(&path).unwrap_err().to_string().contains("another process"));
    assert!(!path.join("zarr.json").exists(), "the root metadata comes last");
    assert!(OmeZarr::open(&path).unwrap_err().to_string().contains("not finished"));
    ImageSink::sync(&mask).unwrap();
    let notes = Map::from_iter([("unreadable-tiles".to_owned(), json!(3))]);
    mask.finish(&notes).unwrap();
    let attributes = image.attributes.clone().into_iter().chain(notes).collect();
    assert_eq!(inspect(&path).unwrap(), Found::Complete(attributes));
    assert_eq!(files(&path).keys().collect::<Vec<_>>(), ["0/c/0/0", "0/zarr.json", "1/zarr.json", "zarr.json"]);
    let error = ZarrImage::create(&path, image).unwrap_err().to_string();
    assert!(error.contains("finished store"), "{error}");
    remove(&path).unwrap();
    assert_eq!(inspect(&path).unwrap(), Found::Nothing);
    remove(&path).unwrap();
}

#[test]
fn one_of_two_gets_an_empty_folder_and_an_unfinished_store_can_go() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.zarr");
    fs::create_dir(&path).unwrap();
    assert_eq!(inspect(&path).unwrap(), Found::Nothing);
    let image = image(Size::new(20, 10), 1, SampleType::U8);
    let mask = ZarrImage::create(&path, image.clone()).unwrap();
    one_shard(&mask);
    assert!(ZarrImage::create(&path, image.clone()).unwrap_err().to_string().contains("another process"));
    drop(mask);
    assert_eq!(inspect(&path).unwrap(), Found::Unfinished);
    let error = ZarrImage::create(&path, image).unwrap_err().to_string();
    assert!(error.contains("unfinished store"), "{error}");
    // What a crash in the middle of a file leaves.
    fs::write(path.join("0/c/0/.1.partial"), [1]).unwrap();
    fs::write(path.join(".zarr.json.partial"), [1]).unwrap();
    make_group(&path, ASSOCIATED, Format::V0_5).unwrap();
    fs::write(path.join("associated/.zarr.json.0123456789abcdef.partial"), [1]).unwrap();
    remove(&path).unwrap();
    assert!(!path.exists());
}

#[test]
fn several_take_part_in_a_store_and_one_finishes_it() {
    let folder = tempfile::tempdir().unwrap();
    for format in [Format::V0_5, Format::V0_4] {
        let image = encoded(image(Size::new(100, 70), 3, SampleType::U8), format, "zstd");
        let shards = || {
            (0..3).flat_map(|level| {
                let grid = image.shards(Level(level)).unwrap();
                (0..grid.area()).map(move |i| (Level(level), TileCoord { row: i / grid.width, column: i % grid.width }))
            })
        };
        let write = |mask: &ZarrImage, (level, at): (Level, TileCoord)| {
            let size = image.shard_rect(level, at).unwrap().size();
            mask.write_shard(level, at, &Pixels::filled(size, SampleType::U8, &[1 + at.column as u16 % 3])).unwrap();
        };
        let alone = folder.path().join(format!("alone-{format}.zarr"));
        let mask = ZarrImage::create(&alone, image.clone()).unwrap();
        shards().for_each(|shard| write(&mask, shard));
        mask.finish(&Map::new()).unwrap();

        let path = folder.path().join(format!("shared-{format}.zarr"));
        std::thread::scope(|scope| {
            for worker in 0..4 {
                let (path, image) = (&path, &image);
                scope.spawn(move || {
                    let mask = ZarrImage::join(path, image.clone(), []).unwrap();
                    // Nobody takes it for free, and nobody has it for himself.
                    assert_eq!(inspect(path).unwrap(), Found::InUse);
                    assert!(ZarrImage::create(path, image.clone()).is_err());
                    assert!(ZarrImage::resume(path, image.clone(), []).is_err());
                    shards().enumerate().filter(|(i, _)| i % 4 == worker).for_each(|(_, shard)| write(&mask, shard));
                    mask.sync().unwrap();
                });
            }
        });
        assert_eq!(inspect(&path).unwrap(), Found::Unfinished);
        assert!(OmeZarr::open(&path).is_err());
        // What one has left who was killed before its first shard.
        fs::write(path.join("0/.zarr.json.0123456789abcdef.partial"), [1]).unwrap();
        let mask = ZarrImage::resume(&path, image.clone(), shards()).unwrap();
        let error = ZarrImage::join(&path, image.clone(), []).unwrap_err().to_string();
        assert!(error.contains("another process"), "{error}");
        mask.finish(&Map::new()).unwrap();
        assert!(files(&path) == files(&alone), "{format}");
        let error = ZarrImage::join(&path, image.clone(), []).unwrap_err().to_string();
        assert!(error.contains("finished store"), "{error}");
    }
}

#[test]
fn what_is_not_ours_is_neither_overwritten_nor_removed() {
    let folder = tempfile::tempdir().unwrap();
    let image = image(Size::new(20, 10), 1, SampleType::U8);
    let strangers: [(&str, &str, &str); 4] = [
        ("file", "", "a picture"),
        ("photos", "cat.jpg", "meow"),
        ("other.zarr", "zarr.json", r#"{"attributes": {"ome": {"multiscales": []}}}"#),
        ("broken.zarr", "zarr.json", "{"),
    ];
    for (name, inner, text) in strangers {
        let path = folder.path().join(name);
        if inner.is_empty() {
            fs::write(&path, text).unwrap();
        } else {
            fs::create_dir(&path).unwrap();
            fs::write(path.join(inner), text).unwrap();
        }
        assert_eq!(inspect(&path).unwrap(), Found::Foreign, "{name}");
        for begun in [ZarrImage::create(&path, image.clone()), ZarrImage::join(&path, image.clone(), [])] {
            let error = begun.unwrap_err().to_string();
            assert!(error.contains("no store of microtome's"), "{error}");
        }
        assert!(remove(&path).unwrap_err().to_string().contains("not removed"));
        assert!(path.exists());
    }
    // A guest in a store of ours keeps it from being removed, whole.
    let path = folder.path().join("m.zarr");
    let mask = ZarrImage::create(&path, image).unwrap();
    one_shard(&mask);
    mask.finish(&Map::new()).unwrap();
    drop(mask);
    fs::write(path.join("notes.txt"), "mine").unwrap();
    let before = files(&path);
    assert!(remove(&path).unwrap_err().to_string().contains("notes.txt"));
    assert!(files(&path) == before);
}

#[cfg(unix)]
#[test]
fn what_a_link_leads_to_is_not_removed() {
    let folder = tempfile::tempdir().unwrap();
    let (path, link) = (folder.path().join("m.zarr"), folder.path().join("link"));
    drop(ZarrImage::create(&path, image(Size::new(20, 10), 1, SampleType::U8)).unwrap());
    std::os::unix::fs::symlink(&path, &link).unwrap();
    let before = files(&path);
    for link in [link.clone(), link.join("")] {
        assert!(remove(&link).unwrap_err().to_string().contains("symbolic link"));
        assert!(files(&path) == before);
    }
}

/// An error of the file system does not say that there is nothing.
#[cfg(target_os = "linux")]
#[test]
fn what_cannot_be_looked_at_is_not_absent() {
    use microtome_io::Error;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.zarr");
    fs::create_dir(&path).unwrap();
    std::os::unix::fs::symlink("0", path.join("0")).unwrap();
    let stored = stored_shard(&path, Level(0), TileCoord { row: 0, column: 0 });
    assert!(matches!(stored, Err(Error::Io { .. })), "{stored:?}");
    // Of 4095 bytes that a path may have, too few are left for the name of the marker.
    let mut path = folder.path().to_owned();
    while path.as_os_str().len() < 4076 {
        path.push("d".repeat((4091 - path.as_os_str().len()).min(200)));
    }
    fs::create_dir_all(&path).unwrap();
    fs::write(path.join("x"), "").unwrap();
    let found = inspect(&path);
    assert!(matches!(found, Err(Error::Io { .. })), "{found:?}");
}

#[test]
fn a_store_that_cannot_begin_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("missing/m.zarr");
    let image = image(Size::new(20, 10), 1, SampleType::U8);
    assert!(ZarrImage::create(&path, image.clone()).unwrap_err().to_string().contains("m.zarr"));
    let mut bad = image;
    bad.levels.clear();
    assert!(ZarrImage::create(folder.path().join("m.zarr"), bad).is_err());
    assert!(files(folder.path()).is_empty() && fs::read_dir(folder.path()).unwrap().next().is_none());
}

#[cfg(unix)]
#[test]
fn a_store_that_fails_in_the_middle_of_its_beginning_leaves_nothing() {
    use std::fs::Permissions;
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.zarr");
    fs::create_dir(&path).unwrap();
    let image = image(Size::new(20, 10), 1, SampleType::U8);
    // The folder around it can be written to but not opened, so that its names cannot be brought to the disk.
    fs::set_permissions(folder.path(), Permissions::from_mode(0o300)).unwrap();
    let created = ZarrImage::create(&path, image);
    fs::set_permissions(folder.path(), Permissions::from_mode(0o700)).unwrap();
    match created {
        Err(_) => assert_eq!(inspect(&path).unwrap(), Found::Nothing),
        Ok(_) => println!("nothing failed: the superuser may open any folder"),
    }
}

/// What was written before the stop and is not the same now, such as a tile that could be read then.
#[test]
fn what_is_background_now_replaces_what_an_earlier_attempt_wrote() {
    let folder = tempfile::tempdir().unwrap();
    for format in [Format::V0_5, Format::V0_4] {
        let path = folder.path().join(format!("{format}.zarr"));
        let image = encoded(image(Size::new(20, 10), 2, SampleType::U8), format, "zstd");
        one_shard(&ZarrImage::create(&path, image.clone()).unwrap());
        let mask = ZarrImage::resume(&path, image, []).unwrap();
        let nothing = Pixels::filled(Size::new(20, 10), SampleType::U8, &[0]);
        let first = TileCoord { row: 0, column: 0 };
        assert_eq!(mask.write_shard(Level(0), first, &nothing).unwrap(), Stored::Background);
        assert_eq!(stored_shard(&path, Level(0), first).unwrap(), Stored::Background, "{format}");
        mask.finish(&Map::new()).unwrap();
        let read = OmeZarr::open(&path).unwrap().read_region(Level(0), Size::new(20, 10).rect()).unwrap();
        assert!(read == nothing, "{format}");
    }
}

#[test]
fn what_is_stored_of_many_shards_is_what_is_stored_of_each() {
    let folder = tempfile::tempdir().unwrap();
    let levels = pyramid(Size::new(100, 70), 3, 5);
    for format in [Format::V0_5, Format::V0_4] {
        let path = folder.path().join(format!("{format}.zarr"));
        let image = encoded(image(Size::new(100, 70), 3, SampleType::U8), format, "zstd");
        let mask = ZarrImage::create(&path, image.clone()).unwrap();
        let many = StoredShards::new(&path).unwrap();
        for (level, whole) in levels.iter().enumerate() {
            let level = Level(level);
            for shard in shards(&image, level) {
                assert_eq!(many.shard(level, shard).unwrap(), Stored::Background);
                let pixels = cut(whole, image.shard_rect(level, shard).unwrap());
                let stored = mask.write_shard(level, shard, &pixels).unwrap();
                assert_eq!(many.shard(level, shard).unwrap(), stored);
                assert_eq!(stored_shard(&path, level, shard).unwrap(), stored);
            }
        }
        assert_eq!(many.shard(Level(3), TileCoord { row: 0, column: 0 }).unwrap(), Stored::Background);
    }
}

#[test]
fn a_store_of_version_0_4_keeps_the_same_promises() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.zarr");
    let image = encoded(image(Size::new(20, 10), 2, SampleType::U8), Format::V0_4, "zstd");
    let mask = ZarrImage::create(&path, image.clone()).unwrap();
    one_shard(&mask);
    assert_eq!(inspect(&path).unwrap(), Found::InUse);
    assert!(OmeZarr::open(&path).unwrap_err().to_string().contains("not finished"));
    drop(mask);
    assert_eq!(inspect(&path).unwrap(), Found::Unfinished);
    let done = [(Level(0), TileCoord { row: 0, column: 0 })];
    let mask = ZarrImage::resume(&path, image.clone(), done).unwrap();
    mask.finish(&Map::new()).unwrap();
    drop(mask);
    assert_eq!(inspect(&path).unwrap(), Found::Complete(image.attributes.clone()));
    let names =
        [".zattrs", ".zgroup", "0/.zarray", "0/.zattrs", "0/0/0", "0/0/1", "0/1/0", "0/1/1", "1/.zarray", "1/.zattrs"];
    let whole = files(&path);
    assert_eq!(whole.keys().collect::<Vec<_>>(), names);
    reopen(&path).unwrap();
    assert_eq!(inspect(&path).unwrap(), Found::Unfinished);
    assert!(OmeZarr::open(&path).is_err());
    let mask = ZarrImage::resume(&path, image, done).unwrap();
    mask.finish(&Map::new()).unwrap();
    drop(mask);
    assert!(files(&path) == whole);
    remove(&path).unwrap();
    assert!(!path.exists());
}

/// At every moment of the last step, a crash leaves what is told from a finished store.
#[test]
fn a_group_of_version_0_4_without_attributes_is_no_image() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.zarr");
    let image = encoded(image(Size::new(20, 10), 1, SampleType::U8), Format::V0_4, "zstd");
    let mask = ZarrImage::create(&path, image).unwrap();
    one_shard(&mask);
    drop(mask);
    fs::write(path.join(".zgroup"), r#"{"zarr_format": 2}"#).unwrap();
    assert_eq!(inspect(&path).unwrap(), Found::Unfinished);
    assert!(OmeZarr::open(&path).is_err());
    remove(&path).unwrap();
    assert!(!path.exists());
}

#[test]
fn an_image_with_labels_is_not_removed_with_them() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.zarr");
    ZarrImage::create(&path, image(Size::new(20, 10), 1, SampleType::U8)).unwrap().finish(&Map::new()).unwrap();
    fs::create_dir(path.join("labels")).unwrap();
    assert!(remove(&path).unwrap_err().to_string().contains("has labels"));
    assert!(matches!(inspect(&path).unwrap(), Found::Complete(_)));
}
