//! Batches of tiles on one device or several.
//!
//! Each device has a thread that made it and alone drives it. All take jobs from one queue, whoever is free the next, and each
//! holds two batches at once: while the device computes one, the next is already queued behind it, and what has come back is unpacked.
//! Results go back to whoever asked, who puts them in the order of the tiles; all devices compute the same bits, so it does not matter
//! which was at it.
//!
//! A batch is always of one size: a short one is filled up with empty tiles. Libraries choose their kernels by the shape of a batch, and
//! other kernels may round differently. Where smaller batches were seen to give the same bits, a device whose memory is taken away by
//! others goes on with smaller ones; else the run ends with a sentence.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::{DeviceUse, Error, Result};

/// Batches that a device holds: one that it computes, and the next.
const IN_FLIGHT: usize = 2;

/// The samples of one tile as the network's input is made of them: rows × columns × channels, 0 where the tile holds no pixels.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Input {
    pub(super) samples: InputSamples,
    /// Rows and columns that hold pixels.
    pub(super) rows: Range<usize>,
    pub(super) columns: Range<usize>,
}

/// Samples of a tile.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum InputSamples {
    /// 8 bits.
    U8(Vec<u8>),
    /// 16 bits.
    U16(Vec<u16>),
}

/// What a device is given at once.
#[derive(Debug)]
pub(super) struct Batch<'a> {
    /// At least one, of one type of samples.
    pub(super) tiles: &'a [Arc<Input>],
    /// How many tiles the device computes: what lacks is empty.
    pub(super) size: usize,
    /// Normalised samples: for each channel, those of every value that a sample may have.
    pub(super) table: &'a Arc<[f32]>,
}

/// What comes back.
#[derive(Debug)]
pub(super) struct Computed {
    /// Logits of each tile that was no filling, plane by plane.
    pub(super) logits: Vec<Vec<f32>>,
    /// The time in which the device was busy with them.
    pub(super) busy: Duration,
}

/// A device, as its thread sees it.
///
/// An [`Error::DeviceMemory`] says that a batch was too large. Whoever gets it, or any other error, calls [`release`](Self::release) before
/// the next batch.
pub(super) trait Session {
    /// Queues a batch.
    fn submit(&mut self, batch: &Batch<'_>) -> Result<()>;
    /// Waits for the oldest batch that was submitted.
    fn collect(&mut self) -> Result<Computed>;
    /// Forgets all batches, and gives memory back that was kept to be used again.
    fn release(&mut self);
}

/// Makes a device, on the thread that will drive it.
pub(super) type Open = Box<dyn FnOnce() -> Result<Opened> + Send>;

/// A device that answers.
pub(super) struct Opened {
    pub(super) session: Box<dyn Session>,
    /// Which, and what it is.
    pub(super) name: String,
    /// Everything about it that may change a bit of the logits.
    pub(super) kind: String,
    /// Tiles that seem to fit its free memory.
    pub(super) fits: usize,
}

/// Whether batches of other sizes give the same bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Batches {
    /// All that were tried do, down to one tile.
    Equal,
    /// They do not.
    Different,
}

/// Devices at work.
#[derive(Debug)]
pub(super) struct Pool {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    /// Tiles that a device computes at once.
    pub(super) batch: usize,
    pub(super) batches: Batches,
    /// The kind of all devices.
    pub(super) kind: String,
}

/// A piece of somebody's tiles.
#[derive(Debug)]
struct Job {
    tiles: Vec<Arc<Input>>,
    table: Arc<[f32]>,
    /// Index of the first tile among all that were asked for.
    first: usize,
    reply: Sender<(usize, Result<Vec<Vec<f32>>>)>,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    news: Condvar,
}

#[derive(Debug, Default)]
struct State {
    jobs: VecDeque<Job>,
    closed: bool,
    /// Devices that have not failed.
    alive: usize,
    /// Why the last one failed.
    fault: String,
    uses: Vec<DeviceUse>,
}

