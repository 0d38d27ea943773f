//! The pyramid engine: level n + 1 from level n, in one pass, shard by shard, from any number of threads.
//!
//! Level n + 1 has `ceil(size / 2)` pixels per axis; its pixel `(x, y)` comes from the pixels `{2x, 2x + 1} × {2y, 2y + 1}`
//! of level n that exist. A shard of level n + 1 is emitted as soon as the (at most four) shards of level n under it
//! have been pushed.
//!
//! Storing a shard, halving it and putting the halves together happen outside of any lock; only the account of half-built shards is
//! locked. What is stored does not depend on threads or order: each quarter of a shard comes from one shard below, and means are sums of
//! whole numbers.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use microtome_io::{Level, Pixels, Rect, Samples, Size, TileCoord};
use rayon::prelude::*;
use serde::Serialize;

/// How the (at most) four pixels under one of the next level become that one, channel by channel.
///
/// Where a size is odd, the last column or row stands twice for itself; all results below are then those of the pixels that exist.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Reduction {
    /// The most frequent value; of several equally frequent ones the lowest. For labels: no value appears that was not there.
    Mode,
    /// The mean, rounded to the nearest whole number, a half up: `(a + b + c + d + 2) / 4` of four, `(a + b + 1) / 2` of two. For images.
    Mean,
    /// The top left one, which always exists. The pixel `(x, y)` of level n is then the pixel `(2ⁿ x, 2ⁿ y)` of level 0, with its centre where
    /// that one has it: see [`moves_centres`](Self::moves_centres).
    Nearest,
    /// The largest: small bright spots stay visible.
    Max,
}

impl Reduction {
    /// The name that OME-Zarr metadata carry as `type`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Mode => "mode",
            Self::Mean => "mean",
            Self::Nearest => "nearest",
            Self::Max => "max",
        }
    }

    /// True if a pixel of the next level stands for all four under it, so that its centre lies between theirs, half a pixel of the finer
    /// level further right and down; false if it stands for one of them at that one's place.
    #[must_use]
    pub fn moves_centres(self) -> bool {
        self != Self::Nearest
    }

    /// Halves a picture, rounding its size up.
    #[must_use]
    pub fn halve(self, pixels: &Pixels) -> Pixels {
        let (size, channels) = (pixels.size(), pixels.channels());
        let half = Size::new(size.width.div_ceil(2), size.height.div_ceil(2));
        match (self, pixels.samples()) {
            (Self::Mode, Samples::U8(v)) => Pixels::from_u8(half, channels, halve(v, size, channels, mode)),
            (Self::Mode, Samples::U16(v)) => Pixels::from_u16(half, channels, halve(v, size, channels, mode)),
            (Self::Mean, Samples::U8(v)) => Pixels::from_u8(half, channels, halve(v, size, channels, mean_u8)),
            (Self::Mean, Samples::U16(v)) => Pixels::from_u16(half, channels, halve(v, size, channels, mean_u16)),
            (Self::Nearest, Samples::U8(v)) => {
                Pixels::from_u8(half, channels, halve(v, size, channels, |four| four[0]))
            }
            (Self::Nearest, Samples::U16(v)) => {
                Pixels::from_u16(half, channels, halve(v, size, channels, |four| four[0]))
            }
            (Self::Max, Samples::U8(v)) => Pixels::from_u8(half, channels, halve(v, size, channels, max)),
            (Self::Max, Samples::U16(v)) => Pixels::from_u16(half, channels, halve(v, size, channels, max)),
        }
    }
}

fn halve<T: Copy + Default>(samples: &[T], size: Size, channels: usize, reduce: impl Fn([T; 4]) -> T + Copy) -> Vec<T> {
    // With a number of channels that is known beforehand, the compiler reduces many pixels at once.
    match channels {
        1 => halve_rows::<1, T>(samples, size, channels, reduce),
        2 => halve_rows::<2, T>(samples, size, channels, reduce),
        3 => halve_rows::<3, T>(samples, size, channels, reduce),
        _ => halve_rows::<0, T>(samples, size, channels, reduce),
    }
}

