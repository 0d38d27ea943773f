//! What a run will do, decided before it starts.

use microtome_io::Size;
use microtome_io::slide::{Colors, Resolution, ResolutionSource, SlideReader};
use microtome_io::{Microns, SampleType};
use microtome_stitch::{Accumulation, Decision, MeanProbabilities, Product, Sums, WeightSum, Window, WindowShape};
use microtome_tile::{
    Finished, ImageStatistics, Lockstep, Reader, Roi, Schedule, StepRule, TargetGrid, TargetOptions, TargetResolution,
    TileGrid, check_channels, tissue,
};
use microtome_unet::{Card, Output, Predictor};
use serde::Serialize;

use crate::crop::Crop;
use crate::pipeline::lanes;
use crate::settings::Settings;
use crate::{Error, Result, members};

/// Batches that may wait between two stages.
pub(crate) const QUEUE: usize = 2;
/// Bytes of half-built shards that a pyramid may hold: a row of those above the shards of a strip. What does not fit is built from the
/// store again: on wide slides, those that wait for the next strip.
pub(crate) const PYRAMID_BYTES: u64 = 16 << 20;
/// Shards that whoever pushes one into a pyramid holds: it, what is built of it, and the encoded bytes.
const SHARDS_PUSHED: u64 = 3;
/// Pages of written files that may wait for the disk: the store syncs whenever it has written so much.
pub(crate) const DIRTY_BYTES: u64 = 16 << 20;
/// The largest side of a shard, in pixels: a store takes no more than 2^30 pixels in a shard.
pub(crate) const MAX_SHARD: u64 = 1 << 15;
/// Code, stacks, allocator slack and everything too small to name.
const FIXED_BYTES: u64 = 96 << 20;

/// The resolution that counts: the user's word before the slide's.
///
/// # Errors
/// [`Error::Usage`] if the user's is not plausible.
pub(crate) fn resolution(slide: &dyn SlideReader, settings: &Settings) -> Result<Option<Resolution>> {
    resolution_of(slide, settings.mpp, settings.mpp_from_objective)
}

/// The same: `mpp` is the user's word, and the magnification of the objective counts where nothing else is known, if so asked.
pub(crate) fn resolution_of(
    slide: &dyn SlideReader,
    mpp: Option<f64>,
    from_objective: bool,
) -> Result<Option<Resolution>> {
    match mpp {
        Some(mpp) if (0.01..=100.0).contains(&mpp) => {
            Ok(Some(Resolution { mpp: Microns::square(mpp), source: ResolutionSource::Given }))
        }
        Some(mpp) => Err(Error::Usage(format!("{mpp} um per pixel (--mpp) is not plausible; 0.01 to 100 is"))),
        None => Ok(slide.info().resolution.clone().or_else(|| {
            let power = slide.info().objective_power.filter(|_| from_objective)?;
            // Eyepieces' 10 times, and a camera behind 20x that sees 0.5 um per pixel: the field's rule of thumb.
            let plausible = (1.0..=150.0).contains(&power);
            plausible
                .then(|| Resolution { mpp: Microns::square(10.0 / power), source: ResolutionSource::ObjectivePower })
        })),
    }
}

/// The geometry of a run.
#[derive(Debug, Clone, Serialize)]
pub struct Geometry {
    /// Size and name of a level-0 pixel, and who says so.
    pub resolution: Option<Resolution>,
    /// The slide's colours: as they are stored, or converted by its profile.
    pub colors: Colors,
    /// The virtual image that the network works on.
    pub target: TargetGrid,
    /// Where the image is cropped to what is not black: what is left. All of it, before the slide has been looked at; `None` where it is
    /// not cropped.
    pub crop: Option<Crop>,
    /// How each model goes over it.
    pub tilings: Vec<Tiling>,
    /// With which numbers logits are summed.
    pub accumulate: Accumulation,
    /// From logits to labels.
    pub decision: Decision,
    /// How a label is stored.
    pub sample: SampleType,
}

/// How a model goes over the target grid.
#[derive(Debug, Clone, Serialize)]
pub struct Tiling {
    /// The model's name.
    pub model: String,
    /// Its card's.
    pub sha256: String,
    /// One network input.
    pub tile: Size,
    /// Step between tiles, as a fraction of a tile.
    pub step: f64,
    /// Whose rule says where tiles lie.
    pub placement: StepRule,
    /// Weights of a tile.
    pub window: WindowShape,
    #[serde(skip)]
    pub(crate) grid: TileGrid,
}

