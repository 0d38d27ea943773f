//! Stores that others wrote: all of `zarr/` and `ngff/` among the real files, and what `docs/formats-zarr.md` says of them.
//!
//! The table there is generated: `MICROTOME_BLESS=1` writes it anew, and only with the real files and `MICROTOME_PYTHON`, because it
//! says of each store that is read that its pixels are those of zarr-python.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use microtome_io::slide::{self, OpenOptions, SlideReader};
use microtome_io::store::OmeZarr;
use microtome_io::{Level, Pixels, SampleType, Samples};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

/// The folder of real files, if it holds stores.
pub(crate) fn data() -> Option<PathBuf> {
    microtome_testkit::data("zarr")?.parent().map(PathBuf::from)
}

const METADATA: [&str; 4] = ["zarr.json", ".zattrs", ".zgroup", ".zarray"];

/// All nodes in a folder, and archives.
fn nodes(folder: &Path, found: &mut Vec<PathBuf>) {
    if METADATA.iter().any(|name| folder.join(name).is_file()) {
        found.push(folder.into());
    }
    let mut inner: Vec<_> = fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()).collect();
    inner.sort();
    for path in &inner {
        if path.is_dir() {
            nodes(path, found);
        } else if path.extension().is_some_and(|e| e == "zip") {
            found.push(path.clone());
        }
    }
}

/// A level as `tests/python/zarr_stores.py` describes it: width, height, channels, bits, SHA-256 of the samples in little endian.
pub(crate) fn describe(pixels: &Pixels) -> Value {
    let bytes: Vec<u8> = match pixels.samples() {
        Samples::U8(v) => v.clone(),
        Samples::U16(v) => v.iter().flat_map(|v| v.to_le_bytes()).collect(),
    };
    let hex = Sha256::digest(&bytes).iter().fold(String::new(), |hex, byte| format!("{hex}{byte:02x}"));
    let (size, bits) = (pixels.size(), 8 * pixels.sample_type().bytes());
    json!([size.width, size.height, pixels.channels(), bits, hex])
}

/// All levels of a slide.
pub(crate) fn levels(slide: &dyn SlideReader) -> Value {
    let level = |(n, level): (usize, &slide::LevelInfo)| {
        describe(&slide.read_region(Level(n), level.size.rect()).unwrap_or_else(|error| panic!("{error}")))
    };
    slide.info().levels.iter().enumerate().map(level).collect()
}

/// What `tests/python/zarr_stores.py` prints, by store, or `None` if there is no Python.
pub(crate) fn python(arguments: &[&std::ffi::OsStr]) -> Option<Vec<Value>> {
    let python = std::env::var_os("MICROTOME_PYTHON")?;
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/python/zarr_stores.py");
    let output = std::process::Command::new(python).arg(script).args(arguments).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    Some(text.lines().map(|line| serde_json::from_str(line).unwrap()).collect())
}

/// The sentence of a refusal, without the file's place on this machine.
fn sentence(error: &microtome_io::Error, data: &Path) -> String {
    error.to_string().replace(&format!("{}/", data.display()), "").replace('|', "\\|")
}

#[test]
fn every_store_is_read_as_zarr_python_reads_it_or_refused_with_a_sentence() {
    let Some(data) = data() else { return };
    let mut found = Vec::new();
    nodes(&data.join("zarr"), &mut found);
    nodes(&data.join("tiff"), &mut found);
    let mut rows = String::new();
    let mut read: BTreeMap<PathBuf, Value> = BTreeMap::new();
    for path in &found {
        let name = path.strip_prefix(&data).unwrap().display();
        let opened = slide::open(path, &OpenOptions::default());
        let store = OmeZarr::open(path);
        assert_eq!(opened.is_ok(), store.is_ok(), "{name}: as a slide and as a store");
        match opened {
            Err(error) => writeln!(rows, "| `{name}` | refused: {} |", sentence(&error, &data)).unwrap(),
            Ok(slide) => {
                let levels = levels(slide.as_ref());
                assert_eq!(levels, self::levels(&store.unwrap()), "{name}: as a slide and as a store");
                let info = slide.info();
                let version = match info.properties.get("ome-zarr.version") {
                    Some(version) => format!("OME-Zarr {version}"),
                    None => format!("array of Zarr {}", info.properties["zarr.format"]),
                };
                let (size, n, bits) = (info.size(), info.levels.len(), 8 * info.sample.bytes());
                let channels = info.channels;
                writeln!(
                    rows,
                    "| `{name}` | read: {version}, {size}, {n} level(s), {channels} channel(s) of {bits} bits |"
                )
                .unwrap();
                read.insert(path.clone(), levels);
            }
        }
    }
    let arguments: Vec<_> = ["read".as_ref()].into_iter().chain(read.keys().map(|path| path.as_os_str())).collect();
    let python = python(&arguments);
    match &python {
        None => microtome_testkit::skip("MICROTOME_PYTHON names no interpreter with zarr"),
        Some(python) => {
            for ((path, ours), theirs) in read.iter().zip(python) {
                assert_eq!(*ours, theirs["levels"], "{}: {theirs}", path.display());
            }
            assert_eq!(python.len(), read.len());
        }
    }
    let examples = examples(&data);
    let (stores, readable) = (found.len(), read.len());
    let text = format!(
        "# OME-Zarr and Zarr stores: what is read\n\n\
         This page is generated by the test `store::corpus` of `microtome-io`, which fails where it is out of date; `MICROTOME_BLESS=1` and \
         `MICROTOME_PYTHON` write it anew.\n\n\
         Every group, array and archive under `zarr` and `tiff` of the real files, opened as a slide: {readable} of {stores} are read, \
         and of those each level equals, sample by sample, what zarr-python 3.1.6 reads. The rest is refused with the sentence shown.\n\n\
         | store | result |\n|---|---|\n{rows}\n\
         The examples of metadata in `ngff`, each put beside arrays that hold nothing but their fill value:\n\n\
         | example | result |\n|---|---|\n{examples}"
    );
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/formats-zarr.md");
    if std::env::var_os("MICROTOME_BLESS").is_some() && python.is_some() {
        fs::write(&page, &text).unwrap();
    }
    let committed = fs::read_to_string(&page).unwrap_or_default();
    assert!(committed == text, "docs/formats-zarr.md is out of date; it should be:\n{text}");
}