/// Of a picture of `CHANNELS` channels, 0 for any number.
fn halve_rows<const CHANNELS: usize, T: Copy + Default>(
    samples: &[T],
    size: Size,
    channels: usize,
    reduce: impl Fn([T; 4]) -> T,
) -> Vec<T> {
    let channels = if CHANNELS == 0 { channels } else { CHANNELS };
    let (row, width) = (size.width as usize * channels, size.width.div_ceil(2) as usize * channels);
    let mut out = vec![T::default(); width * size.height.div_ceil(2) as usize];
    if out.is_empty() {
        return out;
    }
    let pairs = size.width as usize / 2;
    for (to, from) in out.chunks_exact_mut(width).zip(samples.chunks(2 * row)) {
        let top = &from[..row];
        let bottom = if from.len() == row { top } else { &from[row..] };
        let (to, last) = to.split_at_mut(pairs * channels);
        let (top, last_top) = top.split_at(2 * pairs * channels);
        let (bottom, last_bottom) = bottom.split_at(2 * pairs * channels);
        let pairs = top.chunks_exact(2 * channels).zip(bottom.chunks_exact(2 * channels));
        for (to, (a, b)) in to.chunks_exact_mut(channels).zip(pairs) {
            for c in 0..channels {
                to[c] = reduce([a[c], a[c + channels], b[c], b[c + channels]]);
            }
        }
        // The column that is left of an odd width, if there is one.
        for (to, (&a, &b)) in last.iter_mut().zip(last_top.iter().zip(last_bottom)) {
            *to = reduce([a, a, b, b]);
        }
    }
    out
}

/// The most frequent of four values, the lowest of those that tie.
#[inline]
fn mode<T: Copy + Ord>([a, b, c, d]: [T; 4]) -> T {
    // Sorted, equal values are neighbours, and the first equal pair is of the lowest value that occurs twice; three or four of a kind are
    // the first equal pair, too, as there is room for one other value only. No branch: labels are hard to guess at their borders.
    let ([a, b], [c, d]) = (sort(a, b), sort(c, d));
    let ([s0, x], [y, s3]) = (sort(a, c), sort(b, d));
    let [s1, s2] = sort(x, y);
    let last = if s2 == s3 { s2 } else { s0 };
    let middle = if s1 == s2 { s1 } else { last };
    if s0 == s1 { s0 } else { middle }
}

#[inline]
fn sort<T: Copy + Ord>(a: T, b: T) -> [T; 2] {
    [a.min(b), a.max(b)]
}

#[inline]
fn max<T: Copy + Ord>([a, b, c, d]: [T; 4]) -> T {
    a.max(b).max(c.max(d))
}

#[inline]
fn mean_u8(four: [u8; 4]) -> u8 {
    ((four.iter().map(|&v| u16::from(v)).sum::<u16>() + 2) / 4) as u8
}

#[inline]
fn mean_u16(four: [u16; 4]) -> u16 {
    ((four.iter().map(|&v| u32::from(v)).sum::<u32>() + 2) / 4) as u16
}

/// The sizes of a pyramid over `size`: halved, rounding up, until the longer side is at most `smallest`.
#[must_use]
pub fn level_sizes(size: Size, smallest: u64) -> Vec<Size> {
    let mut sizes = vec![size];
    let mut last = size;
    while last.width.max(last.height) > smallest.max(1) {
        last = Size::new(last.width.div_ceil(2), last.height.div_ceil(2));
        sizes.push(last);
    }
    sizes
}

/// Where finished shards go, and where they can be read again.
pub trait ShardStore {
    /// Its error.
    type Error;

    /// Takes a finished shard: exactly the pixels of its cell that lie inside the level.
    ///
    /// # Errors
    /// Whatever keeps the shard from being stored.
    fn write(&self, level: Level, shard: TileCoord, pixels: &Pixels) -> Result<(), Self::Error>;

    /// Is told of a finished shard that is all background.
    ///
    /// # Errors
    /// Whatever keeps that from being noted.
    fn background(&self, level: Level, shard: TileCoord) -> Result<(), Self::Error>;

    /// Gives a shard back that was written before; only called for shards that were not all background.
    ///
    /// # Errors
    /// Whatever keeps the shard from being read.
    fn read(&self, level: Level, shard: TileCoord) -> Result<Pixels, Self::Error>;
}

