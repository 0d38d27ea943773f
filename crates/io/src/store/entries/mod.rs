//! What a store is made of: values under keys.
//!
//! Everything that reads a store asks an [`Entries`] for the value of a key, as Zarr's specification has it, so that a folder and an
//! archive and objects on a network are read by the same code: a whole value, ranges of one, and whether there is one. What writes a store asks a
//! [`Place`](super::place::Place).

mod folder;
mod memory;
mod zip;

use std::fmt::Debug;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

pub(crate) use folder::FolderEntries;
pub(crate) use memory::MemoryEntries;
pub(crate) use zip::{ZipEntries, is_zip};

use crate::Result;
use crate::bytes::ByteSource;

/// The values of a store. Keys are relative paths of plain names, parted by `/`; whoever asks has made sure of that ([`is_inside`]).
pub(crate) trait Entries: Send + Sync + Debug {
    /// The folder or the archive, as it was given.
    fn path(&self) -> &Path;

    /// The value of a key if there is one. It has at most `limit` bytes, and is what was stored if the container can tell.
    ///
    /// # Errors
    /// [`Error::Limits`](crate::Error::Limits) for a larger value, [`Error::Format`](crate::Error::Format) if it is damaged or lies
    /// outside of the store, [`Error::Io`](crate::Error::Io) if it cannot be read.
    fn get(&self, key: &str, limit: u64) -> Result<Option<Vec<u8>>>;

    /// The value of a key, if there is one, to be read in ranges.
    ///
    /// # Errors
    /// As [`get`](Self::get).
    fn open(&self, key: &str) -> Result<Option<Arc<dyn ByteSource>>>;

    /// True if there is a value.
    ///
    /// # Errors
    /// As [`get`](Self::get).
    fn contains(&self, key: &str) -> Result<bool>;

    /// True if all of it can be gone at once, as with a mount, so that it is worth asking what the absence of a value means.
    fn may_go_away(&self) -> bool {
        false
    }

    /// Bytes of memory that a value takes for as long as it is [open](Self::open).
    fn held_bytes(&self, key: &str) -> u64 {
        let _ = key;
        0
    }

    /// Bytes of memory that are held for as long as this lives.
    fn resident_bytes(&self) -> u64 {
        0
    }

    /// True if a value that is open heeds [`ByteSource::prefetch`], and opening one costs next to nothing.
    fn reads_ahead(&self) -> bool {
        true
    }

    /// What messages call a value.
    fn name(&self, key: &str) -> PathBuf {
        // Joined to nothing, a path would end in a slash.
        if key.is_empty() { self.path().into() } else { self.path().join(key) }
    }
}

/// True for a relative path of plain names, which stays in its folder.
pub(super) fn is_inside(path: &str) -> bool {
    !path.is_empty()
        && !path.contains(['\\', '\0', ':'])
        && Path::new(path).components().all(|part| matches!(part, Component::Normal(_)))
}

/// The key of something in a group; the key of the root is empty.
pub(crate) fn join(group: &str, name: &str) -> String {
    if group.is_empty() { name.into() } else { format!("{group}/{name}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_stay_inside() {
        for path in ["0", "s0/a", "labels/mask/0"] {
            assert!(is_inside(path), "{path}");
        }
        for path in ["", "/etc", "../x", "a/../../x", "a/..", ".", "C:\\x", "..\\x", "\\\\host\\x"] {
            assert!(!is_inside(path), "{path}");
        }
    }
}
