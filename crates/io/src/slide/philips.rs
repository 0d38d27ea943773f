//! Philips TIFF: tiled pages, the first of which is described by XML in the manner of DICOM (`DPUfsImport`).
//!
//! The scanner writes pages padded to whole tiles. Level 0 counts as it is; how much smaller a coarser level is follows
//! from the pixel spacings of the description, rounded to a whole number, and the level is that part of its page which
//! level 0 accounts for. Slides of several scanned regions are sparse: tiles without bytes are background.
//!
//! `label` and `macro` are pages whose description starts with these words, or else JPEG pictures in base64 inside the XML.
//! The attributes of the XML become properties `philips.NAME`, as in OpenSlide: those of the document, those of its one
//! image of the kind `WSI`, and those of each of its representations.
//!
//! The resolution is `DICOM_PIXEL_SPACING` of the image: millimetres between rows, then between columns. The objective's
//! magnification is not stated plainly: as in OpenSlide it is the first number of `levels=` in the derivation description, if it is
//! at most 200.
//!
//! Not seen on a real file: it was built against the files that `tests/python/vendor_tiffs.py` writes and OpenSlide 4.0.1
//! opens.
//!
//! Sources: OpenSlide's `openslide-vendor-philips-tiff.c` and its format page "Philips TIFF".

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use roxmltree::Node;

use super::jpeg_picture::JpegPicture;
use super::pyramid::{Layer, Part, Parts, Pyramid};
use super::raster::Raster;
use super::tiff::{Page, Tag, Tiff};
use super::{OpenOptions, Resolution, ResolutionSource, SlideReader, xml};
use crate::{Downsample, Error, Microns, Result, Size};

const SCANNED_IMAGES: &str = "PIM_DP_SCANNED_IMAGES";
const REPRESENTATIONS: &str = "PIIM_PIXEL_DATA_REPRESENTATION_SEQUENCE";
const SPACING: &str = "DICOM_PIXEL_SPACING";
/// The bit of `NewSubfileType` that says that a page is a coarser one.
const REDUCED: u64 = 1;

/// True if the description of the first page is Philips'.
pub(super) fn detect(tiff: &Tiff) -> Result<bool> {
    let description = tiff.directories()[0].text(tiff.file(), Tag::IMAGE_DESCRIPTION)?;
    Ok(description.is_some_and(|text| text.contains("DPUfsImport")))
}

