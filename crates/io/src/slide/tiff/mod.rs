//! The TIFF container: classic and BigTIFF, both byte orders, directories, sub-directories, tiles and strips.
//!
//! This parser knows no vendor. It trusts nothing in a file: each offset is checked against the file's length before it
//! is followed, each count against [`Limits`] before anything is allocated, and directories that refer to each other in
//! circles are refused.
//!
//! Classic TIFF has a variety with 64-bit offsets, Hamamatsu's (NDPI): the offsets of directories take 8 bytes, and after
//! the one that ends a directory follow 4 more bytes for each entry, the upper half of its offset or of its single value.
//!
//! Sources: TIFF Revision 6.0 (Adobe, 1992); TIFF Technical Note 1 (SubIFDs) and 2 (JPEG); the BigTIFF specification
//! of libtiff; OpenSlide and tifffile for Hamamatsu's variety.

pub(crate) mod cycles;
pub(crate) mod ifd;
pub(crate) mod layout;
pub(crate) mod page;
pub(crate) mod tag;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use crate::bytes::ByteSource;
use crate::slide::Limits;
use crate::{Error, Result};
use cycles::{Refusal, Visited};
pub(crate) use ifd::Ifd;
pub(crate) use page::Page;
pub(crate) use tag::Tag;

/// In which order the bytes of a number are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ByteOrder {
    /// Least significant first: `II`.
    Little,
    /// Most significant first: `MM`.
    Big,
}

impl ByteOrder {
    /// The unsigned number that up to 8 bytes hold.
    pub(crate) fn unsigned(self, bytes: &[u8]) -> u64 {
        let add = |value: u64, &byte: &u8| value << 8 | u64::from(byte);
        match self {
            Self::Little => bytes.iter().rev().fold(0, add),
            Self::Big => bytes.iter().fold(0, add),
        }
    }

    /// 16-bit samples from their bytes; a last odd byte is left out.
    pub(crate) fn samples(self, bytes: &[u8]) -> Vec<u16> {
        let pairs = bytes.chunks_exact(2).map(|pair| [pair[0], pair[1]]);
        match self {
            Self::Little => pairs.map(u16::from_le_bytes).collect(),
            Self::Big => pairs.map(u16::from_be_bytes).collect(),
        }
    }
}

/// The first bytes of a TIFF: byte order, 32- or 64-bit offsets.
fn magic(head: &[u8]) -> Option<(ByteOrder, bool)> {
    match head.get(..4)? {
        b"II\x2a\0" => Some((ByteOrder::Little, false)),
        b"MM\0\x2a" => Some((ByteOrder::Big, false)),
        b"II\x2b\0" => Some((ByteOrder::Little, true)),
        b"MM\0\x2b" => Some((ByteOrder::Big, true)),
        _ => None,
    }
}

/// True if a file that starts with `head` calls itself a TIFF.
pub(crate) fn is_tiff(head: &[u8]) -> bool {
    magic(head).is_some()
}

/// How wide offsets and counts are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Width {
    /// TIFF 6.0: 32 bits.
    Classic,
    /// BigTIFF: 64 bits.
    Big,
    /// Classic with an upper half that is stored apart, as the module says.
    Halves,
}

/// What reading a number out of a TIFF takes: the bytes, their order, the width of offsets, and the limits.
#[derive(Debug, Clone)]
pub(crate) struct Container {
    source: Arc<dyn ByteSource>,
    order: ByteOrder,
    width: Width,
    limits: Limits,
}

impl Container {
    /// The bytes.
    pub(crate) fn source(&self) -> &Arc<dyn ByteSource> {
        &self.source
    }

    /// The file.
    pub(crate) fn path(&self) -> &Path {
        self.source.path()
    }

    /// The byte order of numbers, and of 16-bit samples.
    pub(crate) fn order(&self) -> ByteOrder {
        self.order
    }

    /// How wide offsets are.
    pub(crate) fn width(&self) -> Width {
        self.width
    }

    /// What the file may ask for.
    pub(crate) fn limits(&self) -> &Limits {
        &self.limits
    }

    /// The unsigned number of `width` bytes at `offset`.
    fn unsigned(&self, offset: u64, width: u64) -> Result<u64> {
        // An offset so large that the sum overflows is as far outside the file as the largest number.
        let bytes = self.source.read_at(offset..offset.saturating_add(width))?;
        Ok(self.order.unsigned(&bytes))
    }
}

/// A parsed TIFF: its top-level directories, in the order of the file.
#[derive(Debug)]
pub(crate) struct Tiff {
    file: Container,
    directories: Vec<Ifd>,
    visited: Visited,
}

