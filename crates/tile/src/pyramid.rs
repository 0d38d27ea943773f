//! The pyramid engine: level n + 1 from level n, in one pass, shard by shard.
//!
//! Level n + 1 has `ceil(size / 2)` pixels per axis; its pixel `(x, y)` comes from the pixels `{2x, 2x + 1} × {2y, 2y + 1}`
//! of level n that exist. A shard of level n + 1 is emitted as soon as the (at most four) shards of level n under it
//! have been pushed.

use std::collections::BTreeMap;

use microtome_io::{Level, Pixels, Samples, Size, TileCoord};

/// How the (at most) four pixels under one of the next level become that one, channel by channel.
///
/// Where a size is odd, the last column or row stands twice for itself; all results below are then those of the pixels that exist.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reduction {
    /// The most frequent value; of several equally frequent ones the lowest. For labels: no value appears that was not there.
    Mode,
    /// The mean, rounded to the nearest whole number, a half up: `(a + b + c + d + 2) / 4` of four, `(a + b + 1) / 2` of two. For images.
    Mean,
}

impl Reduction {
    /// The name that OME-Zarr metadata carry as `type`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Mode => "mode",
            Self::Mean => "mean",
        }
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

/// Builds all levels above level 0 from the shards of level 0, pushed in any order, each once.
///
/// Memory: at most the stated number of bytes of half-built shards. Where more would be needed, a half-built shard is
/// forgotten, and built from the store when its last child arrives. What is written does not depend on which.
#[derive(Debug)]
pub struct Pyramid {
    levels: Vec<Size>,
    shard: Size,
    reduction: Reduction,
    capacity: usize,
    held: usize,
    pending: BTreeMap<(Level, TileCoord), Pending>,
    peak: usize,
}

