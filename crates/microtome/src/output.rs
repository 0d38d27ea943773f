//! Claiming the place where a mask, or an image, is to go.

mod parts;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{File, TryLockError};
use std::hash::{BuildHasher, RandomState};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use microtome_io::store::{self, Found, Kept, LabelledImage, Survey};
use microtome_io::{Level, TileCoord, remote};
use microtome_stitch::{Entry, Journal, Product, Record};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use crate::{Error, Part, Result};

pub(crate) use parts::{PartClaim, WholeClaim};

/// What to do with an output of ours that is there already.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Existing {
    /// Keep a finished result and go on with an unfinished one, if they are of the same run; refuse those of another.
    #[default]
    Keep,
    /// The same, but begin anew where a run did not finish.
    Restart,
    /// Replace it.
    Replace,
}

/// Everything that can change a byte of the result, by name. Two runs with equal fingerprints give equal stores.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Fingerprint(Map<String, Value>);

impl Fingerprint {
    pub(crate) fn new(settings: Map<String, Value>) -> Self {
        Self(settings)
    }

    /// The root attribute `microtome` of the store: the settings, and their digest.
    pub(crate) fn attributes(&self) -> Map<String, Value> {
        let mut attributes = Map::new();
        attributes.insert("fingerprint".into(), self.digest().into());
        attributes.insert("run".into(), Value::Object(self.0.clone()));
        attributes
    }

    fn digest(&self) -> String {
        let text = Value::Object(self.0.clone()).to_string();
        Sha256::digest(text.as_bytes()).iter().map(|b| format!("{b:02x}")).collect()
    }

    /// The settings in which another run differs: `name: theirs there, ours here`.
    pub(crate) fn differences(&self, attributes: &Map<String, Value>) -> Option<String> {
        if attributes.get("fingerprint").and_then(Value::as_str) == Some(&self.digest()) {
            return None;
        }
        let empty = Map::new();
        let theirs = attributes.get("run").and_then(Value::as_object).unwrap_or(&empty);
        let names = self.0.keys().chain(theirs.keys().filter(|k| !self.0.contains_key(*k)));
        let text = |v: Option<&Value>| match v {
            None => "nothing".to_owned(),
            Some(Value::String(s)) => s.clone(),
            Some(v) => v.to_string(),
        };
        let differences: Vec<String> = names
            .filter(|name| self.0.get(*name) != theirs.get(*name))
            .map(|name| format!("{name}: {} there, {} here", text(theirs.get(name)), text(self.0.get(name))))
            .collect();
        Some(if differences.is_empty() { "its fingerprint".into() } else { differences.join("; ") })
    }
}

/// The folder beside a store for what belongs to the run and not to the result: `mask.ome.zarr.run`, and of labels in an image, beside that,
/// `slide.ome.zarr.NAME.run`. Of a store under a URL, beside which no folder can be, it lies in the [folder](remote::run_folder) of this machine
/// for such things.
#[derive(Debug, Clone)]
pub(crate) struct RunFolder(PathBuf);

