//! Previews of stores as other programs may write them: levels of any size, scale and translation.

use std::fs;
use std::path::Path;

use microtome_testkit::SyntheticSlide;
use serde_json::{Value, json};

use super::*;

/// A level: its sides, and its scale and translation along both axes.
type Stored = ((u64, u64), f64, f64);

/// The colour of label 1.
const GREEN: [u8; 3] = [0, 255, 0];

/// A store whose samples are computed of level, column and row; `unit` is that of its axes.
fn store(path: &Path, unit: Option<&str>, levels: &[Stored], sample: impl Fn(usize, u64, u64) -> u8) -> OmeZarr {
    written(
        path,
        unit,
        levels,
        json!({ "image-label": { "colors": [{ "label-value": 1, "rgba": [0, 255, 0, 255] }] } }),
        sample,
    )
}

fn written(
    path: &Path,
    unit: Option<&str>,
    levels: &[Stored],
    mut ome: Value,
    sample: impl Fn(usize, u64, u64) -> u8,
) -> OmeZarr {
    let put = |path: &Path, value: Value| {
        fs::create_dir_all(path).unwrap();
        fs::write(path.join("zarr.json"), value.to_string()).unwrap();
    };
    let mut datasets = Vec::new();
    for (level, &((width, height), scale, translation)) in levels.iter().enumerate() {
        let array = path.join(level.to_string());
        let description = json!({
            "zarr_format": 3, "node_type": "array", "shape": [height, width], "data_type": "uint8", "fill_value": 0,
            "chunk_grid": { "name": "regular", "configuration": { "chunk_shape": [height, width] } },
            "chunk_key_encoding": { "name": "default" }, "codecs": [{ "name": "bytes" }],
        });
        put(&array, description);
        let sample = &sample;
        let samples: Vec<u8> = (0..height).flat_map(|y| (0..width).map(move |x| sample(level, x, y))).collect();
        fs::create_dir_all(array.join("c/0")).unwrap();
        fs::write(array.join("c/0/0"), samples).unwrap();
        datasets.push(json!({ "path": level.to_string(), "coordinateTransformations": [
            { "type": "scale", "scale": [scale, scale] },
            { "type": "translation", "translation": [translation, translation] },
        ]}));
    }
    let axis = |name: &str| match unit {
        Some(unit) => json!({ "name": name, "type": "space", "unit": unit }),
        None => json!({ "name": name, "type": "space" }),
    };
    ome["version"] = json!("0.5");
    ome["multiscales"] = json!([{ "axes": [axis("y"), axis("x")], "datasets": datasets }]);
    put(path, json!({ "zarr_format": 3, "node_type": "group", "attributes": { "ome": ome } }));
    OmeZarr::open(path).unwrap()
}

fn of_size(size: u64) -> PreviewOptions {
    PreviewOptions { size, ..PreviewOptions::default() }
}

/// The pixels that a mask has filled, `true` where it has.
fn filled(slide: &SyntheticSlide, mask: &OmeZarr, size: u64) -> Result<Vec<bool>> {
    let picture = overview(slide, of_size(size))?;
    let with = overlay(&picture, slide, mask, Style::Fill { opacity: 1.0 })?;
    Ok(with.as_u8().unwrap().chunks_exact(3).map(|pixel| pixel == GREEN).collect())
}

#[test]
fn a_level_that_is_no_half_is_shown_where_it_lies() {
    let folder = tempfile::tempdir().unwrap();
    let inside = |n: f64| (180.0..225.0).contains(&n);
    for (name, unit) in [("known", Some("micrometer")), ("unknown", None)] {
        // A square of 45 pixels of level 0, and of 15 of level 1.
        let mask =
            store(&folder.path().join(name), unit, &[((270, 270), 0.5, 0.0), ((90, 90), 1.5, 0.5)], |level, x, y| {
                let span = [1.0, 3.0][level];
                u8::from(inside(x as f64 * span) && inside(y as f64 * span))
            });
        let picture = LabelPicture::read(&mask, of_size(70)).unwrap();
        assert_eq!(picture.size(), Size::new(70, 70));
        for (i, &label) in picture.values().iter().enumerate() {
            let at = |n: usize| (n as f64 + 0.5) * 270.0 / 70.0;
            assert_eq!(label == 1, inside(at(i % 70)) && inside(at(i / 70)), "{name}: pixel {i}");
        }
    }
    // Halves of an odd size span two pixels whether a scale says so or not: the last one of 23 sticks out.
    for (name, unit) in [("halves", Some("micrometer")), ("unknown halves", None)] {
        let levels = [((45, 45), 0.5, 0.0), ((23, 23), 1.0, 0.25)];
        let mask = store(&folder.path().join(name), unit, &levels, |_, x, _| x as u8);
        let picture = LabelPicture::read(&mask, of_size(20)).unwrap();
        let expected: Vec<u16> = (0..20).map(|x| ((f64::from(x) + 0.5) * 45.0 / 20.0 / 2.0) as u16).collect();
        assert_eq!(picture.values()[..20], expected, "{name}");
    }
}