impl Geometry {
    /// The geometry of a run of these models, which agree in what their mask is.
    pub(crate) fn new(slide: &dyn SlideReader, predictors: &[&dyn Predictor], settings: &Settings) -> Result<Self> {
        let cards: Vec<&Card> = predictors.iter().map(|predictor| predictor.card()).collect();
        let card = cards[0];
        check_channels(slide, card.channels.len())?;
        if let (SampleType::U16, Some(card)) = (slide.info().sample, cards.iter().find(|card| card.presumes_8_bits())) {
            return Err(Error::Usage(format!(
                "{}: its samples have 16 bits, and the model {} divides samples of 8 bits by 255 (RGBTo01Normalization): convert the slide to 8 bits, as the training images were",
                slide.info().path.display(),
                card.name
            )));
        }
        let resolution = resolution(slide, settings)?;
        let target = match settings.model_mpp {
            Some(target) => target,
            None => TargetResolution::Mpp(members::mpp(&cards, settings.mpp_tolerance)?),
        };
        let options = TargetOptions {
            resolution: target,
            tolerance: settings.mpp_tolerance,
            max_enlargement: settings.max_enlargement,
        };
        let target = TargetGrid::plan(slide.info(), resolution.as_ref().map(|r| r.mpp), &options)?;
        let decision = match &card.output {
            Output::Labels => Decision::Argmax { classes: card.classes.len() },
            Output::Regions { class_order } => Decision::Regions { values: class_order.clone() },
        };
        let tilings = cards.iter().map(|card| Tiling::new(card, target.size, settings)).collect::<Result<_>>()?;
        let crops = settings.crop_nonzero.crops(members::crop(&cards, settings.crop_nonzero)?);
        let crop = crops.then(|| Crop::new(target.size.rect(), &target, slide.info().size()));
        Ok(Self {
            resolution,
            colors: slide.info().colors,
            crop,
            target,
            tilings,
            accumulate: settings.accumulate,
            sample: decision.sample(),
            decision,
        })
    }

    /// What has to be summed of each model for these products. Labels of one model need no mean logits; those of several are decided by
    /// probabilities, which do.
    pub(crate) fn sums(&self, products: &[Product]) -> Sums {
        let labels_alone = products.iter().all(|&product| product == Product::Labels);
        let weights = if labels_alone && self.tilings.len() == 1 { WeightSum::Omitted } else { WeightSum::Kept };
        Sums { planes: self.decision.planes(), weights }
    }

    /// The same for an image that is cropped.
    pub(crate) fn cropped(mut self, crop: Crop) -> Result<Self> {
        for tiling in &mut self.tilings {
            let &mut Tiling { tile, step, placement, .. } = tiling;
            tiling.grid = TileGrid::placed(self.target.size, crop.target, tile, step, placement)?;
        }
        self.crop = Some(crop);
        Ok(self)
    }

    /// Tiles of all models.
    pub(crate) fn tiles(&self) -> u64 {
        self.tilings.iter().map(|tiling| tiling.grid.len()).sum()
    }

    /// The order of work, in strips of so many pixels. Without a region every tile runs.
    pub(crate) fn schedule<'a>(
        &'a self,
        roi: Option<&'a Roi>,
        settings: &Settings,
        strip_width: u64,
        finished: Option<Finished<'a>>,
    ) -> Result<Lockstep<'a>> {
        let block = Size::new(settings.chunk, settings.chunk);
        let schedule = |tiling: &'a Tiling| {
            let all = Schedule::new(&tiling.grid, roi, block, strip_width.div_ceil(settings.chunk))?;
            Ok(match finished {
                None => all,
                Some(finished) => all.without(finished),
            })
        };
        let schedules = self.tilings.iter().map(schedule).collect::<microtome_tile::Result<_>>()?;
        Ok(Lockstep::new(schedules)?)
    }
}

impl Tiling {
    fn new(card: &Card, image: Size, settings: &Settings) -> Result<Self> {
        let step = settings.step.unwrap_or(card.step);
        let window = settings.window.unwrap_or(match card.window {
            microtome_unet::Window::Gaussian => WindowShape::Gaussian,
            microtome_unet::Window::GaussianMonai => WindowShape::GaussianMonai,
            microtome_unet::Window::Constant => WindowShape::Constant,
        });
        let nnunets = matches!(window, WindowShape::Gaussian | WindowShape::Constant);
        if settings.accumulate == Accumulation::F16Nnunet && !nnunets {
            let message = "f16-nnunet sums as nnU-Net does (--accumulate), which has no such window: gaussian and constant are its (--window)";
            return Err(Error::Usage(message.into()));
        }
        let placement = match card.placement {
            microtome_unet::Placement::Nnunet => StepRule::Nnunet,
            microtome_unet::Placement::Monai => StepRule::Monai,
        };
        let grid = TileGrid::placed(image, image.rect(), card.tile, step, placement)?;
        let (model, sha256) = (card.name.clone(), card.sha256.clone());
        Ok(Self { model, sha256, tile: card.tile, step, placement, window, grid })
    }
}