impl RunFolder {
    pub(crate) fn of(store: &Path) -> Self {
        if remote::is_remote(store) {
            return Self(remote::run_folder(store));
        }
        let (outermost, inside) = outermost(store);
        let mut name = outermost.file_name().unwrap_or_default().to_os_string();
        name.push(format!("{inside}.run"));
        Self(outermost.with_file_name(name))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    pub(crate) fn journal(&self) -> PathBuf {
        self.0.join("journal.jsonl")
    }

    pub(crate) fn statistics(&self) -> PathBuf {
        self.0.join("statistics.json")
    }

    pub(crate) fn crop(&self) -> PathBuf {
        self.0.join("crop.json")
    }

    pub(crate) fn report(&self) -> PathBuf {
        self.0.join("report.json")
    }

    pub(crate) fn page(&self) -> PathBuf {
        self.0.join("report.html")
    }

    pub(crate) fn roi(&self) -> PathBuf {
        self.0.join("roi.png")
    }

    /// Makes the folder if it is not there, so that it stays, and takes away what a process that was killed did not get to rename.
    pub(crate) fn create(&self) -> Result<()> {
        self.create_beside_others()?;
        self.tidy().map_err(|source| Error::Io { path: self.0.clone(), source })
    }

    /// Makes the folder if it is not there, so that it stays. Others may be writing in it.
    pub(crate) fn create_beside_others(&self) -> Result<()> {
        std::fs::create_dir_all(&self.0).map_err(|source| Error::Io { path: self.0.clone(), source })?;
        if let Some(parent) = self.0.parent() {
            let parent = if parent == Path::new("") { Path::new(".") } else { parent };
            // The name must survive a crash of the machine; systems that cannot open folders have no such need.
            let _ = File::open(parent).and_then(|folder| folder.sync_all());
        }
        Ok(())
    }

    /// The journal of one who computes a part of the run.
    pub(crate) fn journal_of(&self, part: Part) -> PathBuf {
        self.0.join(format!("part-{}-of-{}.jsonl", part.index(), part.of()))
    }

    /// What one who has computed a part says of it, once it is complete.
    pub(crate) fn report_of(&self, part: Part) -> PathBuf {
        self.0.join(format!("part-{}-of-{}.json", part.index(), part.of()))
    }

    /// Journals and reports of parts.
    fn files_of_parts(&self) -> Result<Vec<PathBuf>> {
        let io = |source| Error::Io { path: self.0.clone(), source };
        let entries = match std::fs::read_dir(&self.0) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(io)?,
        };
        let mut files = Vec::new();
        for entry in entries {
            let path = entry.map_err(io)?.path();
            if part_of(&path).is_some() {
                files.push(path);
            }
        }
        files.sort();
        Ok(files)
    }

    /// The parts that somebody has begun.
    pub(crate) fn parts(&self) -> Result<Vec<Part>> {
        let journals = self.files_of_parts()?.into_iter().filter(|path| path.extension().is_some_and(|e| e == "jsonl"));
        let mut parts: Vec<Part> = journals.filter_map(|path| part_of(&path)).collect();
        parts.sort_unstable();
        Ok(parts)
    }

    /// Removes what those who computed parts have left, once it is in the journal of the run.
    pub(crate) fn forget_parts(&self) -> Result<()> {
        for path in self.files_of_parts()? {
            std::fs::remove_file(&path).map_err(|source| Error::Io { path, source })?;
        }
        Ok(())
    }

    /// Removes files that a process was killed over while it wrote them, where others may be writing: those that nobody has touched for an hour.
    pub(crate) fn tidy_old(&self) {
        tidy_old(&self.0, "");
    }

    /// What runs leave in the folder.
    fn files(&self) -> [PathBuf; 6] {
        [self.journal(), self.crop(), self.statistics(), self.report(), self.page(), self.roi()]
    }

    /// Removes half-written files: nobody else is writing here.
    fn tidy(&self) -> std::io::Result<()> {
        for entry in std::fs::read_dir(&self.0)? {
            let path = entry?.path();
            // NAME.PROCESS.part, as `put_with` calls them.
            let process = path.extension().filter(|e| *e == PARTIAL).and(path.file_stem()).map(Path::new);
            let name = process.filter(|p| p.extension().is_some()).map(|p| path.with_file_name(p).with_extension(""));
            if name.is_some_and(|name| self.files().contains(&name) || part_of(&name).is_some()) {
                std::fs::remove_file(&path)?;
            }
        }
        Ok(())
    }

    /// True unless something else has the folder's name, or the journal's.
    fn is_ours(&self) -> Result<bool> {
        if !self.0.is_dir() {
            return Ok(!self.0.exists());
        }
        let record = Journal::read(&self.journal())?;
        Ok(record.is_none_or(|record| record.header["fingerprint"].is_string()))
    }

