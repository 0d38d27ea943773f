//! Ventana BIF and Ventana TIFF: the XMP of the first page is the scanner's XML (`iScan`); pages whose description names a
//! `level` are levels, `mag` the magnification of each.
//!
//! A BIF holds one or several areas of interest, scanned tile by tile with overlaps. The XMP of level 0 (`EncodeInfo`) says
//! which tiles of the page are an area, where it lies on the slide (`Pos-Y` counts from below, up to the area's lower edge), and
//! by how much neighbours overlap (`TileJointInfo`). As OpenSlide does, all tiles are taken to follow each other at one
//! advance along each axis: the mean of all overlaps, weighted by their confidence. Each area is a part of the level, its tiles moved over
//! each other (see [`Stitched`]); coarser pages are the page of level 0 made smaller, overlaps and all. The advance is
//! in the property `microtome.tile-advance`. Where it is a fraction (or becomes one on a coarser level), tiles lie at the
//! nearest whole pixel, half a pixel at most from where OpenSlide resamples them to.
//!
//! The page `Label Image` is called `macro`, as OpenSlide calls it: it shows the whole glass, and the label on it.
//!
//! A page of level 0 without XMP is that of a Ventana TIFF: its tiles lie side by side.
//!
//! Tiles without bytes and the space between areas have the white of the scanner (`ScanWhitePoint`), or 255. Of several focal planes
//! (`Z-layers`) the first one stored is read; the property `microtome.focal-planes-not-read` counts the others.
//! Newer scanners (DP 200) measure overlaps in the directions `LEFT` and `DOWN`, too. OpenSlide refuses them; since nothing
//! but the mean is asked of a joint, here they count like `RIGHT` and `UP`.
//!
//! Not seen on a real file: it was built against the files that `tests/python/vendor_tiffs.py` writes and OpenSlide 4.0.1
//! opens.
//!
//! Sources: OpenSlide's `openslide-vendor-ventana.c` and `openslide-grid.c`, its format page "Ventana", and its issues 234 and
//! 759 about DP 200.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use roxmltree::{Document, Node};

use super::pyramid::{Layer, Part, Parts, Pyramid, check_limit};
use super::raster::Raster;
use super::stitched::{Placing, Stitched};
use super::tiff::{Page, Tag, Tiff};
use super::{OpenOptions, Resolution, ResolutionSource, SlideReader, xml};
use crate::{Downsample, Error, Microns, Result, SampleType, Size};

/// Areas of a slide, each of which is a part of every level. Scanners let people draw a few.
const MAX_AREAS: usize = 1024;

/// True if the XMP of the first page is Ventana's.
pub(super) fn detect(tiff: &Tiff) -> Result<bool> {
    let first = &tiff.directories()[0];
    Ok(first.text(tiff.file(), Tag::XMP)?.is_some_and(|text| text.contains("<iScan")))
}

