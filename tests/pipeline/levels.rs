//! The pyramid of a store, read back from the disk.

use microtome::io::store::{Content, OmeZarr};
use microtome::io::{Microns, Size};
use microtome_testkit::{FunctionModel, SyntheticSlide};

use crate::function::{THRESHOLDS, expected};
use crate::{assert_pyramid, assert_same, least_memory, levels_of, levels_of_store, segment, segment_to, settings};

#[test]
fn every_level_of_a_store_is_the_majority_of_the_one_below() {
    let folder = tempfile::tempdir().unwrap();
    for (n, (width, height)) in [(1, 1), (17, 300), (257, 129), (300, 211)].into_iter().enumerate() {
        let size = Size::new(width, height);
        let slide = SyntheticSlide::new(size, 9);
        let model = FunctionModel::new(Size::new(48, 48), &THRESHOLDS);
        let mut settings = settings();
        settings.memory = least_memory(&slide, &model, &settings);
        let path = folder.path().join(format!("{n}.ome.zarr"));
        let summary = segment_to(&slide, &model, &settings, &path);

        let levels = levels_of_store(&path);
        assert_same(size, &levels[0].1, &expected(&slide, &model), size);
        assert_pyramid(&levels, 16, size);
        for area in &summary.areas {
            let counted = levels[0].1.iter().filter(|&&label| label == area.class.value).count();
            assert_eq!(area.pixels, counted as u64, "{size}: {}", area.class.name);
            // Half a micrometre per pixel.
            let mm2 = area.mm2.unwrap();
            assert!((mm2 - counted as f64 * 0.25e-6).abs() < 1e-12, "{size}: {}: {mm2}", area.class.name);
        }
        // What is kept in memory is the same.
        let (mask, _) = segment(&slide, &model, &settings);
        assert!(levels_of(&mask) == levels, "{size}: the mask in memory differs");
    }
}

#[test]
fn a_store_says_what_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("mask.ome.zarr");
    let mpp = Microns { x: 0.25, y: 0.26 };
    let slide = SyntheticSlide::new(Size::new(100, 90), 2).with_mpp(Some(mpp));
    let model = FunctionModel::new(Size::new(32, 32), &THRESHOLDS);
    let mut settings = settings();
    settings.name = Some("cells".into());
    segment_to(&slide, &model, &settings, &path);
    let store = OmeZarr::open(&path).unwrap();
    let info = store.info();
    assert_eq!((info.version.as_str(), info.name.as_deref()), ("0.5", Some("cells")));
    assert_eq!(info.content, Content::Labels { classes: microtome::unet::Predictor::card(&model).classes.clone() });
    assert_eq!(info.chunk, Size::new(16, 16));
    assert_eq!(info.levels.len(), 4);
    for (n, level) in info.levels.iter().enumerate() {
        let factor = f64::from(1u32 << n);
        let found = level.mpp.unwrap();
        assert_eq!((found.x, found.y), (0.25 * factor, 0.26 * factor));
        // The first pixel's centre lies half its extent from the slide's corner; that of level 0 is the origin.
        assert_eq!(
            (level.translation.x, level.translation.y),
            (0.25 * (factor - 1.0) / 2.0, 0.26 * (factor - 1.0) / 2.0)
        );
    }
    let run = &info.attributes["run"];
    assert_eq!(run["slide"], microtome::io::slide::SlideReader::content_id(&slide).unwrap());
    assert_eq!(run["step"], 0.5);
}

#[test]
fn a_slide_without_a_resolution_gives_a_mask_without_one() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("mask.ome.zarr");
    let slide = SyntheticSlide::new(Size::new(40, 50), 2).with_mpp(None);
    let model = FunctionModel::new(Size::new(32, 32), &THRESHOLDS);
    let summary = segment_to(&slide, &model, &settings(), &path);
    assert_eq!(OmeZarr::open(&path).unwrap().info().levels[0].mpp, None);
    assert!(summary.areas.iter().all(|area| area.mm2.is_none()));
    assert!(summary.to_string().contains("resolution unknown"), "{summary}");
}
