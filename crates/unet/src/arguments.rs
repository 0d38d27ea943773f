//! JSON as Python writes it, with names for what is wrong.

use std::path::Path;

use serde_json::{Map, Value};

use crate::{Error, Result, bounded};

/// `dataset.json` may list every training case of a large data set.
const MAX_BYTES: u64 = 64 << 20;

/// Reads a file that holds one JSON object.
pub(crate) fn read_object(path: &Path) -> Result<Map<String, Value>> {
    let text = bounded::read_text(path, MAX_BYTES)?;
    match serde_json::from_str(&without_constants(&text)) {
        Ok(Value::Object(object)) => Ok(object),
        Ok(_) => Err(Error::format(path, "not a JSON object")),
        Err(error) => Err(Error::format(path, format!("not JSON: {error}"))),
    }
}

/// Python writes bare `NaN`, `Infinity` and `-Infinity`, which JSON does not have: here they become texts, of the same length where that
/// goes, so that positions in messages stay right. A text is no number, and unlike `null` it is not as good as nothing.
fn without_constants(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    let mut in_string = false;
    while let Some(c) = rest.chars().next() {
        let constants = [("-Infinity", "\"-inf\"   "), ("Infinity", "\"inf\"   "), ("NaN", "\"nan\"")];
        let constant = constants.into_iter().find(|(name, _)| !in_string && rest.starts_with(name));
        if let Some((name, text)) = constant {
            // `NaN` is shorter; two columns later is close enough for a message.
            out.push_str(text);
            rest = &rest[name.len()..];
            continue;
        }
        let mut taken = c.len_utf8();
        if in_string && c == '\\' {
            taken += rest[1..].chars().next().map_or(0, char::len_utf8);
        } else if c == '"' {
            in_string = !in_string;
        }
        out.push_str(&rest[..taken]);
        rest = &rest[taken..];
    }
    out
}

/// Reads what stands beside the tag of an enumeration's variant that has no fields: nothing. serde itself would let any keys pass there,
/// also where unknown ones are denied.
///
/// # Errors
/// Names the key that is there.
pub(crate) fn nothing_else<'de, D: serde::Deserializer<'de>>(deserializer: D) -> std::result::Result<(), D::Error> {
    #[derive(serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Nothing {}
    <Nothing as serde::Deserialize>::deserialize(deserializer).map(|Nothing {}| ())
}

/// An object of the file with the words that name it in messages.
#[derive(Debug, Clone)]
pub(crate) struct Object<'a> {
    pub(crate) path: &'a Path,
    /// Such as `configurations.2d`; empty for the whole file.
    pub(crate) place: String,
    pub(crate) map: &'a Map<String, Value>,
}

impl<'a> Object<'a> {
    /// The whole of a file.
    pub(crate) fn file(path: &'a Path, map: &'a Map<String, Value>) -> Self {
        Self { path, place: String::new(), map }
    }

    /// The object under a key of this one.
    pub(crate) fn child(&self, key: &str) -> Result<Self> {
        Ok(Self { path: self.path, place: format!("{}{key}", self.prefix()), map: self.object(key)? })
    }

    /// What is wrong with a key of this object.
    pub(crate) fn wrong(&self, key: &str, message: &str) -> Error {
        Error::format(self.path, format!("{}{key} {message}", self.prefix()))
    }

    /// What a key of this object asks for that cannot be honoured.
    pub(crate) fn unsupported(&self, key: &str, message: &str) -> Error {
        Error::unsupported(self.path, format!("{}{key} {message}", self.prefix()))
    }

    fn prefix(&self) -> String {
        if self.place.is_empty() { String::new() } else { format!("{}.", self.place) }
    }

    /// Refuses keys that are none of these.
    pub(crate) fn only(&self, keys: &[&str]) -> Result<()> {
        match self.map.keys().find(|key| !keys.contains(&key.as_str())) {
            None => Ok(()),
            Some(key) => Err(self.wrong(key, &format!("is unknown; there are {}", keys.join(", ")))),
        }
    }

