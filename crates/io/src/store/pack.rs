//! A store in a folder becomes one ZIP file.
//!
//! As RFC 9 of OME-NGFF wants it (<https://ngff.openmicroscopy.org/rfc/9/index.html>): the root of the archive is the root of the store; nothing
//! is compressed again; ZIP64 throughout; the root's metadata come first, then those of all other nodes, those near to the root before those further
//! down, then all else; the comment names the version of OME-Zarr. Chunks are in the order of their names, and there are no times, so that the same
//! folder gives the same bytes. Format of the archive: PKWARE's APPNOTE.TXT 6.3.10,
//! <https://pkware.cachefly.net/webdocs/casestudies/APPNOTE.TXT>.

use std::fs::{self, File};
use std::io::{self, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::entries::join;
use super::folder;
use super::found::{Found, MARKER, METADATA, METADATA_LIMIT, inspect};
use super::labels::LOCK;
use crate::{Error, Result};

/// Documents about nodes. The first is that of Zarr 3; the others come in the order in which a reader of Zarr 2 asks for them.
const DOCUMENTS: [&str; 5] = [METADATA, ".zgroup", ".zattrs", ".zarray", ".zmetadata"];
/// Bytes that are copied at once.
const BUFFER: usize = 1 << 20;
/// Bytes of the archive that may wait for the disk: they count as memory.
const SYNC_BYTES: u64 = 16 << 20;
/// Folders at one depth, and documents, whose names are held in memory; a store of images has a few dozen documents.
const MAX_NODES: usize = 1 << 20;
/// Folders in folders.
const MAX_DEPTH: usize = 64;

/// Writes a finished store of ours in `folder` into one ZIP file at `zip`, where nothing may be. The folder stays as it is.
///
/// The file appears when it is whole. Its name should end in `.ozx`, which is for version 0.5 only, or in `.ome.zarr.zip`.
/// Memory: a few buffers of at most 1 MiB, the names of the folders at one depth, and of the files of a folder; the directory of the archive waits in
/// a file beside it.
///
/// # Errors
/// [`Error::Usage`] if there is no finished store of ours, it holds links, something is at `zip`, or an `.ozx` is to hold version 0.4;
/// [`Error::Io`] if something cannot be read or written, and then nothing is left.
pub fn pack(folder: impl AsRef<Path>, zip: impl AsRef<Path>) -> Result<()> {
    let (folder, zip) = (folder.as_ref(), zip.as_ref());
    if [folder, zip].into_iter().any(crate::remote::is_remote) {
        return Err(Error::usage(folder, "a store in a folder is packed, into a file"));
    }
    if !matches!(inspect(folder)?, Found::Complete(_)) {
        return Err(Error::usage(folder, "there is no finished store of microtome's to be packed"));
    }
    if fs::symlink_metadata(zip).is_ok() {
        return Err(Error::usage(zip, "something is there already"));
    }
    let version = version(folder)?;
    if version.is_none() && zip.extension().is_some_and(|e| e.eq_ignore_ascii_case("ozx")) {
        return Err(Error::usage(zip, "an .ozx file holds OME-Zarr 0.5, and the store is 0.4: call it .ome.zarr.zip"));
    }
    let partial = |what: &str| {
        let name = zip.file_name().map(|n| n.to_string_lossy()).unwrap_or_default();
        zip.with_file_name(format!(".{name}{what}{}", folder::PARTIAL))
    };
    let (archive, directory) = (partial(""), partial(".directory"));
    let packed = Packer::create(&archive, &directory).and_then(|packer| packer.pack(folder, version.as_deref()));
    // It is part of the archive now, or of no use.
    let _ = fs::remove_file(&directory);
    let put = || match fs::symlink_metadata(zip) {
        // Packing takes a while.
        Ok(_) => Err(Error::usage(zip, "something has come to be there while the store was packed")),
        Err(_) => fs::rename(&archive, zip).map_err(|e| Error::io(zip, e)),
    };
    packed.and_then(|()| put()).inspect_err(|_| {
        // The error that counts is the one at hand.
        let _ = fs::remove_file(&archive);
    })?;
    match zip.parent() {
        Some(parent) if parent != Path::new("") => folder::sync_folder(parent),
        _ => folder::sync_folder(Path::new(".")),
    }
}

/// The version of OME-Zarr that a store says it is, if it is one of Zarr 3: of an older one the RFC does not speak.
fn version(store: &Path) -> Result<Option<String>> {
    let file = store.join(METADATA);
    if !file.exists() {
        return Ok(None);
    }
    let document: Value = serde_json::from_slice(&folder::read_small(&file, METADATA_LIMIT)?)
        .map_err(|e| Error::format(&file, e.to_string()))?;
    Ok(document["attributes"]["ome"]["version"].as_str().map(Into::into))
}

/// An archive that is being written.
struct Packer {
    path: PathBuf,
    archive: BufWriter<File>,
    /// Bytes of the archive so far.
    length: u64,
    /// Those of them that may wait for the disk.
    unsynced: u64,
    /// The directory, which comes behind all entries.
    directory: BufWriter<File>,
    directory_path: PathBuf,
    directory_length: u64,
    count: u64,
    buffer: Vec<u8>,
}

impl Packer {
    fn create(path: &Path, directory_path: &Path) -> Result<Self> {
        let create = |path: &Path| {
            let file = File::options().create(true).truncate(true).read(true).write(true).open(path);
            file.map(BufWriter::new).map_err(|e| Error::io(path, e))
        };
        Ok(Self {
            archive: create(path)?,
            directory: create(directory_path)?,
            path: path.into(),
            directory_path: directory_path.into(),
            length: 0,
            unsynced: 0,
            directory_length: 0,
            count: 0,
            buffer: vec![0; BUFFER],
        })
    }

    fn pack(mut self, store: &Path, version: Option<&str>) -> Result<()> {
        for name in documents(store)? {
            self.add(store, &name)?;
        }
        self.add_all(store, "", 0)?;
        let comment = version.map(|version| {
            let comment =
                json!({ "ome": { "version": version, "zipFile": { "centralDirectory": { "jsonFirst": true } } } });
            comment.to_string().into_bytes()
        });
        self.finish(&comment.unwrap_or_default())
    }

    /// Adds everything under a folder but documents about nodes, which are there already.
    fn add_all(&mut self, store: &Path, inside: &str, depth: usize) -> Result<()> {
        let listed = list(store, inside, depth)?;
        // What a process that was killed has left is no part of the store.
        let left = |name: &str| name == LOCK || folder::is_partial(Path::new(name));
        for file in listed.files.iter().filter(|name| !DOCUMENTS.contains(&name.as_str()) && !left(name)) {
            self.add(store, &join(inside, file))?;
        }
        for folder in &listed.folders {
            self.add_all(store, &join(inside, folder), depth + 1)?;
        }
        Ok(())
    }

    /// Adds a file as it is.
    fn add(&mut self, store: &Path, name: &str) -> Result<()> {
        let path = store.join(name);
        let Ok(name_length) = u16::try_from(name.len()) else {
            return Err(Error::usage(path, "the name is too long for a ZIP archive"));
        };
        let mut file = File::open(&path).map_err(|e| Error::io(&path, e))?;
        let start = self.length;
        // What is not known yet is put in its place when it is.
        let header = local_header(0, 0, name_length);
        self.write(&header)?;
        self.write(name.as_bytes())?;
        self.write(&wide(&[0, 0]))?;
        let (mut sum, mut size) = (flate2::Crc::new(), 0u64);
        loop {
            let n = match file.read(&mut self.buffer) {
                Ok(0) => break,
                Ok(n) => n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => return Err(Error::io(&path, e)),
            };
            sum.update(&self.buffer[..n]);
            self.archive.write_all(&self.buffer[..n]).map_err(|e| Error::io(&self.path, e))?;
            self.wrote(n)?;
            size += n as u64;
        }
        let end = self.length;
        self.patch(start, &local_header(sum.sum(), u32::MAX, name_length))?;
        self.patch(start + (header.len() + name.len()) as u64, &wide(&[size, size]))?;
        self.archive.seek(SeekFrom::Start(end)).map_err(|e| Error::io(&self.path, e))?;
        self.count += 1;
        self.note(name.as_bytes(), sum.sum(), size, start).map_err(|e| Error::io(&self.directory_path, e))
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.archive.write_all(bytes).map_err(|e| Error::io(&self.path, e))?;
        self.wrote(bytes.len())
    }

    /// Counts what was written, and brings it to the disk now and then.
    fn wrote(&mut self, bytes: usize) -> Result<()> {
        self.length += bytes as u64;
        self.unsynced += bytes as u64;
        if self.unsynced < SYNC_BYTES {
            return Ok(());
        }
        self.unsynced = 0;
        let synced = self.archive.flush().and_then(|()| self.archive.get_ref().sync_data());
        synced.map_err(|e| Error::io(&self.path, e))
    }

    /// Writes over what is there.
    fn patch(&mut self, at: u64, bytes: &[u8]) -> Result<()> {
        let written = self.archive.seek(SeekFrom::Start(at)).and_then(|_| self.archive.write_all(bytes));
        written.map_err(|e| Error::io(&self.path, e))
    }

    /// Notes an entry in the directory.
    fn note(&mut self, name: &[u8], checksum: u32, size: u64, offset: u64) -> io::Result<()> {
        let extra = wide(&[size, size, offset]);
        let mut record = Vec::with_capacity(46 + name.len() + extra.len());
        record.extend(b"PK\x01\x02");
        // Made by version 4.5 on Unix, where the file is an ordinary one that its owner may write and all may read.
        record.extend([45, 3]);
        record.extend(entry(checksum, u32::MAX));
        record.extend((name.len() as u16).to_le_bytes());
        record.extend((extra.len() as u16).to_le_bytes());
        // No comment, the first part, no attributes of its own.
        record.extend([0; 6]);
        record.extend((0o100_644_u32 << 16).to_le_bytes());
        record.extend(u32::MAX.to_le_bytes());
        record.extend(name);
        record.extend(extra);
        self.directory_length += record.len() as u64;
        self.directory.write_all(&record)
    }

    /// Writes the directory and what says where it is, and brings everything to the disk.
    fn finish(mut self, comment: &[u8]) -> Result<()> {
        let start = self.length;
        let directory = |e| Error::io(&self.directory_path, e);
        self.directory.seek(SeekFrom::Start(0)).map_err(directory)?;
        let copied = io::copy(self.directory.get_mut(), &mut self.archive).map_err(|e| Error::io(&self.path, e))?;
        if copied != self.directory_length {
            return Err(directory(io::Error::other("the directory of the archive became another file")));
        }
        let mut end = Vec::new();
        // The record, its size behind this field, made by and readable with version 4.5, all in one part.
        end.extend(b"PK\x06\x06");
        end.extend(44u64.to_le_bytes());
        end.extend([45, 3, 45, 0]);
        end.extend([0; 8]);
        for number in [self.count, self.count, copied, start] {
            end.extend(number.to_le_bytes());
        }
        end.extend(b"PK\x06\x07\0\0\0\0");
        end.extend((start + copied).to_le_bytes());
        end.extend(1u32.to_le_bytes());
        end.extend(b"PK\x05\x06\0\0\0\0");
        // All that this record could say is said above.
        end.extend([0xFF; 12]);
        end.extend((comment.len() as u16).to_le_bytes());
        end.extend(comment);
        let written = self.archive.write_all(&end).and_then(|()| self.archive.flush());
        written.and_then(|()| self.archive.get_ref().sync_all()).map_err(|e| Error::io(&self.path, e))
    }
}

/// What the header of an entry and its record in the directory share: readable with version 4.5, names in UTF-8, stored as it is, the first day that
/// can be written, the checksum, sizes.
fn entry(checksum: u32, size: u32) -> Vec<u8> {
    let mut bytes = vec![45, 0, 0, 8, 0, 0, 0, 0, 0x21, 0];
    for number in [checksum, size, size] {
        bytes.extend(number.to_le_bytes());
    }
    bytes
}

fn local_header(checksum: u32, size: u32, name: u16) -> Vec<u8> {
    let extra = wide(&[0, 0]).len() as u16;
    [&b"PK\x03\x04"[..], &entry(checksum, size), &name.to_le_bytes(), &extra.to_le_bytes()].concat()
}

/// The extra field of ZIP64.
fn wide(numbers: &[u64]) -> Vec<u8> {
    let mut field = vec![1, 0];
    field.extend((8 * numbers.len() as u16).to_le_bytes());
    field.extend(numbers.iter().flat_map(|n| n.to_le_bytes()));
    field
}

/// What lies in a folder, in the order of names.
struct Listed {
    files: Vec<String>,
    folders: Vec<String>,
}

fn list(store: &Path, inside: &str, depth: usize) -> Result<Listed> {
    let folder = if inside.is_empty() { store.to_owned() } else { store.join(inside) };
    if depth > MAX_DEPTH {
        return Err(Error::usage(folder, format!("folders in more than {MAX_DEPTH} others are not packed")));
    }
    let io = |e| Error::io(&folder, e);
    let mut listed = Listed { files: Vec::new(), folders: Vec::new() };
    for entry in fs::read_dir(&folder).map_err(io)? {
        let entry = entry.map_err(io)?;
        let (path, kind) = (entry.path(), entry.file_type().map_err(io)?);
        let Ok(name) = entry.file_name().into_string() else {
            return Err(Error::usage(path, "the name is no text, and no archive could hold it"));
        };
        if name == MARKER {
            return Err(Error::usage(folder, "this is not finished, so it is not packed"));
        }
        if kind.is_dir() {
            listed.folders.push(name);
        } else if kind.is_file() {
            listed.files.push(name);
        } else {
            return Err(Error::usage(path, "this is neither a file nor a folder, so it is not packed"));
        }
    }
    listed.files.sort_unstable();
    listed.folders.sort_unstable();
    Ok(listed)
}

/// The documents about nodes: those of the root first, then those of the next nodes, and so on.
fn documents(store: &Path) -> Result<Vec<String>> {
    let (mut found, mut level) = (Vec::new(), vec![String::new()]);
    let mut depth = 0;
    while !level.is_empty() {
        let mut next = Vec::new();
        for folder in &level {
            let listed = list(store, folder, depth)?;
            found.extend(
                DOCUMENTS
                    .iter()
                    .filter(|name| listed.files.iter().any(|file| file == *name))
                    .map(|name| join(folder, name)),
            );
            next.extend(listed.folders.iter().map(|name| join(folder, name)));
            if found.len().saturating_add(next.len()) > MAX_NODES {
                return Err(Error::usage(store, format!("more than {MAX_NODES} folders are not packed")));
            }
        }
        level = next;
        depth += 1;
    }
    Ok(found)
}
