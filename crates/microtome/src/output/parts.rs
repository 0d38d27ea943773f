//! Claiming a part of a place that several workers fill, and all of it when they are done.
//!
//! Nothing here needs a lock between workers: each has a journal and shards of its own, and the few files that all of them write appear whole and
//! are the same. Where the file system knows locks, one keeps a part from being computed twice at the same time, which would be a waste, and
//! another keeps everybody else away from the stores.

use std::fs::{File, OpenOptions, TryLockError};
use std::path::Path;

use microtome_io::Level;
use microtome_io::store::{self, Found};
use microtome_stitch::{Journal, Product, Record};
use serde_json::Value;

use super::{Fingerprint, RunFolder, Stores, UNREADABLE, describe};
use crate::{Error, Part, Result};

/// What became of the claim of a part.
#[derive(Debug)]
pub(crate) enum PartClaim {
    /// The whole is finished.
    Published {
        /// Tiles of the slide that could not be read.
        unreadable: u64,
    },
    /// The part was computed before, and is as it was left.
    Complete(Record),
    /// It is to be computed, but for what an earlier process has.
    Begin(PartRun),
}

/// A part that this process computes.
#[derive(Debug)]
pub(crate) struct PartRun {
    pub(crate) journal: Journal,
    /// What an earlier process has finished of it.
    pub(crate) record: Record,
    /// The journal, locked for as long as it is written.
    _lock: File,
}

/// What became of the claim of the whole.
#[derive(Debug)]
pub(crate) enum WholeClaim {
    /// It is finished.
    Published {
        /// Tiles of the slide that could not be read.
        unreadable: u64,
    },
    /// All parts are complete: this is what they have.
    Begin(Record),
}

/// How many parts two runs have, where that differs.
pub(super) fn difference(there: Option<u32>, here: Option<u32>) -> String {
    let of = |parts: Option<u32>| parts.map_or("none".into(), |parts| parts.to_string());
    format!("parts: {} there, {} here", of(there), of(here))
}

