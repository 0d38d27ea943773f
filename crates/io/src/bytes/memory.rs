//! Bytes that are in memory already: for tests, fuzzing, and files that came out of something else.

use std::borrow::Cow;
use std::ops::Range;
use std::path::{Path, PathBuf};

use super::{ByteSource, check};
use crate::Result;

/// Bytes in memory under the name of a file.
#[derive(Debug, Clone)]
pub struct Memory {
    path: PathBuf,
    bytes: Vec<u8>,
}

impl Memory {
    /// The bytes, and the name under which messages speak of them.
    pub fn new(path: impl Into<PathBuf>, bytes: Vec<u8>) -> Self {
        Self { path: path.into(), bytes }
    }
}

impl ByteSource for Memory {
    fn path(&self) -> &Path {
        &self.path
    }

    fn len(&self) -> u64 {
        self.bytes.len() as u64
    }

    fn read_at(&self, range: Range<u64>) -> Result<Cow<'_, [u8]>> {
        let range = check(&self.path, &range, self.len())?;
        Ok(Cow::Borrowed(&self.bytes[range]))
    }
}
