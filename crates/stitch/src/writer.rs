//! Finished shards on their way to the store, level by level.

use microtome_io::store::MaskSink;
use microtome_io::{Level, Pixels, Samples, TileCoord};
use microtome_tile::pyramid::{Pyramid, Reduction, Shard, ShardStore};

use crate::Result;

/// Writes shards of level 0 and every shard above that they complete.
#[derive(Debug)]
pub struct LabelPyramid<'a> {
    sink: &'a dyn MaskSink,
    pyramid: Pyramid,
    /// Pixels of each label on level 0, by value.
    counts: Vec<u64>,
}

impl<'a> LabelPyramid<'a> {
    /// A pyramid that ends in `sink` and holds at most `capacity` bytes of half-built shards.
    #[must_use]
    pub fn new(sink: &'a dyn MaskSink, capacity: usize) -> Self {
        let image = sink.image();
        let levels = image.levels.iter().map(|l| l.size).collect();
        Self { sink, pyramid: Pyramid::new(levels, image.shard, Reduction::Mode, capacity), counts: Vec::new() }
    }

    /// Takes a finished shard of level 0.
    ///
    /// # Errors
    /// The store's.
    pub fn push(&mut self, at: TileCoord, shard: Shard) -> Result<()> {
        if let Shard::Pixels(pixels) = &shard {
            self.count(pixels);
        }
        Ok(self.pyramid.push(Level::FINEST, at, shard, &Store(self.sink))?)
    }

    fn count(&mut self, pixels: &Pixels) {
        let mut add = |value: usize| {
            if value >= self.counts.len() {
                self.counts.resize(value + 1, 0);
            }
            self.counts[value] += 1;
        };
        match pixels.samples() {
            Samples::U8(v) => v.iter().filter(|&&l| l > 0).for_each(|&l| add(l.into())),
            Samples::U16(v) => v.iter().filter(|&&l| l > 0).for_each(|&l| add(l.into())),
        }
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

struct Store<'a>(&'a dyn MaskSink);

impl ShardStore for Store<'_> {
    type Error = microtome_io::Error;

    fn write(&self, level: Level, shard: TileCoord, pixels: &Pixels) -> Result<(), Self::Error> {
        self.0.write_shard(level, shard, pixels)
    }

    fn read(&self, level: Level, shard: TileCoord) -> Result<Pixels, Self::Error> {
        self.0.read_shard(level, shard)
    }
}
