//! DeepZoom: a slide as a folder of small pictures, for viewers in the browser such as OpenSeadragon.
//!
//! # How it is made
//!
//! The levels above the finest are means of 2 x 2 pixels of the one below ([`Reduction::Mean`]; labels by [`Reduction::Mode`]), each from the
//! one before, in the samples of the slide: whatever the threads, the order or the cells, the same pixels.
//! No level is ever in memory. The slide is read cell by cell (`geometry`), some 2000 x 2000 pixels with a rim of 16, and of each cell all
//! tiles of four levels are made while it is in memory. The level after these, which has 256 times fewer pixels than the one that was read,
//! waits in a file without a name (`scratch`) and is read in the same way, until one cell is left.
//! It is not our own Zarr store that waits there, because nothing would be won by its codecs, and nothing can be left of a file
//! without a name, however the process ends. A rim is read in place of tiles that wait for their neighbours, because those would be a row
//! as wide as the slide.
//!
//! # Memory
//!
//! A thread holds one cell with all that is made of it, 17 MB of RGB pixels of 8 bits, and a tile. At most [`MOST_CELLS`] threads do; further ones help them
//! to decode and to encode. Besides, the slide keeps decoded what the next cell's rim needs again. None of it depends on the slide's size.
//!
//! # Order
//!
//! Cells follow each other down a column of cells, then down the next. So the tiles of the slide that lie under the lower edge of a cell are
//! wanted by the next one, while they are in the cache; those under its right edge are decoded again, 12 % of all with tiles of 240 pixels.
//! To keep these, too, the cache would have to grow with the height of the slide.
//!
//! Of a slide that is stored in cells much wider than one of ours (strips of a TIFF), all would be decoded again in each column. There, cells
//! follow each other along a row, and the slide keeps what lies under the row: as much as the slide is wide, if that is no more than half of the memory
//! that a run may take where nobody says otherwise ([`Allowance::budget`](crate::Allowance::budget)).

mod geometry;
mod jpeg;
mod place;
mod scratch;
mod tiles;

use std::fmt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use microtome_io::slide::SlideReader;
use microtome_io::{Class, Level, Pixels, Rect, Size, TileCoord};
use microtome_tile::pyramid::Reduction;
use rayon::prelude::*;

use crate::output::{Existing, put};
use crate::{Error, Observer, Phase, Result, memory};
use geometry::{Geometry, Hop, halved, tiles_in};
use place::Place;
use scratch::Scratch;
use tiles::{Coloring, TileWriter};

/// Cells that are in memory at most, each worked on by a thread.
const MOST_CELLS: usize = 8;

/// The most pixels that a side of a tile may have.
const MOST_TILE: u32 = 4096;

/// Bytes of decoded tiles of the slide that are kept, at least and at most.
const CACHE: std::ops::RangeInclusive<u64> = 8 << 20..=64 << 20;

/// What the samples of a slide are to be shown as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shown<'a> {
    /// Grey or RGB. Of 16 bits a sample the upper 8 are shown.
    Colors,
    /// Labels, in the colours of these classes; background (label 0) is black.
    Labels(&'a [Class]),
}

/// What tiles are written as.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum TileFormat {
    /// JPEG, the smallest and fastest, with losses.
    #[default]
    Jpeg,
    /// PNG, without loss.
    Png,
    /// WebP, without loss.
    WebP,
}

impl TileFormat {
    /// How names of tiles end, and the `Format` that the description states: `jpg`, `png` or `webp`.
    #[must_use]
    pub fn ending(self) -> &'static str {
        match self {
            Self::Jpeg => "jpg",
            Self::Png => "png",
            Self::WebP => "webp",
        }
    }
}

/// How many samples of chroma a JPEG has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Subsampling {
    /// One for each square of 2 x 2 pixels, from their mean: 4:2:0.
    #[default]
    Halved,
    /// One for each pixel: 4:4:4.
    Full,
}

/// Where tiles come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum TileSource {
    /// All are encoded.
    #[default]
    Encode,
    /// Those that the slide holds as JPEG of the same pixels are copied, bit for bit: whole tiles of the same size, without overlap, of a
    /// stored level that has exactly the size of the image's. On levels above the finest these are the scanner's pixels, not means of ours.
    Copy,
}

/// How a DeepZoom image is made.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct DeepZoomOptions {
    /// The side of a tile in pixels, without its overlap: 1 to 4096.
    pub tile_size: u32,
    /// Pixels that a tile has of its neighbours on each side, at most half of a tile.
    pub overlap: u32,
    /// What tiles are written as.
    pub format: TileFormat,
    /// Quality of JPEG tiles, 1 to 100.
    pub quality: u8,
    /// Chroma of JPEG tiles.
    pub subsampling: Subsampling,
    /// Whether tiles of the slide are copied.
    pub tiles: TileSource,
    /// Threads; one per core where that is `None`.
    pub threads: Option<usize>,
}

