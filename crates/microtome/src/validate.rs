//! Does every tile of a slide decode?

use microtome_io::slide::{SlideReader, check};
use serde::Serialize;

use crate::verify::threads_for;
use crate::{Error, Observer, Phase, Result};

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Validation {
    /// Tiles that were decoded, or tried.
    pub tiles: u64,
    /// A sentence for each tile and each picture that travels along which cannot be decoded.
    pub faults: Vec<String>,
}

/// Decodes every stored tile of a slide, and every picture that travels with it, on `threads` threads (as many as there are cores
/// where that is `None`, and 16 for what lies in an object store). Memory: a decoded tile per thread.
///
/// # Errors
/// [`Error::Read`] if the file cannot be read any more, [`Error::Interrupted`] if the observer wants to stop, [`Error::Usage`] for no threads.
pub fn validate(slide: &dyn SlideReader, threads: Option<usize>, observer: &dyn Observer) -> Result<Validation> {
    if threads == Some(0) {
        return Err(Error::Usage("0 threads do nothing".into()));
    }
    let pool =
        rayon::ThreadPoolBuilder::new().num_threads(threads.unwrap_or_else(|| threads_for(&slide.info().path))).build();
    let pool = pool.map_err(|error| Error::Usage(format!("threads cannot be started: {error}")))?;
    observer.phase(Phase::Validation);
    let go_on = |done, total| {
        observer.progress(done, total);
        !observer.cancelled()
    };
    let found = pool.install(|| check(slide, &go_on)).map_err(Error::Read)?;
    if observer.cancelled() {
        return Err(Error::Interrupted);
    }
    Ok(Validation { tiles: found.tiles, faults: found.faults.iter().map(ToString::to_string).collect() })
}
