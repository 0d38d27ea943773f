//! Hamamatsu NDPI: a real fluorescence slide, and synthetic ones in colour, all against OpenSlide 4.

use std::path::PathBuf;
use std::sync::Arc;

use microtome_io::bytes::{ByteAccess, Memory};
use microtome_io::slide::{Limits, OpenOptions, ResolutionSource, SlideReader, open, open_bytes};
use microtome_io::{Error, Level, Rect, Size};
use microtome_testkit::ndpi::{Chroma, NdpiSlide, Starts};

use crate::openslide::{Region, ask, compare, spread};
use crate::slide;

/// A picture with edges, slopes and texture, in colours as a stain has them.
fn pixel(level: usize, x: u64, y: u64) -> [u8; 3] {
    // Each level shows another part, so that none passes for another.
    let (x, y) = (x + 500 * level as u64, y + 300 * level as u64);
    let wave = |of: u64, period: f64| (of as f64 / period).sin();
    let cell = ((x / 37 + y / 53) % 3) as f64 * 30.0;
    let shade = 30.0 * (wave(x, 23.0) + wave(y, 31.0) + wave(x + 2 * y, 90.0));
    [0.4, 0.9, 0.2].map(|part: f64| (215.0 - cell * part - (shade + 40.0) * part).clamp(0.0, 255.0) as u8)
}

fn coloured() -> NdpiSlide {
    NdpiSlide::new(&[(2048, 1536), (512, 384), (128, 96)], pixel)
}

/// Small enough to be read as a whole, again and again: two columns of cells, one and a half rows.
fn small() -> NdpiSlide {
    NdpiSlide { interval: 8, ..NdpiSlide::new(&[(640, 768), (320, 384)], pixel) }
}

fn whole(slide: &dyn SlideReader, level: usize) -> microtome_io::Pixels {
    let rect = slide.info().levels[level].size.rect();
    slide.read_region(Level(level), rect).unwrap_or_else(|error| panic!("{error}"))
}

fn opened(slide: &NdpiSlide) -> Box<dyn SlideReader> {
    opened_bytes(slide.bytes()).unwrap_or_else(|error| panic!("{error}"))
}

fn opened_bytes(bytes: Vec<u8>) -> Result<Box<dyn SlideReader>, Error> {
    open_bytes(Arc::new(Memory::new("synthetic.ndpi", bytes)), &OpenOptions::default())
}

/// Largest and mean difference to OpenSlide that is allowed: stored levels with and without full chroma, and levels of our own making.
struct Allowed {
    stored: (u8, f64),
    made: (u8, f64),
}

const FULL: Allowed = Allowed { stored: (0, 0.0), made: (13, 0.53) };
const SUBSAMPLED: Allowed = Allowed { stored: (0, 0.0), made: (15, 1.97) };

/// Compares what OpenSlide says and shows, and each level by itself.
#[track_caller]
fn agree(slide: &dyn SlideReader, regions: &[Region], allowed: &Allowed) {
    let info = slide.info();
    let Some((theirs, _)) = ask(&info.path, &[]) else { return };
    assert_eq!(info.format, theirs.properties["openslide.vendor"]);
    let sizes: Vec<_> = info.levels.iter().map(|level| (level.size.width, level.size.height)).collect();
    assert_eq!(sizes, theirs.levels);
    let resolution = info.resolution.as_ref().unwrap();
    assert_eq!(resolution.source, ResolutionSource::TiffTags);
    let number = |name: &str| theirs.properties[name].parse::<f64>().unwrap();
    let mpp = (resolution.mpp.x, resolution.mpp.y);
    assert_eq!(mpp, (number("openslide.mpp-x"), number("openslide.mpp-y")));
    assert_eq!(info.objective_power, Some(number("openslide.objective-power")));
    for (name, value) in theirs.properties.iter().filter(|(name, _)| !name.starts_with("openslide.")) {
        assert_eq!(info.properties.get(name), Some(value), "{name}");
    }
    assert!(theirs.associated.keys().eq(["macro"]));
    for (number, level) in info.levels.iter().enumerate() {
        let mine: Vec<Region> = regions.iter().filter(|(of, _)| of.0 == number).copied().collect();
        let (_, found) = compare(slide, &mine).unwrap();
        let (max, mean) = if level.stored { allowed.stored } else { allowed.made };
        assert!(found.samples > 0 && found.max <= max && found.mean <= mean, "level {number}: {found:?}");
    }
}

