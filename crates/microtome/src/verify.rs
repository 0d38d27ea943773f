//! Are the bytes of a store still those that were written?

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use microtome_io::store::{self, Found, StoredShards};
use microtome_io::{Level, TileCoord};
use microtome_stitch::{Entry, Journal, Product};
use rayon::prelude::*;
use serde::Serialize;

use crate::output::{RunFolder, store_of};
use crate::{Error, Result};

/// Pieces of an object store that are asked for at once: a thread mostly waits there.
const AT_ONCE: usize = 16;

/// How many threads look through what lies at a path; 0: as many as there are cores.
pub(crate) fn threads_for(path: &Path) -> usize {
    if microtome_io::remote::is_remote(path) { AT_ONCE } else { 0 }
}

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Verification {
    /// Shards whose bytes are those of the journal.
    pub intact: u64,
    /// Shards that are all background and have no file, as the journal says.
    pub background: u64,
    /// A sentence for each shard that is missing, changed, or should not be there.
    pub faults: Vec<String>,
    /// True if the run that wrote the store did not finish.
    pub unfinished: bool,
}

/// Reads every shard of a mask, and of the probabilities and the confidence that were written with it, or of a converted image, and compares its digest (the
/// SHA-256 of its file, or in version 0.4 of OME-Zarr one over the files of its chunks) with the journal in the [folder of the run](crate::run_folder).
///
/// # Errors
/// [`Error::Usage`] if there is no store of ours or no journal beside it, [`Error::Read`] or [`Error::Io`] if a file cannot be read.
pub fn verify(path: &Path) -> Result<Verification> {
    let unfinished = match store::inspect(path).map_err(Error::Read)? {
        Found::Complete(_) => false,
        Found::Unfinished => true,
        Found::InUse => return Err(Error::InUse { path: path.into() }),
        Found::Elsewhere => return Err(Error::Elsewhere { path: path.into() }),
        _ => {
            let message = "this is no store of microtome's in a folder, with which a journal is kept";
            return Err(Error::Usage(format!("{}: {message}", path.display())));
        }
    };
    let journal = RunFolder::of(path).journal();
    let Some(record) = Journal::read(&journal)? else {
        return Err(Error::Usage(format!("{}: there is no journal to compare with", journal.display())));
    };
    let products: BTreeSet<Product> = record.entries.keys().map(|key| key.0).collect();
    let open = |product| Ok((product, StoredShards::new(store_of(path, product)).map_err(Error::Read)?));
    let stores: BTreeMap<_, _> = products.into_iter().map(open).collect::<Result<_>>()?;
    let keys: Vec<_> = record.entries.keys().collect();
    let of = |&&(product, level, shard): &&(Product, Level, TileCoord)| stores[&product].shard(level, shard);
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads_for(path)).build();
    let pool = pool.map_err(|error| Error::Usage(format!("threads cannot be started: {error}")))?;
    let stored = pool.install(|| keys.par_iter().map(of).collect::<Result<Vec<_>, _>>()).map_err(Error::Read)?;
    let mut found = Verification { unfinished, ..Verification::default() };
    for ((&(product, level, shard), entry), stored) in record.entries.iter().zip(stored) {
        let store = store_of(path, product);
        let stored = Entry::new(level, shard, stored, Vec::new());
        let fault = match (&entry.sha256, &stored.sha256) {
            (Some(a), Some(b)) if a == b => {
                found.intact += 1;
                continue;
            }
            (None, None) => {
                found.background += 1;
                continue;
            }
            (Some(_), Some(_)) => "the file has changed",
            (Some(_), None) => "the file is missing",
            (None, Some(_)) => "there should be no file",
        };
        let name = store.file_name().unwrap_or_default().to_string_lossy();
        found.faults.push(format!("{name}, level {level}, shard {shard}: {fault}"));
    }
    Ok(found)
}
