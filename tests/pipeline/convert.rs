//! Slides into OME-Zarr images.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use microtome::Observer;
use microtome::io::bytes::Memory;
use microtome::io::slide::OpenOptions;
use microtome::io::store::{
    Channel, Content, Encoding, Format, ImageSink, StoreLevel, StoredImage, Translation, ZarrImage,
};
use microtome::io::{Class, Microns, SampleType, TileCoord};
use microtome::{
    Conversion, ConvertOptions, ConvertPlan, ConvertSummary, LabelImage, Levels, OnBadPicture, Reduction, RoiSource,
    VisitingOrder, convert, verify,
};
use microtome_testkit::tiff::{Cut, TiffSlide};
use microtome_testkit::{FailingSlide, FunctionModel, SyntheticSlide, data};
use serde_json::Map;

use super::*;
use crate::resume::StopAfter;

/// Shards so small that little pictures have many of them.
fn options() -> ConvertOptions {
    let mut options = ConvertOptions::default();
    options.threads = Some(2);
    options.chunk = 16;
    options.shard = 32;
    options
}

fn changed(change: impl FnOnce(&mut ConvertOptions)) -> ConvertOptions {
    let mut options = options();
    change(&mut options);
    options
}

/// A conversion that must succeed, and must not have been done before.
#[track_caller]
fn converted(slide: &dyn SlideReader, options: &ConvertOptions, output: &Path) -> ConvertSummary {
    match convert(slide, output, options, Existing::Keep, &Silent) {
        Ok(Conversion::Done(summary)) => *summary,
        Ok(Conversion::AlreadyDone) => panic!("{}: done already", output.display()),
        Err(error) => panic!("{error}"),
    }
}

fn samples(pixels: &Pixels) -> Vec<u16> {
    match pixels.samples() {
        Samples::U8(v) => v.iter().map(|&sample| sample.into()).collect(),
        Samples::U16(v) => v.clone(),
    }
}

/// All levels of a store, from the finest.
fn levels_of(path: &Path) -> Vec<(Size, usize, Vec<u16>)> {
    let store = OmeZarr::open(path).unwrap_or_else(|error| panic!("{error}"));
    let read = |(n, level): (usize, &StoreLevel)| {
        let pixels = store.read_region(Level(n), level.size.rect()).unwrap();
        (level.size, pixels.channels(), samples(&pixels))
    };
    store.info().levels.iter().enumerate().map(read).collect()
}

/// Half the size, by what the documentation says of one pixel.
fn halved(reduction: Reduction, (size, channels, samples): &(Size, usize, Vec<u16>)) -> (Size, usize, Vec<u16>) {
    let half = Size::new(size.width.div_ceil(2), size.height.div_ceil(2));
    let mut out = Vec::new();
    for (y, x, c) in
        (0..half.height).flat_map(|y| (0..half.width).flat_map(move |x| (0..*channels).map(move |c| (y, x, c))))
    {
        let mut here = Vec::new();
        for (v, u) in [(2 * y, 2 * x), (2 * y, 2 * x + 1), (2 * y + 1, 2 * x), (2 * y + 1, 2 * x + 1)] {
            if v < size.height && u < size.width {
                here.push(samples[(v * size.width + u) as usize * channels + c]);
            }
        }
        let count = |value: u16| here.iter().filter(|&&other| other == value).count();
        out.push(match reduction {
            Reduction::Nearest => here[0],
            Reduction::Max => *here.iter().max().unwrap(),
            Reduction::Mode => *here.iter().max_by_key(|&&v| (count(v), std::cmp::Reverse(v))).unwrap(),
            Reduction::Mean => {
                let sum: u64 = here.iter().map(|&v| u64::from(v)).sum();
                ((2 * sum + here.len() as u64) / (2 * here.len() as u64)) as u16
            }
        });
    }
    (half, *channels, out)
}

/// Each level is half of the one before, but for those that are copied.
#[track_caller]
fn assert_halved(levels: &[(Size, usize, Vec<u16>)], reduction: Reduction, copied: &[usize]) {
    for (n, pair) in levels.windows(2).enumerate().filter(|(n, _)| !copied.contains(&(n + 1))) {
        assert!(pair[1] == halved(reduction, &pair[0]), "{reduction:?}: level {} is not half of the one before", n + 1);
    }
}

fn whole(slide: &dyn SlideReader, level: usize) -> (Size, usize, Vec<u16>) {
    let size = slide.info().levels[level].size;
    let pixels = slide.read_region(Level(level), size.rect()).unwrap();
    (size, pixels.channels(), samples(&pixels))
}

/// What lies in the arrays of a store, but not what the root says of them.
fn arrays(path: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut files = files(path);
    files.remove(Path::new("zarr.json"));
    files
}

fn opened(slide: &TiffSlide) -> Box<dyn SlideReader> {
    let bytes = Arc::new(Memory::new("slide.tif", slide.bytes()));
    microtome::io::slide::open_bytes(bytes, &OpenOptions::default()).unwrap_or_else(|error| panic!("{error}"))
}

#[test]
fn every_level_is_half_of_the_one_before() {
    let folder = tempfile::tempdir().unwrap();
    let mut n = 0;
    for (width, height) in [(1, 1), (17, 300), (257, 129), (300, 211)] {
        for reduction in [Reduction::Mean, Reduction::Mode, Reduction::Nearest, Reduction::Max] {
            n += 1;
            let path = folder.path().join(format!("{n}.ome.zarr"));
            let slide = SyntheticSlide::new(Size::new(width, height), 9).with_levels(&[0]);
            let summary = converted(&slide, &changed(|o| o.reduction = Some(reduction)), &path);
            let levels = levels_of(&path);
            assert!(levels[0] == whole(&slide, 0), "{width} x {height}");
            assert_halved(&levels, reduction, &[]);
            let last = levels.last().unwrap().0;
            assert!(last.width.max(last.height) <= 16);
            let store = OmeZarr::open(&path).unwrap();
            let info = store.info();
            assert_eq!((info.method.as_deref(), info.levels.len()), (Some(reduction.name()), levels.len()));
            for (n, level) in info.levels.iter().enumerate() {
                let factor = f64::from(1u32 << n);
                assert_eq!(level.mpp, Some(Microns::square(0.5 * factor)));
                // The centre of the first pixel, seen from that of level 0: of the top left one of four it stays where it was.
                let moved = if reduction == Reduction::Nearest { 0.0 } else { (factor - 1.0) / 2.0 * 0.5 };
                assert_eq!(level.translation, Translation { x: moved, y: moved });
            }
            assert_eq!((summary.resumed_shards, summary.slide), (0, Size::new(width, height)));
            assert!(summary.bytes > 0 && summary.seconds > 0.0);
        }
    }
}