/// Bytes of a pixel of every product, which travel together.
fn pixel_bytes(products: &[Product], decision: &Decision) -> u64 {
    products.iter().map(|product| (product.channels(decision) * product.sample(decision).bytes()) as u64).sum()
}

/// Bytes that each part of a run holds at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct MemoryPlan {
    /// Weights of the networks, all of which stay.
    pub weights: u64,
    /// Activations of one batch, of the model that needs most.
    pub activations: u64,
    /// The region of interest that the user gave.
    pub region: u64,
    /// What the slide's reader holds for good: a plain picture is kept decoded.
    pub slide: u64,
    /// Decoded tiles of the slide: those under a row of network tiles across a strip, so that each is decoded once per strip.
    pub cache: u64,
    /// Looking for black borders and for tissue, and the first pass over the slide; over before the rest begins.
    pub first_pass: u64,
    /// Tiles read ahead, and one being read per thread.
    pub reading: u64,
    /// Logits waiting to be blended.
    pub logits: u64,
    /// Weighted sums of each model, and of several the probabilities of a block per thread.
    pub sums: u64,
    /// Labels (and probabilities, and confidence) of unfinished shards.
    pub labels: u64,
    /// Shards waiting to be written, being encoded, half-built ones of coarser levels, and file pages that wait for the disk.
    pub writing: u64,
    /// Everything else.
    pub fixed: u64,
    /// Tiles per call of the network, at most: of several models, one with large tiles takes fewer.
    pub batch: usize,
    /// Width of a strip, in pixels: [`STRIP_TILES`] tiles, or what the budget allows.
    pub strip_width: u64,
}

/// A strip is no wider than so many tiles: then at most one column of tiles in so many runs twice, and what a run holds depends
/// neither on the slide's width nor on a budget that is larger than needed.
pub const STRIP_TILES: u64 = 32;

/// Pixels of a batch where no size is asked for: with fewer, threads wait for each other at the end of every batch.
const BATCH_PIXELS: u64 = 512 * 512;
/// Tiles of such a batch, whatever their size, if they fit.
const FEWEST_TILES: u64 = 4;
const MOST_TILES: u64 = 16;

/// How much the slide's cache may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cache {
    /// Enough to decode each stored tile once per strip.
    Enough,
    /// So little that some are decoded several times.
    Least,
}

/// The smallest cache: a few stored tiles of the usual size.
pub(crate) const LEAST_CACHE: u64 = 8 << 20;

/// What a plan is made of.
struct Planner<'a> {
    slide: &'a dyn SlideReader,
    predictors: &'a [&'a dyn Predictor],
    geometry: &'a Geometry,
    settings: &'a Settings,
    threads: usize,
    /// Bytes of the region of interest that the user gave.
    region: u64,
}

impl MemoryPlan {
    /// The most that is held at once.
    #[must_use]
    pub fn total(&self) -> u64 {
        let segmentation = self.activations + self.reading + self.logits + self.sums + self.labels + self.writing;
        self.weights + self.region + self.slide + self.cache + self.fixed + segmentation.max(self.first_pass)
    }

    /// How many shards of a pyramid that an earlier process began can be built at once: that is over before the rest begins.
    pub(crate) fn lanes(&self, settings: &Settings, decision: &Decision) -> usize {
        let shard = settings.shard * settings.shard * pixel_bytes(&settings.products(), decision);
        let unused = self.activations + self.reading + self.logits + self.sums + self.labels;
        // The first one is in `writing`.
        1 + (unused / (SHARDS_PUSHED * shard).max(1)) as usize
    }

