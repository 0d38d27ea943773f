//! Where the frames of a multi-frame file lie.
//!
//! Frames that are not compressed lie one after the other. Compressed ones are in items, a frame in one or more of
//! them; a table of offsets says where each frame starts: the Extended Offset Table (8 bytes a frame), the Basic Offset
//! Table (4 bytes, which is why files of more than 4 GiB leave it out), or none. The tables are read where they lie, one
//! entry at a time; only where there is none, the headers of the items are walked once, when the first frame is read,
//! and 8 bytes a frame are kept.
//!
//! Sources: DICOM PS3.5, annex A.4; PS3.3, C.7.6.3.1.8.

use std::borrow::Cow;
use std::ops::Range;
use std::sync::{Arc, OnceLock};

use dicom_core::Tag;

use super::element::{END_OF_ITEMS, Encoding, ITEM, Walk};
use crate::bytes::ByteSource;
use crate::{Error, Result};

/// Where the pixels of a file lie.
#[derive(Debug)]
pub(super) enum Place {
    /// One frame after the other, none compressed.
    Native { bytes: Range<u64>, frame: u64 },
    /// In items, the first of which lies at `first`.
    Items { first: u64, table: Table },
}

/// What says where a frame starts, counted from the first item.
#[derive(Debug)]
pub(super) enum Table {
    /// 4 bytes a frame, in the file.
    Basic(u64),
    /// 8 bytes a frame, in the file.
    Extended(u64),
    /// Nothing: what a walk through the items found, or why that cannot tell.
    Walked(OnceLock<Result<Vec<u64>, String>>),
}

/// The frames of a file.
#[derive(Debug)]
pub(super) struct Frames {
    pub(super) source: Arc<dyn ByteSource>,
    pub(super) place: Place,
    pub(super) count: u64,
    /// The most bytes that a frame may take.
    pub(super) limit: u64,
}

impl Frames {
    /// Reads the start of pixels in items, which begins at `at`, behind the header of the element.
    /// `extended` is the Extended Offset Table, if there is one.
    pub(super) fn items(
        source: &Arc<dyn ByteSource>,
        at: u64,
        extended: Option<Range<u64>>,
        count: u64,
        limit: u64,
    ) -> Result<Self> {
        let wrong = |what: String| Error::format(source.path(), format!("DICOM: {what}"));
        let mut walk = Walk::new(&**source, at);
        let basic = walk.header(Encoding::Explicit)?;
        let length = u64::from(basic.length);
        if basic.tag != ITEM || basic.length == u32::MAX {
            return Err(wrong("the pixels do not start with an offset table".into()));
        }
        let table = if let Some(extended) = extended {
            if extended.end - extended.start != count * 8 {
                let entries = (extended.end - extended.start) / 8;
                return Err(wrong(format!("the extended offset table has {entries} entries for {count} frames")));
            }
            Table::Extended(extended.start)
        } else if length > 0 {
            if length != count * 4 {
                return Err(wrong(format!("the offset table has {} entries for {count} frames", length / 4)));
            }
            Table::Basic(basic.value)
        } else {
            Table::Walked(OnceLock::new())
        };
        let place = Place::Items { first: basic.value + length, table };
        Ok(Self { source: Arc::clone(source), place, count, limit })
    }

    fn wrong(&self, what: impl std::fmt::Display) -> Error {
        Error::format(self.source.path(), format!("DICOM: {what}"))
    }

