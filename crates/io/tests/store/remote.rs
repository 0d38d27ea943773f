//! Stores under URLs: in a bucket in memory where the feature `remote` is on, and refused where it is not.
//!
//! A real service, over a real connection that fails, is the matter of `tests/python/check_remote.py`.

#[cfg(not(feature = "remote"))]
#[test]
fn without_the_feature_urls_are_refused_by_name() {
    use microtome_io::slide::{OpenOptions, open};
    use microtome_io::store::{OmeZarr, ZarrImage, inspect};
    use microtome_io::{SampleType, Size, remote};

    let (url, folder) = ("s3://bucket/mask.ome.zarr", tempfile::tempdir().unwrap());
    let refusals = [
        inspect(url).unwrap_err(),
        ZarrImage::create(url, super::image(Size::new(20, 10), 1, SampleType::U8)).unwrap_err(),
        OmeZarr::open(url).unwrap_err(),
        open(url, &OpenOptions::default()).unwrap_err(),
        remote::download(url, &folder.path().join("slide.svs")).unwrap_err(),
    ];
    for refusal in refusals {
        let text = refusal.to_string();
        assert!(text.starts_with(url) && text.contains("without the feature `remote`"), "{text}");
    }
    assert!(std::fs::read_dir(folder.path()).unwrap().next().is_none());
}

#[cfg(feature = "remote")]
mod with_the_feature {
    use std::collections::BTreeMap;
    use std::fs;
    use std::path::Path;

    use microtome_io::slide::{OpenOptions, SlideReader, open};
    use microtome_io::store::{
        ASSOCIATED, Format, Found, ImageSink, Kept, LabelledImage, OmeZarr, StoredImage, Survey, ZarrImage, inspect,
        make_group, pack, remove, remove_group, reopen, stored_bytes, stored_shard,
    };
    use microtome_io::{Error, Level, Pixels, Rect, SampleType, Size, TileCoord, remote};
    use serde_json::Map;

    use super::super::{encoded, image, pyramid, write_all, written};

    /// A bucket of this name in memory, and a store in it.
    fn bucket(name: &str, state: &Path) -> String {
        remote::in_memory(name, state);
        format!("s3://{name}/some where/m.ome.zarr")
    }

    fn form(format: Format) -> StoredImage {
        encoded(image(Size::new(101, 50), 3, SampleType::U8), format, "zstd")
    }

