//! One directory of a TIFF, and the values of its fields.

use std::collections::BTreeMap;

use super::tag::{FieldType, Tag};
use super::{Container, Width};
use crate::{Error, Result};

/// Where the values of a field lie. They stay in the file: a table of millions of tile offsets costs no memory,
/// looking one up reads its few bytes in place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Field {
    /// How each value is stored.
    pub(crate) kind: FieldType,
    /// How many there are.
    pub(crate) count: u64,
    /// Where the first one lies in the file, be it inside the directory or elsewhere.
    pub(crate) at: u64,
    /// What is to be added to a single value: the upper half of one that is stored in halves.
    pub(crate) upper: u64,
}

/// One directory: where it lies, and its fields.
#[derive(Debug, Clone)]
pub(crate) struct Ifd {
    offset: u64,
    fields: BTreeMap<Tag, Field>,
}

impl Ifd {
    /// Reads the directory at `offset`, and the offset of the next one (0: there is none).
    pub(crate) fn read(file: &Container, offset: u64) -> Result<(Self, u64)> {
        let corrupt = |what: &str| Error::format(file.path(), format!("TIFF directory at byte {offset}: {what}"));
        let overflow = || corrupt("lies beyond any file");
        let big = file.width() == Width::Big;
        let width = if big { 8 } else { 2 };
        let count = file.unsigned(offset, width)?;
        if count == 0 {
            return Err(corrupt("has no entries"));
        }
        if count > file.limits().directory_entries as u64 {
            return Err(Error::limits(
                file.path(),
                format!(
                    "TIFF directory at byte {offset}: has {count} entries, the limit is {}",
                    file.limits().directory_entries
                ),
            ));
        }
        // Entry: tag (2), type (2), count (4 or 8), values or their offset (4 or 8).
        let (entry_bytes, inline_bytes) = if big { (20, 8) } else { (12, 4) };
        let start = offset.checked_add(width).ok_or_else(overflow)?;
        let end = start.checked_add(count * entry_bytes).ok_or_else(overflow)?;
        let mut fields = BTreeMap::new();
        let order = file.order();
        let next = file.unsigned(end, if file.width() == Width::Classic { 4 } else { 8 })?;
        let uppers = upper_halves(file, end, count)?;
        let entries = file.source().read_at(start..end)?;
        for (entry, bytes) in (0_u64..).zip(entries.chunks_exact(entry_bytes as usize)) {
            let tag = Tag(order.unsigned(&bytes[0..2]) as u16);
            // A reader is to skip fields of types that it does not know (TIFF 6.0, section 2).
            let Some(kind) = FieldType::from_code(order.unsigned(&bytes[2..4]) as u16) else { continue };
            let (count, value) = bytes[4..].split_at(inline_bytes);
            let count = order.unsigned(count);
            let inline = count.checked_mul(kind.bytes()).is_some_and(|total| total <= inline_bytes as u64);
            let upper = uppers.get(entry as usize).map_or(0, |&upper| upper << 32);
            let single = inline && count == 1 && kind == FieldType::Long;
            let field = if inline {
                let at = start + (entry + 1) * entry_bytes - inline_bytes as u64;
                Field { kind, count, at, upper: if single { upper } else { 0 } }
            } else {
                Field { kind, count, at: order.unsigned(value) + upper, upper: 0 }
            };
            // Of a tag that appears twice, the first one counts, as in libtiff.
            fields.entry(tag).or_insert(field);
        }
        Ok((Self { offset, fields }, next))
    }

    /// Where the directory lies in the file.
    pub(crate) fn offset(&self) -> u64 {
        self.offset
    }

    /// A field, if the directory has it.
    pub(crate) fn field(&self, tag: Tag) -> Option<Field> {
        self.fields.get(&tag).copied()
    }

    /// True if the directory has the field.
    pub(crate) fn has(&self, tag: Tag) -> bool {
        self.fields.contains_key(&tag)
    }

    /// True for a page of tiles.
    pub(crate) fn is_tiled(&self) -> bool {
        self.has(Tag::TILE_WIDTH)
    }

    /// The bytes of a field, whatever its type.
    pub(crate) fn bytes(&self, file: &Container, tag: Tag) -> Result<Option<Vec<u8>>> {
        let Some(field) = self.field(tag) else { return Ok(None) };
        let end = self.check(file, tag, field)?;
        Ok(Some(file.source().read_at(field.at..end)?.into_owned()))
    }

    /// A field as text: up to the first zero byte, trailing space removed, bytes that are not UTF-8 replaced.
    pub(crate) fn text(&self, file: &Container, tag: Tag) -> Result<Option<String>> {
        Ok(self.bytes(file, tag)?.map(|bytes| {
            let text = bytes.split(|&b| b == 0).next().unwrap_or_default();
            String::from_utf8_lossy(text).trim_end().to_owned()
        }))
    }

    /// All values of a field of unsigned numbers.
    pub(crate) fn unsigned_values(&self, file: &Container, tag: Tag) -> Result<Option<Vec<u64>>> {
        let Some(field) = self.field(tag) else { return Ok(None) };
        let width = self.unsigned_width(file, tag, field)?;
        let end = self.check(file, tag, field)?;
        let bytes = file.source().read_at(field.at..end)?;
        let value = |value| file.order().unsigned(value) + field.upper;
        Ok(Some(bytes.chunks_exact(width as usize).map(value).collect()))
    }

