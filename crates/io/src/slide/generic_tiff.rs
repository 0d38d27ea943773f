//! Tiled pyramids without a vendor, and plain TIFF pictures.
//!
//! Level 0 is the first page. Further levels are the pages of its `SubIFDs`, and other pages that are smaller, of the
//! same shape to the pixel, and of tiles as the first one is (or, where it is of strips, marked as reduced pictures).
//! Pages that are none of this are not read; the property `microtome.pages-not-read` counts them.
//! A page of the size of the first one means that the file is a stack (channels, focal planes, times): it is refused,
//! because one page of it would pass for the whole.
//!
//! Files of vendors that are TIFF on the outside and need a reader of their own are refused by name, in [`refuse`].
//!
//! The resolution is that of `XResolution`, `YResolution` and `ResolutionUnit`, if the unit is a length and the result
//! lies within 0.05 to 10 µm per pixel: many programs write 72 dots per inch, meaning nothing. What is
//! disregarded is said in the property `microtome.resolution-ignored`.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::pyramid::{Layer, Parts, Pyramid, explains};
use super::raster::Raster as _;
use super::tiff::{Container, Ifd, Page, Tag, Tiff};
use super::{OpenOptions, Resolution, ResolutionSource, SlideReader};
use crate::{Error, Microns, Result, Size};

/// The bits of `NewSubfileType`.
const REDUCED: u64 = 1;
const MASK: u64 = 4;

/// The resolutions of microscopes, in micrometres per pixel, with room to spare: 100x oil is 0.1, a slide at 1x is 10.
pub(super) const PLAUSIBLE_MPP: std::ops::RangeInclusive<f64> = 0.05..=10.0;

const COLORS: [&str; 3] = ["red", "green", "blue"];

/// Opens a TIFF that no vendor's reader claimed.
pub(super) fn open(tiff: Tiff, options: &OpenOptions) -> Result<Box<dyn SlideReader>> {
    let file = tiff.file();
    let first = &tiff.directories()[0];
    refuse(&tiff)?;
    let full = Page::read(file, first)?;

    let mut properties = tiff.text_properties()?;
    let mut levels = vec![full.clone()];
    let mut not_read = 0;
    for (index, ifd) in tiff.directories().iter().enumerate().skip(1) {
        match role(file, ifd, &full, first.is_tiled())? {
            Role::Level => levels.push(Page::read(file, ifd)?),
            Role::Stack => {
                return Err(Error::unsupported(
                    file.path(),
                    format!(
                        "page {index} has the size of page 0: a stack of channels, focal planes or times cannot be read"
                    ),
                ));
            }
            Role::Other => not_read += 1,
        }
    }
    for ifd in tiff.sub_directories(first)? {
        match size(file, &ifd)? {
            Some(reduced) if reduced.width < full.layout.size.width && explains(full.layout.size, reduced) => {
                levels.push(Page::read(file, &ifd)?);
            }
            _ => not_read += 1,
        }
    }
    levels.sort_by_key(|page| std::cmp::Reverse(page.layout.size.width));
    if not_read > 0 {
        properties.insert("microtome.pages-not-read".into(), not_read.to_string());
    }
    if full.has_alpha() {
        properties.insert("microtome.alpha".into(), "laid over white".into());
    }
    let resolution = match resolution(file, first, &mut properties)? {
        Ok(resolution) => resolution,
        Err(why) => {
            properties.insert("microtome.resolution-ignored".into(), why);
            None
        }
    };
    // Without names, four channels are not known to begin with colours.
    let channels = full.shape().channels;
    let is_rgb = first.unsigned(file, Tag::PHOTOMETRIC_INTERPRETATION)? == Some(2);
    let channel_names = match channels {
        4.. if is_rgb => (0..channels).map(|n| COLORS.get(n).map_or(format!("channel {n}"), |&c| c.into())).collect(),
        _ => Vec::new(),
    };
    let parts = Parts {
        channel_names,
        resolution,
        icc_profile: first.bytes(file, Tag::ICC_PROFILE)?,
        properties,
        ..Parts::new("generic-tiff", Arc::clone(file.source()), levels.into_iter().map(Layer::of).collect())
    };
    Ok(Box::new(Pyramid::new(parts, options)?))
}

/// What a page after the first one is.
enum Role {
    Level,
    Stack,
    Other,
}

fn role(file: &Container, ifd: &Ifd, full: &Page, full_is_tiled: bool) -> Result<Role> {
    let kind = ifd.unsigned(file, Tag::NEW_SUBFILE_TYPE)?.unwrap_or(0);
    let Some(size) = size(file, ifd)? else { return Ok(Role::Other) };
    if kind & MASK != 0 {
        return Ok(Role::Other);
    }
    if size == full.layout.size {
        return Ok(Role::Stack);
    }
    let smaller = size.width < full.layout.size.width && size.height <= full.layout.size.height;
    let of_the_pyramid = if full_is_tiled { ifd.is_tiled() } else { kind & REDUCED != 0 };
    Ok(if smaller && of_the_pyramid && explains(full.layout.size, size) { Role::Level } else { Role::Other })
}