/// The rows of the specification's examples.
fn examples(data: &Path) -> String {
    let mut rows = String::new();
    for version in ["0.4", "0.5"] {
        let folder = data.join(format!("ngff/ngff-{version}/examples"));
        let mut files = Vec::new();
        for kind in fs::read_dir(&folder).into_iter().flatten() {
            files.extend(fs::read_dir(kind.unwrap().path()).unwrap().map(|file| file.unwrap().path()));
        }
        files.sort();
        for file in files.iter().filter(|file| !file.file_name().unwrap().to_string_lossy().starts_with('.')) {
            let place = tempfile::tempdir().unwrap();
            let text = fs::read_to_string(file).unwrap();
            // The examples have comments.
            let text: String = text.lines().map(|line| line.split("//").next().unwrap()).collect();
            let document: Value = serde_json::from_str(&text).unwrap();
            put_example(place.path(), version, &document);
            let name = file.strip_prefix(data).unwrap().display();
            match slide::open(place.path(), &OpenOptions::default()) {
                Ok(slide) => {
                    let (info, n) = (slide.info(), slide.info().levels.len());
                    assert_eq!(info.sample, SampleType::U8);
                    levels(slide.as_ref());
                    let mpp =
                        info.resolution.as_ref().map_or("unknown".into(), |r| format!("{} x {}", r.mpp.x, r.mpp.y));
                    writeln!(rows, "| `{name}` | read: {n} level(s), micrometres per pixel: {mpp} |").unwrap();
                }
                Err(error) => writeln!(rows, "| `{name}` | refused: {} |", sentence(&error, place.path())).unwrap(),
            }
        }
    }
    rows
}

/// Attributes as a store, with an array for each level: 2 channels, one plane of the other axes.
fn put_example(folder: &Path, version: &str, document: &Value) {
    let attributes = if version == "0.5" { &document["attributes"]["ome"] } else { document };
    let root = if version == "0.5" { "zarr.json" } else { ".zattrs" };
    fs::write(folder.join(root), document.to_string()).unwrap();
    let image = &attributes["multiscales"][0];
    let axes = image["axes"].as_array().cloned().unwrap_or_default();
    for (n, dataset) in image["datasets"].as_array().into_iter().flatten().enumerate() {
        let side = |axis: &Value| match axis["name"].as_str().unwrap() {
            "x" => 40 >> n,
            "y" => 30 >> n,
            "c" => 2,
            _ => 1,
        };
        let shape: Vec<u64> = axes.iter().map(side).collect();
        let level = folder.join(dataset["path"].as_str().unwrap());
        fs::create_dir_all(&level).unwrap();
        let (name, array) = if version == "0.5" {
            let array = json!({
                "zarr_format": 3, "node_type": "array", "shape": shape, "data_type": "uint8", "fill_value": 3,
                "chunk_grid": { "name": "regular", "configuration": { "chunk_shape": shape } },
                "chunk_key_encoding": { "name": "default" }, "codecs": ["bytes"],
            });
            ("zarr.json", array)
        } else {
            let array = json!({
                "zarr_format": 2, "shape": shape, "chunks": shape, "dtype": "|u1", "fill_value": 3, "order": "C",
                "compressor": null, "filters": null,
            });
            (".zarray", array)
        };
        fs::write(level.join(name), array.to_string()).unwrap();
    }
}