    /// Removes what runs leave in it, and the folder if nothing else is there.
    pub(crate) fn remove(&self) -> Result<()> {
        if !self.is_ours()? {
            let hint = ", and it is not of a run of microtome's, which would use that name";
            return Err(Error::OutputExists { path: self.0.clone(), found: describe(&self.0), hint });
        }
        let absent_is_fine = |result: std::io::Result<()>, path: &Path| match result {
            Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
                Err(Error::Io { path: path.into(), source })
            }
            _ => Ok(()),
        };
        absent_is_fine(self.tidy(), &self.0)?;
        for file in self.files().into_iter().chain(self.files_of_parts()?) {
            absent_is_fine(std::fs::remove_file(&file), &file)?;
        }
        match std::fs::remove_dir(&self.0) {
            // Somebody keeps something there.
            Err(e) if e.kind() == std::io::ErrorKind::DirectoryNotEmpty => Ok(()),
            result => absent_is_fine(result, &self.0),
        }
    }
}

/// The part that a file is of, by its name: `part-0-of-4.jsonl`, or `.json`.
fn part_of(path: &Path) -> Option<Part> {
    let name = path.file_name()?.to_str()?;
    let name = name.strip_suffix(".jsonl").or_else(|| name.strip_suffix(".json"))?;
    let (index, of) = name.strip_prefix("part-")?.split_once("-of-")?;
    let part = Part::new(index.parse().ok()?, of.parse().ok()?).ok()?;
    // As we write it: no `+4`, no `04`.
    (name == format!("part-{}-of-{}", part.index(), part.of())).then_some(part)
}

/// Writes a small file that appears whole.
pub(crate) fn put(path: &Path, bytes: &[u8]) -> Result<()> {
    put_with(path, |mut file| file.write_all(bytes)).map_err(|source| Error::Io { path: path.into(), source })
}

/// How names of half-written files end.
const PARTIAL: &str = "part";

/// Writes a file that appears whole, also where the machine crashes.
pub(crate) fn put_with(path: &Path, write: impl FnOnce(&File) -> std::io::Result<()>) -> std::io::Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    // Those who share a run write some of its files at the same time, all of them the same, and on different machines they may have the same
    // number.
    let token = RandomState::new().hash_one(path);
    name.push(format!(".{}-{token:016x}.{PARTIAL}", std::process::id()));
    put_under(&path.with_file_name(name), path, write)
}

/// The same, under this name until it is whole.
pub(crate) fn put_under(
    partial: &Path,
    path: &Path,
    write: impl FnOnce(&File) -> std::io::Result<()>,
) -> std::io::Result<()> {
    let written = File::create(partial)
        .and_then(|file| write(&file).and_then(|()| file.sync_all()))
        .and_then(|()| std::fs::rename(partial, path));
    if written.is_err() {
        // Best effort: the error that counts is the one at hand.
        let _ = std::fs::remove_file(partial);
    }
    written
}

/// The outermost store in which a store of ours lies, and the names from there to it, a dot before each. Only labels lie in another store: in the folder `labels` of
/// their image, which may be one of several in a collection.
fn outermost(store: &Path) -> (PathBuf, String) {
    let alone = || (store.to_owned(), String::new());
    let is_node = |path: &Path| ["zarr.json", ".zattrs", ".zgroup"].iter().any(|name| path.join(name).is_file());
    let Some(name) = store.file_name().map(|name| name.to_string_lossy().into_owned()) else { return alone() };
    let Some(image) = store.parent().filter(|p| p.file_name().is_some_and(|n| n == "labels")).and_then(Path::parent)
    else {
        return alone();
    };
    // `labels/nuclei` does not say what the image is called, and however a path is spelt, the run is the same.
    let image = std::fs::canonicalize(if image == Path::new("") { Path::new(".") } else { image });
    let Some(mut outermost) = image.ok().filter(|image| is_node(image)) else { return alone() };
    let mut inside = format!(".{name}");
    while let (Some(name), Some(parent)) = (outermost.file_name(), outermost.parent().filter(|parent| is_node(parent)))
    {
        if parent.file_name().is_none() {
            break;
        }
        inside.insert_str(0, &format!(".{}", name.to_string_lossy()));
        outermost = parent.to_owned();
    }
    (outermost, inside)
}

