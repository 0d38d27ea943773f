//! Which tiles are skipped, judged by a program that shares nothing with ours.

use std::path::Path;
use std::process::Command;

use microtome::io::Size;
use microtome::io::slide::{self, OpenOptions};
use microtome::io::store::MemoryMask;
use microtome::{Segmenter, Settings, Silent};
use microtome_testkit::{ConstantModel, assets, skip};
use microtome_tile::{TileGrid, TileIndex};
use serde_json::json;

/// Tiles run and tiles skipped are the grid, and `tests/python/tissue_check.py` finds no tissue in those skipped.
#[test]
fn skipped_tiles_hold_no_tissue() {
    let Some(python) = std::env::var_os("MICROTOME_PYTHON") else {
        skip("MICROTOME_PYTHON names no interpreter with numpy and openslide");
        return;
    };
    let Some(path) = assets::cmu_small_region() else { return };
    let slide = slide::open(&path, &OpenOptions::default()).unwrap();
    let tile = Size::new(128, 128);
    let mut model = ConstantModel::new(tile, &[0.0, 1.0]);
    // The slide's own 0.499 is within the tolerance: target pixels are level-0 pixels.
    model.card_mut().mpp = Some(0.5);
    let segmenter = Segmenter::new(&model, Settings::default()).unwrap();

    let (_, summary) = segmenter.segment_into(slide.as_ref(), MemoryMask::new, &Silent).unwrap();
    let region = segmenter.region(slide.as_ref()).unwrap().expect("a bright slide has a tissue mask");
    let grid = TileGrid::new(summary.geometry.target.size, tile, summary.geometry.step).unwrap();
    let skipped: Vec<_> =
        (0..grid.len()).map(|i| grid.rect(TileIndex(i))).filter(|rect| !region.touches(*rect)).collect();
    // More than half of this slide is glass: a detector that takes it for tissue fails here, not only one that misses tissue.
    assert!(summary.tiles.skipped * 4 > summary.tiles.grid, "{:?}", summary.tiles);

    let folder = tempfile::tempdir().unwrap();
    let report = folder.path().join("report.json");
    std::fs::write(&report, json!({ "tiles": summary.tiles, "skipped_tiles": skipped }).to_string()).unwrap();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/python/tissue_check.py");
    let output = Command::new(python).arg(script).arg(path).arg(report).output().unwrap();
    let words = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert!(output.status.success(), "{words}");
    println!("{words}");
}
