//! Hostile and damaged files: an error or pixels, never a panic, never a wait, never more memory than the limits say.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use microtome_io::bytes::Memory;
use microtome_io::slide::{Limits, OpenOptions, SlideReader, open, open_bytes};
use microtome_io::{Error, Level, Rect, Result};
use microtome_testkit::assets;

/// Files that are to be looked at take no longer than this each; most take milliseconds.
const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) fn options() -> OpenOptions {
    let mut limits = Limits::default();
    limits.decoded_bytes = 256 << 20;
    limits.table_bytes = 16 << 20;
    OpenOptions::default().limits(limits).cache_bytes(1 << 20)
}

/// Reads the corners, the middle and the outside of each level, and all associated images.
fn read_all(slide: &dyn SlideReader) -> Result<()> {
    let mut outcome = Ok(());
    let mut note = |result: Result<_>| {
        if let (Err(error), Ok(())) = (result.map(drop), &outcome) {
            outcome = Err(error);
        }
    };
    for (level, info) in slide.info().levels.iter().enumerate() {
        let (right, bottom) = (info.size.width as i64, info.size.height as i64);
        for (x, y) in [(0, 0), (right - 70, bottom - 70), (right / 2, bottom / 2), (-30, -30), (right, bottom)] {
            note(slide.read_region(Level(level), Rect::new(x, y, 100, 100)));
        }
    }
    for associated in &slide.info().associated {
        note(slide.read_associated(&associated.name));
    }
    outcome
}

pub(crate) fn files_below(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { files_below(&path, found) } else { found.push(path) }
    }
    found.sort();
}

#[test]
fn every_file_opens_and_reads_or_is_refused() {
    let Some(data) = assets::data() else { return };
    for folder in ["slides", "fuzz", "tiff", "pictures", "codec"] {
        let mut files = Vec::new();
        files_below(&data.join(folder), &mut files);
        let (mut read, mut unreadable, mut refused) = (0, 0, 0);
        for path in &files {
            let start = Instant::now();
            match open(path, &options()) {
                Ok(slide) => match read_all(&*slide) {
                    Ok(()) => read += 1,
                    Err(error) => {
                        assert!(!matches!(error, Error::Usage { .. }), "{error}");
                        unreadable += 1;
                    }
                },
                Err(_) => refused += 1,
            }
            assert!(start.elapsed() < PATIENCE, "{} took {:?}", path.display(), start.elapsed());
        }
        eprintln!(
            "{folder}: {} files, {read} read, {unreadable} opened but had parts that could not be read, {refused} refused",
            files.len()
        );
    }
}

/// The most memory that the process took, in KiB.
fn peak() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|line| line.trim().split(' ').next()?.parse().ok()).unwrap_or_default()
}

#[test]
fn crashers_of_other_readers_are_harmless() {
    let Some(data) = assets::data() else { return };
    let mut limits = Limits::default();
    limits.decoded_bytes = 64 << 20;
    limits.table_bytes = 1 << 20;
    let options = OpenOptions::default().limits(limits).cache_bytes(1 << 20);
    let mut files = Vec::new();
    files_below(&data.join("fuzz/image-tiff-fuzz"), &mut files);
    files_below(&data.join("slides/broken"), &mut files);
    assert!(files.len() > 130);
    let (before, mut slowest) = (peak(), Duration::ZERO);
    for path in &files {
        let start = Instant::now();
        if let Ok(slide) = open(path, &options) {
            // An error is as good as pixels.
            let _ = read_all(&*slide);
        }
        slowest = slowest.max(start.elapsed());
        assert!(start.elapsed() < Duration::from_secs(2), "{} took {:?}", path.display(), start.elapsed());
    }
    eprintln!("slowest {slowest:?}, memory from {before} to {} KiB", peak());
    // A decoded piece, its samples in a wider type or laid over white, on each of a few threads at most.
    assert!(peak() - before < 512 << 10, "memory went from {before} to {} KiB", peak());
}

#[test]
fn a_truncated_slide_gives_errors_or_the_right_pixels() {
    let Some(path) = assets::cmu_small_region() else { return };
    let whole = std::fs::read(path).unwrap();
    let slide = |length: usize| {
        let source = Arc::new(Memory::new("truncated.svs", whole[..length].to_vec()));
        open_bytes(source, &options())
    };
    let rect = Rect::new(900, 1200, 500, 500);
    let reference = slide(whole.len()).unwrap().read_region(Level(0), rect).unwrap();
    let (mut refused, mut failed, mut right) = (0, 0, 0);
    let lengths = (0..64).chain((64..whole.len()).step_by(whole.len() / 97)).chain([whole.len() - 1]);
    for length in lengths {
        match slide(length).and_then(|slide| slide.read_region(Level(0), rect)) {
            Ok(pixels) => {
                assert_eq!(pixels, reference, "cut off at byte {length}");
                right += 1;
            }
            Err(Error::Tile { .. }) => failed += 1,
            Err(_) => refused += 1,
        }
    }
    eprintln!("truncated: {refused} refused, {failed} with tiles that cannot be read, {right} right");
    assert!(refused > 0);
}

#[test]
fn a_damaged_slide_never_panics() {
    let Some(path) = assets::openslide_asset("boxes.tiff") else { return };
    let whole = std::fs::read(path).unwrap();
    let mut read = 0;
    for at in 0..whole.len() {
        let mut bytes = whole.clone();
        bytes[at] ^= 1 << (at % 8);
        let source = Arc::new(Memory::new("damaged.tif", bytes));
        read += u32::from(open_bytes(source, &options()).and_then(|slide| read_all(&*slide)).is_ok());
    }
    eprintln!("damaged: of {} files with one wrong bit, {read} could be read", whole.len());
}

#[test]
fn many_threads_read_the_same_pixels() {
    let Some(path) = assets::cmu_small_region() else { return };
    let reference = open(&path, &OpenOptions::default().cache_bytes(0)).unwrap();
    for cache_bytes in [0, 1 << 20, 64 << 20] {
        let slide = open(&path, &OpenOptions::default().cache_bytes(cache_bytes)).unwrap();
        std::thread::scope(|scope| {
            for thread in 0..6_i64 {
                let (slide, reference) = (&*slide, &*reference);
                scope.spawn(move || {
                    for i in 0..6 {
                        let rect = Rect::new(300 * i - 100, 150 * thread, 500, 400);
                        let read = |slide: &dyn SlideReader| slide.read_region(Level(0), rect).unwrap();
                        assert_eq!(read(slide), read(reference));
                    }
                });
            }
        });
    }
}