#[test]
fn neither_threads_nor_memory_nor_order_change_a_byte() {
    let folder = tempfile::tempdir().unwrap();
    let slide = SyntheticSlide::new(Size::new(300, 211), 4).with_levels(&[0]).with_tile(Size::new(32, 32));
    let expected = folder.path().join("expected.ome.zarr");
    let plan = converted(&slide, &options(), &expected).plan;
    assert_eq!(plan.order, VisitingOrder::Z);
    let mut n = 0;
    let mut check = |slide: &SyntheticSlide, options: &ConvertOptions, root: bool| {
        n += 1;
        let path = folder.path().join(format!("{n}.ome.zarr"));
        let summary = converted(slide, options, &path);
        assert!(arrays(&path) == arrays(&expected), "{options:?}");
        assert!(!root || files(&path) == files(&expected), "{options:?}");
        summary.plan
    };
    for threads in [1, 2, 3] {
        check(&slide, &changed(|o| o.threads = Some(threads)), true);
    }
    // The smallest budget.
    let least = least_memory_of(&slide, &options());
    let tight = check(&slide, &changed(|o| o.memory = least), true);
    assert!(tight.memory.half_built < plan.memory.half_built, "{:?}", tight.memory);
    // The same pixels in strips.
    let strips = slide.clone().with_tile(Size::new(300, 8));
    for threads in [1, 3] {
        assert_eq!(check(&strips, &changed(|o| o.threads = Some(threads)), false).order, VisitingOrder::Rows);
    }
}

/// The smallest budget that a conversion may be given.
fn least_memory_of(slide: &dyn SlideReader, options: &ConvertOptions) -> u64 {
    let mut options = options.clone();
    options.memory = 1;
    match ConvertPlan::new(slide, &options) {
        Err(Error::Memory { needed, budget: 1, .. }) => needed,
        other => panic!("{other:?}"),
    }
}

/// The pixels of a TIFF that is read tile by tile, or strip by strip.
#[test]
fn tiles_and_strips_give_the_same_image() {
    let folder = tempfile::tempdir().unwrap();
    let mut found = Vec::new();
    for (n, cut) in [Cut::Tiles(48, 48), Cut::Tiles(16, 16), Cut::Strips(7), Cut::Strips(300)].into_iter().enumerate() {
        let mut tiff =
            TiffSlide::rgb(&[(300, 211)], |_, x, y, c| ((x * 31 + y * 17 + x * y + c as u64 * 90) % 256) as u16);
        tiff.cut = cut;
        let slide = opened(&tiff);
        let path = folder.path().join(format!("{n}.ome.zarr"));
        let plan = converted(slide.as_ref(), &options(), &path).plan;
        assert_eq!(plan.order == VisitingOrder::Rows, matches!(cut, Cut::Strips(_)), "{cut:?}");
        assert!(levels_of(&path)[0] == whole(slide.as_ref(), 0), "{cut:?}");
        found.push(arrays(&path));
    }
    assert!(found.iter().all(|arrays| *arrays == found[0]));
}

#[test]
fn a_rectangle_of_a_level_lies_where_it_lay() {
    let folder = tempfile::tempdir().unwrap();
    let mpp = Microns { x: 0.25, y: 0.26 };
    let slide = SyntheticSlide::new(Size::new(400, 320), 2).with_mpp(Some(mpp));
    let rect = Rect::new(37, 21, 100, 90);
    let path = folder.path().join("part.ome.zarr");
    let options = changed(|o| (o.level, o.rect, o.levels) = (Level(1), Some(rect), Levels::Count(2)));
    converted(&slide, &options, &path);
    let levels = levels_of(&path);
    assert_eq!(levels.len(), 2);
    let expected = slide.read_region(Level(1), rect).unwrap();
    assert!(levels[0] == (rect.size(), 3, samples(&expected)));
    assert_halved(&levels, Reduction::Mean, &[]);
    let store = OmeZarr::open(&path).unwrap();
    // The first pixel of the rectangle covers the level-0 pixels 74 and 75 (42 and 43 down), the centre of the slide's first is the origin.
    let [finest, next] = [store.info().levels[0], store.info().levels[1]];
    assert_eq!(finest.mpp, Some(Microns { x: 0.5, y: 0.52 }));
    assert_eq!(finest.translation, Translation { x: 74.5 * 0.25, y: 42.5 * 0.26 });
    let near = |a: f64, b: f64| (a - b).abs() < 1e-12;
    assert!(near(next.translation.x, 75.5 * 0.25) && near(next.translation.y, 43.5 * 0.26), "{next:?}");

    // The user's word counts.
    let path = folder.path().join("given.ome.zarr");
    converted(&slide, &changed(|o| (o.level, o.mpp) = (Level(1), Some(0.5))), &path);
    assert_eq!(OmeZarr::open(&path).unwrap().info().levels[0].mpp, Some(Microns::square(1.0)));
}

#[test]
fn levels_of_the_slide_are_copied_where_they_fit() {
    let folder = tempfile::tempdir().unwrap();
    // Every level is another picture; level 1 of the slide is level 1 of the image, its level 2 is level 3.
    let tiff = TiffSlide::rgb(&[(320, 192), (160, 96), (40, 24)], |level, x, y, c| {
        ((x * 7 + y * 13 + c as u64 * 50 + level as u64 * 77) % 256) as u16
    });
    let slide = opened(&tiff);
    let path = folder.path().join("copied.ome.zarr");
    let options = changed(|o| o.levels = Levels::Source);
    let summary = converted(slide.as_ref(), &options, &path);
    let copied: Vec<_> = summary.plan.copied.iter().map(|(a, b)| (a.0, b.0)).collect();
    assert_eq!(copied, [(0, 0), (1, 1), (3, 2)]);
    let levels = levels_of(&path);
    for (level, of) in copied {
        assert!(levels[level] == whole(slide.as_ref(), of), "level {level}");
    }
    assert_halved(&levels, Reduction::Mean, &[1, 3]);
    assert_eq!(levels.len(), 6);
    // Stopped anywhere, it goes on to the same bytes.
    for percent in [0, 40, 80, 95] {
        let output = folder.path().join(format!("{percent}.ome.zarr"));
        let stop = StopAfter::new(summary.plan.pixels() * percent / 100);
        let stopped = convert(slide.as_ref(), &output, &options, Existing::Keep, &stop);
        assert!(matches!(stopped, Err(Error::Interrupted)), "{stopped:?}");
        converted(slide.as_ref(), &options, &output);
        assert!(files(&output) == files(&path), "stopped at {percent} %");
    }
    // Of a part no level of the slide is a level.
    let part = folder.path().join("part.ome.zarr");
    let rect = Some(Rect::new(0, 0, 160, 96));
    let summary = converted(slide.as_ref(), &changed(|o| (o.levels, o.rect) = (Levels::Source, rect)), &part);
    assert_eq!(summary.plan.copied.len(), 1);
    assert!(summary.notes.iter().any(|note| note.contains("--levels source")), "{:?}", summary.notes);
    assert_halved(&levels_of(&part), Reduction::Mean, &[]);
}

