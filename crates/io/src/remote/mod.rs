//! Object stores: a URL such as `s3://bucket/slides/a.ome.zarr` in the place of a path.
//!
//! Wherever a store is read or written, its path may be a URL: [`store`](crate::store) asks this module, which speaks to a service
//! that speaks the protocol of Amazon's S3. Credentials, endpoint and region come from the usual variables of the environment, `AWS_*`.
//!
//! Requests are made on the calling thread and on two threads of their own; nothing outside of this module knows of that. What fails for a moment
//! (500, 503, a time-out, a connection that is cut) is asked for again, later and later; what fails for longer is an
//! [`Error::Transient`].
//! Memory: a value that is put or got as a whole, and ranges of those that are read in ranges; never an object of any size.
//!
//! Without the feature `remote` every URL is refused by a sentence that names it.

#[cfg(feature = "remote")]
mod bucket;
#[cfg(feature = "remote")]
mod claim;
#[cfg(feature = "remote")]
mod download;
#[cfg(feature = "remote")]
mod entries;
#[cfg(feature = "remote")]
mod fault;
#[cfg(feature = "remote")]
mod place;
#[cfg(feature = "remote")]
mod source;
#[cfg(feature = "remote")]
mod url;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use sha2::{Digest, Sha256};

use crate::bytes::ByteSource;
use crate::store::entries::Entries;
use crate::store::place::Place;
use crate::{Error, Result};

#[cfg(feature = "remote")]
#[doc(hidden)]
pub use bucket::in_memory;

/// What URLs of object stores begin with.
const SCHEME: &str = "s3://";

/// True for the URL of an object, or of a store, also where this program was built without the feature `remote` and so can only refuse it.
///
/// ```
/// assert!(microtome_io::remote::is_url("s3://bucket/slide.svs"));
/// assert!(!microtome_io::remote::is_url("slides/slide.svs"));
/// ```
#[must_use]
pub fn is_url(text: &str) -> bool {
    text.starts_with(SCHEME)
}

/// True for a path that is a URL.
#[must_use]
pub fn is_remote(path: &Path) -> bool {
    path.to_str().is_some_and(is_url)
}

/// How many bytes an object has.
///
/// # Errors
/// As [`download`].
pub fn size(url: &str) -> Result<u64> {
    #[cfg(feature = "remote")]
    return download::size(url);
    #[cfg(not(feature = "remote"))]
    Err(refusal(Path::new(url)))
}

/// Copies a whole object into a file, and says how many bytes it has.
///
/// The file appears when it is whole, in the place of one that is there. Memory: a few ranges of 8 MiB.
///
/// # Errors
/// [`Error::Usage`] for what is no URL, and without the feature `remote`; [`Error::Transient`] if the service does not answer as it should, also when it is asked again, [`Error::Io`]
/// for an object that is not there or may not be read, and for a file that cannot be written.
pub fn download(url: &str, to: &Path) -> Result<u64> {
    #[cfg(feature = "remote")]
    return download::download(url, to);
    #[cfg(not(feature = "remote"))]
    {
        let _ = to;
        Err(refusal(Path::new(url)))
    }
}

/// What lies at a URL.
#[derive(Debug)]
#[cfg_attr(not(feature = "remote"), allow(dead_code))]
pub(crate) enum Opened {
    /// Values whose keys begin with it.
    Values(Arc<dyn Entries>),
    /// One object.
    Object(Arc<dyn ByteSource>),
}

/// Looks what lies at a URL.
///
/// # Errors
/// [`Error::Io`] if nothing does or it may not be read, [`Error::Transient`] if the service does not answer.
pub(crate) fn open(path: &Path) -> Result<Opened> {
    #[cfg(feature = "remote")]
    return place::open(path);
    #[cfg(not(feature = "remote"))]
    Err(refusal(path))
}

/// Where a store is written under a URL.
///
/// # Errors
/// [`Error::Usage`] for what is no URL of a store, [`Error::Io`] if there are no credentials.
pub(crate) fn place(path: &Path) -> Result<Box<dyn Place>> {
    #[cfg(feature = "remote")]
    return place::ObjectPlace::new(path).map(|place| Box::new(place) as Box<dyn Place>);
    #[cfg(not(feature = "remote"))]
    Err(refusal(path))
}

/// What is said where the feature is missing.
#[cfg_attr(feature = "remote", allow(dead_code))]
fn refusal(path: &Path) -> Error {
    Error::usage(
        path,
        "this program was built without the feature `remote`, and so neither reads nor writes object stores",
    )
}

/// Where this machine keeps what belongs to a run whose output is under a URL, beside which no folder can be: a folder in `runs` of `MICROTOME_STATE`, or
/// of `microtome` in `XDG_STATE_HOME`, or of `.local/state/microtome` in the home folder. Where none of these is known, of `microtome-state` in the
/// working folder.
#[must_use]
pub fn run_folder(output: &Path) -> PathBuf {
    state_folder(output).join("runs").join(format!("{}.run", state_name(output)))
}

fn state_folder(output: &Path) -> PathBuf {
    #[cfg(feature = "remote")]
    if let Some(folder) = bucket::state_of(output) {
        return folder;
    }
    #[cfg(not(feature = "remote"))]
    let _ = output;
    let folder = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    folder("MICROTOME_STATE")
        .or_else(|| folder("XDG_STATE_HOME").map(|state| state.join("microtome")))
        .or_else(|| folder("HOME").or_else(|| folder("USERPROFILE")).map(|home| home.join(".local/state/microtome")))
        .unwrap_or_else(|| PathBuf::from("microtome-state"))
}

/// The variables of the environment that say where the service is, the most special one first.
const ENDPOINTS: [&str; 3] = ["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT"];

fn endpoint() -> Option<String> {
    ENDPOINTS.iter().find_map(|name| std::env::var(name).ok().filter(|value| !value.is_empty()))
}

/// A name for what belongs to the output at a URL: its last part, and what tells it from others of that name, also on another service.
fn state_name(output: &Path) -> String {
    let mut hash = Sha256::new();
    hash.update(endpoint().unwrap_or_default().trim_end_matches('/'));
    hash.update([0]);
    hash.update(output.to_string_lossy().trim_end_matches('/'));
    let digest: String = hash.finalize().iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    let name = output.file_name().unwrap_or_default().to_string_lossy();
    let safe: String = name.chars().filter(|c| c.is_ascii_alphanumeric() || "-_.".contains(*c)).take(100).collect();
    format!("{safe}.{digest}")
}
