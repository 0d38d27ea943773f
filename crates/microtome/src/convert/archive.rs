//! An image in one file: the store is built in the folder of the run, and packed when it is finished.
//!
//! So a conversion that is stopped goes on as any other, and nothing is at the output before all of it is.

use std::ffi::OsString;
use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};
use std::time::Instant;

use microtome_io::Error as IoError;
use microtome_io::store::{self, Format, ImageSink, OmeZarr, ZarrImage};
use microtome_stitch::Journal;
use serde_json::{Map, Value};

use super::{Conversion, Job, summary};
use crate::output::{Existing, RunFolder, Stores};
use crate::{Error, Result};

/// True if the output is to be one file, by its name: `image.ome.zarr.zip`, or `image.ozx`, as RFC 9 of OME-NGFF calls them.
pub(super) fn is_one(output: &Path) -> bool {
    output.extension().is_some_and(|ending| ["zip", "ozx"].iter().any(|known| ending.eq_ignore_ascii_case(known)))
}

/// Refuses such an output for a mask.
///
/// # Errors
/// [`Error::Usage`] that says how an archive comes about.
pub(crate) fn refuse(output: &Path) -> Result<()> {
    if !is_one(output) {
        return Ok(());
    }
    let message = "a mask is written into a folder: leave out the ending; convert makes an archive of it";
    Err(Error::Usage(format!("{}: {message}", output.display())))
}

/// What is at the output.
enum Found {
    Nothing,
    /// An archive of ours, with its attributes.
    Ours(Map<String, Value>),
}

fn inspect(output: &Path) -> Result<Found> {
    match fs::symlink_metadata(output) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Found::Nothing),
        Err(source) => return Err(Error::Io { path: output.into(), source }),
        Ok(_) => {}
    }
    let attributes = match OmeZarr::open(output) {
        Ok(store) => store.info().attributes.clone(),
        Err(IoError::Io { path, source }) => return Err(Error::Io { path, source }),
        // Whatever is wrong with a stranger's file is no error of this question.
        Err(_) => Map::new(),
    };
    if attributes.get("fingerprint").is_some_and(Value::is_string) && output.is_file() {
        return Ok(Found::Ours(attributes));
    }
    let found = if output.is_dir() { "a folder" } else { "a file" };
    Err(Error::OutputExists { path: output.into(), found: found.into(), hint: ", and it is not microtome's" })
}

pub(super) fn write<S: ImageSink>(
    job: &Job<'_>,
    output: &Path,
    existing: Existing,
    wrap: impl Fn(ZarrImage) -> S,
) -> Result<Conversion> {
    let start = Instant::now();
    // Packing would refuse it, too, but after all the work.
    if job.options.encoding.format == Format::V0_4 && output.extension().is_some_and(|e| e.eq_ignore_ascii_case("ozx"))
    {
        let message = "an .ozx file holds OME-Zarr 0.5: call it .ome.zarr.zip, or leave out --format 0.4";
        return Err(Error::Usage(format!("{}: {message}", output.display())));
    }
    let found = inspect(output)?;
    if let (Found::Ours(attributes), false) = (&found, existing == Existing::Replace) {
        return match job.fingerprint.differences(attributes) {
            None => {
                forget(job, output)?;
                Ok(Conversion::AlreadyDone)
            }
            Some(differs) => Err(Error::DifferentRun { path: output.into(), differs }),
        };
    }
    // The run's folder would be made with all that it lies in.
    if let Some(around) = output.parent().filter(|around| *around != Path::new("")) {
        fs::metadata(around).map_err(|source| Error::Io { path: around.into(), source })?;
    }
    let run = RunFolder::of(output);
    run.create_beside_others()?;
    // Locked for as long as this process works here, also while it packs.
    let lock = File::open(run.path());
    if let Ok(folder) = &lock
        && matches!(folder.try_lock(), Err(TryLockError::WouldBlock))
    {
        return Err(Error::InUse { path: output.into() });
    }
    run.create()?;
    let store = run.path().join(store_name(output));
    let built = job.write(Stores::of(&store, &[], None).uncontested(), &store, existing, wrap);
    let mut summary = match built {
        Ok(Conversion::Done(summary)) => *summary,
        // It was stopped while it was packed.
        Ok(Conversion::AlreadyDone) => job.summary(output, job.all_read(), start),
        Err(error) => {
            // What is finished is kept for the next attempt; where nothing is, nothing is left. A folder that holds something stays.
            let _ = fs::remove_dir(run.path());
            return Err(error);
        }
    };
    if let Found::Ours(_) = found {
        fs::remove_file(output).map_err(|source| Error::Io { path: output.into(), source })?;
    }
    store::pack(&store, output).map_err(Error::Write)?;
    store::remove(&store).map_err(Error::Write)?;
    RunFolder::of(&store).remove()?;
    summary.bytes = summary::size_of(output);
    summary.set_seconds(start.elapsed().as_secs_f64());
    summary.save(&run.report())?;
    Ok(Conversion::Done(Box::new(summary)))
}

/// Removes what is left of the store that was packed, where a process was killed before it had done so. One of another run stays.
fn forget(job: &Job<'_>, output: &Path) -> Result<()> {
    let run = RunFolder::of(output);
    let store = run.path().join(store_name(output));
    let of_store = RunFolder::of(&store);
    let record = Journal::read(&of_store.journal())?;
    let header = record.as_ref().and_then(|record| record.header.as_object());
    if header.is_none_or(|header| job.fingerprint.differences(header).is_some()) {
        return Ok(());
    }
    // Whoever packs holds it.
    let lock = File::open(run.path());
    if lock.as_ref().is_ok_and(|folder| matches!(folder.try_lock(), Err(TryLockError::WouldBlock))) {
        return Ok(());
    }
    // The journal goes last: it says whose the rest is.
    store::remove(&store).map_err(Error::Write)?;
    of_store.remove()
}

/// What the store is called until it is packed.
fn store_name(output: &Path) -> OsString {
    let stem = PathBuf::from(output.file_stem().unwrap_or_default());
    let mut name = stem.clone().into_os_string();
    if stem.extension().is_none_or(|ending| ending != "zarr") {
        name.push(".ome.zarr");
    }
    name
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_archive_is_told_by_its_name() {
        assert!(is_one(Path::new("a.ome.zarr.zip")) && is_one(Path::new("a.OZX")) && is_one(Path::new("b.zip")));
        assert!(!is_one(Path::new("a.ome.zarr")) && !is_one(Path::new("zip")) && !is_one(Path::new("a.zip/b")));
        assert_eq!(store_name(Path::new("x/a.ome.zarr.zip")), "a.ome.zarr");
        assert_eq!(store_name(Path::new("a.ozx")), "a.ome.zarr");
    }
}
