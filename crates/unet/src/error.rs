//! What can go wrong between a model on disk and its logits.

use std::path::{Path, PathBuf};

/// The crate's result.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An error of this crate. Those about files carry the file.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The file is wrong: truncated, inconsistent or corrupt.
    #[error("{}: {message}", path.display())]
    Format {
        /// The file or folder.
        path: PathBuf,
        /// What is wrong with it, as a clause.
        message: String,
    },
    /// The file may be fine, but this crate cannot honour what it asks for.
    #[error("{}: {message}", path.display())]
    Unsupported {
        /// The file or folder.
        path: PathBuf,
        /// What is not supported, by name, and what would be.
        message: String,
    },
    /// The file is larger, or claims more, than a model of this kind ever needs.
    #[error("{}: {message}", path.display())]
    Limits {
        /// The file.
        path: PathBuf,
        /// Which limit, with both figures.
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
    /// The caller asked for something that cannot be, such as a tile of the wrong size.
    #[error("{message}")]
    Usage {
        /// What was asked for, and what there is.
        message: String,
    },
    /// The device that was asked for is not there, or cannot do what was asked.
    #[error("{message}")]
    Device {
        /// Which device, and why.
        message: String,
    },
    /// What was asked for does not fit the memory of a device.
    #[error("the memory of the GPU is full: {message}")]
    DeviceMemory {
        /// Which device, and what it says.
        message: String,
    },
    /// The arithmetic failed: a fault of the device, or of ours.
    #[error("the network failed: {message}")]
    Inference {
        /// The first line of what candle says.
        message: String,
    },
    /// The network returned an infinity or a NaN.
    #[error("tile {index} of the batch: the network returned a value that is not finite")]
    NotFinite {
        /// Which tile of the slice that was passed in; the caller knows where it lies.
        index: usize,
    },
}

impl Error {
    pub(crate) fn format(path: impl AsRef<Path>, message: impl Into<String>) -> Self {
        Self::Format { path: path.as_ref().into(), message: clause(message) }
    }

    pub(crate) fn unsupported(path: impl AsRef<Path>, message: impl Into<String>) -> Self {
        Self::Unsupported { path: path.as_ref().into(), message: clause(message) }
    }

    pub(crate) fn limits(path: impl AsRef<Path>, message: impl Into<String>) -> Self {
        Self::Limits { path: path.as_ref().into(), message: clause(message) }
    }

    pub(crate) fn io(path: impl AsRef<Path>, source: std::io::Error) -> Self {
        Self::Io { path: path.as_ref().into(), source }
    }

    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Self::Usage { message: message.into() }
    }
}

/// What a slide's file can do wrong, a model's can, too.
impl From<microtome_io::Error> for Error {
    fn from(error: microtome_io::Error) -> Self {
        match error {
            microtome_io::Error::Io { path, source } => Self::Io { path, source },
            microtome_io::Error::Format { path, message } => Self::Format { path, message },
            microtome_io::Error::Unsupported { path, message } => Self::Unsupported { path, message },
            microtome_io::Error::Limits { path, message } => Self::Limits { path, message },
            other => Self::Usage { message: other.to_string() },
        }
    }
}

/// A clause fit for a line of a terminal, whatever a hostile file has put into it: without control characters, and not too long.
fn clause(message: impl Into<String>) -> String {
    const MAX_CHARS: usize = 2000;
    let message: String = message.into();
    let fits = message.len() <= MAX_CHARS || message.chars().nth(MAX_CHARS).is_none();
    if fits && !message.contains(char::is_control) {
        return message;
    }
    let mut clean = String::new();
    for c in message.chars().take(MAX_CHARS) {
        if c.is_control() { clean.extend(c.escape_default()) } else { clean.push(c) }
    }
    if !fits {
        clean.push_str(" ...");
    }
    clean
}

/// candle's errors print a backtrace after their first line; users get the line.
impl From<candle_core::Error> for Error {
    fn from(error: candle_core::Error) -> Self {
        let message = error.to_string().lines().next().unwrap_or("no message").to_owned();
        if crate::device::is_out_of_memory(&message) {
            Self::DeviceMemory { message }
        } else {
            Self::Inference { message }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_file_says_does_not_reach_the_terminal_as_it_is() {
        let message = |text: &str| Error::format("model.pth", text).to_string();
        assert_eq!(message("unused größe.weight"), "model.pth: unused größe.weight");
        assert_eq!(message("unused \u{1b}[2J\n"), "model.pth: unused \\u{1b}[2J\\n");
        let long = message(&"ü".repeat(5000));
        assert!(long.ends_with("ü ...") && long.chars().count() == 2000 + "model.pth:  ...".len(), "{}", long.len());
    }
}
