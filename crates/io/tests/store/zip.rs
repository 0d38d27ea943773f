//! Stores in ZIP archives, sound and hostile ones.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use flate2::Compression;
use flate2::write::DeflateEncoder;
use microtome_io::slide::{self, OpenOptions, SlideReader};
use microtome_io::store::{ImageSink, OmeZarr, ZarrImage};
use microtome_io::{Error, Level, SampleType, Size};
use proptest::prelude::*;
use serde_json::Map;

use super::{image, pyramid, write_all};

/// An archive by hand, so that each field can be wrong.
#[derive(Default)]
struct Archive {
    bytes: Vec<u8>,
    directory: Vec<u8>,
    count: u16,
}

/// What is said of an entry in the directory.
#[derive(Clone, Copy)]
struct Entry {
    flags: u16,
    method: u16,
    checksum: u32,
    packed: u32,
    size: u32,
    offset: u32,
}

impl Archive {
    /// Adds an entry, its description changed by `change`.
    fn add(&mut self, name: &str, content: &[u8], deflate: bool, change: impl Fn(&mut Entry)) {
        let mut sum = flate2::Crc::new();
        sum.update(content);
        let packed = if deflate {
            let mut encoder = DeflateEncoder::new(Vec::new(), Compression::fast());
            encoder.write_all(content).unwrap();
            encoder.finish().unwrap()
        } else {
            content.to_vec()
        };
        let mut entry = Entry {
            flags: 0,
            method: if deflate { 8 } else { 0 },
            checksum: sum.sum(),
            packed: packed.len() as u32,
            size: content.len() as u32,
            offset: self.bytes.len() as u32,
        };
        self.bytes.extend(b"PK\x03\x04\x14\0");
        self.bytes.extend(entry.flags.to_le_bytes());
        self.bytes.extend(entry.method.to_le_bytes());
        self.bytes.extend([0; 4]);
        for number in [entry.checksum, entry.packed, entry.size] {
            self.bytes.extend(number.to_le_bytes());
        }
        self.bytes.extend((name.len() as u16).to_le_bytes());
        self.bytes.extend([0; 2]);
        self.bytes.extend(name.bytes());
        self.bytes.extend(packed);
        change(&mut entry);
        self.directory.extend(b"PK\x01\x02\x14\0\x14\0");
        self.directory.extend(entry.flags.to_le_bytes());
        self.directory.extend(entry.method.to_le_bytes());
        self.directory.extend([0; 4]);
        for number in [entry.checksum, entry.packed, entry.size] {
            self.directory.extend(number.to_le_bytes());
        }
        self.directory.extend((name.len() as u16).to_le_bytes());
        self.directory.extend([0; 12]);
        self.directory.extend(entry.offset.to_le_bytes());
        self.directory.extend(name.bytes());
        self.count += 1;
    }

    fn finish(mut self) -> Vec<u8> {
        let start = self.bytes.len() as u32;
        self.bytes.extend(&self.directory);
        self.bytes.extend(b"PK\x05\x06\0\0\0\0");
        self.bytes.extend(self.count.to_le_bytes());
        self.bytes.extend(self.count.to_le_bytes());
        self.bytes.extend((self.directory.len() as u32).to_le_bytes());
        self.bytes.extend(start.to_le_bytes());
        self.bytes.extend([0; 2]);
        self.bytes
    }
}

/// A sound store of 101 × 50 pixels, two levels, in shards of 32 × 24.
fn store(folder: &Path) -> PathBuf {
    let path = folder.join("m.zarr");
    let mask = ZarrImage::create(&path, image(Size::new(101, 50), 2, SampleType::U8)).unwrap();
    write_all(&mask, &pyramid(Size::new(101, 50), 2, 5));
    mask.finish(&Map::new()).unwrap();
    path
}