#[test]
fn many_channels_of_16_bits_are_kept_without_loss() {
    let folder = tempfile::tempdir().unwrap();
    let mut tiff = TiffSlide::rgb(&[(150, 111)], |_, x, y, c| {
        (x * 977 + y * 1409 + c as u64 * 13_001).wrapping_mul(40_503) as u16
    });
    (tiff.channels, tiff.bits, tiff.photometric, tiff.extra_samples) = (5, 16, 1, vec![0; 4]);
    let slide = opened(&tiff);
    let path = folder.path().join("image.ome.zarr");
    let summary = converted(slide.as_ref(), &options(), &path);
    assert_eq!((summary.channels, summary.sample), (5, SampleType::U16));
    let levels = levels_of(&path);
    assert!(levels[0] == whole(slide.as_ref(), 0));
    assert_halved(&levels, Reduction::Mean, &[]);
    let Content::Image { channels } = OmeZarr::open(&path).unwrap().info().content.clone() else { panic!("labels") };
    assert_eq!(channels[4], Channel::new("channel 4", [255, 0, 255]));
}

/// Files of scanners and of other programs.
#[test]
fn real_files_are_converted_without_loss() {
    let folder = tempfile::tempdir().unwrap();
    for (n, (name, least)) in [
        ("slides/svs/CMU-1-Small-Region.svs", (SampleType::U8, 3)),
        ("slides/ndpi/test3-DAPI-2-387.ndpi", (SampleType::U8, 1)),
        ("zarr/zarrs/sharded_array_write_read.zarr/group/array", (SampleType::U16, 1)),
        ("slides/dicom/highdicom/sm_image.dcm", (SampleType::U8, 3)),
        ("zarr/ome-zarr-fiji-java/3d_testing/xyc/3d_dataset_v4.ome.zarr", (SampleType::U8, 3)),
        ("zarr/ome-zarr-fiji-java/3d_testing/xyc/3d_dataset_v5.ome.zarr", (SampleType::U8, 3)),
    ]
    .into_iter()
    .enumerate()
    {
        let Some(file) = data(name) else { return };
        let slide = match microtome::io::slide::open(&file, &OpenOptions::default()) {
            Ok(slide) => slide,
            Err(error) => panic!("{error}"),
        };
        let info = slide.info();
        assert!(info.sample.bytes() >= least.0.bytes() && info.channels >= least.1, "{name}: {info:?}");
        let path = folder.path().join(format!("{n}.ome.zarr"));
        let mut options = ConvertOptions::default();
        options.threads = Some(2);
        converted(slide.as_ref(), &options, &path);
        let levels = levels_of(&path);
        assert!(levels[0] == whole(slide.as_ref(), 0), "{name}");
        assert_halved(&levels, Reduction::Mean, &[]);
    }
}

#[test]
fn a_conversion_that_is_stopped_anywhere_goes_on_to_the_same_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let slide = SyntheticSlide::new(Size::new(300, 330), 5).with_tissue_everywhere().with_tile(Size::new(48, 48));
    let expected = folder.path().join("whole.ome.zarr");
    converted(&slide, &options(), &expected);
    let area = 300 * 330;
    for percent in [0, 5, 30, 60, 90] {
        let output = folder.path().join(format!("{percent}.ome.zarr"));
        for more in [0, 2, 4] {
            let stop = StopAfter::new(area * (percent + more) / 100);
            let stopped = convert(&slide, &output, &options(), Existing::Keep, &stop);
            assert!(matches!(stopped, Err(Error::Interrupted)), "{stopped:?}");
            assert!(OmeZarr::open(&output).is_err(), "half a store can be seen");
        }
        let summary = converted(&slide, &changed(|o| o.threads = Some(3)), &output);
        assert!(summary.resumed_shards > 0 || percent < 30, "at {percent} % something must have been kept");
        assert!(files(&output) == files(&expected), "stopped at {percent} %");
        let verified = verify(&output).unwrap();
        assert!(verified.faults.is_empty() && !verified.unfinished && verified.intact > 100, "{verified:?}");
    }
}

#[test]
fn what_is_finished_is_kept_and_another_conversion_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("image.ome.zarr");
    let slide = SyntheticSlide::new(Size::new(100, 80), 5);
    converted(&slide, &options(), &output);
    let before = files(folder.path());
    let again = |options: &ConvertOptions| convert(&slide, &output, options, Existing::Keep, &Silent);
    assert!(matches!(again(&options()), Ok(Conversion::AlreadyDone)));
    // Neither threads nor memory nor how often it syncs are options of the result.
    let same = changed(|o| (o.threads, o.sync_every) = (Some(1), std::time::Duration::ZERO));
    assert!(matches!(again(&same), Ok(Conversion::AlreadyDone)));
    let changes: [(fn(&mut ConvertOptions), &str); 6] = [
        (|o| o.reduction = Some(Reduction::Max), "reduction: mean there, max here"),
        (|o| o.chunk = 32, "chunk: 16 there, 32 here"),
        (|o| o.encoding.compression = "gzip:1".parse().unwrap(), "compression: zstd:1 there, gzip:1 here"),
        (|o| o.mpp = Some(1.0), "resolution: "),
        (|o| o.rect = Some(Rect::new(0, 0, 10, 10)), "rect: "),
        (|o| o.name = "other".into(), "name: image there, other here"),
    ];
    for (change, word) in changes {
        match again(&changed(change)) {
            Err(error @ Error::DifferentRun { .. }) => {
                assert_eq!(error.exit_code(), 5);
                assert!(error.to_string().contains(word), "{error}");
            }
            other => panic!("{other:?}"),
        }
    }
    assert!(files(folder.path()) == before);
    let replaced = convert(&slide, &output, &changed(|o| o.chunk = 32), Existing::Replace, &Silent);
    assert!(matches!(replaced, Ok(Conversion::Done(_))), "{replaced:?}");
}

#[test]
fn a_tile_that_cannot_be_decoded_is_named_and_what_was_finished_is_kept() {
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("image.ome.zarr");
    let slide = || SyntheticSlide::new(Size::new(200, 200), 5).with_tile(Size::new(16, 16)).with_tissue_everywhere();
    let bad = FailingSlide::new(slide()).with_bad_tile(Level::FINEST, TileCoord { row: 11, column: 12 });
    let error = convert(&bad, &output, &options(), Existing::Keep, &Silent).unwrap_err();
    assert_eq!(error.exit_code(), 4);
    assert!(error.to_string().contains("level 0, column 12 row 11"), "{error}");
    assert!(OmeZarr::open(&output).is_err());
    assert!(converted(&slide(), &options(), &output).resumed_shards > 20);

    // Where nothing was finished, nothing is left.
    let bad = FailingSlide::new(slide()).with_bad_tile(Level::FINEST, TileCoord { row: 0, column: 0 });
    let output = folder.path().join("nothing.ome.zarr");
    convert(&bad, &output, &changed(|o| o.threads = Some(1)), Existing::Keep, &Silent).unwrap_err();
    assert!(!names(folder.path()).iter().any(|name| name.starts_with("nothing")), "{:?}", names(folder.path()));
}