impl Stores<'_> {
    /// Takes a part, or says why that cannot be. Others may be at work on other parts.
    pub(crate) fn claim_part(&self, fingerprint: &Fingerprint, part: Part) -> Result<PartClaim> {
        let found = self.found(fingerprint)?;
        if let Some(unreadable) = published(&found) {
            return Ok(PartClaim::Published { unreadable });
        }
        let folder = RunFolder::of(&self.mask);
        self.agree(&folder, fingerprint, part.of())?;
        folder.create_beside_others()?;
        let (path, report) = (folder.journal_of(part), folder.report_of(part));
        // Of a store that somebody has removed, nothing is finished, whatever journals say.
        let gone = found.contains(&Found::Nothing);
        let mut lock = if gone { None } else { lock(&path)? };
        if lock.is_none() {
            let header = Value::Object(fingerprint.attributes());
            Journal::create(&path, &header)?;
            lock = self::lock(&path)?;
            // Another may have begun at the same moment, where this could not be seen: both have a journal now, and at least one sees the other's.
            if let Err(error) = self.agree(&folder, fingerprint, part.of()) {
                // The error that counts is the one at hand.
                let _ = std::fs::remove_file(&path);
                return Err(error);
            }
        }
        let (Some(lock), Some(record)) = (lock, Journal::read(&path)?) else {
            let source = std::io::Error::new(std::io::ErrorKind::NotFound, "somebody has removed the journal");
            return Err(Error::Io { path, source });
        };
        let finished = finest(&record);
        let record = self.intact(record)?;
        if report.is_file() {
            if !gone && finest(&record) == finished {
                return Ok(PartClaim::Complete(record));
            }
            std::fs::remove_file(&report).map_err(|source| Error::Io { path: report, source })?;
        }
        if let (true, Some(label)) = (gone, self.label) {
            // What is not there is not listed.
            label.image.unlist(label.name).map_err(Error::Write)?;
        }
        Ok(PartClaim::Begin(PartRun { journal: Journal::resume(&path, &record)?, record, _lock: lock }))
    }

    /// Takes the whole, of so many shards, if all parts are complete, or says which are not.
    pub(crate) fn claim_whole(&self, fingerprint: &Fingerprint, shards: u64) -> Result<WholeClaim> {
        let refuse = |why: String| Err(Error::Usage(format!("{}: {why}", self.mask.display())));
        let found = self.found(fingerprint)?;
        if let Some(unreadable) = published(&found) {
            return Ok(WholeClaim::Published { unreadable });
        }
        let folder = RunFolder::of(&self.mask);
        let Some(of) = folder.parts()?.first().map(|part| part.of()) else {
            return refuse("no part of it has been computed (--part I/N), so that there is nothing to finish".into());
        };
        self.agree(&folder, fingerprint, of)?;
        let parts: Vec<Part> = (0..of).map(|index| Part::new(index, of)).collect::<Result<_>>()?;
        let missing: Vec<Part> = parts.iter().copied().filter(|&part| !folder.report_of(part).is_file()).collect();
        if !missing.is_empty() {
            return refuse(format!("{} not complete", named(&missing, of)));
        }
        if found.contains(&Found::Nothing) {
            return refuse("what the parts have written is not there any more".into());
        }
        if found.contains(&Found::InUse) {
            return Err(Error::InUse { path: self.mask.clone() });
        }
        let (mut records, mut damaged) = (Vec::new(), Vec::new());
        for part in parts {
            let Some(record) = Journal::read(&folder.journal_of(part))? else {
                damaged.push(part);
                continue;
            };
            let finished = finest(&record);
            let record = self.intact(record)?;
            if finest(&record) < finished {
                damaged.push(part);
            }
            records.push(record);
        }
        if !damaged.is_empty() {
            return refuse(format!("{} damaged and to be computed again", named(&damaged, of)));
        }
        // One who was stopped while finishing has built some of what lies above.
        if let Some(record) = Journal::read(&folder.journal())? {
            records.push(self.intact(record)?);
        }
        let record = Record::together(Value::Object(fingerprint.attributes()), records);
        let known = finest(&record);
        if known != shards {
            return refuse(format!("the parts have {known} of its {shards} shards: they are to be computed again"));
        }
        for ((_, path), _) in self.all().zip(found).filter(|(_, there)| matches!(there, Found::Complete(_))) {
            store::reopen(path).map_err(Error::Write)?;
        }
        Ok(WholeClaim::Begin(record))
    }

    /// What is there, store by store, if all of it is this run's.
    fn found(&self, fingerprint: &Fingerprint) -> Result<Vec<Found>> {
        let look = |(_, path): (Product, &Path)| {
            let found = store::inspect(path).map_err(Error::Write)?;
            match &found {
                Found::Nothing | Found::Unfinished | Found::InUse => {}
                Found::Complete(attributes) => {
                    if let Some(differs) = fingerprint.differences(attributes) {
                        return Err(Error::DifferentRun { path: path.into(), differs });
                    }
                }
                _ => {
                    let hint = ", and it is not microtome's";
                    return Err(Error::OutputExists { path: path.into(), found: describe(path), hint });
                }
            }
            Ok(found)
        };
        let found: Vec<Found> = self.all().map(look).collect::<Result<_>>()?;
        // The mask is finished last.
        if let (Some(Found::Complete(_)), Some(at)) =
            (found.last(), found.iter().position(|there| !matches!(there, Found::Complete(_))))
            && let Some((_, path)) = self.all().nth(at)
        {
            let differs = format!("{} is not there any more", path.display());
            return Err(Error::DifferentRun { path: self.mask.clone(), differs });
        }
        Ok(found)
    }

    /// Refuses to share what others do in another way: as another run, in more or fewer parts, or as a whole.
    fn agree(&self, folder: &RunFolder, fingerprint: &Fingerprint, of: u32) -> Result<()> {
        let other = |differs| Err(Error::DifferentRun { path: self.mask.clone(), differs });
        let parts = folder.parts()?;
        for &part in &parts {
            if part.of() != of {
                return other(difference(Some(part.of()), Some(of)));
            }
            let record = Journal::read(&folder.journal_of(part))?;
            let header = record.as_ref().and_then(|record| record.header.as_object());
            if let Some(differs) = header.and_then(|header| fingerprint.differences(header)) {
                return other(format!("of part {part}: {differs}"));
            }
        }
        if parts.is_empty() && Journal::read(&folder.journal())?.is_some() {
            if store::inspect(&self.mask).map_err(Error::Write)? == Found::Nothing {
                let left = folder.path().display();
                return Err(Error::Usage(format!("{left}: is of a mask that is not there any more; remove it first")));
            }
            return other(difference(None, Some(of)));
        }
        Ok(())
    }
}

/// How many tiles of the slide could not be read, if all stores are finished.
fn published(found: &[Found]) -> Option<u64> {
    let unreadable = |there: &Found| match there {
        Found::Complete(attributes) => Some(attributes.get(UNREADABLE).and_then(Value::as_u64).unwrap_or(0)),
        _ => None,
    };
    found.iter().map(unreadable).collect::<Option<Vec<_>>>().and_then(|all| all.last().copied())
}

/// How many shards of level 0 a record has of the mask; of the other products there are as many.
fn finest(record: &Record) -> u64 {
    record.entries.keys().filter(|key| (key.0, key.1) == (Product::Labels, Level::FINEST)).count() as u64
}

/// Locks the journal of a part; `None` if there is none.
fn lock(path: &Path) -> Result<Option<File>> {
    let journal = match OpenOptions::new().write(true).open(path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        journal => journal.map_err(|source| Error::Io { path: path.into(), source })?,
    };
    match journal.try_lock() {
        Err(TryLockError::WouldBlock) => Err(Error::InUse { path: path.into() }),
        // Where the file system knows no locks, a part that is computed twice at once is written twice, with the same bytes.
        _ => Ok(Some(journal)),
    }
}

/// `part 1 of 4 is`, `parts 1, 3 of 4 are`.
fn named(parts: &[Part], of: u32) -> String {
    let numbers: Vec<String> = parts.iter().map(|part| part.index().to_string()).collect();
    match numbers.as_slice() {
        [number] => format!("part {number} of {of} is"),
        _ => format!("parts {} of {of} are", numbers.join(", ")),
    }
}
