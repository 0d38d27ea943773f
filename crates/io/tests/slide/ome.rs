//! OME-TIFF and QPTIFF: slides that tifffile and libvips write (`tests/python/ome_slides.py`), sample for sample what
//! tifffile reads of them, and the files of Viv.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use microtome_io::bytes::ByteAccess;
use microtome_io::slide::{OpenOptions, SlideReader, open};
use microtome_io::{Error, Level, Pixels, Rect, Samples};
use serde::Deserialize;

#[derive(Debug, Deserialize)]
struct Cases {
    slides: Vec<Case>,
    /// Slides that are refused, and words of the reason.
    refused: BTreeMap<String, String>,
}

#[derive(Debug, Deserialize)]
struct Case {
    path: String,
    sample: String,
    levels: Vec<Picture>,
    associated: BTreeMap<String, Picture>,
    names: Vec<String>,
    mpp: Option<[f64; 2]>,
    power: Option<f64>,
    /// The start of what the slide says of images that are not read.
    not_read: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Picture {
    width: u64,
    height: u64,
    channels: usize,
    file: String,
}

/// Writes the slides, once: the interpreter takes seconds.
#[test]
fn slides_of_tifffile_and_libvips() {
    let Some(python) = std::env::var_os("MICROTOME_PYTHON") else {
        microtome_testkit::skip("MICROTOME_PYTHON names no interpreter with tifffile; `cargo xtask test` makes one");
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/python/ome_slides.py");
    let output = Command::new(&python).arg(script).arg(folder.path()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let cases: Cases = serde_json::from_slice(&std::fs::read(folder.path().join("cases.json")).unwrap()).unwrap();
    they_are_tifffiles_sample_for_sample(folder.path(), &cases);
    what_would_pass_for_something_else_is_refused(folder.path(), &cases);
    sets_of_files_follow_their_files(folder.path());
    what_the_scanner_says_is_kept(folder.path());
}

fn little_endian(pixels: &Pixels) -> Vec<u8> {
    match pixels.samples() {
        Samples::U8(samples) => samples.clone(),
        Samples::U16(samples) => samples.iter().flat_map(|sample| sample.to_le_bytes()).collect(),
    }
}

fn check(folder: &Path, case: &Case, slide: &dyn SlideReader) {
    let (name, info) = (&case.path, slide.info());
    let bytes = |picture: &Picture| std::fs::read(folder.join(&picture.file)).unwrap();
    assert_eq!(info.levels.len(), case.levels.len(), "{name}");
    assert_eq!(info.format, if name.ends_with(".qptiff") { "qptiff" } else { "ome-tiff" }, "{name}");
    assert_eq!(format!("uint{}", 8 * info.sample.bytes()), case.sample, "{name}");
    assert_eq!(info.channels, case.levels[0].channels, "{name}");
    assert_eq!(info.channel_names, case.names, "{name}");
    assert_eq!(info.objective_power, case.power, "{name}");
    let close = |ours: f64, theirs: f64| (ours / theirs - 1.0).abs() < 1e-5;
    match (&info.resolution, case.mpp) {
        (Some(ours), Some([x, y])) => assert!(close(ours.mpp.x, x) && close(ours.mpp.y, y), "{name}: {ours:?}"),
        (ours, theirs) => assert!(ours.is_none() && theirs.is_none(), "{name}: {ours:?} {theirs:?}"),
    }
    let not_read = info.properties.get("microtome.images-not-read");
    match &case.not_read {
        Some(start) => assert!(not_read.is_some_and(|text| text.starts_with(start)), "{name}: {not_read:?}"),
        None => assert_eq!(not_read, None, "{name}"),
    }
    for (number, (ours, theirs)) in info.levels.iter().zip(&case.levels).enumerate() {
        assert_eq!((ours.size.width, ours.size.height), (theirs.width, theirs.height), "{name}");
        let level = Level(number);
        let pixels = slide.read_region(level, ours.size.rect()).unwrap_or_else(|error| panic!("{error}"));
        let expected = bytes(theirs);
        assert!(little_endian(&pixels) == expected, "{name}: level {number} is not tifffile's");
        // A rectangle across tiles, which sticks out of the level: there it has the background.
        let rect = Rect::new(ours.size.width as i64 - 70, ours.size.height as i64 - 60, 90, 80);
        let part = slide.read_region(level, rect).unwrap();
        let mut all = Pixels::filled(rect.size(), info.sample, &info.background);
        all.blit(rect, &pixels, ours.size.rect());
        assert_eq!(part, all, "{name}");
    }
    let found: Vec<_> = info.associated.iter().map(|associated| &associated.name).collect();
    assert!(found.len() == case.associated.len(), "{name}: {found:?}");
    for (kind, theirs) in &case.associated {
        let pixels = slide.read_associated(kind).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!((pixels.size().width, pixels.size().height), (theirs.width, theirs.height), "{name}: {kind}");
        assert!(little_endian(&pixels) == bytes(theirs), "{name}: {kind} is not tifffile's");
    }
}

fn they_are_tifffiles_sample_for_sample(folder: &Path, cases: &Cases) {
    assert!(cases.slides.len() > 25);
    for case in &cases.slides {
        for access in [ByteAccess::Map, ByteAccess::Read] {
            let slide = open(folder.join(&case.path), &OpenOptions::default().access(access));
            check(folder, case, &*slide.unwrap_or_else(|error| panic!("{error}")));
        }
    }
}

fn what_would_pass_for_something_else_is_refused(folder: &Path, cases: &Cases) {
    for (name, words) in &cases.refused {
        let error = open(folder.join(name), &OpenOptions::default()).expect_err(name);
        assert!(error.to_string().contains(words) && !error.to_string().contains('\n'), "{error}");
        assert!(matches!(error, Error::Format { .. } | Error::Unsupported { .. }), "{error:?}");
    }
}

fn sets_of_files_follow_their_files(folder: &Path) {
    let set = |kind: &str, n: usize| crate::slide(folder.join(format!("set-{kind}-{n}.ome.tif")));
    let id = |slide: Box<dyn SlideReader>| slide.content_id().unwrap();
    assert_eq!(id(set("whole", 0)), id(set("whole", 0)));
    assert_ne!(id(set("whole", 0)), id(set("companion", 0)));

    // A file of the set that is replaced makes another slide.
    let copy = tempfile::tempdir().unwrap();
    for n in 0..3 {
        let name = format!("set-whole-{n}.ome.tif");
        std::fs::copy(folder.join(&name), copy.path().join(&name)).unwrap();
    }
    let path = copy.path().join("set-whole-0.ome.tif");
    let before = id(crate::slide(&path));
    std::fs::copy(folder.join("set-whole-1.ome.tif"), copy.path().join("set-whole-2.ome.tif")).unwrap();
    assert_ne!(id(crate::slide(&path)), before);
    // One that is gone, or is no file, is named.
    std::fs::remove_file(copy.path().join("set-whole-1.ome.tif")).unwrap();
    let error = open(&path, &OpenOptions::default()).unwrap_err();
    assert!(error.to_string().contains("\"set-whole-1.ome.tif\", which is not in the same folder"), "{error}");
    std::fs::create_dir(copy.path().join("set-whole-1.ome.tif")).unwrap();
    assert!(open(&path, &OpenOptions::default()).is_err());
}

fn what_the_scanner_says_is_kept(folder: &Path) {
    let slide = crate::slide(folder.join("fusion.qptiff"));
    let properties = &slide.info().properties;
    for (key, value) in [
        ("perkinelmer.AcquisitionSoftware", "VectraPolaris 1.0.10"),
        ("perkinelmer.ScanResolution.PixelSizeMicrons", "0.496"),
        ("perkinelmer.channel[1].Name", "ATTO 550"),
        ("perkinelmer.channel[1].Biomarker", "CD38"),
        ("perkinelmer.channel[1].Color", "255,60,157"),
    ] {
        assert_eq!(properties[key], value, "{key}");
    }
    assert_eq!(slide.info().resolution.as_ref().unwrap().source.to_string(), "PixelSizeMicrons");
    let slide = crate::slide(folder.join("channels.ome.tif"));
    assert_eq!(slide.info().resolution.as_ref().unwrap().source.to_string(), "PhysicalSizeX");
    assert_eq!(slide.info().properties["ome.Creator"].split(' ').next(), Some("tifffile.py"));
    let slide = crate::slide(folder.join("tags.ome.tif"));
    assert_eq!(slide.info().resolution.as_ref().unwrap().source.to_string(), "TIFF resolution tags");
}

#[test]
fn the_files_of_viv_are_read_or_refused() {
    let Some(folder) = microtome_testkit::data("slides/ome-tiff/viv") else { return };
    let mut seen = 0;
    for entry in std::fs::read_dir(&folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        let opened = open(&path, &OpenOptions::default());
        seen += 1;
        if name.starts_with("Channel_") {
            // An ImageJ picture of one plane: a plain TIFF.
            let slide = opened.unwrap();
            assert_eq!((slide.info().size().to_string(), slide.info().channels), ("439 x 167".into(), 1));
            continue;
        }
        let error = opened.unwrap_err().to_string();
        let words = if name.starts_with("multifile") {
            "whose OME-XML is in \"multifile.companion.ome\", which is not in the same folder"
        } else {
            "samples of the type int8 cannot be read"
        };
        assert!(error.contains(words), "{error}");
    }
    assert_eq!(seen, 10);
}