fn picture_of(width: u64, height: u64, value: u8) -> Pixels {
    let samples = (0..width * height * 3).map(|i| (i % 251) as u8 ^ value).collect();
    Pixels::from_u8(Size::new(width, height), 3, samples)
}

#[test]
fn pictures_that_travel_along_are_images_of_their_own_and_the_label_is_left_out() {
    let folder = tempfile::tempdir().unwrap();
    let (macro_picture, label) = (picture_of(70, 33, 1), picture_of(40, 40, 2));
    let slide = SyntheticSlide::new(Size::new(100, 80), 5)
        .with_associated("macro", macro_picture.clone())
        .with_associated("label", label.clone());
    let output = folder.path().join("image.ome.zarr");
    let summary = converted(&slide, &options(), &output);
    assert_eq!(summary.associated, ["macro"]);
    assert!(summary.notes.iter().any(|note| note.contains("--label-image")), "{:?}", summary.notes);
    assert_eq!(names(&output.join("associated")), ["macro", "zarr.json"]);
    let levels = levels_of(&output.join("associated/macro"));
    assert!(levels[0] == (macro_picture.size(), 3, samples(&macro_picture)));
    assert_halved(&levels, Reduction::Mean, &[]);
    // The image is the slide's still.
    assert_eq!(OmeZarr::open(&output).unwrap().info().levels[0].size, Size::new(100, 80));

    let all = folder.path().join("all.ome.zarr");
    assert_eq!(converted(&slide, &changed(|o| o.label_image = LabelImage::Kept), &all).associated, ["macro", "label"]);
    assert!(levels_of(&all.join("associated/label"))[0].2 == samples(&label));
    let none = folder.path().join("none.ome.zarr");
    assert!(converted(&slide, &changed(|o| o.associated = false), &none).notes.is_empty());
    assert!(!none.join("associated").exists());

    // It is removed with the rest, unless somebody has put something there.
    let replaced = convert(&slide, &all, &options(), Existing::Replace, &Silent);
    assert!(matches!(replaced, Ok(Conversion::Done(_))), "{replaced:?}");
    assert!(arrays(&all) == arrays(&output));
    std::fs::write(all.join("associated/macro/notes.txt"), "mine").unwrap();
    let error = convert(&slide, &all, &options(), Existing::Replace, &Silent).unwrap_err();
    assert!(error.to_string().contains("notes.txt"), "{error}");
}

#[test]
fn a_picture_that_cannot_be_read_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("image.ome.zarr");
    // The adapter knows of the picture, and has none.
    let mut slide = Claims(SyntheticSlide::new(Size::new(100, 80), 5), None);
    let mut info = slide.0.info().clone();
    info.associated.push(microtome::io::slide::AssociatedImage::new("synthetic", "macro", Size::new(9, 9)));
    slide.1 = Some(info);
    let error = convert(&slide, &output, &options(), Existing::Keep, &Silent).unwrap_err();
    assert_eq!(error.exit_code(), 4);
    assert!(error.to_string().contains("\"macro\"") && error.to_string().contains("--on-bad-picture skip"), "{error}");
    assert!(names(folder.path()).is_empty(), "{:?}", names(folder.path()));

    // Asked to, it goes without that one, and says so.
    let summary = converted(&slide, &changed(|o| o.on_bad_picture = OnBadPicture::LeaveOut), &output);
    assert!(summary.associated.is_empty(), "{:?}", summary.associated);
    let note = summary.notes.iter().find(|note| note.contains("\"macro\"")).unwrap();
    assert!(note.contains("cannot be read"), "{note}");
    assert_eq!(names(&output.join("associated")), ["zarr.json"]);
    let plain = folder.path().join("plain.ome.zarr");
    converted(&slide.0, &options(), &plain);
    assert!(levels_of(&output) == levels_of(&plain));
    let error = convert(&slide, &output, &options(), Existing::Keep, &Silent).unwrap_err();
    assert!(error.exit_code() == 5 && error.to_string().contains("on_bad_picture"), "{error}");
}

/// A slide that says something else of itself.
#[derive(Debug)]
struct Claims(SyntheticSlide, Option<microtome::io::slide::SlideInfo>);

impl SlideReader for Claims {
    fn info(&self) -> &microtome::io::slide::SlideInfo {
        self.1.as_ref().unwrap_or(self.0.info())
    }
    fn read_region(&self, level: Level, rect: Rect) -> microtome::io::Result<Pixels> {
        self.0.read_region(level, rect)
    }
    fn read_associated(&self, name: &str) -> microtome::io::Result<Pixels> {
        self.0.read_associated(name)
    }
    fn content_id(&self) -> microtome::io::Result<String> {
        self.0.content_id()
    }
}

#[test]
fn facts_and_profile_are_kept_and_nothing_that_could_name_a_person() {
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("image.ome.zarr");
    let mut slide = Claims(SyntheticSlide::new(Size::new(100, 80), 5).with_icc_profile(b"profile"), None);
    let mut info = slide.0.info().clone();
    info.path = "Jane_Doe.svs".into();
    info.properties.insert("aperio.Patient".into(), "Jane Doe".into());
    info.objective_power = Some(20.0);
    slide.1 = Some(info);
    // The adapter has no profile.
    let without = folder.path().join("without.ome.zarr");
    converted(&slide, &options(), &without);
    for path in [&without, &without.with_extension("zarr.run")] {
        for (name, bytes) in files(path) {
            let text = String::from_utf8_lossy(&bytes);
            assert!(!text.contains("Jane") && !text.contains("Doe"), "{}", name.display());
        }
    }
    let store = OmeZarr::open(&without).unwrap();
    let (metadata, attributes) = (&store.info().metadata, &store.info().attributes);
    assert_eq!(metadata["args"]["source"]["objective_power"], 20.0);
    assert_eq!(metadata["args"]["source"]["format"], "synthetic");
    assert_eq!(metadata["args"]["source"]["resolution"]["source"], "given");
    assert!(attributes.get("icc_profile").is_none());

    converted(&slide.0, &options(), &output);
    let store = OmeZarr::open(&output).unwrap();
    // base64.b64encode(b"profile")
    assert_eq!(store.info().attributes["icc_profile"], "cHJvZmlsZQ==");
    let slide = microtome::io::slide::open(&output, &OpenOptions::default()).unwrap();
    assert_eq!(slide.icc_profile(), Some(&b"profile"[..]), "and is read again");
}

#[test]
fn a_slide_of_unknown_resolution_has_no_units() {
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("image.ome.zarr");
    let slide = SyntheticSlide::new(Size::new(100, 80), 5).with_mpp(None);
    let summary = converted(&slide, &options(), &output);
    assert!(summary.notes.iter().any(|note| note.contains("resolution is not known")), "{:?}", summary.notes);
    let levels = OmeZarr::open(&output).unwrap().info().levels.clone();
    assert!(levels.iter().all(|level| level.mpp.is_none()));
    assert_eq!(levels[1].translation, Translation { x: 0.5, y: 0.5 });
    let text = std::fs::read_to_string(output.join("zarr.json")).unwrap();
    assert!(!text.contains("micrometer") && !text.contains("\"unit\""), "{text}");
}

