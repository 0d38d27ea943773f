//! A part of a file as a file of its own.

use std::borrow::Cow;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{ByteSource, check};
use crate::Result;

/// A range of another source, under a name of its own: an entry of an archive.
#[derive(Debug)]
pub(crate) struct Window {
    path: PathBuf,
    source: Arc<dyn ByteSource>,
    start: u64,
    len: u64,
}

impl Window {
    /// The bytes of `range`, and the name under which messages speak of them.
    ///
    /// # Errors
    /// [`Error::Format`](crate::Error::Format) if the range is not inside the source.
    pub(crate) fn new(path: PathBuf, source: Arc<dyn ByteSource>, range: Range<u64>) -> Result<Self> {
        check(&path, &range, source.len())?;
        Ok(Self { path, source, start: range.start, len: range.end - range.start })
    }

    /// The range in the source, if it lies in the window.
    fn outer(&self, range: &Range<u64>) -> Result<Range<u64>> {
        check(&self.path, range, self.len)?;
        Ok(self.start + range.start..self.start + range.end)
    }
}

impl ByteSource for Window {
    fn path(&self) -> &Path {
        &self.path
    }

    fn len(&self) -> u64 {
        self.len
    }

    fn read_at(&self, range: Range<u64>) -> Result<Cow<'_, [u8]>> {
        self.source.read_at(self.outer(&range)?)
    }

    fn prefetch(&self, range: Range<u64>) {
        if let Ok(range) = self.outer(&range) {
            self.source.prefetch(range);
        }
    }

    fn still_whole(&self) -> Result<()> {
        self.source.still_whole()
    }
}
