//! Files that no reader of ours takes, read by OpenSlide: behind the cargo feature `openslide`, because OpenSlide is a C library that a
//! binary which links it cannot start without.
//!
//! [`instead`] is where such files end up. Without the feature it says of those that OpenSlide is known to read that a build with it could.
//! With it OpenSlide is asked what the file is; what it takes for a plain TIFF stays refused, because its reader of plain TIFFs
//! shows the first page of anything (of a stack, of a turned picture), and the refusal is about just that.
//!
//! Sources: OpenSlide's list of formats, and the readers that the library of version 4.0.1 holds.

#[cfg(feature = "openslide")]
mod reader;

use std::io::Read;
use std::path::Path;

use super::{OpenOptions, SlideReader};
use crate::{Error, Result};

/// What OpenSlide 4.0.1 reads and no reader of ours: by the extension of the file's name.
const BY_NAME: &[(&str, &str)] = &[
    ("czi", "Zeiss CZI"),
    ("mrxs", "3DHISTECH MIRAX"),
    ("svslide", "Sakura SVSLIDE"),
    ("vms", "Hamamatsu VMS"),
    ("vmu", "Hamamatsu VMU"),
];

/// As above, by the first bytes of the file.
const BY_CONTENT: &[(&[u8], &str)] = &[(b"ZISRAWFILE", "Zeiss CZI"), (b"SQLite format 3\0", "Sakura SVSLIDE")];

/// The format of a file that OpenSlide alone could read, as far as its name and its first bytes tell.
fn only_openslide(path: &Path) -> Option<&'static str> {
    let extension = path.extension().map(|e| e.to_string_lossy().to_lowercase()).unwrap_or_default();
    let by_name = BY_NAME.iter().find(|(known, _)| *known == extension).map(|(_, name)| *name);
    by_name.or_else(|| {
        let mut head = [0; 16];
        std::fs::File::open(path).and_then(|mut file| file.read_exact(&mut head)).ok()?;
        BY_CONTENT.iter().find(|(magic, _)| head.starts_with(magic)).map(|(_, name)| *name)
    })
}

/// Opens with OpenSlide what our readers refused, or says why not.
///
/// # Errors
/// `refusal`, or that of a file which OpenSlide alone could read.
#[cfg(feature = "openslide")]
pub(super) fn instead(path: &Path, options: &OpenOptions, refusal: Error) -> Result<Box<dyn SlideReader>> {
    match (reader::vendor(path).as_deref(), only_openslide(path)) {
        (None, Some(name)) => Err(Error::unsupported(
            path,
            format!("looks like a {name} file, which only OpenSlide can read, and OpenSlide does not take it for one"),
        )),
        (None | Some("generic-tiff"), _) => Err(refusal),
        (Some(_), _) => reader::open(path, options).map_err(|error| match (refusal, error) {
            // Ours says what the file is; OpenSlide's word comes after it.
            (
                Error::Unsupported { path, message },
                Error::Unsupported { message: theirs, .. } | Error::Format { message: theirs, .. },
            ) => Error::unsupported(path, format!("{message}; {theirs}")),
            (_, error) => error,
        }),
    }
}

/// As above, where OpenSlide is not part of the build.
#[cfg(not(feature = "openslide"))]
pub(super) fn instead(path: &Path, _: &OpenOptions, refusal: Error) -> Result<Box<dyn SlideReader>> {
    Err(match only_openslide(path) {
        Some(name) => {
            Error::unsupported(path, format!("looks like a {name} file, which only OpenSlide can read; {ABSENT}"))
        }
        None => refusal,
    })
}

/// Opens a slide with OpenSlide, whatever our readers would make of it.
///
/// # Errors
/// As [`open`](super::open).
#[cfg(feature = "openslide")]
pub(super) fn open(path: &Path, options: &OpenOptions) -> Result<Box<dyn SlideReader>> {
    reader::open(path, options)
}

/// As above, where OpenSlide is not part of the build.
#[cfg(not(feature = "openslide"))]
pub(super) fn open(path: &Path, _: &OpenOptions) -> Result<Box<dyn SlideReader>> {
    Err(Error::unsupported(path, format!("is to be read by OpenSlide; {ABSENT}")))
}

#[cfg(not(feature = "openslide"))]
const ABSENT: &str = "this microtome was built without OpenSlide: build it with `--features openslide`";