/// Names and contents of all files in a folder.
fn files(folder: &Path) -> Vec<(String, Vec<u8>)> {
    let (mut found, mut open) = (Vec::new(), vec![folder.to_owned()]);
    while let Some(next) = open.pop() {
        for entry in fs::read_dir(next).unwrap().map(|entry| entry.unwrap().path()) {
            if entry.is_dir() {
                open.push(entry);
            } else {
                let name = entry.strip_prefix(folder).unwrap().to_string_lossy().replace('\\', "/");
                found.push((name, fs::read(&entry).unwrap()));
            }
        }
    }
    found.sort();
    found
}

/// The store packed, the description of entries changed by name.
fn pack(files: &[(String, Vec<u8>)], deflate: bool, change: impl Fn(&str, &mut Entry)) -> Vec<u8> {
    let mut archive = Archive::default();
    for (name, content) in files {
        archive.add(name, content, deflate, |entry| change(name, entry));
    }
    archive.finish()
}

fn read_everything(path: &Path) -> microtome_io::Result<()> {
    let slide = slide::open(path, &OpenOptions::default())?;
    for (n, level) in slide.info().levels.iter().enumerate() {
        slide.read_region(Level(n), level.size.rect())?;
    }
    Ok(())
}

#[test]
fn a_store_of_ours_reads_the_same_in_an_archive() {
    let folder = tempfile::tempdir().unwrap();
    let path = store(folder.path());
    let expected = OmeZarr::open(&path).unwrap();
    for deflate in [false, true] {
        let zip = folder.path().join("m.ome.zarr.zip");
        fs::write(&zip, pack(&files(&path), deflate, |_, _| ())).unwrap();
        let packed = OmeZarr::open(&zip).unwrap();
        let slide = slide::open(&zip, &OpenOptions::default()).unwrap();
        assert_eq!(packed.info().levels, expected.info().levels);
        assert_eq!(packed.info().content, expected.info().content);
        assert!(slide.resident_bytes() > 0);
        for (n, level) in expected.info().levels.iter().enumerate() {
            let pixels = expected.read_region(Level(n), level.size.rect()).unwrap();
            assert_eq!(packed.read_region(Level(n), level.size.rect()).unwrap(), pixels);
            assert_eq!(slide.read_region(Level(n), level.size.rect()).unwrap(), pixels);
        }
        assert_eq!(packed.content_id().unwrap(), expected.content_id().unwrap(), "the same wherever it lies");
    }
}

#[test]
fn of_several_entries_with_one_name_the_last_one_counts() {
    let folder = tempfile::tempdir().unwrap();
    let mut files = files(&store(folder.path()));
    files.insert(0, ("zarr.json".into(), b"{}".to_vec()));
    let zip = folder.path().join("m.zip");
    fs::write(&zip, pack(&files, false, |_, _| ())).unwrap();
    read_everything(&zip).unwrap();
    files.push(("zarr.json".into(), b"{}".to_vec()));
    fs::write(&zip, pack(&files, false, |_, _| ())).unwrap();
    assert!(read_everything(&zip).unwrap_err().to_string().contains("no multiscale image"));
}

