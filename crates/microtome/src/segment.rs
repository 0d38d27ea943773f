//! A slide, a model or several, a mask.

mod parts;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use microtome_io::slide::{SlideInfo, SlideReader};
use microtome_io::store::{
    Channel, Content, Encoding, ImageSink, LabelledImage, StoreLevel, StoredImage, Translation, ZarrImage,
};
use microtome_io::{Class, Level, Microns, Rect, Size, TileCoord};
use microtome_stitch::{Decision, Journal, Layout, Product, PyramidWriter, Record, Window};
use microtome_tile::pyramid::level_sizes;
use microtome_tile::tissue::{self, Tissue, TissueOptions};
use microtome_tile::{ChannelSums, Damage, Finished, ImageStatistics, Lockstep, Reader, Roi, Shares, TileCount};
use microtome_unet::{Card, ChannelStatistics, DeviceUse, Normalizer, Predictor, needs_statistics};
use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::convert::archive;
use crate::crop::Crop;
use crate::damaged::Conspicuous;
use crate::distinct::distinct;
use crate::forecast::{self, DiskPlan, FirstPass, Forecast};
use crate::label::LabelPlace;
use crate::members;
use crate::memory;
use crate::norm_stats::{self, NormStats};
use crate::output::{Claim, Existing, Fingerprint, LabelOf, RunFolder, Stores, UNREADABLE, put};
use crate::pipeline::{Member, Pipeline, Pools};
use crate::plan::{Geometry, MemoryPlan, PYRAMID_BYTES, Tiling, resolution};
use crate::progress::{Observer, Phase};
use crate::region::{self, Place, Region, RegionOrigin};
use crate::report::{ClassArea, GivenRoi, Page, RegionArea, RegionKind, StageTime, StageTimes, Summary};
use crate::settings::{OnBadTile, Settings, TissueMode};
use crate::{Error, Result};

pub use parts::{Destination, Part, PartOutcome, PartSummary};

/// Tiles per batch at most: far more than any device takes, and few enough to reckon with.
const MAX_BATCH: usize = 1 << 16;

/// Runs a model over slides, or several together.
#[derive(Debug)]
pub struct Segmenter<'p> {
    /// At least one; all mean the same by their masks, and where one speaks for all it is the first.
    predictors: Vec<&'p dyn Predictor>,
    settings: Settings,
    pools: Arc<Pools>,
    threads: usize,
}

/// What one run works on.
struct Run<'a> {
    slide: &'a dyn SlideReader,
    plan: &'a Plan,
    /// The region that the user gave.
    given: Option<&'a Region>,
    /// One for each product, in ascending order.
    sinks: &'a [(Product, &'a dyn ImageSink)],
    observer: &'a dyn Observer,
    /// What an earlier process has finished.
    record: Option<&'a Record>,
    /// Where things are kept that belong to the run.
    folder: Option<&'a RunFolder>,
    /// Which shards it writes: those of this part, and then it publishes nothing, or all.
    part: Option<Part>,
}

/// What a run has done.
struct Ran {
    summary: Summary,
    /// The tissue, where it was looked for.
    tissue: Option<Region>,
    /// Shards of level 0 that it was about, finished before or not.
    shards: u64,
}

/// What is decided before a run claims its place.
struct Prepared {
    plan: Plan,
    /// The region that the user gave.
    given: Option<Region>,
    /// Where the mask lies in the image that it is put into, if it is.
    place: Option<LabelPlace>,
    encoding: Encoding,
    fingerprint: Fingerprint,
}

impl Prepared {
    fn form(&self) -> Form<'_> {
        Form { encoding: self.encoding, label: self.place.as_ref() }
    }
}

/// In which form the images of a run are stored.
#[derive(Debug, Clone, Copy)]
struct Form<'a> {
    encoding: Encoding,
    /// Where the mask lies in the image that it is put into, if it is.
    label: Option<&'a LabelPlace>,
}

/// What became of a slide.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// The mask was computed.
    Done(Box<Summary>),
    /// The same run had finished before; nothing was touched.
    AlreadyDone {
        /// Tiles of the slide that it could not read.
        unreadable: u64,
    },
}

/// What a run would do.
#[derive(Debug, Clone, Serialize)]
pub struct Plan {
    /// Target grid, step, weights.
    pub geometry: Geometry,
    /// Tiles of the grid, of all models, if no border is black that will be cut off. Which of them touch tissue is not known before the
    /// slide has been looked at.
    pub tiles: u64,
    /// Bytes each part holds at most.
    pub memory: MemoryPlan,
}

impl<'p> Segmenter<'p> {
    /// A segmenter with its own threads.
    ///
    /// # Errors
    /// [`Error::Usage`] if the settings ask for no threads or an impossible batch, or threads cannot be started.
    pub fn new(predictor: &'p dyn Predictor, settings: Settings) -> Result<Self> {
        Self::ensemble(vec![predictor], settings)
    }

