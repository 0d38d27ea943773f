//! One DICOM file of a slide: what its header says, checked, and where its frames lie.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use dicom_core::{Tag, VR};
use dicom_dictionary_std::tags;

use super::element::{DataSet, Encoding, Header, Value, Values, Walk};
use super::frame::{Coding, Color, Format, Syntax};
use super::frames::{Frames, Place};
use crate::bytes::ByteSource;
use crate::slide::Limits;
use crate::{Error, Result, SampleType, Size};

/// VL Whole Slide Microscopy Image Storage.
const WHOLE_SLIDE: &str = "1.2.840.10008.5.1.4.1.1.77.1.6";

/// Numbers of frames that the table of places can hold.
const MAX_FRAMES: u64 = u32::MAX as u64;

/// Optical paths that frames may name.
const MAX_PATHS: u32 = 1 << 10;

/// What a file turned out to be.
#[derive(Debug)]
pub(super) enum Found {
    /// A part of a slide.
    Slide(Box<Instance>),
    /// A DICOM file of another kind, by name.
    Foreign(String),
    /// A part of a slide of another series than the one asked for.
    OtherSeries,
}

/// What the picture of a file is to the slide, by its Image Type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    Level,
    Label,
    Macro,
    Thumbnail,
    /// Something that has no name here.
    Other,
}

/// Where frames lie on the slide.
#[derive(Debug)]
pub(super) enum Places {
    /// Everywhere: row by row, optical path after optical path.
    Full,
    /// Where each frame says: per frame the tile and the optical path. The number of the tile counts row by row.
    Sparse(Vec<(u64, u32)>),
}

/// A file of a slide.
#[derive(Debug)]
pub(super) struct Instance {
    pub(super) values: Values,
    /// The file's own header (group 2).
    pub(super) meta: DataSet,
    /// Everything before the functional groups of single frames.
    pub(super) data: DataSet,
    pub(super) series: String,
    pub(super) role: Role,
    /// Pixels of the whole matrix.
    pub(super) size: Size,
    pub(super) uid: String,
    /// The concatenation that the file is a part of.
    pub(super) concatenation: Option<String>,
    /// Frames of the concatenation that come before this file's.
    pub(super) first_frame: u64,
    /// Identifiers of the optical paths.
    pub(super) paths: Vec<String>,
    pub(super) places: Places,
    /// How frames are stored and where, or why they cannot be read: a picture that travels along is no reason to refuse
    /// a slide.
    pub(super) picture: std::result::Result<Picture, Error>,
}

/// The frames of a file.
#[derive(Debug)]
pub(super) struct Picture {
    pub(super) format: Format,
    pub(super) frames: Frames,
}

/// True if bytes are the start of a DICOM file.
pub(crate) fn is_dicom(head: &[u8]) -> bool {
    head.get(128..132) == Some(b"DICM")
}

impl Instance {
    /// Reads the header of a file, of the given series if one is given.
    pub(super) fn read(source: &Arc<dyn ByteSource>, series: Option<&str>, limits: &Limits) -> Result<Found> {
        let found = Self::parse(source, series, limits);
        // Bytes that vanished meanwhile read as zeros.
        source.still_whole()?;
        found
    }

