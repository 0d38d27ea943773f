//! What a reader needs of OME-XML: images, the layout of their pixels, and where each plane is.
//!
//! Elements are known by their local names, because the namespace has changed with each version of the schema and the
//! names have not.

use roxmltree::{Document, Node};

use super::super::xml;
use crate::{Microns, Size};

/// Images of a document; what has more is no slide.
const MOST_IMAGES: usize = 4096;

/// An OME-XML document.
#[derive(Debug)]
pub(super) struct Ome {
    /// Identifies the file that the document is in.
    pub(super) uuid: Option<String>,
    pub(super) creator: Option<String>,
    /// The file that holds the metadata, if this is no more than a reference to it.
    pub(super) companion: Option<String>,
    /// The images in their order; one that cannot be understood is a clause that says why.
    pub(super) images: Vec<Result<Image, String>>,
}

/// A picture of some channels, and perhaps of focal planes and times.
#[derive(Debug)]
pub(super) struct Image {
    pub(super) name: Option<String>,
    pub(super) size: Size,
    pub(super) size_c: u64,
    pub(super) size_z: u64,
    pub(super) size_t: u64,
    /// The type of a sample: `uint8`, `float`.
    pub(super) sample: String,
    /// The size of a pixel, or a clause that says why there is none; `Ok(None)` where the document says nothing of it.
    pub(super) mpp: Result<Option<Microns>, String>,
    /// One for each `Channel` element.
    pub(super) channels: Vec<Channel>,
    /// Where planes are, as far as the document says.
    pub(super) data: Vec<TiffData>,
    /// What the objective magnifies, by its name.
    pub(super) magnification: Option<f64>,
}

#[derive(Debug)]
pub(super) struct Channel {
    pub(super) name: Option<String>,
    /// The colour it is shown in, as the number that the document has.
    pub(super) color: Option<String>,
}

/// A run of planes in the order of the image, which are pages in the order of a file.
#[derive(Debug)]
pub(super) struct TiffData {
    pub(super) ifd: Option<u64>,
    pub(super) count: Option<u64>,
    pub(super) first_c: u64,
    pub(super) first_z: u64,
    pub(super) first_t: u64,
    pub(super) file: Option<FileRef>,
}

/// A file of a set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct FileRef {
    pub(super) name: Option<String>,
    pub(super) uuid: Option<String>,
}

impl Ome {
    /// Reads a document, or says in a clause what is wrong with it.
    pub(super) fn of(document: &Document<'_>) -> Result<Self, String> {
        let root = document.root_element();
        if root.tag_name().name() != "OME" {
            return Err(format!("its first element is {:?}, not OME", root.tag_name().name()));
        }
        if xml::children(root, "Image").nth(MOST_IMAGES).is_some() {
            return Err(format!("it has more than {MOST_IMAGES} images, which is the limit"));
        }
        Ok(Self {
            uuid: owned(root, "UUID"),
            creator: owned(root, "Creator"),
            companion: xml::child(root, "BinaryOnly").and_then(|node| owned(node, "MetadataFile")),
            images: xml::children(root, "Image").map(|image| Image::of(root, image)).collect(),
        })
    }
}

impl Image {
    fn of(root: Node<'_, '_>, image: Node<'_, '_>) -> Result<Self, String> {
        let pixels = xml::child(image, "Pixels").ok_or("an Image has no Pixels")?;
        let side = |name: &'static str| match number(pixels, name)? {
            Some(side @ 1..=0xffff_ffff) => Ok(side),
            Some(side) => Err(format!("{name} is {side}")),
            None => Err(format!("Pixels has no {name}")),
        };
        let size = Size::new(side("SizeX")?, side("SizeY")?);
        let data = xml::children(pixels, "TiffData").map(TiffData::of).collect::<Result<_, _>>()?;
        let channels = xml::children(pixels, "Channel");
        Ok(Self {
            name: owned(image, "Name"),
            size,
            size_c: side("SizeC")?,
            size_z: side("SizeZ")?,
            size_t: side("SizeT")?,
            // Named PixelType until 2013.
            sample: owned(pixels, "Type").or_else(|| owned(pixels, "PixelType")).ok_or("Pixels has no Type")?,
            mpp: mpp(pixels),
            channels: channels.map(|node| Channel { name: owned(node, "Name"), color: owned(node, "Color") }).collect(),
            data,
            magnification: magnification(root, image),
        })
    }

    /// How a message calls it.
    pub(super) fn title(&self, number: usize) -> String {
        let planes = if (self.size_c, self.size_z, self.size_t) == (1, 1, 1) {
            String::new()
        } else {
            format!(", {} channels, {} focal planes, {} times", self.size_c, self.size_z, self.size_t)
        };
        let name = self.name.as_deref().unwrap_or_default();
        format!("image {number} {name:?} ({}{planes}, {})", self.size, self.sample)
    }
}

