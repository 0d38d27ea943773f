//! Leica SCN, Philips TIFF, Ventana BIF, Trestle: small slides that OpenSlide 4 opens as theirs, written by `tests/python/vendor_tiffs.py`.

use std::path::{Path, PathBuf};
use std::process::Command;

use microtome_io::slide::{OpenOptions, SlideReader, open};
use microtome_io::{Error, Level, Rect, Size};

use crate::openslide::{Description, Region, ask, compare, pictures, spread};

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
fn check_pictures(slide: &dyn SlideReader) {
    let theirs = pictures(&slide.info().path).unwrap();
    let mut names: Vec<_> = slide.info().associated.iter().map(|picture| &picture.name).collect();
    names.sort();
    assert!(theirs.keys().eq(names), "{:?}", theirs.keys());
    for (name, (width, height, theirs)) in theirs {
        let ours = slide.read_associated(&name).unwrap();
        assert_eq!(ours.size(), Size::new(width, height));
        let pixels = ours.as_u8().unwrap().chunks_exact(3).zip(theirs.chunks_exact(4));
        let furthest = pixels.flat_map(|(ours, theirs)| ours.iter().zip(theirs).map(|(a, b)| a.abs_diff(*b))).max();
        assert_eq!(furthest, Some(0), "{name}");
    }
}

/// Compares a slide in everything.
fn check(path: &Path, regions: impl Fn(&dyn SlideReader) -> Vec<Region>, except: &[&str]) {
    let slide = crate::slide(path);
    let Some((description, difference)) = compare(&*slide, &regions(&*slide)) else { return };
    check_description(&*slide, &description, except);
    assert_eq!(difference.max, 0, "{}: {difference:?}", path.display());
    assert!(difference.samples > 20_000, "{}: hardly anything was compared", path.display());
    check_pictures(&*slide);
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

#[test]
fn ventana_slides_are_openslides() {
    let Some((_folder, files)) = written("ventana") else { return };
    for path in files {
        match &*name(&path) {
            "refused-outside.bif" => assert!(refusal(&path).contains("9 x 4 tiles"), "{}", refusal(&path)),
            // OpenSlide resamples what lies at fractions of a pixel; here it lies at the nearest whole ones.
            "mean.bif" => {
                let slide = crate::slide(&path);
                assert_eq!(slide.info().properties["microtome.tile-advance"], MEAN_ADVANCE);
                let regions = all(&*slide);
                let Some((description, theirs)) = ask(&path, &regions) else { return };
                check_description(&*slide, &description, &[]);
                let (mut furthest, mut sum, mut count) = (0, 0, 0_u32);
                for ((level, rect), theirs) in regions.iter().zip(&theirs) {
                    let ours = slide.read_region(*level, *rect).unwrap();
                    // An edge of an area that lies at a fraction of a pixel is neither background nor picture.
                    let (width, height) = (rect.width as usize, rect.height as usize);
                    let opaque = |x: usize, y: usize| theirs[(y * width + x) * 4 + 3] == 255;
                    let inside = |at: usize| {
                        let (x, y) = (at % width, at / width);
                        (1..width - 1).contains(&x)
                            && (1..height - 1).contains(&y)
                            && (x - 1..=x + 1).all(|x| (y - 1..=y + 1).all(|y| opaque(x, y)))
                    };
                    let pixels = ours.as_u8().unwrap().chunks_exact(3).zip(theirs.chunks_exact(4)).enumerate();
                    let pixels = pixels.filter(|(at, _)| inside(*at)).map(|(_, pixels)| pixels);
                    for (ours, theirs) in pixels.flat_map(|(ours, theirs)| ours.iter().zip(theirs)) {
                        furthest = furthest.max(ours.abs_diff(*theirs));
                        sum += u64::from(ours.abs_diff(*theirs));
                        count += 1;
                    }
                }
                // Neighbours differ by 13 levels at most.
                eprintln!("{}: {furthest} at most, {} in the mean", path.display(), sum as f64 / f64::from(count));
                assert!(furthest <= 13 && sum < 2 * u64::from(count) && count > 100_000);
            }
            name if name.starts_with("only-ours") => {}
            _ => check(&path, all, &[]),
        }
    }
}

/// 64 pixels less the mean of overlaps of 7 and 8 pixels: 11 of each along x; 8 and 13 along y (`vendor_tiffs.py`).
const MEAN_ADVANCE: &str = "56.5 x 56.38095238095238";

#[test]
fn what_openslide_does_not_read_of_ventana() {
    let Some((folder, _files)) = written("ventana") else { return };
    let read = |name: &str| {
        let slide = crate::slide(folder.path().join(name));
        let pixels = slide.read_region(Level(0), slide.info().size().rect()).unwrap();
        (slide.info().size(), pixels.as_u8().unwrap().to_vec())
    };
    let (size, expected) = read("areas.bif");
    // Tiles (1, 1) of the first area, (1, 1) of the second one: 56 pixels are seen of each.
    let missing = [Rect::new(56, 56, 56, 56), Rect::new(440 + 56, 24 + 56, 56, 56)];
    let areas = [Rect::new(0, 0, 288, 232), Rect::new(440, 24, 176, 176)];
    for (name, missing) in [("only-ours-left.bif", &[][..]), ("only-ours-missing.bif", &missing[..])] {
        let (found, pixels) = read(name);
        assert_eq!(found, size);
        for (index, (ours, expected)) in pixels.chunks_exact(3).zip(expected.chunks_exact(3)).enumerate() {
            let (x, y) = (index as i64 % size.width as i64, index as i64 / size.width as i64);
            let here = Rect::new(x, y, 1, 1);
            let white = !areas.iter().any(|area| area.contains(here)) || missing.iter().any(|tile| tile.contains(here));
            let expected = if white { &[235; 3][..] } else { expected };
            assert_eq!(ours, expected, "{name}: ({x}, {y})");
        }
    }
}

#[test]
fn trestle_slides_are_openslides() {
    let Some((_folder, files)) = written("trestle") else { return };
    for path in files {
        match &*name(&path) {
            "refused-overlap.tif" => assert!(refusal(&path).contains("cannot overlap by 64"), "{}", refusal(&path)),
            name if name.ends_with(".Full") => {}
            _ => {
                check(&path, all, &[]);
                assert_eq!(crate::slide(&path).info().background, [0xf0; 3]);
            }
        }
    }
}
