//! What lies at a path where a store is to go, and how a store of ours is removed.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::{folder, ngff};
use crate::{Error, Result};

/// The file that says "a store of ours, and not finished".
///
/// It is the first thing in a new store and the last to go, so that at every moment in between a crash leaves something that can be told
/// from a stranger's folder. A file beside the data, rather than an entry in the metadata, because the root metadata must not exist before
/// the data does; an empty one, because a finished store must hold nothing that differs between runs, and so nothing of it may stay.
pub(super) const MARKER: &str = ".microtome-unfinished";
/// The folder for pictures that travel with an image, each an image of its own in it: `associated/macro`.
pub const ASSOCIATED: &str = "associated";
/// The metadata of a node of Zarr 3.
pub(super) const METADATA: &str = "zarr.json";
/// What makes a group an image, by version of Zarr, 3 and 2. The second is beside `.zgroup`.
const ROOTS: [&str; 2] = [METADATA, ".zattrs"];
/// The most that we read of one metadata file. Real ones have a few kilobytes.
pub(super) const METADATA_LIMIT: u64 = 16 << 20;

/// What is at a path.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Found {
    /// Nothing, or an empty folder.
    Nothing,
    /// A finished store of ours, with its root attribute `microtome`: the image's attributes and the notes of its last moment.
    Complete(Map<String, Value>),
    /// A store of ours whose writing did not come to its end.
    Unfinished,
    /// A store of ours that a process is writing right now.
    InUse,
    /// Something else.
    Foreign,
}

/// Says what is at `path`.
///
/// # Errors
/// [`Error::Io`] if that cannot be found out.
pub fn inspect(path: impl AsRef<Path>) -> Result<Found> {
    let path = path.as_ref();
    let io = |source| Error::io(path, source);
    match fs::metadata(path) {
        Err(e) if e.kind() == ErrorKind::NotFound => {
            // A symbolic link to nowhere is somebody's, too.
            return Ok(if path.is_symlink() { Found::Foreign } else { Found::Nothing });
        }
        Err(e) => return Err(io(e)),
        Ok(m) if !m.is_dir() => return Ok(Found::Foreign),
        Ok(_) => {}
    }
    if fs::read_dir(path).map_err(io)?.next().is_none() {
        return Ok(Found::Nothing);
    }
    let is_file = |name: &str| fs::symlink_metadata(path.join(name)).is_ok_and(|m| m.is_file());
    if is_file(MARKER) {
        // Whoever writes holds a lock on the marker, which the system lets go of however the process ends.
        let locked = fs::File::open(path.join(MARKER)).map_err(io)?.try_lock();
        return Ok(if matches!(locked, Err(fs::TryLockError::WouldBlock)) { Found::InUse } else { Found::Unfinished });
    }
    let Some(root) = ROOTS.into_iter().find(|name| is_file(name)) else { return Ok(Found::Foreign) };
    // Whatever is wrong with a stranger's file is no error of this question.
    let document = match folder::read_small(&path.join(root), METADATA_LIMIT) {
        Ok(bytes) => serde_json::from_slice::<Value>(&bytes).unwrap_or(Value::Null),
        Err(Error::Io { path, source }) => return Err(Error::Io { path, source }),
        Err(_) => Value::Null,
    };
    let (ome, ours) = if root == METADATA {
        (&document["attributes"]["ome"], &document["attributes"][ngff::OURS])
    } else {
        (&document, &document[ngff::OURS])
    };
    Ok(match (&ome["multiscales"], ours) {
        (Value::Array(_), Value::Object(ours)) => Found::Complete(ours.clone()),
        _ => Found::Foreign,
    })
}

/// Makes a finished store of ours unfinished again, so that it can be gone on with. Its pixels stay.
///
/// # Errors
/// [`Error::Usage`] if there is none; [`Error::Io`] if its files cannot be changed.
pub fn reopen(path: impl AsRef<Path>) -> Result<()> {
    let path = path.as_ref();
    let Found::Complete(_) = inspect(path)? else {
        return Err(Error::usage(path, "there is no finished store to reopen"));
    };
    // The mark first: at no moment is it a stranger's.
    let marker = path.join(MARKER);
    fs::File::create(&marker).map_err(|e| Error::io(&marker, e))?;
    folder::sync_folder(path)?;
    for name in ROOTS.into_iter().chain([".zgroup"]) {
        let metadata = path.join(name);
        match fs::remove_file(&metadata) {
            Err(e) if e.kind() != ErrorKind::NotFound => return Err(Error::io(&metadata, e)),
            _ => {}
        }
    }
    folder::sync_folder(path)
}