    /// A segmenter that runs several models over each slide: each has tiles, window, folds and normalisation of its own, and the
    /// probabilities that they give a pixel are averaged, all models counting the same. The mask has the names and colours of the first.
    ///
    /// All weights are in memory at once. Their order decides in which order probabilities are added, and so can change a last bit.
    ///
    /// # Errors
    /// As [`new`](Self::new); and [`Error::Usage`] that names the model whose classes, regions or channels are not the first one's.
    pub fn ensemble(predictors: Vec<&'p dyn Predictor>, settings: Settings) -> Result<Self> {
        members::check(&predictors.iter().map(|predictor| predictor.card()).collect::<Vec<_>>())?;
        if settings.threads == Some(0) {
            return Err(Error::Usage("a run needs at least one thread".into()));
        }
        check_batch(&settings)?;
        let threads =
            settings.threads.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, std::num::NonZero::get));
        Ok(Self { predictors, settings, pools: Arc::new(Pools::new(threads)?), threads })
    }

    /// The same models with other settings, on the threads of this one, whatever those settings say of threads. Of several that run at the same
    /// time, one at a time has the network, with all threads.
    ///
    /// # Errors
    /// [`Error::Usage`] if the settings ask for an impossible batch.
    pub fn with(&self, settings: Settings) -> Result<Self> {
        check_batch(&settings)?;
        Ok(Self {
            predictors: self.predictors.clone(),
            settings,
            pools: Arc::clone(&self.pools),
            threads: self.threads,
        })
    }

    /// What was decided.
    #[must_use]
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Draws something, on the threads for everything but the network.
    pub(crate) fn draw<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        self.pools.pixels.install(work)
    }

    /// A text of the models and of every setting that can change a byte of a mask, as far as that is known without a slide.
    pub(crate) fn identity(&self) -> String {
        // Of these none does.
        let settings = Settings {
            memory: 0,
            scratch: None,
            sync_every: Duration::ZERO,
            batch: None,
            threads: None,
            precision: None,
            ..self.settings.clone()
        };
        let execution: Vec<String> = self.predictors.iter().map(|predictor| predictor.identity()).collect();
        let (version, decoder) = (env!("CARGO_PKG_VERSION"), microtome_io::slide::JPEG_DECODER);
        format!("{version}; {decoder}; {}; {execution:?}; {:?}; {settings:?}", self.models(), self.card().classes)
    }

    /// Decides everything that can be decided without decoding a pixel.
    ///
    /// # Errors
    /// What [`segment`](Self::segment) would refuse: channels or resolutions that do not fit, too little memory.
    pub fn plan(&self, slide: &dyn SlideReader) -> Result<Plan> {
        self.plan_beside(slide, Geometry::new(slide, &self.predictors, &self.settings)?, None)
    }

    /// The plan of a run that holds a user's region besides.
    fn plan_beside(&self, slide: &dyn SlideReader, geometry: Geometry, given: Option<&Region>) -> Result<Plan> {
        let region = given.map_or(0, |given| given.roi.bytes());
        // On the pool that will run the network: what a batch needs depends on its threads.
        let memory = self
            .pools
            .network
            .install(|| MemoryPlan::fit(slide, &self.predictors, &geometry, &self.settings, self.threads, region))?;
        Ok(Plan { tiles: geometry.tiles(), geometry, memory })
    }

    /// Segments a slide into an OME-Zarr store at `output`.
    ///
    /// Nothing is visible there before the mask is complete. Finished parts are noted in a journal in the folder
    /// `OUTPUT.run` beside it: if the run fails or is killed, the same call goes on behind them. Where it fails before
    /// any part is finished, nothing is left.
    ///
    /// # Errors
    /// Every variant of [`Error`]; see [`Error::exit_code`].
    pub fn segment(
        &self,
        slide: &dyn SlideReader,
        output: &Path,
        existing: Existing,
        observer: &dyn Observer,
    ) -> Result<Outcome> {
        self.segment_through(slide, output, None, existing, observer, |image| image)
    }

    /// Segments a slide into the labels of an OME-Zarr image of it, which may be the slide itself: the mask becomes `labels/NAME` of the
    /// image, where the name is that of the [settings](Settings::name), or else the model's.
    ///
    /// All is as with [`segment`](Self::segment), but: the mask has the image's version of OME-Zarr, its unit and as many levels; the image and its other labels
    /// stay as they are; the list of its labels is changed last of all; the run's folder is `IMAGE.NAME.run` beside the image, and
    /// probabilities and confidence go to `IMAGE.NAME.probabilities` and `IMAGE.NAME.confidence` beside it.
    ///
    /// # Errors
    /// As [`segment`](Self::segment); and [`Error::Usage`] or [`Error::Write`] for what is no image of the slide that labels can be put into.
    pub fn segment_label(
        &self,
        slide: &dyn SlideReader,
        image: &Path,
        existing: Existing,
        observer: &dyn Observer,
    ) -> Result<Outcome> {
        let image = self.labelled(image)?;
        let name = self.name();
        let output = image.label(&name).map_err(Error::Write)?;
        let label = LabelOf { image: &image, name: &name };
        self.segment_through(slide, &output, Some(label), existing, observer, |image| image)
    }

    /// The store that [`segment_label`](Self::segment_label) writes.
    ///
    /// # Errors
    /// Those of `segment_label` that concern the image and the name.
    pub fn label_store(&self, image: &Path) -> Result<PathBuf> {
        self.labelled(image)?.label(&self.name()).map_err(Error::Write)
    }

    /// An image that labels of the wanted version can be put into.
    fn labelled(&self, image: &Path) -> Result<LabelledImage> {
        let image = LabelledImage::open(image).map_err(|error| match error {
            // Named by the user and not usable as such: like everything of that kind.
            microtome_io::Error::Format { path, message } | microtome_io::Error::Unsupported { path, message } => {
                Error::Usage(format!("{}: {message}", path.display()))
            }
            other => Error::Write(other),
        })?;
        match self.settings.format {
            Some(format) if format != image.format() => Err(Error::Usage(format!(
                "{}: the image is OME-Zarr {}, and so are its labels: they cannot be {format}",
                image.path().display(),
                image.format()
            ))),
            _ => Ok(image),
        }
    }

    /// The same, with a word in every call to the store: tests let the power fail there.
    pub(crate) fn segment_through<S: ImageSink>(
        &self,
        slide: &dyn SlideReader,
        output: &Path,
        label: Option<LabelOf<'_>>,
        existing: Existing,
        observer: &dyn Observer,
        wrap: impl Fn(ZarrImage) -> S,
    ) -> Result<Outcome> {
        let prepared = self.prepare(slide, label)?;
        let Prepared { plan, given, fingerprint, .. } = &prepared;
        let stores = self.stores(slide, output, label)?;
        let list = || label.map_or(Ok(()), |label| label.image.list(label.name)).map_err(Error::Write);
        let starting = stores.starting();
        let record = match stores.claim(fingerprint, existing)? {
            Claim::Done { unreadable } => {
                // A run that was stopped between its last two steps is finished by the next one.
                list()?;
                RunFolder::of(output).tidy_old();
                return Ok(Outcome::AlreadyDone { unreadable });
            }
            Claim::Resume(record) => Some(record),
            Claim::Free => None,
        };
        let folder = RunFolder::of(output);
        let (result, peak) = memory::watch(|| {
            let header = Value::Object(fingerprint.attributes());
            if let Some(label) = label {
                label.image.make_folder().map_err(Error::Write)?;
            }
            let mut sinks = Vec::new();
            for (product, path) in stores.all() {
                let image =
                    self.image(product, slide.info(), &plan.geometry, fingerprint.attributes(), prepared.form());
                let sink = match &record {
                    None => ZarrImage::create(path, image),
                    Some(record) => {
                        let done = record.entries.keys().filter(|key| key.0 == product).map(|key| (key.1, key.2));
                        ZarrImage::resume(path, image, done)
                    }
                };
                sinks.push((product, sink.map_err(Error::Write)?));
            }
            let journal = match &record {
                None => {
                    folder.create()?;
                    Journal::create(&folder.journal(), &header)?
                }
                Some(record) => {
                    folder.create()?;
                    Journal::resume(&folder.journal(), record)?
                }
            };
            drop(starting);
            let sinks: Vec<_> = sinks.into_iter().map(|(product, sink)| (product, wrap(sink))).collect();
            let sinks: Vec<_> = sinks.iter().map(|(product, sink)| (*product, sink as &dyn ImageSink)).collect();
            let (given, record) = (given.as_ref(), record.as_ref());
            let folder = Some(&folder);
            self.run(&Run { slide, plan, given, sinks: &sinks, observer, record, folder, part: None }, Some(journal))
        });
        match result {
            Ok(mut ran) => {
                list()?;
                ran.summary.peak_memory = peak;
                let summary = self.report(slide, output, &prepared, ran)?;
                Ok(Outcome::Done(Box::new(summary)))
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

    /// Decides everything that a run's place does not depend on.
    fn prepare(&self, slide: &dyn SlideReader, label: Option<LabelOf<'_>>) -> Result<Prepared> {
        let geometry = Geometry::new(slide, &self.predictors, &self.settings)?;
        let place = label.map(|label| LabelPlace::new(label.image, slide.info(), &geometry)).transpose()?;
        let given = self.given(slide, &geometry)?;
        let plan = self.plan_beside(slide, geometry, given.as_ref())?;
        let encoding = Encoding {
            format: label.map(|label| label.image.format()).or(self.settings.format).unwrap_or_default(),
            ..Encoding::default()
        };
        let form = Form { encoding, label: place.as_ref() };
        let fingerprint = self.fingerprint(slide, &plan.geometry, given.as_ref(), form)?;
        Ok(Prepared { plan, given, place, encoding, fingerprint })
    }

    /// Writes the summary of a finished run into its folder, as JSON and as a page.
    fn report(&self, slide: &dyn SlideReader, output: &Path, prepared: &Prepared, ran: Ran) -> Result<Summary> {
        let Ran { summary, tissue, .. } = ran;
        let folder = RunFolder::of(output);
        let path = folder.report();
        let text =
            serde_json::to_vec_pretty(&summary).map_err(|e| Error::Io { path: path.clone(), source: e.into() })?;
        put(&path, &text)?;
        let page = Page {
            slide,
            roi: prepared.given.as_ref().or(tissue.as_ref()).map(|region| &region.roi),
            mask: output,
            cards: &self.cards().collect::<Vec<_>>(),
            attributes: &prepared.fingerprint.attributes(),
            summary: &summary,
        };
        put(&folder.page(), self.pools.pixels.install(|| page.render())?.as_bytes())?;
        Ok(summary)
    }

    /// Segments a slide into any sink, which `sink` makes from the description of the mask. Only labels are written.
    ///
    /// # Errors
    /// As [`segment`](Self::segment), but for what concerns the output path.
    pub fn segment_into<S: ImageSink>(
        &self,
        slide: &dyn SlideReader,
        sink: impl FnOnce(StoredImage) -> microtome_io::Result<S>,
        observer: &dyn Observer,
    ) -> Result<(S, Summary)> {
        let geometry = Geometry::new(slide, &self.predictors, &self.settings)?;
        let given = self.given(slide, &geometry)?;
        let plan = self.plan_beside(slide, geometry, given.as_ref())?;
        let encoding = Encoding { format: self.settings.format.unwrap_or_default(), ..Encoding::default() };
        let form = Form { encoding, label: None };
        let fingerprint = self.fingerprint(slide, &plan.geometry, given.as_ref(), form)?;
        let image = self.image(Product::Labels, slide.info(), &plan.geometry, fingerprint.attributes(), form);
        let sink = sink(image).map_err(Error::Write)?;
        let given = given.as_ref();
        let sinks = [(Product::Labels, &sink as &dyn ImageSink)];
        let run = Run { slide, plan: &plan, given, sinks: &sinks, observer, record: None, folder: None, part: None };
        let ran = self.run(&run, None)?;
        Ok((sink, ran.summary))
    }

    fn run(&self, run: &Run<'_>, journal: Option<Journal>) -> Result<Ran> {
        let &Run { slide, plan, given, sinks, observer, record, folder, part } = run;
        let start = Instant::now();
        slide.keep_decoded(plan.memory.cache);
        let reader = Reader::new(slide, &plan.geometry.target);
        let mut stages = StageTimes::default();
        let geometry = self.cropped(reader, plan.geometry.clone(), &mut stages.crop, observer, folder)?;
        let plan = &Plan { tiles: geometry.tiles(), geometry, memory: plan.memory };
        let geometry = &plan.geometry;
        let covered = geometry.tilings[0].grid.covered();

        let (tissue, tissue_note) = if given.is_none() && self.settings.tissue == TissueMode::Auto {
            observer.phase(Phase::Tissue);
            let found = timed(&mut stages.tissue, || self.tissue(slide, geometry))?;
            let note = found.background.is_none().then_some("no part of the slide looks empty; every tile runs");
            (Some(Region::new(found.roi, RegionOrigin::Tissue)), note)
        } else {
            (None, None)
        };
        let region = given.or(tissue.as_ref());
        if observer.cancelled() {
            return Err(Error::Interrupted);
        }
        let roi = region.map(|region| &region.roi);
        let normalizers = self.normalizers(reader, covered, roi, &mut stages.statistics, observer, folder)?;
        if let (Some(roi), Some(folder)) = (roi, folder) {
            region::picture::write(roi, &geometry.target, &folder.roi())?;
        }
        let block = Size::new(self.settings.chunk, self.settings.chunk);
        let shard = Size::new(self.settings.shard, self.settings.shard);
        let finished: BTreeSet<TileCoord> = record
            .iter()
            .flat_map(|r| r.entries.keys())
            .filter(|key| (key.0, key.1) == (Product::Labels, Level::FINEST))
            .map(|key| key.2)
            .collect();
        let strip_width = plan.memory.strip_width;
        let schedule_without = |cells| {
            let finished = Finished { cells, cell: shard };
            geometry.schedule(roi, &self.settings, strip_width, Some(finished))
        };
        // The shards of other parts count as finished, and this one's are then all there is.
        let none = BTreeSet::new();
        let others = match part {
            None => BTreeSet::new(),
            Some(part) => Shares::new(&schedule_without(&none)?, shard, part.of())?.others(part.index()),
        };
        let all = schedule_without(&others)?;
        let tiles = all.count();
        let shards = geometry.target.size.cells(shard).area() - others.len() as u64;
        let resumed = finished.len() as u64;
        let finished: BTreeSet<TileCoord> = finished.union(&others).copied().collect();
        observer.planned(&self.forecast_of(plan, region, &all, tiles, sinks.iter().map(|(product, _)| *product)));
        let schedule = schedule_without(&finished)?;
        let writer =
            PyramidWriter::new(sinks.iter().copied(), journal, self.settings.sync_every, PYRAMID_BYTES as usize);
        if let Some(record) = record {
            let lanes = plan.memory.lanes(&self.settings, &geometry.decision).min(self.threads);
            self.pools.pixels.install(|| writer.restore(record, lanes, || !observer.cancelled()))?;
            if observer.cancelled() {
                return Err(Error::Interrupted);
            }
        }
        observer.phase(Phase::Segmentation);
        let before = self.devices();
        let products: Vec<Product> = sinks.iter().map(|(product, _)| *product).collect();
        let decision = &geometry.decision;
        let outcome = Pipeline {
            slide_name: &slide.info().path.display().to_string(),
            reader,
            members: &self.members(plan, normalizers),
            schedule: &schedule,
            layout: Layout { image: geometry.target.size, covered, block, shard, roi, decision, products: &products },
            sums: geometry.sums(&products),
            accumulate: geometry.accumulate,
            on_bad_tile: self.settings.on_bad_tile,
            scratch: self.settings.scratch.as_deref(),
            pools: &self.pools,
            finished: &finished,
            observer,
        }
        .run(writer)?;
        let mut notes = Map::new();
        if !outcome.unreadable.is_empty() {
            notes.insert(UNREADABLE.into(), outcome.unreadable.len().into());
        }
        if let Some(crop) = geometry.crop.filter(|crop| !crop.whole) {
            notes.insert("crop".into(), json!(crop));
        }
        for (_, sink) in sinks.iter().filter(|_| part.is_none()) {
            sink.finish(&notes).map_err(Error::Write)?;
        }

        (stages.reading, stages.inference, stages.blending, stages.writing) =
            (outcome.reading, outcome.inference, outcome.blending, outcome.writing);
        let mut summary =
            self.summary(slide, plan, tiles, region, tissue_note, &outcome.counts, resumed, stages, start);
        summary.devices = self.devices().into_iter().zip(&before).map(|(now, before)| now.since(before)).collect();
        summary.segmentation = outcome.elapsed.as_secs_f64();
        summary.unreadable = outcome.unreadable;
        summary.scratch_bytes = outcome.scratch_bytes;
        Ok(Ran { summary, tissue, shards })
    }

    /// What [`segment`](Self::segment) would do with the slide and what it would take: everything is decided, tissue is looked for, and one
    /// batch of tiles is read and computed to reckon with. Nothing is written.
    ///
    /// # Errors
    /// As [`segment`](Self::segment), but for what concerns the output path.
    pub fn forecast(&self, slide: &dyn SlideReader, observer: &dyn Observer) -> Result<Forecast> {
        let geometry = Geometry::new(slide, &self.predictors, &self.settings)?;
        let given = self.given(slide, &geometry)?;
        let plan = self.plan_beside(slide, geometry, given.as_ref())?;
        slide.keep_decoded(plan.memory.cache);
        let reader = Reader::new(slide, &plan.geometry.target);
        let geometry = self.cropped(reader, plan.geometry.clone(), &mut StageTime::default(), observer, None)?;
        let plan = Plan { tiles: geometry.tiles(), geometry, memory: plan.memory };
        let geometry = &plan.geometry;
        let tissue = match self.settings.tissue {
            TissueMode::Auto if given.is_none() => {
                observer.phase(Phase::Tissue);
                Some(Region::new(self.tissue(slide, geometry)?.roi, RegionOrigin::Tissue))
            }
            _ => None,
        };
        let region = given.as_ref().or(tissue.as_ref());
        let roi = region.map(|region| &region.roi);
        let schedule = geometry.schedule(roi, &self.settings, plan.memory.strip_width, None)?;
        let tiles = schedule.count();
        let mut forecast = self.forecast_of(&plan, region, &schedule, tiles, self.settings.products());

        // Numbers of no slide in particular: how long a network takes does not depend on them.
        let usual = ChannelStatistics { mean: 128.0, std: 64.0, min: 0.0, max: 255.0 };
        let mut first_pass = FirstPass::Not;
        let mut normalizers = Vec::new();
        for card in self.cards() {
            let schemes = &card.normalization;
            normalizers.push(Normalizer::new(schemes, &vec![usual; schemes.len()])?);
            if needs_statistics(schemes) && self.settings.norm_stats.known(card)?.is_none() {
                first_pass = FirstPass::Needed;
            }
        }
        let reader = Reader::new(slide, &geometry.target);
        let members = self.members(&plan, normalizers);
        let time = forecast::calibrate(reader, &schedule, &members, &self.pools, first_pass)?;
        forecast.seconds = Some(time);
        Ok(forecast)
    }

    fn forecast_of(
        &self,
        plan: &Plan,
        region: Option<&Region>,
        schedule: &Lockstep<'_>,
        tiles: TileCount,
        products: impl IntoIterator<Item = Product>,
    ) -> Forecast {
        let blocks = schedule.image().cells(schedule.block());
        let wanted = |i: &u64| schedule.wants_block(TileCoord { row: i / blocks.width, column: i % blocks.width });
        let products: Vec<Product> = products.into_iter().collect();
        let scratch = self.settings.scratch.is_some();
        Forecast {
            geometry: plan.geometry.clone(),
            tiles,
            region_share: region.map(|r| r.share),
            strips: schedule.strips().count() as u64,
            blocks: (0..blocks.area()).filter(wanted).count() as u64,
            memory: plan.memory,
            memory_total: plan.memory.total(),
            budget: self.settings.memory,
            disk: DiskPlan::of(schedule, &plan.geometry, &products, self.settings.shard, scratch),
            threads: self.threads,
            seconds: None,
        }
    }

    #[allow(clippy::too_many_arguments)] // Gathers what `run` has found out.
    fn summary(
        &self,
        slide: &dyn SlideReader,
        plan: &Plan,
        tiles: TileCount,
        region: Option<&Region>,
        tissue_note: Option<&'static str>,
        counts: &[u64],
        resumed_shards: u64,
        stages: StageTimes,
        start: Instant,
    ) -> Summary {
        let target = &plan.geometry.target;
        let mm2 = |pixels: u64| target.mpp.map(|m| pixels as f64 * m.x * m.y / 1e6);
        let kind = match region.map(|region| &region.origin) {
            None => RegionKind::Slide,
            Some(RegionOrigin::Tissue) => RegionKind::Tissue,
            Some(RegionOrigin::File(_)) => RegionKind::Region,
        };
        let wanted = region.map_or(target.size.area(), |region| region.roi.pixels(target.size));
        let areas = self
            .card()
            .classes
            .iter()
            .filter(|class| class.value > 0)
            .map(|class| {
                let pixels = counts.get(usize::from(class.value)).copied().unwrap_or(0);
                let share = pixels as f64 / wanted.max(1) as f64;
                ClassArea { class: class.clone(), pixels, mm2: mm2(pixels), share }
            })
            .collect();
        Summary {
            format: slide.info().format.clone(),
            slide: slide.info().size(),
            model: members::name(self.cards()),
            precision: self.settings.precision.clone(),
            geometry: plan.geometry.clone(),
            tiles,
            resumed_shards,
            tissue_share: region.filter(|r| r.origin == RegionOrigin::Tissue).map(|r| r.share),
            tissue_note,
            roi: region.and_then(|region| match &region.origin {
                RegionOrigin::Tissue => None,
                RegionOrigin::File(source) => Some(GivenRoi { source: source.clone(), share: region.share }),
            }),
            region: RegionArea { kind, pixels: wanted, mm2: mm2(wanted) },
            areas,
            stages,
            seconds: start.elapsed().as_secs_f64(),
            memory_plan: plan.memory,
            peak_memory: None,
            threads: self.threads,
            devices: Vec::new(),
            segmentation: 0.0,
            unreadable: Vec::new(),
            scratch_bytes: 0,
            parts: Vec::new(),
        }
    }

    /// The geometry of the image as it is cropped, if it is. What was found is kept with the run.
    fn cropped(
        &self,
        reader: Reader<'_>,
        geometry: Geometry,
        time: &mut StageTime,
        observer: &dyn Observer,
        folder: Option<&RunFolder>,
    ) -> Result<Geometry> {
        if geometry.crop.is_none() {
            return Ok(geometry);
        }
        let image = reader.grid().size.rect();
        let slide = reader.slide().info().size();
        let kept = folder.and_then(|f| std::fs::read(f.crop()).ok());
        let kept = kept.and_then(|bytes| serde_json::from_slice::<Crop>(&bytes).ok()).map(|crop| crop.target);
        if let Some(kept) = kept.filter(|kept| !kept.is_empty() && image.contains(*kept)) {
            let crop = Crop::new(kept, &geometry.target, slide);
            return geometry.cropped(crop);
        }
        observer.phase(Phase::Crop);
        let done = AtomicU64::new(0);
        let progress = |pixels| {
            // Corners are looked at twice.
            let done = done.fetch_add(pixels, Ordering::Relaxed) + pixels;
            observer.progress(done.min(image.size().area()), image.size().area());
            !observer.cancelled()
        };
        let found =
            timed(time, || self.pools.pixels.install(|| microtome_tile::nonzero(reader, self.damage(), &progress)))?;
        let crop = Crop::new(found.ok_or(Error::Interrupted)?, &geometry.target, slide);
        if let Some(folder) = folder {
            let path = folder.crop();
            let text = serde_json::to_vec(&crop).map_err(|e| Error::Io { path: path.clone(), source: e.into() })?;
            put(&path, &text)?;
        }
        geometry.cropped(crop)
    }

    /// The models of a run, each with its normalisation.
    fn members(&self, plan: &Plan, normalizers: Vec<Normalizer>) -> Vec<Member<'_>> {
        let tilings = plan.geometry.tilings.iter();
        let member = |((predictor, tiling), normalizer): ((&&'p dyn Predictor, &Tiling), Normalizer)| Member {
            predictor: *predictor,
            normalizer,
            window: Arc::new(Window::new(tiling.window, tiling.tile)),
            batch: plan.memory.batch_of(*predictor, tiling.tile, &self.settings, self.threads),
        };
        self.predictors.iter().zip(tilings).zip(normalizers).map(member).collect()
    }

    /// The normalisation of each model. Statistics of the slide are taken once for all that need them.
    fn normalizers(
        &self,
        reader: Reader<'_>,
        covered: Rect,
        region: Option<&Roi>,
        time: &mut StageTime,
        observer: &dyn Observer,
        folder: Option<&RunFolder>,
    ) -> Result<Vec<Normalizer>> {
        let mut taken = None;
        let mut normalizer = |card: &Card| {
            let schemes = &card.normalization;
            if !needs_statistics(schemes) {
                return Ok(Normalizer::new(schemes, &[])?);
            }
            if let Some(known) = self.settings.norm_stats.known(card)? {
                return Ok(Normalizer::new(schemes, &known)?);
            }
            let numbers = match &taken {
                Some(numbers) => numbers,
                None => taken.insert(self.image_statistics(
                    schemes.len(),
                    (reader, covered),
                    region,
                    time,
                    observer,
                    folder,
                )?),
            };
            Ok(Normalizer::new(schemes, numbers)?)
        };
        self.cards().map(&mut normalizer).collect()
    }

    /// The statistics of the slide, or of the region if so asked. Those that are taken are kept with the run.
    fn image_statistics(
        &self,
        channels: usize,
        (reader, covered): (Reader<'_>, Rect),
        region: Option<&Roi>,
        time: &mut StageTime,
        observer: &dyn Observer,
        folder: Option<&RunFolder>,
    ) -> Result<Vec<ChannelStatistics>> {
        let region = self.settings.norm_stats.region(region)?;
        if region.is_some_and(|region| !region.touches(covered)) {
            return Ok(norm_stats::nothing(channels));
        }
        let kept = folder.and_then(|f| std::fs::read(f.statistics()).ok());
        let sums = match kept.and_then(|bytes| serde_json::from_slice::<ImageStatistics>(&bytes).ok()) {
            Some(sums) if sums.channels.len() == channels && sums.channels.iter().all(ChannelSums::is_possible) => sums,
            _ => {
                let sums = self.statistics(reader, covered, region, time, observer)?;
                if let Some(folder) = folder {
                    let path = folder.statistics();
                    let text =
                        serde_json::to_vec(&sums).map_err(|e| Error::Io { path: path.clone(), source: e.into() })?;
                    put(&path, &text)?;
                }
                sums
            }
        };
        Ok(norm_stats::numbers(&sums))
    }

    fn statistics(
        &self,
        reader: Reader<'_>,
        covered: Rect,
        region: Option<&Roi>,
        time: &mut StageTime,
        observer: &dyn Observer,
    ) -> Result<ImageStatistics> {
        observer.phase(Phase::Statistics);
        let total = covered.size().area();
        let done = AtomicU64::new(0);
        let progress = |pixels| {
            observer.progress(done.fetch_add(pixels, Ordering::Relaxed) + pixels, total);
            !observer.cancelled()
        };
        let pass = || ImageStatistics::stream(reader, covered, region, self.damage(), &progress);
        let sums = timed(time, || self.pools.pixels.install(pass))?;
        sums.ok_or(Error::Interrupted)
    }

    /// What becomes of tiles that cannot be decoded, before the network sees any.
    fn damage(&self) -> Damage {
        match self.settings.on_bad_tile {
            OnBadTile::Fail => Damage::Fails,
            OnBadTile::Fill => Damage::LeftOut,
        }
    }

    /// Everything that can change a byte of the result.
    fn fingerprint(
        &self,
        slide: &dyn SlideReader,
        geometry: &Geometry,
        given: Option<&Region>,
        form: Form<'_>,
    ) -> Result<Fingerprint> {
        let tissue = match self.settings.tissue {
            TissueMode::Auto if given.is_none() => json!(TissueOptions::default()),
            _ => Value::Null,
        };
        let mut run = Map::new();
        let mut set = |name: &str, value: Value| run.insert(name.into(), value);
        set("microtome", env!("CARGO_PKG_VERSION").into());
        set("decoder", microtome_io::slide::JPEG_DECODER.into());
        set("slide", slide.content_id().map_err(Error::Read)?.into());
        set("colors", json!(geometry.colors));
        set("resolution", json!(geometry.resolution));
        set("target", json!(geometry.target));
        let tilings = || geometry.tilings.iter();
        set("model", self.models());
        set("classes", json!(self.card().classes));
        set("execution", one_or_all(self.predictors.iter().map(|predictor| predictor.identity().into())));
        set("step", one_or_all(tilings().map(|tiling| json!(tiling.step))));
        set("placement", one_or_all(tilings().map(|tiling| json!(tiling.placement))));
        set("window", one_or_all(tilings().map(|tiling| json!(tiling.window))));
        set("accumulate", json!(geometry.accumulate));
        set("crop_nonzero", geometry.crop.is_some().into());
        set("tissue", tissue);
        set("roi", json!(given.map(Region::digest)));
        set("norm_stats", self.norm_stats(given)?);
        set("chunk", json!(self.settings.chunk));
        set("shard", json!(self.settings.shard));
        set("format", json!(form.encoding.format));
        set("label", json!(form.label));
        set("name", self.name().into());
        set("on_bad_tile", json!(self.settings.on_bad_tile));
        set("products", json!(self.settings.products()));
        Ok(Fingerprint::new(run))
    }

    /// Whose statistics are used, and the numbers that are known; nothing where the normalisation needs none.
    fn norm_stats(&self, given: Option<&Region>) -> Result<Value> {
        let norm_stats = &self.settings.norm_stats;
        let nowhere = given.is_none() && self.settings.tissue == TissueMode::None;
        let of = |card: &Card| {
            if !needs_statistics(&card.normalization) {
                return Ok(Value::Null);
            }
            if *norm_stats == NormStats::Tissue && nowhere {
                return Err(norm_stats::no_region());
            }
            Ok(norm_stats.known(card)?.map_or_else(|| json!(norm_stats), |known| json!(known)))
        };
        Ok(one_or_all(self.cards().map(of).collect::<Result<Vec<_>>>()?))
    }

    /// What the models say of themselves.
    fn cards(&self) -> impl Iterator<Item = &Card> {
        self.predictors.iter().map(|predictor| predictor.card())
    }

    /// The card that speaks for all of them.
    fn card(&self) -> &Card {
        self.predictors[0].card()
    }

    /// What the GPUs of all models have done so far.
    fn devices(&self) -> Vec<DeviceUse> {
        self.predictors.iter().flat_map(|predictor| predictor.devices()).collect()
    }

    /// Digests of the models.
    fn models(&self) -> Value {
        one_or_all(self.cards().map(|card| card.sha256.clone().into()))
    }

    fn name(&self) -> String {
        self.settings.name.clone().unwrap_or_else(|| members::name(self.cards()))
    }

    /// The image of a product, but for its pixels.
    fn image(
        &self,
        product: Product,
        slide: &SlideInfo,
        geometry: &Geometry,
        attributes: Map<String, Value>,
        form: Form<'_>,
    ) -> StoredImage {
        let target = &geometry.target;
        let level0 = geometry.resolution.as_ref().map_or(Microns::square(1.0), |r| r.mpp);
        // The centre of a target pixel lies half its extent from the slide's corner, that of a level-0 pixel half of its own.
        let translation = Translation {
            x: (slide.translation.x + (target.downsample.x - 1.0) / 2.0) * level0.x,
            y: (slide.translation.y + (target.downsample.y - 1.0) / 2.0) * level0.y,
        };
        let label = form.label.filter(|_| product == Product::Labels);
        let levels = label.map_or_else(
            || {
                let levels = level_sizes(target.size, self.settings.chunk).len();
                StoreLevel { size: target.size, mpp: target.mpp, translation }.pyramid(levels)
            },
            LabelPlace::levels,
        );
        let mut metadata = Map::new();
        let (name, method, content) = match product {
            Product::Labels => (
                self.name(),
                "microtome: majority of 2 x 2 pixels, ties to the lower label",
                Content::Labels { classes: self.card().classes.clone() },
            ),
            Product::Probabilities => (
                format!("{}: probabilities", self.name()),
                match geometry.crop {
                    None => {
                        "microtome: round(255 p), 0 in all channels where nothing was computed; mean of 2 x 2 pixels"
                    }
                    Some(_) => {
                        "microtome: round(255 p), 0 in all channels where nothing was computed, certainty where a black border was cut off; mean of 2 x 2 pixels"
                    }
                },
                Content::Image { channels: self.channels(&geometry.decision) },
            ),
            Product::Confidence => (
                format!("{}: confidence", self.name()),
                "microtome: round(255 (p1 - p2)) of the two most probable classes, or least |2 p - 1| of regions; mean of 2 x 2 pixels",
                Content::Image { channels: vec![Channel::new("confidence", [255; 3])] },
            ),
        };
        metadata.insert("method".into(), method.into());
        metadata.insert("version".into(), env!("CARGO_PKG_VERSION").into());
        metadata.insert("args".into(), json!({ "model": self.models(), "colors": geometry.colors }));
        StoredImage {
            name,
            levels,
            chunk: Size::new(self.settings.chunk, self.settings.chunk),
            shard: Size::new(self.settings.shard, self.settings.shard),
            sample: product.sample(&geometry.decision),
            encoding: form.encoding,
            source: label.map(LabelPlace::source),
            content,
            method: product.reduction().name().into(),
            metadata,
            attributes,
        }
    }

    /// A channel for each class, or for each region.
    fn channels(&self, decision: &Decision) -> Vec<Channel> {
        let classes = &self.card().classes;
        let channel = |value: u16| {
            let class = classes.iter().find(|class| class.value == value).cloned();
            let class = class.unwrap_or_else(|| Class::with_default_color(value, format!("class {value}")));
            Channel::new(class.name, if value == 0 { [128; 3] } else { class.color })
        };
        match decision {
            Decision::Argmax { classes } => (0..*classes as u16).map(channel).collect(),
            Decision::Regions { values } => values.iter().copied().map(channel).collect(),
        }
    }

    /// Where the wanted pixels are, as [`segment`](Self::segment) decides it, and who says so; `None` if every tile runs.
    ///
    /// # Errors
    /// [`Error::Region`] if the user's region cannot be read, does not fit the slide or holds no pixel of it; [`Error::Read`] if the slide
    /// cannot be read.
    pub fn region(&self, slide: &dyn SlideReader) -> Result<Option<Region>> {
        let geometry = Geometry::new(slide, &self.predictors, &self.settings)?;
        match self.given(slide, &geometry)? {
            None if self.settings.tissue == TissueMode::Auto => {
                Ok(Some(Region::new(self.tissue(slide, &geometry)?.roi, RegionOrigin::Tissue)))
            }
            given => Ok(given),
        }
    }

    fn tissue(&self, slide: &dyn SlideReader, geometry: &Geometry) -> Result<Tissue> {
        let mpp = geometry.resolution.as_ref().map(|r| r.mpp);
        let options = TissueOptions::default();
        let damaged = Conspicuous(slide);
        let slide = match self.settings.on_bad_tile {
            OnBadTile::Fail => slide,
            OnBadTile::Fill => &damaged,
        };
        Ok(self.pools.pixels.install(|| tissue::detect(slide, mpp, &geometry.target, &options))?)
    }

    /// Where the images of a run go.
    ///
    /// # Errors
    /// [`Error::Usage`] if they are to be an archive, or one of them would take the place of what is read.
    fn stores<'l>(&self, slide: &dyn SlideReader, output: &Path, label: Option<LabelOf<'l>>) -> Result<Stores<'l>> {
        let stores = Stores::of(output, &self.settings.products(), label);
        let roi = self.settings.roi.as_ref().map(|roi| roi.path.as_path());
        archive::refuse(output)?;
        for (_, path) in stores.all() {
            distinct(path, roi.into_iter().chain([slide.info().path.as_path()]))?;
        }
        Ok(stores)
    }

    /// Announces the bytes that a run over the slide will read first, where it looks for tissue.
    pub(crate) fn prefetch(&self, slide: &dyn SlideReader) {
        if let (TissueMode::Auto, None, Ok(resolution)) =
            (self.settings.tissue, &self.settings.roi, resolution(slide, &self.settings))
        {
            tissue::prefetch(slide, resolution.map(|r| r.mpp), &TissueOptions::default());
        }
    }

    /// The user's region.
    fn given(&self, slide: &dyn SlideReader, geometry: &Geometry) -> Result<Option<Region>> {
        let Some(source) = &self.settings.roi else { return Ok(None) };
        let mpp = geometry.resolution.as_ref().map(|r| r.mpp);
        let place = Place::of(slide.info(), mpp, &geometry.target);
        let region = self.pools.pixels.install(|| region::load(source, place))?;
        if !region.roi.touches(geometry.target.size.rect()) {
            let message = format!(
                "the region holds no pixel of the slide, which has {} at level 0 and {} where the model works",
                place.slide, place.target.size
            );
            return Err(Error::Region { path: source.path.clone(), message });
        }
        Ok(Some(region))
    }
}

fn check_batch(settings: &Settings) -> Result<()> {
    match settings.batch.filter(|batch| !(1..=MAX_BATCH).contains(batch)) {
        Some(batch) => Err(Error::Usage(format!("a batch of {batch} tiles; it may have 1 to {MAX_BATCH}"))),
        None => Ok(()),
    }
}

/// What is said of the only model, or of each of several.
fn one_or_all(values: impl IntoIterator<Item = Value>) -> Value {
    let mut values: Vec<Value> = values.into_iter().collect();
    match values.len() {
        1 => values.swap_remove(0),
        _ => Value::Array(values),
    }
}

fn timed<R>(time: &mut StageTime, work: impl FnOnce() -> R) -> R {
    let start = Instant::now();
    let result = work();
    time.busy += start.elapsed();
    result
}
