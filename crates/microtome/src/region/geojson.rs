//! Regions as GeoJSON (RFC 7946), with coordinates in level-0 pixels, as QuPath exports annotations.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::fs::File;
use std::io::BufReader;
use std::path::Path;

use microtome_tile::{Polygon, Roi, Vertex};
use serde::de::{DeserializeSeed, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::values::list;
use super::{Place, refuse};
use crate::Result;

/// Bytes of a file at most.
const MAX_BYTES: u64 = 256 << 20;
/// Corners, names and objects at most: about 24 bytes each while the file is read.
const MAX_NODES: u64 = 2 << 20;
/// The word for every feature, whatever its class.
const ANY: &str = "any";

/// Reads a region from polygons.
pub(super) fn read(path: &Path, asked: &[String], place: Place<'_>) -> Result<Roi> {
    let file = File::open(path).map_err(|error| refuse(path, error))?;
    let bytes = file.metadata().map_err(|error| refuse(path, error))?.len();
    if bytes > MAX_BYTES {
        return Err(refuse(path, format!("this file has {bytes} bytes; {MAX_BYTES} are allowed for GeoJSON")));
    }
    let polygons = parse(BufReader::new(file), asked).map_err(|message| refuse(path, message))?;
    let roi = Roi::from_polygons(&polygons, place.target).map_err(|error| refuse(path, error))?;
    Ok(roi)
}

/// The wanted polygons.
pub(super) fn parse(source: impl std::io::Read, asked: &[String]) -> Result<Vec<Polygon>, String> {
    let mut json = serde_json::Deserializer::from_reader(source);
    let left = Cell::new(MAX_NODES);
    let document = Pruned { left: &left }
        .deserialize(&mut json)
        .and_then(|document| json.end().map(|()| document))
        .map_err(|error| format!("this GeoJSON cannot be read: {error}"))?;
    let mut shapes = Vec::new();
    gather(&document, None, &mut shapes)?;
    drop(document);
    choose(&shapes, asked)?;
    let mut polygons = Vec::new();
    for shape in shapes.into_iter().filter(|shape| shape.is_wanted(asked)) {
        match shape.polygons {
            Ok(mut some) => polygons.append(&mut some),
            Err(kind) => {
                return Err(format!("a {kind} encloses nothing: a region is made of Polygon and MultiPolygon"));
            }
        }
    }
    Ok(polygons)
}

/// JSON without what GeoJSON does not need, and with positions as pairs.
enum Json {
    Text(String),
    Number(f64),
    Position(Vertex),
    List(Vec<Self>),
    Object(Vec<(Key, Self)>),
    Other,
}

/// The names that count.
#[derive(Clone, Copy, PartialEq)]
enum Key {
    Type,
    Coordinates,
    Geometry,
    Geometries,
    Features,
    Properties,
    Classification,
    Name,
    Names,
}

impl Key {
    fn of(name: &str) -> Option<Self> {
        Some(match name {
            "type" => Self::Type,
            "coordinates" => Self::Coordinates,
            "geometry" => Self::Geometry,
            "geometries" => Self::Geometries,
            "features" => Self::Features,
            "properties" => Self::Properties,
            "classification" => Self::Classification,
            "name" => Self::Name,
            "names" => Self::Names,
            _ => return None,
        })
    }
}

impl Json {
    fn get(&self, key: Key) -> &Self {
        match self {
            Self::Object(members) => members.iter().find(|m| m.0 == key).map_or(&Self::Other, |m| &m.1),
            _ => &Self::Other,
        }
    }

    fn text(&self) -> Option<&str> {
        if let Self::Text(text) = self { Some(text) } else { None }
    }

    fn list(&self, what: &str) -> Result<&[Self], String> {
        if let Self::List(list) = self { Ok(list) } else { Err(format!("{what} is missing or no list")) }
    }
}

/// Reads any JSON, keeping what [`Json`] has room for, and no more than a number of nodes.
#[derive(Clone, Copy)]
struct Pruned<'a> {
    left: &'a Cell<u64>,
}

impl Pruned<'_> {
    fn count<E: serde::de::Error>(self, nodes: u64) -> Result<(), E> {
        let Some(left) = self.left.get().checked_sub(nodes) else {
            return Err(E::custom(format_args!("more than {MAX_NODES} corners and names")));
        };
        self.left.set(left);
        Ok(())
    }
}

