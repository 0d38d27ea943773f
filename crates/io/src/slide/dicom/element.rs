//! The data elements of a DICOM file: their headers are walked, their values stay in the file.
//!
//! dicom-rs gives the dictionary and the character sets. Its parser is not used: it allocates what an element's length
//! says before it looks whether the file is that long, it follows nested sequences by recursion without end, and it
//! keeps every value, so that the functional groups of a slide of a million frames would take gigabytes. Here a value is
//! a range of the file, checked when its header is read.
//!
//! Sources: DICOM PS3.5, sections 6.2, 7.1, 7.5 and annex A; PS3.10, section 7.1.

use std::borrow::Cow;
use std::ops::Range;
use std::sync::Arc;

use dicom_core::dictionary::{DataDictionary, DataDictionaryEntry};
use dicom_core::{Tag, VR};
use dicom_dictionary_std::{StandardDataDictionary, tags};
use dicom_encoding::text::{SpecificCharacterSet, TextCodec};

use crate::bytes::ByteSource;
use crate::{Error, Result};

/// Sequences within sequences. Specimens are described about six deep.
const MAX_DEPTH: usize = 32;

/// Elements of a file outside of its per-frame functional groups, and of any one of these. Real headers have hundreds.
const MAX_ELEMENTS: usize = 1 << 17;

/// The longest value that is read for its text or its numbers.
const MAX_VALUE: u64 = 1 << 16;

/// The start of an item, its end where it has no length, and the end of a sequence that has none (PS3.5, 7.5).
pub(super) const ITEM: Tag = Tag(0xfffe, 0xe000);
const END_OF_ITEM: Tag = Tag(0xfffe, 0xe00d);
pub(super) const END_OF_ITEMS: Tag = Tag(0xfffe, 0xe0dd);

/// A length that is not said: the value ends with a delimiter.
const UNDEFINED: u32 = u32::MAX;

/// How headers are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Encoding {
    /// Little endian, with the type of each value.
    Explicit,
    /// Little endian; the dictionary knows the types.
    Implicit,
}

/// What an element holds.
#[derive(Debug, Clone)]
pub(super) enum Value {
    /// Bytes, which lie there in the file.
    Bytes(Range<u64>),
    /// The items of a sequence.
    Items(Vec<DataSet>),
}

/// A data element.
#[derive(Debug, Clone)]
pub(super) struct Element {
    pub(super) tag: Tag,
    pub(super) vr: VR,
    pub(super) value: Value,
}

/// The elements of a file, or of an item of a sequence, in their order.
#[derive(Debug, Clone, Default)]
pub(super) struct DataSet(pub(super) Vec<Element>);

impl DataSet {
    /// The first element of that tag.
    pub(super) fn get(&self, tag: Tag) -> Option<&Element> {
        self.0.iter().find(|element| element.tag == tag)
    }

    /// The items of a sequence; none if it is missing.
    pub(super) fn items(&self, tag: Tag) -> &[DataSet] {
        match self.get(tag) {
            Some(Element { value: Value::Items(items), .. }) => items,
            _ => &[],
        }
    }

    /// The first item of a sequence.
    pub(super) fn item(&self, tag: Tag) -> Option<&DataSet> {
        self.items(tag).first()
    }
}

/// A file whose values can be read.
#[derive(Debug, Clone)]
pub(super) struct Values {
    pub(super) source: Arc<dyn ByteSource>,
    charset: Option<SpecificCharacterSet>,
}

impl Values {
    /// Values whose texts are in the default character set.
    pub(super) fn new(source: Arc<dyn ByteSource>) -> Self {
        Self { source, charset: None }
    }

    /// Takes the character set from the data set; of several, the first.
    pub(super) fn learn_charset(&mut self, data: &DataSet) -> Result<()> {
        let codes = self.texts(data, tags::SPECIFIC_CHARACTER_SET)?;
        self.charset = codes.first().and_then(|code| SpecificCharacterSet::from_code(code));
        Ok(())
    }

