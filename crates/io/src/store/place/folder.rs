//! A store in a folder.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{Hold, Item, Kind, Mark, Place, Take, There, begun, taken};
use crate::store::entries::{Entries, FolderEntries, join};
use crate::store::folder;
use crate::store::found::MARKER;
use crate::{Error, Result};

/// How long one who takes part waits for those who only look.
const PATIENCE: Duration = Duration::from_secs(1);

/// A folder whose files are the values, or in which they will be.
#[derive(Debug)]
pub(super) struct FolderPlace {
    path: PathBuf,
}

impl FolderPlace {
    pub(super) fn new(path: &Path) -> Self {
        Self { path: path.into() }
    }

    fn file(&self, key: &str) -> PathBuf {
        // Joined to nothing, a path would end in a slash.
        if key.is_empty() { self.path.clone() } else { self.path.join(key) }
    }

    /// The file of a key, with the folders around it.
    fn place_for(&self, key: &str) -> Result<PathBuf> {
        let file = self.file(key);
        if let Some(around) = file.parent().filter(|around| *around != self.path) {
            // In a store that somebody has removed meanwhile nothing is made anew: it would lack what was there before.
            folder::create_inside(&self.path, around)?;
        }
        Ok(file)
    }

    fn io(&self) -> impl Fn(std::io::Error) -> Error {
        |source| Error::io(&self.path, source)
    }

    /// Makes the marker, and the folder if it is not there.
    fn take_fresh(&self) -> Result<Hold> {
        let fresh = match fs::create_dir(&self.path) {
            Ok(()) => true,
            Err(e) if e.kind() == ErrorKind::AlreadyExists => false,
            Err(e) => return Err(self.io()(e)),
        };
        // Of several that start at once, the one that makes this file has the store.
        let marker = match File::create_new(self.path.join(MARKER)) {
            Ok(marker) => marker,
            Err(e) if e.kind() == ErrorKind::AlreadyExists => return Err(begun(&self.path)),
            Err(e) => {
                if fresh {
                    let _ = fs::remove_dir(&self.path);
                }
                return Err(self.io()(e));
            }
        };
        // Locked, somebody took it for what a process that was killed has left, and is removing it.
        self.lock(marker)
    }

    /// Takes part of the lock on the marker, which is made where nothing is.
    fn take_shared(&self) -> Result<Hold> {
        match fs::create_dir(&self.path) {
            Err(e) if e.kind() != ErrorKind::AlreadyExists => return Err(self.io()(e)),
            _ => {}
        }
        let marker = self.path.join(MARKER);
        // To read, too: over NFS a part of a lock wants that.
        let open = |new: bool| OpenOptions::new().read(true).write(true).create_new(new).open(&marker);
        let file = match self.there()? {
            There::Nothing => match open(true) {
                // Somebody else has begun it.
                Err(e) if e.kind() == ErrorKind::AlreadyExists => open(false),
                created => created,
            },
            // Without the marker it is finished, and must not be marked again.
            There::Values | There::Other => open(false),
        };
        let file = file.map_err(|e| Error::io(&marker, e))?;
        let begun = Instant::now();
        // Where the file system knows no locks, nobody can have all of it.
        while matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock)) {
            // Whoever asks what the store is takes all of it for a moment.
            if begun.elapsed() > PATIENCE {
                return Err(taken(&self.path));
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        Ok(Hold(file))
    }

    /// Where the file system knows no locks, there is none to respect; two processes still cannot both make the marker.
    fn lock(&self, marker: File) -> Result<Hold> {
        match marker.try_lock() {
            Err(TryLockError::WouldBlock) => Err(taken(&self.path)),
            _ => Ok(Hold(marker)),
        }
    }
}

impl Place for FolderPlace {
    fn path(&self) -> &Path {
        &self.path
    }

    fn there(&self) -> Result<There> {
        match fs::metadata(&self.path) {
            // A symbolic link to nowhere is somebody's, too.
            Err(e) if e.kind() == ErrorKind::NotFound && self.is_link() => return Ok(There::Other),
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(There::Nothing),
            Err(e) => return Err(self.io()(e)),
            Ok(m) if !m.is_dir() => return Ok(There::Other),
            Ok(_) => {}
        }
        let empty = fs::read_dir(&self.path).map_err(self.io())?.next().is_none();
        Ok(if empty { There::Nothing } else { There::Values })
    }

