//! Zip archives of stored (uncompressed) members, as PyTorch writes them.
//!
//! Sizes come from the central directory, because PyTorch leaves them out of the local headers.
//! Format: PKWARE APPNOTE 6.3.10, sections 4.3.7 (local header), 4.3.12 (central directory), 4.3.14 to 4.3.16 (ends), 4.5.3 (zip64 field).

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use microtome_io::bytes::ByteSource;

use crate::{Error, Result};

/// A directory of two hundred thousand members of ordinary names: PyTorch writes one member per tensor.
const MAX_DIRECTORY: u64 = 16 << 20;
/// A local header without its name.
const HEADER: u64 = 30;

#[derive(Debug)]
pub(super) struct Archive {
    source: Arc<dyn ByteSource>,
    members: BTreeMap<String, Member>,
}

#[derive(Debug, Clone, Copy)]
struct Member {
    header: u64,
    size: u64,
    /// Where something else begins: the next member, or the directory.
    end: u64,
    stored: bool,
}

impl Archive {
    pub(super) fn open(source: Arc<dyn ByteSource>) -> Result<Self> {
        let mut archive = Self { source, members: BTreeMap::new() };
        let path = archive.path();
        let (offset, size) = archive.directory()?;
        if size > MAX_DIRECTORY {
            let message = format!("a zip directory of {size} bytes; up to {MAX_DIRECTORY} are read");
            return Err(Error::limits(path, message));
        }
        let directory = archive.bytes(offset, size)?;
        let members = members(&directory, offset).map_err(|message| Error::format(path, message))?;
        drop(directory);
        archive.members = members;
        Ok(archive)
    }

    pub(super) fn path(&self) -> &Path {
        self.source.path()
    }

    pub(super) fn source(&self) -> &Arc<dyn ByteSource> {
        &self.source
    }

    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.members.keys().map(String::as_str)
    }

    pub(super) fn size(&self, name: &str) -> Option<u64> {
        self.members.get(name).map(|m| m.size)
    }

    /// Where the content of a member lies in the file.
    ///
    /// # Errors
    /// A clause: there is no such member, it is compressed, or it does not lie where the directory says.
    pub(super) fn locate(&self, name: &str) -> Result<Range<u64>, String> {
        let member = self.members.get(name).ok_or_else(|| format!("the archive has no member {name}"))?;
        if !member.stored {
            return Err(format!("member {name} is compressed; PyTorch stores it as it is"));
        }
        let outside = || format!("member {name} lies outside the file, or in another member");
        let header = self.bytes(member.header, HEADER).map_err(|_| outside())?;
        if header[..4] != *b"PK\x03\x04" {
            return Err(format!("member {name} does not start where the directory says"));
        }
        let skip = HEADER + u64::from(u16_at(&header, 26)) + u64::from(u16_at(&header, 28));
        let start = member.header.checked_add(skip).ok_or_else(outside)?;
        let end = start.checked_add(member.size).filter(|end| *end <= member.end).ok_or_else(outside)?;
        Ok(start..end)
    }

    /// The content of a member. The caller has looked at its size.
    pub(super) fn read(&self, name: &str) -> Result<Cow<'_, [u8]>> {
        let range = self.locate(name).map_err(|message| Error::format(self.path(), message))?;
        Ok(self.source.read_at(range)?)
    }

    /// Bytes of the file.
    fn bytes(&self, offset: u64, length: u64) -> Result<Cow<'_, [u8]>> {
        let cut_off = || Error::format(self.path(), "the zip archive is cut off");
        let end = offset.checked_add(length).filter(|end| *end <= self.source.len()).ok_or_else(cut_off)?;
        Ok(self.source.read_at(offset..end)?)
    }

    /// Offset and size of the central directory.
    fn directory(&self) -> Result<(u64, u64)> {
        const END: usize = 22;
        let not_zip = || Error::format(self.path(), "not a PyTorch checkpoint (a zip archive that is cut off)");
        let length = self.source.len();
        let tail_length = length.min(END as u64 + u64::from(u16::MAX));
        let tail = self.bytes(length - tail_length, tail_length)?;
        let end = tail.windows(END).rposition(|w| w.starts_with(b"PK\x05\x06")).ok_or_else(not_zip)?;
        // A comment is all that may follow. With anything else, another reader might take another record for the end.
        let behind = tail.len() - end - END;
        if behind != usize::from(u16_at(&tail, end + 20)) {
            return Err(Error::format(self.path(), "bytes follow the end of the zip archive"));
        }
        // A zip64 locator stands right before the end record; PyTorch writes one whatever the size.
        let locator = end.checked_sub(20).map(|at| &tail[at..end]).filter(|l| l.starts_with(b"PK\x06\x07"));
        let (offset, size, next) = if let Some(locator) = locator {
            let at = u64_at(locator, 8);
            let record = self.bytes(at, 56)?;
            if !record.starts_with(b"PK\x06\x06") {
                return Err(not_zip());
            }
            (u64_at(&record, 48), u64_at(&record, 40), at)
        } else {
            let at = length - (tail.len() - end) as u64;
            (u64::from(u32_at(&tail, end + 16)), u64::from(u32_at(&tail, end + 12)), at)
        };
        // With an archive in front of the archive, or something between, offsets mean one thing or another.
        if offset.checked_add(size) != Some(next) {
            return Err(Error::format(self.path(), "the zip directory does not lie where its end says"));
        }
        Ok((offset, size))
    }
}

