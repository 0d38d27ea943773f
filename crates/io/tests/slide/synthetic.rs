//! Slides whose every pixel is known, in all the ways in which they can be stored.

use std::sync::Arc;

use microtome_io::bytes::{ByteAccess, Memory};
use microtome_io::slide::{OpenOptions, ResolutionSource, SlideReader, open, open_bytes};
use microtome_io::{Error, Level, Pixels, Rect, SampleType, Samples, TileCoord};
use microtome_testkit::tiff::{Compression, Container, Cut, Levels, Order, TiffSlide};

const SIZES: &[(u32, u32)] = &[(300, 170), (150, 85), (75, 42)];

/// A value that depends on all of its arguments and stays below `2^bits`.
fn value(bits: u16, level: usize, x: u64, y: u64, channel: usize) -> u16 {
    let mixed = x * 7 + y * 13 + level as u64 * 29 + channel as u64 * 101 + x * y / 16;
    (mixed * if bits == 16 { 37 } else { 1 } % (1 << bits)) as u16
}

fn slide(bits: u16) -> TiffSlide {
    let mut slide = TiffSlide::rgb(SIZES, move |level, x, y, channel| value(bits, level, x, y, channel));
    slide.bits = bits;
    slide
}

fn opened(slide: &TiffSlide) -> Box<dyn SlideReader> {
    let source = Arc::new(Memory::new("synthetic.tif", slide.bytes()));
    open_bytes(source, &OpenOptions::default()).unwrap_or_else(|error| panic!("{error}"))
}

fn refused(slide: &TiffSlide) -> Error {
    let source = Arc::new(Memory::new("synthetic.tif", slide.bytes()));
    open_bytes(source, &OpenOptions::default()).unwrap_err()
}

fn samples(pixels: &Pixels) -> Vec<u16> {
    match pixels.samples() {
        Samples::U8(samples) => samples.iter().map(|&sample| sample.into()).collect(),
        Samples::U16(samples) => samples.clone(),
    }
}

/// Reads rectangles inside, across and outside of the slide and compares each sample.
fn check(reader: &dyn SlideReader, written: &TiffSlide, tolerance: u16) {
    let info = reader.info();
    assert_eq!(info.levels.len(), written.levels.len());
    for (level, &(width, height)) in written.levels.iter().enumerate() {
        assert_eq!((info.levels[level].size.width, info.levels[level].size.height), (width.into(), height.into()));
        for rect in [
            Rect::new(0, 0, width.into(), height.into()),
            Rect::new(60, 30, 10, 40),
            Rect::new(-9, -5, 80, 70),
            Rect::new(i64::from(width) - 20, i64::from(height) - 20, 50, 50),
            Rect::new(1000, 1000, 3, 3),
        ] {
            let pixels = samples(&reader.read_region(Level(level), rect).unwrap());
            let places = (rect.y..rect.bottom()).flat_map(|y| (rect.x..rect.right()).map(move |x| (x, y)));
            for ((x, y), pixel) in places.zip(pixels.chunks_exact(info.channels)) {
                let inside = (0..i64::from(width)).contains(&x) && (0..i64::from(height)).contains(&y);
                for (channel, &found) in pixel.iter().enumerate() {
                    let expected = if inside {
                        (written.pixel)(level, x as u64, y as u64, channel)
                    } else {
                        info.background[channel]
                    };
                    assert!(found.abs_diff(expected) <= tolerance, "level {level} ({x}, {y}): {found}, not {expected}");
                }
            }
        }
    }
}

#[test]
fn every_way_of_storing_gives_the_same_pixels() {
    for container in [Container::Classic, Container::Big] {
        for order in [Order::Little, Order::Big] {
            for (bits, compression, predictor) in [
                (8, Compression::None, 1),
                (16, Compression::None, 1),
                (8, Compression::Deflate, 1),
                (8, Compression::Deflate, 2),
                (16, Compression::Deflate, 2),
            ] {
                for cut in [Cut::Tiles(64, 48), Cut::Strips(17)] {
                    for placement in [Levels::Pages, Levels::SubIfds] {
                        let mut written = slide(bits);
                        written.container = container;
                        written.order = order;
                        written.compression = compression;
                        written.predictor = predictor;
                        written.cut = cut;
                        written.placement = placement;
                        let reader = opened(&written);
                        let expected = if bits == 8 { SampleType::U8 } else { SampleType::U16 };
                        assert_eq!(reader.info().sample, expected);
                        check(&*reader, &written, 0);
                    }
                }
            }
        }
    }
}

