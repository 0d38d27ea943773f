//! The metadata of OME-NGFF multiscale images as others write it, versions 0.4 and 0.5.
//!
//! Own structs and not `ome_zarr_metadata` 0.3.1: its scales are `f32`, its 0.4 types refuse any field that they do not know, and its 0.5
//! `image-label` refuses the `version` that the specification asks for. What is read here is what is used, and the rest may be anything.

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

use serde::Deserialize;
use serde_json::{Map, Value};

use super::found::{MARKER, METADATA, METADATA_LIMIT};
use super::{Channel, Content, StoreLevel, Translation, folder, ngff};
use crate::{Class, Error, Microns, Result};

/// More levels than a picture of 2^63 pixels has.
const MAX_LEVELS: usize = 64;
/// More axes than the specification allows are refused.
const MAX_AXES: usize = 5;

/// What a group says about its image.
#[derive(Debug)]
pub(super) struct Multiscale {
    /// The file that says so.
    pub(super) file: PathBuf,
    /// `0.4` or `0.5`.
    pub(super) version: String,
    pub(super) name: Option<String>,
    pub(super) method: Option<String>,
    pub(super) metadata: Map<String, Value>,
    pub(super) axes: Axes,
    /// The folder of each level, relative to the group, and where its pixels lie.
    pub(super) datasets: Vec<(String, Place)>,
    pub(super) content: Content,
    pub(super) attributes: Map<String, Value>,
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
    axes: Vec<Axis>,
    datasets: Vec<Dataset>,
    #[serde(default)]
    coordinate_transformations: Vec<Value>,
    r#type: Option<Value>,
    metadata: Option<Value>,
}

#[derive(Deserialize)]
struct Axis {
    name: String,
    r#type: Option<String>,
    unit: Option<String>,
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
    /// Reads the group in `folder`.
    pub(super) fn open(folder: &Path) -> Result<Self> {
        let (v3, v2) = (folder.join(METADATA), folder.join(".zattrs"));
        let read = |file: &Path| -> Result<Value> {
            let bytes = folder::read_small(file, METADATA_LIMIT)?;
            serde_json::from_slice(&bytes).map_err(|e| Error::format(file, e.to_string()))
        };
        if v3.is_file() {
            let mut document = read(&v3)?;
            let attributes = &mut document["attributes"];
            let ours = attributes[ngff::OURS].take();
            let ome = attributes["ome"].take();
            let version = ome["version"].as_str().unwrap_or("0.5").to_owned();
            Self::parse(&v3, ome, ours, Some(version))
        } else if v2.is_file() {
            let mut attributes = read(&v2)?;
            let ours = attributes[ngff::OURS].take();
            Self::parse(&v2, attributes, ours, None)
        } else if folder.join(MARKER).is_file() {
            Err(Error::format(folder, "this store of microtome's is not finished"))
        } else {
            Err(Error::format(folder, "this is no OME-Zarr group: there is no zarr.json and no .zattrs"))
        }
    }

    fn parse(file: &Path, mut ome: Value, ours: Value, version: Option<String>) -> Result<Self> {
        if ome["multiscales"].get(0).is_none() {
            let collection = ome.get("bioformats2raw.layout").is_some() || ome.get("plate").is_some();
            return Err(if collection {
                Error::unsupported(file, "this is a collection of images: open one of the folders in it")
            } else {
                Error::unsupported(file, "there is no multiscale image here")
            });
        }
        let format = |e: serde_json::Error| Error::format(file, format!("multiscales: {e}"));
        let stated = version.or_else(|| ome["multiscales"][0]["version"].as_str().map(Into::into));
        let version = match stated.as_deref() {
            Some(v) if v.starts_with("0.5") => "0.5",
            Some(v) if v.starts_with("0.4") => "0.4",
            other => {
                let other = other.unwrap_or("of no stated version");
                return Err(Error::unsupported(file, format!("OME-Zarr {other} is not supported, only 0.4 and 0.5")));
            }
        };
        let entry: Entry = serde_json::from_value(ome["multiscales"][0].take()).map_err(format)?;
        let text = |value: Option<Value>| value.and_then(|v| v.as_str().map(Into::into));
        let axes = Axes::new(file, &entry.axes)?;
        let datasets = entry.places(file, &axes)?;
        let content = match ome.get_mut("image-label").map(Value::take) {
            None | Some(Value::Null) => Content::Image { channels: channels(&ome["omero"]["channels"]) },
            Some(label) => Content::Labels { classes: classes(serde_json::from_value(label).map_err(format)?) },
        };
        let object = |value| if let Value::Object(map) = value { map } else { Map::new() };
        Ok(Self {
            file: file.into(),
            version: version.into(),
            name: text(entry.name),
            method: text(entry.r#type),
            metadata: object(entry.metadata.unwrap_or(Value::Null)),
            axes,
            datasets,
            content,
            attributes: object(ours),
        })
    }
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
        let channel = axes.iter().position(|axis| axis.r#type.as_deref() == Some("channel")).or_else(|| find("c"));
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
        let micrometres = |axis: usize| self.axes[axis].unit.as_deref().and_then(micrometres);
        let units = micrometres(axes.x).zip(micrometres(axes.y));
        let (all_scale, all_shift) = transformation(file, &self.coordinate_transformations, self.axes.len())?;
        let mut places = Vec::new();
        for dataset in &self.datasets {
            if !is_inside(&dataset.path) {
                return Err(Error::format(file, format!("the level path {:?} leads out of the store", dataset.path)));
            }
            let (scale, shift) = transformation(file, &dataset.coordinate_transformations, self.axes.len())?;
            let (scale_of, shift_of) =
                (|n: usize| scale[n] * all_scale[n], |n: usize| shift[n] * all_scale[n] + all_shift[n]);
            let place = Place {
                scale: Microns { x: scale_of(axes.x), y: scale_of(axes.y) },
                translation: Translation { x: shift_of(axes.x), y: shift_of(axes.y) },
                micrometres: units,
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

/// True for a relative path of plain names, which stays in its folder.
fn is_inside(path: &str) -> bool {
    !path.is_empty()
        && !path.contains(['\\', '\0', ':'])
        && Path::new(path).components().all(|part| matches!(part, Component::Normal(_)))
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
        name: channel["label"].as_str().unwrap_or_default().into(),
        color: channel["color"].as_str().and_then(color).unwrap_or([255; 3]),
    };
    list.as_array().map(|list| list.iter().map(channel).collect()).unwrap_or_default()
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
    fn paths_stay_inside() {
        for path in ["0", "s0/a", "labels/mask/0"] {
            assert!(is_inside(path), "{path}");
        }
        for path in ["", "/etc", "../x", "a/../../x", "a/..", ".", "C:\\x", "..\\x", "\\\\host\\x"] {
            assert!(!is_inside(path), "{path}");
        }
    }

    #[test]
    fn units_of_length_become_micrometres() {
        assert_eq!(micrometres("millimeter"), Some(1000.0));
        assert_eq!(micrometres("nanometer"), Some(0.001));
        assert_eq!(micrometres("second"), None);
    }
}