fn real() -> Option<PathBuf> {
    microtome_testkit::data("slides/ndpi/test3-DAPI-2-387.ndpi")
}

#[test]
fn the_real_slide_is_openslides() {
    let Some(path) = real() else { return };
    for access in [ByteAccess::Map, ByteAccess::Read] {
        let slide = open(&path, &OpenOptions::default().access(access)).unwrap();
        let stored: Vec<bool> = slide.info().levels.iter().map(|level| level.stored).collect();
        assert_eq!(stored, [true, true, true, true, false, false, false]);
        assert_eq!(slide.info().properties["microtome.levels-not-stored"], "4, 5, 6");
        let mut regions = spread(&*slide, 40, Size::new(211, 173));
        regions.extend(slide.info().levels.iter().enumerate().skip(1).map(|(n, level)| (Level(n), level.size.rect())));
        agree(&*slide, &regions, &FULL);
        let glass = slide.read_associated("macro").unwrap();
        assert_eq!(glass.size(), Size::new(1188, 406));
        let map = slide.read_associated("map").unwrap();
        assert_eq!((map.size(), map.channels()), (Size::new(594, 203), 1));
    }
}

/// Writes a slide, and compares it with OpenSlide.
#[track_caller]
fn written_agrees(written: &NdpiSlide, allowed: &Allowed) -> Box<dyn SlideReader> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("synthetic.ndpi");
    written.write(&path).unwrap();
    let slide = slide(&path);
    let mut regions = spread(&*slide, 12, Size::new(301, 203));
    let small = slide.info().levels.iter().enumerate().filter(|(_, level)| level.size.area() < 1 << 20);
    regions.extend(small.map(|(number, level)| (Level(number), level.size.rect())));
    agree(&*slide, &regions, allowed);
    slide
}

#[test]
fn colours_with_full_chroma() {
    let slide = written_agrees(&coloured(), &FULL);
    let levels = &slide.info().levels;
    assert_eq!(
        levels.iter().map(|level| level.size.width).collect::<Vec<_>>(),
        [2048, 1024, 512, 256, 128, 64, 32, 16]
    );
    assert_eq!((levels[0].tile, levels[1].tile), (Size::new(512, 512), Size::new(256, 256)));
    assert_eq!(slide.info().properties["microtome.levels-not-stored"], "1, 3, 5, 6, 7");
    assert_eq!(slide.info().properties["hamamatsu.stage.center"], "1,2");
    assert_eq!(slide.info().properties["hamamatsu.Reference"], "reference");
}

#[test]
fn colours_with_coarser_chroma() {
    written_agrees(&NdpiSlide { chroma: Chroma::HalfWidth, interval: 8, ..coloured() }, &SUBSAMPLED);
}