#[test]
fn the_container_says_what_the_colours_of_jpeg_tiles_are() {
    for photometric in [2, 6] {
        let mut written = TiffSlide::rgb(SIZES, |_, x, y, channel| (60 + x / 4 + y / 3 + channel as u64 * 20) as u16);
        written.compression = Compression::Jpeg(100);
        written.photometric = photometric;
        // Quality 100 has quantisation steps of 1; colours that go through YCbCr are rounded twice more. Measured: RGB comes
        // back as it was, YCbCr is off by 1.
        let tolerance = if photometric == 2 { 0 } else { 1 };
        check(&*opened(&written), &written, tolerance);
    }
    let mut grey = TiffSlide::rgb(&[(100, 80)], |_, x, y, _| (x + y) as u16);
    grey.channels = 1;
    grey.photometric = 1;
    grey.compression = Compression::Jpeg(100);
    check(&*opened(&grey), &grey, 0);
}

#[test]
fn both_ways_to_the_bytes_and_any_cache_give_the_same_pixels() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("slide.tif");
    let written = slide(8);
    written.write(&path).unwrap();
    for access in [ByteAccess::Map, ByteAccess::Read] {
        for cache_bytes in [0, 30_000, 64 << 20] {
            let options = OpenOptions::default().access(access).cache_bytes(cache_bytes);
            let reader = open(&path, &options).unwrap();
            check(&*reader, &written, 0);
            check(&*reader, &written, 0);
        }
    }
}

#[test]
fn grey_and_other_channels() {
    for (channels, photometric) in [(1, 1), (2, 1), (4, 1), (4, 2)] {
        let mut written = slide(8);
        written.channels = channels;
        written.photometric = photometric;
        written.extra_samples = vec![0; channels - if photometric == 2 { 3 } else { 1 }];
        let reader = opened(&written);
        assert_eq!(reader.info().channels, channels);
        check(&*reader, &written, 0);
    }
    let mut inverted = slide(8);
    inverted.channels = 1;
    inverted.photometric = 0;
    let pixels = opened(&inverted).read_region(Level(0), Rect::new(0, 0, 300, 170)).unwrap();
    assert_eq!(samples(&pixels)[5], 255 - value(8, 0, 5, 0, 0));
}

#[test]
fn transparent_pixels_lie_on_white() {
    let mut written = TiffSlide::rgb(&[(2, 1)], |_, x, _, channel| if channel == 3 { x as u16 * 255 } else { 40 });
    written.channels = 4;
    for (kind, transparent) in [(2, 255), (1, 255)] {
        written.extra_samples = vec![kind];
        let reader = opened(&written);
        assert_eq!(reader.info().channels, 3);
        assert_eq!(reader.info().properties["microtome.alpha"], "laid over white");
        let pixels = reader.read_region(Level(0), Rect::new(0, 0, 2, 1)).unwrap();
        assert_eq!(samples(&pixels), [transparent, transparent, transparent, 40, 40, 40]);
    }
}

#[test]
fn tiles_that_are_left_out_are_background() {
    let mut written = slide(8);
    written.left_out = vec![(0, 1, 0)];
    let reader = opened(&written);
    let pixels = samples(&reader.read_region(Level(0), Rect::new(63, 0, 66, 64)).unwrap());
    for row in pixels.chunks_exact(66 * 3) {
        assert!(row[3..65 * 3].iter().all(|&sample| sample == 255));
    }
    assert_eq!(pixels[0], value(8, 0, 63, 0, 0));
    assert_eq!(pixels[65 * 3], value(8, 0, 128, 0, 0));
}

#[test]
fn the_resolution_is_told_or_unknown_never_guessed() {
    let resolution = |x: f64, y: f64, unit: u16| {
        let mut written = slide(8);
        written.resolution = Some((x, y, unit));
        let info = opened(&written).info().clone();
        (info.resolution, info.properties.get("microtome.resolution-ignored").cloned())
    };
    let (found, _) = resolution(40_000.0, 20_000.0, 3);
    let found = found.unwrap();
    assert_eq!((found.mpp.x, found.mpp.y), (0.25, 0.5), "axes that disagree stay as they are");
    assert_eq!(found.source, ResolutionSource::TiffTags);
    let (found, _) = resolution(50_800.0, 50_800.0, 2);
    assert_eq!(found.unwrap().mpp.x, 0.5);
    for (x, unit, why) in [(72.0, 2, "outside of"), (40_000.0, 1, "a ratio"), (0.0, 3, "outside of")] {
        let (found, ignored) = resolution(x, x, unit);
        assert_eq!(found, None);
        assert!(ignored.as_ref().unwrap().contains(why), "{ignored:?}");
    }
    assert_eq!(opened(&slide(8)).info().resolution, None);
}

