//! What a run will do, decided before it starts.

use microtome_io::Size;
use microtome_io::slide::{Resolution, ResolutionSource, SlideReader};
use microtome_io::{Microns, SampleType};
use microtome_stitch::{Decision, Sums, WeightSum, Window, WindowShape};
use microtome_tile::{
    ImageStatistics, Reader, Schedule, TargetGrid, TargetOptions, TargetResolution, TileGrid, check_channels, tissue,
};
use microtome_unet::{Output, Predictor};
use serde::Serialize;

use crate::settings::{Settings, cache_bytes};
use crate::{Error, Result};

/// Batches that may wait between two stages.
pub(crate) const QUEUE: usize = 2;
/// Bytes of half-built shards that the label pyramid may hold; what does not fit is built from the store again.
pub(crate) const PYRAMID_BYTES: u64 = 32 << 20;
/// Pages of written files that may wait for the disk: the store syncs whenever it has written so much.
const DIRTY_BYTES: u64 = 32 << 20;
/// The largest side of a shard, in pixels: a store takes no more than 2^30 pixels in a shard.
const MAX_SHARD: u64 = 1 << 15;
/// Code, stacks, allocator slack and everything too small to name.
const FIXED_BYTES: u64 = 96 << 20;

/// The resolution that counts: the user's word before the slide's.
///
/// # Errors
/// [`Error::Usage`] if the user's is not plausible.
pub(crate) fn resolution(slide: &dyn SlideReader, settings: &Settings) -> Result<Option<Resolution>> {
    match settings.mpp {
        Some(mpp) if (0.01..=100.0).contains(&mpp) => {
            Ok(Some(Resolution { mpp: Microns::square(mpp), source: ResolutionSource::Given }))
        }
        Some(mpp) => Err(Error::Usage(format!("{mpp} um per pixel (--mpp) is not plausible; 0.01 to 100 is"))),
        None => Ok(slide.info().resolution.clone()),
    }
}

/// The geometry of a run.
#[derive(Debug, Clone, Serialize)]
pub struct Geometry {
    /// Size and name of a level-0 pixel, and who says so.
    pub resolution: Option<Resolution>,
    /// The virtual image that the network works on.
    pub target: TargetGrid,
    /// Step between tiles, as a fraction of a tile.
    pub step: f64,
    /// Weights of a tile.
    pub window: WindowShape,
    /// From logits to labels.
    pub decision: Decision,
    /// How a label is stored.
    pub sample: SampleType,
    #[serde(skip)]
    pub(crate) tiles: TileGrid,
}

impl Geometry {
    pub(crate) fn new(slide: &dyn SlideReader, predictor: &dyn Predictor, settings: &Settings) -> Result<Self> {
        let card = predictor.card();
        check_channels(slide, card.channels.len())?;
        let resolution = resolution(slide, settings)?;
        let target = match (settings.model_mpp, card.mpp) {
            (Some(target), _) => target,
            (None, Some(mpp)) => TargetResolution::Mpp(mpp),
            (None, None) => {
                return Err(Error::Usage(format!(
                    "the model {} does not say at which resolution it works: give it (--model-mpp, micrometres per pixel), or --model-mpp native to run on level 0 as it is",
                    card.name
                )));
            }
        };
        let options = TargetOptions {
            resolution: target,
            tolerance: settings.mpp_tolerance,
            max_enlargement: settings.max_enlargement,
        };
        let target = TargetGrid::plan(slide.info(), resolution.as_ref().map(|r| r.mpp), &options)?;
        let step = settings.step.unwrap_or(card.step);
        let decision = match &card.output {
            Output::Labels => Decision::Argmax { classes: card.classes.len() },
            Output::Regions { class_order } => Decision::Regions { values: class_order.clone() },
        };
        let window = match card.window {
            microtome_unet::Window::Gaussian => WindowShape::Gaussian,
            microtome_unet::Window::Constant => WindowShape::Constant,
        };
        let tiles = TileGrid::new(target.size, card.tile, step)?;
        Ok(Self { resolution, target, step, window, sample: decision.sample(), decision, tiles })
    }
}

