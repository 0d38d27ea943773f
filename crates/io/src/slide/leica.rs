//! Leica SCN: a BigTIFF whose first `ImageDescription` is XML that says where on the glass each of its pages lies.
//!
//! The glass is the `collection`; its size and all positions are in nanometres. Each `image` of it is a rectangle of the
//! glass (`view`) with a pyramid of pages of its own (`dimension`, whose `ifd` numbers the page). The image that covers
//! the whole glass is the `macro` picture; all others that were taken in bright field lie together on the levels of the
//! slide, each as a part at its place, and between them there is background. A level is as large as the glass, at the
//! finest pixel that any of its parts has on it; positions are cut off to whole pixels.
//!
//! Of several focal planes (`z`) the one numbered 0 is read, as in OpenSlide; the property
//! `microtome.focal-planes-not-read` counts the pages of the others. Images under other light than `brightfield` are left
//! out beside bright-field ones (`microtome.images-not-read`); a slide that has no others is refused.
//!
//! The resolution is that of the resolution tags of the first page of level 0 if their unit is the centimetre, as in
//! OpenSlide, and else that of the view.
//!
//! Not seen on a real file: it was built against the files that `tests/python/vendor_tiffs.py` writes and OpenSlide 4.0.1
//! opens. OpenSlide refuses slides of several main images without a macro picture (for the sake of its quick hash); here they are
//! read.
//!
//! Sources: OpenSlide's `openslide-vendor-leica.c` and its format page "Leica".

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use roxmltree::Node;

use super::pyramid::{Layer, Part, Parts, Pyramid};
use super::raster::Raster;
use super::tiff::{Container, Ifd, Page, Tag, Tiff};
use super::{OpenOptions, Resolution, ResolutionSource, SlideReader, xml};
use crate::{Error, Microns, Rect, Result, Size};

/// The namespaces of the two versions of the format.
const NAMESPACES: [&str; 2] =
    ["http://www.leica-microsystems.com/scn/2010/10/01", "http://www.leica-microsystems.com/scn/2010/03/10"];

/// True if the description of the first page is Leica's.
pub(super) fn detect(tiff: &Tiff) -> Result<bool> {
    let description = tiff.directories()[0].text(tiff.file(), Tag::IMAGE_DESCRIPTION)?;
    Ok(description.is_some_and(|text| NAMESPACES.iter().any(|namespace| text.contains(namespace))))
}

