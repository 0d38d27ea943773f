//! Stores of ours in one ZIP file.

use std::fs;
use std::path::{Path, PathBuf};

use microtome_io::slide::{self, OpenOptions};
use microtome_io::store::{Format, ImageSink, LabelledImage, OmeZarr, ZarrImage, pack};
use microtome_io::{Level, Pixels, SampleType, Size};
use serde_json::{Map, Value, json};

use super::{corpus, encoded, image, picture, pyramid, write_all};

/// A finished picture with labels.
fn store(folder: &Path, name: &str, format: Format) -> PathBuf {
    let path = folder.join(name);
    let picture = encoded(picture(Size::new(101, 50), 2, SampleType::U8, 3), format, "zstd");
    let levels = [super::content(&picture, Level(0), 5), super::content(&picture, Level(1), 6)];
    let sink = ZarrImage::create(&path, picture).unwrap();
    write_all(&sink, &levels);
    sink.finish(&Map::new()).unwrap();
    let host = LabelledImage::open(&path).unwrap();
    host.make_folder().unwrap();
    let labels = encoded(image(Size::new(101, 50), 2, SampleType::U8), format, "zstd");
    let sink = ZarrImage::create(host.label("nuclei").unwrap(), labels).unwrap();
    write_all(&sink, &pyramid(Size::new(101, 50), 2, 7));
    sink.finish(&Map::new()).unwrap();
    host.list("nuclei").unwrap();
    path
}

fn pixels(path: &Path) -> Vec<Pixels> {
    let slide = slide::open(path, &OpenOptions::default()).unwrap();
    (slide.info().levels.iter().enumerate())
        .map(|(n, level)| slide.read_region(Level(n), level.size.rect()).unwrap())
        .collect()
}

/// The directory of an archive of ours: method, flags, date, checksum and name of each entry; and the comment.
fn directory(bytes: &[u8]) -> (Vec<(u16, String)>, Vec<u8>) {
    let number =
        |at: usize, n: usize| bytes[at..at + n].iter().rev().fold(0u64, |all, &b| all << 8 | u64::from(b)) as usize;
    let end = (0..=bytes.len() - 22).rev().find(|&at| bytes[at..].starts_with(b"PK\x05\x06")).unwrap();
    let comment = bytes[end + 22..].to_vec();
    assert_eq!(number(end + 20, 2), comment.len());
    assert_eq!(&bytes[end + 8..end + 20], [0xFF; 12], "all is in the records of ZIP64");
    assert!(bytes[end - 20..].starts_with(b"PK\x06\x07"));
    let record = number(end - 12, 8);
    assert!(bytes[record..].starts_with(b"PK\x06\x06"));
    let (count, length, start) = (number(record + 32, 8), number(record + 40, 8), number(record + 48, 8));
    assert_eq!(start + length, record);
    let (mut at, mut entries) = (start, Vec::new());
    for _ in 0..count {
        assert!(bytes[at..].starts_with(b"PK\x01\x02"));
        let (name, extra) = (number(at + 28, 2), number(at + 30, 2));
        assert_eq!((number(at + 12, 2), number(at + 14, 2)), (0, 0x21), "no time");
        assert_eq!(
            (number(at + 20, 4), number(at + 24, 4), number(at + 42, 4)),
            (0xFFFF_FFFF, 0xFFFF_FFFF, 0xFFFF_FFFF)
        );
        assert_eq!((number(at + 46 + name, 2), number(at + 48 + name, 2)), (1, 24));
        let text = String::from_utf8(bytes[at + 46..at + 46 + name].to_vec()).unwrap();
        // The entry itself says the same.
        let entry = number(at + 50 + name + 16, 8);
        assert!(bytes[entry..].starts_with(b"PK\x03\x04"));
        assert_eq!(bytes[entry + 4..entry + 26], bytes[at + 6..at + 28], "{text}");
        assert_eq!(&bytes[entry + 30..entry + 30 + name], text.as_bytes());
        assert_eq!(bytes[entry + 34 + name..entry + 50 + name], bytes[at + 50 + name..at + 66 + name]);
        entries.push((number(at + 10, 2) as u16, text));
        at += 46 + name + extra;
    }
    assert_eq!(at, record);
    (entries, comment)
}

