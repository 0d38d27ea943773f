//! A package that is written, but not yet where it belongs.

use std::fs::File;
use std::hash::{BuildHasher, RandomState};
use std::path::{Path, PathBuf};

use crate::{Error, Result};

/// A package in a folder of its own beside the place where it is to be; there it appears whole or not at all.
///
/// Where it is dropped without [`publish`](Self::publish), nothing is left of it. Where the process is killed, what is left is a folder
/// `.NAME.PROCESS-NUMBER.part`, which nothing reads and nothing stumbles over.
#[derive(Debug)]
#[must_use = "a package that is not published vanishes"]
pub struct StagedPackage {
    staging: PathBuf,
    folder: PathBuf,
    published: bool,
}

impl StagedPackage {
    /// An empty folder beside `folder`, which does not exist yet or is empty.
    pub(super) fn new(folder: &Path) -> Result<Self> {
        let io = |path: &Path| {
            let path = path.to_owned();
            move |e| Error::io(path, e)
        };
        let absolute = match std::fs::canonicalize(folder) {
            Ok(existing) => existing,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => std::path::absolute(folder).map_err(io(folder))?,
            Err(e) => return Err(Error::io(folder, e)),
        };
        let (Some(parent), Some(name)) = (absolute.parent(), absolute.file_name()) else {
            return Err(Error::usage(format!("{}: not the name of a folder", folder.display())));
        };
        if absolute.exists() && std::fs::read_dir(&absolute).map_err(io(folder))?.next().is_some() {
            return Err(Error::usage(format!("{}: the folder is not empty", folder.display())));
        }
        std::fs::create_dir_all(parent).map_err(io(parent))?;
        let mut hidden = std::ffi::OsString::from(".");
        hidden.push(name);
        // In a container every process may have the same number, and the one that left a folder behind, too.
        let token = RandomState::new().hash_one(&absolute);
        hidden.push(format!(".{}-{token:016x}.part", std::process::id()));
        let staging = parent.join(hidden);
        std::fs::create_dir(&staging).map_err(io(&staging))?;
        Ok(Self { staging, folder: absolute, published: false })
    }

    /// Where its files are until it is published.
    pub(super) fn path(&self) -> &Path {
        &self.staging
    }

    /// Waits until the files are on the disk, and moves them to where they belong.
    ///
    /// # Errors
    /// If that fails, or something has appeared there; then nothing is left of the package.
    pub fn publish(mut self) -> Result<()> {
        sync(&self.staging)?;
        // An empty folder gives way; one that is not makes this fail.
        #[cfg(windows)]
        let _ = std::fs::remove_dir(&self.folder);
        std::fs::rename(&self.staging, &self.folder).map_err(|e| Error::io(&self.folder, e))?;
        self.published = true;
        let parent = self.folder.parent().unwrap_or(Path::new("/"));
        sync_names(parent)
    }
}

impl Drop for StagedPackage {
    fn drop(&mut self) {
        if !self.published {
            // Best effort: whatever went wrong has been said, and the name says that this is no package.
            let _ = std::fs::remove_dir_all(&self.staging);
        }
    }
}

/// Waits for all files of a folder and of those in it, and for their names.
fn sync(folder: &Path) -> Result<()> {
    for entry in std::fs::read_dir(folder).map_err(|e| Error::io(folder, e))? {
        let path = entry.map_err(|e| Error::io(folder, e))?.path();
        if path.is_dir() {
            sync(&path)?;
        } else {
            let file = File::options().write(true).open(&path);
            file.and_then(|file| file.sync_all()).map_err(|e| Error::io(&path, e))?;
        }
    }
    sync_names(folder)
}

/// Waits for the names in a folder. Elsewhere than on Unix folders cannot be opened, and the system sees to it.
fn sync_names(folder: &Path) -> Result<()> {
    if cfg!(unix) {
        File::open(folder).and_then(|folder| folder.sync_all()).map_err(|e| Error::io(folder, e))?;
    }
    Ok(())
}
