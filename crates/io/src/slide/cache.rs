//! Decoded tiles that are likely to be wanted again, within a budget of bytes.
//!
//! The key is level, raster, column and row: two tiles with the same bytes, or even at the same place in a file, stay two
//! tiles, because what their bytes mean depends on where they belong.
//!
//! The tiles are spread over shards, each with its own lock, which is held to look up and to store and never while a tile
//! is decoded. Threads that want a tile which another one is decoding are told so, and can do something else first, or wait for
//! it. They cannot wait for each other in a circle: a decoder asks for no other tile and hands no work to the thread pool.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use super::spare;
use crate::{Level, Pixels, Result, TileCoord};

/// A level, one of its rasters by number, and a cell of it.
pub(super) type Key = (Level, usize, TileCoord);

/// More threads than this seldom come for a lock at once.
const MOST_SHARDS: usize = 16;
/// A shard with room for fewer tiles than this would forget too much.
const TILES_PER_SHARD: usize = 4;

/// Tiles, the least recently used of which make room for new ones.
#[derive(Debug)]
pub(super) struct TileCache {
    shards: [Shard; MOST_SHARDS],
    /// Bytes of the largest tile.
    tile_bytes: usize,
    /// Shards that are in use, and the bytes that each may hold.
    used: AtomicUsize,
    budget: AtomicUsize,
}

#[derive(Debug, Default)]
struct Shard {
    state: Mutex<State>,
    /// Told whenever a tile that was being decoded is there, or will not be.
    settled: Condvar,
}

#[derive(Debug, Default)]
struct State {
    tiles: HashMap<Key, Entry>,
    /// Tiles by the time of their last use.
    by_age: BTreeMap<u64, Key>,
    clock: u64,
    bytes: usize,
}

#[derive(Debug)]
enum Entry {
    /// Some thread is decoding it.
    Pending,
    /// Decoded; `None` for a tile that the file leaves out.
    Ready { pixels: Option<Arc<Pixels>>, used: u64 },
}

/// What to do about a tile that another thread is decoding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wait {
    /// Come back at once, with [`Found::Busy`].
    No,
    /// Wait for it.
    Yes,
}

/// What became of the question for a tile.
#[derive(Debug, PartialEq)]
pub(super) enum Found {
    /// Its pixels; `None` for a tile that the file leaves out.
    Tile(Option<Arc<Pixels>>),
    /// Another thread is decoding it.
    Busy,
}

impl TileCache {
    /// A cache that holds at most `budget` bytes, for tiles of up to `tile_bytes`; 0 keeps nothing.
    pub(super) fn new(budget: usize, tile_bytes: usize) -> Self {
        let cache =
            Self { shards: Default::default(), tile_bytes, used: AtomicUsize::new(1), budget: AtomicUsize::new(0) };
        cache.resize(budget);
        cache
    }

    /// Forgets everything, and holds at most `budget` bytes from now on. Tiles that are being decoded meanwhile may stay on top of that.
    pub(super) fn resize(&self, budget: usize) {
        let used = (budget / TILES_PER_SHARD / self.tile_bytes.max(1)).clamp(1, MOST_SHARDS);
        self.used.store(used, Ordering::Relaxed);
        self.budget.store(budget / used, Ordering::Relaxed);
        self.shards.iter().for_each(|shard| shard.lock().clear());
    }

    /// Bytes of tiles that it may hold.
    pub(super) fn capacity(&self) -> usize {
        self.used.load(Ordering::Relaxed) * self.budget.load(Ordering::Relaxed)
    }

    /// The tile, decoded by `decode` unless it is there already, or in another thread's hands.
    ///
    /// # Errors
    /// That of `decode`, which is not remembered.
    pub(super) fn get(
        &self,
        key: Key,
        wait: Wait,
        decode: impl FnOnce() -> Result<Option<Arc<Pixels>>>,
    ) -> Result<Found> {
        let budget = self.budget.load(Ordering::Relaxed);
        if budget == 0 {
            return decode().map(Found::Tile);
        }
        let shard = self.shard(key);
        let mut state = shard.lock();
        loop {
            match state.tiles.get(&key) {
                Some(Entry::Ready { pixels, .. }) => {
                    let pixels = pixels.clone();
                    state.touch(key);
                    return Ok(Found::Tile(pixels));
                }
                Some(Entry::Pending) if wait == Wait::No => return Ok(Found::Busy),
                Some(Entry::Pending) => state = shard.settled.wait(state).unwrap_or_else(PoisonError::into_inner),
                None => break,
            }
        }
        state.tiles.insert(key, Entry::Pending);
        drop(state);
        let claim = Claim { shard, key };
        let pixels = decode()?;
        claim.settle(pixels.as_ref(), budget);
        Ok(Found::Tile(pixels))
    }