fn size(file: &Container, ifd: &Ifd) -> Result<Option<Size>> {
    let (width, height) = (ifd.unsigned(file, Tag::IMAGE_WIDTH)?, ifd.unsigned(file, Tag::IMAGE_LENGTH)?);
    Ok(width.zip(height).map(|(width, height)| Size::new(width, height)).filter(|size| !size.is_empty()))
}

/// The physical size of a pixel by the resolution tags, or why they are disregarded.
pub(super) fn resolution(
    file: &Container,
    ifd: &Ifd,
    properties: &mut BTreeMap<String, String>,
) -> Result<Result<Option<Resolution>, String>> {
    let (x, y) = (ifd.rational(file, Tag::X_RESOLUTION)?, ifd.rational(file, Tag::Y_RESOLUTION)?);
    let unit = ifd.unsigned(file, Tag::RESOLUTION_UNIT)?.unwrap_or(2);
    let name = match unit {
        2 => "inch",
        3 => "centimeter",
        _ => "none",
    };
    for (tag, value) in [("XResolution", x), ("YResolution", y)] {
        if let Some(value) = value {
            properties.insert(format!("tiff.{tag}"), value.to_string());
        }
    }
    let (Some(x), Some(y)) = (x, y) else { return Ok(Ok(None)) };
    properties.insert("tiff.ResolutionUnit".into(), name.into());
    let microns_per_unit = match unit {
        2 => 25_400.0,
        3 => 10_000.0,
        _ => return Ok(Err("the resolution tags give a ratio, not a length".into())),
    };
    let mpp = Microns { x: microns_per_unit / x, y: microns_per_unit / y };
    if !PLAUSIBLE_MPP.contains(&mpp.x) || !PLAUSIBLE_MPP.contains(&mpp.y) {
        return Ok(Err(format!(
            "{x} by {y} pixels per {name} would be {} by {} micrometres per pixel, outside of {} to {}",
            mpp.x,
            mpp.y,
            PLAUSIBLE_MPP.start(),
            PLAUSIBLE_MPP.end()
        )));
    }
    Ok(Ok(Some(Resolution { mpp, source: ResolutionSource::TiffTags })))
}

/// Refuses, by name, files that look like a TIFF picture and are something else.
fn refuse(tiff: &Tiff) -> Result<()> {
    let (file, first) = (tiff.file(), &tiff.directories()[0]);
    let text = |tag: Tag| Ok::<_, Error>(first.text(file, tag)?.unwrap_or_default());
    let (description, software) = (text(Tag::IMAGE_DESCRIPTION)?, text(Tag::SOFTWARE)?);
    let name = if software.starts_with("ScanOutputManager") || description.starts_with("Ventana") {
        "Ventana slide without its iScan description"
    } else if software.starts_with("MedScan") {
        "Trestle TIFF without description or tiles"
    } else if first.has(Tag::ZEISS_LSM) {
        "Zeiss LSM"
    } else if first.has(Tag::METAMORPH_STACK) {
        "MetaMorph stack"
    } else if first.has(Tag::DNG_VERSION) {
        "DNG (raw camera)"
    } else {
        return refuse_stack(file, &description);
    };
    Err(Error::unsupported(file.path(), format!("this is a {name} file, which microtome cannot read yet")))
}

/// Refuses stacks that their description admits to: ImageJ keeps further planes behind the first page without pages of
/// their own.
fn refuse_stack(file: &Container, description: &str) -> Result<()> {
    let mut lines = description.lines();
    let planes = lines.next().is_some_and(|line| line.starts_with("ImageJ="))
        && lines.find_map(|line| line.strip_prefix("images=")).is_some_and(|n| n.trim() != "1");
    if planes {
        return Err(Error::unsupported(
            file.path(),
            "by its description this is a stack (channels, focal planes or times), which cannot be read",
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bytes::Memory;

    #[test]
    fn stacks_are_known_by_their_description() {
        let memory = std::sync::Arc::new(Memory::new("x.tif", tiny()));
        let tiff = Tiff::parse(memory, &super::super::Limits::default()).unwrap();
        let refused = |text: &str| refuse_stack(tiff.file(), text).is_err();
        assert!(refused("ImageJ=1.52s\nimages=3\nchannels=3"));
        assert!(!refused("ImageJ=1.52s\n"));
    }

    /// The smallest thing that parses: one directory of one entry.
    fn tiny() -> Vec<u8> {
        let mut bytes = b"II\x2a\0\x08\0\0\0\x01\0".to_vec();
        bytes.extend([0x00, 0x01, 3, 0, 1, 0, 0, 0, 5, 0, 0, 0]);
        bytes.extend([0; 4]);
        bytes
    }
}