/// Removes a store of ours, finished or not; nothing at all is fine, too.
///
/// Anything that we did not put there makes it refuse before it removes anything. If it is interrupted, what is left is an unfinished store.
///
/// # Errors
/// [`Error::Usage`] if [`inspect`] says [`Found::Foreign`] or [`Found::InUse`], if `path` is a symbolic link, or if the store holds
/// something foreign; [`Error::Io`] if something cannot be removed.
pub fn remove(path: impl AsRef<Path>) -> Result<()> {
    let path = path.as_ref();
    let io = |source| Error::io(path, source);
    match inspect(path)? {
        Found::Nothing => return Ok(()),
        Found::Foreign => return Err(Error::usage(path, "this is no store of microtome's, so it is not removed")),
        Found::InUse => return Err(Error::usage(path, "another process is writing there, so it is not removed")),
        Found::Complete(_) | Found::Unfinished => {}
    }
    if path.is_symlink() {
        return Err(Error::usage(path, "this is a symbolic link, and what it points to is not removed"));
    }
    let mut rest = Vec::new();
    for entry in fs::read_dir(path).map_err(io)? {
        let entry = entry.map_err(io)?;
        let (name, kind) = (entry.file_name(), entry.file_type().map_err(io)?);
        let name = name.to_string_lossy();
        let level = kind.is_dir() && name.bytes().all(|b| b.is_ascii_digit());
        let partial = kind.is_file() && name.starts_with('.') && name.ends_with(folder::PARTIAL);
        match &*name {
            MARKER => {}
            _ if ROOTS.contains(&&*name) && kind.is_file() => rest.insert(0, entry.path()),
            ".zgroup" if kind.is_file() => rest.push(entry.path()),
            "labels" if kind.is_dir() => {
                let message = "the image has labels, which would go with it, so it is not removed: move or remove its folder \"labels\" first";
                return Err(Error::usage(path, message));
            }
            _ if level || partial => rest.push(entry.path()),
            ASSOCIATED if kind.is_dir() => match stranger_among(&entry.path()).map_err(io)? {
                None => rest.push(entry.path()),
                Some(name) => {
                    let name = name.display();
                    let message =
                        format!("the store holds \"{name}\", which microtome did not write, so it is not removed");
                    return Err(Error::usage(path, message));
                }
            },
            _ => {
                let message = format!("the store holds {name:?}, which microtome did not write, so it is not removed");
                return Err(Error::usage(path, message));
            }
        }
    }
    // From here on it is unfinished; the root metadata, which makes it a store to others, goes first.
    let marker = path.join(MARKER);
    let lock = fs::File::create(&marker).map_err(io)?;
    // Where the file system knows no locks, there is none to respect.
    if matches!(lock.try_lock(), Err(fs::TryLockError::WouldBlock)) {
        return Err(Error::usage(path, "another process is writing there, so it is not removed"));
    }
    for entry in rest {
        let removed = if entry.is_dir() { fs::remove_dir_all(&entry) } else { fs::remove_file(&entry) };
        removed.map_err(|source| Error::io(&entry, source))?;
    }
    fs::remove_file(&marker).and_then(|()| fs::remove_dir(path)).map_err(io)
}

/// What is not ours among the pictures that travel along, if anything.
fn stranger_among(associated: &Path) -> std::io::Result<Option<PathBuf>> {
    let metadata = |name: &str| [METADATA, ".zgroup", ".zattrs"].contains(&name);
    for picture in fs::read_dir(associated)? {
        let picture = picture?;
        let name = PathBuf::from(ASSOCIATED).join(picture.file_name());
        if !picture.file_type()?.is_dir() {
            if !picture.file_name().to_str().is_some_and(metadata) {
                return Ok(Some(name));
            }
            continue;
        }
        for entry in fs::read_dir(picture.path())? {
            let entry = entry?;
            let (file_name, kind) = (entry.file_name(), entry.file_type()?);
            let text = file_name.to_string_lossy();
            let level = kind.is_dir() && text.bytes().all(|b| b.is_ascii_digit());
            let partial = text.starts_with('.') && text.ends_with(folder::PARTIAL);
            if !level && !(kind.is_file() && (partial || metadata(&text) || text == MARKER)) {
                return Ok(Some(name.join(file_name)));
            }
        }
    }
    Ok(None)
}
