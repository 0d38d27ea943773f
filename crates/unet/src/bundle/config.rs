//! `inference.json` of a bundle: a program in JSON, of which only what is plain is read.
//!
//! Values are literals; `@name` stands for what is found under that name. Expressions (`$...`) and macros (`%...`) are never evaluated:
//! where one matters it is refused by its place.
//! Format: MONAI 1.6.1, `monai/bundle/{config_parser,reference_resolver,config_item}.py`.

use std::cell::Cell;
use std::path::Path;

use serde_json::{Map, Value};

use crate::arguments::Object;
use crate::{Error, Result};

/// Bytes that references may be resolved into, names and texts as long as they are, and so many more for each value: a bundle has
/// hundreds of values, and references to references grow without bounds.
const MAX_BYTES: usize = 1 << 20;
const VALUE_BYTES: usize = 64;
/// Bytes of a type's name, such as `$torch.float32`.
const MAX_TYPE: usize = 64;
/// What stands for a type that is told in another way than by its name.
pub(super) const UNKNOWN_TYPE: &str = "no name of a type";
/// How deep values and references may lie in each other.
const MAX_DEPTH: usize = 64;

/// The file.
#[derive(Debug)]
pub(super) struct Config<'a> {
    path: &'a Path,
    root: &'a Map<String, Value>,
    /// Resolved so far.
    bytes: Cell<usize>,
}

/// A value with the name that messages call it by.
#[derive(Debug)]
pub(super) struct Found<'a> {
    name: String,
    value: &'a Value,
}

/// An object with a `_target_`: a class and the arguments of its constructor, resolved.
#[derive(Debug)]
pub(super) struct Component {
    /// The last part of the class's path.
    pub(super) class: String,
    pub(super) arguments: Map<String, Value>,
    /// Where it stands, for messages.
    pub(super) place: String,
}

/// Which arguments of a component are looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Arguments {
    All,
    /// Which entries of a dictionary it is about.
    Keys,
}

impl Component {
    pub(super) fn object<'a>(&'a self, path: &'a Path) -> Object<'a> {
        Object { path, place: self.place.clone(), map: &self.arguments }
    }
}

impl<'a> Config<'a> {
    pub(super) fn new(path: &'a Path, root: &'a Map<String, Value>) -> Self {
        Self { path, root, bytes: Cell::new(0) }
    }

