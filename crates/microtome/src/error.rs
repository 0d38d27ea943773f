//! What can go wrong between a slide and its mask, and how a program should end then.

use std::path::{Path, PathBuf};

/// A path as text: what is no Unicode in it is replaced, as where it is displayed.
pub(crate) fn as_text<S: serde::Serializer>(path: &Path, serializer: S) -> std::result::Result<S::Ok, S::Error> {
    serializer.collect_str(&path.display())
}

/// The crate's result.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An error of this crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A slide or store could not be opened or read.
    #[error(transparent)]
    Read(microtome_io::Error),
    /// The mask could not be written.
    #[error(transparent)]
    Write(microtome_io::Error),
    /// The tiler's.
    #[error(transparent)]
    Tile(microtome_tile::Error),
    /// The model's.
    #[error(transparent)]
    Model(#[from] microtome_unet::Error),
    /// The network failed on these tiles.
    #[error("{slide}: tiles {tiles}: {source}")]
    Inference {
        /// The slide.
        slide: String,
        /// The first and the last tile of the batch, in target pixels.
        tiles: String,
        /// The cause.
        source: Box<microtome_unet::Error>,
    },
    /// The blender's.
    #[error(transparent)]
    Stitch(microtome_stitch::Error),
    /// The caller's settings contradict each other.
    #[error("{0}")]
    Usage(String),
    /// A manifest is wrong.
    #[error("{}: {}", path.display(), faults.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Manifest {
        /// The file.
        path: PathBuf,
        /// What is wrong with each line, in their order.
        faults: Vec<crate::batch::Fault>,
    },
    /// A region of interest cannot be read, does not fit the slide, or does not say what is wanted.
    #[error("{}: {message}", path.display())]
    Region {
        /// The file or folder.
        path: PathBuf,
        /// What is wrong with it.
        message: String,
    },
    /// The output exists and is not one of ours.
    #[error("{}: {found} is there already{hint}", path.display())]
    OutputExists {
        /// The path.
        path: PathBuf,
        /// What is there.
        found: String,
        /// What to do about it, if anything.
        hint: &'static str,
    },
    /// The output exists and belongs to another run.
    #[error("{}: holds the result of a different run ({differs}); --overwrite replaces it", path.display())]
    DifferentRun {
        /// The path.
        path: PathBuf,
        /// Which settings differ, with both values.
        differs: String,
    },
    /// Another process is writing to the output.
    #[error("{}: another process is writing to it", path.display())]
    InUse {
        /// The path.
        path: PathBuf,
    },
    /// The output was begun on another machine, which may still be writing.
    #[error(
        "{}: an unfinished store is there that was not begun on this machine: the same command goes on where it was begun, \
         --overwrite begins anew",
        path.display()
    )]
    Elsewhere {
        /// The URL.
        path: PathBuf,
    },
    /// The job does not fit the memory budget.
    #[error("needs {} of memory and may use {}; {hint}", crate::units::Bytes(*needed), crate::units::Bytes(*budget))]
    Memory {
        /// Bytes needed at least.
        needed: u64,
        /// Bytes allowed.
        budget: u64,
        /// What would make it fit.
        hint: String,
    },
    /// The observer asked to stop.
    #[error("stopped")]
    Interrupted,
    /// The operating system failed us.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// A picture that travels with the slide could not be read.
    #[error("the picture {name:?} that travels along: {source} (--on-bad-picture skip leaves it out)")]
    Associated {
        /// Its name.
        name: String,
        /// The cause.
        source: Box<microtome_io::Error>,
    },
    /// A picture could not be encoded.
    #[error("{}: {message}", path.display())]
    Picture {
        /// The picture.
        path: PathBuf,
        /// The cause.
        message: String,
    },
}

impl From<microtome_tile::Error> for Error {
    fn from(error: microtome_tile::Error) -> Self {
        match error {
            microtome_tile::Error::Slide(error) => Self::Read(error),
            other => Self::Tile(other),
        }
    }
}

impl From<microtome_stitch::Error> for Error {
    fn from(error: microtome_stitch::Error) -> Self {
        match error {
            microtome_stitch::Error::Store(error) => Self::Write(error),
            microtome_stitch::Error::Tile(error) => error.into(),
            microtome_stitch::Error::Journal { path, source }
            | microtome_stitch::Error::Scratch { folder: path, source } => Self::Io { path, source },
            other => Self::Stitch(other),
        }
    }
}

impl Error {
    /// The code that a program for a single slide should exit with: 2 for what the user can mend in the command, 4 for a slide
    /// or disk that failed, 5 for another run's output, 6 for memory, 75 for a network that failed and later may not, 130 when stopped, 1 for failures
    /// of ours.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            _ if self.is_transient() => 75,
            Self::Model(_)
            | Self::Usage(_)
            | Self::Manifest { .. }
            | Self::Region { .. }
            | Self::Tile(_)
            | Self::OutputExists { .. }
            | Self::InUse { .. }
            | Self::Elsewhere { .. }
            | Self::Write(microtome_io::Error::Usage { .. }) => 2,
            Self::Read(_)
            | Self::Write(_)
            | Self::Io { .. }
            | Self::Picture { .. }
            | Self::Associated { .. }
            | Self::Inference { .. }
            | Self::Stitch(microtome_stitch::Error::Overflow { .. } | microtome_stitch::Error::Scratch { .. }) => 4,
            Self::DifferentRun { .. } => 5,
            Self::Memory { .. } => 6,
            Self::Interrupted => 130,
            Self::Stitch(_) => 1,
        }
    }

    /// True if the same may succeed at another time, with nothing changed: an object store did not answer as it should.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Read(error) | Self::Write(error) => error.is_transient(),
            Self::Associated { source, .. } => source.is_transient(),
            _ => false,
        }
    }
}
