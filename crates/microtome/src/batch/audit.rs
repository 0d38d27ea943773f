//! Is an archive fit to be run over? Looked at before, slide by slide.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use microtome_io::slide::{self, OpenOptions, SlideReader};
use microtome_io::{Level, Rect, Size};
use rayon::prelude::*;
use serde::Serialize;

use super::files;
use super::manifest::{Entry, Manifest, Source};
use super::{Watcher, discretion};
use crate::progress::Silent;
use crate::{Bytes, Error, Result, Segmenter};

/// How far the resolution may be from what the objective's magnification says (10 micrometres divided by it), as a factor, before that is a conflict:
/// scanners' cameras differ by a quarter, lenses by halves.
const OBJECTIVE: f64 = 1.5;
/// How far it may be from the archive's median, as a factor, before it is an outlier.
const OUTLIER: f64 = 1.25;
/// How far the two axes may be apart, as a factor.
const SQUARE: f64 = 1.02;
/// What microscopes make, in micrometres per pixel.
const PLAUSIBLE: std::ops::RangeInclusive<f64> = 0.05..=10.0;

/// How an archive is looked at.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct AuditOptions {
    /// How slides are opened.
    pub open: OpenOptions,
    /// Stored tiles that are decoded of each slide, spread evenly over all levels; `None`: all.
    pub sample: Option<u64>,
    /// Threads that decode; `None`: one per core.
    pub threads: Option<usize>,
    /// By what hours are reckoned.
    pub speed: Option<Speed>,
}

impl Default for AuditOptions {
    /// 64 tiles of each slide; hours are not reckoned.
    fn default() -> Self {
        Self { open: OpenOptions::default(), sample: Some(64), threads: None, speed: None }
    }
}

/// By what hours are reckoned.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Speed {
    /// Megapixels of level 0 per second.
    Pixels(f64),
    /// Seconds for a tile of the model.
    Tile(f64),
}

/// What was found of a slide.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Audited {
    /// Its line of the manifest.
    pub line: u64,
    /// Its id.
    pub id: String,
    /// Its format; `None` if it cannot be opened.
    pub format: Option<String>,
    /// Bytes of its files.
    pub bytes: Option<u64>,
    /// Pixels of level 0.
    pub size: Option<Size>,
    /// Micrometres per pixel along x that a run would go by: the manifest's word before the slide's.
    pub mpp_x: Option<f64>,
    /// The same along y.
    pub mpp_y: Option<f64>,
    /// Who says so.
    pub mpp_source: Option<String>,
    /// Nominal magnification of the objective.
    pub objective_power: Option<f64>,
    /// Stored tiles that were decoded.
    pub tiles_tried: u64,
    /// Of these, those that could not be.
    pub tiles_unreadable: u64,
    /// The cheap identity of its content.
    pub content_id: Option<String>,
    /// Another slide of the manifest with the same content, byte for byte.
    pub duplicate_of: Option<String>,
    /// Hours that the model will take for it at most, if all of it is tissue.
    pub hours: Option<f64>,
    /// A sentence for each thing that is wrong, without names of files.
    pub findings: Vec<String>,
}

/// What was found of an archive.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Audit {
    /// One for each slide, in the order of the manifest.
    pub slides: Vec<Audited>,
    /// By what hours were reckoned.
    pub speed: Option<Speed>,
    /// The median of the resolutions, in micrometres per pixel.
    pub median_mpp: Option<f64>,
}

/// Looks at every slide of a manifest: where resolutions come from, which contradict each other or stand out, whether tiles can be decoded, which
/// slides are there twice, and what it will all take.
///
/// With a segmenter, its plan for each slide counts the tiles, and `None` of [`AuditOptions::speed`] is replaced by what a batch of tiles of the
/// first slide takes that can be read.
///
/// Memory: a decoded tile per thread; with a segmenter, while the batch is measured, its budget.
///
/// # Errors
/// [`Error::Interrupted`] if the watcher wants to stop, [`Error::Usage`] for no threads. What is wrong with slides is in the audit.
pub fn audit(
    manifest: &Manifest,
    segmenter: Option<&Segmenter<'_>>,
    options: &AuditOptions,
    watcher: &dyn Watcher,
) -> Result<Audit> {
    if options.threads == Some(0) {
        return Err(Error::Usage("0 threads do nothing".into()));
    }
    let pool = rayon::ThreadPoolBuilder::new().num_threads(options.threads.unwrap_or(0)).build();
    let pool = pool.map_err(|error| Error::Usage(format!("threads cannot be started: {error}")))?;
    let mut speed = options.speed;
    let mut slides = Vec::new();
    for entry in manifest.entries() {
        if watcher.cancelled() {
            return Err(Error::Interrupted);
        }
        let _observer = watcher.begins(entry);
        let mut found = Audited { line: entry.line, id: entry.id.clone(), ..Audited::default() };
        if let Err(error) = look(entry, segmenter, options, &pool, &mut speed, (watcher, manifest.path()), &mut found) {
            if watcher.cancelled() {
                return Err(Error::Interrupted);
            }
            found.findings.push(discretion::without_names(&error.to_string(), entry, manifest.path(), None));
        }
        slides.push(found);
    }
    let mut audit = Audit { slides, speed, median_mpp: None };
    audit.outliers();
    audit.duplicates(manifest, watcher)?;
    Ok(audit)
}

