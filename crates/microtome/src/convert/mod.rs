//! A slide becomes an OME-Zarr image: every level, its resolution, channels and colours, and the pictures that travel along.
//!
//! One pass over the slide: each shard is read, written, halved and handed on to the level above by one thread, in an order that keeps little
//! half built ([`VisitingOrder`]), while another thread brings finished shards to the disk.

pub(crate) mod archive;
mod associated;
mod image;
mod options;
mod plan;
#[cfg(test)]
mod power_loss;
mod summary;
mod work;

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Instant;

use microtome_io::slide::SlideReader;
use microtome_io::store::{ImageSink, ZarrImage};
use microtome_io::{Level, Size, TileCoord};
use microtome_stitch::{Journal, PyramidWriter, Record};
use microtome_tile::pyramid::Pyramid;
use microtome_tile::row_order;
use serde::Serialize;
use serde_json::{Map, Value};

pub use options::{ConvertOptions, LabelImage, Levels, OnBadPicture};
pub use plan::{ConvertMemory, ConvertPlan, VisitingOrder};
pub use summary::ConvertSummary;

use crate::distinct::distinct;
use crate::memory;
use crate::output::{Claim, Existing, Fingerprint, RunFolder, Stores};
use crate::progress::{Observer, Phase};
use crate::{Error, Result};
use work::Work;

/// What became of a slide.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Conversion {
    /// The image was written.
    Done(Box<ConvertSummary>),
    /// The same conversion had finished before; nothing was touched.
    AlreadyDone,
}

/// Converts a slide into an OME-Zarr image at `output`: axes c, y and x, samples as the slide has them, without loss. If the output's name
/// ends in `.zip` or `.ozx`, it is one file, else a folder. It may be a URL of an object store ([`microtome_io::remote`]).
///
/// Nothing is visible there before the image is complete. Finished shards are noted in a journal in the folder `OUTPUT.run` beside it: if the
/// conversion fails or is killed, the same call goes on behind them, to the bytes of one that was never stopped. Where it fails before any shard
/// is finished, nothing is left.
///
/// Pictures that travel with the slide become images of their own in the folder `associated` of the store. That of the slide's label is left
/// out unless it is asked for ([`LabelImage`]); an overview of the glass (`macro`) may show the label, too.
/// The slide's ICC profile is kept in the root attribute `microtome`, as `icc_profile` in base64; pixels stay as they are stored.
///
/// Memory is planned before anything is written ([`ConvertPlan`]), and does not grow with the slide, unless that is stored in cells as wide as
/// itself.
///
/// # Errors
/// [`Error::Usage`] for options that cannot be, or an output that is the slide itself; [`Error::Memory`] if it does not fit the budget, [`Error::Read`] with level, column and row
/// of a tile that cannot be decoded, [`Error::Associated`] for a picture that cannot be; [`Error::OutputExists`], [`Error::DifferentRun`] and
/// [`Error::InUse`] for what is at the output; [`Error::Write`] and [`Error::Io`] if it cannot be written; [`Error::Interrupted`] if the
/// observer asks for it.
pub fn convert(
    slide: &dyn SlideReader,
    output: &Path,
    options: &ConvertOptions,
    existing: Existing,
    observer: &dyn Observer,
) -> Result<Conversion> {
    convert_through(slide, output, options, existing, observer, |image| image)
}

/// The same, with a word in every call to the store: tests let the power fail there.
fn convert_through<S: ImageSink>(
    slide: &dyn SlideReader,
    output: &Path,
    options: &ConvertOptions,
    existing: Existing,
    observer: &dyn Observer,
    wrap: impl Fn(ZarrImage) -> S,
) -> Result<Conversion> {
    distinct(output, [slide.info().path.as_path()])?;
    let plan = ConvertPlan::new(slide, options)?;
    let fingerprint = image::fingerprint(slide, options, &plan)?;
    let job = Job { slide, options, plan, fingerprint, observer };
    if archive::is_one(output) {
        if microtome_io::remote::is_remote(output) {
            let message = "an image in one file is put together in a folder: write it there, then copy it, or leave out the ending";
            return Err(Error::Usage(format!("{}: {message}", output.display())));
        }
        archive::write(&job, output, existing, wrap)
    } else {
        job.write(Stores::of(output, &[], None), output, existing, wrap)
    }
}

struct Job<'a> {
    slide: &'a dyn SlideReader,
    options: &'a ConvertOptions,
    plan: ConvertPlan,
    fingerprint: Fingerprint,
    observer: &'a dyn Observer,
}

