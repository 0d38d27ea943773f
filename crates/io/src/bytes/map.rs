//! A file mapped into memory. The only `unsafe` of this crate.
#![allow(unsafe_code)]

use std::borrow::Cow;
use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};

use memmap2::Mmap;

use super::{ByteSource, check};
use crate::{Error, Result};

/// A file mapped into memory, read only.
///
/// # Contract
/// **A slide must not change while it is open.** If another process truncates the file, touching a page that is gone
/// stops this process with `SIGBUS`; if another process writes to it, a decoder may see torn bytes. No library can
/// rule this out on its own, which is why it is stated here, once. Where it cannot be promised, as on a network
/// mount that may vanish, open with [`ByteAccess::Read`](super::ByteAccess::Read).
#[derive(Debug)]
pub struct Map {
    path: PathBuf,
    /// `None` for an empty file, which cannot be mapped.
    map: Option<Mmap>,
}

impl Map {
    /// Maps a file.
    ///
    /// # Errors
    /// [`Error::Io`] if the file cannot be opened or mapped.
    pub fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(|e| Error::io(path, e))?;
        let len = file.metadata().map_err(|e| Error::io(path, e))?.len();
        let map = if len == 0 {
            None
        } else {
            // SAFETY: the map is private to this type, read only, and lends its bytes no longer than it lives; that the
            // file does not change meanwhile is the contract of this type.
            Some(unsafe { Mmap::map(&file) }.map_err(|e| Error::io(path, e))?)
        };
        Ok(Self { path: path.into(), map })
    }

    fn bytes(&self) -> &[u8] {
        self.map.as_deref().unwrap_or_default()
    }
}

impl ByteSource for Map {
    fn path(&self) -> &Path {
        &self.path
    }

    fn len(&self) -> u64 {
        self.bytes().len() as u64
    }

    fn read_at(&self, range: Range<u64>) -> Result<Cow<'_, [u8]>> {
        let range = check(&self.path, &range, self.len())?;
        Ok(Cow::Borrowed(&self.bytes()[range]))
    }
}