/// The entries of a central directory, which begins at `at` in the file.
fn members(mut directory: &[u8], at: u64) -> Result<BTreeMap<String, Member>, String> {
    const ENTRY: usize = 46;
    const DAMAGED: &str = "the zip directory is damaged";
    let mut members = BTreeMap::new();
    while !directory.is_empty() {
        if directory.len() < ENTRY || !directory.starts_with(b"PK\x01\x02") {
            return Err(DAMAGED.into());
        }
        let length = |at| usize::from(u16_at(directory, at));
        let (name, extra, comment) = (length(28), length(30), length(32));
        let rest = &directory[ENTRY..];
        let text = String::from_utf8_lossy(rest.get(..name).ok_or(DAMAGED)?).into_owned();
        let field = zip64(rest.get(name..name + extra).ok_or(DAMAGED)?);
        // A field of the entry that is all ones is found in the zip64 extra field instead, in this order.
        let mut wide = field.chunks_exact(8);
        let mut value = |at| match u32_at(directory, at) {
            u32::MAX => wide.next().map(|bytes| u64_at(bytes, 0)).ok_or(DAMAGED),
            small => Ok(u64::from(small)),
        };
        let (size, stored_size, header) = (value(24)?, value(20)?, value(42)?);
        let encrypted = u16_at(directory, 8) & 1 != 0;
        let stored = u16_at(directory, 10) == 0 && size == stored_size && !encrypted;
        // What the member takes at least; its local header says how much more.
        let end = header.checked_add(HEADER + name as u64).and_then(|e| e.checked_add(stored_size)).ok_or(DAMAGED)?;
        if members.insert(text.clone(), Member { header, size, end, stored }).is_some() {
            return Err(format!("the archive has two members {text}"));
        }
        directory = rest.get(name + extra + comment..).ok_or(DAMAGED)?;
    }
    let mut in_order: Vec<&mut Member> = members.values_mut().collect();
    in_order.sort_unstable_by_key(|m| m.header);
    let mut next = at;
    for member in in_order.into_iter().rev() {
        if member.end > next {
            return Err("the members of the zip archive overlap".into());
        }
        (member.end, next) = (next, member.header);
    }
    Ok(members)
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

#[cfg(test)]
mod tests {
    use microtome_io::bytes::Memory;

    use super::*;
    use crate::fuzz::archive::zip;

    fn open(bytes: Vec<u8>) -> Result<Archive> {
        Archive::open(Arc::new(Memory::new("archive", bytes)))
    }

    fn members(names: &[&str]) -> Vec<u8> {
        zip(&names.iter().map(|name| ((*name).to_owned(), name.as_bytes().to_vec())).collect::<Vec<_>>())
    }

    /// The archive with another value in the directory's entry of the first member.
    fn with(mut bytes: Vec<u8>, at: usize, value: &[u8]) -> Vec<u8> {
        let entry = bytes.windows(4).position(|w| w == b"PK\x01\x02").unwrap();
        bytes[entry + at..][..value.len()].copy_from_slice(value);
        bytes
    }

    #[test]
    fn members_are_found_and_must_not_overlap() {
        let plain = members(&["first", "second"]);
        let archive = open(plain.clone()).unwrap();
        assert_eq!(&*archive.read("second").unwrap(), b"second");
        assert_eq!(archive.locate("third").unwrap_err(), "the archive has no member third");

        let message = |bytes: Vec<u8>| open(bytes).unwrap_err().to_string();
        assert_eq!(message(members(&["a", "b", "a"])), "archive: the archive has two members a");
        let longer = |size: u32| [size.to_le_bytes(), size.to_le_bytes()].concat();
        assert_eq!(message(with(plain.clone(), 20, &longer(20))), "archive: the members of the zip archive overlap");
        // As long as what the local header, whose name is longer than the directory says, leaves of the next member.
        let archive = open(with(plain.clone(), 20, &longer(12))).unwrap();
        assert!(archive.locate("first").unwrap_err().contains("outside the file, or in another member"));
        // Two names for one place.
        assert_eq!(
            message(with(plain.clone(), 42, &36_u32.to_le_bytes())),
            "archive: the members of the zip archive overlap"
        );
        assert_eq!(message(with(plain, 42, &u32::MAX.to_le_bytes())), "archive: the zip directory is damaged");
    }

    #[test]
    fn compressed_and_encrypted_members_are_refused() {
        let plain = members(&["first", "second"]);
        for changed in [with(plain.clone(), 10, &[8]), with(plain.clone(), 8, &[9]), with(plain, 20, &[3])] {
            let archive = open(changed).unwrap();
            let error = archive.locate("first").unwrap_err();
            assert_eq!(error, "member first is compressed; PyTorch stores it as it is");
            assert!(archive.locate("second").is_ok());
        }
    }

    #[test]
    fn only_a_comment_may_follow_the_archive() {
        let plain = members(&["first"]);
        let error = open([&plain[..], b"more"].concat()).unwrap_err().to_string();
        assert_eq!(error, "archive: bytes follow the end of the zip archive");
        let mut comment = [&plain[..], b"more"].concat();
        let at = plain.len() - 2;
        comment[at..][..2].copy_from_slice(&4_u16.to_le_bytes());
        assert!(open(comment).is_ok());
        // The end of a second archive behind a first one: another reader might see the first.
        let error = open([&plain[..], &members(&["other"])[..]].concat()).unwrap_err().to_string();
        assert_eq!(error, "archive: the zip directory does not lie where its end says");
    }

    #[test]
    fn a_long_directory_is_not_read() {
        let mut bytes = vec![0; 17 << 20];
        let end = members(&["a"]);
        let mut end = end[end.len() - 22..].to_vec();
        end[12..16].copy_from_slice(&(17_u32 << 20).to_le_bytes());
        end[16..20].copy_from_slice(&0_u32.to_le_bytes());
        bytes.extend(end);
        let error = open(bytes).unwrap_err().to_string();
        assert_eq!(error, "archive: a zip directory of 17825792 bytes; up to 16777216 are read");
    }
}