#[test]
fn archives_that_cannot_be_read_are_refused_with_a_sentence() {
    let folder = tempfile::tempdir().unwrap();
    let sound = files(&store(folder.path()));
    let zip = folder.path().join("hostile.zip");
    let refusal = |bytes: Vec<u8>| {
        fs::write(&zip, bytes).unwrap();
        let error = read_everything(&zip).unwrap_err();
        assert!(error.to_string().contains("hostile.zip"), "{error}");
        error.to_string()
    };
    let with = |name: &str, content: &[u8]| {
        let mut files = sound.clone();
        files.push((name.into(), content.into()));
        pack(&files, false, |_, _| ())
    };
    for name in ["../evil", "/etc/passwd", "a/../../evil", "C:\\evil", "0\\zarr.json"] {
        assert!(refusal(with(name, b"")).contains("would lead out"), "{name}");
    }
    let named = |change: fn(&mut Entry)| {
        let change = move |name: &str, entry: &mut Entry| {
            if name == "zarr.json" {
                change(entry);
            }
        };
        [pack(&sound, false, change), pack(&sound, true, change)]
    };
    let cases: [(fn(&mut Entry), [&str; 2]); 9] = [
        (|entry| entry.flags = 1, ["encrypted"; 2]),
        (|entry| entry.checksum ^= 1, ["checksum"; 2]),
        (|entry| entry.size += 1, ["changes its size", "checksum"]),
        (|entry| entry.size -= 1, ["changes its size", "checksum"]),
        (|entry| entry.size = 15 << 20, ["changes its size", "cannot hold"]),
        (|entry| entry.size = u32::MAX - 1, ["more than the"; 2]),
        (|entry| entry.offset += 1, ["no entry"; 2]),
        (|entry| entry.offset = u32::MAX - 1, ["truncated"; 2]),
        (|entry| entry.packed = u32::MAX, ["too large for its fields"; 2]),
    ];
    for (change, sentences) in cases {
        for (bytes, sentence) in named(change).into_iter().zip(sentences) {
            let refused = refusal(bytes);
            assert!(refused.contains(sentence), "{sentence}: {refused}");
        }
    }
    // A method that is not known is one in both places.
    let mut bytes = pack(&sound, false, |_, entry| entry.method = 93);
    let headers: Vec<usize> =
        bytes.windows(4).enumerate().filter(|(_, w)| *w == b"PK\x03\x04").map(|(at, _)| at).collect();
    headers.into_iter().for_each(|at| bytes[at + 8] = 93);
    assert!(refusal(bytes).contains("method 93 (zstd)"));

    assert!(refusal(pack(&[], false, |_, _| ())).contains("holds no Zarr store"));
    assert!(refusal(pack(&[("a.txt".into(), vec![1])], false, |_, _| ())).contains("holds no Zarr store"));
    let two = [("a/.zgroup".into(), b"{}".to_vec()), ("b/.zgroup".into(), b"{}".to_vec())];
    assert!(refusal(pack(&two, false, |_, _| ())).contains("several Zarr stores"));

    // The directory: its size, its place, its number of entries.
    let whole = pack(&sound, false, |_, _| ());
    let end = whole.len() - 22;
    for (at, value, sentence) in [
        (10, 0xFFFF_FFFFu32, "claims"),
        (12, u32::MAX, "before its end"),
        (16, u32::MAX, "before its end"),
        (4, 1, "several"),
    ] {
        let mut bytes = whole.clone();
        let width = if at == 10 || at == 4 { 2 } else { 4 };
        bytes[end + at..end + at + width].copy_from_slice(&value.to_le_bytes()[..width]);
        let refused = refusal(bytes);
        assert!(refused.contains(sentence), "{sentence}: {refused}");
    }
    let limits = {
        let mut limits = microtome_io::slide::Limits::default();
        limits.table_bytes = 100;
        limits
    };
    fs::write(&zip, &whole).unwrap();
    let error = slide::open(&zip, &OpenOptions::default().limits(limits)).unwrap_err();
    assert!(matches!(error, Error::Limits { .. }), "{error}");
    for length in (4..whole.len()).step_by(37) {
        assert!(refusal(whole[..length].to_vec()).contains("truncated"), "{length}");
    }
}

