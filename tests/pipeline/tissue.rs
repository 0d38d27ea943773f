//! Glass is skipped, and nothing else is.

use std::process::Command;

use microtome::io::bytes::Memory;
use microtome::io::slide::{OpenOptions, SlideReader, open, open_bytes};
use microtome::io::{Level, Rect, Size};
use microtome::{Segmenter, Settings, TissueMode};
use microtome_testkit::tiff::TiffSlide;
use microtome_testkit::{ConstantModel, CountingSlide, FunctionModel, SyntheticSlide, assets, skip};
use microtome_tile::{TileGrid, TileIndex};
use serde_json::json;

use crate::function::{THRESHOLDS, expected};
use crate::{assert_pyramid, assert_same, least_memory, levels_of, over, repository, segment, settings, with};

fn auto() -> Settings {
    with(&settings(), |s| s.tissue = TissueMode::Auto)
}

#[test]
fn inside_the_region_the_mask_is_the_full_runs_and_outside_it_is_background() {
    let size = Size::new(1510, 1100);
    let slide = SyntheticSlide::new(size, 11);
    let model = FunctionModel::new(Size::new(64, 64), &THRESHOLDS);
    let full = expected(&slide, &model);
    let wide = with(&auto(), |s| (s.chunk, s.shard) = (64, 128));
    let narrow = with(&wide, |s| s.memory = least_memory(&slide, &model, &wide));
    for settings in [narrow, wide] {
        let region = Segmenter::new(&model, settings.clone()).unwrap().region(&slide).unwrap().unwrap().roi;
        let wanted = |x: u64, y: u64| region.touches(Rect::new(x as i64, y as i64, 1, 1));
        let (mask, summary) = segment(&slide, &model, &settings);

        let tiles = summary.tiles;
        assert_eq!(tiles.run + tiles.skipped, tiles.grid);
        assert!(tiles.run > 0 && tiles.skipped > tiles.grid / 10, "{tiles:?}");
        assert_eq!(summary.tissue_note, None);
        let share = summary.tissue_share.unwrap();
        assert!((0.1..0.9).contains(&share), "{share}");

        let levels = levels_of(&mask);
        let masked = over(size, |x, y| if wanted(x, y) { full[(y * size.width + x) as usize] } else { 0 });
        assert_same(size, &levels[0].1, &masked, "tissue only");
        assert_pyramid(&levels, 64, "tissue only");
        // The region holds all tissue: what is outside is glass and nothing but glass.
        for y in 0..size.height {
            for x in 0..size.width {
                assert!(wanted(x, y) || !slide.is_tissue(x, y), "tissue at ({x}, {y}) is outside the region");
            }
        }
    }
}

#[test]
fn on_a_resampled_slide_the_region_is_the_same_part_of_it() {
    let size = Size::new(3000, 2400);
    let slide = SyntheticSlide::new(size, 12);
    let model = FunctionModel::new(Size::new(64, 64), &THRESHOLDS);
    let settings =
        with(&auto(), |s| (s.model_mpp, s.chunk, s.shard) = (Some(microtome::TargetResolution::Mpp(1.0)), 64, 128));
    let (mask, summary) = segment(&slide, &model, &settings);
    assert!(summary.tiles.skipped > 0 && summary.geometry.target.level == Level(1));
    let (size, found) = &levels_of(&mask)[0];
    assert_eq!(*size, Size::new(1500, 1200));
    let region = Segmenter::new(&model, settings).unwrap().region(&slide).unwrap().unwrap().roi;
    let expected = over(*size, |x, y| {
        if region.touches(Rect::new(x as i64, y as i64, 1, 1)) { model.class(&slide.pixel_at(1, x, y)) } else { 0 }
    });
    assert_same(*size, found, &expected, "tissue only, at 1 um");
}

#[test]
fn on_a_slide_of_glass_nothing_runs() {
    let slide = CountingSlide::new(SyntheticSlide::new(Size::new(900, 700), 1).with_islands(0));
    let model = FunctionModel::new(Size::new(64, 64), &THRESHOLDS);
    let (mask, summary) = segment(&slide, &model, &auto());
    assert_eq!((summary.tiles.run, summary.tiles.skipped), (0, summary.tiles.grid));
    assert_eq!(summary.tissue_share, Some(0.0));
    assert!(levels_of(&mask).iter().all(|(_, labels)| labels.iter().all(|&label| label == 0)));
    assert!(summary.areas.iter().all(|area| area.pixels == 0));
    assert_eq!(slide.reads(Level(0)), 0, "level 0 was decoded in vain");
}

#[test]
fn on_a_slide_of_tissue_every_tile_runs() {
    let slide = SyntheticSlide::new(Size::new(400, 300), 1).with_tissue_everywhere();
    let model = FunctionModel::new(Size::new(64, 64), &THRESHOLDS);
    let (mask, summary) = segment(&slide, &model, &auto());
    assert_eq!((summary.tiles.run, summary.tiles.skipped, summary.tissue_share), (summary.tiles.grid, 0, Some(1.0)));
    assert_same(slide.info().size(), &levels_of(&mask)[0].1, &expected(&slide, &model), "tissue everywhere");
}