    /// The first value of a field of unsigned numbers.
    pub(crate) fn unsigned(&self, file: &Container, tag: Tag) -> Result<Option<u64>> {
        match self.field(tag) {
            Some(field) if field.count > 0 => {
                let width = self.unsigned_width(file, tag, field)?;
                file.unsigned(field.at, width).map(|value| Some(value + field.upper))
            }
            _ => Ok(None),
        }
    }

    /// The first value of a field of fractions; `None` also where the denominator is zero.
    pub(crate) fn rational(&self, file: &Container, tag: Tag) -> Result<Option<f64>> {
        match self.field(tag) {
            Some(Field { kind: FieldType::Rational, count: 1.., at, .. }) => {
                let second = at.checked_add(4).ok_or_else(|| self.corrupt(file, tag, "lies beyond any file"))?;
                let (numerator, denominator) = (file.unsigned(at, 4)?, file.unsigned(second, 4)?);
                Ok((denominator != 0).then(|| numerator as f64 / denominator as f64))
            }
            Some(Field { kind: FieldType::Byte | FieldType::Short | FieldType::Long, .. }) => {
                Ok(self.unsigned(file, tag)?.map(|value| value as f64))
            }
            _ => Ok(None),
        }
    }

    /// The first value of a field of signed numbers.
    pub(crate) fn signed(&self, file: &Container, tag: Tag) -> Result<Option<i64>> {
        match self.field(tag) {
            Some(Field { kind: FieldType::SignedLong, count: 1.., at, .. }) => {
                Ok(Some(i64::from(file.unsigned(at, 4)? as u32 as i32)))
            }
            _ => Ok(None),
        }
    }

    /// The first value of a field of 32-bit floats; `None` also where it is no number.
    pub(crate) fn float(&self, file: &Container, tag: Tag) -> Result<Option<f32>> {
        match self.field(tag) {
            Some(Field { kind: FieldType::Float, count: 1.., at, .. }) => {
                let value = f32::from_bits(file.unsigned(at, 4)? as u32);
                Ok(Some(value).filter(|value| value.is_finite()))
            }
            _ => Ok(None),
        }
    }

    /// A field of unsigned numbers as a table to look things up in, checked against the file and the limits.
    pub(crate) fn table(&self, file: &Container, tag: Tag) -> Result<Option<Table>> {
        let Some(field) = self.field(tag) else { return Ok(None) };
        let width = self.unsigned_width(file, tag, field)?;
        self.check(file, tag, field)?;
        Ok(Some(Table { at: field.at, count: field.count, width, upper: field.upper }))
    }

    fn unsigned_width(&self, file: &Container, tag: Tag, field: Field) -> Result<u64> {
        match field.kind {
            FieldType::Byte | FieldType::Short | FieldType::Long | FieldType::Long8 => Ok(field.kind.bytes()),
            _ => Err(self.corrupt(file, tag, "is not of unsigned numbers")),
        }
    }

    /// Checks the extent of a field against limits and file; returns where it ends.
    fn check(&self, file: &Container, tag: Tag, field: Field) -> Result<u64> {
        let bytes = field.count.checked_mul(field.kind.bytes());
        let Some(bytes) = bytes.filter(|&bytes| bytes <= file.limits().table_bytes) else {
            return Err(Error::limits(
                file.path(),
                format!(
                    "TIFF directory at byte {}: tag {} has {} values of {} bytes, the limit is {} bytes",
                    self.offset,
                    tag.0,
                    field.count,
                    field.kind.bytes(),
                    file.limits().table_bytes
                ),
            ));
        };
        field
            .at
            .checked_add(bytes)
            .filter(|&end| end <= file.source().len())
            .ok_or_else(|| self.corrupt(file, tag, "lies outside the file, which may be truncated"))
    }

    fn corrupt(&self, file: &Container, tag: Tag, what: &str) -> Error {
        Error::format(file.path(), format!("TIFF directory at byte {}: tag {} {what}", self.offset, tag.0))
    }
}

/// The upper halves of the entries of a directory whose fields end at `end`; none where it has none.
///
/// A file below 4 GiB has nothing to say there, and what some program left there instead is not looked at.
fn upper_halves(file: &Container, end: u64, count: u64) -> Result<Vec<u64>> {
    if file.width() != Width::Halves || u32::try_from(file.source().len()).is_ok() {
        return Ok(Vec::new());
    }
    // The directory lies inside the file, so that this is far from overflow.
    let bytes = file.source().read_at(end + 8..end + 8 + 4 * count)?;
    Ok(bytes.chunks_exact(4).map(|half| file.order().unsigned(half)).collect())
}

/// Unsigned numbers that stay in the file and are looked up one by one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Table {
    at: u64,
    count: u64,
    width: u64,
    upper: u64,
}

impl Table {
    /// How many numbers there are.
    pub(crate) fn count(&self) -> u64 {
        self.count
    }

    /// Number `index`, or `None` past the end.
    pub(crate) fn get(&self, file: &Container, index: u64) -> Result<Option<u64>> {
        // The whole table was checked to lie inside the file.
        let value = || Ok(file.unsigned(self.at + index * self.width, self.width)? + self.upper);
        (index < self.count).then(value).transpose()
    }
}