/// A chunk that inflates to far more than a chunk has.
#[test]
fn bombs_are_not_inflated() {
    let folder = tempfile::tempdir().unwrap();
    let mut files = files(&store(folder.path()));
    for (name, content) in &mut files {
        if name.starts_with("0/c/") {
            *content = vec![0; 64 << 20];
        }
    }
    let zip = folder.path().join("bomb.zip");
    // What the directory says is true: a shard of 64 MiB, which is more than is allowed here.
    fs::write(&zip, pack(&files, true, |_, _| ())).unwrap();
    let mut limits = microtome_io::slide::Limits::default();
    limits.decoded_bytes = 1 << 20;
    let slide = slide::open(&zip, &OpenOptions::default().limits(limits)).unwrap();
    let error = slide.read_region(Level(0), microtome_io::Rect::new(0, 0, 20, 20)).unwrap_err().to_string();
    assert!(error.contains("more than the"), "{error}");
    // It says less than there is.
    fs::write(&zip, pack(&files, true, |_, entry| entry.size = entry.size.min(5000))).unwrap();
    let error = read_everything(&zip).unwrap_err().to_string();
    assert!(error.contains("damaged"), "{error}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    /// A few bytes differ, most of them in the directory: an answer or an error, never a panic.
    #[test]
    fn flipped_bytes_do_not_panic(deflate: bool, at in prop::collection::vec((0.0..1.0f64, any::<u8>()), 1..4), directory: bool) {
        static SOUND: OnceLock<Vec<(String, Vec<u8>)>> = OnceLock::new();
        let folder = tempfile::tempdir().unwrap();
        let mut bytes = pack(SOUND.get_or_init(|| files(&store(folder.path()))), deflate, |_, _| ());
        let from = if directory { bytes.windows(4).position(|w| w == b"PK\x01\x02").unwrap() } else { 4 };
        for (at, byte) in at {
            let at = from + (at * (bytes.len() - from) as f64) as usize;
            bytes[at] = byte;
        }
        let zip = folder.path().join("flipped.zip");
        fs::write(&zip, bytes).unwrap();
        let _ = read_everything(&zip);
    }
}

#[test]
fn files_of_an_archive_that_is_no_store() {
    let temporary = tempfile::tempdir().unwrap();
    let path = temporary.path().join("a.zip");
    let long: Vec<u8> = (0..100_000_u32).map(|i| (i / 7) as u8).collect();
    let mut archive = Archive::default();
    archive.add("b/long", &long, true, |_| {});
    archive.add("a", b"short", false, |_| {});
    archive.add("b/small", &long, true, |entry| entry.size -= 1);
    archive.add("b/large", &long, true, |entry| entry.size += 1);
    archive.add("b/sum", &long, true, |entry| entry.checksum ^= 1);
    archive.add("b/bomb", b"", true, |entry| entry.size = u32::MAX - 1);
    archive.add("b/stored", b"short", false, |entry| entry.size = 1 << 30);
    archive.add("b/unknown", b"short", false, |entry| entry.method = 12);
    fs::write(&path, archive.finish()).unwrap();
    let open = || microtome_io::Archive::open(&path, &slide::Limits::default());
    let archive = open().unwrap().unwrap();
    let names: Vec<&str> = archive.names().collect();
    assert_eq!(names, ["a", "b/bomb", "b/large", "b/long", "b/small", "b/stored", "b/sum", "b/unknown"]);
    assert_eq!((archive.size("a"), archive.size("b/long"), archive.size("b")), (Some(5), Some(100_000), None));
    let extract = |name: &str| {
        let mut bytes = Vec::new();
        let result = archive.extract(name, &mut bytes).map_err(|e| e.to_string());
        assert!(bytes.len() as u64 <= archive.size(name).unwrap_or(0), "{name}: {}", bytes.len());
        (result, bytes)
    };
    assert_eq!(extract("a"), (Ok(true), b"short".to_vec()));
    assert_eq!(extract("b/long"), (Ok(true), long));
    assert_eq!(extract("c"), (Ok(false), Vec::new()));
    for (name, words) in [
        ("b/small", "size or its checksum"),
        ("b/large", "size or its checksum"),
        ("b/sum", "size or its checksum"),
        ("b/bomb", "deflated bytes cannot hold 4294967294"),
        ("b/stored", "stored as it is, and yet"),
        ("b/unknown", "method 12 (bzip2)"),
    ] {
        let message = extract(name).0.unwrap_err();
        assert!(message.contains(&format!("a.zip/{name}: ")) && message.contains(words), "{message}");
    }
    fs::write(&path, "no archive").unwrap();
    assert!(open().unwrap().is_none());
}