    /// The bytes of a value, unless they are more than a text or a number can be.
    pub(super) fn small<'a>(&'a self, element: &Element) -> Result<Option<Cow<'a, [u8]>>> {
        match &element.value {
            Value::Bytes(range) if range.end - range.start <= MAX_VALUE => self.source.read_at(range.clone()).map(Some),
            _ => Ok(None),
        }
    }

    /// The texts of an element, without padding; empty where it is missing or holds no text.
    pub(super) fn texts(&self, data: &DataSet, tag: Tag) -> Result<Vec<String>> {
        let Some(element) = data.get(tag) else { return Ok(Vec::new()) };
        let Some(bytes) = self.small(element)? else { return Ok(Vec::new()) };
        let text = self.decode(&bytes);
        Ok(text.split('\\').map(|part| trim(part).to_owned()).collect())
    }

    /// The first text of an element, if it is not empty.
    pub(super) fn text(&self, data: &DataSet, tag: Tag) -> Result<Option<String>> {
        Ok(self.texts(data, tag)?.into_iter().next().filter(|text| !text.is_empty()))
    }

    /// Bytes as text.
    pub(super) fn decode(&self, bytes: &[u8]) -> String {
        let decoded = self.charset.as_ref().and_then(|charset| charset.decode(bytes).ok());
        decoded.unwrap_or_else(|| String::from_utf8_lossy(bytes).into_owned())
    }

    /// The numbers of an element, whatever they are stored as; empty where it is missing, an error where it holds none.
    pub(super) fn numbers(&self, data: &DataSet, tag: Tag) -> Result<Vec<f64>> {
        let Some(element) = data.get(tag) else { return Ok(Vec::new()) };
        let wrong = || Error::format(self.source.path(), format!("DICOM: {} holds no number", keyword(tag)));
        let bytes = self.small(element)?.ok_or_else(wrong)?;
        if let VR::DS | VR::IS = element.vr {
            let text = String::from_utf8_lossy(&bytes);
            if trim(&text).is_empty() {
                return Ok(Vec::new());
            }
            let parse = |part: &str| trim(part).parse::<f64>().ok().filter(|number| number.is_finite());
            return text.split('\\').map(|part| parse(part).ok_or_else(wrong)).collect();
        }
        let width = match element.vr {
            VR::US | VR::SS => 2,
            VR::UL | VR::SL | VR::FL => 4,
            VR::FD => 8,
            _ => return Err(wrong()),
        };
        if bytes.len() % width != 0 {
            return Err(wrong());
        }
        let number = |raw: &[u8]| match (element.vr, raw) {
            (VR::US, &[a, b]) => u16::from_le_bytes([a, b]).into(),
            (VR::SS, &[a, b]) => i16::from_le_bytes([a, b]).into(),
            (VR::UL, &[a, b, c, d]) => u32::from_le_bytes([a, b, c, d]).into(),
            (VR::SL, &[a, b, c, d]) => i32::from_le_bytes([a, b, c, d]).into(),
            (VR::FL, &[a, b, c, d]) => f32::from_le_bytes([a, b, c, d]).into(),
            (_, raw) => raw.try_into().map_or(f64::NAN, f64::from_le_bytes),
        };
        Ok(bytes.chunks_exact(width).map(number).collect())
    }

    /// The first number of an element as a count, if the element is there.
    pub(super) fn count(&self, data: &DataSet, tag: Tag) -> Result<Option<u64>> {
        let Some(&number) = self.numbers(data, tag)?.first() else { return Ok(None) };
        if number < 0.0 || number > f64::from(u32::MAX) || number.fract() != 0.0 {
            let what = format!("DICOM: {} is {number}, which is no count", keyword(tag));
            return Err(Error::format(self.source.path(), what));
        }
        Ok(Some(number as u64))
    }
}

/// A text without its padding.
pub(super) fn trim(text: &str) -> &str {
    text.trim_matches([' ', '\0'])
}

