//! A file mapped into memory. The only `unsafe` of this crate.
#![allow(unsafe_code)]

use std::borrow::Cow;
use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};

use memmap2::Mmap;

use super::{ByteSource, check, shorter};
use crate::{Error, Result};

/// A file mapped into memory, read only.
///
/// # Contract
/// **A slide must not change while it is open.** No library can rule that out on its own, which is why it is stated here, once:
/// - If another process truncates the file, [`read_at`](ByteSource::read_at) says so from then on. Bytes that were lent before are another
///   matter: touching a page that is gone raises `SIGBUS`, which stops the process, and the rest of the new last page reads as zeros.
///   So a decoder asks [`still_whole`](ByteSource::still_whole) before it believes what it made of them.
/// - If a disk or a network mount fails under the map, touching a page that was not read yet raises `SIGBUS`, too.
/// - If another process writes to the file, a decoder may see torn bytes.
///
/// The `microtome` command turns `SIGBUS` into a sentence and exit code 4; a program that uses the library and cannot promise the above
/// does the same, or opens with [`ByteAccess::Read`](super::ByteAccess::Read).
#[derive(Debug)]
pub struct Map {
    path: PathBuf,
    /// Kept open, because its length is asked for again and again: 0.7 us each time, a million times over a warm file of a mebibyte.
    file: File,
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
        Ok(Self { path: path.into(), file, map })
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
        self.still_whole()?;
        Ok(Cow::Borrowed(&self.bytes()[range]))
    }

    fn prefetch(&self, range: Range<u64>) {
        if let (Some(map), Ok(range)) = (&self.map, check(&self.path, &range, self.len())) {
            // Advice that the system does not take costs nothing but the time to fetch the bytes later.
            #[cfg(unix)]
            let _ = map.advise_range(memmap2::Advice::WillNeed, range.start, range.len());
        }
    }

    fn still_whole(&self) -> Result<()> {
        let len = self.file.metadata().map_err(|e| Error::io(&self.path, e))?.len();
        if len < self.len() { Err(shorter(&self.path)) } else { Ok(()) }
    }
}
