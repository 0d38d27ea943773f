//! Which stores under URLs this machine has begun, and whether one of its processes is writing there.
//!
//! An object store knows no locks. So the marker of an unfinished store holds a number of chance, and this machine keeps the same number in a file of
//! its own, which is locked for as long as a process writes: who finds the marker knows whether the store was begun here, and is being written.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io::{Read, Seek, Write};
use std::path::{Path, PathBuf};

use super::{state_folder, state_name};
use crate::store::place::taken;
use crate::{Error, Result};

/// The longest content of a claim that is believed.
const LIMIT: u64 = 4096;

/// What this machine knows of the output at a URL.
#[derive(Debug)]
pub(super) struct Claim {
    /// The output.
    output: PathBuf,
    file: PathBuf,
}

impl Claim {
    pub(super) fn of(output: &Path) -> Self {
        Self { output: output.into(), file: state_folder(output).join("claims").join(state_name(output)) }
    }

    /// The number of the store that was begun here, and whether a process holds it.
    pub(super) fn known(&self) -> Result<Option<(String, bool)>> {
        // To be written, too: over NFS all of a lock wants that.
        let mut file = match OpenOptions::new().read(true).write(true).open(&self.file) {
            Ok(file) => file,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(Error::io(&self.file, e)),
        };
        let held = matches!(file.try_lock(), Err(TryLockError::WouldBlock));
        Ok(Some((read(&mut file).map_err(|e| Error::io(&self.file, e))?, held)))
    }

    /// Holds the output. Gives the file that is locked, and the number in it; where there is none yet, that is empty.
    ///
    /// # Errors
    /// [`Error::Usage`] if another process holds it, [`Error::Io`] if the file cannot be made.
    pub(super) fn hold(&self) -> Result<(File, String)> {
        let io = |e| Error::io(&self.file, e);
        if let Some(folder) = self.file.parent() {
            fs::create_dir_all(folder).map_err(io)?;
        }
        let mut file =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&self.file).map_err(io)?;
        // Where the file system knows no locks, the marker of a new store still decides.
        if matches!(file.try_lock(), Err(TryLockError::WouldBlock)) {
            return Err(taken(&self.output));
        }
        let number = read(&mut file).map_err(io)?;
        Ok((file, number))
    }

    /// Gives the output that is held a new number.
    ///
    /// # Errors
    /// [`Error::Io`] if the file cannot be written.
    pub(super) fn renew(&self, file: &mut File) -> Result<String> {
        let number = number();
        // Safe before the marker has it: a machine that crashes in between knows its own store again.
        let mut write = || {
            file.set_len(0)?;
            file.rewind()?;
            file.write_all(number.as_bytes())?;
            file.sync_all()?;
            match self.file.parent() {
                Some(folder) if cfg!(unix) => File::open(folder)?.sync_all(),
                _ => Ok(()),
            }
        };
        write().map_err(|e| Error::io(&self.file, e))?;
        Ok(number)
    }

    /// Forgets it: there is no marker any more.
    pub(super) fn forget(&self) -> Result<()> {
        match fs::remove_file(&self.file) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Error::io(&self.file, e)),
            _ => Ok(()),
        }
    }
}

fn read(file: &mut File) -> std::io::Result<String> {
    let mut text = String::new();
    file.rewind()?;
    Read::take(file, LIMIT).read_to_string(&mut text)?;
    Ok(text)
}

/// A number that no other has: the system seeds each of these hashers by chance.
fn number() -> String {
    let half = || RandomState::new().build_hasher().finish();
    let chance = RandomState::new();
    let mut hasher = chance.build_hasher();
    hasher.write_u32(std::process::id());
    format!("{:016x}{:016x}", half(), hasher.finish())
}
