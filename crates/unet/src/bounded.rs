//! Reading a model's files: small ones up to a stated number of bytes, those with weights mapped into memory.

use std::io::Read;
use std::path::Path;
use std::sync::Arc;

use microtome_io::bytes::{ByteAccess, ByteSource};

use crate::{Error, Result};

/// The content of a file of at most `limit` bytes.
pub(crate) fn read(path: &Path, limit: u64) -> Result<Vec<u8>> {
    regular(path)?;
    let file = std::fs::File::open(path).map_err(|e| Error::io(path, e))?;
    let length = file.metadata().map_err(|e| Error::io(path, e))?.len();
    if length > limit {
        return Err(Error::limits(path, format!("{length} bytes; up to {limit} are read")));
    }
    let mut bytes = Vec::with_capacity(length as usize);
    // The limit holds even for a file that grows, or that has no length, such as one of the system's.
    file.take(limit).read_to_end(&mut bytes).map_err(|e| Error::io(path, e))?;
    Ok(bytes)
}

/// The content of a text file of at most `limit` bytes.
pub(crate) fn read_text(path: &Path, limit: u64) -> Result<String> {
    String::from_utf8(read(path, limit)?).map_err(|_| Error::format(path, "not UTF-8 text"))
}

/// A file mapped into memory: only what is looked at is read, and nothing of it counts as allocated.
pub(crate) fn map(path: &Path) -> Result<Arc<dyn ByteSource>> {
    regular(path)?;
    Ok(ByteAccess::Map.open(path)?)
}

/// Refuses what is no file: opening a pipe would wait for somebody to write to it.
fn regular(path: &Path) -> Result<()> {
    if std::fs::metadata(path).map_err(|e| Error::io(path, e))?.is_file() {
        Ok(())
    } else {
        Err(Error::format(path, "not a file"))
    }
}
