//! The metadata of OME-NGFF multiscale images as others write it, versions 0.1 to 0.5, and what an array without any says of itself.
//!
//! The versions differ, as far as one picture is concerned, in this: 0.1 and 0.2 name no axes, which are always t, c, z, y and x; 0.3 lists
//! their names; 0.4 adds their types and units, and scales; 0.5 puts all of it under the key `ome` of Zarr 3. (Dots or slashes in the keys
//! of chunks, the difference of 0.2, are said by the array.)
//! Specifications: <https://ngff.openmicroscopy.org/0.5/> and the older ones beside it.
//!
//! Own structs and not `ome_zarr_metadata` 0.3.1: its scales are `f32`, its 0.4 types refuse any field that they do not know, and its 0.5
//! `image-label` refuses the `version` that the specification asks for. What is read here is what is used, and the rest may be anything.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;
use serde_json::{Map, Value};

use super::entries::is_inside;
use super::node::Node;
use super::{AxisUnit, Channel, Content, StoreLevel, Translation};
use crate::{Class, Error, Microns, Result};

/// More levels than a picture of 2^63 pixels has.
const MAX_LEVELS: usize = 64;
/// More axes than the specification allows are refused.
const MAX_AXES: usize = 5;

/// What a group says about its image.
#[derive(Debug)]
pub(super) struct Multiscale {
    /// `0.1` to `0.5`; empty for a bare array.
    pub(super) version: String,
    pub(super) name: Option<String>,
    pub(super) method: Option<String>,
    pub(super) metadata: Map<String, Value>,
    pub(super) axes: Axes,
    /// The folder of each level, relative to the group, and where its pixels lie.
    pub(super) datasets: Vec<(String, Place)>,
    pub(super) content: Content,
    pub(super) attributes: Map<String, Value>,
    /// How many multiscale images the group has, of which this is the first.
    pub(super) count: usize,
}

/// Which axis is which.
#[derive(Debug)]
pub(super) struct Axes {
    pub(super) names: Vec<String>,
    pub(super) x: usize,
    pub(super) y: usize,
    pub(super) channel: Option<usize>,
}

/// Scale and translation of a level, in the unit of the axes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place {
    scale: Microns,
    translation: Translation,
    /// Micrometres per unit of the axes x and y, if they have units of length.
    micrometres: Option<(f64, f64)>,
}

impl Place {
    /// The extent of a pixel, where the centre of the first one lies, and in what: micrometres where the axes have units of length.
    pub(super) fn in_units(self) -> (Microns, Translation, AxisUnit) {
        let (scale, shift) = (self.scale, self.translation);
        match self.micrometres {
            Some((x, y)) => (
                Microns { x: scale.x * x, y: scale.y * y },
                Translation { x: shift.x * x, y: shift.y * y },
                AxisUnit::Micrometer,
            ),
            None => (scale, shift, AxisUnit::Unknown),
        }
    }