#[test]
fn what_cannot_be_is_refused_with_a_sentence() {
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("image.ome.zarr");
    let slide = SyntheticSlide::new(Size::new(100, 80), 5);
    let changes: [(fn(&mut ConvertOptions), u8, &str); 10] = [
        (|o| o.level = Level(9), 2, "no level 9"),
        (|o| o.rect = Some(Rect::new(90, 0, 20, 20)), 2, "not inside"),
        (|o| o.rect = Some(Rect::new(-1, 0, 20, 20)), 2, "not inside"),
        (|o| o.levels = Levels::Count(0), 2, "1 to 8"),
        (|o| o.levels = Levels::Count(9), 2, "1 to 8"),
        (|o| (o.chunk, o.shard) = (16, 40), 2, "even multiple"),
        (|o| (o.chunk, o.shard) = (15, 15), 2, "even multiple"),
        (|o| o.threads = Some(0), 2, "at least one thread"),
        (|o| o.mpp = Some(-1.0), 2, "not plausible"),
        (|o| o.memory = 1 << 20, 6, "needs "),
    ];
    for (change, code, word) in changes {
        let error = convert(&slide, &output, &changed(change), Existing::Keep, &Silent).unwrap_err();
        assert_eq!(error.exit_code(), code, "{error}");
        assert!(error.to_string().contains(word), "{error}");
    }
    assert!(names(folder.path()).is_empty());
    let error = convert(&slide, &output, &changed(|o| o.memory = 30 << 20), Existing::Keep, &Silent).unwrap_err();
    assert!(error.to_string().contains("may use 30.00 MiB") && error.to_string().contains("--memory"), "{error}");
}

/// What the default settings hold, of RGB in tiles of 256, as Aperio's scanners write it.
#[test]
fn what_is_planned_does_not_grow_with_the_slide() {
    let memory = |width, height| {
        let slide = SyntheticSlide::new(Size::new(width, height), 1).with_tile(Size::new(256, 256));
        let mut options = ConvertOptions::default();
        options.threads = Some(2);
        ConvertPlan::new(&slide, &options).unwrap().memory
    };
    let small = memory(20_000, 15_000);
    assert!(small.total() < 110_000_000, "{small:?}");
    assert_eq!([memory(100_000, 80_000), memory(20_000, 1_000_000)], [small; 2]);
}

/// A level that is copied is read in cells of its own: tiles here, strips there.
#[test]
fn a_plan_counts_the_cells_of_every_level_that_is_read() {
    let slide = SyntheticSlide::new(Size::new(20_000, 16_000), 1).with_levels(&[0, 1]).with_tile(Size::new(256, 256));
    let mut info = slide.info().clone();
    info.levels[1].tile = Size::new(10_000, 64);
    let plan = |slide: &dyn SlideReader, levels| {
        let mut options = ConvertOptions::default();
        (options.threads, options.levels, options.memory) = (Some(2), levels, 4 << 30);
        ConvertPlan::new(slide, &options).unwrap()
    };
    let strips = Claims(slide.clone(), Some(info));
    let (tiled, striped) = (plan(&slide, Levels::Source), plan(&strips, Levels::Source));
    assert_eq!((tiled.copied.len(), striped.copied.len()), (2, 2));
    // Sixteen strips of 64 rows lie under a row of shards of 1024, and a quarter more.
    assert_eq!(striped.memory.cache, 10_000 * 1024 * 3 * 5 / 4);
    assert!(striped.memory.reading >= tiled.memory.reading + 2 * (10_000 * 64 - 256 * 256) * 3, "{:?}", striped.memory);
    // Half a row of shards of each level above waits for the next row.
    assert!(striped.memory.half_built > tiled.memory.half_built);
    // What is not read does not count.
    assert_eq!(plan(&strips, Levels::Enough).memory, plan(&slide, Levels::Enough).memory);
}

/// Finished shards are brought to the disk as often as was asked for, and when much of it waits.
#[test]
fn shards_are_synced_as_often_as_was_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    let slide = SyntheticSlide::new(Size::new(300, 300), 5).with_tissue_everywhere();
    let lines = |every: Duration, name: &str| {
        let output = folder.path().join(name);
        let options = changed(|o| o.sync_every = every);
        // Half-way, what was synced by then is in the journal.
        let stop = Journalled { run: folder.path().join(format!("{name}.run")), seen: AtomicUsize::new(0) };
        convert(&slide, &output, &options, Existing::Keep, &stop).unwrap();
        stop.seen.into_inner()
    };
    assert_eq!(lines(Duration::from_hours(1), "seldom.ome.zarr"), 1, "the first line says which run it is");
    assert!(lines(Duration::ZERO, "often.ome.zarr") > 1);
}

/// Looks into the journal during a run.
struct Journalled {
    run: PathBuf,
    /// The most lines that it had while pixels were still to be read.
    seen: AtomicUsize,
}

impl Observer for Journalled {
    fn progress(&self, done: u64, total: u64) {
        if done < total {
            // Time for the thread that looks after the disk.
            std::thread::sleep(Duration::from_millis(2));
            let lines = std::fs::read_to_string(self.run.join("journal.jsonl")).unwrap().lines().count();
            self.seen.fetch_max(lines, Ordering::Relaxed);
        }
    }
}

/// A store that was converted is a slide, and converts to itself.
#[test]
fn an_image_of_ours_is_converted_again_without_loss() {
    let folder = tempfile::tempdir().unwrap();
    let slide = SyntheticSlide::new(Size::new(130, 80), 5).with_levels(&[0]);
    let (first, second) = (folder.path().join("first.ome.zarr"), folder.path().join("second.ome.zarr"));
    converted(&slide, &options(), &first);
    let again = microtome::io::slide::open(&first, &OpenOptions::default()).unwrap();
    let summary = converted(again.as_ref(), &changed(|o| o.levels = Levels::Source), &second);
    assert_eq!(summary.plan.copied.len(), summary.plan.levels.len(), "all levels are copied");
    assert!(arrays(&first) == arrays(&second));
}