/// Opens an SCN.
pub(super) fn open(tiff: Tiff, options: &OpenOptions) -> Result<Box<dyn SlideReader>> {
    let file = tiff.file();
    let path = file.path();
    let description = tiff.directories()[0].text(file, Tag::IMAGE_DESCRIPTION)?.unwrap_or_default();
    let collection = Collection::read(path, &description)?;
    let (mains, others): (Vec<&Image>, Vec<&Image>) =
        collection.images.iter().filter(|image| !image.is_macro).partition(|image| image.is_bright_field());
    let Some(first) = mains.first().copied() else {
        let light = others.first().and_then(|image| image.light.as_deref()).unwrap_or("unknown");
        return Err(Error::unsupported(
            path,
            format!(
                "this Leica SCN holds no bright-field image of the specimen (the light is {light:?}): fluorescence cannot be read"
            ),
        ));
    };

    let mut used = BTreeSet::new();
    let mut page = |dimension: &Dimension| {
        let ifd = directory(&tiff, dimension.ifd)?;
        if !used.insert(dimension.ifd) {
            return Err(Error::format(path, format!("the SCN description uses page {} twice", dimension.ifd)));
        }
        Ok((ifd, Page::read(file, ifd)?))
    };
    let layers = first.dimensions.iter().enumerate().map(|(level, _)| {
        let placed = mains.iter().map(|image| {
            alike(path, image, first, level)?;
            let dimension = &image.dimensions[level];
            Ok((*image, dimension.nm_per_pixel, page(dimension)?.1))
        });
        layer(path, &collection, placed.collect::<Result<Vec<_>>>()?)
    });
    let layers = layers.collect::<Result<Vec<_>>>()?;

    let mut properties = collection.properties(first);
    let first_ifd = directory(&tiff, first.dimensions[0].ifd)?;
    properties.extend(tiff.text_properties_of(first_ifd)?);
    // All of the description would be a strange property; it may stand in the page of level 0.
    properties.remove("tiff.ImageDescription");
    let macros = collection.images.iter().filter(|image| image.is_macro && image.is_bright_field());
    let mut associated: Vec<(String, Box<dyn Raster>)> = Vec::new();
    if let Some(dimension) = macros.clone().next().and_then(|image| image.dimensions.first()) {
        match page(dimension) {
            Ok((_, page)) => associated.push(("macro".into(), Box::new(page))),
            // A picture that travels along and cannot be read is no reason to refuse the slide.
            Err(Error::Unsupported { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    for (name, count) in [
        ("microtome.focal-planes-not-read", collection.other_planes),
        ("microtome.images-not-read", others.len() + macros.count().saturating_sub(1)),
    ] {
        if count > 0 {
            properties.insert(name.into(), count.to_string());
        }
    }
    let bounds = regions(&layers[0], &mut properties);
    let parts = Parts {
        associated,
        resolution: Some(resolution(file, first_ifd, first)?),
        objective_power: first.objective.as_deref().and_then(positive),
        bounds: Some(bounds),
        icc_profile: first_ifd.bytes(file, Tag::ICC_PROFILE)?,
        properties,
        ..Parts::new("leica", Arc::clone(file.source()), layers)
    };
    Ok(Box::new(Pyramid::new(parts, options)?))
}

/// The page that a dimension refers to.
fn directory(tiff: &Tiff, index: u64) -> Result<&Ifd> {
    usize::try_from(index).ok().and_then(|index| tiff.directories().get(index)).ok_or_else(|| {
        let pages = tiff.directories().len();
        Error::format(tiff.file().path(), format!("the SCN description refers to page {index} of {pages}"))
    })
}

/// Refuses images that cannot lie on one level.
fn alike(path: &Path, image: &Image, first: &Image, level: usize) -> Result<()> {
    if image.objective != first.objective || image.dimensions.len() != first.dimensions.len() {
        return Err(Error::unsupported(
            path,
            "a Leica SCN whose images differ in objective or number of levels cannot be read",
        ));
    }
    let (pixel, expected) = (image.dimensions[level].nm_per_pixel, first.dimensions[level].nm_per_pixel);
    if (pixel - expected).abs() > 0.02 * expected {
        return Err(Error::unsupported(
            path,
            format!(
                "a Leica SCN whose images differ in resolution ({pixel} and {expected} nm per pixel) cannot be read"
            ),
        ));
    }
    Ok(())
}

/// A level: the pages of all images at one resolution, each at its place on the glass.
fn layer(path: &Path, collection: &Collection, placed: Vec<(&Image, f64, Page)>) -> Result<Layer> {
    let pixel = placed.iter().map(|(_, nm_per_pixel, _)| *nm_per_pixel).fold(f64::INFINITY, f64::min);
    let pixels = |nm: u64| {
        let pixels = nm as f64 / pixel;
        // Sides of pages are bounded likewise; sums and products stay far from overflow.
        if pixels < f64::from(u32::MAX) {
            Ok(pixels)
        } else {
            Err(Error::format(path, format!("the SCN description speaks of {pixels} pixels in a row")))
        }
    };
    let size = Size::new(pixels(collection.size.width)?.ceil() as u64, pixels(collection.size.height)?.ceil() as u64);
    if size.is_empty() {
        return Err(Error::format(path, "the SCN description speaks of a glass without extent"));
    }
    let parts = placed.into_iter().map(|(image, _, page)| {
        Ok(Part { x: pixels(image.x)? as u64, y: pixels(image.y)? as u64, raster: Box::new(page) })
    });
    Ok(Layer { size, parts: parts.collect::<Result<_>>()?, stored: true })
}

/// Writes down where the parts of level 0 lie, as OpenSlide does; returns what encloses them all.
fn regions(layer: &Layer, properties: &mut BTreeMap<String, String>) -> Rect {
    let (mut left, mut top, mut right, mut bottom) = (u64::MAX, u64::MAX, 0, 0);
    for (number, part) in layer.parts.iter().enumerate() {
        let size = part.raster.shape().size;
        for (name, value) in [("x", part.x), ("y", part.y), ("width", size.width), ("height", size.height)] {
            properties.insert(format!("openslide.region[{number}].{name}"), value.to_string());
        }
        (left, top) = (left.min(part.x), top.min(part.y));
        (right, bottom) = (right.max(part.x + size.width), bottom.max(part.y + size.height));
    }
    Rect::new(left as i64, top as i64, right - left, bottom - top)
}

fn resolution(file: &Container, ifd: &Ifd, image: &Image) -> Result<Resolution> {
    let (x, y) = (ifd.rational(file, Tag::X_RESOLUTION)?, ifd.rational(file, Tag::Y_RESOLUTION)?);
    let centimetre = ifd.unsigned(file, Tag::RESOLUTION_UNIT)? == Some(3);
    if let (true, Some(x), Some(y)) = (centimetre, x, y)
        && x > 0.0
        && y > 0.0
    {
        let mpp = Microns { x: 10_000.0 / x, y: 10_000.0 / y };
        return Ok(Resolution { mpp, source: ResolutionSource::TiffTags });
    }
    let finest = &image.dimensions[0];
    let mpp = Microns { x: finest.nm_per_pixel / 1000.0, y: image.size.height as f64 / finest.height as f64 / 1000.0 };
    Ok(Resolution { mpp, source: ResolutionSource::Vendor("scn view and dimension".into()) })
}

fn positive(text: &str) -> Option<f64> {
    text.parse().ok().filter(|value: &f64| value.is_finite() && *value > 0.0)
}

/// What the XML says. Lengths are in nanometres.
#[derive(Debug)]
struct Collection {
    barcode: Option<String>,
    /// Of the glass.
    size: Size,
    images: Vec<Image>,
    /// Pages of focal planes other than the first.
    other_planes: usize,
}

/// A rectangle of the glass that was scanned.
#[derive(Debug)]
struct Image {
    creation_date: Option<String>,
    device_model: Option<String>,
    device_version: Option<String>,
    light: Option<String>,
    objective: Option<String>,
    aperture: Option<String>,
    x: u64,
    y: u64,
    size: Size,
    is_macro: bool,
    /// From the finest to the coarsest; at least one.
    dimensions: Vec<Dimension>,
}

/// One page of an image.
#[derive(Debug)]
struct Dimension {
    ifd: u64,
    width: u64,
    height: u64,
    nm_per_pixel: f64,
}

/// Reads a description; for the fuzz targets, too.
pub(crate) fn read_description(path: &Path, text: &str) -> Result<()> {
    Collection::read(path, text).map(drop)
}

impl Collection {
    fn read(path: &Path, text: &str) -> Result<Self> {
        let document = xml::parse(path, "the SCN description", text)?;
        let root = document.root_element();
        let Some(node) = xml::find(root, &["collection"]).filter(|_| root.tag_name().name() == "scn") else {
            return Err(Error::format(path, "the SCN description has no collection"));
        };
        let size = Size::new(number(path, node, "sizeX")?, number(path, node, "sizeY")?);
        let mut other_planes = 0;
        let images = xml::children(node, "image").map(|image| Image::read(path, image, size, &mut other_planes));
        let images = images.collect::<Result<Vec<_>>>()?;
        // In the newer version of the format the barcode is an element in base64, in the older one an attribute.
        let barcode = match xml::text(node, &["barcode"]) {
            Some(text) => Some(String::from_utf8_lossy(&xml::base64(&text)).into_owned()),
            None => node.attribute("barcode").map(str::to_owned),
        };
        Ok(Self { barcode, size, images, other_planes })
    }

    fn properties(&self, image: &Image) -> BTreeMap<String, String> {
        let named = [
            ("barcode", &self.barcode),
            ("aperture", &image.aperture),
            ("creation-date", &image.creation_date),
            ("device-model", &image.device_model),
            ("device-version", &image.device_version),
            ("illumination-source", &image.light),
            ("objective", &image.objective),
        ];
        let known = named.into_iter().filter_map(|(name, value)| value.clone().map(|value| (name, value)));
        let mut properties: BTreeMap<_, _> = known.map(|(name, value)| (format!("leica.{name}"), value)).collect();
        properties.extend(self.barcode.clone().map(|barcode| ("openslide.barcode".into(), barcode)));
        properties
    }
}

impl Image {
    fn read(path: &Path, node: Node<'_, '_>, glass: Size, other_planes: &mut usize) -> Result<Self> {
        let view = xml::find(node, &["view"])
            .ok_or_else(|| Error::format(path, "the SCN description has an image without a view"))?;
        let size = Size::new(number(path, view, "sizeX")?, number(path, view, "sizeY")?);
        let (x, y) = (number(path, view, "offsetX")?, number(path, view, "offsetY")?);
        let mut dimensions = Vec::new();
        let pixels = xml::children(node, "pixels");
        for node in pixels.flat_map(|pixels| xml::children(pixels, "dimension")) {
            if node.attribute("z").is_some_and(|z| z != "0") {
                *other_planes += 1;
                continue;
            }
            let (width, height) = (number(path, node, "sizeX")?, number(path, node, "sizeY")?);
            if width == 0 || height == 0 || size.is_empty() {
                return Err(Error::format(path, "the SCN description has an image without pixels"));
            }
            let nm_per_pixel = size.width as f64 / width as f64;
            dimensions.push(Dimension { ifd: number(path, node, "ifd")?, width, height, nm_per_pixel });
        }
        if dimensions.is_empty() {
            return Err(Error::format(path, "the SCN description has an image without pages"));
        }
        dimensions.sort_by_key(|dimension| std::cmp::Reverse(dimension.width));
        let light = ["scanSettings", "illuminationSettings", "illuminationSource"];
        Ok(Self {
            creation_date: xml::text(node, &["creationDate"]),
            device_model: attribute(node, "device", "model"),
            device_version: attribute(node, "device", "version"),
            light: xml::text(node, &light),
            objective: xml::text(node, &["scanSettings", "objectiveSettings", "objective"]),
            aperture: xml::text(node, &["scanSettings", "illuminationSettings", "numericalAperture"]),
            x,
            y,
            size,
            is_macro: (x, y, size) == (0, 0, glass),
            dimensions,
        })
    }

    fn is_bright_field(&self) -> bool {
        self.light.as_deref() == Some("brightfield")
    }
}

fn attribute(node: Node<'_, '_>, element: &'static str, name: &str) -> Option<String> {
    xml::find(node, &[element])?.attribute(name).map(str::to_owned)
}

/// An attribute that must be a whole number from 0 up to what a signed number can hold.
fn number(path: &Path, node: Node<'_, '_>, name: &str) -> Result<u64> {
    let text = node.attribute(name).unwrap_or_default();
    text.trim().parse().ok().filter(|&value| i64::try_from(value).is_ok()).ok_or_else(|| {
        let element = node.tag_name().name();
        Error::format(path, format!("the SCN description needs a whole number as {element} {name}, not {text:?}"))
    })
}
