//! Finished shards on their way to the stores, level by level.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use microtome_io::store::{ImageSink, Stored};
use microtome_io::{Level, Pixels, Samples, TileCoord};
use microtome_tile::pyramid::{Pyramid, Shard, ShardStore};

use crate::journal::{Entry, Journal, Line, Record, UnreadableTile};
use crate::product::Product;
use crate::{Error, Result};

/// Writes shards of level 0 of every product and every shard above that they complete, and notes them in a journal once they are durable.
///
/// Any number of threads may push at once, each a shard of its own: halving and storing are done by the thread that pushes, outside of
/// any lock. What is stored does not depend on threads or order; the order of the lines of the journal does.
#[derive(Debug)]
pub struct PyramidWriter<'a> {
    outputs: BTreeMap<Product, Output<'a>>,
    /// Taken before `log` where both are: whoever brings shards to the disk holds it until they are noted.
    journal: Mutex<Option<Journal>>,
    log: Mutex<Log>,
}

/// One image, and the pyramid over it.
#[derive(Debug)]
struct Output<'a> {
    sink: &'a dyn ImageSink,
    pyramid: Pyramid,
    counting: Counting,
}

/// Whether the pixels of each value are counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Counting {
    Labels,
    Nothing,
}

/// What has been written.
#[derive(Debug)]
struct Log {
    /// Nothing is noted without a journal.
    noting: bool,
    /// Written, but not known to be durable.
    unsynced: Vec<Line>,
    synced: Instant,
    sync_every: Duration,
    unreadable: Vec<UnreadableTile>,
    /// Pixels of each label on level 0, by value.
    counts: Vec<u64>,
}

impl<'a> PyramidWriter<'a> {
    /// A writer into `sinks`, one for each product, that holds at most `capacity` bytes of half-built shards for each.
    /// Without a journal nothing is noted, and a run that stops has to begin anew; with one, shards are synced and noted at least
    /// every `sync_every`.
    #[must_use]
    pub fn new(
        sinks: impl IntoIterator<Item = (Product, &'a dyn ImageSink)>,
        journal: Option<Journal>,
        sync_every: Duration,
        capacity: usize,
    ) -> Self {
        let output = |(product, sink): (Product, &'a dyn ImageSink)| {
            let image = sink.image();
            let levels = image.levels.iter().map(|l| l.size).collect();
            let pyramid = Pyramid::new(levels, image.shard, product.reduction(), capacity);
            let counting = if product == Product::Labels { Counting::Labels } else { Counting::Nothing };
            (product, Output { sink, pyramid, counting })
        };
        Self::of(sinks.into_iter().map(output).collect(), journal, sync_every)
    }

    /// A writer of one picture, whatever it shows, with a pyramid of its own making over it. To this writer and its journal it is
    /// [the main image](Product::default) of the run; its pixels are not counted.
    #[must_use]
    pub fn of_picture(
        sink: &'a dyn ImageSink,
        pyramid: Pyramid,
        journal: Option<Journal>,
        sync_every: Duration,
    ) -> Self {
        let output = Output { sink, pyramid, counting: Counting::Nothing };
        Self::of(BTreeMap::from([(Product::default(), output)]), journal, sync_every)
    }

    fn of(outputs: BTreeMap<Product, Output<'a>>, journal: Option<Journal>, sync_every: Duration) -> Self {
        let log = Log {
            noting: journal.is_some(),
            unsynced: Vec::new(),
            synced: Instant::now(),
            sync_every,
            unreadable: Vec::new(),
            counts: Vec::new(),
        };
        Self { outputs, journal: Mutex::new(journal), log: Mutex::new(log) }
    }

    /// Goes on where the record ends: its shards are not pushed again, those above them that are missing are built, so many at once as `lanes`
    /// says, on the current rayon pool. Where `goes_on` says no meanwhile, it ends early, and nothing is to be pushed any more.
    ///
    /// # Errors
    /// The stores'.
    pub fn restore(&self, record: &Record, lanes: usize, goes_on: impl Fn() -> bool + Sync) -> Result<()> {
        {
            let mut log = self.log();
            for ((product, level, _), entry) in &record.entries {
                if (*product, *level) == (Product::Labels, Level::FINEST) {
                    add(&mut log.counts, &entry.counts);
                }
            }
            log.unreadable.clone_from(&record.unreadable);
        }
        for (&product, output) in &self.outputs {
            let done = record.entries.iter().filter(|(key, _)| key.0 == product);
            let done = done.map(|(&(_, level, shard), entry)| ((level, shard), entry.sha256.is_some())).collect();
            output.pyramid.restore(&done, &self.store(product, output, Vec::new()), lanes, &goes_on)?;
        }
        Ok(())
    }

    /// Takes a finished shard of level 0.
    ///
    /// # Errors
    /// The store's; [`Error::Usage`] for a product that has none.
    pub fn push(&self, product: Product, at: TileCoord, shard: Shard) -> Result<()> {
        self.push_at(product, Level::FINEST, at, shard)?;
        // Labels come last: where theirs are noted, everything of the place is.
        if product == Product::Labels && self.due() == Some(Duration::ZERO) { self.sync() } else { Ok(()) }
    }

    /// Takes a finished shard of level 0, or of a level [that is given](Pyramid::with_given). Whoever pushes so [syncs](Self::sync) when it is
    /// [due](Self::due).
    ///
    /// # Errors
    /// As [`push`](Self::push).
    pub fn push_at(&self, product: Product, level: Level, at: TileCoord, shard: Shard) -> Result<()> {
        let Some(output) = self.outputs.get(&product) else {
            return Err(Error::Usage(format!("there is no store for {product:?}")));
        };
        let counts = match &shard {
            Shard::Pixels(pixels) if output.counting == Counting::Labels => count(pixels),
            _ => Vec::new(),
        };
        add(&mut self.log().counts, &counts);
        output.pyramid.push(level, at, shard, &self.store(product, output, counts))
    }

    /// How long what was pushed may still wait to be noted: as long as was asked for, or not at all where a store holds
    /// [so much](ImageSink::is_half_full) that whoever writes would soon have to wait for the disk. `None` where nothing waits.
    #[must_use]
    pub fn due(&self) -> Option<Duration> {
        let left = {
            let log = self.log();
            (!log.unsynced.is_empty()).then(|| log.sync_every.saturating_sub(log.synced.elapsed()))?
        };
        let full = self.outputs.values().any(|output| output.sink.is_half_full());
        Some(if full { Duration::ZERO } else { left })
    }

    /// Takes note of a tile of the slide that could not be read. The shards that it touches come later.
    pub fn unreadable(&self, tile: UnreadableTile) {
        let mut log = self.log();
        if !log.unreadable.iter().any(|known| known.is(&tile)) {
            log.unreadable.push(tile.clone());
            log.note(Line::Unreadable { unreadable: tile });
        }
    }

    /// Makes everything pushed so far durable, and notes it. Other threads may go on pushing meanwhile.
    ///
    /// # Errors
    /// The stores', or the journal's.
    pub fn sync(&self) -> Result<()> {
        let mut journal = self.journal.lock().unwrap_or_else(PoisonError::into_inner);
        let lines = {
            let mut log = self.log();
            log.synced = Instant::now();
            std::mem::take(&mut log.unsynced)
        };
        if let Some(journal) = &mut *journal {
            // The shards of these lines have been written, so that what is synced now holds them.
            self.outputs.values().try_for_each(|output| output.sink.sync())?;
            journal.append(&lines)?;
        }
        Ok(())
    }

    /// How many pixels of level 0 have each label so far; background (0) is not counted. Labels never met may be missing.
    #[must_use]
    pub fn counts(&self) -> Vec<u64> {
        self.log().counts.clone()
    }

    /// Tiles that could not be read, also those of the run that this one goes on with.
    #[must_use]
    pub fn unreadable_tiles(&self) -> Vec<UnreadableTile> {
        self.log().unreadable.clone()
    }

    /// The most bytes of half-built shards held at once, product by product.
    #[must_use]
    pub fn peak_bytes(&self) -> u64 {
        self.outputs.values().map(|output| output.pyramid.peak_bytes() as u64).sum()
    }

    fn store(&self, product: Product, output: &Output<'a>, counts: Vec<u64>) -> Store<'_> {
        Store { product, sink: output.sink, log: &self.log, counts: Mutex::new(counts) }
    }

    fn log(&self) -> MutexGuard<'_, Log> {
        lock(&self.log)
    }
}

/// Lists and numbers that are whole after each statement: a panic elsewhere cannot have left them torn.
fn lock<T>(log: &Mutex<T>) -> MutexGuard<'_, T> {
    log.lock().unwrap_or_else(PoisonError::into_inner)
}

