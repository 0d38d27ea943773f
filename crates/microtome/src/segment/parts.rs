//! One slide, several workers: each computes its part of the shards into the same stores, and one finishes what they have begun.
//!
//! To a worker, the shards of the others are like those that an earlier process has finished: it leaves them out, and everything else is as it
//! would be alone. That is why the bytes are.

use std::path::{Path, PathBuf};
use std::str::FromStr;

use microtome_io::Size;
use microtome_io::slide::SlideReader;
use microtome_io::store::{ImageSink, ZarrImage};
use microtome_stitch::{Journal, UnreadableTile};
use microtome_tile::TileCount;
use serde::{Deserialize, Serialize};

use super::{Outcome, Prepared, Run, Segmenter};
use crate::memory::{self, PeakMemory};
use crate::output::{LabelOf, PartClaim, RunFolder, WholeClaim, put};
use crate::progress::Observer;
use crate::report::StageTimes;
use crate::units::Bytes;
use crate::{Error, Result};

/// One of several parts of a slide's work, counted from 0: `0/4` to `3/4`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Part {
    index: u32,
    of: u32,
}

impl Part {
    /// Parts that a slide is cut into at most: more than the largest slide has columns of shards.
    pub const MOST: u32 = 4096;

    /// The part `index` of `of`.
    ///
    /// # Errors
    /// [`Error::Usage`] if there is no such part, or there are more than [`MOST`](Self::MOST).
    pub fn new(index: u32, of: u32) -> Result<Self> {
        if of == 0 || of > Self::MOST {
            return Err(Error::Usage(format!("{of} parts; a slide is cut into 1 to {}", Self::MOST)));
        }
        if index >= of {
            let last = of - 1;
            return Err(Error::Usage(format!("there is no part {index} of {of}: they are counted from 0 to {last}")));
        }
        Ok(Self { index, of })
    }

    /// Which, from 0.
    #[must_use]
    pub fn index(self) -> u32 {
        self.index
    }

    /// Of how many.
    #[must_use]
    pub fn of(self) -> u32 {
        self.of
    }
}

impl std::fmt::Display for Part {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.index, self.of)
    }
}

impl FromStr for Part {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let numbers = text.split_once('/').and_then(|(index, of)| Some((index.parse().ok()?, of.parse().ok()?)));
        let Some((index, of)) = numbers else {
            return Err(Error::Usage(format!("{text:?} is no part: it is written I/N, such as 0/4")));
        };
        Self::new(index, of)
    }
}

/// Where the mask of a slide goes that several workers compute.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Destination<'a> {
    /// Into a store of its own, as with [`Segmenter::segment`].
    Store(&'a Path),
    /// Into the labels of this image, as with [`Segmenter::segment_label`].
    Image(&'a Path),
}

/// What became of a part.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum PartOutcome {
    /// It was computed.
    Done(Box<PartSummary>),
    /// It had been computed before, or the mask is finished; nothing was touched.
    AlreadyDone {
        /// Tiles of the slide that could not be read.
        unreadable: u64,
    },
}

/// The summary of one part.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct PartSummary {
    /// Which.
    pub part: Part,
    /// Shards of level 0 that belong to it.
    pub shards: u64,
    /// Those of them that an earlier process had finished; the tiles below count as run all the same.
    pub resumed_shards: u64,
    /// Tiles run and skipped, of all models. Those of other parts count as skipped, and those that reach into another part run in both.
    pub tiles: TileCount,
    /// Who worked and who waited, in seconds.
    pub stages: StageTimes,
    /// Seconds from start to end.
    pub seconds: f64,
    /// Memory planned, in bytes.
    pub memory_planned: u64,
    /// Memory used, in bytes.
    pub peak_memory: Option<PeakMemory>,
    /// Threads used.
    pub threads: usize,
    /// Stored tiles of the slide that could not be read: what they touch is background.
    pub unreadable: Vec<UnreadableTile>,
}