#[test]
fn an_aperio_pyramid_has_its_properties() {
    let mut written = slide(8);
    written.description = Some("Aperio Image Library v1\r\n300x170 (64x64)|AppMag = 40|MPP = 0.2525".into());
    let reader = opened(&written);
    let info = reader.info();
    assert_eq!(info.format, "aperio");
    assert_eq!(info.resolution.as_ref().unwrap().mpp.y, 0.2525);
    assert_eq!(info.objective_power, Some(40.0));
    check(&*reader, &written, 0);
}

#[test]
fn pages_that_are_no_levels_are_counted_and_stacks_refused() {
    let mut other = slide(8);
    other.levels = vec![(300, 170), (64, 64)];
    let reader = opened(&other);
    assert_eq!(reader.info().levels.len(), 1);
    assert_eq!(reader.info().properties["microtome.pages-not-read"], "1");
    other.levels = vec![(300, 170), (300, 170)];
    assert!(refused(&other).to_string().contains("stack"));
}

#[test]
fn what_cannot_be_read_is_refused_by_name() {
    for (field, values, words) in [
        (259, vec![34661], "34661 (JBIG)"),
        (259, vec![6], "6 (old-style JPEG)"),
        (262, vec![5], "CMYK"),
        (262, vec![3], "a palette"),
        (284, vec![3], "PlanarConfiguration 3"),
        (258, vec![1; 3], "1 bits per sample"),
        (258, vec![8, 8, 16], "different widths"),
        (339, vec![3; 3], "floating-point"),
        (274, vec![6], "Orientation 6"),
        (266, vec![2], "FillOrder 2"),
        (277, vec![65], "65 samples per pixel"),
    ] {
        let mut written = slide(8);
        written.fields = vec![(field, values)];
        let error = refused(&written);
        assert!(matches!(error, Error::Unsupported { .. }) && error.to_string().contains(words), "{error}");
    }
    let mut predictor = slide(8);
    predictor.compression = Compression::Deflate;
    predictor.fields = vec![(317, vec![3])];
    assert!(refused(&predictor).to_string().contains("predictor 3"));
    let mut stack = slide(8);
    stack.description = Some("ImageJ=1.53\nimages=7\n".into());
    assert!(refused(&stack).to_string().contains("stack"));
}

#[test]
fn a_tile_that_cannot_be_decoded_is_named() {
    let mut written = slide(8);
    written.compression = Compression::Deflate;
    let mut bytes = written.bytes();
    // The first tile starts right behind the header of 8 bytes; spoil its deflate header.
    bytes[8] ^= 0xff;
    let reader = open_bytes(Arc::new(Memory::new("spoilt.tif", bytes)), &OpenOptions::default()).unwrap();
    let error = reader.read_region(Level(0), Rect::new(0, 0, 200, 100)).unwrap_err();
    assert!(error.to_string().starts_with("spoilt.tif: level 0, column 0 row 0: deflate"), "{error}");
    assert!(matches!(error, Error::Tile { level: Level(0), tile: TileCoord { row: 0, column: 0 }, .. }));
    reader.read_region(Level(0), Rect::new(64, 0, 100, 100)).unwrap();
}

#[test]
fn limits_and_levels_that_do_not_exist() {
    let reader = opened(&slide(8));
    assert!(matches!(reader.read_region(Level(3), Rect::new(0, 0, 1, 1)), Err(Error::Usage { .. })));
    let far = Rect::new(0, 0, 1 << 40, 1 << 40);
    assert!(matches!(reader.read_region(Level(0), far), Err(Error::Limits { .. })));
    assert!(reader.read_region(Level(0), Rect::new(5, 5, 0, 0)).unwrap().size().is_empty());
    assert!(matches!(reader.read_associated("label"), Err(Error::Usage { .. })));
}
