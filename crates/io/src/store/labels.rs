//! Labels in the store of their image: the group `labels`, what it lists, and where a new label goes.
//!
//! An image's labels are the groups `labels/NAME`, and `labels` lists their names
//! (<https://ngff.openmicroscopy.org/0.5/#labels-md>). A label is a store of its own, written by [`ZarrImage`](super::ZarrImage); listing it is the last
//! thing that is done, so that whoever goes by the list finds whole labels only. The list is read, changed and written again under a lock, and what
//! else its document holds is kept.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use super::entries::{Entries, FolderEntries, join};
use super::found::{MARKER, METADATA, METADATA_LIMIT};
use super::multiscale::Multiscale;
use super::node::Node;
use super::{AxisUnit, Content, Format, Translation, folder, ngff};
use crate::{Error, Microns, Result, Size};

/// The group of an image's labels.
const LABELS: &str = "labels";
/// Locked while the list is changed.
pub(super) const LOCK: &str = ".microtome-lock";
/// The longest name of a label, in bytes: the longest that file systems take, less what temporary files and the folder of a run add.
const MAX_NAME: usize = 200;

/// A finished OME-Zarr image in a folder, version 0.5 or 0.4, whoever wrote it, into which labels can be put.
#[derive(Debug, Clone)]
pub struct LabelledImage {
    path: PathBuf,
    format: Format,
    levels: usize,
    size: Size,
    pixel: Microns,
    translation: Translation,
    unit: AxisUnit,
}

