//! Files that appear whole, and that stay.

use std::fs::{self, File};
use std::hash::{BuildHasher, RandomState};
use std::io::{ErrorKind, Read, Write};
use std::path::{Path, PathBuf};

use crate::{Error, Result};

/// Writes a file under a temporary name beside its place, then moves it there: whoever opens it finds all of it.
/// It survives a crash of the program at once, and one of the machine after [`sync_file`] and [`sync_folder`].
pub(super) fn put(path: &Path, bytes: &[u8]) -> Result<()> {
    put_with(path, bytes, |_| Ok(()))
}

/// Returns once all that was written into the file system of a folder is on the disk: for very many small files, of which each would take long.
/// Only Linux has such a call; elsewhere nothing happens.
///
/// # Errors
/// [`Error::Io`] if the disk refuses.
pub fn sync_file_system(folder: &Path) -> Result<()> {
    #[cfg(target_os = "linux")]
    File::open(folder)
        .and_then(|open| rustix::fs::syncfs(&open).map_err(Into::into))
        .map_err(|e| Error::io(folder, e))?;
    let _ = folder;
    Ok(())
}

/// The same for a file that takes the place of one that must not be lost: all of it is on the disk before the other goes, and then its name.
pub(super) fn replace(path: &Path, bytes: &[u8]) -> Result<()> {
    put_with(path, bytes, File::sync_all)?;
    path.parent().map_or(Ok(()), sync_folder)
}

/// The same for a file that several processes may write at once, all of them the same bytes; nothing is touched if it has them already.
pub(super) fn put_same(path: &Path, bytes: &[u8]) -> Result<()> {
    if fs::read(path).is_ok_and(|there| there == bytes) {
        return Ok(());
    }
    // Processes on different machines may have the same number.
    let token = RandomState::new().hash_one(path);
    let name = path.file_name().map(|n| n.to_string_lossy()).unwrap_or_default();
    put_through(&path.with_file_name(format!(".{name}.{token:016x}{PARTIAL}")), path, bytes, |_| Ok(()))
}

fn put_with(path: &Path, bytes: &[u8], before: impl Fn(&File) -> std::io::Result<()>) -> Result<()> {
    put_through(&partial_name(path), path, bytes, before)
}

fn put_through(partial: &Path, path: &Path, bytes: &[u8], before: impl Fn(&File) -> std::io::Result<()>) -> Result<()> {
    let written = (|| {
        let mut file = create(partial)?;
        file.write_all(bytes)?;
        before(&file)?;
        fs::rename(partial, path)
    })();
    written.map_err(|source| {
        // The disk may be full: what is of no use must not keep it so. If it cannot be removed either, the next
        // attempt at the same file does so.
        let _ = fs::remove_file(partial);
        Error::io(path, source)
    })
}

/// A new file in place of what an earlier attempt may have left. What is there is never opened: it may be a link to anywhere.
fn create(path: &Path) -> std::io::Result<File> {
    match File::create_new(path) {
        Err(e) if e.kind() == ErrorKind::AlreadyExists => {
            fs::remove_file(path)?;
            File::create_new(path)
        }
        created => created,
    }
}

/// Makes a folder and those around it, up to `inside`, which is there already.
pub(super) fn create_inside(inside: &Path, path: &Path) -> Result<()> {
    match fs::create_dir(path) {
        Ok(()) => Ok(()),
        Err(e) if e.kind() == ErrorKind::AlreadyExists => Ok(()),
        Err(e) if e.kind() == ErrorKind::NotFound => {
            match path.parent().filter(|p| *p != inside && p.starts_with(inside)) {
                Some(parent) => create_inside(inside, parent).and_then(|()| create_inside(inside, path)),
                None => Err(Error::io(path, e)),
            }
        }
        Err(e) => Err(Error::io(path, e)),
    }
}

/// The temporary name of a file: one writer per file makes it unique.
fn partial_name(path: &Path) -> PathBuf {
    let name = path.file_name().map(|n| n.to_string_lossy()).unwrap_or_default();
    path.with_file_name(format!(".{name}{PARTIAL}"))
}

/// How temporary names end.
pub(super) const PARTIAL: &str = ".partial";

/// True for the name of a half-written file.
pub(super) fn is_partial(path: &Path) -> bool {
    path.file_name().map(|n| n.to_string_lossy()).is_some_and(|name| name.starts_with('.') && name.ends_with(PARTIAL))
}

/// Returns once the contents of a file are on the disk.
pub(super) fn sync_file(path: &Path) -> Result<()> {
    let open = || fs::OpenOptions::new().write(true).open(path)?.sync_all();
    open().map_err(|source| Error::io(path, source))
}

/// Returns once the names in a folder are on the disk: a new or renamed file is only safe after that.
pub(super) fn sync_folder(path: &Path) -> Result<()> {
    // Windows has no such call and orders its metadata by a journal.
    if cfg!(unix) {
        File::open(path).and_then(|folder| folder.sync_all()).map_err(|source| Error::io(path, source))?;
    }
    Ok(())
}

/// The bytes of a file that must not be larger than `limit`.
pub(super) fn read_small(path: &Path, limit: u64) -> Result<Vec<u8>> {
    let io = |source| Error::io(path, source);
    // Asked before opening: opening a named pipe would wait for whoever writes to it, and a link may lead anywhere.
    let length = match fs::symlink_metadata(path).map_err(io)? {
        m if m.is_file() => m.len(),
        _ => return Err(Error::format(path, "this is not a regular file")),
    };
    let mut bytes = Vec::with_capacity(length.min(limit) as usize);
    let file = File::open(path).map_err(io)?;
    file.take(limit.saturating_add(1)).read_to_end(&mut bytes).map_err(io)?;
    if bytes.len() as u64 > limit {
        return Err(Error::limits(path, format!("the file has more than the {limit} bytes that are allowed here")));
    }
    Ok(bytes)
}