/// What the standard calls a tag, for messages and properties.
pub(super) fn keyword(tag: Tag) -> String {
    known(tag).map_or_else(|| format!("({:04X},{:04X})", tag.group(), tag.element()), |(keyword, _)| keyword.to_owned())
}

/// Name and type of a tag of the standard.
pub(super) fn known(tag: Tag) -> Option<(&'static str, VR)> {
    let entry = StandardDataDictionary.by_tag(tag).filter(|entry| entry.tag.inner() == tag)?;
    Some((entry.alias, entry.vr().relaxed()))
}

/// The header of an element.
#[derive(Debug, Clone, Copy)]
pub(super) struct Header {
    pub(super) tag: Tag,
    pub(super) vr: VR,
    pub(super) length: u32,
    /// Where its value starts.
    pub(super) value: u64,
}

/// Reads headers one after the other, through a window, so that a source without a map is not asked for each.
#[derive(Debug)]
pub(super) struct Walk<'a> {
    source: &'a dyn ByteSource,
    window: Cow<'a, [u8]>,
    window_at: u64,
    pub(super) at: u64,
    elements: usize,
}

/// Bytes that are read ahead.
const WINDOW: u64 = 1 << 16;

impl<'a> Walk<'a> {
    pub(super) fn new(source: &'a dyn ByteSource, at: u64) -> Self {
        Self { source, window: Cow::Borrowed(&[]), window_at: at, at, elements: 0 }
    }

    fn error(&self, what: impl std::fmt::Display) -> Error {
        Error::format(self.source.path(), format!("DICOM: at byte {}: {what}", self.at))
    }

    /// The next `N` bytes, without going on.
    fn peek<const N: usize>(&mut self, offset: u64) -> Result<[u8; N]> {
        let start = self.at + offset;
        let inside = |walk: &Self| {
            let from = usize::try_from(start.checked_sub(walk.window_at)?).ok()?;
            walk.window.get(from..from.checked_add(N)?)?.try_into().ok()
        };
        if let Some(bytes) = inside(self) {
            return Ok(bytes);
        }
        let end = self.source.len().min(start.saturating_add(WINDOW));
        if end.saturating_sub(start) < N as u64 {
            return Err(self.error("the file ends inside an element: it may be truncated"));
        }
        self.window = self.source.read_at(start..end)?;
        self.window_at = start;
        inside(self).ok_or_else(|| self.error("the file ends inside an element"))
    }

    /// The tag that comes next, or `None` at the end of the file.
    pub(super) fn next_tag(&mut self) -> Result<Option<Tag>> {
        if self.at == self.source.len() {
            return Ok(None);
        }
        let [a, b, c, d] = self.peek(0)?;
        Ok(Some(Tag(u16::from_le_bytes([a, b]), u16::from_le_bytes([c, d]))))
    }

    /// Reads a header. Unless its length is undefined, the value lies within the file.
    pub(super) fn header(&mut self, encoding: Encoding) -> Result<Header> {
        let Some(tag) = self.next_tag()? else { return Err(self.error("the file ends where an element should be")) };
        let is_item = tag.group() == 0xfffe;
        let (vr, length, size) = if is_item || encoding == Encoding::Implicit {
            let vr = if is_item { VR::UN } else { implicit_vr(tag) };
            (vr, u32::from_le_bytes(self.peek(4)?), 8)
        } else {
            let code: [u8; 2] = self.peek(4)?;
            let Some(vr) = VR::from_binary(code) else {
                let code = code.escape_ascii();
                return Err(self.error(format_args!("element {} has the unknown type {code}", keyword(tag))));
            };
            if has_long_header(vr) {
                (vr, u32::from_le_bytes(self.peek(8)?), 12)
            } else {
                (vr, u16::from_le_bytes(self.peek(6)?).into(), 8)
            }
        };
        let value = self.at + size;
        if length != UNDEFINED && self.source.len() - value < u64::from(length) {
            return Err(self.error(format_args!(
                "{} is said to be {length} bytes long, the file has {} more: it may be truncated",
                keyword(tag),
                self.source.len() - value
            )));
        }
        self.at = value;
        Ok(Header { tag, vr, length, value })
    }