    fn shard(&self, (level, raster, tile): Key) -> &Shard {
        // Neighbours go to different shards.
        let mixed = tile.column.wrapping_add(tile.row.wrapping_mul(5)).wrapping_add((level.0 + raster) as u64 * 7);
        &self.shards[mixed as usize % self.used.load(Ordering::Relaxed)]
    }
}

impl Shard {
    /// Nothing that is done under the lock leaves the state half changed, so that a panic elsewhere does no harm.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn clear(&mut self) {
        self.tiles.retain(|_, entry| matches!(entry, Entry::Pending));
        self.by_age.clear();
        self.bytes = 0;
    }

    fn touch(&mut self, key: Key) {
        self.clock += 1;
        if let Some(Entry::Ready { used, .. }) = self.tiles.get_mut(&key) {
            self.by_age.remove(used);
            *used = self.clock;
            self.by_age.insert(self.clock, key);
        }
    }

    fn insert(&mut self, key: Key, pixels: Option<&Arc<Pixels>>, budget: usize) {
        let bytes = cost(pixels);
        if bytes > budget {
            self.tiles.remove(&key);
            return;
        }
        while self.bytes + bytes > budget {
            let Some((_, oldest)) = self.by_age.pop_first() else { break };
            if let Some(Entry::Ready { pixels, .. }) = self.tiles.remove(&oldest) {
                self.bytes -= cost(pixels.as_ref());
                if let Some(pixels) = pixels.and_then(Arc::into_inner) {
                    spare::give(pixels);
                }
            }
        }
        self.bytes += bytes;
        self.tiles.insert(key, Entry::Ready { pixels: pixels.cloned(), used: 0 });
        self.touch(key);
    }
}

/// What an entry weighs; one of a tile that is left out is small, not free.
fn cost(pixels: Option<&Arc<Pixels>>) -> usize {
    size_of::<(Key, Entry)>() + pixels.map_or(0, |pixels| pixels.bytes())
}

/// The promise to decode a tile. Given up, by an error or a panic, it lets the next thread try.
struct Claim<'a> {
    shard: &'a Shard,
    key: Key,
}

