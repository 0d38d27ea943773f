//! Shards of a slide on their way into the store: read, halved, encoded and written by each thread from beginning to end.

use std::collections::{BTreeSet, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use microtome_io::slide::SlideReader;
use microtome_io::{Level, Rect, Size, TileCoord};
use microtome_stitch::{Product, PyramidWriter};
use microtome_tile::pyramid::Shard;
use microtome_tile::z_order;
use rayon::{ThreadPool, ThreadPoolBuilder};

use super::plan::{ConvertPlan, VisitingOrder};
use crate::memory::StopOnDrop;
use crate::progress::Observer;
use crate::{Error, Result};

/// How often the disk's thread looks for them.
const LOOKED_FOR: Duration = Duration::from_millis(10);

/// What is to be done.
pub(super) struct Work<'a> {
    pub(super) slide: &'a dyn SlideReader,
    pub(super) plan: &'a ConvertPlan,
    pub(super) shard: Size,
    pub(super) writer: &'a PyramidWriter<'a>,
    /// Shards that an earlier process has finished, of the levels that are read.
    pub(super) finished: &'a BTreeSet<(Level, TileCoord)>,
    pub(super) observer: &'a dyn Observer,
}

/// What the threads tell each other.
#[derive(Default)]
struct Shared {
    failure: Mutex<Option<Error>>,
    stopped: AtomicBool,
    /// Pixels.
    done: AtomicU64,
}

impl Shared {
    /// The first failure is the one that is reported, but for a stop that was asked for.
    fn fail(&self, error: Error) {
        self.stopped.store(true, Ordering::Relaxed);
        let mut failure = self.failure.lock().unwrap_or_else(PoisonError::into_inner);
        if matches!(*failure, None | Some(Error::Interrupted)) {
            *failure = Some(error);
        }
    }
}

/// The shards that are still to be visited.
struct Queue<I> {
    rest: I,
    /// Those whose bytes have been announced to the system, so that it fetches them meanwhile.
    ahead: VecDeque<TileCoord>,
}

impl<I: Iterator<Item = TileCoord>> Queue<I> {
    /// The next shard, and one that will be wanted soon.
    fn next(&mut self, ahead: usize) -> (Option<TileCoord>, Vec<TileCoord>) {
        let mut announced = Vec::new();
        while self.ahead.len() <= ahead
            && let Some(at) = self.rest.next()
        {
            self.ahead.push_back(at);
            announced.push(at);
        }
        (self.ahead.pop_front(), announced)
    }
}

/// A level that is written, and what it is read from.
#[derive(Clone, Copy)]
struct Source {
    level: Level,
    size: Size,
    /// The slide's level, and where the first pixel lies on it.
    of: Level,
    x: i64,
    y: i64,
    tile: Size,
}

impl Source {
    /// The pixels of the slide's level that a rectangle of the level is made of.
    fn place(self, rect: Rect) -> Rect {
        Rect { x: rect.x + self.x, y: rect.y + self.y, ..rect }
    }
}