fn count(pixels: &Pixels) -> Vec<u64> {
    match pixels.samples() {
        Samples::U8(v) => {
            let mut counts = vec![0; 256];
            v.iter().for_each(|&label| counts[usize::from(label)] += 1);
            trim(counts)
        }
        Samples::U16(v) => {
            let mut counts = vec![0; 65536];
            v.iter().for_each(|&label| counts[usize::from(label)] += 1);
            trim(counts)
        }
    }
}

/// Background is not counted, nor are labels above the last one that occurs.
fn trim(mut counts: Vec<u64>) -> Vec<u64> {
    counts[0] = 0;
    let used = counts.iter().rposition(|&n| n > 0).map_or(0, |last| last + 1);
    counts.truncate(used);
    counts
}

fn add(total: &mut Vec<u64>, counts: &[u64]) {
    if total.len() < counts.len() {
        total.resize(counts.len(), 0);
    }
    total.iter_mut().zip(counts).for_each(|(t, n)| *t += n);
}

impl Log {
    fn note(&mut self, line: Line) {
        if self.noting {
            self.unsynced.push(line);
        }
    }
}

/// The sink of a product and the journal, as the pyramid engine sees them while one shard is pushed, or while a record is restored.
#[derive(Debug)]
struct Store<'s> {
    product: Product,
    sink: &'s dyn ImageSink,
    log: &'s Mutex<Log>,
    /// Labels of the shard of level 0 that is being pushed.
    counts: Mutex<Vec<u64>>,
}

impl Store<'_> {
    fn note(&self, level: Level, shard: TileCoord, stored: Stored) {
        let counts = if level == Level::FINEST { std::mem::take(&mut *lock(&self.counts)) } else { Vec::new() };
        let entry = Entry { product: self.product, ..Entry::new(level, shard, stored, counts) };
        lock(self.log).note(Line::Shard(entry));
    }
}

impl ShardStore for Store<'_> {
    type Error = Error;

    fn write(&self, level: Level, shard: TileCoord, pixels: &Pixels) -> Result<()> {
        let stored = self.sink.write_shard(level, shard, pixels)?;
        self.note(level, shard, stored);
        Ok(())
    }

    fn background(&self, level: Level, shard: TileCoord) -> Result<()> {
        self.note(level, shard, Stored::Background);
        Ok(())
    }

    fn read(&self, level: Level, shard: TileCoord) -> Result<Pixels> {
        Ok(self.sink.read_shard(level, shard)?)
    }
}
