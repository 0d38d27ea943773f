//! A table of names, colours and codes that is given beside a model, when a package is made of it.

use std::collections::BTreeSet;
use std::path::Path;

use microtome_io::Class;
use serde_json::Value;

use crate::arguments::{Object, as_count, read_object};
use crate::{Card, Error, Result, bounded};

/// Far more than a table of 65 536 classes with long names needs.
const MAX_BYTES: u64 = 16 << 20;
/// A name or a code is a few words, not a text.
const MAX_CHARACTERS: usize = 256;

/// What is to be said of one class in place of what the model says. `None` keeps that.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ClassChange {
    /// Its value in the mask.
    pub value: u16,
    /// The name.
    pub name: Option<String>,
    /// Red, green, blue.
    pub color: Option<[u8; 3]>,
    /// A code from a terminology, such as SNOMED CT.
    pub code: Option<String>,
}

impl ClassChange {
    /// Reads a table, `classes` in a JSON or TOML file: see `docs/model-package.md`.
    ///
    /// # Errors
    /// If the file is neither, or holds something else; that is named.
    pub fn read(path: impl AsRef<Path>) -> Result<Vec<Self>> {
        let path = path.as_ref();
        let map = if path.extension().is_some_and(|e| e.eq_ignore_ascii_case("toml")) {
            let text = bounded::read_text(path, MAX_BYTES)?;
            toml::from_str(&text).map_err(|e| Error::format(path, format!("not TOML: {}", e.message())))?
        } else {
            read_object(path)?
        };
        let file = Object::file(path, &map);
        file.only(&["classes"])?;
        file.list("classes")?.iter().enumerate().map(|(place, value)| parse(path, place, value)).collect()
    }
}

fn parse(path: &Path, place: usize, value: &Value) -> Result<ClassChange> {
    let place = format!("classes[{place}]");
    let Value::Object(map) = value else { return Err(Error::format(path, format!("{place} is no table"))) };
    let entry = Object { path, place, map };
    entry.only(&["value", "name", "color", "code"])?;
    let value = entry.count("value")?;
    let value =
        u16::try_from(value).map_err(|_| entry.wrong("value", &format!("is {value}; masks hold up to 65535")))?;
    let words = |key| {
        let text = entry.text(key)?;
        let fine = |t: &str| {
            !t.is_empty() && t.trim() == t && t.chars().count() <= MAX_CHARACTERS && !t.chars().any(char::is_control)
        };
        let message = format!("must be printable text of 1 to {MAX_CHARACTERS} characters, without spaces around it");
        if text.is_some_and(|t| !fine(t)) { Err(entry.wrong(key, &message)) } else { Ok(text.map(ToOwned::to_owned)) }
    };
    let color = match entry.get("color") {
        None => None,
        Some(found) => {
            let wrong = || entry.wrong("color", "must be \"#rrggbb\" or a list of red, green and blue, 0 to 255");
            Some(color(found).ok_or_else(wrong)?)
        }
    };
    Ok(ClassChange { value, name: words("name")?, color, code: words("code")? })
}

/// `"#e69f00"`, or a list of three numbers as in `model.toml`.
fn color(value: &Value) -> Option<[u8; 3]> {
    match value {
        Value::String(text) => {
            let digits = text.strip_prefix('#').filter(|d| d.len() == 6 && d.bytes().all(|b| b.is_ascii_hexdigit()))?;
            let [_, r, g, b] = u32::from_str_radix(digits, 16).ok()?.to_be_bytes();
            Some([r, g, b])
        }
        Value::Array(list) => {
            let numbers: Option<Vec<u8>> = list.iter().map(|n| as_count(n)?.try_into().ok()).collect();
            numbers?.try_into().ok()
        }
        _ => None,
    }
}

/// Checks that each change is of a class of the model, and that no class is changed twice.
pub(super) fn check(changes: &[ClassChange], card: &Card) -> Result<()> {
    let mut seen = BTreeSet::new();
    for ClassChange { value, .. } in changes {
        if !card.classes.iter().any(|c| c.value == *value) {
            let known: Vec<String> = card.classes.iter().map(|c| c.value.to_string()).collect();
            let message = format!("the model has no class of the value {value}; it has {}", known.join(", "));
            return Err(Error::usage(message));
        }
        if !seen.insert(value) {
            return Err(Error::usage(format!("the class of the value {value} is given twice")));
        }
    }
    Ok(())
}

/// A class with what is to be said of it.
pub(super) fn change(class: Class, changes: &[ClassChange]) -> Class {
    match changes.iter().find(|c| c.value == class.value) {
        None => class,
        Some(ClassChange { name, color, code, .. }) => Class {
            value: class.value,
            name: name.clone().unwrap_or(class.name),
            color: color.unwrap_or(class.color),
            code: code.clone().or(class.code),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_is_read_from_json_and_toml() {
        let folder = tempfile::tempdir().unwrap();
        let read = |name: &str, text: &str| {
            let path = folder.path().join(name);
            std::fs::write(&path, text).unwrap();
            ClassChange::read(&path).map_err(|e| e.to_string().replace(&format!("{}: ", path.display()), ""))
        };
        let json = r##"{"classes": [{"value": 1, "color": "#E69f00", "code": "SCT 84640000"}, {"value": 2, "name": "stroma"}]}"##;
        let changes = read("a.json", json).unwrap();
        let nucleus =
            ClassChange { value: 1, name: None, color: Some([230, 159, 0]), code: Some("SCT 84640000".into()) };
        assert_eq!(changes, [nucleus, ClassChange { value: 2, name: Some("stroma".into()), ..ClassChange::default() }]);
        let toml = "[[classes]]\nvalue = 1\ncolor = [230, 159, 0]\ncode = \"SCT 84640000\"\n[[classes]]\nvalue = 2\nname = \"stroma\"\n";
        assert_eq!(read("a.toml", toml).unwrap(), changes);

        let wrong = |entry: &str| read("a.json", &format!("{{\"classes\": [{entry}]}}")).unwrap_err();
        let color = "classes[0].color must be \"#rrggbb\" or a list of red, green and blue, 0 to 255";
        for text in
            ["\"e69f00\"", "\"#e69f0\"", "\"#e69f0g\"", "\"#+69f00\"", "[1, 2]", "[1, 2, 256]", "[1, 2, -1]", "5"]
        {
            assert_eq!(wrong(&format!("{{\"value\": 1, \"color\": {text}}}")), color, "{text}");
        }
        assert_eq!(wrong("{\"name\": \"a\"}"), "classes[0].value is missing");
        assert_eq!(wrong("{\"value\": 70000}"), "classes[0].value is 70000; masks hold up to 65535");
        assert_eq!(
            wrong("{\"value\": 1, \"colour\": \"#000000\"}"),
            "classes[0].colour is unknown; there are value, name, color, code"
        );
        assert_eq!(wrong("7"), "classes[0] is no table");
        for text in ["", " a", "a\\n"] {
            assert!(
                wrong(&format!("{{\"value\": 1, \"code\": \"{text}\"}}"))
                    .starts_with("classes[0].code must be printable text")
            );
        }
        assert!(read("a.toml", "classes = ").unwrap_err().starts_with("not TOML: "));
        assert_eq!(read("a.json", "{\"klasses\": []}").unwrap_err(), "klasses is unknown; there are classes");
    }
}