    /// Every object of a store, by its key: each is copied into a file.
    fn objects(url: &str, image: &StoredImage) -> BTreeMap<String, Vec<u8>> {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("object");
        let mut names: Vec<String> =
            ["zarr.json", ".zattrs", ".zgroup", ".microtome-unfinished"].map(Into::into).into();
        for level in (0..image.levels.len()).map(Level) {
            names.extend(["zarr.json", ".zarray", ".zattrs"].map(|name| format!("{level}/{name}")));
            names.extend(
                super::super::shards(image, level).into_iter().flat_map(|shard| image.shard_files(level, shard)),
            );
        }
        let get = |name: &String| match remote::download(&format!("{url}/{name}"), &file) {
            Ok(bytes) => {
                let content = fs::read(&file).unwrap();
                assert_eq!(content.len() as u64, bytes);
                Some((name.clone(), content))
            }
            Err(Error::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => None,
            Err(error) => panic!("{error}"),
        };
        names.iter().filter_map(get).collect()
    }

    #[test]
    fn a_store_has_the_bytes_of_one_in_a_folder_and_no_others() {
        let folder = tempfile::tempdir().unwrap();
        for (format, name) in [(Format::V0_5, "same-5"), (Format::V0_4, "same-4")] {
            let (url, image) = (bucket(name, folder.path()), form(format));
            let levels = pyramid(Size::new(101, 50), 3, 7);
            let local = folder.path().join(name);
            for path in [Path::new(&url), &local] {
                let sink = ZarrImage::create(path, image.clone()).unwrap();
                assert_eq!(inspect(path).unwrap(), Found::InUse);
                assert!(OmeZarr::open(path).unwrap_err().to_string().contains("not finished"));
                write_all(&sink, &levels);
                assert_eq!(
                    sink.read_shard(Level(0), TileCoord { row: 1, column: 1 }).unwrap().size(),
                    Size::new(32, 24)
                );
                sink.finish(&Map::new()).unwrap();
            }
            let files = written::files(&local);
            assert!(objects(&url, &image) == files, "{format}");
            assert_eq!(stored_bytes(&url).unwrap(), files.values().map(|file| file.len() as u64).sum::<u64>());
            assert_eq!(stored_bytes(&local).unwrap(), stored_bytes(&url).unwrap());
            assert!(matches!(inspect(&url).unwrap(), Found::Complete(_)));
            // Nothing of the run is left on this machine, either.
            assert!(fs::read_dir(folder.path().join("claims")).unwrap().next().is_none());
            for (level, expected) in levels.iter().enumerate() {
                let read = OmeZarr::open(&url).unwrap().read_region(Level(level), expected.size().rect()).unwrap();
                assert!(read == *expected, "{format}, level {level}");
            }
            let error = ZarrImage::create(&url, image).unwrap_err().to_string();
            assert!(error.contains("finished store"), "{error}");
            remove(&url).unwrap();
            assert_eq!((inspect(&url).unwrap(), stored_bytes(&url).unwrap()), (Found::Nothing, 0));
        }
    }

    #[test]
    fn what_was_stopped_is_gone_on_with_and_only_here() {
        let folder = tempfile::tempdir().unwrap();
        for (format, name) in [(Format::V0_5, "stopped-5"), (Format::V0_4, "stopped-4")] {
            let (url, image) = (bucket(name, folder.path()), form(format));
            let levels = pyramid(Size::new(101, 50), 3, 7);
            let first = TileCoord { row: 0, column: 0 };
            let sink = ZarrImage::create(&url, image.clone()).unwrap();
            let pixels = super::super::cut(&levels[0], sink.image().shard_rect(Level(0), first).unwrap());
            let stored = sink.write_shard(Level(0), first, &pixels).unwrap();
            let error = ZarrImage::create(&url, image.clone()).unwrap_err().to_string();
            assert!(error.contains("another process"), "{error}");
            assert!(remove(&url).unwrap_err().to_string().contains("another process"));
            drop(sink);
            assert_eq!(inspect(&url).unwrap(), Found::Unfinished);
            // What is there was put whole; nobody needs to read it.
            let mut survey = Survey::new(&url).unwrap();
            let second = TileCoord { row: 0, column: 1 };
            assert_eq!(survey.shard(Level(0), first).unwrap(), Kept::Seen { any: true });
            assert_eq!(survey.shard(Level(0), second).unwrap(), Kept::Seen { any: false });
            assert_eq!(survey.shard(Level(1), first).unwrap(), Kept::Seen { any: false });
            assert_eq!(stored_shard(&url, Level(0), first).unwrap(), stored);

            // Another machine, which has begun nothing.
            let claims = folder.path().join("claims");
            fs::rename(&claims, folder.path().join("kept")).unwrap();
            assert_eq!(inspect(&url).unwrap(), Found::Elsewhere);
            assert!(
                ZarrImage::resume(&url, image.clone(), []).unwrap_err().to_string().contains("no unfinished store")
            );
            assert!(ZarrImage::create(&url, image.clone()).unwrap_err().to_string().contains("unfinished store"));
            let _ = fs::remove_dir_all(&claims);
            fs::rename(folder.path().join("kept"), &claims).unwrap();

            let sink = ZarrImage::resume(&url, image.clone(), [(Level(0), first)]).unwrap();
            assert_eq!(inspect(&url).unwrap(), Found::InUse);
            for (n, whole) in levels.iter().enumerate() {
                for shard in super::super::shards(&image, Level(n)).into_iter().filter(|&at| (n, at) != (0, first)) {
                    let rect = image.shard_rect(Level(n), shard).unwrap();
                    sink.write_shard(Level(n), shard, &super::super::cut(whole, rect)).unwrap();
                }
            }
            sink.finish(&Map::new()).unwrap();
            drop(sink);
            let whole = objects(&url, &image);
            let local = folder.path().join(name);
            let sink = ZarrImage::create(&local, image.clone()).unwrap();
            write_all(&sink, &levels);
            sink.finish(&Map::new()).unwrap();
            assert!(whole == written::files(&local), "{format}");

            reopen(&url).unwrap();
            assert_eq!(inspect(&url).unwrap(), Found::Unfinished);
            // What another machine has begun may be removed by whoever says so.
            fs::remove_dir_all(&claims).unwrap();
            assert_eq!(inspect(&url).unwrap(), Found::Elsewhere);
            remove(&url).unwrap();
            assert_eq!(inspect(&url).unwrap(), Found::Nothing);
        }
    }

    #[test]
    fn what_another_machine_has_taken_over_is_left_to_it() {
        let folder = tempfile::tempdir().unwrap();
        let url = bucket("taken-over", folder.path());
        let (image, levels) = (form(Format::V0_5), pyramid(Size::new(101, 50), 3, 7));
        let steps: [fn(&ZarrImage) -> microtome_io::Result<()>; 2] = [ImageSink::sync, |here| here.finish(&Map::new())];
        for step in steps {
            let here = ZarrImage::create(&url, image.clone()).unwrap();
            write_all(&here, &levels);
            fs::rename(folder.path().join("claims"), folder.path().join("kept")).unwrap();
            remove(&url).unwrap();
            let there = ZarrImage::create(&url, image.clone()).unwrap();
            let error = step(&here).unwrap_err().to_string();
            assert!(error.contains("somebody has removed the store"), "{error}");
            assert_eq!(inspect(&url).unwrap(), Found::InUse);
            write_all(&there, &levels);
            there.sync().unwrap();
            there.finish(&Map::new()).unwrap();
            let read = OmeZarr::open(&url).unwrap().read_region(Level(0), levels[0].size().rect()).unwrap();
            assert!(read == levels[0]);
            remove(&url).unwrap();
            fs::remove_dir_all(folder.path().join("kept")).unwrap();
        }
    }

    #[test]
    fn what_is_not_ours_is_neither_overwritten_nor_removed() {
        let folder = tempfile::tempdir().unwrap();
        let url = bucket("strangers", folder.path());
        let image = image(Size::new(20, 10), 1, SampleType::U8);
        let sink = ZarrImage::create(&url, image.clone()).unwrap();
        sink.finish(&Map::new()).unwrap();
        // A level of ours is no store, and the objects in it are none, either.
        for inner in ["0", "0/zarr.json"] {
            let path = format!("{url}/{inner}");
            assert_eq!(inspect(&path).unwrap(), Found::Foreign, "{inner}");
            assert!(
                ZarrImage::create(&path, image.clone()).unwrap_err().to_string().contains("no store of microtome's")
            );
            assert!(remove(&path).unwrap_err().to_string().contains("not removed"));
        }
        // A guest in a store of ours keeps it from being removed, whole.
        make_group(&url, "guest", Format::V0_5).unwrap();
        assert!(remove(&url).unwrap_err().to_string().contains("guest"));
        assert!(matches!(inspect(&url).unwrap(), Found::Complete(_)));
        remove_group(&url, "guest").unwrap();
        make_group(&url, ASSOCIATED, Format::V0_5).unwrap();
        remove(&url).unwrap();
        assert_eq!(stored_bytes(&url).unwrap(), 0);
        assert!(LabelledImage::open(&url).unwrap_err().to_string().contains("in a folder only"));
        for wrong in ["s3://strangers", "s3://strangers/", "s3:///x.zarr", "s3://strangers/a//b"] {
            let error = ZarrImage::create(wrong, image.clone()).unwrap_err();
            assert!(matches!(error, Error::Usage { .. }), "{wrong}: {error}");
        }
    }

    #[test]
    fn stores_are_slides_and_what_is_not_there_is_said() {
        let folder = tempfile::tempdir().unwrap();
        let url = bucket("slides", folder.path());
        let image = image(Size::new(101, 50), 3, SampleType::U8);
        let levels = pyramid(Size::new(101, 50), 3, 7);
        let sink = ZarrImage::create(&url, image.clone()).unwrap();
        write_all(&sink, &levels);
        sink.finish(&Map::new()).unwrap();
        let slide = open(&url, &OpenOptions::default()).unwrap();
        assert_eq!(slide.info().path, Path::new(&url));
        let rect = Rect::new(-3, 20, 60, 40);
        let expected = OmeZarr::open(&url).unwrap().read_region(Level(0), rect).unwrap();
        assert!(slide.read_region(Level(0), rect).unwrap() == expected);
        assert_eq!(slide.content_id().unwrap(), OmeZarr::open(&url).unwrap().content_id().unwrap());
        for missing in ["s3://slides/some where/n.ome.zarr", "s3://slides/some where/m.ome.zarr/9"] {
            let error = open(missing, &OpenOptions::default()).unwrap_err();
            assert!(matches!(error, Error::Io { .. }) && error.to_string().contains("there is nothing"), "{error}");
            assert!(OmeZarr::open(missing).is_err());
        }
        // One object is read as the file that it is.
        let error = open(format!("{url}/zarr.json"), &OpenOptions::default()).unwrap_err();
        assert!(matches!(error, Error::Unsupported { .. }), "{error}");
        // What is not a store says so.
        let error = open("s3://slides/some where", &OpenOptions::default()).unwrap_err();
        assert!(error.to_string().contains("no OME-Zarr group"), "{error}");
    }

    /// Pixels of another image in the place of those that were looked at are not believed.
    #[test]
    fn an_object_that_becomes_another_one_is_noticed() {
        let folder = tempfile::tempdir().unwrap();
        let url = bucket("changing", folder.path());
        // A shard of more than what is fetched at once.
        let size = Size::new(512, 512);
        let image = StoredImage {
            chunk: Size::new(256, 256),
            shard: size,
            ..encoded(image(size, 1, SampleType::U8), Format::V0_5, "none")
        };
        let first = TileCoord { row: 0, column: 0 };
        let write = |label: u16| {
            let sink = ZarrImage::create(&url, image.clone()).unwrap();
            let pixels = Pixels::filled(size, SampleType::U8, &[label]);
            sink.write_shard(Level(0), first, &pixels).unwrap();
            sink.finish(&Map::new()).unwrap();
        };
        write(1);
        // The shard stays open between the reads of its cells.
        let slide = open(&url, &OpenOptions::default().cache_bytes(0)).unwrap();
        assert!(slide.read_region(Level(0), Rect::new(0, 0, 1, 1)).is_ok());
        remove(&url).unwrap();
        write(2);
        let error = slide.read_region(Level(0), Rect::new(511, 511, 1, 1)).unwrap_err();
        assert!(error.to_string().contains("has become another one"), "{error}");
    }

    #[test]
    fn a_store_in_one_file_is_refused_where_a_folder_is_packed() {
        let folder = tempfile::tempdir().unwrap();
        let url = bucket("packed", folder.path());
        ZarrImage::create(&url, image(Size::new(20, 10), 1, SampleType::U8)).unwrap().finish(&Map::new()).unwrap();
        assert!(pack(&url, folder.path().join("a.ozx")).unwrap_err().to_string().contains("in a folder"));
    }
}
