//! Every TIFF at hand is read right, as tifffile reads it, or refused with a sentence. Which of the two, file by file, is
//! `docs/formats-corpus.md`, which this test writes if `MICROTOME_BLESS=1` is set, and compares otherwise.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::{Path, PathBuf};

use microtome_io::slide::{SlideReader, open};
use microtome_io::{Error, Level, Rect};
use serde::Deserialize;

use crate::jpeg2000::python;
use crate::robustness::{files_below, options};

const FOLDERS: [&str; 5] = ["slides/generic-tiff", "slides/svs", "slides/broken", "tiff", "codec"];

const HEAD: &str = "\
# TIFFs at hand

Each file was read by microtome and by tifffile (plain pictures: by Pillow), all levels of it, or refused with a sentence.
`exact` means that no sample differs; otherwise the largest and the mean difference of samples are given, in levels of 255 or 65535.
Bounds that the test holds: lossless coding and JPEG exact; JPEG 2000 and WebP within 1 level, 0.05 in the mean.

The table is made by `MICROTOME_BLESS=1 cargo nextest run -p microtome-io -E 'test(every_tiff_at_hand)'`, with `MICROTOME_PYTHON` naming an
interpreter that has tifffile and imagecodecs.

| file | stored as | format | result |
|---|---|---|---|
";

/// What the script says of a file.
#[derive(Debug, Deserialize)]
struct Reference {
    stored: String,
    /// True for codings whose decoders do not all give the same samples.
    decoders_differ: bool,
    /// Why a level could not be read.
    levels: Vec<Option<String>>,
}

/// The largest difference, the sum of them all, and the number of samples.
#[derive(Default)]
struct Difference {
    max: u16,
    sum: u64,
    samples: u64,
}

impl Difference {
    fn add(&mut self, a: u16, b: u16) {
        self.max = self.max.max(a.abs_diff(b));
        self.sum += u64::from(a.abs_diff(b));
        self.samples += 1;
    }

    fn mean(&self) -> f64 {
        self.sum as f64 / self.samples.max(1) as f64
    }
}

/// Compares all levels, band by band; `Err` with what cannot be decoded.
fn compare(slide: &dyn SlideReader, folder: &Path, number: usize) -> Result<Difference, Error> {
    let info = slide.info();
    let mut difference = Difference::default();
    for (level, at) in info.levels.iter().enumerate() {
        let path = folder.join(format!("{number}-{level}.raw"));
        let theirs = std::fs::read(&path);
        let row = at.size.width as usize * info.channels * info.sample.bytes();
        for y in (0..at.size.height).step_by(256) {
            let height = (at.size.height - y).min(256);
            let ours = slide.read_region(Level(level), Rect::new(0, y as i64, at.size.width, height))?;
            let Ok(theirs) = &theirs else { continue };
            assert_eq!(theirs.len(), row * at.size.height as usize, "{}", info.path.display());
            let theirs = &theirs[row * y as usize..row * (y + height) as usize];
            match ours.samples() {
                microtome_io::Samples::U8(ours) => {
                    ours.iter().zip(theirs).for_each(|(&a, &b)| difference.add(a.into(), b.into()));
                }
                microtome_io::Samples::U16(ours) => {
                    let theirs = theirs.chunks_exact(2).map(|pair| u16::from_le_bytes([pair[0], pair[1]]));
                    ours.iter().zip(theirs).for_each(|(&a, b)| difference.add(a, b));
                }
            }
        }
    }
    Ok(difference)
}

/// An error as it reads on every machine: without the path, and without what else can be read.
fn sentence(error: &Error, path: &Path) -> String {
    let line = error.to_string();
    assert!(!matches!(error, Error::Usage { .. }) && !line.contains('\n'), "{line}");
    let line = line.strip_prefix(&path.display().to_string()).unwrap_or(&line).trim_start_matches(':').trim();
    let line = line.split("; it reads").next().unwrap_or(line);
    line.replace('|', "\\|")
}

/// What came of one file.
struct Outcome {
    /// Below the folder that was looked through.
    name: String,
    stored: String,
    format: String,
    /// How far its samples are off, or why there are none.
    result: Result<String, String>,
    /// It opened, but could not be decoded.
    opened: bool,
}