impl std::fmt::Display for PartSummary {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "part         {}, {} shards", self.part, self.shards)?;
        if self.resumed_shards > 0 {
            write!(f, ", {} of them finished before", self.resumed_shards)?;
        }
        writeln!(f, "\ntiles        {} of {} run in this part", self.tiles.run, self.tiles.grid)?;
        for tile in &self.unreadable {
            writeln!(f, "unreadable   level {}, {}: {}; background there", tile.level, tile.tile, tile.cause)?;
        }
        writeln!(f, "time         {:.1} s, {} threads", self.seconds, self.threads)?;
        write!(f, "memory       {} planned", Bytes(self.memory_planned))?;
        if let Some(peak) = self.peak_memory {
            write!(f, ", peak {} anonymous", Bytes(peak.anonymous))?;
        }
        Ok(())
    }
}

impl Segmenter<'_> {
    /// Computes a part of a slide's mask into an OME-Zarr store that others compute other parts of, at the same time or not, in this process or
    /// on other machines that see the same folder. Nothing is visible there before [`finish_parts`](Self::finish_parts).
    ///
    /// What belongs to a part depends on the slide, the model and the settings that decide about pixels only: memory, threads and batch may
    /// differ from worker to worker. The same call again goes on where a part was stopped, and does nothing where it is complete.
    ///
    /// # Errors
    /// As [`segment`](Self::segment); and [`Error::DifferentRun`] where another worker has other settings, another version, instruction set or
    /// device, or counts other parts.
    pub fn segment_part(
        &self,
        slide: &dyn SlideReader,
        destination: Destination<'_>,
        part: Part,
        observer: &dyn Observer,
    ) -> Result<PartOutcome> {
        self.destined(destination, |output, label| self.part_of(slide, output, label, part, observer))
    }

    /// Builds what is left of the pyramid once [all parts](Self::segment_part) are complete, and publishes the mask: then it is what
    /// [`segment`](Self::segment) would have written, byte by byte.
    ///
    /// # Errors
    /// As [`segment`](Self::segment); and [`Error::Usage`] that names the parts that are not complete.
    pub fn finish_parts(
        &self,
        slide: &dyn SlideReader,
        destination: Destination<'_>,
        observer: &dyn Observer,
    ) -> Result<Outcome> {
        self.destined(destination, |output, label| self.whole(slide, output, label, observer))
    }

    fn destined<T>(
        &self,
        destination: Destination<'_>,
        with: impl FnOnce(&Path, Option<LabelOf<'_>>) -> Result<T>,
    ) -> Result<T> {
        match destination {
            Destination::Store(output) => with(output, None),
            Destination::Image(image) => {
                let image = self.labelled(image)?;
                let name = self.name();
                let output = image.label(&name).map_err(Error::Write)?;
                with(&output, Some(LabelOf { image: &image, name: &name }))
            }
        }
    }

    fn part_of(
        &self,
        slide: &dyn SlideReader,
        output: &Path,
        label: Option<LabelOf<'_>>,
        part: Part,
        observer: &dyn Observer,
    ) -> Result<PartOutcome> {
        if microtome_io::remote::is_remote(output) {
            let message = "several processes can write one store in a folder, but not in an object store";
            return Err(Error::Usage(format!("{}: {message}", output.display())));
        }
        let prepared = self.prepare(slide, label)?;
        let Prepared { plan, given, fingerprint, .. } = &prepared;
        let stores = self.stores(slide, output, label)?;
        let starting = stores.starting();
        let claimed = match stores.claim_part(fingerprint, part)? {
            PartClaim::Published { unreadable } => return Ok(PartOutcome::AlreadyDone { unreadable }),
            PartClaim::Complete(record) => {
                return Ok(PartOutcome::AlreadyDone { unreadable: record.unreadable.len() as u64 });
            }
            PartClaim::Begin(claimed) => claimed,
        };
        let folder = RunFolder::of(output);
        if let Some(label) = label {
            label.image.make_folder().map_err(Error::Write)?;
        }
        let record = &claimed.record;
        let (ran, peak) = memory::watch(|| {
            let mut sinks = Vec::new();
            for (product, path) in stores.all() {
                let image =
                    self.image(product, slide.info(), &plan.geometry, fingerprint.attributes(), prepared.form());
                let done = record.entries.keys().filter(|key| key.0 == product).map(|key| (key.1, key.2));
                sinks.push((product, ZarrImage::join(path, image, done).map_err(Error::Write)?));
            }
            drop(starting);
            let sinks: Vec<_> = sinks.iter().map(|(product, sink)| (*product, sink as &dyn ImageSink)).collect();
            let given = given.as_ref();
            let (part, record, folder) = (Some(part), Some(record), Some(&folder));
            self.run(&Run { slide, plan, given, sinks: &sinks, observer, record, folder, part }, Some(claimed.journal))
        });
        let ran = ran?;
        let summary = PartSummary {
            part,
            shards: ran.shards,
            resumed_shards: ran.summary.resumed_shards,
            tiles: ran.summary.tiles,
            stages: ran.summary.stages,
            seconds: ran.summary.seconds,
            memory_planned: plan.memory.total(),
            peak_memory: peak,
            threads: self.threads,
            unreadable: ran.summary.unreadable,
        };
        let path = folder.report_of(part);
        let text =
            serde_json::to_vec_pretty(&summary).map_err(|e| Error::Io { path: path.clone(), source: e.into() })?;
        put(&path, &text)?;
        Ok(PartOutcome::Done(Box::new(summary)))
    }

    fn whole(
        &self,
        slide: &dyn SlideReader,
        output: &Path,
        label: Option<LabelOf<'_>>,
        observer: &dyn Observer,
    ) -> Result<Outcome> {
        let prepared = self.prepare(slide, label)?;
        let Prepared { plan, given, fingerprint, .. } = &prepared;
        let stores = self.stores(slide, output, label)?;
        let list = || label.map_or(Ok(()), |label| label.image.list(label.name)).map_err(Error::Write);
        let folder = RunFolder::of(output);
        let starting = stores.starting();
        let shard = Size::new(self.settings.shard, self.settings.shard);
        let record = match stores.claim_whole(fingerprint, plan.geometry.target.size.cells(shard).area())? {
            WholeClaim::Published { unreadable } => {
                // One who was stopped between the last steps is finished by the next one.
                list()?;
                folder.forget_parts()?;
                folder.tidy_old();
                return Ok(Outcome::AlreadyDone { unreadable });
            }
            WholeClaim::Begin(record) => record,
        };
        let parts = parts_of(&folder)?;
        let (ran, peak) = memory::watch(|| {
            let mut sinks = Vec::new();
            for (product, path) in stores.all() {
                let image =
                    self.image(product, slide.info(), &plan.geometry, fingerprint.attributes(), prepared.form());
                let done = record.entries.keys().filter(|key| key.0 == product).map(|key| (key.1, key.2));
                sinks.push((product, ZarrImage::resume(path, image, done).map_err(Error::Write)?));
            }
            folder.create()?;
            let mut journal = Journal::create(&folder.journal(), &record.header)?;
            journal.append(&record.lines())?;
            drop(starting);
            let sinks: Vec<_> = sinks.iter().map(|(product, sink)| (*product, sink as &dyn ImageSink)).collect();
            let (given, record, folder) = (given.as_ref(), Some(&record), Some(&folder));
            self.run(&Run { slide, plan, given, sinks: &sinks, observer, record, folder, part: None }, Some(journal))
        });
        let mut ran = ran?;
        list()?;
        ran.summary.peak_memory = peak;
        ran.summary.parts = parts;
        let summary = self.report(slide, output, &prepared, ran)?;
        folder.forget_parts()?;
        Ok(Outcome::Done(Box::new(summary)))
    }
}

/// What those said who computed the parts.
fn parts_of(folder: &RunFolder) -> Result<Vec<PartSummary>> {
    let read = |part: Part| {
        let path: PathBuf = folder.report_of(part);
        let io = |source| Error::Io { path: path.clone(), source };
        serde_json::from_slice(&std::fs::read(&path).map_err(io)?).map_err(|e| io(e.into()))
    };
    folder.parts()?.into_iter().map(read).collect()
}
