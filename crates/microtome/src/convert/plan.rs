//! What a conversion will do and hold, decided before it starts.

use std::collections::BTreeMap;

use microtome_io::slide::{GATHERED, LevelInfo, Resolution, SlideInfo, SlideReader};
use microtome_io::store::{StoreLevel, Translation};
use microtome_io::{Level, Microns, Rect, Size};
use microtome_tile::pyramid::{Reduction, level_sizes};
use serde::Serialize;

use super::associated;
use super::options::{ConvertOptions, Levels};
use crate::plan::{DIRTY_BYTES, LEAST_CACHE, MAX_SHARD, resolution_of};
use crate::{Error, Result};

/// Most bytes of half-built shards: where more would be held, parts are built from the store again.
const MOST_HALF_BUILT: u64 = 64 << 20;
/// Levels of which a half-built shard may be held, besides those of the first level above that each thread fills.
const LEVELS_HALF_BUILT: u64 = 1;
/// Code, stacks, allocator slack and everything too small to name.
const FIXED_BYTES: u64 = 32 << 20;
/// How far the ratio of a stored level may be off what is expected, as a fraction of it.
const RATIO_TOLERANCE: f64 = 0.01;

/// What a conversion will do.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ConvertPlan {
    /// The slide's level that becomes the finest one.
    pub level: Level,
    /// The part of it that is converted, in its pixels.
    pub rect: Rect,
    /// How levels are made.
    pub reduction: Reduction,
    /// Physical size of a level-0 pixel of the slide, and who says so.
    pub resolution: Option<Resolution>,
    /// The levels that are written, from the finest to the coarsest.
    pub levels: Vec<StoreLevel>,
    /// Those of them whose pixels are copied from a level of the slide, with that level. Level 0 always is.
    pub copied: BTreeMap<Level, Level>,
    /// In which order shards of level 0 are converted.
    pub order: VisitingOrder,
    /// True if the slide's reader may keep so many decoded cells that each is decoded once, or nearly.
    pub decoded_once: bool,
    /// Bytes that each part holds at most.
    pub memory: ConvertMemory,
    /// Threads.
    pub threads: usize,
}

/// In which order the shards of a level are converted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum VisitingOrder {
    /// Square by square: the least is half built then, whatever the size of the slide.
    Z,
    /// Row by row: for slides that are stored in cells wider than two shards, such as strips, so that each cell is decoded once.
    Rows,
}

impl VisitingOrder {
    /// The order in which shards of this side are made of a level.
    pub(crate) fn of(level: &LevelInfo, shard: u64) -> Self {
        if level.tile.width > 2 * shard { Self::Rows } else { Self::Z }
    }
}

/// Bytes that each part of a conversion holds at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct ConvertMemory {
    /// What the slide's reader holds for good: a plain picture is kept decoded.
    pub slide: u64,
    /// Decoded cells of the slide.
    pub cache: u64,
    /// Shards being read, one for each thread, with the cells that they are put together from.
    pub reading: u64,
    /// Shards being halved, put together, encoded and written, by each thread.
    pub writing: u64,
    /// Half-built shards.
    pub half_built: u64,
    /// File pages that wait for the disk.
    pub dirty: u64,
    /// The largest of the pictures that travel along; over before the rest begins.
    pub associated: u64,
    /// Everything else.
    pub fixed: u64,
}

impl ConvertMemory {
    /// The most that is held at once.
    #[must_use]
    pub fn total(&self) -> u64 {
        let pyramid = self.cache + self.reading + self.writing + self.half_built;
        self.slide + self.dirty + self.fixed + pyramid.max(self.associated)
    }

