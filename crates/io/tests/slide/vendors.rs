//! Leica SCN and Philips TIFF: small slides that OpenSlide 4 opens as theirs, written by `tests/python/vendor_tiffs.py`.

use std::path::{Path, PathBuf};
use std::process::Command;

use microtome_io::slide::{OpenOptions, SlideReader, open};
use microtome_io::{Error, Level, Rect, Size};

use crate::openslide::{Description, Region, compare, pictures, spread};

/// The files of a vendor, in a folder that lives as long as the result; `None` after saying that the test is skipped.
fn written(vendor: &str) -> Option<(tempfile::TempDir, Vec<PathBuf>)> {
    let Some(python) = std::env::var_os("MICROTOME_PYTHON") else {
        microtome_testkit::skip("MICROTOME_PYTHON names no interpreter with tifffile; `cargo xtask test` makes one");
        return None;
    };
    let folder = tempfile::tempdir().unwrap();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/python/vendor_tiffs.py");
    let output = Command::new(python).arg(script).arg(vendor).arg(folder.path()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let mut files: Vec<_> = folder.path().read_dir().unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    Some((folder, files))
}

fn name(path: &Path) -> String {
    path.file_name().unwrap().to_string_lossy().into_owned()
}

/// Compares all that both say of a slide, but for what `except` holds.
fn check_description(slide: &dyn SlideReader, theirs: &Description, except: &[&str]) {
    let info = slide.info();
    let path = info.path.display();
    assert_eq!(info.format, theirs.properties["openslide.vendor"], "{path}");
    let sizes: Vec<_> = info.levels.iter().map(|level| (level.size.width, level.size.height)).collect();
    assert_eq!(sizes, theirs.levels, "{path}");
    for (level, theirs) in info.levels.iter().zip(&theirs.downsamples) {
        // OpenSlide has one figure for both axes: their mean, where no file states it.
        let mean = f64::midpoint(level.downsample.x, level.downsample.y);
        assert!((mean - theirs).abs() < 1e-9 * theirs, "{path}: {mean}, not {theirs}");
    }
    let number = |name: &str| theirs.properties.get(name).map(|text| text.parse::<f64>().unwrap());
    let near = |ours: Option<f64>, theirs: Option<f64>| match (ours, theirs) {
        // OpenSlide keeps resolution tags in single precision.
        (Some(ours), Some(theirs)) => (ours - theirs).abs() < 1e-6 * theirs,
        (ours, theirs) => ours == theirs,
    };
    let mpp = info.resolution.as_ref().map(|resolution| resolution.mpp);
    if !except.contains(&"mpp") {
        assert!(near(mpp.map(|mpp| mpp.x), number("openslide.mpp-x")), "{path}: {mpp:?}");
        assert!(near(mpp.map(|mpp| mpp.y), number("openslide.mpp-y")), "{path}: {mpp:?}");
    }
    assert!(near(info.objective_power, number("openslide.objective-power")), "{path}: {:?}", info.objective_power);
    let bound = |name: &str| number(&format!("openslide.bounds-{name}")).map(|value| value as u64);
    let bounds = bound("x").map(|x| {
        let rest = [bound("y"), bound("width"), bound("height")].map(Option::unwrap);
        Rect::new(x as i64, rest[0] as i64, rest[1], rest[2])
    });
    assert_eq!(info.bounds, bounds, "{path}");
    // What OpenSlide says in other words, and the tags of the resolution, which it reads as single precision.
    let shared = |name: &str| {
        let own = !name.starts_with("openslide.") && !name.starts_with("microtome.");
        let tags = ["Resolution", "tiff.ResolutionUnit"].iter().any(|tag| name.contains(tag));
        (own && !tags) || name.starts_with("openslide.region") || name == "openslide.barcode"
    };
    let ours: Vec<_> = info.properties.iter().filter(|(name, _)| shared(name)).collect();
    let theirs: Vec<_> = theirs.properties.iter().filter(|(name, _)| shared(name)).collect();
    assert_eq!(ours, theirs, "{path}");
}

/// Compares the pictures that travel along.
fn check_pictures(slide: &dyn SlideReader, max: u8) {
    let theirs = pictures(&slide.info().path).unwrap();
    let mut names: Vec<_> = slide.info().associated.iter().map(|picture| &picture.name).collect();
    names.sort();
    assert!(theirs.keys().eq(names), "{:?}", theirs.keys());
    for (name, (width, height, theirs)) in theirs {
        let ours = slide.read_associated(&name).unwrap();
        assert_eq!(ours.size(), Size::new(width, height));
        let pixels = ours.as_u8().unwrap().chunks_exact(3).zip(theirs.chunks_exact(4));
        let furthest = pixels.flat_map(|(ours, theirs)| ours.iter().zip(theirs).map(|(a, b)| a.abs_diff(*b))).max();
        assert!(furthest.unwrap() <= max, "{name}: {furthest:?}");
    }
}

/// Compares a slide in everything: its pixels exactly, or as closely as the JPEG decoders agree.
fn check(path: &Path, regions: impl Fn(&dyn SlideReader) -> Vec<Region>, except: &[&str]) {
    let slide = crate::slide(path);
    let Some((description, difference)) = compare(&*slide, &regions(&*slide)) else { return };
    check_description(&*slide, &description, except);
    let bits_differ = name(path).contains("jpeg") && !cfg!(feature = "turbojpeg");
    // A level in luma and in the chroma of blue, which counts 1.77 times, make 3 in blue.
    let (max, mean) = if bits_differ { (3, 0.05) } else { (0, 0.0) };
    assert!(difference.max <= max && difference.mean <= mean, "{}: {difference:?}", path.display());
    assert!(difference.samples > 20_000, "{}: hardly anything was compared", path.display());
    // Pictures in XML are JPEG even where the pages are not.
    check_pictures(&*slide, 3);
}

fn all(slide: &dyn SlideReader) -> Vec<Region> {
    spread(slide, 40, Size::new(97, 83))
}

fn refusal(path: &Path) -> String {
    let error = open(path, &OpenOptions::default()).unwrap_err();
    assert!(matches!(error, Error::Unsupported { .. } | Error::Format { .. }), "{error:?}");
    let line = error.to_string();
    assert!(line.starts_with(&path.display().to_string()) && !line.contains('\n'), "{line}");
    line
}

#[test]
fn leica_slides_are_openslides() {
    let Some((_folder, files)) = written("leica") else { return };
    for path in files {
        match &*name(&path) {
            "refused-fluorescence.scn" => assert!(refusal(&path).contains("fluorescence"), "{}", refusal(&path)),
            // Without centimetres OpenSlide knows no resolution; the view says it.
            "old.scn" => {
                check(&path, all, &["mpp"]);
                let info = crate::slide(&path).info().clone();
                let resolution = info.resolution.unwrap();
                assert_eq!((resolution.mpp.x, resolution.mpp.y), (0.5, 0.5));
                assert_eq!(resolution.source.to_string(), "scn view and dimension");
            }
            // Where downsamples are no whole numbers, OpenSlide cuts corners off to whole pixels of the level, one way or the other.
            "uneven.scn" => check(&path, |slide| all(slide).into_iter().filter(|r| r.0 == Level(0)).collect(), &[]),
            "planes.scn" => {
                check(&path, all, &[]);
                assert_eq!(crate::slide(&path).info().properties["microtome.focal-planes-not-read"], "2");
            }
            "beside-fluorescence.scn" => {
                check(&path, all, &[]);
                assert_eq!(crate::slide(&path).info().properties["microtome.images-not-read"], "1");
            }
            _ => check(&path, all, &[]),
        }
    }
}

#[test]
fn philips_slides_are_openslides() {
    let Some((_folder, files)) = written("philips") else { return };
    for path in files {
        match &*name(&path) {
            "refused-levels.tiff" => assert!(refusal(&path).contains("3 pixel spacings"), "{}", refusal(&path)),
            _ => check(&path, all, &[]),
        }
    }
}