impl Default for DeepZoomOptions {
    /// Tiles of 254 x 254 pixels with an overlap of 1, so that most files hold 256 x 256: what libvips and OpenSlide's example make.
    fn default() -> Self {
        Self {
            tile_size: 254,
            overlap: 1,
            format: TileFormat::default(),
            quality: 90,
            subsampling: Subsampling::default(),
            tiles: TileSource::default(),
            threads: None,
        }
    }
}

impl DeepZoomOptions {
    fn check(&self) -> Result<()> {
        let fault = match self {
            Self { tile_size, .. } if !(1..=MOST_TILE).contains(tile_size) => {
                format!("tiles of {tile_size} pixels: 1 to {MOST_TILE} can be made")
            }
            Self { tile_size, overlap, .. } if overlap > &(tile_size / 2) => {
                format!("an overlap of {overlap} pixels is more than half of a tile of {tile_size}")
            }
            Self { quality, .. } if !(1..=100).contains(quality) => format!("a quality of {quality}: it is 1 to 100"),
            Self { threads: Some(0), .. } => "0 threads do nothing".into(),
            _ => return Ok(()),
        };
        Err(Error::Usage(fault))
    }
}

/// What was made.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct DeepZoomSummary {
    /// Pixels of the finest level.
    pub size: Size,
    /// Levels, down to one of a single pixel.
    pub levels: usize,
    /// Tiles of all levels.
    pub tiles: u64,
    /// Those of them that were copied from the slide.
    pub copied: u64,
    /// Why none could be copied, where that was asked for.
    pub nothing_copied: Option<String>,
    /// Bytes of all tiles.
    pub bytes: u64,
    /// How long it took.
    pub elapsed: Duration,
    /// What was planned to be held at most: cells, and decoded tiles of the slide.
    pub held_bytes: u64,
}

impl fmt::Display for DeepZoomSummary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (seconds, pixels) = (self.elapsed.as_secs_f64(), self.size.area() as f64 / 1e6);
        let bytes = crate::units::Bytes(self.bytes);
        write!(f, "{} in {} levels, {} tiles, {bytes}, {seconds:.1} s", self.size, self.levels, self.tiles)?;
        write!(f, ", {:.1} Mpx/s", pixels / seconds.max(1e-9))?;
        match (&self.nothing_copied, self.copied) {
            (Some(why), 0) => write!(f, "; no tile copied: {why}"),
            (_, 0) => Ok(()),
            (_, copied) => write!(f, "; {copied} tiles copied"),
        }
    }
}