impl LabelledImage {
    /// Opens the image at `path`.
    ///
    /// # Errors
    /// [`Error::Usage`] for an image that is being written, or whose labels would not be found; [`Error::Format`] or [`Error::Unsupported`] for
    /// anything but an image in a folder, and where its labels cannot be understood; [`Error::Io`] if it cannot be read.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        if crate::remote::is_remote(path) {
            return Err(Error::unsupported(
                path,
                "labels are put into an OME-Zarr image in a folder only, not in an object store",
            ));
        }
        if !fs::metadata(path).map_err(|e| Error::io(path, e))?.is_dir() {
            return Err(Error::unsupported(
                path,
                "this is no folder, and labels are put into an OME-Zarr image in a folder only",
            ));
        }
        if fs::symlink_metadata(path.join(MARKER)).is_ok() {
            return Err(Error::usage(
                path,
                "this image is not finished: it is being written, or its writing was stopped",
            ));
        }
        let entries = FolderEntries::open(path)?;
        let Some(mut node) = Node::read(&entries, "")? else {
            return Err(Error::unsupported(path, "there is no OME-Zarr image here"));
        };
        if node.is_array {
            return Err(Error::unsupported(path, "this is a Zarr array, and no OME-Zarr image"));
        }
        let zarr = node.format;
        let ome = node.ome();
        if ome.get("multiscales").is_none() && ome.get("bioformats2raw.layout").is_some() {
            let first = path.join("0");
            return Err(Error::unsupported(
                path,
                format!("this is a collection of images: name one of them, such as {}", first.display()),
            ));
        }
        let multiscale = Multiscale::parse(&node, ome, Value::Null)?;
        let format = match (multiscale.version.as_str(), zarr) {
            ("0.5", 3) => Format::V0_5,
            ("0.4", 2) => Format::V0_4,
            (version, zarr) => {
                let message = format!(
                    "this is OME-Zarr {version} in Zarr {zarr}; labels are put into 0.4 (Zarr 2) and 0.5 (Zarr 3) only"
                );
                return Err(Error::unsupported(path, message));
            }
        };
        if let Content::Labels { .. } = multiscale.content {
            return Err(Error::unsupported(path, "this is a label image, and no image that could have labels"));
        }
        let (finest, place) = &multiscale.datasets[0];
        let size = multiscale.axes.plane(&shape(&entries, finest, format, multiscale.axes.names.len())?);
        let (pixel, translation, unit) = place.in_units();
        let image =
            Self { path: path.into(), format, levels: multiscale.datasets.len(), size, pixel, translation, unit };
        image.check(&entries)?;
        Ok(image)
    }

    /// Refuses what would keep a label from being listed, before anybody works for it.
    fn check(&self, entries: &FolderEntries) -> Result<()> {
        let labels = self.path.join(LABELS);
        match fs::symlink_metadata(&labels) {
            Err(e) if e.kind() == ErrorKind::NotFound => {}
            Ok(m) if m.is_dir() => {}
            Ok(_) => return Err(Error::format(&labels, "this is no folder, so that no labels can be put into it")),
            Err(e) => return Err(Error::io(&labels, e)),
        }
        if let Some(node) = Node::read(entries, LABELS)? {
            let zarr = match self.format {
                Format::V0_5 => 3,
                Format::V0_4 => 2,
            };
            if node.is_array || node.format != zarr {
                return Err(Error::format(
                    &node.path,
                    format!("the labels are no group of Zarr {zarr}, as the image is"),
                ));
            }
        }
        names(&mut self.read_list()?.unwrap_or_default(), self.format)
            .map_err(|message| Error::format(self.list_file(), message))?;
        match self.format {
            // Zarr 3 has no specification of it. A reader that goes by it would not see the labels, and were it changed, the image would
            // not be the same file any more.
            Format::V0_5
                if !read_document(&self.path.join(METADATA))?.unwrap_or_default()["consolidated_metadata"]
                    .is_null() =>
            {
                Err(Error::usage(
                    self.path.join(METADATA),
                    "the image has consolidated metadata (`consolidated_metadata`), by which readers would not find new labels: remove that key first",
                ))
            }
            Format::V0_5 => Ok(()),
            Format::V0_4 => {
                let file = self.consolidated();
                match read_document(&file)? {
                    Some(document) if !document["metadata"].is_object() => {
                        Err(Error::format(file, "these are no consolidated metadata of Zarr 2"))
                    }
                    _ => Ok(()),
                }
            }
        }
    }

    /// The folder of the image, as it was given.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The version of the image, and so of its labels.
    #[must_use]
    pub fn format(&self) -> Format {
        self.format
    }

    /// How many levels the image has.
    #[must_use]
    pub fn levels(&self) -> usize {
        self.levels
    }

    /// Pixels of the finest level.
    #[must_use]
    pub fn size(&self) -> Size {
        self.size
    }

    /// The extent of a pixel of the finest level, in [units](Self::unit) of the image.
    #[must_use]
    pub fn pixel(&self) -> Microns {
        self.pixel
    }

    /// Where the centre of the finest level's first pixel lies, in [units](Self::unit) of the image.
    #[must_use]
    pub fn translation(&self) -> Translation {
        self.translation
    }

    /// In what the image measures.
    #[must_use]
    pub fn unit(&self) -> AxisUnit {
        self.unit
    }

    /// The folder of a label.
    ///
    /// # Errors
    /// [`Error::Usage`] for a name that could not be that of a group, and if a symbolic link is in its place.
    pub fn label(&self, name: &str) -> Result<PathBuf> {
        if let Some(fault) = fault_of_name(name) {
            return Err(Error::usage(&self.path, format!("a label cannot be called {name:?}: {fault}")));
        }
        let path = self.path.join(LABELS).join(name);
        if path.is_symlink() {
            return Err(Error::usage(path, "this is a symbolic link, and labels are written into the image only"));
        }
        Ok(path)
    }

    /// Makes the folder in which labels lie, if it is not there.
    ///
    /// # Errors
    /// [`Error::Io`] if it cannot be made.
    pub fn make_folder(&self) -> Result<()> {
        let labels = self.path.join(LABELS);
        match fs::create_dir(&labels) {
            Ok(()) => folder::sync_folder(&self.path),
            Err(e) if e.kind() == ErrorKind::AlreadyExists => Ok(()),
            Err(e) => Err(Error::io(&labels, e)),
        }
    }

    /// Removes the folder in which labels lie, if there is nothing in it.
    pub fn remove_empty_folder(&self) {
        // A folder with anything in it stays, and so does one that cannot be removed: it harms nobody.
        let _ = fs::remove_dir(self.path.join(LABELS));
    }

    /// Lists a finished label, last of all. Nothing changes if it is listed already.
    ///
    /// # Errors
    /// [`Error::Format`] if the list cannot be understood, [`Error::Io`] if it cannot be written.
    pub fn list(&self, name: &str) -> Result<()> {
        let listed = self.read_list()?.is_some_and(|mut document| {
            names(&mut document, self.format).is_ok_and(|names| names.iter().any(|known| known == name))
        });
        // A lock that somebody could not remove goes with the next one.
        if listed && !self.consolidated().exists() && !self.path.join(LABELS).join(LOCK).exists() {
            return Ok(());
        }
        self.make_folder()?;
        let _lock = Lock::take(&self.path.join(LABELS))?;
        if self.format == Format::V0_4 {
            let group = self.path.join(LABELS).join(".zgroup");
            if !group.exists() {
                put(&group, &json!({ "zarr_format": 2 }))?;
            }
        }
        self.change(|names| {
            let new = !names.iter().any(|known| known == name);
            if new {
                names.push(name.into());
            }
            new
        })?;
        self.consolidate(name, Listed::Yes)
    }

    /// Takes a label off the list, before it is removed. Nothing changes if it is not listed.
    ///
    /// # Errors
    /// As [`list`](Self::list).
    pub fn unlist(&self, name: &str) -> Result<()> {
        if !self.path.join(LABELS).is_dir() {
            return Ok(());
        }
        let _lock = Lock::take(&self.path.join(LABELS))?;
        self.change(|names| {
            let before = names.len();
            names.retain(|known| known != name);
            names.len() < before
        })?;
        self.consolidate(name, Listed::No)
    }

    /// The document that holds the list.
    fn list_file(&self) -> PathBuf {
        self.path.join(LABELS).join(match self.format {
            Format::V0_5 => METADATA,
            Format::V0_4 => ".zattrs",
        })
    }

    fn read_list(&self) -> Result<Option<Value>> {
        read_document(&self.list_file())
    }

    /// Changes the list, if `change` says that it did.
    fn change(&self, change: impl FnOnce(&mut Vec<Value>) -> bool) -> Result<()> {
        let file = self.list_file();
        let new = || match self.format {
            Format::V0_5 => ngff::group(json!({ "ome": { "version": self.format.version() } })),
            Format::V0_4 => json!({}),
        };
        let mut document = self.read_list()?.unwrap_or_else(new);
        let changed = names(&mut document, self.format).map(change).map_err(|message| Error::format(&file, message))?;
        if changed { put(&file, &document) } else { Ok(()) }
    }

    fn consolidated(&self) -> PathBuf {
        self.path.join(".zmetadata")
    }

    /// Tells the consolidated metadata of an image of Zarr 2 of a label, if it has any: who reads them reads no others.
    fn consolidate(&self, name: &str, listed: Listed) -> Result<()> {
        let file = self.consolidated();
        if self.format == Format::V0_5 {
            return Ok(());
        }
        let Some(mut document) = read_document(&file)? else { return Ok(()) };
        let Some(all) = document.get_mut("metadata").and_then(Value::as_object_mut) else {
            return Err(Error::format(file, "these are no consolidated metadata of Zarr 2"));
        };
        let before = all.clone();
        let label = format!("{LABELS}/{name}/");
        all.retain(|key, _| !key.starts_with(&label));
        let mut keys = [".zgroup", ".zattrs"].map(|name| join(LABELS, name)).to_vec();
        if listed == Listed::Yes {
            keys.extend([".zgroup", ".zattrs"].map(|name| format!("{label}{name}")));
            let levels = (0..).map(|level| format!("{label}{level}/"));
            let levels = levels.take_while(|level| self.path.join(level).join(".zarray").exists());
            keys.extend(levels.flat_map(|level| [".zarray", ".zattrs"].map(|name| format!("{level}{name}"))));
        }
        for key in keys {
            if let Some(document) = read_document(&self.path.join(&key))? {
                all.insert(key, document);
            }
        }
        if *all == before { Ok(()) } else { put(&file, &document) }
    }
}