#[test]
fn a_mask_of_a_part_is_drawn_where_it_lies() {
    let folder = tempfile::tempdir().unwrap();
    let slide = SyntheticSlide::new(Size::new(270, 270), 1);
    // The lower right quarter; in it the square from 180 to 225.
    let part = ((135, 135), 0.5, 67.5);
    let inside = |n: f64| (180.0..225.0).contains(&n);
    let mask = store(&folder.path().join("part"), Some("micrometer"), &[part], |_, x, y| {
        u8::from(inside(x as f64 + 135.0) && inside(y as f64 + 135.0))
    });
    for size in [270, 90] {
        let at = |n: u64| (n as f64 + 0.5) * 270.0 / size as f64;
        let expected: Vec<bool> =
            (0..size).flat_map(|y| (0..size).map(move |x| inside(at(x)) && inside(at(y)))).collect();
        assert!(filled(&slide, &mask, size).unwrap() == expected, "{size} pixels");
    }
    let refused = |mask: &OmeZarr, word: &str| {
        let error = filled(&slide, mask, 90).unwrap_err();
        assert!(matches!(&error, Error::Usage(why) if why.contains(word)), "{error}");
    };
    let elsewhere = ((135, 135), 0.5, 100.0);
    refused(&store(&folder.path().join("elsewhere"), Some("micrometer"), &[elsewhere], |_, _, _| 1), "another slide");
    refused(&store(&folder.path().join("other"), None, &[((135, 100), 0.5, 0.0)], |_, _, _| 1), "proportions");
    refused(&written(&folder.path().join("image"), None, &[part], json!({}), |_, _, _| 1), "no mask of labels");
}

#[test]
fn a_mask_of_the_whole_slide_covers_it_whatever_was_rounded() {
    let folder = tempfile::tempdir().unwrap();
    let slide = SyntheticSlide::new(Size::new(271, 201), 1);
    let whole = |mask: &OmeZarr| {
        let picture = overview(&slide, of_size(100)).unwrap();
        let outlined = outline(&picture, &slide, mask).unwrap();
        assert!(outlined != picture);
        outlined == outline_own(&picture, mask).unwrap()
    };
    let squares = |_: usize, x: u64, y: u64| u8::from((x / 20 + y / 20).is_multiple_of(2));
    let um = Some("micrometer");
    for (name, unit, level) in [
        ("of half the resolution", um, ((136, 101), 1.0, 0.25)),
        ("without a translation", um, ((136, 101), 1.0, 0.0)),
        ("rounded down", um, ((135, 100), 1.0, 0.25)),
        ("of a rounded resolution", um, ((271, 201), 0.5004, 0.0)),
        ("of no known resolution", None, ((136, 101), 7.0, 0.0)),
    ] {
        assert!(whole(&store(&folder.path().join(name), unit, &[level], squares)), "{name}");
    }
    // One of a run that was told another resolution says which slide it is of.
    let path = folder.path().join("told");
    let told = ((271, 201), 0.25, 0.0);
    assert!(!whole(&store(&path, um, &[told], squares)), "taken for a quarter");
    let mut root: Value = serde_json::from_slice(&fs::read(path.join("zarr.json")).unwrap()).unwrap();
    let size = json!({ "width": 271, "height": 201 });
    root["attributes"]["microtome"] =
        json!({ "run": { "slide": slide.content_id().unwrap(), "target": { "size": size } } });
    fs::write(path.join("zarr.json"), root.to_string()).unwrap();
    assert!(whole(&OmeZarr::open(&path).unwrap()));
}

/// A level whose size was rounded up has a pixel that lies for the most part behind the slide's edge.
#[test]
fn a_preview_has_no_more_pixels_than_it_may() {
    let folder = tempfile::tempdir().unwrap();
    let levels = [((33, 45), 0.5, 0.0), ((17, 23), 1.0, 0.25)];
    let slide = written(&folder.path().join("image"), Some("micrometer"), &levels, json!({}), |_, _, _| 9);
    for (size, expected) in [(100, Size::new(33, 45)), (16, Size::new(12, 16)), (1, Size::new(1, 1))] {
        let picture = overview(&slide, of_size(size)).unwrap();
        assert_eq!(picture, Pixels::filled(expected, SampleType::U8, &[9]), "{size}");
    }
}