impl Job<'_> {
    /// Writes the store into a folder.
    fn write<S: ImageSink>(
        &self,
        stores: Stores<'_>,
        output: &Path,
        existing: Existing,
        wrap: impl Fn(ZarrImage) -> S,
    ) -> Result<Conversion> {
        let start = Instant::now();
        let starting = stores.starting();
        let record = match stores.claim(&self.fingerprint, existing)? {
            Claim::Done { .. } => return Ok(Conversion::AlreadyDone),
            Claim::Resume(record) => Some(record),
            Claim::Free => None,
        };
        let folder = RunFolder::of(output);
        let (result, peak) = memory::watch(|| {
            let image = image::image(self.slide, self.options, &self.plan, &self.fingerprint);
            let sink = match &record {
                None => ZarrImage::create(output, image),
                Some(record) => ZarrImage::resume(output, image, record.entries.keys().map(|key| (key.1, key.2))),
            };
            let sink = sink.map_err(Error::Write)?;
            folder.create()?;
            let journal = match &record {
                None => Journal::create(&folder.journal(), &Value::Object(self.fingerprint.attributes()))?,
                Some(record) => Journal::resume(&folder.journal(), record)?,
            };
            drop(starting);
            self.observer.phase(Phase::Conversion);
            let unreadable = associated::write(self.slide, self.options, output)?;
            self.fill(&wrap(sink), journal, record.as_ref()).map(|resumed| (resumed, unreadable))
        });
        match result {
            Ok((resumed, unreadable)) => {
                let mut summary = self.summary(output, resumed, start);
                for associated::Unreadable { name, cause } in unreadable {
                    summary.associated.retain(|written| *written != name);
                    summary.notes.push(format!(
                        "the picture {name:?} that travels along is left out, because it cannot be read: {cause}"
                    ));
                }
                summary.peak_memory = peak;
                summary.save(&folder.report())?;
                Ok(Conversion::Done(Box::new(summary)))
            }
            Err(error) => {
                // A service that does not answer is not asked to remove anything: what is there is gone on with.
                if !error.is_transient() {
                    stores.remove_unless_begun();
                }
                Err(error)
            }
        }
    }

    /// Writes every pixel, and finishes the image; gives the shards of the levels that are read which were finished before.
    fn fill(
        &self,
        sink: &dyn ImageSink,
        journal: Journal,
        record: Option<&Record>,
    ) -> Result<BTreeSet<(Level, TileCoord)>> {
        let (plan, options) = (&self.plan, self.options);
        let sizes: Vec<Size> = plan.levels.iter().map(|level| level.size).collect();
        let shard = sink.image().shard;
        let given = plan.copied.keys().copied().filter(|level| level.0 > 0);
        let pyramid = Pyramid::new(sizes, shard, plan.reduction, plan.memory.half_built as usize).with_given(given);
        let writer = PyramidWriter::of_picture(sink, pyramid, Some(journal), options.sync_every);
        let mut finished = BTreeSet::new();
        if let Some(record) = record {
            let goes_on = || !self.observer.cancelled();
            work::pool(plan.threads)?.install(|| writer.restore(record, plan.threads, goes_on))?;
            if !goes_on() {
                return Err(Error::Interrupted);
            }
            let read = record.entries.keys().filter(|key| plan.copied.contains_key(&key.1));
            finished.extend(read.map(|&(_, level, at)| (level, at)));
        }
        self.slide.keep_decoded(plan.memory.cache);
        Work { slide: self.slide, plan, shard, writer: &writer, finished: &finished, observer: self.observer }.run()?;
        sink.finish(&Map::new()).map_err(Error::Write)?;
        Ok(finished)
    }

    /// All shards of the levels that are read.
    fn all_read(&self) -> BTreeSet<(Level, TileCoord)> {
        let shard = Size::new(self.options.shard, self.options.shard);
        let cells = |&level: &Level| row_order(self.plan.levels[level.0].size.cells(shard)).map(move |at| (level, at));
        self.plan.copied.keys().flat_map(cells).collect()
    }

    fn summary(&self, output: &Path, resumed: BTreeSet<(Level, TileCoord)>, start: Instant) -> ConvertSummary {
        let (info, plan) = (self.slide.info(), &self.plan);
        let shard = Size::new(self.options.shard, self.options.shard);
        let area = |&(level, at): &(Level, TileCoord)| {
            at.rect(shard).intersect(plan.levels[level.0].size.rect()).map_or(0, |rect| rect.size().area())
        };
        let pixel = (info.channels * info.sample.bytes()) as u64;
        let mut summary = ConvertSummary {
            format: info.format.clone(),
            slide: info.size(),
            resolution: plan.resolution.clone(),
            channels: info.channels,
            sample: info.sample,
            encoding: self.options.encoding,
            associated: associated::names(info, self.options).map(Into::into).collect(),
            shards: plan.copied.keys().map(|level| plan.levels[level.0].size.cells(shard).area()).sum(),
            resumed_shards: resumed.len() as u64,
            bytes: summary::size_of(output),
            raw_bytes: plan.levels.iter().map(|level| level.size.area() * pixel).sum(),
            pixels: plan.pixels() - resumed.iter().map(area).sum::<u64>(),
            seconds: 0.0,
            mpx_per_second: 0.0,
            peak_memory: None,
            notes: image::notes(self.slide, self.options, plan),
            plan: plan.clone(),
        };
        summary.set_seconds(start.elapsed().as_secs_f64());
        summary
    }
}
