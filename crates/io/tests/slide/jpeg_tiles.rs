//! Tiles as JPEG files of their own.

use std::sync::Arc;

use microtome_io::bytes::Memory;
use microtome_io::slide::{OpenOptions, SlideReader, open, open_bytes};
use microtome_io::{Error, Level, Pixels, Rect, TileCoord};
use microtome_testkit::tiff::{Compression, Cut, TiffSlide};

/// What a picture viewer shows of a file.
fn shown(jpeg: Vec<u8>) -> Pixels {
    let picture = open_bytes(Arc::new(Memory::new("tile.jpg", jpeg)), &OpenOptions::default()).unwrap();
    assert_eq!(picture.info().format, "jpeg");
    picture.read_region(Level(0), picture.info().size().rect()).unwrap()
}

fn slide(change: impl FnOnce(&mut TiffSlide)) -> Box<dyn SlideReader> {
    let mut slide = TiffSlide::rgb(&[(150, 100), (75, 50)], |level, x, y, channel| {
        (20 + (3 * x + 2 * y + 60 * channel as u64 + 9 * level as u64) % 220) as u16
    });
    slide.compression = Compression::Jpeg(90);
    change(&mut slide);
    let bytes = slide.bytes();
    open_bytes(Arc::new(Memory::new("slide.tif", bytes)), &OpenOptions::default()).unwrap()
}

#[test]
fn a_tile_is_a_file_that_shows_the_same_pixels() {
    // RGB, and luma and chroma: only the mark in the stream says which.
    for photometric in [2, 6] {
        let slide = slide(|s| s.photometric = photometric);
        for (level, columns, rows) in [(0, 3, 2), (1, 2, 1)] {
            for tile in (0..columns * rows).map(|i| TileCoord { row: i / columns, column: i % columns }) {
                let jpeg = slide.jpeg_tile(Level(level), tile).unwrap().unwrap();
                assert!(jpeg.starts_with(&[0xff, 0xd8]) && jpeg.ends_with(&[0xff, 0xd9]));
                let found = shown(jpeg);
                let side = slide.info().levels[level].tile;
                assert_eq!(found.size(), side, "as it is stored, whatever sticks out");
                let visible = tile.rect(side).intersect(slide.info().levels[level].size.rect()).unwrap();
                let mut inside = Pixels::filled(visible.size(), found.sample_type(), &[0; 3]);
                inside.blit(visible, &found, tile.rect(side));
                assert!(
                    inside == slide.read_region(Level(level), visible).unwrap(),
                    "photometric {photometric}, {tile}"
                );
            }
        }
        for beyond in [TileCoord { row: 0, column: 3 }, TileCoord { row: 2, column: 0 }] {
            assert_eq!(slide.jpeg_tile(Level(0), beyond).unwrap(), None);
        }
        let usage = slide.jpeg_tile(Level(2), TileCoord { row: 0, column: 0 });
        assert!(matches!(usage, Err(Error::Usage { .. })), "{usage:?}");
    }
}

#[test]
fn what_is_no_jpeg_tile_is_none() {
    let first = TileCoord { row: 0, column: 0 };
    assert_eq!(slide(|s| s.compression = Compression::Deflate).jpeg_tile(Level(0), first).unwrap(), None);
    assert_eq!(slide(|s| s.cut = Cut::Strips(100)).jpeg_tile(Level(0), first).unwrap(), None);
    let sparse = slide(|s| s.left_out = vec![(0, 1, 0)]);
    assert_eq!(sparse.jpeg_tile(Level(0), TileCoord { row: 0, column: 1 }).unwrap(), None);
    assert!(sparse.jpeg_tile(Level(0), first).unwrap().is_some());
}

#[test]
fn tiles_of_a_real_slide_are_files() {
    let Some(path) = microtome_testkit::data("slides/svs/CMU-1-Small-Region.svs") else { return };
    let slide = open(path, &OpenOptions::default()).unwrap();
    for tile in [TileCoord { row: 0, column: 0 }, TileCoord { row: 7, column: 5 }] {
        let rect = Rect::new(tile.column as i64 * 240, tile.row as i64 * 240, 240, 240);
        let jpeg = slide.jpeg_tile(Level(0), tile).unwrap().unwrap();
        assert!(shown(jpeg) == slide.read_region(Level(0), rect).unwrap());
    }
}
