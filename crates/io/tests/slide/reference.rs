//! Against OpenSlide 4.0.1: `expected/expected.json` of the test data says sizes, properties and regions (as RGBA,
//! transparent outside of the slide, where ours have the background).

use std::collections::BTreeMap;
use std::path::Path;

use microtome_io::bytes::ByteAccess;
use microtome_io::slide::{OpenOptions, SlideReader, open};
use microtome_io::{Level, Rect};
use microtome_testkit::assets;
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::slide;

/// How far the samples of opaque pixels are from the reference.
#[derive(Debug, Default, Clone, Copy, PartialEq)]
struct Difference {
    /// The largest one.
    max: u8,
    /// Samples that differ.
    count: u64,
    /// Samples compared.
    of: u64,
}

fn entry(name: &str) -> Option<(std::path::PathBuf, Value)> {
    let data = assets::data()?;
    let json = std::fs::read(data.join("expected/expected.json")).unwrap();
    let mut expected: Value = serde_json::from_slice(&json).unwrap();
    let (path, entry) = (data.join("slides").join(name), expected["slides"][name].take());
    Some((path, entry))
}

fn compare(slide: &dyn SlideReader, folder: &Path, regions: &Value) -> Difference {
    let mut total = Difference::default();
    for region in regions.as_array().unwrap() {
        let Ok(png) = image::open(folder.join(region["png"].as_str().unwrap())) else { continue };
        let png = png.to_rgba8();
        let level = Level(region["level"].as_u64().unwrap() as usize);
        let downsample = slide.info().level(level).unwrap().downsample;
        let at = |i: usize| region["location_level0"][i].as_i64().unwrap() as f64;
        let rect = Rect::new(
            (at(0) / downsample.x).round() as i64,
            (at(1) / downsample.y).round() as i64,
            png.width().into(),
            png.height().into(),
        );
        let ours = slide.read_region(level, rect).unwrap();
        for (theirs, ours) in png.pixels().zip(ours.as_u8().unwrap().chunks_exact(3)) {
            match theirs[3] {
                255 => {
                    for channel in 0..3 {
                        let difference = theirs[channel].abs_diff(ours[channel]);
                        total.max = total.max.max(difference);
                        total.count += u64::from(difference > 0);
                        total.of += 1;
                    }
                }
                0 => assert_eq!(ours, [255; 3], "outside of the slide there is background"),
                alpha => panic!("alpha {alpha}: the regions lie on whole pixels"),
            }
        }
    }
    eprintln!("{}: {total:?}", slide.info().path.display());
    total
}

/// Compares the SHA-256 of all regions, also of those that come without a picture, in OpenSlide's form: RGBA, transparent
/// outside of the slide.
fn check_hashes(slide: &dyn SlideReader, regions: &Value) {
    for region in regions.as_array().unwrap() {
        let level = Level(region["level"].as_u64().unwrap() as usize);
        let info = slide.info().level(level).unwrap();
        let number = |value: &Value| value.as_i64().unwrap();
        let place =
            |i: usize, downsample: f64| (number(&region["location_level0"][i]) as f64 / downsample).round() as i64;
        let rect = Rect::new(
            place(0, info.downsample.x),
            place(1, info.downsample.y),
            number(&region["size"][0]) as u64,
            number(&region["size"][1]) as u64,
        );
        let pixels = slide.read_region(level, rect).unwrap();
        let mut hash = Sha256::new();
        let places = (rect.y..rect.bottom()).flat_map(|y| (rect.x..rect.right()).map(move |x| Rect::new(x, y, 1, 1)));
        for (place, rgb) in places.zip(pixels.as_u8().unwrap().chunks_exact(3)) {
            if info.size.rect().contains(place) {
                hash.update([rgb[0], rgb[1], rgb[2], 255]);
            } else {
                assert_eq!(rgb, [255; 3], "outside of the slide there is background");
                hash.update([0; 4]);
            }
        }
        let hash = hash.finalize().iter().fold(String::new(), |hex, byte| hex + &format!("{byte:02x}"));
        assert_eq!(hash, region["sha256_rgba"].as_str().unwrap(), "level {level}, {rect}");
    }
}

#[test]
fn the_aperio_slide_is_openslides() {
    let Some((path, expected)) = entry("svs/CMU-1-Small-Region.svs") else { return };
    let slide = slide(&path);
    let info = slide.info();
    assert_eq!(info.format, expected["vendor"]);
    assert_eq!((info.size().width, info.size().height), (2220, 2967));
    assert_eq!((info.levels.len(), info.levels[0].tile.width, info.levels[0].tile.height), (1, 240, 240));
    let resolution = info.resolution.as_ref().unwrap();
    assert_eq!(resolution.mpp.x.to_string(), expected["mpp"][0]);
    assert_eq!(resolution.mpp.y.to_string(), expected["mpp"][1]);
    assert_eq!(resolution.source.to_string(), "aperio.MPP");
    assert_eq!(info.objective_power, Some(20.0));
    assert_eq!(info.properties["aperio.Filename"], "CMU-1");
    let associated: BTreeMap<_, _> =
        info.associated.iter().map(|a| (a.name.as_str(), [a.size.width, a.size.height])).collect();
    assert_eq!(serde_json::to_value(associated).unwrap(), expected["associated"]);
    for name in ["label", "macro", "thumbnail"] {
        let pixels = slide.read_associated(name).unwrap();
        let samples = pixels.as_u8().unwrap();
        assert!(samples.iter().min() != samples.iter().max(), "{name} is of one colour");
    }

    let regions = path.parent().unwrap().join("../../expected");
    for access in [ByteAccess::Map, ByteAccess::Read] {
        let slide = open(&path, &OpenOptions::default().access(access)).unwrap();
        let difference = compare(&*slide, &regions, &expected["regions"]);
        assert_eq!((difference.max, difference.count), (0, 0), "JPEG decodes bit for bit as in OpenSlide");
        check_hashes(&*slide, &expected["regions"]);
    }
}

#[test]
fn the_generic_pyramid_is_openslides() {
    let Some((path, expected)) = entry("generic-tiff/boxes.tiff") else { return };
    let slide = slide(&path);
    let info = slide.info();
    assert_eq!(info.format, expected["vendor"]);
    let sizes: Vec<_> = info.levels.iter().map(|level| [level.size.width, level.size.height]).collect();
    assert_eq!(serde_json::to_value(sizes).unwrap(), expected["levels"]);
    assert_eq!(info.icc_profile_bytes, Some(588));
    // OpenSlide reports 352.8 um per pixel, 72 dots per inch in disguise.
    assert_eq!(info.resolution, None);
    assert!(info.properties["microtome.resolution-ignored"].contains("352.7"), "{:?}", info.properties);
    let difference = compare(&*slide, &path.parent().unwrap().join("../../expected"), &expected["regions"]);
    assert_eq!((difference.max, difference.count), (0, 0), "deflate is lossless");
    check_hashes(&*slide, &expected["regions"]);
    assert_eq!(difference.of, 3 * (300 * 250 + 150 * 125 + 75 * 62 + 37 * 31));
}
