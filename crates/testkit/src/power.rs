//! A disk that forgets what was not synced when the power fails.

use std::collections::BTreeSet;
use std::fs;
use std::io::{Error as IoError, Result as IoResult};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use microtome_io::store::{Format, ImageSink, Stored, StoredImage, ZarrImage};
use microtome_io::{Error, Level, Pixels, Result, TileCoord};
use serde_json::{Map, Value};

/// A [`ZarrImage`] on a machine whose power fails.
///
/// It knows which files were written since the last [`sync`](ImageSink::sync). At a given call the power fails: what a disk might hold then
/// is laid down in another folder, where each of those files is whole, gone, empty, cut short, full of zeros or of garbage, or still under its
/// temporary name; so is the tail of the journal, if the call before was a sync, after which the journal is written. From then on every
/// call fails.
#[derive(Debug)]
pub struct PowerLoss {
    inner: ZarrImage,
    run: PathBuf,
    afterwards: PathBuf,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    random: Random,
    /// Calls until the power fails.
    left: usize,
    off: bool,
    /// No call was made yet.
    first: bool,
    unsynced: BTreeSet<PathBuf>,
    /// Length of the journal when the sync before it was last written to was asked for, as long as nothing came after.
    torn_from: Option<u64>,
}

impl PowerLoss {
    /// The power fails at the call with this number, counted from 0. `run` is the folder of the run; `afterwards` will hold what is left of store
    /// and run under their names.
    #[must_use]
    pub fn new(inner: ZarrImage, run: &Path, afterwards: &Path, call: usize, seed: u64) -> Self {
        let state = State {
            random: Random(seed),
            left: call,
            off: false,
            first: true,
            unsynced: BTreeSet::new(),
            torn_from: None,
        };
        Self { inner, run: run.into(), afterwards: afterwards.into(), state: Mutex::new(state) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts a call; true if the power fails at it.
    fn fails(&self, state: &mut State) -> Result<bool> {
        if state.off {
            return Err(self.failure());
        }
        state.off = state.left == 0;
        state.first &= state.off;
        state.left = state.left.saturating_sub(1);
        Ok(state.off)
    }

    fn failure(&self) -> Error {
        Error::io(self.inner.path(), IoError::other("the power has failed"))
    }

    /// Lays down what is left; `finished` if the image was being finished.
    fn lay_down(&self, state: &mut State, finished: bool) -> IoResult<()> {
        let store = self.inner.path();
        let copy_of = |folder: &Path| self.afterwards.join(folder.file_name().unwrap_or_default());
        copy(store, &copy_of(store))?;
        copy(&self.run, &copy_of(&self.run))?;
        for file in std::mem::take(&mut state.unsynced) {
            damage(&copy_of(store).join(file), &mut state.random)?;
        }
        if state.first && state.random.below(2) == 0 {
            // The journal did not get its name yet, if it is new.
            let journal = copy_of(&self.run).join(JOURNAL);
            if fs::read_to_string(&journal)?.lines().count() == 1 {
                fs::remove_file(journal)?;
            }
        }
        if let Some(length) = state.torn_from {
            tear(&copy_of(&self.run).join(JOURNAL), length, &mut state.random)?;
        }
        if finished {
            // The root metadata are written and synced, then the marker goes.
            match state.random.below(3) {
                0 => return Ok(()),
                1 => {}
                _ => {
                    let root = match self.inner.image().encoding.format {
                        Format::V0_5 => "zarr.json",
                        Format::V0_4 => ".zattrs",
                    };
                    damage(&copy_of(store).join(root), &mut state.random)?;
                }
            }
            fs::write(copy_of(store).join(MARKER), "")?;
        }
        Ok(())
    }

    fn lose(&self, state: &mut State, finished: bool) -> Error {
        match self.lay_down(state, finished) {
            Ok(()) => self.failure(),
            Err(error) => Error::io(&self.afterwards, error),
        }
    }
}

const JOURNAL: &str = "journal.jsonl";
const MARKER: &str = ".microtome-unfinished";

impl ImageSink for PowerLoss {
    fn image(&self) -> &StoredImage {
        self.inner.image()
    }

    fn write_shard(&self, level: Level, shard: TileCoord, pixels: &Pixels) -> Result<Stored> {
        let mut state = self.state();
        let fails = self.fails(&mut state)?;
        if !fails {
            state.torn_from = None;
        }
        if fails && (state.first || state.torn_from.is_some()) {
            return Err(self.lose(&mut state, false));
        }
        let stored = self.inner.write_shard(level, shard, pixels)?;
        if stored != Stored::Background {
            let files = self.inner.image().shard_files(level, shard).into_iter().map(PathBuf::from);
            state.unsynced.extend(files.filter(|file| self.inner.path().join(file).exists()));
        }
        if fails { Err(self.lose(&mut state, false)) } else { Ok(stored) }
    }

    fn is_half_full(&self) -> bool {
        self.inner.is_half_full()
    }

    fn read_shard(&self, level: Level, shard: TileCoord) -> Result<Pixels> {
        self.inner.read_shard(level, shard)
    }

    fn sync(&self) -> Result<()> {
        let mut state = self.state();
        if self.fails(&mut state)? {
            return Err(self.lose(&mut state, false));
        }
        self.inner.sync()?;
        state.unsynced.clear();
        state.torn_from = fs::metadata(self.run.join(JOURNAL)).ok().map(|journal| journal.len());
        Ok(())
    }

    fn finish(&self, notes: &Map<String, Value>) -> Result<()> {
        let mut state = self.state();
        if !self.fails(&mut state)? {
            return self.inner.finish(notes);
        }
        let torn = state.random.below(2) == 0;
        if !torn {
            self.inner.finish(notes)?;
            state.torn_from = None;
        }
        Err(self.lose(&mut state, !torn))
    }
}

/// Something that a file may be that was not synced.
fn damage(file: &Path, random: &mut Random) -> IoResult<()> {
    let mut bytes = fs::read(file)?;
    let part = random.below(bytes.len() + 1);
    match random.below(7) {
        0 => return Ok(()),
        1 => {
            fs::remove_file(file)?;
            // The folder may be as new as the file.
            if let Some(folder) = file.parent().filter(|_| random.below(2) == 0) {
                let _ = fs::remove_dir(folder);
            }
            return Ok(());
        }
        2 => bytes.clear(),
        3 => bytes.truncate(part),
        4 => bytes[part..].fill(0),
        5 => bytes[part..].fill_with(|| random.below(256) as u8),
        _ => {
            let name = format!(".{}.partial", file.file_name().unwrap_or_default().to_string_lossy());
            fs::rename(file, file.with_file_name(name))?;
            return Ok(());
        }
    }
    fs::write(file, bytes)
}

/// The end of a file that was appended to, from `length` on.
fn tear(file: &Path, length: u64, random: &mut Random) -> IoResult<()> {
    let mut bytes = fs::read(file)?;
    let new = bytes.len() - length as usize;
    let part = length as usize + random.below(new + 1);
    match random.below(4) {
        0 => return Ok(()),
        1 => bytes.truncate(part),
        2 => bytes[part..].fill(0),
        // The last block came first.
        _ => bytes[length as usize..part].fill(0),
    }
    fs::write(file, bytes)
}

fn copy(from: &Path, to: &Path) -> IoResult<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy(&entry.path(), &target)?;
        } else {
            fs::copy(entry.path(), target)?;
        }
    }
    Ok(())
}

/// splitmix64 (Steele, Lea and Flood 2014).
#[derive(Debug)]
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ z >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((z ^ z >> 31) % n as u64) as usize
    }
}