    fn parse(source: &Arc<dyn ByteSource>, series: Option<&str>, limits: &Limits) -> Result<Found> {
        let path = source.path();
        let mut values = Values::new(Arc::clone(source));
        let mut walk = Walk::new(&**source, 132);
        let mut meta = DataSet::default();
        while walk.next_tag()?.is_some_and(|tag| tag.group() == 2) {
            let header = walk.header(Encoding::Explicit)?;
            meta.0.push(walk.element(header, Encoding::Explicit, 0)?);
        }
        let class = values.text(&meta, tags::MEDIA_STORAGE_SOP_CLASS_UID)?;
        let class = class.ok_or_else(|| Error::format(path, "DICOM: the file does not say of what kind it is"))?;
        if class != WHOLE_SLIDE {
            return Ok(Found::Foreign(class_name(&class)));
        }
        let uid = values.text(&meta, tags::TRANSFER_SYNTAX_UID)?;
        let uid = uid.ok_or_else(|| Error::format(path, "DICOM: the file does not say its transfer syntax"))?;
        let syntax = Syntax::of(&uid);
        // What cannot be decoded may yet say what it belongs to, unless its header is written otherwise, too.
        let implicit = match &syntax {
            Ok(syntax) => syntax.implicit,
            Err(what) if matches!(&*uid, "1.2.840.10008.1.2.2" | "1.2.840.10008.1.2.1.99") => {
                return Err(Error::unsupported(path, what));
            }
            Err(_) => false,
        };
        let encoding = if implicit { Encoding::Implicit } else { Encoding::Explicit };

        let mut data = DataSet::default();
        let mut per_frame = None;
        let mut extended = None;
        let mut pixels = None;
        while let Some(tag) = walk.next_tag()? {
            let header = walk.header(encoding)?;
            match tag {
                tags::PER_FRAME_FUNCTIONAL_GROUPS_SEQUENCE => {
                    per_frame = Some((header, PerFrame::read(&mut walk, &values, header, encoding, limits)?));
                }
                tags::PIXEL_DATA => {
                    pixels = Some(header);
                    break;
                }
                tags::EXTENDED_OFFSET_TABLE => {
                    let element = walk.element(header, encoding, 0)?;
                    if let Value::Bytes(range) = element.value {
                        extended = Some(range);
                    }
                }
                _ => {
                    data.0.push(walk.element(header, encoding, 0)?);
                    if tag == tags::SPECIFIC_CHARACTER_SET {
                        values.learn_charset(&data)?;
                    }
                    if tag == tags::SERIES_INSTANCE_UID {
                        let found = values.text(&data, tag)?;
                        if series.is_some_and(|series| found.as_deref() != Some(series)) {
                            return Ok(Found::OtherSeries);
                        }
                    }
                }
            }
        }

        let required = |tag: Tag| {
            let found = values.text(&data, tag)?;
            found.ok_or_else(|| Error::format(path, format!("DICOM: there is no {}", super::element::keyword(tag))))
        };
        let series = required(tags::SERIES_INSTANCE_UID)?;
        let uid = required(tags::SOP_INSTANCE_UID)?;
        let image_type = values.texts(&data, tags::IMAGE_TYPE)?;
        let role = match image_type.get(2).map(String::as_str) {
            Some("VOLUME") => Role::Level,
            Some("LABEL") => Role::Label,
            Some("OVERVIEW") => Role::Macro,
            Some("THUMBNAIL") => Role::Thumbnail,
            _ => Role::Other,
        };
        let count = |tag: Tag| {
            let found = values.count(&data, tag)?;
            found.ok_or_else(|| Error::format(path, format!("DICOM: there is no {}", super::element::keyword(tag))))
        };
        let size = Size::new(count(tags::TOTAL_PIXEL_MATRIX_COLUMNS)?, count(tags::TOTAL_PIXEL_MATRIX_ROWS)?);
        let tile = Size::new(count(tags::COLUMNS)?, count(tags::ROWS)?);
        if size.is_empty() || tile.is_empty() || tile.width > u16::MAX.into() || tile.height > u16::MAX.into() {
            return Err(Error::format(path, format!("DICOM: a matrix of {size} pixels in tiles of {tile}")));
        }
        let frames = values.count(&data, tags::NUMBER_OF_FRAMES)?.unwrap_or(1);
        if frames == 0 || frames > MAX_FRAMES || frames.saturating_mul(16) > limits.table_bytes {
            return Err(Error::limits(path, format!("DICOM: {frames} frames are more than can be read")));
        }
        let planes = values.count(&data, tags::TOTAL_PIXEL_MATRIX_FOCAL_PLANES)?.unwrap_or(1);
        if planes != 1 {
            return Err(Error::unsupported(path, format!("DICOM: {planes} focal planes cannot be read, one can")));
        }
        let mut paths = Vec::new();
        for item in data.items(tags::OPTICAL_PATH_SEQUENCE) {
            paths.push(values.text(item, tags::OPTICAL_PATH_IDENTIFIER)?.unwrap_or_default());
        }
        if paths.is_empty() {
            paths.push(String::new());
        }
        let organization = values.text(&data, tags::DIMENSION_ORGANIZATION_TYPE)?;
        let places = match (organization.as_deref(), per_frame) {
            (Some("TILED_FULL"), _) | (None, None) => Places::Full,
            (Some("TILED_SPARSE") | None, Some((_, per_frame))) => {
                let shared = data.item(tags::SHARED_FUNCTIONAL_GROUPS_SEQUENCE);
                let shared = shared.map(|shared| path_of(&values, shared)).transpose()?.flatten();
                Places::Sparse(per_frame.places(path, frames, size, tile, &paths, shared.as_deref())?)
            }
            (Some(other), _) => {
                return Err(Error::unsupported(
                    path,
                    format!("DICOM: frames organised as {other} cannot be read, TILED_FULL and TILED_SPARSE can"),
                ));
            }
        };
        let picture = syntax.map_err(|what| Error::unsupported(path, what)).and_then(|syntax| {
            let format = format(&values, &data, syntax, tile, limits)?;
            Ok(Picture { format, frames: locate(source, syntax, &format, pixels, extended, frames, limits)? })
        });
        let concatenation = values.text(&data, tags::CONCATENATION_UID)?;
        let first_frame = values.count(&data, tags::CONCATENATION_FRAME_OFFSET_NUMBER)?.unwrap_or(0);
        Ok(Found::Slide(Box::new(Self {
            values,
            meta,
            data,
            series,
            role,
            size,
            uid,
            concatenation,
            first_frame,
            paths,
            places,
            picture,
        })))
    }