    /// The parts by name, in the order of the data.
    #[must_use]
    pub fn named(&self) -> [(&'static str, u64); 8] {
        [
            ("slide", self.slide),
            ("decoded tiles", self.cache),
            ("reading", self.reading),
            ("writing", self.writing),
            ("half built", self.half_built),
            ("dirty pages", self.dirty),
            ("associated", self.associated),
            ("fixed", self.fixed),
        ]
    }
}

impl ConvertPlan {
    /// Decides everything that can be decided without decoding a pixel.
    ///
    /// # Errors
    /// [`Error::Usage`] for a level, a rectangle, a number of levels, chunks or shards that cannot be; [`Error::Memory`] if the conversion does
    /// not fit the budget.
    pub fn new(slide: &dyn SlideReader, options: &ConvertOptions) -> Result<Self> {
        let info = slide.info();
        let source = info.levels.get(options.level.0).ok_or_else(|| {
            Error::Usage(format!("there is no level {} (--level): the slide has {}", options.level, info.levels.len()))
        })?;
        let rect = options.rect.unwrap_or(source.size.rect());
        if rect.is_empty() || !source.size.rect().contains(rect) {
            return Err(Error::Usage(format!(
                "the rectangle {rect} (--rect) is not inside of level {}, which has {} pixels",
                options.level, source.size
            )));
        }
        let (chunk, shard) = (options.chunk, options.shard);
        if chunk == 0 || shard == 0 || !shard.is_multiple_of(chunk) || !shard.is_multiple_of(2) || shard > MAX_SHARD {
            return Err(Error::Usage(format!(
                "a shard of {shard} pixels (--shard) is not an even multiple, up to {MAX_SHARD}, of a chunk of {chunk} (--chunk)"
            )));
        }
        let threads = match options.threads {
            Some(0) => return Err(Error::Usage("a conversion needs at least one thread".into())),
            Some(threads) => threads,
            None => std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
        };
        let reduction = reduction(info, options)?;
        let resolution = resolution_of(slide, options.mpp, false)?;
        let count = count(rect.size(), options)?;
        let mut levels = finest(source, info.translation, rect, resolution.as_ref()).pyramid(count);
        let copied = copied(slide, options, rect, &levels);
        if !reduction.moves_centres() {
            // A pixel that stands for the top left one of four has its centre where that one has it.
            for n in (1..levels.len()).filter(|&n| !copied.contains_key(&Level(n))) {
                levels[n].translation = levels[n - 1].translation;
            }
        }
        let order = VisitingOrder::of(source, shard);
        let sizes: Vec<Size> = levels.iter().map(|level| level.size).collect();
        let sources: Vec<Source<'_>> = copied
            .iter()
            .map(|(level, of)| {
                let info = &slide.info().levels[of.0];
                let rect = if *level == Level::FINEST { rect } else { info.size.rect() };
                Source { info, rect, order: VisitingOrder::of(info, shard) }
            })
            .collect();
        let planner = Planner { slide, options, sources: &sources, sizes: &sizes, threads };
        let memory = planner.fit()?;
        let decoded_once = memory.cache == planner.cache();
        Ok(Self {
            level: options.level,
            rect,
            reduction,
            resolution,
            memory,
            levels,
            copied,
            order,
            decoded_once,
            threads,
        })
    }

