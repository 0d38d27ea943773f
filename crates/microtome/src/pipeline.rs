//! Reading, inference, blending and writing at the same time.
//!
//! Four threads hand events on through short queues: the reader (which decodes tiles on the pool), the network, the
//! blender and the writer. Events keep the schedule's order, and each stage treats them in that order, so who happens to
//! be faster changes nothing. A stage that fails drops its queues, which stops its neighbours; its error is what counts.

use std::collections::BTreeSet;
use std::ops::Range;
use std::path::Path;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use microtome_io::{Pixels, Rect, TileCoord};
use microtome_stitch::{
    Accumulation, Accumulator, Blender, CpuAccumulator, HalfAccumulator, Kept, Layout, Product, PyramidWriter, Scratch,
    Sums, TileLogits, UnreadableTile, Wanted, Window,
};
use microtome_tile::pyramid::Shard;
use microtome_tile::{Lockstep, Reader, ScheduledTile, Strip, TileIndex};
use microtome_unet::{Logits, Normalizer, Predictor, Tile};
use rayon::prelude::*;

use crate::plan::QUEUE;
use crate::progress::Observer;
use crate::report::StageTime;
use crate::settings::OnBadTile;
use crate::{Error, Result};

/// What travels from stage to stage. Tiles become logits on the way; the rest is passed on.
enum Event<T> {
    /// A strip begins.
    Strip(Strip),
    /// A tile of the strip.
    Tile(Place, T),
    /// A tile that the strip before has kept.
    Kept(Place),
    /// A tile that could not be read, and why.
    Unreadable(Place, Vec<UnreadableTile>),
    /// Rows of blocks are final.
    Finished(Range<u64>),
}

/// Which tile of which model, and where it lies.
#[derive(Debug, Clone, Copy)]
struct Place {
    model: usize,
    tile: ScheduledTile,
    rect: Rect,
}

impl<T> Event<T> {
    /// The same event, with what `f` makes of a tile.
    fn map<U>(self, f: impl FnOnce(Place, T) -> Result<Event<U>>) -> Result<Event<U>> {
        match self {
            Self::Tile(place, content) => f(place, content),
            Self::Strip(strip) => Ok(Event::Strip(strip)),
            Self::Kept(place) => Ok(Event::Kept(place)),
            Self::Unreadable(place, tiles) => Ok(Event::Unreadable(place, tiles)),
            Self::Finished(rows) => Ok(Event::Finished(rows)),
        }
    }
}

/// What the blender sends on.
enum Finished {
    /// A shard of level 0.
    Shard(Product, TileCoord, Shard),
    /// A tile that could not be read; its shards come later.
    Unreadable(UnreadableTile),
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
    /// Of several runs that share the pools, one at a time has the network: with all threads, or with the device.
    turn: Mutex<()>,
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
        Ok(Self { network: pool("network")?, pixels: pool("pixels")?, turn: Mutex::default() })
    }

    /// Waits until no other run has the network. Called by no thread of the pools.
    fn turn(&self) -> MutexGuard<'_, ()> {
        // A network that panicked in another run says nothing about this one.
        self.turn.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One of the models that run.
pub(crate) struct Member<'a> {
    pub(crate) predictor: &'a dyn Predictor,
    pub(crate) normalizer: Normalizer,
    pub(crate) window: Arc<Window>,
    /// Tiles per call.
    pub(crate) batch: usize,
}

/// Everything the stages share.
pub(crate) struct Pipeline<'a> {
    pub(crate) slide_name: &'a str,
    pub(crate) reader: Reader<'a>,
    pub(crate) members: &'a [Member<'a>],
    /// Of all members, in their order.
    pub(crate) schedule: &'a Lockstep<'a>,
    pub(crate) layout: Layout<'a>,
    pub(crate) sums: Sums,
    pub(crate) accumulate: Accumulation,
    pub(crate) on_bad_tile: OnBadTile,
    /// Where to keep logits for the next strip, in place of computing them twice.
    pub(crate) scratch: Option<&'a Path>,
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
    pub(crate) unreadable: Vec<UnreadableTile>,
    /// Bytes written to the scratch folder.
    pub(crate) scratch_bytes: u64,
    /// From the first stage's beginning to the last one's end.
    pub(crate) elapsed: Duration,
}