/// Writes a slide, or a mask that was opened as one, as a DeepZoom image: `output`, which ends in `.dzi`, and the tiles in the folder
/// `NAME_files/LEVEL/COLUMN_ROW.jpg` beside it.
///
/// The description at `output` is written last and appears by rename, after all tiles have been brought to the disk, so that an image without
/// one is not finished.
/// `existing` says what becomes of an image that is there: [`Existing::Keep`] refuses both a finished one and what is left of one that was stopped,
/// [`Existing::Restart`] replaces the latter, [`Existing::Replace`] both; nothing but descriptions and tiles is ever removed.
///
/// # Errors
/// [`Error::Usage`] for options that contradict each other, and a slide with neither 1 nor 3 channels; [`Error::OutputExists`];
/// [`Error::InUse`] if another process begins at the same moment; [`Error::Read`] for a slide that cannot be read; [`Error::Io`];
/// [`Error::Interrupted`] if the observer wants to stop. What was written until then stays.
pub fn deep_zoom(
    slide: &dyn SlideReader,
    shown: Shown<'_>,
    output: &Path,
    options: &DeepZoomOptions,
    existing: Existing,
    observer: &dyn Observer,
) -> Result<DeepZoomSummary> {
    options.check()?;
    let info = slide.info();
    let fits = match shown {
        Shown::Colors => matches!(info.channels, 1 | 3),
        Shown::Labels(_) => info.channels == 1,
    };
    if !fits {
        let (path, channels) = (info.path.display(), info.channels);
        return Err(Error::Usage(format!(
            "{path}: a slide with {channels} channels cannot be shown as a picture (1 or 3 can)"
        )));
    }
    let begun = Instant::now();
    let pool = rayon::ThreadPoolBuilder::new().num_threads(options.threads.unwrap_or(0)).build();
    let pool = pool.map_err(|error| Error::Usage(format!("threads cannot be started: {error}")))?;
    let place = Place::of(output)?;
    let _held = place.claim(existing)?;

    let geometry = Geometry::new(info.size(), options.tile_size.into(), options.overlap.into(), geometry::CELL);
    let (reduction, coloring) = match shown {
        Shown::Colors => (Reduction::Mean, Coloring::AsStored),
        Shown::Labels(classes) => (Reduction::Mode, Coloring::of(classes, 8 * info.sample.bytes() as u32)),
    };
    let threads = pool.current_num_threads().min(MOST_CELLS);
    let (order, cache) = order(slide, &geometry, threads, memory::allowance().budget() / 2);
    slide.keep_decoded(cache);
    let writer = TileWriter::new(&place.folder, &geometry, options, coloring, slide)?;
    observer.phase(Phase::Tiles);
    let hops = geometry.hops();
    let total = hops.iter().map(|hop| geometry.levels()[hop.source].area()).sum();
    let progress = Progress { observer, total, done: AtomicU64::new(0) };
    let maker = Maker { tile: options.tile_size.into(), reduction, writer: &writer, progress };
    let mut scratch: Option<Scratch> = None;
    for hop in &hops {
        let next = (!hop.last)
            .then(|| {
                let size = geometry.levels()[hop.source + hop.depths];
                Scratch::new(&place.folder, size, info.channels, info.sample)
            })
            .transpose()?;
        let source = match &scratch {
            None => Source::Slide(slide),
            Some(scratch) => Source::Scratch(scratch),
        };
        // What waits between hops is not stored in cells.
        let order = if scratch.is_none() { order } else { Order::Columns };
        maker.hop(hop, order, &source, next.as_ref(), &pool)?;
        scratch = next;
    }
    // With the power tiles may go, but never from under a description.
    microtome_io::store::sync_file_system(&place.folder).map_err(Error::Write)?;
    put(&place.description, description(info.size(), options).as_bytes())?;
    let (tiles, copied, bytes) = writer.counts();
    let pixel = (info.channels * info.sample.bytes()) as u64;
    Ok(DeepZoomSummary {
        size: info.size(),
        levels: geometry.levels().len(),
        tiles,
        copied,
        nothing_copied: writer.nothing_to_copy().map(Into::into),
        bytes,
        elapsed: begun.elapsed(),
        held_bytes: geometry.most_pixels() * pixel * threads as u64 + cache,
    })
}

/// In which order the cells of a hop follow each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Order {
    /// Down a column, then down the next.
    Columns,
    /// Along a row, then along the next.
    Rows,
}

/// In which order the slide is read, and bytes of its decoded tiles to keep, which are more than usual only in rows, and then no more than `most`.
fn order(slide: &dyn SlideReader, geometry: &Geometry, threads: usize, most: u64) -> (Order, u64) {
    let (info, hop) = (slide.info(), &geometry.hops()[0]);
    let tile = info.levels[0].tile;
    let read = hop.read(TileCoord { row: 0, column: 0 }).size();
    if tile.width > 2 * read.width && hop.cells().width > 1 {
        // Under a row of cells, where edges need not meet; and a quarter more, because the cache spreads tiles over parts that do not fill evenly.
        let under = Size::new(info.size().width, read.height + 2 * tile.height).cells(tile).area();
        let bytes = under.saturating_mul(tile.area()).saturating_mul((info.channels * info.sample.bytes()) as u64);
        let bytes = bytes.saturating_add(bytes / 4).max(*CACHE.start());
        if bytes <= most {
            return (Order::Rows, bytes);
        }
    }
    (Order::Columns, cache_bytes(slide, geometry, threads))
}

/// Bytes of decoded tiles of the slide to keep: those under one cell, and a row of them for each thread, that a cell has in common with the next.
fn cache_bytes(slide: &dyn SlideReader, geometry: &Geometry, threads: usize) -> u64 {
    let info = slide.info();
    let tile = info.levels[0].tile;
    let side = geometry.hops()[0].read(TileCoord { row: 0, column: 0 }).size();
    // A tile more on each side than fit.
    let under = side.cells(tile);
    let row = under.width + 1;
    let tiles = row.saturating_mul(under.height + 1 + threads as u64);
    let bytes = tiles.saturating_mul(tile.area()).saturating_mul((info.channels * info.sample.bytes()) as u64);
    bytes.clamp(*CACHE.start(), *CACHE.end())
}

