//! Where a store is written.
//!
//! What reads a store asks an [`Entries`]; whoever writes, inspects or removes one asks a [`Place`], so that a folder and an object store are
//! written by the same code. How a value comes to stay, and how of several processes one is the writer, is the matter of the place.

mod folder;

use std::fmt::Debug;
use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use folder::FolderPlace;

use super::entries::Entries;
use super::found::MARKER;
use crate::{Error, Result, remote};

/// What is at a place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum There {
    /// Nothing, or an empty folder.
    Nothing,
    /// Values.
    Values,
    /// What can be no store, such as a file.
    Other,
}

/// What says that a store of ours is not finished.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mark {
    /// Nothing does.
    None,
    /// Whoever wrote it is gone.
    Left,
    /// A process on this machine is writing.
    Held,
    #[cfg_attr(not(feature = "remote"), allow(dead_code))]
    /// It was begun on another machine, of which this one cannot know whether it still writes.
    Elsewhere,
}

/// How a place is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Take {
    /// There is no mark yet: of several that try, one gets it.
    Fresh,
    /// The mark was left there, and is taken over.
    Left,
    /// Whether there is a mark or not.
    Any,
    /// Beside others who take it so, whether there is a mark or not.
    Shared,
}

/// The right to write at a place, on this machine: a file that is locked for as long as this lives. The system lets go of it however the process ends.
#[derive(Debug)]
pub(crate) struct Hold(#[expect(dead_code, reason = "it is held, and nothing is asked of it")] pub(crate) File);

/// What a value is, or what stands in the place of one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A value.
    Value,
    /// Something that holds others.
    Group,
    /// Neither.
    Other,
}

/// What lies in a group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Item {
    pub(crate) name: String,
    pub(crate) kind: Kind,
}

/// The values of a store, to be written. Keys are as those of [`Entries`]; the key of the root is empty.
pub(crate) trait Place: Send + Sync + Debug {
    /// The folder or URL, as it was given.
    fn path(&self) -> &Path;

    /// What is there.
    ///
    /// # Errors
    /// [`Error::Io`] if that cannot be found out.
    fn there(&self) -> Result<There>;

    /// Whether a store of ours is being written there.
    ///
    /// # Errors
    /// As [`there`](Self::there).
    fn mark(&self) -> Result<Mark>;

    /// Takes the place, and marks it as that of an unfinished store.
    ///
    /// # Errors
    /// [`Error::Usage`] if another process has it, or there is not what is to be taken; [`Error::Io`] if it cannot be marked, and then nothing is
    /// left where nothing was.
    fn take(&self, how: Take) -> Result<Hold>;

    /// True unless another machine has taken the place over since it was taken here.
    ///
    /// # Errors
    /// As [`there`](Self::there).
    fn is_ours(&self) -> Result<bool> {
        Ok(true)
    }

    /// Takes the mark away, which whoever calls has taken.
    ///
    /// # Errors
    /// [`Error::Io`] if it cannot be removed.
    fn unmark(&self) -> Result<()>;

    /// The values, to be read.
    ///
    /// # Errors
    /// [`Error::Io`] if there is nothing.
    fn entries(&self) -> Result<Arc<dyn Entries>>;

    /// The value of a key, if it is one and no link.
    ///
    /// # Errors
    /// [`Error::Limits`] for one of more than `limit` bytes, [`Error::Io`] if it cannot be read.
    fn value(&self, key: &str, limit: u64) -> Result<Option<Vec<u8>>>;

    /// What lies in a group; nothing in one that is not there.
    ///
    /// # Errors
    /// [`Error::Io`] if it cannot be listed.
    fn list(&self, group: &str) -> Result<Vec<Item>>;

    /// Writes a value, which appears whole. Of the groups around it those that are not there are made, but not the place itself.
    ///
    /// # Errors
    /// [`Error::Io`] if it cannot be written, and then nothing of it is left.
    fn put(&self, key: &str, bytes: &[u8]) -> Result<()>;

    /// Writes a value that several processes may write at once, all of them the same bytes.
    ///
    /// # Errors
    /// As [`put`](Self::put).
    fn put_same(&self, key: &str, bytes: &[u8]) -> Result<()> {
        self.put(key, bytes)
    }

    /// Removes what processes that were killed while they [took part](Take::Shared) have left half written in a group.
    ///
    /// # Errors
    /// [`Error::Io`] if it cannot be removed.
    fn tidy(&self, _group: &str) -> Result<()> {
        Ok(())
    }

    /// Returns once these values, which were [put](Self::put), and their names are safe.
    ///
    /// # Errors
    /// [`Error::Io`] if the disk refuses.
    fn sync(&self, keys: &[String]) -> Result<()>;

    /// Returns once the name of the place is safe.
    ///
    /// # Errors
    /// [`Error::Io`] if the disk refuses.
    fn sync_name(&self) -> Result<()> {
        Ok(())
    }

    /// Removes a value; where there is none, nothing happens.
    ///
    /// # Errors
    /// [`Error::Io`] if it cannot be removed.
    fn delete(&self, key: &str) -> Result<()>;

    /// Removes a group with all that is in it.
    ///
    /// # Errors
    /// [`Error::Io`] if something cannot be removed.
    fn delete_group(&self, group: &str) -> Result<()>;

    /// Removes the place itself, in which there is nothing any more.
    ///
    /// # Errors
    /// [`Error::Io`] if it cannot be removed.
    fn vanish(&self) -> Result<()> {
        Ok(())
    }

    /// True if the path is a link to the place.
    fn is_link(&self) -> bool {
        false
    }

    /// True if a value that is there is whole, so that whoever goes on need not read it again. Files are not: power may fail.
    fn keeps_whole(&self) -> bool {
        false
    }

    /// Calls with the key and the length of each value in a group and in the groups in it, in no order.
    ///
    /// # Errors
    /// As [`list`](Self::list).
    fn walk(&self, group: &str, found: &mut dyn FnMut(&str, u64)) -> Result<()>;
}

/// The place at a path: a folder, or objects under a URL.
pub(crate) fn of(path: &Path) -> Result<Box<dyn Place>> {
    if remote::is_remote(path) { remote::place(path) } else { Ok(Box::new(FolderPlace::new(path))) }
}

/// Another process has the place.
pub(crate) fn taken(path: &Path) -> Error {
    Error::usage(path, "another process is writing a store there")
}

/// There is a mark already.
pub(crate) fn begun(path: &Path) -> Error {
    Error::usage(path, "an unfinished store is there already")
}

/// The mark is gone: somebody has taken the store away while it was written.
pub(crate) fn gone(path: &Path) -> Error {
    let message = "it is gone: somebody has removed the store while it was written";
    Error::io(path.join(MARKER), std::io::Error::new(std::io::ErrorKind::NotFound, message))
}
