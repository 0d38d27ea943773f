//! Devices and batches, on devices that are made up.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use super::super::pool::{Batch, Batches, Computed, Input, InputSamples, Open, Opened, Pool, Session};
use crate::{Error, Result};

/// A device with room for so many tiles at once, whose logits are the normalised samples.
#[derive(Debug, Clone)]
struct Mock {
    name: &'static str,
    kind: &'static str,
    /// Tiles of all batches that it holds. Others may take it away meanwhile.
    room: Arc<AtomicUsize>,
    /// Batches after which it fails.
    good: usize,
    /// Whether results depend on the size of a batch.
    rounds: bool,
    each: Duration,
    sizes: Arc<std::sync::Mutex<Vec<usize>>>,
    releases: Arc<AtomicUsize>,
}

impl Mock {
    fn new(name: &'static str) -> Self {
        Self {
            name,
            kind: "mock",
            room: Arc::new(AtomicUsize::new(1000)),
            good: usize::MAX,
            rounds: false,
            each: Duration::ZERO,
            sizes: Arc::default(),
            releases: Arc::default(),
        }
    }

    fn with_room(self, room: usize) -> Self {
        self.room.store(room, Ordering::SeqCst);
        self
    }

    fn open(&self) -> Open {
        let mock = self.clone();
        Box::new(move || {
            let (name, kind) = (mock.name.to_owned(), mock.kind.to_owned());
            let session = MockSession { mock, done: 0, held: Vec::new() };
            Ok(Opened { session: Box::new(session), name, kind, fits: 1000 })
        })
    }
}

struct MockSession {
    mock: Mock,
    done: usize,
    held: Vec<(usize, Vec<Vec<f32>>)>,
}

impl Session for MockSession {
    fn submit(&mut self, batch: &Batch<'_>) -> Result<()> {
        assert!((1..=batch.size).contains(&batch.tiles.len()));
        self.mock.sizes.lock().unwrap().push(batch.size);
        let held: usize = self.held.iter().map(|(size, _)| size).sum();
        if held + batch.size > self.mock.room.load(Ordering::SeqCst) {
            return Err(Error::DeviceMemory { message: "CUDA_ERROR_OUT_OF_MEMORY".into() });
        }
        let rounding = if self.mock.rounds { batch.size as f32 * 1e-6 } else { 0.0 };
        let logits = |tile: &Arc<Input>| match &tile.samples {
            InputSamples::U8(samples) => {
                samples.iter().map(|&sample| batch.table[usize::from(sample)] + rounding).collect()
            }
            InputSamples::U16(_) => unreachable!("tests have samples of 8 bits"),
        };
        self.held.push((batch.size, batch.tiles.iter().map(logits).collect()));
        Ok(())
    }

    fn collect(&mut self) -> Result<Computed> {
        if self.done >= self.mock.good {
            return Err(Error::Inference { message: "CUDA_ERROR_ECC_UNCORRECTABLE".into() });
        }
        self.done += 1;
        let (size, logits) = self.held.remove(0);
        let busy = self.mock.each * size as u32;
        std::thread::sleep(busy);
        Ok(Computed { logits, busy })
    }

    fn release(&mut self) {
        self.held.clear();
        self.mock.releases.fetch_add(1, Ordering::SeqCst);
    }
}

fn tile(n: usize) -> Arc<Input> {
    let samples = (0..12).map(|i| (n * 7 + i * 5) as u8).collect();
    Arc::new(Input { samples: InputSamples::U8(samples), rows: 0..3, columns: 0..4 })
}

fn table() -> Arc<[f32]> {
    (0..256).map(|v| v as f32 / 3.0).collect()
}

fn start(mocks: &[&Mock], wanted: Option<usize>, most: usize) -> Result<Pool> {
    Pool::start(mocks.iter().map(|mock| mock.open()).collect(), wanted, most, &tile(3), &table())
}

fn compute(pool: &Pool, tiles: usize) -> Result<Vec<Vec<f32>>> {
    pool.compute(&(0..tiles).map(tile).collect::<Vec<_>>(), &table())
}

