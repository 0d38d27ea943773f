//! A store in a ZIP archive, which is read where it lies.
//!
//! The directory at the archive's end says where each entry is; it is read once, checked, and kept as one text and a list. Entries that are
//! stored as they are lend ranges of the archive; those that are deflated are inflated as a whole, to no more than their stated size.
//! Nothing is ever written to a disk, so that names can lead nowhere; an archive with names that would is refused all the same,
//! because it was made to deceive. ZIP64 is read; encryption, archives of several parts, and other methods are refused.
//! Format: PKWARE's APPNOTE.TXT 6.3.10, <https://pkware.cachefly.net/webdocs/casestudies/APPNOTE.TXT>.

use std::io::{Read, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{Entries, is_inside};
use crate::bytes::{ByteSource, Memory, Window};
use crate::slide::Limits;
use crate::{Error, Result};

const END: &[u8] = b"PK\x05\x06";
const END64: &[u8] = b"PK\x06\x06";
const LOCATOR64: &[u8] = b"PK\x06\x07";
const CENTRAL: &[u8] = b"PK\x01\x02";
const LOCAL: &[u8] = b"PK\x03\x04";
/// Bytes of these records, without what varies.
const END_SIZE: u64 = 22;
const END64_SIZE: u64 = 56;
const LOCATOR64_SIZE: u64 = 20;
const CENTRAL_SIZE: usize = 46;
const LOCAL_SIZE: u64 = 30;
/// The longest comment.
const COMMENT: u64 = u16::MAX as u64;
/// The most that deflate can make of a byte, and a little more.
const MOST_INFLATED: u64 = 1100;

/// True if a file with these first bytes is an archive.
pub(crate) fn is_zip(head: &[u8]) -> bool {
    head.starts_with(LOCAL) || head.starts_with(END)
}

/// The entries of an archive.
#[derive(Debug)]
pub(crate) struct ZipEntries {
    source: Arc<dyn ByteSource>,
    /// What all keys of the store begin with: the folder in the archive in which it lies, if it does.
    prefix: String,
    /// All names, one after the other.
    names: String,
    /// By name.
    items: Vec<Item>,
    /// The largest entry that is inflated to be read in ranges.
    inflated: u64,
}

/// An entry as the directory describes it.
#[derive(Debug, Clone, Copy)]
struct Item {
    name: u32,
    name_length: u16,
    method: u16,
    encrypted: bool,
    checksum: u32,
    /// Of its own header.
    offset: u64,
    packed: u64,
    size: u64,
}

impl ZipEntries {
    /// Reads the directory of an archive in which a store lies.
    ///
    /// # Errors
    /// As [`read`](Self::read), and [`Error::Unsupported`] if there is no store in it.
    pub(crate) fn open(source: Arc<dyn ByteSource>, limits: &Limits) -> Result<Self> {
        let mut entries = Self::read(source, limits)?;
        entries.prefix = entries.root()?;
        Ok(entries)
    }

    /// Reads the directory of an archive.
    ///
    /// # Errors
    /// [`Error::Format`] if it is damaged or has names that lead out, [`Error::Unsupported`] for several parts,
    /// [`Error::Limits`] if it is larger than `Limits::table_bytes`.
    pub(crate) fn read(source: Arc<dyn ByteSource>, limits: &Limits) -> Result<Self> {
        let (count, range) = directory(&*source)?;
        let path = source.path().to_owned();
        let format = |message: String| Error::format(&path, message);
        let length = range.end - range.start;
        if count > length / CENTRAL_SIZE as u64 {
            return Err(format(format!("the archive claims {count} entries in a directory of {length} bytes")));
        }
        // What is read, and what is kept of it.
        let needed = length.saturating_add(count.saturating_mul(size_of::<Item>() as u64));
        if needed > limits.table_bytes.min(u64::from(u32::MAX)) {
            let limit = limits.table_bytes;
            return Err(Error::limits(
                &path,
                format!("the directory of {count} entries takes {needed} bytes, the limit is {limit}"),
            ));
        }
        let bytes = source.read_at(range)?;
        let (mut names, mut items) = (String::new(), Vec::with_capacity(count as usize));
        let mut rest = &*bytes;
        for _ in 0..count {
            let entry = Item::parse(&mut rest, &mut names).map_err(format)?;
            items.extend(entry);
        }
        drop(bytes);
        source.still_whole()?;
        // Of several with one name the last one counts: it was appended later.
        let name = |item: &Item| &names[item.name_range()];
        items.reverse();
        items.sort_by(|a, b| name(a).cmp(name(b)));
        items.dedup_by(|a, b| name(a) == name(b));
        names.shrink_to_fit();
        Ok(Self { source, prefix: String::new(), names, items, inflated: limits.decoded_bytes })
    }

    /// The names of all entries, in order; folders are none.
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.items.iter().map(|item| &self.names[item.name_range()])
    }

    /// The size that the directory gives an entry.
    pub(crate) fn size(&self, key: &str) -> Option<u64> {
        self.find(key).map(|item| item.size)
    }

    /// Writes an entry, if there is one, its checksum compared: never more than its size.
    pub(crate) fn extract(&self, key: &str, out: &mut dyn Write) -> Result<bool> {
        let Some(item) = self.find(key) else { return Ok(false) };
        self.pour(key, item, out)?;
        Ok(true)
    }

    /// Where the store lies: at the archive's root, or in the one folder that is a node.
    fn root(&self) -> Result<String> {
        let metadata = ["zarr.json", ".zattrs", ".zgroup", ".zarray"];
        if metadata.iter().any(|name| self.find(name).is_some()) {
            return Ok(String::new());
        }
        let mut roots: Vec<&str> = (self.items.iter())
            .filter_map(|item| self.names[item.name_range()].split_once('/'))
            .filter(|(_, name)| metadata.contains(name))
            .map(|(folder, _)| folder)
            .collect();
        roots.dedup();
        match roots[..] {
            [] => Err(Error::unsupported(
                self.path(),
                "is a ZIP archive that holds no Zarr store: neither its root nor a folder in it has a zarr.json, .zattrs, .zgroup or .zarray",
            )),
            [folder] => Ok(format!("{folder}/")),
            [first, second, ..] => Err(Error::unsupported(
                self.path(),
                format!(
                    "is a ZIP archive that holds several Zarr stores, {first:?} and {second:?} among them: unpack it"
                ),
            )),
        }
    }

    fn find(&self, key: &str) -> Option<&Item> {
        let key = format!("{}{key}", self.prefix);
        let at = self.items.binary_search_by(|item| self.names[item.name_range()].cmp(&key)).ok()?;
        Some(&self.items[at])
    }

    /// The bytes of an entry as they are stored.
    fn packed(&self, key: &str, item: &Item) -> Result<Window> {
        let name = self.name(key);
        let format = |message: &str| Error::format(&name, message);
        if item.encrypted {
            return Err(Error::unsupported(&name, "the entry of the archive is encrypted"));
        }
        let header = item.offset..item.offset.saturating_add(LOCAL_SIZE);
        let header = self.source.read_at(header)?.into_owned();
        if !header.starts_with(LOCAL) {
            return Err(format("the archive's directory points at something that is no entry"));
        }
        let number = |at: usize| u64::from(u16::from_le_bytes([header[at], header[at + 1]]));
        if number(8) != u64::from(item.method) {
            return Err(format("the archive's directory and the entry do not agree"));
        }
        let start = item.offset.saturating_add(LOCAL_SIZE + number(26) + number(28));
        Window::new(name, Arc::clone(&self.source), start..start.saturating_add(item.packed))
    }

    /// All of an entry, its checksum compared.
    fn unpack(&self, key: &str, item: &Item, limit: u64) -> Result<Vec<u8>> {
        let name = self.name(key);
        if item.size > limit {
            return Err(Error::limits(
                &name,
                format!("the entry has {} bytes, more than the {limit} that are allowed here", item.size),
            ));
        }
        // What cannot be is found before memory is asked for it.
        self.check_size(key, item)?;
        let mut bytes = Vec::with_capacity(item.size as usize);
        self.pour(key, item, &mut bytes)?;
        Ok(bytes)
    }

    /// Writes an entry, its checksum compared. Memory: a small buffer, if the archive is mapped.
    fn pour(&self, key: &str, item: &Item, out: &mut dyn Write) -> Result<()> {
        let name = self.name(key);
        self.check_size(key, item)?;
        let window = self.packed(key, item)?;
        let packed = window.read_at(0..item.packed)?;
        let mut content: Box<dyn Read> = match item.method {
            8 => Box::new(flate2::read::DeflateDecoder::new(&*packed).take(item.size + 1)),
            _ => Box::new(&*packed),
        };
        let (mut sum, mut written, mut buffer) = (flate2::Crc::new(), 0, [0; 1 << 14]);
        loop {
            let n = match content.read(&mut buffer) {
                Ok(n) => n,
                Err(error) => {
                    return Err(Error::format(&name, format!("the entry of the archive cannot be inflated: {error}")));
                }
            };
            written += n as u64;
            if n == 0 || written > item.size {
                break;
            }
            sum.update(&buffer[..n]);
            out.write_all(&buffer[..n]).map_err(|e| Error::io(&name, e))?;
        }
        self.source.still_whole()?;
        if written != item.size || sum.sum() != item.checksum {
            return Err(Error::format(
                &name,
                "the entry of the archive is damaged: its size or its checksum is not what the directory says",
            ));
        }
        Ok(())
    }

    /// What is wrong with an entry's method and sizes.
    fn check_size(&self, key: &str, item: &Item) -> Result<()> {
        let (name, size, packed) = (self.name(key), item.size, item.packed);
        match item.method {
            0 if packed == size => Ok(()),
            0 => Err(Error::format(name, "the entry is stored as it is, and yet changes its size")),
            8 if size > packed.saturating_mul(MOST_INFLATED).saturating_add(64) => {
                Err(Error::format(name, format!("{packed} deflated bytes cannot hold {size}")))
            }
            8 => Ok(()),
            other => Err(unknown_method(&name, other)),
        }
    }
}