fn look(
    entry: &Entry,
    segmenter: Option<&Segmenter<'_>>,
    options: &AuditOptions,
    pool: &rayon::ThreadPool,
    speed: &mut Option<Speed>,
    (watcher, home): (&dyn Watcher, &Path),
    found: &mut Audited,
) -> Result<()> {
    let (path, bytes) = match &entry.slide {
        Source::File(path) => (path.as_path(), files::bytes_of(path).ok()),
        Source::Url(url) => (Path::new(url), entry.bytes),
    };
    let slide = slide::open(path, &options.open).map_err(Error::Read)?;
    let info = slide.info();
    found.bytes = bytes;
    found.format = Some(info.format.clone());
    found.size = Some(info.size());
    found.objective_power = info.objective_power;
    resolution(entry, slide.as_ref(), found);
    if let Some(level) = entry.level.filter(|level| *level >= info.levels.len()) {
        found.findings.push(format!("the manifest asks for level {level}, and there are {}", info.levels.len()));
    }
    if entry.roi.as_deref().is_some_and(|roi| !roi.exists()) {
        found.findings.push("the region of the manifest is not there".into());
    }
    found.content_id = Some(slide.content_id().map_err(Error::Read)?);
    let fault = pool.install(|| decode(slide.as_ref(), options.sample, watcher, found))?;
    found.findings.extend(fault.map(|fault| discretion::without_names(&fault, entry, home, None)));
    if let Some(segmenter) = segmenter {
        let mut settings = segmenter.settings().clone();
        settings.mpp = entry.mpp.or(settings.mpp);
        if let Some(level) = entry.level {
            settings.model_mpp = Some(microtome_tile::TargetResolution::Level(Level(level)));
        }
        let segmenter = segmenter.with(settings)?;
        let plan = segmenter.plan(slide.as_ref())?;
        let speed = if let Some(speed) = *speed {
            speed
        } else {
            let forecast = segmenter.forecast(slide.as_ref(), &Silent)?;
            let tiles = forecast.tiles.run + forecast.tiles.repeated;
            let seconds = forecast.seconds.map_or(0.0, |time| time.reading.max(time.inference));
            if tiles == 0 {
                return Ok(());
            }
            *speed.insert(Speed::Tile(seconds / tiles as f64))
        };
        found.hours = Some(match speed {
            Speed::Tile(seconds) => plan.tiles as f64 * seconds / 3600.0,
            Speed::Pixels(rate) => info.size().area() as f64 / 1e6 / rate / 3600.0,
        });
    } else if let Some(Speed::Pixels(rate)) = *speed {
        found.hours = Some(info.size().area() as f64 / 1e6 / rate / 3600.0);
    }
    Ok(())
}

/// Where the resolution comes from, and what contradicts it.
fn resolution(entry: &Entry, slide: &dyn SlideReader, found: &mut Audited) {
    let own = slide.info().resolution.as_ref();
    match (entry.mpp, own) {
        (Some(mpp), own) if own.is_none_or(|own| own.mpp.x != mpp || own.mpp.y != mpp) => {
            (found.mpp_x, found.mpp_y) = (Some(mpp), Some(mpp));
            found.mpp_source = Some("manifest".into());
            if let Some(own) = own.filter(|own| ratio(own.mpp.x, mpp) > SQUARE || ratio(own.mpp.y, mpp) > SQUARE) {
                let (x, y) = (own.mpp.x, own.mpp.y);
                found
                    .findings
                    .push(format!("the manifest says {mpp} um per pixel, the slide {x} x {y} ({})", own.source));
            }
        }
        (_, Some(own)) => {
            (found.mpp_x, found.mpp_y) = (Some(own.mpp.x), Some(own.mpp.y));
            found.mpp_source = Some(own.source.to_string());
        }
        (_, None) => found.findings.push("its resolution is not known: neither slide nor manifest says it".into()),
    }
    let (Some(x), Some(y)) = (found.mpp_x, found.mpp_y) else { return };
    if ratio(x, y) > SQUARE {
        found.findings.push(format!("its pixels are not square: {x} x {y} um"));
    }
    if !PLAUSIBLE.contains(&x) || !PLAUSIBLE.contains(&y) {
        found.findings.push(format!("{x} x {y} um per pixel is not what microscopes make"));
    }
    if let Some(power) = found.objective_power.filter(|power| *power > 0.0) {
        let nominal = 10.0 / power;
        if ratio(x, nominal) > OBJECTIVE {
            found.findings.push(format!("{x} um per pixel, and an objective of {power}x, which has about {nominal}"));
        }
    }
}