/// Opens a Philips TIFF.
pub(super) fn open(tiff: Tiff, options: &OpenOptions) -> Result<Box<dyn SlideReader>> {
    let file = tiff.file();
    let path = file.path();
    let text = tiff.directories()[0].text(file, Tag::IMAGE_DESCRIPTION)?.unwrap_or_default();
    let description = Description::read(path, &text)?;

    let (mut pages, mut associated) = (Vec::<Page>::new(), Vec::<(String, Box<dyn Raster>)>::new());
    for (index, ifd) in tiff.directories().iter().enumerate() {
        if ifd.is_tiled() {
            if index > 0 && ifd.unsigned(file, Tag::NEW_SUBFILE_TYPE)?.unwrap_or(0) & REDUCED == 0 {
                let why = format!("page {index} of this Philips TIFF is of tiles, but not marked as a coarser level");
                return Err(Error::unsupported(path, why));
            }
            pages.push(Page::read(file, ifd)?);
            continue;
        }
        let words = ifd.text(file, Tag::IMAGE_DESCRIPTION)?.unwrap_or_default();
        let known = [("Label", "label"), ("Macro", "macro")];
        let Some((_, name)) = known.iter().find(|(word, _)| words.starts_with(word)) else { continue };
        // A picture that travels along and cannot be read is no reason to refuse the slide.
        match Page::read(file, ifd) {
            Ok(page) => associated.push(((*name).into(), Box::new(page))),
            Err(Error::Unsupported { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    let (layers, downsamples) = layers(path, pages, &description.spacings)?;
    for (name, stream) in description.pictures {
        if associated.iter().all(|(known, _)| known != name)
            && let Ok(picture) = JpegPicture::new(path, stream, options.limits.decoded_bytes)
        {
            associated.push((name.into(), Box::new(picture)));
        }
    }

    let mut properties = tiff.text_properties()?;
    // The whole description would be a strange property.
    properties.remove("tiff.ImageDescription");
    properties.extend(description.properties);
    let spacing = properties.get(&format!("philips.{SPACING}")).and_then(|text| spacing(text));
    let resolution = spacing.or(description.spacings.first().copied()).map(|millimetres| Resolution {
        mpp: Microns { x: 1e3 * millimetres.x, y: 1e3 * millimetres.y },
        source: ResolutionSource::Vendor(format!("philips.{SPACING}")),
    });
    let objective_power = properties.get("philips.DICOM_DERIVATION_DESCRIPTION").and_then(|text| objective(text));
    let parts = Parts {
        downsamples,
        associated,
        resolution,
        objective_power,
        icc_profile: tiff.directories()[0].bytes(file, Tag::ICC_PROFILE)?,
        properties,
        ..Parts::new("philips", Arc::clone(file.source()), layers)
    };
    Ok(Box::new(Pyramid::new(parts, options)?))
}

/// The levels without their padding, and how much coarser than level 0 each of them is.
fn layers(path: &Path, pages: Vec<Page>, spacings: &[Microns]) -> Result<(Vec<Layer>, Vec<Downsample>)> {
    let (Some(full), Some(finest)) = (pages.first().map(|page| page.layout.size), spacings.first().copied()) else {
        return Err(Error::format(path, "this Philips TIFF has no page of tiles, or describes none"));
    };
    if pages.len() != spacings.len() {
        let (pages, spacings) = (pages.len(), spacings.len());
        let why = format!("this Philips TIFF has {pages} levels, but its description gives {spacings} pixel spacings");
        return Err(Error::format(path, why));
    }
    let (mut layers, mut downsamples) = (Vec::new(), Vec::new());
    for (level, (page, spacing)) in pages.into_iter().zip(spacings).enumerate() {
        let ratio = f64::midpoint(spacing.x / finest.x, spacing.y / finest.y).round();
        let size = Size::new((full.width as f64 / ratio) as u64, (full.height as f64 / ratio) as u64);
        if ratio < 1.0 || size.is_empty() || (level == 0 && size != full) {
            let why = format!("the pixel spacings of this Philips TIFF make level {level} {ratio} times coarser");
            return Err(Error::format(path, why));
        }
        downsamples.push(Downsample { x: ratio, y: ratio });
        layers.push(Layer { size, parts: vec![Part { x: 0, y: 0, raster: Box::new(page) }], stored: true });
    }
    Ok((layers, downsamples))
}

/// Millimetres per pixel, of a text of two numbers in quotation marks: between rows, then between columns.
fn spacing(text: &str) -> Option<Microns> {
    let mut numbers = text.split_whitespace().map(|number| number.trim_matches('"').parse::<f64>().ok());
    let (Some(Some(y)), Some(Some(x)), None) = (numbers.next(), numbers.next(), numbers.next()) else { return None };
    [x, y].iter().all(|value| value.is_finite() && *value > 0.0).then_some(Microns { x, y })
}

/// The magnification in a derivation description such as `tiff-useBigTIFF=1-levels=40,10001,10000-q75;PHILIPS UFS V1.6`.
fn objective(derivation: &str) -> Option<f64> {
    for item in derivation.split('-') {
        match item.split_once('=') {
            // Its value is a name in quotation marks, in which there may be anything.
            Some(("sourceFilename", _)) => return None,
            Some(("levels", values)) => {
                let first: u32 = values.split(',').next()?.parse().ok()?;
                return (1..=200).contains(&first).then_some(first.into());
            }
            _ => {}
        }
    }
    None
}

/// What the XML says.
#[derive(Debug)]
struct Description {
    /// Of each level, in millimetres.
    spacings: Vec<Microns>,
    properties: BTreeMap<String, String>,
    /// JPEG pictures, by the name of what they show.
    pictures: Vec<(&'static str, Vec<u8>)>,
}

/// Reads a description; for the fuzz targets, too.
pub(crate) fn read_description(path: &Path, text: &str) -> Result<()> {
    Description::read(path, text).map(drop)
}

impl Description {
    fn read(path: &Path, text: &str) -> Result<Self> {
        let document = xml::parse(path, "the Philips description", text)?;
        let root = document.root_element();
        if root.tag_name().name() != "DataObject" || root.attribute("ObjectType") != Some("DPUfsImport") {
            return Err(Error::format(path, "the Philips description is no DPUfsImport"));
        }
        let scanned: Vec<Node<'_, '_>> = named(root, SCANNED_IMAGES).flat_map(objects).collect();
        let of_kind = |kind: &'static str| scanned.iter().copied().filter(move |image| is_of_kind(*image, kind));
        let (Some(slide), None) = (of_kind("WSI").next(), of_kind("WSI").nth(1)) else {
            let why =
                format!("a Philips TIFF of {} whole-slide images cannot be read, of one can", of_kind("WSI").count());
            return Err(Error::unsupported(path, why));
        };
        let representations = named(slide, REPRESENTATIONS).flat_map(objects);
        let representations: Vec<_> =
            representations.filter(|node| node.attribute("ObjectType") == Some("PixelDataRepresentation")).collect();
        let mut spacings = Vec::new();
        for (level, node) in representations.iter().flat_map(|node| named(*node, SPACING)).enumerate() {
            let text = node.text().unwrap_or_default();
            spacings.push(spacing(text).ok_or_else(|| {
                let why = format!("the Philips description gives {text:?} as the pixel spacing of level {level}");
                Error::format(path, why)
            })?);
        }
        let mut properties = BTreeMap::new();
        values(root, "philips", &mut properties);
        values(slide, "philips", &mut properties);
        for (number, node) in named(slide, REPRESENTATIONS).flat_map(objects).enumerate() {
            values(node, &format!("philips.{REPRESENTATIONS}[{number}]"), &mut properties);
        }
        if let Some(barcode) = properties.get("philips.PIM_DP_UFS_BARCODE") {
            let barcode = String::from_utf8_lossy(&xml::base64(barcode)).into_owned();
            properties.insert("openslide.barcode".into(), barcode);
        }
        let pictures = [("label", "LABELIMAGE"), ("macro", "MACROIMAGE")].into_iter().filter_map(|(name, kind)| {
            let data = named(of_kind(kind).next()?, "PIM_DP_IMAGE_DATA").next()?.text()?;
            Some((name, xml::base64(data)))
        });
        Ok(Self { spacings, properties, pictures: pictures.collect() })
    }
}

/// The `Attribute` elements of this name.
fn named<'a, 'i>(node: Node<'a, 'i>, name: &'static str) -> impl Iterator<Item = Node<'a, 'i>> {
    xml::children(node, "Attribute").filter(move |child| child.attribute("Name") == Some(name))
}

/// The objects in the arrays of an attribute.
fn objects<'a, 'i>(node: Node<'a, 'i>) -> impl Iterator<Item = Node<'a, 'i>> {
    xml::children(node, "Array").flat_map(|array| xml::children(array, "DataObject"))
}

fn is_of_kind(image: Node<'_, '_>, kind: &str) -> bool {
    named(image, "PIM_DP_IMAGE_TYPE").any(|node| node.text() == Some(kind))
}

/// The attributes of an object that hold plain text.
fn values(object: Node<'_, '_>, prefix: &str, properties: &mut BTreeMap<String, String>) {
    for node in xml::children(object, "Attribute").filter(|node| !node.children().any(|child| child.is_element())) {
        let Some(name) = node.attribute("Name").filter(|name| *name != SCANNED_IMAGES && *name != REPRESENTATIONS)
        else {
            continue;
        };
        properties.insert(format!("{prefix}.{name}"), node.text().unwrap_or_default().to_owned());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spacings_are_rows_first() {
        assert_eq!(spacing("\"0.000227273\" \"0.00025\""), Some(Microns { x: 0.000_25, y: 0.000_227_273 }));
        for text in ["", "\"1\"", "1 2 3", "0 1", "\"-1\" \"1\"", "inf 1", "a b"] {
            assert_eq!(spacing(text), None, "{text}");
        }
    }

    #[test]
    fn objectives_are_reasonable_or_unknown() {
        let found = "tiff-useBigTIFF=1-useRgb=0-levels=40,10003,10000-q75;PHILIPS UFS V1.6.5574";
        assert_eq!(objective(found), Some(40.0));
        for text in ["", "levels=10003,10002", "levels=", "sourceFilename=\"a-levels=40\"", "levels=0,1"] {
            assert_eq!(objective(text), None, "{text}");
        }
    }
}