impl Entries for ZipEntries {
    fn path(&self) -> &Path {
        self.source.path()
    }

    fn get(&self, key: &str, limit: u64) -> Result<Option<Vec<u8>>> {
        self.find(key).map(|item| self.unpack(key, item, limit)).transpose()
    }

    fn open(&self, key: &str) -> Result<Option<Arc<dyn ByteSource>>> {
        let Some(item) = self.find(key) else { return Ok(None) };
        Ok(Some(match item.method {
            0 if item.packed == item.size => Arc::new(self.packed(key, item)?),
            0 => return Err(Error::format(self.name(key), "the entry is stored as it is, and yet changes its size")),
            8 => Arc::new(Memory::new(self.name(key), self.unpack(key, item, self.inflated)?)),
            other => return Err(unknown_method(&self.name(key), other)),
        }))
    }

    fn contains(&self, key: &str) -> Result<bool> {
        Ok(self.find(key).is_some())
    }

    fn held_bytes(&self, key: &str) -> u64 {
        self.find(key).map_or(0, |item| if item.method == 0 { 0 } else { item.size })
    }

    fn resident_bytes(&self) -> u64 {
        (self.names.capacity() + self.items.capacity() * size_of::<Item>()) as u64
    }

    fn name(&self, key: &str) -> PathBuf {
        self.path().join(format!("{}{key}", self.prefix))
    }
}