/// Labels in an image: the image, and what they are called there.
#[derive(Debug, Clone, Copy)]
pub(crate) struct LabelOf<'a> {
    pub(crate) image: &'a LabelledImage,
    pub(crate) name: &'a str,
}

/// The stores of a run, in the order in which they are finished: the mask comes last, so that where it is there, everything is.
#[derive(Debug, Clone)]
pub(crate) struct Stores<'a> {
    mask: PathBuf,
    extras: Vec<(Product, PathBuf)>,
    /// If the mask lies in an image.
    label: Option<LabelOf<'a>>,
    /// Whether others may want the same place: not where the caller has locked the folder around it.
    contested: bool,
}

/// Held while a process finds out whether a place is free and makes it its own, or clears what it has left there: of several that start at
/// once in one folder, the others wait, and those for the same place then find it taken.
///
/// It is a lock on the folder in which the output lies, which the system lets go of however the process ends, and not one on the store: that
/// says nothing before it exists, nor of the folder of the run. Where folders cannot be locked, or somebody else has locked this one for longer
/// than [`Starting::PATIENCE`], only the marker of the store decides.
#[derive(Debug)]
pub(crate) struct Starting {
    _folder: Option<File>,
}

impl Starting {
    /// How long others are waited for: longer than any takes to begin, unless it looks through what an earlier run has written.
    const PATIENCE: Duration = Duration::from_secs(5);

    fn lock(folder: &Path) -> Option<File> {
        let (folder, begun) = (File::open(folder).ok()?, Instant::now());
        loop {
            match folder.try_lock() {
                Ok(()) => return Some(folder),
                Err(TryLockError::WouldBlock) if begun.elapsed() < Self::PATIENCE => {
                    std::thread::sleep(Duration::from_millis(2));
                }
                Err(_) => return None,
            }
        }
    }
}

impl<'a> Stores<'a> {
    pub(crate) fn of(mask: &Path, products: &[Product], label: Option<LabelOf<'a>>) -> Self {
        let extras = products.iter().filter(|&&p| p != Product::Labels).map(|&p| (p, store_of(mask, p))).collect();
        Self { mask: mask.into(), extras, label, contested: true }
    }

    /// The same, where the caller holds a lock on the folder around them.
    pub(crate) fn uncontested(self) -> Self {
        Self { contested: false, ..self }
    }

    /// Waits for others that are just starting at the same place.
    pub(crate) fn starting(&self) -> Starting {
        let run = RunFolder::of(&self.mask);
        let around = run.path().parent().map(|folder| if folder == Path::new("") { Path::new(".") } else { folder });
        if let (Some(around), true) = (around, remote::is_remote(&self.mask)) {
            // Nobody has made it yet. Where it cannot be made, the run's own folder will say so.
            let _ = std::fs::create_dir_all(around);
        }
        Starting { _folder: around.filter(|_| self.contested).and_then(Starting::lock) }
    }

    pub(crate) fn all(&self) -> impl Iterator<Item = (Product, &Path)> {
        let extras = self.extras.iter().map(|(product, path)| (*product, path.as_path()));
        extras.chain([(Product::Labels, self.mask.as_path())])
    }

    /// Removes what a run has left that failed, unless something is finished, which is kept for the next attempt.
    pub(crate) fn remove_unless_begun(&self) {
        let _starting = self.starting();
        let folder = RunFolder::of(&self.mask);
        // What cannot be read now may be all of the work.
        let kept =
            Journal::read(&folder.journal()).map_or(true, |record| record.is_some_and(|r| !r.entries.is_empty()));
        let found: Vec<_> = self.all().map(|(_, path)| (path, store::inspect(path))).collect();
        // Where another process was faster, all of it is that one's.
        if kept || found.iter().any(|(_, found)| matches!(found, Ok(Found::InUse))) {
            return;
        }
        for (path, _) in found.iter().filter(|(_, found)| matches!(found, Ok(Found::Unfinished))) {
            // The error that counts is the run's. A store that cannot be removed may be somebody's, and so is what belongs to its run.
            if store::remove(path).is_err() {
                return;
            }
        }
        let _ = folder.remove();
        if let Some(label) = self.label {
            label.image.remove_empty_folder();
        }
    }