/// The text of the `.dzi` file.
fn description(size: Size, options: &DeepZoomOptions) -> String {
    let DeepZoomOptions { tile_size, overlap, format, .. } = options;
    let Size { width, height } = size;
    let (namespace, format) = (place::NAMESPACE, format.ending());
    format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n\
         <Image xmlns=\"{namespace}\" Format=\"{format}\" Overlap=\"{overlap}\" TileSize=\"{tile_size}\">\n  \
         <Size Width=\"{width}\" Height=\"{height}\"/>\n</Image>\n"
    )
}

/// What a hop reads.
enum Source<'a> {
    Slide(&'a dyn SlideReader),
    Scratch(&'a Scratch),
}

impl Source<'_> {
    fn read(&self, rect: Rect) -> Result<Pixels> {
        match self {
            Self::Slide(slide) => slide.read_region(Level::FINEST, rect).map_err(Error::Read),
            Self::Scratch(scratch) => scratch.read(rect),
        }
    }

    /// Says that a rectangle will be read soon.
    fn prefetch(&self, rect: Rect) {
        if let Self::Slide(slide) = self {
            slide.prefetch(Level::FINEST, rect);
        }
    }
}

struct Progress<'a> {
    observer: &'a dyn Observer,
    /// Pixels of the sources of all hops.
    total: u64,
    done: AtomicU64,
}

/// Makes tiles of cells.
struct Maker<'a> {
    tile: u64,
    reduction: Reduction,
    writer: &'a TileWriter<'a>,
    progress: Progress<'a>,
}

impl Maker<'_> {
    /// Works through the cells of a hop, with as many threads as there are, and leaves the level after its own in `next`.
    fn hop(
        &self,
        hop: &Hop,
        order: Order,
        source: &Source<'_>,
        next: Option<&Scratch>,
        pool: &rayon::ThreadPool,
    ) -> Result<()> {
        let cells = hop.cells();
        let (begun, stop) = (AtomicU64::new(0), AtomicBool::new(false));
        let failure: Mutex<Option<(u64, Error)>> = Mutex::new(None);
        let at = |index: u64| match order {
            Order::Columns => TileCoord { row: index % cells.height, column: index / cells.height },
            Order::Rows => TileCoord { row: index / cells.width, column: index % cells.width },
        };
        // No cell is a job of the pool: a thread that waits for others to decode helps with their tiles, and never begins another cell.
        pool.broadcast(|context| {
            if context.index() >= MOST_CELLS {
                return;
            }
            loop {
                let index = begun.fetch_add(1, Ordering::Relaxed);
                if index >= cells.area() || stop.load(Ordering::Relaxed) {
                    return;
                }
                let later = index + context.num_threads().min(MOST_CELLS) as u64;
                if later < cells.area() {
                    source.prefetch(hop.read(at(later)));
                }
                if let Err(error) = self.cell(hop, at(index), source, next) {
                    stop.store(true, Ordering::Relaxed);
                    let mut failure = failure.lock().unwrap_or_else(PoisonError::into_inner);
                    // Of several the first one, which does not depend on who was faster so often.
                    if failure.as_ref().is_none_or(|(earlier, _)| index < *earlier) {
                        *failure = Some((index, error));
                    }
                    return;
                }
            }
        });
        match failure.into_inner().unwrap_or_else(PoisonError::into_inner) {
            Some((_, error)) => Err(error),
            None => Ok(()),
        }
    }

    fn cell(&self, hop: &Hop, cell: TileCoord, source: &Source<'_>, next: Option<&Scratch>) -> Result<()> {
        let (read, core) = (hop.read(cell), hop.core(cell));
        self.check_cancelled()?;
        let mut regions = vec![source.read(read)?];
        for depth in 1..hop.depths {
            regions.push(self.reduction.halve(&regions[depth - 1]));
        }
        if let (Some(next), Some(coarsest)) = (next, regions.last()) {
            let pixels = self.reduction.halve(coarsest);
            next.write(&pixels, halved(read, hop.depths), halved(core, hop.depths))?;
        }
        let tiles: Vec<(usize, TileCoord)> = (0..hop.depths)
            .flat_map(|depth| tiles_in(halved(core, depth), self.tile).map(move |tile| (depth, tile)))
            .collect();
        tiles.par_iter().try_for_each(|&(depth, tile)| {
            self.check_cancelled()?;
            self.writer.write(hop.source + depth, tile, &regions[depth], halved(read, depth))
        })?;
        let done = self.progress.done.fetch_add(core.size().area(), Ordering::Relaxed) + core.size().area();
        self.progress.observer.progress(done, self.progress.total);
        Ok(())
    }

    fn check_cancelled(&self) -> Result<()> {
        if self.progress.observer.cancelled() { Err(Error::Interrupted) } else { Ok(()) }
    }
}
