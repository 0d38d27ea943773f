//! The bytes of a file, behind one trait: mapped into memory, read by position, or already in memory.
//!
//! Everything that parses a slide asks a [`ByteSource`] for ranges.
//! A map lends its bytes without a copy; a positional read returns a fresh buffer.
//! Each range is checked against the length that the file had when it was opened, before anything is touched or
//! allocated, so that a hostile offset is an [`Error::Format`] and never a crash.

mod map;
mod memory;
mod positional;
mod window;

use std::borrow::Cow;
use std::fmt::Write as _;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use sha2::{Digest, Sha256};

pub use map::Map;
pub use memory::Memory;
pub use positional::Positional;
pub(crate) use window::Window;

use crate::{Error, Result};

/// Random access to the bytes of one file, from many threads at once.
pub trait ByteSource: Send + Sync + std::fmt::Debug {
    /// The file, for messages.
    fn path(&self) -> &Path;

    /// Bytes of the file when it was opened.
    fn len(&self) -> u64;

    /// True where there is no byte.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The bytes of `range`, all of them.
    ///
    /// # Errors
    /// [`Error::Format`] if the range is not inside the file, [`Error::Io`] if it cannot be read.
    fn read_at(&self, range: Range<u64>) -> Result<Cow<'_, [u8]>>;

    /// Says that bytes will be wanted soon, so that the system can fetch them meanwhile. Returns at once, and never fails.
    fn prefetch(&self, range: Range<u64>) {
        let _ = range;
    }

    /// To be asked after bytes that were lent have been used: were they the file's, up to now? Where nothing is lent, they were.
    ///
    /// # Errors
    /// [`Error::Io`] if the file has become shorter: what was made of its bytes must not be believed.
    fn still_whole(&self) -> Result<()> {
        Ok(())
    }
}

/// How the bytes of a slide are reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ByteAccess {
    /// Mapped into memory: no copies, no buffers. The file must not change while it is open; see [`Map`].
    #[default]
    Map,
    /// Read by position: for network mounts that may vanish, and for files that another process may truncate.
    Read,
}

impl ByteAccess {
    /// Opens `path` this way.
    ///
    /// # Errors
    /// [`Error::Io`] if the file cannot be opened or mapped.
    pub fn open(self, path: &Path) -> Result<Arc<dyn ByteSource>> {
        Ok(match self {
            Self::Map => Arc::new(Map::open(path)?),
            Self::Read => Arc::new(Positional::open(path)?),
        })
    }
}

/// The range as indices, if it lies inside a source of `len` bytes.
pub(crate) fn check(path: &Path, range: &Range<u64>, len: u64) -> Result<Range<usize>> {
    if range.start > range.end || range.end > len {
        return Err(Error::format(
            path,
            format!(
                "bytes {} to {} are asked for, but the file has {len}: it may be truncated",
                range.start, range.end
            ),
        ));
    }
    Ok(range.start as usize..range.end as usize)
}

/// The file ends before bytes that it had when it was opened.
fn shorter(path: &Path) -> Error {
    let message = "the file has become shorter while it was read";
    Error::io(path, std::io::Error::new(std::io::ErrorKind::UnexpectedEof, message))
}

/// Bytes hashed at the start, in the middle and at the end of a file by [`content_id`].
const ID_WINDOW: u64 = 1 << 20;

