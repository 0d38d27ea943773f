//! The whole way from slide to mask, through the public library.
//!
//! Slides and models are formulas of the test kit wherever the answer can be known beforehand; `parity` and `bundled` run
//! the real network.

mod blending;
mod bundled;
mod constant;
mod convert;
mod crop;
mod damage;
mod deepzoom;
mod determinism;
mod devices;
mod ensemble;
mod formats;
mod function;
mod labels;
mod levels;
mod norm_stats;
mod outputs;
mod parity;
mod parts;
mod precision;
mod products;
mod recovery;
mod refusals;
mod regions;
mod report;
mod resampling;
mod resume;
mod seams;
mod specimens;
mod tissue;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use microtome::io::slide::SlideReader;
use microtome::io::store::{ImageSink, MemoryImage, OmeZarr};
use microtome::io::{Level, Pixels, Rect, Samples, Size};
use microtome::unet::Predictor;
use microtome::{Error, Existing, Outcome, Segmenter, Settings, Silent, Summary, TargetResolution, TissueMode};

/// Every tile of level 0 as it is, into shards so small that little pictures have many of them.
fn settings() -> Settings {
    let mut settings = Settings::default();
    settings.model_mpp = Some(TargetResolution::Native);
    settings.tissue = TissueMode::None;
    settings.threads = Some(2);
    // Slides are small here: with larger batches a run would be over before anything could happen to it.
    settings.batch = Some(4);
    settings.chunk = 16;
    settings.shard = 32;
    settings
}

/// The same settings, but for a change.
fn with(settings: &Settings, change: impl FnOnce(&mut Settings)) -> Settings {
    let mut settings = settings.clone();
    change(&mut settings);
    settings
}

/// A run that must succeed, into memory.
fn segment(slide: &dyn SlideReader, model: &dyn Predictor, settings: &Settings) -> (MemoryImage, Summary) {
    let segmenter = Segmenter::new(model, settings.clone()).unwrap();
    segmenter.segment_into(slide, MemoryImage::new, &Silent).unwrap_or_else(|error| panic!("{error}"))
}

/// A run into a store that must succeed and must not have been done before.
fn segment_to(slide: &dyn SlideReader, model: &dyn Predictor, settings: &Settings, output: &Path) -> Summary {
    let segmenter = Segmenter::new(model, settings.clone()).unwrap();
    match segmenter.segment(slide, output, Existing::Keep, &Silent) {
        Ok(Outcome::Done(summary)) => *summary,
        Ok(Outcome::AlreadyDone { .. }) => panic!("{}: done already", output.display()),
        Err(error) => panic!("{error}"),
    }
}

/// The smallest budget that the run may be given: with it a strip is one shard wide.
fn least_memory(slide: &dyn SlideReader, model: &dyn Predictor, settings: &Settings) -> u64 {
    let mut memory = 0;
    // What is needed grows with the budget, of which the slide's cache takes a share.
    loop {
        match Segmenter::new(model, with(settings, |s| s.memory = memory)).unwrap().plan(slide) {
            Ok(_) => return memory,
            Err(Error::Memory { needed, budget, .. }) => {
                assert!(budget == memory && needed > memory, "{needed} bytes needed, {memory} refused");
                memory = needed;
            }
            Err(error) => panic!("{error}"),
        }
    }
}

/// Labels, whatever they are stored as.
fn labels(pixels: &Pixels) -> Vec<u16> {
    assert_eq!(pixels.channels(), 1);
    match pixels.samples() {
        Samples::U8(v) => v.iter().map(|&label| label.into()).collect(),
        Samples::U16(v) => v.clone(),
    }
}

/// All levels of a mask in memory, from the finest.
fn levels_of(mask: &MemoryImage) -> Vec<(Size, Vec<u16>)> {
    (0..mask.image().levels.len())
        .map(|level| {
            let pixels = mask.level(Level(level)).unwrap();
            (pixels.size(), labels(&pixels))
        })
        .collect()
}