impl Pipeline<'_> {
    /// Runs every tile of the schedule and writes every shard.
    pub(crate) fn run(&self, writer: PyramidWriter<'_>) -> Result<Done> {
        let start = Instant::now();
        let scratch = self.scratch.map(Scratch::new).transpose()?;
        let (to_network, from_reader) = sync_channel(QUEUE);
        let (to_blender, from_network) = sync_channel(QUEUE);
        let (to_writer, from_blender) = sync_channel(QUEUE);
        std::thread::scope(|scope| {
            let reading = scope.spawn(|| self.read(Output::new(to_network)));
            let blending = scope.spawn(|| self.blend(Input::new(from_network), Output::new(to_writer), scratch));
            let inference = scope.spawn(|| self.infer(Input::new(from_reader), Output::new(to_blender)));
            // The writer belongs to this thread.
            let written = write(&writer, Input::new(from_blender));
            let inference = joined(inference.join());
            let reading = joined(reading.join());
            let blending = joined(blending.join());
            // The stage that failed has an error; those it stopped have no time.
            let Written { writing, counts, unreadable } = written?;
            let [Some((blending, scratch_bytes)), Some((inference, _)), Some((reading, _))] =
                [blending?, inference?.map(|time| (time, 0)), reading?.map(|time| (time, 0))]
            else {
                return Err(Error::Interrupted);
            };
            let elapsed = start.elapsed();
            Ok(Done { reading, inference, blending, writing, counts, unreadable, scratch_bytes, elapsed })
        })
    }

    fn read(&self, mut out: Output<Vec<Event<Pixels>>>) -> Result<Option<StageTime>> {
        let covered = self.schedule.grid(0).covered();
        let mut batch: Vec<Event<Rect>> = Vec::new();
        // Tiles in the batch, all of one model.
        let mut tiles = 0;
        let mut of = 0;
        // The batch after the one that is read: the system fetches its bytes meanwhile.
        let mut ahead: Vec<Event<Rect>> = Vec::new();
        let mut flush = |batch: &mut Vec<Event<Rect>>| -> Result<Result<(), Stopped>> {
            if self.observer.cancelled() {
                return Err(Error::Interrupted);
            }
            for event in &*batch {
                if let Event::Tile(_, visible) = event {
                    self.reader.prefetch(*visible);
                }
            }
            let batch = std::mem::replace(&mut ahead, std::mem::take(batch));
            if batch.is_empty() {
                return Ok(Ok(()));
            }
            let read = out.work(&self.pools.pixels, || {
                let events = batch.into_par_iter();
                let read = events.map(|event| event.map(|place, visible| self.read_tile(place, visible)));
                read.collect::<Result<Vec<_>>>()
            })?;
            Ok(out.send(read))
        };
        for strip in self.schedule.strips() {
            let rows = self.schedule.rows(&strip);
            batch.push(Event::Strip(strip));
            for (model, row) in rows {
                for tile in row.tiles {
                    let rect = self.schedule.grid(model).rect(tile.index);
                    let Some(visible) = rect.intersect(covered) else { continue };
                    let place = Place { model, tile, rect };
                    if tile.before && self.scratch.is_some() {
                        batch.push(Event::Kept(place));
                        continue;
                    }
                    if tiles > 0 && of != model {
                        tiles = 0;
                        if flush(&mut batch)?.is_err() {
                            return Ok(None);
                        }
                    }
                    batch.push(Event::Tile(place, visible));
                    (tiles, of) = (tiles + 1, model);
                    if tiles == self.members[model].batch {
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
        for mut last in [batch, Vec::new()] {
            if flush(&mut last)?.is_err() {
                return Ok(None);
            }
        }
        Ok(Some(out.time))
    }

    fn read_tile(&self, place: Place, visible: Rect) -> Result<Event<Pixels>> {
        match self.reader.read(visible) {
            Ok(pixels) => Ok(Event::Tile(place, pixels)),
            Err(error) if self.on_bad_tile == OnBadTile::Fill => {
                let tiles = unreadable(&self.reader, visible, &error);
                if tiles.is_empty() { Err(error.into()) } else { Ok(Event::Unreadable(place, tiles)) }
            }
            Err(error) => Err(error.into()),
        }
    }

    fn infer(
        &self,
        mut input: Input<Vec<Event<Pixels>>>,
        mut out: Output<Vec<Event<Logits>>>,
    ) -> Result<Option<StageTime>> {
        let lanes = lanes(self.members.iter().map(|member| member.predictor));
        if lanes > 1 {
            return self.infer_in_lanes(lanes, input, out);
        }
        while let Some(events) = input.next() {
            let turn = self.pools.turn();
            let logits = out.work(&self.pools.network, || self.predict(&events));
            drop(turn);
            if out.send(answered(events, logits?)?).is_err() {
                return Ok(None);
            }
        }
        Ok(Some(out.time.after(input.starved)))
    }

    /// Several batches at once, each on a thread of its own: one thread hands them out, this one takes the answers in the same order.
    fn infer_in_lanes(
        &self,
        lanes: usize,
        mut input: Input<Vec<Event<Pixels>>>,
        mut out: Output<Vec<Event<Logits>>>,
    ) -> Result<Option<StageTime>> {
        type Answer = SyncSender<Result<Vec<Event<Logits>>>>;
        // As many answers are awaited as there are lanes: one by this thread, the others here.
        let (order, ordered) = sync_channel(lanes - 1);
        // No more than that is ever handed out and not answered: so this never waits, not even for lanes that are gone.
        let (to_lanes, work) = sync_channel::<(Vec<Event<Pixels>>, Answer)>(lanes + 1);
        let (work, clock) = (Mutex::new(work), Mutex::new(Clock::default()));
        std::thread::scope(|scope| {
            let hand_out = scope.spawn(move || {
                while let Some(events) = input.next() {
                    let (reply, answer) = sync_channel(1);
                    if order.send(answer).is_err() || to_lanes.send((events, reply)).is_err() {
                        break;
                    }
                }
                input.starved
            });
            for _ in 0..lanes {
                scope.spawn(|| {
                    loop {
                        let next = locked(&work).recv();
                        let Ok((events, reply)) = next else { return };
                        locked(&clock).begin();
                        let logits = self.predict(&events);
                        locked(&clock).end();
                        // Nobody wants it any more where a stage has failed.
                        let _ = reply.send(logits.and_then(|logits| answered(events, logits)));
                    }
                });
            }
            let mut take = || -> Result<bool> {
                while let Ok(answer) = ordered.recv() {
                    let lost = |_| Error::Usage("a batch was lost in the network".into());
                    if out.send(answer.recv().map_err(lost)??).is_err() {
                        return Ok(false);
                    }
                }
                Ok(true)
            };
            let taken = take();
            // Who hands out then ends, and the lanes after it.
            drop(ordered);
            let starved = joined(hand_out.join());
            out.time.busy = locked(&clock).total;
            Ok(taken?.then(|| out.time.after(starved)))
        })
    }

    /// The logits of the tiles among the events, all of one model.
    fn predict(&self, events: &[Event<Pixels>]) -> Result<Vec<Logits>> {
        let tiles: Vec<(Place, &Pixels)> = events
            .iter()
            .filter_map(|event| if let Event::Tile(place, pixels) = event { Some((*place, pixels)) } else { None })
            .collect();
        let Some((first, _)) = tiles.first() else { return Ok(Vec::new()) };
        let covered = self.schedule.grid(0).covered();
        let inputs: Vec<Tile<'_>> =
            tiles.iter().map(|(place, pixels)| network_tile(place.rect, covered, pixels)).collect();
        let Member { predictor, normalizer, .. } = &self.members[first.model];
        predictor.predict(&inputs, normalizer).map_err(|source| {
            let mut tiles = format!("from {} to {}", first.rect, tiles[tiles.len() - 1].0.rect);
            if self.members.len() > 1 {
                tiles = format!("{tiles} of the model {}", predictor.card().name);
            }
            Error::Inference { slide: self.slide_name.into(), tiles, source: Box::new(source) }
        })
    }

    /// Also gives the bytes that went through the scratch file.
    fn blend(
        &self,
        mut input: Input<Vec<Event<Logits>>>,
        out: Output<Finished>,
        scratch: Option<Scratch>,
    ) -> Result<Option<(StageTime, u64)>> {
        let wanted = Arc::new(self.wanted_blocks());
        let total = self.layout.image.area();
        let mut done = 0;
        let mut stage = Blending { pipeline: self, out, scratch, strip: None, tiles: Vec::new() };
        while let Some(events) = input.next() {
            for event in events {
                match event {
                    Event::Strip(strip) => {
                        stage.add()?;
                        stage.begin(strip, wanted.clone())?;
                    }
                    Event::Tile(place, logits) => stage.push(place, place.rect, logits.values)?,
                    Event::Kept(place) => {
                        stage.take(place)?;
                        if stage.tiles.len() >= self.members[place.model].batch {
                            stage.add()?;
                        }
                    }
                    Event::Unreadable(place, tiles) => {
                        stage.add()?;
                        if stage.exclude(place, tiles)?.is_err() {
                            return Ok(None);
                        }
                    }
                    Event::Finished(rows) => {
                        stage.add()?;
                        let bottom = (rows.end * self.layout.block.height).min(self.layout.image.height);
                        done += (bottom - rows.start * self.layout.block.height) * stage.width();
                        if stage.finish(rows)?.is_err() {
                            return Ok(None);
                        }
                        self.observer.progress(done, total);
                    }
                }
            }
            stage.add()?;
        }
        let scratch = stage.scratch.map_or(0, |scratch| scratch.written());
        Ok(Some((stage.out.time.after(input.starved), scratch)))
    }

    /// No sums yet of a model.
    fn accumulator(&self, member: &Member<'_>, wanted: Wanted) -> Box<dyn Accumulator> {
        let Layout { image, block, .. } = self.layout;
        let window = member.window.clone();
        match self.accumulate {
            Accumulation::F32 => Box::new(CpuAccumulator::new(image, block, self.sums, window, wanted)),
            Accumulation::F16Nnunet => Box::new(HalfAccumulator::new(image, block, self.sums, window, wanted)),
        }
    }

    /// The name of a tile in the scratch file: those of a model follow on those of the models before.
    fn key(&self, place: Place) -> TileIndex {
        let before: u64 = self.schedule.schedules()[..place.model].iter().map(|schedule| schedule.grid().len()).sum();
        TileIndex(before + place.tile.index.0)
    }

    /// Blocks that are wanted and not finished, row by row.
    fn wanted_blocks(&self) -> Vec<bool> {
        let blocks = self.layout.image.cells(self.layout.block);
        (0..blocks.area())
            .map(|i| self.schedule.wants_block(TileCoord { row: i / blocks.width, column: i % blocks.width }))
            .collect()
    }
}

/// Batches that are in the networks at once.
pub(crate) fn lanes<'p>(predictors: impl Iterator<Item = &'p dyn Predictor>) -> usize {
    predictors.map(Predictor::lanes).max().unwrap_or(1)
}

/// The events with the logits of their tiles.
fn answered(events: Vec<Event<Pixels>>, logits: Vec<Logits>) -> Result<Vec<Event<Logits>>> {
    let mut logits = logits.into_iter();
    let fewer = || Error::Usage("the predictor gave fewer logits than there are tiles".into());
    let answer = |event: Event<Pixels>| event.map(|place, _| Ok(Event::Tile(place, logits.next().ok_or_else(fewer)?)));
    events.into_iter().map(answer).collect()
}

/// The time in which something was under way.
#[derive(Debug, Default)]
struct Clock {
    under_way: usize,
    since: Option<Instant>,
    total: Duration,
}

impl Clock {
    fn begin(&mut self) {
        self.under_way += 1;
        self.since.get_or_insert_with(Instant::now);
    }

    fn end(&mut self) {
        self.under_way -= 1;
        if self.under_way == 0
            && let Some(since) = self.since.take()
        {
            self.total += since.elapsed();
        }
    }
}

/// What a panic of another thread left is as good as before; the panic itself is passed on where that thread is joined.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The pixels of a tile as the network takes them: where the tile sticks out of what tiles cover, its pixels begin further in.
pub(crate) fn network_tile(tile: Rect, covered: Rect, pixels: &Pixels) -> Tile<'_> {
    let size = pixels.size();
    let at = Rect::new((covered.x - tile.x).max(0), (covered.y - tile.y).max(0), size.width, size.height);
    Tile { pixels, at }
}

/// The blender's state.
struct Blending<'p> {
    pipeline: &'p Pipeline<'p>,
    out: Output<Finished>,
    scratch: Option<Scratch>,
    strip: Option<(Strip, Blender<'p, Box<dyn Accumulator>>)>,
    /// Tiles of one model that are not added yet: the part of each that its logits are for.
    tiles: Vec<(Place, Rect, Vec<f32>)>,
}

impl Blending<'_> {
    fn begin(&mut self, strip: Strip, wanted: Arc<Vec<bool>>) -> Result<()> {
        let wanted = Wanted { rect: strip.rect, blocks: Some(wanted) };
        let members = self.pipeline.members.iter();
        let sums = members.map(|member| self.pipeline.accumulator(member, wanted.clone())).collect();
        let blender = Blender::new(self.pipeline.layout, strip.clone(), sums)?;
        self.strip = Some((strip, blender));
        match &mut self.scratch {
            Some(scratch) => Ok(scratch.turn()?),
            None => Ok(()),
        }
    }

    fn width(&self) -> u64 {
        self.strip.as_ref().map_or(0, |(strip, _)| strip.rect.width)
    }

    /// Gathers a tile, with those of its model.
    fn push(&mut self, place: Place, part: Rect, values: Vec<f32>) -> Result<()> {
        if self.tiles.first().is_some_and(|(first, ..)| first.model != place.model) {
            self.add()?;
        }
        self.tiles.push((place, part, values));
        Ok(())
    }

    /// Adds the tiles gathered so far, keeps what the next strip needs of them, and forgets them.
    fn add(&mut self) -> Result<()> {
        let (Some((strip, blender)), Some((first, ..))) = (&mut self.strip, self.tiles.first()) else { return Ok(()) };
        let model = first.model;
        let logits: Vec<_> = self
            .tiles
            .iter()
            .map(|(place, part, values)| TileLogits { tile: place.rect, part: *part, values })
            .collect();
        self.out.work(&self.pipeline.pools.pixels, || blender.add(model, &logits))?;
        if let Some(scratch) = &mut self.scratch {
            for ((place, ..), logits) in self.tiles.iter().zip(&logits).filter(|((place, ..), _)| place.tile.again) {
                let start = Instant::now();
                if let Some((part, values)) = logits.from_column(strip.rect.right()) {
                    scratch.keep(self.pipeline.key(*place), &Kept::Logits { part, values })?;
                }
                self.out.time.busy += start.elapsed();
            }
        }
        drop(logits);
        self.tiles.clear();
        Ok(())
    }

    /// Takes what the strip before has kept of a tile.
    fn take(&mut self, place: Place) -> Result<()> {
        let Some(scratch) = &mut self.scratch else { return Ok(()) };
        let start = Instant::now();
        let kept = scratch.take(self.pipeline.key(place))?;
        self.out.time.busy += start.elapsed();
        match kept {
            Kept::Logits { part, values } => self.push(place, part, values)?,
            // Tiles are kept in their order: those before it first.
            Kept::Unreadable => {
                self.add()?;
                // Its cause was noted when it was met.
                let _ = self.exclude(place, Vec::new())?;
            }
        }
        Ok(())
    }

    fn exclude(&mut self, place: Place, tiles: Vec<UnreadableTile>) -> Result<Result<(), Stopped>> {
        if let Some((_, blender)) = &mut self.strip {
            blender.exclude(place.rect);
        }
        if let (Some(scratch), true) = (&mut self.scratch, place.tile.again) {
            scratch.keep(self.pipeline.key(place), &Kept::Unreadable)?;
        }
        for tile in tiles {
            if self.out.send(Finished::Unreadable(tile)).is_err() {
                return Ok(Err(Stopped));
            }
        }
        Ok(Ok(()))
    }

    fn finish(&mut self, rows: Range<u64>) -> Result<Result<(), Stopped>> {
        let Some((_, blender)) = &mut self.strip else { return Ok(Ok(())) };
        let mut shards = Vec::new();
        self.out.work(&self.pipeline.pools.pixels, || {
            blender.finish_rows(rows, |product, at, shard| {
                shards.push((product, at, shard));
                Ok::<(), microtome_stitch::Error>(())
            })
        })?;
        for (product, at, shard) in shards.into_iter().filter(|(_, at, _)| !self.pipeline.finished.contains(at)) {
            if self.out.send(Finished::Shard(product, at, shard)).is_err() {
                return Ok(Err(Stopped));
            }
        }
        Ok(Ok(()))
    }
}