    /// The bytes of a frame, its items put together.
    pub(super) fn read(&self, frame: u64) -> Result<Cow<'_, [u8]>> {
        if frame >= self.count {
            return Err(self.wrong(format_args!("frame {frame} of {} is asked for", self.count)));
        }
        let (mut at, end) = match &self.place {
            Place::Native { bytes, frame: length } => {
                // Checked when the file was opened: the frames lie within `bytes`.
                let start = bytes.start + frame * length;
                return self.source.read_at(start..start + length);
            }
            Place::Items { .. } => self.span(frame)?,
        };
        let mut joined: Cow<'_, [u8]> = Cow::Borrowed(&[]);
        let mut total = 0;
        loop {
            if end.is_some_and(|end| at >= end) {
                break;
            }
            let Some(item) = self.item(at)? else { break };
            total += item.end - item.start;
            if total > self.limit {
                let what = format!("frame {frame} takes more than {} bytes, which is the limit", self.limit);
                return Err(Error::limits(self.source.path(), what));
            }
            at = item.end;
            let bytes = self.source.read_at(item)?;
            if joined.is_empty() {
                joined = bytes;
            } else {
                joined.to_mut().extend_from_slice(&bytes);
            }
        }
        if end.is_some_and(|end| at != end) || joined.is_empty() {
            return Err(self.wrong(format_args!("the items of frame {frame} do not end where the next frame starts")));
        }
        Ok(joined)
    }

    /// Where the bytes of a frame lie, headers included, so that they can be fetched; `None` where only a walk could tell.
    pub(super) fn range(&self, frame: u64) -> Option<Range<u64>> {
        match &self.place {
            Place::Native { bytes, frame: length } => {
                let start = bytes.start + frame * length;
                Some(start..start + length)
            }
            Place::Items { table: Table::Walked(walked), .. } if walked.get().is_none() => None,
            Place::Items { .. } => {
                let (start, end) = self.span(frame).ok()?;
                Some(start..end.unwrap_or(start))
            }
        }
    }

    /// The value of the item at `at`, or `None` at the end of the items.
    fn item(&self, at: u64) -> Result<Option<Range<u64>>> {
        if at == self.source.len() {
            return Ok(None);
        }
        let header = self.source.read_at(at..at.saturating_add(8))?;
        let &[a, b, c, d, l0, l1, l2, l3] = &header[..] else {
            return Err(self.wrong(format_args!("there is no item at byte {at}")));
        };
        let tag = Tag(u16::from_le_bytes([a, b]), u16::from_le_bytes([c, d]));
        let length = u32::from_le_bytes([l0, l1, l2, l3]);
        match tag {
            ITEM if length != u32::MAX => {
                let start = at + 8;
                let end = start + u64::from(length);
                if end > self.source.len() {
                    let have = self.source.len();
                    return Err(self.wrong(format_args!(
                        "the item at byte {at} ends at byte {end}, the file at byte {have}: it may be truncated"
                    )));
                }
                Ok(Some(start..end))
            }
            END_OF_ITEMS => Ok(None),
            _ => Err(self.wrong(format_args!("there is no item of pixels at byte {at}"))),
        }
    }

    /// Where the items of a frame start, and where those of the next one do.
    fn span(&self, frame: u64) -> Result<(u64, Option<u64>)> {
        let Place::Items { first, table } = &self.place else { return Err(self.wrong("the frames are not in items")) };
        let next = (frame + 1 < self.count).then_some(frame + 1);
        let entry = |frame: u64| -> Result<u64> {
            let offset = match table {
                Table::Basic(start) => {
                    let at = start + frame * 4;
                    let bytes = self.source.read_at(at..at + 4)?;
                    bytes[..].try_into().map(u32::from_le_bytes).map_or(0, u64::from)
                }
                Table::Extended(start) => {
                    let at = start + frame * 8;
                    let bytes = self.source.read_at(at..at + 8)?;
                    bytes[..].try_into().map_or(0, u64::from_le_bytes)
                }
                Table::Walked(walked) => {
                    let offsets = walked.get_or_init(|| self.walk(*first).map_err(|error| error.to_string()));
                    // The path in front of the sentence is said again by the caller.
                    let offsets = offsets.as_ref().map_err(|what| {
                        let path = format!("{}: DICOM: ", self.source.path().display());
                        self.wrong(what.strip_prefix(&path).unwrap_or(what))
                    })?;
                    offsets.get(frame as usize).copied().unwrap_or(u64::MAX)
                }
            };
            let at = first.checked_add(offset).filter(|&at| at < self.source.len());
            at.ok_or_else(|| self.wrong(format_args!("the offset table puts frame {frame} behind the end of the file")))
        };
        let start = entry(frame)?;
        let end = next.map(entry).transpose()?;
        if end.is_some_and(|end| end <= start) {
            return Err(self.wrong(format_args!("the offset table puts frame {} before frame {frame}", frame + 1)));
        }
        Ok((start, end))
    }

    /// Finds the frames without a table: one item is one frame, or all items are the only frame.
    fn walk(&self, first: u64) -> Result<Vec<u64>> {
        let mut offsets = Vec::new();
        if self.count == 1 {
            offsets.push(0);
            return Ok(offsets);
        }
        let mut at = first;
        while let Some(item) = self.item(at)? {
            if offsets.len() as u64 == self.count {
                return Err(self.wrong(format_args!(
                    "there is no offset table, and more items than the {} frames: where frames start is not said",
                    self.count
                )));
            }
            offsets.push(at - first);
            at = item.end;
        }
        if offsets.len() as u64 != self.count {
            return Err(self.wrong(format_args!("there are {} items for {} frames", offsets.len(), self.count)));
        }
        Ok(offsets)
    }
}