/// Whether a label is to be found in the list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Listed {
    Yes,
    No,
}

/// Why a label cannot have a name, if it cannot: it is a folder on any system, and a node of Zarr.
fn fault_of_name(name: &str) -> Option<&'static str> {
    if name.is_empty() {
        Some("that is no name")
    } else if name.len() > MAX_NAME {
        Some("that is too long")
    } else if name.contains(['/', '\\', ':']) || name.chars().any(char::is_control) {
        Some("names have no slash, backslash, colon or control character")
    } else if name.starts_with('.') || name.starts_with("__") {
        Some("names that begin with a dot or two underscores mean something else")
    } else if name == METADATA {
        Some("that is the name of the group's metadata")
    } else if name.ends_with([' ', '.']) {
        Some("names do not end in a space or a dot")
    } else {
        None
    }
}

/// The names that a group's document lists, an empty list if there is none yet; a sentence where something else is in its place.
fn names(document: &mut Value, format: Format) -> Result<&mut Vec<Value>, String> {
    let object = |value: &mut Value| -> Result<(), String> {
        if value.is_null() {
            *value = Value::Object(Map::new());
        }
        if value.is_object() {
            Ok(())
        } else {
            Err("there is something else where the list of labels should be".into())
        }
    };
    object(document)?;
    let place = match format {
        Format::V0_4 => document,
        Format::V0_5 => {
            let attributes = &mut document["attributes"];
            object(attributes)?;
            let ome = &mut attributes["ome"];
            if ome.is_null() {
                *ome = json!({ "version": format.version() });
            }
            object(ome)?;
            ome
        }
    };
    let list = &mut place[LABELS];
    if list.is_null() {
        *list = Value::Array(Vec::new());
    }
    match list {
        Value::Array(names) if names.iter().all(Value::is_string) => Ok(names),
        _ => Err("the list of labels is no list of names".into()),
    }
}