    /// What stands under a name, references followed, but nothing below it.
    pub(super) fn find(&self, name: &str) -> Result<Option<&'a Value>> {
        Ok(self.named(name)?.map(|found| found.value))
    }

    /// The same of what a component has under a key, or else of a name.
    pub(super) fn argument_or(&self, component: &str, key: &str, name: &str) -> Result<Option<Found<'a>>> {
        match self.argument(component, key)? {
            None => self.named(name),
            found => Ok(found),
        }
    }

    fn named(&self, name: &str) -> Result<Option<Found<'a>>> {
        self.root.get(name).map_or(Ok(None), |value| self.follow(value, name))
    }

    /// `None` also where the component is an expression.
    fn argument(&self, component: &str, key: &str) -> Result<Option<Found<'a>>> {
        let value = self.find(component)?.and_then(|component| component.get(key));
        value.map_or(Ok(None), |value| self.follow(value, &format!("{component}.{key}")))
    }

    /// What the handlers `PostProcessing` of the evaluator do to the network's output, after the evaluator's own transforms.
    pub(super) fn handled(&self) -> Result<Vec<Found<'a>>> {
        let lists = [self.argument("evaluator", "val_handlers")?, self.named("handlers")?];
        let Some(handlers) = lists.into_iter().flatten().find(|list| list.value.is_array()) else {
            return Ok(Vec::new());
        };
        let mut transforms = Vec::new();
        for handler in handlers.value.as_array().into_iter().flatten() {
            let Some(handler) = self.follow(handler, &handlers.name)? else { continue };
            let Some(object) = handler.value.as_object() else { continue };
            let target = object.get("_target_").and_then(Value::as_str).unwrap_or_default();
            if target.rsplit('.').next() == Some("PostProcessing")
                && let Some(transform) = object.get("transform")
                && !self.is_disabled(object, &handler.name)?
            {
                transforms.extend(self.follow(transform, &format!("{}.transform", handler.name))?);
            }
        }
        Ok(transforms)
    }

    /// What a value stands for, references followed, but nothing below it: named as the last reference names it.
    fn follow(&self, value: &'a Value, place: &str) -> Result<Option<Found<'a>>> {
        let (mut name, mut value) = (place, value);
        for _ in 0..MAX_DEPTH {
            match value.as_str().and_then(reference) {
                Some(id) => (name, value) = (id, self.look_up(id, place)?),
                None => return Ok((!value.is_null()).then(|| Found { name: name.to_owned(), value })),
            }
        }
        Err(self.too_deep(place))
    }

    /// The component that a value is, or `None` where it is switched off.
    pub(super) fn component(&self, value: &Value, place: &str) -> Result<Option<Component>> {
        self.component_with(value, place, &|_| Arguments::All)
    }

    /// The same where some classes' arguments make no difference.
    fn component_with(
        &self,
        value: &Value,
        place: &str,
        wanted: &dyn Fn(&str) -> Arguments,
    ) -> Result<Option<Component>> {
        let value = match value.as_str().and_then(reference) {
            Some(id) => self.look_up(id, place)?,
            None => value,
        };
        if let Some(expression) = value.as_str().filter(|t| t.starts_with(['$', '%'])) {
            return Err(self.expression(place, expression));
        }
        let wrong = |message: &str| Error::format(self.path, format!("{place} {message}"));
        let object = value.as_object().ok_or_else(|| wrong("is no object"))?;
        let target = object.get("_target_").and_then(Value::as_str).ok_or_else(|| wrong("has no _target_"))?;
        let class = target.rsplit('.').next().unwrap_or(target).to_owned();
        let wanted = wanted(&class);
        let mut arguments = Map::new();
        for (key, value) in object {
            match key.as_str() {
                "_disabled_" if self.is_disabled(object, place)? => return Ok(None),
                "_target_" | "_desc_" | "_requires_" | "_disabled_" => {}
                key if key.starts_with('_') => {
                    let message = format!("{place} has {key}, which is not supported");
                    return Err(Error::unsupported(self.path, message));
                }
                // What only says where and how fast something runs may be an expression.
                "device" | "sw_device" | "progress" | "sw_batch_size" | "buffer_steps" | "cpu_thresh" => {}
                // A type is mostly an expression, of which the name is enough; there may be one for each entry of a dictionary.
                "dtype" => {
                    let name = |value: &Value| match value.as_str() {
                        Some(name) if name.len() <= MAX_TYPE && !name.starts_with('@') => name.into(),
                        _ if value.is_null() => Value::Null,
                        _ => UNKNOWN_TYPE.into(),
                    };
                    let named = match value {
                        Value::Array(each) => each.iter().map(name).collect(),
                        one => name(one),
                    };
                    arguments.insert(key.to_owned(), named);
                }
                key if wanted == Arguments::Keys && key != "keys" => {}
                key => {
                    let resolved = self.resolve(value, &format!("{place}.{key}"), 0)?;
                    arguments.insert(key.to_owned(), resolved);
                }
            }
        }
        Ok(Some(Component { class, arguments, place: place.to_owned() }))
    }

    /// Whether a component is switched off.
    fn is_disabled(&self, component: &Map<String, Value>, place: &str) -> Result<bool> {
        let Some(value) = component.get("_disabled_") else { return Ok(false) };
        match self.resolve(value, &format!("{place}._disabled_"), 0)? {
            Value::Bool(disabled) => Ok(disabled),
            _ => Err(Error::format(self.path, format!("{place} has a _disabled_ that is neither true nor false"))),
        }
    }

    /// The transforms of a list, or of a `Compose` of one. `wanted` says which arguments of a class are looked at.
    pub(super) fn transforms(&self, found: &Found<'a>, wanted: &dyn Fn(&str) -> Arguments) -> Result<Vec<Component>> {
        let (name, mut value) = (found.name.as_str(), found.value);
        if let Some(object) = value.as_object() {
            let target = object.get("_target_").and_then(Value::as_str).unwrap_or_default();
            if target.rsplit('.').next() != Some("Compose") {
                return Ok(self.component_with(value, name, wanted)?.into_iter().collect());
            }
            value = match object.get("transforms") {
                Some(Value::String(text)) => match reference(text) {
                    Some(id) => self.look_up(id, name)?,
                    None => return Err(self.expression(name, text)),
                },
                Some(transforms) => transforms,
                None => return Ok(Vec::new()),
            };
        }
        if let Some(expression) = value.as_str() {
            return Err(self.expression(name, expression));
        }
        let list = value.as_array().ok_or_else(|| Error::format(self.path, format!("{name} is no list")))?;
        let one = |(i, v)| self.component_with(v, &format!("{name}.transforms[{i}]"), wanted);
        let components = list.iter().enumerate().map(one);
        components.filter_map(Result::transpose).collect()
    }

    /// A value with what its references stand for.
    fn resolve(&self, value: &Value, place: &str, depth: usize) -> Result<Value> {
        let text = match value {
            Value::String(text) => text.len(),
            Value::Object(map) => map.keys().map(String::len).sum(),
            _ => 0,
        };
        self.bytes.set(self.bytes.get().saturating_add(VALUE_BYTES).saturating_add(text));
        if self.bytes.get() > MAX_BYTES {
            let message = format!("{place}: its references come to more than {MAX_BYTES} bytes");
            return Err(Error::limits(self.path, message));
        }
        if depth > MAX_DEPTH {
            return Err(self.too_deep(place));
        }
        match value {
            Value::String(text) if text.starts_with('$') || text.starts_with('%') => Err(self.expression(place, text)),
            Value::String(text) => match reference(text) {
                Some(id) => self.resolve(self.look_up(id, place)?, place, depth + 1),
                None => Ok(value.clone()),
            },
            Value::Array(items) => {
                let items = items.iter().enumerate();
                items.map(|(i, v)| self.resolve(v, &format!("{place}[{i}]"), depth + 1)).collect()
            }
            Value::Object(map) => {
                let entry = |(key, value): (&String, &Value)| {
                    Ok((key.clone(), self.resolve(value, &format!("{place}.{key}"), depth + 1)?))
                };
                Ok(Value::Object(map.iter().map(entry).collect::<Result<_>>()?))
            }
            plain => Ok(plain.clone()),
        }
    }

    /// What a path such as `a::b::0`, or `a#b#0`, names.
    fn look_up(&self, id: &str, place: &str) -> Result<&'a Value> {
        let mut parts = id.split([':', '#']).filter(|p| !p.is_empty());
        let first = parts.next().and_then(|name| self.root.get(name));
        let step = |value: &'a Value, part: &str| match value {
            Value::Object(map) => map.get(part),
            Value::Array(items) => part.parse().ok().and_then(|i: usize| items.get(i)),
            _ => None,
        };
        let found = parts.fold(first, |value, part| value.and_then(|v| step(v, part)));
        found.ok_or_else(|| Error::format(self.path, format!("{place} refers to {id}, which is not there")))
    }

    fn expression(&self, place: &str, text: &str) -> Error {
        const SHOWN: usize = 60;
        let start: String = text.chars().take(SHOWN).collect();
        let more = if start.len() < text.len() { "..." } else { "" };
        let message =
            format!("{place} is an expression ({start}{more}), which is not evaluated: write its value there");
        Error::unsupported(self.path, message)
    }

    fn too_deep(&self, place: &str) -> Error {
        Error::limits(self.path, format!("{place} holds references or values more than {MAX_DEPTH} deep"))
    }
}

/// What `@name` refers to. `@` followed by a separator is relative to its own place, which no bundle needs: it is found nowhere.
fn reference(text: &str) -> Option<&str> {
    text.strip_prefix('@')
}