/// Opens a BIF or a Ventana TIFF.
pub(super) fn open(tiff: Tiff, options: &OpenOptions) -> Result<Box<dyn SlideReader>> {
    let file = tiff.file();
    let path = file.path();
    let text = tiff.directories()[0].text(file, Tag::XMP)?.unwrap_or_default();
    let mut properties = read_scan(path, &text)?;
    let white = properties.get("ventana.ScanWhitePoint").and_then(|text| text.parse::<u8>().ok());

    let (mut layers, mut downsamples) = (Vec::new(), Vec::new());
    let mut associated: Vec<(String, Box<dyn Raster>)> = Vec::new();
    let (mut finest, mut previous) = (None, f64::INFINITY);
    let (mut stitching, mut tile): (Option<Stitching>, Option<Size>) = (None, None);
    for ifd in tiff.directories() {
        let Some(description) = ifd.text(file, Tag::IMAGE_DESCRIPTION)? else { continue };
        if !description.contains("level=") {
            let name = match &*description {
                "Label Image" | "Label_Image" => "macro",
                "Thumbnail" => "thumbnail",
                _ => continue,
            };
            // A picture that travels along and cannot be read is no reason to refuse the slide.
            match Page::read(file, ifd) {
                Ok(page) if associated.iter().all(|(known, _)| known != name) => {
                    associated.push((name.into(), Box::new(page)));
                }
                Ok(_) | Err(Error::Unsupported { .. }) => {}
                Err(error) => return Err(error),
            }
            continue;
        }
        let corrupt =
            |what: String| Error::format(path, format!("the page {description:?} of this Ventana slide {what}"));
        let (level, magnification) =
            level_of(&description).ok_or_else(|| corrupt("does not say its level and magnification".into()))?;
        if level != layers.len() as u64 || magnification >= previous {
            return Err(corrupt("is not where it belongs: levels must follow each other from the finest on".into()));
        }
        previous = magnification;
        let downsample = *finest.get_or_insert(magnification) / magnification;
        if !ifd.is_tiled() {
            return Err(corrupt("is not of tiles".into()));
        }
        let page = Page::read(file, ifd)?;
        if level == 0 {
            if let Some(text) = ifd.text(file, Tag::XMP)? {
                let found = Stitching::read(path, &text, page.layout.cell, page.layout.size.cells(page.layout.cell))?;
                found.describe(&mut properties);
                stitching = Some(found);
            }
            properties.extend(tiff.text_properties_of(ifd)?);
        }
        if *tile.get_or_insert(page.layout.cell) != page.layout.cell {
            return Err(corrupt("has tiles of another size than level 0".into()));
        }
        layers.push(match &stitching {
            Some(stitching) => {
                let layer = stitching.layer(&Arc::new(page), downsample, white);
                let layer = layer.map_err(|why| corrupt(format!("cannot be put together: {why}")))?;
                for part in &layer.parts {
                    let shape = part.raster.shape();
                    check_limit(path, shape, shape.cell, options.limits.decoded_bytes)?;
                }
                layer
            }
            None => Layer::of(page),
        });
        downsamples.push(Downsample { x: downsample, y: downsample });
    }

    let number = |key: &str| {
        let value = properties.get(key).and_then(|text| text.parse::<f64>().ok());
        value.filter(|value| value.is_finite() && *value > 0.0)
    };
    let resolution = number("ventana.ScanRes").map(|mpp| Resolution {
        mpp: Microns::square(mpp),
        source: ResolutionSource::Vendor("ventana.ScanRes".into()),
    });
    let objective_power = number("ventana.Magnification");
    if let Some(planes) = number("ventana.Z-layers").filter(|planes| *planes > 1.0) {
        properties.insert("microtome.focal-planes-not-read".into(), (planes - 1.0).to_string());
    }
    let finest = tiff.directories().iter().find(|ifd| {
        matches!(ifd.text(file, Tag::IMAGE_DESCRIPTION), Ok(Some(text)) if level_of(&text).is_some_and(|l| l.0 == 0))
    });
    let icc_profile = finest.map(|ifd| ifd.bytes(file, Tag::ICC_PROFILE)).transpose()?.flatten();
    let parts = Parts {
        downsamples,
        associated,
        resolution,
        objective_power,
        icc_profile,
        properties,
        ..Parts::new("ventana", Arc::clone(file.source()), layers)
    };
    Ok(Box::new(Pyramid::new(parts, options)?))
}

/// Level and magnification of a page's description: `level=0 mag=40 quality=95`.
fn level_of(description: &str) -> Option<(u64, f64)> {
    let value = |key: &str| {
        description.split(' ').filter_map(|pair| pair.split_once('=')).find(|(name, _)| *name == key).map(|pair| pair.1)
    };
    let magnification = value("mag")?.parse().ok().filter(|value: &f64| value.is_finite() && *value > 0.0)?;
    Some((value("level")?.parse().ok()?, magnification))
}

/// The attributes of the scanner's XML, as properties.
fn read_scan(path: &Path, text: &str) -> Result<BTreeMap<String, String>> {
    let document = xml::parse(path, "the iScan description", text)?;
    let root = document.root_element();
    let scan = match root.tag_name().name() {
        "iScan" => Some(root),
        "Metadata" => xml::find(root, &["iScan"]),
        _ => None,
    };
    let scan = scan.ok_or_else(|| Error::format(path, "the XMP of this Ventana slide has no iScan element"))?;
    let attributes = scan.attributes().filter(|attribute| !attribute.value().is_empty());
    Ok(attributes.map(|a| (format!("ventana.{}", a.name()), a.value().to_owned())).collect())
}