/// Opens all files, reads all levels, and compares them with what the script reads; `None` where there is no interpreter.
///
/// # Panics
/// If a file is neither read within the bounds nor refused.
fn check(base: &Path, mut files: Vec<PathBuf>) -> Option<Vec<Outcome>> {
    files.sort();
    let opened: Vec<_> = files.iter().map(|path| open(path, &options())).collect();
    let sizes = |slide: &dyn SlideReader| -> Vec<[u64; 2]> {
        slide.info().levels.iter().map(|level| [level.size.width, level.size.height]).collect()
    };
    let request: serde_json::Map<String, serde_json::Value> = files
        .iter()
        .zip(&opened)
        .map(|(path, slide)| {
            let sizes = slide.as_ref().map(|slide| sizes(&**slide)).unwrap_or_default();
            (path.to_str().unwrap().to_owned(), serde_json::to_value(sizes).unwrap())
        })
        .collect();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("request.json");
    std::fs::write(&path, serde_json::to_string(&request).unwrap()).unwrap();
    let answer = python("tifffile_pixels.py", &[&path, folder.path()])?;
    let mut answer: BTreeMap<String, Reference> = serde_json::from_slice(&answer).unwrap();
    let (mut outcomes, mut wrong) = (Vec::new(), Vec::new());
    for (number, (path, slide)) in request.keys().zip(&opened).enumerate() {
        let reference = answer.remove(path).unwrap();
        let path = Path::new(path);
        let (format, result) = match slide {
            Err(error) => ("-".to_owned(), Err(sentence(error, path))),
            Ok(slide) => {
                let result = compare(&**slide, folder.path(), number).map_err(|error| sentence(&error, path));
                (slide.info().format.clone(), result.map(|found| judge(path, &reference, &found, &mut wrong)))
            }
        };
        let name = path.strip_prefix(base).unwrap().display().to_string();
        outcomes.push(Outcome { name, stored: reference.stored, format, result, opened: slide.is_ok() });
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    Some(outcomes)
}

/// Says how far a file is off, and notes it if that is too far.
fn judge(path: &Path, reference: &Reference, found: &Difference, wrong: &mut Vec<String>) -> String {
    let (max, mean) = if reference.decoders_differ { (1, 0.05) } else { (0, 0.0) };
    let failed: Vec<_> = reference.levels.iter().flatten().collect();
    if !failed.is_empty() {
        wrong.push(format!("{}: tifffile cannot read it: {failed:?}", path.display()));
    }
    let text = match found.max {
        0 => "exact".to_owned(),
        max => format!("max {max}, mean {:.3}", found.mean()),
    };
    if found.max > max || found.mean() > mean {
        wrong.push(format!("{}: {text}", path.display()));
    }
    text
}

#[test]
fn every_tiff_at_hand_is_read_right_or_refused() {
    let Some(data) = microtome_testkit::assets::data() else { return };
    let mut files: Vec<PathBuf> = Vec::new();
    for folder in FOLDERS {
        files_below(&data.join(folder), &mut files);
    }
    // Streams without a container, and what is no picture, are for other tests.
    files.retain(|path| {
        let extension = path.extension().map(|e| e.to_string_lossy().to_lowercase()).unwrap_or_default();
        matches!(extension.as_str(), "tif" | "tiff" | "svs")
            || (extension == "jpg" && path.starts_with(data.join("tiff")))
    });
    let Some(outcomes) = check(&data, files) else { return };
    let mut table = HEAD.to_owned();
    for Outcome { name, stored, format, result, .. } in &outcomes {
        let result = result.as_ref().map_or_else(|why| format!("refused: {why}"), String::clone);
        writeln!(table, "| {name} | {stored} | {format} | {result} |").unwrap();
    }
    let refused = outcomes.iter().filter(|outcome| outcome.result.is_err()).count();
    let late = outcomes.iter().filter(|outcome| outcome.result.is_err() && outcome.opened).count();
    let read = outcomes.len() - refused;
    writeln!(table, "\n{read} files are read, {refused} refused, {late} of these when a tile is to be decoded.")
        .unwrap();

    let committed = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/formats-corpus.md");
    if std::env::var_os("MICROTOME_BLESS").is_some() {
        std::fs::write(&committed, &table).unwrap();
    } else {
        let before = std::fs::read_to_string(&committed).unwrap_or_default();
        let changed: Vec<_> = table.lines().filter(|line| !before.lines().any(|old| old == *line)).collect();
        assert!(before == table, "docs/formats-corpus.md is out of date (MICROTOME_BLESS=1 writes it): {changed:#?}");
    }
}

#[test]
fn what_tifffile_writes_is_read_right_or_refused() {
    let folder = tempfile::tempdir().unwrap();
    if python("tiff_variants.py", &[folder.path()]).is_none() {
        return;
    }
    let mut files = Vec::new();
    files_below(folder.path(), &mut files);
    for Outcome { name, stored, result, .. } in check(folder.path(), files).unwrap() {
        eprintln!("{name}: {stored}: {result:?}");
        assert_eq!(result.is_err(), name.ends_with("-refused.tif"), "{name}: {stored}: {result:?}");
    }
}
