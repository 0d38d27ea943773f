//! Finished shards on their way to the stores, level by level.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use microtome_io::store::{ImageSink, Stored};
use microtome_io::{Level, Pixels, Samples, TileCoord};
use microtome_tile::pyramid::{Pyramid, Shard, ShardStore};

use crate::journal::{Entry, Journal, Line, Record, UnreadableTile};
use crate::product::Product;
use crate::{Error, Result};

/// Writes shards of level 0 of every product and every shard above that they complete, and notes them in a journal once they are durable.
#[derive(Debug)]
pub struct PyramidWriter<'a> {
    outputs: BTreeMap<Product, Output<'a>>,
    log: RefCell<Log>,
    /// Pixels of each label on level 0, by value.
    counts: Vec<u64>,
}

/// One image, and the pyramid over it.
#[derive(Debug)]
struct Output<'a> {
    sink: &'a dyn ImageSink,
    pyramid: Pyramid,
}

/// What has been written.
#[derive(Debug)]
struct Log {
    journal: Option<Journal>,
    /// Written, but not known to be durable.
    unsynced: Vec<Line>,
    synced: Instant,
    sync_every: Duration,
    unreadable: Vec<UnreadableTile>,
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
            (product, Output { sink, pyramid: Pyramid::new(levels, image.shard, product.reduction(), capacity) })
        };
        let log = Log { journal, unsynced: Vec::new(), synced: Instant::now(), sync_every, unreadable: Vec::new() };
        Self { outputs: sinks.into_iter().map(output).collect(), log: RefCell::new(log), counts: Vec::new() }
    }

    /// Goes on where the record ends: its shards are not pushed again, those above them that are missing are built.
    ///
    /// # Errors
    /// The stores'.
    pub fn restore(&mut self, record: &Record) -> Result<()> {
        for ((product, level, _), entry) in &record.entries {
            if (*product, *level) == (Product::Labels, Level::FINEST) {
                add(&mut self.counts, &entry.counts);
            }
        }
        self.log.borrow_mut().unreadable.clone_from(&record.unreadable);
        for (&product, output) in &mut self.outputs {
            let done = record.entries.iter().filter(|(key, _)| key.0 == product);
            let done = done.map(|(&(_, level, shard), entry)| ((level, shard), entry.sha256.is_some())).collect();
            let store = Store { product, sink: output.sink, log: &self.log, counts: RefCell::default() };
            output.pyramid.restore(&done, &store)?;
        }
        Ok(())
    }

    /// Takes a finished shard of level 0.
    ///
    /// # Errors
    /// The store's; [`Error::Usage`] for a product that has none.
    pub fn push(&mut self, product: Product, at: TileCoord, shard: Shard) -> Result<()> {
        let Some(output) = self.outputs.get_mut(&product) else {
            return Err(Error::Usage(format!("there is no store for {product:?}")));
        };
        let counts = match &shard {
            Shard::Pixels(pixels) if product == Product::Labels => count(pixels),
            _ => Vec::new(),
        };
        add(&mut self.counts, &counts);
        let store = Store { product, sink: output.sink, log: &self.log, counts: RefCell::new(counts) };
        output.pyramid.push(Level::FINEST, at, shard, &store)?;
        // Labels come last: where theirs are noted, everything of the place is.
        if product == Product::Labels && self.due() == Some(Duration::ZERO) { self.sync() } else { Ok(()) }
    }

    /// How long what was pushed may still wait to be noted; `None` where nothing waits.
    #[must_use]
    pub fn due(&self) -> Option<Duration> {
        let log = self.log.borrow();
        (!log.unsynced.is_empty()).then(|| log.sync_every.saturating_sub(log.synced.elapsed()))
    }

    /// Takes note of a tile of the slide that could not be read. The shards that it touches come later.
    pub fn unreadable(&mut self, tile: UnreadableTile) {
        let mut log = self.log.borrow_mut();
        if !log.unreadable.iter().any(|known| (known.level, known.tile) == (tile.level, tile.tile)) {
            log.unreadable.push(tile.clone());
            log.note(Line::Unreadable { unreadable: tile });
        }
    }

    /// Makes everything pushed so far durable, and notes it.
    ///
    /// # Errors
    /// The stores', or the journal's.
    pub fn sync(&mut self) -> Result<()> {
        let mut log = self.log.borrow_mut();
        let log = &mut *log;
        if let Some(journal) = &mut log.journal {
            self.outputs.values().try_for_each(|output| output.sink.sync())?;
            journal.append(&std::mem::take(&mut log.unsynced))?;
        }
        log.synced = Instant::now();
        Ok(())
    }

    /// How many pixels of level 0 have each label so far; background (0) is not counted. Labels never met may be missing.
    #[must_use]
    pub fn counts(&self) -> &[u64] {
        &self.counts
    }

    /// Tiles that could not be read, also those of the run that this one goes on with.
    #[must_use]
    pub fn unreadable_tiles(&self) -> Vec<UnreadableTile> {
        self.log.borrow().unreadable.clone()
    }

    /// The most bytes of half-built shards held at once, product by product.
    #[must_use]
    pub fn peak_bytes(&self) -> u64 {
        self.outputs.values().map(|output| output.pyramid.peak_bytes() as u64).sum()
    }
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
        if self.journal.is_some() {
            self.unsynced.push(line);
        }
    }
}

/// The sink of a product and the journal, as the pyramid engine sees them.
#[derive(Debug)]
struct Store<'s> {
    product: Product,
    sink: &'s dyn ImageSink,
    log: &'s RefCell<Log>,
    /// Labels of the shard of level 0 that is being pushed.
    counts: RefCell<Vec<u64>>,
}

impl Store<'_> {
    fn note(&self, level: Level, shard: TileCoord, stored: Stored) {
        let counts = if level == Level::FINEST { self.counts.take() } else { Vec::new() };
        let entry = Entry { product: self.product, ..Entry::new(level, shard, stored, counts) };
        self.log.borrow_mut().note(Line::Shard(entry));
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