/// What a thread says once its device is ready.
struct Ready {
    name: String,
    kind: String,
    size: usize,
    batches: Batches,
    notes: Vec<String>,
}

/// What a thread is told then.
#[derive(Debug, Clone, Copy)]
struct Start {
    size: usize,
    batches: Batches,
}

impl Pool {
    /// Makes the devices and finds out how many tiles each takes at once: `wanted`, or as many as fit its memory up to `most`, or the
    /// next smaller number by halving that does not fail. `pattern` is a tile to try with.
    ///
    /// # Errors
    /// If a device does not answer, is of another kind than the first, or has no room for a single tile.
    pub(super) fn start(
        devices: Vec<Open>,
        wanted: Option<usize>,
        most: usize,
        pattern: &Arc<Input>,
        table: &Arc<[f32]>,
    ) -> Result<Self> {
        let shared = Arc::new(Shared::default());
        let mut threads = Vec::new();
        let mut waiting: Vec<(Receiver<Result<Ready>>, Sender<Start>)> = Vec::new();
        for (index, open) in devices.into_iter().enumerate() {
            let (to_us, ready) = channel();
            let (start, from_us) = channel();
            let (shared, pattern, table) = (shared.clone(), pattern.clone(), table.clone());
            let thread = std::thread::Builder::new().name(format!("gpu-{index}")).spawn(move || {
                let prepared = open().and_then(|opened| prepare(opened, wanted, most, &pattern, &table));
                let session = match prepared {
                    Ok((session, ready)) => {
                        drop((pattern, table));
                        let _ = to_us.send(Ok(ready));
                        session
                    }
                    Err(error) => {
                        let _ = to_us.send(Err(error));
                        return;
                    }
                };
                // Nobody answers where another device has failed.
                if let Ok(Start { size, batches }) = from_us.recv() {
                    let _watch = Watch(&shared);
                    let (shared, in_flight) = (&*shared, VecDeque::new());
                    Worker { session, shared, index, size, batches, depth: IN_FLIGHT, in_flight }.work();
                }
            });
            threads.push(thread.map_err(|error| Error::Device { message: format!("no thread for a GPU: {error}") })?);
            waiting.push((ready, start));
        }
        let (mut readies, mut starts) = (Vec::new(), Vec::new());
        for (ready, start) in waiting {
            let lost = |_| Error::Device { message: "the thread of a GPU ended".into() };
            readies.push(ready.recv().map_err(lost)??);
            starts.push(start);
        }
        let first = readies.first().ok_or_else(|| Error::usage("no device"))?;
        if let Some(other) = readies.iter().find(|ready| ready.kind != first.kind) {
            return Err(Error::Device {
                message: format!(
                    "{} and {} are not alike ({} and {}): they round differently, and the result would depend on which of them computed what",
                    first.name, other.name, first.kind, other.kind
                ),
            });
        }
        let kind = first.kind.clone();
        let batch = readies.iter().map(|ready| ready.size).min().unwrap_or(1);
        let equal = readies.iter().all(|ready| ready.batches == Batches::Equal);
        let batches = if equal { Batches::Equal } else { Batches::Different };
        {
            let mut state = shared.lock();
            state.alive = readies.len();
            state.uses = readies
                .into_iter()
                .map(|Ready { name, notes, .. }| DeviceUse { name, batch, tiles: 0, busy: Duration::ZERO, notes })
                .collect();
        }
        for start in starts {
            let _ = start.send(Start { size: batch, batches });
        }
        Ok(Self { shared, threads, batch, batches, kind })
    }

    /// Number of devices.
    pub(super) fn devices(&self) -> usize {
        self.threads.len()
    }

    /// What each device has done so far.
    pub(super) fn uses(&self) -> Vec<DeviceUse> {
        self.shared.lock().uses.clone()
    }