/// How the tiles of level 0 lie on the slide.
#[derive(Debug)]
struct Stitching {
    areas: Vec<Area>,
    /// Pixels of level 0 from one tile to the next.
    advance_x: f64,
    advance_y: f64,
    tile: Size,
}

/// A rectangle of tiles, and where it lies on the slide.
#[derive(Debug)]
struct Area {
    start_column: u64,
    start_row: u64,
    columns: u64,
    rows: u64,
    /// In pixels of level 0.
    x: u64,
    y: u64,
}

/// A mean with weights.
#[derive(Debug, Default)]
struct Mean {
    sum: f64,
    weight: f64,
}

impl Mean {
    fn add(&mut self, value: f64, weight: f64) {
        self.sum += value * weight;
        self.weight += weight;
    }

    /// 0 where nothing was added: tiles that have no neighbour overlap none.
    fn value(&self) -> f64 {
        if self.weight == 0.0 { 0.0 } else { self.sum / self.weight }
    }
}

/// Reads descriptions, for the fuzz targets.
pub(crate) fn read_description(path: &Path, text: &str) -> Result<()> {
    let _ = read_scan(path, text);
    let stitching = Stitching::read(path, text, Size::new(64, 48), Size::new(9, 7))?;
    stitching.describe(&mut BTreeMap::new());
    for downsample in [1.0, 2.0, 16.0, 3.5] {
        let _ = stitching.size(downsample);
    }
    Ok(())
}

impl Stitching {
    /// Reads the XML of level 0, a page of `grid` tiles.
    fn read(path: &Path, text: &str, tile: Size, grid: Size) -> Result<Self> {
        let corrupt = |what: String| Error::format(path, format!("the EncodeInfo of this Ventana slide {what}"));
        let document: Document<'_> = xml::parse(path, "the EncodeInfo", text)?;
        let root = document.root_element();
        if root.tag_name().name() != "EncodeInfo" {
            return Err(Error::format(path, "the XMP of level 0 of this Ventana slide is no EncodeInfo"));
        }
        let images = xml::children(root, "SlideStitchInfo").flat_map(|info| xml::children(info, "ImageInfo"));
        let images: Vec<Node<'_, '_>> = images.collect();
        let origins = xml::children(root, "AoiOrigin").flat_map(|origin| origin.children().filter(Node::is_element));
        let origins: Vec<Node<'_, '_>> = origins.collect();
        if images.len() != origins.len() {
            return Err(corrupt(format!("has {} areas, but {} places of areas", images.len(), origins.len())));
        }
        if images.len() > MAX_AREAS {
            let why = format!("this Ventana slide has {} areas, the limit is {MAX_AREAS}", images.len());
            return Err(Error::limits(path, why));
        }
        let (mut x, mut y) = (Mean::default(), Mean::default());
        let mut areas = Vec::new();
        // Distances of lower edges from below.
        let mut lower = Vec::new();
        for (image, origin) in images.into_iter().zip(origins) {
            let number = |node: Node<'_, '_>, name: &str| {
                let text = node.attribute(name).unwrap_or_default();
                // It seems that these are always whole numbers, though some are written with a decimal point.
                let value = text.trim().parse::<f64>().ok().filter(|value| value.abs() <= f64::from(u32::MAX));
                value.ok_or_else(|| corrupt(format!("needs a number as {name}, not {text:?}")))
            };
            if number(image, "AOIScanned")? == 0.0 {
                continue;
            }
            let count = |node: Node<'_, '_>, name: &str| {
                let value = number(node, name)?;
                if value < 0.0 || value.fract() != 0.0 {
                    return Err(corrupt(format!("needs a whole number as {name}, not {value}")));
                }
                Ok(value as u64)
            };
            let size = Size::new(count(image, "Width")?, count(image, "Height")?);
            let (left, top) = (count(origin, "OriginX")?, count(origin, "OriginY")?);
            if size != tile || left % tile.width != 0 || top % tile.height != 0 {
                return Err(corrupt(format!(
                    "places tiles of {size} at ({left}, {top}) of a page whose tiles are {tile}"
                )));
            }
            let mut area = Area {
                start_column: left / tile.width,
                start_row: top / tile.height,
                columns: count(image, "NumCols")?,
                rows: count(image, "NumRows")?,
                x: 0,
                y: 0,
            };
            let inside = (1..=grid.width).contains(&area.columns)
                && (1..=grid.height).contains(&area.rows)
                && area.start_column + area.columns <= grid.width
                && area.start_row + area.rows <= grid.height;
            if !inside {
                return Err(corrupt(format!("has an area that does not lie within the {grid} tiles of level 0")));
            }
            let at = number(image, "Pos-X")?;
            if at < 0.0 {
                return Err(corrupt(format!("has an area at {at}, to the left of the slide")));
            }
            area.x = at as u64;
            lower.push(number(image, "Pos-Y")?.trunc());
            for joint in xml::children(image, "TileJointInfo") {
                let confidence = number(joint, "Confidence")?.max(0.0);
                let (one, other) = (area.tile(count(joint, "Tile1")?), area.tile(count(joint, "Tile2")?));
                let (Some(one), Some(other)) = (one, other) else {
                    return Err(corrupt("joins tiles that its area does not have".into()));
                };
                let neighbours = match joint.attribute("Direction") {
                    Some("RIGHT") => other == (one.0 + 1, one.1),
                    Some("UP") => other.0 == one.0 && other.1 + 1 == one.1,
                    // How these number the tiles is not known; their mean does not depend on it.
                    Some("LEFT" | "DOWN") => true,
                    other => {
                        return Err(corrupt(format!("joins tiles in the direction {:?}", other.unwrap_or_default())));
                    }
                };
                if !neighbours {
                    return Err(corrupt("joins tiles that are no neighbours".into()));
                }
                match joint.attribute("Direction") {
                    Some("RIGHT" | "LEFT") => x.add(number(joint, "OverlapX")?, confidence),
                    _ => y.add(number(joint, "OverlapY")?, confidence),
                }
            }
            areas.push(area);
        }
        if areas.is_empty() {
            return Err(corrupt("has no scanned area".into()));
        }
        let (advance_x, advance_y) = (tile.width as f64 - x.value(), tile.height as f64 - y.value());
        for (advance, length) in [(advance_x, tile.width), (advance_y, tile.height)] {
            if !(1.0..=2.0 * length as f64).contains(&advance) {
                return Err(corrupt(format!("moves tiles of {tile} pixels by {advance} pixels")));
            }
        }
        let mut found = Self { areas, advance_x, advance_y, tile };
        found.turn_over(&lower).map_err(corrupt)?;
        Ok(found)
    }

