//! DICOM whole slides: real ones against OpenSlide and pydicom, and ones of known content that
//! `tests/python/dicom_slides.py` writes with pydicom.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use microtome_io::slide::{OpenOptions, SlideReader, open};
use microtome_io::{Error, Level, Pixels, Rect, SampleType, Samples, Size};
use microtome_testkit::assets;

use crate::{openslide, slide};

/// The slides that the script writes; with them one tile in many codecs, where the test data are at hand.
fn written() -> Option<tempfile::TempDir> {
    let Some(python) = std::env::var_os("MICROTOME_PYTHON") else {
        microtome_testkit::skip("MICROTOME_PYTHON names no interpreter with pydicom; `cargo xtask test` makes one");
        return None;
    };
    let folder = tempfile::tempdir().unwrap();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/python/dicom_slides.py");
    let mut command = Command::new(&python);
    command.arg(script).arg(folder.path());
    if let Some(data) = assets::data() {
        command.arg(data.join("codec/wsidicom-data"));
    }
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Some(folder)
}

fn real(name: &str) -> Option<PathBuf> {
    Some(assets::data()?.join("slides/dicom").join(name))
}

fn refusal(path: impl AsRef<Path>) -> Error {
    open(path, &OpenOptions::default()).unwrap_err()
}

fn colors(x: u64, y: u64) -> Vec<u16> {
    [3 * x + 5 * y, x + 2 * y, 7 * x + y].iter().map(|v| (v % 256) as u16).collect()
}

fn grey(x: u64, y: u64, path: u64) -> u16 {
    ((3 * x + 5 * y + 50 * path) % 256) as u16
}

fn grey12(x: u64, y: u64, path: u64) -> u16 {
    ((301 * x + 257 * y + 1000 * path) % 4096) as u16
}

fn samples(pixels: &Pixels) -> Vec<u16> {
    match pixels.samples() {
        Samples::U8(samples) => samples.iter().map(|&v| v.into()).collect(),
        Samples::U16(samples) => samples.clone(),
    }
}

/// Checks each pixel of a level, read as a whole, against what it must be.
fn check(slide: &dyn SlideReader, level: usize, expected: impl Fn(u64, u64) -> Vec<u16>) {
    let info = slide.info().level(Level(level)).unwrap();
    let pixels = samples(&slide.read_region(Level(level), info.size.rect()).unwrap());
    for (index, pixel) in pixels.chunks_exact(slide.info().channels).enumerate() {
        let (x, y) = (index as u64 % info.size.width, index as u64 / info.size.width);
        assert_eq!(pixel, expected(x, y), "{}, level {level}, at {x}, {y}", slide.info().path.display());
    }
}

#[test]
fn written_slides_hold_what_was_written() {
    let Some(folder) = written() else { return };
    let path = |name: &str| folder.path().join(name);

    for name in ["planar/slide.dcm", "items", "concatenation", "concatenation/part-2.dcm"] {
        let slide = slide(path(name));
        assert_eq!((slide.info().format.as_str(), slide.info().size()), ("dicom", Size::new(100, 70)));
        assert_eq!((slide.info().levels[0].tile, slide.info().channels), (Size::new(32, 32), 3));
        check(&*slide, 0, colors);
    }
    let ids: BTreeSet<_> =
        (1..4).map(|part| slide(path(&format!("concatenation/part-{part}.dcm"))).content_id().unwrap()).collect();
    assert_eq!(ids.len(), 1, "a slide is the same whichever file it is opened by");

    let sparse = slide(path("sparse"));
    check(&*sparse, 0, |x, y| match (x / 32, y / 32) {
        (1, 0) | (3, 2) => vec![255; 3],
        _ => colors(x, y),
    });

    let paths = slide(path("sparse-paths"));
    assert_eq!(paths.info().channel_names, ["path a", "path b"]);
    assert_eq!(paths.info().background, [0, 0]);
    check(&*paths, 0, |x, y| {
        let tile = (x / 32, y / 32);
        let a = if tile == (1, 0) || tile == (0, 2) { 0 } else { grey(x, y, 0) };
        let b = if tile == (2, 1) || tile == (0, 2) { 0 } else { grey(x, y, 1) };
        vec![a, b]
    });
    for name in ["paths", "paths-rle"] {
        let slide = slide(path(name));
        assert_eq!((slide.info().sample, slide.info().channels), (SampleType::U16, 2));
        check(&*slide, 0, |x, y| vec![grey12(x, y, 0), grey12(x, y, 1)]);
    }
    for name in ["paths-apart", "paths-apart/a.dcm"] {
        let slide = slide(path(name));
        assert_eq!(slide.info().channel_names, ["path a", "path b"]);
        check(&*slide, 0, |x, y| vec![grey(x, y, 0), grey(x, y, 1)]);
    }
    check(&*slide(path("inverted")), 0, |x, y| vec![grey12(x, y, 0)]);

    let ybr = slide(path("ybr"));
    let pixels = ybr.read_region(Level(0), ybr.info().size().rect()).unwrap();
    let expected: Vec<u16> = std::fs::read(path("ybr/expected")).unwrap().into_iter().map(u16::from).collect();
    assert_eq!(worst(&samples(&pixels), &expected).0, 0);
}