    /// Reads what follows a header.
    pub(super) fn element(&mut self, header: Header, encoding: Encoding, depth: usize) -> Result<Element> {
        let Header { tag, vr, length, value } = header;
        self.elements += 1;
        if self.elements > MAX_ELEMENTS {
            return Err(Error::limits(
                self.source.path(),
                format!("DICOM: the header has more elements than the {MAX_ELEMENTS} that are allowed"),
            ));
        }
        if vr == VR::SQ || (vr == VR::UN && length == UNDEFINED) {
            // Sequences of unknown type are written without types (PS3.5, 6.2.2, note 2).
            let encoding = if vr == VR::SQ { encoding } else { Encoding::Implicit };
            let mut items = Vec::new();
            self.sequence(header, encoding, depth, |_, item| {
                items.push(item);
                Ok(())
            })?;
            return Ok(Element { tag, vr: VR::SQ, value: Value::Items(items) });
        }
        if length == UNDEFINED {
            return Err(self.error(format_args!("{} has no length", keyword(tag))));
        }
        self.at = value + u64::from(length);
        Ok(Element { tag, vr, value: Value::Bytes(value..self.at) })
    }

    /// Reads the items of a sequence, one after the other.
    pub(super) fn sequence(
        &mut self,
        header: Header,
        encoding: Encoding,
        depth: usize,
        mut take: impl FnMut(&mut Self, DataSet) -> Result<()>,
    ) -> Result<()> {
        if depth >= MAX_DEPTH {
            return Err(Error::limits(
                self.source.path(),
                format!("DICOM: sequences are nested deeper than the {MAX_DEPTH} levels that are allowed"),
            ));
        }
        let end = (header.length != UNDEFINED).then(|| header.value + u64::from(header.length));
        loop {
            if end.is_some_and(|end| self.at >= end) {
                break;
            }
            let item = self.header(encoding)?;
            match item.tag {
                ITEM => {
                    let data = self.item(item, encoding, depth + 1)?;
                    take(self, data)?;
                }
                END_OF_ITEMS if end.is_none() => return Ok(()),
                other => {
                    return Err(self.error(format_args!("{} is no item of a sequence", keyword(other))));
                }
            }
        }
        if Some(self.at) == end { Ok(()) } else { Err(self.error("an item is longer than its sequence")) }
    }

    /// Reads the elements of an item.
    fn item(&mut self, header: Header, encoding: Encoding, depth: usize) -> Result<DataSet> {
        let end = (header.length != UNDEFINED).then(|| header.value + u64::from(header.length));
        let mut data = DataSet::default();
        loop {
            if end.is_some_and(|end| self.at >= end) {
                break;
            }
            let header = self.header(encoding)?;
            if header.tag == END_OF_ITEM && end.is_none() {
                return Ok(data);
            }
            if header.tag.group() == 0xfffe {
                return Err(self.error("an item ends where none was begun"));
            }
            data.0.push(self.element(header, encoding, depth)?);
        }
        if Some(self.at) == end { Ok(data) } else { Err(self.error("an element is longer than its item")) }
    }

    /// Starts to count elements anew: what was read is not kept.
    pub(super) fn forget(&mut self) {
        self.elements = 0;
    }
}

/// The type of a tag that does not say it.
fn implicit_vr(tag: Tag) -> VR {
    known(tag).map_or(VR::UN, |(_, vr)| vr)
}

/// True for types whose length takes 4 bytes after 2 that are unused (PS3.5, table 7.1-1).
fn has_long_header(vr: VR) -> bool {
    matches!(
        vr,
        VR::OB
            | VR::OD
            | VR::OF
            | VR::OL
            | VR::OV
            | VR::OW
            | VR::SQ
            | VR::SV
            | VR::UC
            | VR::UN
            | VR::UR
            | VR::UT
            | VR::UV
    )
}
