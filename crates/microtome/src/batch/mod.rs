//! Archives: a model over many slides, in one process or in many, over as many nights as it takes.
//!
//! A [`Manifest`] lists slides, each with an id. A [`Batch`] runs a [`Segmenter`] over them, and writes below its folder
//!
//! | what | holds |
//! |---|---|
//! | `ID/mask.ome.zarr` | the mask, or where the manifest says by `out`; beside it `mask.ome.zarr.run`, the folder of the run |
//! | `ID/report.json` | how the slide ended: [`SlideReport`] |
//! | `ID/thumbnail.jpg` | the slide with the outlines of the mask |
//! | `ID/done` | the mark that all of this is there, written last of all |
//! | `ID/lease` | only while a process works at the slide, where several share the folder |
//! | `events.jsonl` | what happened, line by line; of a shard `events-I-of-N.jsonl` |
//! | `batch.json` | ids and groups of the manifest |
//! | `summary.csv`, `summary.html`, `results.sqlite` | all reports together: [`report`] makes them of what lies in the folder |
//!
//! Every slide is tried, and none stops the others: neither one that cannot be read, nor one over which something panics. What is done is not
//! done again, without so much as opening the slide; what failed is tried again by the next run; what was stopped goes on.
//!
//! Names of files, texts that a scanner wrote, and pictures of labels are in nothing of this, unless [`Identify::Yes`] asks for them.
//!
//! ```
//! use microtome::batch::{Batch, Manifest, Nobody, Options, Status};
//! use microtome::{Segmenter, Settings, TargetResolution};
//! use microtome_testkit::{FunctionModel, tiff::TiffSlide};
//! use microtome::io::Size;
//!
//! let place = tempfile::tempdir()?;
//! let slide = TiffSlide::rgb(&[(600, 400)], |_, x, y, _| ((x / 40 + y / 40) % 2 * 200) as u16);
//! slide.write(&place.path().join("a.tif"))?;
//! let list = place.path().join("archive.csv");
//! std::fs::write(&list, "slide,id\na.tif,good\nb.tif,missing\n")?;
//!
//! let model = FunctionModel::new(Size::new(128, 128), &[100.5]);
//! let mut settings = Settings::default();
//! settings.model_mpp = Some(TargetResolution::Native);
//! let segmenter = Segmenter::new(&model, settings)?;
//! let manifest = Manifest::read(&list)?;
//! let batch = Batch::new(&manifest, &segmenter, &place.path().join("masks"), Options::default())?;
//! let finished = batch.run(&Nobody)?;
//! assert_eq!(finished.exit_code(), Some(3), "one of two");
//! assert_eq!(finished.outcomes[0].status, Status::Done);
//! assert!(place.path().join("masks/good/mask.ome.zarr/zarr.json").exists());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod audit;
mod clock;
mod discretion;
mod events;
mod files;
mod folder;
mod lease;
mod manifest;
mod run;
mod scan;
mod shard;
mod sqlite;
mod stage;
mod summary;
#[cfg(test)]
mod tests;
mod work;

use std::path::{Path, PathBuf};
use std::time::Duration;

use microtome_io::Size;
use microtome_io::slide::OpenOptions;
use serde::Serialize;

use crate::progress::{Observer, Silent};
use crate::{Error, Existing, Result, Segmenter};

pub use audit::{Audit, AuditOptions, Audited, Speed, audit};
pub use folder::{Identity, SlideReport, Status};
pub use manifest::{Entry, Fault, Manifest, Source};
pub use scan::{Scan, ScanOptions, Unreadable, scan};
pub use shard::Shard;
pub use stage::Stage;
pub use summary::{Merged, report};

use folder::Folder;

/// Whether what can name a person is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Identify {
    /// Neither paths of slides, nor what their scanners wrote into them, nor pictures of their labels.
    #[default]
    No,
    /// All of it.
    Yes,
}

/// How a batch runs.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Options {
    /// Work at this share of the slides only. Shares of one batch are disjoint: their processes take no leases and write no summaries.
    pub shard: Option<Shard>,
    /// Slides at once, at least 1. They share the threads of the segmenter, and each may use its memory divided by their number.
    pub jobs: usize,
    /// Copy slides to a local disk before they are read.
    pub stage: Option<Stage>,
    /// Whether what can name a person is written.
    pub identify: Identify,
    /// What to do with masks that are there.
    pub existing: Existing,
    /// Which values of regions are wanted where the manifest does not say.
    pub roi_values: Vec<String>,
    /// How slides are opened.
    pub open: OpenOptions,
    /// After which time a lease whose owner does not stir may be taken over. The same for all processes that share the folder.
    pub lease_expiry: Duration,
}

impl Default for Options {
    /// All slides, one after the other, read where they are, by position: a slide that becomes shorter while it is read is then an error of that
    /// slide's, and not the end of the process. Leases expire after a minute.
    fn default() -> Self {
        Self {
            shard: None,
            jobs: 1,
            stage: None,
            identify: Identify::No,
            existing: Existing::Keep,
            roi_values: Vec::new(),
            open: OpenOptions::default().access(microtome_io::bytes::ByteAccess::Read),
            lease_expiry: Duration::from_mins(1),
        }
    }
}

