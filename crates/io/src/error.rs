//! What can go wrong between a file and its pixels.

use std::path::{Path, PathBuf};

use crate::{Level, TileCoord};

/// A path as text: what is no Unicode in it is replaced, as where it is displayed.
pub(crate) fn as_text<S: serde::Serializer>(path: &Path, serializer: S) -> std::result::Result<S::Ok, S::Error> {
    serializer.collect_str(&path.display())
}

/// The crate's result.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An error of this crate. Each carries the file; those about pixels carry level and tile.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The file is wrong: truncated, inconsistent or corrupt.
    #[error("{}: {message}", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// What is wrong with it, as a clause.
        message: String,
    },
    /// The file may be fine, but this crate cannot read it.
    #[error("{}: {message}", path.display())]
    Unsupported {
        /// The file.
        path: PathBuf,
        /// What is not supported, and what would be.
        message: String,
    },
    /// The file asks for more than the [`Limits`](crate::slide::Limits) allow.
    #[error("{}: {message}", path.display())]
    Limits {
        /// The file.
        path: PathBuf,
        /// Which limit, with both figures.
        message: String,
    },
    /// The caller asked for something that does not exist, such as a level that the slide does not have.
    #[error("{}: {message}", path.display())]
    Usage {
        /// The file.
        path: PathBuf,
        /// What was asked for, and what there is.
        message: String,
    },
    /// A tile could not be decoded. It is never replaced by black pixels.
    #[error("{}: level {level}, {tile}: {message}", path.display())]
    Tile {
        /// The file.
        path: PathBuf,
        /// The level of the tile.
        level: Level,
        /// Column and row of the tile.
        tile: TileCoord,
        /// The decoder's word.
        message: String,
    },
    /// The operating system failed us.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// The network or an object store failed us, also when it was asked again; at another time it may not.
    #[error("{}: {message}", path.display())]
    Transient {
        /// The URL.
        path: PathBuf,
        /// How often it was tried, and what came of it in the end.
        message: String,
    },
}

impl Error {
    /// A [`Error::Format`].
    pub fn format(path: impl AsRef<Path>, message: impl Into<String>) -> Self {
        Self::Format { path: path.as_ref().into(), message: message.into() }
    }

    /// An [`Error::Unsupported`].
    pub fn unsupported(path: impl AsRef<Path>, message: impl Into<String>) -> Self {
        Self::Unsupported { path: path.as_ref().into(), message: message.into() }
    }

    /// An [`Error::Usage`].
    pub fn usage(path: impl AsRef<Path>, message: impl Into<String>) -> Self {
        Self::Usage { path: path.as_ref().into(), message: message.into() }
    }

    /// An [`Error::Limits`].
    pub fn limits(path: impl AsRef<Path>, message: impl Into<String>) -> Self {
        Self::Limits { path: path.as_ref().into(), message: message.into() }
    }

    /// An [`Error::Transient`].
    pub fn transient(path: impl AsRef<Path>, message: impl Into<String>) -> Self {
        Self::Transient { path: path.as_ref().into(), message: message.into() }
    }

    /// True if the same may succeed at another time, with nothing changed.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Transient { .. })
    }

    /// An [`Error::Io`].
    pub fn io(path: impl AsRef<Path>, source: std::io::Error) -> Self {
        Self::Io { path: path.as_ref().into(), source }
    }
}