/// Bytes that each part of a run holds at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct MemoryPlan {
    /// Weights of the network.
    pub weights: u64,
    /// Activations of one batch.
    pub activations: u64,
    /// The region of interest that the user gave.
    pub region: u64,
    /// What the slide's reader holds for good: a plain picture is kept decoded.
    pub slide: u64,
    /// Decoded tiles of the slide.
    pub cache: u64,
    /// Looking for tissue, and the first pass over the slide; over before the rest begins.
    pub first_pass: u64,
    /// Tiles read ahead, and one being read per thread.
    pub reading: u64,
    /// Logits waiting to be blended.
    pub logits: u64,
    /// Weighted sums.
    pub sums: u64,
    /// Labels of unfinished shards.
    pub labels: u64,
    /// Shards waiting to be written, being encoded, half-built ones of coarser levels, and file pages that wait for the disk.
    pub writing: u64,
    /// Everything else.
    pub fixed: u64,
    /// Width of a strip, in pixels: as wide as the budget allows.
    pub strip_width: u64,
}

impl MemoryPlan {
    /// The most that is held at once.
    #[must_use]
    pub fn total(&self) -> u64 {
        let segmentation = self.activations + self.reading + self.logits + self.sums + self.labels + self.writing;
        self.weights + self.region + self.slide + self.cache + self.fixed + segmentation.max(self.first_pass)
    }

    /// The plan with the widest strip that fits the budget.
    pub(crate) fn fit(
        slide: &dyn SlideReader,
        predictor: &dyn Predictor,
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
        let shards = geometry.target.size.width.div_ceil(settings.shard);
        let with = |strip_shards: u64| {
            Self::of(slide, predictor, geometry, settings, threads, strip_shards).map(|plan| Self { region, ..plan })
        };
        let narrowest = with(1)?;
        if narrowest.total() > settings.memory {
            let alone = Settings { batch: 1, ..settings.clone() };
            let least = Self::of(slide, predictor, geometry, &alone, threads, 1)?.total() + region;
            let hint = if least <= settings.memory {
                format!("--batch 1 would need {}", crate::units::Bytes(least))
            } else {
                format!("allow it with --memory {}MiB", enough(&narrowest).div_ceil(1 << 20))
            };
            return Err(Error::Memory { needed: narrowest.total(), budget: settings.memory, hint });
        }
        // The need grows with the width: the widest that fits is found by bisection.
        let (mut fits, mut too_wide) = (1, shards + 1);
        while too_wide - fits > 1 {
            let middle = fits + (too_wide - fits) / 2;
            if with(middle)?.total() <= settings.memory {
                fits = middle;
            } else {
                too_wide = middle;
            }
        }
        with(fits)
    }

    fn of(
        slide: &dyn SlideReader,
        predictor: &dyn Predictor,
        geometry: &Geometry,
        settings: &Settings,
        threads: usize,
        strip_shards: u64,
    ) -> Result<Self> {
        let card = predictor.card();
        let size = geometry.target.size;
        let block = Size::new(settings.chunk, settings.chunk);
        let strip_width = (strip_shards * settings.shard).min(size.width);
        let schedule = Schedule::new(&geometry.tiles, None, block, strip_width.div_ceil(settings.chunk))?;
        let rows = schedule.block_rows_in_flight() * settings.chunk;
        let planes = geometry.decision.planes();
        let sums = Sums { planes, weights: WeightSum::Omitted }.values() as u64;
        let label = geometry.sample.bytes() as u64;
        let info = slide.info();
        let tile = card.tile.area() * (info.channels * info.sample.bytes()) as u64;
        let logits = card.tile.area() * planes.logits() as u64 * 4;
        let batch = settings.batch as u64;
        let network = predictor.memory(settings.batch);
        let shard = settings.shard * settings.shard * label;
        let reader = Reader::new(slide, &geometry.target);
        Ok(Self {
            weights: network.weights,
            activations: network.activations,
            region: 0,
            slide: slide.resident_bytes(),
            cache: settings.cache_bytes(),
            first_pass: threads as u64 * reader.memory(ImageStatistics::PIECE).max(tissue::band_bytes(slide)),
            reading: (QUEUE as u64 + 2) * batch * tile + threads as u64 * reader.memory(card.tile),
            logits: (QUEUE as u64 + 2) * batch * logits,
            // Blocks in flight, and one row of them being turned into labels.
            sums: strip_width * sums * 4 * (rows + settings.chunk),
            labels: strip_width * settings.shard * label,
            writing: (QUEUE as u64 + 1) * shard + 3 * shard + PYRAMID_BYTES + DIRTY_BYTES,
            fixed: FIXED_BYTES + Window::new(geometry.window, card.tile).bytes(),
            strip_width,
        })
    }
}

/// The smallest budget that a plan fits, in steps of a mebibyte: the slide's cache grows with the budget.
fn enough(plan: &MemoryPlan) -> u64 {
    let others = plan.total() - plan.cache;
    let mut budget = others;
    while others + cache_bytes(budget) > budget {
        budget += 1 << 20;
    }
    budget
}