/// A shard that was pushed.
#[derive(Debug)]
pub enum Shard {
    /// It holds nothing but the background value 0, and takes no memory.
    Background,
    /// Its pixels.
    Pixels(Pixels),
}

/// Builds the levels above level 0 from the shards of level 0, pushed in any order and from any thread, each once.
///
/// Memory: at most the stated number of bytes of half-built shards; besides, each thread that pushes holds the shard that it was given, a
/// half of it, and the shard above that it completes. Where more would have to be kept, parts of a half-built shard are
/// forgotten, and built from the store when its last child arrives. What is stored does not depend on which.
///
/// How much is half built depends on the order: with that of [`z_order`](crate::z_order) it is about one shard for each level and those in
/// flight, whatever the size of the image; row by row, it is a row of shards.
#[derive(Debug)]
pub struct Pyramid {
    levels: Vec<Size>,
    shard: Size,
    reduction: Reduction,
    capacity: usize,
    /// Levels that are pushed and not built.
    given: BTreeSet<Level>,
    account: Mutex<Account>,
}

/// What is half built. Nothing is computed, read or written while it is locked.
#[derive(Debug, Default)]
struct Account {
    pending: BTreeMap<(Level, TileCoord), Pending>,
    held: usize,
    peak: usize,
}

#[derive(Debug)]
struct Pending {
    /// Children that have not arrived yet.
    missing: u32,
    /// Children that have, and are not background.
    parts: Vec<Part>,
}

/// A child of a shard, halved: a quarter of it.
#[derive(Debug)]
struct Part {
    child: TileCoord,
    /// `None` once forgotten: then the child is read again.
    half: Option<Pixels>,
}

impl Pyramid {
    /// A pyramid over level 0 of `levels` (as [`level_sizes`] gives them), stored in shards of `shard` pixels, that
    /// holds at most `capacity` bytes of half-built shards.
    ///
    /// # Panics
    /// If the shard's sides are odd: a quarter of a shard would not be a whole number of pixels.
    #[must_use]
    pub fn new(levels: Vec<Size>, shard: Size, reduction: Reduction, capacity: usize) -> Self {
        assert!(shard.width.is_multiple_of(2) && shard.height.is_multiple_of(2), "shards of {shard} cannot be halved");
        Self { levels, shard, reduction, capacity, given: BTreeSet::new(), account: Mutex::default() }
    }

    /// Levels above level 0 that are pushed, as level 0 is, in place of being built from the level below. Levels above them are built from
    /// them.
    #[must_use]
    pub fn with_given(mut self, levels: impl IntoIterator<Item = Level>) -> Self {
        self.given.extend(levels);
        self
    }

    /// Goes on where another process stopped: `done` are the shards of all levels that are stored already (`true`) or known to be
    /// background (`false`), and must not be pushed again. Shards whose children are all done are built now, so many at once as `lanes` says, on
    /// the current rayon pool; where `goes_on` says no meanwhile, some are left out, and the pyramid is of no use any more.
    ///
    /// # Errors
    /// The store's.
    pub fn restore<S: ShardStore<Error: Send> + Sync>(
        &self,
        done: &BTreeMap<(Level, TileCoord), bool>,
        store: &S,
        lanes: usize,
        goes_on: impl Fn() -> bool + Sync,
    ) -> Result<(), S::Error> {
        let mut complete = Vec::new();
        for (&(level, shard), &stored) in done {
            let Some(key) = self.parent(level, shard).filter(|key| !done.contains_key(key)) else { continue };
            let part = stored.then_some(Part { child: shard, half: None });
            complete.extend(self.add(key, part).map(|parts| (key, parts)));
        }
        let complete = Mutex::new(complete.into_iter());
        let next = || complete.lock().unwrap_or_else(PoisonError::into_inner).next().filter(|_| goes_on());
        // A shard that is built here is pushed on like any other.
        let build = |(key, parts): ((Level, TileCoord), Vec<Part>)| {
            self.push(key.0, key.1, self.assemble(key, parts, store)?, store)
        };
        let failed = AtomicBool::new(false);
        (0..lanes.max(1)).into_par_iter().with_max_len(1).try_for_each(|_| {
            while let Some(shard) = next().filter(|_| !failed.load(Ordering::Relaxed)) {
                build(shard).inspect_err(|_| failed.store(true, Ordering::Relaxed))?;
            }
            Ok(())
        })
    }