/// The stored tiles that keep a rectangle of the target grid from being read; none if `error` is of another kind.
fn unreadable(reader: &Reader<'_>, rect: Rect, error: &microtome_tile::Error) -> Vec<UnreadableTile> {
    let microtome_tile::Error::Slide(microtome_io::Error::Tile { .. }) = error else { return Vec::new() };
    let of = |error| match error {
        microtome_io::Error::Tile { level, tile, message, .. } => Some(UnreadableTile { level, tile, cause: message }),
        _ => None,
    };
    reader.faults(rect).into_iter().filter_map(of).collect()
}

/// What the writer has done.
struct Written {
    writing: StageTime,
    counts: Vec<u64>,
    unreadable: Vec<UnreadableTile>,
}

fn write(writer: &PyramidWriter<'_>, mut input: Input<Finished>) -> Result<Written> {
    let mut busy = Duration::ZERO;
    // Shards come in bursts, row by row: what has come is noted in time even if nothing follows for long.
    loop {
        let next = input.next_within(writer.due());
        // On this thread: a store may hold a lock while it waits for the disk, and rayon must not be entered with one.
        let start = Instant::now();
        match next {
            Ok(Finished::Shard(product, at, shard)) => writer.push(product, at, shard)?,
            Ok(Finished::Unreadable(tile)) => writer.unreadable(tile),
            Err(RecvTimeoutError::Timeout) => writer.sync()?,
            Err(RecvTimeoutError::Disconnected) => break,
        }
        busy += start.elapsed();
    }
    // Also where a stage before has failed: what has come this far is not lost.
    let start = Instant::now();
    writer.sync()?;
    busy += start.elapsed();
    let writing = StageTime { busy, starved: input.starved, blocked: Duration::ZERO };
    Ok(Written { writing, counts: writer.counts(), unreadable: writer.unreadable_tiles() })
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

    /// The same, but waits no longer than that.
    fn next_within(&mut self, time: Option<Duration>) -> Result<T, RecvTimeoutError> {
        let Some(time) = time else { return self.next().ok_or(RecvTimeoutError::Disconnected) };
        let start = Instant::now();
        let item = self.receiver.recv_timeout(time);
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