/// In memory; over a connection, see `tests/python/check_remote.py`.
#[cfg(feature = "remote")]
#[test]
fn an_image_in_an_object_store_is_the_image_in_a_folder() {
    use microtome::io::store::stored_bytes;

    let folder = tempfile::tempdir().unwrap();
    microtome::io::remote::in_memory("convert", folder.path());
    let slide = SyntheticSlide::new(Size::new(150, 130), 5)
        .with_tissue_everywhere()
        .with_associated("macro", picture_of(40, 20, 3));
    let plain = folder.path().join("plain.ome.zarr");
    let summary = converted(&slide, &options(), &plain);
    let noted = |path: &Path| {
        let text = std::fs::read_to_string(microtome::run_folder(path).join("journal.jsonl")).unwrap();
        text.lines().map(Into::into).collect::<BTreeSet<String>>()
    };
    for percent in [0, 30, 70, 95, 100] {
        let url = PathBuf::from(format!("s3://convert/a/{percent}.ome.zarr"));
        let stop = StopAfter::new(summary.plan.pixels() * percent / 100);
        if percent < 100 {
            let stopped = convert(&slide, &url, &changed(|o| o.sync_every = Duration::ZERO), Existing::Keep, &stop);
            assert!(matches!(stopped, Err(Error::Interrupted)), "{stopped:?}");
        }
        let resumed = converted(&slide, &options(), &url);
        assert_eq!(resumed.resumed_shards > 0, (30..100).contains(&percent), "{percent} %");
        assert_eq!((resumed.bytes, stored_bytes(&url).unwrap()), (summary.bytes, summary.bytes));
        assert!(levels_of(&url) == levels_of(&plain));
        assert!(levels_of(&url.join("associated/macro")) == levels_of(&plain.join("associated/macro")));
        // The digests of all shards.
        assert!(noted(&url) == noted(&plain), "{percent} %");
        let verified = verify(&url).unwrap();
        assert!(verified.faults.is_empty() && !verified.unfinished && verified.intact > 20, "{verified:?}");
        assert!(matches!(convert(&slide, &url, &options(), Existing::Keep, &Silent), Ok(Conversion::AlreadyDone)));
    }
    let url = Path::new("s3://convert/a/0.ome.zarr");
    let other = changed(|o| o.reduction = Some(Reduction::Max));
    assert_eq!(convert(&slide, url, &other, Existing::Keep, &Silent).unwrap_err().exit_code(), 5);
    assert!(matches!(convert(&slide, url, &other, Existing::Replace, &Silent), Ok(Conversion::Done(_))));
    let error = convert(&slide, Path::new("s3://convert/a.zip"), &options(), Existing::Keep, &Silent).unwrap_err();
    assert!(error.exit_code() == 2 && error.to_string().contains("in one file"), "{error}");
    // What another machine has begun: this one has lost what it knew.
    let begun = Path::new("s3://convert/begun.ome.zarr");
    let stop = StopAfter::new(summary.plan.pixels() / 2);
    convert(&slide, begun, &changed(|o| o.sync_every = Duration::ZERO), Existing::Keep, &stop).unwrap_err();
    std::fs::remove_dir_all(folder.path().join("claims")).unwrap();
    let error = convert(&slide, begun, &options(), Existing::Keep, &Silent).unwrap_err();
    assert!(error.exit_code() == 2 && error.to_string().contains("not begun on this machine"), "{error}");
    assert!(matches!(verify(begun), Err(Error::Elsewhere { .. })));
    assert!(matches!(convert(&slide, begun, &options(), Existing::Replace, &Silent), Ok(Conversion::Done(_))));
    assert!(levels_of(begun) == levels_of(&plain));
}

#[test]
fn an_image_in_one_file_is_the_same_image() {
    let folder = tempfile::tempdir().unwrap();
    let slide = SyntheticSlide::new(Size::new(150, 130), 5)
        .with_tissue_everywhere()
        .with_associated("macro", picture_of(40, 20, 3));
    let (plain, zip) = (folder.path().join("plain.ome.zarr"), folder.path().join("image.ome.zarr.zip"));
    converted(&slide, &options(), &plain);
    let summary = converted(&slide, &options(), &zip);
    assert_eq!(summary.bytes, std::fs::metadata(&zip).unwrap().len());
    assert!(levels_of(&zip) == levels_of(&plain));
    assert_eq!(names(&folder.path().join("image.ome.zarr.zip.run")), ["report.json"]);
    let again = |options: &ConvertOptions| convert(&slide, &zip, options, Existing::Keep, &Silent);
    assert!(matches!(again(&options()), Ok(Conversion::AlreadyDone)));
    let error = again(&changed(|o| o.reduction = Some(Reduction::Max))).unwrap_err();
    assert!(error.exit_code() == 5 && error.to_string().contains("reduction: mean there, max here"), "{error}");

    // Stopped, it goes on to the same bytes.
    let bytes = std::fs::read(&zip).unwrap();
    let stopped = folder.path().join("stopped.ome.zarr.zip");
    for percent in [30, 60] {
        let stop = StopAfter::new(150 * 130 * percent / 100);
        let outcome = convert(&slide, &stopped, &options(), Existing::Keep, &stop);
        assert!(matches!(outcome, Err(Error::Interrupted)), "{outcome:?}");
        assert!(!stopped.exists());
    }
    assert!(converted(&slide, &options(), &stopped).resumed_shards > 0);
    assert!(std::fs::read(&stopped).unwrap() == bytes);
    // So does one whose packing was stopped.
    std::fs::remove_file(&stopped).unwrap();
    let run = folder.path().join("stopped.ome.zarr.zip.run");
    converted(&slide, &options(), &run.join("stopped.ome.zarr"));
    assert_eq!(converted(&slide, &options(), &stopped).pixels, 0, "nothing is read again");
    assert!(std::fs::read(&stopped).unwrap() == bytes);
    assert_eq!(names(&run), ["report.json"]);
    // What one that was killed after packing has left is removed by the next, unless it is another run's or somebody is packing.
    let again = || {
        let outcome = convert(&slide, &stopped, &options(), Existing::Keep, &Silent);
        assert!(matches!(outcome, Ok(Conversion::AlreadyDone)), "{outcome:?}");
        names(&run)
    };
    let other = changed(|o| o.reduction = Some(Reduction::Max));
    let left = ["report.json", "stopped.ome.zarr", "stopped.ome.zarr.run"];
    converted(&slide, &other, &run.join("stopped.ome.zarr"));
    assert_eq!(again(), left);
    convert(&slide, &run.join("stopped.ome.zarr"), &options(), Existing::Replace, &Silent).unwrap();
    #[cfg(unix)]
    {
        let packing = std::fs::File::open(&run).unwrap();
        packing.lock().unwrap();
        assert_eq!(again(), left);
    }
    assert_eq!(again(), ["report.json"]);
    assert!(std::fs::read(&stopped).unwrap() == bytes);

    let replaced = convert(&slide, &zip, &other, Existing::Replace, &Silent);
    assert!(matches!(replaced, Ok(Conversion::Done(_))), "{replaced:?}");
    assert_halved(&levels_of(&zip), Reduction::Max, &[]);
    // What is not ours stays.
    let file = folder.path().join("notes.zip");
    std::fs::write(&file, "mine").unwrap();
    let error = convert(&slide, &file, &options(), Existing::Replace, &Silent).unwrap_err();
    assert!(error.exit_code() == 2 && error.to_string().contains("there already"), "{error}");
    assert_eq!(std::fs::read(&file).unwrap(), b"mine");
}