    /// Finds how far down each area lies, of the distances of their lower edges from below.
    fn turn_over(&mut self, lower: &[f64]) -> Result<(), String> {
        let height = |area: &Area| ((area.rows - 1) as f64 * self.advance_y + self.tile.height as f64).trunc();
        let upper: Vec<f64> = self.areas.iter().zip(lower).map(|(area, lower)| lower + height(area)).collect();
        let top = upper.iter().copied().fold(0.0, f64::max);
        for (area, upper) in self.areas.iter_mut().zip(upper) {
            let y = top - upper;
            if y > f64::from(u32::MAX) {
                return Err(format!("places an area {y} pixels below another one"));
            }
            area.y = y as u64;
        }
        Ok(())
    }

    /// Says where the areas are, in the words of OpenSlide, and how tiles follow each other.
    fn describe(&self, properties: &mut BTreeMap<String, String>) {
        let (across, down) = (self.advance_x, self.advance_y);
        for (number, area) in self.areas.iter().enumerate() {
            for (name, value) in [
                ("x", (across * area.start_column as f64).trunc()),
                ("y", (down * area.start_row as f64).trunc()),
                ("width", (across * (area.columns - 1) as f64 + self.tile.width as f64).ceil()),
                ("height", (down * (area.rows - 1) as f64 + self.tile.height as f64).ceil()),
            ] {
                properties.insert(format!("openslide.region[{number}].{name}"), value.to_string());
            }
        }
        properties.insert("microtome.tile-advance".into(), format!("{across} x {down}"));
    }