    /// Pixels that are read: of level 0, and of the levels that are copied.
    #[must_use]
    pub fn pixels(&self) -> u64 {
        self.copied.keys().map(|level| self.levels[level.0].size.area()).sum()
    }
}

/// How many levels there are to be.
fn count(size: Size, options: &ConvertOptions) -> Result<usize> {
    match options.levels {
        Levels::Enough | Levels::Source => Ok(level_sizes(size, options.chunk).len()),
        Levels::Count(count) => {
            let most = level_sizes(size, 1).len();
            if (1..=most).contains(&count) {
                return Ok(count);
            }
            Err(Error::Usage(format!("{count} levels (--levels) of {size} pixels; there can be 1 to {most}")))
        }
    }
}

/// How levels are made.
fn reduction(info: &SlideInfo, options: &ConvertOptions) -> Result<Reduction> {
    match (options.reduction, &info.classes) {
        (Some(Reduction::Mean), Some(_)) => {
            let message =
                "these are labels, which have no mean (--reduction mean): leave it out, or take mode, nearest or max";
            Err(Error::Usage(format!("{}: {message}", info.path.display())))
        }
        (Some(reduction), _) => Ok(reduction),
        (None, Some(_)) => Ok(Reduction::Mode),
        (None, None) => Ok(Reduction::Mean),
    }
}

/// The finest level: what part of the slide it is, and where it lies. The slide's own first pixel lies at `origin`, in pixels of its level 0.
fn finest(source: &LevelInfo, origin: Translation, rect: Rect, resolution: Option<&Resolution>) -> StoreLevel {
    let downsample = source.downsample;
    // The centre of the level's pixel n lies (n + 0.5) of its extents from the slide's corner, that of the slide's first pixel half of its own.
    let along = |first: i64, downsample: f64| (first as f64 + 0.5) * downsample - 0.5;
    let (x, y) = (origin.x + along(rect.x, downsample.x), origin.y + along(rect.y, downsample.y));
    match resolution {
        Some(Resolution { mpp, .. }) => StoreLevel {
            size: rect.size(),
            mpp: Some(Microns { x: mpp.x * downsample.x, y: mpp.y * downsample.y }),
            translation: Translation { x: x * mpp.x, y: y * mpp.y },
        },
        // In pixels of the level that is converted.
        None => StoreLevel {
            size: rect.size(),
            mpp: None,
            translation: Translation { x: x / downsample.x, y: y / downsample.y },
        },
    }
}

/// Levels that are copied, with the slide's levels that they are copied from.
fn copied(
    slide: &dyn SlideReader,
    options: &ConvertOptions,
    rect: Rect,
    levels: &[StoreLevel],
) -> BTreeMap<Level, Level> {
    let mut copied = BTreeMap::from([(Level::FINEST, options.level)]);
    let stored = &slide.info().levels;
    let source = &stored[options.level.0];
    if options.levels != Levels::Source || rect != source.size.rect() {
        return copied;
    }
    for (n, level) in levels.iter().enumerate().skip(1) {
        // What the file states, or what follows of sizes that are rounded, is a power of two, or nearly.
        let near = |ratio: f64, finer: u64, coarser: u64| {
            let ratios = [2f64.powi(n as i32), finer as f64 / coarser as f64];
            ratios.into_iter().any(|expected| (ratio / expected - 1.0).abs() <= RATIO_TOLERANCE)
        };
        let same = |found: &LevelInfo| {
            let (found_by, source_by) = (found.downsample, source.downsample);
            found.stored
                && found.size == level.size
                && near(found_by.x / source_by.x, source.size.width, level.size.width)
                && near(found_by.y / source_by.y, source.size.height, level.size.height)
        };
        if let Some(found) = (options.level.0 + 1..stored.len()).find(|&l| same(&stored[l])) {
            copied.insert(Level(n), Level(found));
        }
    }
    copied
}

/// How much may be kept so that nothing is decoded or built twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kept {
    Enough,
    /// Half-built shards are built from the store again where they do not fit.
    FewShards,
    /// And cells are decoded several times.
    Least,
}

/// What a plan is made of.
struct Planner<'a> {
    slide: &'a dyn SlideReader,
    options: &'a ConvertOptions,
    /// The levels of the slide that are read, one after the other.
    sources: &'a [Source<'a>],
    /// Of the levels that are written.
    sizes: &'a [Size],
    threads: usize,
}

/// A level of the slide that is read.
struct Source<'a> {
    info: &'a LevelInfo,
    /// What is read of it.
    rect: Rect,
    order: VisitingOrder,
}

