//! A program that is asked how fast a slide is read: by our readers, by OpenSlide, and by bare JPEG decoders on the same tiles.
//!
//! `read_slide SLIDE`. `cargo xtask bench read` keeps it and asks in turn. Every answer is a line of JSON; the first, unasked, says what the slide is,
//! or `{"unsupported": "why"}` where our readers do not read it. The questions:
//!
//! ```text
//! all READER THREADS ROWS     all of level 0, or so many rows of regions in its middle (0: all): {"seconds": ...}
//! all-kept READER THREADS ROWS  the same, but our cache keeps whatever it has room for, not only what a row of regions needs
//! random READER COUNT         one thread, regions anywhere on level 0: {"milliseconds": [of each]}
//! open READER COUNT           {"milliseconds": [of each]}
//! ```
//!
//! A reader is `ours`, `openslide` (with the feature `openslide`), `decoder` (ours, without a reader around it) or `zune-jpeg`. Regions are of 512 x 512 pixels. Each question gets a
//! slide that was opened for it, outside of what is timed, with a cache of 64 MiB that is empty; ours is told, where all is read in order, to
//! keep no more than the tiles under a row of regions, as `microtome segment` tells it. OpenSlide's pixels are taken as it returns them.
//! A bare decoder, which has one thread, gets streams that are put together beforehand, one for each tile of level 0, and one buffer.

mod streams;

use std::error::Error;
use std::hint::black_box;
use std::io::BufRead;
use std::path::Path;
use std::time::Instant;

use microtome_io::slide::{Backend, OpenOptions, SlideReader, open};
use microtome_io::{Level, Rect, Size};
use rayon::ThreadPoolBuilder;
use serde_json::{Value, json};
use streams::Decoder;

type Result<T, E = Box<dyn Error + Send + Sync>> = std::result::Result<T, E>;

const SIDE: u64 = 512;
const CACHE: usize = 64 << 20;

fn main() -> Result<()> {
    let path = std::env::args_os().nth(1).ok_or("the path of a slide")?;
    let path = Path::new(&path);
    let slide = match ours(path) {
        Ok(slide) => slide,
        Err(error) => {
            println!("{}", json!({ "unsupported": error.to_string() }));
            return Ok(());
        }
    };
    let (size, tile) = (slide.info().size(), slide.info().levels[0].tile);
    println!(
        "{}",
        json!({
            "format": slide.info().format,
            "width": size.width,
            "height": size.height,
            "tile": [tile.width, tile.height],
            "openslide": openslide_version(),
        })
    );
    drop(slide);
    let mut streams = None;
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        let words: Vec<&str> = line.split_whitespace().collect();
        let answer = match words[..] {
            ["all", decoder @ ("decoder" | "zune-jpeg"), "1", rows] => {
                let decoder = if decoder == "decoder" { Decoder::Ours } else { Decoder::Zune };
                // All tiles, or those that the regions touch.
                let streams = match &mut streams {
                    Some(streams) => streams,
                    none => none.insert(streams::Streams::of(path)?),
                };
                let (top, bottom) = band(size, rows.parse()?);
                json!({ "seconds": streams.decode(decoder, top, bottom)? })
            }
            ["all", reader, threads, rows] => all(path, size, reader, threads.parse()?, rows.parse()?, Kept::Row)?,
            ["all-kept", reader, threads, rows] => {
                all(path, size, reader, threads.parse()?, rows.parse()?, Kept::Whatever)?
            }
            ["random", reader, count] => random(path, size, reader, count.parse()?)?,
            ["open", reader, count] => {
                let time = || -> Result<f64> {
                    let started = Instant::now();
                    let slide = Reader::open(path, reader)?;
                    let milliseconds = started.elapsed().as_secs_f64() * 1e3;
                    drop(slide);
                    Ok(milliseconds)
                };
                json!({ "milliseconds": (0..count.parse()?).map(|_: usize| time()).collect::<Result<Vec<f64>>>()? })
            }
            _ => return Err(format!("not a question: {line}").into()),
        };
        println!("{answer}");
    }
    Ok(())
}

fn ours(path: &Path) -> Result<Box<dyn SlideReader>> {
    Ok(open(path, &OpenOptions::default().backend(Backend::Native).cache_bytes(CACHE))?)
}

/// The first row of pixels of so many rows of regions in the middle, and the row after the last.
fn band(size: Size, rows: u64) -> (u64, u64) {
    let all = size.height.div_ceil(SIDE);
    let rows = if rows == 0 { all } else { rows.min(all) };
    let first = (all - rows) / 2;
    (first * SIDE, ((first + rows) * SIDE).min(size.height))
}