    /// The size of a level: large enough for all areas. The order of the sums is OpenSlide's, since they are rounded up.
    fn size(&self, downsample: f64) -> Size {
        let edge = |start: u64, count: u64, at: u64, advance: f64, length: u64| {
            let offset = (at as f64 - start as f64 * advance) / downsample;
            let first = start as f64 * (advance / downsample) + offset;
            (first, (start + count - 1) as f64 * (advance / downsample) + offset + length as f64 / downsample)
        };
        let total = |edges: Vec<(f64, f64)>| {
            let first = edges.iter().map(|edge| edge.0).fold(f64::INFINITY, f64::min);
            let last = edges.iter().map(|edge| edge.1).fold(f64::NEG_INFINITY, f64::max);
            (first + (last - first)).ceil() as u64
        };
        let areas = &self.areas;
        let x = areas.iter().map(|a| edge(a.start_column, a.columns, a.x, self.advance_x, self.tile.width));
        let y = areas.iter().map(|a| edge(a.start_row, a.rows, a.y, self.advance_y, self.tile.height));
        Size::new(total(x.collect()), total(y.collect()))
    }

    /// A level of a page that holds all tiles of level 0, made smaller.
    fn layer(&self, page: &Arc<Page>, downsample: f64, white: Option<u8>) -> Result<Layer, String> {
        let per_tile = downsample as u64;
        let whole = downsample.fract() == 0.0
            && self.tile.width.is_multiple_of(per_tile)
            && self.tile.height.is_multiple_of(per_tile);
        if !whole {
            return Err(format!(
                "tiles of {} pixels do not stay whole when they get {downsample} times smaller",
                self.tile
            ));
        }
        let shape = page.shape();
        let background = match white {
            Some(white) if shape.sample == SampleType::U8 => vec![white.into(); shape.channels],
            _ => shape.background.clone(),
        };
        let tiles = page.layout.size.cells(page.layout.cell);
        let mut areas: Vec<&Area> = self.areas.iter().collect();
        // Should areas overlap, the lower one and the one to the right is seen, as it is with tiles.
        areas.sort_by_key(|area| (area.start_row, area.start_column));
        let parts = areas.into_iter().map(|area| {
            let placing = |first: u64, count: u64, length: u64, advance: f64| Placing {
                first,
                count,
                per_tile,
                length: length / per_tile,
                advance: advance / downsample,
            };
            let columns = placing(area.start_column, area.columns, self.tile.width, self.advance_x);
            let rows = placing(area.start_row, area.rows, self.tile.height, self.advance_y);
            let last = |placing: &Placing| (placing.first + placing.count - 1) / per_tile;
            if last(&columns) >= tiles.width || last(&rows) >= tiles.height {
                return Err(format!("its {tiles} tiles do not hold all areas"));
            }
            let (x, y) = ((area.x as f64 / downsample).round() as u64, (area.y as f64 / downsample).round() as u64);
            Ok(Part { x, y, raster: Box::new(Stitched::new(Arc::clone(page), columns, rows, background.clone())) })
        });
        Ok(Layer { size: self.size(downsample), parts: parts.collect::<Result<_, String>>()?, stored: true })
    }
}

impl Area {
    /// Column and row of a tile by its number. The scanner goes from below to above, to the right and back in turns.
    fn tile(&self, number: u64) -> Option<(u64, u64)> {
        let index = number.checked_sub(1).filter(|&index| index < self.columns * self.rows)?;
        let (column, row) = (index % self.columns, index / self.columns);
        let column = if row.is_multiple_of(2) { column } else { self.columns - column - 1 };
        Some((column, self.rows - row - 1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_are_named_in_descriptions() {
        assert_eq!(level_of("level=0 mag=40 quality=95"), Some((0, 40.0)));
        assert_eq!(level_of("level=3 mag=0.625"), Some((3, 0.625)));
        for text in ["level=0", "level=-1 mag=1", "level=0 mag=0", "level=0 mag=nan", "mag=1 level=x", ""] {
            assert_eq!(level_of(text), None, "{text}");
        }
    }

    #[test]
    fn tiles_are_numbered_like_a_plough_goes() {
        let area = Area { start_column: 0, start_row: 0, columns: 3, rows: 2, x: 0, y: 0 };
        let order: Vec<_> = (0..=7).map(|number| area.tile(number)).collect();
        let place = |column, row| Some((column, row));
        let way = [place(0, 1), place(1, 1), place(2, 1), place(2, 0), place(1, 0), place(0, 0)];
        assert_eq!(order[1..7], way);
        assert_eq!((order[0], order[7]), (None, None));
    }
}