impl Tiff {
    /// Reads the header and all top-level directories.
    ///
    /// # Errors
    /// [`Error::Format`] if this is no TIFF, or a corrupt one; [`Error::Limits`] if it asks for too much.
    pub(crate) fn parse(source: Arc<dyn ByteSource>, limits: &Limits) -> Result<Self> {
        let head = source.read_at(0..source.len().min(16))?;
        let corrupt = |what: &str| Error::format(source.path(), what);
        let (order, big) = magic(&head).ok_or_else(|| corrupt("is no TIFF"))?;
        let mut first = match (big, head.len()) {
            (false, 8..) => order.unsigned(&head[4..8]),
            (true, 16..) => {
                if order.unsigned(&head[4..6]) != 8 || order.unsigned(&head[6..8]) != 0 {
                    return Err(corrupt("BigTIFF header: offsets are not of 8 bytes"));
                }
                order.unsigned(&head[8..16])
            }
            _ => return Err(corrupt("TIFF header: the file ends inside it")),
        };
        let halves = head.get(4..12).filter(|_| !big && order == ByteOrder::Little).map(|half| order.unsigned(half));
        drop(head);
        let width = if big { Width::Big } else { Width::Classic };
        let mut file = Container { source, order, width, limits: *limits };
        if let Some(wide) = halves.filter(|&at| has_halves(&file, at)) {
            (first, file.width) = (wide, Width::Halves);
        }
        let mut visited = Visited::default();
        let mut directories = Vec::new();
        let mut next = first;
        while next != 0 {
            visit(&file, &mut visited, next)?;
            let (ifd, following) = Ifd::read(&file, next)?;
            directories.push(ifd);
            next = following;
        }
        if directories.is_empty() {
            return Err(Error::format(
                file.path(),
                "TIFF without a directory: it was not finished when it was written",
            ));
        }
        Ok(Self { file, directories, visited })
    }

    /// What reading values takes.
    pub(crate) fn file(&self) -> &Container {
        &self.file
    }

    /// The top-level directories; never empty.
    pub(crate) fn directories(&self) -> &[Ifd] {
        &self.directories
    }

    /// The text fields of the first directory, under the names that OpenSlide gives them.
    ///
    /// # Errors
    /// As [`Tiff::parse`].
    pub(crate) fn text_properties(&self) -> Result<BTreeMap<String, String>> {
        self.text_properties_of(&self.directories[0])
    }

    /// The text fields of a directory, under the names that OpenSlide gives them.
    ///
    /// # Errors
    /// As [`Tiff::parse`].
    pub(crate) fn text_properties_of(&self, ifd: &Ifd) -> Result<BTreeMap<String, String>> {
        let mut properties = BTreeMap::new();
        for (name, tag) in TEXTS {
            if let Some(text) = ifd.text(&self.file, *tag)?.filter(|text| !text.is_empty()) {
                properties.insert(format!("tiff.{name}"), text);
            }
        }
        Ok(properties)
    }

    /// The directories that the `SubIFDs` field of a top-level directory refers to.
    ///
    /// # Errors
    /// As [`Tiff::parse`].
    pub(crate) fn sub_directories(&self, of: &Ifd) -> Result<Vec<Ifd>> {
        let mut visited = self.visited.clone();
        let Some(offsets) = of.table(&self.file, Tag::SUB_IFDS)? else { return Ok(Vec::new()) };
        let mut found = Vec::new();
        for index in 0..offsets.count() {
            let Some(offset) = offsets.get(&self.file, index)? else { break };
            visit(&self.file, &mut visited, offset)?;
            found.push(Ifd::read(&self.file, offset)?.0);
        }
        Ok(found)
    }
}

const TEXTS: &[(&str, Tag)] = &[
    ("ImageDescription", Tag::IMAGE_DESCRIPTION),
    ("Make", Tag::MAKE),
    ("Model", Tag::MODEL),
    ("Software", Tag::SOFTWARE),
    ("DateTime", Tag::DATE_TIME),
    ("Artist", Tag::ARTIST),
    ("HostComputer", Tag::HOST_COMPUTER),
    ("Copyright", Tag::COPYRIGHT),
    ("DocumentName", Tag::DOCUMENT_NAME),
];

/// True if a directory of Hamamatsu's variety of TIFF lies at `offset`, which is known by a field that no such file is without.
fn has_halves(file: &Container, offset: u64) -> bool {
    let file = Container { width: Width::Halves, ..file.clone() };
    // Whatever else is wrong with the directory shows when it is read for good.
    offset != 0 && Ifd::read(&file, offset).is_ok_and(|(ifd, _)| ifd.has(Tag::NDPI_FORMAT))
}

fn visit(file: &Container, visited: &mut Visited, offset: u64) -> Result<()> {
    visited.visit(offset, file.limits.directories).map_err(|refusal| match refusal {
        Refusal::Cycle => {
            Error::format(file.path(), format!("TIFF directory at byte {offset} is referred to twice: a cycle"))
        }
        Refusal::TooMany => Error::limits(
            file.path(),
            format!("TIFF has more than {} directories, which is the limit", file.limits.directories),
        ),
    })
}