/// What the cache is told to keep.
#[derive(PartialEq)]
enum Kept {
    /// What a row of regions needs.
    Row,
    /// Whatever it has room for.
    Whatever,
}

fn all(path: &Path, size: Size, reader: &str, threads: usize, rows: u64, kept: Kept) -> Result<Value> {
    let (top, bottom) = band(size, rows);
    let corners =
        (top..bottom).step_by(SIDE as usize).flat_map(|y| (0..size.width).step_by(SIDE as usize).map(move |x| (x, y)));
    let regions: Vec<Rect> =
        corners.map(|(x, y)| Rect::new(x as i64, y as i64, SIDE.min(size.width - x), SIDE.min(bottom - y))).collect();
    let reader = Reader::open(path, reader)?;
    if kept == Kept::Row {
        reader.keep_a_row();
    }
    let pool = ThreadPoolBuilder::new().num_threads(threads).build()?;
    let next = std::sync::atomic::AtomicUsize::new(0);
    let started = Instant::now();
    // Threads take regions in their order, as somebody does who goes through a slide; halves of the list would lie far apart.
    let work = || -> Result<()> {
        while let Some(&rect) = regions.get(next.fetch_add(1, std::sync::atomic::Ordering::Relaxed)) {
            reader.read(rect)?;
        }
        Ok(())
    };
    pool.broadcast(|_| work()).into_iter().collect::<Result<()>>()?;
    Ok(json!({ "seconds": started.elapsed().as_secs_f64() }))
}

fn random(path: &Path, size: Size, reader: &str, count: usize) -> Result<Value> {
    let reader = Reader::open(path, reader)?;
    let mut state = 7_u64;
    let mut below = |bound: u64| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((state >> 33) % bound.max(1)) as i64
    };
    let regions: Vec<Rect> = (0..count)
        .map(|_| Rect::new(below(size.width.saturating_sub(SIDE)), below(size.height.saturating_sub(SIDE)), SIDE, SIDE))
        .collect();
    let pool = ThreadPoolBuilder::new().num_threads(1).build()?;
    let times = pool.install(|| {
        let time = |&rect: &Rect| -> Result<f64> {
            let started = Instant::now();
            reader.read(rect)?;
            Ok(started.elapsed().as_secs_f64() * 1e3)
        };
        regions.iter().map(time).collect::<Result<Vec<f64>>>()
    });
    Ok(json!({ "milliseconds": times? }))
}

enum Reader {
    Ours(Box<dyn SlideReader>),
    #[cfg(feature = "openslide")]
    OpenSlide(Box<openslide_rs::OpenSlide>),
}

impl Reader {
    /// The tiles under a row of regions are all that pays where regions are read in order.
    fn keep_a_row(&self) {
        #[cfg_attr(not(feature = "openslide"), allow(irrefutable_let_patterns))]
        if let Self::Ours(slide) = self {
            let info = slide.info();
            let cells = info.size().cells(info.levels[0].tile);
            let rows = (SIDE.div_ceil(info.levels[0].tile.height) + 1).min(cells.height);
            let tile = info.levels[0].tile.area() * (info.channels * info.sample.bytes()) as u64;
            slide.keep_decoded((rows * cells.width * tile).min(CACHE as u64));
        }
    }

    fn open(path: &Path, name: &str) -> Result<Self> {
        match name {
            "ours" => Ok(Self::Ours(ours(path)?)),
            #[cfg(feature = "openslide")]
            "openslide" => Ok(Self::OpenSlide(Box::new(openslide_rs::OpenSlide::new_with_cache(path, CACHE)?))),
            other => Err(format!("no reader is called {other}, or it is not part of this build").into()),
        }
    }

    fn read(&self, rect: Rect) -> Result<()> {
        match self {
            Self::Ours(slide) => drop(black_box(slide.read_region(Level::FINEST, rect)?)),
            #[cfg(feature = "openslide")]
            Self::OpenSlide(slide) => {
                use openslide_rs::{Address, Region, Size};
                let region = Region {
                    address: Address { x: u32::try_from(rect.x)?, y: u32::try_from(rect.y)? },
                    level: 0,
                    size: Size { w: u32::try_from(rect.width)?, h: u32::try_from(rect.height)? },
                };
                drop(black_box(slide.read_region(&region)?));
            }
        }
        Ok(())
    }
}

#[cfg(feature = "openslide")]
fn openslide_version() -> Option<String> {
    openslide_rs::OpenSlide::version().ok()
}

#[cfg(not(feature = "openslide"))]
fn openslide_version() -> Option<String> {
    None
}
