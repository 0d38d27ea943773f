//! Finished shards on their way to the store, level by level.

use std::cell::{Cell, RefCell};
use std::time::{Duration, Instant};

use microtome_io::store::{ImageSink, Stored};
use microtome_io::{Level, Pixels, Samples, TileCoord};
use microtome_tile::pyramid::{Pyramid, Reduction, Shard, ShardStore};

use crate::journal::{Entry, Journal, Record};
use crate::{Error, Result};

/// Work that a crash may cost: shards are synced and noted in the journal at least this often.
const SYNC_EVERY: Duration = Duration::from_secs(2);

/// Writes shards of level 0 and every shard above that they complete, and notes them in a journal once they are durable.
#[derive(Debug)]
pub struct LabelPyramid<'a> {
    pyramid: Pyramid,
    store: Store<'a>,
    /// Pixels of each label on level 0, by value.
    counts: Vec<u64>,
}

impl<'a> LabelPyramid<'a> {
    /// A pyramid that ends in `sink` and holds at most `capacity` bytes of half-built shards. Without a journal nothing
    /// is noted, and a run that stops has to begin anew.
    #[must_use]
    pub fn new(sink: &'a dyn ImageSink, journal: Option<Journal>, capacity: usize) -> Self {
        let image = sink.image();
        let levels = image.levels.iter().map(|l| l.size).collect();
        let store = Store {
            sink,
            journal: RefCell::new(journal),
            unsynced: RefCell::default(),
            synced: Cell::new(Instant::now()),
            counts: RefCell::default(),
        };
        Self { pyramid: Pyramid::new(levels, image.shard, Reduction::Mode, capacity), store, counts: Vec::new() }
    }

    /// Goes on where the record ends: its shards are not pushed again, those above them that are missing are built.
    ///
    /// # Errors
    /// The store's.
    pub fn restore(&mut self, record: &Record) -> Result<()> {
        for entry in record.entries.values().filter(|e| e.level == Level::FINEST) {
            add(&mut self.counts, &entry.counts);
        }
        let done = record.entries.iter().map(|(&key, entry)| (key, entry.sha256.is_some())).collect();
        self.pyramid.restore(&done, &self.store)
    }

    /// Takes a finished shard of level 0.
    ///
    /// # Errors
    /// The store's.
    pub fn push(&mut self, at: TileCoord, shard: Shard) -> Result<()> {
        let counts = match &shard {
            Shard::Pixels(pixels) => count(pixels),
            Shard::Background => Vec::new(),
        };
        add(&mut self.counts, &counts);
        self.store.counts.replace(counts);
        self.pyramid.push(Level::FINEST, at, shard, &self.store)?;
        if self.store.synced.get().elapsed() >= SYNC_EVERY { self.sync() } else { Ok(()) }
    }

    /// Makes everything pushed so far durable, and notes it.
    ///
    /// # Errors
    /// The store's, or the journal's.
    pub fn sync(&mut self) -> Result<()> {
        self.store.sync()
    }

    /// How many pixels of level 0 have each label so far; background (0) is not counted. Labels never met may be missing.
    #[must_use]
    pub fn counts(&self) -> &[u64] {
        &self.counts
    }

    /// The most bytes of half-built shards held at once.
    #[must_use]
    pub fn peak_bytes(&self) -> u64 {
        self.pyramid.peak_bytes() as u64
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

/// The sink and the journal, as the pyramid engine sees them.
#[derive(Debug)]
struct Store<'a> {
    sink: &'a dyn ImageSink,
    journal: RefCell<Option<Journal>>,
    /// Written, but not known to be durable.
    unsynced: RefCell<Vec<Entry>>,
    synced: Cell<Instant>,
    /// Labels of the shard of level 0 that is being pushed.
    counts: RefCell<Vec<u64>>,
}

impl Store<'_> {
    fn note(&self, level: Level, shard: TileCoord, stored: Stored) {
        let counts = if level == Level::FINEST { self.counts.take() } else { Vec::new() };
        if self.journal.borrow().is_some() {
            self.unsynced.borrow_mut().push(Entry::new(level, shard, stored, counts));
        }
    }

    fn sync(&self) -> Result<()> {
        if let Some(journal) = &mut *self.journal.borrow_mut() {
            self.sink.sync()?;
            journal.append(&self.unsynced.take())?;
        }
        self.synced.set(Instant::now());
        Ok(())
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