impl Claim<'_> {
    fn settle(self, pixels: Option<&Arc<Pixels>>, budget: usize) {
        self.shard.lock().insert(self.key, pixels, budget);
        // Dropping the claim now wakes those who wait.
    }
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        let mut state = self.shard.lock();
        if let Some(Entry::Pending) = state.tiles.get(&self.key) {
            state.tiles.remove(&self.key);
        }
        drop(state);
        self.shard.settled.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::{Error, SampleType, Size};

    fn tile(column: u64) -> TileCoord {
        TileCoord { row: 0, column }
    }

    fn pixels(value: u16) -> Arc<Pixels> {
        Arc::new(Pixels::filled(Size::new(10, 10), SampleType::U8, &[value]))
    }

    #[test]
    fn a_tile_is_decoded_once_by_however_many_threads() {
        let cache = TileCache::new(1 << 20, 100);
        let decoded = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for column in 0..50 {
                        let found = cache.get((Level(0), 0, tile(column)), Wait::Yes, || {
                            decoded.fetch_add(1, Ordering::Relaxed);
                            std::thread::yield_now();
                            Ok(Some(pixels(column as u16)))
                        });
                        assert_eq!(found.unwrap(), Found::Tile(Some(pixels(column as u16))));
                    }
                });
            }
        });
        assert_eq!(decoded.into_inner(), 50);
    }

    #[test]
    fn the_budget_holds_and_the_least_recently_used_goes_first() {
        let one = cost(Some(&pixels(0)));
        let cache = TileCache::new(2 * one, 100);
        assert_eq!(cache.used.load(Ordering::Relaxed), 1);
        let get = |column: u64| {
            let mut hit = true;
            cache
                .get((Level(0), 0, tile(column)), Wait::Yes, || {
                    hit = false;
                    Ok(Some(pixels(column as u16)))
                })
                .unwrap();
            hit
        };
        assert!(!get(0) && !get(16));
        assert!(get(0), "used again");
        assert!(!get(32), "makes room by dropping 16");
        assert!(get(0) && get(32) && !get(16));
        for column in 0..1000 {
            get(column);
        }
        let held: usize = cache.shards.iter().map(|shard| shard.lock().bytes).sum();
        assert!(held <= 2 * one, "{held}");
    }

    #[test]
    fn another_size_forgets_what_was_there() {
        let cache = TileCache::new(1 << 20, 100);
        let fill = || {
            (0..100).filter(|&c| cache.get((Level(0), 0, tile(c)), Wait::Yes, || Ok(Some(pixels(1)))).is_ok()).count()
        };
        let held = || cache.shards.iter().map(|shard| shard.lock().bytes).sum::<usize>();
        assert_eq!(fill(), 100);
        let all = held();
        cache.resize(all / 2);
        assert_eq!(held(), 0);
        fill();
        assert!((all / 4..=all / 2).contains(&held()), "{} of {all}", held());
        cache.resize(0);
        fill();
        assert_eq!(held(), 0);
    }

    #[test]
    fn levels_are_kept_apart_and_failures_are_not_remembered() {
        let cache = TileCache::new(1 << 20, 100);
        assert!(cache.get((Level(0), 0, tile(1)), Wait::Yes, || Err(Error::format("x", "broken"))).is_err());
        assert_eq!(
            cache.get((Level(0), 0, tile(1)), Wait::Yes, || Ok(Some(pixels(3)))).unwrap(),
            Found::Tile(Some(pixels(3)))
        );
        assert_eq!(
            cache.get((Level(1), 0, tile(1)), Wait::Yes, || Ok(Some(pixels(4)))).unwrap(),
            Found::Tile(Some(pixels(4)))
        );
        assert_eq!(cache.get((Level(2), 0, tile(1)), Wait::Yes, || Ok(None)).unwrap(), Found::Tile(None));
        assert_eq!(
            cache.get((Level(2), 0, tile(1)), Wait::Yes, || unreachable!("left-out tiles are remembered")).unwrap(),
            Found::Tile(None)
        );
    }

    #[test]
    fn a_panic_while_decoding_lets_the_next_one_try() {
        let cache = TileCache::new(1 << 20, 100);
        let attempt = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            cache.get((Level(0), 0, tile(1)), Wait::Yes, || panic!("a decoder's mistake"))
        }));
        assert!(attempt.is_err());
        assert_eq!(
            cache.get((Level(0), 0, tile(1)), Wait::Yes, || Ok(Some(pixels(3)))).unwrap(),
            Found::Tile(Some(pixels(3)))
        );
    }

    #[test]
    fn who_does_not_want_to_wait_is_told_that_a_tile_is_busy() {
        let cache = TileCache::new(1 << 20, 100);
        let ask = |wait| cache.get((Level(0), 0, tile(1)), wait, || unreachable!("another thread is decoding it"));
        let (begun, finish) = (std::sync::Barrier::new(2), std::sync::Barrier::new(2));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let decoded = cache.get((Level(0), 0, tile(1)), Wait::Yes, || {
                    begun.wait();
                    finish.wait();
                    Ok(Some(pixels(3)))
                });
                assert_eq!(decoded.unwrap(), Found::Tile(Some(pixels(3))));
            });
            begun.wait();
            assert_eq!(ask(Wait::No).unwrap(), Found::Busy);
            finish.wait();
            assert_eq!(ask(Wait::Yes).unwrap(), Found::Tile(Some(pixels(3))));
            assert_eq!(ask(Wait::No).unwrap(), Found::Tile(Some(pixels(3))));
        });
    }

    #[test]
    fn without_a_budget_nothing_is_kept() {
        let cache = TileCache::new(0, 100);
        assert_eq!(
            cache.get((Level(0), 0, tile(1)), Wait::Yes, || Ok(Some(pixels(3)))).unwrap(),
            Found::Tile(Some(pixels(3)))
        );
        assert_eq!(
            cache.get((Level(0), 0, tile(1)), Wait::Yes, || Ok(Some(pixels(4)))).unwrap(),
            Found::Tile(Some(pixels(4)))
        );
    }
}