fn ratio(a: f64, b: f64) -> f64 {
    (a / b).max(b / a)
}

/// Decodes tiles, counts those that cannot be, and says why the first of them cannot.
fn decode(
    slide: &dyn SlideReader,
    sample: Option<u64>,
    watcher: &dyn Watcher,
    found: &mut Audited,
) -> Result<Option<String>> {
    slide.keep_decoded(0);
    let info = slide.info();
    let mut tiles: Vec<(Level, Rect)> = Vec::new();
    let stored = (0..info.levels.len()).filter(|&level| info.levels[level].stored).map(Level);
    let mut all = 0_u64;
    for level in stored.clone() {
        all += slide.tiles(level).map_err(Error::Read)?.count() as u64;
    }
    // Every so many-th tile of all levels together, from the middle of the first stretch on.
    let wanted = sample.unwrap_or(all).min(all);
    let is_wanted = |number: u64| wanted > 0 && number * wanted / all != (number + 1) * wanted / all;
    let mut number = 0;
    for level in stored {
        let bounds = info.level(level).map_err(Error::Read)?.size.rect();
        for tile in slide.tiles(level).map_err(Error::Read)? {
            if is_wanted(number)
                && let Some(tile) = tile.intersect(bounds)
            {
                tiles.push((level, tile));
            }
            number += 1;
        }
    }
    let faults: Vec<String> = tiles
        .par_iter()
        .filter_map(|(level, tile)| {
            if watcher.cancelled() {
                return None;
            }
            // A pixel is enough: a tile is decoded as a whole.
            let middle = Rect::new(tile.x + tile.width as i64 / 2, tile.y + tile.height as i64 / 2, 1, 1);
            match slide.read_region(*level, middle) {
                Ok(_) => None,
                Err(error) => Some(clause(&error)),
            }
        })
        .collect();
    if watcher.cancelled() {
        return Err(Error::Interrupted);
    }
    found.tiles_tried = tiles.len() as u64;
    found.tiles_unreadable = faults.len() as u64;
    let share = format!("{} of {} tiles that were tried cannot be read", faults.len(), tiles.len());
    Ok(faults.first().map(|first| format!("{share}, the first: {first}")))
}

/// What an error says, without the file.
fn clause(error: &microtome_io::Error) -> String {
    use microtome_io::Error as E;
    match error {
        E::Tile { level, tile, message, .. } => format!("level {level}, {tile}: {message}"),
        E::Format { message, .. }
        | E::Unsupported { message, .. }
        | E::Limits { message, .. }
        | E::Usage { message, .. } => message.clone(),
        E::Io { source, .. } => source.to_string(),
        _ => "it cannot be read".into(),
    }
}

impl Audit {
    /// Slides whose resolution is not the usual one.
    fn outliers(&mut self) {
        let mut all: Vec<f64> = self.slides.iter().filter_map(|slide| slide.mpp_x).collect();
        all.sort_by(f64::total_cmp);
        let Some(&median) = all.get(all.len() / 2) else { return };
        self.median_mpp = Some(median);
        for slide in &mut self.slides {
            if let Some(mpp) = slide.mpp_x.filter(|mpp| ratio(*mpp, median) > OUTLIER) {
                slide.findings.push(format!("{mpp} um per pixel, where half of the archive has at most {median}"));
            }
        }
    }

    /// Slides with the same cheap identity are compared by the digest of all their bytes.
    fn duplicates(&mut self, manifest: &Manifest, watcher: &dyn Watcher) -> Result<()> {
        let mut alike: BTreeMap<String, Vec<usize>> = BTreeMap::new();
        for (number, slide) in self.slides.iter().enumerate() {
            if let Some(id) = &slide.content_id {
                alike.entry(id.clone()).or_default().push(number);
            }
        }
        for group in alike.values().filter(|group| group.len() > 1) {
            let mut first: BTreeMap<String, usize> = BTreeMap::new();
            for &number in group {
                if watcher.cancelled() {
                    return Err(Error::Interrupted);
                }
                let Source::File(path) = &manifest.entries()[number].slide else { continue };
                let Ok(digest) = files::digest_of(path) else { continue };
                match first.get(&digest) {
                    None => {
                        first.insert(digest, number);
                    }
                    Some(&other) => {
                        let other = self.slides[other].id.clone();
                        self.slides[number].findings.push(format!("has the same bytes as {other}"));
                        self.slides[number].duplicate_of = Some(other);
                    }
                }
            }
        }
        Ok(())
    }