impl TiffData {
    fn of(node: Node<'_, '_>) -> Result<Self, String> {
        let file =
            xml::child(node, "UUID").map(|uuid| FileRef { name: owned(uuid, "FileName"), uuid: xml::content(uuid) });
        let first = |name: &'static str| Ok::<_, String>(number(node, name)?.unwrap_or(0));
        Ok(Self {
            ifd: number(node, "IFD")?,
            // Named NumPlanes until 2007.
            count: match number(node, "PlaneCount")? {
                Some(count) => Some(count),
                None => number(node, "NumPlanes")?,
            },
            first_c: first("FirstC")?,
            first_z: first("FirstZ")?,
            first_t: first("FirstT")?,
            file,
        })
    }
}

/// An attribute that is not empty.
fn owned(node: Node<'_, '_>, name: &str) -> Option<String> {
    node.attribute(name).map(str::trim).filter(|text| !text.is_empty()).map(str::to_owned)
}

/// An attribute that is a count.
fn number(node: Node<'_, '_>, name: &str) -> Result<Option<u64>, String> {
    let Some(text) = owned(node, name) else { return Ok(None) };
    text.parse().map(Some).map_err(|_| format!("{name} is {text:?}, no count"))
}

/// The physical size of a pixel.
fn mpp(pixels: Node<'_, '_>) -> Result<Option<Microns>, String> {
    let side = |name: &'static str, unit: &'static str| {
        let Some(text) = owned(pixels, name) else { return Ok(None) };
        let unit = owned(pixels, unit).unwrap_or_else(|| "µm".into());
        let microns = microns(&unit).ok_or_else(|| format!("{name} is in {unit:?}, which is no length"))?;
        let value = text.parse::<f64>().ok().map(|value| value * microns);
        match value.filter(|value| value.is_finite() && *value > 0.0) {
            Some(value) => Ok(Some(value)),
            None => Err(format!("{name} is {text:?}")),
        }
    };
    match (side("PhysicalSizeX", "PhysicalSizeXUnit")?, side("PhysicalSizeY", "PhysicalSizeYUnit")?) {
        (Some(x), Some(y)) => Ok(Some(Microns { x, y })),
        (None, None) => Ok(None),
        (Some(_), None) => Err("there is PhysicalSizeX and no PhysicalSizeY".into()),
        (None, Some(_)) => Err("there is PhysicalSizeY and no PhysicalSizeX".into()),
    }
}

/// Micrometres in a unit of OME's `UnitsLength`; `None` for those that are no length (`pixel`, `reference frame`) or astronomical.
fn microns(unit: &str) -> Option<f64> {
    Some(match unit {
        "km" => 1e9,
        "hm" => 1e8,
        "dam" => 1e7,
        "m" => 1e6,
        "dm" => 1e5,
        "cm" => 1e4,
        "mm" => 1e3,
        // Two letters that look alike, MICRO SIGN and GREEK SMALL LETTER MU, and what is written where neither can be typed.
        "\u{b5}m" | "\u{3bc}m" | "um" | "micron" | "microns" | "micrometer" | "micrometre" => 1.0,
        "nm" => 1e-3,
        "pm" => 1e-6,
        "fm" => 1e-9,
        // As above: LATIN CAPITAL LETTER A WITH RING ABOVE, ANGSTROM SIGN.
        "\u{c5}" | "\u{212b}" => 1e-4,
        "in" | "inch" => 25_400.0,
        "thou" => 25.4,
        "li" => 25_400.0 / 12.0,
        "pt" => 25_400.0 / 72.0,
        "ft" => 304_800.0,
        "yd" => 914_400.0,
        _ => return None,
    })
}