/// The shape of a level's array.
fn shape(entries: &FolderEntries, level: &str, format: Format, axes: usize) -> Result<Vec<u64>> {
    let key = join(
        level,
        match format {
            Format::V0_5 => METADATA,
            Format::V0_4 => ".zarray",
        },
    );
    let format = |message: String| Error::format(entries.name(&key), message);
    let Some(bytes) = entries.get(&key, METADATA_LIMIT)? else {
        return Err(format("the image's finest level is not there".into()));
    };
    let document: Value = serde_json::from_slice(&bytes).map_err(|e| format(e.to_string()))?;
    let shape: Vec<u64> = serde_json::from_value(document["shape"].clone()).map_err(|e| format(e.to_string()))?;
    if shape.len() != axes || shape.iter().any(|&side| side == 0 || side > i64::MAX as u64 / 2) {
        return Err(format(format!("the shape {shape:?} is none of a picture with {axes} axes")));
    }
    Ok(shape)
}

/// A document, if there is a file.
fn read_document(file: &Path) -> Result<Option<Value>> {
    match folder::read_small(file, METADATA_LIMIT) {
        Ok(bytes) => serde_json::from_slice(&bytes).map(Some).map_err(|e| Error::format(file, e.to_string())),
        Err(Error::Io { source, .. }) if matches!(source.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// Writes a document in the place of the one that is there, and brings it to the disk.
fn put(file: &Path, document: &Value) -> Result<()> {
    folder::replace(file, &ngff::to_bytes(document))
}

/// The right to change the list, until it is dropped. The system takes it from a process that ends.
struct Lock {
    path: PathBuf,
    _file: File,
}

impl Lock {
    /// Waits for whoever has it: for no longer than it takes to write a few small files.
    fn take(labels: &Path) -> Result<Self> {
        let path = labels.join(LOCK);
        loop {
            // Opening a named pipe would wait, and a link may lead anywhere.
            if fs::symlink_metadata(&path).is_ok_and(|found| !found.is_file()) {
                return Err(Error::format(
                    &path,
                    "this is no regular file, and should be the lock of the list of labels",
                ));
            }
            let file = File::options().create(true).truncate(false).write(true).open(&path);
            let file = file.map_err(|e| Error::io(&path, e))?;
            // Where the file system knows no locks, or has none to give, there is none to wait for.
            let _ = file.lock();
            // Who had it before has removed it: then this is the lock of nothing.
            if is_there(&file, &path) {
                return Ok(Self { path, _file: file });
            }
        }
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // While it is still held, so that nobody takes a file that is about to go. Should it stay, the next one uses it.
        let _ = fs::remove_file(&self.path);
    }
}

/// True if the open file is still the one at `path`.
fn is_there(file: &File, path: &Path) -> bool {
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt;
        let id = |m: fs::Metadata| (m.dev(), m.ino());
        matches!((file.metadata().map(id), fs::symlink_metadata(path).map(id)), (Ok(a), Ok(b)) if a == b)
    }
    #[cfg(not(unix))]
    {
        let _ = file;
        path.exists()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_labels() {
        for name in ["nuclei", "Dataset027_ACDC", "tumour v2", "a.b", "_x", "z\u{e4}hne"] {
            assert_eq!(fault_of_name(name), None, "{name}");
        }
        let long = "n".repeat(201);
        for name in
            ["", ".", "..", ".hidden", "a/b", "a\\b", "c:", "__x", "a\nb", "zarr.json", "a.", "a ", long.as_str()]
        {
            assert!(fault_of_name(name).is_some(), "{name}");
        }
    }

    #[test]
    fn the_list_is_found_or_begun_and_nothing_else_is_taken_for_it() {
        let list = |text: &str, format| {
            let mut document: Value = serde_json::from_str(text).unwrap();
            names(&mut document, format).map(|names| names.push("new".into()))?;
            Ok::<_, String>(document)
        };
        let added = json!({ "a": 1, "attributes": { "ome": { "version": "0.5", "labels": ["new"] } } });
        assert_eq!(list(r#"{"a": 1}"#, Format::V0_5), Ok(added));
        assert_eq!(
            list(r#"{"labels": ["old"], "b": 2}"#, Format::V0_4),
            Ok(json!({ "labels": ["old", "new"], "b": 2 }))
        );
        for (text, format) in [
            ("[]", Format::V0_4),
            (r#"{"labels": "x"}"#, Format::V0_4),
            (r#"{"labels": [1]}"#, Format::V0_4),
            (r#"{"attributes": 7}"#, Format::V0_5),
            (r#"{"attributes": {"ome": []}}"#, Format::V0_5),
        ] {
            assert!(list(text, format).is_err(), "{text}");
        }
    }
}
