//! Zip archives of stored (uncompressed) members, as PyTorch writes them.
//!
//! Sizes come from the central directory, because PyTorch leaves them out of the local headers.
//! Format: PKWARE APPNOTE 6.3.10, sections 4.3.7 (local header), 4.3.12 (central directory), 4.3.14 to 4.3.16 (ends), 4.5.3 (zip64 field).

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use crate::{Error, Result};

/// A directory of a million members of ordinary names: PyTorch writes one member per tensor.
const MAX_DIRECTORY: u64 = 128 << 20;

#[derive(Debug)]
pub(super) struct Archive {
    path: PathBuf,
    file: File,
    length: u64,
    members: BTreeMap<String, Member>,
}

#[derive(Debug, Clone, Copy)]
struct Member {
    header: u64,
    size: u64,
    stored: bool,
}

impl Archive {
    pub(super) fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(|e| Error::io(path, e))?;
        let length = file.metadata().map_err(|e| Error::io(path, e))?.len();
        let mut archive = Self { path: path.into(), file, length, members: BTreeMap::new() };
        let (offset, size) = archive.directory()?;
        if size > MAX_DIRECTORY {
            return Err(Error::limits(
                path,
                format!("a zip directory of {size} bytes; up to {MAX_DIRECTORY} are read"),
            ));
        }
        let directory = archive.bytes(offset, size)?;
        archive.members = members(&directory).ok_or_else(|| Error::format(path, "the zip directory is damaged"))?;
        Ok(archive)
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.members.keys().map(String::as_str)
    }

    pub(super) fn size(&self, name: &str) -> Option<u64> {
        self.members.get(name).map(|m| m.size)
    }

    /// `length` bytes of a member, from `offset` on.
    pub(super) fn read(&self, name: &str, offset: u64, length: u64) -> Result<Vec<u8>> {
        let missing = || Error::format(&self.path, format!("the archive has no member {name}"));
        let member = self.members.get(name).ok_or_else(missing)?;
        if !member.stored {
            return Err(Error::unsupported(
                &self.path,
                format!("member {name} is compressed; PyTorch stores it as it is"),
            ));
        }
        let outside = || Error::format(&self.path, format!("member {name} lies outside the file"));
        if offset.checked_add(length).is_none_or(|end| end > member.size) {
            return Err(outside());
        }
        let header = self.bytes(member.header, 30).map_err(|_| outside())?;
        if header[..4] != *b"PK\x03\x04" {
            return Err(Error::format(&self.path, format!("member {name} does not start where the directory says")));
        }
        let skip = 30 + u64::from(u16_at(&header, 26)) + u64::from(u16_at(&header, 28));
        let start = member.header.checked_add(skip).and_then(|s| s.checked_add(offset)).ok_or_else(outside)?;
        self.bytes(start, length).map_err(|error| match error {
            Error::Format { .. } => outside(),
            other => other,
        })
    }

    /// Bytes of the file; nothing is allocated for what the file does not hold.
    fn bytes(&self, offset: u64, length: u64) -> Result<Vec<u8>> {
        if offset.checked_add(length).is_none_or(|end| end > self.length) {
            return Err(Error::format(&self.path, "the zip archive is cut off"));
        }
        let mut bytes = vec![0; length as usize];
        let mut file = &self.file;
        file.seek(SeekFrom::Start(offset))
            .and_then(|_| file.read_exact(&mut bytes))
            .map_err(|e| Error::io(&self.path, e))?;
        Ok(bytes)
    }

    /// Offset and size of the central directory.
    fn directory(&self) -> Result<(u64, u64)> {
        const END: usize = 22;
        let not_zip = || Error::format(&self.path, "not a PyTorch checkpoint (no zip archive, or one that is cut off)");
        let tail_length = self.length.min(END as u64 + u64::from(u16::MAX));
        let tail = self.bytes(self.length - tail_length, tail_length)?;
        let end = tail.windows(END).rposition(|w| w.starts_with(b"PK\x05\x06")).ok_or_else(not_zip)?;
        // A zip64 locator stands right before the end record; PyTorch writes one whatever the size.
        let locator = end.checked_sub(20).map(|at| &tail[at..end]).filter(|l| l.starts_with(b"PK\x06\x07"));
        let Some(locator) = locator else {
            return Ok((u64::from(u32_at(&tail, end + 16)), u64::from(u32_at(&tail, end + 12))));
        };
        let record = self.bytes(u64_at(locator, 8), 56)?;
        if !record.starts_with(b"PK\x06\x06") {
            return Err(not_zip());
        }
        Ok((u64_at(&record, 48), u64_at(&record, 40)))
    }
}

/// The entries of a central directory, or `None` if it is damaged.
fn members(mut directory: &[u8]) -> Option<BTreeMap<String, Member>> {
    const ENTRY: usize = 46;
    let mut members = BTreeMap::new();
    while !directory.is_empty() {
        if directory.len() < ENTRY || !directory.starts_with(b"PK\x01\x02") {
            return None;
        }
        let length = |at| usize::from(u16_at(directory, at));
        let (name, extra, comment) = (length(28), length(30), length(32));
        let rest = directory.get(ENTRY..)?;
        let text = String::from_utf8_lossy(rest.get(..name)?).into_owned();
        let field = zip64(rest.get(name..name + extra)?);
        // A field of the entry that is all ones is found in the zip64 extra field instead, in this order.
        let mut wide = field.chunks_exact(8);
        let mut value = |at| match u32_at(directory, at) {
            u32::MAX => wide.next().map(|bytes| u64_at(bytes, 0)),
            small => Some(u64::from(small)),
        };
        let (size, stored_size, header) = (value(24)?, value(20)?, value(42)?);
        let stored = u16_at(directory, 10) == 0 && size == stored_size;
        members.insert(text, Member { header, size, stored });
        directory = rest.get(name + extra + comment..)?;
    }
    Some(members)
}

/// The content of the zip64 field among an entry's extra fields; empty if there is none.
fn zip64(mut extra: &[u8]) -> &[u8] {
    while extra.len() >= 4 {
        let end = 4 + usize::from(u16_at(extra, 2));
        let Some(content) = extra.get(4..end) else { break };
        if u16_at(extra, 0) == 1 {
            return content;
        }
        extra = &extra[end..];
    }
    &[]
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from(u16_at(bytes, at)) | u32::from(u16_at(bytes, at + 2)) << 16
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}