/// Watches a batch. Its methods are called from several threads and should return at once.
pub trait Watcher: Sync {
    /// A slide begins; who is returned watches its run. Whether that should stop is asked of the [watcher](Self::cancelled) alone.
    fn begins(&self, entry: &Entry) -> Box<dyn Observer + '_> {
        let _ = entry;
        Box::new(Silent)
    }

    /// A slide has ended.
    fn ends(&self, outcome: &Outcome) {
        let _ = outcome;
    }

    /// Something that the user may want to know.
    fn note(&self, text: &str) {
        let _ = text;
    }

    /// True if the batch should stop as soon as it can.
    fn cancelled(&self) -> bool {
        false
    }
}

/// Watches nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct Nobody;

impl Watcher for Nobody {}

/// What became of a slide in a run of a batch.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Outcome {
    /// The slide's id.
    pub id: String,
    /// Its line of the manifest.
    pub line: u64,
    /// How it ended; [`Status::Waiting`] if the batch was stopped before it did.
    pub status: Status,
    /// The exit code of this slide alone: 0; 3, where parts of it could not be read; that of its error.
    pub code: u8,
    /// Why it failed.
    pub error: Option<String>,
    /// Who made the result.
    pub by: By,
    /// Seconds that this run took for it.
    pub seconds: f64,
}

/// Who made a result.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum By {
    /// This run.
    ThisRun,
    /// An earlier one: nothing was done.
    EarlierRun,
    /// Another process that works at the same folder.
    OtherProcess,
}

/// What a run of a batch did.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Finished {
    /// One for each slide of the shard, in the order of the manifest.
    pub outcomes: Vec<Outcome>,
    /// True if it was stopped.
    pub stopped: bool,
}

impl Finished {
    /// The code that a program should exit with; `None` if the batch was stopped, where it is the signal's.
    ///
    /// 0: all slides are done. 3: some failed, or are done with faults. 4: none is done. 75: some failed for now, and trying again may
    /// help. The largest that applies counts. 6 and 5 stand for 4 where that is why all failed: none fits the memory, or all outputs are of
    /// another run.
    #[must_use]
    pub fn exit_code(&self) -> Option<u8> {
        if self.stopped {
            return None;
        }
        let failures = self.outcomes.iter().filter(|outcome| outcome.status != Status::Done).map(|o| o.code);
        let code = code_of(&failures.collect::<Vec<_>>(), self.outcomes.len());
        let faults = || self.outcomes.iter().map(|outcome| outcome.code).max();
        Some(code.or_else(faults).unwrap_or(0))
    }
}

/// The exit code for the failures of some of so many slides, by the codes of each; `None` if there are none.
/// See [`Finished::exit_code`].
#[must_use]
pub fn code_of(failures: &[u8], slides: usize) -> Option<u8> {
    let first = *failures.first()?;
    Some(match first {
        _ if failures.contains(&TRANSIENT) => TRANSIENT,
        _ if failures.len() < slides => 3,
        5 | 6 if failures.iter().all(|&code| code == first) => first,
        _ => 4,
    })
}

/// The exit code of a failure that may be none the next time.
const TRANSIENT: u8 = 75;

/// What a batch would do with a slide.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Planned {
    /// The slide's id.
    pub id: String,
    /// Its line of the manifest.
    pub line: u64,
    /// What would be done.
    #[serde(flatten)]
    pub task: Task,
}

/// What there is to do.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case", tag = "task")]
pub enum Task {
    /// Nothing.
    Done,
    /// It cannot be done.
    Impossible {
        /// Why.
        error: String,
        /// The exit code that goes with it.
        code: u8,
    },
    /// To run the model.
    Run {
        /// The target grid, in pixels.
        size: Size,
        /// Tiles, if all of the slide is tissue.
        tiles: u64,
        /// Bytes of memory at most.
        memory: u64,
    },
}

/// A model over the slides of a manifest.
#[derive(Debug)]
pub struct Batch<'a> {
    manifest: &'a Manifest,
    segmenter: &'a Segmenter<'a>,
    folder: Folder,
    options: Options,
}

impl<'a> Batch<'a> {
    /// A batch whose results go below `folder`. Nothing is touched yet.
    ///
    /// # Errors
    /// [`Error::Usage`] for no jobs, for a folder in an object store, and where manifest and settings
    /// say different things of the same.
    pub fn new(manifest: &'a Manifest, segmenter: &'a Segmenter<'a>, folder: &Path, options: Options) -> Result<Self> {
        if options.jobs == 0 {
            return Err(Error::Usage("a batch works at one slide at least".into()));
        }
        if segmenter.settings().roi.is_some() {
            return Err(Error::Usage("a region is one of a slide: a batch takes it from the manifest".into()));
        }
        let line = |of: fn(&Entry) -> bool| manifest.entries().iter().find(|entry| of(entry)).map(|entry| entry.line);
        if let (Some(line), Some(_)) = (line(|entry| entry.mpp.is_some()), segmenter.settings().mpp) {
            return Err(Error::Usage(format!("both --mpp and line {line} of the manifest say how large pixels are")));
        }
        if microtome_io::remote::is_remote(folder) {
            let folder = folder.display();
            return Err(Error::Usage(format!(
                "{folder}: what a batch writes goes into a folder, not into an object store"
            )));
        }
        Ok(Self { manifest, segmenter, folder: Folder::new(folder), options })
    }

    /// The folder below which results go.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The mask of a slide.
    fn output(&self, entry: &Entry) -> PathBuf {
        self.folder.path().join(&entry.out)
    }
}
