//! A store in a folder.

use std::fs;
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::Entries;
use crate::bytes::{ByteSource, Positional};
use crate::{Error, Result};

/// A folder whose files are the values. Links that lead out of it are not followed.
#[derive(Debug)]
pub(crate) struct FolderEntries {
    path: PathBuf,
    /// The same with no link in it.
    root: PathBuf,
}

impl FolderEntries {
    /// # Errors
    /// [`Error::Io`] if there is no such folder, [`Error::Format`] if it is a file.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let root = fs::canonicalize(path).map_err(|e| Error::io(path, e))?;
        if !root.is_dir() {
            return Err(Error::format(path, "this is no folder"));
        }
        Ok(Self { path: path.into(), root })
    }

    /// The file of a key, if it is there.
    fn find(&self, key: &str) -> Result<Option<PathBuf>> {
        let (name, file) = (self.name(key), self.root.join(key));
        let io = |e| Error::io(&name, e);
        // Asked before opening, which would wait at a named pipe; and a link must not lead out of the store.
        let metadata = match fs::symlink_metadata(&file) {
            Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => return Ok(None),
            metadata => metadata.map_err(io)?,
        };
        if !fs::canonicalize(&file).map_err(io)?.starts_with(&self.root) {
            return Err(Error::format(&name, "this leads out of the store, and is no regular file of it"));
        }
        if !metadata.is_file() {
            return Err(Error::format(&name, "this is no regular file of the store"));
        }
        Ok(Some(file))
    }
}

impl Entries for FolderEntries {
    fn path(&self) -> &Path {
        &self.path
    }

    fn get(&self, key: &str, limit: u64) -> Result<Option<Vec<u8>>> {
        let Some(path) = self.find(key)? else { return Ok(None) };
        let io = |e| Error::io(self.name(key), e);
        let file = fs::File::open(&path).map_err(io)?;
        let length = file.metadata().map_err(io)?.len();
        let mut bytes = Vec::with_capacity(length.min(limit) as usize);
        file.take(limit.saturating_add(1)).read_to_end(&mut bytes).map_err(io)?;
        if bytes.len() as u64 > limit {
            return Err(Error::limits(
                self.name(key),
                format!("the file has {length} bytes, more than the {limit} that are allowed here"),
            ));
        }
        Ok(Some(bytes))
    }

    fn open(&self, key: &str) -> Result<Option<Arc<dyn ByteSource>>> {
        match self.find(key)? {
            Some(path) => Ok(Some(Arc::new(Positional::open(&path)?))),
            None => Ok(None),
        }
    }

    fn contains(&self, key: &str) -> Result<bool> {
        Ok(self.find(key)?.is_some())
    }

    fn may_go_away(&self) -> bool {
        true
    }
}