    /// The frames, or why they cannot be read.
    pub(super) fn picture(&self) -> Result<&Picture> {
        self.picture.as_ref().map_err(|error| match error {
            Error::Unsupported { path, message } => Error::unsupported(path, message),
            Error::Limits { path, message } => Error::limits(path, message),
            other => Error::format(self.values.source.path(), other.to_string()),
        })
    }
}

/// How frames are stored.
fn format(values: &Values, data: &DataSet, syntax: Syntax, tile: Size, limits: &Limits) -> Result<Format> {
    let path = values.source.path();
    let unsupported = |what: String| Err(Error::unsupported(path, format!("DICOM: {what}")));
    let number = |tag: Tag, default: u64| Ok::<_, Error>(values.count(data, tag)?.unwrap_or(default));
    let samples = number(tags::SAMPLES_PER_PIXEL, 1)?;
    let allocated = number(tags::BITS_ALLOCATED, 0)?;
    let bits = number(tags::BITS_STORED, allocated)?;
    let high = number(tags::HIGH_BIT, bits.saturating_sub(1))?;
    let planar = number(tags::PLANAR_CONFIGURATION, 0)? == 1 && samples > 1;
    let photometric = values.text(data, tags::PHOTOMETRIC_INTERPRETATION)?.unwrap_or_default();
    let color = match &*photometric {
        "MONOCHROME1" => Color::InvertedGrey,
        "MONOCHROME2" => Color::Grey,
        "RGB" => Color::Rgb,
        // The decoder undoes the transforms of JPEG 2000: they are a part of the stream.
        "YBR_ICT" | "YBR_RCT" if syntax.coding == Coding::Jpeg2000 => Color::Rgb,
        "YBR_FULL" => Color::Ybr,
        "YBR_FULL_422" => Color::Ybr422,
        "" => return Err(Error::format(path, "DICOM: there is no PhotometricInterpretation")),
        other => {
            return unsupported(format!(
                "colours stored as {other} cannot be read here: MONOCHROME1, MONOCHROME2, RGB, YBR_FULL and YBR_FULL_422 can"
            ));
        }
    };
    let channels = if let Color::Grey | Color::InvertedGrey = color { 1 } else { 3 };
    if samples != channels {
        return Err(Error::format(path, format!("DICOM: {samples} samples per pixel cannot be {photometric}")));
    }
    let sample = match allocated {
        8 => SampleType::U8,
        16 => SampleType::U16,
        _ => return unsupported(format!("{allocated} bits per sample cannot be read, 8 and 16 can")),
    };
    if bits == 0 || bits > allocated || high != bits - 1 {
        return unsupported(format!("{bits} bits of {allocated}, up to bit {high}, cannot be read"));
    }
    if number(tags::PIXEL_REPRESENTATION, 0)? != 0 {
        return unsupported("signed samples cannot be read, unsigned ones can".into());
    }
    let bits_fit = match (syntax.coding, color) {
        (Coding::Jpeg, _) | (_, Color::Ybr | Color::Ybr422) => (allocated, bits) == (8, 8),
        _ => true,
    };
    if !bits_fit {
        return unsupported(format!("{photometric} of {bits} bits in this transfer syntax cannot be read, 8 bits can"));
    }
    if color == Color::Ybr422
        && (matches!(syntax.coding, Coding::Rle | Coding::JpegLs)
            || syntax.coding == Coding::Raw && (planar || tile.width % 2 == 1))
    {
        return unsupported("YBR_FULL_422 cannot be read in planes, run lengths or odd rows".into());
    }
    let format = Format {
        coding: syntax.coding,
        color,
        size: tile,
        channels: channels as usize,
        sample,
        bits: bits as u32,
        planar,
    };
    let bytes = tile.area().saturating_mul(channels * sample.bytes() as u64);
    if bytes > limits.decoded_bytes {
        let limit = limits.decoded_bytes;
        return Err(Error::limits(path, format!("frames of {tile} pixels take {bytes} bytes, the limit is {limit}")));
    }
    Ok(format)
}