#[derive(Debug)]
struct Pending {
    /// Children that have not arrived yet.
    missing: u32,
    /// Children that are not background, to be read again should the pixels be forgotten.
    children: Vec<TileCoord>,
    /// Built so far; `None` while all children were background, and once forgotten.
    pixels: Option<Pixels>,
    forgotten: bool,
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
        Self { levels, shard, reduction, capacity, held: 0, pending: BTreeMap::new(), peak: 0 }
    }

    /// Goes on where another process stopped: `done` are the shards of all levels that are stored already (`true`) or known to be
    /// background (`false`), and must not be pushed again. Shards whose children are all done are built now.
    ///
    /// # Errors
    /// The store's.
    pub fn restore<S: ShardStore>(
        &mut self,
        done: &BTreeMap<(Level, TileCoord), bool>,
        store: &S,
    ) -> Result<(), S::Error> {
        // From the finest level up, as the map is ordered: a shard that is built here is pushed on like any other.
        for (&(level, shard), &stored) in done {
            let parent_level = Level(level.0 + 1);
            let parent = TileCoord { row: shard.row / 2, column: shard.column / 2 };
            if parent_level.0 >= self.levels.len() || done.contains_key(&(parent_level, parent)) {
                continue;
            }
            let entry = self.entry((parent_level, parent));
            entry.missing -= 1;
            if stored {
                entry.children.push(shard);
                entry.forgotten = true;
            }
            if entry.missing == 0
                && let Some(entry) = self.pending.remove(&(parent_level, parent))
            {
                let content = self.complete(parent_level, parent, entry, store)?;
                self.push(parent_level, parent, content, store)?;
            }
        }
        Ok(())
    }

    fn entry(&mut self, key: (Level, TileCoord)) -> &mut Pending {
        let missing = self.children(key.0, key.1).len() as u32;
        let fresh = Pending { missing, children: Vec::new(), pixels: None, forgotten: false };
        self.pending.entry(key).or_insert(fresh)
    }

    /// The most bytes of half-built shards that were held at once.
    #[must_use]
    pub fn peak_bytes(&self) -> usize {
        self.peak
    }

    /// Takes a finished shard of `level`, and hands it and every shard above that it completes to the store.
    ///
    /// # Errors
    /// The store's.
    pub fn push<S: ShardStore>(
        &mut self,
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
            let parent_level = Level(level.0 + 1);
            if parent_level.0 >= self.levels.len() {
                return Ok(());
            }
            let parent = TileCoord { row: shard.row / 2, column: shard.column / 2 };
            let Some(done) = self.add(parent_level, parent, shard, &content, store)? else { return Ok(()) };
            (level, shard, content) = (parent_level, parent, done);
        }
    }

    /// Adds a child to its parent; gives the parent if that was its last child.
    fn add<S: ShardStore>(
        &mut self,
        level: Level,
        parent: TileCoord,
        child: TileCoord,
        content: &Shard,
        store: &S,
    ) -> Result<Option<Shard>, S::Error> {
        let key = (level, parent);
        self.entry(key);
        if let Shard::Pixels(pixels) = content {
            self.put(key, child, pixels);
        }
        let entry = self.entry(key);
        entry.missing -= 1;
        if entry.missing > 0 {
            self.forget_beyond_capacity();
            return Ok(None);
        }
        let Some(entry) = self.pending.remove(&key) else { unreachable!("looked up above") };
        self.held -= entry.pixels.as_ref().map_or(0, Pixels::bytes);
        self.complete(level, parent, entry, store).map(Some)
    }

    /// The content of a shard all of whose children have arrived.
    fn complete<S: ShardStore>(
        &self,
        level: Level,
        shard: TileCoord,
        entry: Pending,
        store: &S,
    ) -> Result<Shard, S::Error> {
        if !entry.forgotten {
            return Ok(entry.pixels.map_or(Shard::Background, Shard::Pixels));
        }
        let rect = self.rect(level, shard);
        let mut built: Option<Pixels> = None;
        for child in entry.children {
            let half = self.reduction.halve(&store.read(Level(level.0 - 1), child)?);
            let at = self.half_rect(child, half.size());
            built
                .get_or_insert_with(|| Pixels::filled(rect.size(), half.sample_type(), &vec![0; half.channels()]))
                .blit(rect, &half, at);
        }
        Ok(built.map_or(Shard::Background, Shard::Pixels))
    }

    fn put(&mut self, key: (Level, TileCoord), child: TileCoord, pixels: &Pixels) {
        let rect = self.rect(key.0, key.1);
        let half = self.reduction.halve(pixels);
        let at = self.half_rect(child, half.size());
        let Some(entry) = self.pending.get_mut(&key) else { return };
        entry.children.push(child);
        if entry.forgotten {
            return;
        }
        if entry.pixels.is_none() {
            let whole = Pixels::filled(rect.size(), half.sample_type(), &vec![0; half.channels()]);
            self.held += whole.bytes();
            self.peak = self.peak.max(self.held);
            entry.pixels = Some(whole);
        }
        if let Some(whole) = &mut entry.pixels {
            whole.blit(rect, &half, at);
        }
    }

    /// Forgets half-built shards, those that will be complete last first, until the rest fits.
    fn forget_beyond_capacity(&mut self) {
        while self.held > self.capacity {
            // The coarsest level waits longest, and within it the last row.
            let Some(entry) = self.pending.values_mut().rev().find(|e| e.pixels.is_some()) else { return };
            self.held -= entry.pixels.take().map_or(0, |p| p.bytes());
            entry.forgotten = true;
        }
    }

    /// The shards of the level below that lie under a shard.
    fn children(&self, level: Level, shard: TileCoord) -> Vec<TileCoord> {
        let cells = self.levels[level.0 - 1].cells(self.shard);
        let inside = |n: u64, i: u64| (2 * i..(2 * i + 2).min(n)).collect::<Vec<_>>();
        inside(cells.height, shard.row)
            .into_iter()
            .flat_map(|row| inside(cells.width, shard.column).into_iter().map(move |column| TileCoord { row, column }))
            .collect()
    }

    /// The pixels of a shard that lie inside its level.
    fn rect(&self, level: Level, shard: TileCoord) -> microtome_io::Rect {
        let cell = shard.rect(self.shard);
        cell.intersect(self.levels[level.0].rect()).unwrap_or(microtome_io::Rect::new(cell.x, cell.y, 0, 0))
    }

    /// Where a halved child lies on its parent's level.
    fn half_rect(&self, child: TileCoord, size: Size) -> microtome_io::Rect {
        microtome_io::Rect::new(
            child.column as i64 * (self.shard.width / 2) as i64,
            child.row as i64 * (self.shard.height / 2) as i64,
            size.width,
            size.height,
        )
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

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
            for reduction in [Reduction::Mode, Reduction::Mean] {
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
    struct Memory(RefCell<BTreeMap<(Level, TileCoord), Pixels>>);

    impl ShardStore for Memory {
        type Error = std::convert::Infallible;
        fn write(&self, level: Level, shard: TileCoord, pixels: &Pixels) -> Result<(), Self::Error> {
            let before = self.0.borrow_mut().insert((level, shard), pixels.clone());
            assert!(before.is_none(), "level {level}, {shard} was written twice");
            Ok(())
        }
        fn background(&self, _: Level, _: TileCoord) -> Result<(), Self::Error> {
            Ok(())
        }
        fn read(&self, level: Level, shard: TileCoord) -> Result<Pixels, Self::Error> {
            Ok(self.0.borrow()[&(level, shard)].clone())
        }
    }

    const LABELS: (Reduction, u64) = (Reduction::Mode, 1);

    /// Pushes a pseudo-random image in the given order and compares every level with plain halving.
    fn check(
        (reduction, channels): (Reduction, u64),
        size: Size,
        shard: Size,
        capacity: usize,
        backwards: bool,
    ) -> usize {
        let value = |x: u64, y: u64, c: u64| {
            if (x / 7 + y / 5).is_multiple_of(3) { 0 } else { (x * 31 + y * 17 + x * y + c) as u8 % 4 }
        };
        let samples = |rect: microtome_io::Rect| -> Vec<u8> {
            let columns = rect.x as u64..rect.right() as u64;
            (rect.y as u64..rect.bottom() as u64)
                .flat_map(|y| columns.clone().flat_map(move |x| (0..channels).map(move |c| value(x, y, c))))
                .collect()
        };
        let n = channels as usize;
        let levels = level_sizes(size, 4);
        let mut pyramid = Pyramid::new(levels.clone(), shard, reduction, capacity);
        let store = Memory::default();
        let cells = size.cells(shard);
        let mut order: Vec<_> =
            (0..cells.area()).map(|i| TileCoord { row: i % cells.height, column: i / cells.height }).collect();
        if backwards {
            order.reverse();
        }
        for at in order {
            let rect = at.rect(shard).intersect(size.rect()).unwrap();
            let samples = samples(rect);
            let empty = samples.iter().all(|&v| v == 0);
            let content =
                if empty { Shard::Background } else { Shard::Pixels(Pixels::from_u8(rect.size(), n, samples)) };
            pyramid.push(Level(0), at, content, &store).unwrap();
        }
        assert!(pyramid.pending.is_empty() && pyramid.held == 0);

        let mut whole = Pixels::from_u8(size, n, samples(size.rect()));
        for (level, &size) in levels.iter().enumerate() {
            let mut read = Pixels::filled(size, microtome_io::SampleType::U8, &vec![0; n]);
            for (key, pixels) in store.0.borrow().iter().filter(|(key, _)| key.0.0 == level) {
                let at = key.1.rect(shard).intersect(size.rect()).unwrap();
                read.blit(size.rect(), pixels, at);
            }
            assert_eq!(read, whole, "level {level}");
            whole = reduction.halve(&whole);
        }
        pyramid.peak_bytes()
    }

    #[test]
    fn levels_do_not_depend_on_order_or_capacity() {
        for size in [Size::new(1, 1), Size::new(37, 21), Size::new(64, 64), Size::new(5, 130), Size::new(33, 1)] {
            for capacity in [0, 100, usize::MAX] {
                for kind in [LABELS, (Reduction::Mean, 1), (Reduction::Mean, 3)] {
                    check(kind, size, Size::new(8, 8), capacity, false);
                    check(kind, size, Size::new(8, 8), capacity, true);
                }
            }
        }
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
        let unlimited = check(LABELS, Size::new(200, 200), Size::new(8, 8), usize::MAX, false);
        let bounded = check(LABELS, Size::new(200, 200), Size::new(8, 8), 256, false);
        assert!(bounded <= 256 + 64 && bounded < unlimited, "{bounded} of {unlimited} bytes");
    }
}
