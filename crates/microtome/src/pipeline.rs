//! Reading, inference, blending and writing at the same time.
//!
//! Four threads hand events on through short queues: the reader (which decodes tiles on the pool), the network, the
//! blender and the writer. Events keep the schedule's order, and each stage treats them in that order, so who happens to
//! be faster changes nothing. A stage that fails drops its queues, which stops its neighbours; its error is what counts.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use microtome_io::{Pixels, Rect, TileCoord};
use microtome_stitch::{
    Accumulation, Accumulator, Blender, CpuAccumulator, HalfAccumulator, LabelPyramid, Layout, Sums, TileLogits,
    Wanted, WeightSum, Window,
};
use microtome_tile::pyramid::Shard;
use microtome_tile::{Reader, Schedule, Strip};
use microtome_unet::{Logits, Normalizer, Predictor, Tile};
use rayon::prelude::*;

use crate::plan::QUEUE;
use crate::progress::Observer;
use crate::report::StageTime;
use crate::{Error, Result};

/// What travels from stage to stage. Tiles become logits on the way; the rest is passed on.
enum Event<T> {
    /// A strip begins.
    Strip(Strip),
    /// A tile of the strip.
    Tile(Rect, T),
    /// Rows of blocks are final.
    Finished(Range<u64>),
}

/// The neighbour is gone: it failed, or nobody wants results any more.
struct Stopped;

/// Two pools of threads, so that short work (decoding, blending, encoding) does not queue behind a batch in the network.
#[derive(Debug)]
pub(crate) struct Pools {
    /// For the network.
    pub(crate) network: rayon::ThreadPool,
    /// For everything else.
    pub(crate) pixels: rayon::ThreadPool,
}

impl Pools {
    pub(crate) fn new(threads: usize) -> Result<Self> {
        let pool = |name: &'static str| {
            rayon::ThreadPoolBuilder::new()
                .num_threads(threads)
                .thread_name(move |i| format!("{name}-{i}"))
                .build()
                .map_err(|error| Error::Usage(format!("{threads} threads cannot be started: {error}")))
        };
        Ok(Self { network: pool("network")?, pixels: pool("pixels")? })
    }
}

/// Everything the stages share.
pub(crate) struct Pipeline<'a> {
    pub(crate) slide_name: &'a str,
    pub(crate) reader: Reader<'a>,
    pub(crate) predictor: &'a dyn Predictor,
    pub(crate) normalizer: &'a Normalizer,
    pub(crate) schedule: &'a Schedule<'a>,
    pub(crate) layout: Layout<'a>,
    pub(crate) window: Arc<Window>,
    pub(crate) accumulate: Accumulation,
    pub(crate) batch: usize,
    pub(crate) pools: &'a Pools,
    /// Shards that an earlier process has finished.
    pub(crate) finished: &'a BTreeSet<TileCoord>,
    pub(crate) observer: &'a dyn Observer,
}

/// Times of the stages, and what was found.
pub(crate) struct Done {
    pub(crate) reading: StageTime,
    pub(crate) inference: StageTime,
    pub(crate) blending: StageTime,
    pub(crate) writing: StageTime,
    pub(crate) counts: Vec<u64>,
}