/// Where the frames lie.
fn locate(
    source: &Arc<dyn ByteSource>,
    syntax: Syntax,
    format: &Format,
    pixels: Option<Header>,
    extended: Option<Range<u64>>,
    count: u64,
    limits: &Limits,
) -> Result<Frames> {
    let path = source.path();
    let pixels = pixels.ok_or_else(|| Error::format(path, "DICOM: there are no pixels of whole numbers"))?;
    if syntax.items != (pixels.length == u32::MAX) {
        let how = if syntax.items { "are not in items" } else { "have no length" };
        return Err(Error::format(path, format!("DICOM: the pixels {how}, against the transfer syntax")));
    }
    if syntax.items {
        return Frames::items(source, pixels.value, extended, count, limits.decoded_bytes);
    }
    let bytes = pixels.value..pixels.value + u64::from(pixels.length);
    let frame = format.raw_bytes();
    let want = frame.saturating_mul(count);
    if bytes.end - bytes.start < want {
        let have = bytes.end - bytes.start;
        return Err(Error::format(path, format!("DICOM: {count} frames take {want} bytes, there are {have}")));
    }
    Ok(Frames { source: Arc::clone(source), place: Place::Native { bytes, frame }, count, limit: limits.decoded_bytes })
}

/// Column, row (counted from 1) and optical path of each frame, by its functional groups.
#[derive(Debug, Default)]
struct PerFrame {
    /// Column and row.
    at: Vec<(i32, i32)>,
    /// Numbers into `names`, one per frame, unless no frame names its path.
    path: Vec<u32>,
    names: BTreeMap<String, u32>,
}

impl PerFrame {
    fn read(walk: &mut Walk<'_>, values: &Values, header: Header, encoding: Encoding, limits: &Limits) -> Result<Self> {
        let mut found = Self::default();
        if header.vr != VR::SQ {
            return Err(Error::format(values.source.path(), "DICOM: the functional groups of frames are no sequence"));
        }
        walk.sequence(header, encoding, 0, |walk, item| {
            walk.forget();
            if (found.at.len() as u64 + 1).saturating_mul(16) > limits.table_bytes {
                return Err(Error::limits(values.source.path(), "DICOM: more frames than can be read"));
            }
            let position = item.item(tags::PLANE_POSITION_SLIDE_SEQUENCE);
            let number = |tag: Tag| -> Result<Option<i32>> {
                let Some(position) = position else { return Ok(None) };
                let found = values.numbers(position, tag)?;
                Ok(found.first().map(|&number| number as i32))
            };
            let column = number(tags::COLUMN_POSITION_IN_TOTAL_IMAGE_PIXEL_MATRIX)?;
            let row = number(tags::ROW_POSITION_IN_TOTAL_IMAGE_PIXEL_MATRIX)?;
            // 0 is no place: the first column is 1.
            found.at.push((column.unwrap_or(0), row.unwrap_or(0)));
            if let Some(name) = path_of(values, &item)? {
                let next = found.names.len() as u32;
                if next > MAX_PATHS {
                    return Err(Error::limits(
                        values.source.path(),
                        "DICOM: frames name more optical paths than can be read",
                    ));
                }
                let number = *found.names.entry(name).or_insert(next);
                found.path.push(number);
            }
            Ok(())
        })?;
        Ok(found)
    }

