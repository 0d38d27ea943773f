//! One slide of a batch: opened, segmented, reported.

use std::any::Any;
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::Instant;

use microtome_io::Level;
use microtome_io::slide::{self, SlideReader};
use microtome_io::store::OmeZarr;
use microtome_stitch::{Journal, Product};
use microtome_tile::TargetResolution;
use serde_json::{Value, json};

use super::discretion::without_names;
use super::events::{About, Events, What};
use super::folder::{
    Done, Identity, SlideFolder, SlideReport, Stamp, Status, digest, is_finished, json, put, put_json, tidy,
};
use super::lease::Lease;
use super::manifest::{Entry, Source};
use super::stage::{NoCopy, Staged, Staging};
use super::{Batch, By, Identify, Outcome, TRANSIENT, Watcher, clock};
use crate::output::RunFolder;
use crate::preview::{self, PictureFormat, PreviewOptions};
use crate::progress::{Observer, Phase};
use crate::region::RoiSource;
use crate::{Error, Forecast, Result, Settings};

/// A slide that can be worked at; the copy that it is read from goes after it.
#[derive(Debug)]
pub(super) struct Opened<'s> {
    pub(super) slide: Box<dyn SlideReader>,
    _copy: Option<Staged<'s>>,
}

/// Why there is no mask.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) code: u8,
    /// With names of files.
    pub(super) text: String,
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let mut text = error.to_string();
        // Errors that wrap another often say what it says.
        let mut cause = std::error::Error::source(&error);
        while let Some(error) = cause {
            let said = error.to_string();
            if !text.contains(&said) {
                text = format!("{text}: {said}");
            }
            cause = error.source();
        }
        Self { code: code(&error), text: text.replace('\n', " ") }
    }
}

/// The exit code of an error: that of a single run, unless it is the kind that passes.
fn code(error: &Error) -> u8 {
    let cause = match error {
        Error::Read(microtome_io::Error::Io { source, .. })
        | Error::Write(microtome_io::Error::Io { source, .. })
        | Error::Io { source, .. } => Some(source),
        _ => None,
    };
    // Whoever else writes there ends, or its lock does: at another time the place is free.
    let busy = matches!(error, Error::InUse { .. });
    if busy || cause.is_some_and(passes) { TRANSIENT } else { error.exit_code() }
}

/// True for what a network does now and then, and a disk does not.
fn passes(error: &std::io::Error) -> bool {
    use std::io::ErrorKind as K;
    matches!(
        error.kind(),
        K::TimedOut
            | K::ConnectionReset
            | K::ConnectionAborted
            | K::ConnectionRefused
            | K::NotConnected
            | K::BrokenPipe
            | K::HostUnreachable
            | K::NetworkUnreachable
            | K::NetworkDown
            | K::StaleNetworkFileHandle
            | K::ResourceBusy
            | K::WouldBlock
    )
}

fn is_full(error: &std::io::Error) -> bool {
    matches!(error.kind(), std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded)
}

/// What was panicked about.
fn said(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    format!("microtome failed, which is a fault of its own: {}", text.unwrap_or("it panicked"))
}

/// Runs something of one slide's, so that a panic is that slide's failure.
fn guarded<T>(work: impl FnOnce() -> Result<T, Failure>) -> Result<T, Failure> {
    // What a panic leaves half done belongs to the slide alone.
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| Err(Failure { code: 1, text: said(&*panic) }))
}

/// Watches a run, and stops it also where its slide has been taken over.
struct Overseer<'a> {
    inner: Box<dyn Observer + 'a>,
    watcher: &'a dyn Watcher,
    lease: Option<&'a Lease>,
}

impl Observer for Overseer<'_> {
    fn phase(&self, phase: Phase) {
        self.inner.phase(phase);
    }

    fn planned(&self, forecast: &Forecast) {
        self.inner.planned(forecast);
    }

    fn progress(&self, done: u64, total: u64) {
        self.inner.progress(done, total);
    }

    fn cancelled(&self) -> bool {
        self.watcher.cancelled() || self.lease.is_some_and(Lease::is_lost)
    }
}

/// What a run over a slide has given.
struct Made {
    summary: Option<Value>,
    unreadable: u64,
    by: By,
}

