//! What can go wrong between logits and a stored mask.

use std::path::{Path, PathBuf};

use microtome_io::Rect;

/// The crate's result.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An error of this crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The mask could not be stored.
    #[error(transparent)]
    Store(#[from] microtome_io::Error),
    /// The tiler's.
    #[error(transparent)]
    Tile(#[from] microtome_tile::Error),
    /// Logits that do not fit the tile they are said to belong to.
    #[error("the tile {rect} has {found} logits instead of {expected}")]
    Shape {
        /// The tile, in target pixels.
        rect: Rect,
        /// Values found.
        found: usize,
        /// Values expected.
        expected: usize,
    },
    /// Weighted logits that do not fit the numbers they are summed in.
    #[error("the logits at {pixel} are too large for sums in f16, which end at 65504: use f32 sums")]
    Overflow {
        /// The pixel, in target pixels.
        pixel: Rect,
    },
    /// The journal could not be read or written.
    #[error("{}: {source}", path.display())]
    Journal {
        /// The journal.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// Logits could not be kept for the next strip.
    #[error("{} (scratch): {source}", folder.display())]
    Scratch {
        /// The folder.
        folder: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// The caller's settings contradict each other.
    #[error("{0}")]
    Usage(String),
}

impl Error {
    pub(crate) fn journal(path: &Path, source: std::io::Error) -> Self {
        Self::Journal { path: path.into(), source }
    }
}