    /// The parts by name, in the order of the data.
    #[must_use]
    pub fn named(&self) -> [(&'static str, u64); 12] {
        [
            ("weights", self.weights),
            ("activations", self.activations),
            ("region", self.region),
            ("slide", self.slide),
            ("decoded tiles", self.cache),
            ("first pass", self.first_pass),
            ("reading", self.reading),
            ("logits", self.logits),
            ("sums", self.sums),
            ("labels", self.labels),
            ("writing", self.writing),
            ("fixed", self.fixed),
        ]
    }

    /// The plan with the widest useful strip that fits the budget.
    pub(crate) fn fit(
        slide: &dyn SlideReader,
        predictors: &[&dyn Predictor],
        geometry: &Geometry,
        settings: &Settings,
        threads: usize,
        region: u64,
    ) -> Result<Self> {
        let pair = settings.chunk.saturating_mul(2);
        if pair == 0 || settings.shard == 0 || !settings.shard.is_multiple_of(pair) || settings.shard > MAX_SHARD {
            return Err(Error::Usage(format!(
                "a shard of {} pixels is not an even multiple, up to {MAX_SHARD}, of a chunk of {}",
                settings.shard, settings.chunk
            )));
        }
        let planner = Planner { slide, predictors, geometry, settings, threads, region };
        let Some((batch, cache)) = planner.largest()? else {
            return Err(planner.refusal()?);
        };
        // The need grows with the width: the widest that fits is found by bisection.
        let shards = geometry.target.size.width.div_ceil(settings.shard);
        let widest = geometry.tilings.iter().map(|tiling| tiling.tile.width).max().unwrap_or(1);
        let useful = (STRIP_TILES * widest).div_ceil(settings.shard);
        let (mut fits, mut too_wide) = (1, shards.min(useful) + 1);
        while too_wide - fits > 1 {
            let middle = fits + (too_wide - fits) / 2;
            if planner.plan(batch, middle, cache)?.total() <= settings.memory {
                fits = middle;
            } else {
                too_wide = middle;
            }
        }
        planner.plan(batch, fits, cache)
    }

    /// Tiles per call of a model's network.
    pub(crate) fn batch_of(&self, predictor: &dyn Predictor, tile: Size, settings: &Settings, threads: usize) -> usize {
        self.batch.min(most_tiles(predictor, tile, settings, threads))
    }
}

/// Tiles per call of a network for as long as memory allows: so many as are asked for, or as its device computes at once, or as keep all
/// threads busy.
fn most_tiles(predictor: &dyn Predictor, tile: Size, settings: &Settings, threads: usize) -> usize {
    let tiles = (BATCH_PIXELS / tile.area().max(1)).clamp(FEWEST_TILES, MOST_TILES) as usize;
    settings.batch.or(predictor.batch()).unwrap_or(threads.max(tiles))
}

impl Planner<'_> {
    /// Batches that may be chosen, the largest first: the one that is asked for, or those that keep all threads busy, and smaller ones.
    fn batches(&self) -> impl Iterator<Item = usize> {
        let tilings = self.predictors.iter().zip(&self.geometry.tilings);
        let most = tilings.map(|(predictor, tiling)| most_tiles(*predictor, tiling.tile, self.settings, self.threads));
        (self.settings.batch.unwrap_or(1)..=most.max().unwrap_or(1)).rev()
    }

    /// The largest batch with which the narrowest strip fits the budget, with a cache that is large enough if there is any such batch.
    fn largest(&self) -> Result<Option<(usize, Cache)>> {
        for cache in [Cache::Enough, Cache::Least] {
            for batch in self.batches() {
                if self.plan(batch, 1, cache)?.total() <= self.settings.memory {
                    return Ok(Some((batch, cache)));
                }
            }
        }
        Ok(None)
    }