/// The largest and the mean difference.
fn worst(ours: &[u16], theirs: &[u16]) -> (u16, f64) {
    assert_eq!(ours.len(), theirs.len());
    let differences = || ours.iter().zip(theirs).map(|(&ours, &theirs)| ours.abs_diff(theirs));
    (differences().max().unwrap(), differences().map(f64::from).sum::<f64>() / ours.len() as f64)
}

#[test]
fn a_series_has_levels_pictures_and_a_resolution() {
    let Some(folder) = written() else { return };
    for name in ["pyramid", "pyramid/2.dcm", "pyramid/LABEL.dcm"] {
        let slide = slide(folder.path().join(name));
        let info = slide.info();
        let sizes: Vec<_> = info.levels.iter().map(|level| (level.size.width, level.size.height)).collect();
        assert_eq!(sizes, [(100, 70), (50, 35), (25, 17)]);
        for level in 0..3 {
            check(&*slide, level, |x, y| colors(x << level, y << level));
        }
        let resolution = info.resolution.as_ref().unwrap();
        assert_eq!(resolution.source.to_string(), "dicom.ImagedVolumeWidth");
        assert!((resolution.mpp.x - 0.5).abs() < 1e-6 && (resolution.mpp.y - 1.0).abs() < 1e-6, "{resolution:?}");
        assert_eq!(info.objective_power, Some(40.0));
        assert_eq!(info.properties["dicom.PatientName"], "Grün^Änne");
        let names: BTreeSet<_> = info.associated.iter().map(|a| (a.name.as_str(), a.size.width)).collect();
        assert_eq!(names, BTreeSet::from([("label", 20), ("macro", 30)]));
        let label = samples(&slide.read_associated("label").unwrap());
        assert_eq!(label[3..6], colors(1, 0));
    }
    let spacing = slide(folder.path().join("planar"));
    let resolution = spacing.info().resolution.as_ref().unwrap();
    assert_eq!((resolution.mpp.x, resolution.mpp.y), (0.25, 0.5), "the distance of rows comes first");
    assert_eq!(resolution.source.to_string(), "dicom.PixelSpacing");
}

#[test]
fn what_cannot_be_read_is_refused_by_name() {
    let Some(folder) = written() else { return };
    for (name, words) in [
        ("two-series", "holds 2 DICOM slides; open one of their files instead. Their series are 1.2.826"),
        ("planes", "2 focal planes cannot be read"),
        ("foreign", "holds no DICOM slide, but a segmentation (storage class 1.2.840.10008.5.1.4.1.1.66.4)"),
        ("pyramid/segmentation.dcm", "is a DICOM file of a segmentation"),
        (
            "short",
            "there are 11 frames, where a full matrix of 100 x 70 pixels in tiles of 32 x 32 and 1 optical path(s) has 12",
        ),
        ("off-grid", "lie on no grid"),
    ] {
        let error = refusal(folder.path().join(name)).to_string();
        assert!(error.contains(words), "{error}");
    }
    slide(folder.path().join("two-series/one.dcm"));
    // Without its middle, a level is not whole.
    let part = |n: u32| folder.path().join(format!("concatenation/part-{n}.dcm"));
    std::fs::remove_file(part(2)).unwrap();
    let error = refusal(part(1)).to_string();
    assert!(error.contains("the part of the concatenation that holds frame 5 is missing"), "{error}");
    std::fs::remove_file(part(3)).unwrap();
    let error = refusal(part(1)).to_string();
    assert!(error.contains("holds frame 0 is missing"), "{error}");
}

