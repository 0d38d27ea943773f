//! Files in a ZIP archive that is no store.

use std::io::Write;
use std::path::Path;

use crate::Result;
use crate::bytes::ByteAccess;
use crate::slide::Limits;
use crate::store::entries::{ZipEntries, is_zip};

/// The files in a ZIP archive.
///
/// Nothing is ever written under an entry's name, so that names can lead nowhere; an archive with names that would is refused all the same.
#[derive(Debug)]
pub struct Archive(ZipEntries);

impl Archive {
    /// Opens a file and reads the archive's directory; `None` if the file is no ZIP archive.
    ///
    /// # Errors
    /// [`Error::Io`](crate::Error::Io) if the file cannot be read, [`Error::Format`](crate::Error::Format) if the directory is damaged or has
    /// names that lead out, [`Error::Unsupported`](crate::Error::Unsupported) for one of several parts,
    /// [`Error::Limits`](crate::Error::Limits) if the directory is larger than `Limits::table_bytes`.
    pub fn open(path: &Path, limits: &Limits) -> Result<Option<Self>> {
        let source = ByteAccess::Map.open(path)?;
        if !is_zip(&source.read_at(0..source.len().min(4))?) {
            return Ok(None);
        }
        ZipEntries::read(source, limits).map(|entries| Some(Self(entries)))
    }

    /// The names of all files, in order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.names()
    }

    /// The size that the directory gives a file. [`extract`](Self::extract) never writes more.
    #[must_use]
    pub fn size(&self, name: &str) -> Option<u64> {
        self.0.size(name)
    }

    /// Writes the content of a file, if there is one of this name. Memory: a small buffer.
    ///
    /// # Errors
    /// [`Error::Format`](crate::Error::Format) if its size or its checksum is not what the directory says,
    /// [`Error::Unsupported`](crate::Error::Unsupported) if it is encrypted or packed in another way than by deflate,
    /// [`Error::Io`](crate::Error::Io) if it cannot be read, or `out` cannot be written to. What has been written by then is of no use.
    pub fn extract(&self, name: &str, out: &mut dyn Write) -> Result<bool> {
        self.0.extract(name, out)
    }
}