#[test]
fn every_format_and_compression_holds_the_same_pixels() {
    let folder = tempfile::tempdir().unwrap();
    let slide = SyntheticSlide::new(Size::new(100, 80), 5).with_associated("macro", picture_of(40, 20, 3));
    let mut expected = None;
    for (n, (format, compression)) in
        [("0.5", "zstd"), ("0.5", "blosc:5"), ("0.5", "none"), ("0.4", "zstd:3"), ("0.4", "gzip"), ("0.4", "blosc")]
            .into_iter()
            .enumerate()
    {
        let path = folder.path().join(format!("{n}.ome.zarr"));
        let options = changed(|o| {
            o.encoding.format = format.parse().unwrap();
            o.encoding.compression = compression.parse().unwrap();
        });
        // Stopped in between, too.
        convert(&slide, &path, &options, Existing::Keep, &StopAfter::new(4000)).unwrap_err();
        converted(&slide, &options, &path);
        let found = (levels_of(&path), levels_of(&path.join("associated/macro")));
        assert_eq!(OmeZarr::open(&path).unwrap().info().version, format);
        assert!(*expected.get_or_insert_with(|| found.clone()) == found, "{format}, {compression}");
        assert!(matches!(convert(&slide, &path, &options, Existing::Keep, &Silent), Ok(Conversion::AlreadyDone)));
        let verified = verify(&path).unwrap();
        assert!(verified.faults.is_empty() && verified.intact > 12, "{verified:?}");
    }
}

/// Names of all levels' folders, to see that no other is there.
#[test]
fn a_number_of_levels_is_that_number() {
    let folder = tempfile::tempdir().unwrap();
    let slide = SyntheticSlide::new(Size::new(100, 80), 5);
    for count in [1, 3, 8] {
        let path = folder.path().join(format!("{count}.ome.zarr"));
        converted(&slide, &changed(|o| o.levels = Levels::Count(count)), &path);
        let folders: BTreeSet<String> = names(&path).into_iter().filter(|name| name != "zarr.json").collect();
        assert_eq!(folders, (0..count).map(|n| n.to_string()).collect());
        assert_halved(&levels_of(&path), Reduction::Mean, &[]);
    }
}

/// A store of one level and one shard.
fn put(path: &Path, finest: StoreLevel, content: Content, pixels: &Pixels) -> Box<dyn SlideReader> {
    let image = StoredImage {
        name: "image".into(),
        levels: vec![finest],
        chunk: Size::new(64, 64),
        shard: Size::new(64, 64),
        sample: pixels.sample_type(),
        encoding: Encoding::default(),
        content,
        source: None,
        method: "none".into(),
        metadata: Map::new(),
        attributes: Map::new(),
    };
    let sink = ZarrImage::create(path, image).unwrap();
    sink.write_shard(Level(0), TileCoord { row: 0, column: 0 }, pixels).unwrap();
    sink.finish(&Map::new()).unwrap();
    microtome::io::slide::open(path, &OpenOptions::default()).unwrap()
}

#[test]
fn labels_stay_labels_and_a_part_stays_where_it_lay() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let size = Size::new(50, 41);
    let classes = vec![Class::with_default_color(2, "stroma"), Class::with_default_color(10, "tumour")];
    let finest = StoreLevel { size, mpp: Some(Microns::square(0.5)), translation: Translation { x: 100.25, y: 50.0 } };
    let pixels = (0..size.area()).map(|i| if i / 3 % 2 == 0 { 2 } else { 10 }).collect();
    let content = Content::Labels { classes };
    let mask = put(&at("mask.ome.zarr"), finest, content, &Pixels::from_u8(size, 1, pixels));
    let output = at("again.ome.zarr");
    let summary = converted(mask.as_ref(), &options(), &output);
    assert_eq!(summary.plan.reduction, Reduction::Mode);
    let store = OmeZarr::open(&output).unwrap();
    assert_eq!(store.info().content, OmeZarr::open(at("mask.ome.zarr")).unwrap().info().content);
    assert!(store.info().content.classes().iter().any(|class| class.name == "tumour"));
    assert_halved(&levels_of(&output), Reduction::Mode, &[]);
    let near = |found: Translation, x: f64, y: f64| (found.x - x).abs() < 1e-9 && (found.y - y).abs() < 1e-9;
    assert!(near(store.info().levels[0].translation, 100.25, 50.0), "{:?}", store.info().levels);
    assert!(near(store.info().levels[1].translation, 100.5, 50.25), "{:?}", store.info().levels);

    // A part of the part.
    let rect = Rect::new(8, 6, 20, 20);
    let part = at("part.ome.zarr");
    converted(mask.as_ref(), &changed(|o| o.rect = Some(rect)), &part);
    let found = OmeZarr::open(&part).unwrap().info().levels[0].translation;
    assert!(near(found, 104.25, 53.0), "{found:?}");

    let mean = changed(|o| o.reduction = Some(Reduction::Mean));
    let error = convert(mask.as_ref(), &at("mean.ome.zarr"), &mean, Existing::Keep, &Silent).unwrap_err();
    assert!(matches!(&error, Error::Usage(text) if text.contains("labels")), "{error}");
}

#[test]
fn an_image_is_shown_as_it_was() {
    let folder = tempfile::tempdir().unwrap();
    let size = Size::new(20, 10);
    // Without names, in colours of their own, of 12 bits.
    let channel = |color| Channel { window: Some([10, 4095]), ..Channel::new("", color) };
    let content = Content::Image { channels: vec![channel([255, 128, 0]), channel([0, 255, 128])] };
    let samples = (0..size.area() * 2).map(|i| (i * 20) as u16).collect();
    let finest = StoreLevel::finest(size, None);
    let slide = put(&folder.path().join("a.ome.zarr"), finest, content, &Pixels::from_u16(size, 2, samples));
    let output = folder.path().join("b.ome.zarr");
    converted(slide.as_ref(), &options(), &output);
    let Content::Image { channels } = OmeZarr::open(&output).unwrap().info().content.clone() else { panic!("labels") };
    let expected = [("channel 0", [255, 128, 0]), ("channel 1", [0, 255, 128])];
    assert_eq!(channels, expected.map(|(name, color)| Channel { name: name.into(), ..channel(color) }));

    // White is what is not said.
    let content = Content::Image { channels: vec![Channel::new("", [255; 3]); 3] };
    let pixels = Pixels::filled(size, SampleType::U8, &[7; 3]);
    let path = folder.path().join("c.ome.zarr");
    let slide = put(&path, finest, content, &pixels);
    let output = folder.path().join("d.ome.zarr");
    converted(slide.as_ref(), &options(), &output);
    let colors = |path: &Path| match &OmeZarr::open(path).unwrap().info().content {
        Content::Image { channels } => channels.iter().map(|channel| channel.color).collect::<Vec<_>>(),
        Content::Labels { .. } => panic!("labels"),
    };
    assert_eq!(colors(&output), [[255, 0, 0], [0, 255, 0], [0, 0, 255]]);

    // Labels of several channels are none that could be written as such.
    let root = path.join("zarr.json");
    let text = std::fs::read_to_string(&root).unwrap();
    std::fs::write(&root, text.replace("\"omero\": {", "\"image-label\": {}, \"omero\": {")).unwrap();
    let slide = microtome::io::slide::open(&path, &OpenOptions::default()).unwrap();
    assert_eq!(slide.info().classes, None);
    converted(slide.as_ref(), &options(), &folder.path().join("e.ome.zarr"));
}