fn unknown_method(name: &Path, method: u16) -> Error {
    let known = match method {
        9 => " (deflate64)",
        12 => " (bzip2)",
        14 => " (LZMA)",
        20 | 93 => " (zstd)",
        _ => "",
    };
    Error::unsupported(
        name,
        format!(
            "the entry of the archive is packed by method {method}{known}, of which 0 (none) and 8 (deflate) are supported"
        ),
    )
}

impl Item {
    /// Takes the next entry of the directory. A folder is none, and neither is a name that is no text.
    fn parse(rest: &mut &[u8], names: &mut String) -> Result<Option<Self>, String> {
        const SHORT: &str = "the archive's directory ends too early";
        let (head, tail) = rest.split_at_checked(CENTRAL_SIZE).ok_or(SHORT)?;
        if !head.starts_with(CENTRAL) {
            return Err("the archive's directory is damaged".into());
        }
        let short = |at: usize| u16::from_le_bytes([head[at], head[at + 1]]);
        let long = |at: usize| u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
        let (name, tail) = tail.split_at_checked(short(28).into()).ok_or(SHORT)?;
        let (extra, tail) = tail.split_at_checked(short(30).into()).ok_or(SHORT)?;
        let (_, tail) = tail.split_at_checked(short(32).into()).ok_or(SHORT)?;
        *rest = tail;
        // Where a field has no room, the extra field of kind 1 has the numbers, in this order.
        let mut wide = extra_field(extra, 1).unwrap_or_default();
        let mut widen = |narrow: u32| -> Result<u64, String> {
            if narrow != u32::MAX {
                return Ok(narrow.into());
            }
            let (number, left) =
                wide.split_first_chunk::<8>().ok_or("an entry of the archive is too large for its fields")?;
            wide = left;
            Ok(u64::from_le_bytes(*number))
        };
        let size = widen(long(24))?;
        let packed = widen(long(20))?;
        let offset = widen(long(42))?;
        let Ok(name) = str::from_utf8(name) else { return Ok(None) };
        let name = name.strip_prefix("./").unwrap_or(name);
        if name.is_empty() {
            return Ok(None);
        }
        if !is_inside(name) {
            return Err(format!("the archive has an entry {name:?}, which would lead out of its folder"));
        }
        if name.ends_with('/') {
            return Ok(None);
        }
        let start = names.len() as u32;
        names.push_str(name);
        Ok(Some(Self {
            name: start,
            name_length: name.len() as u16,
            method: short(10),
            encrypted: short(8) & 1 != 0,
            checksum: long(16),
            offset,
            packed,
            size,
        }))
    }