    /// Makes room, or says why that cannot be.
    pub(crate) fn claim(&self, fingerprint: &Fingerprint, existing: Existing) -> Result<Claim> {
        let other = |path: &Path, differs| Err(Error::DifferentRun { path: path.into(), differs });
        // Nothing is touched before all that is there has been looked at.
        let mut found = Vec::new();
        for (product, path) in self.all() {
            let there = store::inspect(path).map_err(Error::Write)?;
            match &there {
                Found::Nothing | Found::Unfinished => {}
                Found::InUse => return Err(Error::InUse { path: path.into() }),
                Found::Complete(_) | Found::Elsewhere if existing == Existing::Replace => {}
                Found::Elsewhere => return Err(Error::Elsewhere { path: path.into() }),
                Found::Complete(attributes) => {
                    if let Some(differs) = fingerprint.differences(attributes) {
                        return other(path, differs);
                    }
                }
                _ => {
                    let hint = ", and it is not microtome's";
                    return Err(Error::OutputExists { path: path.into(), found: describe(path), hint });
                }
            }
            found.push((product, path, there));
        }
        let Some((_, _, mask)) = found.last() else { unreachable!("there is always a mask") };
        if existing == Existing::Keep
            && !matches!(mask, Found::Complete(_))
            && let Some(part) = RunFolder::of(&self.mask).parts()?.first()
        {
            return other(&self.mask, parts::difference(Some(part.of()), None));
        }
        match mask {
            _ if existing == Existing::Replace => self.free(),
            Found::Complete(attributes) => {
                match found.iter().find(|(.., there)| !matches!(there, Found::Complete(_))) {
                    None => {
                        Ok(Claim::Done { unreadable: attributes.get(UNREADABLE).and_then(Value::as_u64).unwrap_or(0) })
                    }
                    Some((_, path, _)) => other(&self.mask, format!("{} is not there any more", path.display())),
                }
            }
            Found::Unfinished => {
                let Some(record) = Journal::read(&RunFolder::of(&self.mask).journal())? else { return self.free() };
                if let Some(differs) = record.header.as_object().and_then(|header| fingerprint.differences(header)) {
                    return other(&self.mask, differs);
                }
                if existing == Existing::Restart || found.iter().any(|(.., there)| *there == Found::Nothing) {
                    return self.free();
                }
                for (_, path, _) in found.iter().filter(|(.., there)| matches!(there, Found::Complete(_))) {
                    store::reopen(path).map_err(Error::Write)?;
                }
                Ok(Claim::Resume(self.intact(record)?))
            }
            _ => self.free(),
        }
    }

    fn free(&self) -> Result<Claim> {
        // What is not there, or not finished, is not listed.
        if let Some(label) = self.label {
            label.image.unlist(label.name).map_err(Error::Write)?;
        }
        for (_, path) in self.all() {
            if let Err(error) = store::remove(path) {
                // One that is not removed, because it holds what is not ours, stays what it was.
                if let (Some(label), Ok(Found::Complete(_))) = (self.label, store::inspect(&self.mask)) {
                    label.image.list(label.name).map_err(Error::Write)?;
                }
                return Err(Error::Write(error));
            }
        }
        RunFolder::of(&self.mask).remove()?;
        Ok(Claim::Free)
    }