#[test]
fn one_tile_in_every_codec() {
    let Some(folder) = written() else { return };
    let Ok(files) = std::fs::read_dir(folder.path().join("tile")) else { return };
    let mut files: Vec<_> =
        files.map(|file| file.unwrap().path()).filter(|path| path.extension().unwrap() == "dcm").collect();
    files.sort();
    for path in files {
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        let refused = match () {
            () if name.starts_with("JPEG_Lossless") => Some("lossless JPEG"),
            () if name.starts_with("JPEG_Extended") => Some("12 bits"),
            () => None,
        };
        let slide = match (open(&path, &OpenOptions::default()), refused) {
            (Ok(slide), None) => slide,
            (Err(error), Some(words)) => {
                assert!(error.to_string().contains(words), "{error}");
                continue;
            }
            (outcome, _) => panic!("{name}: {outcome:?}"),
        };
        let pixels = slide.read_region(Level(0), Size::new(240, 240).rect()).unwrap();
        let expected = std::fs::read(path.with_extension("expected")).unwrap();
        let expected: Vec<u16> = match pixels.samples() {
            Samples::U8(_) => expected.iter().map(|&v| v.into()).collect(),
            Samples::U16(_) => expected.chunks_exact(2).map(|raw| u16::from_le_bytes([raw[0], raw[1]])).collect(),
        };
        let (max, mean) = worst(&samples(&pixels), &expected);
        eprintln!("{name}: max {max}, mean {mean:.4}");
        let allowed = match () {
            // Coding with loss ends in rounded fractions, of which 16 bits show more.
            () if name == "JPEG_2000_Image_Compression-GRAYSCALE-16" => (4, 0.5),
            () if name.starts_with("JPEG_2000_Image_Compression-") => (1, 0.05),
            () => (0, 0.0),
        };
        assert!(max <= allowed.0 && mean <= allowed.1, "{name}: max {max}, mean {mean}");
    }
}

#[test]
fn real_slides_are_openslides() {
    for name in [
        // Its streams are luma and chroma at half the size, but the file says RGB, and so does OpenSlide.
        "cmu-1-small-region/level-0-frames-0-30.dcm",
        "openslide-boxes/boxes_0.dcm",
        "highdicom/sm_image.dcm",
    ] {
        let Some(path) = real(name) else { return };
        let slide = slide(path);
        let info = slide.info();
        // The downsamples of coarser levels are no whole numbers: but for the corner, OpenSlide's pixels lie between ours.
        let mut regions = openslide::spread(&*slide, 100, Size::new(97, 83));
        regions.retain(|(level, _)| *level == Level(0));
        regions.extend(
            info.levels
                .iter()
                .enumerate()
                .map(|(level, info)| (Level(level), Rect::new(0, 0, info.size.width + 9, info.size.height + 7))),
        );
        let Some((description, difference)) = openslide::compare(&*slide, &regions) else { return };
        let sizes: Vec<_> = info.levels.iter().map(|level| (level.size.width, level.size.height)).collect();
        assert_eq!(sizes, description.levels);
        let mpp = info.resolution.as_ref().unwrap().mpp;
        assert_eq!(mpp.x.to_string(), description.properties["openslide.mpp-x"]);
        assert_eq!(mpp.y.to_string(), description.properties["openslide.mpp-y"]);
        let power = info.objective_power.map(|power| power.to_string());
        assert_eq!(power.as_ref(), description.properties.get("openslide.objective-power"));
        let icc = info.icc_profile_bytes.map(|bytes| bytes.to_string());
        assert_eq!(icc.as_ref(), description.properties.get("openslide.icc-size"));
        let associated: Vec<_> = info.associated.iter().map(|a| (&a.name, (a.size.width, a.size.height))).collect();
        assert_eq!(associated, description.associated.iter().map(|(name, size)| (name, *size)).collect::<Vec<_>>());
        let theirs: Vec<_> = description.properties.iter().filter(|(key, _)| key.starts_with("dicom.")).collect();
        let ours: Vec<_> = info.properties.iter().filter(|(key, _)| key.starts_with("dicom.")).collect();
        // Its streams are made as those of luma and chroma, and the file says RGB: that is said.
        assert_eq!(info.properties.contains_key("microtome.colors"), name.starts_with("cmu-1"), "{name}");
        assert!(ours.iter().map(|(key, _)| *key).eq(theirs.iter().map(|(key, _)| *key)));
        for ((key, ours), (_, theirs)) in ours.into_iter().zip(theirs) {
            // OpenSlide writes 17 digits of a fraction, some of which say nothing.
            let same = matches!((ours.parse::<f64>(), theirs.parse::<f64>()), (Ok(a), Ok(b)) if a == b);
            assert!(ours == theirs || same, "{key}: {ours:?}, OpenSlide says {theirs:?}");
        }
        assert_eq!(difference.max, 0, "{name}: {difference:?}");
    }
    // The same pixels by JPEG-LS, which OpenSlide does not read.
    let read = |name: &str| slide(real(name).unwrap()).read_region(Level(0), Rect::new(0, 0, 50, 50)).unwrap();
    assert_eq!(read("highdicom/sm_image_jpegls.dcm"), read("highdicom/sm_image.dcm"));
    let folder = real("cmu-1-small-region").unwrap();
    assert_eq!(slide(&folder).info().levels.len(), 12);
    let error = refusal(folder.with_file_name("highdicom")).to_string();
    assert!(error.contains("holds 3 DICOM slides"), "{error}");
}