/// Where nothing looks empty, that is said, and everything runs; a bright slide needs not be, nor one of three channels.
#[test]
fn where_nothing_looks_empty_everything_runs() {
    let tile = Size::new(64, 64);
    for (channels, bits) in [(1, 8), (3, 8), (1, 16), (3, 16)] {
        // A ramp that climbs by more from cell to cell than a background may.
        let mut file = TiffSlide::rgb(&[(700, 600)], |_, x, y, _| ((x + y) / 8 * 13 % 251) as u16);
        (file.channels, file.bits, file.photometric) = (channels, bits, if channels == 1 { 1 } else { 2 });
        let slide = open_bytes(std::sync::Arc::new(Memory::new("grey.tif", file.bytes())), &OpenOptions::default());
        let mut model = ConstantModel::new(tile, &[0.0, 1.0]);
        model.card_mut().channels = vec!["light".into(); channels];
        model.card_mut().normalization = vec![microtome::unet::Normalization::None; channels];
        let (_, summary) = segment(slide.unwrap().as_ref(), &model, &auto());
        assert_eq!(
            (summary.tiles.run, summary.tissue_share),
            (summary.tiles.grid, Some(1.0)),
            "{channels} x {bits} bits"
        );
        assert!(summary.tissue_note.is_some() && summary.to_string().contains("every tile runs"), "{summary}");
    }
}

/// A dark background is skipped as glass is.
#[test]
fn on_a_dark_slide_the_background_is_skipped() {
    let slide = SyntheticSlide::new(Size::new(1200, 900), 1).with_glass([2, 1, 2]).with_islands(2);
    let model = ConstantModel::new(Size::new(64, 64), &[0.0, 1.0]);
    let (mask, summary) = segment(&slide, &model, &auto());
    assert!(summary.tiles.skipped > summary.tiles.grid / 10 && summary.tiles.run > 0, "{:?}", summary.tiles);
    let (size, labels) = &levels_of(&mask)[0];
    for (i, &label) in (0..).zip(labels) {
        let (x, y) = (i % size.width, i / size.width);
        assert!(label == 1 || !slide.is_tissue(x, y), "tissue at ({x}, {y}) was skipped");
    }
}

/// Statistics come from the whole slide, whether glass is skipped or not.
#[test]
fn skipping_glass_does_not_change_the_statistics() {
    use microtome::unet::{Device, Execution, Model, ModelOptions};
    let model = Model::open(crate::repository("tests/models/nnunet-nuclei"), &ModelOptions::default()).unwrap();
    let mirroring = microtome::unet::Mirroring::Off;
    let execution = Execution { device: Device::Cpu, mirroring, ..Execution::default() };
    let predictor = model.predictor(&execution).unwrap();
    let slide = SyntheticSlide::new(Size::new(600, 500), 12).with_islands(1);
    let settings = with(&auto(), |s| (s.chunk, s.shard) = (64, 128));
    let region = Segmenter::new(predictor.as_ref(), settings.clone()).unwrap().region(&slide).unwrap().unwrap().roi;
    let (some, summary) = segment(&slide, predictor.as_ref(), &settings);
    let (all, _) = segment(&slide, predictor.as_ref(), &with(&settings, |s| s.tissue = TissueMode::None));
    assert!(summary.tiles.skipped > 0 && summary.tiles.run > 0, "{:?}", summary.tiles);
    let (size, all) = levels_of(&all).remove(0);
    let inside = over(size, |x, y| {
        if region.touches(Rect::new(x as i64, y as i64, 1, 1)) { all[(y * size.width + x) as usize] } else { 0 }
    });
    assert_same(size, &levels_of(&some)[0].1, &inside, "a network inside the region");
}

/// `tests/python/tissue_check.py` finds tissue on a real slide in a way that shares nothing with ours.
#[test]
fn skipped_tiles_hold_no_tissue_by_an_independent_mask() {
    let Some(python) = std::env::var_os("MICROTOME_PYTHON") else {
        skip("MICROTOME_PYTHON names no interpreter with numpy and openslide; `cargo xtask test` makes one");
        return;
    };
    let Some(path) = assets::cmu_small_region() else { return };
    let slide = open(&path, &OpenOptions::default()).unwrap();
    let tile = Size::new(128, 128);
    let model = ConstantModel::new(tile, &[0.0, 1.0]);
    let (_, summary) = segment(slide.as_ref(), &model, &auto());
    let region = Segmenter::new(&model, auto()).unwrap().region(slide.as_ref()).unwrap().unwrap().roi;
    let grid = TileGrid::new(summary.geometry.target.size, tile, summary.geometry.tilings[0].step).unwrap();
    let skipped: Vec<_> = (0..grid.len()).map(|i| grid.rect(TileIndex(i))).filter(|r| !region.touches(*r)).collect();
    // Most of this slide is glass: a detector that takes it for tissue fails here, as one does that misses tissue.
    assert!(summary.tiles.skipped * 4 > summary.tiles.grid, "{:?}", summary.tiles);

    let folder = tempfile::tempdir().unwrap();
    let report = folder.path().join("report.json");
    std::fs::write(&report, json!({ "tiles": summary.tiles, "skipped_tiles": skipped }).to_string()).unwrap();
    let script = repository("tests/python/tissue_check.py");
    let output = Command::new(python).arg(script).arg(path).arg(report).output().unwrap();
    let words = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert!(output.status.success(), "{words}");
    println!("{words}");
}