    /// The level of this size; `finest` is level 0.
    pub(super) fn level(self, size: crate::Size, finest: Self) -> StoreLevel {
        let (t, s) = (self.translation, finest.scale);
        match self.micrometres {
            Some((x, y)) => StoreLevel {
                size,
                mpp: Some(Microns { x: self.scale.x * x, y: self.scale.y * y }),
                translation: Translation { x: t.x * x, y: t.y * y },
            },
            // Without a unit of length, a translation only tells how many level-0 pixels it is.
            None => StoreLevel { size, mpp: None, translation: Translation { x: t.x / s.x, y: t.y / s.y } },
        }
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Entry {
    name: Option<Value>,
    axes: Option<Vec<Axis>>,
    datasets: Vec<Dataset>,
    #[serde(default)]
    coordinate_transformations: Vec<Value>,
    r#type: Option<Value>,
    metadata: Option<Value>,
}

#[derive(Deserialize)]
#[serde(from = "Spelling")]
struct Axis {
    name: String,
    kind: Option<String>,
    unit: Option<String>,
}

/// An axis in version 0.3, or later.
#[derive(Deserialize)]
#[serde(untagged)]
enum Spelling {
    Name(String),
    Full { name: String, r#type: Option<String>, unit: Option<String> },
}

impl From<Spelling> for Axis {
    fn from(spelling: Spelling) -> Self {
        match spelling {
            Spelling::Name(name) => Self { name, kind: None, unit: None },
            Spelling::Full { name, r#type, unit } => Self { name, kind: r#type, unit },
        }
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Dataset {
    path: String,
    #[serde(default)]
    coordinate_transformations: Vec<Value>,
}

#[derive(Deserialize)]
struct ImageLabel {
    #[serde(default)]
    colors: Vec<Color>,
    #[serde(default)]
    properties: Vec<Map<String, Value>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Color {
    label_value: f64,
    rgba: Option<[u8; 4]>,
}

impl Multiscale {
    /// What a group says of its first image.
    pub(super) fn parse(node: &Node, mut ome: Value, ours: Value) -> Result<Self> {
        let file = &node.path;
        if ome["multiscales"].get(0).is_none() {
            return Err(no_image(file, &ome));
        }
        let format = |e: serde_json::Error| Error::format(file, format!("multiscales: {e}"));
        let count = ome["multiscales"].as_array().map_or(1, Vec::len);
        let first = &ome["multiscales"][0];
        let stated = if node.format == 3 { ome["version"].as_str() } else { None };
        let stated = stated.or_else(|| first["version"].as_str());
        let version = match stated {
            Some(stated) => *VERSIONS.iter().find(|&&known| is_version(stated, known)).ok_or_else(|| {
                Error::unsupported(file, format!("OME-Zarr {stated} is not supported, only 0.1 to 0.5"))
            })?,
            // The specification asks for the version and does not demand it. Each has axes of its own kind.
            None if node.format == 3 => "0.5",
            None if first["axes"][0].is_object() => "0.4",
            None if first["axes"][0].is_string() => "0.3",
            None => "0.2",
        };
        let entry = ome.get_mut("multiscales").and_then(|list| list.get_mut(0));
        let mut entry: Entry = serde_json::from_value(entry.map(Value::take).unwrap_or_default()).map_err(format)?;
        let text = |value: Option<Value>| value.and_then(|v| v.as_str().map(Into::into));
        if entry.axes.is_none() && matches!(version, "0.1" | "0.2") {
            entry.axes = Some(["t", "c", "z", "y", "x"].map(|name| Spelling::Name(name.into()).into()).into());
        }
        let Some(listed) = &entry.axes else { return Err(Error::format(file, "multiscales: the axes are missing")) };
        let axes = Axes::new(file, listed)?;
        let datasets = entry.places(file, &axes)?;
        let content = match ome.get_mut("image-label").map(Value::take) {
            None | Some(Value::Null) => Content::Image { channels: channels(&ome["omero"]["channels"]) },
            Some(label) => Content::Labels { classes: classes(serde_json::from_value(label).map_err(format)?) },
        };
        let object = |value| if let Value::Object(map) = value { map } else { Map::new() };
        Ok(Self {
            version: version.into(),
            name: text(entry.name),
            method: text(entry.r#type),
            metadata: object(entry.metadata.unwrap_or(Value::Null)),
            axes,
            datasets,
            content,
            attributes: object(ours),
            count,
        })
    }

    /// An array that nobody calls an image: a picture of one level, if it has two axes or names for them.
    pub(super) fn bare(node: &Node, dimensions: usize) -> Result<Self> {
        // In version 2 by xarray's custom.
        let names = if node.format == 3 { &node.dimension_names } else { &node.attributes["_ARRAY_DIMENSIONS"] };
        let names: Vec<String> = serde_json::from_value(names.clone()).unwrap_or_default();
        let names = match dimensions {
            2 if names.is_empty() => vec!["y".into(), "x".into()],
            n if names.is_empty() => {
                return Err(Error::unsupported(
                    &node.path,
                    format!(
                        "the array has {n} dimensions and no names for them: which of them are y and x is not said"
                    ),
                ));
            }
            _ => names,
        };
        let axes: Vec<Axis> = names.into_iter().map(|name| Spelling::Name(name).into()).collect();
        let place =
            Place { scale: Microns::square(1.0), translation: Translation { x: 0.0, y: 0.0 }, micrometres: None };
        Ok(Self {
            version: String::new(),
            name: None,
            method: None,
            metadata: Map::new(),
            axes: Axes::new(&node.path, &axes)?,
            datasets: vec![(String::new(), place)],
            content: Content::Image { channels: Vec::new() },
            attributes: Map::new(),
            count: 1,
        })
    }
}

/// The versions that are read.
const VERSIONS: [&str; 5] = ["0.1", "0.2", "0.3", "0.4", "0.5"];

/// True for the version itself and for what was written before it was one: `0.4-dev`, `0.5.2`.
fn is_version(stated: &str, known: &str) -> bool {
    stated.strip_prefix(known).is_some_and(|rest| !rest.starts_with(|c: char| c.is_ascii_digit()))
}

/// What a group without an image is, if it says so.
fn no_image(file: &Path, ome: &Value) -> Error {
    Error::unsupported(
        file,
        if ome.get("plate").is_some() {
            "this is a plate of a high-content screen (HCS), which is no slide: open one of the images in its wells"
                .into()
        } else if let Some(well) = ome.get("well") {
            let images = well["images"].as_array().map_or(0, Vec::len);
            format!("this is a well of a high-content screen (HCS), which is no slide: open one of its {images} images")
        } else if let Some(labels) = ome["labels"].as_array() {
            let names: Vec<&str> = labels.iter().filter_map(Value::as_str).take(16).collect();
            format!("this is a list of label images: open one of [{}]", names.join(", "))
        } else if let Some(layout) = ome.get("bioformats2raw.layout") {
            format!("this is a collection of images in the layout {layout} of bioformats2raw, of which 3 is supported")
        } else if ome["series"].is_array() {
            "this lists the images of the folder around it: open that".into()
        } else {
            "there is no multiscale image here".into()
        },
    )
}

impl Axes {
    /// Those of an image of ours: `[c,] y, x`.
    pub(super) fn named(names: &[&str]) -> Self {
        let planar = names.len() - 2;
        let names = names.iter().map(|&name| name.into()).collect();
        Self { names, x: planar + 1, y: planar, channel: (planar == 1).then_some(0) }
    }

    fn new(file: &Path, axes: &[Axis]) -> Result<Self> {
        if axes.len() > MAX_AXES {
            return Err(Error::format(file, format!("an image has at most {MAX_AXES} axes, not {}", axes.len())));
        }
        let find = |name: &str| axes.iter().position(|axis| axis.name.eq_ignore_ascii_case(name));
        let (Some(x), Some(y)) = (find("x"), find("y")) else {
            let names: Vec<_> = axes.iter().map(|axis| axis.name.as_str()).collect();
            return Err(Error::unsupported(file, format!("of the axes {names:?} none is x, or none is y")));
        };
        let channel = axes.iter().position(|axis| axis.kind.as_deref() == Some("channel")).or_else(|| find("c"));
        if channel.is_some_and(|c| c == x || c == y) {
            return Err(Error::format(file, "an axis is both a channel and x or y"));
        }
        Ok(Self { names: axes.iter().map(|axis| axis.name.clone()).collect(), x, y, channel })
    }
}

impl Entry {
    fn places(&self, file: &Path, axes: &Axes) -> Result<Vec<(String, Place)>> {
        if self.datasets.is_empty() || self.datasets.len() > MAX_LEVELS {
            let n = self.datasets.len();
            return Err(Error::format(file, format!("an image has 1 to {MAX_LEVELS} levels, not {n}")));
        }
        let listed = self.axes.as_deref().unwrap_or_default();
        let micrometres = |axis: usize| listed[axis].unit.as_deref().and_then(micrometres);
        let units = micrometres(axes.x).zip(micrometres(axes.y));
        let (all_scale, all_shift) = transformation(file, &self.coordinate_transformations, listed.len())?;
        let mut places = Vec::new();
        for dataset in &self.datasets {
            if !is_inside(&dataset.path) {
                return Err(Error::format(file, format!("the level path {:?} leads out of the store", dataset.path)));
            }
            let (scale, shift) = transformation(file, &dataset.coordinate_transformations, listed.len())?;
            let (scale_of, shift_of) =
                (|n: usize| scale[n] * all_scale[n], |n: usize| shift[n] * all_scale[n] + all_shift[n]);
            let place = Place {
                scale: Microns { x: scale_of(axes.x), y: scale_of(axes.y) },
                translation: Translation { x: shift_of(axes.x), y: shift_of(axes.y) },
                micrometres: units,
            };
            // large_image writes 0 where it does not know.
            let place = if (place.scale.x, place.scale.y) == (0.0, 0.0) {
                Place { scale: Microns::square(1.0), micrometres: None, ..place }
            } else {
                place
            };
            let sound = |v: f64| v.is_finite() && v > 0.0;
            if !(sound(place.scale.x) && sound(place.scale.y)) {
                return Err(Error::format(
                    file,
                    format!("the scale of level {:?} is no positive number", dataset.path),
                ));
            }
            places.push((dataset.path.clone(), place));
        }
        Ok(places)
    }
}

/// The scale and the translation of a list of transformations: at most one of each, in this order.
fn transformation(file: &Path, list: &[Value], axes: usize) -> Result<(Vec<f64>, Vec<f64>)> {
    let (mut scale, mut shift) = (vec![1.0; axes], vec![0.0; axes]);
    for transformation in list {
        let kind = transformation["type"].as_str().unwrap_or("nameless");
        let target = match kind {
            "identity" => continue,
            "scale" => &mut scale,
            "translation" => &mut shift,
            other => return Err(Error::unsupported(file, format!("the transformation {other:?} is not supported"))),
        };
        if transformation.get("path").is_some() {
            let message = format!("a {kind} whose numbers are in an array of their own is not supported");
            return Err(Error::unsupported(file, message));
        }
        match Vec::<f64>::deserialize(&transformation[kind]) {
            Ok(values) if values.len() == axes => *target = values,
            _ => return Err(Error::format(file, format!("a {kind} is not one number for each of {axes} axes"))),
        }
    }
    Ok((scale, shift))
}

/// Micrometres per unit, for the units of length of the specification (names of UDUNITS-2) that a slide could have, and for
/// the spellings that are met in practice.
fn micrometres(unit: &str) -> Option<f64> {
    Some(match unit {
        "picometer" | "picometre" | "pm" => 1e-6,
        "angstrom" => 1e-4,
        "nanometer" | "nanometre" | "nm" => 1e-3,
        "micrometer" | "micrometre" | "micron" | "um" | "\u{b5}m" | "\u{3bc}m" => 1.0,
        "millimeter" | "millimetre" | "mm" => 1e3,
        "centimeter" | "centimetre" | "cm" => 1e4,
        "decimeter" | "decimetre" | "dm" => 1e5,
        "meter" | "metre" | "m" => 1e6,
        "inch" => 25_400.0,
        "foot" => 304_800.0,
        "yard" => 914_400.0,
        _ => return None,
    })
}

/// What `omero` says of each channel, in the order of the channels. It is there for people who look at the picture, so what is not understood is
/// left out: the name is then empty, the colour white.
fn channels(list: &Value) -> Vec<Channel> {
    let channel = |channel: &Value| Channel {
        name: match &channel["label"] {
            Value::String(label) => label.clone(),
            Value::Number(label) => label.to_string(),
            _ => String::new(),
        },
        color: channel["color"].as_str().and_then(color).unwrap_or([255; 3]),
        window: window(&channel["window"]),
    };
    list.as_array().map(|list| list.iter().map(channel).collect()).unwrap_or_default()
}

/// The values between which a channel is shown, if that is some range of 16-bit values.
fn window(window: &Value) -> Option<[u16; 2]> {
    let value = |name: &str| window[name].as_f64().filter(|v| (0.0..=65535.0).contains(v)).map(|v| v.round() as u16);
    let [start, end] = [value("start")?, value("end")?];
    (start < end).then_some([start, end])
}

/// `RRGGBB`.
fn color(hex: &str) -> Option<[u8; 3]> {
    if hex.len() != 6 || !hex.bytes().all(|b| b.is_ascii_hexdigit()) {
        return None;
    }
    let [_, r, g, b] = u32::from_str_radix(hex, 16).ok()?.to_be_bytes();
    Some([r, g, b])
}

/// Colours and properties belong together by their label.
fn classes(label: ImageLabel) -> Vec<Class> {
    let mut classes = BTreeMap::new();
    let value_of = |v: f64| (v.fract() == 0.0 && (0.0..=65535.0).contains(&v)).then_some(v as u16);
    let unnamed = |value: u16| Class::with_default_color(value, format!("label {value}"));
    for color in label.colors {
        let Some(value) = value_of(color.label_value) else { continue };
        let class = classes.entry(value).or_insert_with(|| unnamed(value));
        if let Some([r, g, b, _]) = color.rgba {
            class.color = [r, g, b];
        }
    }
    for property in label.properties {
        let Some(value) = property.get("label-value").and_then(Value::as_f64).and_then(value_of) else { continue };
        let class = classes.entry(value).or_insert_with(|| unnamed(value));
        if let Some(name) = property.get("class").or_else(|| property.get("name")).and_then(Value::as_str) {
            class.name = name.into();
        }
        class.code = property.get("code").and_then(Value::as_str).map(Into::into);
    }
    classes.into_values().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_of_length_become_micrometres() {
        assert_eq!(micrometres("millimeter"), Some(1000.0));
        assert_eq!(micrometres("nanometer"), Some(0.001));
        assert_eq!(micrometres("second"), None);
    }

    #[test]
    fn versions_are_told_apart() {
        for (stated, known) in [("0.4", "0.4"), ("0.4-dev-spatialdata", "0.4"), ("0.5.2", "0.5")] {
            assert!(is_version(stated, known), "{stated}");
        }
        assert!(!is_version("0.40", "0.4") && !is_version("0.6", "0.5") && !is_version("1.0.5", "0.5"));
    }
}