impl Work<'_> {
    /// Converts every shard. What was finished when something fails is durable and noted all the same.
    pub(super) fn run(&self) -> Result<()> {
        let threads = self.plan.threads;
        // One thread each: a thread that waits for cells of its shard must not be given another shard meanwhile, and with it more memory.
        let pools = (0..threads).map(|_| pool(1)).collect::<Result<Vec<_>>>()?;
        let together = pool(threads)?;
        let shared = Shared::default();
        let resumed =
            self.finished.iter().filter_map(|&(level, at)| self.rect(level, at)).map(|rect| rect.size().area());
        shared.done.store(resumed.sum(), Ordering::Relaxed);
        let over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let disk = scope.spawn(|| self.keep_durable(&over, &shared));
            let end = StopOnDrop { done: &over, thread: disk.thread().clone() };
            for (&level, &of) in &self.plan.copied {
                let (x, y) = if level == Level::FINEST { (self.plan.rect.x, self.plan.rect.y) } else { (0, 0) };
                let tile = self.slide.info().levels[of.0].tile;
                let source = Source { level, size: self.plan.levels[level.0].size, of, x, y, tile };
                self.convert(source, &pools, &together, &shared);
            }
            drop(end);
        });
        let synced = self.writer.sync();
        match shared.failure.into_inner().unwrap_or_else(PoisonError::into_inner) {
            Some(error) => Err(error),
            None => Ok(synced?),
        }
    }

    /// Visits the shards of a level.
    fn convert(&self, source: Source, pools: &[ThreadPool], together: &ThreadPool, shared: &Shared) {
        let cells = source.size.cells(self.shard);
        let wanted = |at: &TileCoord| !self.finished.contains(&(source.level, *at));
        match VisitingOrder::of(&self.slide.info().levels[source.of.0], self.shard.width) {
            VisitingOrder::Z => self.visit(source, z_order(cells).filter(wanted), pools, shared),
            VisitingOrder::Rows => {
                for row in 0..cells.height {
                    let shards: Vec<_> =
                        (0..cells.width).map(|column| TileCoord { row, column }).filter(wanted).collect();
                    if shards.is_empty() || shared.stopped.load(Ordering::Relaxed) {
                        continue;
                    }
                    if let Err(error) = together.install(|| self.decode_row(source, row)) {
                        shared.fail(error);
                        return;
                    }
                    self.visit(source, shards.into_iter(), pools, shared);
                }
            }
        }
    }

    /// Has all threads decode the cells under a row of shards into the slide's cache: one thread after the other would wait for the cells that
    /// the first one decodes.
    fn decode_row(&self, source: Source, row: u64) -> Result<()> {
        if !self.plan.decoded_once || self.plan.memory.cache == 0 {
            return Ok(());
        }
        let whole = source.place(source.size.rect());
        let top = whole.y + (row * self.shard.height) as i64;
        let height = self.shard.height.min((whole.bottom() - top) as u64);
        // One column of pixels in each column of cells.
        let mut x = whole.x;
        while x < whole.right() {
            if self.observer.cancelled() {
                return Err(Error::Interrupted);
            }
            self.slide.read_region(source.of, Rect::new(x, top, 1, height)).map_err(Error::Read)?;
            x = (x / source.tile.width as i64 + 1) * source.tile.width as i64;
        }
        Ok(())
    }

    /// Has each thread take one shard after the other.
    fn visit(
        &self,
        source: Source,
        shards: impl Iterator<Item = TileCoord> + Send,
        pools: &[ThreadPool],
        shared: &Shared,
    ) {
        let queue = &Mutex::new(Queue { rest: shards, ahead: VecDeque::new() });
        std::thread::scope(|scope| {
            for pool in pools {
                scope.spawn(move || pool.install(|| self.take_shards(source, queue, shared)));
            }
        });
    }

    fn take_shards(
        &self,
        source: Source,
        queue: &Mutex<Queue<impl Iterator<Item = TileCoord> + Send>>,
        shared: &Shared,
    ) {
        loop {
            if shared.stopped.load(Ordering::Relaxed) {
                return;
            }
            if self.observer.cancelled() {
                shared.fail(Error::Interrupted);
                return;
            }
            let (next, announced) = lock(queue).next(self.plan.threads);
            for rect in announced.into_iter().filter_map(|at| self.rect(source.level, at)) {
                self.slide.prefetch(source.of, source.place(rect));
            }
            let Some((at, rect)) = next.and_then(|at| Some((at, self.rect(source.level, at)?))) else { return };
            let pixels = self.slide.read_region(source.of, source.place(rect)).map_err(Error::Read);
            let pushed = pixels.and_then(|pixels| {
                Ok(self.writer.push_at(Product::default(), source.level, at, Shard::Pixels(pixels))?)
            });
            match pushed {
                Ok(()) => {
                    let area = rect.size().area();
                    let done = shared.done.fetch_add(area, Ordering::Relaxed) + area;
                    self.observer.progress(done, self.plan.pixels());
                }
                Err(error) => {
                    shared.fail(error);
                    return;
                }
            }
        }
    }

    /// Brings shards to the disk and notes them, so that no other thread waits for the disk unless it is slower than all of them.
    fn keep_durable(&self, over: &AtomicBool, shared: &Shared) {
        while !over.load(Ordering::Relaxed) {
            let due = self.writer.due();
            if due == Some(Duration::ZERO) {
                if let Err(error) = self.writer.sync() {
                    shared.fail(error.into());
                    return;
                }
            } else {
                std::thread::park_timeout(due.unwrap_or(LOOKED_FOR).min(LOOKED_FOR));
            }
        }
    }

    /// The pixels of a shard.
    fn rect(&self, level: Level, at: TileCoord) -> Option<Rect> {
        at.rect(self.shard).intersect(self.plan.levels.get(level.0)?.size.rect())
    }
}

pub(super) fn pool(threads: usize) -> Result<ThreadPool> {
    let pool = ThreadPoolBuilder::new().num_threads(threads).build();
    pool.map_err(|error| Error::Usage(format!("threads cannot be started: {error}")))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