    /// The most bytes of half-built shards that were held at once.
    #[must_use]
    pub fn peak_bytes(&self) -> usize {
        self.account().peak
    }

    /// Takes a finished shard of `level`, and hands it and every shard above that it completes to the store, on this thread.
    ///
    /// # Errors
    /// The store's.
    pub fn push<S: ShardStore>(
        &self,
        level: Level,
        shard: TileCoord,
        content: Shard,
        store: &S,
    ) -> Result<(), S::Error> {
        let (mut level, mut shard, mut content) = (level, shard, content);
        loop {
            match &content {
                Shard::Pixels(pixels) => store.write(level, shard, pixels)?,
                Shard::Background => store.background(level, shard)?,
            }
            let Some(key) = self.parent(level, shard) else { return Ok(()) };
            let part = match content {
                Shard::Background => None,
                // The shard itself is let go of here.
                Shard::Pixels(pixels) => Some(Part { child: shard, half: Some(self.reduction.halve(&pixels)) }),
            };
            let Some(parts) = self.add(key, part) else { return Ok(()) };
            content = self.assemble(key, parts, store)?;
            (level, shard) = key;
        }
    }

    /// Takes account of a child; `None` if it is background. Gives the parts of the parent if that was its last child.
    fn add(&self, key: (Level, TileCoord), part: Option<Part>) -> Option<Vec<Part>> {
        let children = self.children(key.0, key.1);
        let mut account = self.account();
        let account = &mut *account;
        let entry = account.pending.entry(key).or_insert(Pending { missing: children, parts: Vec::new() });
        entry.missing -= 1;
        account.held += part.as_ref().map_or(0, Part::bytes);
        entry.parts.extend(part);
        if entry.missing == 0 {
            let parts = account.pending.remove(&key).map(|entry| entry.parts).unwrap_or_default();
            account.held -= parts.iter().map(Part::bytes).sum::<usize>();
            return Some(parts);
        }
        account.forget_beyond(self.capacity);
        account.peak = account.peak.max(account.held);
        None
    }

    /// The content of a shard all of whose children have arrived.
    fn assemble<S: ShardStore>(
        &self,
        (level, shard): (Level, TileCoord),
        parts: Vec<Part>,
        store: &S,
    ) -> Result<Shard, S::Error> {
        let rect = self.rect(level, shard);
        let mut built: Option<Pixels> = None;
        for Part { child, half } in parts {
            let half = match half {
                Some(half) => half,
                None => self.reduction.halve(&store.read(Level(level.0 - 1), child)?),
            };
            let at = self.half_rect(child, half.size());
            built
                .get_or_insert_with(|| Pixels::filled(rect.size(), half.sample_type(), &vec![0; half.channels()]))
                .blit(rect, &half, at);
        }
        Ok(built.map_or(Shard::Background, Shard::Pixels))
    }

    /// The shard that is built from this one and its neighbours, if there is one.
    fn parent(&self, level: Level, shard: TileCoord) -> Option<(Level, TileCoord)> {
        let above = Level(level.0 + 1);
        (above.0 < self.levels.len() && !self.given.contains(&above))
            .then_some((above, TileCoord { row: shard.row / 2, column: shard.column / 2 }))
    }

    /// How many shards of the level below lie under a shard.
    fn children(&self, level: Level, shard: TileCoord) -> u32 {
        let cells = self.levels[level.0 - 1].cells(self.shard);
        let inside = |n: u64, i: u64| n.saturating_sub(2 * i).min(2) as u32;
        inside(cells.height, shard.row) * inside(cells.width, shard.column)
    }

    /// The pixels of a shard that lie inside its level.
    fn rect(&self, level: Level, shard: TileCoord) -> Rect {
        let cell = shard.rect(self.shard);
        cell.intersect(self.levels[level.0].rect()).unwrap_or(Rect::new(cell.x, cell.y, 0, 0))
    }