impl Planner<'_> {
    fn fit(&self) -> Result<ConvertMemory> {
        let plans = [Kept::Enough, Kept::FewShards, Kept::Least].map(|kept| self.plan(kept));
        if let Some(plan) = plans.iter().find(|plan| plan.total() <= self.options.memory) {
            return Ok(*plan);
        }
        let least = plans[2];
        let needed = least.total();
        let mut hint = format!("allow it with --memory {}MiB", needed.div_ceil(1 << 20));
        if least.associated > least.cache + least.reading + least.writing + least.half_built {
            hint = format!("{hint}, or leave out the pictures that travel along with --no-associated");
        } else if self.threads > 1 || self.options.shard > 2 * self.options.chunk {
            hint = format!("{hint}; fewer --threads and a smaller --shard need less");
        }
        Err(Error::Memory { needed, budget: self.options.memory, hint })
    }

    fn plan(&self, kept: Kept) -> ConvertMemory {
        let threads = self.threads as u64;
        let info = self.slide.info();
        let pixel = (info.channels * info.sample.bytes()) as u64;
        let shard = |size: Size| size.width.min(self.options.shard) * size.height.min(self.options.shard) * pixel;
        let whole = shard(self.sizes[0]);
        let cell = self.sources.iter().map(|source| source.info.tile.area() * pixel).max().unwrap_or(0);
        let chunk = self.options.chunk * self.options.chunk * info.sample.bytes() as u64;
        // In Z-order, of each level three quarters of a shard wait for the fourth, and of the first level above as many for each thread.
        let waiting: u64 = self.sizes.iter().skip(1).map(|&size| shard(size) * 3 / 4).sum();
        let waiting = if self.sources.iter().all(|source| source.order == VisitingOrder::Z) {
            // Of how many levels there are nothing may depend: the coarsest, which wait longest, are built from the store where they do not fit.
            (waiting + threads * whole * 3 / 4).min((threads + LEVELS_HALF_BUILT) * whole * 3 / 4)
        } else {
            // Row by row, half of a row of shards waits for the next row, on each level.
            self.sizes.iter().skip(1).map(|size| size.width * self.options.shard * pixel / 2).sum()
        };
        let waiting = if self.sizes.len() > 1 { waiting.min(MOST_HALF_BUILT) } else { 0 };
        // A picture that is decoded as a whole, and kept so, is cut without a copy of its cells.
        let gathered = if self.sources.iter().all(|source| self.kept_whole(source)) { 0 } else { GATHERED + cell };
        ConvertMemory {
            slide: self.slide.resident_bytes(),
            cache: match kept {
                Kept::Enough | Kept::FewShards => self.cache(),
                Kept::Least => self.cache().min(LEAST_CACHE),
            },
            reading: threads * (whole + gathered),
            // A shard and its encoded form; or the quarters of one and the whole; and a half of what was finished before.
            writing: threads * (whole * 3 / 2 + 2 * chunk),
            half_built: match kept {
                Kept::Enough => waiting,
                Kept::FewShards | Kept::Least => waiting.min(whole),
            },
            dirty: DIRTY_BYTES + threads * whole,
            associated: associated::bytes(info, self.options),
            fixed: FIXED_BYTES,
        }
    }

    fn kept_whole(&self, source: &Source<'_>) -> bool {
        source.info.tile == source.info.size && self.slide.resident_bytes() > 0
    }

    /// Bytes of decoded cells with which each is decoded once, or nearly: what the level takes that takes most.
    fn cache(&self) -> u64 {
        self.sources.iter().map(|source| self.cache_of(source)).max().unwrap_or(0)
    }

    fn cache_of(&self, source: &Source<'_>) -> u64 {
        if self.kept_whole(source) {
            return 0;
        }
        let info = self.slide.info();
        let (rect, tile) = (source.rect, source.info.tile);
        let Size { width, height } = tile;
        let cell = tile.area() * (info.channels * info.sample.bytes()) as u64;
        let shard = self.options.shard;
        let aligned = |first: i64, cell: u64| shard.is_multiple_of(cell) && (first as u64).is_multiple_of(cell);
        let along = |pixels: u64, first: i64, cell: u64| {
            if aligned(first, cell) { pixels.div_ceil(cell) } else { pixels.div_ceil(cell) + 1 }
        };
        let rows = along(shard.min(rect.height), rect.y, height);
        match source.order {
            // The cells under a row of shards, and a quarter more, because the cache spreads cells over parts that do not fill evenly.
            VisitingOrder::Rows => {
                let across = (rect.right() as u64).div_ceil(width) - rect.x as u64 / width;
                across * rows * cell * 5 / 4
            }
            VisitingOrder::Z => {
                let under = along(shard.min(rect.width), rect.x, width) * rows * cell;
                if aligned(rect.x, width) && aligned(rect.y, height) {
                    // No cell is wanted twice: only so many as let the reader put a shard together at once, if it would.
                    if under <= GATHERED { GATHERED } else { 0 }
                } else {
                    // Cells that reach into a neighbouring shard are mostly wanted again within the next few shards.
                    (4 * under).max(LEAST_CACHE)
                }
            }
        }
    }
}