fn expected(tiles: usize) -> Vec<Vec<f32>> {
    let logits = |n| match &tile(n).samples {
        InputSamples::U8(samples) => samples.iter().map(|&sample| f32::from(sample) / 3.0).collect(),
        InputSamples::U16(_) => unreachable!(),
    };
    (0..tiles).map(logits).collect()
}

/// Sizes of batches after those with which the pool tried what fits.
fn sizes_of_run(mock: &Mock) -> Vec<usize> {
    let sizes = mock.sizes.lock().unwrap();
    let tried = sizes.iter().position(|size| *size == 1).map_or(0, |last| last + 1);
    sizes[tried..].to_vec()
}

#[test]
fn any_number_of_devices_gives_the_same_in_the_order_of_the_tiles() {
    let slow = Mock { each: Duration::from_millis(2), ..Mock::new("slow") };
    let (quick, other) = (Mock::new("quick"), Mock { each: Duration::from_millis(1), ..Mock::new("other") });
    for devices in [&[&quick][..], &[&slow, &quick], &[&slow, &quick, &other]] {
        let pool = start(devices, Some(4), 16).unwrap();
        assert_eq!(compute(&pool, 37).unwrap(), expected(37), "{} devices", devices.len());
        assert_eq!(pool.uses().iter().map(|used| used.tiles).sum::<u64>(), 37);
    }
}

#[test]
fn short_batches_are_filled_up() {
    let mock = Mock::new("mock");
    let pool = start(&[&mock], Some(4), 16).unwrap();
    assert_eq!(compute(&pool, 9).unwrap(), expected(9));
    assert_eq!(compute(&pool, 1).unwrap(), expected(1));
    assert_eq!(compute(&pool, 0).unwrap(), expected(0));
    assert_eq!(sizes_of_run(&mock), [4, 4, 4, 4]);
}

#[test]
fn several_callers_get_their_own() {
    let (one, two) = (Mock { each: Duration::from_millis(1), ..Mock::new("one") }, Mock::new("two"));
    let pool = start(&[&one, &two], Some(2), 16).unwrap();
    std::thread::scope(|scope| {
        for tiles in 1..8 {
            let pool = &pool;
            scope.spawn(move || assert_eq!(compute(pool, tiles * 3).unwrap(), expected(tiles * 3)));
        }
    });
}

#[test]
fn the_batch_is_what_fits() {
    // What free memory says, as a power of two, up to the most that pays.
    assert_eq!(start(&[&Mock::new("mock")], None, 24).unwrap().batch, 16);
    // What does not fit is halved.
    let small = Mock::new("small").with_room(5);
    let pool = start(&[&small], None, 16).unwrap();
    assert_eq!(pool.batch, 4);
    assert_eq!(pool.uses()[0].notes, ["16 tiles at once did not fit its memory; 4 did"]);
    assert_eq!(small.sizes.lock().unwrap()[..3], [16, 8, 4]);
    assert_eq!(small.releases.load(Ordering::SeqCst), 2);
    // Two batches of 4 do not fit at once: memory is given back, and then a smaller batch goes on.
    assert_eq!(compute(&pool, 11).unwrap(), expected(11));
    // Of several devices, all take what the smallest takes.
    let pool = start(&[&Mock::new("large"), &Mock::new("small").with_room(6)], Some(12), 16).unwrap();
    assert_eq!(pool.batch, 6);
}

#[test]
fn a_device_without_room_for_a_tile_is_refused() {
    let error = start(&[&Mock::new("cuda:0, Tiny").with_room(0)], None, 16).unwrap_err().to_string();
    assert_eq!(
        error,
        "the memory of the GPU is full: cuda:0, Tiny has no room for a single tile: CUDA_ERROR_OUT_OF_MEMORY"
    );
}

#[test]
fn memory_that_others_take_during_the_run_makes_batches_smaller() {
    let mock = Mock::new("mock").with_room(16);
    let pool = start(&[&mock], Some(8), 16).unwrap();
    assert_eq!(pool.batches, Batches::Equal);
    assert_eq!(compute(&pool, 20).unwrap(), expected(20));
    mock.room.store(4, Ordering::SeqCst);
    assert_eq!(compute(&pool, 20).unwrap(), expected(20));
    let used = &pool.uses()[0];
    assert_eq!(used.tiles, 40);
    assert!(used.batch <= 4 && mock.releases.load(Ordering::SeqCst) >= 2, "{used:?}");
    assert_eq!(used.notes[0], "its memory became scarce during the run; it went on with 4 tiles at once");
}