    /// Where a halved child lies on its parent's level.
    fn half_rect(&self, child: TileCoord, size: Size) -> Rect {
        Rect::new(
            child.column as i64 * (self.shard.width / 2) as i64,
            child.row as i64 * (self.shard.height / 2) as i64,
            size.width,
            size.height,
        )
    }

    fn account(&self) -> MutexGuard<'_, Account> {
        // Its fields are changed together, and nothing in between can panic but a mistake in counting, after which the run is lost anyway.
        self.account.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Account {
    /// Forgets parts of half-built shards, those that will be complete last first, until the rest fits.
    fn forget_beyond(&mut self, capacity: usize) {
        while self.held > capacity {
            // The coarsest level waits longest, and within it the last row.
            let mut parts = self.pending.values_mut().rev().flat_map(|entry| &mut entry.parts);
            let Some(part) = parts.find(|part| part.half.is_some()) else { return };
            self.held -= part.bytes();
            part.half = None;
        }
    }
}

impl Part {
    fn bytes(&self) -> usize {
        self.half.as_ref().map_or(0, Pixels::bytes)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_mode_of_four_is_the_most_frequent_then_the_lowest() {
        for code in 0..256u32 {
            let four = [code & 3, code >> 2 & 3, code >> 4 & 3, code >> 6 & 3];
            let count = |v| four.iter().filter(|&&w| w == v).count();
            let expected = (0..4).max_by_key(|&v| (count(v), 3 - v)).unwrap();
            assert_eq!(mode(four), expected, "{four:?}");
        }
    }

    const ALL: [Reduction; 4] = [Reduction::Mode, Reduction::Mean, Reduction::Nearest, Reduction::Max];

    /// What the documentation says, counted and summed over the pixels that exist.
    fn naive(reduction: Reduction, of: &[u16], size: Size, channels: usize) -> Vec<u16> {
        let half = Size::new(size.width.div_ceil(2), size.height.div_ceil(2));
        let mut out = Vec::new();
        for (y, x, c) in
            (0..half.height).flat_map(|y| (0..half.width).flat_map(move |x| (0..channels).map(move |c| (y, x, c))))
        {
            let here: Vec<u16> = [(2 * x, 2 * y), (2 * x + 1, 2 * y), (2 * x, 2 * y + 1), (2 * x + 1, 2 * y + 1)]
                .into_iter()
                .filter(|&(x, y)| x < size.width && y < size.height)
                .map(|(x, y)| of[(y * size.width + x) as usize * channels + c])
                .collect();
            out.push(match reduction {
                Reduction::Mode => {
                    let count = |v: u16| here.iter().filter(|&&w| w == v).count();
                    *here.iter().max_by_key(|&&v| (count(v), std::cmp::Reverse(v))).unwrap()
                }
                Reduction::Nearest => here[0],
                Reduction::Max => *here.iter().max().unwrap(),
                Reduction::Mean => {
                    let mean = here.iter().map(|&v| f64::from(v)).sum::<f64>() / here.len() as f64;
                    (mean + 0.5).floor() as u16
                }
            });
        }
        out
    }

    proptest! {
        #[test]
        fn halving_is_what_is_documented(
            (width, height, channels) in (1..40_u64, 1..12_u64, 1..6_usize),
            values in prop::sample::select(vec![2_u16, 4, 256, 65535]),
            seed: u64,
        ) {
            let size = Size::new(width, height);
            let samples: Vec<u16> = (0..size.area() * channels as u64)
                // splitmix64, Steele, Lea and Flood 2014.
                .map(|i| {
                    let z = (seed.wrapping_add(i)).wrapping_mul(0x9E37_79B9_7F4A_7C15);
                    let z = (z ^ z >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
                    ((z ^ z >> 27) % u64::from(values)) as u16 + u16::from(values == 65535)
                })
                .collect();
            for reduction in ALL {
                let expected = naive(reduction, &samples, size, channels);
                let wide = reduction.halve(&Pixels::from_u16(size, channels, samples.clone()));
                prop_assert_eq!(wide.samples(), &Samples::U16(expected.clone()));
                if values <= 256 {
                    let narrow = samples.iter().map(|&v| v as u8).collect();
                    let narrow = reduction.halve(&Pixels::from_u8(size, channels, narrow));
                    prop_assert_eq!(narrow.as_u8().unwrap(), expected.iter().map(|&v| v as u8).collect::<Vec<_>>());
                }
            }
        }
    }

    #[derive(Default)]
    struct Memory {
        shards: Mutex<BTreeMap<(Level, TileCoord), Pixels>>,
        backgrounds: Mutex<BTreeSet<(Level, TileCoord)>>,
        reads: AtomicUsize,
    }

    impl ShardStore for Memory {
        type Error = std::convert::Infallible;
        fn write(&self, level: Level, shard: TileCoord, pixels: &Pixels) -> Result<(), Self::Error> {
            let before = self.shards.lock().unwrap().insert((level, shard), pixels.clone());
            assert!(before.is_none(), "level {level}, {shard} was written twice");
            Ok(())
        }
        fn background(&self, level: Level, shard: TileCoord) -> Result<(), Self::Error> {
            assert!(self.backgrounds.lock().unwrap().insert((level, shard)), "level {level}, {shard} was noted twice");
            Ok(())
        }
        fn read(&self, level: Level, shard: TileCoord) -> Result<Pixels, Self::Error> {
            self.reads.fetch_add(1, Ordering::Relaxed);
            Ok(self.shards.lock().unwrap()[&(level, shard)].clone())
        }
    }

    const LABELS: (Reduction, u64) = (Reduction::Mode, 1);
    const SHARD: Size = Size::new(8, 8);

    /// In which order shards of level 0 are pushed.
    #[derive(Debug, Clone, Copy, PartialEq)]
    enum Order {
        Columns,
        Backwards,
        Z,
    }

    impl Order {
        fn cells(self, cells: Size) -> Vec<TileCoord> {
            let mut order: Vec<_> =
                (0..cells.area()).map(|i| TileCoord { row: i % cells.height, column: i / cells.height }).collect();
            match self {
                Self::Columns => {}
                Self::Backwards => order.reverse(),
                Self::Z => order = crate::z_order(cells).collect(),
            }
            order
        }
    }

    /// A pseudo-random image with much background.
    fn samples(rect: Rect, channels: u64) -> Vec<u8> {
        let value = |x: u64, y: u64, c: u64| {
            if (x / 7 + y / 5).is_multiple_of(3) { 0 } else { (x * 31 + y * 17 + x * y + c) as u8 % 4 }
        };
        let columns = rect.x as u64..rect.right() as u64;
        (rect.y as u64..rect.bottom() as u64)
            .flat_map(|y| columns.clone().flat_map(move |x| (0..channels).map(move |c| value(x, y, c))))
            .collect()
    }

    fn shard_of(rect: Rect, channels: u64) -> Shard {
        let samples = samples(rect, channels);
        if samples.iter().all(|&v| v == 0) {
            return Shard::Background;
        }
        Shard::Pixels(Pixels::from_u8(rect.size(), channels as usize, samples))
    }

    /// What is stored of a level.
    fn stored(store: &Memory, level: usize, size: Size, channels: usize) -> Pixels {
        let mut read = Pixels::filled(size, microtome_io::SampleType::U8, &vec![0; channels]);
        for (key, pixels) in store.shards.lock().unwrap().iter().filter(|(key, _)| key.0.0 == level) {
            let at = key.1.rect(SHARD).intersect(size.rect()).unwrap();
            read.blit(size.rect(), pixels, at);
        }
        read
    }

    /// Pushes the image in the given order, from so many threads, and compares every level with plain halving.
    fn check(
        (reduction, channels): (Reduction, u64),
        size: Size,
        capacity: usize,
        order: Order,
        threads: usize,
    ) -> (usize, Memory) {
        let levels = level_sizes(size, 4);
        let pyramid = Pyramid::new(levels.clone(), SHARD, reduction, capacity);
        let store = Memory::default();
        let next = Mutex::new(order.cells(size.cells(SHARD)).into_iter());
        std::thread::scope(|scope| {
            for _ in 0..threads {
                scope.spawn(|| {
                    loop {
                        let Some(at) = next.lock().unwrap().next() else { return };
                        let rect = at.rect(SHARD).intersect(size.rect()).unwrap();
                        pyramid.push(Level(0), at, shard_of(rect, channels), &store).unwrap();
                    }
                });
            }
        });
        let account = pyramid.account();
        assert!(account.pending.is_empty() && account.held == 0);
        drop(account);

        let mut whole = Pixels::from_u8(size, channels as usize, samples(size.rect(), channels));
        for (level, &size) in levels.iter().enumerate() {
            assert_eq!(
                stored(&store, level, size, channels as usize),
                whole,
                "level {level}, {reduction:?}, {order:?}"
            );
            whole = reduction.halve(&whole);
        }
        (pyramid.peak_bytes(), store)
    }

    #[test]
    fn levels_do_not_depend_on_order_capacity_or_threads() {
        for size in [Size::new(1, 1), Size::new(37, 21), Size::new(64, 64), Size::new(5, 130), Size::new(33, 1)] {
            for capacity in [0, 100, usize::MAX] {
                for kind in
                    [LABELS, (Reduction::Mean, 1), (Reduction::Mean, 3), (Reduction::Nearest, 2), (Reduction::Max, 4)]
                {
                    for order in [Order::Columns, Order::Backwards, Order::Z] {
                        check(kind, size, capacity, order, 1);
                        check(kind, size, capacity, order, 3);
                    }
                }
            }
        }
    }

    #[test]
    fn levels_that_are_given_are_not_built_and_carry_those_above() {
        let size = Size::new(61, 50);
        let levels = level_sizes(size, 4);
        // Level 2 is another picture altogether.
        let (other, given) = (levels[2], Level(2));
        let picture = |level: Level, rect: Rect| match level {
            Level(0) => samples(rect, 1),
            _ => samples(rect, 1).into_iter().map(|v| 3 - v).collect(),
        };
        let pyramid = Pyramid::new(levels.clone(), SHARD, Reduction::Max, 0).with_given([given]);
        let store = Memory::default();
        for (level, size) in [(Level(0), size), (given, other)] {
            for at in crate::z_order(size.cells(SHARD)) {
                let rect = at.rect(SHARD).intersect(size.rect()).unwrap();
                let pixels = Pixels::from_u8(rect.size(), 1, picture(level, rect));
                pyramid.push(level, at, Shard::Pixels(pixels), &store).unwrap();
            }
        }
        let halved = |pixels: Pixels| Reduction::Max.halve(&pixels);
        let finest = Pixels::from_u8(size, 1, picture(Level(0), size.rect()));
        assert_eq!(stored(&store, 1, levels[1], 1), halved(finest));
        let middle = Pixels::from_u8(other, 1, picture(given, other.rect()));
        assert_eq!(stored(&store, 2, other, 1), middle);
        assert_eq!(stored(&store, 3, levels[3], 1), halved(middle));
    }

    #[test]
    fn what_was_stopped_anywhere_goes_on_to_the_same_levels() {
        let size = Size::new(61, 50);
        let levels = level_sizes(size, 4);
        let order = Order::Z.cells(size.cells(SHARD));
        let (_, whole) = check(LABELS, size, usize::MAX, Order::Z, 1);
        let push = |pyramid: &Pyramid, at: TileCoord, store: &Memory| {
            let rect = at.rect(SHARD).intersect(size.rect()).unwrap();
            pyramid.push(Level(0), at, shard_of(rect, 1), store).unwrap();
        };
        for stopped in 0..order.len() {
            let store = Memory::default();
            let pyramid = Pyramid::new(levels.clone(), SHARD, Reduction::Mode, usize::MAX);
            order[..stopped].iter().for_each(|&at| push(&pyramid, at, &store));
            let mut done: BTreeMap<_, _> = store.shards.lock().unwrap().keys().map(|&key| (key, true)).collect();
            done.extend(store.backgrounds.lock().unwrap().iter().map(|&key| (key, false)));
            // Of what was built above, the last shard was not noted.
            if done.keys().last().is_some_and(|key| key.0 > Level(0))
                && let Some((last, _)) = done.pop_last()
            {
                store.shards.lock().unwrap().remove(&last);
                store.backgrounds.lock().unwrap().remove(&last);
            }
            let pyramid = Pyramid::new(levels.clone(), SHARD, Reduction::Mode, usize::MAX);
            pyramid.restore(&done, &store, 1 + stopped % 3, || true).unwrap();
            order[stopped..].iter().for_each(|&at| push(&pyramid, at, &store));
            assert!(*store.shards.lock().unwrap() == *whole.shards.lock().unwrap(), "stopped after {stopped}");
        }
    }

    #[test]
    fn a_restoration_that_is_stopped_builds_no_more() {
        let size = Size::new(61, 50);
        let levels = level_sizes(size, 4);
        let (_, whole) = check(LABELS, size, usize::MAX, Order::Z, 1);
        let store = Memory::default();
        let finest = whole.shards.lock().unwrap().clone().into_iter().filter(|(key, _)| key.0 == Level(0));
        store.shards.lock().unwrap().extend(finest);
        let mut done: BTreeMap<_, _> = store.shards.lock().unwrap().keys().map(|&key| (key, true)).collect();
        let backgrounds = whole.backgrounds.lock().unwrap().clone();
        done.extend(backgrounds.into_iter().filter(|key| key.0 == Level(0)).map(|key| (key, false)));
        let restored = |limit: usize| {
            let asked = AtomicUsize::new(0);
            let pyramid = Pyramid::new(levels.clone(), SHARD, Reduction::Mode, usize::MAX);
            pyramid.restore(&done, &store, 2, || asked.fetch_add(1, Ordering::Relaxed) < limit).unwrap();
            let built = store.shards.lock().unwrap().keys().filter(|key| key.0 > Level(0)).count();
            store.shards.lock().unwrap().retain(|key, _| key.0 == Level(0));
            store.backgrounds.lock().unwrap().clear();
            built
        };
        assert_eq!(restored(0), 0);
        let all = restored(usize::MAX);
        assert!(restored(1) < all, "{all}");
        assert_eq!(all, whole.shards.lock().unwrap().keys().filter(|key| key.0 > Level(0)).count());
    }

    /// `cargo nextest run --workspace --run-ignored only --no-capture -E 'test(measurement_of_halving)'`
    #[test]
    #[ignore = "a measurement"]
    fn measurement_of_halving() {
        let size = Size::new(2048, 2048);
        for (reduction, channels) in [LABELS, (Reduction::Mean, 1), (Reduction::Mean, 2), (Reduction::Mean, 3)] {
            let samples = (0..size.area() * channels).map(|i| ((i / 13) * (i / 40_000) % 5) as u8).collect();
            let pixels = Pixels::from_u8(size, channels as usize, samples);
            let best = (0..9).map(|_| {
                let start = std::time::Instant::now();
                std::hint::black_box(reduction.halve(std::hint::black_box(&pixels)));
                start.elapsed()
            });
            let rate = size.area() as f64 / 1e6 / best.min().unwrap_or_default().as_secs_f64();
            println!("{reduction:?}, {channels} channels: {rate:.0} Mpx/s");
        }
    }

    #[test]
    fn capacity_bounds_what_is_held() {
        let size = Size::new(200, 200);
        let (unlimited, store) = check(LABELS, size, usize::MAX, Order::Columns, 1);
        assert_eq!(store.reads.into_inner(), 0, "nothing is read again unless something was forgotten");
        let (bounded, store) = check(LABELS, size, 256, Order::Columns, 1);
        assert!(bounded <= 256 && bounded < unlimited, "{bounded} of {unlimited} bytes");
        assert!(store.reads.into_inner() > 0);
    }

    /// Three quarters of a shard for each level, and as much again for each shard in flight.
    #[test]
    fn in_z_order_what_is_held_does_not_depend_on_the_size() {
        let quarter = (SHARD.area() / 4) as usize;
        for (width, height) in [(64, 64), (500, 40), (40, 500), (1000, 800), (3000, 1)] {
            let size = Size::new(width, height);
            let levels = level_sizes(size, 4).len();
            for threads in [1, 3] {
                let (peak, store) = check((Reduction::Max, 1), size, usize::MAX, Order::Z, threads);
                // A shard is half built where it holds one in flight, or the place up to which the order has come.
                let half_built = (levels - 1) * if threads == 1 { 1 } else { threads + 1 };
                assert!(peak <= 3 * quarter * half_built, "{size}, {threads} threads: {peak} bytes");
                assert_eq!(store.reads.into_inner(), 0);
            }
        }
    }
}