    fn mark(&self) -> Result<Mark> {
        let marker = self.path.join(MARKER);
        match fs::symlink_metadata(&marker) {
            Ok(found) if found.is_file() => {}
            Ok(_) => return Ok(Mark::None),
            Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => return Ok(Mark::None),
            Err(e) => return Err(Error::io(&marker, e)),
        }
        // Whoever writes holds a lock on the marker, which the system lets go of however the process ends.
        // To be written, too: over NFS all of a lock wants that. Who may not write asks as well as can be.
        let opened = OpenOptions::new().read(true).write(true).open(&marker).or_else(|_| File::open(&marker));
        let locked = opened.map_err(self.io())?.try_lock();
        Ok(if matches!(locked, Err(TryLockError::WouldBlock)) { Mark::Held } else { Mark::Left })
    }

    fn take(&self, how: Take) -> Result<Hold> {
        let marker = self.path.join(MARKER);
        match how {
            Take::Fresh => self.take_fresh(),
            Take::Shared => self.take_shared(),
            Take::Left => {
                let file = OpenOptions::new().write(true).open(&marker).map_err(|e| Error::io(&marker, e))?;
                self.lock(file)
            }
            Take::Any => {
                let hold = self.lock(File::create(&marker).map_err(|e| Error::io(&marker, e))?)?;
                folder::sync_folder(&self.path)?;
                Ok(hold)
            }
        }
    }

    fn unmark(&self) -> Result<()> {
        let marker = self.path.join(MARKER);
        fs::remove_file(&marker).map_err(|e| Error::io(&marker, e))?;
        folder::sync_folder(&self.path)
    }

    fn entries(&self) -> Result<Arc<dyn Entries>> {
        Ok(Arc::new(FolderEntries::open(&self.path)?))
    }

    fn value(&self, key: &str, limit: u64) -> Result<Option<Vec<u8>>> {
        let file = self.file(key);
        match fs::symlink_metadata(&file) {
            Ok(found) if found.is_file() => folder::read_small(&file, limit).map(Some),
            Ok(_) => Ok(None),
            Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => Ok(None),
            Err(e) => Err(Error::io(&file, e)),
        }
    }

    fn list(&self, group: &str) -> Result<Vec<Item>> {
        let path = self.file(group);
        let io = |source| Error::io(&path, source);
        let entries = match fs::read_dir(&path) {
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(io)?,
        };
        let item = |entry: std::io::Result<fs::DirEntry>| {
            let entry = entry?;
            let kind = match entry.file_type()? {
                kind if kind.is_dir() => Kind::Group,
                kind if kind.is_file() => Kind::Value,
                _ => Kind::Other,
            };
            Ok(Item { name: entry.file_name().to_string_lossy().into_owned(), kind })
        };
        entries.map(item).collect::<std::io::Result<_>>().map_err(io)
    }

    fn put(&self, key: &str, bytes: &[u8]) -> Result<()> {
        folder::put(&self.place_for(key)?, bytes)
    }

    fn put_same(&self, key: &str, bytes: &[u8]) -> Result<()> {
        folder::put_same(&self.place_for(key)?, bytes)
    }

    fn tidy(&self, group: &str) -> Result<()> {
        for Item { name, kind } in self.list(group)? {
            if kind == Kind::Value && folder::is_partial(Path::new(&name)) {
                self.delete(&join(group, &name))?;
            }
        }
        Ok(())
    }

    fn sync(&self, keys: &[String]) -> Result<()> {
        let mut folders = BTreeSet::new();
        for key in keys {
            let file = self.file(key);
            folder::sync_file(&file)?;
            let around = file.ancestors().skip(1).take_while(|around| around.starts_with(&self.path));
            folders.extend(around.map(Path::to_owned));
        }
        folders.iter().try_for_each(|around| folder::sync_folder(around))
    }

    fn sync_name(&self) -> Result<()> {
        match self.path.parent() {
            Some(around) if around != Path::new("") => folder::sync_folder(around),
            _ => folder::sync_folder(Path::new(".")),
        }
    }

    fn delete(&self, key: &str) -> Result<()> {
        let file = self.file(key);
        match fs::remove_file(&file) {
            Err(e) if !matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => Err(Error::io(&file, e)),
            _ => Ok(()),
        }
    }

    fn delete_group(&self, group: &str) -> Result<()> {
        let path = self.file(group);
        fs::remove_dir_all(&path).map_err(|e| Error::io(&path, e))
    }

    fn vanish(&self) -> Result<()> {
        fs::remove_dir(&self.path).map_err(self.io())
    }

    fn is_link(&self) -> bool {
        // Without a slash at its end, which would ask for what it leads to.
        self.path.components().as_path().is_symlink()
    }

    fn walk(&self, group: &str, found: &mut dyn FnMut(&str, u64)) -> Result<()> {
        for Item { name, kind } in self.list(group)? {
            let key = join(group, &name);
            if kind == Kind::Group {
                self.walk(&key, found)?;
            } else {
                let file = self.file(&key);
                found(&key, fs::symlink_metadata(&file).map_err(|e| Error::io(&file, e))?.len());
            }
        }
        Ok(())
    }
}