    /// What a run of batches of at most so many tiles in strips of so many shards holds.
    fn plan(&self, tiles: usize, strip_shards: u64, cache: Cache) -> Result<MemoryPlan> {
        let &Self { slide, predictors, geometry, settings, threads, region } = self;
        let size = geometry.target.size;
        let strip_width = (strip_shards * settings.shard).min(size.width);
        let schedule = geometry.schedule(None, settings, strip_width, None)?;
        let planes = geometry.decision.planes();
        let products = settings.products();
        let sums = geometry.sums(&products);
        let held = geometry.accumulate.bytes_per_pixel(sums);
        let taken = geometry.accumulate.taken(sums).values() as u64 * 4;
        let pixel = pixel_bytes(&products, &geometry.decision);
        let info = slide.info();
        let sample = (info.channels * info.sample.bytes()) as u64;
        let shard = settings.shard * settings.shard * pixel;
        let reader = Reader::new(slide, &geometry.target);
        let enough = self.decoded_row(strip_width);
        // Tiles of one model at a time travel from stage to stage: what counts is that of which most does.
        let (mut weights, mut sum_bytes, mut windows) = (0, 0, 0);
        let (mut activations, mut batches, mut logits, mut tile_readers) = (0, 0, 0, 0);
        for ((predictor, tiling), schedule) in predictors.iter().zip(&geometry.tilings).zip(schedule.schedules()) {
            let batch = tiles.min(most_tiles(*predictor, tiling.tile, settings, threads));
            let network = predictor.memory(batch);
            weights += network.weights;
            activations = activations.max(network.activations);
            let pixels = batch as u64 * tiling.tile.area();
            batches = batches.max(pixels * sample);
            logits = logits.max(pixels * planes.logits() as u64 * 4);
            tile_readers = tile_readers.max(reader.memory(tiling.tile));
            // Blocks in flight, and one row of them being turned into labels.
            // Where tiles begin is not known yet if the image will be cropped.
            let rows = match geometry.crop {
                None => schedule.block_rows_in_flight(),
                Some(_) => schedule.most_block_rows_in_flight(),
            };
            let rows = rows * settings.chunk;
            sum_bytes += strip_width * (held * rows + taken * settings.chunk);
            windows += Window::new(tiling.window, tiling.tile).bytes();
        }
        // Where several batches are in the network at once, one more waits to be handed out, or for those before it.
        let waiting = match lanes(predictors.iter().copied()) {
            0 | 1 => QUEUE as u64 + 2,
            lanes => (QUEUE + 2 + lanes) as u64,
        };
        if predictors.len() > 1 {
            let block = settings.chunk * settings.chunk;
            sum_bytes += threads as u64 * block * MeanProbabilities::bytes_per_pixel(&geometry.decision);
        }
        Ok(MemoryPlan {
            weights,
            activations,
            region,
            slide: slide.resident_bytes(),
            cache: match cache {
                Cache::Enough => enough,
                Cache::Least => enough.min(LEAST_CACHE),
            },
            first_pass: threads as u64 * reader.memory(ImageStatistics::PIECE).max(tissue::band_bytes(slide)),
            reading: waiting * batches + threads as u64 * tile_readers,
            logits: waiting * logits,
            sums: sum_bytes,
            labels: strip_width * settings.shard * pixel,
            writing: (QUEUE as u64 + 1) * shard
                + SHARDS_PUSHED * shard
                + products.len() as u64 * (PYRAMID_BYTES + DIRTY_BYTES),
            fixed: FIXED_BYTES + windows,
            batch: tiles,
            strip_width,
        })
    }

    /// Bytes of the stored tiles that lie under a row of network tiles across a strip, and under the next row: between the two uses
    /// of a stored tile the reader asks for no more than these. Of several models, between two rows of the one with the largest step others
    /// reach as far below as their tiles are high.
    fn decoded_row(&self, strip_width: u64) -> u64 {
        let (target, info) = (&self.geometry.target, self.slide.info());
        let level = &info.levels[target.level.0];
        if level.tile == level.size && self.slide.resident_bytes() > 0 {
            // A picture that is decoded as a whole, and kept so.
            return 0;
        }
        let tilings = &self.geometry.tilings;
        let most = |of: fn(&Tiling) -> u64| tilings.iter().map(of).max().unwrap_or(0);
        let (width, height) = (most(|t| t.tile.width), most(|t| t.tile.height));
        // So many target pixels lie over at most so many stored tiles; resampling reaches one pixel further to each side.
        let cells = |pixels: u64, step: f64, stored: u64, all: u64| {
            (((pixels as f64 * step).ceil() as u64 + 2).div_ceil(stored) + 1).min(all.div_ceil(stored))
        };
        let rows = height + most(|t| (t.tile.height as f64 * t.step).ceil() as u64);
        let stored = cells(strip_width + 2 * width, target.step.x, level.tile.width, level.size.width)
            * cells(rows, target.step.y, level.tile.height, level.size.height);
        let bytes = level.tile.area() * (info.channels * info.sample.bytes()) as u64;
        // A quarter more, because the cache spreads tiles over parts that do not fill evenly.
        (stored * bytes * 5 / 4).max(LEAST_CACHE)
    }

    /// Why the run does not fit, and the smallest change that would make it.
    fn refusal(&self) -> Result<Error> {
        let budget = self.settings.memory;
        let need = |batch: usize| self.plan(batch, 1, Cache::Least).map(|plan| plan.total());
        let smallest = self.batches().last().unwrap_or(1);
        let needed = need(smallest)?;
        let mut hint = format!("allow it with --memory {}MiB", needed.div_ceil(1 << 20));
        if let Some(batch) = (1..smallest).rev().find(|&batch| need(batch).is_ok_and(|n| n <= budget)) {
            hint = format!("{hint}, or --batch {batch} needs {}", crate::units::Bytes(need(batch)?));
        }
        Ok(Error::Memory { needed, budget, hint })
    }
}