impl Batch<'_> {
    /// What is known to change the result before the slide is opened.
    pub(super) fn key(&self, entry: &Entry) -> String {
        let roi = entry.roi.as_deref().map(Stamp::of);
        let decides = (entry.mpp, entry.level, &entry.roi, roi, self.roi_values(entry), &entry.out);
        let opening = (self.options.open.colors, self.options.open.backend);
        digest(&format!("{decides:?} {opening:?} {}", self.segmenter.identity()))
    }

    /// The mark of a slide that is done as this batch would do it.
    pub(super) fn done(&self, entry: &Entry, key: &str) -> Option<Done> {
        let done = Done::read(&self.folder.slide(&entry.id))?;
        (done.holds(entry, key) && is_finished(&self.output(entry))).then_some(done)
    }

    /// The settings of a slide.
    pub(super) fn settings(&self, entry: &Entry, slide: &dyn SlideReader) -> Settings {
        let mut settings = self.segmenter.settings().clone();
        settings.memory /= self.options.jobs as u64;
        // Written down from the slide itself, by `scan`, it is the slide's own word still.
        let own = slide.info().resolution.as_ref().map(|resolution| resolution.mpp);
        if let Some(mpp) = entry.mpp.filter(|mpp| own.is_none_or(|own| own.x != *mpp || own.y != *mpp)) {
            settings.mpp = Some(mpp);
        }
        if let Some(level) = entry.level {
            settings.model_mpp = Some(TargetResolution::Level(Level(level)));
        }
        settings.roi = entry.roi.clone().map(|path| RoiSource { path, values: self.roi_values(entry).to_vec() });
        settings
    }

    /// Which values of its region are wanted.
    fn roi_values<'e>(&'e self, entry: &'e Entry) -> &'e [String] {
        if entry.roi_values.is_empty() { &self.options.roi_values } else { &entry.roi_values }
    }

    /// Opens a slide, of which a copy is made first if so asked. Where the copy is not the slide, because it is made of files that only its
    /// content names, the slide is read where it is.
    pub(super) fn open<'s>(
        &self,
        entry: &Entry,
        staging: Option<&'s Staging>,
        watcher: &dyn Watcher,
    ) -> Result<Opened<'s>, Failure> {
        guarded(|| {
            let open = |path: &Path| slide::open(path, &self.options.open).map_err(Error::Read);
            let place = match &entry.slide {
                Source::File(path) => path.as_path(),
                Source::Url(url) => Path::new(url),
            };
            let Some(staging) = staging else { return Ok(Opened { slide: open(place)?, _copy: None }) };
            // What is copied from afar is one object, and so is its copy.
            let in_place = matches!(entry.slide, Source::File(_)).then(|| open(place)).transpose()?;
            let id = &entry.id;
            match (staging.copy(id, &entry.slide, &|| !watcher.cancelled()), in_place) {
                (Ok(copy), None) => Ok(Opened { slide: open(&copy.slide)?, _copy: Some(copy) }),
                (Ok(copy), Some(in_place)) => {
                    let same = open(&copy.slide).and_then(|slide| {
                        let same =
                            slide.content_id().map_err(Error::Read)? == in_place.content_id().map_err(Error::Read)?;
                        Ok(same.then_some(slide))
                    });
                    if let Ok(Some(slide)) = same {
                        return Ok(Opened { slide, _copy: Some(copy) });
                    }
                    watcher.note(&format!("{id}: read where it is: a copy of its file alone is not the slide"));
                    Ok(Opened { slide: in_place, _copy: None })
                }
                (Err(NoCopy::TooLarge { bytes, limit }), in_place) => {
                    let slide = in_place.map_or_else(|| open(place), Ok)?;
                    let (bytes, limit) = (crate::Bytes(bytes), crate::Bytes(limit));
                    watcher.note(&format!("{id}: read where it is: {bytes}, and copies may take {limit}"));
                    Ok(Opened { slide, _copy: None })
                }
                (Err(NoCopy::Failed(microtome_io::Error::Io { source, .. })), in_place) if is_full(&source) => {
                    let slide = in_place.map_or_else(|| open(place), Ok)?;
                    watcher.note(&format!("{id}: read where it is: there is no room for a copy"));
                    Ok(Opened { slide, _copy: None })
                }
                // A store is many objects, and read where they lie; or nothing is there at all.
                (Err(NoCopy::Failed(microtome_io::Error::Io { source, .. })), None)
                    if source.kind() == std::io::ErrorKind::NotFound =>
                {
                    let slide = open(place)?;
                    watcher.note(&format!("{id}: read where it is: it is not one object"));
                    Ok(Opened { slide, _copy: None })
                }
                (Err(NoCopy::Stopped), _) => Err(Error::Interrupted.into()),
                (Err(NoCopy::Failed(error)), _) => {
                    let Failure { code, text } = Failure::from(Error::Read(error));
                    Err(Failure { code, text: format!("cannot be copied: {text}") })
                }
            }
        })
    }

    /// Works at a slide that is this process's; `None` if it was stopped before it ended.
    ///
    /// # Errors
    /// Only if what is said of the slide cannot be written.
    pub(super) fn work(
        &self,
        entry: &Entry,
        opened: Result<Opened<'_>, Failure>,
        key: &str,
        lease: Option<&Lease>,
        events: &Events,
        watcher: &dyn Watcher,
    ) -> Result<Option<Outcome>> {
        let start = Instant::now();
        let folder = self.folder.slide(&entry.id);
        if let Err(error) = folder.create() {
            return Ok(Some(self.unusable(entry, error, events)));
        }
        tidy(folder.path());
        let before = SlideReport::read(&folder);
        let attempts = before.as_ref().map_or(0, |report| report.attempts).saturating_add(1);
        // A mark never stands beside what it is not of.
        match std::fs::remove_file(folder.done()) {
            Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
                return Ok(Some(self.unusable(entry, Error::Io { path: folder.done(), source }, events)));
            }
            _ => {}
        }
        let about =
            About { id: Some(&entry.id), group: entry.group.as_deref(), attempt: Some(attempts), ..About::default() };
        events.add(What::SlideStarted, &about)?;
        let mut identity = None;
        let result = opened.and_then(|opened| {
            guarded(|| {
                let overseer = Overseer { inner: watcher.begins(entry), watcher, lease };
                let slide = opened.slide.as_ref();
                let made = self.segment(entry, slide, &overseer)?;
                self.picture(entry, slide, &folder)?;
                identity = self.identity(entry, slide, &folder)?;
                Ok(made)
            })
        });
        let seconds = start.elapsed().as_secs_f64();
        let stopped = watcher.cancelled() || lease.is_some_and(Lease::is_lost);
        let (status, code, error, summary, by) = match result {
            Ok(made) => {
                let code = if made.unreadable > 0 { 3 } else { 0 };
                (Status::Done, code, None, made.summary, made.by)
            }
            Err(_) if stopped => {
                events.add(What::SlideStopped, &About { seconds: Some(seconds), ..about })?;
                return Ok(None);
            }
            Err(Failure { code, text }) => {
                // Whoever asks for names finds them there, and never in the sentence: that is printed and merged, asked for or not.
                identity = (self.options.identify == Identify::Yes).then(|| Identity::of_path(entry));
                (Status::Failed, code, Some(self.discreet(&text, entry)), None, By::ThisRun)
            }
        };
        let report = SlideReport {
            id: entry.id.clone(),
            group: entry.group.clone(),
            status,
            code,
            error: error.clone(),
            attempts,
            finished: clock::now(),
            seconds,
            output: entry.out.to_string_lossy().replace(std::path::MAIN_SEPARATOR, "/"),
            summary,
            identity,
        };
        put_json(&folder.report(), &report)?;
        if status == Status::Done {
            let stamp = match &entry.slide {
                Source::File(path) => Stamp::of(path),
                Source::Url(_) => None,
            };
            put_json(&folder.done(), &Done { id: entry.id.clone(), key: key.into(), stamp, code })?;
        }
        let what = if status == Status::Done { What::SlideDone } else { What::SlideFailed };
        events.add(what, &About { code: Some(code), error: error.as_deref(), seconds: Some(seconds), ..about })?;
        let (id, line) = (entry.id.clone(), entry.line);
        Ok(Some(Outcome { id, line, status, code, error, by, seconds }))
    }

    /// The text, without what it must not say.
    pub(super) fn discreet(&self, text: &str, entry: &Entry) -> String {
        let copies = self.options.stage.as_ref().map(|stage| stage.folder.as_path());
        without_names(text, entry, self.folder.path(), copies)
    }

    fn segment(&self, entry: &Entry, slide: &dyn SlideReader, observer: &dyn Observer) -> Result<Made> {
        let output = self.output(entry);
        if let Some(around) = output.parent() {
            std::fs::create_dir_all(around).map_err(|source| Error::Io { path: around.into(), source })?;
        }
        let segmenter = self.segmenter.with(self.settings(entry, slide))?;
        let outcome =
            segmenter.segment(slide, &output, self.options.existing, observer).map_err(|error| match error {
                Error::Memory { needed, budget, hint } if self.options.jobs > 1 => {
                    let hint = format!("{hint}, or work at fewer slides at once than --jobs {}", self.options.jobs);
                    Error::Memory { needed, budget, hint }
                }
                error => error,
            })?;
        let run = RunFolder::of(&output);
        let (mut summary, unreadable, by) = match outcome {
            crate::Outcome::Done(summary) => {
                let text = serde_json::to_value(&summary)
                    .map_err(|error| Error::Io { path: run.report(), source: error.into() })?;
                (Some(text), summary.unreadable.len() as u64, By::ThisRun)
            }
            crate::Outcome::AlreadyDone { unreadable } => {
                let summary = match json::<Value>(&run.report()) {
                    Some(summary) => Some(summary),
                    None => self.reconstructed(slide, &output)?,
                };
                (summary, unreadable, By::EarlierRun)
            }
        };
        if self.options.identify == Identify::No
            && let Some(roi) = summary.as_mut().and_then(|summary| summary.get_mut("roi")?.as_object_mut())
            && roi.remove("path").is_some()
        {
            put_json(&run.report(), &summary)?;
        }
        Ok(Made { summary, unreadable, by })
    }

    /// What the journal of a run says of areas, where a crash between mask and report has left no more.
    fn reconstructed(&self, slide: &dyn SlideReader, output: &Path) -> Result<Option<Value>> {
        let Some(record) = Journal::read(&RunFolder::of(output).journal())? else { return Ok(None) };
        let mut counts: BTreeMap<usize, u64> = BTreeMap::new();
        for entry in record.entries.values().filter(|e| e.product == Product::Labels && e.level == Level::FINEST) {
            for (label, count) in entry.counts.iter().enumerate() {
                *counts.entry(label).or_default() += count;
            }
        }
        let store = OmeZarr::open(output).map_err(Error::Read)?;
        let mpp = store.info().levels[0].mpp;
        let area = |class: &microtome_io::Class| {
            let pixels = counts.get(&usize::from(class.value)).copied().unwrap_or(0);
            let mm2 = mpp.map(|mpp| pixels as f64 * mpp.x * mpp.y / 1e6);
            json!({ "class": class, "pixels": pixels, "mm2": mm2, "share": null })
        };
        let areas: Vec<Value> =
            store.info().content.classes().iter().filter(|class| class.value > 0).map(area).collect();
        Ok(Some(json!({ "format": slide.info().format, "slide": slide.info().size(), "areas": areas })))
    }

    /// Draws the slide with its mask, for tables.
    fn picture(&self, entry: &Entry, slide: &dyn SlideReader, folder: &SlideFolder) -> Result<()> {
        let jpeg = self.segmenter.draw(|| crate::report::thumbnail(slide, &self.output(entry)))?;
        put(&folder.thumbnail(), &jpeg)
    }

    /// What can name a person, if that is asked for.
    pub(super) fn identity(
        &self,
        entry: &Entry,
        slide: &dyn SlideReader,
        folder: &SlideFolder,
    ) -> Result<Option<Identity>> {
        // A label that cannot be read is none: the mask is whole without it.
        let asked = self.options.identify == Identify::Yes;
        let has_label = asked && slide.info().associated.iter().any(|picture| picture.name == "label");
        if let Some(picture) = has_label.then(|| slide.read_associated("label").ok()).flatten() {
            let options = PreviewOptions { quality: 85, ..PreviewOptions::default() };
            put(&folder.label(), &preview::encode(&picture, PictureFormat::Jpeg, &folder.label(), options)?)?;
        } else {
            // That of an earlier run.
            match std::fs::remove_file(folder.label()) {
                Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
                    return Err(Error::Io { path: folder.label(), source });
                }
                _ => {}
            }
        }
        if !asked {
            return Ok(None);
        }
        Ok(Some(Identity { properties: slide.info().properties.clone(), ..Identity::of_path(entry) }))
    }
}

/// The path of a mask's page for people, if there is one.
pub(super) fn page_of(mask: &Path) -> Option<PathBuf> {
    Some(RunFolder::of(mask).page()).filter(|page| page.is_file())
}