/// A cheap identity of a file's content: the SHA-256, in hexadecimal, of its length (8 bytes, little endian), its first
/// mebibyte, its last mebibyte, and the mebibyte around its middle.
///
/// A window that sticks out of a smaller file holds what there is. Two different slides share an identity only if they
/// have the same length and differ in none of the windows: good enough to notice that a file was replaced, no proof of
/// integrity.
///
/// # Errors
/// [`Error::Io`] if the file cannot be read.
pub fn content_id(source: &dyn ByteSource) -> Result<String> {
    let len = source.len();
    let mut hash = Sha256::new();
    hash.update(len.to_le_bytes());
    for start in [0, len.saturating_sub(ID_WINDOW), (len / 2).saturating_sub(ID_WINDOW / 2)] {
        hash.update(source.read_at(start..len.min(start + ID_WINDOW))?);
    }
    Ok(hash.finalize().iter().fold(String::with_capacity(64), |mut hex, byte| {
        write!(hex, "{byte:02x}").expect("a string takes what is written to it");
        hex
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What every source must do, whatever it is made of.
    fn contract(source: &dyn ByteSource, content: &[u8]) {
        let len = content.len() as u64;
        assert_eq!(source.len(), len);
        assert_eq!(source.is_empty(), content.is_empty());
        assert_eq!(&*source.read_at(0..len).unwrap(), content);
        assert!(source.read_at(0..0).unwrap().is_empty());
        assert!(source.read_at(len..len).unwrap().is_empty(), "an empty range at the end is inside");
        if len > 5 {
            assert_eq!(&*source.read_at(2..5).unwrap(), &content[2..5]);
        }
        for range in [0..len + 1, len + 1..len + 1, len..u64::MAX, u64::MAX - 1..u64::MAX] {
            let error = source.read_at(range.clone()).unwrap_err();
            assert!(matches!(error, Error::Format { .. }), "{range:?}: {error}");
        }
        #[allow(clippy::reversed_empty_ranges)]
        let backwards = source.read_at(1..0);
        assert!(matches!(backwards, Err(Error::Format { .. })));
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| assert_eq!(&*source.read_at(0..len).unwrap(), content));
            }
        });
    }

    #[test]
    fn every_source_keeps_the_contract() {
        let folder = tempfile::tempdir().unwrap();
        for content in [Vec::new(), vec![7], (0..100_000_u32).map(|i| (i % 251) as u8).collect()] {
            let path = folder.path().join(format!("{}.bin", content.len()));
            std::fs::write(&path, &content).unwrap();
            contract(&Map::open(&path).unwrap(), &content);
            contract(&Positional::open(&path).unwrap(), &content);
            contract(&Memory::new(&path, content.clone()), &content);
            let longer = Arc::new(Memory::new(&path, [&[1, 2, 3], &content[..], &[4]].concat()));
            contract(&Window::new(path, longer, 3..3 + content.len() as u64).unwrap(), &content);
        }
    }

    #[test]
    fn a_file_that_shrinks_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("shrinking");
        for access in [ByteAccess::Map, ByteAccess::Read] {
            std::fs::write(&path, [1; 100]).unwrap();
            let source = access.open(&path).unwrap();
            source.still_whole().unwrap();
            std::fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(10).unwrap();
            let error = source.read_at(5..100).unwrap_err();
            let expected = format!("{}: the file has become shorter while it was read", path.display());
            assert!(matches!(error, Error::Io { .. }) && error.to_string() == expected, "{access:?}: {error}");
            assert_eq!(source.still_whole().is_err(), access == ByteAccess::Map, "only a map lends its bytes");
            // Restored, it can be read again.
            std::fs::write(&path, [1; 100]).unwrap();
            assert_eq!(&*source.read_at(5..100).unwrap(), [1; 95]);
        }
    }

    #[test]
    fn a_missing_file_is_named() {
        for access in [ByteAccess::Map, ByteAccess::Read] {
            let error = access.open(Path::new("/nonexistent/slide.svs")).unwrap_err();
            assert!(error.to_string().starts_with("/nonexistent/slide.svs: "), "{error}");
        }
    }

    #[test]
    fn the_identity_is_that_of_the_content() {
        // printf '\5\0\0\0\0\0\0\0hellohellohello' | sha256sum
        let id = |content: &[u8]| content_id(&Memory::new("x", content.to_vec())).unwrap();
        assert_eq!(id(b"hello"), "5077b00b9e3321326fb7ee391599d7674c5fc6d5d6f52298ec545f57862bc64e");
        let mut large = vec![0; 8 << 20];
        let zeros = id(&large);
        for at in [0, (1 << 20) - 1, 4 << 20, (8 << 20) - 1] {
            large[at] = 1;
            assert_ne!(id(&large), zeros, "byte {at} is hashed");
            large[at] = 0;
        }
    }
}