    /// The logits of each tile, in order. May be called by several threads at once: then devices have no pause between.
    pub(super) fn compute(&self, tiles: &[Arc<Input>], table: &Arc<[f32]>) -> Result<Vec<Vec<f32>>> {
        let (reply, replies) = channel();
        {
            let mut state = self.shared.lock();
            if state.alive == 0 {
                return Err(Error::Device { message: state.fault.clone() });
            }
            for (index, part) in tiles.chunks(self.batch).enumerate() {
                let first = index * self.batch;
                state.jobs.push_back(Job { tiles: part.to_vec(), table: table.clone(), first, reply: reply.clone() });
            }
        }
        drop(reply);
        self.shared.news.notify_all();
        let mut all: Vec<Option<Vec<f32>>> = vec![None; tiles.len()];
        for (first, logits) in replies {
            for (place, logits) in all[first..].iter_mut().zip(logits?) {
                *place = Some(logits);
            }
        }
        let lost = || Error::Device { message: "a batch was lost".into() };
        all.into_iter().map(|logits| logits.ok_or_else(lost)).collect()
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.lock().closed = true;
        self.shared.news.notify_all();
        for thread in self.threads.drain(..) {
            // A thread that panicked has said so.
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Finds the largest batch that a device computes, and whether smaller ones give the same bits.
fn prepare(
    opened: Opened,
    wanted: Option<usize>,
    most: usize,
    pattern: &Arc<Input>,
    table: &Arc<[f32]>,
) -> Result<(Box<dyn Session>, Ready)> {
    let Opened { mut session, name, kind, fits } = opened;
    let mut notes = Vec::new();
    let attempt = |session: &mut dyn Session, size: usize| {
        let tiles = vec![pattern.clone(); size];
        session.submit(&Batch { tiles: &tiles, size, table })?;
        session.collect()
    };
    let first = wanted.unwrap_or_else(|| power_of_two(fits.clamp(1, most.max(1))));
    let mut size = first;
    let largest = loop {
        match attempt(session.as_mut(), size) {
            Ok(computed) => break computed.logits,
            Err(Error::DeviceMemory { .. }) if size > 1 => {
                // Else a workspace for what did not fit stays beside what is tried next.
                session.release();
                size /= 2;
            }
            Err(Error::DeviceMemory { message }) => {
                return Err(Error::DeviceMemory {
                    message: format!("{name} has no room for a single tile: {message}"),
                });
            }
            Err(error) => return Err(error),
        }
    };
    if size < first {
        notes.push(format!("{first} tiles at once did not fit its memory; {size} did"));
    }
    let bits = |tile: &[f32]| tile.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
    let all_are = |logits: &[Vec<f32>], expected: &[u32]| logits.iter().all(|tile| bits(tile) == expected);
    let mut expected = bits(&largest[0]);
    if !all_are(&largest, &expected) {
        // A run that goes on groups tiles otherwise: it would not give the same bytes.
        notes.push(format!(
            "of {size} tiles at once, each one's place decides about its bits: they are computed one by one"
        ));
        size = 1;
        expected = bits(&attempt(session.as_mut(), size)?.logits[0]);
    }
    let mut batches = Batches::Equal;
    let mut smaller = size / 2;
    while smaller > 0 && batches == Batches::Equal {
        if !all_are(&attempt(session.as_mut(), smaller)?.logits, &expected) {
            batches = Batches::Different;
        }
        smaller /= 2;
    }
    Ok((session, Ready { name, kind, size, batches, notes }))
}

/// The largest power of two that is not larger.
fn power_of_two(n: usize) -> usize {
    1 << n.max(1).ilog2()
}

/// A device's thread.
struct Worker<'a> {
    session: Box<dyn Session>,
    shared: &'a Shared,
    index: usize,
    size: usize,
    batches: Batches,
    /// Batches that it holds at once.
    depth: usize,
    in_flight: VecDeque<Job>,
}

impl Worker<'_> {
    fn work(mut self) {
        // Whether memory was given back since a batch last went through.
        let mut released = false;
        loop {
            let step = match self.next() {
                Some(job) => self.submit(job),
                None if self.in_flight.is_empty() => return,
                None => self.collect().inspect(|()| released = false),
            };
            let Err(error) = step else { continue };
            self.session.release();
            match error {
                Error::DeviceMemory { .. } if !released => released = true,
                Error::DeviceMemory { .. } if self.size > 1 && self.batches == Batches::Equal => {
                    self.size /= 2;
                    let note =
                        format!("its memory became scarce during the run; it went on with {} tiles at once", self.size);
                    let mut state = self.shared.lock();
                    let own = &mut state.uses[self.index];
                    own.batch = self.size;
                    own.notes.push(note);
                }
                // Where the size of a batch decides about bits it stays, but one finds room where two do not.
                Error::DeviceMemory { .. } if self.depth > 1 => {
                    self.depth = 1;
                    let note = "its memory became scarce during the run; it went on with one batch at a time";
                    self.shared.lock().uses[self.index].notes.push(note.into());
                }
                error => return self.fail(&error),
            }
            self.put_back();
        }
    }

    /// The next job that this device should begin; waits for one only if nothing else is to be done.
    fn next(&self) -> Option<Job> {
        if self.in_flight.len() >= self.depth {
            return None;
        }
        let mut state = self.shared.lock();
        loop {
            if let Some(mut job) = state.jobs.pop_front() {
                if job.tiles.len() > self.size {
                    let tiles = job.tiles.split_off(self.size);
                    let first = job.first + self.size;
                    state.jobs.push_front(Job { tiles, table: job.table.clone(), first, reply: job.reply.clone() });
                }
                return Some(job);
            }
            if state.closed || !self.in_flight.is_empty() {
                return None;
            }
            state = self.shared.news.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn submit(&mut self, job: Job) -> Result<()> {
        let submitted = self.session.submit(&Batch { tiles: &job.tiles, size: self.size, table: &job.table });
        self.in_flight.push_back(job);
        submitted
    }

    fn collect(&mut self) -> Result<()> {
        let Computed { logits, busy } = self.session.collect()?;
        let Some(job) = self.in_flight.pop_front() else { return Ok(()) };
        {
            let mut state = self.shared.lock();
            let own = &mut state.uses[self.index];
            own.tiles += job.tiles.len() as u64;
            own.busy += busy;
        }
        // Who asked may have given up.
        let _ = job.reply.send((job.first, Ok(logits)));
        Ok(())
    }

    /// Jobs that were lost are the next ones, in their order.
    fn put_back(&mut self) {
        let mut state = self.shared.lock();
        while let Some(job) = self.in_flight.pop_back() {
            state.jobs.push_front(job);
        }
        drop(state);
        self.shared.news.notify_all();
    }

    /// This device is out; the others take what it had.
    fn fail(mut self, error: &Error) {
        self.put_back();
        match error {
            Error::DeviceMemory { .. } => drop(self.session),
            // A device that failed for another reason may be broken, and cudarc's destructors panic where a library cannot free anything.
            _ => std::mem::forget(self.session),
        }
        let mut state = self.shared.lock();
        let own = &mut state.uses[self.index];
        let message = match error {
            Error::DeviceMemory { message } => {
                format!(
                    "{}: {message}; other programs use the memory of the GPU, or a smaller --batch is needed",
                    own.name
                )
            }
            other => format!("{}: {other}", own.name),
        };
        own.notes.push(format!("it failed: {error}"));
        state.leave(message);
        drop(state);
        self.shared.news.notify_all();
    }
}

impl State {
    /// A device is out. Where none is left, all who wait hear why.
    fn leave(&mut self, message: String) {
        self.alive -= 1;
        if self.alive == 0 {
            for job in self.jobs.drain(..) {
                let _ = job.reply.send((job.first, Err(Error::Device { message: message.clone() })));
            }
            self.fault = message;
        }
    }
}

/// Sees that nobody waits for a thread that panicked.
struct Watch<'a>(&'a Shared);

impl Drop for Watch<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.lock().leave("the thread of a GPU panicked".into());
            self.0.news.notify_all();
        }
    }
}