#[test]
fn a_packed_store_is_the_store() {
    let folder = tempfile::tempdir().unwrap();
    for (format, ending) in [(Format::V0_5, "ozx"), (Format::V0_4, "ome.zarr.zip")] {
        let path = store(folder.path(), &format!("{format}.ome.zarr"), format);
        let before = super::written::files(&path);
        let zip = folder.path().join(format!("{format}.{ending}"));
        pack(&path, &zip).unwrap();
        assert!(super::written::files(&path) == before, "the folder stays as it is");
        assert!(pixels(&zip) == pixels(&path));
        let (packed, whole) = (OmeZarr::open(&zip).unwrap(), OmeZarr::open(&path).unwrap());
        assert_eq!((&packed.info().levels, &packed.info().content), (&whole.info().levels, &whole.info().content));
        assert_eq!(packed.info().attributes, whole.info().attributes);

        let (entries, comment) = directory(&fs::read(&zip).unwrap());
        assert!(entries.iter().all(|(method, _)| *method == 0), "nothing is compressed again");
        let names: Vec<&str> = entries.iter().map(|(_, name)| name.as_str()).collect();
        let (documents, count): (&[&str], _) = match format {
            Format::V0_5 => (
                &[
                    "zarr.json",
                    "0/zarr.json",
                    "1/zarr.json",
                    "labels/zarr.json",
                    "labels/nuclei/zarr.json",
                    "labels/nuclei/0/zarr.json",
                    "labels/nuclei/1/zarr.json",
                ],
                before.len(),
            ),
            Format::V0_4 => (
                &[
                    ".zgroup",
                    ".zattrs",
                    "0/.zattrs",
                    "0/.zarray",
                    "1/.zattrs",
                    "1/.zarray",
                    "labels/.zgroup",
                    "labels/.zattrs",
                    "labels/nuclei/.zgroup",
                ],
                before.len(),
            ),
        };
        assert_eq!(names[..documents.len()], *documents);
        assert_eq!(names.len(), count);
        let is_document =
            |name: &&&str| name.rsplit('/').next().is_some_and(|name| name == "zarr.json" || name.starts_with(".z"));
        let first = names.iter().take_while(is_document).count();
        assert_eq!(names.iter().filter(is_document).count(), first, "all documents come first");
        match format {
            Format::V0_5 => {
                let comment: Value = serde_json::from_slice(&comment).unwrap();
                assert_eq!(
                    comment,
                    json!({ "ome": { "version": "0.5", "zipFile": { "centralDirectory": { "jsonFirst": true } } } })
                );
            }
            Format::V0_4 => assert!(comment.is_empty(), "the RFC speaks of Zarr 3"),
        }
        let left: Vec<_> = fs::read_dir(folder.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert!(left.iter().all(|name| !name.to_string_lossy().contains("partial")), "{left:?}");
    }
}

#[test]
fn the_same_store_gives_the_same_bytes_wherever_it_is() {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("elsewhere")).unwrap();
    for format in [Format::V0_5, Format::V0_4] {
        let one = store(folder.path(), &format!("one-{format}"), format);
        let other = store(&folder.path().join("elsewhere"), &format!("other-{format}"), format);
        let (a, b) = (folder.path().join(format!("a-{format}.zip")), folder.path().join(format!("b-{format}.zip")));
        pack(&one, &a).unwrap();
        pack(&other, &b).unwrap();
        assert!(fs::read(a).unwrap() == fs::read(b).unwrap());
    }
}

#[test]
fn what_is_not_finished_or_not_ours_is_not_packed_and_nothing_is_overwritten() {
    let folder = tempfile::tempdir().unwrap();
    let zip = folder.path().join("m.ozx");
    let refused = |path: &Path, zip: &Path, word: &str| {
        let before = super::written::files(folder.path());
        let error = pack(path, zip).unwrap_err().to_string();
        assert!(error.contains(word), "{word:?} is missing: {error}");
        assert!(super::written::files(folder.path()) == before, "nothing is left");
    };
    refused(&folder.path().join("none"), &zip, "no finished store");
    let unfinished = folder.path().join("unfinished");
    drop(ZarrImage::create(&unfinished, image(Size::new(20, 10), 1, SampleType::U8)).unwrap());
    refused(&unfinished, &zip, "no finished store");
    refused(&store(folder.path(), "old", Format::V0_4), &zip, "0.4");
    let path = store(folder.path(), "m", Format::V0_5);
    let taken = folder.path().join("taken.zip");
    fs::write(&taken, "mine").unwrap();
    refused(&path, &taken, "there already");
    refused(&path, &folder.path().join("no/where.zip"), "where.zip");
    // A label that is being written.
    let label = LabelledImage::open(&path).unwrap().label("tumour").unwrap();
    let sink = ZarrImage::create(&label, image(Size::new(20, 10), 1, SampleType::U8)).unwrap();
    refused(&path, &zip, "not finished");
    sink.finish(&Map::new()).unwrap();
    #[cfg(unix)]
    {
        std::os::unix::fs::symlink("/etc/hostname", path.join("0/link")).unwrap();
        refused(&path, &zip, "neither a file nor a folder");
        fs::remove_file(path.join("0/link")).unwrap();
    }
    pack(&path, &zip).unwrap();
}

/// zarr-python reads archives of both versions, and what they say is what it reads of the folder.
#[test]
fn zarr_python_reads_what_was_packed() {
    let folder = tempfile::tempdir().unwrap();
    let mut expected = Vec::new();
    let mut paths = vec!["read".into()];
    for format in [Format::V0_5, Format::V0_4] {
        let path = store(folder.path(), &format!("{format}.ome.zarr"), format);
        let zip = folder.path().join(format!("{format}.ome.zarr.zip"));
        pack(&path, &zip).unwrap();
        expected.push(corpus::levels(&OmeZarr::open(&path).unwrap()));
        paths.push(zip.into_os_string());
    }
    let arguments: Vec<_> = paths.iter().map(std::ffi::OsString::as_os_str).collect();
    let Some(read) = corpus::python(&arguments) else {
        microtome_testkit::skip("MICROTOME_PYTHON names no interpreter with zarr");
        return;
    };
    for (read, expected) in read.iter().zip(&expected) {
        assert_eq!(read["levels"], *expected, "{read}");
    }
}