    /// The record less the shards whose files are not what the journal says: those are computed again.
    fn intact(&self, mut record: Record) -> Result<Record> {
        let mut lost = BTreeSet::new();
        // A journal is a file, too: no image has so many levels.
        record.entries.retain(|(_, level, _), _| level.0 < 64);
        let mut surveys = BTreeMap::new();
        for (product, path) in self.all() {
            surveys.insert(product, Survey::new(path).map_err(Error::Write)?);
        }
        for (&(product, level, shard), entry) in &record.entries {
            let kept = match surveys.get_mut(&product) {
                None => false,
                Some(survey) => match survey.shard(level, shard).map_err(Error::Write)? {
                    Kept::Read(stored) => Entry::new(level, shard, stored, Vec::new()).sha256 == entry.sha256,
                    Kept::Seen { any } => any == entry.sha256.is_some(),
                },
            };
            if !kept {
                lost.insert((product, level, shard));
            }
        }
        // A place of level 0 is computed as a whole: all products, or none.
        let places: BTreeSet<TileCoord> = record.entries.keys().filter(|k| k.1 == Level::FINEST).map(|k| k.2).collect();
        for at in places {
            let gone = |product| {
                let key = (product, Level::FINEST, at);
                lost.contains(&key) || !record.entries.contains_key(&key)
            };
            if self.all().any(|(product, _)| gone(product)) {
                lost.extend(self.all().map(|(product, _)| (product, Level::FINEST, at)));
            }
        }
        let levels = record.entries.keys().map(|key| key.1.0).max().unwrap_or(0);
        for (product, level, shard) in lost {
            // What was built from it is built again with it: a shard above cannot be completed twice otherwise.
            for above in 0..=levels.saturating_sub(level.0) {
                let at = TileCoord { row: shard.row >> above, column: shard.column >> above };
                record.entries.remove(&(product, Level(level.0 + above), at));
            }
        }
        Ok(record)
    }
}

/// The note in the root attribute `microtome` that says how many tiles of the slide could not be read.
pub(crate) const UNREADABLE: &str = "unreadable_tiles";

/// Where a product goes that belongs to a mask: `mask.probabilities.ome.zarr` beside `mask.ome.zarr`; where the mask is the label `NAME` in an image,
/// `slide.NAME.probabilities.ome.zarr` beside `slide.ome.zarr`.
#[must_use]
pub fn store_of(mask: &Path, product: Product) -> PathBuf {
    let name = match product {
        Product::Labels => return mask.into(),
        Product::Probabilities => "probabilities",
        Product::Confidence => "confidence",
    };
    let (outermost, inside) = outermost(mask);
    let file = outermost.file_name().unwrap_or_default().to_string_lossy();
    let ending = [".ome.zarr", ".zarr"].into_iter().find(|ending| file.ends_with(ending)).unwrap_or_default();
    outermost.with_file_name(format!("{}{inside}.{name}{ending}", &file[..file.len() - ending.len()]))
}

/// What became of a claim.
#[derive(Debug, PartialEq)]
pub(crate) enum Claim {
    /// The place is free: begin.
    Free,
    /// The same run was stopped there: go on behind what it has finished.
    Resume(Record),
    /// The same run has finished there before.
    Done {
        /// Tiles of the slide that it could not read.
        unreadable: u64,
    },
}

/// Where a run keeps its journal, its reports and what else belongs to it and not to its result: `OUTPUT.run` beside the output, or, of one under a URL, a
/// folder of this machine ([`remote::run_folder`]).
#[must_use]
pub fn run_folder(output: &Path) -> PathBuf {
    RunFolder::of(output).0
}

fn describe(path: &Path) -> String {
    if remote::is_remote(path) {
        return "something".into();
    }
    if path.is_dir() { "a folder".into() } else { "a file".into() }
}

/// Removes half-written files of a folder whose names begin so, and that nobody has touched for an hour: their process was killed.
pub(crate) fn tidy_old(folder: &Path, begin: &str) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let modified = entry.metadata().and_then(|metadata| metadata.modified());
        let is_old = modified.is_ok_and(|at| at.elapsed().is_ok_and(|age| age > Duration::from_hours(1)));
        let path = entry.path();
        let is_partial = path.extension().is_some_and(|ending| ending == PARTIAL);
        if is_old && is_partial && entry.file_name().to_string_lossy().starts_with(begin) {
            // What cannot be removed takes room and does no other harm.
            let _ = std::fs::remove_file(path);
        }
    }
}
