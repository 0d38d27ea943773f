//! A file read by position, without a cursor and so without a lock.

use std::borrow::Cow;
use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};

use super::{ByteSource, check, shorter};
use crate::{Error, Result};

/// A file read by position (`pread`). A file that shrinks or fails underneath is an [`Error::Io`].
#[derive(Debug)]
pub struct Positional {
    path: PathBuf,
    file: File,
    len: u64,
}

impl Positional {
    /// Opens a file.
    ///
    /// # Errors
    /// [`Error::Io`] if it cannot be opened.
    pub fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(|e| Error::io(path, e))?;
        let len = file.metadata().map_err(|e| Error::io(path, e))?.len();
        Ok(Self { path: path.into(), file, len })
    }
}

impl ByteSource for Positional {
    fn path(&self) -> &Path {
        &self.path
    }

    fn len(&self) -> u64 {
        self.len
    }

    fn read_at(&self, range: Range<u64>) -> Result<Cow<'_, [u8]>> {
        let checked = check(&self.path, &range, self.len)?;
        let mut bytes = vec![0; checked.len()];
        read_exact_at(&self.file, &mut bytes, range.start).map_err(|e| match e.kind() {
            std::io::ErrorKind::UnexpectedEof => shorter(&self.path),
            _ => Error::io(&self.path, e),
        })?;
        Ok(Cow::Owned(bytes))
    }

    #[cfg(target_os = "linux")]
    fn prefetch(&self, range: Range<u64>) {
        let Ok(checked) = check(&self.path, &range, self.len) else { return };
        if let Some(len) = std::num::NonZeroU64::new(checked.len() as u64) {
            // Advice that the system does not take costs nothing but the time to fetch the bytes later.
            let _ = rustix::fs::fadvise(&self.file, range.start, Some(len), rustix::fs::Advice::WillNeed);
        }
    }
}

/// Reads until the buffer is full: the system may hand out less than was asked for.
#[cfg(unix)]
fn read_exact_at(file: &File, bytes: &mut [u8], offset: u64) -> std::io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, bytes, offset)
}

/// Reads until the buffer is full: the system may hand out less than was asked for.
#[cfg(windows)]
fn read_exact_at(file: &File, mut bytes: &mut [u8], mut offset: u64) -> std::io::Result<()> {
    use std::io::ErrorKind::{Interrupted, UnexpectedEof};
    while !bytes.is_empty() {
        match std::os::windows::fs::FileExt::seek_read(file, bytes, offset) {
            Ok(0) => return Err(UnexpectedEof.into()),
            Ok(n) => {
                bytes = &mut bytes[n..];
                offset += n as u64;
            }
            Err(e) if e.kind() == Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}