/// Else a run would not give the bytes that its fingerprint promises.
#[test]
fn where_the_batch_decides_about_bits_it_stays_and_the_run_ends_with_a_sentence() {
    let mock = Mock { rounds: true, ..Mock::new("cuda:0, Mock") }.with_room(16);
    let pool = start(&[&mock], Some(8), 16).unwrap();
    assert_eq!(pool.batches, Batches::Different);
    compute(&pool, 20).unwrap();
    mock.room.store(4, Ordering::SeqCst);
    let error = compute(&pool, 20).unwrap_err().to_string();
    assert_eq!(
        error,
        "cuda:0, Mock: CUDA_ERROR_OUT_OF_MEMORY; other programs use the memory of the GPU, or a smaller --batch is needed"
    );
    // Nobody waits for a device that is gone.
    assert_eq!(compute(&pool, 1).unwrap_err().to_string(), error);
}

#[test]
fn memory_that_comes_back_in_time_changes_nothing() {
    // Two batches of 8 do not fit beside each other, one does.
    let mock = Mock { rounds: true, ..Mock::new("mock") }.with_room(8);
    let pool = start(&[&mock], Some(8), 16).unwrap();
    let same: Vec<Vec<f32>> =
        expected(24).into_iter().map(|tile| tile.into_iter().map(|v| v + 8.0 * 1e-6).collect()).collect();
    assert_eq!(compute(&pool, 24).unwrap(), same);
    assert_eq!(pool.uses()[0].notes, ["its memory became scarce during the run; it went on with one batch at a time"]);
}

#[test]
fn others_take_the_tiles_of_a_device_that_fails() {
    // Batches with which the pool tries what fits are good.
    let failing = Mock { good: 5, ..Mock::new("failing") };
    let slow = Mock { each: Duration::from_millis(1), ..Mock::new("slow") };
    let pool = start(&[&failing, &slow], Some(2), 16).unwrap();
    assert_eq!(compute(&pool, 61).unwrap(), expected(61));
    let notes = &pool.uses()[0].notes;
    assert_eq!(notes, &["it failed: the network failed: CUDA_ERROR_ECC_UNCORRECTABLE"]);
    assert!(pool.uses()[1].notes.is_empty());
    assert_eq!(compute(&pool, 5).unwrap(), expected(5));
}

#[test]
fn when_all_devices_have_failed_everybody_hears_why() {
    let failing = Mock { good: 4, ..Mock::new("cuda:0, Mock") };
    let pool = start(&[&failing], Some(2), 16).unwrap();
    let error = compute(&pool, 30).unwrap_err().to_string();
    assert_eq!(error, "cuda:0, Mock: the network failed: CUDA_ERROR_ECC_UNCORRECTABLE");
    assert_eq!(compute(&pool, 1).unwrap_err().to_string(), error);
}

#[test]
fn devices_that_are_not_alike_are_refused() {
    let other = Mock { kind: "another", ..Mock::new("cuda:1, Other") };
    let error = start(&[&Mock::new("cuda:0, Mock"), &other], None, 16).unwrap_err().to_string();
    assert_eq!(
        error,
        "cuda:0, Mock and cuda:1, Other are not alike (mock and another): they round differently, and the result would depend on \
         which of them computed what"
    );
}

#[test]
fn the_time_of_a_device_is_that_of_its_batches() {
    let mock = Mock { each: Duration::from_millis(1), ..Mock::new("mock") };
    let pool = start(&[&mock], Some(4), 16).unwrap();
    compute(&pool, 10).unwrap();
    // Three batches of four tiles, filled up or not.
    assert_eq!(pool.uses()[0].busy, Duration::from_millis(12));
    let before = pool.uses()[0].clone();
    compute(&pool, 4).unwrap();
    let since = pool.uses()[0].clone().since(&before);
    assert_eq!((since.tiles, since.busy), (4, Duration::from_millis(4)));
}
