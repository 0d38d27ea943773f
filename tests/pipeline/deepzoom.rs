//! DeepZoom images: every level against plain halving, every tile with its borders, whatever the threads.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use microtome::io::slide::{OpenOptions, SlideInfo, SlideReader, open};
use microtome::io::{Class, Level, Pixels, Rect, SampleType, Samples, Size, TileCoord};
use microtome::preview::{DeepZoomOptions, DeepZoomSummary, Shown, Subsampling, TileFormat, TileSource, deep_zoom};
use microtome::{Error, Existing, Observer, Silent};
use microtome_testkit::tiff::{Compression, Cut, TiffSlide};
use microtome_testkit::{CountingSlide, FailingSlide, PictureSlide, SyntheticSlide};

fn options(change: impl FnOnce(&mut DeepZoomOptions)) -> DeepZoomOptions {
    let mut options = DeepZoomOptions::default();
    options.threads = Some(2);
    change(&mut options);
    options
}

fn make(slide: &dyn SlideReader, shown: Shown<'_>, output: &Path, options: &DeepZoomOptions) -> DeepZoomSummary {
    deep_zoom(slide, shown, output, options, Existing::Keep, &Silent).unwrap_or_else(|error| panic!("{error}"))
}

/// Samples that look random, of which neighbours differ.
fn noise(size: Size, channels: usize, values: u64) -> Vec<u16> {
    (0..size.area() * channels as u64)
        .map(|i| {
            // SplitMix64's finaliser (Steele, Lea and Flood, 2014).
            let z = (i ^ (i >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            ((z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb) >> 40) % values
        })
        .map(|value| value as u16)
        .collect()
}

fn picture(size: Size, channels: usize, sample: SampleType, values: u64) -> Pixels {
    let samples = noise(size, channels, values);
    match sample {
        SampleType::U8 => Pixels::from_u8(size, channels, samples.into_iter().map(|v| v as u8).collect()),
        SampleType::U16 => Pixels::from_u16(size, channels, samples),
    }
}

/// Half of a picture, pixel by pixel: the mean, a half up, or the most frequent value and the lowest of those that tie.
fn half(whole: &[u16], size: Size, channels: usize, labels: bool) -> (Vec<u16>, Size) {
    let to = Size::new(size.width.div_ceil(2), size.height.div_ceil(2));
    let mut out = Vec::new();
    for (y, x) in (0..to.height).flat_map(|y| (0..to.width).map(move |x| (y, x))) {
        for c in 0..channels {
            let here: Vec<u32> = [(0, 0), (1, 0), (0, 1), (1, 1)]
                .into_iter()
                .map(|(dx, dy)| (2 * x + dx, 2 * y + dy))
                .filter(|&(x, y)| x < size.width && y < size.height)
                .map(|(x, y)| u32::from(whole[(y * size.width + x) as usize * channels + c]))
                .collect();
            let count = |v: u32| here.iter().filter(|&&w| w == v).count();
            out.push(if labels {
                here.iter().copied().max_by_key(|&v| (count(v), std::cmp::Reverse(v))).unwrap() as u16
            } else {
                ((2 * here.iter().sum::<u32>() + here.len() as u32) / (2 * here.len() as u32)) as u16
            });
        }
    }
    (out, to)
}

fn read(path: &Path) -> Pixels {
    let slide = open(path, &OpenOptions::default()).unwrap_or_else(|error| panic!("{error}"));
    slide.read_region(Level::FINEST, slide.info().size().rect()).unwrap()
}

/// The files of an image by their names under its folder.
fn tiles(output: &Path) -> BTreeMap<String, Vec<u8>> {
    let folder = output.with_file_name(format!("{}_files", output.file_stem().unwrap().to_str().unwrap()));
    let mut found = BTreeMap::new();
    for level in std::fs::read_dir(folder).unwrap().map(Result::unwrap) {
        for tile in std::fs::read_dir(level.path()).unwrap().map(Result::unwrap) {
            let name = format!("{}/{}", level.file_name().to_str().unwrap(), tile.file_name().to_str().unwrap());
            found.insert(name, std::fs::read(tile.path()).unwrap());
        }
    }
    found
}

/// Compares every tile of an image of PNGs with what `show` makes of plainly halved samples.
fn check(pixels: &Pixels, shown: Shown<'_>, tile: u32, overlap: u32, show: impl Fn(&[u16]) -> Vec<u8>) {
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("image.dzi");
    let options = options(|o| (o.tile_size, o.overlap, o.format) = (tile, overlap, TileFormat::Png));
    let summary = make(&PictureSlide::new(pixels.clone(), 0.5), shown, &output, &options);
    let channels = pixels.channels();
    let mut samples: Vec<u16> = match pixels.samples() {
        Samples::U8(v) => v.iter().map(|&v| v.into()).collect(),
        Samples::U16(v) => v.clone(),
    };
    let (mut size, mut count) = (pixels.size(), 0);
    let side = Size::new(tile.into(), tile.into());
    for level in (0..summary.levels).rev() {
        let bytes = show(&samples);
        let whole = Pixels::from_u8(size, bytes.len() / size.area() as usize, bytes);
        let cells = size.cells(side);
        for at in (0..cells.area()).map(|i| TileCoord { row: i / cells.width, column: i % cells.width }) {
            // DeepZoom's rule: an overlap on every side where there is a neighbour.
            let own = at.rect(side).intersect(size.rect()).unwrap();
            let more = |there: bool| if there { i64::from(overlap) } else { 0 };
            let (left, top) = (own.x - more(at.column > 0), own.y - more(at.row > 0));
            let right = (own.right() + more(at.column + 1 < cells.width)).min(size.width as i64);
            let bottom = (own.bottom() + more(at.row + 1 < cells.height)).min(size.height as i64);
            let rect = Rect::new(left, top, (right - left) as u64, (bottom - top) as u64);
            let mut expected = Pixels::filled(rect.size(), SampleType::U8, &vec![0; whole.channels()]);
            expected.blit(rect, &whole, size.rect());
            let found = read(&folder.path().join(format!("image_files/{level}/{}_{}.png", at.column, at.row)));
            assert!(found == expected, "level {level}, {at} of {size}, tiles of {tile} and {overlap}");
            count += 1;
        }
        if level > 0 {
            let labels = matches!(shown, Shown::Labels(_));
            (samples, size) = half(&samples, size, channels, labels);
        }
    }
    assert_eq!(size, Size::new(1, 1), "the last level is a single pixel");
    assert_eq!((tiles(&output).len() as u64, summary.tiles), (count, count), "no tile more");
}

fn as_it_is(samples: &[u16]) -> Vec<u8> {
    samples.iter().map(|&v| v as u8).collect()
}

#[test]
fn small_images_of_all_shapes() {
    for (width, height) in [(1, 1), (2, 1), (1, 37), (255, 254), (257, 300), (64, 129)] {
        for (tile, overlap) in [(254, 1), (64, 0), (31, 3), (100, 50)] {
            let pixels = picture(Size::new(width, height), 3, SampleType::U8, 256);
            check(&pixels, Shown::Colors, tile, overlap, as_it_is);
        }
    }
}

#[test]
fn an_image_of_several_cells() {
    check(&picture(Size::new(4203, 2301), 3, SampleType::U8, 256), Shown::Colors, 254, 1, as_it_is);
    check(&picture(Size::new(2500, 2177), 1, SampleType::U8, 256), Shown::Colors, 129, 2, as_it_is);
}

#[test]
fn samples_of_16_bits_are_averaged_before_they_are_shown() {
    let pixels = picture(Size::new(2211, 301), 1, SampleType::U16, 65536);
    check(&pixels, Shown::Colors, 254, 1, |samples| samples.iter().map(|&v| (v >> 8) as u8).collect());
}

#[test]
fn labels_are_chosen_before_they_are_colored() {
    let classes = [Class { value: 2, name: "two".into(), color: [9, 8, 7], code: None }];
    let color = |label: u16| match label {
        0 => [0; 3],
        2 => [9, 8, 7],
        other => Class::with_default_color(other, "").color,
    };
    for (sample, most) in [(SampleType::U8, 4), (SampleType::U16, 300)] {
        let pixels = picture(Size::new(2100, 133), 1, sample, most);
        let show = |samples: &[u16]| samples.iter().flat_map(|&label| color(label)).collect::<Vec<u8>>();
        check(&pixels, Shown::Labels(&classes), 100, 1, show);
    }
}

#[test]
fn threads_change_no_byte() {
    let folder = tempfile::tempdir().unwrap();
    let slide = PictureSlide::new(picture(Size::new(4400, 2111), 3, SampleType::U8, 256), 0.5);
    let made: Vec<_> = [1, 2, 5]
        .into_iter()
        .map(|threads| {
            let output = folder.path().join(format!("{threads}.dzi"));
            make(&slide, Shown::Colors, &output, &options(|o| o.threads = Some(threads)));
            (tiles(&output), std::fs::read(&output).unwrap())
        })
        .collect();
    assert!(made.windows(2).all(|pair| pair[0] == pair[1]));
    let (files, description) = &made[0];
    assert_eq!(files.keys().filter(|name| name.starts_with("13/")).count(), 18 * 9);
    let description = String::from_utf8(description.clone()).unwrap();
    for word in ["Format=\"jpg\"", "Overlap=\"1\"", "TileSize=\"254\"", "Width=\"4400\"", "Height=\"2111\""] {
        assert!(description.contains(word), "{description}");
    }
}

#[test]
fn jpeg_tiles_show_the_slide() {
    let folder = tempfile::tempdir().unwrap();
    let slide = SyntheticSlide::new(Size::new(600, 500), 3).with_tissue_everywhere();
    for (subsampling, most) in [(Subsampling::Halved, 30), (Subsampling::Full, 12)] {
        let output = folder.path().join(format!("{subsampling:?}.dzi"));
        make(&slide, Shown::Colors, &output, &options(|o| (o.subsampling, o.quality) = (subsampling, 95)));
        let tile = read(&folder.path().join(format!("{subsampling:?}_files/10/1_1.jpg")));
        let rect = Rect::new(253, 253, 256, 247);
        let region = slide.read_region(Level::FINEST, rect).unwrap();
        assert_eq!(tile.size(), rect.size());
        let pairs = tile.as_u8().unwrap().iter().zip(region.as_u8().unwrap());
        let worst = pairs.map(|(a, b)| a.abs_diff(*b)).max().unwrap();
        assert!(worst <= most, "{subsampling:?}: {worst}");
    }
}

#[test]
fn webp_tiles_are_without_loss() {
    let folder = tempfile::tempdir().unwrap();
    let pixels = picture(Size::new(100, 90), 3, SampleType::U8, 256);
    let output = folder.path().join("image.dzi");
    make(&PictureSlide::new(pixels.clone(), 0.5), Shown::Colors, &output, &options(|o| o.format = TileFormat::WebP));
    assert!(read(&folder.path().join("image_files/7/0_0.webp")) == pixels);
}

#[test]
fn what_is_read_at_once_does_not_grow_with_the_slide() {
    let folder = tempfile::tempdir().unwrap();
    let mut held = Vec::new();
    for (number, size) in [Size::new(2100, 4200), Size::new(6300, 2100), Size::new(9000, 2100)].into_iter().enumerate()
    {
        let slide = CountingSlide::new(SyntheticSlide::new(size, 1).with_islands(0));
        let summary = make(&slide, Shown::Colors, &folder.path().join(format!("{number}.dzi")), &options(|_| {}));
        // A cell of 8 x 8 tiles with a rim of 16 pixels.
        assert!(slide.largest() <= 2064 * 2064, "{}", slide.largest());
        let read = slide.pixels(Level::FINEST) as f64 / size.area() as f64;
        assert!(read < 1.04, "{read} times level 0 was read");
        assert_eq!((1..slide.info().levels.len()).map(|level| slide.reads(Level(level))).sum::<u64>(), 0);
        held.push(summary.held_bytes);
    }
    assert!(held.iter().all(|&bytes| bytes == held[0] && bytes < 80 << 20), "{held:?}");
}

/// A slide that says it is stored in strips, and notes where it is read.
#[derive(Debug)]
struct Strips {
    inner: SyntheticSlide,
    info: SlideInfo,
    read: Mutex<Vec<(i64, i64)>>,
    kept: AtomicU64,
}

impl SlideReader for Strips {
    fn info(&self) -> &SlideInfo {
        &self.info
    }

    fn read_region(&self, level: Level, rect: Rect) -> microtome::io::Result<Pixels> {
        self.read.lock().unwrap().push((rect.y, rect.x));
        self.inner.read_region(level, rect)
    }

    fn read_associated(&self, name: &str) -> microtome::io::Result<Pixels> {
        self.inner.read_associated(name)
    }

    fn keep_decoded(&self, bytes: u64) {
        self.kept.store(bytes, Ordering::Relaxed);
    }

    fn content_id(&self) -> microtome::io::Result<String> {
        self.inner.content_id()
    }
}

/// Each strip lies under all cells of a row: they follow each other, and the strips are kept until the row is done.
#[test]
fn a_slide_in_strips_is_read_row_by_row() {
    let folder = tempfile::tempdir().unwrap();
    let size = Size::new(6300, 4200);
    let plain = SyntheticSlide::new(size, 1).with_islands(0);
    let mut info = plain.info().clone();
    info.levels[0].tile = Size::new(6300, 16);
    let slide = Strips { inner: plain, info, read: Mutex::default(), kept: AtomicU64::new(0) };
    let output = folder.path().join("strips.dzi");
    let one_thread = options(|o| o.threads = Some(1));
    make(&slide, Shown::Colors, &output, &one_thread);
    let read = slide.read.into_inner().unwrap();
    assert!(read.len() > 8 && read.is_sorted(), "{read:?}");
    // The pixels under a row of cells of 2048 with its rim, and something more.
    let (kept, row) = (slide.kept.into_inner(), 6300 * 2064 * 3);
    assert!((row..row * 3 / 2).contains(&kept), "{kept}");
    let other = folder.path().join("tiles.dzi");
    make(&slide.inner, Shown::Colors, &other, &one_thread);
    assert!(tiles(&output) == tiles(&other));
}

#[test]
fn tiles_of_the_slide_are_copied_where_they_fit() {
    let folder = tempfile::tempdir().unwrap();
    // Red, green, blue as they are; luma and chroma.
    for photometric in [2, 6] {
        let mut slide = TiffSlide::rgb(&[(300, 200), (150, 100), (75, 50)], |level, x, y, channel| {
            (60 + (x / 3 * 7 + y / 5 * 11 + 50 * channel as u64 + 20 * level as u64) % 180) as u16
        });
        (slide.compression, slide.photometric, slide.cut) = (Compression::Jpeg(90), photometric, Cut::Tiles(64, 64));
        let path = folder.path().join(format!("{photometric}.tif"));
        std::fs::write(&path, slide.bytes()).unwrap();
        let slide = open(&path, &OpenOptions::default()).unwrap();
        let output = folder.path().join(format!("{photometric}.dzi"));
        let copy = |change: fn(&mut DeepZoomOptions)| {
            options(|o| {
                (o.tile_size, o.overlap, o.tiles) = (64, 0, TileSource::Copy);
                change(o);
            })
        };
        let summary = make(slide.as_ref(), Shown::Colors, &output, &copy(|_| {}));
        // Whole tiles of 300 x 200, 150 x 100 and 75 x 50 pixels.
        assert_eq!((summary.copied, &summary.nothing_copied), (4 * 3 + 2, &None), "{summary}");
        for (level, number) in [(0, 9), (1, 8)] {
            let tile = read(&output.with_file_name(format!("{photometric}_files/{number}/1_0.jpg")));
            let stored = slide.read_region(Level(level), Rect::new(64, 0, 64, 64)).unwrap();
            assert!(tile == stored, "photometric {photometric}, level {level}");
        }
        let edge = read(&output.with_file_name(format!("{photometric}_files/9/4_3.jpg")));
        assert_eq!(edge.size(), Size::new(44, 8));

        let cases: [(&str, fn(&mut DeepZoomOptions)); 3] = [
            ("overlap", |o| o.overlap = 1),
            ("64 x 64", |o| o.tile_size = 128),
            ("JPEG", |o| o.format = TileFormat::Png),
        ];
        for (number, (why, change)) in cases.into_iter().enumerate() {
            let output = folder.path().join(format!("{photometric}-{number}.dzi"));
            let summary = make(slide.as_ref(), Shown::Colors, &output, &copy(change));
            assert_eq!(summary.copied, 0);
            assert!(summary.to_string().contains(why) && summary.nothing_copied.is_some(), "{summary}");
        }
    }
}

/// Wants to stop after some pixels.
struct Impatient(AtomicU64);

impl Observer for Impatient {
    fn cancelled(&self) -> bool {
        self.0.fetch_add(1, Ordering::Relaxed) > 40
    }
}

#[test]
fn what_is_not_finished_does_not_look_so_and_is_replaced_when_asked() {
    let folder = tempfile::tempdir().unwrap();
    let slide = PictureSlide::new(picture(Size::new(900, 700), 3, SampleType::U8, 256), 0.5);
    let output = folder.path().join("image.dzi");
    let options = options(|o| o.tile_size = 64);
    let run =
        |existing, observer: &dyn Observer| deep_zoom(&slide, Shown::Colors, &output, &options, existing, observer);
    let stopped = run(Existing::Keep, &Impatient(AtomicU64::new(0)));
    assert!(matches!(stopped, Err(Error::Interrupted)), "{stopped:?}");
    assert!(!output.exists() && !tiles(&output).is_empty());
    assert!(matches!(run(Existing::Keep, &Silent), Err(Error::OutputExists { .. })));
    run(Existing::Restart, &Silent).unwrap();
    let made = tiles(&output);
    for existing in [Existing::Keep, Existing::Restart] {
        assert!(matches!(run(existing, &Silent), Err(Error::OutputExists { .. })));
    }
    run(Existing::Replace, &Silent).unwrap();
    assert!(tiles(&output) == made && output.exists());

    let bad = FailingSlide::new(SyntheticSlide::new(Size::new(900, 700), 1))
        .with_bad_tile(Level::FINEST, TileCoord { row: 1, column: 2 });
    let output = folder.path().join("bad.dzi");
    let failed = deep_zoom(&bad, Shown::Colors, &output, &options, Existing::Keep, &Silent);
    assert!(matches!(failed, Err(Error::Read(_))), "{failed:?}");
    assert!(!output.exists());
}

#[test]
fn what_cannot_be_made_is_refused_before_anything_is_written() {
    let folder = tempfile::tempdir().unwrap();
    let grey = PictureSlide::new(picture(Size::new(90, 70), 1, SampleType::U8, 256), 0.5);
    let two = PictureSlide::new(picture(Size::new(90, 70), 2, SampleType::U8, 256), 0.5);
    let color = PictureSlide::new(picture(Size::new(90, 70), 3, SampleType::U8, 256), 0.5);
    let refused = |slide: &dyn SlideReader, shown, name: &str, change: fn(&mut DeepZoomOptions)| {
        let made = deep_zoom(slide, shown, &folder.path().join(name), &options(change), Existing::Keep, &Silent);
        assert!(matches!(made, Err(Error::Usage(_))), "{made:?}");
    };
    refused(&grey, Shown::Colors, "image.png", |_| {});
    refused(&two, Shown::Colors, "image.dzi", |_| {});
    refused(&color, Shown::Labels(&[]), "image.dzi", |_| {});
    refused(&grey, Shown::Colors, "image.dzi", |o| o.tile_size = 0);
    refused(&grey, Shown::Colors, "image.dzi", |o| o.tile_size = 5000);
    refused(&grey, Shown::Colors, "image.dzi", |o| o.overlap = 128);
    refused(&grey, Shown::Colors, "image.dzi", |o| o.quality = 0);
    refused(&grey, Shown::Colors, "image.dzi", |o| o.threads = Some(0));
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
}
