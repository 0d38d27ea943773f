//! Every tile of a slide is decoded, and every bad one is named.

use std::sync::atomic::{AtomicU64, Ordering};

use microtome_io::slide::check;
use microtome_io::{Error, Level, Size, TileCoord};
use microtome_testkit::{FailingSlide, SyntheticSlide};

#[test]
fn all_bad_tiles_are_named_in_order() {
    let bad = [
        (Level(0), TileCoord { row: 2, column: 3 }),
        (Level(0), TileCoord { row: 0, column: 1 }),
        (Level(1), TileCoord { row: 1, column: 1 }),
    ];
    let slide =
        bad.iter().fold(FailingSlide::new(SyntheticSlide::new(Size::new(1000, 700), 1)), |slide, &(level, tile)| {
            slide.with_bad_tile(level, tile)
        });
    let calls = AtomicU64::new(0);
    let found = check(&slide, &|done, total| {
        assert!(done <= total);
        calls.fetch_add(1, Ordering::Relaxed);
        true
    });
    let found = found.unwrap();
    // 1000 x 700, 500 x 350, 250 x 175 and 125 x 87 pixels in tiles of 256 x 256.
    assert_eq!((found.tiles, calls.into_inner()), (12 + 4 + 1 + 1, 18));
    let named: Vec<_> = found
        .faults
        .iter()
        .map(|fault| match fault {
            Error::Tile { level, tile, .. } => (*level, *tile),
            other => panic!("{other}"),
        })
        .collect();
    assert_eq!(named, [bad[1], bad[0], bad[2]]);
}

#[test]
fn a_check_that_is_to_stop_stops() {
    let slide = SyntheticSlide::new(Size::new(100_000, 100_000), 1);
    let found = check(&slide, &|done, _| done < 10 << 16).unwrap();
    assert!(found.tiles < 5000 && found.faults.is_empty(), "{}", found.tiles);
}