#[test]
fn what_travels_with_an_image_of_ours_goes_on_travelling() {
    let folder = tempfile::tempdir().unwrap();
    let mut slide = Claims(
        SyntheticSlide::new(Size::new(100, 80), 5)
            .with_associated("macro", picture_of(70, 33, 1))
            .with_associated("label", picture_of(40, 40, 2))
            .with_associated("Übersicht", picture_of(30, 20, 3)),
        None,
    );
    let mut info = slide.0.info().clone();
    info.objective_power = Some(20.0);
    // As Ventana's is, which shows the whole glass.
    info.associated[0].shows_label = true;
    slide.1 = Some(info);
    let (first, second) = (folder.path().join("first.ome.zarr"), folder.path().join("second.ome.zarr"));
    converted(&slide, &changed(|o| o.label_image = LabelImage::Kept), &first);
    let again = microtome::io::slide::open(&first, &OpenOptions::default()).unwrap();
    assert_eq!(again.info().objective_power, Some(20.0));
    let coarser = folder.path().join("coarser.ome.zarr");
    converted(again.as_ref(), &changed(|o| o.level = Level(1)), &coarser);
    let coarser = microtome::io::slide::open(&coarser, &OpenOptions::default()).unwrap();
    assert_eq!(coarser.info().objective_power, None, "it is that of twice as many pixels");
    // Asked for once more, or the label is left out here.
    let summary = converted(again.as_ref(), &changed(|o| o.encoding.format = Format::V0_4), &second);
    assert_eq!(summary.associated, ["Übersicht"]);
    assert!(levels_of(&second.join("associated/_bersicht")) == levels_of(&first.join("associated/_bersicht")));
    assert!(again.read_associated("macro").unwrap() == picture_of(70, 33, 1));
    assert!(again.read_associated("label").unwrap() == picture_of(40, 40, 2));

    // Labels are stores of their own, and it is said that they stay behind.
    let labels = first.join("labels");
    std::fs::create_dir(&labels).unwrap();
    // Whatever is in there is no matter of the image's.
    std::fs::write(labels.join("zarr.json"), "[").unwrap();
    let again = microtome::io::slide::open(&first, &OpenOptions::default()).unwrap();
    let summary = converted(again.as_ref(), &options(), &folder.path().join("third.ome.zarr"));
    assert!(summary.notes.iter().any(|note| note.contains("labels in the image")), "{:?}", summary.notes);
}

#[test]
fn colours_are_colours_whatever_comes_with_them() {
    let folder = tempfile::tempdir().unwrap();
    let mut tiff = TiffSlide::rgb(&[(50, 40)], |_, x, y, c| (x * 3 + y * 5 + c as u64 * 50) as u16 % 256);
    (tiff.channels, tiff.extra_samples) = (4, vec![0]);
    let slide = opened(&tiff);
    let path = folder.path().join("image.ome.zarr");
    converted(slide.as_ref(), &options(), &path);
    let Content::Image { channels } = OmeZarr::open(&path).unwrap().info().content.clone() else { panic!("labels") };
    let colors = [("red", [255, 0, 0]), ("green", [0, 255, 0]), ("blue", [0, 0, 255]), ("channel 3", [0, 255, 255])];
    assert_eq!(channels, colors.map(|(name, color)| Channel::new(name, color)));
}

#[test]
fn an_image_does_not_take_the_place_of_its_slide() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("image.ome.zarr");
    converted(&SyntheticSlide::new(Size::new(100, 80), 5), &options(), &path);
    let before = files(&path);
    let slide = microtome::io::slide::open(&path, &OpenOptions::default()).unwrap();
    let error = convert(slide.as_ref(), &path, &options(), Existing::Replace, &Silent).unwrap_err();
    assert!(matches!(&error, Error::Usage(text) if text.contains("take the place")), "{error}");
    assert!(files(&path) == before);
    // No folder is made for a name with a slip in it.
    let error = convert(slide.as_ref(), &folder.path().join("no/a.zip"), &options(), Existing::Keep, &Silent);
    assert!(matches!(error, Err(Error::Io { .. })) && !folder.path().join("no").exists(), "{error:?}");
}

#[test]
fn a_mask_of_a_part_lies_where_the_part_lies() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let slide =
        SyntheticSlide::new(Size::new(800, 700), 5).with_mpp(Some(Microns::square(0.25))).with_tissue_everywhere();
    converted(&slide, &changed(|o| o.rect = Some(Rect::new(400, 320, 300, 280))), &at("part.ome.zarr"));
    let part = microtome::io::slide::open(at("part.ome.zarr"), &OpenOptions::default()).unwrap();
    let model = FunctionModel::new(Size::new(24, 24), &[20.5, 60.5]);
    let mut settings = settings();
    settings.model_mpp = Some(TargetResolution::Mpp(0.5));
    let segment = |settings: &Settings, name: &str| {
        let segmenter = Segmenter::new(&model, settings.clone()).unwrap();
        match segmenter.segment(part.as_ref(), &at(name), Existing::Keep, &Silent).unwrap_or_else(|e| panic!("{e}")) {
            Outcome::Done(summary) => *summary,
            Outcome::AlreadyDone { .. } => panic!("done already"),
        }
    };
    segment(&settings, "mask.ome.zarr");
    let found = OmeZarr::open(at("mask.ome.zarr")).unwrap().info().levels[0].translation;
    // From the centre of the part's first pixel to that of a square of four.
    let near = |a: f64, b: f64| (a - b).abs() < 1e-9;
    assert!(near(found.x, 100.0 + 0.125) && near(found.y, 80.0 + 0.125), "{found:?}");

    // And that is where it is looked for as a region.
    settings.roi = Some(RoiSource { path: at("mask.ome.zarr"), values: vec!["1".into(), "2".into()] });
    let again = segment(&settings, "again.ome.zarr");
    assert!(again.region.pixels > 0, "{:?}", again.region);

    // One of another part lies elsewhere, also where its coordinates begin at 0.
    converted(&slide, &changed(|o| o.rect = Some(Rect::new(0, 0, 300, 280))), &at("first.ome.zarr"));
    let first = microtome::io::slide::open(at("first.ome.zarr"), &OpenOptions::default()).unwrap();
    let native = with(&settings, |s| (s.roi, s.model_mpp) = (None, Some(TargetResolution::Native)));
    let segmenter = Segmenter::new(&model, native).unwrap();
    segmenter.segment(first.as_ref(), &at("other.ome.zarr"), Existing::Keep, &Silent).unwrap();
    settings.roi = Some(RoiSource { path: at("other.ome.zarr"), values: vec!["1".into(), "2".into()] });
    let elsewhere = Segmenter::new(&model, settings).unwrap();
    let refused = elsewhere.segment(part.as_ref(), &at("no.ome.zarr"), Existing::Keep, &Silent);
    assert!(matches!(refused, Err(Error::Region { .. })), "{refused:?}");
}