impl<'de> DeserializeSeed<'de> for Pruned<'_> {
    type Value = Json;

    fn deserialize<D: serde::Deserializer<'de>>(self, deserializer: D) -> Result<Json, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Pruned<'_> {
    type Value = Json;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<Json, E> {
        Ok(Json::Other)
    }

    fn visit_bool<E>(self, _: bool) -> Result<Json, E> {
        Ok(Json::Other)
    }

    fn visit_i64<E>(self, value: i64) -> Result<Json, E> {
        Ok(Json::Number(value as f64))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Json, E> {
        Ok(Json::Number(value as f64))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Json, E> {
        Ok(Json::Number(value))
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Json, E> {
        self.count(1 + text.len() as u64 / 24)?;
        Ok(Json::Text(text.into()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Json, A::Error> {
        self.count(1)?;
        let mut list = Vec::new();
        while let Some(item) = seq.next_element_seed(self)? {
            let (Json::Number(x), true) = (&item, list.is_empty()) else {
                self.count(1)?;
                list.push(item);
                continue;
            };
            let x = *x;
            // A list of numbers is a position, whose third number would be a height.
            let Some(Json::Number(y)) = seq.next_element_seed(self)? else {
                return Err(A::Error::custom("a position has at least two numbers"));
            };
            while seq.next_element::<IgnoredAny>()?.is_some() {}
            return Ok(Json::Position(Vertex { x, y }));
        }
        Ok(Json::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Json, A::Error> {
        self.count(1)?;
        let mut members = Vec::new();
        while let Some(name) = map.next_key::<std::borrow::Cow<'_, str>>()? {
            match Key::of(&name) {
                Some(key) => members.push((key, map.next_value_seed(self)?)),
                None => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        Ok(Json::Object(members))
    }
}

/// A feature's geometry, or a part of it.
struct Shape {
    /// The name of its class.
    class: Option<String>,
    /// Its polygons, or what it is instead.
    polygons: Result<Vec<Polygon>, String>,
}

impl Shape {
    fn is_wanted(&self, asked: &[String]) -> bool {
        asked.is_empty() || asked.iter().any(|name| name == ANY || Some(name) == self.class.as_ref())
    }
}

/// Refuses to guess which features are wanted.
fn choose(shapes: &[Shape], asked: &[String]) -> Result<(), String> {
    if shapes.is_empty() {
        return Err("this GeoJSON has no geometry".into());
    }
    let classes: BTreeSet<&String> = shapes.iter().filter_map(|shape| shape.class.as_ref()).collect();
    let names: Vec<String> = classes.iter().map(|name| format!("{name:?}")).collect();
    let strangers = asked.iter().find(|name| *name != ANY && !classes.contains(name));
    match strangers {
        Some(name) if names.is_empty() => {
            Err(format!("no feature has a class, and {name:?} was asked for; leave --roi-value out"))
        }
        Some(name) => Err(format!("no feature has the class {name:?}; there are {}", list(&names))),
        None if asked.is_empty() && !names.is_empty() => Err(format!(
            "which classes are wanted is not guessed: say so with --roi-value, a name or `{ANY}`; there are {}",
            list(&names)
        )),
        None => Ok(()),
    }
}

/// Collects the geometries of a document.
fn gather(json: &Json, class: Option<&str>, shapes: &mut Vec<Shape>) -> Result<(), String> {
    let Some(kind) = json.get(Key::Type).text() else {
        return Err("GeoJSON is an object with a \"type\", and so is each of its parts".into());
    };
    let coordinates = json.get(Key::Coordinates);
    let polygons = match kind {
        "FeatureCollection" => {
            let features = json.get(Key::Features).list("the list of features")?;
            return features.iter().try_for_each(|feature| gather(feature, None, shapes));
        }
        "Feature" => {
            let class = class_of(json.get(Key::Properties).get(Key::Classification));
            return match json.get(Key::Geometry) {
                // A feature may be nowhere.
                Json::Other => Ok(()),
                geometry => gather(geometry, class.as_deref(), shapes),
            };
        }
        "GeometryCollection" => {
            let geometries = json.get(Key::Geometries).list("the list of geometries")?;
            return geometries.iter().try_for_each(|geometry| gather(geometry, class, shapes));
        }
        "Polygon" => Ok(vec![polygon(coordinates)?]),
        "MultiPolygon" => {
            Ok(coordinates.list("the list of polygons")?.iter().map(polygon).collect::<Result<_, String>>()?)
        }
        other => Err(other.to_owned()),
    };
    shapes.push(Shape { class: class.map(Into::into), polygons });
    Ok(())
}

/// The name of a class: QuPath writes `name`, or `names` for a class derived from others.
fn class_of(classification: &Json) -> Option<String> {
    if let Some(name) = classification.get(Key::Name).text() {
        return Some(name.into());
    }
    let names: Vec<&str> = classification.get(Key::Names).list("").ok()?.iter().filter_map(Json::text).collect();
    (!names.is_empty()).then(|| names.join(": "))
}

fn polygon(rings: &Json) -> Result<Polygon, String> {
    let ring = |ring: &Json| -> Result<Vec<Vertex>, String> {
        let corners: Vec<Vertex> = (ring.list("a ring of corners")?.iter())
            .map(|corner| match corner {
                Json::Position(vertex) => Ok(*vertex),
                _ => Err("a corner is no pair of numbers".to_owned()),
            })
            .collect::<Result<_, _>>()?;
        if corners.len() < 3 {
            return Err(format!("a ring of {} corners encloses nothing", corners.len()));
        }
        Ok(corners)
    };
    Ok(Polygon { rings: rings.list("the list of rings")?.iter().map(ring).collect::<Result<_, _>>()? })
}