/// The nominal magnification of the objective that an image refers to.
fn magnification(root: Node<'_, '_>, image: Node<'_, '_>) -> Option<f64> {
    // The element has changed its name since 2011.
    let settings = xml::child(image, "ObjectiveSettings").or_else(|| xml::child(image, "ObjectiveRef"))?;
    let id = settings.attribute("ID")?;
    let objective = xml::children(root, "Instrument")
        .flat_map(|instrument| xml::children(instrument, "Objective"))
        .find(|objective| objective.attribute("ID") == Some(id))?;
    let power = objective.attribute("NominalMagnification")?.trim().parse::<f64>().ok()?;
    (power.is_finite() && power > 0.0).then_some(power)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(pixels: &str) -> Result<Image, String> {
        let text = format!(
            "<OME xmlns='a'><Instrument><Objective ID='O:1' NominalMagnification='40.0'/></Instrument>\
             <Image Name='a'><ObjectiveSettings ID='O:1'/>{pixels}</Image></OME>"
        );
        let document = xml::tree(&text).unwrap();
        Ome::of(&document).unwrap().images.remove(0)
    }

    const SIZES: &str = "SizeX='30' SizeY='20' SizeC='2' SizeZ='1' SizeT='1' Type='uint8'";

    #[test]
    fn images_and_their_planes() {
        let image = parse(&format!(
            "<Pixels {SIZES}><Channel Name='DAPI' Color='-1'/><Channel/>\
             <TiffData IFD='1' FirstC='1'><UUID FileName='b.tif'>urn:uuid:1</UUID></TiffData></Pixels>"
        ))
        .unwrap();
        assert_eq!((image.size, image.size_c), (Size::new(30, 20), 2));
        let names: Vec<_> = image.channels.iter().map(|channel| channel.name.as_deref()).collect();
        assert_eq!(names, [Some("DAPI"), None]);
        assert_eq!(image.magnification, Some(40.0));
        assert_eq!((image.data[0].ifd, image.data[0].count, image.data[0].first_c), (Some(1), None, 1));
        assert_eq!(image.data[0].file, Some(FileRef { name: Some("b.tif".into()), uuid: Some("urn:uuid:1".into()) }));
        for (pixels, words) in [
            ("", "no Pixels"),
            ("<Pixels SizeX='30'/>", "no SizeY"),
            ("<Pixels SizeX='0'/>", "SizeX is 0"),
            ("<Pixels SizeX='-1'/>", "SizeX is \"-1\", no count"),
            ("<Pixels SizeX='99999999999'/>", "SizeX is 99999999999"),
            ("<Pixels SizeX='1' SizeY='1' SizeC='1' SizeZ='1' SizeT='1'/>", "no Type"),
        ] {
            let error = parse(pixels).unwrap_err();
            assert!(error.contains(words), "{error}");
        }
    }

    #[test]
    fn lengths_have_units() {
        let mpp = |attributes: &str| parse(&format!("<Pixels {SIZES} {attributes}/>")).unwrap().mpp;
        let both = |value: &str, unit: &str| {
            mpp(&format!(
                "PhysicalSizeX='{value}' PhysicalSizeXUnit='{unit}' PhysicalSizeY='{value}' PhysicalSizeYUnit='{unit}'"
            ))
        };
        assert_eq!(mpp(""), Ok(None));
        assert_eq!(mpp("PhysicalSizeX='0.5' PhysicalSizeY='0.25'"), Ok(Some(Microns { x: 0.5, y: 0.25 })));
        for (value, unit) in [("250", "nm"), ("0.25", "\u{3bc}m"), ("2.5e-4", "mm"), ("2500", "Å"), ("0.00025", "mm")]
        {
            let found = both(value, unit).unwrap().unwrap();
            assert!((found.x - 0.25).abs() < 1e-12 && found.x == found.y, "{value} {unit}: {found:?}");
        }
        assert_eq!(both("1", "in"), Ok(Some(Microns::square(25_400.0))));
        assert!(both("1", "pixel").unwrap_err().contains("no length"));
        for value in ["0", "-1", "nan", "inf", "1,5"] {
            assert!(both(value, "mm").unwrap_err().contains(value));
        }
        assert!(mpp("PhysicalSizeX='0.5'").unwrap_err().contains("no PhysicalSizeY"));
    }
}
