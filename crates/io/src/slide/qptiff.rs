//! PerkinElmer and Akoya QPTIFF: a TIFF each page of which is described by XML, in a `PerkinElmer-QPI-ImageDescription`.
//!
//! `ImageType` says what a page is. Those of `FullResolution` are level 0: one page of three samples for brightfield, one
//! page of one sample for each channel for fluorescence. Those of `ReducedResolution` are the coarser levels, as many pages
//! of one size as level 0 has, in the same order. `Thumbnail`, `Overview` (called `macro` here, as in other formats)
//! and `Label` travel along. Pages without XML are taken for reduced ones where they have the shape of level 0; what is left is
//! counted in the property `microtome.pages-not-read`.
//!
//! A channel is named by its `Biomarker` or, where there is none, by its `Name`: newer files (PhenoCycler, Fusion) keep the
//! stain in the former and the filter in the latter, older ones (Vectra, Polaris, inForm) have the latter only. What the
//! `ScanProfile` lists is a plan of the scan, which channels are not sure to follow.
//!
//! The XML declares itself as UTF-16 and is UTF-8, all but always; both are read. The size of a pixel is that of the resolution
//! tags, or `PixelSizeMicrons` of the scan profile where there are none; `Objective` (`20x`) is the magnification.
//! Unmixed component data of inForm are floating-point samples, which are refused.
//!
//! Sources: Bio-Formats' documentation of its reader (order of pages, `Software`, the wrong encoding), tifffile 2026.3's
//! series, published notes on public files of PerkinElmer and Akoya. Not seen on a real file.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use roxmltree::Node;

use super::planes::Planes;
use super::pyramid::{Layer, Parts, Pyramid, explains};
use super::raster::Raster;
use super::tiff::page::Color;
use super::tiff::{Container, Ifd, Page, Tag, Tiff};
use super::{OpenOptions, Resolution, ResolutionSource, SlideReader, generic_tiff, xml};
use crate::{Error, Microns, Result, Size};

/// The name of the root element.
const ROOT: &str = "PerkinElmer-QPI-ImageDescription";

/// True if the first page is PerkinElmer's.
pub(super) fn detect(tiff: &Tiff) -> Result<bool> {
    let first = &tiff.directories()[0];
    let software = first.text(tiff.file(), Tag::SOFTWARE)?.unwrap_or_default();
    Ok(software.starts_with("PerkinElmer-QPI") || text(tiff.file(), first)?.contains(ROOT))
}

/// Opens a QPTIFF.
pub(super) fn open(tiff: Tiff, options: &OpenOptions) -> Result<Box<dyn SlideReader>> {
    let file = tiff.file();
    let mut full = Vec::new();
    let mut reduced = Vec::<(Size, Vec<Described>)>::new();
    let mut associated = Vec::<(String, Box<dyn Raster>)>::new();
    let mut not_read = 0_usize;
    for (number, ifd) in tiff.directories().iter().enumerate() {
        let page = Described { number, ifd, description: Description::read(file, number, ifd)? };
        match page.description.kind.as_deref() {
            Some("FullResolution") => full.push(page),
            Some("ReducedResolution") | None => {
                let size = page.size(file)?;
                match reduced.iter_mut().find(|(known, _)| *known == size) {
                    Some((_, pages)) => pages.push(page),
                    None => reduced.push((size, vec![page])),
                }
            }
            Some(kind) => {
                let name = match kind {
                    "Thumbnail" => "thumbnail",
                    "Overview" | "Macro" => "macro",
                    "Label" => "label",
                    _ => "",
                };
                let known = name.is_empty() || associated.iter().any(|(known, _)| known == name);
                // A picture that travels along and cannot be read is no reason to refuse the slide.
                match if known { None } else { Some(Page::read(file, ifd)) } {
                    Some(Ok(page)) => associated.push((name.to_owned(), Box::new(page))),
                    Some(Err(error)) if !matches!(error, Error::Unsupported { .. }) => return Err(error),
                    _ => not_read += 1,
                }
            }
        }
    }
    let Some(first) = full.first() else {
        return Err(Error::format(
            file.path(),
            "a QPTIFF without a page of the ImageType FullResolution has no level 0",
        ));
    };

    let size = first.size(file)?;
    let level = stack(file, &full, options)?;
    let is_colors = level.is_colors;
    let mut layers = vec![level.layer];
    for (reduced_size, pages) in &reduced {
        let said = pages.iter().any(|page| page.description.kind.is_some());
        if pages.len() == full.len() {
            if !said && !explains(size, *reduced_size) {
                not_read += pages.len();
                continue;
            }
            for (page, full) in pages.iter().zip(&full) {
                same_channel(file.path(), page, full)?;
            }
            layers.push(stack(file, pages, options)?.layer);
        } else if said {
            return Err(Error::format(
                file.path(),
                format!(
                    "the level of {reduced_size} pixels has {} pages where level 0 has {}",
                    pages.len(),
                    full.len()
                ),
            ));
        } else {
            not_read += pages.len();
        }
    }
    layers.sort_by_key(|layer| std::cmp::Reverse(layer.size.width));

    let mut properties = tiff.text_properties()?;
    properties.extend(first.description.properties.clone());
    let mut channel_names = Vec::new();
    if !is_colors {
        channel_names = full.iter().map(|page| page.description.name.clone().unwrap_or_default()).collect();
        for (number, page) in full.iter().enumerate() {
            for (key, value) in &page.description.channel {
                properties.insert(format!("perkinelmer.channel[{number}].{key}"), value.clone());
            }
        }
        if channel_names.iter().all(String::is_empty) {
            channel_names.clear();
        }
    }
    if not_read > 0 {
        properties.insert("microtome.pages-not-read".into(), not_read.to_string());
    }
    let resolution = match generic_tiff::resolution(file, first.ifd, &mut properties)? {
        Ok(resolution) => resolution,
        Err(why) => {
            properties.insert("microtome.resolution-ignored".into(), why);
            None
        }
    };
    let resolution = resolution.or_else(|| {
        let mpp = first.description.pixel_size?;
        Some(Resolution { mpp: Microns::square(mpp), source: ResolutionSource::Vendor("PixelSizeMicrons".to_owned()) })
    });
    let parts = Parts {
        associated,
        resolution,
        objective_power: first.description.objective,
        channel_names,
        icc_profile: first.ifd.bytes(file, Tag::ICC_PROFILE)?,
        properties,
        ..Parts::new("qptiff", Arc::clone(file.source()), layers)
    };
    Ok(Box::new(Pyramid::new(parts, options)?))
}