/// OpenSlide 4.0.1 reads no such slide: its decoder looks for the row below, for chroma in between, and finds the end of the interval.
/// The intervals that tifffile finds are decoded one by one, as both do otherwise. (As a whole, chroma at their edges would take from the
/// neighbours: `asarray` is off by up to 11 there.)
#[test]
fn intervals_with_chroma_coarser_both_ways_are_libjpegs() {
    let Some(python) = std::env::var_os("MICROTOME_PYTHON") else {
        return microtome_testkit::skip(
            "MICROTOME_PYTHON names no interpreter with tifffile; `cargo xtask test` makes one",
        );
    };
    let folder = tempfile::tempdir().unwrap();
    let (path, pixels) = (folder.path().join("synthetic.ndpi"), folder.path().join("pixels"));
    // 128 pixels: cells of 4 by 32 intervals.
    let written = NdpiSlide { chroma: Chroma::Half, interval: 8, ..coloured() };
    written.write(&path).unwrap();
    let script = r#"
import sys, imagecodecs, numpy, tifffile
page = tifffile.TiffFile(sys.argv[1]).pages[0]
pixels = numpy.zeros(page.shape, numpy.uint8)
height, width, columns = page.tilelength, page.tilewidth, page.imagewidth // page.tilewidth
for number, (offset, length) in enumerate(zip(page.dataoffsets, page.databytecounts, strict=True)):
    page.parent.filehandle.seek(offset)
    interval = page.parent.filehandle.read(length)[:-2]
    y, x = number // columns * height, number % columns * width
    pixels[y : y + height, x : x + width] = imagecodecs.jpeg8_decode(page.jpegheader + interval + b"\xff\xd9")
open(sys.argv[2], "wb").write(pixels.tobytes())
"#;
    let output = std::process::Command::new(&python).arg("-c").arg(script).args([&path, &pixels]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let theirs = std::fs::read(&pixels).unwrap();
    let ours = whole(&*slide(&path), 0);
    let ours = ours.as_u8().unwrap();
    assert_eq!(ours.len(), theirs.len());
    let furthest = ours.iter().zip(&theirs).map(|(ours, theirs)| ours.abs_diff(*theirs)).max();
    assert_eq!(furthest, Some(0));
}

#[test]
fn intervals_as_wide_as_the_level() {
    // 960 pixels: 60 units of 16, or 120 of 8, the width of the second level.
    for (chroma, interval, allowed) in [(Chroma::Full, 120, &FULL), (Chroma::HalfWidth, 60, &SUBSAMPLED)] {
        let written = NdpiSlide { chroma, interval, ..NdpiSlide::new(&[(1920, 256), (960, 128)], pixel) };
        let slide = written_agrees(&written, allowed);
        assert_eq!(slide.info().levels[0].tile, Size::new(960, 256));
    }
}

#[test]
fn levels_too_large_for_a_jpeg() {
    let mut written = NdpiSlide::new(&[(66_560, 32), (16_640, 8)], pixel);
    written.interval = 260;
    let slide = written_agrees(&written, &FULL);
    assert_eq!(slide.info().levels[0].size, Size::new(66_560, 32));

    // Without its restart interval it is too large for any decoder.
    let mut bytes = written.bytes();
    let at = bytes.windows(4).position(|bytes| bytes == [0xff, 0xdd, 0, 4]).unwrap();
    bytes[at + 4..at + 6].copy_from_slice(&[0, 0]);
    let error = opened_bytes(bytes).unwrap_err();
    assert!(matches!(error, Error::Unsupported { .. }), "{error}");
    assert!(error.to_string().contains("66560 x 32 pixels in one JPEG with no restart markers"), "{error}");
}

#[test]
fn a_level_without_restart_markers_is_one_cell() {
    let written = NdpiSlide { interval: 0, ..coloured() };
    let slide = written_agrees(&written, &FULL);
    assert_eq!(slide.info().levels[0].tile, Size::new(2048, 1536));
    let mut limits = Limits::default();
    limits.decoded_bytes = 1 << 20;
    let source = Arc::new(Memory::new("synthetic.ndpi", written.bytes()));
    let error = open_bytes(source, &OpenOptions::default().limits(limits)).unwrap_err();
    assert!(matches!(error, Error::Limits { .. }), "{error}");
}

#[test]
fn the_table_of_intervals_is_a_hint() {
    let right = whole(&*opened(&small()), 0);
    for starts in [Starts::Absent, Starts::Wrong] {
        let slide = opened(&NdpiSlide { starts, ..small() });
        assert_eq!(whole(&*slide, 0), right, "{starts:?}");
    }
    written_agrees(&NdpiSlide { starts: Starts::Absent, ..coloured() }, &FULL);
    // A table that is wrong as a whole, and of right markers at that: each interval is said to be where the eighth after it is.
    let mut bytes = small().bytes();
    let table = |bytes: &[u8], number: usize| {
        let entry = bytes.windows(4).position(|bytes| bytes == [0x92, 0xff, 4, 0]).unwrap() + 8;
        let at = u32::from_le_bytes(bytes[entry..entry + 4].try_into().unwrap()) as usize;
        at + 4 * number
    };
    let (from, to) = (table(&bytes, 20), table(&bytes, 12));
    bytes.copy_within(from..from + 16, to);
    assert_eq!(whole(&*opened_bytes(bytes).unwrap(), 0), right);
}

#[test]
fn sizes_that_intervals_do_not_fill() {
    let padded = opened(&NdpiSlide { interval: 18, ..NdpiSlide::new(&[(1008, 704)], pixel) });
    let slide = opened(&NdpiSlide { interval: 18, ..NdpiSlide::new(&[(1003, 701)], pixel) });
    assert_eq!(slide.info().levels[1].size, Size::new(501, 350));
    for level in 0..3 {
        let rect = slide.info().levels[level].size.rect();
        assert_eq!(whole(&*slide, level), padded.read_region(Level(level), rect).unwrap(), "level {level}");
    }
    // Three rows of units in an interval, and a last one of one row; and a frame header that does not say the size.
    let rows = opened(&NdpiSlide { interval: 126 * 3, says_size: false, ..NdpiSlide::new(&[(1003, 701)], pixel) });
    assert_eq!(rows.info().levels[0].tile.width, 1008);
    assert_eq!(whole(&*rows, 0), whole(&*slide, 0));
    // Markers that make no grid: the level is decoded as a whole.
    let mut bytes = NdpiSlide { interval: 128, ..NdpiSlide::new(&[(1024, 64)], pixel) }.bytes();
    let right = whole(&*opened_bytes(bytes.clone()).unwrap(), 0);
    let at = bytes.windows(4).position(|bytes| bytes == [0xff, 0xdd, 0, 4]).unwrap();
    bytes[at + 5] -= 1;
    let odd = opened_bytes(bytes).unwrap();
    assert_eq!(odd.info().levels[0].tile, Size::new(1024, 64));
    assert!(odd.read_region(Level(0), Rect::new(0, 0, 64, 64)).map_or(true, |found| found != right));
}

#[test]
fn focal_planes_are_told_of() {
    let slide = opened(&NdpiSlide { planes: vec![-2000, 2000, 2000], ..small() });
    assert_eq!(slide.info().properties["microtome.focal-planes-not-read"], "-2000, 2000");
    assert_eq!(slide.info().levels.iter().filter(|level| level.stored).count(), 2);
    assert_eq!(whole(&*slide, 0), whole(&*opened(&small()), 0));
}

#[test]
fn offsets_beyond_4_gib() {
    let written = NdpiSlide { gap: 5 << 30, ..small() };
    let slide = written_agrees(&written, &FULL);
    let near = opened(&small());
    for level in 0..near.info().levels.len() {
        assert_eq!(whole(&*slide, level), whole(&*near, level));
    }
    assert_eq!(slide.read_associated("macro").unwrap(), near.read_associated("macro").unwrap());
    assert_eq!(slide.read_associated("map").unwrap(), near.read_associated("map").unwrap());
}

#[test]
fn what_is_cut_off_is_an_error() {
    for starts in [Starts::Right, Starts::Absent] {
        let written = NdpiSlide { starts, ..small() };
        let bytes = written.bytes();
        let slide = opened_bytes(bytes.clone()).unwrap();
        // The directories come behind the pixels, so that nothing is known of a file that lost them.
        for length in (0..bytes.len() - 100).step_by(bytes.len() / 50) {
            assert!(opened_bytes(bytes[..length].to_vec()).is_err());
        }
        // The strip loses its end: what comes before can be read, what comes behind is an error and never grey.
        let start = bytes.windows(2).position(|pair| pair == [0xff, 0xd8]).unwrap();
        let end = start + bytes[start..].windows(2).position(|pair| pair == [0xff, 0xd9]).unwrap();
        let mut cut = bytes.clone();
        cut[start + (end - start) * 7 / 8..end + 2].fill(0);
        let cut = opened_bytes(cut).unwrap();
        let rect = Rect::new(0, 0, 640, 300);
        assert_eq!(cut.read_region(Level(0), rect).unwrap(), slide.read_region(Level(0), rect).unwrap());
        let error = cut.read_region(Level(0), Rect::new(0, 700, 640, 10)).unwrap_err();
        assert!(matches!(error, Error::Tile { .. }), "{error}");
        assert!(error.to_string().contains("JPEG"), "{error}");
    }
}

#[test]
fn what_cannot_be_read_is_named() {
    // The first field of this tag and type, of one value.
    let patched = |tag: u16, kind: u16, value: u32| {
        let mut bytes = small().bytes();
        let entry = [tag, kind, 1, 0].map(u16::to_le_bytes).concat();
        let at = bytes.windows(8).position(|bytes| bytes == entry).unwrap();
        bytes[at + 8..at + 12].copy_from_slice(&value.to_le_bytes());
        opened_bytes(bytes).unwrap_err()
    };
    let error = patched(259, 3, 22610).to_string();
    assert!(error.contains("compression 22610 (JPEG XR) cannot be read"), "{error}");
    assert!(patched(256, 4, 648).to_string().contains("has 648 x 768 pixels, but its JPEG 640 x 768"));
}

/// Reads all of level 0 of the real slide, and of coloured ones with narrow and wide intervals, in regions of 512 x 512, and lets OpenSlide do the same, by processor time.
/// `RAYON_NUM_THREADS=1 cargo nextest run --release -p microtome-io --run-ignored only -E 'test(speed_against_openslide)' --no-capture`
#[test]
#[ignore = "a measurement"]
fn speed_against_openslide() {
    let (Some(path), Some(python)) = (real(), std::env::var_os("MICROTOME_PYTHON")) else { return };
    let script = "import sys, time, openslide
start = time.process_time()
for _ in range(10):
    slide = openslide.OpenSlide(sys.argv[1])
    width, height = slide.dimensions
    for y in range(0, height, 512):
        for x in range(0, width, 512):
            slide.read_region((x, y), 0, (512, 512))
print((time.process_time() - start) / 10)";
    // Ticks of 10 ms, of all threads.
    let processor = || {
        let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
        let ticks: Vec<f64> =
            stat.rsplit(')').next().unwrap().split(' ').skip(12).take(2).map(|t| t.parse().unwrap()).collect();
        (ticks[0] + ticks[1]) / 100.0
    };
    let folder = tempfile::tempdir().unwrap();
    let mut paths = vec![path];
    for interval in [16, 256] {
        let path = folder.path().join(format!("coloured, intervals of {interval} units.ndpi"));
        NdpiSlide { interval, ..NdpiSlide::new(&[(4096, 4096)], pixel) }.write(&path).unwrap();
        paths.push(path);
    }
    for path in paths.iter().chain(&paths) {
        let start = processor();
        for _ in 0..10 {
            let slide = slide(path);
            let Size { width, height } = slide.info().size();
            for y in (0..height).step_by(512) {
                for x in (0..width).step_by(512) {
                    slide.read_region(Level(0), Rect::new(x as i64, y as i64, 512, 512)).unwrap();
                }
            }
        }
        let ours = (processor() - start) / 10.0;
        let output = std::process::Command::new(&python).arg("-c").arg(script).arg(path).output().unwrap();
        let theirs: f64 = String::from_utf8(output.stdout).unwrap().trim().parse().unwrap();
        let (name, times) = (path.file_stem().unwrap().display(), theirs / ours);
        eprintln!("{name}: level 0 takes {ours:.3} s, OpenSlide {theirs:.3} s of processor time: {times:.2} times");
    }
}