    /// True if nothing is wrong with any slide.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.slides.iter().all(|slide| slide.findings.is_empty())
    }

    /// The code that a program should exit with: 0; 3 where something was found; 4 where no slide can be opened.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self.slides.iter().filter(|slide| slide.format.is_some()).count() {
            0 => 4,
            _ if self.is_clean() => 0,
            _ => 3,
        }
    }

    /// Bytes of all slides.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.slides.iter().filter_map(|slide| slide.bytes).sum()
    }

    /// Hours for all slides; `None` where they are known of none.
    #[must_use]
    pub fn hours(&self) -> Option<f64> {
        let known: Vec<f64> = self.slides.iter().filter_map(|slide| slide.hours).collect();
        (!known.is_empty()).then(|| known.iter().sum())
    }

    /// The audit as CSV, a line for each slide.
    #[must_use]
    pub fn csv(&self) -> Vec<u8> {
        let mut writer = csv::Writer::from_writer(Vec::new());
        let number = |number: Option<f64>| number.map_or_else(String::new, |n| n.to_string());
        let whole = |number: Option<u64>| number.map_or_else(String::new, |n| n.to_string());
        let mut write = |record: &[String]| {
            // Memory takes whatever is written to it.
            let written = writer.write_record(record);
            debug_assert!(written.is_ok(), "{written:?}");
        };
        let titles = [
            "line",
            "id",
            "format",
            "bytes",
            "width_px",
            "height_px",
            "mpp_x_um",
            "mpp_y_um",
            "mpp_source",
            "objective_power",
            "tiles_tried",
            "tiles_unreadable",
            "content_id",
            "duplicate_of",
            "hours",
            "findings",
        ];
        write(&titles.map(str::to_owned));
        for slide in &self.slides {
            write(&[
                slide.line.to_string(),
                slide.id.clone(),
                slide.format.clone().unwrap_or_default(),
                whole(slide.bytes),
                whole(slide.size.map(|size| size.width)),
                whole(slide.size.map(|size| size.height)),
                number(slide.mpp_x),
                number(slide.mpp_y),
                slide.mpp_source.clone().unwrap_or_default(),
                number(slide.objective_power),
                slide.tiles_tried.to_string(),
                slide.tiles_unreadable.to_string(),
                slide.content_id.clone().unwrap_or_default(),
                slide.duplicate_of.clone().unwrap_or_default(),
                number(slide.hours),
                slide.findings.join("; "),
            ]);
        }
        writer.into_inner().unwrap_or_default()
    }
}

impl fmt::Display for Audit {
    /// A line for each slide, each of its findings below it, and a line for all.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = self.slides.iter().map(|slide| slide.id.chars().count()).max().unwrap_or(0).max(2);
        writeln!(
            f,
            "{:<width$}  {:<14}  {:>15}  {:>10}  {:>8}  {:<20}  {:>13}  {:>7}",
            "id", "format", "pixels", "size", "um", "from", "tiles", "hours"
        )?;
        for slide in &self.slides {
            let size = slide.size.map_or_else(|| "-".into(), |size| format!("{}x{}", size.width, size.height));
            writeln!(
                f,
                "{:<width$}  {:<14}  {size:>15}  {:>10}  {:>8}  {:<20}  {:>13}  {:>7}",
                slide.id,
                slide.format.as_deref().unwrap_or("-"),
                slide.bytes.map_or_else(|| "-".into(), |bytes| Bytes(bytes).to_string()),
                slide.mpp_x.map_or_else(|| "unknown".into(), |mpp| format!("{mpp:.4}")),
                slide.mpp_source.as_deref().unwrap_or("-"),
                format!("{} of {} bad", slide.tiles_unreadable, slide.tiles_tried),
                slide.hours.map_or_else(|| "-".into(), |hours| format!("{hours:.2}")),
            )?;
            for finding in &slide.findings {
                writeln!(f, "{:width$}  ! {finding}", "")?;
            }
        }
        let bad = self.slides.iter().filter(|slide| !slide.findings.is_empty()).count();
        write!(f, "{} slides, {}, {bad} with findings", self.slides.len(), Bytes(self.bytes()))?;
        match (self.hours(), self.speed) {
            (Some(hours), Some(Speed::Tile(seconds))) => {
                write!(f, ", at most {hours:.2} hours, at {seconds:.3} s for a tile, as measured")
            }
            (Some(hours), Some(Speed::Pixels(rate))) => write!(f, ", {hours:.2} hours, at {rate} Mpx/s as stated"),
            _ => Ok(()),
        }
    }
}