/// A page and what its XML says.
struct Described<'a> {
    number: usize,
    ifd: &'a Ifd,
    description: Description,
}

impl Described<'_> {
    fn size(&self, file: &Container) -> Result<Size> {
        let side = |tag: Tag| Ok::<_, Error>(self.ifd.unsigned(file, tag)?.unwrap_or(0));
        Ok(Size::new(side(Tag::IMAGE_WIDTH)?, side(Tag::IMAGE_LENGTH)?))
    }
}

/// A level made of pages.
struct Level {
    layer: Layer,
    is_colors: bool,
}

fn stack(file: &Container, described: &[Described<'_>], options: &OpenOptions) -> Result<Level> {
    let mut pages = Vec::new();
    for page in described {
        // Named first: the page itself would only say that floating-point samples cannot be read.
        let formats = page.ifd.unsigned_values(file, Tag::SAMPLE_FORMAT)?.unwrap_or_default();
        if formats.contains(&3) {
            return Err(Error::unsupported(
                file.path(),
                "this is a component file of floating-point samples (unmixed by inForm, perhaps), which cannot be read; \
                 a QPTIFF of unsigned samples of 8 or 16 bits can",
            ));
        }
        pages.push(Page::read(file, page.ifd)?);
    }
    let is_colors = pages.iter().any(|page| matches!(page.color, Color::Rgb | Color::YCbCr));
    if pages.len() > 1 {
        if let Some(page) = described.iter().zip(&pages).find(|(_, page)| page.shape().channels != 1) {
            return Err(Error::unsupported(
                file.path(),
                format!(
                    "{} pages of one level, of which page {} has {} samples per pixel, cannot be read: channels have one",
                    pages.len(),
                    page.0.number,
                    page.1.shape().channels
                ),
            ));
        }
        let planes = Planes::new(file.path(), pages, options.limits.decoded_bytes)?;
        return Ok(Level { layer: Layer::of(planes), is_colors });
    }
    match pages.pop() {
        Some(page) => Ok(Level { layer: Layer::of(page), is_colors }),
        None => Err(Error::format(file.path(), "a level has no page")),
    }
}

/// Refuses a level whose channels are in another order than those of level 0.
fn same_channel(path: &Path, reduced: &Described<'_>, full: &Described<'_>) -> Result<()> {
    match (&reduced.description.name, &full.description.name) {
        (Some(name), Some(expected)) if name != expected => Err(Error::format(
            path,
            format!(
                "page {} is channel {name:?} where level 0 has {expected:?} (page {})",
                reduced.number, full.number
            ),
        )),
        _ => Ok(()),
    }
}

/// What the XML of a page says.
#[derive(Debug, Default)]
struct Description {
    kind: Option<String>,
    /// The name of the channel.
    name: Option<String>,
    objective: Option<f64>,
    pixel_size: Option<f64>,
    /// What is said of the scan.
    properties: BTreeMap<String, String>,
    /// What is said of the channel.
    channel: BTreeMap<&'static str, String>,
}

/// What is said of a channel.
const OF_A_CHANNEL: &[&str] = &["Name", "Biomarker", "Color", "ExposureTime"];
/// What is said of the scan and kept.
const OF_A_SCAN: &[&str] = &[
    "DescriptionVersion",
    "AcquisitionSoftware",
    "InstrumentType",
    "Identifier",
    "SlideID",
    "Barcode",
    "IsUnmixedComponent",
    "Objective",
    "SignalUnits",
    "ValidationCode",
];

impl Description {
    fn read(file: &Container, number: usize, ifd: &Ifd) -> Result<Self> {
        let text = text(file, ifd)?;
        if !text.contains(ROOT) {
            return Ok(Self::default());
        }
        let document =
            xml::tree(&text).map_err(|what| Error::format(file.path(), format!("the XML of page {number}: {what}")))?;
        let root = document.root_element();
        if root.tag_name().name() != ROOT {
            return Ok(Self::default());
        }
        Ok(Self::of(root))
    }

    fn of(root: Node<'_, '_>) -> Self {
        let value = |name: &'static str| xml::child(root, name).and_then(xml::content);
        let of_the_scan = OF_A_SCAN.iter().filter_map(|&name| Some((format!("perkinelmer.{name}"), value(name)?)));
        let scan = xml::child(root, "ScanProfile").and_then(|profile| {
            profile.descendants().find(|node| node.is_element() && node.tag_name().name() == "ScanResolution")
        });
        let of_the_profile = |name: &'static str| scan.and_then(|scan| xml::child(scan, name)).and_then(xml::content);
        let mut properties: BTreeMap<String, String> = of_the_scan.collect();
        for name in ["PixelSizeMicrons", "ObjectiveName", "Magnification"] {
            properties.extend(of_the_profile(name).map(|value| (format!("perkinelmer.ScanResolution.{name}"), value)));
        }
        let objective = value("Objective").as_deref().and_then(magnification);
        Self {
            kind: value("ImageType"),
            name: value("Biomarker").or_else(|| value("Name")),
            objective: objective.or_else(|| of_the_profile("ObjectiveName").as_deref().and_then(magnification)),
            pixel_size: of_the_profile("PixelSizeMicrons")
                .and_then(|text| text.parse().ok())
                .filter(|value: &f64| value.is_finite() && *value > 0.0),
            properties,
            channel: OF_A_CHANNEL.iter().filter_map(|&name| Some((name, value(name)?))).collect(),
        }
    }
}

/// The description of a page, in whichever encoding.
fn text(file: &Container, ifd: &Ifd) -> Result<String> {
    Ok(ifd.bytes(file, Tag::IMAGE_DESCRIPTION)?.map(|bytes| xml::decode(&bytes)).unwrap_or_default())
}

/// The number that an objective's name starts with, if it is followed by an `x` or by nothing: `20x`, `20x [20x]`, `40`.
fn magnification(name: &str) -> Option<f64> {
    let end = name.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(name.len());
    let (number, rest) = name.split_at(end);
    let number: f64 = number.parse().ok()?;
    let is_power = rest.is_empty() || rest.starts_with(['x', 'X', '×']);
    (is_power && number.is_finite() && number > 0.0).then_some(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn description(body: &str) -> Description {
        let text = format!("<?xml version=\"1.0\" encoding=\"utf-16\"?>\r\n<{ROOT}>{body}</{ROOT}>");
        Description::of(xml::tree(&text).unwrap().root_element())
    }

    #[test]
    fn descriptions_are_taken_apart() {
        let older = description(
            "<ImageType>FullResolution</ImageType><Name>CD8 (Opal 540)</Name><Color>255,60,157</Color><Objective>20x [20x]</Objective>\
             <Responsivity><Filter><Name>no name of a channel</Name></Filter></Responsivity>\
             <ScanProfile><root><Name>a plan</Name><ScanResolution><PixelSizeMicrons>0.5</PixelSizeMicrons>\
             <Magnification>40</Magnification></ScanResolution></root></ScanProfile>",
        );
        assert_eq!(older.kind.as_deref(), Some("FullResolution"));
        assert_eq!(older.name.as_deref(), Some("CD8 (Opal 540)"));
        assert_eq!((older.objective, older.pixel_size), (Some(20.0), Some(0.5)));
        assert_eq!(older.channel["Color"], "255,60,157");
        assert_eq!(older.properties["perkinelmer.ScanResolution.Magnification"], "40");
        let newer = description("<Name>ATTO 550</Name><Biomarker>CD38</Biomarker><ScanProfile>{\"a\":1}</ScanProfile>");
        assert_eq!((newer.name.as_deref(), newer.kind.as_deref()), (Some("CD38"), None));
        assert_eq!(description("<Name/><Biomarker> </Biomarker>").name, None);
    }

    #[test]
    fn objectives_have_a_magnification_or_none() {
        for (name, expected) in [("20x", 20.0), ("40", 40.0), ("10X/0.3", 10.0), ("2.5x [2.5x]", 2.5)] {
            assert_eq!(magnification(name), Some(expected), "{name}");
        }
        for name in ["", "x", "UPlanSApo 20x", "20 mm", "0x", "1.2.3x"] {
            assert_eq!(magnification(name), None, "{name}");
        }
    }
}
