//! Reading files of which a model has only small ones: never more than a stated number of bytes.

use std::io::Read;
use std::path::Path;

use crate::{Error, Result};

/// The content of a file of at most `limit` bytes.
pub(crate) fn read(path: &Path, limit: u64) -> Result<Vec<u8>> {
    let file = std::fs::File::open(path).map_err(|e| Error::io(path, e))?;
    let length = file.metadata().map_err(|e| Error::io(path, e))?.len();
    if length > limit {
        return Err(Error::limits(path, format!("{length} bytes; up to {limit} are read")));
    }
    let mut bytes = Vec::with_capacity(length as usize);
    // The limit holds even for a file that grows, or that has no length, such as a pipe.
    file.take(limit).read_to_end(&mut bytes).map_err(|e| Error::io(path, e))?;
    Ok(bytes)
}

/// The content of a text file of at most `limit` bytes.
pub(crate) fn read_text(path: &Path, limit: u64) -> Result<String> {
    String::from_utf8(read(path, limit)?).map_err(|_| Error::format(path, "not UTF-8 text"))
}