    /// The tile and the optical path of each frame.
    fn places(
        self,
        file: &std::path::Path,
        frames: u64,
        size: Size,
        tile: Size,
        paths: &[String],
        shared: Option<&str>,
    ) -> Result<Vec<(u64, u32)>> {
        let wrong = |what: String| Error::format(file, format!("DICOM: {what}"));
        if self.at.len() as u64 != frames {
            return Err(wrong(format!("there are functional groups of {} frames, and {frames} frames", self.at.len())));
        }
        if !self.path.is_empty() && self.path.len() != self.at.len() {
            return Err(wrong("some frames name their optical path, others do not".into()));
        }
        let find = |name: &str| {
            let found = paths.iter().position(|path| path == name);
            found
                .map(|path| path as u32)
                .ok_or_else(|| wrong(format!("a frame is of the unknown optical path {name:?}")))
        };
        let mut numbers = vec![0; self.names.len()];
        for (name, &number) in &self.names {
            numbers[number as usize] = find(name)?;
        }
        let common = match shared {
            Some(name) => find(name)?,
            None if paths.len() > 1 && self.path.is_empty() => {
                return Err(wrong("there are several optical paths, and frames do not name theirs".into()));
            }
            None => 0,
        };
        let across = size.cells(tile).width;
        let place = |(frame, (column, row)): (usize, (i32, i32))| {
            let (Ok(x @ 1..), Ok(y @ 1..)) = (u64::try_from(column), u64::try_from(row)) else {
                return Err(wrong(format!("frame {frame} does not say where it lies")));
            };
            let (x, y) = (x - 1, y - 1);
            if x >= size.width || y >= size.height {
                return Err(wrong(format!("frame {frame} lies outside of the matrix, at column {column}, row {row}")));
            }
            if x % tile.width != 0 || y % tile.height != 0 {
                return Err(Error::unsupported(
                    file,
                    format!(
                        "DICOM: frame {frame} lies at column {column}, row {row}: tiles of {tile} pixels that lie on no grid cannot be read"
                    ),
                ));
            }
            let path = self.path.get(frame).map_or(common, |&number| numbers[number as usize]);
            Ok((y / tile.height * across + x / tile.width, path))
        };
        self.at.iter().copied().enumerate().map(place).collect()
    }
}

/// The optical path that functional groups name.
fn path_of(values: &Values, groups: &DataSet) -> Result<Option<String>> {
    let Some(item) = groups.item(tags::OPTICAL_PATH_IDENTIFICATION_SEQUENCE) else { return Ok(None) };
    values.text(item, tags::OPTICAL_PATH_IDENTIFIER)
}

/// What a kind of file is called; names from PS3.4, annex B.5.
fn class_name(uid: &str) -> String {
    let name = match uid {
        "1.2.840.10008.1.3.10" => "a DICOMDIR",
        "1.2.840.10008.5.1.4.1.1.66.4" => "a segmentation",
        "1.2.840.10008.5.1.4.1.1.66.7" => "a label map segmentation",
        "1.2.840.10008.5.1.4.1.1.91.1" => "annotations",
        "1.2.840.10008.5.1.4.1.1.30" => "a parametric map",
        "1.2.840.10008.5.1.4.1.1.77.1.2" | "1.2.840.10008.5.1.4.1.1.77.1.3" => "a microscopic picture without a slide",
        "1.2.840.10008.5.1.4.1.1.77.1.8" => "a confocal picture",
        "1.2.840.10008.5.1.4.1.1.77.1.9" => "a tiled confocal picture",
        "1.2.840.10008.5.1.4.1.1.2" => "computed tomography",
        "1.2.840.10008.5.1.4.1.1.4" => "magnetic resonance",
        _ if uid.starts_with("1.2.840.10008.5.1.4.1.1.7") => "another picture",
        _ if uid.starts_with("1.2.840.10008.5.1.4.1.1.88.") => "a structured report",
        _ => "another kind",
    };
    format!("{name} (storage class {uid})")
}
