//! Slides some of whose tiles cannot be read.

use microtome::io::{Level, Size, TileCoord};
use microtome::unet::Normalization;
use microtome::{Existing, OnBadTile, Outcome, Segmenter, Settings, Silent};
use microtome_testkit::{FailingSlide, FunctionModel, SyntheticSlide};

use crate::{files, levels_of_store, segment_to, settings, with};

const SIZE: Size = Size::new(900, 700);
const TILE: u64 = 40;

fn filling() -> Settings {
    with(&settings(), |s| s.on_bad_tile = OnBadTile::Fill)
}

/// The slide with an unreadable stored tile.
fn damaged(bad: &[TileCoord]) -> FailingSlide<SyntheticSlide> {
    bad.iter()
        .fold(FailingSlide::new(SyntheticSlide::new(SIZE, 1)), |slide, &tile| slide.with_bad_tile(Level::FINEST, tile))
}

#[test]
fn around_an_unreadable_tile_is_background_and_elsewhere_the_mask_is_the_whole_runs() {
    let folder = tempfile::tempdir().unwrap();
    let model = FunctionModel::new(Size::new(TILE, TILE), &[60.5]);
    let whole = folder.path().join("whole.zarr");
    segment_to(&SyntheticSlide::new(SIZE, 1), &model, &settings(), &whole);
    let bad = TileCoord { row: 1, column: 2 };
    let slide = damaged(&[bad]);
    let cell = bad.rect(microtome::io::slide::SlideReader::info(&slide).levels[0].tile);

    let expected = levels_of_store(&whole).remove(0).1;
    let scratch = folder.path().to_owned();
    let narrow = |s: &mut Settings| s.memory = crate::least_memory(&slide, &model, &filling());
    let variants: [(&str, Settings); 3] = [
        ("plain", filling()),
        ("in strips", with(&filling(), narrow)),
        ("in strips that keep", with(&with(&filling(), narrow), |s| s.scratch = Some(scratch))),
    ];
    let mut stores = Vec::new();
    for (name, settings) in variants {
        let mask = folder.path().join(format!("{name}.zarr"));
        let summary = segment_to(&slide, &model, &settings, &mask);
        let [tile] = summary.unreadable.as_slice() else { panic!("{:?}", summary.unreadable) };
        assert_eq!((tile.level, tile.tile), (Level::FINEST, bad));
        assert!(summary.to_string().contains("unreadable   level 0, column 2 row 1: made undecodable by a test"));
        let found = levels_of_store(&mask).remove(0).1;
        let mut cleared = 0;
        for (i, (found, expected)) in found.iter().zip(&expected).enumerate() {
            let (x, y) = (i as i64 % SIZE.width as i64, i as i64 / SIZE.width as i64);
            let inside = x >= cell.x && x < cell.right() && y >= cell.y && y < cell.bottom();
            let reach = TILE as i64;
            let near =
                x >= cell.x - reach && x < cell.right() + reach && y >= cell.y - reach && y < cell.bottom() + reach;
            assert!(found == expected || (*found == 0 && near), "{name}: ({x}, {y})");
            assert!(!inside || *found == 0, "{name}: ({x}, {y})");
            cleared += u64::from(found != expected);
        }
        assert!(cleared > 0, "{name}");
        stores.push(files(&mask));

        // The same again says so again, and does nothing.
        let again = Segmenter::new(&model, settings).unwrap().segment(&slide, &mask, Existing::Keep, &Silent);
        assert!(matches!(again, Ok(Outcome::AlreadyDone { unreadable: 1 })), "{again:?}");
    }
    assert!(stores.iter().all(|store| *store == stores[0]), "strips change nothing");
}

#[test]
fn by_default_a_run_fails_and_names_the_tile() {
    let folder = tempfile::tempdir().unwrap();
    let model = FunctionModel::new(Size::new(TILE, TILE), &[60.5]);
    let slide = damaged(&[TileCoord { row: 1, column: 2 }]);
    let segmenter = Segmenter::new(&model, settings()).unwrap();
    let error = segmenter.segment(&slide, &folder.path().join("m.zarr"), Existing::Keep, &Silent).unwrap_err();
    assert_eq!(error.exit_code(), 4);
    assert!(error.to_string().contains("column 2 row 1"), "{error}");
}

#[test]
fn every_unreadable_tile_is_listed_also_where_one_tile_of_the_network_touches_several() {
    let model = FunctionModel::new(SIZE, &[60.5]);
    let bad = [TileCoord { row: 0, column: 0 }, TileCoord { row: 1, column: 1 }, TileCoord { row: 1, column: 2 }];
    let folder = tempfile::tempdir().unwrap();
    let summary = segment_to(&damaged(&bad), &model, &filling(), &folder.path().join("m.zarr"));
    assert_eq!(summary.unreadable.iter().map(|t| t.tile).collect::<Vec<_>>(), bad);
}

#[test]
fn statistics_and_tissue_leave_out_what_cannot_be_read() {
    let folder = tempfile::tempdir().unwrap();
    let mut model = FunctionModel::new(Size::new(TILE, TILE), &[60.5]);
    model.card_mut().normalization = vec![Normalization::ZScore; 3];
    let slide = damaged(&[TileCoord { row: 1, column: 2 }]);
    let settings = with(&filling(), |s| s.tissue = microtome::TissueMode::Auto);
    let mask = folder.path().join("m.zarr");
    let summary = segment_to(&slide, &model, &settings, &mask);
    assert_eq!(summary.unreadable.len(), 1);
    let text = std::fs::read_to_string(folder.path().join("m.zarr.run/statistics.json")).unwrap();
    let sums: serde_json::Value = serde_json::from_str(&text).unwrap();
    let count = sums["channels"][0]["count"].as_u64().unwrap();
    let cell = microtome::io::slide::SlideReader::info(&slide).levels[0].tile.area();
    // Left out are the tile and at most 16 pixels around it.
    let left_out = SIZE.area() - count;
    assert!(left_out >= cell && left_out <= cell + 16 * 4 * 300, "{left_out}");
}