    /// A value, or `None` if it is missing or null.
    pub(crate) fn get(&self, key: &str) -> Option<&'a Value> {
        self.map.get(key).filter(|v| !v.is_null())
    }

    pub(crate) fn need(&self, key: &str) -> Result<&'a Value> {
        self.get(key).ok_or_else(|| self.wrong(key, "is missing"))
    }

    pub(crate) fn text(&self, key: &str) -> Result<Option<&'a str>> {
        let text = |v: &'a Value| v.as_str().ok_or_else(|| self.wrong(key, "is no text"));
        self.get(key).map(text).transpose()
    }

    pub(crate) fn list(&self, key: &str) -> Result<&'a [Value]> {
        self.need(key)?.as_array().map(Vec::as_slice).ok_or_else(|| self.wrong(key, "is no list"))
    }

    pub(crate) fn object(&self, key: &str) -> Result<&'a Map<String, Value>> {
        self.need(key)?.as_object().ok_or_else(|| self.wrong(key, "is no object"))
    }

    pub(crate) fn count(&self, key: &str) -> Result<usize> {
        as_count(self.need(key)?).ok_or_else(|| self.wrong(key, "is no count"))
    }

    pub(crate) fn flag(&self, key: &str) -> Result<Option<bool>> {
        let flag = |v: &Value| v.as_bool().ok_or_else(|| self.wrong(key, "is neither true nor false"));
        self.get(key).map(flag).transpose()
    }

    pub(crate) fn number(&self, key: &str) -> Result<Option<f64>> {
        self.get(key).map(|v| self.finite(key, v)).transpose()
    }

    /// A number, or `default` where there is no such key: an argument that is `null` is Python's `None`, which is no number.
    pub(crate) fn number_or(&self, key: &str, default: f64) -> Result<f64> {
        self.map.get(key).map_or(Ok(default), |v| self.finite(key, v))
    }

    fn finite(&self, key: &str, value: &Value) -> Result<f64> {
        value.as_f64().ok_or_else(|| self.wrong(key, "is no finite number"))
    }
}

/// A non-negative integer, also when it is written as a float.
pub(crate) fn as_count(value: &Value) -> Option<usize> {
    let exact = |f: f64| (f >= 0.0 && f.fract() == 0.0 && f < 1e15).then_some(f as usize);
    value.as_u64().and_then(|n| usize::try_from(n).ok()).or_else(|| value.as_f64().and_then(exact))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pythons_constants_become_texts_outside_of_texts_only() {
        let text = r#"{"a": NaN, "b NaN \" NaN": [-Infinity, Infinity], "ü\\": "Infinity"}"#;
        let value: Value = serde_json::from_str(&without_constants(text)).unwrap();
        assert_eq!(value["a"], "nan");
        assert_eq!(value["b NaN \" NaN"], serde_json::json!(["-inf", "inf"]));
        assert_eq!(value["ü\\"], "Infinity");
        assert_eq!(without_constants(r#"{"unclosed \"#), r#"{"unclosed \"#);
        assert_eq!(without_constants("[-Infinity, Infinity]").len(), "[-Infinity, Infinity]".len());
    }

    #[test]
    fn what_is_not_finite_is_not_missing() {
        let text = without_constants(r#"{"a": NaN, "b": -Infinity, "c": null, "d": 2}"#);
        let map: Map<String, Value> = serde_json::from_str(&text).unwrap();
        let object = Object::file(Path::new("file.json"), &map);
        for key in ["a", "b"] {
            assert_eq!(object.number(key).unwrap_err().to_string(), format!("file.json: {key} is no finite number"));
        }
        assert_eq!((object.number("c").unwrap(), object.number("d").unwrap()), (None, Some(2.0)));
        assert!(object.number_or("c", 1.0).unwrap_err().to_string().ends_with("c is no finite number"));
        assert_eq!((object.number_or("d", 1.0).unwrap(), object.number_or("e", 1.0).unwrap()), (2.0, 1.0));
    }
}