impl Pipeline<'_> {
    /// Runs every tile of the schedule and writes every shard.
    pub(crate) fn run(&self, pyramid: LabelPyramid<'_>) -> Result<Done> {
        let (to_network, from_reader) = sync_channel(QUEUE);
        let (to_blender, from_network) = sync_channel(QUEUE);
        let (to_writer, from_blender) = sync_channel(QUEUE);
        std::thread::scope(|scope| {
            let reading = scope.spawn(|| self.read(Output::new(to_network)));
            let blending = scope.spawn(|| self.blend(Input::new(from_network), Output::new(to_writer)));
            let inference = scope.spawn(|| self.infer(Input::new(from_reader), Output::new(to_blender)));
            // The pyramid belongs to this thread.
            let writing = write(pyramid, Input::new(from_blender));
            let inference = joined(inference.join());
            let joined =
                |handle: std::thread::Result<_>| handle.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            let reading = joined(reading.join());
            let blending = joined(blending.join());
            // The stage that failed has an error; those it stopped have no time.
            let (writing, counts) = writing?;
            let [Some(blending), Some(inference), Some(reading)] = [blending?, inference?, reading?] else {
                return Err(Error::Interrupted);
            };
            Ok(Done { reading, inference, blending, writing, counts })
        })
    }

    fn read(&self, mut out: Output<Vec<Event<Pixels>>>) -> Result<Option<StageTime>> {
        let image = self.reader.grid().size.rect();
        let mut batch: Vec<Event<Rect>> = Vec::new();
        let mut tiles = 0;
        let mut flush = |batch: &mut Vec<Event<Rect>>| -> Result<Result<(), Stopped>> {
            if self.observer.cancelled() {
                return Err(Error::Interrupted);
            }
            let read = out.work(&self.pools.pixels, || {
                std::mem::take(batch)
                    .into_par_iter()
                    .map(|event| match event {
                        Event::Strip(strip) => Ok(Event::Strip(strip)),
                        Event::Finished(rows) => Ok(Event::Finished(rows)),
                        Event::Tile(rect, visible) => Ok(Event::Tile(rect, self.reader.read(visible)?)),
                    })
                    .collect::<Result<Vec<_>>>()
            })?;
            Ok(out.send(read))
        };
        for strip in self.schedule.strips() {
            let rows = self.schedule.rows(&strip);
            batch.push(Event::Strip(strip));
            for row in rows {
                for tile in row.tiles {
                    let rect = self.schedule.grid().rect(tile);
                    let Some(visible) = rect.intersect(image) else { continue };
                    batch.push(Event::Tile(rect, visible));
                    tiles += 1;
                    if tiles == self.batch {
                        tiles = 0;
                        if flush(&mut batch)?.is_err() {
                            return Ok(None);
                        }
                    }
                }
                if !row.finished_blocks.is_empty() {
                    batch.push(Event::Finished(row.finished_blocks));
                }
            }
        }
        if flush(&mut batch)?.is_err() {
            return Ok(None);
        }
        Ok(Some(out.time))
    }

    fn infer(
        &self,
        mut input: Input<Vec<Event<Pixels>>>,
        mut out: Output<Vec<Event<Logits>>>,
    ) -> Result<Option<StageTime>> {
        while let Some(events) = input.next() {
            let tiles: Vec<(Rect, &Pixels)> = events
                .iter()
                .filter_map(|event| if let Event::Tile(rect, pixels) = event { Some((*rect, pixels)) } else { None })
                .collect();
            let inputs: Vec<Tile<'_>> = tiles
                .iter()
                .map(|(rect, pixels)| {
                    // Where the tile sticks out of the image, its pixels begin further in.
                    let size = pixels.size();
                    Tile { pixels, at: Rect::new((-rect.x).max(0), (-rect.y).max(0), size.width, size.height) }
                })
                .collect();
            let logits = if inputs.is_empty() {
                Vec::new()
            } else {
                out.work(&self.pools.network, || self.predictor.predict(&inputs, self.normalizer)).map_err(
                    |source| {
                        let tiles = format!("from {} to {}", tiles[0].0, tiles[tiles.len() - 1].0);
                        Error::Inference { slide: self.slide_name.into(), tiles, source: Box::new(source) }
                    },
                )?
            };
            let mut logits = logits.into_iter();
            let events = events
                .into_iter()
                .filter_map(|event| match event {
                    Event::Strip(strip) => Some(Event::Strip(strip)),
                    Event::Finished(rows) => Some(Event::Finished(rows)),
                    Event::Tile(rect, _) => logits.next().map(|logits| Event::Tile(rect, logits)),
                })
                .collect();
            if out.send(events).is_err() {
                return Ok(None);
            }
        }
        Ok(Some(out.time.after(input.starved)))
    }

    fn blend(
        &self,
        mut input: Input<Vec<Event<Logits>>>,
        mut out: Output<(TileCoord, Shard)>,
    ) -> Result<Option<StageTime>> {
        let wanted = Arc::new(self.wanted_blocks());
        let total = self.layout.image.area();
        let mut done = 0;
        let mut blender: Option<(Blender<'_, Box<dyn Accumulator>>, u64)> = None;
        while let Some(events) = input.next() {
            let mut tiles: Vec<(Rect, Logits)> = Vec::new();
            for event in events {
                match event {
                    Event::Tile(rect, logits) => tiles.push((rect, logits)),
                    Event::Strip(strip) => {
                        self.add(&mut blender, &mut tiles, &mut out)?;
                        let sums = self.accumulator(Wanted { rect: strip.rect, blocks: Some(wanted.clone()) });
                        let width = strip.rect.width;
                        blender = Some((Blender::new(self.layout, strip, sums)?, width));
                    }
                    Event::Finished(rows) => {
                        self.add(&mut blender, &mut tiles, &mut out)?;
                        let Some((blender, width)) = &mut blender else { continue };
                        let mut shards = Vec::new();
                        out.work(&self.pools.pixels, || {
                            blender.finish_rows(rows.clone(), |at, shard| {
                                shards.push((at, shard));
                                Ok::<(), microtome_stitch::Error>(())
                            })
                        })?;
                        for shard in shards.into_iter().filter(|(at, _)| !self.finished.contains(at)) {
                            if out.send(shard).is_err() {
                                return Ok(None);
                            }
                        }
                        let bottom = (rows.end * self.layout.block.height).min(self.layout.image.height);
                        done += (bottom - rows.start * self.layout.block.height) * *width;
                        self.observer.progress(done, total);
                    }
                }
            }
            self.add(&mut blender, &mut tiles, &mut out)?;
        }
        Ok(Some(out.time.after(input.starved)))
    }

    /// No sums yet.
    fn accumulator(&self, wanted: Wanted) -> Box<dyn Accumulator> {
        let Layout { image, block, decision, .. } = self.layout;
        let sums = Sums { planes: decision.planes(), weights: WeightSum::Omitted };
        let window = self.window.clone();
        match self.accumulate {
            Accumulation::F32 => Box::new(CpuAccumulator::new(image, block, sums, window, wanted)),
            Accumulation::F16Nnunet => Box::new(HalfAccumulator::new(image, block, sums, window, wanted)),
        }
    }

    /// Adds the tiles gathered so far, and forgets them.
    fn add<T>(
        &self,
        blender: &mut Option<(Blender<'_, Box<dyn Accumulator>>, u64)>,
        tiles: &mut Vec<(Rect, Logits)>,
        out: &mut Output<T>,
    ) -> Result<()> {
        if let (Some((blender, _)), false) = (blender, tiles.is_empty()) {
            let logits: Vec<_> = tiles.iter().map(|(rect, l)| TileLogits { rect: *rect, values: &l.values }).collect();
            out.work(&self.pools.pixels, || blender.add(&logits))?;
            tiles.clear();
        }
        Ok(())
    }

    /// Blocks that are wanted and not finished, row by row.
    fn wanted_blocks(&self) -> Vec<bool> {
        let blocks = self.layout.image.cells(self.layout.block);
        (0..blocks.area())
            .map(|i| self.schedule.wants_block(TileCoord { row: i / blocks.width, column: i % blocks.width }))
            .collect()
    }
}

fn write(mut pyramid: LabelPyramid<'_>, mut input: Input<(TileCoord, Shard)>) -> Result<(StageTime, Vec<u64>)> {
    let mut busy = Duration::ZERO;
    while let Some((at, shard)) = input.next() {
        // On this thread: a store may hold a lock while it waits for the disk, and rayon must not be entered with one.
        let start = Instant::now();
        pyramid.push(at, shard)?;
        busy += start.elapsed();
    }
    // Also where a stage before has failed: what has come this far is not lost.
    let start = Instant::now();
    pyramid.sync()?;
    busy += start.elapsed();
    Ok((StageTime { busy, starved: input.starved, blocked: Duration::ZERO }, pyramid.counts().to_vec()))
}

fn joined<T>(result: std::thread::Result<T>) -> T {
    result.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

impl StageTime {
    /// The same, with the time spent waiting for input.
    fn after(self, starved: Duration) -> Self {
        Self { starved, ..self }
    }
}

struct Input<T> {
    receiver: Receiver<T>,
    starved: Duration,
}

impl<T> Input<T> {
    fn new(receiver: Receiver<T>) -> Self {
        Self { receiver, starved: Duration::ZERO }
    }

    /// The next item, or `None` when the stage before has ended.
    fn next(&mut self) -> Option<T> {
        let start = Instant::now();
        let item = self.receiver.recv().ok();
        self.starved += start.elapsed();
        item
    }
}

struct Output<T> {
    sender: SyncSender<T>,
    time: StageTime,
}

impl<T> Output<T> {
    fn new(sender: SyncSender<T>) -> Self {
        Self { sender, time: StageTime::default() }
    }

    /// Runs a piece of the stage's work on a pool and times it, from when a thread takes it up.
    fn work<R: Send>(&mut self, pool: &rayon::ThreadPool, work: impl FnOnce() -> R + Send) -> R {
        let (result, busy) = pool.install(|| {
            let start = Instant::now();
            let result = work();
            (result, start.elapsed())
        });
        self.time.busy += busy;
        result
    }

    fn send(&mut self, item: T) -> Result<(), Stopped> {
        let start = Instant::now();
        let sent = self.sender.send(item).map_err(|_| Stopped);
        self.time.blocked += start.elapsed();
        sent
    }
}