/// All levels of a store, from the finest.
fn levels_of_store(path: &Path) -> Vec<(Size, Vec<u16>)> {
    let store = OmeZarr::open(path).unwrap_or_else(|error| panic!("{error}"));
    let sizes: Vec<Size> = store.info().levels.iter().map(|level| level.size).collect();
    let read = |(level, size): (usize, Size)| (size, labels(&store.read_region(Level(level), size.rect()).unwrap()));
    sizes.into_iter().enumerate().map(read).collect()
}

/// What a function of the pixel position is over a picture, row by row.
fn over(size: Size, value: impl Fn(u64, u64) -> u16) -> Vec<u16> {
    (0..size.height).flat_map(|y| (0..size.width).map(move |x| (x, y))).map(|(x, y)| value(x, y)).collect()
}

/// Fails with the first pixel at which two masks differ, instead of printing both.
#[track_caller]
fn assert_same(size: Size, found: &[u16], expected: &[u16], what: impl std::fmt::Display) {
    assert_eq!((found.len() as u64, expected.len() as u64), (size.area(), size.area()), "{what}");
    let differing = found.iter().zip(expected).filter(|(a, b)| a != b).count();
    if let Some(i) = found.iter().zip(expected).position(|(a, b)| a != b) {
        let (x, y) = (i as u64 % size.width, i as u64 / size.width);
        panic!("{what}: {differing} pixels of {size} differ; first at ({x}, {y}): {} for {}", found[i], expected[i]);
    }
}

/// Half the size, each pixel the majority of those under it, by counting: of several that are equally frequent the lowest.
fn majority(size: Size, labels: &[u16]) -> (Size, Vec<u16>) {
    let half = Size::new(size.width.div_ceil(2), size.height.div_ceil(2));
    let vote = |x: u64, y: u64| {
        let mut votes: BTreeMap<u16, u32> = BTreeMap::new();
        for v in (2 * y..2 * y + 2).filter(|&v| v < size.height) {
            for u in (2 * x..2 * x + 2).filter(|&u| u < size.width) {
                *votes.entry(labels[(v * size.width + u) as usize]).or_default() += 1;
            }
        }
        let most = votes.values().max().copied().unwrap();
        *votes.iter().find(|(_, votes)| **votes == most).unwrap().0
    };
    (half, over(half, vote))
}

/// Each level is the majority of the one below, and the last one is as small as a chunk.
#[track_caller]
fn assert_pyramid(levels: &[(Size, Vec<u16>)], chunk: u64, what: impl std::fmt::Display) {
    for (n, pair) in levels.windows(2).enumerate() {
        let (size, expected) = majority(pair[0].0, &pair[0].1);
        assert_eq!(pair[1].0, size, "{what}, level {}", n + 1);
        assert_same(size, &pair[1].1, &expected, format!("{what}, level {}", n + 1));
    }
    let last = levels.last().unwrap().0;
    assert!(last.width.max(last.height) <= chunk, "{what}: the last level has {last} pixels");
}

/// Every file under a folder with its content, by its path from there.
fn files(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut files = BTreeMap::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(next) = folders.pop() {
        for entry in std::fs::read_dir(&next).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                files.insert(path.strip_prefix(folder).unwrap().to_owned(), std::fs::read(&path).unwrap());
            }
        }
    }
    files
}

/// The names in a folder, to see that nothing was left there.
fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

/// The pixels of a rectangle of one channel of a picture file.
fn picture(path: &Path) -> Pixels {
    let slide = microtome::io::slide::open(path, &microtome::io::slide::OpenOptions::default())
        .unwrap_or_else(|error| panic!("{error}"));
    let rect: Rect = slide.info().size().rect();
    slide.read_region(Level::FINEST, rect).unwrap_or_else(|error| panic!("{error}"))
}

/// A file of the repository.
fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(path)
}
