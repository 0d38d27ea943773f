//! OME-NGFF metadata as we write it, versions 0.5 and 0.4.
//!
//! The documents are spelled out here and not made with `ome_zarr_metadata` 0.3.1, for two reasons: its scales and
//! translations are `f32`, which moves the last pixels of a wide slide by more than a nanometre's rounding, and its `image-label` knows no
//! `version`, which the specification says should be there.

use serde_json::{Map, Value, json};

use super::found::METADATA;
use super::{AxisUnit, Channel, Content, Format, LabelSource, StoredImage};
use crate::{Class, Microns, SampleType};

/// The root attribute that is ours.
pub(super) const OURS: &str = "microtome";

/// The metadata of an image whose levels are the arrays `0`, `1`, ...: documents by name, in the order in which they are written. The last one
/// makes an image of the group. What is `ours` goes under [`OURS`].
///
/// Specifications: <https://ngff.openmicroscopy.org/0.5/>, <https://ngff.openmicroscopy.org/0.4/>.
pub(super) fn root(image: &StoredImage, ours: &Map<String, Value>) -> Vec<(&'static str, Value)> {
    let version = image.encoding.format.version();
    let (key, described) = match &image.content {
        Content::Labels { classes } => ("image-label", image_label(version, classes, image.source.as_ref())),
        Content::Image { channels } => ("omero", omero(channels, image.sample)),
    };
    match image.encoding.format {
        Format::V0_5 => {
            let ome = json!({ "version": version, "multiscales": [multiscale(image)], key: described });
            vec![(METADATA, group(json!({ "ome": ome, OURS: ours })))]
        }
        Format::V0_4 => {
            let mut multiscale = multiscale(image);
            multiscale["version"] = version.into();
            let attributes = json!({ "multiscales": [multiscale], key: described, OURS: ours });
            vec![(".zgroup", json!({ "zarr_format": 2 })), (".zattrs", attributes)]
        }
    }
}

/// A group of Zarr 3.
pub(super) fn group(attributes: Value) -> Value {
    json!({ "zarr_format": 3, "node_type": "group", "attributes": attributes })
}

fn multiscale(image: &StoredImage) -> Value {
    let axes = image.content.axes();
    let unit = image.source.as_ref().map_or(AxisUnit::Micrometer, |source| source.unit);
    let axis = |&name: &&str| match name {
        "c" => json!({ "name": name, "type": "channel" }),
        _ if image.levels[0].mpp.is_some() && unit == AxisUnit::Micrometer => {
            json!({ "name": name, "type": "space", "unit": "micrometer" })
        }
        _ => json!({ "name": name, "type": "space" }),
    };
    // One number per axis; channels are neither scaled nor moved.
    let along = |c: f64, y: f64, x: f64| -> Vec<f64> {
        axes.iter()
            .map(|&axis| {
                if axis == "c" {
                    c
                } else if axis == "y" {
                    y
                } else {
                    x
                }
            })
            .collect()
    };
    let datasets: Vec<Value> = image
        .levels
        .iter()
        .enumerate()
        .map(|(n, level)| {
            // Without a resolution the physical unit is the level-0 pixel.
            let scale = level.mpp.unwrap_or_else(|| Microns::square(2f64.powi(n as i32)));
            json!({
                "path": n.to_string(),
                "coordinateTransformations": [
                    { "type": "scale", "scale": along(1.0, scale.y, scale.x) },
                    { "type": "translation", "translation": along(0.0, level.translation.y, level.translation.x) },
                ],
            })
        })
        .collect();
    json!({
        "name": image.name,
        "axes": axes.iter().map(axis).collect::<Vec<_>>(),
        "datasets": datasets,
        "type": image.method,
        "metadata": image.metadata,
    })
}

/// Colours and names of the labels. Background is always listed and transparent: the strict schema wants at least one colour, and a
/// viewer then shows the slide where there is nothing.
fn image_label(version: &str, classes: &[Class], source: Option<&LabelSource>) -> Value {
    let mut colors = Vec::new();
    let mut properties = Vec::new();
    let mut list = |value: u16, [r, g, b]: [u8; 3], name: &str, code: Option<&String>| {
        colors.push(json!({ "label-value": value, "rgba": [r, g, b, if value == 0 { 0 } else { 255 }] }));
        let mut property = Map::new();
        property.insert("label-value".into(), value.into());
        property.insert("class".into(), name.into());
        property.extend(code.map(|code| ("code".to_owned(), Value::from(code.as_str()))));
        properties.push(Value::Object(property));
    };
    if classes.iter().all(|class| class.value != 0) {
        list(0, [0, 0, 0], "background", None);
    }
    for class in classes {
        list(class.value, class.color, &class.name, class.code.as_ref());
    }
    let mut label = json!({ "version": version, "colors": colors, "properties": properties });
    if let Some(source) = source {
        label["source"] = json!({ "image": source.image });
    }
    label
}

/// Names, colours and ranges of the channels.
fn omero(channels: &[Channel], sample: SampleType) -> Value {
    let max = match sample {
        SampleType::U8 => u16::from(u8::MAX),
        SampleType::U16 => u16::MAX,
    };
    let channel = |Channel { name, color: [r, g, b], window }: &Channel| {
        let [start, end] = window.unwrap_or([0, max]);
        json!({
            "label": name,
            "color": format!("{r:02X}{g:02X}{b:02X}"),
            "active": true,
            "window": { "min": 0, "max": max, "start": start, "end": end },
        })
    };
    json!({ "channels": channels.iter().map(channel).collect::<Vec<_>>() })
}

/// A document as it goes to disk: indented, its keys in the order in which they were put.
pub(super) fn to_bytes(document: &Value) -> Vec<u8> {
    format!("{document:#}\n").into_bytes()
}