    fn name_range(&self) -> Range<usize> {
        let start = self.name as usize;
        start..start + usize::from(self.name_length)
    }
}

/// The extra field of a kind.
fn extra_field(mut extra: &[u8], kind: u16) -> Option<&[u8]> {
    while let [k0, k1, n0, n1, rest @ ..] = extra {
        let (field, after) = rest.split_at_checked(u16::from_le_bytes([*n0, *n1]).into())?;
        if u16::from_le_bytes([*k0, *k1]) == kind {
            return Some(field);
        }
        extra = after;
    }
    None
}

/// How many entries the directory has, and where it lies.
fn directory(source: &dyn ByteSource) -> Result<(u64, Range<u64>)> {
    let (path, length) = (source.path(), source.len());
    let format = |message: &str| Error::format(path, message);
    // The last record is at the end, before a comment of unknown length: the last place where one fits exactly.
    let from = length.saturating_sub(END_SIZE + COMMENT);
    let tail = source.read_at(from..length)?.into_owned();
    let fits = |at: usize| {
        let record = &tail[at..];
        record.starts_with(END)
            && record.len() == END_SIZE as usize + usize::from(u16::from_le_bytes([record[20], record[21]]))
    };
    let Some(last) = tail.len().checked_sub(END_SIZE as usize) else {
        return Err(format("the ZIP archive is truncated"));
    };
    let at = (0..=last)
        .rev()
        .find(|&at| fits(at))
        .ok_or_else(|| format("the ZIP archive is truncated: it has no directory at its end"))?;
    let end = &tail[at..];
    let short = |at: usize| u64::from(u16::from_le_bytes([end[at], end[at + 1]]));
    let long = |at: usize| u64::from(u32::from_le_bytes([end[at], end[at + 1], end[at + 2], end[at + 3]]));
    let mut end_at = from + at as u64;
    let (mut disk, mut count, mut size, mut start) = (short(4), short(10), long(12), long(16));
    let locator = match end_at.checked_sub(LOCATOR64_SIZE) {
        Some(at) => Some(source.read_at(at..end_at)?.into_owned()).filter(|bytes| bytes.starts_with(LOCATOR64)),
        None => None,
    };
    if let Some(locator) = locator {
        let number = |bytes: &[u8], at: usize| bytes[at..].first_chunk::<8>().map_or(0, |n| u64::from_le_bytes(*n));
        end_at = number(&locator, 8);
        let record = source.read_at(end_at..end_at.saturating_add(END64_SIZE))?;
        if !record.starts_with(END64) {
            return Err(format("the archive's ZIP64 directory is not where it should be"));
        }
        disk = u64::from(u32::from_le_bytes([record[16], record[17], record[18], record[19]]));
        (count, size, start) = (number(&record, 32), number(&record, 40), number(&record, 48));
    }
    if disk != 0 {
        return Err(Error::unsupported(path, "is one part of a ZIP archive of several"));
    }
    match start.checked_add(size) {
        Some(end) if end <= end_at => Ok((count, start..end)),
        _ => Err(format("the archive's directory does not lie before its end")),
    }
}
